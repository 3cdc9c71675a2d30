"""numba twin of :mod:`cloudem.kernels.rotated_sum`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels._numba.window import gather
from cloudem.kernels.rotated_sum import ON_VOXEL

jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz"})
Array = NDArray[Any]


def add_rotated(volume: Array, turns: Array, first: int, last: int, total: Array) -> None:
    """Twin of :func:`cloudem.kernels.rotated_sum.add_rotated`."""
    flat = np.ascontiguousarray(volume).view(np.float32).reshape(-1)
    _add_turned(flat, np.ascontiguousarray(turns, np.float64), first, last, total)


@jit
def _add_turned(volume: Any, turns: Any, first: int, last: int, total: Any) -> None:
    m = total.shape[2] - 2
    row, plane = 2 * (m + 2), 2 * (m + 2) * (2 * m + 1)
    for iz in range(first, last):
        kz = iz - m
        for iy in range(2 * m + 1):
            ky = iy - m
            left = (m - 2) ** 2 - kz * kz - ky * ky
            if left < 0:
                continue
            for g in range(turns.shape[0]):
                # of the line's points as kx grows
                x0, dx = turns[g, 0, 1] * ky + turns[g, 0, 2] * kz, turns[g, 0, 0]
                y0, dy = turns[g, 1, 1] * ky + turns[g, 1, 2] * kz, turns[g, 1, 0]
                z0, dz = turns[g, 2, 1] * ky + turns[g, 2, 2] * kz, turns[g, 2, 0]
                for kx in range(int(np.sqrt(left)) + 1):
                    x, y, z = x0 + dx * kx, y0 + dy * kx, z0 + dz * kx
                    mirror = -1.0 if x < -ON_VOXEL else 1.0
                    x, y, z = x * mirror, y * mirror, z * mirror
                    bx, by, bz = np.floor(x + ON_VOXEL), np.floor(y + ON_VOXEL), np.floor(z + ON_VOXEL)
                    start = (int(bz) + m - 1) * plane + (int(by) + m - 1) * row + 2 * int(bx)
                    v = gather(volume, start, row, plane, np.float32(x - bx), np.float32(y - by), np.float32(z - bz))
                    total[iz, iy, kx + 1] += complex(v[0], np.float32(mirror) * v[1])
