"""MRC files: volumes and stacks of images (Cheng et al. 2015, 10.1016/j.jsb.2015.04.002, MRC2014).

Modes 0, 1, 2, 6 and 12 of either byte order are read; mode 2, little-endian, is written. Sizes in the header are held
against the size of the file before anything is allocated.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError
from cloudem.io.storage.files import new_file
from cloudem.io.storage.location import folder_of, is_remote, read_bytes, read_start, storage_errors

HEADER_BYTES = 1024
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_MODE_NAMES = {3: "complex 16-bit integers", 4: "complex numbers", 101: "4-bit integers"}
_IMOD_STAMP = 1146047817
_UNDETERMINED = (0.0, -1.0, -2.0, -1.0)
"""Least, greatest, mean and deviation of values of which they are not known (MRC2014)."""

_ORDERS: tuple[Literal["<"], Literal[">"]] = ("<", ">")


class Volume(NamedTuple):
    """A cubic map.

    Parameters
    ----------
    data
        Shape ``(n, n, n)``, float32, indexed ``[z, y, x]``.
    pixel_size
        Å per voxel.
    """

    data: NDArray[np.float32]
    pixel_size: float


@dataclass(frozen=True)
class MrcHeader:
    """What the header of an MRC file says, checked against the file.

    Parameters
    ----------
    shape
        Sections, rows, columns.
    dtype
        Type of the values, with byte order.
    offset
        Where the data begin, in bytes.
    pixel_size
        Å per pixel along the columns; 0 where the file does not say.
    axes
        Which of x, y, z (1, 2, 3) the columns, rows and sections run along.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    pixel_size: float
    axes: tuple[int, int, int]


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read and check the header of an MRC file; its path may be a URL on S3.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        Not an MRC file, a mode that is not read, or a file shorter than its header promises.
    """
    path = os.fspath(path)
    found = read_start(path, HEADER_BYTES)
    if found is None:
        raise MissingInputError(f"{path} does not exist; check the path")
    return header_of(*found, path)


def header_of(raw: bytes, size: int, path: str) -> MrcHeader:
    """Return what the first `HEADER_BYTES` of a file of so many bytes say.

    Raises
    ------
    FormatError
        As `read_header`; `path` is what its message calls the file.
    """
    if len(raw) < HEADER_BYTES:
        raise FormatError(f"{path} has {size} bytes, less than the 1024 of an MRC header; copy or make it again")
    order = _byte_order(raw, path)
    columns, rows, sections, mode = (int(v) for v in np.frombuffer(raw, order + "i4", 4))
    if mode not in _MODES:
        named = f"mode {mode} ({_MODE_NAMES.get(mode, 'unknown')})"
        raise FormatError(f"{path} has {named}; modes 0, 1, 2, 6 and 12 are read: convert it to 32-bit real numbers")
    if min(columns, rows, sections) < 1:
        raise FormatError(f"{path} claims {columns} x {rows} x {sections} pixels: it is damaged or not an MRC file")
    extended = int(np.frombuffer(raw, order + "i4", 1, 92)[0])
    dtype = _dtype(raw, order, mode)
    if extended < 0:
        raise FormatError(f"{path} claims an extended header of {extended} bytes: it is damaged or not an MRC file")
    needed = HEADER_BYTES + extended + columns * rows * sections * dtype.itemsize
    if size < needed:
        raise FormatError(
            f"{path} is truncated: it has {size} bytes, {sections} x {rows} x {columns} of mode {mode} need {needed}; "
            "copy or make it again"
        )
    sampling = int(np.frombuffer(raw, order + "i4", 1, 28)[0])
    cell = float(np.frombuffer(raw, order + "f4", 1, 40)[0])
    pixel_size = cell / sampling if sampling > 0 and np.isfinite(cell) and cell > 0 else 0.0
    axes = tuple(int(v) for v in np.frombuffer(raw, order + "i4", 3, 64))
    if sorted(axes) != [1, 2, 3]:
        axes = (1, 2, 3)
    return MrcHeader((sections, rows, columns), dtype, HEADER_BYTES + extended, pixel_size, axes)  # type: ignore[arg-type]


def map_stack(path: str | os.PathLike[str]) -> tuple[NDArray[Any], MrcHeader]:
    """Map the images of a stack into memory, ``(sections, rows, columns)`` in the type of the file.

    One on S3 is read as a whole.

    Raises
    ------
    MissingInputError, FormatError
        As `read_header`.
    """
    header = read_header(path)
    if is_remote(path):
        raw = read_bytes(path)
        if raw is None:
            raise MissingInputError(f"{os.fspath(path)} does not exist any more")
        return np.frombuffer(raw, header.dtype, int(np.prod(header.shape)), header.offset).reshape(header.shape), header
    with storage_errors(path):
        mapped = np.memmap(folder_of(path), dtype=header.dtype, mode="r", offset=header.offset, shape=header.shape)
    return mapped.view(np.ndarray), header


def read_volume(path: str | os.PathLike[str], pixel_size: float | None = None) -> Volume:
    """Read a cubic map.

    Parameters
    ----------
    path
        MRC file or its URL on S3; its axes may run in any order.
    pixel_size
        Å per voxel, instead of what the file says.

    Raises
    ------
    MissingInputError, FormatError
        As `read_header`; also values that are not finite, or no pixel size.
    InconsistentDataError
        The map is not a cube.
    """
    stack, header = map_stack(path)
    if len(set(header.shape)) != 1:
        sections, rows, columns = header.shape
        raise InconsistentDataError(f"{path} has {columns} x {rows} x {sections} voxels, a cube is needed: pad or crop")
    if pixel_size is None:
        pixel_size = header.pixel_size
    if not pixel_size > 0:
        raise FormatError(
            f"{path} states no pixel size in its header; write one there (e.g. with relion_image_handler)"
        )
    # The array's axes are sections, rows, columns; find those that run along z, y, x.
    along = header.axes[::-1]
    data = np.ascontiguousarray(stack.transpose([along.index(3), along.index(2), along.index(1)]), dtype=np.float32)
    if not np.isfinite(data).all():
        raise FormatError(f"{path} holds NaN or infinite values; make it again")
    return Volume(data, pixel_size)


def write_volume(path: str | os.PathLike[str], data: NDArray[Any], pixel_size: float) -> None:
    """Write a map ``(n, n, n)`` as MRC mode 2, to a file or to S3; it appears when it is whole.

    Raises
    ------
    StorageError
        Disk full, no permission.
    """
    values = np.ascontiguousarray(data, dtype="<f4")
    statistics = _Statistics()
    statistics.add(values)
    with new_file(path, HEADER_BYTES + values.nbytes) as file:
        file.write(_header(values.shape, pixel_size, statistics.of(values.size), is_volume=True))
        file.write(values.data)


def write_stack(path: str | os.PathLike[str], batches: Iterable[NDArray[Any]], count: int, pixel_size: float) -> None:
    """Write images ``(b, n, n)``, batch by batch, as an MRC stack of mode 2; it appears when it is whole.

    The header of a stack on S3, which is sent before the images are known, says that their statistics are not
    determined, in the way of the format.

    Raises
    ------
    InconsistentDataError
        Not `count` images came.
    StorageError
        Disk full, no permission.
    """
    iterator = iter(batches)
    first = np.ascontiguousarray(next(iterator, np.empty((0, 0, 0))), dtype="<f4")
    shape, written, statistics = (count, *first.shape[1:]), 0, _Statistics()
    with new_file(path, HEADER_BYTES + 4 * math.prod(shape)) as file:
        file.write(_header(shape, pixel_size, _UNDETERMINED, is_volume=False))
        for batch in chain([first], iterator):
            data = np.ascontiguousarray(batch, dtype="<f4")
            file.write(data.data if data.size else b"")
            written += len(data)
            statistics.add(data)
        if written != count:
            raise InconsistentDataError(f"{written} images came for a stack of {count}")
        if file.seekable():
            file.seek(0)
            file.write(_header(shape, pixel_size, statistics.of(math.prod(shape)), is_volume=False))


class _Statistics:
    """Least, greatest, mean and deviation of values that come in batches."""

    def __init__(self) -> None:
        self._low, self._high, self._total, self._squares = np.inf, -np.inf, 0.0, 0.0

    def add(self, data: NDArray[np.float32]) -> None:
        """Take a batch into account."""
        self._total += float(data.sum(dtype=np.float64))
        self._squares += float(np.vdot(data, data))
        self._low, self._high = (
            min(self._low, float(data.min(initial=np.inf))),
            max(self._high, float(data.max(initial=-np.inf))),
        )

    def of(self, count: int) -> tuple[float, float, float, float]:
        """Return the four, of so many values."""
        mean = self._total / count
        return self._low, self._high, mean, max(0.0, self._squares / count - mean * mean) ** 0.5


def _header(
    shape: tuple[int, ...], pixel_size: float, statistics: tuple[float, float, float, float], is_volume: bool
) -> bytes:
    """Return the header of mode 2; a stack has one section per unit cell and space group 0, a volume space group 1."""
    sections, rows, columns = shape
    cell_sections = sections if is_volume else 1
    low, high, mean, deviation = statistics
    words = np.zeros(256, dtype="<i4")
    floats = words.view("<f4")
    words[:4] = columns, rows, sections, 2
    words[7:10] = columns, rows, cell_sections
    floats[10:13] = columns * pixel_size, rows * pixel_size, cell_sections * pixel_size
    floats[13:16] = 90
    words[16:19] = 1, 2, 3
    floats[19:22] = low, high, mean
    words[22] = 1 if is_volume else 0
    words[27] = 20141
    floats[54] = deviation
    raw = bytearray(words.tobytes())
    raw[208:216] = b"MAP \x44\x44\x00\x00"
    return bytes(raw)


def _byte_order(raw: bytes, path: str) -> Literal["<", ">"]:
    """Return the byte order, from the machine stamp or, where that says nothing, from what makes the numbers small."""
    stamp = raw[212]
    if stamp in (0x44, 0x11):
        return "<" if stamp == 0x44 else ">"
    for order in _ORDERS:
        columns, _, _, mode = (int(v) for v in np.frombuffer(raw, order + "i4", 4))
        if 0 < columns < 2**16 and 0 <= mode < 128:
            return order
    raise FormatError(f"{path} is not an MRC file: neither byte order gives its header a sense")


def _dtype(raw: bytes, order: Literal["<", ">"], mode: int) -> np.dtype[Any]:
    """Return the type of the values; old IMOD files of mode 0 hold unsigned bytes, and say so by a flag."""
    stamp, flags = (int(v) for v in np.frombuffer(raw, order + "i4", 2, 152))
    if mode == 0 and stamp == _IMOD_STAMP and not flags & 1:
        return np.dtype("u1")
    return np.dtype(_MODES[mode]).newbyteorder(order)
