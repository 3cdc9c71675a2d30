"""A pivot changes how poses and maps are written, and nothing that an image shows."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.focus import Focus, by_shell_undone, centre_of_mass, keeps_pivot
from cloudem.kernels.fourier import fill_half_disc, fourier_images, half_disc, real_images, sample_half_disc
from cloudem.model.poses import random_rotations
from cloudem.model.symmetry import operators
from tests.phantom import blobs

BOX, PIVOT = 32, (3, -4, 2)


def shifted(phases, disc, shifts):
    return phases * np.exp(-2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))


@pytest.mark.parametrize("stretch", [np.eye(2), np.array([[1.02, 0.01], [0.01, 0.97]])])
def test_images_about_the_pivot_show_the_map_about_the_pivot(stretch):
    """The slices of V_c at poses about c are the images of V, cut about where c is in them; with magnification, too."""
    molecule, rng, disc = blobs(), np.random.default_rng(1), half_disc(BOX, BOX // 2 - 1)
    focus = Focus(PIVOT, BOX)
    rotations, shifts = random_rotations(5, rng), rng.normal(0, 1, (5, 2))
    axes = rotations.copy()
    axes[:, :2] = stretch.T @ rotations[:, :2]
    images = real_images(fill_half_disc(shifted(molecule.slices(axes, disc.kx, disc.ky, BOX), disc, shifts), disc, BOX))
    residual, corners = focus.about_pivot(axes, shifts)
    assert np.abs(residual).max() <= 0.5
    assert np.abs(corners).max() >= 3
    found = sample_half_disc(fourier_images(focus.cut(images, corners)), disc)
    about = type(molecule)(molecule.amplitude, molecule.centre - PIVOT, molecule.sigma)
    expected = shifted(about.slices(axes, disc.kx, disc.ky, BOX), disc, residual)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(focus.undone(axes, residual, corners), shifts, atol=1e-12)


def test_a_smaller_box_is_the_middle_of_the_larger_one():
    images, corners = np.random.default_rng(0).standard_normal((3, BOX, BOX)), np.array([[0, 0], [5, -3], [-9, 20]])
    whole, part = (Focus(PIVOT, box).cut(images, corners) for box in (BOX, 20))
    np.testing.assert_array_equal(part, whole[:, 6:26, 6:26])
    assert whole[1, BOX // 2, BOX // 2] == images[1, BOX // 2 - 3, BOX // 2 + 5]


@pytest.mark.parametrize("box", [BOX, 20])
def test_maps_go_to_the_pivot_and_back(box):
    density = blobs(reach=5.0).density(BOX)
    focus = Focus(PIVOT, box)
    moved = focus.map_about_pivot(density)
    x, y, z = PIVOT
    assert moved[box // 2, box // 2, box // 2] == density[BOX // 2 + z, BOX // 2 + y, BOX // 2 + x]
    back = focus.map_undone(moved, BOX)
    held = focus.map_undone(np.ones_like(moved), BOX) > 0
    np.testing.assert_array_equal(back, np.where(held, density, 0))
    far = Focus((BOX, 0, 0), box).map_about_pivot(density)
    assert not far.any()


def test_the_centre_of_a_mask():
    mask = np.zeros((BOX,) * 3, np.float32)
    mask[BOX // 2 + 2, BOX // 2 - 4, BOX // 2 + 3] = mask[BOX // 2 + 2, BOX // 2 - 4, BOX // 2 + 4] = 0.5
    np.testing.assert_allclose(centre_of_mass(mask), [3.5, -4, 2])


def test_a_pivot_off_an_axis_is_not_kept():
    assert keeps_pivot(operators("C1"), PIVOT)
    assert keeps_pivot(operators("C7"), (0, 0, 9))
    assert not keeps_pivot(operators("C7"), (0, 1, 9))
    assert not keeps_pivot(operators("D7"), (0, 0, 9))


def test_what_is_known_by_shell_keeps_its_frequency():
    values = np.where(np.arange(11) < 3, np.nan, np.arange(11.0))
    wide = by_shell_undone(values, 40)
    assert np.flatnonzero(np.isfinite(wide)).tolist() == list(range(6, 21, 2))
    np.testing.assert_array_equal(wide[6::2], values[3:])
    np.testing.assert_array_equal(by_shell_undone(values, 20), values)
