import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from cloudem.algorithms import mask as m
from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.resolution import low_pass
from cloudem.errors import ParameterError

PIXEL = 3.0


def noisy(blob, level, seed=0):
    noise = np.random.default_rng(seed).standard_normal(blob.shape, np.float32)
    return blob + level * blob.max() * noise


@pytest.mark.parametrize("shape", [m.soft_sphere, m.soft_circle])
def test_soft_edges(shape):
    mask = shape(32, 8.0, 4.0)
    middle = mask[(16,) * (mask.ndim - 1)]
    np.testing.assert_array_equal(middle[16:25], 1)
    assert middle[26] == pytest.approx(0.5)
    np.testing.assert_array_equal(middle[28:], 0)
    np.testing.assert_array_equal(middle[1:16], middle[:16:-1])
    assert mask.dtype == np.float32


def test_a_sphere_has_the_volume_of_a_sphere():
    assert m.soft_sphere(64, 20.0, 0.0).sum() == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.01)


def test_otsu_separates_two_classes():
    rng = np.random.default_rng(1)
    values = np.r_[rng.normal(0, 1, 9000), rng.normal(10, 1, 1000)]
    assert 3 < m.otsu_threshold(values) < 7.5


@pytest.mark.parametrize("level", [0.0, 0.2, 0.6])
def test_outline_covers_the_density_and_little_else(blob, level):
    """With up to noise as strong as 0.6 of the highest voxel, the mask holds the molecule, within its extension."""
    mask = m.estimate_mask(noisy(blob, level), PIXEL)
    dense = blob > 0.15 * blob.max()
    assert mask[dense].min() > 0.99
    assert (blob * mask).sum() > 0.97 * blob.sum()
    assert mask.mean() < 4 * dense.mean()
    assert mask.min() == 0
    assert mask.dtype == np.float32


def test_the_mask_depends_on_the_map_alone(blob):
    volume = noisy(blob, 0.3)
    np.testing.assert_array_equal(m.estimate_mask(volume, PIXEL), m.estimate_mask(volume.copy(), PIXEL))


@settings(derandomize=True, max_examples=8, deadline=None)
@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_scale_and_offset_of_the_map_do_not_matter(blob, scale, offset):
    volume = noisy(blob, 0.2)
    moved = (scale * (volume + offset)).astype(np.float32)
    assert abs(m.estimate_mask(moved, PIXEL) - m.estimate_mask(volume, PIXEL)).mean() < 2e-3


def test_growing_and_edges_only_add(blob):
    narrow, wide, soft = (
        m.estimate_mask(blob, PIXEL, extend=extend, edge=edge) for extend, edge in ((3, 6), (9, 6), (3, 12))
    )
    assert (wide >= narrow).all()
    assert (soft >= narrow - 1e-6).all()
    assert (wide > 0.99).sum() > (narrow > 0.99).sum()
    np.testing.assert_array_equal(soft == 1, narrow == 1)


def test_a_given_threshold_and_diameter_are_used(blob):
    smooth = low_pass(blob, PIXEL, 15.0)
    level = 0.5 * float(smooth.max())
    mask = m.estimate_mask(blob, PIXEL, threshold=level, extend=0.0, edge=0.0)
    assert (smooth[mask > 0.5] > level).mean() > 0.95
    assert (mask[smooth > level] > 0.5).mean() > 0.95
    small = m.estimate_mask(blob, PIXEL, diameter=30.0, extend=0.0, edge=3.0)
    assert small.sum() <= m.soft_sphere(48, 5.0, 1.0).sum()


def test_cavities_are_filled_and_specks_left_out(blob):
    shell = m.soft_sphere(48, 12, 2) - m.soft_sphere(48, 5, 2)
    shell[3:5, 24, 24] = 1.0
    mask = m.estimate_mask(shell, PIXEL, low_pass_resolution=6.0, extend=0.0, edge=3.0)
    assert mask[24, 24, 24] == 1
    assert mask[:6, 24, 24].max() == 0


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_coarser_grid_gives_the_same_mask(monkeypatch, level):
    """Against the outline found voxel by voxel: they overlap, are as large, and none cuts density."""
    molecule = density_of_atoms(demo_molecule(80.0), 96, 1.25, b_factor=50.0)
    density = noisy(molecule, level)
    threshold = m.density_threshold(low_pass(density, 1.25, 15.0))[0]
    mask = m.estimate_mask(density, 1.25, threshold=threshold)
    assert m.coarse_box(96, 1.25, 15.0) == 40
    monkeypatch.setattr(m, "VOXELS_PER_RESOLUTION", 1000.0)
    plain = m.estimate_mask(density, 1.25, threshold=threshold)
    assert 2 * np.minimum(mask, plain).sum() > 0.98 * (mask.sum() + plain.sum())
    assert mask.sum() == pytest.approx(plain.sum(), rel=0.02)
    assert (mask * molecule).sum() > 0.998 * (plain * molecule).sum()


def test_the_number_of_threads_changes_no_bit(blob):
    masks = []
    for workers in (1, 2, 3):
        with fft.set_workers(workers):
            masks.append(m.estimate_mask(noisy(blob, 0.3), 1.3))
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(masks[0], masks[2])


def test_bad_maps_are_named(blob):
    with pytest.raises(ParameterError, match="constant"):
        m.estimate_mask(np.ones_like(blob), PIXEL)
    with pytest.raises(ParameterError, match="no voxel"):
        m.estimate_mask(blob, PIXEL, threshold=1e9)
    with pytest.raises(ParameterError, match="NaN"):
        m.estimate_mask(np.full_like(blob, np.nan), PIXEL)
