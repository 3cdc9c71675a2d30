"""The index of a project, ``<project>/index.json``: how each of its jobs stood when it last began or ended.

With it whoever looks at a project of thousands of jobs lists it once and reads one object, and the ``live.json`` only
of jobs that run. Jobs write it (`note_job`), by compare and swap, since several may end at the same time. It is a
convenience: nothing is lost without it, and whoever reads a project looks into what the index does not know
(`cloudem.runs.project`). It is kept in the project of a workflow, and beside a lone job's ``OUT`` only where there is
one, or where runs were submitted from: nobody else's folders get a file that they did not ask for.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from cloudem.errors import StorageError
from cloudem.io.storage.compare_and_swap import slot
from cloudem.io.storage.location import contents, exists, is_fsspec, join, read_start, storage_errors
from cloudem.jobs.base import Job
from cloudem.jobs.changes import below, reads_from
from cloudem.jobs.live import Frozen, Live, LiveState, Moment

INDEX_FILE = "index.json"

RUNS_FOLDER = "runs"
"""Where a project keeps its runs."""

LARGEST_INDEX = 64 << 20
"""Bytes of the largest index that is read."""

PAGE_OF_JOB = "report.html"

_TRIES = 40


class IndexEntry(Frozen):
    """How a job stood when it last began or ended.

    Attributes
    ----------
    kind, step
        Kind of the job, and what it is called in its workflow.
    state, why
        As in `Live`.
    resolution_A
        That it states; None where it states none.
    began, updated
        Unix seconds.
    inputs
        Places that it reads, by parameter, relative to the project; those that lie elsewhere are left out.
    has_report
        Whether there is a ``report.html``.
    """

    kind: str
    step: str = ""
    state: LiveState
    why: str = ""
    resolution_A: float | None = None
    began: Moment
    updated: Moment
    inputs: dict[str, str] = Field(default_factory=dict)
    has_report: bool = False


class ProjectIndex(Frozen):
    """The entries by where the job's results lie, relative to the project."""

    format: Literal[1] = 1
    jobs: dict[str, IndexEntry] = Field(default_factory=dict)


def read_index(project: str) -> ProjectIndex:
    """Return the index of a project; an empty one where there is none, or it cannot be read."""
    found = read_start(join(project, INDEX_FILE), LARGEST_INDEX)
    return ProjectIndex() if found is None else _parsed_index(found[0])


def relative_to(project: str, place: str) -> str | None:
    """Return where a place lies in a project; None if it does not lie there."""
    root = project.rstrip("/")
    return place[len(root) + 1 :].rstrip("/") if below(place, root) and len(place.rstrip("/")) > len(root) else None


def project_of(job: Job, workflow_project: str = "") -> str:
    """Return the project whose index a job belongs in: that of its workflow, or the parent of ``OUT``; "" for none."""
    if is_fsspec(job.out) or job.reads_out:
        return ""
    if workflow_project and relative_to(workflow_project, job.out):
        return workflow_project
    parent = job.out.rstrip("/").rpartition("/")[0]
    if not parent or parent.endswith(":/"):  # a bucket, or the root of the machine
        return ""
    known = exists(join(parent, INDEX_FILE)) or exists(join(parent, RUNS_FOLDER, ""))
    return parent if known else ""


def note_job(job: Job, live: Live, workflow_project: str = "") -> None:
    """Note in the index of its project, if there is one, how a job stands.

    Raises
    ------
    CloudemError
        The storage fails, or others change the index all the time.
    """
    project = project_of(job, workflow_project)
    path = relative_to(project, job.out) if project else None
    if path:
        _swap(project, path, entry_of(job, live, project))


def entry_of(job: Job, live: Live, project: str) -> IndexEntry:
    """Return the entry of a job that has begun or ended."""
    from cloudem.io.storage.groups import read_attributes

    places = {name: relative_to(project, place) for name, place in reads_from(job).items()}
    result = (read_attributes(job.out, "result") or {}) if live.state == "finished" else {}
    return IndexEntry(
        kind=live.job,
        step=live.step,
        state=live.state,
        why=live.why,
        resolution_A=resolution_in(result) or live.resolution_A,
        began=live.began,
        updated=live.updated,
        inputs={name: place for name, place in places.items() if place},
        has_report=PAGE_OF_JOB in contents(job.out),
    )


def resolution_in(result: Mapping[str, Any]) -> float | None:
    """Return the resolution that a result states, Å; None where it states none."""
    found = result.get("resolution_A")
    return float(found) if isinstance(found, float | int) and 0 < found < 1e6 else None


def _swap(project: str, path: str, entry: IndexEntry) -> None:
    place = slot(project, INDEX_FILE)
    for number in range(_TRIES):
        with storage_errors(project):
            found = place.read()
            known = ProjectIndex() if found is None else _parsed_index(found[0])
            changed = ProjectIndex(jobs={**known.jobs, path: entry})
            data = json.dumps({"format": 1, **changed.model_dump(exclude_defaults=True)}).encode()
            if place.swap(None if found is None else found[1], data) is not None:
                return
        time.sleep(random.uniform(0, 0.05 * (1 + min(number, 10))))  # noqa: S311  so that two do not meet again
    raise StorageError(f"{project}/{INDEX_FILE} keeps changing; try again")


def _parsed_index(raw: bytes) -> ProjectIndex:
    """Return what an index says; nothing where it is damaged or of another version: who reads looks for himself."""
    try:
        return ProjectIndex.model_validate_json(raw)
    except ValidationError:
        pass
    try:  # entries that can be read are kept
        entries = json.loads(raw)["jobs"].items()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ProjectIndex()
    kept = {}
    for path, entry in entries:
        try:
            kept[path] = IndexEntry.model_validate(entry)
        except ValidationError:
            continue
    return ProjectIndex(jobs=kept)
