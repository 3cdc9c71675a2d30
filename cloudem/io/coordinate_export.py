"""Picks of a result as files of other programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.io.exporting import RECORD
from cloudem.io.formats.coordinate_files import Coordinates, box_of, csv_of, star_of, stem_of, topaz_of
from cloudem.io.formats.cryosparc import locations_to_cs
from cloudem.io.formats.star import write_star
from cloudem.io.micrographs.tables import read_micrograph_table, read_picks
from cloudem.io.storage.location import join, write_bytes
from cloudem.io.storage.outputs import new_prefix
from cloudem.model.micrographs import Micrographs
from cloudem.model.table import TEXT


def export_coordinates(
    url: str,
    folder: str,
    form: str,
    box: int = 0,
    *,
    flip_y: bool = False,
    record: Mapping[str, Any],
    guard: Callable[[], None] | None = None,
) -> tuple[int, int]:
    """Write the picks of a result into a new folder.

    Parameters
    ----------
    url
        The result.
    folder
        New folder or prefix.
    form
        "star", "box", "topaz", "cs" or "csv".
    box
        Side of boxes, pixels.
    flip_y
        Whether y is counted from the last row.
    record
        How the files were made.
    guard
        See `cloudem.io.storage.outputs.new_prefix`.

    Returns
    -------
    picks, files
        How many were written.
    """
    table, picks = read_micrograph_table(url), read_picks(url)
    names = [str(name) for name in table["micrograph"].tolist()]
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[str(name)] for name in picks["micrograph"].tolist()], np.int64)
    y = picks["coordinate_y"]
    if flip_y:
        y = table["height"][rows] - 1 - y
    found = Coordinates(picks["micrograph"], picks["coordinate_x"], y, picks.get("pick_score", np.nan))
    with new_prefix(folder, guard) as place:
        write_bytes(join(place, RECORD), json.dumps(dict(record), indent=1).encode())
        if form in ("star", "box"):
            return len(rows), _each(place, table, found, rows, form, box)
        whole = {"topaz": ("picks.txt", topaz_of), "csv": ("picks.csv", csv_of)}
        if form in whole:
            name, made = whole[form]
            write_bytes(join(place, name), made(found))
        else:
            write_bytes(join(place, "picks.cs"), _cs(table, found, rows))
    return len(rows), 1


def _each(place: str, table: Micrographs, found: Coordinates, rows: NDArray[np.int64], form: str, box: int) -> int:
    """Write a file for each micrograph, and for RELION the list of them."""
    names = [str(name) for name in table["micrograph"].tolist()]
    listed = []
    for row, name in enumerate(names):
        x, y, score = (values[rows == row] for values in found[1:])
        file = f"micrographs/{stem_of(name)}.{form}"
        if form == "box":
            write_bytes(join(place, file), box_of(x, y, box))
        else:
            write_star(join(place, file), star_of(x, y, score))
        listed.append(file)
    if form == "star":
        images = [str(image) for image in table["image"].tolist()] if "image" in table else names
        shown = [
            image if image.endswith((".mrc", ".mrcs")) else name for image, name in zip(images, names, strict=True)
        ]
        block = {"rlnMicrographName": np.array(shown, TEXT), "rlnMicrographCoordinates": np.array(listed, TEXT)}
        write_star(join(place, "coordinates.star"), {"coordinate_files": block})
    return len(names) + (form == "star")


def _cs(table: Micrographs, found: Coordinates, rows: NDArray[np.int64]) -> bytes:
    shape = np.stack([table["height"], table["width"]], 1)[rows]
    names = [str(name) for name in found.micrograph.tolist()]
    return locations_to_cs(names, found.x, found.y, found.score, shape, table["pixel_size"][rows])
