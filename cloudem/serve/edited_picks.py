"""Picks that somebody has added or removed on a page: a file of coordinates, and the job that makes picks of it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cloudem.errors import CloudemError, OutputExistsError, ParameterError
from cloudem.io.formats.star import quoted
from cloudem.io.storage.location import absolute, contents, join, object_store, put_if_absent, version_of
from cloudem.jobs.toml import step_toml, value_toml
from cloudem.serve.micrograph_details import MOST_PICKS, all_picks
from cloudem.serve.micrographs import Session

NAME = "picks-edited"
"""Of file, workflow and step, with a number behind it where there is one already."""

LARGEST_BODY = 1 << 20
"""Bytes of a request that says which picks were edited."""

LARGEST_COORDINATE = 1e6
"""Pixels."""

HEADING = """
data_

loop_
_rlnMicrographName #1
_rlnCoordinateX #2
_rlnCoordinateY #3
_rlnAutopickFigureOfMerit #4
"""

Pick = tuple[float, float, float]
"""x and y in pixels of the micrograph, and the score; 0 where there is none."""


@dataclass(frozen=True)
class EditedPicks:
    """What edited picks become.

    Attributes
    ----------
    star_file, star
        Name and text of the file of coordinates.
    file, text
        The same of the workflow that makes picks of it.
    command, step
        That makes them: a command, and the step of the workflow.
    said, then
        What is in the file, in words, and the command that runs the workflow.
    """

    star_file: str
    star: str
    file: str
    text: str
    command: str
    step: str
    said: str
    then: str


def edited_picks(project: str, path: str, session: Session, body: bytes) -> EditedPicks:
    """Return what edited picks become: those of all micrographs of a result, of edited ones as they are now.

    Parameters
    ----------
    project
        Its URL.
    path
        Of the results in it; empty where the project is these results.
    session
        The micrographs of these results.
    body
        JSON: ``version`` of the session, and ``picks``: for rows of its table, lists of ``[x, y, score]``.

    Raises
    ------
    ParameterError
        It says something else, or is about micrographs as they were before.
    StorageError
        The project cannot be read.
    """
    project, edited = absolute(project), _edited(session, body)
    if not path:
        raise ParameterError("what is shown is the results of a job; serve the project that they are in")
    everything = {**_before(session), **edited}
    there = set(contents(project))
    numbers = (NAME, *(f"{NAME}-{number}" for number in range(2, 10_000)))
    name = next(each for each in numbers if not there & {each, f"{each}.star", f"{each}.toml"})
    star = HEADING + "".join(_lines(everything, list(session.row_of)))
    values = {"micrographs": path, "coordinates": f"{name}.star"}
    step = step_toml("import_coordinates", name, values)
    words = [
        "cloudem", "import-coordinates", join(project, path), "--coordinates", join(project, f"{name}.star"),
        "--out", join(project, name),
    ]  # fmt: skip
    count = sum(map(len, everything.values()))
    return EditedPicks(
        f"{name}.star",
        star,
        f"{name}.toml",
        f"project = {value_toml(project)}\n\n{step}",
        shlex.join(words),
        step,
        f"{count:,} picks of {sum(map(bool, everything.values())):,} micrographs, {len(edited):,} of them edited",
        f"cloudem run {shlex.quote(join(project, f'{name}.toml'))}",
    )


def star_of_picks(session: Session) -> str:
    """Return the picks of the micrographs of a job as a STAR file, its rows as `edited_picks` has them."""
    return HEADING + "".join(_lines(_before(session), list(session.row_of)))


def _edited(session: Session, body: bytes) -> dict[str, list[Pick]]:
    try:
        said = json.loads(body)
        if said["version"] != session.version:
            raise ParameterError("the micrographs have changed meanwhile; look again")
        found = {int(row): [_pick(each) for each in picks] for row, picks in said["picks"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CloudemError):
            raise
        raise ParameterError("what was sent is no list of picks") from None
    if not found or not 0 <= min(found) <= max(found) < len(session.table):
        raise ParameterError("no picks were edited, or of micrographs that there are not")
    if max(map(len, found.values())) > MOST_PICKS:
        raise ParameterError(f"a micrograph has more than {MOST_PICKS:,} picks")
    return {session.names_of([row])[0]: picks for row, picks in found.items()}


def _pick(values: Sequence[Any]) -> Pick:
    x, y, score = (float(value or 0.0) for value in values)
    if not all(math.isfinite(value) and abs(value) < LARGEST_COORDINATE for value in (x, y, score)):
        raise ValueError("no pixel")
    return x, y, score


def _before(session: Session) -> dict[str, list[Pick]]:
    """Return the picks of the nearest results that hold some, by micrograph."""
    for place in session.places:
        with suppress(CloudemError):
            picks = all_picks(place, version_of(place))
            return {name: [(x, y, s if s == s else 0.0) for x, y, s in picks.of(name).tolist()] for name in picks.parts}
    return {}


def _lines(picks: Mapping[str, Sequence[Pick]], names: Sequence[str]) -> Iterator[str]:
    """Give the rows of the file, micrographs in the order of the table."""
    for name in names:
        for x, y, score in picks.get(name, ()):
            yield f"{quoted(name)} {x:.2f} {y:.2f} {score:.6g}\n"


def write_edited_picks(project: str, edited: EditedPicks) -> None:
    """Write both files into the project, each whole or not at all.

    Raises
    ------
    OutputExistsError
        There is another one of that name by now.
    StorageError
        It cannot be written.
    """
    for file, text in ((edited.star_file, edited.star), (edited.file, edited.text)):
        if put_if_absent(object_store(project), file, text.encode()) is None:
            raise OutputExistsError(f"{file} is there by now; try again")
