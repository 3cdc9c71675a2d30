"""CuPy twins of :mod:`cloudem.kernels.polar`."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels._cupy.launch import blocks, device, launch

Array = Any


def shift_samples(real: Array, imaginary: Array, kx: Array, ky: Array, shifts: Array, box: int) -> tuple[Array, Array]:
    """Twin of :func:`cloudem.kernels.polar.shift_samples`."""
    images, tried = shifts.shape[:2]
    out = cupy.empty((2, images, tried, len(kx)), np.float32)
    launch(
        "polar", "shift_samples", blocks(images, len(kx)),
        *(device(values, np.float32) for values in (real, imaginary, kx, ky)),
        device(device(shifts, np.float64) / box, np.float32), int(tried), len(kx), out[0], out[1],
    )  # fmt: skip
    return out[0], out[1]


def best_rotations(
    cos_even: Array, sin_even: Array, cos_odd: Array, sin_odd: Array, shifts: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Twin of :func:`cloudem.kernels.polar.best_rotations`; scores and codes come back to the host."""
    angles, _, rows, directions = cos_even.shape
    score = cupy.empty((rows // shifts, 2, directions), np.float32)
    code = cupy.empty(score.shape, np.int32)
    sums = (device(values, np.float32) for values in (cos_even, sin_even, cos_odd, sin_odd))
    grid = blocks(rows // shifts, directions)
    launch("polar", "best_rotations", grid, *sums, angles, rows, directions, int(shifts), score, code)
    return cupy.asnumpy(score), cupy.asnumpy(code)


def ring_norms(power: Array, slices: Array) -> NDArray[np.float32]:
    """Twin of :func:`cloudem.kernels.polar.ring_norms`; the products come back to the host."""
    return np.asarray(cupy.asnumpy(device(power, np.float32) @ device(slices, np.float32)))
