"""Movies of electron events (EER): raw frames are added up in groups, in pixels of the detector or parts of them.

Compression 65000 has runs of 8 bits and symbols of 4, where the run of 255 is followed by a symbol without meaning;
65001 has runs of 7 bits and symbols of 4; 65002 says in tags 65007 to 65009 how many bits it has. In the latter two a
greatest run has no symbol.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, ParameterError
from cloudem.io.movies.movie import Movie
from cloudem.io.movies.ranges import RangeFile
from cloudem.io.movies.tiff_pages import (
    COMPRESSION,
    EER_METADATA,
    EER_RUN_BITS,
    EER_X_BITS,
    EER_Y_BITS,
    LENGTH,
    WIDTH,
    TiffChain,
    TiffDirectory,
)
from cloudem.kernels.eer import ENDS_EARLY, add_events, unpack_events

EER_COMPRESSIONS = (65000, 65001, 65002)
UPSAMPLINGS = {1: 0, 2: 1, 4: 2}
_ITEM = re.compile(r"<item[^>]*name=[\"']([^\"']+)[\"'][^>]*>([^<]*)</item>")


class Codec(NamedTuple):
    """How events are packed: bits of a run, of x and of y, and whether a greatest run has a symbol all the same."""

    run_bits: int
    x_bits: int
    y_bits: int
    padded: bool

    @property
    def symbol_bits(self) -> int:
        """Bits of the place in the pixel."""
        return self.x_bits + self.y_bits


class EerMovie(Movie):
    """A movie of electron events, see `Movie`; its frames are groups of raw frames.

    A damaged raw frame adds nothing to its group, and is named in `damaged` by its number among the raw frames.

    Parameters
    ----------
    file
        The file.
    pages
        Its directories.
    upsampling
        Pixels along each side of one of the detector's: 1, 2 or 4.
    group
        Raw frames that are added up to one.
    keep_incomplete
        Whether raw frames that are left over at the end make a frame of their own; otherwise they are not used, and
        `left_over` says how many they are.

    Attributes
    ----------
    raw_frames
        In the file.
    groups
        First raw frame of each frame, and the one after its last.
    left_over
        Raw frames at the end that no frame has.
    electrons
        Events of each raw frame that has been read, by its number.
    metadata
        What the file says of the exposure, as text by its name there.

    Raises
    ------
    FormatError
        It is not whole, its frames differ in size, or its codes are of a kind that does not exist.
    ParameterError
        An upsampling that the file does not record, or a group that is larger than the movie.
    """

    format = "EER"
    dtype = np.dtype(np.uint16)

    def __init__(
        self, file: RangeFile, pages: TiffChain, upsampling: int = 1, group: int = 1, keep_incomplete: bool = False
    ) -> None:
        super().__init__(file.ranges)
        if pages.problem:
            raise FormatError(
                f"{self.url} is truncated or still being written: {pages.problem}; copy it again, or wait until it is"
                " complete"
            )
        self._frames = [page for page in pages.whole if page.number(COMPRESSION) in EER_COMPRESSIONS]
        first = self._frames[0]
        self._detector = first.number(LENGTH), first.number(WIDTH)
        self._codec = _codec(first, self.url)
        if any((p.number(LENGTH), p.number(WIDTH)) != self._detector or not p.extents for p in self._frames):
            raise FormatError(f"{self.url} has frames of several sizes, or without data: it is damaged; copy it again")
        if not 1 <= min(self._detector) <= max(self._detector) <= 2**15:
            raise FormatError(f"{self.url} claims a detector of {self._detector} pixels: it is damaged")
        self._zoom = _zoom_bits(upsampling, self._codec, self.url)
        rows, columns = self._detector
        self.shape = rows << self._zoom, columns << self._zoom
        self.raw_frames = len(self._frames)
        self.groups, self.left_over = frame_groups(self.raw_frames, group, keep_incomplete)
        if not self.groups:
            raise ParameterError(
                f"{self.url} has {self.raw_frames} raw frames, fewer than one group of {group}; give smaller groups"
            )
        self.frames = len(self.groups)
        self.encoding = f"{self._codec.run_bits} + {self._codec.symbol_bits} bits"
        self.electrons: dict[int, int] = {}
        self.metadata = _metadata(pages.whole)
        stated = self.metadata.get("numberOfFrames", "")
        if stated.isdigit() and int(stated) != self.raw_frames:
            self.doubts.append(f"it holds {self.raw_frames} raw frames, and its metadata say {stated}")

    def events(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Return the events of a raw frame: their pixels, counted row by row, and their symbols as they are stored.

        Raises
        ------
        FormatError
            The frame is damaged.
        """
        pieces = self.ranges.read_many(self._frames[number].extents)
        return unpacked(b"".join(pieces), self._codec, self._detector[0] * self._detector[1])

    def _read(self, first: int, last: int) -> NDArray[Any]:
        out = np.zeros((last - first, *self.shape), np.uint16)
        for place in range(first, last):
            raw = range(*self.groups[place])
            extents = [each for number in raw for each in self._frames[number].extents]
            data = iter(self.ranges.read_many(extents))
            for number in raw:
                frame = b"".join(next(data) for _ in self._frames[number].extents)
                self._add(number, frame, out[place - first])
        return out

    def _add(self, number: int, data: bytes, out: NDArray[np.uint16]) -> None:
        codec = self._codec
        try:
            positions, symbols = unpacked(data, codec, self._detector[0] * self._detector[1])
        except FormatError as error:
            self.damaged[number] = str(error)
            return
        add_events(positions, symbols, self._detector[1], codec.x_bits, codec.y_bits, self._zoom, out)
        self.electrons[number] = len(positions)


def frame_groups(raw_frames: int, group: int, keep_incomplete: bool) -> tuple[list[tuple[int, int]], int]:
    """Return from where to where the raw frames of each frame go, and how many are left over at the end."""
    whole = raw_frames // group
    groups = [(number * group, (number + 1) * group) for number in range(whole)]
    rest = raw_frames - whole * group
    if rest and keep_incomplete:
        return [*groups, (whole * group, raw_frames)], 0
    return groups, rest


def group_of_dose(dose: float, raw_dose: float) -> int:
    """Return how many raw frames come nearest to a dose; at least one.

    Parameters
    ----------
    dose, raw_dose
        e/Å² of a frame and of a raw frame.

    Raises
    ------
    ParameterError
        Either is not positive.
    """
    if not (dose > 0 and raw_dose > 0):
        raise ParameterError(f"frames of {dose:g} e/Å² cannot be made of raw frames of {raw_dose:g} e/Å²")
    return max(1, round(dose / raw_dose))


def unpacked(data: bytes, codec: Codec, pixels: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Return the events of a frame, see `EerMovie.events`."""
    most = 8 * len(data) // (codec.run_bits + codec.symbol_bits) + 1
    positions, symbols = np.empty(most, np.int32), np.empty(most, np.uint8)
    codes = np.frombuffer(data, np.uint8)
    count = unpack_events(codes, codec.run_bits, codec.symbol_bits, codec.padded, pixels, positions, symbols)
    if count < 0:
        raise FormatError(
            "its codes end before its last pixel" if count == ENDS_EARLY else "its codes go beyond its last pixel"
        )
    return positions[:count], symbols[:count]


def _codec(page: TiffDirectory, url: str) -> Codec:
    compression = page.number(COMPRESSION)
    if compression == 65000:
        return Codec(8, 2, 2, True)
    if compression == 65001:
        return Codec(7, 2, 2, False)
    codec = Codec(page.number(EER_RUN_BITS, 7), page.number(EER_X_BITS, 2), page.number(EER_Y_BITS, 2), False)
    if not (1 <= codec.run_bits <= 16 and 0 <= codec.x_bits <= 4 and 0 <= codec.y_bits <= 4):
        raise FormatError(
            f"{url} claims runs of {codec.run_bits} bits and symbols of {codec.x_bits} + {codec.y_bits}: it is damaged"
        )
    return codec


def _zoom_bits(upsampling: int, codec: Codec, url: str) -> int:
    most = 2 ** min(codec.x_bits, codec.y_bits)
    if upsampling not in UPSAMPLINGS or upsampling > most:
        raise ParameterError(
            f"{url}: an upsampling of {upsampling} was asked for; this file allows 1 to {most}, in powers of 2"
        )
    return UPSAMPLINGS[upsampling]


def _metadata(pages: list[TiffDirectory]) -> dict[str, str]:
    """Return what the acquisition metadata of the file say, which are XML."""
    raw = next((value for page in pages if isinstance(value := page.tags.get(EER_METADATA), bytes)), b"")
    return dict(_ITEM.findall(raw[: 2**20].decode("utf-8", errors="replace")))
