"""Images on another grid, held against a direct evaluation of what they show."""

import numpy as np
import pytest

from cloudem.kernels.resampling import resample, resampling_matrix


def blobs(box: int, pixel_size: float, seed: int = 0, limit: float = np.inf) -> np.ndarray:
    """Return an image of waves on the circle of a box of 60 Å, each with a phase: those below a limit in 1/Å alone."""
    rng = np.random.default_rng(seed)
    x = (np.arange(box) - box // 2) * pixel_size
    out = np.zeros((box, box))
    for kx, ky, amplitude, phase in zip(*rng.integers(-24, 25, (2, 60)), *rng.normal(size=(2, 60)), strict=True):
        if max(abs(kx), abs(ky)) / 60 < limit:
            out += amplitude * np.cos(2 * np.pi / 60 * (kx * x + ky * x[:, None]) + 3 * phase)
    return out


@pytest.mark.parametrize(
    ("box", "pixel_size", "new_box", "new_pixel_size"),
    [
        (60, 1.0, 50, 1.2),  # all of the box
        (60, 1.0, 44, 1.0837),  # no common measure
        (75, 0.8, 44, 1.3),  # an odd box
        (75, 0.8, 74, 0.8),
        (60, 1.0, 48, 1.0),
        (60, 1.0, 12, 4.9),
    ],
)
def test_resampled_images_are_those_of_a_direct_evaluation(box, pixel_size, new_box, new_pixel_size):
    matrix = resampling_matrix(box, pixel_size, new_box, new_pixel_size)
    images = np.array([blobs(box, pixel_size, seed) for seed in (1, 2)], np.float32)
    limit = 1 / (2 * new_pixel_size) if new_pixel_size != pixel_size else np.inf
    exact = np.array([blobs(new_box, new_pixel_size, seed, limit) for seed in (1, 2)])
    got = resample(images, matrix.astype(np.float32))
    assert got.dtype == np.float32
    assert abs(got - exact).max() < 1e-5 * abs(images).max()


def test_the_same_pixels_are_cut_out_as_they_are():
    image = np.random.default_rng(0).normal(size=(1, 15, 15)).astype(np.float32)
    got = resample(image, resampling_matrix(15, 1.3, 10, 1.3 * (1 + 5e-5)).astype(np.float32))
    np.testing.assert_array_equal(got[0], image[0, 2:12, 2:12])


def test_white_noise_keeps_its_power_in_what_is_left():
    noise = np.random.default_rng(3).normal(size=(40, 96, 96)).astype(np.float32)
    got = resample(noise, resampling_matrix(96, 1.0, 64, 1.5).astype(np.float32))
    power = np.mean(np.abs(np.fft.rfft2(got)) ** 2, axis=0) / 64**2
    expected = (64 / 96) ** 2  # the share of frequencies that is left
    assert np.mean(power[1:31, 1:31]) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("new_box", "new_pixel_size"),
    [(64, 0.9), (66, 1.0), (54, 1.2), (63, 1.02)],
    ids=["finer", "larger", "wider", "odd"],
)
def test_nothing_is_made_up(new_box, new_pixel_size):
    with pytest.raises(ValueError, match="do not lie within 64 px of 1 Å"):
        resampling_matrix(64, 1.0, new_box, new_pixel_size)
