"""Local agreement of half-maps, and the resolution, filters and sharpening that follow from it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import fft, ndimage

from cloudem.algorithms.local_agreement import agreements, bands_up_to, recombined, transform_of
from cloudem.algorithms.local_filter import (
    CHANCE,
    at_voxels,
    believed,
    core_mask,
    filtered_locally,
    local_gains,
)
from cloudem.algorithms.local_resolution import local_resolution, spherical_resolution
from cloudem.algorithms.local_sharpening import sharpened_locally
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import frequency_radius, masked_fsc
from cloudem.kernels.bands import SoftBand

Float32 = NDArray[np.float32]
BOX, PIXEL = 64, 2.0


def noise(seed: int, box: int = BOX, level: float = 1.0) -> Float32:
    return np.float32(level) * np.random.default_rng(seed).standard_normal((box,) * 3).astype(np.float32)


def left_and_right(box: int = BOX) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return voxels of a ball's halves, away from where they meet."""
    z, y, x = np.indices((box,) * 3) - box // 2
    ball = x**2 + y**2 + z**2 < (0.34 * box) ** 2
    return ball & (x < -box // 10), ball & (x > box // 10)


def sharp_and_blurred(blur_A2: float, level: float) -> tuple[Float32, Float32, Float32]:
    """Return a ball of signal whose right half has a B-factor, and that with noise, twice."""
    signal = noise(1)
    fall = np.exp(-blur_A2 / 4 * (frequency_radius(BOX) / (BOX * PIXEL)) ** 2)
    blurred = fft.irfftn(fft.rfftn(signal) * fall, s=signal.shape)
    right = np.clip((np.arange(BOX) - BOX // 2) / 4 + 0.5, 0, 1)
    truth = (signal * (1 - right) + blurred * right) * soft_sphere(BOX, 0.36 * BOX, 4.0)
    truth = np.asarray(truth, np.float32)
    return truth, truth + noise(2, level=level), truth + noise(3, level=level)


def reference_agreement(first: Float32, second: Float32, band: SoftBand, waves: float) -> NDArray[np.float64]:
    """Return the local agreement in float64, on the map's own grid, by SciPy's Gaussian filter."""
    weight = band.weight(frequency_radius(len(first)).astype(np.float64))
    one, other = (
        np.fft.irfftn(np.fft.rfftn(v.astype(np.float64)) * weight, s=v.shape, axes=(0, 1, 2)) for v in (first, second)
    )
    sigma = waves * len(first) / band.centre
    product, own, others = (
        ndimage.gaussian_filter(v, sigma, mode="wrap", truncate=6.0) for v in (one * other, one * one, other * other)
    )
    return np.asarray(product / np.sqrt(own * others))


def test_bands_on_small_grids_agree_with_the_formula_in_double_precision() -> None:
    """2e-3: the small grid keeps of the band's square what the window lets pass."""
    truth, first, second = sharp_and_blurred(100.0, 1.0)
    bands = bands_up_to(5.0, BOX / 2)
    for found in agreements((transform_of(first), transform_of(second)), bands):
        expected = reference_agreement(first, second, bands[found.number], 1.5)
        if BOX % len(found.agreement) == 0:  # then its voxels are some of the map's
            step = BOX // len(found.agreement)
            np.testing.assert_allclose(found.agreement, expected[::step, ::step, ::step], atol=2e-3)
    assert truth.any()


def test_a_map_agrees_with_itself_and_noise_agrees_by_chance() -> None:
    bands = bands_up_to(10.0, BOX / 2)
    spectrum = transform_of(noise(4))
    for found in agreements((spectrum, spectrum), bands):
        assert found.agreement.min() > 0.999
    spreads = [found.agreement.std() for found in agreements((spectrum, transform_of(noise(5))), bands)]
    assert 0.6 * CHANCE < np.mean(spreads) < 1.1 * CHANCE


def test_bands_with_a_gain_of_one_are_the_map() -> None:
    volume = noise(6, 36)
    bands = bands_up_to(4.0, 18)
    for gain in (None, np.ones((12, 12, 12), np.float32)):
        np.testing.assert_allclose(recombined(transform_of(volume), bands, [gain] * len(bands)), volume, atol=2e-5)


def test_resolution_is_finer_where_the_map_is_sharper() -> None:
    """White signal twice as strong as the noise of a half-map: everything on the left, up to its fall-off right."""
    blur = 150.0
    _, first, second = sharp_and_blurred(blur, 0.7)
    found = local_resolution(first, second, PIXEL)
    left, right = left_and_right()
    assert np.median(found.resolution[left]) < 1.02 * 2 * PIXEL
    # signal's share of the power falls to 0.143 where exp(-B / 2 d²) is 0.143 / 0.857 · 0.49
    expected = (-2 / blur * np.log(0.143 / 0.857 * 0.49)) ** -0.5
    assert np.median(found.resolution[right]) == pytest.approx(expected, rel=0.08)
    by_spheres = spherical_resolution(first, second, soft_sphere(BOX, 0.3 * BOX, 4.0), PIXEL)
    assert np.median(by_spheres[left]) < 0.8 * np.median(by_spheres[right])
    halved = local_resolution(first, second, PIXEL, threshold=0.5)
    assert (halved.resolution >= found.resolution - 1e-3).all()


def test_noise_is_resolved_nowhere_and_is_not_shown() -> None:
    found = local_resolution(noise(7), noise(8), PIXEL)
    assert np.median(found.resolution) > 20
    assert found.filtered.std() < 0.15 * noise(7).std()
    assert believed(np.array([-0.2, 0.0, CHANCE], np.float32)).tolist() == [0, 0, 0]


def test_references_are_filtered_as_if_each_place_were_a_map_of_its_own() -> None:
    """The mean square error of a half-map falls below that of the shells' filter, on both sides."""
    truth, first, second = sharp_and_blurred(400.0, 1.0)
    mask = soft_sphere(BOX, 0.38 * BOX, 4.0)
    curve = np.clip(masked_fsc(first, second, mask).masked, 0, 0.999)
    snr = curve / (1 - curve)
    local = local_gains(first, second, mask, mask, snr, snr, PIXEL)
    assert local is not None
    assert all(gain is None or 0 <= gain.min() <= gain.max() <= 1 for gain in local.gains)
    whole = transform_of(first)
    shells = np.arange(BOX // 2 + 1)

    def by(ratio: NDArray[np.float64]) -> Float32:
        factor = np.interp(frequency_radius(BOX), shells, ratio / (1 + ratio), right=0)
        return np.asarray(fft.irfftn(whole * factor, s=first.shape), np.float32)

    uniform, found = by(snr), filtered_locally(by(local.snr), local)
    for side in left_and_right():
        assert np.mean((found - truth)[side] ** 2) < 0.97 * np.mean((uniform - truth)[side] ** 2)
    assert np.all(local.passed <= 1)
    assert np.allclose(local.passed[0], local.passed[1])


def test_coarse_maps_have_no_local_filter() -> None:
    snr = np.where(np.arange(BOX // 2 + 1) < BOX * PIXEL / 12, 5.0, 0.0)
    mask = soft_sphere(BOX, 20.0, 4.0)
    assert local_gains(noise(1), noise(2), mask, mask, snr, snr, PIXEL) is None
    assert core_mask(noise(1), noise(2), mask, snr / (1 + snr), PIXEL) is None


def test_the_core_is_where_half_maps_agree_and_noise_has_none() -> None:
    _, first, second = sharp_and_blurred(800.0, 1.0)
    mask = soft_sphere(BOX, 0.38 * BOX, 4.0)
    curve = masked_fsc(first, second, mask).corrected
    core = core_mask(first, second, mask, curve, PIXEL)
    assert core is not None
    left, right = left_and_right()
    assert core[left].mean() > 3 * core[right].mean()
    assert np.all((core >= 0) & (core <= mask + 1e-6))
    assert core_mask(noise(1), noise(2), mask, curve, PIXEL) is None


def test_local_b_factors_are_larger_where_the_map_is_blurred() -> None:
    _, first, second = sharp_and_blurred(120.0, 0.2)
    found = sharpened_locally(first, second, PIXEL, 60.0)
    left, right = (at_voxels(side.astype(np.float32), len(found.b_factor)) > 0.5 for side in left_and_right())
    sharp, blurred = np.median(found.b_factor[left]), np.median(found.b_factor[right])
    assert sharp < 35
    assert 85 < blurred < 140
    given = sharpened_locally(first, second, PIXEL, 60.0, fitted=False)
    np.testing.assert_array_equal(given.b_factor, 60.0)


def test_what_agrees_by_chance_is_not_sharpened() -> None:
    truth, *_ = sharp_and_blurred(0.0, 0.0)
    b_factor = 400.0
    faded = np.exp(-b_factor / 4 * (frequency_radius(BOX) / (BOX * PIXEL)) ** 2)
    signal = fft.irfftn(fft.rfftn(truth) * faded, s=truth.shape)
    first, second = (np.asarray(signal + noise(seed, level=0.02), np.float32) for seed in (4, 5))
    found = sharpened_locally(first, second, PIXEL, b_factor).map
    outside = soft_sphere(BOX, 0.45 * BOX, 1.0) == 0
    inside = np.logical_or(*left_and_right())
    assert found[outside].std() < 0.1 * found[inside].std()
