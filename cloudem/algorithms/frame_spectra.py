"""Spectra of the small frames of a movie, and what they have in common: what alignment needs.

Frames are low-passed and sampled at every few pixels (`small_frame`), for a single frame shows next to nothing at high
resolution. A spectrum keeps the waves of a ring, without those along the axes, where the borders of a frame and
faults of rows and columns of the detector lie.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.kernels.motion import coherence, shrunk

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SAMPLING = 4.0
"""Å of a pixel of a small frame, nearly."""

SHORTEST, AXIS_WAVES = 3, 2
"""Fewest waves across a frame that are used, and how many along an axis are left out."""

EDGE = 0.06
"""Share of a side over which the border fades out."""


class FrameSpectra(NamedTuple):
    """Spectra of all frames of an image, or of a patch of it.

    Attributes
    ----------
    real, imaginary
        Shape ``(n, frames)``; divided so that noise of variance 1 in each pixel of a frame gives a power of 1.
    waves
        Whole numbers of waves along y and x, ``(n, 2)``.
    steps
        Radians per pixel of a frame of one wave along y and x, ``(2,)``.
    rings
        Distance from the origin in `RING`, ``(n,)``.
    """

    real: Float32
    imaginary: Float32
    waves: NDArray[np.int32]
    steps: Float64
    rings: NDArray[np.int32]


RINGS = 256
"""Rings from the origin to the finest wave of a small frame along an axis."""


class RingPowers(NamedTuple):
    """Powers by ring, each ``(RINGS,)``, where noise of variance 1 in each pixel has 1.

    Attributes
    ----------
    signal
        Of what moves with the specimen, in a frame; 0 where nothing is certain.
    noise
        Of all else.
    """

    signal: Float64
    noise: Float64


def shrink_factor(pixel_size: float) -> int:
    """Return at every how many pixels frames of this pixel size (Å) are sampled for alignment."""
    return int(np.clip(round(SAMPLING / pixel_size), 1, 8))


@lru_cache(maxsize=8)
def low_pass_taps(factor: int) -> Float32:
    """Return the taps of the low-pass in front of sampling at every `factor`-th pixel: a sinc under a Kaiser window."""
    if factor == 1:
        return np.ones(1, np.float32)
    count = 6 * factor + factor % 2
    places = np.arange(count) - (count - 1) / 2
    taps = np.sinc(0.92 * places / factor) * np.kaiser(count, 4.0)
    return np.asarray(taps / taps.sum(), np.float32)


def small_frame(frame: Float32, factor: int) -> Float32:
    """Return a frame low-passed and sampled, see `cloudem.kernels.motion.shrunk`."""
    return np.asarray(frame if factor == 1 else shrunk(frame, low_pass_taps(factor), factor))


def spectra_of(frames: Float32, factor: int, finest: float = 0.95) -> FrameSpectra:
    """Return the spectra of small frames, their borders faded out.

    Parameters
    ----------
    frames
        Shape ``(frames, rows, columns)``.
    factor
        Pixels of a frame along a side of one of theirs.
    finest
        Waves up to this share of the finest one along an axis are kept.
    """
    _, rows, columns = frames.shape
    window = _fading(rows)[:, None] * _fading(columns)
    waves, steps, radius = _kept(rows, columns, factor, finest)
    response = _response(factor, waves[:, 0] * steps[0]) * _response(factor, waves[:, 1] * steps[1])
    norm = (1 / (response * np.sqrt((window**2).sum()) / factor)).astype(np.float32)
    values = np.empty((len(frames), len(waves)), np.complex64)
    place = (waves[:, 0] % rows) * (columns // 2 + 1) + waves[:, 1]
    for number, frame in enumerate(frames):
        faded = frame - np.float32(frame.mean(dtype=np.float64))
        faded *= window
        scipy.fft.rfft2(faded, overwrite_x=True).ravel().take(place, out=values[number])
    values *= norm
    real, imaginary = np.ascontiguousarray(values.real.T), np.ascontiguousarray(values.imag.T)
    rings = np.minimum((radius * 2 * RINGS).astype(np.int32), RINGS - 1)
    return FrameSpectra(real, imaginary, waves, steps, rings)


@lru_cache(maxsize=8)
def _kept(rows: int, columns: int, factor: int, finest: float) -> tuple[NDArray[np.int32], Float64, Float64]:
    """Return the waves that are used, their steps, and their frequency in cycles per pixel of a small frame."""
    ky, kx = np.meshgrid(np.rint(scipy.fft.fftfreq(rows) * rows), np.arange(columns // 2 + 1), indexing="ij")
    radius = np.hypot(ky / rows, kx / columns)
    least = SHORTEST / min(rows, columns)
    kept = (radius <= finest / 2) & (radius >= least) & (abs(ky) >= AXIS_WAVES) & (kx >= AXIS_WAVES)
    kept &= (2 * abs(ky) < rows) & (2 * kx < columns)
    waves = np.stack([ky[kept], kx[kept]], axis=1).astype(np.int32)
    order = np.lexsort((waves[:, 1], waves[:, 0]))
    steps = 2 * np.pi / (np.array([rows, columns]) * factor)
    return np.ascontiguousarray(waves[order]), steps, radius[kept][order]


def _response(factor: int, radians: Float64) -> Float64:
    """Return what the low-pass leaves of waves, at least a hundredth."""
    taps = low_pass_taps(factor)
    places = np.arange(len(taps)) - (len(taps) - 1) / 2
    distinct, number = np.unique(radians, return_inverse=True)
    return np.asarray(np.maximum(np.cos(distinct[:, None] * places) @ taps, 0.01)[number])


@lru_cache(maxsize=8)
def _fading(count: int) -> Float32:
    reach = max(1, round(EDGE * count))
    ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(reach) + 0.5) / reach)).astype(np.float32)
    return np.concatenate([ramp, np.ones(count - 2 * reach, np.float32), ramp[::-1]])


def ring_powers(
    spectra: list[FrameSpectra], displacements: list[Float64], pattern: float, known: RingPowers | None = None
) -> RingPowers:
    """Return the powers of signal and noise by ring, from what frames have in common where they are moved back.

    Parameters
    ----------
    spectra
        Of an image, or of several patches.
    displacements
        Of each, ``(frames, 2)``.
    pattern
        Power of what does not move with the specimen, of a frame.
    known
        Unused rings of small patches take the powers of these.
    """
    sums = np.zeros((4, RINGS))
    frames = spectra[0].real.shape[1]
    for each, displacement in zip(spectra, displacements, strict=True):
        found = coherence(each.real, each.imaginary, each.waves, each.steps, displacement)
        for place in range(3):
            sums[place] += np.bincount(each.rings, found[:, place], minlength=RINGS)
        sums[3] += np.bincount(each.rings, minlength=RINGS)
    counts = np.maximum(sums[3], 1)
    total, power, shifts = sums[:3] / counts
    common = (total - power - pattern * (shifts - frames)) / (frames * (frames - 1))
    power = power / frames
    # a few rings together, for noise of the estimate must not become weight
    common, power, here = (_spread(values * sums[3]) for values in (common, power, np.ones(RINGS)))
    here = np.maximum(here, 1e-9)
    common, power = common / here, power / here
    error = np.maximum(power, 1e-12) * np.sqrt(2 / (frames * (frames - 1) * np.maximum(here, 1)))
    signal = np.where(common > 2.5 * error, common, 0.0)
    noise = np.maximum(power - signal, 1e-6 + 0.05 * power)
    if known is not None:
        unused = here < 1
        signal, noise = np.where(unused, known.signal, signal), np.where(unused, known.noise, noise)
    return RingPowers(signal, np.where(here > 0.5, noise, np.inf))


def _spread(values: Float64, reach: int = 2) -> Float64:
    return np.convolve(values, np.ones(2 * reach + 1), mode="same")


def agreement_weights(spectra: FrameSpectra, powers: RingPowers) -> Float32:
    """Return the weight of each wave with which `cloudem.kernels.motion.correlation_steps` gives a log-likelihood.

    Each frame is compared with the mean of the others, whose own noise makes it count less where it is weak.
    """
    others = spectra.real.shape[1] - 1
    trusted = powers.signal / (powers.signal + powers.noise / others)
    weight = np.where(powers.signal > 0, 2 * trusted / (powers.noise * others), 0.0)
    return np.asarray(weight[spectra.rings], np.float32)
