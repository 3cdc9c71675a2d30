"""numba twins of :mod:`cloudem.kernels.boxes`."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.boxes import LEAST_BACKGROUND, LEAST_SIDE

Float32 = NDArray[np.float32]


@numba.njit(nogil=True, cache=True)
def _mirrored(at: int, side: int) -> Any:
    return 1 if at < 0 else side - 2 if at == side else at


@numba.njit(nogil=True, cache=True)
def _stands_out(image: Float32, y: int, x: int, limit: Any) -> Any:
    h, w = image.shape
    up, down, left, right = _mirrored(y - 1, h), _mirrored(y + 1, h), _mirrored(x - 1, w), _mirrored(x + 1, w)
    value = image[y, x]
    a, b, c, d = image[up, x], image[down, x], image[y, left], image[y, right]
    above = (value - a > limit) + (value - b > limit) + (value - c > limit) + (value - d > limit)
    below = (a - value > limit) + (b - value > limit) + (c - value > limit) + (d - value > limit)
    return above >= 3 or below >= 3 or not np.isfinite(value)


@numba.njit(nogil=True, cache=True)
def _flag_row(image: Float32, y: int, limit: Any, flags: NDArray[np.uint8]) -> Any:
    """Flag the pixels of a row that stand out, all but its first and last; return whether there are any."""
    h, w = image.shape
    row, up, down = image[y], image[_mirrored(y - 1, h)], image[_mirrored(y + 1, h)]
    most = np.uint8(0)
    for x in range(1, w - 1):
        value = row[x]
        a, b, c, d = value - up[x], value - down[x], value - row[x - 1], value - row[x + 1]
        # The second least and the second greatest of the four, without branches.
        one, other = max(min(a, b), min(c, d)), min(max(a, b), max(c, d))
        flags[x] = np.uint8(not (min(one, other) <= limit and max(one, other) >= -limit))  # also where one is NaN
        most = np.uint8(most | flags[x])
    return most


@numba.njit(nogil=True, cache=True)
def replace_hot_pixels(image: Float32, limit: float) -> Any:
    """Twin of :func:`cloudem.kernels.boxes.replace_hot_pixels`."""
    h, w = image.shape
    level = np.float32(limit)
    flags = np.zeros(w, np.uint8)
    ys, xs, values = [0 for _ in range(0)], [0 for _ in range(0)], [np.float32(0) for _ in range(0)]
    near = np.empty(8, np.float32)
    for y in range(h):
        _flag_row(image, y, level, flags)
        flags[0] = flags[w - 1] = 1
        for x in range(w):
            if not flags[x] or not _stands_out(image, y, x, level):
                continue
            count = 0
            for j in range(-1, 2):
                for i in range(-1, 2):
                    value = image[_mirrored(y + j, h), _mirrored(x + i, w)]
                    if (j != 0 or i != 0) and np.isfinite(value):
                        near[count] = value
                        count += 1
            if count:
                ys.append(y)
                xs.append(x)
                values.append(np.float32(np.median(near[:count])))
    for k in range(len(ys)):
        image[ys[k], xs[k]] = values[k]
    return len(ys)


@numba.njit(nogil=True, cache=True)
def _moments(weights: Float32, across: Float32, top: int, bottom: int, left: int, right: int) -> Any:
    """Return the sums of 1, x, y, x², xy, y² over the background in some rows and columns."""
    column, sloped, squared = np.zeros(len(across)), np.zeros(len(across)), np.zeros(len(across))
    for y in range(top, bottom):
        v = float(across[y])
        for x in range(left, right):
            column[x] += weights[y, x]
            sloped[x] += weights[y, x] * v
            squared[x] += weights[y, x] * v * v
    sums = np.zeros(6)
    for x in range(left, right):
        u = float(across[x])
        sums[0] += column[x]
        sums[1] += column[x] * u
        sums[2] += sloped[x]
        sums[3] += column[x] * u * u
        sums[4] += sloped[x] * u
        sums[5] += squared[x]
    return sums


@numba.njit(nogil=True, cache=True)
def _solved(m: NDArray[np.float64], r: NDArray[np.float64]) -> Any:
    """Solve for the plane by Cramer's rule: libraries do it differently on different processors."""
    s, x, y, xx, xy, yy = m
    minors = xx * yy - xy * xy, x * yy - xy * y, x * xy - xx * y
    whole = s * minors[0] - x * minors[1] + y * minors[2]
    a = r[0] * minors[0] - r[1] * minors[1] + r[2] * minors[2]
    b = -r[0] * minors[1] + r[1] * (s * yy - y * y) - r[2] * (s * xy - x * y)
    c = r[0] * minors[2] - r[1] * (s * xy - x * y) + r[2] * (s * xx - x * x)
    return a / whole, b / whole, c / whole


@numba.njit(nogil=True, cache=True)
def _add_row(source: Float32, weights: Float32, v: Any, column: Float32, sloped: Float32) -> None:
    for x in range(len(source)):
        value = weights[x] * source[x]
        column[x] += value
        sloped[x] += v * value


@numba.njit(nogil=True, cache=True)
def _take_off(source: Float32, level: Any, slope: Float32, out: Float32) -> None:
    for x in range(len(out)):
        out[x] = source[x] - (level + slope[x])


@numba.njit(nogil=True, cache=True)
def cut_boxes(image: Float32, corners: NDArray[np.int64], outside: NDArray[np.float64], out: Float32) -> None:
    """Twin of :func:`cloudem.kernels.boxes.cut_boxes`."""
    # Sums are kept by column: the compiler can do many at a time, and their order is the same on every machine.
    n, (h, w) = len(outside), image.shape
    weights, across = outside.astype(np.float32), np.arange(n).astype(np.float32) - np.float32(n // 2)
    whole = _moments(weights, across, 0, n, 0, n)
    column, sloped = np.empty(n), np.empty(n)
    for i in range(len(corners)):
        box, x0, y0 = out[i], corners[i, 0], corners[i, 1]
        left, right, top, bottom = max(0, -x0), min(n, w - x0), max(0, -y0), min(n, h - y0)
        inside = left == 0 and top == 0 and right == n and bottom == n
        if not inside:
            box[:] = 0
        m = whole if inside else _moments(weights, across, top, bottom, left, right)
        if min(right - left, bottom - top) < LEAST_SIDE * n or m[0] < LEAST_BACKGROUND * whole[0]:
            box[:] = np.nan
            continue
        column[:], sloped[:] = 0, 0
        for y in range(top, bottom):
            _add_row(
                image[y0 + y, x0 + left : x0 + right], weights[y, left:right], across[y], column[left:right],
                sloped[left:right],
            )  # fmt: skip
        right_hand = np.zeros(3)
        for x in range(left, right):
            right_hand[0] += column[x]
            right_hand[1] += column[x] * across[x]
            right_hand[2] += sloped[x]
        a, b, c = _solved(m, right_hand)
        slope = np.float32(b) * across[left:right]
        for y in range(top, bottom):
            _take_off(
                image[y0 + y, x0 + left : x0 + right], np.float32(a + c * (y - n // 2)), slope, box[y, left:right]
            )
