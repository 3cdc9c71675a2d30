"""Density of a set of atoms: a sum of Gaussians on a grid."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

TRUNCATE = 4.8
"""Gaussians are cut off at this many standard deviations, where they have fallen to 1e-5."""


@kernel
def add_gaussians(
    grid: NDArray[np.float32],
    positions: NDArray[np.float64],
    kinds: NDArray[np.int32],
    b_factors: NDArray[np.float64],
    occupancies: NDArray[np.float64],
    table: NDArray[np.float64],
    spacing: float,
) -> None:
    """Add each atom's scattering density to a periodic grid, in place.

    An atom of kind j with B-factor B has the form factor ``f(s) = sum_i a_ij exp(-(b_ij + B) s² / 4)``, s in 1/Å, and
    the density ``sum_i a_ij (4 pi / (b_ij + B))^(3/2) exp(-4 pi² r² / (b_ij + B))`` (Peng et al. 1996,
    10.1107/S0108767395014371).

    Parameters
    ----------
    grid
        Shape (m, m, m) float32, [z, y, x], origin at the voxel m // 2; density in the unit of `a` per Å³.
    positions
        Shape (c, 3), x, y, z in Å from the origin.
    kinds
        Shape (c,), row of `table` for each atom.
    b_factors
        Shape (c,), Å².
    occupancies
        Shape (c,), factor on each atom.
    table
        Shape (kinds, terms, 2): a and b (Å²) of each Gaussian. Terms with a = 0 are skipped.
    spacing
        Å per voxel. A Gaussian is sampled without aliasing (1e-4) if its ``b + B`` is at least ``60 spacing²``.
    """
    m = grid.shape[0]
    for position, kind, b_factor, occupancy in zip(positions, kinds, b_factors, occupancies, strict=True):
        centre = position[::-1] / spacing + m // 2
        for a, b in table[kind]:
            if a == 0:
                continue
            width = b + b_factor
            radius = TRUNCATE * math.sqrt(width / (8 * math.pi**2)) / spacing
            lines, indices = [], []
            for c in centre:
                index = np.arange(math.ceil(c - radius), math.floor(c + radius) + 1)
                lines.append(np.exp(-4 * math.pi**2 * ((index - c) * spacing) ** 2 / width))
                indices.append(index % m)
            height = occupancy * a * (4 * math.pi / width) ** 1.5
            # a grid smaller than the Gaussian meets itself: add.at counts every image of a voxel
            values = height * lines[0][:, None, None] * lines[1][:, None] * lines[2]
            np.add.at(grid, np.ix_(*indices), values.astype(np.float32))
