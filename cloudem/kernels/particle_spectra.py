"""Windows around particles in Fourier space: displaced, compared with what is expected there, weighted and added up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel
from cloudem.kernels.fourier import HalfDisc, sample_half_disc
from cloudem.kernels.shells import shell_sums

Complex64 = NDArray[np.complex64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]


@kernel
def compare_spectra(
    transforms: Complex64, views: Complex64, shifts: Float64, groups: NDArray[np.int64], kx: Int32, ky: Int32,
    shell: Int32, products: Complex64, powers: Float64,
) -> None:  # fmt: skip
    """Write ``X conj(M) exp(2πi k·s)`` of each window, and add its ``|X|²`` to the shells of its group.

    Parameters
    ----------
    transforms
        X, `cloudem.kernels.fourier.fourier_images`, ``(n, side, m)``; of columns those that the half disc has.
    views
        M on the half disc, ``(n, p)``.
    shifts
        s in boxes, ``(n, 2)`` as x, y.
    groups
        Of each window, ``(n,)``, from 0.
    kx, ky, shell
        The half disc, ``(p,)``, row by row, as `cloudem.kernels.fourier.half_disc` returns it.
    products
        Written, ``(n, p)``.
    powers
        Added to, ``(groups, shells)``.
    """
    values = sample_half_disc(transforms, HalfDisc(kx, ky, shell))
    products[:] = values * views.conj() * _phases(shifts, kx, ky)
    power = values.real.astype(np.float64) ** 2 + values.imag.astype(np.float64) ** 2
    np.add.at(powers, groups, shell_sums(power, shell, powers.shape[1]))


@kernel
def add_spectra(
    transforms: Complex64, shifts: Float64, weights: Float32, groups: NDArray[np.int64], kx: Int32, ky: Int32,
    sums: Complex64,
) -> None:  # fmt: skip
    """Add ``w X exp(2πi k·s)`` of each window to its sum.

    Parameters
    ----------
    transforms, shifts, groups, kx, ky
        As `compare_spectra` takes them.
    weights
        Of each group, ``(groups, p)``.
    sums
        Added to, ``(n, p)``.
    """
    values = sample_half_disc(transforms, HalfDisc(kx, ky, kx))
    sums += (values * _phases(shifts, kx, ky) * weights[groups]).astype(np.complex64)


def _phases(shifts: Float64, kx: Int32, ky: Int32) -> NDArray[np.complex128]:
    """Return ``exp(2πi k·s)``, ``(n, p)``."""
    return np.asarray(np.exp(2j * np.pi * (shifts[:, :1] * kx + shifts[:, 1:] * ky)))
