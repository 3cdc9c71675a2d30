"""numba twins of :mod:`cloudem.kernels.motion`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.motion import AXIS

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
fast = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz"})
Array = NDArray[Any]

LANES = 4
"""Partial sums of frames."""

CHUNK = 32
"""Pixels of a row that share their whole offset, as a rule: their loop is free of branches."""


def corrected(raw: Array, factor: Array, limit: float, instead: float, out: Array) -> int:
    """Twin of :func:`cloudem.kernels.motion.corrected`."""
    return int(_corrected(raw, factor, np.float32(limit), np.float32(instead), out))


def frame_moments(raw: Array, factor: Array, total: Array) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.motion.frame_moments`."""
    moments = np.zeros(2)
    _frame_moments(raw, factor, total, moments)
    return moments


def roughness(image: Array) -> float:
    """Twin of :func:`cloudem.kernels.motion.roughness`."""
    return float(_roughness(image))


def shrunk(image: Array, taps: Array, factor: int) -> Array:
    """Twin of :func:`cloudem.kernels.motion.shrunk`."""
    rows, columns = image.shape
    small = np.empty((rows // factor, columns // factor), np.float32)
    _shrunk(image, taps.astype(np.float32), factor, small)
    return small


def correlation_steps(
    real: Array, imaginary: Array, waves: Array, steps: Array, weight: Array, pattern: Array, displacement: Array
) -> tuple[Array, Array, float]:
    """Twin of :func:`cloudem.kernels.motion.correlation_steps`."""
    frames = real.shape[1]
    gradient, curvature = np.zeros((2, frames)), np.zeros((3, frames))
    ramps = _ramps(waves, steps, displacement)
    agreement = _steps(real, imaginary, waves, steps, weight, pattern, *ramps, gradient, curvature)
    return gradient.T, curvature.T, float(agreement)


def coherence(real: Array, imaginary: Array, waves: Array, steps: Array, displacement: Array) -> Array:
    """Twin of :func:`cloudem.kernels.motion.coherence`."""
    sums = np.zeros((real.shape[0], 3))
    _coherence(real, imaginary, waves, *_ramps(waves, steps, displacement), sums)
    return sums


def add_warped(frames: Array, fields: Array, outside: Array, amounts: Array, totals: Array) -> None:
    """Twin of :func:`cloudem.kernels.motion.add_warped`."""
    _add_warped(frames, np.ascontiguousarray(fields, np.float64), outside, amounts, totals)


def add_weighted(spectrum: Array, weights: Array, total: Array) -> None:
    """Twin of :func:`cloudem.kernels.motion.add_weighted`."""
    scale = spectrum.shape[0] / (2 * (spectrum.shape[1] - 1))
    _add_weighted(spectrum, weights, np.float32(scale), total)


def ring_products(first: Array, second: Array, count: int) -> Array:
    """Twin of :func:`cloudem.kernels.motion.ring_products`."""
    sums = np.zeros((4, count))
    _ring_products(first, second, AXIS, first.shape[0] / (2 * (first.shape[1] - 1)), sums)
    return sums


@fast
def _corrected(raw: Any, factor: Any, limit: Any, instead: Any, out: Any) -> int:
    rows, columns = raw.shape
    each = factor.size > 1
    count = 0
    for y in range(rows):
        if each:
            for x in range(columns):
                value = np.float32(raw[y, x]) * factor[y, x]
                count += value > limit
                out[y, x] = instead if value > limit else value
        else:
            for x in range(columns):
                value = np.float32(raw[y, x]) * factor[0, 0]
                count += value > limit
                out[y, x] = instead if value > limit else value
    return count


@fast
def _frame_moments(raw: Any, factor: Any, total: Any, moments: Any) -> None:
    for y in range(len(raw)):
        row = factor[y] if factor.size > 1 else factor[0]
        _add_row(raw[y], row, total[y])
        first, second = _row_moments(raw[y], row)
        moments[0] += first
        moments[1] += second


@fast
def _add_row(raw: Any, factor: Any, total: Any) -> None:
    if len(factor) == 1:
        for x in range(len(raw)):
            total[x] += np.float32(raw[x]) * factor[0]
    else:
        for x in range(len(raw)):
            total[x] += np.float32(raw[x]) * factor[x]


@fast
def _row_moments(raw: Any, factor: Any) -> Any:
    """Return the sums of a row times its factor, and of their squares: four of each, so that none waits for another."""
    each, columns = len(factor) > 1, len(raw)
    a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    e, f, g, h = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for x in range(0, columns - 3, 4):
        p = np.float32(raw[x]) * factor[x if each else 0]
        q = np.float32(raw[x + 1]) * factor[x + 1 if each else 0]
        r = np.float32(raw[x + 2]) * factor[x + 2 if each else 0]
        s = np.float32(raw[x + 3]) * factor[x + 3 if each else 0]
        a, b, c, d = a + p, b + q, c + r, d + s
        e, f, g, h = e + p * p, f + q * q, g + r * r, h + s * s
    for x in range(columns - columns % 4, columns):
        p = np.float32(raw[x]) * factor[x if each else 0]
        a, e = a + p, e + p * p
    return (a + b) + (c + d), (e + f) + (g + h)


@fast
def _roughness(image: Any) -> Any:
    rows, columns = image.shape
    total: Any = 0.0
    for y in range(rows - 1):
        line = np.float32(0)
        for x in range(columns - 1):
            mixed = image[y + 1, x + 1] - image[y + 1, x] - image[y, x + 1] + image[y, x]
            line += mixed * mixed
        total += line
    return total / ((rows - 1) * (columns - 1))


@fast
def _shrunk(image: Any, taps: Any, factor: int, small: Any) -> None:
    rows, columns = image.shape
    count, before = taps.size, (taps.size - factor) // 2
    padded = np.empty(columns + count, np.float32)
    inner = padded[before : before + columns]
    phases = np.empty((factor, padded.size // factor + 1), np.float32)
    for j in range(small.shape[0]):
        inner[:] = np.float32(0)
        for t in range(0, count - 1, 2):
            _add_lines(
                image[min(max(j * factor - before + t, 0), rows - 1)],
                image[min(max(j * factor - before + t + 1, 0), rows - 1)],
                taps[t],
                taps[t + 1],
                inner,
            )
        if count % 2:
            last = image[min(max(j * factor - before + count - 1, 0), rows - 1)]
            _add_lines(last, last, taps[count - 1], np.float32(0), inner)
        padded[:before] = padded[before]
        padded[before + columns :] = padded[before + columns - 1]
        # every factor-th pixel side by side, so that the sum over taps runs along a line
        for phase in range(factor):
            line = phases[phase]
            for i in range((padded.size - phase + factor - 1) // factor):
                line[i] = padded[i * factor + phase]
        target = small[j]
        target[:] = np.float32(0)
        for t in range(count):
            source = phases[t % factor, t // factor : t // factor + target.size]
            tap = taps[t]
            for i in range(target.size):
                target[i] += tap * source[i]


@numba.njit(inline="always")
def _add_lines(first: Any, second: Any, tap: Any, other: Any, out: Any) -> None:
    for x in range(out.size):
        out[x] += tap * first[x] + other * second[x]


def _ramps(waves: Array, steps: Array, displacement: Array) -> tuple[Array, ...]:
    """Return real and imaginary parts of the shifts along y and x, and where the first of each table is."""
    tables: list[Array] = []
    lowest = waves.min(axis=0)
    for axis in range(2):
        numbers = np.arange(lowest[axis], waves[:, axis].max() + 1)
        phase = numbers[:, None] * steps[axis] * displacement[:, 1 - axis]
        tables += [np.cos(phase).astype(np.float32), np.sin(phase).astype(np.float32)]
    return (*tables, lowest.astype(np.int64))


@numba.njit(inline="always")
def _sum(values: Any) -> Any:
    """Return a sum by four partial sums, in an order that no compiler may change."""
    a0, a1, a2, a3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for f in range(0, values.size, 4):
        a0, a1, a2, a3 = a0 + values[f], a1 + values[f + 1], a2 + values[f + 2], a3 + values[f + 3]
    return (a0 + a1) + (a2 + a3)


@numba.njit(inline="always")
def _sums(first: Any, second: Any, third: Any, fourth: Any) -> Any:
    """Return the sums of four lists, each as `_sum` does; at the same time, since additions wait for each other."""
    a0, a1, a2, a3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    b0, b1, b2, b3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    c0, c1, c2, c3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    d0, d1, d2, d3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for f in range(0, first.size, 4):
        a0, a1, a2, a3 = a0 + first[f], a1 + first[f + 1], a2 + first[f + 2], a3 + first[f + 3]
        b0, b1, b2, b3 = b0 + second[f], b1 + second[f + 1], b2 + second[f + 2], b3 + second[f + 3]
        c0, c1, c2, c3 = c0 + third[f], c1 + third[f + 1], c2 + third[f + 2], c3 + third[f + 3]
        d0, d1, d2, d3 = d0 + fourth[f], d1 + fourth[f + 1], d2 + fourth[f + 2], d3 + fourth[f + 3]
    return (a0 + a1) + (a2 + a3), (b0 + b1) + (b2 + b3), (c0 + c1) + (c2 + c3), (d0 + d1) + (d2 + d3)


@fast
def _steps(
    real: Any, imaginary: Any, waves: Any, steps: Any, weight: Any, pattern: Any,
    yr: Any, yi: Any, xr: Any, xi: Any, lowest: Any, gradient: Any, curvature: Any,
) -> Any:  # fmt: skip
    n, frames = real.shape
    padded = frames + -frames % LANES  # what lies behind the frames stays zero
    er, ei = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    mr, mi = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    row = np.zeros((3, frames), np.float32)  # sums of waves with one number along y: imaginary times kx, …
    slopes = np.zeros((2, frames), np.float32)
    agreement: Any = 0.0
    for i in range(n):
        a, b = waves[i, 0] - lowest[0], waves[i, 1] - lowest[1]
        for f in range(frames):
            cr = yr[a, f] * xr[b, f] - yi[a, f] * xi[b, f]
            ci = yr[a, f] * xi[b, f] + yi[a, f] * xr[b, f]
            er[f], ei[f] = cr, ci
            mr[f] = real[i, f] * cr - imaginary[i, f] * ci
            mi[f] = real[i, f] * ci + imaginary[i, f] * cr
        tr, ti, sr, si = _sums(mr, mi, er, ei)
        w, p = weight[i], pattern[i]
        kx = np.float32(waves[i, 1] * steps[1])
        for f in range(frames):
            ar, ai = tr - mr[f], ti - mi[f]
            br, bi = sr - er[f], si - ei[f]
            re = w * (mr[f] * ar + mi[f] * ai - p * (er[f] * br + ei[f] * bi))
            im = w * (mi[f] * ar - mr[f] * ai - p * (ei[f] * br - er[f] * bi))
            slopes[0, f] += im * kx
            slopes[1, f] += im
            row[0, f] += re * kx * kx
            row[1, f] += re * kx
            row[2, f] += re
        if i + 1 == n or waves[i + 1, 0] != waves[i, 0]:
            ky = waves[i, 0] * steps[0]
            for f in range(frames):
                gradient[0, f] -= slopes[0, f]
                gradient[1, f] -= slopes[1, f] * ky
                curvature[0, f] += row[0, f]
                curvature[1, f] += row[1, f] * ky
                curvature[2, f] += row[2, f] * ky * ky
                agreement += row[2, f]
            row[:] = np.float32(0)
            slopes[:] = np.float32(0)
    return agreement / 2


@fast
def _coherence(
    real: Any, imaginary: Any, waves: Any, yr: Any, yi: Any, xr: Any, xi: Any, lowest: Any, sums: Any
) -> None:
    n, frames = real.shape
    padded = frames + -frames % LANES
    er, ei = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    mr, mi = np.zeros(padded, np.float32), np.zeros(padded, np.float32)
    powers = np.zeros(padded, np.float32)
    for i in range(n):
        a, b = waves[i, 0] - lowest[0], waves[i, 1] - lowest[1]
        for f in range(frames):
            cr = yr[a, f] * xr[b, f] - yi[a, f] * xi[b, f]
            ci = yr[a, f] * xi[b, f] + yi[a, f] * xr[b, f]
            er[f], ei[f] = cr, ci
            mr[f] = real[i, f] * cr - imaginary[i, f] * ci
            mi[f] = real[i, f] * ci + imaginary[i, f] * cr
            powers[f] = real[i, f] * real[i, f] + imaginary[i, f] * imaginary[i, f]
        tr, ti, sr, si = _sums(mr, mi, er, ei)
        power = _sum(powers)
        sums[i, 0] = tr * tr + ti * ti
        sums[i, 1] = power
        sums[i, 2] = sr * sr + si * si


@numba.njit(inline="always")
def _spline(t: Any) -> Any:
    one, sixth = np.float32(1), np.float32(1 / 6)
    s = one - t
    t2, s2 = t * t, s * s
    w0, w3 = s2 * s * sixth, t2 * t * sixth
    w1 = np.float32(2 / 3) - t2 * (one - np.float32(0.5) * t)
    return w0, w1, np.float32(1) - w0 - w1 - w3, w3


@fast
def _add_warped(frames: Any, fields: Any, outside: Any, amounts: Any, totals: Any) -> None:
    count, rows, columns = frames.shape
    lines = np.zeros((count + count % 2, columns), np.float32)
    shares = np.zeros((totals.shape[0], lines.shape[0]), np.float32)
    shares[:, :count] = amounts.T
    for y in range(rows):
        for b in range(count):
            _warp_row(frames[b], fields[b], outside[b], y, lines[b])
        for j in range(totals.shape[0]):
            for b in range(0, lines.shape[0], 2):
                _add_lines(lines[b], lines[b + 1], shares[j, b], shares[j, b + 1], totals[j, y])


@fast
def _warp_row(frame: Any, field: Any, outside: Any, y: int, out: Any) -> None:
    rows, columns = frame.shape
    v = y / rows - 0.5
    # along the row each displacement is a + b x + c x²
    coefficients = np.empty((2, 3))
    for axis in range(2):
        c = field[axis]
        a, b, d = c[0] + v * (c[3] + v * c[4]), c[1] + v * c[5], c[2]
        coefficients[axis, 0] = a - 0.5 * b + 0.25 * d
        coefficients[axis, 1] = (b - d) / columns
        coefficients[axis, 2] = d / (columns * columns)
    ax, bx, cx = coefficients[0]
    ay, by, cy = coefficients[1]
    for start in range(0, columns, CHUNK):
        stop = min(start + CHUNK, columns)
        ox = int(np.floor(ax + (bx + cx * start) * start))
        oy = int(np.floor(ay + (by + cy * start) * start))
        same = stop - start == CHUNK
        for x in (start + CHUNK // 2, stop - 1):
            same &= ox == int(np.floor(ax + (bx + cx * x) * x)) and oy == int(np.floor(ay + (by + cy * x) * x))
        same &= start + ox >= 1 and stop - 1 + ox < columns - 2 and y + oy >= 1 and y + oy < rows - 2
        if same:
            # in the chunk the fraction is tx + bx' i + cx i² from its start
            tx, ty = (
                np.float32(ax + (bx + cx * start) * start - ox),
                np.float32(ay + (by + cy * start) * start - oy),
            )
            sx, sy = np.float32(bx + 2 * cx * start), np.float32(by + 2 * cy * start)
            left, right = start + ox - 1, start + ox + CHUNK + 2
            _chunk(
                frame[y + oy - 1, left:right],
                frame[y + oy, left:right],
                frame[y + oy + 1, left:right],
                frame[y + oy + 2, left:right],
                tx, sx, np.float32(cx), ty, sy, np.float32(cy),
                out[start:stop],
            )  # fmt: skip
        else:
            for x in range(start, stop):
                px, py = x + ax + (bx + cx * x) * x, y + ay + (by + cy * x) * x
                ix, iy = int(np.floor(px)), int(np.floor(py))
                if ix < 1 or ix >= columns - 2 or iy < 1 or iy >= rows - 2:
                    out[x] = outside
                    continue
                x0, x1, x2, x3 = _spline(np.float32(px - ix))
                weights = _spline(np.float32(py - iy))
                total = np.float32(0)
                for a in range(4):
                    line = frame[iy + a - 1]
                    total += weights[a] * (x0 * line[ix - 1] + x1 * line[ix] + x2 * line[ix + 1] + x3 * line[ix + 2])
                out[x] = total


@numba.njit(inline="always")
def _chunk(r0: Any, r1: Any, r2: Any, r3: Any, tx: Any, sx: Any, cx: Any, ty: Any, sy: Any, cy: Any, out: Any) -> None:
    for i in range(CHUNK):
        t = np.float32(i)
        x0, x1, x2, x3 = _spline(tx + t * (sx + t * cx))
        y0, y1, y2, y3 = _spline(ty + t * (sy + t * cy))
        out[i] = (
            x0 * (y0 * r0[i] + y1 * r1[i] + y2 * r2[i] + y3 * r3[i])
            + x1 * (y0 * r0[i + 1] + y1 * r1[i + 1] + y2 * r2[i + 1] + y3 * r3[i + 1])
            + x2 * (y0 * r0[i + 2] + y1 * r1[i + 2] + y2 * r2[i + 2] + y3 * r3[i + 2])
            + x3 * (y0 * r0[i + 3] + y1 * r1[i + 3] + y2 * r2[i + 3] + y3 * r3[i + 3])
        )


@fast
def _add_weighted(spectrum: Any, weights: Any, scale: Any, total: Any) -> None:
    rows, half = spectrum.shape
    last = weights.size - 1
    for y in range(rows):
        ky = np.float32(2 * min(y, rows - y))
        for x in range(half):
            kx = np.float32(2 * x) * scale
            place = min(int(np.sqrt(ky * ky + kx * kx) + np.float32(0.5)), last)
            total[y, x] += weights[place] * spectrum[y, x]


@jit
def _ring_products(first: Any, second: Any, axis: int, scale: float, sums: Any) -> None:
    rows, half = first.shape
    count = sums.shape[1]
    for y in range(rows):
        ky = min(y, rows - y)
        if ky < axis:
            continue
        for x in range(axis, half - 1):
            kx = x * scale
            ring = int(np.sqrt(ky * ky + kx * kx) * (2 * count / rows))
            if ring >= count:
                break
            a, b = first[y, x], second[y, x]
            sums[0, ring] += a.real * b.real + a.imag * b.imag
            sums[1, ring] += a.real * a.real + a.imag * a.imag
            sums[2, ring] += b.real * b.real + b.imag * b.imag
            sums[3, ring] += 1
