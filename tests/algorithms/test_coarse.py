"""Coarse maps: against the plain crop of a transform in float64, and what must hold of any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.coarse import coarse_map, coarse_spectrum, in_levels
from cloudem.errors import ParameterError


def plain_coarse(volume: np.ndarray, side: int) -> np.ndarray:
    """Return the coarse map by definition: frequencies below the coarse Nyquist about both centres, in float64."""
    box, centre = len(volume), len(volume) // 2
    k = np.arange(-((side - 1) // 2), (side - 1) // 2 + 1)
    there = np.exp(-2j * np.pi * np.outer(k, np.arange(box) - centre) / box)
    back = np.exp(2j * np.pi * np.outer(np.arange(side) - side // 2, k) / side)
    both = back @ there / box
    return np.einsum("ai,bj,ck,ijk->abc", both, both, both, volume.astype(np.float64), optimize=True).real


@pytest.mark.parametrize(("box", "side"), [(24, 16), (25, 16), (24, 15), (21, 13), (16, 4)])
def test_it_is_the_crop_of_the_transform(box, side):
    volume = np.random.default_rng(1).standard_normal((box,) * 3).astype(np.float32)
    expected = plain_coarse(volume, side)
    np.testing.assert_allclose(coarse_map(coarse_spectrum(volume, side)), expected, atol=3e-6)


def test_as_many_voxels_as_the_map_has_are_the_map():
    for box in (15, 16):
        volume = np.random.default_rng(2).standard_normal((box,) * 3).astype(np.float32)
        np.testing.assert_allclose(coarse_map(coarse_spectrum(volume, box)), volume, atol=3e-6)


def test_a_blob_at_the_centre_stays_there_and_keeps_its_height():
    z, y, x = np.mgrid[:48, :48, :48] - 24
    volume = np.exp(-(x**2 + y**2 + z**2) / 50.0).astype(np.float32)
    coarse = coarse_map(coarse_spectrum(volume, 24))
    assert np.unravel_index(coarse.argmax(), coarse.shape) == (12, 12, 12)
    assert coarse.max() == pytest.approx(1.0, abs=1e-3)
    assert coarse.mean() == pytest.approx(volume.mean(), rel=1e-4)


def test_a_curve_weights_shells():
    volume = np.random.default_rng(3).standard_normal((20,) * 3).astype(np.float32)
    spectrum = coarse_spectrum(volume, 20)
    np.testing.assert_allclose(coarse_map(spectrum, np.array([1.0])), volume.mean(), atol=1e-6)
    np.testing.assert_allclose(coarse_map(spectrum, np.full(20, 2.0)), 2 * volume, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_levels_give_the_density_back_to_half_a_level(seed, scale):
    density = (np.random.default_rng(seed).standard_normal((5, 5, 5)) * scale).astype(np.float32)
    levels = in_levels(density)
    step = (levels.maximum - levels.minimum) / 255
    back = levels.minimum + levels.values * step
    assert np.abs(back - density).max() <= 0.5001 * step + 1e-5 * scale
    assert (levels.values.min(), levels.values.max()) == (0, 255)
    assert levels.sigma == pytest.approx(density.std(), rel=1e-4)


def test_a_flat_map_has_one_level():
    assert in_levels(np.full((3, 3, 3), 2.5, np.float32)).values.max() == 0


def test_more_voxels_than_the_map_has_are_refused():
    with pytest.raises(ParameterError, match="1 to 8 voxels"):
        coarse_spectrum(np.zeros((8, 8, 8), np.float32), 9)
