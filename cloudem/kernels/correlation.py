"""Sums over Fourier shells of two volumes' transforms, from which their correlation follows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.kernels.fourier import shell_index


@kernel
def shell_products(
    a: NDArray[np.complexfloating[Any, Any]], b: NDArray[np.complexfloating[Any, Any]]
) -> NDArray[np.float64]:
    """Return the sums of ``Re a b*``, ``|a|²`` and ``|b|²`` over each Fourier shell of the whole sphere.

    Parameters
    ----------
    a, b
        Transforms of real volumes, shape (n, n, n // 2 + 1), layout of ``rfftn``; both with the same origin. Friedel
        mates that this layout leaves out are counted.

    Returns
    -------
    Shape (3, n // 2 + 1), float64; shells beyond n // 2 are left out.
    """
    count = a.shape[2]
    shells = shell_index(a.shape[0]).ravel()
    mates = np.full(count, 2.0)
    mates[[0, -1]] = 1.0
    products = (a.real * b.real + a.imag * b.imag, a.real**2 + a.imag**2, b.real**2 + b.imag**2)
    sums = [np.bincount(shells, (mates * product).ravel(), minlength=count)[:count] for product in products]
    return np.asarray(sums, np.float64)
