"""What each frame of a movie still shows at each frequency, from the movie alone: no map and no fixed curve.

Frames that were moved back share the specimen, ``X_f = d_f S + noise``, and their noise is independent. So the mean of
``X_f conj(X_g)`` over a ring is ``a_f a_g`` for every two frames: a matrix of rank one, but for its diagonal, on which
the noise lies. It is fitted without the diagonal, ring by ring. ``a_f / noise_f`` are the best weights of the frames.

What rings say one by one is uncertain, so weights follow from few numbers of each frame: a factor and a B-factor beside
the curve of radiation damage, as in Bayesian polishing (Zivanov et al. 2019, 10.1107/S205225251801463X), but found from
one micrograph.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import j0

from cloudem.algorithms.frame_spectra import RINGS, FrameSpectra
from cloudem.algorithms.motion_track import smoothed_track

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BANDS_OF_FRAMES = 32
"""Rings from the origin to the finest wave of small frames that are told apart."""

CERTAIN_BAND = 5.0
"""Standard errors by which a ring's signal has to be above none to have a say."""

FACTOR_SPREAD, B_SPREAD = 0.5, 200.0
"""How far logarithms of factors, and B-factors in Å² of an amplitude ``exp(-B k² / 4)``, usually are from none."""

WORTH_FACTORS = 6.0
"""What factors and B-factors must add to the log-likelihood to be used: the curve alone is what is expected."""

_ROUNDS, _STEPS = 40, 10


class FrameSignals(NamedTuple):
    """What frames show in each ring.

    Attributes
    ----------
    frequency
        1/Å, ``(BANDS_OF_FRAMES,)``.
    amplitude
        Of the signal in each frame, ``(frames, BANDS_OF_FRAMES)``; 0 in rings where nothing is certain.
    error
        Its standard error, of the same shape.
    noise
        Power of the noise of each frame, of the same shape.
    """

    frequency: Float64
    amplitude: Float64
    error: Float64
    noise: Float64

    @property
    def certain(self) -> NDArray[np.bool_]:
        """Rings that have a say, ``(BANDS_OF_FRAMES,)``."""
        return np.asarray((self.amplitude > 0).any(axis=0))


def frame_products(
    spectra: Iterable[tuple[FrameSpectra, Float64]], frames: int, pattern: float
) -> tuple[Float64, NDArray[np.int64]]:
    """Return mean products of frames, ring by ring.

    Parameters
    ----------
    spectra
        Of patches, each with the displacements by which its frames are moved back, ``(frames, 2)``.
    frames
        How many there are.
    pattern
        Power of what does not move, of a frame; its part is taken away.

    Returns
    -------
    products
        Shape ``(BANDS_OF_FRAMES, frames, frames)``.
    counts
        Waves of each ring.
    """
    sums, counts = np.zeros((BANDS_OF_FRAMES, frames, frames)), np.zeros(BANDS_OF_FRAMES, np.int64)
    for each, displacement in spectra:
        ky, kx = (each.waves * each.steps).T
        phase = kx[:, None] * displacement[:, 0] + ky[:, None] * displacement[:, 1]
        moved = (each.real + 1j * each.imaginary) * np.exp(1j * phase).astype(np.complex64)
        apart = np.hypot(*(displacement[:, None] - displacement[None]).transpose(2, 0, 1))
        band = each.rings * BANDS_OF_FRAMES // RINGS
        order = np.argsort(band, kind="stable")
        edges = np.searchsorted(band[order], np.arange(BANDS_OF_FRAMES + 1))
        radians = np.hypot(kx, ky)
        for number in range(BANDS_OF_FRAMES):
            here = order[edges[number] : edges[number + 1]]
            if not len(here):
                continue
            some = moved[here]
            sums[number] += some.real.T @ some.real + some.imag.T @ some.imag
            sums[number] -= pattern * len(here) * j0(float(radians[here].mean()) * apart)
            counts[number] += len(here)
    return sums / np.maximum(counts, 1)[:, None, None], counts


def frame_signals(products: Float64, counts: NDArray[np.int64], finest: float) -> FrameSignals:
    """Fit amplitudes of rank one to the products of different frames, ring by ring.

    Parameters
    ----------
    products, counts
        Of `frame_products`.
    finest
        1/Å, of the finest wave of small frames along an axis.
    """
    frames = products.shape[1]
    amplitude, error = np.zeros((frames, len(counts))), np.full((frames, len(counts)), np.inf)
    noise = np.ones((frames, len(counts)))
    for band, (matrix, count) in enumerate(zip(products, counts, strict=True)):
        power = np.diag(matrix)
        noise[:, band] = power
        if count < 50 or (power <= 0).any():
            continue
        between = matrix - np.diag(power)
        usual = float(power.mean())
        common = between.sum() / (frames * (frames - 1))
        if common < CERTAIN_BAND * usual / np.sqrt(frames * (frames - 1) * count):
            continue
        found = np.full(frames, np.sqrt(common))
        for _ in range(_ROUNDS):
            squares = (found**2).sum() - found**2
            better = between @ found / squares
            found = np.maximum(0.5 * (found + better), 0.0)
        amplitude[:, band] = found
        noise[:, band] = np.maximum(power - found**2, 0.1 * power)
        others = (found**2).sum() - found**2
        error[:, band] = np.sqrt(noise[:, band] * usual / (2 * count * others))
    frequency = (np.arange(len(counts)) + 0.5) / len(counts) * finest
    return FrameSignals(frequency, amplitude, error, noise)


def information_weights(signals: FrameSignals, decay: Float64, frequency: Float64, damage: Float64) -> Float64:
    """Return weights of frames from what they show.

    Parameters
    ----------
    signals
        Of `frame_signals`.
    decay
        What radiation should leave of the signal of each frame in its rings, ``(frames, BANDS_OF_FRAMES)``; 1 if the
        dose is not known.
    frequency
        1/Å, at which weights are wanted, ``(m,)``; beyond the last ring that has a say they follow the damage alone.
    damage
        As `decay`, at these, ``(frames, m)``.

    Returns
    -------
    weights
        Shape ``(frames, m)``; the best frame has 1 at the lowest frequency.
    """
    known = signals.certain
    if not known.any():
        return damage
    factors, b_factors = frame_factors(signals, decay)
    relative = signals.noise[:, known]
    noise = (relative / relative.mean(axis=0)).mean(axis=1)
    reached = np.minimum(frequency, signals.frequency[known].max())
    weights = damage * np.exp(factors[:, None] - 0.25 * b_factors[:, None] * reached**2) / noise[:, None]
    return np.asarray(weights / weights[:, 0].max())


def frame_factors(signals: FrameSignals, decay: Float64) -> tuple[Float64, Float64]:
    """Return the logarithm of a factor and the B-factor, Å², of each frame beside a decay; means are 0.

    First those of each frame by itself, then smoothed over the frames as far as their scatter asks for
    (`cloudem.algorithms.motion_track`). B-factors that grow with the frames say that damage is faster than assumed,
    those of the first frames how much they are blurred by motion. Where they explain no more than chance does, they are
    all 0.
    """
    known = signals.certain
    found, error, expected = signals.amplitude[:, known], signals.error[:, known], decay[:, known]
    square = 0.25 * signals.frequency[known] ** 2
    frames = len(decay)
    both = np.zeros((frames, 2))
    slopes = np.stack([np.ones_like(square), -square])
    spread = np.array([FACTOR_SPREAD, B_SPREAD])
    precision = np.ones((frames, 2))
    for _ in range(_STEPS if known.any() else 0):
        model = expected * np.exp(both @ slopes)
        scale = (found * model / error**2).sum(axis=0) / np.maximum((model**2 / error**2).sum(axis=0), 1e-30)
        model *= scale
        rest, weight = (found - model) * model / error**2, model**2 / error**2
        for frame in range(frames):
            matrix = (slopes * weight[frame]) @ slopes.T + np.diag(spread**-2)
            step = np.linalg.solve(matrix, slopes @ rest[frame] - both[frame] / spread**2)
            both[frame] += np.clip(step, -spread, spread)
            precision[frame] = 1 / np.diag(np.linalg.inv(matrix))
        both -= both.mean(axis=0)
    both = smoothed_track(both / spread, precision * spread**2) * spread
    both -= both.mean(axis=0)
    plain, fitted = (_misfit_of(found, error, expected * np.exp(each @ slopes)) for each in (0 * both, both))
    if plain - fitted < 2 * WORTH_FACTORS:
        both[:] = 0
    return both[:, 0], both[:, 1]


def _misfit_of(found: Float64, error: Float64, model: Float64) -> float:
    """Return the sum of squared deviations in standard errors, each ring with its best scale."""
    scale = (found * model / error**2).sum(axis=0) / np.maximum((model**2 / error**2).sum(axis=0), 1e-30)
    return float((((found - scale * model) / error) ** 2).sum())
