"""Sums over Fourier shells, and the Fourier shell correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.kernels.correlation import shell_products
from cloudem.kernels.fourier import fourier_volume

Float64 = NDArray[np.float64]


@kernel
def shell_sums(values: NDArray[Any], shells: NDArray[np.int32], count: int) -> Float64:
    """Sum values over shells.

    Parameters
    ----------
    values
        Real, shape (..., p): summed over the last axis.
    shells
        Shape (p,): shell of each pixel; those of ``count`` and above are left out.
    count
        Number of shells.

    Returns
    -------
    Shape (..., count), float64.
    """
    keep = shells < count
    flat = values.reshape(-1, values.shape[-1])[:, keep]
    sums = [np.bincount(shells[keep], row, minlength=count) for row in flat]
    summed: Float64 = np.array(sums, np.float64).reshape(*values.shape[:-1], count)
    return summed


def correlation(cross: Float64, power_a: Float64, power_b: Float64) -> Float64:
    """Return ``cross / sqrt(power_a power_b)``, 0 where either map has no power."""
    scale = np.sqrt(np.maximum(power_a, 0) * np.maximum(power_b, 0))
    return np.asarray(np.divide(cross, scale, out=np.zeros_like(cross), where=scale > 0))


def crossing(curve: NDArray[Any], threshold: float) -> float:
    """Return the shell (fractional) where a curve first falls below a threshold, linear between shells.

    Shell 0 says nothing and only serves to interpolate. A value that is not finite counts as no correlation; NaN where
    the curve never falls below.
    """
    values = np.nan_to_num(np.asarray(curve, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    below = np.flatnonzero(values[1:] < threshold)
    if not len(below):
        return float("nan")
    last, here = values[below[0]], values[below[0] + 1]
    return float(below[0] + (max(last - threshold, 0.0) / (last - here) if last > here else 0.0))


def fourier_shell_correlation(a: NDArray[Any], b: NDArray[Any]) -> Float64:
    """Return the Fourier shell correlation of two real volumes.

    Source: Harauz & van Heel 1986, Optik 73, 146. ``FSC(s) = Re sum a b* / sqrt(sum |a|^2 sum |b|^2)`` over the voxels
    of shell s, each Friedel pair counted twice as in the full sphere.

    Parameters
    ----------
    a, b
        Shape (n, n, n), n even.

    Returns
    -------
    Shape (n // 2 + 1,), float64; index s is the shell at s / (n · pixel_size). A shell without power gives 0.
    """
    return correlation(*shell_products(fourier_volume(a), fourier_volume(b)))
