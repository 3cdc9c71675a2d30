"""Whether the images bear out the point group that was imposed; asked once, when a refinement ends.

A sample of each half-set makes a map without symmetry, and images of the other half-set are asked
(`cloudem.algorithms.relaxation`). Nothing but what they say, numbers by operator, passes between the half-sets.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import best_of
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.reconstruct import signal_to_noise
from cloudem.algorithms.relaxation import (
    MOST_BROKEN,
    Verdict,
    Witnesses,
    join_witnesses,
    preferences,
    relaxed_map,
    verdict_from,
    witnesses,
)
from cloudem.jobs.dataset import Dataset, image_batches
from cloudem.jobs.refine3d.iteration import Outcome, Run
from cloudem.jobs.refine3d.tasks import PosedItem, tasks
from cloudem.model.symmetry import kind_of, largest_subgroup

MOST_ASKED, LEAST_ASKED, MATES_ASKED = 1000, 500, 12_000
"""Images of each half-set that are asked: fewer where each has many mates."""

FEWEST, FEWEST_BY_MATE = 100, 8
"""With fewer images of a half-set, or fewer for each mate, nothing is asked: in their maps are gaps, which differ from
mate to mate."""

PLACES = 8
"""Parts of the table that they come from."""

DETAIL = 13
"""Cycles across the particle up to which they are compared: the cost grows with the square."""

MOST_SHELLS = 32
"""The same in shells, for a small particle in a large box."""

DOUBTED = "resolution of the starting map; the images contradict the symmetry"


class ScaledItem(NamedTuple):
    """Images of one half-set with their best poses, and the factor on the CTF of each, (b,)."""

    posed: PosedItem
    scale: NDArray[np.float64]


def sample(half_set: NDArray[np.int8], group_size: int, order: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Return half-set and indices of the images that are asked, from several parts of the table.

    ``order`` is that of the point group.
    """
    most = int(np.clip(MATES_ASKED // order, LEAST_ASKED, MOST_ASKED))
    chosen: list[tuple[int, NDArray[np.int64]]] = []
    for half in (1, 2):
        own = [item for item in tasks(half_set, group_size) if item.half == half]
        number = min(len(own), PLACES)
        places = [own[i * len(own) // number] for i in range(number)]
        chosen += [(half, place.indices[: -(-most // number)]) for place in places]
    return chosen


def witnesses_of_group(item: ScaledItem, dataset: Dataset, sigma2: NDArray[np.float64], k_max: int) -> list[Witnesses]:
    """Weigh images; ``sigma2`` is that of both half-sets, (2, g, n // 2 + 1)."""
    posed, parts = item.posed, []
    inverse = (1 / sigma2[posed.half - 1]).astype(np.float32)
    for indices, images in image_batches(dataset, posed.indices):
        here = np.searchsorted(posed.indices, indices)
        group, scale = dataset.optics_group[indices], item.scale[here] * dataset.ctf_scale[indices]
        table = (dataset.terms[indices], scale, group, np.ones(len(indices), bool))
        batch = Batch(images, *table, None, aberrations=dataset.aberrations)
        pose = (posed.rotations[here], posed.shifts[here])
        parts.append(witnesses(batch, *pose, inverse[group], k_max, dataset.store.pixel_size))
    return parts


def verdict_of(run: Run, outcome: Outcome, believed: float) -> Verdict:
    """Ask the images; ``believed`` is the shell of the resolution."""
    s, checkpoint, order = run.settings, outcome.checkpoint, len(run.group)
    detail = min(believed, DETAIL * s.box / (2 * s.radius), MOST_SHELLS, s.box // 2 - 1)
    k_max = max(int(detail), min(s.first_limit, s.box // 2 - 1))
    poses = checkpoint.poses()
    best = best_of(poses.images)
    items: list[ScaledItem] = []
    for half, indices in sample(checkpoint.half_set, run.job.group_size, order):
        rows = best[np.searchsorted(poses.images[best], indices)]
        posed = PosedItem(half, indices, poses.rotations[rows], poses.shifts[rows])
        items.append(ScaledItem(posed, checkpoint.scale[indices]))
    task = partial(witnesses_of_group, sigma2=checkpoint.sigma2, k_max=k_max)
    found = run.executor.map(task, items, shared=lambda item: [run.data])
    parts: dict[int, list[Witnesses]] = {1: [], 2: []}
    for item, part in zip(items, found, strict=True):
        parts[item.posed.half] += part
    asked = [join_witnesses(*parts[half]) for half in (1, 2)]
    ratio = signal_to_noise(np.nan_to_num(outcome.curves.corrected))
    counts = [np.count_nonzero(checkpoint.half_set == half) for half in (1, 2)]
    maps = [
        run.executor.share(relaxed_map, images, run.group, ratio * len(images.axes) / count / order, run.job.seed)
        for images, count in zip(asked, counts, strict=True)
    ]
    said = [run.executor.share(preferences, asked[h], maps[1 - h], run.group) for h in (0, 1)]
    return verdict_from([run.executor.fetch(each) for each in said])


def contradicted(run: Run, outcome: Outcome, believed: float) -> bool:
    """Ask the images whether the point group is the molecule's, and warn if it is not."""
    order, counts = len(run.group), np.bincount(outcome.checkpoint.half_set, minlength=3)
    if order == 1 or counts[1:].min() < max(FEWEST, FEWEST_BY_MATE * order):
        return False
    with run.context.progress.stage("symmetry"):
        verdict = verdict_of(run, outcome, believed)
    run.context.log.debug("symmetry: %s", symmetry_line(verdict))
    if verdict.broken:
        run.context.progress.warning(contradiction(run.symmetry, run.group, verdict))
    return verdict.broken


def symmetry_line(verdict: Verdict) -> str:
    """Return the numbers of all operators but the identity."""
    numbers = zip(verdict.share[1:], verdict.confirmed[1:], verdict.luck[1:], strict=True)
    return ", ".join(f"{share:.3f}/{confirmed:.2f} ({luck:.1f} deviations)" for share, confirmed, luck in numbers)


def contradiction(symmetry: str, group: NDArray[np.float64], verdict: Verdict) -> str:
    """Return what the images say of a point group that is not the molecule's, and what to try."""
    kept = largest_subgroup(group, verdict.kept())
    kind = kind_of(group[kept])
    advice = "refine again with --symmetry C1"
    if len(kept) > 1:
        advice = f"they agree with {kind} among its axes: refine again with --symmetry {kind}, and with C1 to compare"
    share = f"{100 * verdict.share.max():.0f} % of what they match, where {100 * MOST_BROKEN:.0f} % is let pass"
    return (
        f"the images contradict the symmetry {symmetry}: freed of it, they tell views apart that it takes for the same "
        f"(by {share}), so no resolution of this map is believed; {advice}"
    )
