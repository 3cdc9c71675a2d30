"""numba twins of :mod:`cloudem.kernels.slices`. Volumes are read and written as interleaved float32."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


def extract(
    volume: NDArray[np.complex64], rotations: NDArray[Any], kx: NDArray[np.int32], ky: NDArray[np.int32], padding: int
) -> NDArray[np.complex64]:
    """Twin of :func:`cloudem.kernels.slices.extract`."""
    out = np.empty((len(rotations), len(kx)), np.complex64)
    _extract(_floats(volume), _matrices(rotations), kx, ky, padding, out.view(np.float32))
    return out


def insert(
    sums: NDArray[np.complex64],
    weights: NDArray[np.float32],
    images: NDArray[np.int32],
    rotations: NDArray[Any],
    shifts: NDArray[Any],
    pose_weights: NDArray[Any],
    numerators: NDArray[np.complex64],
    denominators: NDArray[np.float32],
    kx: NDArray[np.int32],
    ky: NDArray[np.int32],
    padding: int,
    box: int,
) -> None:
    """Twin of :func:`cloudem.kernels.slices.insert`."""
    _insert(
        _floats(sums),
        weights,
        images.astype(np.int64),
        _matrices(rotations),
        np.asarray(shifts, np.float64),
        np.asarray(pose_weights, np.float32),
        numerators.view(np.float32),
        denominators,
        kx,
        ky,
        padding,
        box,
    )


def score_derivatives(
    volume: NDArray[np.complex64],
    images: NDArray[np.int32],
    rotations: NDArray[Any],
    shifts: NDArray[Any],
    numerators: NDArray[np.complex64],
    denominators: NDArray[np.float32],
    kx: NDArray[np.int32],
    ky: NDArray[np.int32],
    padding: int,
    box: int,
) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.slices.score_derivatives`."""
    out = np.empty((len(images), 22), np.float64)
    _score_derivatives(
        _floats(volume),
        images.astype(np.int64),
        _matrices(rotations),
        np.asarray(shifts, np.float64),
        numerators.view(np.float32),
        denominators,
        kx,
        ky,
        padding,
        box,
        out,
    )
    return out


def _floats(volume: NDArray[np.complex64]) -> NDArray[np.float32]:
    return volume.view(np.float32).reshape(*volume.shape, 2)


def _matrices(rotations: NDArray[Any]) -> NDArray[np.float64]:
    return np.ascontiguousarray(rotations, np.float64)


@jit
def _extract(volume: Any, rotations: Any, kx: Any, ky: Any, padding: int, out: Any) -> None:
    m = volume.shape[2] - 1
    one = np.float32(1)
    for i in range(rotations.shape[0]):
        a = rotations[i] * padding
        for j in range(kx.shape[0]):
            x = a[0, 0] * kx[j] + a[1, 0] * ky[j]
            y = a[0, 1] * kx[j] + a[1, 1] * ky[j]
            z = a[0, 2] * kx[j] + a[1, 2] * ky[j]
            sign = one
            if x < 0:
                x, y, z, sign = -x, -y, -z, -one
            ix, iy, iz = int(x), int(np.floor(y)), int(np.floor(z))
            fx, fy, fz = np.float32(x - ix), np.float32(y - iy), np.float32(z - iz)
            iy += m
            iz += m
            for c in range(2):
                v00 = volume[iz, iy, ix, c] * (one - fx) + volume[iz, iy, ix + 1, c] * fx
                v01 = volume[iz, iy + 1, ix, c] * (one - fx) + volume[iz, iy + 1, ix + 1, c] * fx
                v10 = volume[iz + 1, iy, ix, c] * (one - fx) + volume[iz + 1, iy, ix + 1, c] * fx
                v11 = volume[iz + 1, iy + 1, ix, c] * (one - fx) + volume[iz + 1, iy + 1, ix + 1, c] * fx
                v0 = v00 * (one - fy) + v01 * fy
                v1 = v10 * (one - fy) + v11 * fy
                out[i, 2 * j + c] = v0 * (one - fz) + v1 * fz
            out[i, 2 * j + 1] *= sign


@jit
def _insert(
    sums: Any,
    weights: Any,
    images: Any,
    rotations: Any,
    shifts: Any,
    pose_weights: Any,
    numerators: Any,
    denominators: Any,
    kx: Any,
    ky: Any,
    padding: int,
    box: int,
) -> None:
    m = sums.shape[2] - 1
    one = np.float32(1)
    reach = np.max(np.abs(ky)) + 1
    turn_x = np.empty((2, 2 * reach + 1), np.float32)
    turn_y = np.empty((2, 2 * reach + 1), np.float32)
    for i in range(images.shape[0]):
        row = images[i]
        a = rotations[i] * padding
        for k in range(-reach, reach + 1):
            angle = 2 * np.pi / box * k
            turn_x[0, k + reach], turn_x[1, k + reach] = np.cos(angle * shifts[i, 0]), np.sin(angle * shifts[i, 0])
            turn_y[0, k + reach], turn_y[1, k + reach] = np.cos(angle * shifts[i, 1]), np.sin(angle * shifts[i, 1])
        gamma = pose_weights[i]
        for j in range(kx.shape[0]):
            x = a[0, 0] * kx[j] + a[1, 0] * ky[j]
            y = a[0, 1] * kx[j] + a[1, 1] * ky[j]
            z = a[0, 2] * kx[j] + a[1, 2] * ky[j]
            sign = one
            if x < 0:
                x, y, z, sign = -x, -y, -z, -one
            ix, iy, iz = int(x), int(np.floor(y)), int(np.floor(z))
            fx, fy, fz = np.float32(x - ix), np.float32(y - iy), np.float32(z - iz)
            iy += m
            iz += m
            cx, sx = turn_x[0, kx[j] + reach], turn_x[1, kx[j] + reach]
            cy, sy = turn_y[0, ky[j] + reach], turn_y[1, ky[j] + reach]
            c, s = gamma * (cx * cy - sx * sy), gamma * (cx * sy + sx * cy)
            re, im = numerators[row, 2 * j], numerators[row, 2 * j + 1]
            re, im = re * c - im * s, sign * (re * s + im * c)
            w = gamma * denominators[row, j]
            for dz in range(2):
                wz = fz if dz else one - fz
                for dy in range(2):
                    wzy = wz * (fy if dy else one - fy)
                    w0, w1 = wzy * (one - fx), wzy * fx
                    sums[iz + dz, iy + dy, ix, 0] += w0 * re
                    sums[iz + dz, iy + dy, ix, 1] += w0 * im
                    sums[iz + dz, iy + dy, ix + 1, 0] += w1 * re
                    sums[iz + dz, iy + dy, ix + 1, 1] += w1 * im
                    weights[iz + dz, iy + dy, ix] += w0 * w
                    weights[iz + dz, iy + dy, ix + 1] += w1 * w


@jit
def _score_derivatives(
    volume: Any,
    images: Any,
    rotations: Any,
    shifts: Any,
    numerators: Any,
    denominators: Any,
    kx: Any,
    ky: Any,
    padding: int,
    box: int,
    out: Any,
) -> None:
    m = volume.shape[2] - 1
    one = np.float32(1)
    reach = np.max(np.abs(ky)) + 1
    turn_x = np.empty((2, 2 * reach + 1), np.float32)
    turn_y = np.empty((2, 2 * reach + 1), np.float32)
    beta = np.float32(2 * np.pi / box)
    grad_re, grad_im = np.empty(3, np.float32), np.empty(3, np.float32)
    for i in range(images.shape[0]):
        row = images[i]
        a = rotations[i] * padding
        a32 = a.astype(np.float32)
        for k in range(-reach, reach + 1):
            angle = 2 * np.pi / box * k
            turn_x[0, k + reach], turn_x[1, k + reach] = np.cos(angle * shifts[i, 0]), np.sin(angle * shifts[i, 0])
            turn_y[0, k + reach], turn_y[1, k + reach] = np.cos(angle * shifts[i, 1]), np.sin(angle * shifts[i, 1])
        n_sum = d_sum = g0 = g1 = g2 = g3 = g4 = 0.0
        h00 = h01 = h02 = h03 = h04 = h11 = h12 = h13 = h14 = h22 = h23 = h24 = h33 = h34 = h44 = 0.0
        for j in range(kx.shape[0]):
            x = a[0, 0] * kx[j] + a[1, 0] * ky[j]
            y = a[0, 1] * kx[j] + a[1, 1] * ky[j]
            z = a[0, 2] * kx[j] + a[1, 2] * ky[j]
            sign = one
            if x < 0:
                x, y, z, sign = -x, -y, -z, -one
            ix, iy, iz = int(x), int(np.floor(y)), int(np.floor(z))
            fx, fy, fz = np.float32(x - ix), np.float32(y - iy), np.float32(z - iz)
            iy += m
            iz += m
            v_re = v_im = np.float32(0)
            for c in range(2):
                p000, p001 = volume[iz, iy, ix, c], volume[iz, iy, ix + 1, c]
                p010, p011 = volume[iz, iy + 1, ix, c], volume[iz, iy + 1, ix + 1, c]
                p100, p101 = volume[iz + 1, iy, ix, c], volume[iz + 1, iy, ix + 1, c]
                p110, p111 = volume[iz + 1, iy + 1, ix, c], volume[iz + 1, iy + 1, ix + 1, c]
                d00, d01, d10, d11 = p001 - p000, p011 - p010, p101 - p100, p111 - p110
                e00, e01, e10, e11 = p000 + fx * d00, p010 + fx * d01, p100 + fx * d10, p110 + fx * d11
                dy0, dy1 = e01 - e00, e11 - e10
                v0, v1 = e00 + fy * dy0, e10 + fy * dy1
                dx0, dx1 = d00 + fy * (d01 - d00), d10 + fy * (d11 - d10)
                if c == 0:
                    v_re = v0 + fz * (v1 - v0)
                    grad_re[0] = dx0 + fz * (dx1 - dx0)
                    grad_re[1] = dy0 + fz * (dy1 - dy0)
                    grad_re[2] = v1 - v0
                else:
                    v_im = v0 + fz * (v1 - v0)
                    grad_im[0] = dx0 + fz * (dx1 - dx0)
                    grad_im[1] = dy0 + fz * (dy1 - dy0)
                    grad_im[2] = v1 - v0
            # Friedel: value and gradient are conjugated, and the gradient changes sign with the position
            v_im *= sign
            hx_re = sign * (a32[0, 0] * grad_re[0] + a32[0, 1] * grad_re[1] + a32[0, 2] * grad_re[2])
            hy_re = sign * (a32[1, 0] * grad_re[0] + a32[1, 1] * grad_re[1] + a32[1, 2] * grad_re[2])
            hz_re = sign * (a32[2, 0] * grad_re[0] + a32[2, 1] * grad_re[1] + a32[2, 2] * grad_re[2])
            hx_im = a32[0, 0] * grad_im[0] + a32[0, 1] * grad_im[1] + a32[0, 2] * grad_im[2]
            hy_im = a32[1, 0] * grad_im[0] + a32[1, 1] * grad_im[1] + a32[1, 2] * grad_im[2]
            hz_im = a32[2, 0] * grad_im[0] + a32[2, 1] * grad_im[1] + a32[2, 2] * grad_im[2]
            u, v = np.float32(kx[j]), np.float32(ky[j])
            r0, i0 = v * hz_re, v * hz_im
            r1, i1 = -u * hz_re, -u * hz_im
            r2, i2 = u * hy_re - v * hx_re, u * hy_im - v * hx_im
            cx, sx = turn_x[0, kx[j] + reach], turn_x[1, kx[j] + reach]
            cy, sy = turn_y[0, ky[j] + reach], turn_y[1, ky[j] + reach]
            c32, s32 = cx * cy - sx * sy, cx * sy + sx * cy
            w_re, w_im = numerators[row, 2 * j], numerators[row, 2 * j + 1]
            y_re, y_im = w_re * c32 - w_im * s32, w_re * s32 + w_im * c32
            q = denominators[row, j]
            power = v_re * v_re + v_im * v_im
            n_sum += y_re * v_re + y_im * v_im
            d_sum += q * power
            e_re, e_im = y_re - q * v_re, y_im - q * v_im
            g0 += e_re * r0 + e_im * i0
            g1 += e_re * r1 + e_im * i1
            g2 += e_re * r2 + e_im * i2
            # Re(2 pi i k / n · y S*) = -(2 pi k / n) Im(y S*)
            turned = -beta * (y_im * v_re - y_re * v_im)
            g3 += u * turned
            g4 += v * turned
            h00 += q * (r0 * r0 + i0 * i0)
            h01 += q * (r0 * r1 + i0 * i1)
            h02 += q * (r0 * r2 + i0 * i2)
            h11 += q * (r1 * r1 + i1 * i1)
            h12 += q * (r1 * r2 + i1 * i2)
            h22 += q * (r2 * r2 + i2 * i2)
            # Re(∂a S · (-2 pi i k / n S)*) = (2 pi k / n) Im(S (∂a S)*)
            bq = beta * q
            m0 = bq * (v_im * r0 - v_re * i0)
            m1 = bq * (v_im * r1 - v_re * i1)
            m2 = bq * (v_im * r2 - v_re * i2)
            h03 += u * m0
            h04 += v * m0
            h13 += u * m1
            h14 += v * m1
            h23 += u * m2
            h24 += v * m2
            bbq = beta * bq * power
            h33 += bbq * u * u
            h34 += bbq * u * v
            h44 += bbq * v * v
        values = (n_sum, d_sum, g0, g1, g2, g3, g4, h00, h01, h02, h03, h04, h11, h12, h13, h14, h22, h23, h24, h33, h34, h44)
        for j in range(22):
            out[i, j] = values[j]
