"""numba twins of :mod:`cloudem.kernels.slices`. Volumes are read and written as interleaved float32."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels._numba.window import gather, scatter

jit = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
Array = NDArray[Any]


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
) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.slices.score_derivatives`."""
    out = np.empty((len(images), 22))
    pixels = (numerators.view(np.float32), denominators, kx, ky, float(padding), 2 * np.pi / box)
    poses = (images.astype(np.int64), _doubles(rotations), _doubles(shifts))
    _score_derivatives(_floats(volume), volume.shape[2] - 2, *poses, *pixels, out)
    return out


def rotated_sum(both: Array, group: Array) -> NDArray[np.float32]:
    """Twin of :func:`cloudem.kernels.slices.rotated_sum`."""
    out = np.zeros_like(both)
    _rotated_sum(both, group, out)
    return out


def _floats(volume: Array) -> NDArray[np.float32]:
    return volume.view(np.float32).reshape(-1)


def _doubles(values: Array) -> NDArray[np.float64]:
    return np.ascontiguousarray(values, np.float64)


@jit
def _phases(shift: Any, beta: float, reach: int, cosine: Any, sine: Any) -> None:
    """Tabulate cos and sin of ``beta k shift`` for k from -reach to reach."""
    for k in range(-reach, reach + 1):
        cosine[k + reach] = np.cos(beta * k * shift)
        sine[k + reach] = np.sin(beta * k * shift)


@jit
def _extract(volume: Any, m: int, rotations: Any, kx: Any, ky: Any, padding: float, out: Any) -> None:
    row, plane = 2 * (m + 2), 2 * (m + 2) * (2 * m + 1)
    for i in range(rotations.shape[0]):
        a = rotations[i] * padding
        for j in range(kx.shape[0]):
            x = a[0, 0] * kx[j] + a[1, 0] * ky[j]
            y = a[0, 1] * kx[j] + a[1, 1] * ky[j]
            z = a[0, 2] * kx[j] + a[1, 2] * ky[j]
            sign = np.float32(1)
            if x < 0:
                x, y, z, sign = -x, -y, -z, np.float32(-1)
            ix, iy, iz = int(x), int(np.floor(y)), int(np.floor(z))
            start = (iz + m - 1) * plane + (iy + m - 1) * row + 2 * ix
            v = gather(volume, start, row, plane, np.float32(x - ix), np.float32(y - iy), np.float32(z - iz))
            out[i, 2 * j] = v[0]
            out[i, 2 * j + 1] = sign * v[1]


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
    reach = np.max(np.abs(ky)) + 1
    cos_x, sin_x, cos_y, sin_y = np.empty((4, 2 * reach + 1), np.float32)
    for i in range(images.shape[0]):
        image = images[i]
        a = rotations[i] * padding
        _phases(shifts[i, 0], beta, reach, cos_x, sin_x)
        _phases(shifts[i, 1], beta, reach, cos_y, sin_y)
        gamma = pose_weights[i]
        for j in range(kx.shape[0]):
            x = a[0, 0] * kx[j] + a[1, 0] * ky[j]
            y = a[0, 1] * kx[j] + a[1, 1] * ky[j]
            z = a[0, 2] * kx[j] + a[1, 2] * ky[j]
            sign = np.float32(1)
            if x < 0:
                x, y, z, sign = -x, -y, -z, np.float32(-1)
            ix, iy, iz = int(x), int(np.floor(y)), int(np.floor(z))
            u, v = kx[j] + reach, ky[j] + reach
            c = gamma * (cos_x[u] * cos_y[v] - sin_x[u] * sin_y[v])
            s = gamma * (cos_x[u] * sin_y[v] + sin_x[u] * cos_y[v])
            re, im = numerators[image, 2 * j], numerators[image, 2 * j + 1]
            scatter(
                sums,
                weights,
                (iz + m - 1) * plane + (iy + m - 1) * row + ix,
                row,
                plane,
                np.float32(x - ix),
                np.float32(y - iy),
                np.float32(z - iz),
                re * c - im * s,
                sign * (re * s + im * c),
                gamma * denominators[image, j],
            )


@jit
def _score_derivatives(
    volume: Any,
    m: int,
    images: Any,
    rotations: Any,
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
    reach = np.max(np.abs(ky)) + 1
    cos_x, sin_x, cos_y, sin_y = np.empty((4, 2 * reach + 1), np.float32)
    count = kx.shape[0]
    v_re, v_im, y_re, y_im, r0, i0, r1, i1, r2, i2 = np.empty((10, count), np.float32)
    for i in range(images.shape[0]):
        image = images[i]
        a = rotations[i] * padding
        a32 = a.astype(np.float32)
        _phases(shifts[i, 0], beta, reach, cos_x, sin_x)
        _phases(shifts[i, 1], beta, reach, cos_y, sin_y)
        # first what needs the volume, pixel by pixel; then the sums, many pixels to an instruction
        for j in range(count):
            x = a[0, 0] * kx[j] + a[1, 0] * ky[j]
            y = a[0, 1] * kx[j] + a[1, 1] * ky[j]
            z = a[0, 2] * kx[j] + a[1, 2] * ky[j]
            sign = np.float32(1)
            if x < 0:
                x, y, z, sign = -x, -y, -z, np.float32(-1)
            ix, iy, iz = int(x), int(np.floor(y)), int(np.floor(z))
            start = (iz + m - 1) * plane + (iy + m - 1) * row + 2 * ix
            g = gather(volume, start, row, plane, np.float32(x - ix), np.float32(y - iy), np.float32(z - iz))
            # Friedel: value and gradient are conjugated, and the gradient changes sign with the position
            v_re[j], v_im[j] = g[0], sign * g[1]
            h0_re = sign * (a32[0, 0] * g[2] + a32[0, 1] * g[4] + a32[0, 2] * g[6])
            h1_re = sign * (a32[1, 0] * g[2] + a32[1, 1] * g[4] + a32[1, 2] * g[6])
            h2_re = sign * (a32[2, 0] * g[2] + a32[2, 1] * g[4] + a32[2, 2] * g[6])
            h0_im = a32[0, 0] * g[3] + a32[0, 1] * g[5] + a32[0, 2] * g[7]
            h1_im = a32[1, 0] * g[3] + a32[1, 1] * g[5] + a32[1, 2] * g[7]
            h2_im = a32[2, 0] * g[3] + a32[2, 1] * g[5] + a32[2, 2] * g[7]
            u, v = np.float32(kx[j]), np.float32(ky[j])
            r0[j], i0[j] = v * h2_re, v * h2_im
            r1[j], i1[j] = -u * h2_re, -u * h2_im
            r2[j], i2[j] = u * h1_re - v * h0_re, u * h1_im - v * h0_im
            p, q = kx[j] + reach, ky[j] + reach
            c = cos_x[p] * cos_y[q] - sin_x[p] * sin_y[q]
            s = cos_x[p] * sin_y[q] + sin_x[p] * cos_y[q]
            re, im = numerators[image, 2 * j], numerators[image, 2 * j + 1]
            y_re[j], y_im[j] = re * c - im * s, re * s + im * c
        sums = _reduce(kx, ky, denominators[image], np.float32(beta), v_re, v_im, y_re, y_im, r0, i0, r1, i1, r2, i2)
        for j in range(22):
            out[i, j] = sums[j]


@jit
def _reduce(
    kx: Any,
    ky: Any,
    q: Any,
    beta: Any,
    v_re: Any,
    v_im: Any,
    y_re: Any,
    y_im: Any,
    r0: Any,
    i0: Any,
    r1: Any,
    i1: Any,
    r2: Any,
    i2: Any,
) -> Any:
    zero = np.float32(0)
    n = d = g0 = g1 = g2 = g3 = g4 = zero
    h00 = h01 = h02 = h03 = h04 = h11 = h12 = h13 = h14 = h22 = h23 = h24 = h33 = h34 = h44 = zero
    for j in range(kx.shape[0]):
        u, v, w = beta * np.float32(kx[j]), beta * np.float32(ky[j]), q[j]
        power = v_re[j] * v_re[j] + v_im[j] * v_im[j]
        n += y_re[j] * v_re[j] + y_im[j] * v_im[j]
        d += w * power
        e_re, e_im = y_re[j] - w * v_re[j], y_im[j] - w * v_im[j]
        g0 += e_re * r0[j] + e_im * i0[j]
        g1 += e_re * r1[j] + e_im * i1[j]
        g2 += e_re * r2[j] + e_im * i2[j]
        turned = y_re[j] * v_im[j] - y_im[j] * v_re[j]  # Re(i y S*)
        g3 += u * turned
        g4 += v * turned
        h00 += w * (r0[j] * r0[j] + i0[j] * i0[j])
        h01 += w * (r0[j] * r1[j] + i0[j] * i1[j])
        h02 += w * (r0[j] * r2[j] + i0[j] * i2[j])
        h11 += w * (r1[j] * r1[j] + i1[j] * i1[j])
        h12 += w * (r1[j] * r2[j] + i1[j] * i2[j])
        h22 += w * (r2[j] * r2[j] + i2[j] * i2[j])
        m0 = w * (v_im[j] * r0[j] - v_re[j] * i0[j])  # Re(∂a S (-i S)*)
        m1 = w * (v_im[j] * r1[j] - v_re[j] * i1[j])
        m2 = w * (v_im[j] * r2[j] - v_re[j] * i2[j])
        h03 += u * m0
        h04 += v * m0
        h13 += u * m1
        h14 += v * m1
        h23 += u * m2
        h24 += v * m2
        h33 += w * power * u * u
        h34 += w * power * u * v
        h44 += w * power * v * v
    return (n, d, g0, g1, g2, g3, g4, h00, h01, h02, h03, h04, h11, h12, h13, h14, h22, h23, h24, h33, h34, h44)


@jit
def _rotated_sum(both: Any, group: Any, out: Any) -> None:
    m = both.shape[2] - 2
    small = 1e-6  # rounding in a rotation that permutes axes must not leave the voxel
    for kz in range(-m, m + 1):
        for ky in range(-m, m + 1):
            for kx in range(m + 1):
                if kx * kx + ky * ky + kz * kz > (m - 1) ** 2:
                    continue
                re = im = weight = np.float32(0)
                for o in range(group.shape[0]):
                    g = group[o]
                    x = g[0, 0] * kx + g[0, 1] * ky + g[0, 2] * kz
                    y = g[1, 0] * kx + g[1, 1] * ky + g[1, 2] * kz
                    z = g[2, 0] * kx + g[2, 1] * ky + g[2, 2] * kz
                    sign = np.float32(1)
                    if x < -small:
                        x, y, z, sign = -x, -y, -z, np.float32(-1)
                    ix, iy, iz = int(np.floor(x + small)), int(np.floor(y + small)), int(np.floor(z + small))
                    fx, fy, fz = max(x - ix, 0.0), max(y - iy, 0.0), max(z - iz, 0.0)
                    for dz in range(2):
                        wz = fz if dz else 1 - fz
                        if wz < small:
                            continue
                        for dy in range(2):
                            wy = wz * (fy if dy else 1 - fy)
                            if wy < small:
                                continue
                            for dx in range(2):
                                w = np.float32(wy * (fx if dx else 1 - fx))
                                voxel = both[iz + dz + m, iy + dy + m, ix + dx + 1]
                                re += w * voxel[0]
                                im += w * sign * voxel[1]
                                weight += w * voxel[2]
                out[kz + m, ky + m, kx + 1, 0] = re
                out[kz + m, ky + m, kx + 1, 1] = im
                out[kz + m, ky + m, kx + 1, 2] = weight
