"""Workflow files: the jobs that make a structure, one after the other, in one project.

::

    project = "s3://bucket/apoferritin"      # where everything is; relative paths mean inside it
    name = "first-map"                       # optional: of the run, by default the file's
    region = "eu-central-1"                  # optional: where to rent machines

    [[step]]
    job = "refine3d"                         # parameters as in a job file
    particles = "particles.zarr"
    reference = "start.mrc"
    diameter_A = 320
    out = "refine"                           # optional for folders of results: by default the step's name

    [[step]]
    job = "postprocess"
    name = "sharpen"                         # optional: by default the job's
    halves = "refine"

A job file, as ``cloudem run`` takes it, is a workflow too: without a project, so that its paths mean this machine's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudem.errors import ParameterError, shown
from cloudem.jobs.base import Job, find_job
from cloudem.jobs.parameters import places
from cloudem.jobs.toml import read_toml

HEADER = ("project", "name", "region", "step")
"""What may stand at the top of a workflow file."""

_NOT_NAME = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class Step:
    """A job and what it is called in its workflow."""

    name: str
    job: Job


@dataclass(frozen=True)
class Workflow:
    """Jobs one after the other.

    Attributes
    ----------
    project
        Folder or URL in which they work; empty for a job file.
    name
        Lower case letters, digits and hyphens.
    region
        Where to rent machines; empty if the file does not say.
    steps
        At least one, each of another name.
    """

    project: str
    name: str
    region: str
    steps: tuple[Step, ...]


def read_workflow(path: str) -> Workflow:
    """Read a workflow file or a job file.

    Raises
    ------
    MissingInputError
        There is no such file.
    ParameterError
        It is no TOML, has no steps, or a step names no job or gives it what it cannot use.
    """
    table = read_toml(path, "a workflow file or a job file")
    try:
        return workflow_of(table, Path(path).stem)
    except ParameterError as error:
        raise ParameterError(f"{path}: {error}") from None


def workflow_of(table: Mapping[str, Any], name: str) -> Workflow:
    """Return the workflow of a parsed file; ``name`` is what it is called if the file does not say.

    Raises
    ------
    ParameterError
        As for :func:`read_workflow`.
    """
    jobs = table.get("job")
    if isinstance(jobs, list):  # a job file of several calls the job "name"
        if len(table) > 1:
            others = ", ".join(key for key in table if key != "job")
            raise ParameterError(f"it has {others} outside of [[job]]; move it into a job")
        given = [entry if isinstance(entry, Mapping) else {} for entry in jobs or [{}]]
        several = [{**entry, "job": entry.get("name"), "name": None} for entry in given]
        return Workflow("", _plain(name), "", _steps(several, ""))
    if jobs is not None or not table.keys() & set(HEADER):
        return Workflow("", _plain(name), "", _steps([dict(table)], ""))
    wrong = ", ".join(key for key in table if key not in HEADER)
    if wrong:
        raise ParameterError(
            f"got {wrong} at the top, where only {', '.join(HEADER)} may be; move parameters into a [[step]]"
        )
    entries = table.get("step", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise ParameterError('there is no step; write [[step]] and below it job = "refine3d" with its parameters')
    project = _text(table, "project")
    if not project:
        raise ParameterError('no project is set; write project = "s3://bucket/prefix", or a folder, at the top')
    from cloudem.io.storage.location import absolute

    project = absolute(project)
    return Workflow(project, _plain(_text(table, "name") or name), _text(table, "region"), _steps(entries, project))


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise ParameterError(f"{key}: got {shown(value)}, needs text in quotes")
    return value


def _plain(name: str) -> str:
    return _NOT_NAME.sub("-", name.lower()).strip("-")[:40] or "workflow"


def _steps(entries: list[dict[str, Any]], project: str) -> tuple[Step, ...]:
    steps: dict[str, Step] = {}
    for number, entry in enumerate(entries, start=1):
        kind = entry.get("job")
        if not isinstance(kind, str):
            raise ParameterError(f'step {number} names no job; begin it with job = "refine3d"')
        given = _text(entry, "name") if entry.get("name") else ""
        name = _plain(given or (kind if kind not in steps else f"{kind}-{number}"))
        if name in steps:
            raise ParameterError(f"step {number} has the same name, {name!r}, as an earlier one; give it another name")
        values = {key: value for key, value in entry.items() if key not in ("job", "name")}
        try:
            steps[name] = Step(name, _job(kind, values, name, project))
        except ParameterError as error:
            raise ParameterError(f"step {number}, {name}: {error}") from None
    return tuple(steps.values())


def _job(kind: str, values: dict[str, Any], name: str, project: str) -> Job:
    declaration = find_job(kind)
    if project:
        if declaration.keeps_log:  # its output is a folder
            values.setdefault("out", name)
        for key in values.keys() & places(declaration):
            values[key] = _inside(project, values[key], key)
    return declaration(**values)


def _inside(project: str, place: Any, key: str) -> Any:
    """Return where a path of a step is.

    Raises
    ------
    ParameterError
        It is on this machine, and the project is not: no node could read it. Or nobody could.
    """
    from cloudem.io.storage.location import folder_of, is_local, is_remote, join

    if not isinstance(place, str) or not is_local(place):
        return place
    if not folder_of(place).is_absolute():
        return join(project, place)
    if is_remote(project):
        raise ParameterError(
            f"{key}: {place} is on this machine, where nodes cannot read it; copy it into {project} and give its name"
        )
    return place
