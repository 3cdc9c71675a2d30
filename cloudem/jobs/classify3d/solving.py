"""From the sums of all parts to the differences that each part is compared with: the task that runs where sums are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.bricks import Brick, merge_bricks, packed_sphere_of, unpack
from cloudem.algorithms.mask import estimate_mask, soft_sphere
from cloudem.algorithms.reconstruct import solve
from cloudem.algorithms.states import (
    OUTSIDE,
    PARTS,
    StateSettings,
    centred,
    further,
    halves_agreement,
    solve_difference,
    weighted_difference,
)
from cloudem.errors import ParameterError
from cloudem.jobs.maps import soft_edge
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.symmetry import operators

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

WIDER_A = 10.0
"""By how much the outline within which states may differ is wider than that of the consensus."""


class Before(NamedTuple):
    """What the images of a pass were compared with, (c, m, m, m), and how much further it goes (`overstep`), (c, c)."""

    maps: Float32
    matrix: Float64


class SolvedMaps(NamedTuple):
    """Differences that each part, and at last all together, are compared with, and their correlation between halves.

    Shapes (parts + 1, c, m, m, m), and (c, m // 2 + 1).
    """

    maps: Float32
    fsc: Float64


def merged_bricks(bricks: list[Brick]) -> Brick:
    """Return the sum of bricks, in their order."""
    total = bricks[0]
    for brick in bricks[1:]:
        total = merge_bricks(total, brick)
    return total


def solve_maps(
    settings: StateSettings, limit: int, symmetry: str, outline: Float32, share: Float64 | None, before: Before | None,
    *bricks: Brick,
) -> SolvedMaps:  # fmt: skip
    """Return the differences of each column of the sums, for each part from the sums of the others.

    Parameters
    ----------
    settings, limit, symmetry
        Of the classification, last shell, and point group.
    outline
        Where differences are looked for, (m, m, m).
    share
        Of classes, whose mean is taken off; None where columns are no classes.
    before
        Of the pass that made the sums; None where there was none.
    bricks
        Sums, column by column of each part; the parts are of the half-sets in turn.
    """
    parts = PARTS
    columns, ball = len(bricks) // parts, packed_sphere_of(settings.box, limit, operators(symmetry))

    def of(some: list[int]) -> Float32:
        own = [merged_bricks([bricks[part * columns + column] for part in some]) for column in range(columns)]
        solved = np.stack([solve_difference(unpack(each, ball), settings, limit) for each in own])
        if before is not None:
            solved = further(centred(solved, share), before.maps, before.matrix)
        return centred(solved, share)

    everything = list(range(parts))
    halves = [of(everything[half::2]) for half in (0, 1)]
    known = [halves_agreement(halves[0][c], halves[1][c], outline, limit, settings) for c in range(columns)]
    maps = []
    for left_out in (*everything, None):
        some = [part for part in everything if part != left_out]
        worth = 2 * len(some) / parts
        maps.append([
            weighted_difference(each, known[c], outline, worth, limit) for c, each in enumerate(of(some))
        ])  # fmt: skip
    return SolvedMaps(np.array(maps, np.float32), np.stack([each.fsc for each in known]))


class Consensus(NamedTuple):
    """The map of all images that train, within the particle's sphere, its outline, and the FSC of its halves."""

    volume: Float32
    outline: Float32
    fsc: Float64


def solve_consensus(settings: StateSettings, symmetry: str, given: Float32 | None, *bricks: Brick) -> Consensus:
    """Return the map of all parts, weighted by shell, and where states may differ: where it was said, or around it."""
    limit, box = settings.last_limit, settings.box
    ball, group = packed_sphere_of(box, limit, operators(symmetry)), list(bricks)
    sphere = soft_sphere(box, settings.radius, soft_edge(box, settings.radius))
    halves = [solve(unpack(merged_bricks(group[half::2]), ball), box, None, limit) for half in (0, 1)]
    fsc = np.clip(fourier_shell_correlation(halves[0] * sphere, halves[1] * sphere), 0, 0.999)
    fsc[limit + 1 :] = 0
    volume = solve(unpack(merged_bricks(group), ball), box, 2 * fsc / (1 - fsc), limit) * sphere
    if given is not None:
        return Consensus(volume, given * sphere, fsc)
    try:
        diameter = 2 * settings.radius * settings.pixel_size
        outline = estimate_mask(volume, settings.pixel_size, diameter=diameter, extend=WIDER_A)
    except ParameterError:  # nothing stands out of the noise
        return Consensus(volume, sphere, fsc)
    return Consensus(volume, sphere * (OUTSIDE + (1 - OUTSIDE) * outline), fsc)
