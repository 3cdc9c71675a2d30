"""numba twins of :mod:`cloudem.kernels.slices`. Volumes are read and written as interleaved float32."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels._numba.window import gather, scatter
from cloudem.kernels.slices import magnified_axes, turned_about_axes, turning_axes

jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz"})
any_order = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=True)
"""For functions that write to no array: their loops need no check of where arrays lie, so sums have one order."""
Array = NDArray[Any]

BLOCK = 512
"""Pixels between whose steps intermediate results are kept: they stay in the first-level cache."""


def extract(volume: Array, rotations: Array, kx: Array, ky: Array, padding: float) -> NDArray[np.complex64]:
    """Twin of :func:`cloudem.kernels.slices.extract`."""
    out = np.empty((len(rotations), len(kx)), np.complex64)
    _extract(_floats(volume), volume.shape[2] - 2, _doubles(rotations), kx, ky, float(padding), out.view(np.float32))
    return out


def insert(
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
    padding: float,
    box: int,
) -> None:
    """Twin of :func:`cloudem.kernels.slices.insert`."""
    pixels = (numerators.view(np.float32), denominators, kx, ky, float(padding), 2 * np.pi / box)
    poses = (images.astype(np.int64), _doubles(rotations), _doubles(shifts), np.asarray(pose_weights, np.float32))
    _insert(_floats(sums), weights.reshape(-1), sums.shape[2] - 2, *poses, *pixels)


def score_derivatives(
    volume: Array,
    images: Array,
    rotations: Array,
    shifts: Array,
    numerators: Array,
    denominators: Array,
    kx: Array,
    ky: Array,
    padding: float,
    box: int,
    magnification: Array | None = None,
) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.slices.score_derivatives`."""
    out = np.empty((len(images), 22))
    pixels = (numerators.view(np.float32), denominators, kx, ky, float(padding), 2 * np.pi / box)
    axes = turning = _doubles(rotations)
    if magnification is not None:
        axes, turning = magnified_axes(rotations, magnification), turning_axes(rotations, magnification)
    poses = (images.astype(np.int64), axes, turning, _doubles(shifts))
    _score_derivatives(_floats(volume), volume.shape[2] - 2, *poses, *pixels, out)
    if magnification is not None:
        turned_about_axes(out, magnification)
    return out


def _floats(volume: Array) -> NDArray[np.float32]:
    return volume.view(np.float32).reshape(-1)


def _doubles(values: Array) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, np.float64)


@jit
def tabulate_phases(shift: Any, beta: float, reach: int, cosine: Any, sine: Any) -> None:
    """Tabulate cos and sin of ``beta k shift`` for k from -reach to reach."""
    for k in range(-reach, reach + 1):
        cosine[k + reach] = np.cos(beta * k * shift)
        sine[k + reach] = np.sin(beta * k * shift)


@jit
def _locate(a: Any, m: int, stride: int, kx: Any, ky: Any, place: Any, start: Any, sign: Any) -> None:
    """Find the window of each pixel: its offset in voxels × stride, the fractions (3, p), and -1 where mirrored.

    A loop of its own because the compiler turns it into vector code, and because the windows' loads then need not wait
    for it.
    """
    row, plane = m + 2, (m + 2) * (2 * m + 1)
    for j in range(kx.shape[0]):
        x = a[0, 0] * kx[j] + a[1, 0] * ky[j]
        y = a[0, 1] * kx[j] + a[1, 1] * ky[j]
        z = a[0, 2] * kx[j] + a[1, 2] * ky[j]
        mirror = -1.0 if x < 0 else 1.0
        x, y, z = x * mirror, y * mirror, z * mirror
        bx, by, bz = np.floor(x), np.floor(y), np.floor(z)
        place[0, j], place[1, j], place[2, j] = x - bx, y - by, z - bz
        start[j] = stride * ((int(bz) + m - 1) * plane + (int(by) + m - 1) * row + int(bx))
        sign[j] = mirror


@jit
def shift_coefficients(
    numerators: Any, kx: Any, ky: Any, cos_x: Any, sin_x: Any, cos_y: Any, sin_y: Any, re: Any, im: Any
) -> None:
    """Multiply coefficients by the phase of a shift."""
    reach = (cos_x.shape[0] - 1) // 2
    for j in range(kx.shape[0]):
        p, q = kx[j] + reach, ky[j] + reach
        c = cos_x[p] * cos_y[q] - sin_x[p] * sin_y[q]
        s = cos_x[p] * sin_y[q] + sin_x[p] * cos_y[q]
        a, b = numerators[2 * j], numerators[2 * j + 1]
        re[j], im[j] = a * c - b * s, a * s + b * c


@jit
def gather_windows(volume: Any, row: int, plane: int, place: Any, start: Any, sign: Any, out: Any) -> None:
    """Read the windows that ``_locate`` found: real and imaginary part of each pixel, one after the other."""
    for j in range(start.shape[0]):
        v = gather(volume, start[j], row, plane, place[0, j], place[1, j], place[2, j])
        out[2 * j] = v[0]
        out[2 * j + 1] = sign[j] * v[1]


@jit
def scatter_windows(
    sums: Any, weights: Any, row: int, plane: int, place: Any, start: Any, sign: Any, gamma: Any, re: Any, im: Any,
    denominators: Any,
) -> None:  # fmt: skip
    """Add coefficients and denominators (p,), times a pose's weight, to the windows that ``_locate`` found."""
    for j in range(denominators.shape[0]):
        scatter(
            sums, weights, start[j], row, plane, place[0, j], place[1, j], place[2, j],
            gamma * re[j], gamma * sign[j] * im[j], gamma * denominators[j],
        )  # fmt: skip


@jit
def _extract(volume: Any, m: int, rotations: Any, kx: Any, ky: Any, padding: float, out: Any) -> None:
    row, plane = 2 * (m + 2), 2 * (m + 2) * (2 * m + 1)
    count = kx.shape[0]
    place, sign, start = np.empty((3, count), np.float32), np.empty(count, np.float32), np.empty(count, np.int64)
    for i in range(rotations.shape[0]):
        _locate(rotations[i] * padding, m, 2, kx, ky, place, start, sign)
        gather_windows(volume, row, plane, place, start, sign, out[i])


@jit
def _insert(
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
            _locate(a, m, 1, u, v, place, start, sign)
            shift_coefficients(numerators[image, 2 * first : 2 * last], u, v, cos_x, sin_x, cos_y, sin_y, re, im)
            others = denominators[image, first:last]
            scatter_windows(sums, weights, row, plane, place, start, sign, gamma, re, im, others)


@jit
def _score_derivatives(
    volume: Any,
    m: int,
    images: Any,
    axes: Any,
    turning: Any,
    shifts: Any,
    numerators: Any,
    denominators: Any,
    kx: Any,
    ky: Any,
    padding: float,
    beta: float,
    out: Any,
) -> None:
    row, plane = 2 * (m + 2), 2 * (m + 2) * (2 * m + 1)
    reach = max(np.max(np.abs(kx)), np.max(np.abs(ky))) + 1
    cos_x, sin_x, cos_y, sin_y = np.empty((4, 2 * reach + 1), np.float32)
    place, start = np.empty((3, BLOCK), np.float32), np.empty(BLOCK, np.int64)
    sign, re, im = np.empty((3, BLOCK), np.float32)
    found = np.empty((8, BLOCK), np.float32)
    out[:] = 0
    for i in range(images.shape[0]):
        image = images[i]
        a = axes[i] * padding
        a32 = (turning[i] * padding).astype(np.float32)
        tabulate_phases(shifts[i, 0], beta, reach, cos_x, sin_x)
        tabulate_phases(shifts[i, 1], beta, reach, cos_y, sin_y)
        for first in range(0, kx.shape[0], BLOCK):
            last = min(first + BLOCK, kx.shape[0])
            u, v = kx[first:last], ky[first:last]
            _locate(a, m, 2, u, v, place, start, sign)
            for j in range(last - first):
                g = gather(volume, start[j], row, plane, place[0, j], place[1, j], place[2, j])
                for c in range(8):
                    found[c, j] = g[c]
            shift_coefficients(numerators[image, 2 * first : 2 * last], u, v, cos_x, sin_x, cos_y, sin_y, re, im)
            sums = _reduce(a32, u, v, sign, found, re, im, denominators[image, first:last], np.float32(beta))
            for j in range(22):
                out[i, j] += sums[j]


@any_order
def _reduce(a: Any, kx: Any, ky: Any, sign: Any, found: Any, re: Any, im: Any, weight: Any, beta: Any) -> Any:
    """Sum score, gradient and Gauss-Newton matrix over pixels, many to an instruction."""
    a00, a01, a02, a10, a11, a12, a20, a21, a22 = a.ravel()
    n = d = g0 = g1 = g2 = g3 = g4 = np.float32(0)
    h00 = h01 = h02 = h03 = h04 = h11 = h12 = h13 = h14 = h22 = h23 = h24 = h33 = h34 = h44 = np.float32(0)
    for j in range(kx.shape[0]):
        u, v, q, f = np.float32(kx[j]), np.float32(ky[j]), weight[j], sign[j]
        # Friedel: value and gradient are conjugated, and the gradient changes sign with the position
        v_re, v_im = found[0, j], f * found[1, j]
        x_re, y_re, z_re = f * found[2, j], f * found[4, j], f * found[6, j]
        x_im, y_im, z_im = found[3, j], found[5, j], found[7, j]
        h0_re, h0_im = a00 * x_re + a01 * y_re + a02 * z_re, a00 * x_im + a01 * y_im + a02 * z_im
        h1_re, h1_im = a10 * x_re + a11 * y_re + a12 * z_re, a10 * x_im + a11 * y_im + a12 * z_im
        h2_re, h2_im = a20 * x_re + a21 * y_re + a22 * z_re, a20 * x_im + a21 * y_im + a22 * z_im
        r0, i0 = v * h2_re, v * h2_im
        r1, i1 = -u * h2_re, -u * h2_im
        r2, i2 = u * h1_re - v * h0_re, u * h1_im - v * h0_im
        u, v = beta * u, beta * v
        power = v_re * v_re + v_im * v_im
        n += re[j] * v_re + im[j] * v_im
        d += q * power
        e_re, e_im = re[j] - q * v_re, im[j] - q * v_im
        g0 += e_re * r0 + e_im * i0
        g1 += e_re * r1 + e_im * i1
        g2 += e_re * r2 + e_im * i2
        turned = re[j] * v_im - im[j] * v_re  # Re(i y S*)
        g3 += u * turned
        g4 += v * turned
        h00 += q * (r0 * r0 + i0 * i0)
        h01 += q * (r0 * r1 + i0 * i1)
        h02 += q * (r0 * r2 + i0 * i2)
        h11 += q * (r1 * r1 + i1 * i1)
        h12 += q * (r1 * r2 + i1 * i2)
        h22 += q * (r2 * r2 + i2 * i2)
        m0 = q * (v_im * r0 - v_re * i0)  # Re(∂a S (-i S)*)
        m1 = q * (v_im * r1 - v_re * i1)
        m2 = q * (v_im * r2 - v_re * i2)
        h03 += u * m0
        h04 += v * m0
        h13 += u * m1
        h14 += v * m1
        h23 += u * m2
        h24 += v * m2
        h33 += q * power * u * u
        h34 += q * power * u * v
        h44 += q * power * v * v
    return (n, d, g0, g1, g2, g3, g4, h00, h01, h02, h03, h04, h11, h12, h13, h14, h22, h23, h24, h33, h34, h44)
