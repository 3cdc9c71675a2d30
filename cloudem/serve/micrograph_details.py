"""What a page shows of a single micrograph: its numbers in words, its picks, its spectrum's curves, its motion."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError
from cloudem.io.micrographs.images import name_as_group
from cloudem.io.micrographs.tables import PICK_TABLE, read_picks
from cloudem.io.storage.groups import has_group, holds_arrays, read_attributes, read_group, read_rows, shapes_in
from cloudem.io.storage.location import version_of
from cloudem.model.columns import Column
from cloudem.report.micrograph_columns import LISTED, micrograph_values
from cloudem.serve.micrographs import Session

SPECTRA = "spectra"
"""Group of results whose groups hold the picture and the curves of each micrograph."""

CURVES = ("data", "model", "quality")

MOST_PICKS = 5000
"""Of a micrograph, that are shown."""

ANGLE = Column("defocus_angle", "astigmatism at", "°", ".0f", 180 / math.pi, "From the x axis.")

DIAMETERS = ("diameter_A", "particle_diameter_A")


def details_of(session: Session, name: str) -> dict[str, Any] | None:
    """Return what is shown of a micrograph; None where there is none of that name.

    Parameters
    ----------
    session
        It belongs to.
    name
        Of the micrograph.
    """
    row = session.row_of.get(name)
    if row is None:
        return None
    table = session.table
    found: dict[str, Any] = {
        "name": name,
        "row": row,
        "numbers": _numbers(session, row),
        "shape": [int(table[side][row]) if side in table else 0 for side in ("height", "width")],
        "pixel_size_A": float(table["pixel_size"][row]) if "pixel_size" in table else 0.0,
        "aside": session.aside.get(name, ""),
    }
    for part, read in (("picks", picks_of), ("spectrum", spectrum_curves), ("track", track_of)):
        found[part] = None
        for place in session.places:
            with suppress(CloudemError, KeyError, ValueError, TypeError):
                found[part] = read(place, name)
            if found[part] is not None:
                break
    return found


def _numbers(session: Session, row: int) -> list[tuple[str, str, str]]:
    columns, found = session.table.columns, []
    for column in LISTED:
        values = micrograph_values(columns, column.name)
        nothing = column.name in ("phase_shift", "frames", "dose") and values is not None and values[row] == 0
        if values is not None and math.isfinite(values[row]) and not nothing:
            value = int(values[row]) if column.form.endswith("d") else float(values[row])
            found.append((column.heading, column.text(value), column.meaning))
    angle = columns.get("defocus_angle")
    if angle is not None and math.isfinite(angle[row]):
        found.append((ANGLE.heading, ANGLE.text(float(angle[row])), ANGLE.meaning))
    for name, heading in (("local_reason", "no local motion"), ("motion_reason", "no motion"), ("acquired", "taken")):
        text = str(columns[name][row]) if name in columns else ""
        if text:
            found.append((heading, text[:200], ""))
    return found


class PicksOfAll:
    """The picks of a result, found by micrograph."""

    def __init__(self, url: str) -> None:
        table = read_picks(url)
        x, y = table["coordinate_x"], table["coordinate_y"]
        score = table["pick_score"] if "pick_score" in table else np.full(len(x), np.nan)
        self.values = np.stack([x, y, score], axis=1)
        names = table["micrograph"]
        starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist()] if len(names) else []
        self.parts: dict[str, list[slice]] = {}
        for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
            self.parts.setdefault(str(names[start]), []).append(slice(start, stop))
        said = read_attributes(url, "result") or {}
        record = (read_attributes(url, "") or {}).get("parameters")
        places = (said, record if isinstance(record, Mapping) else {})
        sizes = [each.get(name) for each in places for name in DIAMETERS]
        self.diameter = next((float(size) for size in sizes if isinstance(size, int | float) and size > 0), 0.0)

    def of(self, name: str) -> NDArray[np.float64]:
        """Return x and y in pixels and the score of each pick of a micrograph, ``(k, 3)``."""
        parts = self.parts.get(name, [slice(0, 0)])
        return np.concatenate([self.values[part] for part in parts])


@lru_cache(4)
def all_picks(url: str, version: str) -> PicksOfAll:
    """Return the picks of a result; read once for each version of what lies there.

    Raises
    ------
    CloudemError
        There are none, or they are damaged.
    """
    return PicksOfAll(url)


def picks_of(url: str, name: str) -> dict[str, Any] | None:
    """Return the picks of a micrograph and how large particles are, Å; None where a result holds no picks."""
    if not has_group(url, PICK_TABLE):
        return None
    picks = all_picks(url, version_of(url))
    rows = picks.of(name)[:MOST_PICKS]
    return {
        "at": np.round(rows[:, :2], 1).tolist(),
        "scores": [None if value != value else round(value, 3) for value in rows[:, 2].tolist()],
        "diameter_A": picks.diameter,
    }


def spectrum_group(name: str) -> str:
    """Return the group of the spectrum of a micrograph; named as the group of its images is."""
    return f"{SPECTRA}/{name_as_group(name)}"


def spectrum_curves(url: str, name: str) -> dict[str, Any] | None:
    """Return the curves of a spectrum; None where a result holds none of this micrograph."""
    group = spectrum_group(name)
    said = read_attributes(url, group)
    if said is None:
        return None
    names = [each for each in CURVES if each in shapes_in(url, group)]
    arrays = read_rows(url, group, names, 0, 4096) if names else {}
    return {
        "highest": float(said.get("highest_frequency", 0.0)),
        **{each: [None if v != v else round(v, 3) for v in arrays[each].tolist()] for each in names},
    }


def spectrum_of(places: Sequence[str], name: str) -> NDArray[np.uint8] | None:
    """Return the picture of the spectrum of a micrograph, from the nearest results that hold it."""
    for place in places:
        with suppress(CloudemError):
            group = spectrum_group(name)
            if holds_arrays(place, group, "picture"):
                found: NDArray[np.uint8] = read_group(place, group)[0]["picture"]
                return found
    return None


@lru_cache(4)
def all_tracks(url: str, version: str) -> dict[str, NDArray[np.float64]]:
    """Return the displacements of the frames of each micrograph, Å, ``(frames, 2)``; empty where there are none."""
    names = {"micrograph", "each_count", "each_x", "each_y"}
    if not names <= shapes_in(url, "result").keys():
        return {}
    arrays = read_rows(url, "result", names, 0, sys.maxsize)
    ends = np.cumsum(arrays["each_count"].astype(np.int64))
    points = np.stack([arrays["each_x"], arrays["each_y"]], axis=1).astype(np.float64)
    if len(ends) != len(arrays["micrograph"]) or (len(ends) and ends[-1] != len(points)):
        return {}
    return dict(zip(arrays["micrograph"].tolist(), np.split(points, ends[:-1]), strict=True))


def track_of(url: str, name: str) -> list[list[float]] | None:
    """Return the motion of a micrograph from its first frame on, Å; None where a result does not say it."""
    if not has_group(url, "result"):
        return None
    track = all_tracks(url, version_of(url)).get(name)
    if track is None or len(track) < 2:
        return None
    moved: list[list[float]] = np.round(track - track[0], 2).tolist()
    return moved
