"""Frames of a movie that are asked for several times: kept in memory in as few bytes as they need, or read again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError
from cloudem.io.movies.movie import Movie

MOST_HELD = 1_400_000_000
"""Bytes of frames that are kept; those of larger movies are read again each time."""

AT_ONCE = 4
"""Frames that are read with one request; from a disk they are read one by one, for which memory is used again."""


class HeldFrames:
    """Frames of a movie by their number.

    Parameters
    ----------
    movie
        Open.
    most
        Bytes that are kept.
    """

    def __init__(self, movie: Movie, most: int = MOST_HELD) -> None:
        self.movie = movie
        self._most = most
        self._at_once = AT_ONCE if movie.ranges.remote else 1
        self._held: dict[int, NDArray[Any]] = {}
        self._bytes = 0

    def __call__(self, number: int) -> NDArray[Any]:
        """Return a frame as the file has it, of the smallest kind of whole numbers that holds it.

        Raises
        ------
        FormatError
            It cannot be decoded.
        StorageError
            It cannot be read.
        """
        if number in self._held:
            return self._held[number]
        frame = _smallest(self.movie.read(number, number + 1)[0])
        self._refuse_damaged(number)
        self._hold(number, frame)
        return frame

    def in_turn(self, numbers: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
        """Yield frames, ascending, of which none is asked for again: a few are read with each request, none is kept.

        Raises
        ------
        FormatError
            One cannot be decoded.
        StorageError
            One cannot be read.
        """
        first, read = 0, np.zeros((0, 0, 0))
        for number in numbers.tolist():
            if not first <= number < first + len(read):
                first, read = number, self.movie.read(number, min(number + self._at_once, self.movie.frames))
            self._refuse_damaged(number)
            yield _smallest(read[number - first])

    def _refuse_damaged(self, number: int) -> None:
        if self.movie.format != "EER" and number in self.movie.damaged:
            raise FormatError(f"{self.movie.url}: frame {number + 1} {self.movie.damaged[number]}")

    def whole_frames(self) -> list[int]:
        """Read all frames, a few with each request; return the numbers of those that can be decoded.

        Raises
        ------
        StorageError
            They cannot be read.
        """
        for first in range(0, self.movie.frames, self._at_once):
            last = min(first + self._at_once, self.movie.frames)
            frames = [_smallest(frame) for frame in self.movie.read(first, last)]
            # parts of one array: where not all are kept, one that is would keep the others
            apart = self._bytes + sum(frame.nbytes for frame in frames) > self._most
            for number, frame in zip(range(first, last), frames, strict=True):
                self._hold(number, frame.copy() if apart and frame.base is not None else frame)
        damaged = {} if self.movie.format == "EER" else self.movie.damaged
        return [number for number in range(self.movie.frames) if number not in damaged]

    def _hold(self, number: int, frame: NDArray[Any]) -> None:
        if self._bytes + frame.nbytes <= self._most:
            self._held[number] = frame
            self._bytes += frame.nbytes


def _smallest(frame: NDArray[Any]) -> NDArray[Any]:
    if frame.dtype.kind == "f" and frame.dtype.itemsize == 2:
        return frame.astype(np.float32)
    if frame.dtype.kind not in "iu" or frame.dtype.itemsize == 1:
        return frame
    return frame.astype(np.uint8) if frame.min() >= 0 and frame.max() <= 255 else frame
