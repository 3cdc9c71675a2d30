"""The CuPy twins against the float64 references, with poses on the host, as the algorithms call them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.packed_sphere import count_packed, pack_sphere, unpack_sphere
from cloudem.kernels.polar import best_rotations, decode, polar_grid, shift_samples
from cloudem.kernels.slices import complete_friedel, extract, half_width, insert, score_derivatives, split_group
from cloudem.model.symmetry import operators

BOX, K_MAX, PADDING = 32, 11, 1.5
IMAGES, POSES = 3, 7


@pytest.fixture
def random():
    return np.random.default_rng(20)


def volume_of(random):
    """A padded half-volume whose column kx = -1 and plane kx = 0 obey Friedel's law."""
    m = half_width(K_MAX, PADDING)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    volume = random.normal(size=shape) + 1j * random.normal(size=shape)
    volume[:, :, 1] = (volume[:, :, 1] + volume[::-1, ::-1, 1].conj()) / 2
    volume[:, :, 0] = volume[::-1, ::-1, 2].conj()
    return volume.astype(np.complex64)


def poses_of(random):
    rotations = Rotation.random(POSES, random).as_matrix()
    rotations[0] = np.eye(3)  # samples on the planes between voxels
    images = random.integers(0, IMAGES, POSES).astype(np.int32)
    return images, rotations, random.normal(scale=3, size=(POSES, 2))


def data_of(random, pixels):
    shape = (IMAGES, pixels)
    numerators = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
    return numerators, random.uniform(0.1, 2, size=shape).astype(np.float32)


def close(actual, expected, tolerance, axis=None):
    """Compare with a tolerance relative to the largest entry, of all or along an axis."""
    error, scale = np.abs(actual - expected), np.abs(expected)
    assert np.all(error.max(axis=axis) <= tolerance * scale.max(axis=axis))


def test_extract(cupy, random):
    disc, volume = half_disc(BOX, K_MAX), volume_of(random)
    _, rotations, _ = poses_of(random)
    slices = extract(cupy.asarray(volume), rotations, disc.kx, disc.ky, PADDING)
    assert isinstance(slices, cupy.ndarray)
    assert slices.dtype == np.complex64
    expected = extract.reference(volume.astype(np.complex128), rotations, disc.kx, disc.ky, PADDING)
    close(cupy.asnumpy(slices), expected, 2e-6)


def test_extract_on_a_polar_grid(cupy, random):
    grid, volume = polar_grid(K_MAX, 10, BOX), volume_of(random)
    _, rotations, _ = poses_of(random)
    slices = extract(cupy.asarray(volume), rotations, grid.kx, grid.ky, PADDING)
    expected = extract.reference(volume.astype(np.complex128), rotations, grid.kx, grid.ky, PADDING)
    close(cupy.asnumpy(slices), expected, 2e-6)


def test_insert(cupy, random):
    disc, volume = half_disc(BOX, K_MAX), volume_of(random)
    poses, data, gamma = poses_of(random), data_of(random, len(disc.kx)), random.uniform(size=POSES)
    start = volume, np.abs(volume)
    sums = [cupy.asarray(part) for part in start]
    arrays = [cupy.asarray(part) for part in data]
    assert insert(*sums, *poses, gamma, *arrays, disc.kx, disc.ky, PADDING, BOX) is None
    expected = start[0].astype(np.complex128), start[1].astype(np.float64)
    insert.reference(*expected, *poses, gamma, *data, disc.kx, disc.ky, PADDING, BOX)
    for actual, wanted in zip(sums, expected, strict=True):
        close(cupy.asnumpy(actual), wanted, 2e-6)


def test_insert_is_the_adjoint_of_extract(cupy, random):
    disc, volume = half_disc(BOX, K_MAX), volume_of(random)
    _, rotations, _ = poses_of(random)
    data = data_of(random, len(disc.kx))[0][:1]
    sums, weights = (cupy.asarray(np.zeros(volume.shape, kind)) for kind in (np.complex64, np.float32))
    one, zero = np.ones(1), np.zeros((1, 2))
    rest = (zero, one, data, np.abs(data), disc.kx, disc.ky, PADDING, BOX)
    insert(sums, weights, np.zeros(1, np.int32), rotations[1:2], *rest)
    slices = cupy.asnumpy(extract(cupy.asarray(volume), rotations[1:2], disc.kx, disc.ky, PADDING))
    back = cupy.asnumpy(sums)
    left = np.vdot(data, slices).real
    right = np.vdot(back, volume).real
    assert left == pytest.approx(right, rel=1e-4)
    complete_friedel(back)
    assert np.all(back[:, :, 0] == 0)


def test_score_derivatives(cupy, random):
    disc, volume = half_disc(BOX, K_MAX), volume_of(random)
    poses, data = poses_of(random), data_of(random, len(disc.kx))
    arrays = [cupy.asarray(part) for part in data]
    sums = score_derivatives(cupy.asarray(volume), *poses, *arrays, disc.kx, disc.ky, PADDING, BOX)
    assert type(sums) is np.ndarray
    assert sums.dtype == np.float64
    wide = volume.astype(np.complex128)
    close(sums, score_derivatives.reference(wide, *poses, *data, disc.kx, disc.ky, PADDING, BOX), 1e-5, axis=0)


def test_scores_do_not_depend_on_where_the_images_are(cupy, random):
    disc, volume = half_disc(BOX, K_MAX), cupy.asarray(volume_of(random))
    poses, data = poses_of(random), data_of(random, len(disc.kx))
    rest = (disc.kx, disc.ky, PADDING, BOX)
    there = score_derivatives(volume, *poses, *(cupy.asarray(part) for part in data), *rest)
    np.testing.assert_array_equal(score_derivatives(volume, *poses, *data, *rest), there)


def test_no_poses(cupy, random):
    disc, volume = half_disc(BOX, K_MAX), cupy.asarray(volume_of(random))
    images, rotations, shifts = (part[:0] for part in poses_of(random))
    rest = (*data_of(random, len(disc.kx)), disc.kx, disc.ky, PADDING, BOX)
    assert score_derivatives(volume, images, rotations, shifts, *rest).shape == (0, 22)
    assert extract(volume, rotations, disc.kx, disc.ky, PADDING).shape == (0, len(disc.kx))


def test_an_accumulator_of_another_type_is_refused(cupy, random):
    disc, volume = half_disc(BOX, K_MAX), volume_of(random)
    data, gamma = data_of(random, len(disc.kx)), np.ones(POSES)
    sums, weights = cupy.asarray(volume), cupy.asarray(np.abs(volume).astype(np.float64))
    with pytest.raises(ValueError, match="accumulator of float64"):
        insert(sums, weights, *poses_of(random), gamma, *data, disc.kx, disc.ky, PADDING, BOX)


def test_shift_samples(cupy, random):
    grid = polar_grid(K_MAX, 10, BOX)
    real, imaginary = random.normal(size=(2, IMAGES, len(grid.kx))).astype(np.float32)
    shifts = random.normal(scale=4, size=(IMAGES, 5, 2))
    actual = shift_samples(cupy.asarray(real), cupy.asarray(imaginary), grid.kx, grid.ky, shifts, BOX)
    expected = shift_samples.reference(real.astype(float), imaginary.astype(float), grid.kx, grid.ky, shifts, BOX)
    for part, wanted in zip(actual, expected, strict=True):
        close(cupy.asnumpy(part), wanted, 2e-6)


@pytest.mark.parametrize("directions", [5, 150])
def test_best_rotations(cupy, random, directions):
    count, shifts, angles = 6, 4, 20
    sums = random.normal(size=(4, count, 2, IMAGES * shifts, directions)).astype(np.float32)
    sums[1, 0] = sums[3, 0] = 0  # the angle 0 has no sines: two quadrants tie
    score, code = best_rotations(*(cupy.asarray(part) for part in sums), shifts)
    expected, codes = best_rotations.reference(*sums.astype(np.float64), shifts)
    assert type(score) is type(code) is np.ndarray
    close(score, expected, 1e-6)
    np.testing.assert_array_equal(code, codes)
    assert decode(code, angles)[0].max() < shifts


def test_ctf_values(cupy, random):
    disc = half_disc(BOX, K_MAX)
    terms = ctf_terms(
        voltage=300, spherical_aberration=2.7e7, amplitude_contrast=0.1, phase_shift=random.uniform(0, 2, IMAGES),
        defocus_u=random.uniform(5e3, 4e4, IMAGES), defocus_v=random.uniform(5e3, 4e4, IMAGES),
        defocus_angle=random.uniform(0, 3, IMAGES), b_factor=np.array([0.0, 50.0, -20.0]),
    )  # fmt: skip
    step = 1 / (BOX * 0.8)
    values = ctf_values(cupy.asarray(disc.kx), cupy.asarray(disc.ky), terms, step)
    close(cupy.asnumpy(values), ctf_values.reference(disc.kx, disc.ky, terms, step), 1e-6)


def accumulator_of(random, m):
    """An accumulator with its Friedel mates, and the weight."""
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    data = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
    weight = random.uniform(size=shape).astype(np.float32)
    complete_friedel(data)
    complete_friedel(weight)
    return data, weight


def same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


# rows of one warp and of several, spheres that end before and beyond the array
@pytest.mark.parametrize(
    ("symmetry", "m", "squared_radius"),
    [("C1", 9, 57), ("C1", 33, 1200), ("C2", 9, 240), ("D2", 34, 1156), ("C4", 7, 40), ("T", 9, 81), ("O", 32, 1100)],
)
def test_fold_and_unfold_give_the_bits_of_the_host(cupy, random, symmetry, m, squared_radius):
    ball = split_group(operators(symmetry))[0], squared_radius
    data, weight = accumulator_of(random, m)
    count = count_packed(ball[0], m, squared_radius)
    line = pack_sphere(cupy.asarray(data), cupy.asarray(weight), *ball, count)
    whole = unpack_sphere(*line, *ball, m)
    here = pack_sphere(data, weight, *ball, count)
    for actual, expected in zip((*line, *whole), (*here, *unpack_sphere(*here, *ball, m)), strict=True):
        assert isinstance(actual, cupy.ndarray)
        same_bits(cupy.asnumpy(actual), expected)


@pytest.mark.parametrize("symmetry", ["C1", "O"])
def test_a_line_without_weights(cupy, random, symmetry):
    m, ball = 9, (split_group(operators(symmetry))[0], 70)
    data, none = cupy.asarray(accumulator_of(random, m)[0]), np.empty((0, 0, 0), np.float32)
    count = count_packed(ball[0], m, ball[1])
    values, weights = pack_sphere(data, none, *ball, count)
    assert weights.size == 0
    same_bits(cupy.asnumpy(values), pack_sphere(cupy.asnumpy(data), none, *ball, count)[0])
    found, nothing = unpack_sphere(values, weights, *ball, m)
    assert nothing.size == 0
    same_bits(cupy.asnumpy(found), unpack_sphere(cupy.asnumpy(values), none.ravel(), *ball, m)[0])


def test_friedel_mates_are_completed_on_the_device(cupy, random):
    m = 9
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    data = (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)
    for here in (data, random.uniform(size=shape).astype(np.float32)):
        there = cupy.asarray(here)
        complete_friedel(there)
        complete_friedel(here)
        same_bits(cupy.asnumpy(there), here)
