"""Local sums of an image, and peaks that keep a distance from each other: the inner loops of picking."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel


@kernel
def local_sums(values: NDArray[np.float32], half: int, out: NDArray[np.float32]) -> None:
    """Sum an image over the square around each pixel; nothing is added beyond its edges.

    Parameters
    ----------
    values
        Shape ``(rows, columns)``.
    half
        The square has ``2 half + 1`` pixels along its side.
    out
        Written, of the same shape; sums are made in double precision.
    """
    sums = values.astype(np.float64)
    for axis in (0, 1):
        count = sums.shape[axis]
        along = np.moveaxis(sums, axis, 0)
        upto = np.concatenate([np.zeros((1, along.shape[1])), np.cumsum(along, axis=0)])
        first = np.maximum(np.arange(count) - half, 0)
        stop = np.minimum(np.arange(count) + half + 1, count)
        sums = np.moveaxis(upto[stop] - upto[first], 0, axis)
    out[...] = sums


@kernel
def separate_peaks(score: NDArray[np.float32], distance: float, least: float) -> NDArray[np.int64]:
    """Return peaks of which none is closer to a higher one that is kept.

    A peak is a pixel that none of its eight neighbours exceeds. Peaks are taken from the highest down, and of equal
    ones the first in memory; each that is taken rules out those within the distance.

    Parameters
    ----------
    score
        Shape ``(rows, columns)``; minus infinity where there can be no peak.
    distance
        Pixels.
    least
        Lower peaks are left out.

    Returns
    -------
    Shape ``(k, 2)``: row and column, in falling order of the score.
    """
    rows, columns = score.shape
    padded = np.pad(score, 1, constant_values=-np.inf)
    top = np.full(score.shape, -np.inf, score.dtype)
    for y in range(3):
        for x in range(3):
            top = np.maximum(top, padded[y : y + rows, x : x + columns])
    places = np.argwhere((score >= top) & (score >= least) & (score > -np.inf))
    order = np.argsort(-score[places[:, 0], places[:, 1]], kind="stable")
    kept: list[NDArray[np.int64]] = []
    for place in places[order]:
        if all(((place - other) ** 2).sum() > distance**2 for other in kept):
            kept.append(place)
    return np.array(kept, np.int64).reshape(-1, 2)
