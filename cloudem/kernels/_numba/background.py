"""numba twins of :mod:`cloudem.kernels.background`."""

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.background import CONSTANT, NOT_FINITE, TOO_LARGE, USABLE


@numba.njit(nogil=True, cache=True, error_model="numpy")
def measure_background(
    images: NDArray[np.float32],
    outside: NDArray[np.float64],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    found: NDArray[np.uint8],
) -> None:
    """Twin of :func:`cloudem.kernels.background.measure_background`."""
    # Sums are kept by column: the compiler can do many at a time, and their order is the same on every machine.
    n = images.shape[1]
    column, whole = np.empty(n), np.empty(n)
    pixels, background = n * n, outside.sum()
    for i in range(images.shape[0]):
        image = images[i]
        column[:] = 0
        whole[:] = 0
        for y in range(n):
            for x in range(n):
                column[x] += outside[y, x] * image[y, x]
                whole[x] += image[y, x]
        centre, middle = column.sum() / background, whole.sum() / pixels
        column[:] = 0
        whole[:] = 0
        for y in range(n):
            for x in range(n):
                column[x] += outside[y, x] * (image[y, x] - centre) ** 2
                whole[x] += (image[y, x] - middle) ** 2
        spread, spread_of_whole = np.sqrt(column.sum() / background), np.sqrt(whole.sum() / pixels)
        mean[i] = centre
        std[i] = spread if spread > 1e-6 * spread_of_whole else spread_of_whole
        if not np.isfinite(middle):  # finite values in single precision have a finite sum in double
            found[i] = NOT_FINITE
        else:
            found[i] = CONSTANT if _is_constant(image) else USABLE


@numba.njit(nogil=True, cache=True)
def fingerprint(images: NDArray[np.float32], out: NDArray[np.uint64]) -> None:
    """Write a number for the pixels of each image: the same for the same pixels, and by all odds for those alone.

    Parameters
    ----------
    images
        Shape ``(b, n, n)``, C-contiguous.
    out
        Written, ``(b,)``.
    """
    # Columns are hashed side by side in 32 bits, which the compiler does many at a time, and then as one in 64.
    n = images.shape[1]
    column = np.empty(n, np.uint32)
    bits = images.view(np.uint32)
    for i in range(images.shape[0]):
        column[:] = np.uint32(2166136261)
        for y in range(n):
            for x in range(n):
                mixed = np.uint32((column[x] ^ bits[i, y, x]) * np.uint32(2654435761))
                column[x] = mixed ^ (mixed >> np.uint32(15))
        whole = np.uint64(14695981039346656037)
        for x in range(n):
            whole = (whole ^ np.uint64(column[x])) * np.uint64(0x9E3779B97F4A7C15)
            whole ^= whole >> np.uint64(29)
        out[i] = whole


@numba.njit(nogil=True, cache=True)
def _is_constant(image: NDArray[np.float32]) -> Any:
    for row in image:
        for value in row:
            if value != image[0, 0]:
                return False
    return True


@numba.njit(nogil=True, cache=True, error_model="numpy")
def scale_images(
    images: NDArray[np.float32],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    sign: NDArray[np.float32],
    limit: np.float32,
    found: NDArray[np.uint8],
) -> None:
    """Twin of :func:`cloudem.kernels.background.scale_images`."""
    for i in range(images.shape[0]):
        if found[i] != USABLE:
            continue
        image, centre, spread, factor = images[i].reshape(-1), mean[i], std[i], sign[i]
        most = np.uint32(0)  # absolute values are ordered as their bits are, with NaN above infinity
        for j in range(image.size):
            value = np.float32((image[j] - centre) / spread * factor)
            image[j] = value
            most = np.uint32(max(most, value.view(np.uint32) & np.uint32(0x7FFFFFFF)))
        if most > np.float32(limit).view(np.uint32):
            found[i] = TOO_LARGE
