"""The optics groups of RELION's STAR files: their table, or the rows of version 3.0 that share their constants."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingColumnError, shown
from cloudem.io.formats.sources import LARGEST
from cloudem.io.formats.star import StarTable
from cloudem.model.optics import EVEN, MATRIX, ODD, TILT, OpticsGroup
from cloudem.model.particles import TEXT
from cloudem.model.table import distinct

CS_UNIT = 1e7
"""Å in a millimetre, in which files state the spherical aberration."""

ABERRATIONS = (*TILT, ODD, EVEN, *MATRIX)
"""Labels of what is applied beyond defocus and spherical aberration."""

IN_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMtfFileName", *ABERRATIONS)
"""Labels that version 3.0 has in every row and later ones in the optics table."""

MOST_GROUPS = 1000
"""Optics groups that rows may make by what they state: each has noise of its own."""

SAME_SIZE = 1e-4
"""Pixel sizes that differ by less, relatively, count as one."""


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


def optics_of(
    path: str, optics: StarTable | None, table: StarTable
) -> tuple[StarTable, NDArray[np.int64], tuple[str, ...]]:
    """Return the optics table, the row of it that each row of the other refers to, and the labels that went to it.

    Rows become optics groups by the constants that they share: of version 3.0 by all of them, later by the aberrations
    that stand in them rather than in the optics table.

    Raises
    ------
    FormatError, MissingColumnError, InconsistentDataError
        The optics table has no rows, lacks a group, or states other aberrations than the rows.
    """
    if not optics:
        sizes = row_pixel_sizes(path, table)
        mixed = sizes is not None and len(sizes) and differ(sizes)
        by_size = [np.array([f"{size:.5g}" for size in sizes], TEXT)] if mixed and sizes is not None else []
        rows, group = _grouped(path, np.zeros(len(group_of_rows(table)), np.int64), table, IN_OPTICS, by_size)
        found: StarTable = {label: table[label][rows] for label in IN_OPTICS if label in table}
        found["rlnOpticsGroupName"] = np.array([f"opticsGroup{i + 1}" for i in range(len(rows))], TEXT)
        return found, group, IN_OPTICS
    stated = _stated_groups(path, optics, table)
    own = tuple(label for label in ABERRATIONS if label in table)
    for label in own:
        if label in optics and not np.array_equal(_compared(table[label]), _compared(optics[label][stated])):
            raise InconsistentDataError(
                f"{path} states _{label} for each row and otherwise for its optics groups; remove one of the two"
            )
    moved = [label for label in own if label not in optics]
    if not moved:
        return optics, stated, own
    rows, group = _grouped(path, stated, table, moved, ())
    split = {label: values[stated[rows]] for label, values in optics.items()}
    split |= {label: table[label][rows] for label in moved}
    if len(rows) > len(np.unique(stated)):
        names = split.get("rlnOpticsGroupName", np.array(["opticsGroup"] * len(rows), TEXT)).tolist()
        split["rlnOpticsGroupName"] = np.array([f"{name}_{i + 1}" for i, name in enumerate(names)], TEXT)
        split["rlnOpticsGroup"] = np.array([str(i + 1) for i in range(len(rows))], TEXT)
    return split, group, own


def optics_group_of(path: str, table: StarTable, row: int, stated: Sequence[str], allow_no_ctf: bool) -> OpticsGroup:
    """Return the optics group of a row of the optics table; labels other than `stated` are carried as text.

    Raises
    ------
    MissingColumnError, FormatError
        A constant of the microscope is not there, or cannot be.
    """
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
        constants["rlnSphericalAberration"] * CS_UNIT,
        constants["rlnAmplitudeContrast"],
        extra,
    )


def shared_value(path: str, table: StarTable, label: str, used: NDArray[np.int64], what: str, unit: str) -> float:
    """Return the value that all used optics groups share; 0 where the table does not say.

    Raises
    ------
    InconsistentDataError
        They have several.
    """
    if label not in table:
        return 0.0
    values = numbers_of(path, table, label)[used]
    if differ(values):
        found = ", ".join(f"{value:g} {unit}".strip() for value in np.unique(values)[:4])
        raise InconsistentDataError(f"{path} mixes {what}: {found}; import each optics group apart, or scale to one")
    return float(values[0])


def differ(values: NDArray[np.float64]) -> bool:
    """Return whether values are not all the same, but for rounding."""
    return bool(np.ptp(values) > SAME_SIZE * abs(values[0]))


def old_pixel_size(path: str, table: StarTable) -> float:
    """Return the pixel size that all rows state; 0 where they do not.

    Raises
    ------
    InconsistentDataError
        They state several.
    """
    sizes = row_pixel_sizes(path, table)
    if sizes is None:
        return 0.0
    if differ(sizes):
        raise InconsistentDataError(
            f"{path} mixes pixel sizes: {sizes.min():g} to {sizes.max():g} Å; import them apart"
        )
    return float(sizes[0])


def group_pixel_sizes(
    path: str, optics: StarTable, table: StarTable, group_of: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return Å per pixel of each optics group, 0 where nothing is said.

    Raises
    ------
    InconsistentDataError
        The rows of a group state several.
    """
    count = len(group_of_rows(optics))
    if "rlnImagePixelSize" in optics:
        sizes = numbers_of(path, optics, "rlnImagePixelSize")
        if sizes[np.unique(group_of)].any():
            return sizes
    rows = row_pixel_sizes(path, table)
    if rows is None:
        return np.zeros(count)
    used, first = np.unique(group_of, return_index=True)
    sizes = np.zeros(count)
    sizes[used] = rows[first]
    if (abs(rows - sizes[group_of]) > SAME_SIZE * abs(sizes[group_of])).any():
        raise InconsistentDataError(
            f"{path} mixes pixel sizes within an optics group: {rows.min():g} to {rows.max():g} Å; import them apart"
        )
    return sizes


def row_pixel_sizes(path: str, table: StarTable) -> NDArray[np.float64] | None:
    """Return the pixel size of each row of a file of version 3.0; None where it does not say."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if label in table:
            return numbers_of(path, table, label)
    if "rlnDetectorPixelSize" not in table or "rlnMagnification" not in table:
        return None
    magnification = numbers_of(path, table, "rlnMagnification")
    if not (magnification >= 1).all():
        raise FormatError(f"{path} states a magnification of {magnification.min():g}; correct it")
    return np.asarray(1e4 * numbers_of(path, table, "rlnDetectorPixelSize") / magnification)


def _stated_groups(path: str, optics: StarTable, table: StarTable) -> NDArray[np.int64]:
    """Return the row of the optics table that each row refers to."""
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
        return np.zeros(rows, dtype=np.int64)
    wanted = _whole(path, table, "rlnOpticsGroup")
    order = np.argsort(numbers)
    place = np.searchsorted(numbers[order], wanted).clip(max=len(numbers) - 1)
    group = order[place]
    unknown = np.setdiff1d(wanted, numbers)
    if len(unknown):
        raise InconsistentDataError(f"{path}: rows are in optics group {unknown[0]}, which its optics table lacks")
    return np.asarray(group, dtype=np.int64)


def _grouped(
    path: str, group: NDArray[np.int64], table: StarTable, labels: Sequence[str], others: Sequence[NDArray[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split groups by the values of some labels of the rows, and of other columns.

    Returns
    -------
    The first row of each group, in the order of the groups before and then of appearance; and the group of each row.
    """
    before = group
    columns = [(label, table[label]) for label in labels if label in table] + [("", values) for values in others]
    for _, values in columns:
        found, code, _ = distinct(values)
        group = distinct(group * len(found) + code).number
    _, first = np.unique(group, return_index=True)
    order = np.lexsort((first, before[first]))
    if len(order) > MOST_GROUPS and any(label in ABERRATIONS for label, _ in columns):
        raise InconsistentDataError(
            f"{path}: its rows state {len(order):,} different sets of constants and aberrations, and at most "
            f"{MOST_GROUPS:,} optics groups are made of them; give particles of one beam-tilt class the same values"
        )
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[group]


def _compared(values: NDArray[Any]) -> NDArray[Any]:
    """Return values such that the same numbers compare as the same, however they are printed."""
    return np.array([_canonical(str(value)) for value in values.tolist()], TEXT)


def _canonical(text: str) -> str:
    try:
        return repr([float(word) for word in text.strip("[]").split(",") if word])
    except ValueError:
        return text


def _whole(path: str, table: Mapping[str, NDArray[Any]], label: str) -> NDArray[np.int64]:
    values = numbers_of(path, table, label, np.finfo(float).max)
    if len(values) and not ((abs(values) < 2**31) & (values == np.rint(values))).all():
        raise FormatError(f"{path}: _{label} has values that are not whole numbers of the usual size; correct it")
    return values.astype(np.int64)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
