"""What the tasks of ``cloudem estimate-ctf`` do, and what is kept of what they find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.ctf_estimate import CtfEstimate, CtfSettings, estimate_ctf
from cloudem.algorithms.thon_background import Microscope
from cloudem.errors import CloudemError, recorded_reason
from cloudem.io.micrographs.images import SUM, UNWEIGHTED, name_as_group, open_micrograph_image
from cloudem.io.storage.groups import has_group, read_group, write_same_group
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import TEXT

SPECTRA = "spectra"
"""Group whose groups hold the picture and the curves of each micrograph."""

NUMBERS = (
    "defocus_u", "defocus_v", "defocus_angle", "phase_shift", "ctf_fit_resolution", "ctf_fit_score", "ice_ring_density",
)  # fmt: skip
"""Columns that are found; unknown (NaN) where a micrograph could not be read."""

OPTIONAL = {"ice_thickness": "thickness", "tilt_axis": "tilt", "tilt_angle": "tilt"}
"""Columns that are there if they were asked for, and the setting that does."""

TILE_ARRAYS = ("x", "y", "residual", "error")
"""What is kept of tiles, see `cloudem.algorithms.ctf_tiles.TileDefocus`."""

SHOWN = 12
"""Micrographs whose pictures the report shows."""


class MicrographEntry(NamedTuple):
    """What a task needs to know of a micrograph.

    Attributes
    ----------
    name, image, pixel_size, optics
        Its name, where its images lie, Å, and the constants of the microscope.
    problem
        Why it is of no use, if that is known already.
    """

    name: str
    image: str
    pixel_size: float
    optics: OpticsGroup
    problem: str


def spectrum_place(name: str) -> str:
    """Return the group below the results that holds picture and curves of a micrograph of that name."""
    return f"{SPECTRA}/{name_as_group(name)}"


def estimate_micrographs(
    entries: Sequence[MicrographEntry], url: str, settings: CtfSettings
) -> dict[str, NDArray[Any]]:
    """Estimate the CTF of micrographs, write their pictures, and return the numbers.

    Parameters
    ----------
    entries
        The micrographs; one that cannot be read is a row with a reason.
    url
        Of the results.
    settings
        How.
    """
    rows = [_one(entry, url, settings) for entry in entries]
    names = (*NUMBERS, *OPTIONAL)
    found: dict[str, NDArray[Any]] = {name: np.array([row[name] for row in rows], np.float64) for name in names}
    found["problem"] = np.array([row["problem"] for row in rows], TEXT)
    found["unread"] = np.array([row.get("unread", False) for row in rows], np.bool_)
    if settings.tile_defocus:
        tiles = [row.get("tiles") for row in rows]
        found["each_count"] = np.array([0 if each is None else len(each.x) for each in tiles], np.int64)
        for name in TILE_ARRAYS:
            parts = [getattr(each, name) for each in tiles if each is not None]
            found[f"each_tile_{name}"] = np.concatenate([np.zeros(0), *parts]).astype(np.float32)
    return found


def _one(entry: MicrographEntry, url: str, settings: CtfSettings) -> dict[str, Any]:
    nothing: dict[str, Any] = dict.fromkeys((*NUMBERS, *OPTIONAL), np.nan)
    if entry.problem:
        return {**nothing, "problem": entry.problem}
    optics = entry.optics
    microscope = Microscope(optics.voltage, optics.spherical_aberration, optics.amplitude_contrast)
    try:
        opened = open_micrograph_image(entry.image)
        image = opened.read(UNWEIGHTED if UNWEIGHTED in opened.kinds else SUM)
        if float(image.std()) == 0:
            return {**nothing, "problem": "its image is flat: all pixels have the same value"}
        estimate = estimate_ctf(image, entry.pixel_size or opened.pixel_size, microscope, settings)
    except CloudemError as error:
        return {**nothing, "problem": recorded_reason(error, 300), "unread": True}
    _write(estimate, entry.name, url, settings)
    return {**_numbers(estimate), "problem": estimate.problem, "tiles": estimate.tiles}


def _numbers(estimate: CtfEstimate) -> dict[str, Any]:
    fit, quality = estimate.fit, estimate.quality
    return {
        "defocus_u": fit.defocus_u,
        "defocus_v": fit.defocus_v,
        "defocus_angle": fit.defocus_angle,
        "phase_shift": fit.phase_shift,
        "ctf_fit_resolution": quality.resolution,
        "ctf_fit_score": quality.score,
        "ice_ring_density": estimate.ice_ring_density,
        "ice_thickness": estimate.thickness,
        "tilt_axis": estimate.tilt_axis,
        "tilt_angle": estimate.tilt_angle,
    }


def _write(estimate: CtfEstimate, name: str, url: str, settings: CtfSettings) -> None:
    said = {
        "kind": "micrograph spectrum",
        "micrograph": name,
        "highest_frequency": float(estimate.fit.band[1]),
        "lowest_frequency": float(estimate.fit.band[0]),
        "evidence": float(estimate.fit.evidence),
        "problem": estimate.problem,
        **{name: float(value) for name, value in _numbers(estimate).items() if np.isfinite(value)},
    }
    write_same_group(url, spectrum_place(name), {"picture": estimate.picture, **estimate.curves}, said)


def ctf_columns(found: Mapping[str, NDArray[Any]], settings: CtfSettings) -> dict[str, NDArray[Any]]:
    """Return the columns of the table of micrographs, as far as settings ask for them."""
    asked = [name for name, setting in OPTIONAL.items() if getattr(settings, setting)]
    return {name: found[name] for name in (*NUMBERS, *asked, "problem")}


def report_arrays(url: str, table: Micrographs, found: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return what the report shows: numbers of all, and pictures of the worst, the median and the best of them.

    Parameters
    ----------
    url
        Of the results.
    table
        With its CTF.
    found
        Of all micrographs, in the order of the table.
    """
    bad = found["problem"] != ""
    known = [name for name in (*NUMBERS, *OPTIONAL) if np.isfinite(found[name]).any()]
    arrays = {f"ctf_{name.removeprefix('ctf_')}": np.where(bad, np.nan, found[name]) for name in (*NUMBERS, *known)}
    if "each_count" in found:
        arrays["tile_row"] = np.repeat(np.arange(len(table)), found["each_count"])
        arrays |= {f"tile_{name}": found[f"each_tile_{name}"] for name in TILE_ARRAYS}
    if bad.any():
        arrays |= {"problem_micrograph": table["micrograph"][bad], "problem_reason": found["problem"][bad]}
    names = table["micrograph"].tolist()
    rows = [row for row in _shown(found, bad) if has_group(url, spectrum_place(names[row]))]
    groups = [read_group(url, spectrum_place(names[row])) for row in rows]
    if groups:
        arrays |= {f"shown_{each}": np.stack([group[0][each] for group in groups]) for each in groups[0][0]}
        arrays["shown_highest"] = np.array([group[1]["highest_frequency"] for group in groups])
        arrays["shown_row"] = np.array(rows)
        arrays["shown_name"] = np.array([names[row] for row in rows], TEXT)
        arrays["shown_problem"] = np.array([group[1]["problem"] for group in groups], TEXT)
        for each in ("defocus_u", "defocus_v", "defocus_angle", "ctf_fit_resolution", "ctf_fit_score"):
            arrays[f"shown_{each}"] = np.array([group[1].get(each, np.nan) for group in groups])
    return arrays


def _shown(found: Mapping[str, NDArray[Any]], bad: NDArray[np.bool_]) -> list[int]:
    """Return rows by quality: good ones from best to worst, evenly spaced, and some of no use behind them."""
    order = np.argsort(found["ctf_fit_resolution"], kind="stable")
    good = [int(row) for row in order if not bad[row]]
    useless = np.flatnonzero(bad).tolist()[: max(SHOWN // 4, SHOWN - len(good))]
    places = np.unique(np.linspace(0, len(good) - 1, min(SHOWN - len(useless), len(good))).round().astype(int))
    return [*(good[place] for place in places), *useless]
