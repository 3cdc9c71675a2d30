"""Fitting a CTF to the power spectrum of a micrograph: a search of the defocus, then astigmatism and all else.

The logarithm of the power is taken as ``b(s, angle) + a(s) (1 - cos 2 phase) / 2``: a smooth background and rings whose
contrast fades smoothly. Given the phase, both are found by least squares (variable projection: Golub & Pereyra 1973,
10.1137/0710036), so that no background has to be removed beforehand and few rings are enough. The search goes over the
defocus on the rotational average; the fit follows rings from low to high frequency, so that it never jumps by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.power_spectrum import PolarSpectrum
from cloudem.algorithms.thon_background import (
    Microscope,
    Separation,
    background_pieces,
    in_band,
    phase_of,
    separate,
    separation_of,
    splines,
    thon_rings,
)
from cloudem.kernels.thon_rings import thon_equations

Float64 = NDArray[np.float64]

FADINGS_A2 = (0.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
"""B of ``exp(-B s²)``: how fast rings may fade in the search."""

MARCH = 1.25
"""The fit begins where usual astigmatism shifts rings by less than their distance, and widens by that factor."""


@dataclass(frozen=True)
class CtfSearch:
    """What is searched.

    Attributes
    ----------
    defocus
        Least and largest, Å.
    phase_shift
        Least and largest, radians; equal where it is known.
    band
        Lowest and highest frequency that are looked at, 1/Å.
    astigmatism
        What is usual, Å between largest and smallest defocus; more is found where the rings show it.
    """

    defocus: tuple[float, float] = (3000.0, 50000.0)
    phase_shift: tuple[float, float] = (0.0, 0.0)
    band: tuple[float, float] = (1 / 30, 1 / 3)
    astigmatism: float = 2000.0

    @property
    def fits_phase(self) -> bool:
        """Whether the phase shift is to be found."""
        return self.phase_shift[1] > self.phase_shift[0]


@dataclass(frozen=True)
class CtfFit:
    """A CTF that was fitted.

    Attributes
    ----------
    parameters
        (4,) mean defocus, components of the astigmatism along cos 2θ and sin 2θ, Å; phase shift, radians.
    errors
        (4,) standard deviations of these, as far as noise causes them; NaN of what was not fitted.
    background
        (r, k) of the logarithm of the power.
    amplitude
        (r,) of the rings; 0 outside of the band.
    band
        Lowest and highest frequency that were fitted, 1/Å.
    evidence
        Root of what the rings explain beyond a smooth background, in units of what remains of a bin: Student's t.
    """

    parameters: Float64
    errors: Float64
    background: Float64
    amplitude: Float64
    band: tuple[float, float]
    evidence: float

    @property
    def defocus_u(self) -> float:
        """Larger defocus, Å."""
        return float(self.parameters[0] + math.hypot(*self.parameters[1:3]))

    @property
    def defocus_v(self) -> float:
        """Smaller defocus, Å."""
        return float(self.parameters[0] - math.hypot(*self.parameters[1:3]))

    @property
    def defocus_angle(self) -> float:
        """From the x axis to the axis of the larger defocus, radians."""
        return math.atan2(self.parameters[2], self.parameters[1]) / 2

    @property
    def phase_shift(self) -> float:
        """Radians."""
        return float(self.parameters[3])


class _Ring(NamedTuple):
    """Rotational average within a band."""

    values: Float64
    weights: Float64
    squares: Float64
    frequencies: Float64


def _rotational(spectrum: PolarSpectrum, band: tuple[float, float]) -> _Ring:
    weights = in_band(spectrum, band)
    total = weights.sum(axis=1)
    kept = total > 0
    values = (weights * spectrum.values).sum(axis=1)[kept] / total[kept]
    squares = (weights * spectrum.squares).sum(axis=1)[kept] / total[kept]
    return _Ring(values, total[kept], squares, np.sqrt(squares))


def search_defocus(spectrum: PolarSpectrum, microscope: Microscope, search: CtfSearch) -> tuple[float, float]:
    """Return the defocus in Å and the phase shift whose rings the rotational average shows best.

    Parameters
    ----------
    spectrum
        By rings and sectors.
    microscope, search
        What is known, and what is searched.
    """
    ring = _rotational(spectrum, (search.band[0], min(search.band[1], 1 / 5)))
    root = np.sqrt(ring.weights)
    span = (ring.frequencies[0], ring.frequencies[-1])
    smooth, _ = np.linalg.qr(splines(ring.frequencies, span, background_pieces(span)) * root[:, None])
    constants = microscope.constants
    step = 0.35 / (np.pi * constants[0] * ring.squares[-1])
    defocus = np.arange(search.defocus[0], search.defocus[1] + step, step)
    shifts = np.linspace(*search.phase_shift, 19 if search.fits_phase else 1)
    values = root * ring.values
    values -= smooth @ (smooth.T @ values)
    fadings = np.exp(-np.array(FADINGS_A2)[:, None] * ring.squares)
    score = np.empty((len(shifts), len(defocus)))
    for number, shift in enumerate(shifts):
        rings = -np.cos(2 * phase_of(ring.squares, defocus[:, None], float(shift), constants)) * root
        faded = np.concatenate([rings * fading for fading in fadings])
        faded -= (faded @ smooth) @ smooth.T
        found = faded @ values / np.maximum(np.linalg.norm(faded, axis=1), 1e-9 * np.linalg.norm(root))
        score[number] = found.reshape(len(fadings), -1).max(axis=0)
    best = np.unravel_index(score.argmax(), score.shape)
    return float(defocus[best[1]]), float(shifts[best[0]])


def fit_ctf(spectrum: PolarSpectrum, microscope: Microscope, search: CtfSearch, rounds: int = 2) -> CtfFit:
    """Fit a CTF.

    Parameters
    ----------
    spectrum
        By rings and sectors.
    microscope, search
        What is known, and what is searched.
    rounds
        How often background and rings are told apart on each band.
    """
    constants = microscope.constants
    defocus, shift = search_defocus(spectrum, microscope, search)
    parameters = np.array([defocus, 0.0, 0.0, shift])
    for band in bands_of(search, constants[0], defocus):
        parts = separation_of(spectrum, band)
        for _ in range(rounds):
            background, amplitude = separate(parts, thon_rings(spectrum, parameters, constants))
            parameters, normal, cost = descend(parts, background, amplitude, parameters, microscope, search)
    background, amplitude = separate(parts, thon_rings(spectrum, parameters, constants))
    known = (parts.weights > 0).sum()
    errors = np.full(4, np.nan)
    free = 4 if search.fits_phase else 3
    variance = cost / max(known - parts.load.size - 4, 1)
    errors[:free] = np.sqrt(np.maximum(np.diag(np.linalg.pinv(normal[:free, :free])), 0.0) * variance)
    evidence = _evidence(parts, background + amplitude[:, None] * thon_rings(spectrum, parameters, constants))
    return CtfFit(parameters, errors, background, amplitude, search.band, evidence)


def _evidence(parts: Separation, model: Float64) -> float:
    """Return how much better a model is than the best background alone."""
    alone = parts.smooth @ (parts.inverse @ parts.load).reshape(-1, 3) @ parts.turns.T
    without, with_rings = (
        float((parts.weights * (parts.spectrum.values - each) ** 2).sum()) for each in (alone, model)
    )
    freedom = max(int((parts.weights > 0).sum()) - parts.load.size, 1)
    return math.sqrt(max(without - with_rings, 0.0) / max(with_rings / freedom, 1e-300))


def bands_of(search: CtfSearch, lam: float, defocus: float) -> list[tuple[float, float]]:
    """Return bands from the one in which astigmatism shifts rings by less than their distance, to the whole one.

    Parameters
    ----------
    search
        Has the whole band.
    lam, defocus
        Wavelength and mean defocus, Å.
    """
    low, high = search.band
    limit = max(math.sqrt(1.5 / (math.pi * lam * search.astigmatism)), math.sqrt(low**2 + 2 / (lam * defocus)))
    bands = []
    while limit < high:
        bands.append((low, limit))
        limit *= MARCH
    return [*bands, search.band]


def descend(
    parts: Separation,
    background: Float64,
    amplitude: Float64,
    parameters: Float64,
    microscope: Microscope,
    search: CtfSearch,
    steps: int = 8,
) -> tuple[Float64, Float64, float]:
    """Return better parameters (Levenberg and Marquardt), with the normal equations and the cost there.

    Parameters
    ----------
    parts
        The spectrum on a band.
    background, amplitude
        (r, k) and (r,), which stay.
    parameters
        (4,) where to begin.
    microscope, search
        What is known, and which parameters are free.
    steps
        At most.
    """
    values, constants = parts.spectrum.values - background, microscope.constants
    known = max(int((parts.weights > 0).sum()), 1)
    usual = np.array([0.0, 1.0, 1.0, 0.0]) / (search.astigmatism / 2) ** 2

    def equations(at: Float64) -> tuple[Float64, Float64, float]:
        return thon_equations(
            values, parts.weights, amplitude, parts.spectrum.squares, parts.spectrum.angles, constants, at
        )

    normal, gradient, cost = equations(parameters)
    damping = 1e-3
    free = 4 if search.fits_phase else 3
    for _ in range(steps):
        prior = usual * cost / known  # weights are relative: the residual says how noisy they are
        left = (normal + np.diag(np.diag(normal) * damping + prior + 1e-30))[:free, :free]
        step = np.zeros(4)
        step[:free] = np.linalg.solve(left, (gradient - prior * parameters)[:free])
        tried = equations(parameters + step)
        gain = cost + prior @ parameters**2 - tried[2] - prior @ (parameters + step) ** 2
        if gain < 0:
            damping *= 10
            continue
        parameters = parameters + step
        normal, gradient, cost = tried
        damping /= 5
        if gain < 1e-7 * cost:
            break
    return parameters, normal, cost
