import numpy as np
import pytest

from cloudem.algorithms.reconstruct import reference_volume
from cloudem.algorithms.search import OPPOSITE, Hits, SearchGrid, poses, search, search_grid, shift_grid
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.slices import padded_box
from cloudem.model.poses import angle_between, random_rotations
from cloudem.model.symmetry import operators
from tests.phantom import blobs

BOX, K_MAX, RADIUS, STEP = 32, 8, 13.0, 0.25
PADDING = padded_box(BOX) / BOX
PHANTOM = blobs(reach=9, sigma=(1.0, 1.5))
VOLUME = reference_volume(PHANTOM.density(BOX), BOX // 2 - 1)


@pytest.fixture(scope="module")
def grid() -> SearchGrid:
    return search_grid(VOLUME, PADDING, BOX, K_MAX, RADIUS, STEP, operators("C1"))


def observe(grid: SearchGrid, rotations: np.ndarray, shifts: np.ndarray, noise: float, seed: int) -> tuple:
    """Return what :func:`search` takes of images without a CTF: samples, origins, weights and ring powers."""
    rng = np.random.default_rng(seed)
    disc = grid.disc
    signal = PHANTOM.slices(rotations, disc.kx, disc.ky, BOX)
    signal *= np.exp(-2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    origin = np.full(len(rotations), PHANTOM.transform(np.zeros(3), BOX).real, np.float32)
    sigma2 = noise**2 * np.mean(np.abs(signal) ** 2) / 2 if noise else 1.0
    if noise:
        signal += np.sqrt(sigma2) * (rng.standard_normal(signal.shape) + 1j * rng.standard_normal(signal.shape))
    weight = np.full((len(rotations), len(grid.grid.kx)), 1 / sigma2, np.float32)
    power = np.full((len(rotations), K_MAX), 1 / sigma2, np.float32)
    return signal.astype(np.complex64), origin, weight, power


def found(grid: SearchGrid, hits: Hits, shifts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return score, rotation and shift of each image's best hit."""
    score = hits.numerator - hits.norm[:, None] / 2
    flat = score.reshape(len(score), -1)
    side, direction = np.divmod(flat.argmax(axis=1), score.shape[2])
    images = np.arange(len(score))
    return flat.max(axis=1), *poses(grid, hits, images, side, direction, shifts)


def test_grid_is_single_precision_and_covers_a_hemisphere(grid: SearchGrid) -> None:
    kept = (grid.to_real, grid.to_imaginary, grid.from_origin, grid.slices.even, grid.slices.odd, grid.power)
    assert {part.dtype for part in kept} == {np.dtype(np.float32)}
    exact = PHANTOM.slices(grid.rotations, grid.grid.kx, grid.grid.ky, BOX).reshape(len(grid.rotations), K_MAX, -1)
    power = np.mean(np.abs(exact) ** 2, axis=-1).T
    assert np.abs(grid.power - power).max() < 5e-3 * power.max()


def test_symmetry_leaves_fewer_directions() -> None:
    whole = search_grid(VOLUME, PADDING, BOX, 3, RADIUS, 0.1, operators("C1"))
    part = search_grid(VOLUME, PADDING, BOX, 3, RADIUS, 0.1, operators("O"))
    # 24 times fewer, but for those along the borders of the unit
    assert 16 < len(whole.rotations) / len(part.rotations) < 24


def test_scores_are_those_of_the_poses_returned(grid: SearchGrid) -> None:
    """N and D of every hit against sums over the whole disc, written out for the pose that it decodes to."""
    rng = np.random.default_rng(0)
    true = random_rotations(3, rng)
    t = rng.normal(0, 0.7, (3, 2))
    samples, origin, weight, power = observe(grid, true, t, 0.5, 1)
    tried = np.broadcast_to(shift_grid(2, 1), (3, 19, 2)).copy()
    prior = rng.normal(0, 1e-3, (3, 19)).astype(np.float32)
    hits = search(grid, samples, origin, weight, power, tried, prior)
    assert (hits.numerator.dtype, hits.norm.dtype, hits.code.dtype) == (np.float32, np.float32, np.int32)
    count = hits.norm.shape[1]
    image, side, direction = (index.ravel() for index in np.indices((3, 2, count)))
    rotations, shifts = poses(grid, hits, image, side, direction, tried)
    disc = half_disc(BOX, K_MAX)
    within = grid.disc.shell <= K_MAX
    slices = PHANTOM.slices(rotations, disc.kx, disc.ky, BOX)
    slices *= np.exp(-2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    exact = np.sum((samples[image][:, within] * slices.conj()).real, axis=1) * weight[0, 0]
    got = hits.numerator[image, side, direction]
    # rings stand for pixels: the first holds pi of them instead of 4, which offsets all scores alike
    assert np.corrcoef(got, exact)[0, 1] > 0.997
    assert np.abs(got - exact).max() < 0.08 * np.abs(exact).max()
    norm = np.sum(np.abs(slices) ** 2, axis=1) * power[0, 0]
    np.testing.assert_allclose(hits.norm[image, direction], norm, rtol=0.1)


def test_no_pose_of_the_grid_scores_higher(grid: SearchGrid) -> None:
    """The maximum over angles and shifts for each direction, against all of them tried one by one."""
    true = random_rotations(1, np.random.default_rng(2))
    samples, origin, weight, power = observe(grid, true, np.zeros((1, 2)), 0.5, 3)
    tried = shift_grid(1, 1)[None]
    hits = search(grid, samples, origin, weight, power, tried, np.zeros((1, 7), np.float32))
    one_by_one = []
    for shift in range(7):
        alone = search(grid, samples, origin, weight, power, tried[:, shift : shift + 1], np.zeros((1, 1), np.float32))
        one_by_one.append(alone.numerator)
    np.testing.assert_allclose(hits.numerator, np.max(one_by_one, axis=0), rtol=1e-4, atol=1e-3)


def test_prior_moves_the_choice(grid: SearchGrid) -> None:
    true = random_rotations(1, np.random.default_rng(4))
    samples, origin, weight, power = observe(grid, true, np.zeros((1, 2)), 0.5, 5)
    tried = np.array([[[0.0, 0.0], [3.0, 0.0]]])
    scale = np.abs(search(grid, samples, origin, weight, power, tried, np.zeros((1, 2), np.float32)).numerator).max()
    prior = np.array([[0, 10 * scale]], np.float32)
    hits = search(grid, samples, origin, weight, power, tried, prior)
    _, _, shifts = found(grid, hits, tried)
    np.testing.assert_array_equal(shifts, [[3.0, 0.0]])


def test_planted_poses_are_found(grid: SearchGrid) -> None:
    rng = np.random.default_rng(6)
    true = random_rotations(40, rng)
    tried = np.broadcast_to(shift_grid(3, 1), (40, 37, 2)).copy()
    t = tried[0][rng.integers(0, 37, 40)]
    samples, origin, weight, power = observe(grid, true, t, 1.0, 7)
    hits = search(grid, samples, origin, weight, power, tried, np.zeros((40, 37), np.float32))
    _, rotations, shifts = found(grid, hits, tried)
    angle = angle_between(rotations, true)
    assert np.median(angle) < STEP
    assert np.mean(angle < 1.5 * STEP) > 0.9
    assert np.mean(np.linalg.norm(shifts - t, axis=1) <= 1.01) > 0.9


def test_batches_do_not_depend_on_their_size(grid: SearchGrid) -> None:
    rng = np.random.default_rng(8)
    true = random_rotations(5, rng)
    args = observe(grid, true, np.zeros((5, 2)), 1.0, 9)
    tried = np.broadcast_to(shift_grid(2, 1), (5, 19, 2)).copy()
    prior = np.zeros((5, 19), np.float32)
    whole = search(grid, *args, tried, prior)
    parts = [search(grid, *(a[i : i + 1] for a in args), tried[:1], prior[:1]) for i in range(5)]
    np.testing.assert_allclose(whole.numerator, np.concatenate([part.numerator for part in parts]), rtol=1e-4, atol=0.1)


def test_opposite_is_half_a_turn_about_x() -> None:
    np.testing.assert_array_equal(OPPOSITE @ OPPOSITE, np.eye(3))
    assert np.linalg.det(OPPOSITE) == 1


@pytest.mark.parametrize(("radius", "step", "count"), [(0, 1, 1), (2, 0, 1), (1, 1, 7), (2, 1, 19), (3, 1, 37)])
def test_shift_grid_is_hexagonal_with_its_centre_first(radius: float, step: float, count: int) -> None:
    shifts = shift_grid(radius, step)
    assert len(shifts) == count
    np.testing.assert_array_equal(shifts[0], 0)
    assert np.all(np.linalg.norm(shifts, axis=1) <= radius + 1e-6)
    if count > 1:
        apart = np.linalg.norm(shifts[:, None] - shifts, axis=-1)[~np.eye(count, dtype=bool)]
        np.testing.assert_allclose(apart.min(), step)
