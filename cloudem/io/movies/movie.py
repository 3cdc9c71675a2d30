"""A movie: frames of one size, read some at a time, whatever the format.

An array's first row is the one that MRC files store first. TIFF stores the top of an image first, and MRC its bottom:
as RELION, IMOD and MotionCor do, TIFF is flipped in y on reading, so that the same exposure lies the same way in both.
EER is not flipped, as in RELION.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import ParameterError
from cloudem.io.movies.ranges import RangeReader


class Movie(ABC):
    """A movie that is open for reading; its header has been checked against the size of the file.

    It is for one thread at a time.

    Attributes
    ----------
    url
        Where it is.
    format
        ``MRC``, ``TIFF`` or ``EER``.
    encoding
        How pixels are stored, in words: ``mode 1``, ``LZW, uint8``, ``7 + 4 bits``.
    shape
        Rows and columns of a frame.
    frames
        How many `read` can return.
    dtype
        Of what `read` returns, in the machine's byte order.
    pixel_size
        Å per pixel as the file says; 0 where it does not.
    damaged
        What is wrong with frames that could not be read, by their number in the file from 0; it grows as frames are
        read. Of a movie in which each frame is one of the file, such a frame comes as zeros: leave it out.
    doubts
        Lines about what is not as it should be, and does not keep the movie from being read.
    """

    format: str
    encoding: str
    shape: tuple[int, int]
    frames: int
    dtype: np.dtype[Any]
    pixel_size: float = 0.0

    def __init__(self, ranges: RangeReader) -> None:
        self.ranges = ranges
        self.url = ranges.url
        self.damaged: dict[int, str] = {}
        self.doubts: list[str] = []

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Return frames ``first`` to ``last - 1``, counted from 0, neither corrected by a gain nor for defects.

        Returns
        -------
        frames
            Shape ``(last - first, rows, columns)``.

        Raises
        ------
        ParameterError
            The movie has no such frames.
        StorageError
            The file was changed, or cannot be read.
        """
        last = self.frames if last is None else last
        if not 0 <= first < last <= self.frames:
            raise ParameterError(
                f"{self.url}: frames {first} to {last} were asked for; it has frames 0 to {self.frames}"
            )
        return self._read(first, last)

    @abstractmethod
    def _read(self, first: int, last: int) -> NDArray[Any]:
        """Return frames that are there."""
