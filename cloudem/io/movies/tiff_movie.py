"""Movies in TIFF files: strips or tiles, plain or compressed by LZW, deflate or zstd; decoded by tifffile."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError, FormatError, ParameterError, parsing
from cloudem.io.movies.movie import Movie
from cloudem.io.movies.ranges import RangeFile
from cloudem.io.movies.tiff_pages import BITS, COMPRESSION, LENGTH, SAMPLES, WIDTH, TiffChain, TiffDirectory

_NAMES = {1: "plain", 5: "LZW", 8: "deflate", 32946: "deflate", 50000: "zstd", 34926: "zstd"}
"""Compressions that detectors' programs write; tifffile decodes others, too."""

_MOST_SIDE = 2**15
"""Pixels along a side of a frame: no detector has more, and memory is taken by what a header claims."""


class TiffMovie(Movie):
    """A movie in a TIFF file, flipped in y on reading, see `Movie`.

    Parameters
    ----------
    file
        The file.
    pages
        Its directories.

    Raises
    ------
    FormatError
        It is not whole, or its frames are not images of one size and one number for each pixel.
    """

    format = "TIFF"

    def __init__(self, file: RangeFile, pages: TiffChain) -> None:
        super().__init__(file.ranges)
        if pages.problem:
            raise FormatError(
                f"{self.url} is truncated or still being written: {pages.problem}; {len(pages.whole)} frames before it"
                " are whole; copy it again, or wait until it is complete"
            )
        first = pages.whole[0]
        self._file, self._pages = file, pages.whole
        self._tiff: Any = None
        self.shape, self.frames = _shape(first), len(pages.whole)
        sizes = Counter(_shape(page) for page in pages.whole)
        if len(sizes) > 1:
            found = " and ".join(f"{count} of {columns} x {rows}" for (rows, columns), count in sizes.most_common(3))
            raise FormatError(f"{self.url} has frames of several sizes: {found} pixels; write the movie without others")
        if max(self.shape) > _MOST_SIDE:
            rows, columns = self.shape
            raise FormatError(f"{self.url} claims frames of {columns} x {rows} pixels: it is damaged, or not a movie")
        if min(self.shape) < 1 or any(page.number(SAMPLES, 1) != 1 or not page.extents for page in pages.whole):
            raise FormatError(f"{self.url} holds no grey images, one number for each pixel; give the movie itself")
        code = first.number(COMPRESSION, 1)
        self.encoding = f"{_NAMES.get(code, f'compression {code}')}, {first.number(BITS, 1)} bits"

    @property
    def dtype(self) -> np.dtype[Any]:  # type: ignore[override]
        """Of what `read` returns; the file's own, in the machine's byte order."""
        found: np.dtype[Any] = np.dtype(self._opened().pages[0].dtype).newbyteorder("=")
        return found

    def _read(self, first: int, last: int) -> NDArray[Any]:
        wanted = [_span(page) for page in self._pages[first:last]]
        self._file.hold(wanted)
        frames = np.zeros((last - first, *self.shape), self.dtype)
        for number in range(first, last):
            try:
                image = self._opened().pages[number].asarray(maxworkers=1)
                frames[number - first] = image.reshape(self.shape)[::-1]
            except CloudemError:
                raise
            except Exception as error:  # decoders raise errors of their own kinds
                self.damaged[number] = (
                    f"cannot be decoded ({str(error).splitlines()[0][:80] if str(error) else error!r})"
                )
        return frames

    def _opened(self) -> Any:
        if self._tiff is None:
            try:
                from tifffile import TiffFile
            except ImportError:
                raise ParameterError(
                    f"{self.url}: TIFF movies are read by tifffile and imagecodecs; install them: pip install"
                    " 'cloudem[movies]'"
                ) from None
            logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # the chain has been checked
            with parsing(f"{self.url} is damaged", "copy it again"):
                self._tiff = TiffFile(self._file)
                np.dtype(self._tiff.pages[0].dtype)
        return self._tiff


def _shape(page: TiffDirectory) -> tuple[int, int]:
    return page.number(LENGTH), page.number(WIDTH)


def _span(page: TiffDirectory) -> tuple[int, int]:
    """Return from where to where the data of a frame lie, its strips together."""
    return min(start for start, _ in page.extents), max(stop for _, stop in page.extents)
