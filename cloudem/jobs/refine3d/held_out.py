"""What images know of the other half-set's map on shells that had no part in their poses: evidence beside the FSC.

In each iteration that asks, those are the shells beyond the limit that it scores. As the limit rises, images are asked
about each shell for as long as it lies beyond, and the last answer stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import best_of
from cloudem.algorithms.evidence import luck
from cloudem.algorithms.expectation import IterationPlan
from cloudem.algorithms.refinement import LEAKAGE
from cloudem.execution.executor import Shared
from cloudem.execution.task_names import labelled
from cloudem.io.storage.groups import read_group
from cloudem.jobs.base import Context
from cloudem.jobs.dataset import Dataset
from cloudem.jobs.iterative import ITERATIONS
from cloudem.jobs.refine3d.tasks import Found, Item, PosedItem, gains_of_group
from cloudem.jobs.results import HELD_OUT


class HeldOut(NamedTuple):
    """By how many standard deviations images match their own side of the other half-set's map better than another's."""

    evidence: float
    """On the `LEAKAGE` shells beyond the limit together; 0 where nobody asked."""
    by_shell: NDArray[np.float64]
    """On each shell beyond the limit, (n // 2 + 1,); NaN on the others."""

    @classmethod
    def unasked(cls, box: int) -> HeldOut:
        """Return what is known if nobody asks."""
        return cls(0.0, np.full(box // 2 + 1, np.nan))


def ask_held_out(
    context: Context,
    data: Shared[Dataset],
    volumes: Sequence[Shared[NDArray[np.complex64]]],
    plan: IterationPlan,
    asked: Sequence[Item],
    found: Sequence[Found],
) -> HeldOut:
    """Compare images with the map of the other half-set, beyond what decided their poses.

    Nothing but these sums passes from one half-set to the other.

    Parameters
    ----------
    context, plan
        Of the run and of its iteration.
    data
        The particles.
    volumes
        For the images of each half-set, the padded half-volume of the *other* one's masked map.
    asked
        Groups of images.
    found
        Poses of each half-set.
    """
    first, last = plan.k_score + 1, plan.k_insert
    known = HeldOut.unasked(plan.box)
    if first > last:
        return known
    items = []
    for item in asked:
        poses = found[item.half - 1].poses
        best = best_of(poses.images)
        rows = best[np.searchsorted(poses.images[best], item.indices)]
        items.append(PosedItem(item.half, item.indices, poses.rotations[rows], poses.shifts[rows]))
    task = partial(gains_of_group, url=context.url, shells=(first, last))
    with labelled(step="evidence"):
        parts = context.executor.map(task, items, shared=lambda item: (data, volumes[item.half - 1]))
        gain = np.concatenate(list(parts))
    known.by_shell[first : last + 1] = [luck(column) for column in gain.T]
    evidence = luck(gain[:, :LEAKAGE].sum(axis=1))
    context.log.debug("evidence on shells %d to %d: %.2f standard deviations", first, first + LEAKAGE - 1, evidence)
    return known._replace(evidence=evidence)


def last_answers(url: str, last: NDArray[np.float64], iteration: int) -> NDArray[np.float64]:
    """Return what images last said of each shell in a run: an array as `HeldOut.by_shell`.

    Parameters
    ----------
    url
        Of the results.
    last, iteration
        What they said in the last iteration, and its number.
    """
    answers = last
    for number in range(iteration - 1, 0, -1):
        arrays, _ = read_group(url, f"{ITERATIONS}/{number:03d}")
        answers = np.where(np.isfinite(answers), answers, arrays.get(HELD_OUT, np.nan))
    return np.asarray(answers, np.float64)
