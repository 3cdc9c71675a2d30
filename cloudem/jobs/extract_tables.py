"""The tables of ``cloudem extract``: where particles are said to lie, and the table of those that were cut."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.extraction import TAKEN, cut_around, refined_coordinates, tilted_defocus
from cloudem.errors import FormatError, InconsistentDataError, MissingInputError
from cloudem.io.micrographs.tables import MICROGRAPH_TABLE, PICK_TABLE, read_picks
from cloudem.io.particle_store import RESULT_TABLE, open_particles
from cloudem.io.storage.groups import has_group
from cloudem.jobs.coordinates import SHIFTS, coordinates_of, require_coordinates, sizes_of_pixels
from cloudem.jobs.extract_tasks import FATES, MicrographPositions
from cloudem.jobs.mapping import Found
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.table import distinct

CTF_COLUMNS = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")
"""Columns that a particle has from its micrograph."""

OF_OLD_IMAGES = (
    "image_name", "same_image", "image_mean", "image_std", "store_row", "rln:rlnImageOriginalName", "subtract_half",
    "subtract_rot", "subtract_tilt", "subtract_psi", "subtract_x", "subtract_y", "subtract_scale",
)  # fmt: skip
"""Columns of particles that say something of the images that they had."""

OF_OLD_COORDINATES = (
    "rln:rlnCoordinateX", "rln:rlnCoordinateY", "cs:location/center_x_frac", "cs:location/center_y_frac",
)  # fmt: skip

ENDINGS = (".mrc", ".mrcs", ".tif", ".tiff", ".eer", ".st", ".png", ".jpg")
"""Of names of micrographs and movies, that say nothing of which one it is."""

SAME = 0.01
"""Difference of pixel sizes, as a share, that is rounding."""


class Positions(NamedTuple):
    """Where particles lie in micrographs, in the order of these.

    Attributes
    ----------
    micrograph
        Row of the micrograph of each in its table, (n,), ascending.
    places
        Pixels of the micrograph's image, (n, 2) as x, y.
    quality
        Which of two that are too close is the better one, (n,).
    particles
        What else is known of them, n rows; of picks, little.
    origins
        Where the origins of the images lie that particles had, Å, (n, 2); None where they had none.
    """

    micrograph: NDArray[np.int64]
    places: NDArray[np.float64]
    quality: NDArray[np.float64]
    particles: Particles
    origins: NDArray[np.float64] | None


def positions_of(
    place: str, micrographs: Micrographs, pixel_size: float | None, warn: Callable[[str], None]
) -> Positions:
    """Read where particles lie: picks, or particles with what they were shifted by.

    Parameters
    ----------
    place
        Results that hold picks or particles, or a particle store.
    micrographs
        Those that they are to be cut out of.
    pixel_size
        What a pixel of the coordinates is, Å; None for what is said there.
    warn
        Is told what is left out.

    Raises
    ------
    CloudemError
        Nothing there says where particles lie, or not in these micrographs.
    """
    sizes = np.asarray(micrographs["pixel_size"])
    if has_group(place, PICK_TABLE):
        picks = read_picks(place)
        kept = particles_in(picks["micrograph"], micrographs, place, warn)
        picks, rows = picks.take(kept.order), kept.rows
        coordinates = np.stack([picks["coordinate_x"], picks["coordinate_y"]], axis=1)
        scale = 1.0 if pixel_size is None else pixel_size / sizes[rows][:, None]
        columns = {name: picks[name] for name in ("micrograph", "pick_score") if name in picks}
        quality = picks["pick_score"] if "pick_score" in picks else np.zeros(len(picks))
        return Positions(rows, coordinates * scale, quality, Particles((), columns), None)
    if has_group(place, MICROGRAPH_TABLE) and not has_group(place, RESULT_TABLE):
        raise FormatError(
            f"{place} holds micrographs, and neither picks nor particles; give the results of cloudem pick or "
            "import-coordinates, or name them with --coordinates"
        )
    store = open_particles(place)
    table = store.particles
    require_coordinates(table)
    kept = particles_in(table["micrograph"], micrographs, place, warn)
    table, rows = table.take(kept.order), kept.rows
    coordinates, size = coordinates_of(table), _pixel_sizes(table, pixel_size, sizes[rows], warn)
    names = next((names for names in SHIFTS if all(name in table for name in names)), None)
    shifts = np.zeros((len(table), 2)) if names is None else np.stack([table[name] for name in names], axis=1)
    places = refined_coordinates(coordinates, shifts, size) * (size / sizes[rows])[:, None]
    quality = next((table[name] for name in ("keep", "pick_score") if name in table), np.zeros(len(table)))
    return Positions(rows, places, quality, table, cut_around(coordinates) * size[:, None])


class KeptParticles(NamedTuple):
    """Particles that lie in micrographs of a table.

    Attributes
    ----------
    order
        Their numbers, in the order of the micrographs, (m,).
    rows
        Row of the micrograph of each in its table, ascending, (m,).
    """

    order: NDArray[np.int64]
    rows: NDArray[np.int64]


def particles_in(
    names: NDArray[Any], micrographs: Micrographs, place: str, warn: Callable[[str], None]
) -> KeptParticles:
    """Return which particles lie in micrographs of a table, in its order, and the row of the micrograph of each."""
    known: list[str] = micrographs["micrograph"].tolist()
    exact, stems = {name: row for row, name in enumerate(known)}, _unique_stems(known)
    there = distinct(names)
    row_of = [exact.get(name, stems.get(_stem(name), -1)) for name in there.values.tolist()]
    rows = np.array(row_of, np.int64)[there.number] if len(names) else np.zeros(0, np.int64)
    absent = int((rows < 0).sum())
    if len(names) and absent == len(names):
        raise MissingInputError(
            f"none of the {absent:,} particles of {place} lies in one of these micrographs: the first is in "
            f"{names[0]}, where {known[0]} and others are known; give the micrographs that they were picked in"
        )
    if absent:
        warn(f"{absent:,} of {len(names):,} particles lie in micrographs that are not given; they are left out")
    order = np.argsort(rows, kind="stable")[absent:]
    return KeptParticles(order, rows[order])


def _stem(name: str) -> str:
    """Return a name without folder, and without the ending of an image; other dots are part of it."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in ENDINGS else path.name


def _unique_stems(names: list[str]) -> dict[str, int]:
    """Return the rows of names by what is left of each without folder and ending, as far as that tells them apart."""
    found: dict[str, int] = {}
    for row, name in enumerate(names):
        found[_stem(name)] = -1 if _stem(name) in found else row
    return found


def _pixel_sizes(
    table: Particles, given: float | None, of_micrographs: NDArray[np.float64], warn: Callable[[str], None]
) -> NDArray[np.float64]:
    """Return what a pixel of each particle's coordinates is, Å; that of its micrograph where they are nearly alike."""
    if given is not None:
        return np.full(len(table), given)
    try:
        said = sizes_of_pixels(table, warn)
    except InconsistentDataError:
        return of_micrographs
    return np.where(np.abs(said / of_micrographs - 1) < SAME, of_micrographs, said)


def entries_of(positions: Positions, micrographs: Micrographs) -> list[MicrographPositions]:
    """Return what is to be done about each micrograph."""
    counts = np.bincount(positions.micrograph, minlength=len(micrographs))
    edges = np.concatenate([[0], np.cumsum(counts)])
    names, images = micrographs["micrograph"].tolist(), micrographs["image"].tolist()
    problems = micrographs["problem"].tolist() if "problem" in micrographs else [""] * len(names)
    made = micrographs["image_version"].tolist() if "image_version" in micrographs else [""] * len(names)
    found = []
    for row, name in enumerate(names):
        places = np.ascontiguousarray(positions.places[edges[row] : edges[row + 1]])
        quality = np.ascontiguousarray(positions.quality[edges[row] : edges[row + 1]], np.float64)
        said = "\n".join([images[row], made[row], problems[row]]).encode() + places.tobytes() + quality.tobytes()
        identity = f"{name} {hashlib.sha256(said).hexdigest()[:32]}"
        found.append(MicrographPositions(images[row], problems[row], identity, places, quality))
    return found


def particle_table(positions: Positions, micrographs: Micrographs, found: Found, *, new_ctf: bool) -> Particles:
    """Return the table of the particles that were cut.

    Parameters
    ----------
    positions
        What was asked for.
    micrographs
        What it was cut out of.
    found
        What `cloudem.jobs.extract_tasks.extract_particles` found of all of it, in order.
    new_ctf
        Whether to take the CTF of the micrographs where particles have one of their own.
    """
    taken = np.flatnonzero(found["each_fate"] == TAKEN)
    rows = positions.micrograph[taken]
    size = np.asarray(micrographs["pixel_size"])[rows]
    centres = np.stack([found["each_x"][taken], found["each_y"][taken]], axis=1).astype(np.float64)
    table = positions.particles.take(taken).without_columns([*OF_OLD_IMAGES, *OF_OLD_COORDINATES])
    table = table.with_columns(
        micrograph=micrographs["micrograph"][rows], coordinate_x=centres[:, 0], coordinate_y=centres[:, 1],
        store_row=found["each_row"][taken],
    )  # fmt: skip
    if positions.origins is not None:
        table = _moved(table, centres * size[:, None] - positions.origins[taken])
    if new_ctf or "defocus_u" not in table:
        table = _with_ctf_of(table, micrographs, rows, centres)
    return _with_sizes(table, float(size[0])) if len(size) else table


def _moved(table: Particles, by: NDArray[np.float64]) -> Particles:
    """Return particles with what is left of their shifts once the origins of their images moved, Å, (n, 2)."""
    for names in SHIFTS:
        if all(name in table for name in names):
            table = table.with_columns(**{name: table[name] - by[:, axis] for axis, name in enumerate(names)})
    return table


def _with_ctf_of(
    table: Particles, micrographs: Micrographs, rows: NDArray[np.int64], centres: NDArray[np.float64]
) -> Particles:
    """Return particles with the optics group of their micrographs, and their CTF where it is known."""
    columns = {name: micrographs[name][rows] for name in CTF_COLUMNS if name in micrographs}
    if "defocus_u" in columns and {"tilt_axis", "tilt_angle", "height", "width"} <= micrographs.columns.keys():
        more = np.zeros(len(rows))
        for row in np.unique(rows):
            mine = rows == row
            shape = int(micrographs["height"][row]), int(micrographs["width"][row])
            axis, angle = float(micrographs["tilt_axis"][row]), float(micrographs["tilt_angle"][row])
            if np.isfinite(axis) and np.isfinite(angle):
                more[mine] = tilted_defocus(centres[mine], shape, float(micrographs["pixel_size"][row]), axis, angle)
        columns |= {name: columns[name] + more for name in ("defocus_u", "defocus_v")}
    group = micrographs["optics_group"][rows] if "optics_group" in micrographs else np.zeros(len(rows), np.int32)
    return Particles(micrographs.optics, table.columns).with_columns(optics_group=group, **columns)


def _with_sizes(table: Particles, of_micrograph: float) -> Particles:
    """Return particles whose optics groups say what a pixel of a micrograph is, Å, which their coordinates are in."""
    said = {"rlnMicrographPixelSize": f"{of_micrograph:.6f}"}
    groups = tuple(
        OpticsGroup(
            group.name,
            group.voltage,
            group.spherical_aberration,
            group.amplitude_contrast,
            {"rlnMicrographOriginalPixelSize": f"{of_micrograph:.6f}", **group.extra, **said},
        )
        for group in table.optics
    )
    return Particles(groups, table.columns)


class Fates(NamedTuple):
    """What became of positions, for people.

    Attributes
    ----------
    arrays
        For the report.
    lines
        What is left out, and why.
    """

    arrays: dict[str, NDArray[Any]]
    lines: list[str]


def fates_of(found: Found, micrographs: Micrographs) -> Fates:
    """Return what became of all positions; arguments as of `particle_table`."""
    each = np.repeat(np.arange(len(micrographs)), found["each_count"])
    lost, fate = found["problem"] != "", found["each_fate"]
    words, counts = ["extracted"], [int((fate == TAKEN).sum())]
    for number, why in FATES.items():
        words.append(why)
        counts.append(int(((fate == number) & ~lost[each]).sum()))
    words.append("in a micrograph of no use")
    counts.append(int(lost[each].sum()))
    some = [0, *(number for number, count in enumerate(counts) if number and count)]
    lines = [f"{counts[number]:,} positions left out: {words[number]}" for number in some[1:]]
    reasons = found["problem"][lost].tolist()
    if reasons:
        lines.append(f"{len(reasons):,} micrographs are of no use; the first {reasons[0]}")
    arrays = {
        "fate_words": np.array(words)[some],
        "fate_positions": np.array(counts)[some],
        "fate_share": np.array(counts)[some] / max(len(fate), 1),
        "particles_each": np.bincount(each[fate == TAKEN], minlength=len(micrographs)),
    }
    if reasons:
        arrays |= {"lost_micrograph": micrographs["micrograph"][lost], "lost_reason": found["problem"][lost]}
    return Fates(arrays, lines)
