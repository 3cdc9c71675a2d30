"""Sums over slices divided by their weights, shell by shell regularised: the quotient that becomes a map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float64 = NDArray[np.float64]


@kernel
def weights_by_shell(weight: NDArray[np.float32], padding: float, count: int, first: int, last: int) -> Float64:
    """Sum the weights of an accumulator over shells.

    Parameters
    ----------
    weight
        Padded half-volume (see :mod:`cloudem.kernels.slices`), float32; its column kx = -1 is left out.
    padding
        Voxels per cycle per box.
    count
        Number of shells; voxels beyond are left out.
    first, last
        Planes kz of the array that are summed.

    Returns
    -------
    Shape (2, count), float64: the sums, and the numbers of voxels.
    """
    m = weight.shape[2] - 2
    shells = _shells(np.arange(first, last) - m, np.arange(-m, m + 1), np.arange(m + 1), padding).ravel()
    sums = np.bincount(shells, weight[first:last, :, 1:].ravel(), minlength=count)[:count]
    return np.array([sums, np.bincount(shells, minlength=count)[:count]], np.float64)


@kernel
def divide(
    data: NDArray[np.complex64],
    weight: NDArray[np.float32],
    added: NDArray[np.float32],
    padding: float,
    last: int,
    ky: NDArray[np.int64],
    spectrum: NDArray[np.complex64],
) -> None:
    """Divide rows of an accumulator by their weights: ``data / (weight + added[shell])``, 0 beyond the last shell.

    Parameters
    ----------
    data, weight
        Padded half-volumes, complex64 and float32.
    added
        What each shell's weights are raised by, (shells,) float32; voxels beyond belong to the outermost.
    padding
        Voxels per cycle per box.
    last
        Last shell that is not zero.
    ky
        Frequencies of the rows, (s,), voxels.
    spectrum
        Filled, (size, s, columns), all kz in FFT order; zeros before. Voxels that it has no place for are left out.
    """
    m, size, columns = data.shape[2] - 2, *spectrum.shape[::2]
    reach = min(m, size // 2 - 1)
    kz = np.arange(-reach, reach + 1)
    part = np.ix_(kz + m, ky + m, np.arange(1, columns + 1))
    shells = np.minimum(_shells(kz, ky, np.arange(columns), padding), len(added) - 1)
    spectrum[kz % size] = np.where(shells <= last, data[part] / (weight[part] + added[shells]), 0)


def _shells(kz: NDArray[Any], ky: NDArray[Any], kx: NDArray[Any], padding: float) -> NDArray[np.int64]:
    squared = kz[:, None, None] ** 2 + ky[:, None] ** 2 + kx**2
    return np.asarray(np.rint(np.sqrt(squared) / padding), np.int64)
