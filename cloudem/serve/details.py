"""What a job was given and what it left: parameters, inputs and outputs, from its record and what lies beside that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cloudem.errors import CloudemError, one_line
from cloudem.io.storage.groups import arrays_in, list_groups, read_attributes
from cloudem.io.storage.location import contents, join
from cloudem.jobs.base import Job, find_job, known_jobs
from cloudem.jobs.iterative import CHECKPOINT, ITERATIONS
from cloudem.jobs.parameters import label_of, option_of, places, unit_of
from cloudem.jobs.project_index import relative_to
from cloudem.report.sections.tables import value_in_words
from cloudem.text import size

LONGEST_VALUE = 300
"""Characters of a value: records may hold anything."""

MOST_ROWS = 200
"""Parameters, inputs or arrays that are listed."""


class GivenParameter(NamedTuple):
    """A parameter as it was given.

    Attributes
    ----------
    option
        By which it is given.
    text
        Its value with unit.
    default
        The default where that is another one, or "".
    changed
        Whether it is another value than the default; a parameter that has to be given is not.
    meaning
        From the declaration.
    """

    option: str
    text: str
    default: str
    changed: bool
    meaning: str


class GivenInput(NamedTuple):
    """Something that a job reads: of which parameter, where, the job of the project that made it, what it is for."""

    option: str
    place: str
    job: str | None
    meaning: str


class LeftArray(NamedTuple):
    """An array of a result: its group, name, shape and bytes in words."""

    group: str
    name: str
    shape: str
    size: str


def record_of(url: str) -> Mapping[str, Any]:
    """Return what the results under a URL say of the job that makes them; empty where they say nothing."""
    try:
        return read_attributes(url, "") or {}
    except CloudemError:
        return {}


def given_parameters(record: Mapping[str, Any]) -> list[GivenParameter]:
    """Return the parameters in a record, in the order of the declaration; none where it holds none."""
    values = record.get("parameters")
    declared = _declared(record)
    fields = declared.model_fields
    if not isinstance(values, Mapping):
        return []
    found = []
    for name in [*(name for name in fields if name in values), *(name for name in values if name not in fields)]:
        field, value, unit = fields.get(name), values[name], unit_of(str(name))
        changed, default = False, ""
        if field is not None and not field.is_required():
            usual = field.get_default(call_default_factory=True)
            usual = list(usual) if isinstance(usual, tuple) else usual  # JSON has no tuples
            changed = usual != value or isinstance(usual, bool) != isinstance(value, bool)
            default = _words(usual, unit) if changed else ""
        meaning = (field.description or "") if field is not None else ""
        found.append(GivenParameter(_label(declared, str(name)), _words(value, unit), default, changed, meaning))
    return found[:MOST_ROWS]


def given_inputs(
    record: Mapping[str, Any], known: Mapping[str, str], project: str, maker: Callable[[str], str | None]
) -> list[GivenInput]:
    """Return what a job reads, by parameter.

    Parameters
    ----------
    record
        Of the job.
    known
        What it reads of the project, by parameter, as paths relative to the project (`JobState.inputs`).
    project
        Where the project lies.
    maker
        Returns the job that made what lies at such a path, None where none did.
    """
    declared = _declared(record)
    values = record.get("parameters")
    values = values if isinstance(values, Mapping) else {}
    found = []
    for name in [*(places(declared) - {"out"} if declared is not Job else known)]:
        given = values.get(name, known.get(name))
        for one in given if isinstance(given, list) else [given]:
            if not isinstance(one, str) or not one:
                continue
            inside = known.get(name) if one is given else relative_to(project, one)
            field = declared.model_fields.get(name)
            meaning = (field.description or "") if field is not None else ""
            made_by = maker(inside) if inside else None
            found.append(GivenInput(_label(declared, name), one_line(inside or one, LONGEST_VALUE), made_by, meaning))
    return sorted(found, key=lambda one: (one.option, one.place))[:MOST_ROWS]


def left_arrays(url: str) -> list[LeftArray]:
    """Return the arrays of the groups under a URL; of iterations, those of the last one."""
    found: list[LeftArray] = []
    for group in _groups(url):
        try:
            arrays = arrays_in(url, group)
        except CloudemError:  # it is just being written or replaced, or none of ours
            continue
        for name, record in sorted(arrays.items()):
            shape = record.shape[:-1] if record.text else record.shape  # text has an axis of its bytes
            told = "×".join(f"{length:,}" for length in shape) or "1"
            found.append(LeftArray(one_line(group), one_line(name), told, size(record.stored_bytes)))
    return found[:MOST_ROWS]


def left_files(url: str) -> Sequence[str]:
    """Return the names of what else lies right under a URL."""
    try:
        return [one_line(name) for name in contents(url) if "." in name and name != "zarr.json"][:MOST_ROWS]
    except CloudemError:
        return []


def _groups(url: str) -> list[str]:
    try:
        names = list_groups(url, "")
        iterations = list_groups(url, ITERATIONS) if ITERATIONS in contents(url) else []
    except CloudemError:
        return []
    names.sort(key=lambda name: (name == CHECKPOINT, name != "result", name))
    return ["", *names, *(join(ITERATIONS, name) for name in iterations[-1:])]


def _declared(record: Mapping[str, Any]) -> type[Job]:
    kind = str(record.get("job", ""))
    return find_job(kind) if kind in known_jobs() else Job


def _label(declared: type[Job], name: str) -> str:
    return label_of(declared, name) if name in declared.model_fields else one_line(option_of(name))


def _words(value: Any, unit: str) -> str:
    return one_line(value_in_words(value, unit), LONGEST_VALUE)
