"""MRC files written: volumes and stacks of images, of mode 2, little-endian; `cloudem.io.formats.mrc` reads them.

The origin of a map is written where it is read: to ORIGIN in Å, and in files called ``.map`` or ``.ccp4`` to NSTART in
voxels, which must be whole ones.
"""

import math
import os
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.io.formats.mrc import FIRST_LABEL, HEADER_BYTES, NOWHERE, Vector, is_ccp4
from cloudem.io.storage.files import new_file

_UNDETERMINED = (0.0, -1.0, -2.0, -1.0)
"""Least, greatest, mean and deviation of values of which they are not known (MRC2014)."""


def require_writable_origin(path: str | os.PathLike[str], pixel_size: float, origin: Vector) -> None:
    """Refuse to write a map under a name under which its origin has no place.

    Raises
    ------
    ParameterError
        The name ends in .map or .ccp4, whose origins are whole voxels, and the map's is not.
    """
    if is_ccp4(os.fspath(path)) and _start(pixel_size, origin) is None:
        raise ParameterError(
            f"{os.fspath(path)} cannot state the map's origin, {origin[0]:g}, {origin[1]:g}, {origin[2]:g} Å: in such"
            f" files it is whole voxels, of {pixel_size:g} Å here; give a name that ends in .mrc"
        )


def _start(pixel_size: float, origin: Vector) -> tuple[int, int, int] | None:
    """Return an origin in voxels, or None where it is not whole ones."""
    if origin == NOWHERE:
        return 0, 0, 0
    voxels = [v / pixel_size for v in origin]
    if any(abs(v - round(v)) > 0.01 for v in voxels):
        return None
    x, y, z = (round(v) for v in voxels)
    return x, y, z


def write_volume(
    path: str | os.PathLike[str], data: NDArray[Any], pixel_size: float, origin: Vector = NOWHERE, label: str = ""
) -> None:
    """Write a map ``(n, n, n)`` as MRC mode 2, to a file or to S3; it appears when it is whole.

    Parameters
    ----------
    path
        File or URL on S3.
    data
        The map.
    pixel_size
        Å per voxel.
    origin
        Position of the first voxel's centre, Å along x, y, z.
    label
        Text that the header carries, up to 80 characters of ASCII; none if empty.

    Raises
    ------
    ParameterError
        As `require_writable_origin`.
    StorageError
        Disk full, no permission.
    """
    require_writable_origin(path, pixel_size, origin)
    values = np.ascontiguousarray(data, dtype="<f4")
    statistics = _Statistics()
    statistics.add(values)
    header = bytearray(_header(values.shape, pixel_size, statistics.of(values.size), is_volume=True))
    if is_ccp4(os.fspath(path)):
        header[16:28] = np.array(_start(pixel_size, origin), "<i4").tobytes()
    else:
        header[196:208] = np.array(origin, "<f4").tobytes()
    if label:
        header[220:224] = (1).to_bytes(4, "little")
        header[FIRST_LABEL] = label.encode("ascii")[:80].ljust(80)
    with new_file(path, HEADER_BYTES + values.nbytes) as file:
        file.write(header)
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
