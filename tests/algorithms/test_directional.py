"""Laws of the resolution by direction: what is even, what is not and where, and what is chance."""

import numpy as np
import pytest
from scipy import fft, ndimage
from scipy.spatial.transform import Rotation

from cloudem.algorithms.directional import (
    HALF_ANGLE,
    STEP,
    Anisotropy,
    anisotropy,
    cone_multiplicity,
    directional_fsc,
    sphericity,
)
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import FscCurves, masked_fsc
from cloudem.algorithms.significance import independent_voxels, significant_shell
from cloudem.algorithms.spectra import cone_sums, mixed_of
from cloudem.model.poses import sphere_directions
from cloudem.model.symmetry import operators

BOX = 64
AXIS = np.array([0.48, -0.6, 0.64])


def frequencies() -> tuple[np.ndarray, np.ndarray]:
    """Return k of each coefficient, x, y, z last, and its length."""
    k = np.fft.fftfreq(BOX, 1 / BOX)
    grid = np.stack(np.meshgrid(k, k, np.arange(BOX // 2 + 1), indexing="ij")[::-1], -1)
    return grid, np.linalg.norm(grid, axis=-1)


def noisy(level: np.ndarray, seed: int, sphere: np.ndarray) -> list[np.ndarray]:
    """Return two half-maps: white noise in a sphere, and noise of their own with ``level`` times its amplitudes."""
    rng = np.random.default_rng(seed)
    signal, *own = (rng.standard_normal((BOX,) * 3) for _ in range(3))
    return [(signal * sphere + fft.irfftn(fft.rfftn(one) * level, s=signal.shape)).astype(np.float32) for one in own]


def rising(at: float = 20.0) -> np.ndarray:
    """Amplitudes of noise in the box that grow with frequency, not so far that the mask carries it inwards."""
    return 0.5 * np.exp(np.minimum(frequencies()[1] - at, 10) / 4)


def within(degrees: float) -> np.ndarray:
    """Return which coefficients lie in the double cone of this half angle about `AXIS`."""
    k, length = frequencies()
    return np.abs(k @ AXIS) >= np.cos(np.deg2rad(degrees)) * length


def judged(halves: list[np.ndarray], mask: np.ndarray, group: str = "C1") -> tuple[Anisotropy, FscCurves]:
    curves = masked_fsc(*halves, mask)
    found = directional_fsc(*halves, mask, curves, BOX // 2 - 1, operators(group))
    voxels = independent_voxels(BOX, curves.fraction, len(operators(group)))
    return anisotropy(found, curves.corrected, significant_shell(curves.corrected, voxels)), curves


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    return soft_sphere(BOX, 23, 4)


@pytest.mark.parametrize("seed", range(3))
def test_even_maps_have_one_resolution_and_it_is_the_whole_shells(mask, seed):
    said, curves = judged(noisy(rising(), seed, soft_sphere(BOX, 21, 4)), mask)
    voxels = independent_voxels(BOX, curves.fraction, 1)
    assert said.mean == pytest.approx(significant_shell(curves.corrected, voxels), rel=0.06)
    assert np.all(abs(said.shells / said.mean - 1) < 0.35)
    assert said.worst > 0.8 * said.mean
    assert said.deviations < 2
    assert said.sphericity > 0.96
    assert not said.uneven


def test_a_direction_with_less_signal_is_found(mask):
    """Its noise is that of a map which ends at half the frequency of the rest."""
    sphere, coarse, fine = soft_sphere(BOX, 21, 4), rising(at=7), rising()
    halves = noisy(np.where(within(40), coarse, fine), 5, sphere)
    said, _ = judged(halves, mask)
    of_coarse, of_fine = (judged(noisy(level, 5, sphere), mask)[0] for level in (coarse, fine))
    assert abs(said.worst_direction @ AXIS) > np.cos(np.deg2rad(25))  # somewhere in the cone of 40°
    assert said.uneven
    assert said.mean > 1.5 * said.worst
    assert said.sphericity < 0.93
    cosines = np.abs(sphere_directions(STEP) @ AXIS)
    inside, outside = cosines > np.cos(np.deg2rad(15)), cosines < np.cos(np.deg2rad(68))
    assert said.shells[inside].mean() == pytest.approx(of_coarse.shells[inside].mean(), rel=0.15)  # the mask mixes
    assert said.shells[outside].mean() == pytest.approx(of_fine.shells[outside].mean(), rel=0.06)


def test_with_the_map_it_turns(mask):
    """A map turned by 90° about z has the worst direction turned by 90° about z."""
    halves = noisy(np.where(within(40), rising(at=7), rising()), 6, soft_sphere(BOX, 21, 4))
    found = []
    for turn in (0, 1):
        # about the voxel n // 2, to which plane 0 has no mate
        turned = [np.rot90(np.roll(half, -1, (1, 2)) if turn else half, turn, (2, 1)) for half in halves]
        found.append(judged([np.ascontiguousarray(one) for one in turned], mask)[0].worst_direction)
    back = Rotation.from_euler("z", [[90], [-90]], degrees=True).as_matrix() @ found[0]
    assert max(abs(back @ found[1])) > np.cos(np.deg2rad(12))
    assert abs(found[0] @ found[1]) < 0.9


def symmetrised(volume: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the mean of a volume's copies under a group; without interpolation where turns are by 90°."""
    centre = np.full(3, BOX // 2)
    turns = group[:, ::-1, ::-1]  # x, y, z as z, y, x
    mates = [ndimage.affine_transform(volume, turn, centre - turn @ centre, order=1) for turn in turns]
    return np.mean(mates, axis=0, dtype=np.float32)


@pytest.mark.parametrize("group", ["D7", "O"])
def test_even_maps_of_a_point_group_are_even(mask, group):
    halves = [symmetrised(half, operators(group)) for half in noisy(rising(), 8, soft_sphere(BOX, 21, 4))]
    said, _ = judged(halves, mask, group)
    assert not said.uneven
    assert said.deviations < 2


def test_equivalent_directions_have_the_same_sums(mask):
    group, directions = operators("O"), sphere_directions(0.5)
    volumes = [mixed_of(symmetrised(half, group) * mask) for half in noisy(rising(), 8, soft_sphere(BOX, 21, 4))]
    one, *others = (cone_sums(*volumes, 0, directions @ turn.T, np.cos(HALF_ANGLE), 20) for turn in group[::5])
    for other in others:
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * one.max())


def test_voxels_of_a_cone_have_as_many_mates_as_the_group_puts_there():
    z, aside = np.array([[0.0, 0.0, 1.0]]), np.array([[np.sin(1.0), 0.0, np.cos(1.0)]])
    np.testing.assert_allclose(cone_multiplicity(np.concatenate([z, aside]), operators("C1")), 1)
    np.testing.assert_allclose(cone_multiplicity(z, operators("D7")), 14)  # the two-fold turns it over
    np.testing.assert_allclose(cone_multiplicity(z, operators("C4")), 4)
    assert 1 <= cone_multiplicity(aside, operators("C4"))[0] < 2
    group, (direction,), cosine = operators("O"), aside, np.cos(HALF_ANGLE)
    points = np.random.default_rng(0).standard_normal((400_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points = points[np.abs(points @ direction) >= cosine]
    wanted = (np.abs(points @ (direction @ group).T) >= cosine).sum() / len(points)
    assert cone_multiplicity(aside, group)[0] == pytest.approx(wanted, rel=0.03)


def test_sphericity_is_that_of_closed_forms():
    directions = sphere_directions(0.1)
    assert sphericity(directions, np.full(len(directions), 7.0)) == pytest.approx(1)
    # an oblate spheroid with half axes 1, 1, 1/2: A = 2 pi (1 + (1 - e²) atanh(e) / e)
    radii = 1 / np.sqrt(1 + 3 * directions[:, 2] ** 2)
    e = np.sqrt(0.75)
    area = 2 * np.pi * (1 + (1 - e**2) * np.arctanh(e) / e)
    wanted = np.pi ** (1 / 3) * (6 * 4 / 3 * np.pi / 2) ** (2 / 3) / area
    assert sphericity(directions, radii) == pytest.approx(wanted, rel=0.01)


def test_the_same_bits_for_any_number_of_threads(mask):
    halves = noisy(rising(), 9, soft_sphere(BOX, 21, 4))
    curves = masked_fsc(*halves, mask)
    found = []
    for threads in (1, 3):
        with fft.set_workers(threads):
            found.append(directional_fsc(*halves, mask, curves, BOX // 2 - 1, operators("C1")).curves)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("group", ["C1", "D7", "O"])
def test_noise_alone_is_not_uneven(mask, group):
    for seed in range(5):
        halves = list(np.random.default_rng(seed).standard_normal((2, BOX, BOX, BOX), np.float32))
        said, _ = judged(halves, mask, group)
        assert not said.uneven
        assert np.isfinite([*said[1:4], said.sphericity, said.deviations]).all()


def test_maps_and_masks_of_nothing_have_no_directions(mask):
    nothing = np.zeros((BOX,) * 3, np.float32)
    for halves, region in (([nothing, nothing], mask), (noisy(rising(), 1, mask), nothing)):
        said, _ = judged(halves, region)
        assert said.best == 1
        assert not said.uneven
