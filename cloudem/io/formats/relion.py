"""What the labels of RELION's particle and micrograph STAR files mean, from version 3.0 to 5.

Version 3.0 has one table with the optics in every row (pixel size = 10⁴ rlnDetectorPixelSize / rlnMagnification, shifts
in pixels); later ones have ``data_optics`` beside ``data_particles`` or ``data_micrographs``. Labels that cloudem does
not understand travel as text and are written back.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingColumnError, ParameterError, shown
from cloudem.io.formats.grids import SOURCE_BOX, SOURCE_PIXEL_SIZE
from cloudem.io.formats.relion_optics import (
    CS_UNIT,
    differ,
    group_of_rows,
    group_pixel_sizes,
    numbers_of,
    old_pixel_size,
    optics_group_of,
    optics_of,
    shared_value,
)
from cloudem.io.formats.sources import SourceMicrographTable, SourceMovieTable, SourceTable, split_image_names
from cloudem.io.formats.star import StarTable, read_star
from cloudem.model.micrographs import Micrographs
from cloudem.model.movies import Movies
from cloudem.model.optics import EVEN, MATRIX, ODD
from cloudem.model.particles import TEXT, Particles
from cloudem.model.table import ColumnMeaning, ItemTable, distinct

CARRIED = "rln:"
"""Prefix of the columns that are carried as text."""

_OLD_SHIFTS = ("rlnOriginX", "rlnOriginY")
"""Shifts in pixels, of version 3.0."""

_STATED = ("rlnOpticsGroupName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize",
           "rlnImageSize", "rlnImageDimensionality")  # fmt: skip
"""Labels of the optics table that cloudem understands."""

_MISSING = {MATRIX[0]: "1", MATRIX[3]: "1", ODD: "[]", EVEN: "[]"}
"""What is written of a group that does not state a label that others do, where that is not 0."""

_MICROGRAPH_PIXEL_SIZE = "rlnMicrographPixelSize"
_ORIGINAL_PIXEL_SIZE = "rlnMicrographOriginalPixelSize"
_STATED_OF_MICROGRAPHS = (*_STATED[:4], _MICROGRAPH_PIXEL_SIZE)
"""The same of the optics table beside micrographs."""

_STATED_OF_MOVIES = (*_STATED_OF_MICROGRAPHS, _ORIGINAL_PIXEL_SIZE)


def read_particles_star(path: str | os.PathLike[str], *, allow_no_ctf: bool = False) -> SourceTable:
    """Read a particle STAR file.

    Parameters
    ----------
    path
        The file or its URL.
    allow_no_ctf
        Accept particles without defocus.

    Raises
    ------
    FormatError
        Not a particle STAR file, or values of the wrong type.
    MissingColumnError
        No images, no defocus, or no constants of the microscope.
    ParameterError
        No particles.
    InconsistentDataError
        Images that are not two-dimensional, an optics group that is not described.
    """
    path = os.fspath(path)
    blocks = read_star(path)
    table = _block(path, blocks, "particles", "rlnImageName", "particle images")
    rows = len(table["rlnImageName"])
    if rows == 0:
        raise ParameterError(f"{path} lists no particles: the selection is empty")
    if "rlnDefocusU" not in table and not allow_no_ctf:
        raise MissingColumnError(
            f"{path} has no defocus (_rlnDefocusU); run CTF estimation first, or give --allow-no-ctf to import without"
        )
    optics_table, group_of, moved = optics_of(path, blocks.get("optics"), table)
    used = np.unique(group_of)
    optics = tuple(
        optics_group_of(path, optics_table, group, _STATED, allow_no_ctf)
        for group in range(len(group_of_rows(optics_table)))
    )
    sizes = group_pixel_sizes(path, optics_table, table, group_of)
    boxes = np.zeros(len(optics))
    if "rlnImageSize" in optics_table:
        boxes = numbers_of(path, optics_table, "rlnImageSize")
    mixed = differ(sizes[used]) or differ(boxes[used])
    in_pixels = not sizes[used].all() and any(label in table and label + "Angst" not in table for label in _OLD_SHIFTS)
    if shared_value(path, optics_table, "rlnImageDimensionality", used, "dimensionalities", "") not in (0.0, 2.0):
        raise InconsistentDataError(
            f"{path} lists three-dimensional images (subtomograms); two-dimensional ones are read"
        )
    columns = _columns(Particles, path, table, sizes[group_of], moved)
    columns["optics_group"] = group_of.astype(np.int32)
    stacks, stack, section = split_image_names(columns["image_name"].tolist(), path)
    of_groups = tuple((float(size), int(box)) for size, box in zip(sizes, boxes, strict=True)) if mixed else ()
    common = (0.0, 0) if mixed else (float(sizes[used[0]]), int(boxes[used[0]]))
    return SourceTable(
        path, Particles(optics, columns), stacks, stack, section, *common, np.ones(rows), in_pixels, of_groups
    )


def read_micrographs_star(path: str | os.PathLike[str], *, allow_no_optics: bool = False) -> SourceMicrographTable:
    """Read a micrograph STAR file, of motion correction or CTF estimation.

    Parameters
    ----------
    path
        The file or its URL.
    allow_no_optics
        Accept micrographs without constants of the microscope; they are 0.

    Raises
    ------
    FormatError
        Not a micrograph STAR file, or values of the wrong type.
    MissingColumnError
        No micrographs, or no constants of the microscope.
    ParameterError
        No rows.
    InconsistentDataError
        Mixed pixel sizes, a micrograph listed twice, an optics group that is not described.
    """
    path = os.fspath(path)
    blocks = read_star(path)
    table = _block(path, blocks, "micrographs", "rlnMicrographName", "micrographs")
    names, _, counts = distinct(table["rlnMicrographName"])
    _need_rows(path, names, "micrographs")
    if "rlnImageName" in table:
        raise FormatError(
            f"{path} lists particles (_rlnImageName), where micrographs are needed; give the STAR file of "
            "motion correction or CTF estimation"
        )
    _need_each_once(path, names, counts, "the micrograph ")
    optics_table, group_of, moved = optics_of(path, blocks.get("optics"), table)
    optics = tuple(
        optics_group_of(path, optics_table, group, _STATED_OF_MICROGRAPHS, allow_no_optics)
        for group in range(len(group_of_rows(optics_table)))
    )
    rows, label = np.arange(len(group_of)), _MICROGRAPH_PIXEL_SIZE
    pixel_size = (
        shared_value(path, optics_table, label, np.unique(group_of), "pixel sizes", "Å")
        or shared_value(path, table, label, rows, "pixel sizes", "Å")
        or old_pixel_size(path, table)
    )
    columns = _columns(Micrographs, path, table, pixel_size, moved)
    columns["optics_group"] = group_of.astype(np.int32)
    return SourceMicrographTable(path, Micrographs(optics, columns), pixel_size)


def read_movies_star(path: str | os.PathLike[str]) -> SourceMovieTable:
    """Read a movie STAR file, or a micrograph STAR file whose images are then movies of one frame.

    Parameters
    ----------
    path
        The file or its URL.

    Raises
    ------
    FormatError
        Not such a STAR file, or values of the wrong type.
    MissingColumnError
        Neither movies nor micrographs.
    ParameterError
        No rows.
    InconsistentDataError
        Mixed pixel sizes, a movie listed twice, an optics group that is not described.
    """
    path = os.fspath(path)
    blocks = read_star(path)
    label = "rlnMicrographMovieName"
    if not any(label in table for table in blocks.values()):
        label = "rlnMicrographName"
    table = _block(path, blocks, "movies" if "movies" in blocks else "micrographs", label, "movies")
    if "rlnImageName" in table:
        raise FormatError(
            f"{path} lists particles (_rlnImageName), where movies are needed; give the STAR file of them"
        )
    names, _, counts = distinct(table[label])
    _need_rows(path, names, "movies")
    _need_each_once(path, names, counts, "")
    optics_table, group_of, moved = optics_of(path, blocks.get("optics"), table)
    optics = tuple(
        optics_group_of(path, optics_table, group, _STATED_OF_MOVIES, True)
        for group in range(len(group_of_rows(optics_table)))
    )
    sizes = (_ORIGINAL_PIXEL_SIZE, _MICROGRAPH_PIXEL_SIZE)
    pixel_size = next(
        (
            size
            for each in sizes
            if (size := shared_value(path, optics_table, each, np.unique(group_of), "pixel sizes", "Å"))
        ),
        0.0,
    ) or old_pixel_size(path, table)
    columns = _columns(Movies, path, table, pixel_size, moved)
    if "movie" not in columns:
        columns["movie"] = columns["micrograph"]
    columns["optics_group"] = group_of.astype(np.int32)
    return SourceMovieTable(path, Movies(optics, columns), pixel_size)


def _need_rows(path: str, names: NDArray[Any], what: str) -> None:
    """Refuse a table without rows."""
    if not len(names):
        raise ParameterError(f"{path} lists no {what}: the selection is empty")


def _need_each_once(path: str, names: NDArray[Any], counts: NDArray[np.int64], what: str) -> None:
    """Refuse a table that lists a name several times."""
    if counts.max() > 1:
        raise InconsistentDataError(
            f"{path} lists {what}{shown(str(names[counts.argmax()]))} {counts.max()} times; leave all but one row out"
        )


def particles_to_blocks(
    particles: Particles, *, box: int, pixel_size: float, of_source: bool = False
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the blocks ``optics`` and ``particles`` of a STAR file of RELION 3.1 or later.

    Parameters
    ----------
    particles
        The table; columns that RELION has no label for are left out.
    box
        Side of the images in pixels.
    pixel_size
        Å per pixel.
    of_source
        The table refers to the images as they were before an import resampled them: their sizes are stated.
    """
    kept = particles.optics
    sizes, boxes = [_printed(pixel_size)] * len(kept), [str(box)] * len(kept)
    if of_source:
        sizes = [group.extra.get(SOURCE_PIXEL_SIZE, size) for group, size in zip(kept, sizes, strict=True)]
        boxes = [group.extra.get(SOURCE_BOX, box) for group, box in zip(kept, boxes, strict=True)]
    of_images = {"rlnImagePixelSize": sizes, "rlnImageSize": boxes, "rlnImageDimensionality": ["2"] * len(kept)}
    bare = [{k: v for k, v in g.extra.items() if k not in (SOURCE_PIXEL_SIZE, SOURCE_BOX)} for g in kept]
    plain = replace(particles, optics=tuple(replace(g, extra=extra) for g, extra in zip(kept, bare, strict=True)))
    optics, table = _blocks(plain, of_images)
    return {"optics": optics, "particles": table}


def micrographs_to_blocks(micrographs: Micrographs, *, pixel_size: float) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the blocks ``optics`` and ``micrographs`` of a STAR file of RELION 3.1 or later.

    Parameters
    ----------
    micrographs
        The table; columns that RELION has no label for are left out.
    pixel_size
        Å per pixel.
    """
    optics, table = _blocks(micrographs, {_MICROGRAPH_PIXEL_SIZE: [_printed(pixel_size)] * len(micrographs.optics)})
    return {"optics": optics, "micrographs": table}


def _blocks(
    ours: ItemTable, of_images: Mapping[str, Sequence[str]]
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the optics table, which says `of_images` of its groups, and the other one."""
    numbers = [group.extra.get("rlnOpticsGroup", str(i + 1)) for i, group in enumerate(ours.optics)]
    optics: dict[str, NDArray[Any]] = {
        "rlnOpticsGroupName": _text(group.name for group in ours.optics),
        "rlnOpticsGroup": _text(numbers),
        "rlnVoltage": _text(_printed(group.voltage) for group in ours.optics),
        "rlnSphericalAberration": _text(_printed(g.spherical_aberration / CS_UNIT) for g in ours.optics),
        "rlnAmplitudeContrast": _text(_printed(group.amplitude_contrast) for group in ours.optics),
        **{label: _text(values) for label, values in of_images.items()},
    }
    for label in dict.fromkeys(label for group in ours.optics for label in group.extra):
        if label not in optics:
            optics[label] = _text(group.extra.get(label, _MISSING.get(label, "0")) for group in ours.optics)
    table: dict[str, NDArray[Any]] = {}
    for name, values in ours.columns.items():
        if name == "optics_group":
            table["rlnOpticsGroup"] = _text(numbers)[values]
        elif name.startswith(CARRIED):
            table[name.removeprefix(CARRIED)] = values
        elif name in ours.COLUMNS and (label_there := ours.COLUMNS[name].relion):
            table[label_there] = _relion_values(ours.COLUMNS[name], values)
    return optics, table


def _block(path: str, blocks: Mapping[str, StarTable], name: str, label: str, what: str) -> StarTable:
    """Return the block of a name, or else the one that has a label; `what` it lists, for messages."""
    lists = [name for name, t in blocks.items() if len(t.get(label, ()))]
    if len(lists) > 1:
        raise FormatError(
            f"{path} lists {what.split()[-1]} in {len(lists)} blocks "
            f"({', '.join('data_' + name for name in lists[:3])}), of which one would be read; write them into files "
            "of their own, or into one block"
        )
    table = blocks.get(name) or next((t for t in blocks.values() if label in t), None)
    if table is None or label not in table:
        labels = ", ".join(sorted({label for t in blocks.values() for label in t})[:6])
        raise MissingColumnError(
            f"{path} lists no {what} (no _{label}); it has {labels or 'no columns'}: "
            f"give a {what.split()[0].removesuffix('s')} STAR file"
        )
    return table


def _columns(
    kind: type[ItemTable],
    path: str,
    table: StarTable,
    pixel_size: float | NDArray[np.float64],
    in_optics: Sequence[str],
) -> dict[str, NDArray[Any]]:
    """Return the columns in cloudem's names and units, in the order of the file, less those that went to optics."""
    ours = {meaning.relion: name for name, meaning in kind.COLUMNS.items() if meaning.relion}
    columns: dict[str, NDArray[Any]] = {}
    for label, values in table.items():
        old_shift = label in _OLD_SHIFTS
        if label in in_optics or label == "rlnOpticsGroup" or (old_shift and label + "Angst" in table):
            continue
        name = ours.get(label + "Angst" if old_shift else label)
        if name is None:
            columns[CARRIED + label] = values
        elif kind.COLUMNS[name].dtype == "text":
            columns[name] = values
        else:
            # without a pixel size they stay in pixels, and the import knows it from an option or the stacks
            numbers = numbers_of(path, table, label) * kind.COLUMNS[name].relion_factor
            if old_shift:
                numbers = numbers * np.where(np.asarray(pixel_size) > 0, pixel_size, 1.0)
            if name == "half_set" and not np.isin(numbers, (0, 1, 2)).all():
                raise FormatError(f"{path}: _{label} has values other than 0, 1 and 2; correct it or remove the column")
            columns[name] = numbers.astype(kind.COLUMNS[name].dtype)
    if "defocus_u" in columns:
        columns.setdefault("defocus_v", columns["defocus_u"].copy())
        columns.setdefault("defocus_angle", np.zeros(len(columns["defocus_u"])))
    return columns


def _relion_values(meaning: ColumnMeaning, values: NDArray[Any]) -> NDArray[Any]:
    if meaning.dtype == "text":
        return values
    if values.dtype.kind in "iub":
        return _text(str(value) for value in values.tolist())
    return _text(_printed(value) for value in (values / meaning.relion_factor).tolist())


def _printed(value: float) -> str:
    """Return a number with twelve digits: all that a file held comes back, rounding in between does not."""
    return f"{value + 0.0:.12g}"


def _text(values: Any) -> NDArray[Any]:
    items: Sequence[str] = list(values)
    return np.array(items, dtype=TEXT)
