"""Images on another grid: a trigonometric polynomial, cut off at the new grid's Nyquist frequency, at new points.

An image of n pixels along an axis is the polynomial with its n Fourier coefficients. It is evaluated at the points of
the new grid, whose origin pixel lies on that of the old one, without the frequencies that the new grid cannot hold.
That is exact, whatever the ratio of the pixel sizes, and each axis is one matrix.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAME = 1e-4
"""Pixel sizes that differ by less, relatively, are one: the new grid then takes pixels as they are."""


def resampling_matrix(box: int, pixel_size: float, new_box: int, new_pixel_size: float) -> NDArray[np.float64]:
    """Return the matrix that takes one axis of an image to another grid.

    Parameters
    ----------
    box, pixel_size
        Pixels along the axis, odd or even, and Å; the origin is the pixel ``box // 2``.
    new_box, new_pixel_size
        The same of the new grid, whose pixels all lie within the old one and are not smaller.

    Returns
    -------
    Shape (new_box, box).

    Raises
    ------
    ValueError
        The new grid is finer than the old one, or reaches beyond it.
    """
    ratio = new_pixel_size / pixel_size
    position = np.arange(new_box) - new_box // 2
    old = np.arange(box) - box // 2
    if abs(ratio - 1) < SAME:
        ratio = 1.0
    if ratio < 1 or position[0] * ratio < old[0] - 1e-6 or position[-1] * ratio > old[-1] + 1e-6:
        raise ValueError(f"{new_box} px of {new_pixel_size:g} Å do not lie within {box} px of {pixel_size:g} Å")
    if ratio == 1:
        return np.asarray(position[:, None] == old, np.float64)
    # below the new Nyquist frequency: k / (n p) < 1 / (2 P)
    last = int(np.ceil(box / (2 * ratio) - 1e-9)) - 1
    turn = 2 * np.pi / box * np.arange(1, last + 1)
    new_angles, old_angles = np.outer(position * ratio, turn), np.outer(old, turn)
    waves = np.cos(new_angles) @ np.cos(old_angles).T + np.sin(new_angles) @ np.sin(old_angles).T
    return np.asarray((1 + 2 * waves) / box)


def resample(images: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return images on another grid.

    Parameters
    ----------
    images
        Shape (b, n, n).
    matrix
        :func:`resampling_matrix`, (m, n), of both axes.

    Returns
    -------
    Shape (b, m, m), float32. Tolerance against float64: 1e-5 of the largest grey value.
    """
    return np.asarray(np.matmul(np.matmul(matrix, images), matrix.T), np.float32)
