"""numba twin of :mod:`cloudem.kernels.model_fit`: about 0.2 µs for each pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.kernels._numba.slices import _doubles, _floats, _locate, any_order, jit
from cloudem.kernels._numba.window import gather
from cloudem.kernels.model_fit import COLUMNS

Array = NDArray[Any]

BLOCK = 128
"""Pixels at a time: all derivatives of these stay in the first-level cache."""


def model_products(
    volume: Array,
    rotations: Array,
    shifts: Array,
    magnification: Array,
    phase: Array,
    odd: Array,
    scale: Array,
    per_defocus: Array,
    images: Array,
    precision: Array,
    kx: Array,
    ky: Array,
    padding: float,
    box: int,
    frequency_step: float,
) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.model_fit.model_products`."""
    out = np.zeros((len(rotations), COLUMNS, COLUMNS))
    poses = (_doubles(rotations), _doubles(shifts), _doubles(magnification))
    optics = (_doubles(phase), _doubles(odd), _doubles(scale), _doubles(per_defocus))
    pixels = (np.ascontiguousarray(images).view(np.float32), precision, kx, ky)
    steps = (float(padding), 2 * np.pi / box, float(frequency_step))
    _model_products(_floats(volume), volume.shape[2] - 2, *poses, *optics, *pixels, *steps, out)
    return out


@jit
def _sine(turns: Any) -> Any:
    """Return sin(2 pi turns) as float32: whole turns go in double precision, then as in ``ctf_values``."""
    p = turns - np.rint(turns)
    if p > 0.25:
        p = 0.5 - p
    elif p < -0.25:
        p = -0.5 - p
    t = np.float32(2 * np.pi * p)
    u = t * t
    a, b = np.float32(0.0083332963), np.float32(-0.0001983405)
    return t * (
        np.float32(0.9999999995) + u * (np.float32(-0.1666666580) + u * (a + u * (b + u * np.float32(2.7161e-6))))
    )


@jit
def _optics(
    m: Any, phase: Any, odd: Any, shift: Any, scale: Any, kx: Any, ky: Any, beta: Any, step: Any, found: Any
) -> None:
    """Fill, for each pixel: C, C', cos and sin that undo shift and odd phase, and the gradients of the polynomials."""
    turn = 1 / (2 * np.pi)
    c0, c1, c2, c3, c4, c5, c6, c7, c8, e0, e1, e2 = (
        phase[0], phase[1], phase[2], phase[3], phase[4], phase[5], phase[6], phase[7], phase[8],
        phase[9] / 4, phase[10] / 4, phase[11] / 4,
    )  # fmt: skip
    o0, o1, a, b, c, d, p, q, r, s, t, w = (
        odd[0], odd[1], odd[2], odd[3], odd[4], odd[5], odd[6], odd[7], odd[8], odd[9], odd[10], odd[11],
    )  # fmt: skip
    for j in range(kx.shape[0]):
        x = (m[0, 0] * kx[j] + m[0, 1] * ky[j]) * step
        y = (m[1, 0] * kx[j] + m[1, 1] * ky[j]) * step
        xx, xy, yy = x * x, x * y, y * y
        chi = c0 + xx * (c1 + c4 * xx + c5 * xy + c6 * yy) + xy * (c2 + c7 * yy) + yy * (c3 + c8 * yy)
        found[4, j] = x * (2 * c1 + 4 * c4 * xx + 3 * c5 * xy + 2 * c6 * yy) + y * (c2 + c7 * yy)
        found[5, j] = y * (2 * c3 + 4 * c8 * yy + 3 * c7 * xy + 2 * c6 * xx) + x * (c2 + c5 * xx)
        quintic = xx * (p * xx + q * xy + r * yy) + yy * (s * xy + t * yy)
        cubic = a * xx + b * xy + c * yy
        lone = d * yy * y + w * yy * yy * y  # y³ and y⁵
        angle = x * (o0 + cubic + quintic) + o1 * y + lone
        found[6, j] = (
            o0 + 3 * a * xx + 2 * b * xy + c * yy + xx * (5 * p * xx + 4 * q * xy + 3 * r * yy) + 2 * s * xy * yy
            + t * yy * yy
        )  # fmt: skip
        found[7, j] = (
            o1 + b * xx + 2 * c * xy + 3 * d * yy + q * xx * xx + 2 * r * xx * xy + 3 * s * xx * yy + 4 * t * xy * yy
            + 5 * w * yy * yy
        )  # fmt: skip
        amplitude = np.float32(scale)
        if e0 != 0 or e1 != 0 or e2 != 0:
            amplitude *= np.float32(np.exp(-(e0 * xx + e1 * xy + e2 * yy)))
        found[0, j] = amplitude * _sine(chi * turn)
        found[1, j] = amplitude * _sine(chi * turn + 0.25)
        undone = (beta * (shift[0] * kx[j] + shift[1] * ky[j]) - angle) * turn
        found[2, j] = _sine(undone + 0.25)
        found[3, j] = _sine(undone)
        found[8, j], found[9, j] = x, y


@jit
def _derivatives(
    a: Any, g: Any, sign: Any, found: Any, image: Any, precision: Any, kx: Any, ky: Any,
    beta: Any, step: Any, per_defocus: Any, fall: Any, rows: Any,
) -> None:  # fmt: skip
    """Fill the derivatives and the residual of a block of pixels, real parts and then imaginary ones."""
    a00, a01, a02, a10, a11, a12, a20, a21, a22 = (
        a[0, 0], a[0, 1], a[0, 2], a[1, 0], a[1, 1], a[1, 2], a[2, 0], a[2, 1], a[2, 2],
    )  # fmt: skip
    count = kx.shape[0]
    for j in range(count):
        f, w = sign[j], np.sqrt(precision[j])
        v_re, v_im = g[0, j], f * g[1, j]
        x_re, y_re, z_re = f * g[2, j], f * g[4, j], f * g[6, j]
        x_im, y_im, z_im = g[3, j], g[5, j], g[7, j]
        c, s = w * found[0, j], w * found[1, j]
        h0_re, h0_im = c * (a00 * x_re + a01 * y_re + a02 * z_re), c * (a00 * x_im + a01 * y_im + a02 * z_im)
        h1_re, h1_im = c * (a10 * x_re + a11 * y_re + a12 * z_re), c * (a10 * x_im + a11 * y_im + a12 * z_im)
        h2_re, h2_im = c * (a20 * x_re + a21 * y_re + a22 * z_re), c * (a20 * x_im + a21 * y_im + a22 * z_im)
        m_re, m_im, p_re, p_im = c * v_re, c * v_im, s * v_re, s * v_im
        x, y, k0, k1 = found[8, j], found[9, j], np.float32(kx[j]), np.float32(ky[j])
        u, v = x / step, y / step
        xx, yy = x * x, y * y
        square, cosine, sine = xx + yy, xx - yy, 2 * x * y
        n = j + count
        rows[0, j], rows[0, n] = v * h2_re, v * h2_im
        rows[1, j], rows[1, n] = -u * h2_re, -u * h2_im
        rows[2, j], rows[2, n] = u * h1_re - v * h0_re, u * h1_im - v * h0_im
        rows[3, j], rows[3, n] = beta * k0 * m_im, -beta * k0 * m_re
        rows[4, j], rows[4, n] = beta * k1 * m_im, -beta * k1 * m_re
        d = per_defocus * square
        rows[5, j], rows[5, n] = d * p_re, d * p_im
        rows[6, j], rows[6, n] = m_re, m_im
        rows[7, j], rows[7, n] = np.float32(-0.25) * square * m_re, np.float32(-0.25) * square * m_im
        t_x, t_y, o_x, o_y = step * found[4, j], step * found[5, j], step * found[6, j], step * found[7, j]
        e_x = np.float32(0.25) * step * (2 * fall[0] * x + fall[1] * y)
        e_y = np.float32(0.25) * step * (2 * fall[2] * y + fall[1] * x)
        # by what is added to the frequency along x, and along y
        gx_re, gx_im = h0_re + t_x * p_re - o_x * m_im - e_x * m_re, h0_im + t_x * p_im + o_x * m_re - e_x * m_im
        gy_re, gy_im = h1_re + t_y * p_re - o_y * m_im - e_y * m_re, h1_im + t_y * p_im + o_y * m_re - e_y * m_im
        rows[8, j], rows[8, n] = k0 * gx_re - k1 * gy_re, k0 * gx_im - k1 * gy_im
        rows[9, j], rows[9, n] = k1 * gx_re + k0 * gy_re, k1 * gx_im + k0 * gy_im
        rows[10, j], rows[10, n] = k0 * gx_re + k1 * gy_re, k0 * gx_im + k1 * gy_im
        o0, o1, o2, o3 = x * square, y * square, x * (xx - 3 * yy), y * (3 * xx - yy)
        rows[11, j], rows[11, n] = -o0 * m_im, o0 * m_re
        rows[12, j], rows[12, n] = -o1 * m_im, o1 * m_re
        rows[13, j], rows[13, n] = -o2 * m_im, o2 * m_re
        rows[14, j], rows[14, n] = -o3 * m_im, o3 * m_re
        rows[15, j], rows[15, n] = -cosine * p_re, -cosine * p_im
        rows[16, j], rows[16, n] = -sine * p_re, -sine * p_im
        q0, q1, q2 = square * square, square * cosine, square * sine
        q3, q4 = cosine * cosine - sine * sine, 2 * cosine * sine
        rows[17, j], rows[17, n] = -q0 * p_re, -q0 * p_im
        rows[18, j], rows[18, n] = -q1 * p_re, -q1 * p_im
        rows[19, j], rows[19, n] = -q2 * p_re, -q2 * p_im
        rows[20, j], rows[20, n] = -q3 * p_re, -q3 * p_im
        rows[21, j], rows[21, n] = -q4 * p_re, -q4 * p_im
        i_re, i_im, co, si = image[2 * j], image[2 * j + 1], found[2, j], found[3, j]
        rows[22, j] = w * (i_re * co - i_im * si) - m_re
        rows[22, n] = w * (i_re * si + i_im * co) - m_im


@any_order
def _dot(rows: Any, a: int, b: int, count: int) -> Any:
    total = np.float32(0)
    for j in range(count):
        total += rows[a, j] * rows[b, j]
    return total


@jit
def _model_products(
    volume: Any, m: int, rotations: Any, shifts: Any, magnification: Any, phase: Any, odd: Any, scale: Any,
    per_defocus: Any, images: Any, precision: Any, kx: Any, ky: Any, padding: float, beta: float, step: float, out: Any,
) -> None:  # fmt: skip
    row, plane = 2 * (m + 2), 2 * (m + 2) * (2 * m + 1)
    place, sign, start = np.empty((3, BLOCK), np.float32), np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int64)
    gathered, found = np.empty((8, BLOCK), np.float32), np.empty((10, BLOCK), np.float32)
    rows = np.empty((COLUMNS, 2 * BLOCK), np.float32)
    magnified = np.empty((3, 3))
    for i in range(rotations.shape[0]):
        a, mag = rotations[i], magnification[i]
        for c in range(3):
            magnified[0, c] = padding * (mag[0, 0] * a[0, c] + mag[1, 0] * a[1, c])
            magnified[1, c] = padding * (mag[0, 1] * a[0, c] + mag[1, 1] * a[1, c])
            magnified[2, c] = padding * a[2, c]
        turned = (a * padding).astype(np.float32)
        fall = phase[i, 9:].astype(np.float32)
        steps = (np.float32(beta), np.float32(step), np.float32(per_defocus[i]))
        for first in range(0, kx.shape[0], BLOCK):
            last = min(first + BLOCK, kx.shape[0])
            u, v, count = kx[first:last], ky[first:last], last - first
            _locate(magnified, m, 2, u, v, place, start, sign)
            for j in range(count):
                g = gather(volume, start[j], row, plane, place[0, j], place[1, j], place[2, j])
                for c in range(8):
                    gathered[c, j] = g[c]
            _optics(mag, phase[i], odd[i], shifts[i], scale[i], u, v, beta, step, found)
            image = images[i, 2 * first : 2 * last]
            _derivatives(
                turned, gathered, sign, found, image, precision[i, first:last], u, v, steps[0], steps[1], steps[2],
                fall, rows,
            )  # fmt: skip
            for p in range(COLUMNS):
                for q in range(p, COLUMNS):
                    out[i, p, q] += _dot(rows, p, q, 2 * count)
        for p in range(COLUMNS):
            for q in range(p):
                out[i, p, q] = out[i, q, p]
