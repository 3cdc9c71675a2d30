"""numba twin of :mod:`cloudem.kernels.atoms`."""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.atoms import TRUNCATE

jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz"})


def add_gaussians(
    grid: NDArray[np.float32],
    positions: NDArray[np.float64],
    kinds: NDArray[np.int32],
    b_factors: NDArray[np.float64],
    occupancies: NDArray[np.float64],
    table: NDArray[np.float64],
    spacing: float,
) -> None:
    """Twin of :func:`cloudem.kernels.atoms.add_gaussians`."""
    if len(positions):
        _add_gaussians(
            grid,
            np.ascontiguousarray(positions, np.float64),
            np.ascontiguousarray(kinds, np.int32),
            np.ascontiguousarray(b_factors, np.float64),
            np.ascontiguousarray(occupancies, np.float64),
            np.ascontiguousarray(table, np.float64),
            float(spacing),
        )


@jit
def _line(centre: float, radius: float, factor: float, m: int, values: Any, indices: Any) -> int:
    low = math.ceil(centre - radius)
    count = math.floor(centre + radius) - low + 1
    for i in range(count):
        values[i] = math.exp(factor * (low + i - centre) ** 2)
        indices[i] = (low + i) % m
    return count


@jit
def _add_gaussians(
    grid: Any, positions: Any, kinds: Any, b_factors: Any, occupancies: Any, table: Any, spacing: float
) -> None:
    m = grid.shape[0]
    pi2 = math.pi**2
    widest = table[:, :, 1].max() + b_factors.max()
    length = 2 * int(TRUNCATE * math.sqrt(widest / (8 * pi2)) / spacing) + 3
    values = np.empty((3, length), np.float32)
    indices = np.empty((3, length), np.int64)
    count = np.empty(3, np.int64)
    for atom in range(positions.shape[0]):
        kind = kinds[atom]
        for term in range(table.shape[1]):
            a = table[kind, term, 0]
            if a == 0:
                continue
            width = table[kind, term, 1] + b_factors[atom]
            radius = TRUNCATE * math.sqrt(width / (8 * pi2)) / spacing
            factor = -4 * pi2 * spacing**2 / width
            for axis in range(3):
                centre = positions[atom, 2 - axis] / spacing + m // 2
                count[axis] = _line(centre, radius, factor, m, values[axis], indices[axis])
            height = occupancies[atom] * a * (4 * math.pi / width) ** 1.5
            for z in range(count[0]):
                for y in range(count[1]):
                    scale = np.float32(height * values[0, z] * values[1, y])
                    row = grid[indices[0, z], indices[1, y]]
                    for x in range(count[2]):
                        row[indices[2, x]] += scale * values[2, x]
