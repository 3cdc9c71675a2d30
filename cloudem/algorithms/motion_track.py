"""Tracks of a specimen over the frames of a movie, smoothed in time as much as their own scatter asks for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

SETTLING = 3.0
"""Frames after which changes of velocity are half as large: specimens move most when the exposure begins."""

_VARIANCES = 10.0 ** np.arange(-5.0, 1.01, 0.4)
_SCALES = (1.0, 1.5, 2.5, 4.0)


def smoothed_track(places: Float64, precision: Float64) -> Float64:
    """Return the most probable track, given places that were found of each frame by itself.

    Changes of velocity are taken as independent and normal, smaller the later they are. Their size, and by how much the
    places scatter more than they should, are those of the greatest likelihood of the places' second differences.

    Parameters
    ----------
    places
        Pixels, ``(frames, 2)``.
    precision
        One over the variance of each, ``(frames, 2)``.
    """
    if len(places) < 5:
        return places.copy()
    return np.stack([_smoothed(*axis) for axis in zip(places.T, precision.T, strict=True)], axis=1)


def _smoothed(places: Float64, precision: Float64) -> Float64:
    frames = len(places)
    second = np.diff(np.eye(frames), n=2, axis=0)
    sizes = 1 / (1 + np.arange(frames - 2) / SETTLING)
    variance = 1 / np.maximum(precision, 1e-9)
    noise, change = second @ (variance[:, None] * second.T), np.diag(sizes**2)
    differences = second @ places
    best, chosen = -np.inf, (1.0, 1.0)
    for scale in _SCALES:
        for size in _VARIANCES:
            root = np.linalg.cholesky(scale * noise + size * change)
            whitened = np.linalg.solve(root, differences)
            likelihood = -np.log(np.diag(root)).sum() - 0.5 * whitened @ whitened
            if likelihood > best:
                best, chosen = likelihood, (scale, size)
    scale, size = chosen
    # the track is the places minus the part of their differences that is noise
    gain = np.linalg.solve(scale * noise + size * change, differences)
    return np.asarray(places - scale * variance * (second.T @ gain))


def path_lengths(track: Float64, pixel_size: float, early: int) -> tuple[float, float, float]:
    """Return the length of a track in Å: all of it, up to frame `early`, and from there on."""
    lengths = np.hypot(*np.diff(track, axis=0).T) * pixel_size
    return float(lengths.sum()), float(lengths[:early].sum()), float(lengths[early:].sum())
