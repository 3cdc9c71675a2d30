"""Provenance of results: what made them, of what; and whether a job would make the same again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from cloudem import __version__
from cloudem.jobs.parameters import Declaration

RECORDED_PACKAGES = (
    "numpy",
    "scipy",
    "numba",
    "zarr",
    "obstore",
    "mrcfile",
    "gemmi",
    "dask",
    "distributed",
    "pydantic",
)


def job_record(job: Declaration) -> dict[str, Any]:
    """Return the provenance of a job's results: parameters, inputs, versions, machine and date, ready for JSON."""
    return {
        "job": job.name,
        "parameters": job.model_dump(mode="json"),
        "inputs": _inputs(job),
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count() or 1},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def is_of(record: Mapping[str, Any], job: Declaration) -> bool:
    """Return whether a result was made by a job with the same parameters from the same inputs."""
    return record.get("job") == job.name and differences(record, job) == ([], [])


def differences(record: Mapping[str, Any], job: Declaration) -> tuple[list[str], list[str]]:
    """Return which parameters of a job, and which of its inputs, are others than a result was made with."""
    mine, theirs = ({**given} for given in (job.model_dump(mode="json"), record.get("parameters") or {}))
    if theirs:  # an earlier version's record lacks options that are new; it did what their defaults do
        kept = {name: field.default for name, field in type(job).model_fields.items() if not field.is_required()}
        theirs = {**{name: list(v) if isinstance(v, tuple) else v for name, v in kept.items()}, **theirs}
    for name in ("out", "restart", "report"):  # which change no result
        mine.pop(name, None)
        theirs.pop(name, None)
    return _unequal(mine, theirs), _unequal(_inputs(job), record.get("inputs") or {})


def _unequal(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    names = [*mine, *(name for name in theirs if name not in mine)]
    return [name for name in names if name not in mine or name not in theirs or mine[name] != theirs[name]]


def fingerprint_of(job: Declaration) -> str:
    """Return a short text that tells a job with its parameters and inputs from any other, wherever its output lies."""
    mine = {name: value for name, value in job.model_dump(mode="json").items() if name != "out"}
    text = json.dumps([job.name, mine, _inputs(job)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _inputs(job: Declaration) -> dict[str, str]:
    """Return the inputs of a job that are there: parameter -> what tells a file, object or store from a later one."""
    from cloudem.io.storage.location import is_fsspec, version_of

    given = {name: str(value) for name, value in job if name != "out" and isinstance(value, str)}
    places = {name: value for name, value in given.items() if value.startswith(("/", "s3://")) or is_fsspec(value)}
    return {name: version for name, value in places.items() if (version := version_of(value))}


def versions() -> dict[str, str]:
    """Return the versions of cloudem, of Python and of the packages that results may depend on."""
    found = {"cloudem": __version__, "python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
