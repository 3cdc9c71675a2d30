"""The inner loop of the import: mean and deviation of each image's background, and the image scaled by them."""

import numba
import numpy as np
from numpy.typing import NDArray


@numba.njit(nogil=True, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]
def scale_by_background(
    images: NDArray[np.float32],
    outside: NDArray[np.float64],
    out: NDArray[np.float32],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
) -> None:
    """Do ``out = (images - mean) / std`` with the mean and standard deviation of each image's background.

    Parameters
    ----------
    images, out
        Shape ``(b, n, n)``.
    outside
        1 in the background and 0 elsewhere, ``(n, n)``.
    mean, std
        Written, ``(b,)``; the deviation is that of the whole image where the background alone is constant.
    """
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
        for y in range(n):
            for x in range(n):
                out[i, y, x] = (image[y, x] - mean[i]) / std[i]
