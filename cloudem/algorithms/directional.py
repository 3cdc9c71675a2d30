"""Resolution by direction: the FSC of two half-maps within cones, and what is significant of it.

The directional FSC is that of Tan et al. 2017, 10.1038/nmeth.4347: the correlation of the coefficients of a shell whose
frequencies lie within 20° of an axis. Axes are a Fibonacci lattice of the hemisphere, 14° apart, so that cones overlap
and some sixteen of them are independent.

A cone holds 6 % of a shell. Of its voxels only some are independent: the share that the mask leaves, divided by how
many of a voxel's mates under the point group lie in the same cone (fourteen about the axis of D7, few elsewhere). Where
few are left chance makes directions differ, and a difference is only spoken of if chance does not explain it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull

from cloudem.algorithms.resolution import RANDOMISE_MARGIN, FscCurves
from cloudem.algorithms.significance import independent_voxels, resolution_shell
from cloudem.algorithms.spectra import cone_sums, extent_of, mixed_of
from cloudem.conventions import FSC_HALF, FSC_THRESHOLD
from cloudem.kernels.shells import correlation, crossing
from cloudem.model.poses import cap_directions, sphere_directions

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

HALF_ANGLE = float(np.deg2rad(20.0))
"""Of the cones (Tan et al. 2017)."""

STEP = 0.25
"""Distance between neighbouring directions, radians: a hundred and one of them."""

SMOOTHING = 0.1
"""A curve is averaged over the shells within this share of each, from 0.9 k to 1.1 k: one of a cone has few voxels."""

LENT = 5.0
"""Independent voxels of the mean of all directions that each average of a cone's curve takes in. Where a cone has few
of its own, as about the axes of high point groups, its curve is that mean, since no difference could be seen."""

EXTREME_SHARE = 0.05
"""Share of directions whose mean is called the worst or the best: a single one may be so by chance."""

UNEVEN = 1.5
"""How much coarser than the mean the worst directions have to be to be warned of."""

UNLIKELY = 2.0
"""Root mean square of the deviations of directions from their mean, in standard deviations, that has to be exceeded. By
chance, it is 1, and for sixteen independent cones not 2 in one of a million sets."""


class DirectionalFsc(NamedTuple):
    """FSC of two half-maps by direction."""

    directions: Float64
    """Unit vectors (d, 3), x, y, z in map coordinates, of one hemisphere."""
    curves: Float64
    """(d, n // 2 + 1), corrected for the mask and smoothed; 0 beyond the last shell of the maps."""
    voxels: Float64
    """(d, n // 2 + 1), independent voxels of each shell."""


class Anisotropy(NamedTuple):
    """What directional curves say."""

    shells: Float64
    """(d,), fractional, where each falls below 0.143."""
    mean: float
    """Their mean: a shell, thus a mean of spatial frequencies."""
    worst: float
    """Mean of the lowest `EXTREME_SHARE`."""
    best: float
    """Mean of the highest `EXTREME_SHARE`."""
    worst_direction: Float64
    """(3,), the axis about which the worst directions lie."""
    sphericity: float
    """Of the surface at which the curves fall below 0.5."""
    deviations: float
    """Root mean square of the deviations of directions from their mean, in standard deviations: 1 by chance."""

    @property
    def uneven(self) -> bool:
        """Whether the worst directions are much coarser than the mean, and not by chance."""
        return self.mean >= UNEVEN * self.worst and self.deviations > UNLIKELY


def cone_multiplicity(directions: Float64, group: Float64, half_angle: float = HALF_ANGLE) -> Float64:
    """Return how many of a voxel's mates under a point group lie in the same double cone, itself included: (d,).

    The mean over a cone, taken at points that are spread evenly over it; between 1 and the order of the group.

    Parameters
    ----------
    directions
        Unit vectors (d, 3).
    group
        Operators (g, 3, 3).
    half_angle
        Radians.
    """
    cosine, count = float(np.cos(half_angle)), 200
    x, y, z = cap_directions(count, cosine).T
    found = []
    for direction in directions:
        one = np.cross(direction, np.eye(3)[np.argmin(np.abs(direction))])
        one /= np.linalg.norm(one)
        other = np.cross(direction, one)
        points = np.outer(x, one) + np.outer(y, other) + np.outer(z, direction)
        mates = np.abs(points @ (direction @ group).T)  # d·(g p) for every g
        found.append(np.count_nonzero(mates >= cosine - 1e-9) / count)
    return np.array(found)


def directional_fsc(
    half1: Float32, half2: Float32, mask: Float32 | None, shells: FscCurves, k_max: int, group: Float64
) -> DirectionalFsc:
    """Return the FSC of two half-maps within cones, corrected for the mask.

    The mask's own correlation is taken from the whole shell, `FscCurves.phase_randomised`: it is small, and a cone has
    too few voxels to measure it. It is removed from the same shells as in the curve of the shell.

    Parameters
    ----------
    half1, half2
        (n, n, n).
    mask
        (n, n, n) in 0..1 or None.
    shells
        What :func:`cloudem.algorithms.resolution.masked_fsc` returned for them.
    k_max
        Last shell that the maps hold.
    group
        Operators of their point group (g, 3, 3).
    """
    box, directions = len(half1), sphere_directions(STEP)
    cosine = float(np.cos(HALF_ANGLE))
    extent = None if mask is None else extent_of(mask)
    sums = cone_sums(
        mixed_of(half1, mask, extent), mixed_of(half2, mask, extent), extent.first_plane if extent else 0,
        directions, cosine, k_max,
    )  # fmt: skip
    found, empty = correlation(*sums), sums[1] == 0
    first = shells.randomise_from + RANDOMISE_MARGIN
    noise = shells.phase_randomised[first : k_max + 1]
    found[:, first:] = (found[:, first:] - noise) / np.maximum(1 - noise, 1e-6)
    found = np.where(empty, shells.corrected[: k_max + 1], found)  # of shells 1 and 2 some cones hold nothing
    voxels = independent_voxels(box, shells.fraction, 1) * (1 - cosine) / cone_multiplicity(directions, group)[:, None]
    curves = np.zeros(voxels.shape)
    curves[:, : k_max + 1] = smoothed_curves(found, voxels[:, : k_max + 1])
    return DirectionalFsc(directions, curves, voxels)


def smoothed_curves(curves: Float64, voxels: Float64) -> Float64:
    """Return curves averaged over the shells within `SMOOTHING` of each, at least over three, and over `LENT` voxels.

    Parameters
    ----------
    curves
        (d, s); shell 0 stays as it is.
    voxels
        Independent ones, (d, s), in proportion to k²: shells are weighted by them.

    Returns
    -------
    (d, s).
    """
    smooth, squares = curves.copy(), np.arange(curves.shape[1], dtype=np.float64) ** 2
    level = (curves * voxels).sum(axis=0) / np.maximum(voxels.sum(axis=0), 1e-9)
    for shell in range(1, curves.shape[1]):
        reach = int(np.ceil(SMOOTHING * shell))
        window = slice(max(shell - reach, 1), shell + reach + 1)
        own = (curves[:, window] * voxels[:, window]).sum(axis=1)
        # averaged as the cone's own, whose voxels grow with k², so that it does not differ by that
        lent = squares[window] @ level[window] / squares[window].sum()
        smooth[:, shell] = (own + LENT * lent) / (voxels[:, window].sum(axis=1) + LENT)
    return smooth


def anisotropy(found: DirectionalFsc, corrected: Float64, claimed: float) -> Anisotropy:
    """Return what directional curves say.

    Parameters
    ----------
    found
        Curves.
    corrected
        Of the whole shells, (n // 2 + 1,).
    claimed
        Shell up to which resolution is claimed for the whole (`significant_shell`). Where chance forbids to claim more,
        no direction is said to be finer.
    """
    shells, half = (
        np.array([_crossing_within(curve, threshold) for curve in found.curves])
        for threshold in (FSC_THRESHOLD, FSC_HALF)
    )
    if claimed < resolution_shell(corrected) - 1e-9:
        shells = np.minimum(shells, max(claimed, 1.0))
    order = np.argsort(shells, kind="stable")
    few = max(1, round(EXTREME_SHARE * len(shells)))
    worst = order[:few]
    axes = found.directions[worst]
    axis = np.linalg.eigh(axes.T @ axes)[1][:, -1]
    return Anisotropy(
        shells=shells,
        mean=float(shells.mean()),
        worst=float(shells[worst].mean()),
        best=float(shells[order[-few:]].mean()),
        worst_direction=axis * (1 if axis[2] >= 0 else -1),
        sphericity=sphericity(found.directions, half),
        deviations=_deviations_of(found, float(shells.mean())),
    )


def _crossing_within(curve: Float64, threshold: float) -> float:
    """Return the shell where a curve falls below a threshold, at least 1; the last if it never does."""
    shell = crossing(curve, threshold)
    return float(len(curve) - 1) if np.isnan(shell) else max(shell, 1.0)


def _deviations_of(found: DirectionalFsc, mean: float) -> float:
    """Return by how many standard deviations directions differ from their mean, root mean square.

    On the shells between ``mean / UNEVEN`` and ``mean``, which have to be without signal in a direction that is
    `UNEVEN` times coarser than the mean. (The curve of the whole shell is no measure: where noise has most of its power
    in some directions, they decide it.) The correlation of n complex numbers has the variance ``(1 - F²)² / 2 n``, that
    of 2 n real ones; the correction for the mask adds little, since it is that of the whole shell.
    """
    window = slice(int(mean / UNEVEN) + 1, int(mean) + 1)
    level, voxels = found.curves[:, window].mean(axis=0), found.voxels[:, window]
    differ = (voxels * (found.curves[:, window] - level)).sum(axis=1)
    spread = np.sqrt((voxels * (1 - np.minimum(level, 1) ** 2) ** 2 / 2).sum(axis=1))
    return float(np.sqrt(np.mean((differ / spread) ** 2))) if spread.size and spread.all() else 0.0


def sphericity(directions: Float64, radii: Float64) -> float:
    """Return the sphericity of a surface, ``pi^(1/3) (6 V)^(2/3) / A``, 1 for a sphere (Wadell 1935, 10.1086/624298).

    Tan et al. 2017 take it of the surface where the directional FSC falls below a threshold, 0.5 in their program. Here
    the surface is a polyhedron with a corner on each direction and its opposite, and the value is divided by that of
    the polyhedron whose corners are equally far out, which is a little below 1.

    Parameters
    ----------
    directions
        Unit vectors of one hemisphere, (d, 3).
    radii
        How far out the surface is, (d,), in any unit.
    """
    corners = np.concatenate([directions, -directions])
    faces = ConvexHull(corners).simplices
    return _wadell(corners * np.tile(radii, 2)[:, None], faces) / _wadell(corners, faces)


def _wadell(corners: Float64, faces: NDArray[np.int32]) -> float:
    a, b, c = (corners[faces[:, side]] for side in range(3))
    volume = np.abs(np.einsum("fi,fi->f", a, np.cross(b, c))).sum() / 6
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    return float(np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area)
