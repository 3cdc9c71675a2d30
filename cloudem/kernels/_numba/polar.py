"""numba twins of :mod:`cloudem.kernels.polar`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"nsz"})
Array = NDArray[Any]


def shift_samples(
    real: Array, imaginary: Array, kx: Array, ky: Array, shifts: Array, box: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Twin of :func:`cloudem.kernels.polar.shift_samples`."""
    out = np.empty((2, *shifts.shape[:2], len(kx)), np.float32)
    scale = 2 * np.pi / box
    fx, fy = (scale * kx).astype(np.float32), (scale * ky).astype(np.float32)
    _shift_samples(real, imaginary, fx, fy, shifts.astype(np.float32), out)
    return out[0], out[1]


def best_rotations(
    cos_even: Array, sin_even: Array, cos_odd: Array, sin_odd: Array, shifts: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Twin of :func:`cloudem.kernels.polar.best_rotations`."""
    images, directions = cos_even.shape[2] // shifts, cos_even.shape[3]
    score = np.full((images, 2, directions), -np.inf, np.float32)
    code = np.zeros((images, 2, directions), np.int32)
    _best_rotations(cos_even, sin_even, cos_odd, sin_odd, shifts, score, code)
    return score, code


def posterior_rotations(
    cos_even: Array, sin_even: Array, cos_odd: Array, sin_odd: Array, offset: Array, shifts: int
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Twin of :func:`cloudem.kernels.polar.posterior_rotations`."""
    images, directions = cos_even.shape[2] // shifts, cos_even.shape[3]
    evidence, mass = np.empty(images), np.zeros((images, 2, directions))
    _posterior_rotations(cos_even, sin_even, cos_odd, sin_odd, offset.astype(np.float32), shifts, evidence, mass)
    return evidence, mass.astype(np.float32)


@jit
def _shift_samples(real: Any, imaginary: Any, fx: Any, fy: Any, shifts: Any, out: Any) -> None:
    for i in range(real.shape[0]):
        for t in range(shifts.shape[1]):
            x, y = shifts[i, t, 0], shifts[i, t, 1]
            for j in range(real.shape[1]):
                angle = fx[j] * x + fy[j] * y
                c, s = np.cos(angle), np.sin(angle)
                out[0, i, t, j] = real[i, j] * c - imaginary[i, j] * s
                out[1, i, t, j] = real[i, j] * s + imaginary[i, j] * c


@jit
def _best_rotations(
    cos_even: Any, sin_even: Any, cos_odd: Any, sin_odd: Any, shifts: int, score: Any, code: Any
) -> None:
    count, directions = cos_even.shape[0], cos_even.shape[3]
    for i in range(score.shape[0]):
        for t in range(shifts):
            row = i * shifts + t
            for j in range(count):
                base = np.int32((t * count + j) * 4)
                for d in range(directions):
                    c1, c2 = cos_even[j, 0, row, d], cos_even[j, 1, row, d]
                    s1, s2 = sin_even[j, 0, row, d], sin_even[j, 1, row, d]
                    c3, c4 = cos_odd[j, 0, row, d], cos_odd[j, 1, row, d]
                    s3, s4 = sin_odd[j, 0, row, d], sin_odd[j, 1, row, d]
                    ce, co, se, so = c1 + c2, c3 + c4, s1 - s2, s3 - s4
                    a, b, p, m = ce + co, se + so, ce - co, se - so
                    # cos and sin parts: ψ is a + b, -ψ is a - b, π + ψ is p + m, π - ψ is p - m
                    first, second = a + abs(b), p + abs(m)
                    best, where = first, np.int32(0) if b >= 0 else np.int32(1)
                    other = np.int32(2) if m >= 0 else np.int32(3)
                    where = where if first >= second else other
                    best = max(first, second)
                    better = best > score[i, 0, d]
                    score[i, 0, d] = best if better else score[i, 0, d]
                    code[i, 0, d] = base + where if better else code[i, 0, d]
                    ce, co, se, so = c1 - c2, c4 - c3, s1 + s2, -s3 - s4
                    a, b, p, m = ce + co, se + so, ce - co, se - so
                    first, second = a + abs(b), p + abs(m)
                    where = np.int32(0) if b >= 0 else np.int32(1)
                    other = np.int32(2) if m >= 0 else np.int32(3)
                    where = where if first >= second else other
                    best = max(first, second)
                    better = best > score[i, 1, d]
                    score[i, 1, d] = best if better else score[i, 1, d]
                    code[i, 1, d] = base + where if better else code[i, 1, d]


NEGLIGIBLE = 18.0
"""Poses whose score is this much lower than the best are left out: all that there are, 10⁵ or so, change no sum by more
than a thousandth."""


@jit
def _posterior_rotations(
    cos_even: Any, sin_even: Any, cos_odd: Any, sin_odd: Any, offset: Any, shifts: int, evidence: Any, mass: Any
) -> None:
    count, directions = cos_even.shape[0], cos_even.shape[3]
    best = np.empty((shifts, count), np.float32)
    for i in range(len(evidence)):
        first_row = i * shifts
        for t in range(shifts):
            for j in range(count):
                best[t, j] = _highest(
                    cos_even[j, :, first_row + t], sin_even[j, :, first_row + t], cos_odd[j, :, first_row + t],
                    sin_odd[j, :, first_row + t], offset[i]
                )  # fmt: skip
        highest = best.max()
        total: Any = 0.0
        for t in range(shifts):
            row = first_row + t
            for j in range(count):
                if best[t, j] < highest - NEGLIGIBLE:  # most angles and shifts of most images
                    for part in range(2):
                        cos_even[j, part, row, :] = 0.0
                        sin_even[j, part, row, :] = 0.0
                        cos_odd[j, part, row, :] = 0.0
                        sin_odd[j, part, row, :] = 0.0
                    continue
                share = np.float32(0.5) if j in (0, count - 1) else np.float32(1.0)
                for d in range(directions):
                    c1, c2 = cos_even[j, 0, row, d], cos_even[j, 1, row, d]
                    s1, s2 = sin_even[j, 0, row, d], sin_even[j, 1, row, d]
                    c3, c4 = cos_odd[j, 0, row, d], cos_odd[j, 1, row, d]
                    s3, s4 = sin_odd[j, 0, row, d], sin_odd[j, 1, row, d]
                    a0 = a1 = b0 = b1 = e0 = e1 = f0 = f1 = np.float32(0.0)
                    for side in range(2):
                        low = offset[i, side, d] - highest
                        if side == 0:
                            ce, co, se, so = c1 + c2, c3 + c4, s1 - s2, s3 - s4
                        else:
                            ce, co, se, so = c1 - c2, c4 - c3, s1 + s2, -s3 - s4
                        a, b, p, m = ce + co + low, se + so, ce - co + low, se - so
                        if max(a + abs(b), p + abs(m)) < -NEGLIGIBLE:
                            continue
                        first = share * np.exp(a + b) if a + b > -NEGLIGIBLE else np.float32(0.0)
                        second = share * np.exp(a - b) if a - b > -NEGLIGIBLE else np.float32(0.0)
                        third = share * np.exp(p + m) if p + m > -NEGLIGIBLE else np.float32(0.0)
                        fourth = share * np.exp(p - m) if p - m > -NEGLIGIBLE else np.float32(0.0)
                        here = first + second + third + fourth
                        mass[i, side, d] += here
                        total += here
                        even, odd = first - second + third - fourth, first - second - third + fourth
                        cosine = first + second - third - fourth
                        if side == 0:
                            a0, a1, b0, b1 = a0 + here, a1 + here, b0 + even, b1 - even
                            e0, e1, f0, f1 = e0 + cosine, e1 + cosine, f0 + odd, f1 - odd
                        else:
                            a0, a1, b0, b1 = a0 + here, a1 - here, b0 + even, b1 + even
                            e0, e1, f0, f1 = e0 - cosine, e1 + cosine, f0 - odd, f1 - odd
                    cos_even[j, 0, row, d], cos_even[j, 1, row, d] = a0, a1
                    sin_even[j, 0, row, d], sin_even[j, 1, row, d] = b0, b1
                    cos_odd[j, 0, row, d], cos_odd[j, 1, row, d] = e0, e1
                    sin_odd[j, 0, row, d], sin_odd[j, 1, row, d] = f0, f1
        inverse = np.float32(1.0 / total)
        for t in range(shifts):
            row = first_row + t
            for j in range(count):
                if best[t, j] < highest - NEGLIGIBLE:
                    continue
                for part in range(2):
                    for d in range(directions):
                        cos_even[j, part, row, d] *= inverse
                        sin_even[j, part, row, d] *= inverse
                        cos_odd[j, part, row, d] *= inverse
                        sin_odd[j, part, row, d] *= inverse
        for side in range(2):
            for d in range(directions):
                mass[i, side, d] /= total
        evidence[i] = highest + np.log(total)


@jit
def _highest(cos_even: Any, sin_even: Any, cos_odd: Any, sin_odd: Any, offset: Any) -> Any:
    """Return the highest score of one angle and shift over all directions, sides and quadrants."""
    found = np.float32(-np.inf)
    for d in range(offset.shape[1]):
        c1, c2, s1, s2 = cos_even[0, d], cos_even[1, d], sin_even[0, d], sin_even[1, d]
        c3, c4, s3, s4 = cos_odd[0, d], cos_odd[1, d], sin_odd[0, d], sin_odd[1, d]
        ce, co, se, so = c1 + c2, c3 + c4, s1 - s2, s3 - s4
        one = max(ce + co + abs(se + so), ce - co + abs(se - so)) + offset[0, d]
        ce, co, se, so = c1 - c2, c4 - c3, s1 + s2, -s3 - s4
        other = max(ce + co + abs(se + so), ce - co + abs(se - so)) + offset[1, d]
        found = max(found, max(one, other))
    return found
