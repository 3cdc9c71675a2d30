"""Movies as they are given: by a pattern, a folder, a table of RELION or cryoSPARC, or an mdoc file of SerialEM."""

from __future__ import annotations

import math
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import MissingInputError, ParameterError
from cloudem.io.formats.cryosparc import GAIN_TURNS, read_movies_cs
from cloudem.io.formats.mdoc import MdocMovie, movies_of, read_mdoc
from cloudem.io.formats.relion import read_movies_star
from cloudem.io.formats.sources import SourceMovieTable
from cloudem.io.images.remote import in_threads
from cloudem.io.storage.listing import has_wildcard, matching_files
from cloudem.io.storage.location import absolute, contents, exists, folder_of, is_local, join
from cloudem.model.movies import Movies
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import DEGREE, TEXT

SUFFIXES = (".mrc", ".mrcs", ".st", ".tif", ".tiff", ".eer")
"""Names of movies; in a folder, other files are passed over."""


class SourceMovies(NamedTuple):
    """Movies as they were given, before any of them was opened.

    Attributes
    ----------
    path
        What was given.
    movies
        Columns ``movie`` (absolute), ``micrograph``, and whatever else the table or mdoc files say.
    pixel_size
        Å per pixel; 0 where nothing says it.
    frames
        How many each should have, ``(n,)``; 0 where nothing says it.
    notes
        Lines about what was found and passed over.
    """

    path: str
    movies: Movies
    pixel_size: float
    frames: NDArray[np.int32]
    notes: tuple[str, ...] = ()


def find_movies(given: str, project_folder: str | None = None) -> SourceMovies:
    """Return the movies that a pattern, a folder, a file or a table stands for.

    Parameters
    ----------
    given
        Path or URL; ``.star``, ``.cs`` and ``.mdoc`` are tables.
    project_folder
        Folder or URL that names in a table start from; if none, the working directory, then the folder of the table and
        those above it.

    Raises
    ------
    MissingInputError
        Nothing is there.
    ParameterError
        There are no movies.
    FormatError, MissingColumnError, InconsistentDataError
        A table is damaged, or lists none.
    StorageError
        The place cannot be reached.
    """
    kind = PurePosixPath(given).suffix.lower()
    if kind in (".star", ".cs") and not has_wildcard(given):
        table = read_movies_star(given) if kind == ".star" else read_movies_cs(given)
        return _of_table(table, project_folder)
    if kind == ".mdoc" and not has_wildcard(given):
        return _of_mdoc(given)
    files, passed = listed_files(given)
    if not files:
        what = "matches no file" if has_wildcard(given) else "holds no movies"
        raise MissingInputError(f"{given} {what} ({', '.join(SUFFIXES)}); check the path, and put patterns in quotes")
    found, doubts = _mdocs(files)
    notes = [f"other files are passed over: {count} of {name}" for name, count in passed.most_common(3)]
    return _with_mdocs(given, files, found, [*notes, *doubts])


def listed_files(given: str, suffixes: Sequence[str] = SUFFIXES) -> tuple[list[str], Counter[str]]:
    """Return the files of a pattern, a folder or a name that have a suffix, and how many others there are by suffix.

    Raises
    ------
    MissingInputError
        Nothing is there.
    StorageError
        The place cannot be reached.
    """
    if has_wildcard(given):
        all_ = matching_files(given)
    else:
        names = contents(given)
        if not names and not exists(given):
            raise MissingInputError(f"{given} does not exist; check the path")
        all_ = [join(absolute(given), name) for name in names] if names else [absolute(given)]
        if not names:  # a file, or a folder that is empty until now
            return ([] if is_local(given) and folder_of(given).is_dir() else all_), Counter()
    files = [each for each in all_ if PurePosixPath(each).suffix.lower() in suffixes]
    taken = set(files)
    passed = [PurePosixPath(each) for each in all_ if each not in taken and not each.endswith(".mdoc")]
    others = Counter(each.suffix or each.name for each in passed)
    return files, others


def _mdocs(files: Sequence[str]) -> tuple[list[MdocMovie], list[str]]:
    """Return what the mdoc files beside movies say of them."""
    names = {folder: set(contents(folder)) for folder in {posixpath.dirname(each) for each in files}}

    def read(url: str) -> MdocMovie:
        folder, name = posixpath.split(url)
        for beside in (f"{name}.mdoc", f"{PurePosixPath(name).stem}.mdoc"):
            if beside in names[folder]:
                movies = movies_of(read_mdoc(join(folder, beside)))
                named = [each for each in movies if each.file == name]
                return (named or (movies if len(movies) == 1 else [MdocMovie()]))[0]
        return MdocMovie()

    some = any(name.endswith(".mdoc") for each in names.values() for name in each)
    found = in_threads(read, files) if some else [MdocMovie()] * len(files)
    without = sum(each == MdocMovie() for each in found)
    return found, [f"{without} of {len(files)} movies have no mdoc file"] if some and without else []


def _of_mdoc(given: str) -> SourceMovies:
    found = [each for each in movies_of(read_mdoc(given)) if each.file]
    if not found:
        raise ParameterError(f"{given} names no movies (no SubFramePath): it is of a montage, or frames were not saved")
    folder = posixpath.dirname(absolute(given))
    return _with_mdocs(given, [join(folder, each.file) for each in found], found, [])


def _with_mdocs(given: str, files: Sequence[str], found: Sequence[MdocMovie], notes: Sequence[str]) -> SourceMovies:
    sizes = sorted({each.pixel_size for each in found if each.pixel_size})
    if len(sizes) > 1 and sizes[-1] / sizes[0] - 1 > 1e-3:
        raise ParameterError(
            f"{given}: mdoc files state pixel sizes from {sizes[0]:g} to {sizes[-1]:g} Å; import each magnification by"
            " itself"
        )
    voltages = sorted({each.voltage for each in found})
    optics = tuple(OpticsGroup(f"opticsGroup{number + 1}", kv, 0.0, 0.0) for number, kv in enumerate(voltages))
    columns: dict[str, Any] = {
        "optics_group": np.array([voltages.index(each.voltage) for each in found], np.int32),
        "movie": np.array(list(files), TEXT),
        "micrograph": np.array(unique_names(files, fixed_folder(given)), TEXT),
    }
    numbers = {
        "dose_per_frame": [each.dose_per_frame for each in found],
        "stage_x": [each.stage[0] for each in found],
        "stage_y": [each.stage[1] for each in found],
        "stage_z": [each.stage[2] for each in found],
        "stage_tilt": [each.tilt_angle * DEGREE for each in found],
        "image_shift_x": [each.image_shift[0] for each in found],
        "image_shift_y": [each.image_shift[1] for each in found],
        "nominal_defocus": [each.defocus for each in found],
    }
    columns |= {name: np.array(v, np.float64) for name, v in numbers.items() if not all(map(math.isnan, v))}
    if any(each.acquired for each in found):
        columns["acquired"] = np.array([each.acquired for each in found], TEXT)
    frames = np.array([each.frames for each in found], np.int32)
    return SourceMovies(given, Movies(optics, columns), sizes[0] if sizes else 0.0, frames, tuple(notes))


def _of_table(table: SourceMovieTable, project_folder: str | None) -> SourceMovies:
    """Return the movies of a table with names that say where they are."""
    movies = table.movies
    names: list[str] = movies["movie"].tolist()
    base = base_of_names(names[0], table.path, project_folder)
    columns = {"movie": np.array([place_of_name(base, name, table.path) for name in names], TEXT)}
    for name in ("gain", "defects"):
        if name in movies:
            found = [each and place_of_name(base, each, table.path) for each in movies[name].tolist()]
            columns[name] = np.array(found, TEXT)
    if "micrograph" not in movies:
        columns["micrograph"] = np.array(unique_names(names), TEXT)
    frames = np.zeros(len(names), np.int32)
    if "frames" in movies:
        frames, movies = movies["frames"].astype(np.int32), movies.without_columns(["frames"])
    turned = [name for name in GAIN_TURNS if "cs:" + name in movies and set(movies["cs:" + name].tolist()) != {"0"}]
    notes = [
        f"{', '.join(turned)}: the gain reference is not turned by the table; give --gain-rotation and --gain-flip"
    ]
    return SourceMovies(
        table.path, movies.with_columns(**columns), table.pixel_size, frames, tuple(notes if turned else ())
    )


def base_of_names(name: str, table: str, project_folder: str | None) -> str:
    """Return where the names of a table start from, by the first of them."""
    above = [absolute(table).rpartition("/")[0]]
    while above[-1].count("/") > (2 if "://" in above[-1] else 1):
        above.append(above[-1].rpartition("/")[0])
    here = [os.getcwd()] if is_local(table) else []  # noqa: PTH109
    bases = [absolute(project_folder)] if project_folder is not None else [*here, *above]
    for base in bases:
        if exists(place_of_name(base, name, table)):
            return base
    where = f"under {project_folder}" if project_folder is not None else "here or beside the table"
    raise MissingInputError(
        f"{table} refers to {name}, not found {where}; give the folder that the names start from with --project-folder"
    )


def place_of_name(base: str, name: str, table: str) -> str:
    """Return what a name means, seen from a base; a table that is not in a folder names nothing outside of that."""
    if is_local(base):
        return str(absolute(os.path.join(base, name)))  # noqa: PTH118
    clean = posixpath.normpath(name)
    if clean.startswith(("/", "../")) or clean == "..":
        raise ParameterError(
            f"{table} refers to {name}, which lies outside of {base}; correct the names, or give --project-folder"
        )
    return join(base, clean)


def below_shared_folder(files: Sequence[str]) -> list[str]:
    """Return the names of files below the folder that they share."""
    shared = posixpath.commonpath([posixpath.dirname(each) or "." for each in files])
    return [posixpath.relpath(each, shared) for each in files]


def fixed_folder(given: str) -> str:
    """Return the folder below which all that a pattern or folder may ever stand for lies: names start from there."""
    fixed = absolute(given).partition("*")[0].partition("?")[0].partition("[")[0] if has_wildcard(given) else ""
    if fixed:
        return posixpath.dirname(fixed)
    return absolute(given) if not PurePosixPath(given).suffix else posixpath.dirname(absolute(given))


def unique_names(files: Sequence[str], folder: str = "") -> list[str]:
    """Return the names of files without their suffix, below a folder; no two are the same.

    Parameters
    ----------
    files
        Their paths or URLs.
    folder
        By default the one that they share; one that is given keeps names as they are when there are more files.
    """
    inside = bool(folder) and all(each.startswith(f"{folder.rstrip('/')}/") for each in files)
    names = [posixpath.relpath(each, folder) for each in files] if inside else below_shared_folder(files)
    stems = [str(PurePosixPath(each).with_suffix("")) for each in names]
    counts = Counter(stems)
    return [
        stem if counts[stem] == 1 else f"{stem}_{PurePosixPath(each).suffix[1:]}"
        for stem, each in zip(stems, files, strict=True)
    ]
