"""A pilot of the steps that go on as movies arrive: a few movies are taken through them here, and timed.

It tells what a movie or micrograph costs in each of these steps, with its compression, its number of particles and the
options that were given. What steps that begin anew cost, it cannot tell.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from cloudem.cloud.planning.calibration import MEASURED_SPREAD, SpeedRow
from cloudem.errors import CloudemError
from cloudem.execution.executor import SerialExecutor, Shared
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.jobs.base import Context
from cloudem.jobs.changes import below
from cloudem.jobs.growing import GrowingJob
from cloudem.jobs.import_micrographs import ImportMicrographs
from cloudem.jobs.import_movies import ImportMovies
from cloudem.jobs.progress import SilentProgress
from cloudem.runs.workflow import Workflow
from cloudem.runs.workload import MeasuredCost

I = TypeVar("I")
R = TypeVar("R")

FEW = 4
"""Movies that are timed, after one that compiles."""

LOG = logging.getLogger("cloudem.pilot")


class _Timed(SerialExecutor):
    """Runs tasks one after another, and keeps the CPU-seconds of each, with those of its threads."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def map(
        self,
        function: Callable[..., R],
        items: Sequence[I],
        *,
        shared: Callable[[I], Sequence[Shared[Any]]] = lambda item: (),
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Apply a function to every item."""

        def timed(item: I, *values: Any) -> R:
            begun = time.process_time()
            found = function(item, *values)
            self.seconds.append(time.process_time() - begun)
            return found

        return super().map(timed, items, shared=shared, on_done=on_done)


def pilot_of_movies(workflow: Workflow, speed: Callable[[], SpeedRow]) -> dict[str, MeasuredCost]:
    """Take a few movies, or micrographs, through the first steps of a workflow.

    Parameters
    ----------
    workflow
        All of it.
    speed
        Returns the speed of this machine; asked only if anything was timed.

    Returns
    -------
    dict
        Cost of each step that goes on with what is new, by name; without those behind one that failed. Empty if the
        first step finds no movies or micrographs.
    """
    first = workflow.steps[0].job if workflow.steps else None
    if not isinstance(first, ImportMovies | ImportMicrographs):
        return {}
    found: dict[str, MeasuredCost] = {}
    with tempfile.TemporaryDirectory(prefix="cloudem-pilot-") as folder:
        places: dict[str, str] = {}
        for step in workflow.steps:
            if not isinstance(step.job, GrowingJob):
                continue
            try:
                job = at_copies(first.few(FEW + 1) if step.job is first else step.job, places, f"{folder}/{step.name}")
                seconds = _timed(job)
            except CloudemError as error:
                LOG.warning("the pilot ends at %s: %s", step.name, error)
                break
            places[step.job.out] = job.out
            if step.job is not first and seconds:
                found[step.name] = cost_of(seconds, speed())
    return found


def at_copies(job: GrowingJob, places: Mapping[str, str], out: str) -> GrowingJob:
    """Return a job that reads copies of what earlier steps make, and writes elsewhere.

    Parameters
    ----------
    job
        Of a workflow.
    places
        Where the copies are, by the outputs of the steps before it.
    out
        Where it is to write.
    """
    changed: dict[str, Any] = {"out": out}
    for name in type(job).model_fields:
        value = getattr(job, name)
        for before, copy in places.items():
            if name != "out" and isinstance(value, str) and below(value, before):
                changed[name] = copy + value[len(before) :]
    return job.model_copy(update=changed)


def _timed(job: GrowingJob) -> list[float]:
    """Run a job; return the CPU-seconds of its items after the first, which compiles, where they were of use."""
    with _Timed() as executor:
        job.run(Context(executor, SilentProgress(), LOG, job.out))
        items = job.growing(job.out)
    # What a job does before its items, such as learning, came first.
    seconds = executor.seconds[-math.ceil(len(items.keys) / items.size) :]
    usable = _usable(job, len(seconds))
    return [each / items.size for each, good in zip(seconds[1:], usable[1:], strict=True) if good]


def _usable(job: GrowingJob, count: int) -> list[bool]:
    """Return for each item whether the steps before found nothing wrong with it: otherwise it takes no time."""
    try:
        table = read_micrograph_table(getattr(job, job.grows[0]))
    except CloudemError:  # movies
        return [True] * count
    if "problem" not in table or len(table) != count:
        return [True] * count
    return [not why for why in table["problem"].tolist()]


def cost_of(seconds: Sequence[float], row: SpeedRow) -> MeasuredCost:
    """Return the cost of an item from CPU-seconds of some on a machine of a speed.

    The spread holds that of the items themselves, of the machine's own speed, and of the same code elsewhere.
    """
    measured = np.array(seconds)
    error = float(measured.std() / measured.mean()) / math.sqrt(len(measured))
    spread = math.exp(math.hypot(math.log(MEASURED_SPREAD), math.log(row.spread), error))
    return MeasuredCost(float(measured.mean() * row.core), spread, len(measured))
