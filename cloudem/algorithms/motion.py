"""Motion of a whole specimen over the frames of a movie.

Each frame is compared with the sum of all others. What the detector adds at the same place in each frame correlates at
no displacement, whether the specimen moves or not: its power is known from the highest frequencies, and its part in
each correlation is taken away (`cloudem.kernels.motion.correlation_steps`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.algorithms.frame_spectra import (
    FrameSpectra,
    RingPowers,
    agreement_weights,
    ring_powers,
)
from cloudem.algorithms.motion_track import smoothed_track
from cloudem.kernels.motion import correlation_steps

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COARSE, COARSE_WAVES = 1 / 16, 130
"""The first displacements are looked for with waves longer than that, 1/Å, and at most so many across a frame."""

FARTHEST = 0.12
"""Share of a frame's side by which it may be displaced from the mean."""

COARSE_ROUNDS, FINE_ROUNDS, CLOSE_ENOUGH = 5, 8, 0.01
_LONGEST_STEP = 2.0


class WholeMotion(NamedTuple):
    """How a specimen moved as a whole.

    Attributes
    ----------
    track
        Displacement along x and y, pixels, ``(frames, 2)``, 0 in the first frame.
    powers
        Of signal and noise, with frames moved back.
    problem
        Why it could not be found, and the track is 0; empty where it was.
    """

    track: Float64
    powers: RingPowers
    problem: str


def whole_motion(spectra: FrameSpectra, pattern: float, pixel_size: float) -> WholeMotion:
    """Find the motion of a whole frame.

    Parameters
    ----------
    spectra
        Of small frames.
    pattern
        Power of what does not move with the specimen, of a frame.
    pixel_size
        Å of a pixel of a frame.
    """
    frames = spectra.real.shape[1]
    if frames < 2:
        nothing = np.zeros((frames, 2))
        return WholeMotion(nothing, RingPowers(np.zeros(1), np.ones(1)), "it has one frame")
    track = _coarse_track(spectra, pattern, pixel_size)
    powers = ring_powers([spectra], [track], pattern)
    for _ in range(FINE_ROUNDS):
        if not (powers.signal > 0).any():
            return WholeMotion(np.zeros((frames, 2)), powers, "the frames have nothing in common that moves together")
        weight = agreement_weights(spectra, powers)
        places, precision = refined_places([spectra], [weight], [track], pattern)
        before, track = track, smoothed_track(track + places, precision)
        track -= track.mean(axis=0)
        powers = ring_powers([spectra], [track], pattern)
        if abs(track - track[0] - before + before[0]).max() < CLOSE_ENOUGH:
            break
    return WholeMotion(track - track[0], powers, "")


def refined_places(
    spectra: list[FrameSpectra], weights: list[Float32], displacements: list[Float64], pattern: float
) -> tuple[Float64, Float64]:
    """Return by how much each frame has to be moved on for the best agreement, and how precise that is.

    Parameters
    ----------
    spectra, weights, displacements
        Of an image, or of several patches that have this movement in common.
    pattern
        Power of what does not move.

    Returns
    -------
    places
        Pixels along x and y, ``(frames, 2)``.
    precision
        One over their variance, ``(frames, 2)``.
    """
    gradient, curvature = np.zeros(displacements[0].shape), np.zeros(3)
    for each, weight, displacement in zip(spectra, weights, displacements, strict=True):
        constant = np.full(len(weight), pattern, np.float32)
        slope, bend, _ = correlation_steps(
            each.real, each.imaginary, each.waves, each.steps, weight, constant, displacement
        )
        gradient += slope
        curvature += np.maximum(bend.mean(axis=0), [0, -np.inf, 0])
    matrix = np.array([[curvature[0], curvature[1]], [curvature[1], curvature[2]]])
    matrix += np.eye(2) * (1e-6 + 1e-3 * np.trace(matrix))
    steps = np.linalg.solve(matrix, gradient.T).T
    length = np.hypot(*steps.T)[:, None]
    steps *= np.minimum(1, _LONGEST_STEP / np.maximum(length, 1e-9))
    return steps, np.broadcast_to(np.diag(matrix), steps.shape)


def _coarse_track(spectra: FrameSpectra, pattern: float, pixel_size: float) -> Float64:
    """Return displacements from peaks of correlations with long waves."""
    size = 2 * np.pi / spectra.steps  # rows and columns, pixels
    radius = np.hypot(*(spectra.waves * spectra.steps).T) / (2 * np.pi * pixel_size)  # 1/Å
    limit = min(COARSE, COARSE_WAVES / (size.max() * pixel_size))
    long = np.flatnonzero(radius < limit)
    waves, frames = spectra.waves[long], spectra.real.shape[1]
    grid = [scipy.fft.next_fast_len(int(2 * (abs(waves[:, axis]).max() + 1)), real=True) for axis in range(2)]
    grid[1] += grid[1] % 2
    spectrum = spectra.real[long] + 1j * spectra.imaginary[long]
    power = np.bincount(spectra.rings[long], (np.abs(spectrum) ** 2).mean(axis=1), minlength=1)
    counts = np.maximum(np.bincount(spectra.rings[long], minlength=1), 1)
    weight = np.exp(-0.5 * (radius[long] / (0.5 * limit)) ** 2) / np.maximum(power / counts, 1e-12)[spectra.rings[long]]
    ky, kx = (waves * spectra.steps).T
    track = np.zeros((frames, 2))
    for _ in range(COARSE_ROUNDS):
        shift = np.exp(1j * (kx[:, None] * track[:, 0] + ky[:, None] * track[:, 1])).astype(np.complex64)
        moved = spectrum * shift
        others = moved.sum(axis=1, keepdims=True) - moved
        beside = shift.sum(axis=1, keepdims=True) - shift
        product = weight[:, None] * (spectrum * others.conj() - pattern * beside.conj())
        before, track = track, np.zeros((frames, 2))
        for number in range(frames):
            image = np.zeros((grid[0], grid[1] // 2 + 1), np.complex64)
            image[waves[:, 0] % grid[0], waves[:, 1]] = product[:, number]
            track[number] = _peak(scipy.fft.irfft2(image, s=grid), size / grid)
        track -= track.mean(axis=0)
        if abs(track - before).max() < 0.25:
            break
    return track


def _peak(image: Float32, pixel: Float64) -> Float64:
    """Return where a correlation is greatest, along x and y; parabolas through its neighbours."""
    reach = [max(2, int(FARTHEST * count)) for count in image.shape]
    near = np.roll(image, reach, axis=(0, 1))[: 2 * reach[0] + 1, : 2 * reach[1] + 1]
    y, x = np.unravel_index(int(near.argmax()), near.shape)
    place = []
    for at, most, line in ((int(x), near.shape[1], near[y]), (int(y), near.shape[0], near[:, x])):
        if 0 < at < most - 1:
            low, middle, high = (float(line[at + step]) for step in (-1, 0, 1))
            bend = low - 2 * middle + high
            place.append(at + (0.5 * (low - high) / bend if bend < 0 else 0.0))
        else:
            place.append(float(at))
    return np.array([(place[0] - reach[1]) * pixel[1], (place[1] - reach[0]) * pixel[0]])
