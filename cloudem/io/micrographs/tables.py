"""The table of micrographs in a result."""

from __future__ import annotations

import os
from collections.abc import Callable

from cloudem.errors import FormatError, MissingInputError
from cloudem.io.storage.groups import has_group, read_group
from cloudem.io.storage.location import exists
from cloudem.io.storage.tables import table_from_arrays, table_to_arrays
from cloudem.model.micrographs import Micrographs

MICROGRAPH_TABLE = "micrographs"
"""Group of the table in the results."""


def read_micrograph_table(url: str | os.PathLike[str]) -> Micrographs:
    """Read the table of micrographs of a result.

    Raises
    ------
    MissingInputError
        There is nothing under that name.
    FormatError
        What is there holds no micrographs.
    """
    if not has_group(url, MICROGRAPH_TABLE):
        if not exists(url):
            raise MissingInputError(f"{os.fspath(url)} does not exist, where micrographs are needed; check the path")
        raise FormatError(f"{os.fspath(url)} holds no micrographs; give the results of cloudem import-micrographs")
    return table_from_arrays(Micrographs, *read_group(url, MICROGRAPH_TABLE))


def write_micrograph_table(write: Callable[..., None], table: Micrographs) -> None:
    """Write the table by the ``write`` of a job's context."""
    write(MICROGRAPH_TABLE, *table_to_arrays(table))
