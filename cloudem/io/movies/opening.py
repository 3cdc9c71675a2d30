"""Opening a movie by what it holds, whatever its name."""

from __future__ import annotations

import os

from cloudem.io.movies.eer_movie import EER_COMPRESSIONS, EerMovie
from cloudem.io.movies.movie import Movie
from cloudem.io.movies.mrc_movie import MrcMovie
from cloudem.io.movies.ranges import RangeFile, RangeReader
from cloudem.io.movies.tiff_movie import TiffMovie
from cloudem.io.movies.tiff_pages import COMPRESSION, is_tiff, read_pages


def open_movie(
    url: str | os.PathLike[str], *, upsampling: int = 1, group: int = 1, keep_incomplete: bool = False
) -> Movie:
    """Open a movie; only its header, or the directories of its frames, are read.

    Parameters
    ----------
    url
        A file, or its URL on S3 or wherever fsspec reaches.
    upsampling, group, keep_incomplete
        Of EER, see `EerMovie`; others have one frame for each of the file.

    Raises
    ------
    MissingInputError
        There is no such file.
    FormatError
        It is of no format that is read, truncated, or damaged.
    ParameterError
        See `EerMovie`.
    StorageError
        It cannot be reached.
    """
    ranges = RangeReader(url)
    if not is_tiff(ranges.read(0, 4)):
        return MrcMovie(ranges)
    file = RangeFile(ranges)
    pages = read_pages(file)
    if any(page.number(COMPRESSION) in EER_COMPRESSIONS for page in pages.whole):
        return EerMovie(file, pages, upsampling, group, keep_incomplete)
    return TiffMovie(file, pages)
