"""Sums over Fourier shells within cones about directions, from which directional correlations follow."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float64 = NDArray[np.float64]


@kernel
def cone_products(
    a: NDArray[np.complexfloating[Any, Any]],
    b: NDArray[np.complexfloating[Any, Any]],
    ky: NDArray[np.int64],
    directions: Float64,
    cosine: float,
    last: int,
) -> Float64:
    """Return the sums of ``Re a b*``, ``|a|²`` and ``|b|²`` over each Fourier shell within double cones.

    A frequency k is in the cone about the unit vector d if ``|k·d| >= cosine |k|``: Friedel mates are in the same ones.

    Parameters
    ----------
    a, b
        Rows of the transforms of real volumes, (n, r, c), c columns of rows in the layout of ``rfftn``; both with the
        same origin. Friedel mates that this layout leaves out are counted.
    ky
        The rows' frequencies, (r,).
    directions
        Unit vectors (d, 3) along x, y, z.
    cosine
        Of the cones' half angle.
    last
        Last shell that is summed; at most n // 2.

    Returns
    -------
    Shape (3, d, last + 1), float64.
    """
    box, columns = a.shape[0], a.shape[2]
    kz, rows = (np.arange(box) + box // 2) % box - box // 2, (ky + box // 2) % box - box // 2
    z, y, x = np.broadcast_arrays(kz[:, None, None], rows[:, None], np.arange(columns))
    length = np.sqrt(z**2 + y**2 + x**2)
    shells = np.rint(length).astype(np.int64)
    mates = np.where((x == 0) | (x == box // 2), 1.0, 2.0)
    products = (a.real * b.real + a.imag * b.imag, a.real**2 + a.imag**2, b.real**2 + b.imag**2)
    sums = np.zeros((3, len(directions), last + 1))
    for number, (dx, dy, dz) in enumerate(directions):
        inside = (np.abs(y * dy + z * dz + x * dx) >= cosine * length) & (shells <= last)
        for kind, product in enumerate(products):
            weights = (mates * product.astype(np.float64))[inside]
            sums[kind, number] = np.bincount(shells[inside], weights, minlength=last + 1)
    return sums
