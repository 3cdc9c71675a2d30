"""What is in an image, and the image scaled by its background: the inner loops of the import."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.errors import ParameterError

USABLE, NOT_FINITE, CONSTANT, TOO_LARGE = range(4)
"""What is found of an image."""


def background(box: int, diameter_px: float) -> NDArray[np.bool_]:
    """Return the pixels outside the circle of a diameter around the origin ``box // 2``, ``(box, box)``.

    Raises
    ------
    ParameterError
        The circle leaves fewer than 1 % of the pixels.
    """
    axis = np.arange(box) - box // 2
    outside = axis[:, None] ** 2 + axis[None, :] ** 2 > (diameter_px / 2) ** 2
    if outside.mean() < 0.01:
        raise ParameterError(
            f"a circle of {diameter_px:.0f} pixels leaves no background in a box of {box}; give a smaller --diameter-A"
        )
    return np.asarray(outside)


@kernel
def measure_background(
    images: NDArray[np.float32],
    outside: NDArray[np.float64],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    found: NDArray[np.uint8],
) -> None:
    """Find the mean and standard deviation of each image's background, and whether the image is of any use.

    Parameters
    ----------
    images
        Shape ``(b, n, n)``.
    outside
        1 in the background and 0 elsewhere, ``(n, n)``.
    mean, std
        Written, ``(b,)``; the deviation is that of the whole image where the background alone is constant.
    found
        Written, ``(b,)``: `USABLE`, `NOT_FINITE` or `CONSTANT`; mean and deviation mean something for the first alone.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        for i, image in enumerate(images):
            pixels = image.astype(np.float64)
            centre, middle = np.average(pixels, weights=outside), pixels.mean()
            spread = np.sqrt(np.average((pixels - centre) ** 2, weights=outside))
            of_whole = np.sqrt(((pixels - middle) ** 2).mean())
            mean[i], std[i] = centre, spread if spread > 1e-6 * of_whole else of_whole
            if not np.isfinite(middle):
                found[i] = NOT_FINITE
            else:
                found[i] = CONSTANT if (image == image.flat[0]).all() else USABLE


@kernel
def scale_images(
    images: NDArray[np.float32],
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    sign: NDArray[np.float32],
    limit: np.float32,
    found: NDArray[np.uint8],
) -> None:
    """Do ``images = (images - mean) / std * sign`` in place, for those that are usable.

    Parameters
    ----------
    images
        Shape ``(b, n, n)``, C-contiguous.
    mean, std, sign
        Of each image, ``(b,)``.
    limit
        The largest absolute value that may be.
    found
        Shape ``(b,)``; becomes `TOO_LARGE` where a value lies beyond the limit or is NaN.
    """
    for i in np.flatnonzero(found == USABLE):
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            images[i] = (images[i] - mean[i]) / std[i] * sign[i]
        if not (abs(images[i]) <= limit).all():
            found[i] = TOO_LARGE


@kernel
def fingerprint(images: NDArray[np.float32], out: NDArray[np.uint64]) -> None:
    """Write a number for the pixels of each image: the same for the same pixels, and by all odds for those alone.

    Columns are hashed side by side in 32 bits (a processor does many at a time), and then as one in 64.

    Parameters
    ----------
    images
        Shape ``(b, n, n)``, C-contiguous.
    out
        Written, ``(b,)``.
    """
    bits = images.view(np.uint32)
    columns = np.full((len(images), images.shape[2]), 2166136261, np.uint32)
    for y in range(images.shape[1]):
        columns = (columns ^ bits[:, y]) * np.uint32(2654435761)
        columns ^= columns >> np.uint32(15)  # or changed signs alone, an even number in a column, would cancel
    whole = np.full(len(images), 14695981039346656037, np.uint64)
    for x in range(images.shape[2]):
        whole = (whole ^ columns[:, x]) * np.uint64(0x9E3779B97F4A7C15)
        whole ^= whole >> np.uint64(29)
    out[:] = whole
