"""The micrographs of a job for its page: their table, which were put aside and why, and from what jobs they came.

All is looked up among the project's own jobs. What a job says of micrographs that an earlier one made (motion, spectra)
is read from that one's results, as far as they lie in the project.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError, one_line
from cloudem.io.micrographs.tables import MICROGRAPH_TABLE, PICK_TABLE, read_micrograph_table
from cloudem.io.storage.groups import has_group, read_attributes, read_group
from cloudem.io.storage.location import absolute, join, read_bytes
from cloudem.jobs.report_micrographs import aside_of
from cloudem.jobs.select_micrographs import LIMITS
from cloudem.model.micrographs import Micrographs
from cloudem.model.table import distinct
from cloudem.report.micrograph_columns import PLOTTED, listed_columns, order_taken
from cloudem.runs.project import JobState
from cloudem.serve.graph import maker_of
from cloudem.serve.micrographs_so_far import PartsRead, parts_done, table_so_far

SELECTION = "select_micrographs"

MOST_STEPS = 12
"""Jobs that are followed back from the one that is shown."""

LONGEST_WORDS = 240
"""Characters of why a micrograph is of no use."""

LARGEST_LIST = 1 << 20
"""Bytes of a list of names that is read."""


def lineage(job: JobState, known: Mapping[str, JobState]) -> list[JobState]:
    """Return a job and those of the project that its micrographs came from, the nearest first.

    Parameters
    ----------
    job
        Whose page is shown.
    known
        Jobs of the project, by name.
    """
    found = [job]
    while len(found) < MOST_STEPS:
        place = found[-1].inputs.get("micrographs", "")
        name = maker_of(place, known) if place else None
        if name is None or known[name] in found:
            break
        found.append(known[name])
    return found


@dataclass(frozen=True)
class Session:
    """The micrographs of a job.

    Attributes
    ----------
    version
        What tells this from what the job says later.
    table
        Of a selection, all that it chose from.
    aside
        Micrographs that do not go on, and why.
    places
        URLs of the job's results and of those before it, the nearest first.
    limits, keep, remove
        Of a selection: its limits by option, and the names on its lists.
    """

    version: str
    table: Micrographs
    aside: Mapping[str, str]
    places: Sequence[str]
    limits: Mapping[str, float]
    keep: frozenset[str] = frozenset()
    remove: frozenset[str] = frozenset()

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each micrograph, by name."""
        return {name: row for row, name in enumerate(self.table["micrograph"].tolist())}

    def names_of(self, rows: Sequence[int]) -> list[str]:
        """Return the names of some rows; those that there are not are passed over."""
        names = self.table["micrograph"].tolist()
        return [names[row] for row in rows if 0 <= row < len(names)]

    def as_json(self) -> str:
        """Return what a page needs of all of them: names, numbers by column, and what was put aside."""
        columns = self.table.columns
        shown = []
        for column, values in listed_columns(columns):
            digits = 0 if column.form.endswith("d") else int(column.form.strip(",").lstrip(".").rstrip("f")) + 1
            rounded = np.round(values * column.factor, digits)
            shown.append(
                {
                    "key": column.name,
                    "heading": column.heading,
                    "unit": column.unit,
                    "digits": max(digits - 1, 0),
                    "factor": column.factor,
                    "meaning": column.meaning,
                    "plotted": column in PLOTTED,
                    "options": limits_about(column.name),
                    "values": [None if value != value else _plain(value) for value in rounded.tolist()],
                }
            )
        problems = columns["problem"].tolist() if "problem" in columns else []
        clock = columns["acquired"].tolist() if "acquired" in columns else []
        found = {
            "version": self.version,
            "names": columns["micrograph"].tolist(),
            "order": order_taken(columns).tolist(),
            "clock": clock if all(clock) else [],
            "columns": shown,
            "problems": {row: one_line(why, LONGEST_WORDS) for row, why in enumerate(problems) if why},
            "images": "image" in columns,
            "aspect": _aspect(columns),
            "place": shlex.quote(absolute(self.places[0])),
            "limits": dict(self.limits),
            "keep": sorted(self.row_of[name] for name in self.keep if name in self.row_of),
            "remove": sorted(self.row_of[name] for name in self.remove if name in self.row_of),
        }  # fmt: skip
        return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def _aspect(columns: Mapping[str, NDArray[Any]]) -> float:
    """Return how wide micrographs are for their height, as the first that says it."""
    if "width" in columns and "height" in columns:
        for width, height in zip(columns["width"].tolist(), columns["height"].tolist(), strict=True):
            if width > 0 and height > 0:
                return round(float(min(max(width / height, 0.5), 2.0)), 3)
    return 1.0


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def limits_about(column: str) -> dict[str, str]:
    """Return the options of ``select_micrographs`` about a column: ``least`` and ``most``, as far as there are such."""
    return {"least" if least else "most": option for option, (name, least, _) in LIMITS.items() if name == column}


def shows_micrographs(url: str, *, running: bool) -> bool:
    """Return whether the results under a URL hold micrographs; of a running job, also before its table is there."""
    with suppress(CloudemError):
        return has_group(url, MICROGRAPH_TABLE) or (running and bool(parts_done(url)))
    return False


def read_session(
    job: JobState, chain: Sequence[JobState], project: str, version: str, parts: PartsRead
) -> Session | None:
    """Return the micrographs of a job; None where it has none, or they cannot be read.

    Parameters
    ----------
    job
        Of the project.
    chain
        The job, and those before it (`lineage`).
    project
        Its URL.
    version
        Of what lies there.
    parts
        What running jobs have left so far.
    """
    places = [join(project, each.path) if each.path else project for each in chain]
    try:
        record = read_attributes(places[0], "") or {}
        parameters = record.get("parameters")
        arrays = read_group(places[0], "result")[0] if has_group(places[0], "result") else {}
        before = places[1] if len(places) > 1 else None
        if job.state == "running" and job.kind != SELECTION:
            table = table_so_far(places[0], before, parts.columns_of(places[0]))
        else:
            table = read_micrograph_table(before if job.kind == SELECTION and before else places[0])
    except CloudemError:
        return None
    if table is None:
        return None
    given = parameters if isinstance(parameters, Mapping) else {}
    with suppress(CloudemError):
        table = with_pick_counts(table, places)
    limits, lists = {}, {}
    if job.kind == SELECTION:
        limits = {name: float(given[name]) for name in LIMITS if isinstance(given.get(name), int | float)}
        lists = {name: _listed(given.get(name), project) for name in ("keep", "remove")}
    return Session(version, table, aside_of(table, arrays), places, limits, **lists)


def _listed(place: Any, project: str) -> frozenset[str]:
    """Return the names in a list, if it lies in the project."""
    if not isinstance(place, str) or not place.startswith(f"{project.rstrip('/')}/") or "/../" in place:
        return frozenset()
    with suppress(CloudemError):
        lines = (read_bytes(place) or b"")[:LARGEST_LIST].decode(errors="replace").splitlines()
        return frozenset(line.strip() for line in lines if line.strip())
    return frozenset()


def with_pick_counts(table: Micrographs, places: Sequence[str]) -> Micrographs:
    """Return a table with the number of picks in each micrograph, where the nearest results with picks say it.

    Raises
    ------
    CloudemError
        They are damaged.
    """
    if "pick_count" in table or not has_group(places[0], PICK_TABLE):
        return table
    picks = read_group(places[0], PICK_TABLE)[0]
    found = distinct(picks["micrograph"])
    counts = dict(zip(found.values.tolist(), found.counts.tolist(), strict=True))
    values: NDArray[np.int32] = np.array([counts.get(name, 0) for name in table["micrograph"].tolist()], np.int32)
    return Micrographs(table.optics, {**table.columns, "pick_count": values})
