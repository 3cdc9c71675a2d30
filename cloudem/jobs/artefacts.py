"""What jobs read and make: kinds of artefacts, where they are declared, and what is known of one before it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cloudem.cloud.planning.work import Size
from cloudem.errors import CloudemError, ParameterError
from cloudem.jobs.base import Job, find_job
from cloudem.jobs.growing import GrowingJob
from cloudem.jobs.parameters import KINDS, Kind, label_of

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

VOLUMES: tuple[Kind, ...] = ("volume", "halves", "mask")
"""Kinds that lie in a file of their own as well as in a result."""


def kinds_read(field: FieldInfo) -> tuple[Kind, ...]:
    """Return the kinds of artefacts that a parameter takes; none if it is no input."""
    extra = field.json_schema_extra
    found: Any = extra.get("reads", ()) if isinstance(extra, dict) else ()
    return tuple(found)


def inputs_of(job: Job) -> dict[str, str]:
    """Return the places of the inputs that were given, by parameter."""
    values = {name: getattr(job, name) for name, field in type(job).model_fields.items() if kinds_read(field)}
    return {name: str(value) for name, value in values.items() if value}


def made_by(job: Job) -> dict[str, tuple[Kind, ...]]:
    """Return the kinds of what a job makes, by place."""
    return {f"{job.out}/{name}" if name else job.out: kinds for name, kinds in type(job).makes.items()}


def check_kinds(job: Job, steps: Mapping[str, Job]) -> None:
    """Make sure that what a job reads is of a kind that it can use, as far as that is stated anywhere.

    Earlier steps declare what they make; stores and results that are there say it themselves; files say nothing.

    Parameters
    ----------
    job
        What is to run.
    steps
        The jobs of the steps before, by name.

    Raises
    ------
    ParameterError
        It is of another kind, or lies in the results of a step that makes nothing of that name.
    """
    for name, place in inputs_of(job).items():
        wanted, label = kinds_read(type(job).model_fields[name]), label_of(type(job), name)
        origin, kinds = _origin(place, steps)
        if kinds is None:
            made = ", ".join(f"{what} ({said(held)})" for what, held in made_by(steps[origin]).items())
            raise ParameterError(f"{label} is {place}, which step {origin} does not make; it makes {made}")
        if kinds and not set(wanted) & set(kinds):
            by = f"is made by step {origin} and " if origin else ""
            needed = f"{job.name} needs {said(wanted, 'or')} there"
            raise ParameterError(f"{label}: {place} {by}holds {said(kinds)}; {needed}")


def _origin(place: str, steps: Mapping[str, Job]) -> tuple[str, tuple[Kind, ...] | None]:
    """Return which step makes a place, if any, and its kinds: () if nobody knows them, None if it makes no such."""
    for step, job in reversed(list(steps.items())):
        if type(job).makes and (place == job.out or place.startswith(f"{job.out}/")):
            return step, made_by(job).get(place)
    return "", kinds_at(place)


def kinds_at(place: str) -> tuple[Kind, ...]:
    """Return the kinds of what lies at a place, by what it says of itself; () where it says nothing."""
    from cloudem.io.storage.groups import read_attributes

    try:
        record = read_attributes(place, "") or {}
        if record.get("kind") == "particles":
            return ("particles",)
        return find_job(str(record["job"])).makes.get("", ()) if record.get("kind") == "result" else ()
    except (CloudemError, KeyError):  # who reads it says what is wrong with it
        return ()


def said(kinds: tuple[Kind, ...], last: str = "and") -> str:
    """Return kinds in words."""
    *most, final = (KINDS[kind] for kind in kinds)
    return f"{', '.join(most)} {last} {final}" if most else final


def size_at(place: str, kinds: tuple[Kind, ...]) -> Size:
    """Return what headers and tables say of an artefact.

    Raises
    ------
    CloudemError
        It is not there, or is not what it should be.
    """
    from cloudem.io.storage.location import is_local

    if "particles" in kinds:
        from cloudem.io.particle_store import open_particles

        store = open_particles(place)
        return Size(len(store), (store.box, store.box), store.pixel_size, store.remote, store.model is not None)
    if "movies" in kinds:
        from cloudem.io.movies.store import read_movies

        movies = read_movies(place)
        first = {name: int(movies[name][0]) for name in ("frames", "group", "height", "width")}
        frames = max(first["frames"] // first["group"], 1)
        shape: tuple[int, ...] = (frames, first["height"], first["width"])
        return Size(len(movies), shape, float(movies["pixel_size"][0]), not is_local(str(movies["movie"][0])))
    if "micrographs" in kinds:
        from cloudem.io.micrographs.tables import read_micrograph_table

        table = read_micrograph_table(place)
        if not len(table) or "height" not in table:
            return Size(len(table), remote=not is_local(place))
        shape = (int(table["height"][0]), int(table["width"][0]))
        return Size(len(table), shape, float(table["pixel_size"][0]), not is_local(str(table["image"][0])))
    if set(kinds) & set(VOLUMES):
        return Size(0, *_volume(place), not is_local(place))
    return Size(remote=not is_local(place))


def _size(job: Job, name: str) -> Size:
    """Return the size of an input; of one that grows, as much as is still to be done."""
    found = job.size_of(name)
    if found is None:
        found = size_at(getattr(job, name), kinds_read(type(job).model_fields[name]))
    if isinstance(job, GrowingJob) and name in job.grows:
        return replace(found, count=job.left())
    return found


def _volume(place: str) -> tuple[tuple[int, ...], float]:
    """Return shape and pixel size of a map: that of a result, or of an MRC file."""
    from cloudem.io.formats.mrc import read_header
    from cloudem.io.storage.groups import read_attributes

    result = read_attributes(place, "result")
    if result is not None:
        box = int(result.get("box", 0))
        return ((box,) * 3 if box else ()), float(result.get("pixel_size_A") or 0.0)
    header = read_header(place)
    return header.shape, header.pixel_size


def sizes_of(job: Job, known: Mapping[str, Size] | None = None) -> dict[str, Size]:
    """Return the sizes of a job's inputs, by parameter: those that are known, by place, and those that can be read.

    Raises
    ------
    CloudemError
        An input is not there, or is not what it should be.
    """
    known = known or {}
    return {name: known[place] if place in known else _size(job, name) for name, place in inputs_of(job).items()}


def sizes_if_known(job: Job, known: Mapping[str, Size]) -> tuple[dict[str, Size], dict[str, CloudemError]]:
    """Do as `sizes_of`, and return what was wrong with the others."""
    found: dict[str, Size] = {}
    wrong: dict[str, CloudemError] = {}
    for name, place in inputs_of(job).items():
        try:
            found[name] = known[place] if place in known else _size(job, name)
        except CloudemError as error:
            wrong[name] = error
    return found, wrong
