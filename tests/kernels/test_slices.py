from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cloudem.algorithms.reconstruct import reference_volume
from cloudem.kernels.fourier import HalfDisc, fourier_images, fourier_volume, half_disc, sample_half_disc
from cloudem.kernels.packed_sphere import count_packed, pack_sphere, unpack_sphere
from cloudem.kernels.slices import (
    WINDOW,
    complete_friedel,
    correct_gridding,
    crop_volume,
    extract,
    gridding,
    half_width,
    insert,
    magnified_axes,
    padded_box,
    place_volume,
    score_derivatives,
    window,
)
from cloudem.model.poses import euler_to_matrix, random_rotations, rotate
from cloudem.model.symmetry import operators
from tests.conftest import Twin
from tests.phantom import blobs

BOX = 32
PADDING = padded_box(BOX) / BOX
K_MAX = BOX // 2 - 1
PHANTOM = blobs(reach=9)
VOLUME = reference_volume(PHANTOM.density(BOX), K_MAX)
DISC = half_disc(BOX, K_MAX)
SMALL = half_disc(BOX, 6)
FLAT = DISC.take(np.abs(DISC.ky) <= 10)
"""As of images that are magnified otherwise along y: the last shell of the map lies lower there."""

DISCS = pytest.mark.parametrize("disc", [DISC, FLAT], ids=["round", "flat"])
seeds = st.integers(0, 2**32 - 1)


def rng_of(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def complex_noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def hermitian_volume(rng: np.random.Generator, k_max: int) -> np.ndarray:
    """Return a padded half-volume of noise that obeys Friedel's law where it stores both mates."""
    m = half_width(k_max, PADDING)
    volume = complex_noise(rng, 2 * m + 1, 2 * m + 1, m + 2)
    volume[:, :, 1] = (volume[:, :, 1] + volume[::-1, ::-1, 1].conj()) / 2
    volume[:, :, 0] = volume[::-1, ::-1, 2].conj()
    return volume


class Batch(NamedTuple):
    """Images, poses, shifts and weights, in the order of :func:`insert`."""

    images: np.ndarray
    rotations: np.ndarray
    shifts: np.ndarray
    pose_weights: np.ndarray
    numerators: np.ndarray
    denominators: np.ndarray


def batch(rng: np.random.Generator, disc: HalfDisc, poses: int = 5, images: int = 3) -> Batch:
    shape = (images, len(disc.kx))
    return Batch(
        rng.integers(0, images, poses).astype(np.int32), random_rotations(poses, rng), rng.normal(0, 3, (poses, 2)),
        rng.uniform(0.1, 1, poses), complex_noise(rng, *shape), rng.uniform(0, 1, shape).astype(np.float32),
    )  # fmt: skip


def inserted(function: object, one: Batch, disc: HalfDisc, k_max: int) -> tuple[np.ndarray, np.ndarray]:
    m = half_width(k_max, PADDING)
    sums = np.zeros((2 * m + 1, 2 * m + 1, m + 2), np.complex64)
    weights = np.zeros(sums.shape, np.float32)
    function(sums, weights, *one, disc.kx, disc.ky, PADDING, BOX)  # type: ignore[operator]
    return sums, weights


# --- the window ---


def test_window_is_smooth_symmetric_and_of_unit_integral() -> None:
    f = np.linspace(0, 1, 2001)
    weights, slopes = window(f)
    np.testing.assert_allclose(np.trapezoid(weights.sum(axis=0), f), 1, atol=1e-6)
    np.testing.assert_allclose(weights, weights[::-1, ::-1], atol=1e-9)
    np.testing.assert_allclose(np.gradient(weights, f, axis=1)[:, 2:-2], slopes[:, 2:-2], atol=1e-4)
    # one polynomial goes over into the next
    np.testing.assert_allclose(weights[:-1, 0], weights[1:, -1], atol=2e-3)


def test_gridding_is_the_transform_of_the_window() -> None:
    position = (np.arange(BOX) - BOX // 2) / 48
    f = (np.arange(4000) + 0.5) / 4000
    weights, _ = window(f)
    line = sum(np.cos(2 * np.pi * position[:, None] * (f + 1 - j)) @ weights[j] / 4000 for j in range(WINDOW))
    np.testing.assert_allclose(gridding(BOX, 48), line, atol=1e-6)
    flat = correct_gridding(np.ones((BOX,) * 3, np.float32), 48)
    assert flat.dtype == np.float32
    np.testing.assert_allclose(
        flat[BOX // 2, BOX // 2], 1 / (gridding(BOX, 48) * gridding(BOX, 48)[BOX // 2] ** 2), rtol=1e-5
    )


@pytest.mark.parametrize("box", [16, 32, 48, 64, 96, 100, 128, 250, 384])
def test_padded_box_is_even_and_large_enough(box: int) -> None:
    size = padded_box(box)
    assert size % 2 == 0
    assert 1.5 * box <= size < 1.7 * box


# --- layout ---


@pytest.mark.parametrize("k_max", [4, K_MAX])
def test_cropping_and_placing_are_inverse(k_max: int) -> None:
    size = padded_box(BOX)
    transform = fourier_volume(rng_of(0).standard_normal((size,) * 3).astype(np.float32))
    cropped = crop_volume(transform, BOX, k_max)
    assert cropped.dtype == np.complex64
    np.testing.assert_array_equal(cropped[:, :, 0], cropped[::-1, ::-1, 2].conj())
    m = cropped.shape[2] - 2
    assert np.isclose(cropped[m, m, 1], transform[0, 0, 0])
    assert np.isclose(cropped[m - 2, m + 1, 4], transform[-2, 1, 3])
    back = place_volume(cropped, size)
    filled = back != 0
    np.testing.assert_array_equal(back[filled], transform[filled])
    np.testing.assert_array_equal(crop_volume(back, BOX, k_max), cropped)


# --- extract ---


def test_extract_twins_agree(twin: Twin) -> None:
    rotations = random_rotations(6, rng_of(1))
    got = twin(extract)(VOLUME, rotations, DISC.kx, DISC.ky, PADDING)
    exact = extract.reference(VOLUME.astype(np.complex128), rotations, DISC.kx, DISC.ky, PADDING)
    assert got.dtype == np.complex64
    assert np.abs(got - exact).max() < 2e-6 * np.abs(VOLUME).max()


def test_extract_takes_fractional_frequencies(twin: Twin) -> None:
    rng = rng_of(2)
    kx, ky = rng.uniform(-8, 8, (2, 50))
    rotations = random_rotations(3, rng)
    got = twin(extract)(VOLUME, rotations, kx, ky, PADDING)
    exact = PHANTOM.slices(rotations, kx, ky, BOX)
    assert np.abs(got - exact).max() < 3e-3 * np.abs(exact).max()


def test_slices_of_gaussians_are_exact_to_the_windows_accuracy(twin: Twin) -> None:
    """Largest and root-mean-square error against the closed form, of all slices' largest value and norm."""
    rotations = random_rotations(20, rng_of(3))
    got = twin(extract)(VOLUME, rotations, DISC.kx, DISC.ky, PADDING)
    exact = PHANTOM.slices(rotations, DISC.kx, DISC.ky, BOX)
    error = np.abs(got - exact)
    assert error.max() / np.abs(exact).max() < 2.5e-3
    assert np.sqrt(np.mean(error**2) / np.mean(np.abs(exact) ** 2)) < 2e-3


def test_window_is_five_times_as_accurate_as_trilinear_at_padding_two() -> None:
    rotations = random_rotations(10, rng_of(13))
    exact = PHANTOM.slices(rotations, DISC.kx, DISC.ky, BOX)
    line = 1 / np.sinc((np.arange(BOX) - BOX // 2) / (2 * BOX)) ** 2
    flat = PHANTOM.density(BOX) * line[:, None, None] * line[:, None] * line
    full = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(np.pad(flat, BOX // 2))))
    position = np.stack([DISC.kx, DISC.ky], axis=-1) * 2.0 @ rotations[:, :2] + BOX
    where = np.moveaxis(position[..., ::-1], -1, 0)
    trilinear = ndimage.map_coordinates(full.real, where, order=1) + 1j * ndimage.map_coordinates(
        full.imag, where, order=1
    )
    ours = extract(VOLUME, rotations, DISC.kx, DISC.ky, PADDING)
    errors = [np.sqrt(np.mean(np.abs(got - exact) ** 2)) for got in (ours, trilinear)]
    assert errors[0] < errors[1] / 5


@pytest.mark.parametrize("turn", range(24))
def test_slice_is_the_transform_of_a_projection(turn: int) -> None:
    """Along the axes the projection is a plain sum, so that only the window's error is left."""
    rotation = operators("O")[turn]
    density = PHANTOM.density(BOX)
    axis = np.arange(1 - BOX // 2, BOX // 2)
    image = np.zeros((1, BOX, BOX), np.float32)
    # x_image = A x_map: each voxel but those of the first planes, which have no opposite, goes to its pixel
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    target = np.rint(np.einsum("ab,bn->an", rotation, [x.ravel(), y.ravel(), z.ravel()])).astype(int) + BOX // 2
    np.add.at(image[0], (target[1], target[0]), density[1:, 1:, 1:].ravel())
    expected = sample_half_disc(fourier_images(image), DISC)
    got = extract(VOLUME, rotation[None], DISC.kx, DISC.ky, PADDING)
    assert np.abs(got - expected).max() < 2.5e-3 * np.abs(expected).max()


@given(seed=seeds)
def test_opposite_pixels_are_conjugate(seed: int) -> None:
    rotations = random_rotations(2, rng_of(seed))
    here = extract(VOLUME, rotations, SMALL.kx, SMALL.ky, PADDING)
    there = extract(VOLUME, rotations, -SMALL.kx, -SMALL.ky, PADDING)
    np.testing.assert_allclose(here, there.conj(), atol=2e-6 * np.abs(VOLUME).max())


def test_slices_of_a_shifted_volume_have_a_phase() -> None:
    move = np.array([1, -2, 3])  # x, y, z
    shifted = np.roll(PHANTOM.density(BOX), move[::-1], axis=(0, 1, 2))
    rotations = random_rotations(4, rng_of(4))
    got = extract(reference_volume(shifted, K_MAX), rotations, DISC.kx, DISC.ky, PADDING)
    t = (rotations @ move)[:, :2]
    phase = np.exp(-2j * np.pi / BOX * (t[:, :1] * DISC.kx + t[:, 1:] * DISC.ky))
    expected = extract(VOLUME, rotations, DISC.kx, DISC.ky, PADDING) * phase
    assert np.abs(got - expected).max() < 5e-3 * np.abs(expected).max()


# --- insert ---


@DISCS
def test_insert_twins_agree(twin: Twin, disc: HalfDisc) -> None:
    one = batch(rng_of(5), disc)
    sums, weights = inserted(twin(insert), one, disc, K_MAX)
    exact, exact_weights = inserted(insert.reference, one, disc, K_MAX)
    assert (sums.dtype, weights.dtype) == (np.complex64, np.float32)
    assert np.abs(sums - exact).max() < 3e-6 * np.abs(exact).max()
    assert np.abs(weights - exact_weights).max() < 3e-6 * exact_weights.max()


@given(seed=seeds)
def test_insert_is_the_adjoint_of_extract(seed: int) -> None:
    rng = rng_of(seed)
    volume = hermitian_volume(rng, 6)
    one = batch(rng, SMALL)
    slices = extract(volume, one.rotations, SMALL.kx, SMALL.ky, PADDING)
    phase = np.exp(-2j * np.pi / BOX * (one.shifts[:, :1] * SMALL.kx + one.shifts[:, 1:] * SMALL.ky))
    left = np.sum(one.pose_weights[:, None] * one.numerators[one.images] * (slices * phase).conj()).real
    sums, weights = inserted(insert, one, SMALL, 6)
    right = np.sum(sums * volume.conj()).real
    assert abs(left - right) < 1e-4 * np.linalg.norm(one.numerators) * np.linalg.norm(slices)
    total = np.sum(one.pose_weights[:, None] * one.denominators[one.images])
    assert np.isclose(weights.sum(), total, rtol=0.01)  # the window's four weights sum to one within its error


@given(seed=seeds)
def test_completed_sums_are_those_of_both_halves(seed: int) -> None:
    """Inserting pixels and their mates fills what completing adds."""
    rng = rng_of(seed)
    one = batch(rng, SMALL)
    sums, weights = inserted(insert, one, SMALL, 6)
    complete_friedel(sums)
    complete_friedel(weights)
    mates = one._replace(numerators=one.numerators.conj())
    opposite = HalfDisc(-SMALL.kx, -SMALL.ky, SMALL.shell)
    both, both_weights = inserted(insert, one, SMALL, 6)
    inserted_more = inserted(insert, mates, opposite, 6)
    both += inserted_more[0]
    both_weights += inserted_more[1]
    # pixels with kx > 0 of the map land once each way: the sum of both halves is twice the half but at kx <= 1
    np.testing.assert_allclose(sums[:, :, 3:], both[:, :, 3:] / 2, atol=1e-4)
    np.testing.assert_allclose(weights[:, :, 3:], both_weights[:, :, 3:] / 2, atol=1e-4)
    assert not sums[:, :, 0].any()
    np.testing.assert_allclose(sums[:, :, 1], sums[::-1, ::-1, 1].conj(), atol=1e-4)


@given(seed=seeds, cut=st.integers(1, 4))
def test_splitting_a_batch_does_not_change_the_sums(seed: int, cut: int) -> None:
    one = batch(rng_of(seed), SMALL)
    sums, weights = inserted(insert, one, SMALL, 6)
    for part in (slice(None, cut), slice(cut, None)):
        some = Batch(*(value[part] for value in one[:4]), *one[4:])
        m = inserted(insert, some, SMALL, 6)
        sums -= m[0]
        weights -= m[1]
    assert np.abs(sums).max() < 1e-4
    assert np.abs(weights).max() < 1e-4


# --- derivatives of the score ---


@DISCS
def test_derivative_twins_agree(twin: Twin, disc: HalfDisc) -> None:
    one = batch(rng_of(6), disc)
    pixels = (one.numerators, one.denominators, disc.kx, disc.ky, PADDING, BOX)
    got = twin(score_derivatives)(VOLUME, *one[:3], *pixels)
    exact = score_derivatives.reference(VOLUME.astype(np.complex128), *one[:3], *pixels)
    assert got.shape == (5, 22)
    assert np.all(np.abs(got - exact).max(axis=0) < 1e-4 * np.abs(exact).max(axis=0))


def magnifications(count: int) -> np.ndarray:
    return np.eye(2) + rng_of(8).normal(0, 0.03, (count, 2, 2))


def test_derivative_twins_agree_with_magnification(twin: Twin) -> None:
    one, matrices = batch(rng_of(6), SMALL), magnifications(5)
    pixels = (one.numerators, one.denominators, SMALL.kx, SMALL.ky, PADDING, BOX)
    got = twin(score_derivatives)(VOLUME, *one[:3], *pixels, matrices)
    exact = score_derivatives.reference(VOLUME.astype(np.complex128), *one[:3], *pixels, matrices)
    assert np.all(np.abs(got - exact).max(axis=0) < 1e-4 * np.abs(exact).max(axis=0))
    np.testing.assert_array_equal(
        twin(score_derivatives)(VOLUME, *one[:3], *pixels),
        twin(score_derivatives)(VOLUME, *one[:3], *pixels, np.tile(np.eye(2), (5, 1, 1))),
    )


def test_derivatives_with_magnification_are_those_of_finite_differences() -> None:
    """Slices are sampled at M k directly, without the matrix that other kernels get in place of the pose."""
    rng, step = rng_of(9), 1e-5
    one, matrices = batch(rng, SMALL, poses=3), magnifications(3)
    volume = VOLUME.astype(np.complex128)
    pixels = (one.numerators, one.denominators, SMALL.kx, SMALL.ky, PADDING, BOX)

    def score(omega: np.ndarray, shift: np.ndarray) -> np.ndarray:
        turned, moved = rotate(one.rotations, omega), one.shifts + shift
        out = []
        for i, m, a, t in zip(one.images, matrices, turned, moved, strict=True):
            mx, my = m @ np.stack([SMALL.kx, SMALL.ky])
            phase = np.exp(-2j * np.pi / BOX * (t[0] * SMALL.kx + t[1] * SMALL.ky))
            position = PADDING * (np.stack([mx, my, 0 * mx], axis=1) @ a)
            flip = position[:, 0] < 0
            value = _window_sum(volume, np.where(flip[:, None], -position, position))
            s = np.where(flip, value.conj(), value) * phase
            out.append(np.sum((one.numerators[i] * s.conj()).real) - np.sum(one.denominators[i] * np.abs(s) ** 2) / 2)
        return np.array(out)

    found = score_derivatives.reference(volume, *one[:3], *pixels, matrices)
    np.testing.assert_allclose(found[:, 0] - found[:, 1] / 2, score(np.zeros((3, 3)), np.zeros((3, 2))), rtol=1e-6)
    for axis in range(5):
        move = np.zeros((3, 5))
        move[:, axis] = step
        slope = (score(move[:, :3], move[:, 3:]) - score(-move[:, :3], -move[:, 3:])) / (2 * step)
        np.testing.assert_allclose(found[:, 2 + axis], slope, rtol=1e-4, atol=1e-4 * np.abs(slope).max())


def _window_sum(volume: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return what the window reads of a volume at positions (p, 3), x >= 0, voxel by voxel."""
    m = volume.shape[2] - 2
    base = np.floor(position).astype(int)
    weights, _ = window(position - base)
    total = np.zeros(len(position), complex)
    for i, j, k in np.ndindex(WINDOW, WINDOW, WINDOW):
        voxel = volume[base[:, 2] + k - 1 + m, base[:, 1] + j - 1 + m, base[:, 0] + i]
        total += weights[i, :, 0] * weights[j, :, 1] * weights[k, :, 2] * voxel
    return total


def test_insert_is_the_adjoint_of_extract_with_magnification() -> None:
    rng = rng_of(10)
    volume, one = hermitian_volume(rng, 7), batch(rng, SMALL)
    axes = magnified_axes(one.rotations, magnifications(5))
    slices = extract(volume, axes, SMALL.kx, SMALL.ky, PADDING)
    phase = np.exp(-2j * np.pi / BOX * (one.shifts[:, :1] * SMALL.kx + one.shifts[:, 1:] * SMALL.ky))
    left = np.sum(one.pose_weights[:, None] * one.numerators[one.images] * (slices * phase).conj()).real
    sums, _ = inserted(insert, one._replace(rotations=axes), SMALL, 7)
    right = np.sum(sums * volume.conj()).real
    assert abs(left - right) < 1e-4 * np.linalg.norm(one.numerators) * np.linalg.norm(slices)


def test_derivatives_are_those_of_finite_differences(twin: Twin) -> None:
    rng = rng_of(7)
    one = batch(rng, SMALL, poses=3)
    volume = VOLUME.astype(np.complex128)

    def model(omega: np.ndarray, shift: np.ndarray) -> np.ndarray:
        moved = one.shifts + shift
        phase = np.exp(-2j * np.pi / BOX * (moved[:, :1] * SMALL.kx + moved[:, 1:] * SMALL.ky))
        return _nearby_slices(volume, rotate(one.rotations, omega), one.rotations) * phase

    def score(m: np.ndarray) -> np.ndarray:
        y, q = one.numerators[one.images], one.denominators[one.images]
        return np.sum((y * m.conj()).real - q * np.abs(m) ** 2 / 2, axis=1)

    step = 1e-4
    slopes, gradient = [], []
    for axis in range(5):
        change = np.zeros((3, 5))
        change[:, axis] = step
        up, down = model(change[:, :3], change[:, 3:]), model(-change[:, :3], -change[:, 3:])
        slopes.append((up - down) / (2 * step))
        gradient.append((score(up) - score(down)) / (2 * step))
    run = twin(score_derivatives)
    got = run(VOLUME, *one[:3], one.numerators, one.denominators, SMALL.kx, SMALL.ky, PADDING, BOX)
    gradient = np.stack(gradient, axis=1)
    np.testing.assert_allclose(got[:, 0] - got[:, 1] / 2, score(model(np.zeros((3, 3)), np.zeros((3, 2)))), rtol=1e-5)
    assert np.abs(got[:, 2:7] - gradient).max() < 1e-5 * np.abs(gradient).max()
    q = one.denominators[one.images]
    matrix = [np.sum(q * (slopes[a] * slopes[b].conj()).real, axis=1) for a in range(5) for b in range(a, 5)]
    matrix = np.stack(matrix, axis=1)
    diagonal = np.sqrt(np.stack([np.sum(q * np.abs(slope) ** 2, axis=1) for slope in slopes], axis=1))
    scale = np.stack([diagonal[:, a] * diagonal[:, b] for a in range(5) for b in range(a, 5)], axis=1)
    assert np.abs((got[:, 7:] - matrix) / scale).max() < 1e-4


def _nearby_slices(volume: np.ndarray, rotations: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Extract in double precision with the window's pieces of the poses ``start``.

    The window ends with a step of 1/400 of its height; a finite difference across it is not a derivative.
    """
    m = volume.shape[2] - 2
    plane = np.stack([SMALL.kx, SMALL.ky], axis=-1) * PADDING
    sign = np.where((plane @ start[:, :2])[..., 0] < 0, -1, 1)[..., None]
    base = np.floor(plane @ start[:, :2] * sign).astype(int)
    weights, _ = window(plane @ rotations[:, :2] * sign - base)
    total = np.zeros(base.shape[:2], complex)
    for k, j, i in np.ndindex(WINDOW, WINDOW, WINDOW):
        voxel = volume[base[..., 2] + k - 1 + m, base[..., 1] + j - 1 + m, base[..., 0] + i]
        total += voxel * weights[i, ..., 0] * weights[j, ..., 1] * weights[k, ..., 2]
    return np.where(sign[..., 0] < 0, total.conj(), total)


def test_window_reaches_the_last_shell_in_every_direction() -> None:
    """No sample of the limit's shell reads or writes outside the array, nor meets voxels that were not filled."""
    for k_max in (3, 7, K_MAX):
        disc = half_disc(BOX, k_max)
        ring = np.linspace(0, np.pi, 720)
        rotations = euler_to_matrix(ring, ring[::-1], 3 * ring)
        limit = (half_width(k_max, PADDING) - WINDOW // 2) * np.ones(1)
        reach = np.abs(np.stack([disc.kx, disc.ky], axis=-1) * PADDING @ rotations[:, :2]).max()
        assert reach <= limit


# --- symmetry ---


@pytest.mark.parametrize("name", ["O", "D2", "I", "C2", "D4"])
def test_axis_permutations_are_exact(name: str) -> None:
    group = np.array([op for op in operators(name) if np.array_equal(op, np.rint(op))])
    assert len(group) > 1
    one = batch(rng_of(8), SMALL, poses=20)
    sums, weights = inserted(insert, one, SMALL, 6)
    complete_friedel(sums)
    complete_friedel(weights)
    turned = [one._replace(rotations=one.rotations @ op) for op in group]
    exact, exact_weights = np.zeros_like(sums), np.zeros_like(weights)
    for some in turned:
        part = inserted(insert, some, SMALL, 6)
        exact += part[0]
        exact_weights += part[1]
    complete_friedel(exact)
    complete_friedel(exact_weights)
    m = sums.shape[2] - 2
    ball = (group.astype(np.int64), m * m)
    line = pack_sphere(sums, weights, *ball, count_packed(*ball[:1], m, m * m))
    got, got_weights = unpack_sphere(*line, *ball, m)
    assert (got.dtype, got_weights.dtype) == (np.complex64, np.float32)
    inner = (slice(None), slice(None), slice(1, None))
    distance = np.indices(sums.shape).T - np.array([1, sums.shape[1] // 2, sums.shape[0] // 2])[[2, 1, 0]]
    inside = (sums.shape[2] - 3 >= np.linalg.norm(distance, axis=-1).T)[inner]
    assert np.abs(got - exact)[inner][inside].max() < 1e-4 * np.abs(exact).max()
    assert np.abs(got_weights - exact_weights)[inner][inside].max() < 1e-4 * exact_weights.max()
