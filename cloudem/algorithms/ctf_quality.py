"""How well a fitted CTF agrees with a micrograph: the average along lines of equal phase, and what it shows.

The average over pixels whose CTF has the same phase shows rings that astigmatism blurs in a rotational average (Zhang
2016, 10.1016/j.jsb.2015.11.003). Its correlation with the CTF, in a window of a ring to either side, falls where the
fit ends (Rohou & Grigorieff 2015, 10.1016/j.jsb.2015.08.008).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.ctf_fit import CtfFit
from cloudem.algorithms.power_spectrum import SECTORS, PowerSpectrum, spectrum_bins
from cloudem.algorithms.thon_background import Microscope, phase_of

Float64 = NDArray[np.float64]

FINER = 2
"""Steps of the equiphase average to one of the spectrum."""

AGREES = 0.5
"""Correlation from which on a fit agrees."""

ICE, BESIDE_ICE = (1 / 3.9, 1 / 3.5), ((1 / 4.6, 1 / 4.1), (1 / 3.35, 1 / 3.05))
"""1/Å of the ring of ice, and of the power around it."""


class Equiphase(NamedTuple):
    """Averages along lines of equal phase.

    Attributes
    ----------
    frequencies
        (m,) 1/Å, where a CTF without astigmatism has that phase.
    values
        (m,) logarithm of the power over its background; NaN where there is none.
    weights
        (m,) pixels, times independent tiles.
    rings
        (m,) ``-cos 2 phase``; of a thick specimen, with the sign that its layers give them.
    amplitude
        (m,) of the rings, by the fit; not negative.
    quality
        (m,) correlation of values and rings nearby; NaN outside of the band.
    """

    frequencies: Float64
    values: Float64
    weights: Float64
    rings: Float64
    amplitude: Float64
    quality: Float64


class CtfQuality(NamedTuple):
    """What a micrograph shows of a fitted CTF.

    Attributes
    ----------
    resolution
        Å up to which the fit agrees; NaN if it does nowhere.
    score
        Correlation of equiphase average and rings up to there; 0 if it agrees nowhere.
    """

    resolution: float
    score: float


def equiphase_average(spectrum: PowerSpectrum, fit: CtfFit, microscope: Microscope) -> Equiphase:
    """Average a power spectrum along lines of equal phase.

    Parameters
    ----------
    spectrum
        That was fitted.
    fit, microscope
        The CTF.
    """
    bins = spectrum_bins(spectrum.radius, fit.background.shape[1])
    low, high = fit.band
    squares = bins.squared * spectrum.step**2
    inside = (bins.number < fit.background.size) & (squares >= low**2) & (squares <= high**2)
    squares, number = squares[inside], bins.number[inside]
    ratio = spectrum.power.ravel()[inside] / np.exp(fit.background.ravel()[number])
    mean, along, across = fit.parameters[:3]
    defocus = mean + along * bins.cosine[inside] + across * bins.sine[inside]
    position = np.sqrt(_squares_of_equal_phase(squares, defocus, mean, microscope)) / spectrum.step * FINER
    count = FINER * spectrum.radius + 2
    first = np.minimum(position.astype(np.int64), count - 2)
    part = position - first
    weights = np.bincount(first, 1 - part, count) + np.bincount(first + 1, part, count)
    sums = np.bincount(first, (1 - part) * ratio, count) + np.bincount(first + 1, part * ratio, count)
    frequencies = np.arange(count) * spectrum.step / FINER
    known = (weights > 2) & (frequencies >= low) & (frequencies <= high)
    values = np.full(count, np.nan)
    values[known] = np.log(sums[known] / weights[known])
    pixels = np.where(known, weights * spectrum.independent, 0.0)
    rings = -np.cos(2 * phase_of(frequencies**2, mean, fit.phase_shift, microscope.constants))
    amplitude = np.interp(frequencies, np.arange(len(fit.amplitude)) * spectrum.step, fit.amplitude)
    rings, amplitude = np.where(amplitude < 0, -rings, rings), np.abs(amplitude)
    lam, cs, _ = microscope.constants
    turns = np.abs(2 * lam * mean * frequencies - 2 * cs * lam**3 * frequencies**3)
    reach = np.maximum(1 / np.maximum(turns, 1e-9), 3 * spectrum.step)
    quality = _local_correlation(values, rings, pixels, np.ceil(reach / (spectrum.step / FINER)).astype(np.int64))
    return Equiphase(frequencies, values, pixels, rings, amplitude, quality)


def _squares_of_equal_phase(squares: Float64, defocus: Float64, mean: float, microscope: Microscope) -> Float64:
    """Return s² at which a CTF without astigmatism has the phase that each pixel has."""
    lam, cs, _ = microscope.constants
    phase = phase_of(squares, defocus, 0.0, np.array([lam, cs, 0.0]))
    linear = math.pi * lam * mean
    root = np.sqrt(np.maximum(linear**2 - 2 * math.pi * cs * lam**3 * phase, 0.0))
    return np.asarray(np.maximum(2 * phase / (linear + root), 0.0))


def _local_correlation(values: Float64, rings: Float64, weights: Float64, reach: NDArray[np.int64]) -> Float64:
    """Return the weighted correlation within so many steps to either side; NaN where nothing is known."""
    known = weights > 0
    clean = np.where(known, values, 0.0)
    terms = [weights, weights * clean, weights * rings, weights * clean**2, weights * rings**2, weights * clean * rings]
    number = np.arange(len(values))
    first, last = np.maximum(number - reach, 0), np.minimum(number + reach + 1, len(values))
    w, v, m, vv, mm, vm = (
        np.append(0.0, np.cumsum(term))[last] - np.append(0.0, np.cumsum(term))[first] for term in terms
    )
    w = np.maximum(w, 1e-30)
    scale = np.maximum(vv - v * v / w, 1e-30) * np.maximum(mm - m * m / w, 1e-30)
    return np.asarray(np.where(known, (vm - v * m / w) / np.sqrt(scale), np.nan))


def _correlation(average: Equiphase, model: Float64, upto: float) -> float:
    """Return the correlation of an average with a model up to a frequency."""
    known = (average.weights > 0) & (average.frequencies <= upto)
    if known.sum() < 4:
        return 0.0
    w = average.weights[known] / average.weights[known].sum()
    one, other = average.values[known], model[known]
    one, other = one - w @ one, other - w @ other
    scale = math.sqrt((w @ one**2) * (w @ other**2))
    return float(w @ (one * other) / scale) if scale > 0 else 0.0


def ctf_quality(average: Equiphase) -> CtfQuality:
    """Say how far a fit agrees, and how well.

    Parameters
    ----------
    average
        From `equiphase_average`.
    """
    known = np.flatnonzero(np.isfinite(average.quality))
    agrees = average.quality[known] >= AGREES
    if not agrees.any():
        return CtfQuality(math.nan, 0.0)
    frequencies = average.frequencies[known]
    first = int(np.argmax(agrees))
    last = first
    for place in np.flatnonzero(agrees).tolist():  # a gap as wide as a ring ends it
        if frequencies[place] - frequencies[last] > max(0.1 * frequencies[last], 6 * average.frequencies[1]):
            break
        last = place
    limit = float(frequencies[last])
    return CtfQuality(1 / limit, _correlation(average, average.rings, limit))


def ice_ring_density(spectrum: PowerSpectrum) -> float:
    """Return by how much the power around 3.7 Å exceeds what it is on both sides, relative to that.

    Parameters
    ----------
    spectrum
        Of a micrograph.

    Returns
    -------
    density
        0 without a ring, NaN where the pixels are too large to see one.
    """
    bins = spectrum_bins(spectrum.radius, SECTORS)
    size = bins.counts.size
    sums = np.bincount(bins.number, spectrum.power.ravel(), size + 1)[:size].reshape(-1, SECTORS).sum(axis=1)
    power = sums / np.maximum(bins.counts.sum(axis=1), 1)
    s = np.arange(spectrum.radius + 1) * spectrum.step
    if s[-1] < BESIDE_ICE[1][1]:
        return math.nan
    sides = [(s >= low) & (s <= high) for low, high in BESIDE_ICE]
    levels = [math.log(power[side].mean()) for side in sides]
    ice = (s >= ICE[0]) & (s <= ICE[1])
    expected = np.exp(np.interp(s[ice], [float(s[side].mean()) for side in sides], levels))
    return float((power[ice] / expected).mean() - 1)
