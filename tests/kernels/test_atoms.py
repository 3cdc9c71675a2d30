import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem.kernels.atoms import add_gaussians

SPACING, SIZE = 0.8, 24
TABLE = np.array([[[1.5, 30.0], [0.5, 90.0], [0.0, 1.0]], [[2.0, 40.0], [-1.0, 60.0], [0.3, 100.0]]])


def some_atoms(count, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-4, 4, (count, 3)),
        rng.integers(0, 2, count).astype(np.int32),
        rng.uniform(20, 60, count),
        rng.uniform(0.5, 1.0, count),
    )


def sampled(function, positions, kinds, b_factors, occupancies, size=SIZE):
    grid = np.zeros((size,) * 3, np.float32)
    function(grid, positions, kinds, b_factors, occupancies, TABLE, SPACING)
    return grid


@pytest.fixture(params=["reference", "_numba"])
def function(request):
    return add_gaussians.reference if request.param == "reference" else add_gaussians.twin("_numba")


def test_numba_twin_is_there():
    assert add_gaussians.twin("_numba") is not add_gaussians.reference


def test_density_is_the_formula(function):
    """Against the sum of Gaussians written out in float64, every voxel; 2e-5 of the largest."""
    positions, kinds, b_factors, occupancies = some_atoms(5)
    axis = (np.arange(SIZE) - SIZE // 2) * SPACING
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    want = np.zeros((SIZE,) * 3)
    period = SIZE * SPACING
    for (px, py, pz), kind, b_factor, occupancy in zip(positions, kinds, b_factors, occupancies, strict=True):
        dx, dy, dz = ((d + period / 2) % period - period / 2 for d in (x - px, y - py, z - pz))
        r2 = dx * dx + dy * dy + dz * dz
        for a, b in TABLE[kind]:
            width = b + b_factor
            want += occupancy * a * (4 * np.pi / width) ** 1.5 * np.exp(-4 * np.pi**2 * r2 / width)
    got = sampled(function, positions, kinds, b_factors, occupancies)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-5 * want.max())


def test_integral_is_the_sum_of_the_scattering_factors(function):
    positions, kinds, b_factors, occupancies = some_atoms(20)
    got = sampled(function, positions, kinds, b_factors, occupancies).sum(dtype=np.float64) * SPACING**3
    assert got == pytest.approx(np.sum(occupancies * TABLE[kinds, :, 0].sum(axis=1)), rel=1e-5)


def test_nothing_adds_nothing(function):
    positions, kinds, b_factors, occupancies = some_atoms(0)
    assert not sampled(function, positions, kinds, b_factors, occupancies).any()


@settings(derandomize=True, max_examples=10, deadline=None)
@given(st.tuples(*[st.integers(-30, 30)] * 3))
def test_a_shift_by_whole_voxels_is_exact_and_periodic(shift):
    positions, kinds, b_factors, occupancies = some_atoms(3)
    moved = sampled(add_gaussians, positions + SPACING * np.array(shift), kinds, b_factors, occupancies)
    here = sampled(add_gaussians, positions, kinds, b_factors, occupancies)
    np.testing.assert_allclose(moved, np.roll(here, shift[::-1], (0, 1, 2)), atol=2e-6 * here.max())


def test_a_sum_does_not_depend_on_how_it_is_split():
    positions, kinds, b_factors, occupancies = some_atoms(30)
    whole = sampled(add_gaussians, positions, kinds, b_factors, occupancies)
    grid = np.zeros_like(whole)
    for part in (slice(0, 11), slice(11, None)):
        add_gaussians(grid, positions[part], kinds[part], b_factors[part], occupancies[part], TABLE, SPACING)
    np.testing.assert_allclose(grid, whole, atol=1e-6 * whole.max())


def test_a_gaussian_wider_than_the_grid_meets_itself(function):
    """A periodic grid holds all images of an atom: its integral stays whole."""
    one = np.zeros((1, 3)), np.zeros(1, np.int32), np.array([400.0]), np.ones(1)
    got = sampled(function, *one, size=8)
    assert got.sum(dtype=np.float64) * SPACING**3 == pytest.approx(2.0, rel=1e-5)
