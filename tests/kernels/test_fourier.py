import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.kernels.fourier import (
    fill_half_disc,
    fourier_images,
    fourier_volume,
    half_disc,
    low_passed,
    real_images,
    real_volume,
    sample_half_disc,
    shell_index,
)
from tests.phantom import blobs

boxes = st.sampled_from([16, 18, 24, 30, 32])
seeds = st.integers(0, 2**32 - 1)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def complex_noise(*shape: int, seed: int = 0) -> np.ndarray:
    return (noise(*shape, seed=seed) + 1j * noise(*shape, seed=seed + 1)).astype(np.complex64)


def test_transform_is_the_sum_that_the_conventions_state() -> None:
    n = 16
    image = noise(1, n, n)
    r = np.arange(n) - n // 2
    k = np.fft.fftfreq(n, 1 / n)
    kernel = np.exp(-2j * np.pi / n * np.outer(k, r))
    expected = kernel @ image[0] @ kernel[: n // 2 + 1].T  # the row n // 2 stands for ±n / 2
    np.testing.assert_allclose(fourier_images(image)[0], expected, atol=1e-4)


def test_transform_of_a_gaussian_is_the_closed_form() -> None:
    n = 32
    phantom = blobs(4, reach=4)
    k = np.fft.fftfreq(n, 1 / n)
    frequencies = np.stack(np.meshgrid(k, k, np.arange(n // 2 + 1), indexing="ij")[::-1], axis=-1)
    exact = phantom.transform(frequencies, n)
    inner = shell_index(n) < n // 2
    error = np.abs(fourier_volume(phantom.density(n)) - exact)[inner].max() / np.abs(exact).max()
    assert error < 1e-5


@pytest.mark.parametrize("padding", [1, 2])
def test_volume_there_and_back(padding: int) -> None:
    volume = noise(18, 18, 18)
    transform = fourier_volume(volume, padding)
    assert transform.shape == (18 * padding, 18 * padding, 9 * padding + 1)
    assert transform.dtype == np.complex64
    back = real_volume(transform, 18)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, volume, atol=1e-5)


@given(box=boxes, seed=seeds)
def test_images_there_and_back(box: int, seed: int) -> None:
    images = noise(2, box, box, seed=seed)
    transforms = fourier_images(images)
    kept = transforms.copy()
    back = real_images(transforms)
    assert (transforms.dtype, back.dtype) == (np.complex64, np.float32)
    np.testing.assert_array_equal(transforms, kept)  # the input of the inverse is left alone
    np.testing.assert_allclose(back, images, atol=2e-5)


@given(box=boxes, seed=seeds)
def test_parseval(box: int, seed: int) -> None:
    images = noise(1, box, box, seed=seed)
    power = np.abs(fourier_images(images)[0].astype(complex)) ** 2
    power[:, 1:-1] *= 2
    assert np.isclose(power.sum(), box**2 * np.sum(images.astype(float) ** 2), rtol=1e-5)


@pytest.mark.parametrize(("box", "k_max"), [(16, 7), (24, 5), (32, 15)])
def test_half_disc_counts_every_independent_pixel_once(box: int, k_max: int) -> None:
    disc = half_disc(box, k_max)
    here = set(zip(disc.kx.tolist(), disc.ky.tolist(), strict=True))
    mates = {(-x, -y) for x, y in here}
    assert len(here) == len(disc.kx)
    assert not here & mates
    axis = range(-box, box + 1)
    assert here | mates == {(x, y) for x in axis for y in axis if (x or y) and round(np.hypot(x, y)) <= k_max}
    assert all(part.dtype == np.int32 for part in disc)
    np.testing.assert_array_equal(disc.shell, np.rint(np.hypot(disc.kx, disc.ky)))


@pytest.mark.parametrize("k_max", [0, 8, 9])
def test_half_disc_refuses_nyquist_and_nothing(k_max: int) -> None:
    with pytest.raises(ValueError, match="needs 1 to 7"):
        half_disc(16, k_max)


@given(box=boxes, seed=seeds)
def test_filling_is_the_adjoint_of_sampling(box: int, seed: int) -> None:
    """The inner product of half-plane transforms counts the pixels off the axis kx = 0 twice, for their mates."""
    disc = half_disc(box, box // 2 - 1)
    transforms = fourier_images(noise(2, box, box, seed=seed))
    values = complex_noise(2, len(disc.kx), seed=seed // 2)
    count = np.full(box // 2 + 1, 2.0)
    count[0] = 1
    filled = fill_half_disc(values, disc, box)
    left = np.sum(transforms * filled.conj() * count).real
    right = 2 * np.sum(sample_half_disc(transforms, disc) * values.conj()).real
    assert np.isclose(left, right, rtol=1e-4, atol=1e-2 * box)
    np.testing.assert_array_equal(sample_half_disc(filled, disc), values)
    assert filled.dtype == np.complex64


def test_filled_transform_is_that_of_a_real_image() -> None:
    disc = half_disc(16, 7)
    filled = fill_half_disc(complex_noise(1, len(disc.kx)), disc, 16)
    np.testing.assert_allclose(fourier_images(real_images(filled)), filled, atol=1e-5)


def test_double_precision_stays_double() -> None:
    images = noise(1, 16, 16).astype(np.float64)
    assert fourier_images(images).dtype == np.complex128
    assert real_images(fourier_images(images)).dtype == np.float64


def test_images_of_fewer_pixels_show_the_same_shells() -> None:
    disc = half_disc(24, 4)
    values = np.random.default_rng(2).standard_normal((2, len(disc.kx), 2)) @ [1, 1j]
    whole = fill_half_disc(values, disc, 24)
    whole[:, 0, 0] = 5.0
    beyond = whole + fill_half_disc(np.ones((2, len(half_disc(24, 11).kx)), complex), half_disc(24, 11), 24)
    small = low_passed(whole, 4, 12)
    assert small.shape == (2, 12, 7)
    np.testing.assert_allclose(sample_half_disc(small, disc), values)
    np.testing.assert_allclose(real_images(small) * 144, real_images(whole)[:, ::2, ::2] * 576, atol=1e-9)
    assert np.count_nonzero(low_passed(beyond, 4, 12)) == np.count_nonzero(small)
