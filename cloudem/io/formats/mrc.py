"""MRC files: volumes and stacks of images (Cheng et al. 2015, 10.1016/j.jsb.2015.04.002, MRC2014).

Modes 0, 1, 2, 6 and 12 of either byte order are read; `cloudem.io.formats.mrc_writer` writes. Sizes in the header are
held against the size of the file before anything is allocated. Volumes may be compressed by gzip (``.mrc.gz``,
``.map.gz``).

The origin of a map, the position of its first voxel, stands in two places: ORIGIN in Å (MRC2014) and NSTART in voxels
(CCP4, most maps of the EMDB). As in ChimeraX, so that maps lie there where they lie here: ORIGIN counts unless it is
zero or no sensible number; then NSTART does; and in files called ``.map`` or ``.ccp4`` NSTART alone does.
"""

import math
import os
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import psutil
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError, OutOfMemoryError
from cloudem.io.formats.compressed import MOST_RATIO, decompress_start, is_compressed, read_compressed
from cloudem.io.storage.location import folder_of, is_local, read_start, storage_errors

HEADER_BYTES = 1024

FIRST_LABEL = slice(224, 304)
"""Bytes of the first of ten labels."""

_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_MODE_NAMES = {3: "complex 16-bit integers", 4: "complex numbers", 101: "4-bit integers"}
_IMOD_STAMP = 1146047817

Vector: TypeAlias = tuple[float, float, float]
"""Along x, y and z."""

NOWHERE: Vector = (0.0, 0.0, 0.0)
"""Origin of a map that states none."""

EQUAL = 1e-3
"""Lengths that differ by a smaller fraction are taken for the same: headers are written with rounded numbers."""

PLAUSIBLE_A = 0.05, 200.0
"""Pixel sizes that maps of particles and tomograms have, with room to spare."""

SQUARED = 1e-15, 1e18
"""The greatest density, and the greatest times the number of voxels, between which float32 holds powers of maps."""

_PROBE_BYTES = 8192
"""Read of a file for its header: enough of a compressed one for the `HEADER_BYTES`."""

_ORDERS: tuple[Literal["<"], Literal[">"]] = ("<", ">")


class Volume(NamedTuple):
    """A cubic map.

    Parameters
    ----------
    data
        Shape ``(n, n, n)``, float32, indexed ``[z, y, x]``.
    pixel_size
        Å per voxel.
    origin
        Position of the first voxel's centre, Å along x, y, z.
    """

    data: NDArray[np.float32]
    pixel_size: float
    origin: Vector = NOWHERE


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
    voxel_sizes
        Å per voxel along x, y, z; 0 where the file does not say. Of a stack of images the third has no meaning.
    axes
        Which of x, y, z (1, 2, 3) the columns, rows and sections run along.
    mode
        Of the format.
    origin
        Position of the first voxel's centre, Å along x, y, z.
    angles
        Between the axes, degrees.
    origin_in_voxels
        Whether the origin is in voxels: where the file states no pixel size.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    voxel_sizes: Vector
    axes: tuple[int, int, int]
    mode: int = 2
    origin: Vector = NOWHERE
    angles: Vector = (90.0, 90.0, 90.0)
    origin_in_voxels: bool = False

    @property
    def pixel_size(self) -> float:
        """Å per pixel along x; 0 where the file does not say."""
        return self.voxel_sizes[0]

    @property
    def data_bytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read and check the header of an MRC file; its path may be a URL on S3, and it may be compressed.

    Only the beginning of the file is read.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        Not an MRC file, a mode that is not read, or a file shorter than its header promises.
    """
    path = os.fspath(path)
    return _read_header(path)[0]


def _read_header(path: str) -> tuple[MrcHeader, bool]:
    """Return the header, and whether the file is compressed."""
    found = read_start(path, _PROBE_BYTES)
    if found is None:
        raise MissingInputError(f"{path} does not exist; check the path")
    raw, size = found
    if not is_compressed(raw):
        return header_of(raw[:HEADER_BYTES], size, path), False
    return header_of(decompress_start(raw, HEADER_BYTES, path), MOST_RATIO * size, path), True


def header_of(raw: bytes, size: int, path: str) -> MrcHeader:
    """Return what the first `HEADER_BYTES` of a file of so many bytes say.

    They are those of a file that is not compressed.

    Raises
    ------
    FormatError
        As `read_header`; `path` is what its message calls the file.
    """
    if is_compressed(raw):
        raise FormatError(f"{path} is compressed, and images are read one by one; decompress it first: gunzip")
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
    axes = tuple(int(v) for v in np.frombuffer(raw, order + "i4", 3, 64))
    if sorted(axes) != [1, 2, 3]:
        axes = (1, 2, 3)
    shape, steps = (sections, rows, columns), _voxel_sizes(raw, order)
    origin, in_voxels = _origin(raw, order, path, steps, axes, max(shape))
    angles = tuple(float(v) for v in np.frombuffer(raw, order + "f4", 3, 52))
    if not all(0 < angle < 180 for angle in angles):  # many programs leave them 0
        angles = (90.0, 90.0, 90.0)
    offset = HEADER_BYTES + extended
    return MrcHeader(shape, dtype, offset, steps, axes, mode, origin, angles, in_voxels)  # type: ignore[arg-type]


def _voxel_sizes(raw: bytes, order: str) -> Vector:
    """Return Å per voxel along x, y, z; 0 where they make no sense."""
    sampling = np.frombuffer(raw, order + "i4", 3, 28).tolist()
    cell = np.frombuffer(raw, order + "f4", 3, 40).tolist()
    x, y, z = (c / n if n > 0 and np.isfinite(c) and c > 0 else 0.0 for c, n in zip(cell, sampling, strict=True))
    return x, y, z


def _origin(
    raw: bytes, order: str, path: str, stated: Vector, axes: tuple[int, ...], longest: int
) -> tuple[Vector, bool]:
    """Return the position of the first voxel as ChimeraX finds it, along x, y, z, and whether it is in voxels."""
    steps = stated if all(stated) else (1.0, 1.0, 1.0)
    x, y, z = np.frombuffer(raw, order + "f4", 3, 196).tolist()
    # beyond 2^24 steps float32 cannot tell one voxel from the next: such numbers were never set
    sensible = all(np.isfinite(v) and abs(v) < 2**24 * step for v, step in zip((x, y, z), steps, strict=True))
    if raw[208:212] == b"MAP " and not is_ccp4(path) and sensible and (x or y or z):
        return (x, y, z), False
    start = np.frombuffer(raw, order + "i4", 3, 16).tolist()  # of columns, rows, sections
    sampling = np.frombuffer(raw, order + "i4", 3, 28).tolist()
    if max(abs(v) for v in start) > 10 * max(longest, *sampling):
        return NOWHERE, False
    x, y, z = (float(start[axes.index(axis + 1)]) * steps[axis] for axis in range(3))
    return (x, y, z), not all(stated)


def is_ccp4(path: str) -> bool:
    """Return whether a file's name says that ORIGIN has no meaning in it."""
    return path.lower().removesuffix(".gz").endswith((".map", ".ccp4"))


def map_stack(path: str | os.PathLike[str]) -> tuple[NDArray[Any], MrcHeader]:
    """Map the images of a stack into memory, ``(sections, rows, columns)`` in the type of the file.

    One on S3 or compressed is read as a whole.

    Raises
    ------
    MissingInputError, FormatError
        As `read_header`; also compressed data that are damaged or end early.
    OutOfMemoryError
        It has to be read as a whole, and the machine's memory cannot hold it.
    """
    place = os.fspath(path)
    header, compressed = _read_header(place)
    if not compressed and is_local(place):
        with storage_errors(path):
            mapped = np.memmap(folder_of(path), dtype=header.dtype, mode="r", offset=header.offset, shape=header.shape)
        return mapped.view(np.ndarray), header
    end = header.offset + header.data_bytes
    _require_memory(place, end)
    raw: bytes | bytearray
    if compressed:
        raw = read_compressed(place, end)
    else:
        found = read_start(place, end)
        if found is None:
            raise MissingInputError(f"{place} does not exist any more")
        raw = found[0]
    return np.frombuffer(raw, header.dtype, math.prod(header.shape), header.offset).reshape(header.shape), header


def read_volume_header(
    path: str | os.PathLike[str], pixel_size: float | None = None, option: str | None = None
) -> MrcHeader:
    """Read the header of a cubic map and check all that can be known from it; only its beginning is read.

    Parameters
    ----------
    path
        As `read_volume`.
    pixel_size
        Å per voxel, instead of what the file says: all its lengths, the origin too, are then scaled by the same factor.
    option
        What states the pixel size instead of the file, for messages: ``--reference-pixel-size-A``.

    Returns
    -------
        Its `pixel_size` is that of the voxels along all three axes.

    Raises
    ------
    MissingInputError, FormatError
        As `read_header`; also no pixel size, or one that no map has.
    InconsistentDataError
        The map is not a cube, its voxels are not, or its axes are not at right angles.
    """
    header, place = read_header(path), os.fspath(path)
    if len(set(header.shape)) != 1:
        sections, rows, columns = header.shape
        raise InconsistentDataError(f"{path} has {columns} x {rows} x {sections} voxels, a cube is needed: pad or crop")
    if any(abs(angle - 90) > 0.1 for angle in header.angles):
        raise InconsistentDataError(
            f"{path} has axes at {header.angles[0]:g}, {header.angles[1]:g} and {header.angles[2]:g}°, right angles are"
            " needed: resample it"
        )
    stated = header.voxel_sizes
    if pixel_size is not None:
        factor = pixel_size / stated[0] if stated[0] else pixel_size if header.origin_in_voxels else 1.0
        x, y, z = (factor * v for v in header.origin)
        return replace(header, voxel_sizes=(pixel_size,) * 3, origin=(x, y, z))
    state = f"state the pixel size with {option}" if option else "write one there (e.g. with relion_image_handler)"
    if not all(stated):
        raise FormatError(f"{place} states no pixel size in its header; {state}")
    if max(stated) / min(stated) - 1 > EQUAL:
        raise InconsistentDataError(
            f"{place} has voxels of {stated[0]:.5g} x {stated[1]:.5g} x {stated[2]:.5g} Å, equal sides (to"
            f" {100 * EQUAL:g} %) are needed; resample it, or, if the header is wrong, {state}"
        )
    if not PLAUSIBLE_A[0] <= stated[0] <= PLAUSIBLE_A[1]:
        raise FormatError(
            f"{place} states a pixel size of {stated[0]:.4g} Å, where {PLAUSIBLE_A[0]:g} to {PLAUSIBLE_A[1]:g} Å are"
            f" plausible; {state}"
        )
    return header


def read_volume(path: str | os.PathLike[str], pixel_size: float | None = None, option: str | None = None) -> Volume:
    """Read a cubic map.

    Parameters
    ----------
    path
        MRC file or its URL on S3; its axes may run in any order, and it may be compressed by gzip.
    pixel_size, option
        As `read_volume_header`.

    Raises
    ------
    MissingInputError, FormatError
        As `read_volume_header`; also values that are not finite, or so large or small that float32 does not hold their
        squares.
    InconsistentDataError
        As `read_volume_header`.
    OutOfMemoryError
        The machine's memory cannot hold it.
    """
    header = read_volume_header(path, pixel_size, option)
    _require_memory(os.fspath(path), 4 * math.prod(header.shape))
    stack, _ = map_stack(path)
    # The array's axes are sections, rows, columns; find those that run along z, y, x.
    along = header.axes[::-1]
    data = np.ascontiguousarray(stack.transpose([along.index(3), along.index(2), along.index(1)]), dtype=np.float32)
    low, high = float(data.min()), float(data.max())  # NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise FormatError(f"{path} holds NaN or infinite values; make it again")
    least, most, greatest = SQUARED[0], SQUARED[1] / data.size, max(abs(low), abs(high))
    if greatest > most or 0 < greatest < least:
        raise FormatError(
            f"{path} holds densities from {low:.3g} to {high:.3g}; to be squared and summed in 32 bits the greatest"
            f" must lie between {least:.0e} and {most:.0e}: scale the map"
        )
    return Volume(data, header.pixel_size, header.origin)


def _require_memory(path: str, needed: int) -> None:
    """Refuse a file that the machine's memory cannot hold, whoever wrote its header."""
    total = psutil.virtual_memory().total
    if needed > total:
        raise OutOfMemoryError(
            f"{path} takes {needed / 2**30:.1f} GiB in memory, of which the machine has {total / 2**30:.1f} GiB; give a"
            " smaller map"
        )


def first_label(path: str | os.PathLike[str]) -> str:
    """Return the first label in the header of an MRC file; empty where there is no such file, or no label."""
    found = read_start(path, HEADER_BYTES)
    return found[0][FIRST_LABEL].decode("ascii", errors="replace").strip("\0 ") if found is not None else ""


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
