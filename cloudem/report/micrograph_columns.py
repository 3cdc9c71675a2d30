"""What is shown of each micrograph: numbers with heading, unit and form, and the order in which they were taken.

Reports and pages take it from here, so that both show the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.model.columns import Column

PLOTTED = (
    Column("defocus", "defocus", "µm", ".2f", 1e-4, "Mean of both defoci, positive for underfocus."),
    Column("ctf_fit_resolution", "CTF fit", "Å", ".1f", 1, "Resolution up to which the fitted CTF agrees."),
    Column("motion_total", "motion", "Å", ".1f", 1, "Length of the path that the specimen moved, over all frames."),
    Column("ice_ring_density", "ice ring", "", ".3f", 1, "Power of the image around 3.7 Å."),
    Column("bits", "information", "kbit", ".1f", 1e-3, "What the frames share of the specimen."),
    Column("pick_count", "picks", "", ",d", 1, "Particles that were picked."),
    Column("astigmatism", "astigmatism", "Å", ".0f", 1, "Difference of the two defoci."),
    Column("ctf_fit_score", "CTF score", "", ".3f", 1, "How well the fitted CTF agrees with the image."),
)
"""Drawn over the session, as far as they are known."""

LISTED = (
    *PLOTTED,
    Column("phase_shift", "phase shift", "°", ".0f", 180 / np.pi, "Phase shift of a phase plate."),
    Column("motion_early", "early motion", "Å", ".1f", 1, "Motion at the start."),
    Column("motion_late", "late motion", "Å", ".1f", 1, "Motion after the start."),
    Column("local_motion", "local motion", "Å", ".1f", 1, "How much the motion differs over the micrograph."),
    Column("ice_thickness", "ice", "Å", ".0f", 1, "Thickness of the ice."),
    Column("masked_fraction", "masked", "%", ".1f", 100, "Area that picking left out as junk or empty."),
    Column("dose", "dose", "e/Å²", ".1f", 1, "Electrons that the summed frames received."),
    Column("frames", "frames", "", "d", 1, "Frames that were summed."),
    Column("nominal_defocus", "nominal defocus", "µm", ".2f", 1e-4, "Defocus that the microscope showed."),
    Column("stage_x", "stage x", "µm", ".1f", 1, "Position of the stage."),
    Column("stage_y", "stage y", "µm", ".1f", 1, "Position of the stage."),
)
"""The same, and what is shown in lists and of single micrographs only."""

Columns = Mapping[str, NDArray[Any]]


def micrograph_values(columns: Columns, name: str) -> NDArray[np.float64] | None:
    """Return one of `LISTED` of all micrographs; None where the table does not have it, or knows none.

    Parameters
    ----------
    columns
        Of a table of micrographs.
    name
        Of one of `LISTED`.

    Returns
    -------
    values
        ``(n,)`` in the units of the table; NaN where it is not known.
    """
    if name in ("defocus", "astigmatism"):
        if "defocus_u" not in columns or "defocus_v" not in columns:
            return None
        u, v = columns["defocus_u"], columns["defocus_v"]
        found: NDArray[np.float64] = 0.5 * (u + v) if name == "defocus" else np.abs(u - v)
    elif name in columns and columns[name].dtype.kind in "iuf" and columns[name].ndim == 1:
        found = columns[name].astype(np.float64)
    else:
        return None
    return found if np.isfinite(found).any() else None


def listed_columns(columns: Columns) -> list[tuple[Column, NDArray[np.float64]]]:
    """Return those of `LISTED` that say something of the micrographs of a table, with their values.

    What is the same of all, such as a phase shift of 0, is left out unless it is always drawn.
    """
    found = []
    for column in LISTED:
        values = micrograph_values(columns, column.name)
        if values is None:
            continue
        known = values[np.isfinite(values)]
        if column in PLOTTED[:6] or known.max() > known.min() or column.name in ("dose", "frames"):
            found.append((column, values))
    return found


def order_taken(columns: Columns) -> NDArray[np.int64]:
    """Return the rows of a table in the order in which they were taken: by the clock where it is known of all.

    Returns
    -------
    rows
        ``(n,)``.
    """
    count = len(columns["micrograph"])
    if "acquired" not in columns:
        return np.arange(count)
    times = columns["acquired"].tolist()
    if not all(times):
        return np.arange(count)
    return np.array(sorted(range(count), key=times.__getitem__), np.int64)
