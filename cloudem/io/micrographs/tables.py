"""The tables of micrographs and of picked particles in results."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from numpy.typing import NDArray

from cloudem.errors import FormatError, MissingInputError
from cloudem.io.storage.groups import has_group, read_attributes, read_group
from cloudem.io.storage.location import exists
from cloudem.io.storage.tables import table_from_arrays, table_to_arrays
from cloudem.model.micrographs import Micrographs
from cloudem.model.picks import Picks
from cloudem.model.table import ItemTable

MICROGRAPH_TABLE, PICK_TABLE = "micrographs", "picks"
"""Groups of the tables in results."""

WriteGroup = Callable[[str, Mapping[str, NDArray[Any]], Mapping[str, Any]], None]
"""`cloudem.jobs.base.Context.write`."""

_Kind = TypeVar("_Kind", bound=ItemTable)


def read_micrograph_table(url: str | os.PathLike[str]) -> Micrographs:
    """Read the table of micrographs of a result.

    Raises
    ------
    MissingInputError
        There is nothing under that name, or what is there is not finished.
    FormatError
        What is there holds no micrographs.
    """
    return _read(url, MICROGRAPH_TABLE, Micrographs, "cloudem import-micrographs or correct-motion")


def write_micrograph_table(write: WriteGroup, table: Micrographs) -> None:
    """Write the table of micrographs into the results of a job."""
    write(MICROGRAPH_TABLE, *table_to_arrays(table))


def read_picks(url: str | os.PathLike[str]) -> Picks:
    """Read the table of picked particles of a result; raises as `read_micrograph_table`."""
    return _read(url, PICK_TABLE, Picks, "cloudem pick")


def write_picks(write: WriteGroup, table: Picks) -> None:
    """Write the table of picked particles into the results of a job."""
    write(PICK_TABLE, *table_to_arrays(table))


def _read(url: str | os.PathLike[str], path: str, kind: type[_Kind], makers: str) -> _Kind:
    if not has_group(url, path):
        if not exists(url):
            raise MissingInputError(f"{os.fspath(url)} does not exist, where {path} are needed; check the path")
        if "job" in (read_attributes(url, "") or {}) and not has_group(url, "result"):
            raise MissingInputError(
                f"{os.fspath(url)} is not finished yet, and {path} are needed; let its job end, or run it again"
            )
        raise FormatError(f"{os.fspath(url)} holds no {path}; give the results of {makers}")
    return table_from_arrays(kind, *read_group(url, path))
