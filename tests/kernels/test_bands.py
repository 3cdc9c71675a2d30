"""Bands of a map on their own grids, and what half-maps' bands share."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import fft, ndimage

from cloudem.kernels.bands import (
    SoftBand,
    add_band,
    cut_band,
    lower_crossings,
    on_finer_grid,
    smoothed_correlation,
)
from tests.conftest import Twin

BANDS = [SoftBand(0.0, 3.0, 4.0), SoftBand(3.0, 4.0, 5.5), SoftBand(4.0, 5.5, np.inf)]


def spectrum_of(n: int, seed: int = 0) -> NDArray[np.complex64]:
    return np.asarray(fft.rfftn(np.random.default_rng(seed).standard_normal((n,) * 3).astype(np.float32)), np.complex64)


def test_weights_of_bands_make_one_everywhere() -> None:
    k = np.linspace(0, 30, 301)
    np.testing.assert_allclose(sum(band.weight(k) for band in BANDS), 1, atol=1e-12)
    np.testing.assert_allclose(BANDS[1].weight(np.array([3.0, 4.0, 5.5])), [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("size", [12, 16, 20])
def test_a_band_is_that_of_the_whole_transform(twin: Twin, band: SoftBand, size: int) -> None:
    """Against the map of the weighted transform in float64, at the voxels of the smaller grid: 1e-5."""
    n = 20
    spectrum = spectrum_of(n)
    cut = twin(cut_band)(spectrum, band, size)
    k = np.fft.fftfreq(n, 1 / n)
    radius = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(n // 2 + 1) ** 2)
    weighted = spectrum.astype(complex) * band.weight(radius)
    if size < n:  # what does not fit on the grid, its Nyquist frequency included, is left out
        outside = (np.abs(k) >= size // 2)[:, None, None] | (np.abs(k) >= size // 2)[:, None]
        weighted[outside | (np.arange(n // 2 + 1) >= size // 2)] = 0
    points = np.indices((size,) * 3) * n / size
    if size in (n, n // 2):
        expected = fft.irfftn(weighted, s=(n,) * 3)[tuple(np.rint(points).astype(int))]
        np.testing.assert_allclose(fft.irfftn(cut, s=(size,) * 3) * (size / n) ** 3, expected, atol=1e-5)
    assert np.sum(np.abs(cut[:, :, 1:-1]) ** 2) == pytest.approx(
        np.sum(np.abs(weighted[:, :, 1 : size // 2]) ** 2), rel=1e-5
    )


def test_bands_on_small_grids_add_up_to_the_map(twin: Twin) -> None:
    n = 16
    spectrum, total = spectrum_of(n), np.zeros((n, n, n // 2 + 1), np.complex64)
    for band, size in zip(BANDS, (12, 12, n), strict=True):
        twin(add_band)(total, twin(cut_band)(spectrum, band, size), 1.0)
    np.testing.assert_allclose(total, spectrum, atol=1e-4)


def test_interpolation_is_that_of_a_periodic_grid(twin: Twin) -> None:
    coarse = np.random.default_rng(1).standard_normal((9, 9, 9)).astype(np.float32)
    axis = np.arange(20) * 9 / 20
    points = np.meshgrid(axis[4:11], axis, axis, indexing="ij")
    expected = ndimage.map_coordinates(coarse.astype(np.float64), points, order=1, mode="grid-wrap")
    np.testing.assert_allclose(twin(on_finer_grid)(coarse, 4, 11, 20), expected, atol=1e-5)


def test_correlations_are_bounded_and_nothing_is_said_of_nothing(twin: Twin) -> None:
    one = np.array([2.0, 3.0, 1.0, 0.0], np.float32).reshape(1, 2, 2)
    power = np.array([4.0, 4.0, 1e-9, 4.0], np.float32).reshape(1, 2, 2)
    found = twin(smoothed_correlation)(one, power, np.ones_like(power), 1e-6)
    np.testing.assert_allclose(found.ravel(), [1.0, 1.0, 0.0, 0.0])


def test_the_first_crossing_counts_and_lies_between_the_bands(twin: Twin) -> None:
    before = np.full((1, 1, 3), 0.9, np.float32)
    crossed = np.zeros((1, 1, 3), np.float32)
    twin(lower_crossings)(np.array([[[0.5, 0.1, 0.9]]], np.float32), before, (4.0, 8.0), 0.5, crossed)
    np.testing.assert_allclose(crossed, [[[0, 4 * 2**0.5, 0]]], rtol=1e-5)
    np.testing.assert_allclose(before, [[[0.5, 0.1, 0.9]]])
    twin(lower_crossings)(np.array([[[0.0, 0.9, 0.9]]], np.float32), before, (8.0, 16.0), 0.5, crossed)
    np.testing.assert_allclose(crossed, [[[8.0, 4 * 2**0.5, 0]]], rtol=1e-5)
