"""Whether two half-maps correlate by more than chance: a test on the number of *independent* voxels of a shell.

A shell of radius k has 2 pi k² Fourier voxels, one of each Friedel pair. A mask whose support is the fraction f of the
box makes neighbours depend on each other, so that about f of them are independent; a point group of g operators makes
g of them equal. In a small box or a high point group few are left, and an FSC far above 0.143 says nothing: noise
aligned in O has five independent voxels in shell 8 of 64 px, and correlates by chance to 0.5.

With n voxels, the correlation of noise has the variance 1 / (2 n), and that of the curve that phase randomisation has
corrected, which has the noise of two curves, 1 / n. The test sums over consecutive shells: ``sum n FSC / sqrt(sum n)``.
In 28,800 windows of one, two and four shells of masked noise (groups C1, C2, D2, O; spheres that fill 16 and 41 % of
the box) it passes 2.5 in one of 4,100, and 3 in one of 14,400: it counts voxels rather too low.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.conventions import FSC_THRESHOLD
from cloudem.kernels.shells import crossing

Float64 = NDArray[np.float64]

MOST_CHANCE = 2.5
"""What chance does not bring the test to, but for one window in 4,100."""

WINDOW_SHELLS = 4
"""Shells that are taken together before the resolution."""


def mask_fraction(mask: NDArray[Any]) -> float:
    """Return the share of Fourier voxels that a mask (n, n, n) leaves independent: ``(sum m²)² / (n³ sum m⁴)``.

    That is the number of voxels over the mean of ``|F(m²)|²`` in units of its centre: the volume over which the mask's
    square, by which noise is multiplied in the sums of the FSC, spreads a coefficient.
    """
    total = fourth = 0.0
    for plane in mask:  # in a large box, the squares of all of it would be gigabytes
        square = np.square(plane, dtype=np.float64)
        total += float(square.sum())
        fourth += float(np.square(square).sum())
    return total * total / (mask.size * fourth) if total > 0 else 0.0


def independent_voxels(box: int, fraction: float, order: int) -> Float64:
    """Return the number of independent voxels of each shell, (box // 2 + 1,).

    Parameters
    ----------
    box
        Pixels.
    fraction
        Of a mask (`mask_fraction`); 1 without one.
    order
        Operators of the point group.
    """
    return np.asarray(2 * np.pi * np.arange(box // 2 + 1) ** 2 * fraction / order)


def deviations(fsc: Float64, voxels: Float64, first: int, last: int) -> float:
    """Return by how much shells from ``first`` to ``last`` correlate, in deviations of noise; 0 where there are none.

    Parameters
    ----------
    fsc
        Corrected FSC, (n // 2 + 1,); NaN is no correlation.
    voxels
        Independent voxels of each shell.
    first, last
        Shells, both included.
    """
    window = slice(max(first, 0), max(last + 1, 0))
    n, values = voxels[window], np.nan_to_num(fsc[window], nan=0.0, posinf=0.0, neginf=0.0)
    total = float(n.sum())
    return float((n * values).sum()) / total**0.5 if total > 0 else 0.0


def resolution_shell(fsc: Float64) -> float:
    """Return the shell (fractional) where the curve first falls below 0.143, the last one if it never does."""
    shell = crossing(fsc, FSC_THRESHOLD)
    return float(len(fsc) - 1) if np.isnan(shell) else shell


def significant_shell(fsc: Float64, voxels: Float64) -> float:
    """Return the shell (fractional) where the curve first falls below 0.143, or the last one up to there that is
    more correlated, with the `WINDOW_SHELLS` - 1 before it, than chance makes it; 0 if none is.

    Parameters
    ----------
    fsc, voxels
        As for `deviations`.
    """
    end = resolution_shell(fsc)
    for shell in range(int(end), 0, -1):
        if deviations(fsc, voxels, max(shell - WINDOW_SHELLS + 1, 1), shell) > MOST_CHANCE:
            return end if shell == int(end) else float(shell)
    return 0.0
