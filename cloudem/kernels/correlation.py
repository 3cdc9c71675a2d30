"""Sums over Fourier shells of two volumes' transforms, from which their correlation follows, and random phases."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

UINT64 = (1 << 64) - 1

PHASES = np.exp(2j * np.pi * np.arange(1024) / 1024).astype(np.complex64)
"""The phases that random ones are drawn from: as good as all of them, and in the first-level cache."""


@kernel
def shell_products(
    a: NDArray[np.complexfloating[Any, Any]],
    b: NDArray[np.complexfloating[Any, Any]],
    ky: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Return the sums of ``Re a b*``, ``|a|²`` and ``|b|²`` over each Fourier shell of the whole sphere.

    Parameters
    ----------
    a, b
        Transforms of real volumes, shape (n, n, n // 2 + 1), layout of ``rfftn``; both with the same origin. Friedel
        mates that this layout leaves out are counted.
    ky
        Where they are rows of such transforms, (n, r, c), c columns of them: the rows' frequencies, (r,).

    Returns
    -------
    Shape (3, n // 2 + 1), float64; shells beyond n // 2 are left out.
    """
    box, count = a.shape[0], a.shape[0] // 2 + 1
    squared = _squared(box, np.arange(a.shape[1]) if ky is None else ky)[:, :, : a.shape[2]]
    shells = np.rint(np.sqrt(squared)).astype(np.int64).ravel()
    mates = np.full(count, 2.0)
    mates[[0, -1]] = 1.0
    mates = mates[: a.shape[2]]
    products = (a.real * b.real + a.imag * b.imag, a.real**2 + a.imag**2, b.real**2 + b.imag**2)
    sums = [np.bincount(shells, (mates * product).ravel(), minlength=count)[:count] for product in products]
    return np.asarray(sums, np.float64)


@kernel
def turn_phases(spectrum: NDArray[np.complex64], ky: NDArray[np.int64], first_shell: int, seed: int) -> None:
    """Multiply rows of a real volume's transform by random phases, in place; the volume stays real.

    The phase of a coefficient is found from its place and the seed alone (the finaliser of SplitMix64, Steele et al.
    2014, 10.1145/2714064.2660195), so that it does not matter which rows come together.

    Parameters
    ----------
    spectrum
        Shape (n, r, n // 2 + 1), complex64: rows of a transform in the layout of ``rfftn``.
    ky
        The rows' frequencies, (r,).
    first_shell
        Shells below keep their phases.
    seed
        Of the phases.
    """
    box, _, count = spectrum.shape
    shells = np.rint(np.sqrt(_squared(box, ky)))
    kz, kx = np.arange(box)[:, None, None], np.arange(count)
    own = (kz * box + (ky % box)[:, None]) * count + kx
    # Friedel mates of the planes kx = 0 and n / 2 are in them, and get the conjugate
    mate = ((-kz % box) * box + (-ky % box)[:, None]) * count + kx
    mate = np.where((kx == 0) | (kx == box // 2), mate, own + 1)
    numbers = _mixed(np.minimum(own, mate).astype(np.uint64) + np.uint64(seed_start(seed)))
    phases = PHASES[(numbers >> np.uint64(54)).astype(np.int64)]
    phases = np.where(own < mate, phases, np.where(own > mate, phases.conj(), 1))
    spectrum *= np.where(shells >= first_shell, phases, 1).astype(np.complex64)


def seed_start(seed: int) -> int:
    """Return where the numbers of a seed begin, 64 bit."""
    return int(_mixed(np.array([seed & UINT64], np.uint64))[0])


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def _squared(box: int, ky: NDArray[np.int64]) -> NDArray[np.int64]:
    kz = (np.arange(box) + box // 2) % box - box // 2
    ky = (ky + box // 2) % box - box // 2
    return np.asarray(kz[:, None, None] ** 2 + ky[:, None] ** 2 + np.arange(box // 2 + 1) ** 2, np.int64)
