"""Half-sets: those of the table, or new ones. What belongs together is never in both, or the FSC would be of no worth.

Copies of one image belong together, and segments of one helical tube, which overlap; particles of one micrograph if
asked for. See `cloudem.io.importing` for how copies are known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from cloudem.errors import ParameterError
from cloudem.model.particles import Particles
from cloudem.model.table import distinct

By = Literal["particle", "micrograph"]
"""What is drawn as one: a particle with all that belongs to it, or a whole micrograph."""

TUBE = "rln:rlnHelicalTubeID", "cs:filament/filament_uid"
"""Columns that number helical tubes; the first within its micrograph."""

COPIES_BORNE = 0.01
"""Share of particles that are copies of one in the other half-set, above which a table's half-sets are refused."""

MOST_COPIES = 0.3
"""Share of particles that repeat the image of another, above which a table is taken for one that was expanded."""

Labels = NDArray[np.int64]


def _nothing(text: str) -> None:
    """Say nothing: what there is to say was said before (`cloudem.jobs.checks`)."""


@dataclass(frozen=True)
class Drawing:
    """How half-sets are found.

    Attributes
    ----------
    seed
        Of those that are drawn.
    new
        Draw all, whatever the table says.
    by
        What is drawn as one.
    """

    seed: int
    new: bool = False
    by: By = "particle"


def half_sets(
    particles: Particles, drawing: Drawing, without: NDArray[np.int64], warn: Callable[[str], None] = _nothing
) -> NDArray[np.int8]:
    """Return the half-set of each particle: that of the table, or a random one where the table has none.

    Particles that are left out get 0, which is none; the others get what they would get if all were there.

    Parameters
    ----------
    particles
        The table, with its text.
    drawing
        How.
    without
        Numbers of the particles that are left out.
    warn
        Is told of half-sets of the table that share images or tubes.

    Raises
    ------
    ParameterError
        One half-set is empty, there are no micrographs to go by, or half-sets of the table share too much.
    """
    given = np.zeros(len(particles), np.int8) if drawing.new else np.array(particles.get("half_set", 0), np.int8)
    given[(given != 1) & (given != 2)] = 0
    kinds = _kinds(particles, drawing.by)
    for what, labels in kinds.items():
        _check_given(what, labels, given, warn)
    together = _joined(list(kinds.values()), len(particles))
    halves = _drawn(given, together, drawing.seed)
    halves[without] = 0
    for half in (1, 2):
        if not np.any(halves == half):
            count = np.count_nonzero(halves)
            if np.any(given):
                advice = "--new-halves draws new ones, or select more particles"
            else:
                advice = "select more particles, or other ones if all of these are of one tube, micrograph or image"
            raise ParameterError(
                f"half-set {half} is empty among {count} particles; at least one in each is needed: {advice}"
            )
    return halves


def image_numbers(particles: Particles) -> Labels:
    """Return a number, from 1, for the image of each particle; those that use one image share it, (n,)."""
    alone = np.arange(1, len(particles) + 1)
    if "same_image" in particles:
        known = particles["same_image"].astype(np.int64)
        return np.where(known > 0, known, alone + known.max(initial=0))
    if "image_name" in particles:  # of an older store, which knows no pixels
        return distinct(particles.columns["image_name"]).number + 1
    return alone


def repeated(particles: Particles) -> bool:
    """Return whether a table has been expanded by a symmetry: many of its particles use the image of another."""
    images = len(np.unique(image_numbers(particles)))
    return images < (1 - MOST_COPIES) * len(particles)


def _kinds(particles: Particles, by: By) -> dict[str, Labels]:
    """Return what belongs together, by what it is called: for each particle a number, or -1 where it is alone."""
    kinds: dict[str, Labels] = {}
    if "same_image" in particles:
        kinds["copies of one image"] = np.where(particles["same_image"] > 0, particles["same_image"], -1)
    elif "image_name" in particles:  # of an older store, which knows no pixels
        _, numbers, count = distinct(particles.columns["image_name"])
        kinds["copies of one image"] = np.where(count[numbers] > 1, numbers, -1)
    for column in TUBE:
        if column in particles:
            kinds["segments of one helical tube"] = _tubes(particles, column)
            break
    if by == "micrograph":
        particles.require("micrograph")
        kinds["particles of one micrograph"] = distinct(particles["micrograph"]).number
    return kinds


def _tubes(particles: Particles, column: str) -> Labels:
    """Return a number for the tube of each particle; -1 for those that are in none, which RELION numbers 0."""
    tube = distinct(particles.columns[column]).number
    alone = np.isin(particles.columns[column], np.array(["0", "", "-1"], dtype=particles.columns[column].dtype))
    if column == TUBE[0] and "micrograph" in particles:
        micrographs = distinct(particles["micrograph"])
        tube = tube * len(micrographs.values) + micrographs.number
    return np.where(alone, -1, tube)


def _check_given(what: str, labels: Labels, given: NDArray[np.int8], warn: Callable[[str], None]) -> None:
    """Say, or refuse, that half-sets of the table share what belongs together."""
    known = np.flatnonzero((given > 0) & (labels >= 0))
    numbers = distinct(labels[known]).number
    halves = np.zeros((int(numbers.max(initial=-1)) + 1, 2), bool)
    halves[numbers, given[known] - 1] = True
    shared = halves[:, 0] & halves[:, 1]
    if not shared.any():
        return
    count = int(shared[numbers].sum())
    said = (
        f"{what} are in both half-sets of the table ({count:,} of {len(given):,} particles in {shared.sum():,} such "
        "groups)"
    )
    if "micrograph" in what or ("copies" in what and count > COPIES_BORNE * len(given)):
        raise ParameterError(f"{said}: their FSC would not be independent; draw new ones with --new-halves")
    warn(f"{said}: the resolution is too good by what they share; --new-halves draws new ones")


def _joined(kinds: list[Labels], count: int) -> Labels:
    """Return a number for each particle that those which belong together, by any of the kinds, share."""
    number = np.arange(count)
    pairs = [np.zeros((2, 0), np.int64)]
    for labels in kinds:
        order = np.argsort(labels, kind="stable")
        same = (labels[order][1:] == labels[order][:-1]) & (labels[order][1:] >= 0)
        pairs.append(np.stack([order[:-1][same], order[1:][same]]))
    one, other = np.concatenate(pairs, axis=1)
    if not len(one):
        return number
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def _drawn(given: NDArray[np.int8], together: Labels, seed: int) -> NDArray[np.int8]:
    """Return half-sets: those given, the same for whatever belongs to these, and drawn ones for the rest."""
    halves = given.copy()
    if np.any(halves):  # those of the table go first; where they disagree they stay
        of_group = np.zeros(int(together.max(initial=-1)) + 1, np.int8)
        named = np.flatnonzero(halves)[::-1]
        of_group[together[named]] = halves[named]
        halves = np.where(halves > 0, halves, of_group[together])
    unknown = np.flatnonzero(halves == 0)
    _, group, size = distinct(together[unknown])
    shuffled = np.random.default_rng(seed).permutation(len(size))
    if len(size) == len(unknown):  # each alone
        halves[unknown] = 1 + shuffled % 2
        return halves
    # The largest groups first, each to the half-set that has fewer particles; equal ones in the order drawn.
    chosen, counts = np.zeros(len(size), np.int8), [0, 0]
    order = shuffled[np.argsort(-size[shuffled], kind="stable")]
    for number, of in zip(order.tolist(), size[order].tolist(), strict=True):
        half = int(counts[1] < counts[0])
        chosen[number] = half + 1
        counts[half] += of
    halves[unknown] = chosen[group]
    return halves
