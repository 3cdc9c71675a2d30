"""Movies in MRC files, also of 4 bits a pixel as SerialEM and IMOD write them.

Mode 101 has two pixels in a byte, the first in the low half, and rows that begin with a byte. SerialEM also wrote such
data as mode 0 with half the columns, and says so by bit 16 of IMOD's flags.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError
from cloudem.io.formats.compressed import is_compressed
from cloudem.io.formats.mrc import HEADER_BYTES, header_of
from cloudem.io.movies.movie import Movie
from cloudem.io.movies.ranges import RangeReader

_IMOD_STAMP, _SIGNED, _HALF_WIDTH = 1146047817, 1, 16
_ANY_SIZE = 2**62


class MrcMovie(Movie):
    """A movie in an MRC file, see `Movie`.

    Raises
    ------
    FormatError
        It is no MRC file, of a mode that is not read, or shorter than its header promises.
    """

    format = "MRC"

    def __init__(self, ranges: RangeReader) -> None:
        super().__init__(ranges)
        raw = ranges.read(0, HEADER_BYTES)
        if is_compressed(raw) or raw[:3] == b"BZh":
            raise FormatError(
                f"{self.url} is compressed as a whole, and frames are read one by one; decompress it first"
            )
        plain, self._columns = _of_bytes(raw, self.url)
        header = header_of(plain, _ANY_SIZE if len(raw) == HEADER_BYTES else ranges.size, self.url)
        self.frames, rows, stored = header.shape
        self.shape = rows, self._columns or stored
        self.dtype = header.dtype.newbyteorder("=")
        self._stored, self._offset = header.dtype, header.offset
        self._frame_bytes = rows * stored * header.dtype.itemsize
        self.encoding = "4 bits" if self._columns else f"mode {header.mode}"
        self.pixel_size = header.pixel_size
        held = (ranges.size - self._offset) // self._frame_bytes
        if held < self.frames or ranges.size < self._offset:
            raise FormatError(
                f"{self.url} is truncated or still being written: it holds {max(held, 0)} whole frames of the"
                f" {self.frames} in its header; copy it again, or wait until it is complete"
            )
        if held > self.frames:
            self.doubts.append(f"it holds {held} frames, and its header says {self.frames}")

    def _read(self, first: int, last: int) -> NDArray[Any]:
        start = self._offset + first * self._frame_bytes
        raw = self.ranges.read(start, start + (last - first) * self._frame_bytes)
        stored = np.frombuffer(raw, self._stored).reshape(last - first, self.shape[0], -1)
        if self._columns:
            return unpack_nibbles(stored, self._columns)
        return stored.astype(self.dtype)


def unpack_nibbles(packed: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Return pixels of 4 bits, two in a byte and the first in its low half.

    Parameters
    ----------
    packed
        Shape ``(…, ceil(columns / 2))``.
    columns
        Pixels of a row.
    """
    pixels = np.empty((*packed.shape[:-1], 2 * packed.shape[-1]), np.uint8)
    pixels[..., 0::2] = packed & 15
    pixels[..., 1::2] = packed >> 4
    return pixels[..., :columns] if columns % 2 else pixels


def _of_bytes(raw: bytes, url: str) -> tuple[bytes, int]:
    """Return a header in which data of 4 bits are bytes, and their columns; of other data the same, and 0."""
    if len(raw) < HEADER_BYTES:
        return raw, 0
    for order in "<>":
        columns, rows, _, mode = struct.unpack_from(f"{order}4i", raw)
        if mode in (0, 101) and 0 < columns < 2**20 and 0 < rows < 2**20:
            break
    else:
        return raw, 0
    stamp, flags = struct.unpack_from(f"{order}2i", raw, 152)
    halved = mode == 0 and stamp == _IMOD_STAMP and bool(flags & _HALF_WIDTH)
    if mode == 0 and not halved:
        return raw, 0
    if halved and flags & _SIGNED:
        raise FormatError(f"{url} says that it holds 4-bit values in signed bytes, which nobody writes; write it again")
    true = 2 * columns if halved else columns
    plain = bytearray(raw)
    struct.pack_into(f"{order}i", plain, 0, math.ceil(true / 2))
    struct.pack_into(f"{order}i", plain, 12, 0)
    struct.pack_into(f"{order}2i", plain, 152, _IMOD_STAMP, 0)
    return bytes(plain), true
