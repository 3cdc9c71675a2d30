"""Tables: one row per item, one array per column, and the optics groups that the rows belong to.

A kind of table (`cloudem.model.particles`, `cloudem.model.micrographs`) states its columns, each with its unit, meaning
and name elsewhere; this is the only place that states them. Columns that no kind understands travel as text under
``rln:<name>`` or ``cs:<name>``.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudem.errors import InconsistentDataError, MissingColumnError, ParameterError
from cloudem.model.optics import OpticsGroup

TEXT = np.dtypes.StringDType()
"""Text columns are NumPy's variable-width strings."""

DEGREE = math.pi / 180


class Distinct(NamedTuple):
    """What is there of many values."""

    values: NDArray[Any]
    """(k,) each value once, in order."""
    number: NDArray[np.int64]
    """(n,) place of each of the many among them."""
    counts: NDArray[np.int64]
    """(k,) how often each is there."""


def distinct(values: NDArray[Any]) -> Distinct:
    """Return what `numpy.unique` does, also of text: NumPy 2.4 crashes when it sorts a few hundred long strings.

    Parameters
    ----------
    values
        (n,) numbers or text.
    """
    if values.dtype.kind != "T":
        found, number, count = np.unique(values, return_inverse=True, return_counts=True)
        return Distinct(found, number.astype(np.int64), count.astype(np.int64))
    texts: list[str] = values.tolist()
    names = sorted(set(texts))
    place = {name: at for at, name in enumerate(names)}
    number = np.fromiter((place[text] for text in texts), np.int64, len(texts))
    return Distinct(np.array(names, TEXT), number, np.bincount(number, minlength=len(names)).astype(np.int64))


Rows = TypeVar("Rows", bound="ItemTable")
"""A kind of table."""


@dataclass(frozen=True)
class ColumnMeaning:
    """What a column says.

    Parameters
    ----------
    dtype
        Type of its values; ``"text"`` for strings.
    unit
        Unit of its values inside cloudem; empty for pure numbers.
    meaning
        One sentence.
    relion
        Name in a RELION STAR file without the leading ``_``; None where RELION has none.
    relion_factor
        Our value is RELION's times this.
    cryosparc
        Field of a cryoSPARC file that holds the same thing, perhaps in another form.
    """

    dtype: str
    unit: str
    meaning: str
    relion: str | None = None
    relion_factor: float = 1.0
    cryosparc: str | None = None


SHARED_COLUMNS: dict[str, ColumnMeaning] = {
    "optics_group": ColumnMeaning(
        "int32", "", "index into the list of optics groups, from 0", "rlnOpticsGroup", 1.0, "ctf/exp_group_id"
    ),
    "defocus_u": ColumnMeaning(
        "float64", "Å", "larger defocus, positive for underfocus", "rlnDefocusU", 1.0, "ctf/df1_A"
    ),
    "defocus_v": ColumnMeaning(
        "float64", "Å", "smaller defocus, positive for underfocus", "rlnDefocusV", 1.0, "ctf/df2_A"
    ),
    "defocus_angle": ColumnMeaning(
        "float64",
        "rad",
        "angle from the x axis to the axis of defocus_u",
        "rlnDefocusAngle",
        DEGREE,
        "ctf/df_angle_rad",
    ),
    "phase_shift": ColumnMeaning(
        "float64", "rad", "phase shift of a phase plate", "rlnPhaseShift", DEGREE, "ctf/phase_shift_rad"
    ),
    "micrograph": ColumnMeaning(
        "text", "", "name of the micrograph", "rlnMicrographName", 1.0, "location/micrograph_path"
    ),
}
"""Columns that mean the same in tables of several kinds."""


@dataclass(frozen=True)
class ItemTable:
    """A table and the optics groups that its rows belong to; each kind of table is a class of its own.

    Parameters
    ----------
    optics
        The optics groups; column ``optics_group`` indexes them.
    columns
        Name to array of shape ``(n,)`` in the units of `COLUMNS`; text columns are of type `TEXT`.
        A column of vectors has shape ``(n, m)``.

    Attributes
    ----------
    COLUMNS
        Every column that the kind of table understands.
    ITEM
        What a row is.

    Raises
    ------
    InconsistentDataError
        Columns of different lengths, or an optics group that does not exist.
    """

    COLUMNS: ClassVar[Mapping[str, ColumnMeaning]]
    ITEM: ClassVar[str]

    optics: tuple[OpticsGroup, ...]
    columns: dict[str, NDArray[Any]]

    def __post_init__(self) -> None:
        """Refuse tables that contradict themselves."""
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise InconsistentDataError(f"columns have different lengths: {lengths}")
        group = self.columns.get("optics_group")
        if group is not None and len(group) and not (group.min() >= 0 and group.max() < len(self.optics)):
            raise InconsistentDataError(
                f"optics_group runs from {group.min()} to {group.max()}, but there are {len(self.optics)} groups"
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return next((len(values) for values in self.columns.values()), 0)

    def __contains__(self, name: object) -> bool:
        """Say whether the column is there."""
        return name in self.columns

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column; `MissingColumnError` when it is not there."""
        self.require(name)
        return self.columns[name]

    def get(self, name: str, default: float) -> NDArray[Any]:
        """Return a column, or one filled with `default` where the table lacks it."""
        if name in self.columns:
            return self.columns[name]
        return np.full(len(self), default, dtype=self.COLUMNS[name].dtype)

    def require(self, *names: str) -> None:
        """Raise `MissingColumnError` in one line unless all columns are there."""
        missing = [name for name in names if name not in self.columns]
        if not missing:
            return
        relion = {name: self.COLUMNS[name].relion for name in missing if name in self.COLUMNS}
        labels = [f"{name} ({relion[name]})" if relion.get(name) else name for name in missing]
        raise MissingColumnError(
            f"the {self.ITEM}s have no {'column' if len(labels) == 1 else 'columns'} {', '.join(labels)}; they have "
            f"{', '.join(sorted(self.columns)) or 'none'}: import from a file with "
            f"{'it' if len(labels) == 1 else 'them'}, or run the job that makes {'it' if len(labels) == 1 else 'them'}"
        )

    def take(self, indices: ArrayLike) -> Self:
        """Return the rows at `indices` (integers, in that order) or where a boolean mask is true."""
        chosen = np.asarray(indices)
        return replace(self, columns={name: values[chosen] for name, values in self.columns.items()})

    def with_columns(self, **columns: ArrayLike) -> Self:
        """Return the table with columns added or replaced, in the types of `COLUMNS`.

        Raises
        ------
        ParameterError
            A name that `COLUMNS` does not list.
        InconsistentDataError
            A column of another length.
        """
        unknown = sorted(set(columns) - set(self.COLUMNS))
        if unknown:
            raise ParameterError(f"unknown {self.ITEM} column {', '.join(unknown)}: describe it in COLUMNS first")
        typed = {name: np.asarray(values, dtype=self.dtype_of(name)) for name, values in columns.items()}
        return replace(self, columns={**self.columns, **typed})

    def without_columns(self, names: Iterable[str]) -> Self:
        """Return the table without the named columns; those that are not there do not matter."""
        dropped = set(names)
        return replace(self, columns={name: v for name, v in self.columns.items() if name not in dropped})

    @classmethod
    def dtype_of(cls, name: str) -> np.dtype[Any]:
        """Return the type that `COLUMNS` gives a column; unlisted columns are text."""
        dtype = cls.COLUMNS[name].dtype if name in cls.COLUMNS else "text"
        return TEXT if dtype == "text" else np.dtype(dtype)


def joined_tables(first: Rows, second: Rows) -> Rows:
    """Return the rows of two tables of a kind; what one of them does not know is NaN, 0 or empty in its rows.

    Raises
    ------
    InconsistentDataError
        The second has an optics group of another microscope under the name of one of the first.
    """
    optics, number = list(first.optics), {group.name: at for at, group in enumerate(first.optics)}
    for group in second.optics:
        at = number.setdefault(group.name, len(optics))
        if at == len(optics):
            optics.append(group)
        elif optics[at] != group:
            raise InconsistentDataError(
                f"optics group {group.name} has two meanings in tables that are to be joined; import them anew"
            )
    places = np.array([number[group.name] for group in second.optics], np.int32)
    columns = {}
    for name in [*first.columns, *(name for name in second.columns if name not in first.columns)]:
        parts = [table.columns.get(name, _unknown(table, name)) for table in (first, second)]
        if name == "optics_group":
            parts[1] = places[parts[1]] if len(places) else parts[1]
        columns[name] = np.concatenate(parts)
    return replace(first, optics=tuple(optics), columns=columns)


def _unknown(table: ItemTable, name: str) -> NDArray[Any]:
    """Return a column of which nothing is known."""
    dtype = table.dtype_of(name)
    if dtype.kind == "T":
        return np.array([""] * len(table), dtype)
    return np.full(len(table), math.nan if dtype.kind == "f" else 0, dtype)
