"""numba twins of :mod:`cloudem.kernels.curved`. Volumes are read and written as interleaved float32."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.kernels._numba.slices import (
    BLOCK,
    gather_windows,
    jit,
    scatter_windows,
    shift_coefficients,
    tabulate_phases,
)

Array = NDArray[Any]


def extract_curved(
    volume: Array, rotations: Array, kx: Array, ky: Array, curvature: Array, padding: float
) -> NDArray[np.complex64]:
    """Twin of :func:`cloudem.kernels.curved.extract_curved`."""
    out = np.empty((len(rotations), len(kx)), np.complex64)
    bent = (np.ascontiguousarray(rotations, np.float64), kx, ky, np.ascontiguousarray(curvature, np.float64))
    flat = volume.view(np.float32).reshape(-1)
    _extract_curved(flat, volume.shape[2] - 2, *bent, float(padding), out.view(np.float32))
    return out


def insert_curved(
    sums: Array,
    weights: Array,
    images: Array,
    rotations: Array,
    shifts: Array,
    pose_weights: Array,
    numerators: Array,
    denominators: Array,
    kx: Array,
    ky: Array,
    curvature: Array,
    padding: float,
    box: int,
) -> None:
    """Twin of :func:`cloudem.kernels.curved.insert_curved`."""
    rotations, shifts = (np.ascontiguousarray(values, np.float64) for values in (rotations, shifts))
    poses = (images.astype(np.int64), rotations, shifts, np.asarray(pose_weights, np.float32))
    pixels = (numerators.view(np.float32), denominators, kx, ky, np.ascontiguousarray(curvature, np.float64))
    volume = (sums.view(np.float32).reshape(-1), weights.reshape(-1), sums.shape[2] - 2)
    _insert_curved(*volume, *poses, *pixels, float(padding), 2 * np.pi / box)


@jit
def _locate_curved(a: Any, m: int, stride: int, kx: Any, ky: Any, bent: Any, place: Any, start: Any, sign: Any) -> None:
    """Find the window of each sample, as ``_locate`` of the slices does, with a third coordinate."""
    row, plane = m + 2, (m + 2) * (2 * m + 1)
    for j in range(kx.shape[0]):
        u, v = float(kx[j]), float(ky[j])
        w = bent[0] * u * u + bent[1] * u * v + bent[2] * v * v
        x = a[0, 0] * u + a[1, 0] * v + a[2, 0] * w
        y = a[0, 1] * u + a[1, 1] * v + a[2, 1] * w
        z = a[0, 2] * u + a[1, 2] * v + a[2, 2] * w
        mirror = -1.0 if x < 0 else 1.0
        x, y, z = x * mirror, y * mirror, z * mirror
        bx, by, bz = np.floor(x), np.floor(y), np.floor(z)
        place[0, j], place[1, j], place[2, j] = x - bx, y - by, z - bz
        start[j] = stride * ((int(bz) + m - 1) * plane + (int(by) + m - 1) * row + int(bx))
        sign[j] = mirror


@jit
def _extract_curved(
    volume: Any, m: int, rotations: Any, kx: Any, ky: Any, curvature: Any, padding: float, out: Any
) -> None:
    row, plane = 2 * (m + 2), 2 * (m + 2) * (2 * m + 1)
    count = kx.shape[0]
    place, sign, start = np.empty((3, count), np.float32), np.empty(count, np.float32), np.empty(count, np.int64)
    for i in range(rotations.shape[0]):
        _locate_curved(rotations[i] * padding, m, 2, kx, ky, curvature[i], place, start, sign)
        gather_windows(volume, row, plane, place, start, sign, out[i])


@jit
def _insert_curved(
    sums: Any,
    weights: Any,
    m: int,
    images: Any,
    rotations: Any,
    shifts: Any,
    pose_weights: Any,
    numerators: Any,
    denominators: Any,
    kx: Any,
    ky: Any,
    curvature: Any,
    padding: float,
    beta: float,
) -> None:
    row, plane = m + 2, (m + 2) * (2 * m + 1)
    reach = max(np.max(np.abs(kx)), np.max(np.abs(ky))) + 1
    cos_x, sin_x, cos_y, sin_y = np.empty((4, 2 * reach + 1), np.float32)
    place, start = np.empty((3, BLOCK), np.float32), np.empty(BLOCK, np.int64)
    sign, re, im = np.empty((3, BLOCK), np.float32)
    for i in range(images.shape[0]):
        image, gamma = images[i], pose_weights[i]
        a = rotations[i] * padding
        tabulate_phases(shifts[i, 0], beta, reach, cos_x, sin_x)
        tabulate_phases(shifts[i, 1], beta, reach, cos_y, sin_y)
        for first in range(0, kx.shape[0], BLOCK):
            last = min(first + BLOCK, kx.shape[0])
            u, v = kx[first:last], ky[first:last]
            _locate_curved(a, m, 1, u, v, curvature[image], place, start, sign)
            shift_coefficients(numerators[image, 2 * first : 2 * last], u, v, cos_x, sin_x, cos_y, sin_y, re, im)
            others = denominators[image, first:last]
            scatter_windows(sums, weights, row, plane, place, start, sign, gamma, re, im, others)
