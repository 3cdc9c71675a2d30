"""Which boxes of a micrograph hold particles, and where particles lie in them.

A box is cut around a whole pixel: moving an image by part of a pixel would blur its noise. What is left of a position
is kept as the shift of the particle where poses are kept, and is lost otherwise: half a pixel at most, much less than a
pick is uncertain by.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.neighbours import duplicates_within
from cloudem.kernels.boxes import beyond

TAKEN, BEYOND, DUPLICATE, NO_NUMBER = range(4)
"""What becomes of a position."""


class ChosenBoxes(NamedTuple):
    """Boxes around positions in a micrograph.

    Attributes
    ----------
    centres
        Pixel of each box origin, (n, 2) as x, y.
    corners
        First pixel of each, (n, 2).
    fate
        (n,), `TAKEN` or why it is not.
    """

    centres: NDArray[np.int64]
    corners: NDArray[np.int64]
    fate: NDArray[np.uint8]


def nearest_pixels(places: NDArray[Any]) -> NDArray[np.int64]:
    """Return the pixels that positions lie in, (n, 2); those between two belong to the one beyond."""
    return np.asarray(np.floor(np.asarray(places, np.float64) + 0.5), np.int64)


def cut_around(coordinates: NDArray[Any]) -> NDArray[np.int64]:
    """Return the pixels around which images were cut whose table has these coordinates, (n, 2).

    Tables of cloudem have whole numbers. RELION writes fractions and cuts around what is before the decimal point (as
    `relion_preprocess` 3.1.3 was seen to do).
    """
    return np.asarray(np.floor(coordinates), np.int64)


def choose_boxes(
    places: NDArray[Any],
    quality: NDArray[Any],
    box: int,
    shape: tuple[int, int],
    *,
    padded: bool,
    distance: float = 0.0,
) -> ChosenBoxes:
    """Decide which boxes to cut.

    Parameters
    ----------
    places
        Positions, pixels, (n, 2) as x, y; 0 is the centre of the first pixel.
    quality
        Which of two that are too close is the better one, (n,).
    box
        Side in pixels, even.
    shape
        Of the micrograph, (h, w).
    padded
        Whether boxes may reach beyond it, as long as their particle does not.
    distance
        In pixels, of two that are kept; 0 where it does not matter.
    """
    finite = np.isfinite(places).all(axis=1)
    centres = nearest_pixels(np.where(finite[:, None], places, 0))
    corners = centres - box // 2
    fate = np.full(len(places), TAKEN, np.uint8)
    outside = ((centres < 0) | (centres >= np.array(shape[::-1]))).any(axis=1)
    fate[outside if padded else beyond(corners, box, shape)] = BEYOND
    fate[~finite] = NO_NUMBER
    kept = np.flatnonzero(fate == TAKEN)
    if distance > 0 and len(kept):
        same = duplicates_within(places[kept], np.zeros(len(kept), np.int64), quality[kept], distance)
        fate[kept[same]] = DUPLICATE
    return ChosenBoxes(centres, corners, fate)


def refined_coordinates(
    coordinates: NDArray[Any], shifts: NDArray[Any], pixel_size: NDArray[Any] | float
) -> NDArray[np.float64]:
    """Return where particles lie whose images were aligned, pixels, (n, 2) as x, y.

    Parameters
    ----------
    coordinates
        Where they were picked, pixels, (n, 2): their images were cut around `cut_around` of them.
    shifts
        Position of each particle relative to the origin of its image, Å, (n, 2).
    pixel_size
        Of the micrographs, Å, (n,) or one for all.
    """
    size = np.broadcast_to(np.asarray(pixel_size, np.float64), len(coordinates))
    return np.asarray(cut_around(coordinates) + np.asarray(shifts, np.float64) / size[:, None])


def tilted_defocus(
    places: NDArray[Any], shape: tuple[int, int], pixel_size: float, axis: float, angle: float
) -> NDArray[np.float64]:
    """Return by how much more a tilted specimen is out of focus at some places than in the middle, Å, (n,).

    Parameters
    ----------
    places
        Pixels, (n, 2) as x, y.
    shape
        Of the micrograph, (h, w).
    pixel_size
        Å.
    axis
        From the x axis to the axis of the tilt, rad.
    angle
        Of the tilt, rad; positive where the defocus grows along (-sin axis, cos axis).
    """
    middle = np.array([shape[1] // 2, shape[0] // 2])
    across = (np.asarray(places, np.float64) - middle) @ np.array([-np.sin(axis), np.cos(axis)])
    return np.asarray(np.tan(angle) * across * pixel_size)
