"""What the report of a job over micrographs shows of them: its table, which were put aside, and a dozen pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.io.micrographs.tables import MICROGRAPH_TABLE, PICK_TABLE, read_micrograph_table, read_picks
from cloudem.io.storage.groups import has_group
from cloudem.io.storage.location import is_local
from cloudem.report.content import MicrographPicture
from cloudem.report.declaration import GALLERY, SESSION, Section
from cloudem.report.micrograph_columns import order_taken

if TYPE_CHECKING:
    from cloudem.model.micrographs import Micrographs

SHOWN, ASIDE_SHOWN = 12, 4
"""Pictures in a gallery, and how many of them are of micrographs that were put aside, where there are so many."""

USUAL_DIAMETER_A = 150.0
"""Of the circles around picks where the result does not say how large particles are."""


def aside_of(table: Micrographs, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Return the micrographs that go on no more, and why.

    Parameters
    ----------
    table
        Of micrographs.
    arrays
        Of a result; ``aside_micrograph`` and ``aside_reason`` are those of a selection.
    """
    found = {}
    if "problem" in table:
        names, problems = table["micrograph"].tolist(), table["problem"].tolist()
        found = {name: why for name, why in zip(names, problems, strict=True) if why}
    names, reasons = arrays.get("aside_micrograph"), arrays.get("aside_reason")
    if names is not None and reasons is not None:
        found |= dict(zip(names.tolist(), reasons.tolist(), strict=True))
    return found


def table_before_selection(url: str, parameters: Mapping[str, Any]) -> Micrographs:
    """Return the table of a result; of a selection that of all that it chose from, if it is still there.

    Raises
    ------
    CloudemError
        There is no table.
    """
    own, source = read_micrograph_table(url), parameters.get("micrographs")
    if isinstance(source, str):
        with suppress(CloudemError):
            before = read_micrograph_table(source)
            if set(own["micrograph"].tolist()) <= set(before["micrograph"].tolist()):
                return before
    return own


def micrographs_shown(
    url: str, job: str, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], sections: Sequence[Section]
) -> dict[str, Any]:
    """Return ``micrographs``, ``aside`` and ``pictures`` of `ReportContent`; nothing where no section shows them.

    Parameters
    ----------
    url
        Of the results.
    job, values
        Kind of the job, and its parameters.
    arrays
        Of the result.
    sections
        That the job declares.
    """
    if not {SESSION.draw, GALLERY.draw} & {each.draw for each in sections} or not has_group(url, MICROGRAPH_TABLE):
        return {}
    table = table_before_selection(url, values) if job == "select_micrographs" else read_micrograph_table(url)
    aside = aside_of(table, arrays)
    found: dict[str, Any] = {"micrographs": table.columns, "aside": aside}
    if any(each.draw == GALLERY.draw for each in sections) and "image" in table:
        found["pictures"] = _pictures(url, table, aside)
    return found


def _pictures(url: str, table: Micrographs, aside: Mapping[str, str]) -> list[MicrographPicture]:
    """Return pictures of micrographs evenly over the session; of what cannot be read, none."""
    names, images = table["micrograph"].tolist(), table["image"].tolist()
    picked: dict[str, list[tuple[float, float]]] = {}
    if has_group(url, PICK_TABLE):
        picks = read_picks(url)
        for name, x, y in zip(
            picks["micrograph"].tolist(), picks["coordinate_x"].tolist(), picks["coordinate_y"].tolist(), strict=True
        ):
            picked.setdefault(name, []).append((x, y))
    found = []
    for row in _chosen(table, aside):
        with suppress(CloudemError):
            opened = open_micrograph_image(images[row])
            if not opened.scales and not is_local(images[row]):
                continue  # all of the file would have to be read from afar
            grey = opened.thumbnail()
            step = opened.shape[1] / grey.shape[1]
            size = opened.pixel_size or float(table.get("pixel_size", 0.0)[row]) or 1.0
            radius = USUAL_DIAMETER_A / size / 2 / step
            circles = [((x + 0.5) / step, (y + 0.5) / step, radius) for x, y in picked.get(names[row], ())]
            found.append(MicrographPicture(names[row], grey, circles))
    return found


def _chosen(table: Micrographs, aside: Mapping[str, str]) -> list[int]:
    order, names, images = order_taken(table.columns), table["micrograph"].tolist(), table["image"].tolist()
    there = [int(row) for row in order if images[row]]
    away = [row for row in there if names[row] in aside]
    good = [row for row in there if names[row] not in aside]
    some = _evenly(away, max(min(ASIDE_SHOWN, len(away)), SHOWN - len(good)))
    return sorted([*_evenly(good, SHOWN - len(some)), *some], key=there.index)


def _evenly(rows: Sequence[int], count: int) -> list[int]:
    places = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))
    return [rows[place] for place in places]
