"""Micrographs as they are given: by a pattern, a folder, or a table of RELION or cryoSPARC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import MissingInputError, ParameterError
from cloudem.io.formats.cryosparc import read_micrographs_cs
from cloudem.io.formats.relion import read_micrographs_star
from cloudem.io.formats.sources import SourceMicrographTable
from cloudem.io.movies.checking import HeaderCheck, arrays_of_checks, check_header
from cloudem.io.movies.sources import base_of_names, fixed_folder, listed_files, place_of_name, unique_names
from cloudem.io.storage.listing import has_wildcard
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import TEXT

SUFFIXES = (".mrc", ".mrcs", ".tif", ".tiff")
"""Names of micrographs; in a folder, other files are passed over."""

TABLES = (".star", ".cs")


class GivenMicrographs(NamedTuple):
    """Micrographs as they were given, before any of them was opened.

    Attributes
    ----------
    path
        What was given.
    micrographs
        Columns ``image`` (absolute), ``micrograph``, and whatever else the table says.
    pixel_size
        Å per pixel; 0 where nothing says it.
    notes
        Lines about what was found and passed over.
    """

    path: str
    micrographs: Micrographs
    pixel_size: float
    notes: tuple[str, ...] = ()


def find_micrographs(given: str, project_folder: str | None = None) -> GivenMicrographs:
    """Return the micrographs that a pattern, a folder, a file or a table stands for.

    Parameters
    ----------
    given
        Path or URL; ``.star`` and ``.cs`` are tables.
    project_folder
        Folder or URL that names in a table start from; if none, the working directory, then the folder of the table and
        those above it.

    Raises
    ------
    MissingInputError
        Nothing is there.
    ParameterError
        There are no micrographs, or what was given is a file of another kind.
    FormatError, MissingColumnError, InconsistentDataError
        A table is damaged, or lists none.
    StorageError
        The place cannot be reached.
    """
    kind = PurePosixPath(given).suffix.lower()
    if kind in TABLES and not has_wildcard(given):
        read = read_micrographs_cs(given) if kind == ".cs" else read_micrographs_star(given, allow_no_optics=True)
        return _of_table(read, project_folder)
    files, passed = listed_files(given, SUFFIXES)
    if not files:
        what = "matches no file" if has_wildcard(given) else "holds no micrographs"
        raise MissingInputError(f"{given} {what} ({', '.join(SUFFIXES)}); check the path, and put patterns in quotes")
    if len(files) == 1 and PurePosixPath(files[0]).suffix.lower() not in SUFFIXES:
        raise ParameterError(
            f"{files[0]} is neither an image ({', '.join(SUFFIXES)}) nor a table ({', '.join(TABLES)});"
            " convert it first"
        )
    notes = tuple(f"other files are passed over: {count} of {name}" for name, count in passed.most_common(3))
    columns = {
        "optics_group": np.zeros(len(files), np.int32),
        "micrograph": np.array(unique_names(files, fixed_folder(given)), TEXT),
        "image": np.array(files, TEXT),
    }
    return GivenMicrographs(given, Micrographs((OpticsGroup("opticsGroup1", 0.0, 0.0, 0.0),), columns), 0.0, notes)


def _of_table(table: SourceMicrographTable, project_folder: str | None) -> GivenMicrographs:
    """Return the micrographs of a table with names that say where they are."""
    names: list[str] = table.micrographs["micrograph"].tolist()
    base = base_of_names(names[0], table.path, project_folder)
    images = np.array([place_of_name(base, name, table.path) for name in names], TEXT)
    return GivenMicrographs(table.path, table.micrographs.with_columns(image=images), table.pixel_size)


def check_micrographs(part: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Look at the headers of micrographs; return the fields of `HeaderCheck` as arrays.

    Parameters
    ----------
    part
        Where each is.
    """
    return arrays_of_checks([_check(url) for url in part])


def _check(url: str) -> HeaderCheck:
    found = check_header(url)
    if not found.problem and found.frames > 1:
        return found._replace(
            problem=f"holds {found.frames} images, where a micrograph is one; import movies by cloudem import-movies"
        )
    return found
