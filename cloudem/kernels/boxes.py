"""From a micrograph to images of particles: hot pixels, boxes without the slope of their background, smaller boxes.

A box of ``n`` pixels with its corner at ``c`` holds the pixels ``c`` to ``c + n - 1`` of a micrograph; its origin is
the pixel ``c + n // 2``. Everything that is done to a box depends on that box alone, never on those that are done with
it, so that the same box comes out the same to the bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.kernels.background import NOT_FINITE, USABLE, background, measure_background, scale_images

Float32 = NDArray[np.float32]

BATCH_PIXELS = 2**20
"""Pixels of the boxes that are worked on at a time: they stay in the caches."""

LEAST_BACKGROUND, LEAST_SIDE = 0.1, 0.25
"""Shares of the background of a padded box, and of its side, that have to lie in the micrograph."""


class BoxRecipe(NamedTuple):
    """What makes an image out of a box of a micrograph.

    Attributes
    ----------
    box, size
        Sides of the box in the micrograph and of the image, pixels, even; the image is the smaller one, or the same.
    diameter
        Of the circle around the origin outside of which is background, as a share of the side.
    sign
        1 where particles are bright in the micrograph, -1 where they are dark.
    """

    box: int
    size: int
    diameter: float
    sign: float


class Boxed(NamedTuple):
    """Images of particles.

    Attributes
    ----------
    images
        (n, size, size), float32; background of mean 0 and standard deviation 1, particles bright.
    found
        (n,), what `cloudem.kernels.background` finds of an image.
    """

    images: Float32
    found: NDArray[np.uint8]


@kernel
def replace_hot_pixels(image: Float32, limit: float) -> int:
    """Replace, in place, single pixels that stand out of their surroundings, and those that are not finite.

    A pixel stands out if it differs from three of the four next to it, in the same direction, by more than the limit.
    It gets the median of the finite ones of the eight around it, as they were; without any it stays. At the rim, the
    image goes on as its mirror image.

    Parameters
    ----------
    image
        (h, w), both at least 2.
    limit
        Grey values.

    Returns
    -------
    How many pixels were replaced.
    """
    around = np.pad(image, 1, mode="reflect")
    middle = around[1:-1, 1:-1]
    above, below = np.zeros(image.shape, int), np.zeros(image.shape, int)
    with np.errstate(invalid="ignore"):
        for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
            other = around[y : y + image.shape[0], x : x + image.shape[1]]
            above += middle - other > np.float32(limit)
            below += other - middle > np.float32(limit)
    hot = np.argwhere((above >= 3) | (below >= 3) | ~np.isfinite(image))
    replaced = 0
    for y, x in hot:
        near = np.delete(around[y : y + 3, x : x + 3].ravel(), 4)
        near = near[np.isfinite(near)]
        if len(near):
            image[y, x] = np.median(near)
            replaced += 1
    return replaced


@kernel
def cut_boxes(image: Float32, corners: NDArray[np.int64], outside: NDArray[np.float64], out: Float32) -> None:
    """Cut boxes out of a micrograph and take the slope of their background away.

    The plane ``a + b x + c y`` that fits the background best is subtracted. Pixels that are not in the micrograph, and
    take no part in the fit, become 0: the mean of the background. A box of which less than `LEAST_BACKGROUND` or
    `LEAST_SIDE` lies in the micrograph becomes NaN.

    Parameters
    ----------
    image
        Micrograph, (h, w).
    corners
        First pixel of each box, (b, 2) as x, y; may be negative.
    outside
        1 in the background and 0 elsewhere, (n, n).
    out
        Written, (b, n, n).
    """
    n = len(outside)
    axis = np.arange(n) - n // 2
    basis = np.stack([np.ones((n, n)), *np.broadcast_arrays(axis[None, :], axis[:, None])], axis=-1)
    for box, (left, top) in zip(out, corners.tolist(), strict=True):
        rows, columns = (
            slice(max(0, -at), min(n, side - at)) for at, side in zip((top, left), image.shape, strict=True)
        )
        inside = np.zeros((n, n))
        inside[rows, columns] = 1
        weights = outside * inside
        least = min(rows.stop - rows.start, columns.stop - columns.start)
        if least < LEAST_SIDE * n or weights.sum() < LEAST_BACKGROUND * outside.sum():
            box[:] = np.nan
            continue
        box[:] = 0
        values = image[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
        box[rows, columns] = values
        moments = np.einsum("yx,yxi,yxj->ij", weights, basis, basis)
        plane = basis @ np.linalg.solve(moments, np.einsum("yx,yx,yxi->i", weights, box.astype(np.float64), basis))
        box[rows, columns] = (box - plane)[rows, columns]


def shrink_boxes(boxes: Float32, size: int) -> Float32:
    """Return images of fewer pixels that show the same: the Fourier coefficients up to their Nyquist frequency.

    Coefficients at Nyquist have no sign in the smaller image; those of positive frequency are kept, as RELION does. One
    image at a time: transforms of several at a time are not the same to the bit.

    Parameters
    ----------
    boxes
        (b, n, n), n even.
    size
        Side of the smaller images, even.
    """
    n, half = boxes.shape[-1], size // 2
    out = np.empty((len(boxes), size, size), np.float32)
    factor = np.float32((size / n) ** 2)
    low = np.empty((size, half + 1), np.complex64)
    for box, small in zip(boxes, out, strict=True):
        lines = scipy.fft.rfft(box, axis=1)[:, : half + 1]  # columns that are thrown away need no second transform
        square = scipy.fft.fft(lines, axis=0)
        low[: half + 1], low[half + 1 :] = square[: half + 1], square[n - half + 1 :]
        np.multiply(scipy.fft.irfft2(low, s=(size, size)), factor, out=small)
    return out


def boxed_particles(image: Float32, corners: NDArray[np.int64], recipe: BoxRecipe) -> Boxed:
    """Return the images of particles in a micrograph: cut, freed of slopes, made smaller, scaled by their background.

    Parameters
    ----------
    image
        Micrograph without hot pixels, (h, w), or those rows of it that the boxes touch.
    corners
        First pixel of each box, (n, 2) as x, y.
    recipe
        How.
    """
    outside = background(recipe.box, recipe.diameter * recipe.box).astype(np.float64)
    images = np.empty((len(corners), recipe.size, recipe.size), np.float32)
    found = np.empty(len(corners), np.uint8)
    step = max(1, BATCH_PIXELS // recipe.box**2)
    boxes = np.empty((step, recipe.box, recipe.box), np.float32)
    for first in range(0, len(corners), step):
        part = slice(first, min(first + step, len(corners)))
        count = part.stop - first
        cut_boxes(image, corners[part], outside, boxes[:count])
        small = boxes[:count] if recipe.size == recipe.box else shrink_boxes(boxes[:count], recipe.size)
        found[part] = scale_boxes(small, corners[part], image.shape, recipe)
        images[part] = small
    return Boxed(images, found)


def scale_boxes(
    images: Float32, corners: NDArray[np.int64], shape: tuple[int, ...], recipe: BoxRecipe
) -> NDArray[np.uint8]:
    """Scale images of boxes by their background, in place; return what was found of each, (b,).

    Parameters
    ----------
    images
        (b, size, size).
    corners
        First pixel of each box, (b, 2) as x, y: what lies beyond the micrograph has no say.
    shape
        Of the micrograph, (h, w).
    recipe
        How.
    """
    count, limit = len(images), np.float32(np.finfo(np.float16).max)
    around = background(recipe.size, recipe.diameter * recipe.size).astype(np.float64)
    mean, std = np.empty(count, np.float32), np.empty(count, np.float32)
    sign, found = np.full(count, recipe.sign, np.float32), np.empty(count, np.uint8)
    measure_background(images, around, mean, std, found)
    for number in np.flatnonzero(beyond(corners, recipe.box, shape)):
        within = _within(corners[number], recipe, shape)
        _measure_padded(images[number], around * within, int(number), mean, std, found)
    scale_images(images, mean, std, sign, limit, found)
    return found


def beyond(corners: NDArray[np.int64], box: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which boxes reach beyond a micrograph of a shape (h, w), (n,)."""
    far = corners + box > np.array(shape[::-1])
    return np.asarray((corners < 0).any(axis=1) | far.any(axis=1))


def _within(corner: NDArray[np.int64], recipe: BoxRecipe, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return 1 for the pixels of an image that lie in the micrograph, and 0 for the others."""
    at = np.arange(recipe.size) * recipe.box / recipe.size
    x, y = ((at + first >= 0) & (at + first <= side - 1) for first, side in zip(corner, shape[::-1], strict=True))
    return np.asarray(y[:, None] & x[None, :], np.float64)


def _measure_padded(
    image: Float32, weights: NDArray[np.float64], number: int, mean: Float32, std: Float32, found: NDArray[np.uint8]
) -> None:
    """Find mean and deviation of the background of an image, of which only a part is in the micrograph."""
    if found[number] == USABLE and weights.any():
        pixels = image.astype(np.float64)
        mean[number] = np.average(pixels, weights=weights)
        std[number] = np.sqrt(np.average((pixels - mean[number]) ** 2, weights=weights))
    elif not weights.any():
        found[number] = NOT_FINITE
