"""numba twins of :mod:`cloudem.kernels.picking`."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(nogil=True, cache=True)
def local_sums(values: NDArray[np.float32], half: int, out: NDArray[np.float32]) -> None:
    """Twin of :func:`cloudem.kernels.picking.local_sums`."""
    rows, columns = values.shape
    across = np.empty((rows, columns))
    for y in range(rows):
        total = 0.0
        for x in range(min(half, columns)):
            total += values[y, x]
        for x in range(columns):
            if x + half < columns:
                total += values[y, x + half]
            if x - half - 1 >= 0:
                total -= values[y, x - half - 1]
            across[y, x] = total
    line = np.zeros(columns)  # a whole row at a time, as memory has it
    for y in range(min(half, rows)):
        line += across[y]
    for y in range(rows):
        if y + half < rows:
            line += across[y + half]
        if y - half - 1 >= 0:
            line -= across[y - half - 1]
        for x in range(columns):
            out[y, x] = line[x]


@numba.njit(nogil=True, cache=True)
def separate_peaks(score: NDArray[np.float32], distance: float, least: float) -> NDArray[np.int64]:
    """Twin of :func:`cloudem.kernels.picking.separate_peaks`."""
    rows, columns = score.shape
    found = np.empty(rows * columns, np.int64)
    count = 0
    for y in range(rows):
        for x in range(columns):
            if score[y, x] >= least and score[y, x] > -np.inf and _is_peak(score, y, x):
                found[count] = y * columns + x
                count += 1
    values = np.empty(count, score.dtype)
    for place in range(count):
        values[place] = -score[found[place] // columns, found[place] % columns]
    order = np.argsort(values, kind="mergesort")
    reach = int(np.ceil(distance))
    taken = np.zeros((rows, columns), np.bool_)
    kept = np.empty((count, 2), np.int64)
    number = 0
    for place in order:
        y, x = found[place] // columns, found[place] % columns
        if taken[y, x]:
            continue
        kept[number, 0], kept[number, 1] = y, x
        number += 1
        for row in range(max(0, y - reach), min(rows, y + reach + 1)):
            for column in range(max(0, x - reach), min(columns, x + reach + 1)):
                if (row - y) ** 2 + (column - x) ** 2 <= distance**2:
                    taken[row, column] = True
    return kept[:number].copy()


@numba.njit(nogil=True, cache=True)
def _is_peak(score: NDArray[np.float32], y: int, x: int) -> Any:
    for row in range(max(0, y - 1), min(score.shape[0], y + 2)):
        for column in range(max(0, x - 1), min(score.shape[1], x + 2)):
            if score[row, column] > score[y, x]:
                return False
    return True
