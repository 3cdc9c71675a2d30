"""What the labels of RELION's particle and micrograph STAR files mean, from version 3.0 to 5.

Version 3.0 has one table with the optics in every row (pixel size = 10⁴ rlnDetectorPixelSize / rlnMagnification, shifts
in pixels); later ones have ``data_optics`` beside ``data_particles`` or ``data_micrographs``. Labels that cloudem does
not understand travel as text and are written back.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingColumnError, ParameterError, shown
from cloudem.io.formats.sources import LARGEST, SourceMicrographTable, SourceMovieTable, SourceTable, split_image_names
from cloudem.io.formats.star import StarTable, read_star
from cloudem.model.micrographs import Micrographs
from cloudem.model.movies import Movies
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import TEXT, Particles
from cloudem.model.table import ColumnMeaning, ItemTable, distinct

CARRIED = "rln:"
"""Prefix of the columns that are carried as text."""

_MM = 1e7
"""Å in a millimetre."""

_IN_OPTICS = (
    "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnBeamTiltX", "rlnBeamTiltY", "rlnMtfFileName",
    "rlnOddZernike", "rlnEvenZernike", "rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11",
)  # fmt: skip
"""Labels that version 3.0 has in every row and later ones in the optics table."""

_OLD_SHIFTS = ("rlnOriginX", "rlnOriginY")
"""Shifts in pixels, of version 3.0."""

_STATED = ("rlnOpticsGroupName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize",
           "rlnImageSize", "rlnImageDimensionality")  # fmt: skip
"""Labels of the optics table that cloudem understands."""

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
        Mixed pixel or box sizes, images that are not two-dimensional, an optics group that is not described.
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
    optics_table, group_of = _optics(path, blocks.get("optics"), table)
    used = np.unique(group_of)
    optics = tuple(
        _optics_group(path, optics_table, group, _STATED, allow_no_ctf)
        for group in range(len(group_of_rows(optics_table)))
    )
    pixel_size = _one_value(path, optics_table, "rlnImagePixelSize", used, "pixel sizes", "Å") or _old_pixel_size(
        path, table
    )
    in_pixels = not pixel_size and any(label in table and label + "Angst" not in table for label in _OLD_SHIFTS)
    box = _one_value(path, optics_table, "rlnImageSize", used, "box sizes", "px")
    if _one_value(path, optics_table, "rlnImageDimensionality", used, "dimensionalities", "") not in (0.0, 2.0):
        raise InconsistentDataError(
            f"{path} lists three-dimensional images (subtomograms); two-dimensional ones are read"
        )
    columns = _columns(Particles, path, table, pixel_size, () if blocks.get("optics") else _IN_OPTICS)
    columns["optics_group"] = group_of.astype(np.int32)
    stacks, stack, section = split_image_names(columns["image_name"].tolist(), path)
    particles = Particles(optics, columns)
    return SourceTable(path, particles, stacks, stack, section, pixel_size, int(box), np.ones(rows), in_pixels)


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
    optics_table, group_of = _optics(path, blocks.get("optics"), table)
    optics = tuple(
        _optics_group(path, optics_table, group, _STATED_OF_MICROGRAPHS, allow_no_optics)
        for group in range(len(group_of_rows(optics_table)))
    )
    rows, label = np.arange(len(group_of)), _MICROGRAPH_PIXEL_SIZE
    pixel_size = (
        _one_value(path, optics_table, label, np.unique(group_of), "pixel sizes", "Å")
        or _one_value(path, table, label, rows, "pixel sizes", "Å")
        or _old_pixel_size(path, table)
    )
    columns = _columns(Micrographs, path, table, pixel_size, () if blocks.get("optics") else _IN_OPTICS)
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
    optics_table, group_of = _optics(path, blocks.get("optics"), table)
    optics = tuple(
        _optics_group(path, optics_table, group, _STATED_OF_MOVIES, True)
        for group in range(len(group_of_rows(optics_table)))
    )
    sizes = (_ORIGINAL_PIXEL_SIZE, _MICROGRAPH_PIXEL_SIZE)
    pixel_size = next(
        (
            size
            for each in sizes
            if (size := _one_value(path, optics_table, each, np.unique(group_of), "pixel sizes", "Å"))
        ),
        0.0,
    ) or _old_pixel_size(path, table)
    columns = _columns(Movies, path, table, pixel_size, () if blocks.get("optics") else _IN_OPTICS)
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


def particles_to_blocks(particles: Particles, *, box: int, pixel_size: float) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the blocks ``optics`` and ``particles`` of a STAR file of RELION 3.1 or later.

    Parameters
    ----------
    particles
        The table; columns that RELION has no label for are left out.
    box
        Side of the images in pixels.
    pixel_size
        Å per pixel.
    """
    of_images = {"rlnImagePixelSize": _printed(pixel_size), "rlnImageSize": str(box), "rlnImageDimensionality": "2"}
    optics, table = _blocks(particles, of_images)
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
    optics, table = _blocks(micrographs, {_MICROGRAPH_PIXEL_SIZE: _printed(pixel_size)})
    return {"optics": optics, "micrographs": table}


def group_of_rows(table: Mapping[str, NDArray[Any]]) -> range:
    """Return the row numbers of a table."""
    return range(len(next(iter(table.values()), ())))


def numbers_of(
    path: str, table: Mapping[str, NDArray[Any]], label: str, largest: float = LARGEST
) -> NDArray[np.float64]:
    """Return a column as numbers of at most a size.

    Raises
    ------
    FormatError
        A value that is none.
    """
    try:
        values = table[label].astype(np.float64)
    except ValueError:
        values = np.array([_number(str(text)) for text in table[label]])
    bad = np.flatnonzero(~(np.abs(values) <= largest))
    if len(bad):
        raise FormatError(
            f"{path}: _{label} of row {bad[0] + 1} is {shown(str(table[label][bad[0]]))}, a number is needed "
            f"({len(bad)} such rows); correct the column or leave those rows out"
        )
    return np.asarray(values, dtype=np.float64)


def _whole(path: str, table: Mapping[str, NDArray[Any]], label: str) -> NDArray[np.int64]:
    values = numbers_of(path, table, label, np.finfo(float).max)
    if len(values) and not ((abs(values) < 2**31) & (values == np.rint(values))).all():
        raise FormatError(f"{path}: _{label} has values that are not whole numbers of the usual size; correct it")
    return values.astype(np.int64)


def _blocks(ours: ItemTable, of_images: Mapping[str, str]) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Return the optics table, which says `of_images` of every group, and the other one."""
    numbers = [group.extra.get("rlnOpticsGroup", str(i + 1)) for i, group in enumerate(ours.optics)]
    optics: dict[str, NDArray[Any]] = {
        "rlnOpticsGroupName": _text(group.name for group in ours.optics),
        "rlnOpticsGroup": _text(numbers),
        "rlnVoltage": _text(_printed(group.voltage) for group in ours.optics),
        "rlnSphericalAberration": _text(_printed(g.spherical_aberration / _MM) for g in ours.optics),
        "rlnAmplitudeContrast": _text(_printed(group.amplitude_contrast) for group in ours.optics),
        **{label: _text(value for _ in numbers) for label, value in of_images.items()},
    }
    for label in dict.fromkeys(label for group in ours.optics for label in group.extra):
        if label not in optics:
            optics[label] = _text(group.extra.get(label, "0") for group in ours.optics)
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


def _optics(path: str, optics: StarTable | None, table: StarTable) -> tuple[StarTable, NDArray[np.int64]]:
    """Return the optics table and the row of it that each particle refers to."""
    if not optics:
        return _optics_from_rows(table)
    if "rlnOpticsGroup" not in optics:
        raise MissingColumnError(f"{path}: its optics table has no _rlnOpticsGroup; write the file again with RELION")
    numbers = _whole(path, optics, "rlnOpticsGroup")
    if not len(numbers):
        raise FormatError(f"{path}: its optics table has no rows; write the file again with RELION")
    rows = len(group_of_rows(table))
    if "rlnOpticsGroup" not in table:
        if len(numbers) > 1:
            raise MissingColumnError(
                f"{path} has {len(numbers)} optics groups, but its rows do not say which is theirs"
            )
        return optics, np.zeros(rows, dtype=np.int64)
    wanted = _whole(path, table, "rlnOpticsGroup")
    order = np.argsort(numbers)
    place = np.searchsorted(numbers[order], wanted).clip(max=len(numbers) - 1)
    group = order[place]
    unknown = np.setdiff1d(wanted, numbers)
    if len(unknown):
        raise InconsistentDataError(f"{path}: rows are in optics group {unknown[0]}, which its optics table lacks")
    return optics, np.asarray(group, dtype=np.int64)


def _optics_from_rows(table: StarTable) -> tuple[StarTable, NDArray[np.int64]]:
    """Make optics groups of a file of version 3.0: rows that share all constants of the microscope."""
    labels = [label for label in _IN_OPTICS if label in table]
    rows = len(group_of_rows(table))
    group = np.zeros(rows, dtype=np.int64)
    for label in labels:
        values, code, _ = distinct(table[label])
        group = distinct(group * len(values) + code).number
    _, first = np.unique(group, return_index=True)
    # Number the groups in the order in which they appear.
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    optics: StarTable = {label: table[label][first[order]] for label in labels}
    optics["rlnOpticsGroupName"] = _text(f"opticsGroup{i + 1}" for i in range(len(first)))
    return optics, rank[group]


def _optics_group(path: str, table: StarTable, row: int, stated: Sequence[str], allow_no_ctf: bool) -> OpticsGroup:
    constants = {}
    for label in ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"):
        if label not in table and not allow_no_ctf:
            raise MissingColumnError(f"{path} has no _{label}, which the CTF needs; add it, or give --allow-no-ctf")
        constants[label] = float(numbers_of(path, table, label)[row]) if label in table else 0.0
    if constants["rlnVoltage"] <= 0 and not allow_no_ctf:
        raise FormatError(f"{path} states a voltage of {constants['rlnVoltage']:g} kV; correct it")
    name = str(table["rlnOpticsGroupName"][row]) if "rlnOpticsGroupName" in table else f"opticsGroup{row + 1}"
    extra = {label: str(values[row]) for label, values in table.items() if label not in stated}
    return OpticsGroup(
        name,
        constants["rlnVoltage"],
        constants["rlnSphericalAberration"] * _MM,
        constants["rlnAmplitudeContrast"],
        extra,
    )


def _one_value(path: str, table: StarTable, label: str, used: NDArray[np.int64], what: str, unit: str) -> float:
    """Return the value that all used optics groups share; 0 where the table does not say."""
    if label not in table:
        return 0.0
    values = numbers_of(path, table, label)[used]
    if np.ptp(values) > 1e-4 * abs(values[0]):
        found = ", ".join(f"{value:g} {unit}".strip() for value in np.unique(values)[:4])
        raise InconsistentDataError(f"{path} mixes {what}: {found}; import each optics group apart, or scale to one")
    return float(values[0])


def _old_pixel_size(path: str, table: StarTable) -> float:
    """Return the pixel size of a file of version 3.0; 0 where it does not say."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if label in table:
            return _one_value(path, table, label, np.arange(len(table[label])), "pixel sizes", "Å")
    if "rlnDetectorPixelSize" not in table or "rlnMagnification" not in table:
        return 0.0
    magnification = numbers_of(path, table, "rlnMagnification")
    if not (magnification >= 1).all():
        raise FormatError(f"{path} states a magnification of {magnification.min():g}; correct it")
    sizes = 1e4 * numbers_of(path, table, "rlnDetectorPixelSize") / magnification
    if np.ptp(sizes) > 1e-4 * abs(sizes[0]):
        raise InconsistentDataError(
            f"{path} mixes pixel sizes: {sizes.min():g} to {sizes.max():g} Å; import them apart"
        )
    return float(sizes[0])


def _columns(
    kind: type[ItemTable], path: str, table: StarTable, pixel_size: float, in_optics: Sequence[str]
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
            factor = kind.COLUMNS[name].relion_factor * ((pixel_size or 1.0) if old_shift else 1.0)
            numbers = numbers_of(path, table, label) * factor
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


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
