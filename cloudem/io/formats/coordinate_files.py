"""Coordinates of particles in files of other programs: STAR, BOX, Topaz, ``.cs`` and CSV, read and written.

Everywhere here x and y are pixels of the micrograph from the centre of its first pixel, rows as they are stored, as
RELION has them. BOX files of EMAN name the corner and the size of a box, whose centre is ``corner + size / 2``;
``.cs`` files of cryoSPARC have the centre as a fraction of the micrograph's width and height.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, MissingColumnError, ParameterError, shown
from cloudem.io.formats.cryosparc import read_locations_cs
from cloudem.io.formats.relion_optics import numbers_of
from cloudem.io.formats.star import StarTable, read_star
from cloudem.io.storage.files import open_table
from cloudem.io.storage.location import absolute, exists, join
from cloudem.model.table import TEXT

SUFFIXES = (".star", ".box", ".txt", ".tsv", ".cs", ".csv")
"""Names of coordinate files."""

LARGEST_COORDINATE = 1e6
"""Pixels."""

_IMAGE_SUFFIXES = (".mrc", ".mrcs", ".tif", ".tiff", ".png", ".jpg", ".jpeg", ".eer", ".st", *SUFFIXES)
_NAMES = ("micrograph", "image_name", "image", "micrograph_name", "rlnmicrographname", "name", "filename")
_X = ("x", "x_coord", "coordinate_x", "x-coordinate", "rlncoordinatex", "center_x", "x_center")
_Y = ("y", "y_coord", "coordinate_y", "y-coordinate", "rlncoordinatey", "center_y", "y_center")
_SCORES = ("score", "pick_score", "confidence", "rlnautopickfigureofmerit")


class Coordinates(NamedTuple):
    """Coordinates as files list them.

    Attributes
    ----------
    micrograph
        (n,) name of the micrograph, without folder and ending; of a file that does not say it, the file's own.
    x, y
        (n,) pixels of the micrograph.
    score
        (n,) NaN where a file does not say it.
    """

    micrograph: NDArray[Any]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    score: NDArray[np.float64]


def stem_of(name: str) -> str:
    """Return a micrograph's name without folder and endings such as ``.mrc``."""
    found = posixpath.basename(name.replace("\\", "/").partition("@")[2] or name.replace("\\", "/"))
    while PurePosixPath(found).suffix.lower() in _IMAGE_SUFFIXES:
        found = found[: -len(PurePosixPath(found).suffix)]
    return found


def read_coordinates(path: str | os.PathLike[str]) -> Coordinates:
    """Read a file of coordinates; its ending says what it is.

    Parameters
    ----------
    path
        File or URL: ``.star`` (of one micrograph, of many, or RELION's list of coordinate files), ``.box``, ``.txt`` or
        ``.tsv`` of Topaz, ``.cs``, ``.csv``.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError, MissingColumnError
        It is damaged, or holds no coordinates.
    ParameterError
        Another ending.
    """
    name = os.fspath(path)
    kind = PurePosixPath(name).suffix.lower()
    readers: dict[str, Callable[[str], Coordinates]] = {
        ".star": _read_star, ".box": _read_box, ".cs": _read_cs, ".csv": _read_text, ".txt": _read_text,
        ".tsv": _read_text,
    }  # fmt: skip
    if kind not in readers:
        raise ParameterError(f"{name} is no file of coordinates; its name should end in {', '.join(SUFFIXES)}")
    return readers[kind](name)


def join_coordinates(parts: Sequence[Coordinates]) -> Coordinates:
    """Return the coordinates of several files, in order."""
    if not parts:
        none = np.zeros(0)
        return Coordinates(np.zeros(0, TEXT), none, none, none)
    return Coordinates(*(np.concatenate([part[at] for part in parts]) for at in range(4)))


def assign_micrographs(found: Sequence[str], known: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return which micrograph each name in coordinate files means, and the names that mean none.

    Parameters
    ----------
    found
        Names as `Coordinates` has them, perhaps with an addition: ``m1_autopick``, ``m1-points``.
    known
        Names of the micrographs.
    """
    stems = {stem_of(name): name for name in known}
    by_length = sorted(stems, key=len, reverse=True)
    meant: dict[str, str] = {}
    lost: list[str] = []
    for name in dict.fromkeys(found):
        if name in stems:
            meant[name] = stems[name]
            continue
        longer = [stem for stem in by_length if name.startswith(stem) and not name[len(stem)].isalnum()]
        shorter = [stem for stem in by_length if stem.startswith(name) and not stem[len(name)].isalnum()]
        if longer or len(shorter) == 1:
            meant[name] = stems[longer[0] if longer else shorter[0]]
        else:
            lost.append(name)
    return meant, lost


def _read_star(path: str) -> Coordinates:
    blocks = read_star(path)
    for table in blocks.values():
        if "rlnMicrographCoordinates" in table:
            return _read_list(path, table)
        if "rlnCoordinateX" in table and "rlnCoordinateY" in table:
            return _of_star_table(path, table)
    if any(not table for table in blocks.values()) or not blocks:
        return join_coordinates([])
    raise MissingColumnError(f"{path} has no coordinates (rlnCoordinateX and rlnCoordinateY); give the file with them")


def _of_star_table(path: str, table: StarTable) -> Coordinates:
    x, y = (numbers_of(path, table, label, LARGEST_COORDINATE) for label in ("rlnCoordinateX", "rlnCoordinateY"))
    score = np.full(len(x), np.nan)
    if "rlnAutopickFigureOfMerit" in table:
        score = numbers_of(path, table, "rlnAutopickFigureOfMerit", np.finfo(float).max)
    names = table["rlnMicrographName"].tolist() if "rlnMicrographName" in table else [path] * len(x)
    return Coordinates(_stems(names), x, y, score)


def _read_list(path: str, table: StarTable) -> Coordinates:
    """Read the files that RELION's list names, beside it, or from the project's folder above it."""
    if "rlnMicrographName" not in table:
        raise MissingColumnError(f"{path} lists coordinate files without their micrographs (rlnMicrographName)")
    folder = posixpath.dirname(absolute(path))
    parts = []
    for name, file in zip(table["rlnMicrographName"].tolist(), table["rlnMicrographCoordinates"].tolist(), strict=True):
        part = read_coordinates(_placed(folder, str(file), path))
        parts.append(part._replace(micrograph=_stems([str(name)] * len(part.x))))
    return join_coordinates(parts)


def _placed(folder: str, name: str, path: str) -> str:
    if name.startswith("/") or "://" in name:
        return name
    above = folder
    while True:
        if exists(join(above, name)):
            return join(above, name)
        parent = posixpath.dirname(above)
        if parent == above or above.endswith(":/") or not above:
            raise FormatError(f"{path} names {name}, which is neither beside it nor in a folder above; copy it there")
        above = parent


def _read_box(path: str) -> Coordinates:
    rows = _number_rows(path, _lines(path), least=4)
    x, y, width, height = rows[:, :4].T
    score = rows[:, 4] if rows.shape[1] > 4 else np.full(len(rows), np.nan)
    return Coordinates(_stems([path] * len(rows)), x + width / 2, y + height / 2, score)


def _read_cs(path: str) -> Coordinates:
    names, x, y, score = read_locations_cs(path)
    return Coordinates(_stems(names.tolist()), x, y, score)


def _read_text(path: str) -> Coordinates:
    """Read CSV or tables of Topaz: with a heading that names the columns, or x and y alone."""
    lines = _lines(path)
    if not lines:
        return join_coordinates([])
    heading = [word.strip().strip('"').lower() for word in _split(lines[0])]
    columns = {what: _place(heading, names) for what, names in zip("xys", (_X, _Y, _SCORES), strict=True)}
    named = _place(heading, _NAMES)
    if columns["x"] is None or columns["y"] is None:
        rows = _number_rows(path, lines, least=2)
        return Coordinates(_stems([path] * len(rows)), rows[:, 0], rows[:, 1], np.full(len(rows), np.nan))
    cells = [_split(line) for line in lines[1:]]
    bad = next((at for at, row in enumerate(cells) if len(row) < len(heading)), None)
    if bad is not None:
        raise FormatError(
            f"{path}: row {bad + 2} has {len(cells[bad])} values and the heading {len(heading)}; correct it"
        )
    x, y, score = (
        np.full(len(cells), np.nan) if at is None else _numbers(path, [row[at] for row in cells], what)
        for what, at in columns.items()
    )
    names = [path] * len(cells) if named is None else [row[named] for row in cells]
    return Coordinates(_stems(names), x, y, score)


def _lines(path: str) -> list[str]:
    with open_table(path) as file:
        raw = file.read()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not text, so no file of coordinates: {error.reason}") from error
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _split(line: str) -> list[str]:
    words = re.split(r"[,;\t]", line) if re.search(r"[,;\t]", line) else line.split()
    return [word.strip().strip('"') for word in words]


def _place(heading: Sequence[str], names: Sequence[str]) -> int | None:
    return next((heading.index(name) for name in names if name in heading), None)


def _number_rows(path: str, lines: Sequence[str], least: int) -> NDArray[np.float64]:
    rows = [_split(line) for line in lines]
    short = next((at for at, row in enumerate(rows) if len(row) < least), None)
    if short is not None:
        raise FormatError(f"{path}: row {short + 1} has {len(rows[short])} values, and at least {least} are needed")
    width = min((len(row) for row in rows), default=least)
    values = [_numbers(path, [row[at] for row in rows], str(at + 1)) for at in range(min(width, 5))]
    return np.stack(values, 1) if rows else np.zeros((0, least))


def _numbers(path: str, words: Sequence[str], what: str) -> NDArray[np.float64]:
    values = np.empty(len(words))
    for at, word in enumerate(words):
        try:
            values[at] = float(word)
        except ValueError:
            values[at] = np.inf
        if not abs(values[at]) <= LARGEST_COORDINATE:
            raise FormatError(f"{path}: {shown(word)} in column {what} is no number of pixels; correct it") from None
    return values


def _stems(names: Sequence[str]) -> NDArray[Any]:
    return np.array([stem_of(str(name)) for name in names], TEXT)


def star_of(
    x: NDArray[np.float64], y: NDArray[np.float64], score: NDArray[np.float64]
) -> Mapping[str, Mapping[str, NDArray[Any]]]:
    """Return the block of RELION's coordinate file of one micrograph."""
    table = {"rlnCoordinateX": _printed(x), "rlnCoordinateY": _printed(y)}
    if np.isfinite(score).any():
        table["rlnAutopickFigureOfMerit"] = _printed(np.nan_to_num(score))
    return {"": table}


def box_of(x: NDArray[np.float64], y: NDArray[np.float64], box: int) -> bytes:
    """Return EMAN's BOX file of one micrograph: whole pixels, corner and size."""
    left, top = (np.rint(values - box / 2).astype(int) for values in (x, y))
    return "".join(f"{a}\t{b}\t{box}\t{box}\n" for a, b in zip(left.tolist(), top.tolist(), strict=True)).encode()


def topaz_of(found: Coordinates) -> bytes:
    """Return Topaz' table of all micrographs: whole pixels."""
    x, y = np.rint(found.x).astype(int).tolist(), np.rint(found.y).astype(int).tolist()
    rows = zip(found.micrograph.tolist(), x, y, np.nan_to_num(found.score).tolist(), strict=True)
    lines = (f"{name}\t{a}\t{b}\t{score:.6g}\n" for name, a, b, score in rows)
    return ("image_name\tx_coord\ty_coord\tscore\n" + "".join(lines)).encode()


def csv_of(found: Coordinates) -> bytes:
    """Return a CSV file of all micrographs."""
    rows = zip(*(values.tolist() for values in found), strict=True)
    lines = (f'"{name}",{x:.3f},{y:.3f},{score:.6g}\n' for name, x, y, score in rows)
    return ("micrograph,x,y,score\n" + "".join(lines)).encode()


def _printed(values: NDArray[np.float64]) -> NDArray[Any]:
    return np.array([f"{value:.6f}" for value in values.tolist()], TEXT)
