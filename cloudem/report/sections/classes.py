"""Class averages as a sheet: pictures with a scale bar, the largest class first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import one_line
from cloudem.report.blocks import Block, Drawn, Part, Words
from cloudem.report.content import ReportContent
from cloudem.report.sections.map_panels import grey_limits, picture

ACROSS = 150
"""Pixels along the picture of a class."""

MEANING = (
    "Images and share of each class, on a grey scale of its own; protein is bright. Resolution: where halves of a "
    "class correlate by 0.5, a rank among classes. Evidence: of the class against noise, median over its images, "
    "natural logarithm."
)

LONGEST_REASON = 60
"""Characters of why a class was left out."""

MOST_SHOWN = 200
"""Classes that are shown."""


def sheet(content: ReportContent) -> Drawn | None:
    """Show the averages, each on its own grey scale, with images, share, resolution and evidence below."""
    images = content.arrays.get("class_averages")
    if images is None or images.ndim != 3:
        return None
    members = _column(content, "class_members", len(images))
    total = max(float(np.nansum(members)), 1.0)
    share, resolution, evidence, kept = (
        _column(content, name, len(images))
        for name in ("class_share", "class_resolution_A", "class_evidence", "class_kept")
    )
    reasons = _texts(content, "class_reason", len(images))
    cells = []
    for number, image in enumerate(images[:MOST_SHOWN]):
        label = f"Class {number + 1}"
        told = [f"{members[number]:,.0f} · {100 * members[number] / total:.1f} %"]
        if np.isfinite(kept[number]):
            told.append(f"{100 * kept[number]:.0f} % kept{f': {reasons[number]}' if reasons[number] else ''}")
        if np.isfinite(resolution[number]):
            told.append(f"{resolution[number]:.1f} Å")
        if np.isfinite(evidence[number]):
            told.append(f"evidence {evidence[number]:.0f}")
        drawn = picture(image, *grey_limits(image, 99.8), content.pixel_size, label, ACROSS)
        cells.append(
            {
                "svg": drawn,
                "name": str(number + 1),
                "images": int(np.nan_to_num(members[number])),
                "kept": not kept[number] < 0.5,  # where nothing was selected, all are
                "told": told,
                "faint": share[number] * len(images) < 0.1 or kept[number] < 0.5,
            }
        )
    blocks: list[Block] = [Part("classes.html", {"cells": cells})]
    blocks.append(Words(MEANING))
    if len(images) > MOST_SHOWN:
        blocks.append(Words(f"The {MOST_SHOWN} largest of {len(images)} classes."))
    return Drawn("Classes", blocks)


def _column(content: ReportContent, name: str, count: int) -> NDArray[np.float64]:
    values = content.arrays.get(name)
    if values is None or np.shape(values) != (count,):
        return np.full(count, np.nan)
    return np.asarray(values, np.float64)


def _texts(content: ReportContent, name: str, count: int) -> list[str]:
    values = content.arrays.get(name)
    if values is None or np.shape(values) != (count,) or values.dtype.kind not in "UT":
        return [""] * count
    return [one_line(str(value), LONGEST_REASON) for value in values]
