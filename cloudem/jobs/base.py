"""What a job is: one declaration from which command line, checks, plan and provenance follow.

A job states its parameters once, as fields::

    class Mask(Job):
        name: ClassVar[str] = "mask"
        summary: ClassVar[str] = "Make a soft solvent mask from a map."
        examples: ClassVar[tuple[str, ...]] = ("cloudem mask map.mrc --out mask",)

        map: Place = parameter(meaning="map to make the mask from, an MRC file", positional=True)
        edge_A: float = parameter(10.0, meaning="width of the soft edge", gt=0)

The unit is part of the name (``edge_A``, ``angle_deg``, ``cs_mm``), so that it is the same in Python, on the command
line (``--edge-A``), in a job file and in the record of the result. A module that declares a job imports what is heavy
(numba, zarr, …) inside ``run`` and ``work``, because ``cloudem --help`` imports all of them.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from cloudem import __version__
from cloudem.cloud.planning.work import Size, Stage, Work
from cloudem.errors import CloudemError, MissingInputError, ParameterError, StoppedError, shown
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column
from cloudem.report.declaration import STANDARD, Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudem.execution.executor import Executor
    from cloudem.io.storage.lease import Lease
    from cloudem.jobs.progress import Progress

JOBS: dict[str, str] = {
    "import": "cloudem.jobs.import_particles:ImportParticles",
    "export": "cloudem.jobs.export:Export",
    "refine3d": "cloudem.jobs.refine3d.job:Refine3D",
    "reconstruct": "cloudem.jobs.reconstruct.job:Reconstruct",
    "postprocess": "cloudem.jobs.postprocess:Postprocess",
    "mask": "cloudem.jobs.mask:Mask",
    "simulate": "cloudem.jobs.simulate:Simulate",
    "report": "cloudem.jobs.report:Report",
}
"""Name of each job and where its declaration is; imported when asked for."""

JOBS_OF_OTHERS = "cloudem.jobs"
"""Entry points of this group are jobs, too: of packages that are installed, their name and where the declaration is."""

UNITS: dict[str, str] = {
    "A": "Å",
    "A2": "Å²",
    "deg": "°",
    "mm": "mm",
    "kV": "kV",
    "px": "px",
    "s": "s",
    "GiB": "GiB",
    "e_per_A2": "e/Å²",
    "e_per_A3": "e/Å³",
}
"""Ending of a parameter's name -> unit as people write it."""

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


Kind: TypeAlias = Literal[
    "movies", "micrographs", "coordinates", "particles", "volume", "halves", "mask", "curves", "classes", "model",
    "table", "files",
]  # fmt: skip
"""What an artefact is: what a job reads or makes."""

KINDS: dict[Kind, str] = {
    "movies": "movies",
    "micrographs": "micrographs",
    "coordinates": "coordinates of particles",
    "particles": "particles",
    "volume": "a map",
    "halves": "half-maps",
    "mask": "a mask",
    "curves": "curves",
    "classes": "classes",
    "model": "an atomic model",
    "table": "a particle table",
    "files": "files",
}
"""Kinds in words."""


def parameter(
    default: Any = PydanticUndefined,
    *,
    meaning: str,
    positional: bool = False,
    reads: tuple[Kind, ...] = (),
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """Declare one parameter of a job.

    Parameters
    ----------
    default
        Value where none is given; left out, the parameter is required.
    meaning
        What it is, in a few words, without the unit (the name has it) and without the default.
    positional
        Whether it is given without an option's name on the command line; ``tuple[str, ...]`` takes several.
    reads
        Of an input, the kinds of artefacts that may be there: the first is what it usually is.
    gt, ge, lt, le
        Bounds of a number.
    """
    extra: dict[str, Any] = {"positional": positional, "reads": list(reads)}
    return Field(default, description=meaning, gt=gt, ge=ge, lt=lt, le=le, json_schema_extra=extra)


def _absolute(url: str) -> str:
    from cloudem.io.storage.location import absolute  # takes a while, and a declaration alone needs no store

    return absolute(url)


Place: TypeAlias = Annotated[str, AfterValidator(_absolute)]
"""A file, folder or URL that a job reads or writes; absolute, so that workers and a later run mean the same."""


def places(declaration: type[Declaration]) -> set[str]:
    """Return the parameters of a job that are files, folders or URLs."""
    validator = next(part for part in get_args(Place) if isinstance(part, AfterValidator))
    return {
        name
        for name, field in declaration.model_fields.items()
        if validator in field.metadata or any(validator in get_args(part) for part in get_args(field.annotation))
    }


def unit_of(name: str) -> str:
    """Return the unit that a parameter's name ends in, as people write it; empty where it has none."""
    endings = [ending for ending in UNITS if name.endswith(f"_{ending}")]
    return UNITS[max(endings, key=len)] if endings else ""


def option_of(name: str) -> str:
    """Return the command-line option of a parameter: ``diameter_A`` -> ``--diameter-A``."""
    return "--" + name.replace("_", "-")


def is_positional(field: FieldInfo) -> bool:
    """Return whether a parameter is given without an option's name on the command line."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("positional"))


def label_of(declaration: type[Declaration], name: str) -> str:
    """Return how people give a parameter: ``--diameter-A``, or ``MAP`` if it is positional."""
    return name.upper() if is_positional(declaration.model_fields[name]) else option_of(name)


@dataclass(frozen=True)
class Inputs:
    """What a job may read that is not there yet.

    Attributes
    ----------
    made
        Outputs of the steps before it in a workflow.
    described
        What is not there is accepted, because the user said what it will hold.
    replaced
        What the same job left in ``OUT`` will be deleted first.
    """

    made: tuple[str, ...] = ()
    described: bool = False
    replaced: bool = False

    def awaited(self, place: str) -> bool:
        """Return whether a place need not be there yet, so that nothing can be known of it."""
        if any(place == out or place.startswith(f"{out}/") for out in self.made):
            return True
        from cloudem.io.storage.location import exists

        return self.described and not exists(place)


@dataclass(frozen=True)
class Preflight:
    """What a job's preflight found to say; what keeps the job from running it raised.

    Attributes
    ----------
    warnings
        Lines for the user.
    """

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a running job is given.

    Attributes
    ----------
    executor
        Runs ``map`` and ``accumulate``.
    progress
        Stages, iterations and their timings; shown live on a terminal.
    log
        Information and warnings go to the screen and to ``OUT/log.txt``, debug lines to the file alone.
    url
        Where the results go.
    lease
        Keeps other clients from writing there; None for those who look after that themselves.
    asked_to_stop
        Whether to stop at the next point from which the job can go on later.
    """

    executor: Executor
    progress: Progress
    log: logging.Logger
    url: str
    lease: Lease | None = None
    asked_to_stop: Callable[[], bool] = bool

    def stop_if_asked(self, done: str) -> None:
        """Stop here if that was asked for (by SIGUSR1): to be called where the job can go on later.

        Raises
        ------
        StoppedError
            It was.
        """
        if self.asked_to_stop():
            raise StoppedError(f"stopped after {done}, as requested; run the same command again to resume")

    def check(self) -> None:
        """Make sure that nobody else writes results there: to be called before every commit.

        Raises
        ------
        LeaseLostError
            Somebody else does, or may.
        """
        if self.lease is not None:
            self.lease.check()

    def write(self, path: str, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> None:
        """Write a group of the results (`cloudem.io.storage.groups.write_group`), unless somebody else writes there."""
        from cloudem.io.storage import groups

        groups.write_group(self.url, path, arrays, attributes, guard=self.check)

    def delete(self, path: str) -> None:
        """Delete a group of the results, unless somebody else writes there."""
        from cloudem.io.storage import groups

        self.check()
        groups.delete_group(self.url, path)


class Declaration(BaseModel):
    """Parameters as fields.

    Constructing one with values that it cannot use raises `ParameterError` with one line. A validator raises
    `ParameterError` itself where the line should be its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: ClassVar[str]

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ParameterError(_one_line(type(self), error)) from None


class Job(Declaration):
    """A job's declaration: parameters as fields, ``work`` and ``run``."""

    summary: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    keeps_log: ClassVar[bool] = True
    """Whether ``OUT`` is a folder that gets a ``log.txt``."""
    new_out: ClassVar[bool] = False
    """Whether ``OUT`` is made as a whole and must not be there before."""
    out_anywhere: ClassVar[bool] = False
    """Whether ``OUT`` is files that may lie wherever fsspec reaches; stores and results may not."""
    reads_out: ClassVar[bool] = False
    """Whether it adds to the results of another job, in their ``OUT``."""
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {}
    """Kinds of what it makes: by the name below ``OUT``, "" for ``OUT`` itself."""
    leaves: ClassVar[tuple[str, ...]] = ()
    """Where ``OUT`` is made as a whole, the names of all that it writes there: nothing else is deleted with it."""
    columns: ClassVar[tuple[Column, ...]] = (ITERATION, SECONDS, RECEIVED)
    """Of the rows that it shows while it runs, and keeps."""
    sections: ClassVar[tuple[Section, ...]] = STANDARD
    """Of its report; those that find nothing to show leave themselves out."""

    out: Place = parameter(meaning="folder for the results, or s3://bucket/prefix")

    def preflight(self, inputs: Inputs | None = None) -> Preflight:
        """Check everything that can be known without computing: of inputs, tables and headers; of results, their place.

        Called before anything is planned, rented, or run, and again by `cloudem.jobs.runner.run_job`, so that `run`
        relies on it. Reads no images and no voxels. What a job knows of its own it states in `check`.

        Parameters
        ----------
        inputs
            What earlier steps will have made; by default everything has to be there.

        Raises
        ------
        CloudemError
            What would keep the job from running.
        """
        from cloudem.io.storage.location import exists
        from cloudem.io.storage.outputs import require_out

        require_out(self.out, anywhere=self.out_anywhere)
        inputs = inputs or Inputs()
        warnings: list[str] = []
        if self.out not in inputs.made and not inputs.replaced and self.is_finished():
            return Preflight((f"already finished: {self.out} holds this result",))
        if not inputs.replaced:
            self.check_out()
        self.check(inputs, warnings.append)
        for name in sorted(places(type(self)) - {"out"}):
            place = getattr(self, name)
            if place is not None and not inputs.awaited(place) and not exists(place):
                raise MissingInputError(f"{label_of(type(self), name)}: {place} does not exist; check the path")
        return Preflight(tuple(warnings))

    def check_out(self) -> None:
        """Check that the job may write into ``OUT``, whatever lies there: nothing, its own beginnings, or others'.

        Raises
        ------
        OutputExistsError, InconsistentDataError
            It may not, or cannot go on from there.
        """
        from cloudem.io.storage.outputs import check_new

        if self.new_out:
            check_new(self.out)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check what the job knows of its own; see `preflight`. That its inputs exist is checked in any case."""

    def size_of(self, name: str) -> Size | None:
        """Return the size of the input that a parameter names, where its job knows better than its header; else None.

        `cloudem.jobs.artefacts.sizes_of` reads the headers.
        """
        return None

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the stages of the job and what it needs, from the sizes of its inputs by parameter.

        Jobs that stay small need not state it. An input that was not given has no size.
        """
        return Work((Stage(self.name),))

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return the record (`job_record`) of the complete result that lies in ``OUT``, None if there is none."""
        return None

    def is_finished(self) -> bool:
        """Return whether ``OUT`` holds what this very command makes: same parameters, same inputs."""
        try:
            record = self.kept_record()
        except CloudemError:  # it will be said by whoever reads it
            return False
        return record is not None and not getattr(self, "restart", False) and is_of(record, self)

    def begun_record(self) -> Mapping[str, Any] | None:
        """Return the record of what lies in ``OUT``, finished or not, None if nothing there says what it is."""
        from cloudem.io.storage.groups import read_attributes

        return self.kept_record() or read_attributes(self.out, "")

    def discard(self, guard: Callable[[], None]) -> None:
        """Delete the results that this job left in ``OUT``, its record last; the guard is called before each."""
        from cloudem.io.storage.groups import delete_result

        delete_result(self.out, ("report.html",), guard)

    def tidy(self, context: Context) -> None:
        """Finish what a run did not that was interrupted after it had written its result."""

    def run(self, context: Context) -> None:
        """Do the work and write the results to ``context.url``."""
        raise NotImplementedError(f"{type(self).__name__} declares no run()")


def known_jobs() -> dict[str, str]:
    """Return the name of every job and where its declaration is: those of cloudem, and those of installed packages.

    A package cannot replace a job of cloudem.
    """
    others = {point.name: point.value for point in metadata.entry_points(group=JOBS_OF_OTHERS)}
    return {**others, **JOBS} if others else JOBS


def find_job(name: str) -> type[Job]:
    """Return the declaration of the job called ``name``.

    Raises
    ------
    ParameterError
        If there is no such job.
    """
    known = JOBS if name in JOBS else known_jobs()
    if name not in known:
        raise ParameterError(
            f"there is no job {shown(name)}{_did_you_mean(name, known)}; available jobs are {', '.join(known)}"
        )
    module, _, attribute = known[name].partition(":")
    declaration = getattr(importlib.import_module(module), attribute)
    if not (isinstance(declaration, type) and issubclass(declaration, Job)):
        raise TypeError(f"{known[name]} is not a Job")
    return declaration


def job_record(job: Job) -> dict[str, Any]:
    """Return the provenance of a job's results: parameters, inputs, versions, machine and date, ready for JSON."""
    return {
        "job": job.name,
        "parameters": job.model_dump(mode="json"),
        "inputs": _inputs(job),
        "versions": versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count() or 1},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def is_of(record: Mapping[str, Any], job: Job) -> bool:
    """Return whether a result was made by a job with the same parameters from the same inputs."""
    return record.get("job") == job.name and differences(record, job) == ([], [])


def differences(record: Mapping[str, Any], job: Job) -> tuple[list[str], list[str]]:
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


def fingerprint_of(job: Job) -> str:
    """Return a short text that tells a job with its parameters and inputs from any other, wherever its output lies."""
    mine = {name: value for name, value in job.model_dump(mode="json").items() if name != "out"}
    text = json.dumps([job.name, mine, _inputs(job)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _inputs(job: Job) -> dict[str, str]:
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


def _did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _one_line(declaration: type[Declaration], error: ValidationError) -> str:
    return "; ".join(_describe(declaration, detail) for detail in error.errors())


def _describe(declaration: type[Declaration], detail: ErrorDetails) -> str:
    """Say of one wrong parameter which it is, what came and what was needed."""
    original = detail.get("ctx", {}).get("error")
    if isinstance(original, CloudemError):
        return str(original)
    if not detail["loc"]:
        return f"{declaration.name}: {detail['msg'].removeprefix('Value error, ')}"
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        return f"{declaration.name} has no parameter {shown(name)}{_did_you_mean(name, declaration.model_fields)}"
    field = declaration.model_fields[name]
    if detail["type"] == "missing":
        return f"{declaration.name} needs {label_of(declaration, name)}: {field.description}"
    unit = unit_of(name)
    needed = detail["msg"].removeprefix("Value error, ").replace("Input should be", "needs").replace("'", "")
    unit = f", in {unit}" if unit else ""
    return f"{label_of(declaration, name)}: got {shown(detail['input'])}, {needed}{unit} ({field.description})"
