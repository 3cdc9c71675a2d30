"""Weights of the frames of all movies, from how much of the reference each of them shows.

Frame ``f`` shows ``d_f(k) = Σ Re X conj(M) / Σ |M|²`` of the reference, the sums over all particles of a half-set and
the waves of a shell. Its best weight is ``d_f / σ_f²``. Single shells are uncertain, so weights follow from two numbers
of each frame, a factor ``a_f`` and a B-factor, ``d_f ∝ a_f exp(-B_f k² / 4) D_f(k)``: beside what radiation leaves
(`cloudem.algorithms.dose`), and smoothed over the frames as far as their scatter asks for
(`cloudem.algorithms.frame_information`). In Bayesian polishing (Zivanov, Nakane & Scheres 2019,
10.1107/S205225251801463X) D is 1, and the numbers are not smoothed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.dose import dose_weights
from cloudem.algorithms.frame_information import CERTAIN_BAND, FrameSignals, frame_factors, information_weights
from cloudem.algorithms.particle_frames import SharedSignal

Float64 = NDArray[np.float64]


class FrameWeights(NamedTuple):
    """Weights of frames of one half-set.

    Attributes
    ----------
    weights
        ``(frames, m)``, at the frequencies that were asked for.
    factors, b_factors
        Logarithm of a factor, and a B-factor in Å², of each frame beside the curve of damage, ``(frames,)``; means 0.
    signals
        What they were found from.
    """

    weights: Float64
    factors: Float64
    b_factors: Float64
    signals: FrameSignals


def added_signals(parts: list[SharedSignal], frames: list[NDArray[np.int64]], most: int) -> SharedSignal:
    """Return the sums of all micrographs, in their order, over frames by their number in the movie.

    Parameters
    ----------
    parts
        Of each micrograph.
    frames
        Numbers of its frames.
    most
        Frames of a movie.
    """
    size = parts[0].squares.shape[1]
    shared, powers = np.zeros((2, most, size)), np.zeros((2, most, size))
    squares = np.zeros((2, most, size))
    for part, numbers in zip(parts, frames, strict=True):
        shared[:, numbers] += part.shared
        powers[:, numbers] += part.powers
        squares[:, numbers] += part.squares[:, None]
    return SharedSignal(shared, squares, powers)


def shown_signals(total: SharedSignal, counts: Float64, half: int, waves: Float64, length: float) -> FrameSignals:
    """Return what frames show of the reference of a half-set.

    Parameters
    ----------
    total
        Of `added_signals`.
    counts
        Particles that each frame was compared with, ``(2, frames)``.
    half
        0 or 1.
    waves
        Of each shell, one half of the Fourier pixels, ``(shells + 1,)``.
    length
        Of the windows, Å.
    """
    shared, squares, powers = (each[half, :, 1:] for each in total)
    there = squares > 0
    noise = powers / np.maximum(counts[half][:, None] * waves[1:], 1)
    noise = np.where(noise > 0, noise, np.maximum(noise.mean(axis=0), 1e-30))
    amplitude = np.divide(shared, squares, out=np.zeros_like(shared), where=there)
    error = np.sqrt(noise / (2 * np.where(there, squares, 1)))
    mean, uncertain = amplitude.mean(axis=0), np.sqrt((error**2).sum(axis=0)) / len(error)
    certain = mean > CERTAIN_BAND * uncertain
    # the first shells hold what windows and backgrounds do
    certain[:2] = False
    amplitude[:, ~certain] = 0
    amplitude = np.maximum(amplitude, 0)
    error = np.where(there & certain, error, np.inf)
    return FrameSignals(np.arange(1, len(certain) + 1) / length, amplitude, error, noise)


def polishing_weights(signals: FrameSignals, frequency: Float64, doses: Float64 | None, voltage: float) -> FrameWeights:
    """Return weights of frames at some frequencies.

    Parameters
    ----------
    signals
        Of `shown_signals`.
    frequency
        1/Å, ``(m,)``.
    doses
        e/Å² that the specimen had received at the end of each frame, ``(frames,)``; None where they are not known.
    voltage
        kV.
    """

    def left(at: Float64) -> Float64:
        if doses is None:
            return np.ones((len(signals.amplitude), len(at)))
        return dose_weights(at, doses, voltage)

    decay = left(signals.frequency)
    factors, b_factors = frame_factors(signals, decay)
    return FrameWeights(information_weights(signals, decay, frequency, left(frequency)), factors, b_factors, signals)
