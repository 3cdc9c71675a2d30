"""The table of movies in the results of ``cloudem import-movies``."""

from __future__ import annotations

import os

from cloudem.errors import FormatError, MissingInputError
from cloudem.io.storage.groups import has_group, read_attributes, read_group
from cloudem.io.storage.location import exists
from cloudem.io.storage.tables import table_from_arrays
from cloudem.model.movies import Movies

MOVIE_TABLE = "movies"
"""Group of the table in the results."""


def read_movies(url: str | os.PathLike[str]) -> Movies:
    """Read the table of movies of a result.

    Raises
    ------
    MissingInputError
        There is nothing under that name.
    FormatError
        What is there holds no movies.
    """
    if not has_group(url, MOVIE_TABLE):
        if not exists(url):
            raise MissingInputError(f"{os.fspath(url)} does not exist, where movies are needed; check the path")
        if "job" in (read_attributes(url, "") or {}) and not has_group(url, "result"):
            raise MissingInputError(
                f"{os.fspath(url)} is not finished yet, and movies are needed; let its job end, or run it again"
            )
        raise FormatError(f"{os.fspath(url)} holds no movies; give the results of cloudem import-movies")
    return table_from_arrays(Movies, *read_group(url, MOVIE_TABLE))
