"""Whether movies are whole, by their headers: no pixels are read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError, MissingInputError, recorded_reason
from cloudem.io.movies.opening import open_movie
from cloudem.io.movies.ranges import RangeReader
from cloudem.io.storage.location import exists, folder_of, is_local
from cloudem.model.table import TEXT


class HeaderCheck(NamedTuple):
    """What the header of a movie says; `problem` is why it cannot be used, empty where it can."""

    problem: str = ""
    doubts: str = ""
    format: str = ""
    encoding: str = ""
    frames: int = 0
    height: int = 0
    width: int = 0
    header_pixel_size: float = 0.0
    file_bytes: int = 0
    file_version: str = ""


def check_header(
    url: str, frames: int = 0, gain_shape: tuple[int, int] | None = None, least_age: float = 0.0, marker: str = ""
) -> HeaderCheck:
    """Open a movie and say whether it can be used.

    Parameters
    ----------
    url
        Where it is.
    frames
        How many it should have; 0 where nothing says it.
    gain_shape
        Rows and columns of the oriented gain reference; None for none.
    least_age
        Seconds since the file changed, at least. Objects of S3 appear as a whole, and are not asked.
    marker
        Without a file beside it of its name and this, the movie is not complete.

    Raises
    ------
    StorageError
        The place where it lies cannot be reached.
    """
    try:
        if waits := _waits(url, least_age, marker):
            return HeaderCheck(waits)
        movie = open_movie(url)
        after = RangeReader(url)
    except MissingInputError:
        return HeaderCheck("is not there")
    except CloudemError as error:
        return HeaderCheck(recorded_reason(error).removeprefix(url).lstrip(": "))
    count = int(getattr(movie, "raw_frames", movie.frames))
    problem = ""
    if (after.size, after.version) != (movie.ranges.size, movie.ranges.version):
        problem = "is still being written: it changed while it was looked at"
    elif count < frames:
        problem = f"misses frames: it holds {count} of {frames}"
    elif gain_shape is not None and gain_shape != movie.shape:
        problem = (
            f"has {movie.shape[1]} x {movie.shape[0]} pixels, and the gain reference {gain_shape[1]} x {gain_shape[0]}"
        )
    doubts = [*movie.doubts, *([f"it holds {count} frames where {frames} were stated"] if 0 < frames < count else [])]
    return HeaderCheck(
        problem, "; ".join(doubts), movie.format, movie.encoding, count, *movie.shape, movie.pixel_size,
        movie.ranges.size, movie.ranges.version,
    )  # fmt: skip


def _waits(url: str, least_age: float, marker: str) -> str:
    """Return what a movie waits for; empty if for nothing."""
    if marker and not exists(url + marker):
        return f"waits for its marker {url.rpartition('/')[2]}{marker}"
    if least_age and is_local(url) and folder_of(url).is_file():
        age = time.time() - folder_of(url).stat().st_mtime
        if age < 0:
            return f"was changed {-age:.0f} s in the future: set the clocks right"
        if age < least_age:
            return f"changed {age:.0f} s ago, and may still be being written"
    return ""


def check_headers(
    part: Sequence[tuple[str, int, tuple[int, int] | None]], least_age: float = 0.0, marker: str = ""
) -> dict[str, NDArray[Any]]:
    """Check movies, given as the arguments of `check_header`; return the fields of `HeaderCheck` as arrays."""
    return arrays_of_checks([check_header(*each, least_age, marker) for each in part])


def arrays_of_checks(found: Sequence[HeaderCheck]) -> dict[str, NDArray[Any]]:
    """Return the fields of checks as arrays."""
    types: dict[type, Any] = {str: TEXT, int: np.int64, float: np.float64}
    return {
        name: np.array([getattr(each, name) for each in found], dtype=types[type(default)])
        for name, default in HeaderCheck._field_defaults.items()
    }
