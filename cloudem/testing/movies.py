"""Movies of a specimen that moves in a known way, as a counting detector sees it; for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from cloudem.algorithms.dose import critical_dose
from cloudem.algorithms.motion_local import field_at

Float64 = NDArray[np.float64]


class SimulatedMovie(NamedTuple):
    """A movie and what is true of it.

    Attributes
    ----------
    frames
        Counts, uint8, ``(frames, rows, columns)``.
    track
        Displacement of the specimen along x and y, pixels, ``(frames, 2)``, 0 in the first.
    decay
        What is left of the signal's amplitude in each frame at `frequency`, ``(frames, 64)``.
    frequency
        1/Å, ``(64,)``.
    """

    frames: NDArray[np.uint8]
    track: Float64
    decay: Float64
    frequency: Float64


def simulated_track(frames: int, length: float, seed: int) -> Float64:
    """Return a track that is fast at first, about `length` pixels long, 0 in the first frame."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames) / max(frames - 1, 1)
    settling = 0.7 * (1 - np.exp(-time * 6)) + 0.3 * time
    turning = rng.normal(size=2) * 0.15 * length
    way = rng.uniform(0, 2 * np.pi)
    straight = np.outer(settling, [np.cos(way), np.sin(way)]) * length
    return np.asarray(straight + np.outer(np.sin(2 * np.pi * time) * time, turning))


def simulated_movie(
    size: int,
    frames: int,
    seed: int,
    *,
    track: Float64 | None = None,
    coefficients: Float64 | None = None,
    dose: float = 1.0,
    contrast: float = 0.3,
    pattern: float = 0.0,
    damage: float = 1.0,
    blur: Float64 | None = None,
    pixel_size: float = 1.0,
    voltage: float = 300.0,
) -> SimulatedMovie:
    """Simulate a movie of a random specimen, without a contrast transfer function.

    Parameters
    ----------
    size
        Pixels along a side.
    frames
        How many.
    seed
        Of the specimen and of the noise.
    track
        Displacements of the whole, ``(frames, 2)``; None for none.
    coefficients
        Of displacements besides, ``(2, 6, 3)``, see `cloudem.algorithms.motion_local.LocalMotion`.
    dose
        Electrons of a pixel of a frame.
    contrast
        Standard deviation of the specimen, undamaged, as a share of the mean; 0 for none.
    pattern
        Standard deviation of what the detector multiplies counts by.
    damage
        By how much more than the curve of `cloudem.algorithms.dose` a dose does; 0 for none.
    blur
        B-factor of each frame, Å², ``(frames,)``.
    pixel_size, voltage
        Å and kV.
    """
    rng = np.random.default_rng(seed)
    margin = 32
    side = scipy.fft.next_fast_len(size + 2 * margin, real=True)
    ky, kx = scipy.fft.fftfreq(side)[:, None] / pixel_size, scipy.fft.rfftfreq(side) / pixel_size
    radius = np.hypot(ky, kx)
    shape = 1 / (1 + (radius * 25) ** 2) * np.exp(-15 * radius**2)
    specimen = scipy.fft.rfft2(rng.standard_normal((side, side))) * shape
    specimen[0, 0] = 0
    specimen *= contrast / max(float(scipy.fft.irfft2(specimen, s=(side, side)).std()), 1e-30)
    track = np.zeros((frames, 2)) if track is None else track
    doses = dose / pixel_size**2 * (np.arange(frames) + 0.5)
    frequency = np.linspace(0.005, 0.5 / pixel_size, 64)
    gains = 1 + pattern * rng.standard_normal((size, size))
    movie, decay = np.empty((frames, size, size), np.uint8), np.empty((frames, 64))
    rows, columns = np.mgrid[:size, :size]
    for number in range(frames):
        extra = 0.0 if blur is None else float(blur[number])
        left = np.exp(-0.5 * damage * doses[number] / critical_dose(radius, voltage) - extra * radius**2 / 4)
        decay[number] = np.exp(
            -0.5 * damage * doses[number] / critical_dose(frequency, voltage) - extra * frequency**2 / 4
        )
        turn = np.exp(-2j * np.pi * pixel_size * (kx * track[number, 0] + ky * track[number, 1]))
        seen = scipy.fft.irfft2(specimen * left * turn, s=(side, side))
        if coefficients is None:
            seen = seen[margin : margin + size, margin : margin + size]
        else:
            field = field_at(coefficients, number)
            u, v = columns / size - 0.5, rows / size - 0.5
            terms = np.stack(np.broadcast_arrays(1.0, u, u * u, v, v * v, u * v))
            dx, dy = np.tensordot(field, terms, axes=1)
            seen = map_coordinates(seen, [rows + margin - dy, columns + margin - dx], order=3)
        rate = dose * np.clip(1 + seen, 0.01, None) * gains
        movie[number] = np.minimum(rng.poisson(np.maximum(rate, 0)), 255)
    return SimulatedMovie(movie, track, decay, frequency)
