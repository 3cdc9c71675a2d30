"""What is in a project: its jobs and how they stand, and its runs and what they cost.

A project is a folder or an S3 prefix whose folders are the results of jobs: that of a workflow, or the parent of
``--out``. It is listed once. How most jobs stand says its index (`cloudem.jobs.project_index`); asked are only those
that run, and those that the index does not know or, in a folder, that have said something since.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypeVar

from cloudem.errors import CloudemError, MissingInputError, one_line
from cloudem.io.storage.groups import read_attributes
from cloudem.io.storage.location import (
    absolute,
    contents,
    exists,
    folder_of,
    folders,
    is_remote,
    join,
    object_store,
    storage_errors,
)
from cloudem.jobs.base import find_job, known_jobs
from cloudem.jobs.live import LIVE_FILE, Live, is_silent, read_live, silence_of, state_in_words
from cloudem.jobs.parameters import places
from cloudem.jobs.project_index import PAGE_OF_JOB, IndexEntry, read_index, relative_to, resolution_in
from cloudem.runs.reckoning import SILENT_S
from cloudem.runs.records import RUNS, RunState, RunStore, Status, runs_of
from cloudem.text import rough_time

MOST_UNKNOWN = 1000
"""So many folders that the index does not know are looked into."""

MOST_RUNS = 50
"""So many runs are read, the youngest."""

_CONCURRENT = 16

_LATER_S = 0.5
"""By how much a record has to be younger than what the index says, seconds: it is written just before."""

JobStanding: TypeAlias = Literal["running", "finished", "failed", "stopped", "lost", "unfinished", "unreadable"]

_T = TypeVar("_T")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class JobState:
    """A job of a project.

    Attributes
    ----------
    path
        Of its results, relative to the project; empty if the project is the results of this job.
    kind, step
        Kind of the job, and what it is called in its workflow.
    state
        ``lost``: it says that it runs, but has been silent for too long; ``unfinished``: its results are not complete
        and nothing says why; ``unreadable``: what it says of itself is damaged.
    words
        The same in words, one line: ``failed: …``.
    resolution_A
        That it states, Å; None where it states none.
    wall_s
        Seconds that its last run has taken, until now if it runs; None where that is not known.
    began, updated
        When its last run began, and when it said something last, unix seconds; 0 where that is not known.
    inputs
        What it reads of the project, by parameter, as paths relative to the project.
    live
        What it said last, of jobs that were asked; None of those whose state the index knows, and of old results.
    has_report
        Whether there is a ``report.html``.
    """

    path: str
    kind: str
    state: JobStanding
    words: str
    step: str = ""
    resolution_A: float | None = None
    wall_s: float | None = None
    began: float = 0.0
    updated: float = 0.0
    inputs: Mapping[str, str] = field(default_factory=dict)
    live: Live | None = None
    has_report: bool = False


@dataclass(frozen=True)
class RunSummary:
    """A run of a project.

    Attributes
    ----------
    name
        Of the run.
    status, words
        As its controller said last, and the same in words; ``silent`` where it should say something and does not.
    spent_usd, cap_usd, usd_per_hour
        So far, at most, and now, as it said last.
    at
        When it said so, unix seconds.
    age_s
        Seconds since then, at least 0.
    step, steps, job
        Number of the step that runs, from 0, of how many, and what it is.
    nodes
        That it has.
    """

    name: str
    status: Status | Literal["silent", "unreadable", "not started"]
    words: str
    spent_usd: float = 0.0
    cap_usd: float = 0.0
    usd_per_hour: float = 0.0
    at: float = 0.0
    age_s: float = 0.0
    step: int = 0
    steps: int = 0
    job: str = ""
    nodes: int = 0


@dataclass(frozen=True)
class Project:
    """What is in a project.

    Attributes
    ----------
    url
        Of the project.
    at
        When it was read, unix seconds.
    jobs
        Those that run first, then the youngest first.
    runs
        The youngest first.
    unknown
        Number of folders that were not looked into, because the index knows too few of them.
    """

    url: str
    at: float
    jobs: tuple[JobState, ...]
    runs: tuple[RunSummary, ...]
    unknown: int = 0

    @property
    def spent_usd(self) -> float:
        """Dollars that all of its runs have spent, as they said last."""
        return sum(run.spent_usd for run in self.runs)


def read_project(url: str, now: float | None = None) -> Project:
    """Return what is in a project.

    Parameters
    ----------
    url
        Folder or ``s3://bucket/prefix``: of a project, or of the results of one job, which then is all that there is.
    now
        Unix seconds; by default, the time.

    Raises
    ------
    MissingInputError
        There is nothing.
    StorageError
        It cannot be listed.
    """
    url, now = absolute(url).rstrip("/"), time.time() if now is None else now
    if not exists(url):
        raise MissingInputError(f"{url} does not exist; give the folder or prefix that holds your jobs' results")
    own = look_at_job(url, "", now)
    if own is not None:
        return Project(url, now, (own,), ())
    with storage_errors(url):
        names = [name for name in folders(object_store(url), "") if name != RUNS and not name.startswith(".")]
    jobs, unknown = _jobs(url, names, now)
    found = sorted(jobs, key=_newest_first)
    return Project(url, now, tuple(found), tuple(_runs(url, now)), unknown)


def _newest_first(job: JobState) -> tuple[bool, float, str]:
    """Return what jobs are sorted by; those that run by their beginning, for they say something all the time."""
    running = job.state == "running"
    return not running, -(job.began if running else job.updated), job.path


def look_at_job(project: str, path: str, now: float) -> JobState | None:
    """Return how the job stands whose results lie at a path of a project, by what lies there; None if none do."""
    place = join(project, path)
    try:
        live = read_live(place)
        record = read_attributes(place, "") or {}
        kind = live.job if live is not None else str(record.get("job") or "")
        if not kind:
            return None
        known = contents(place)
        result = (read_attributes(place, "result") or {}) if "result" in known else {}
    except CloudemError as error:
        return JobState(path, "", "unreadable", f"unreadable: {error}")
    inputs = _inputs_in_record(record, project, path)
    report = PAGE_OF_JOB in known
    resolution = resolution_in(result)
    if live is not None:
        state: JobStanding = "lost" if is_silent(live, now, silence_of(place)) else live.state
        words = state_in_words(live, now, silence_of(place))
        wall = max((now if state == "running" else live.updated) - live.began, 0.0)
        stated = live.resolution_A if resolution is None or live.state == "running" else resolution
        return JobState(
            path, one_line(kind), state, words, one_line(live.step), stated, wall, live.began, live.updated,
            inputs, live, report,
        )  # fmt: skip
    done = bool(result) or record.get("kind") == "particles"
    began, seconds = _moment_of(record.get("date")), _seconds(result.get("wall_s"))
    words = "finished" if done else "not finished: run the same command to resume"
    state = "finished" if done else "unfinished"
    if not done and 0 <= now - began < silence_of(place):  # its results come before its first word
        state, words = "running", "running: it has just begun"
    updated = began + (seconds or 0.0)
    return JobState(
        path, one_line(kind), state, words, "", resolution, seconds, began, updated, inputs, None, report
    )  # fmt: skip


def _jobs(project: str, names: Iterable[str], now: float) -> tuple[list[JobState], int]:
    """Return the jobs whose results lie in folders of a project, and how many folders were not looked into."""
    there, index = set(names), read_index(project).jobs
    tops = {path.partition("/")[0] for path in index}
    if tops - there:  # results that are one file, as masks are, or that were deleted
        tops &= there | set(contents(project))
    index = {path: entry for path, entry in index.items() if path.partition("/")[0] in tops}
    known = {path.partition("/")[0] for path in index}
    root = None if is_remote(project) else str(folder_of(project))
    settled = {path: entry for path, entry in index.items() if _is_settled(root, path, entry)}
    open_paths = [path for path in index if path not in settled]
    strangers = sorted(there - known)
    asked = [*open_paths, *strangers[:MOST_UNKNOWN]]
    looked = _all(lambda path: look_at_job(project, path, now), asked)
    jobs = [_of_entry(path, entry) for path, entry in settled.items()]
    jobs += [found for found in looked.values() if found is not None]
    return jobs, len(strangers[MOST_UNKNOWN:])


def _is_settled(root: str | None, path: str, entry: IndexEntry) -> bool:
    """Return whether the index says how a job stands: it does not run, and in a folder it has said nothing since."""
    if entry.state == "running":
        return False
    if root is None:
        return True
    try:  # thousands of times, for which Path is too slow
        said = os.stat(f"{root}/{path}/{LIVE_FILE}").st_mtime  # noqa: PTH116
    except FileNotFoundError:  # of a kind that says nothing while it runs; or its results were deleted
        return os.path.exists(f"{root}/{path}")  # noqa: PTH110
    except OSError:
        return True
    return said <= entry.updated + _LATER_S


_short = lru_cache(4096)(one_line)
"""Of names that many jobs share."""


def _of_entry(path: str, entry: IndexEntry) -> JobState:
    words = one_line(f"{entry.state}: {entry.why}") if entry.why else entry.state
    wall = max(entry.updated - entry.began, 0.0)
    return JobState(
        path, _short(entry.kind), entry.state, words, _short(entry.step), entry.resolution_A, wall, entry.began,
        entry.updated, entry.inputs, None, entry.has_report,
    )  # fmt: skip


def _inputs_in_record(record: Mapping[str, Any], project: str, path: str) -> dict[str, str]:
    """Return what a job reads of its project, by its record; also where the project was moved since."""
    values = record.get("parameters")
    kind = str(record.get("job", ""))
    if not isinstance(values, Mapping):
        return {}
    out = str(values.get("out") or "").rstrip("/")
    root = out.removesuffix(f"/{path}") if path and out.endswith(f"/{path}") else project
    names = places(find_job(kind)) if kind in known_jobs() else set(values)
    given = {name: value for name, value in values.items() if name in names and name != "out"}
    found = {name: relative_to(root, value) for name, value in given.items() if isinstance(value, str)}
    return {name: place for name, place in found.items() if place}


def _moment_of(date: Any) -> float:
    with suppress(ValueError, TypeError, OverflowError, OSError):
        return max(datetime.fromisoformat(str(date)).timestamp(), 0.0)
    return 0.0


def _seconds(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) and 0 <= value < 1e11 else None


def _runs(project: str, now: float) -> list[RunSummary]:
    names = runs_of(project)[::-1][:MOST_RUNS]
    return list(_all(lambda name: summary_of_run(project, name, now), names).values())


def summary_of_run(project: str, name: str, now: float) -> RunSummary:
    """Return how a run of a project stands, by what it says of itself; ``now`` is in unix seconds."""
    store = RunStore.of(project, name)
    try:
        state, cap = store.state(), store.wanted().max_usd
    except CloudemError as error:
        return RunSummary(name, "unreadable", one_line(f"unreadable: {error}"))
    if state is None:
        return RunSummary(name, "not started", "not started", cap_usd=cap)
    age = max(now - state.at, 0.0)
    silent = not state.over and age > SILENT_S
    return RunSummary(
        name=name,
        status="silent" if silent else state.status,
        words=_run_in_words(state, age if silent else 0.0),
        spent_usd=state.spent_usd,
        cap_usd=cap,
        usd_per_hour=0.0 if state.over else state.usd_per_hour,
        at=state.at,
        age_s=age,
        step=state.step,
        steps=state.steps,
        job=one_line(state.job),
        nodes=0 if state.over else len(state.nodes),
    )


def _run_in_words(state: RunState, silence: float) -> str:
    if silence:
        return f"silent for {rough_time(silence)}: its head may be gone; see cloudem cluster status"
    return one_line(f"{state.status}: {state.why}") if state.why else state.status


def _all(function: Callable[[_Item], _T], items: Iterable[_Item]) -> dict[_Item, _T]:
    """Return the values of a function at several items, which wait for the store at the same time."""
    items = list(items)
    if len(items) < 2:
        return {item: function(item) for item in items}
    with ThreadPoolExecutor(min(_CONCURRENT, len(items)), "cloudem-project") as pool:
        return dict(zip(items, pool.map(function, items), strict=True))
