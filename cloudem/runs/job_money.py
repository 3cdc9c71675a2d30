"""To which submitted run a job of a project belongs, and what the run says of its money; few records are read.

A job belongs to the youngest run that has it as a step, of its kind and at its place, if it began while that run was
there: somebody may have run it again on their own machine since.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from cloudem.cloud.catalogue import LOCAL
from cloudem.cloud.planning.estimate import Range
from cloudem.cloud.planning.plan import Plan
from cloudem.errors import CloudemError, one_line, parsing
from cloudem.io.storage.location import absolute
from cloudem.jobs.project_index import relative_to
from cloudem.runs.project import MOST_RUNS, JobState, RunSummary, summary_of_run
from cloudem.runs.records import OVER, RunRecord, RunStore, runs_of

LIST_S = 10.0
"""How old the list of a project's runs may be, seconds."""

SLACK_S = 60.0
"""By how much the clocks of a run's machines may differ."""

ENDED = (*OVER, "silent")
"""A run that stands so begins no job any more."""


@dataclass(frozen=True)
class JobMoney:
    """The run that a job belongs to.

    Attributes
    ----------
    run
        How it stands, and what it has spent, for all of its steps.
    step, steps
        Number of the job in it, from 1, and of all.
    planned_usd
        Dollars that were planned for it in all; None where that cannot be read.
    rehearsal
        Whether nothing is charged.
    """

    run: RunSummary
    step: int
    steps: int
    planned_usd: Range | None
    rehearsal: bool


class _Known(NamedTuple):
    """What never changes of a run: its steps as (kind, place), and what was planned."""

    created: float
    steps: tuple[tuple[str, str], ...]
    planned_usd: Range | None
    rehearsal: bool


class JobRuns:
    """The runs of a project, of each of which what never changes is read once.

    Parameters
    ----------
    project
        Its URL.
    """

    def __init__(self, project: str) -> None:
        self._project = absolute(project).rstrip("/")
        self._known: dict[str, _Known] = {}
        self._names: tuple[float, list[str]] = (-math.inf, [])

    def money_of(self, job: JobState, now: float) -> JobMoney | None:
        """Return the run that a job belongs to; None if it was not submitted, or its run cannot be read.

        Parameters
        ----------
        job
            Of the project.
        now
            Unix seconds.
        """
        if not job.path or not job.began:
            return None
        with suppress(CloudemError):
            for name in self._youngest():
                known = self._read(name)
                number = _number_of(known, job, self._project) if known is not None else None
                if known is None or number is None or job.began < known.created - SLACK_S:
                    continue
                run = summary_of_run(self._project, name, now)
                until = run.at if run.status in ENDED else now
                if run.at and job.began <= until + SLACK_S:
                    return JobMoney(run, number, len(known.steps), known.planned_usd, known.rehearsal)
        return None

    def _youngest(self) -> list[str]:
        at, names = self._names
        if time.monotonic() - at > LIST_S:
            names = runs_of(self._project)[::-1][:MOST_RUNS]
            self._names = time.monotonic(), names
        return names

    def _read(self, name: str) -> _Known | None:
        if name not in self._known:
            try:
                self._known[name] = _known(RunStore.of(self._project, name).record())
            except CloudemError:  # it is just being made, or damaged
                return None
        return self._known[name]


def _known(record: RunRecord) -> _Known:
    steps = tuple((str(step.get("job", "")), str(step.get("out", "")).rstrip("/")) for step in record.steps)
    return _Known(record.created, steps, _planned(record), record.region == LOCAL)


def _planned(record: RunRecord) -> Range | None:
    with suppress(CloudemError), parsing(one_line(f"the plan of {record.name} is damaged"), "submit it again"):
        found = Range(*map(float, Plan.from_json(record.plan).usd))
        return found if all(0 <= usd < 1e9 for usd in found) else None
    return None


def _number_of(known: _Known, job: JobState, project: str) -> int | None:
    """Return which step of a run a job is, from 1; also where the project was copied or moved since."""
    moved = not any(relative_to(project, out) for _, out in known.steps)
    for number, (kind, out) in enumerate(known.steps, start=1):
        if kind == job.kind and (out.endswith(f"/{job.path}") if moved else relative_to(project, out) == job.path):
            return number
    return None
