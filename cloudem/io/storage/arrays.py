"""Arrays of a group as objects whose bytes are known: how each lies in Zarr v3 chunks, and the checksum of each chunk.

What it takes to read an array stands in the document of its group (`ArrayRecord`): type, shape, and the CRC-32C of
every chunk, as stored. A chunk that is lost, cut short, changed, or of another run is therefore noticed before its
values are used, also where a range of rows is read alone. Nothing is read from the array's own ``zarr.json``: that is
there for other readers of Zarr, who take a lost chunk for zeros.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, StorageError
from cloudem.model.particles import TEXT

_CHUNK_BYTES = 256 * 2**20
"""Bytes in an object of an array at most, but for one with more in a row."""

_TABLE_CHUNK_BYTES, _TABLE_ROW_BYTES = 2**20, 1024
"""The same for tables, whose rows are read in ranges; what has more bytes in a row is no table."""

_DTYPES = {
    np.dtype(name).str.lstrip("<|"): name
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
"""Types that Zarr v3 and NumPy both have: NumPy's short name to the name in Zarr."""

_KEY = re.compile(r"[A-Za-z0-9_:=-]{1,255}")
_MOST_AXES = 8
_ZSTD_SHRINKS = 2**15
"""Bytes that one byte of Zstandard can stand for at most (a block of 128 KiB takes four)."""


@dataclass(frozen=True)
class ArrayRecord:
    """How an array lies in objects.

    Attributes
    ----------
    key
        Of the array, under the generation of its group.
    shape
        As stored: text has a last axis of its bytes in UTF-8, padded with zeros.
    dtype
        Name in Zarr v3, ``"uint8"`` for text.
    rows
        Of the first axis in a chunk; chunks hold all of the others.
    text
        Whether it is text.
    sums
        CRC-32C of each chunk.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    rows: int
    text: bool
    sums: tuple[int, ...] = ()

    @property
    def chunks(self) -> int:
        """Number of chunks; an array without elements has none."""
        if 0 in self.shape:
            return 0
        return -(-self.shape[0] // self.rows) if self.shape else 1

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of a chunk; the last one is padded to it with zeros."""
        return tuple(max(1, size) for size in (self.rows, *self.shape[1:])) if self.shape else ()

    @property
    def stored_bytes(self) -> int:
        """Bytes of its values, before they are compressed."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def compressed(self) -> bool:
        """Whether chunks are; the noise of floating point numbers does not shrink, everything else does."""
        return np.dtype(self.dtype).kind not in "fc"

    def chunk_key(self, number: int) -> str:
        """Return the key of a chunk, under the generation."""
        return "/".join([self.key, "c", *(str(number if axis == 0 else 0) for axis in range(len(self.shape)))])

    def metadata(self) -> bytes:
        """Return the array's ``zarr.json``."""
        dtype = np.dtype(self.dtype)
        codecs: list[Any] = [{"name": "bytes", "configuration": {"endian": "little"}}]
        if dtype.itemsize == 1:
            codecs = [{"name": "bytes"}]
        if self.compressed:
            codecs.append({"name": "zstd", "configuration": {"level": 0, "checksum": False}})
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": self.shape,
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.chunk_shape}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": [0.0, 0.0] if dtype.kind == "c" else dtype.type(0).item(),
            "codecs": codecs,
            "attributes": {"encoding": "utf-8, padded with zeros"} if self.text else {},
            "storage_transformers": [],
        }
        return json.dumps(document, indent=2).encode()

    def to_json(self) -> dict[str, Any]:
        """Return what the document of the group holds."""
        return vars(self)

    @classmethod
    def from_json(cls, value: Any) -> ArrayRecord:
        """Return the record that a document holds.

        Raises
        ------
        FormatError
            No array can lie like that; with the reason alone.
        """
        try:
            record = cls(**{**value, "shape": tuple(value["shape"]), "sums": tuple(value["sums"])})
        except (TypeError, KeyError) as error:
            raise FormatError("lacks what it takes to read it") from error
        sizes = (*record.shape, *record.sums)
        if not all(type(n) is int and 0 <= n < 2**62 for n in sizes) or len(record.shape) > _MOST_AXES:
            raise FormatError(f"has the shape {list(record.shape)}"[:200])
        if record.dtype not in _DTYPES.values() or (record.text and (record.dtype != "uint8" or not record.shape)):
            raise FormatError(f"is of type {record.dtype!r}"[:200])
        if not (type(record.rows) is int and 0 < record.rows < 2**62):
            raise FormatError(f"lies in chunks of {record.rows!r} rows"[:200])
        if not (isinstance(record.key, str) and _KEY.fullmatch(record.key)):
            raise FormatError(f"lies under {record.key!r}"[:80])
        if len(record.sums) != record.chunks:
            raise FormatError(f"has the shape {list(record.shape)}, and {len(record.sums)} chunks"[:200])
        return record


def prepare(key: str, values: NDArray[Any]) -> tuple[NDArray[Any], ArrayRecord]:
    """Return an array as it is stored, and how it will lie; its chunks have no sums yet.

    Raises
    ------
    FormatError
        Its type is none that Zarr has.
    """
    array = np.asarray(values)
    text = array.dtype.kind in "UTO"
    if text:
        array = _encode_text(array)
    name = _DTYPES.get(array.dtype.str.lstrip("<>|="))
    if name is None:
        raise FormatError(f"an array of type {array.dtype} cannot be stored; convert it to numbers or text")
    row_bytes = max(1, array.itemsize * int(np.prod(array.shape[1:])))
    rows = max(1, (_TABLE_CHUNK_BYTES if row_bytes <= _TABLE_ROW_BYTES else _CHUNK_BYTES) // row_bytes)
    rows = max(1, min(rows, array.shape[0])) if array.shape else 1
    return array.astype(array.dtype.newbyteorder("<"), copy=False), ArrayRecord(key, array.shape, name, rows, text)


def encode_chunk(array: NDArray[Any], record: ArrayRecord, number: int) -> tuple[memoryview, int]:
    """Return the bytes of a chunk, as stored, and their CRC-32C."""
    chunk = np.ascontiguousarray(array[number * record.rows :][: record.rows] if record.shape else array)
    if chunk.shape != record.chunk_shape:
        padded = np.zeros(record.chunk_shape, chunk.dtype)
        padded[: len(chunk)] = chunk
        chunk = padded
    raw: Any = chunk.reshape(-1).view(np.uint8)
    if record.compressed:
        raw = _zstd().encode(raw)
    return memoryview(raw), int(google_crc32c.value(raw))


def with_sums(record: ArrayRecord, sums: Mapping[int, int]) -> ArrayRecord:
    """Return the record with the sums of its chunks, by number."""
    return replace(record, sums=tuple(sums[number] for number in range(record.chunks)))


class Rows:
    """Rows of an array on their way into memory.

    Parameters
    ----------
    record
        Of the array.
    rows
        A range of the first axis; what lies beyond it is cut off.

    Attributes
    ----------
    wanted
        Numbers of the chunks that hold those rows, for `put`.

    Raises
    ------
    StorageError
        There is not as much memory; with the reason alone.
    """

    def __init__(self, record: ArrayRecord, rows: slice = slice(None)) -> None:
        self._record = record
        shape = record.shape or (1,)
        start, stop, _ = rows.indices(shape[0])
        self._start, self._stop = start, max(start, stop)
        self._dtype = np.dtype(record.dtype).newbyteorder("<")
        try:  # no memory is taken before values come
            self._out = np.empty((self._stop - self._start, *shape[1:]), dtype=np.dtype(record.dtype))
        except (MemoryError, ValueError) as error:
            raise StorageError(f"has the shape {list(shape)}, for which there is no memory") from error
        filled = bool(record.chunks) and self._stop > self._start
        self.wanted = range(self._start // record.rows, -(-self._stop // record.rows)) if filled else range(0)

    def put(self, number: int, raw: Any) -> None:
        """Take a chunk, as it is stored; None where there is none.

        Raises
        ------
        StorageError
            It is not what was written; with the reason alone.
        """
        record = self._record
        if raw is None:
            raise StorageError("is missing")
        raw = np.frombuffer(raw, np.uint8)
        size = int(np.prod(record.chunk_shape, dtype=object)) * self._dtype.itemsize
        if int(google_crc32c.value(raw)) != record.sums[number]:
            raise StorageError(f"is not what was written: the checksum of its {len(raw)} bytes does not match")
        if size > (len(raw) * _ZSTD_SHRINKS if record.compressed else len(raw)):
            raise StorageError(f"has {len(raw)} bytes, too few for what it is said to hold")
        if record.compressed:
            try:
                raw = _zstd().decode(raw)
            except (RuntimeError, ValueError) as error:
                raise StorageError(f"cannot be decompressed ({error})") from error
        if len(raw) != size:
            raise StorageError(f"holds {len(raw)} bytes where {size} are needed")
        values = np.frombuffer(raw, self._dtype).reshape(record.chunk_shape or (1,))
        first = number * record.rows
        start, stop = max(first, self._start), min(first + record.rows, self._stop)
        self._out[start - self._start : stop - self._start] = values[start - first : stop - first]

    def values(self) -> NDArray[Any]:
        """Return the rows, once all wanted chunks came.

        Raises
        ------
        StorageError
            It is text that is no UTF-8; with the reason alone.
        """
        out = self._out if self._record.shape else self._out.reshape(())
        if not self._record.text:
            return out
        try:
            return _decode_text(out)
        except UnicodeDecodeError as error:
            raise StorageError("holds text that is not UTF-8") from error


def _zstd() -> Any:
    from numcodecs.zstd import Zstd  # takes half a second to import

    return Zstd(level=0)


def _encode_text(array: NDArray[Any]) -> NDArray[np.uint8]:
    flat = np.array([str(value).encode() for value in array.ravel()], dtype=np.bytes_)
    width = max(1, flat.itemsize)
    return flat.astype(f"S{width}").view(np.uint8).reshape(*array.shape, width)


def _decode_text(array: NDArray[np.uint8]) -> NDArray[Any]:
    if not array.size:
        return np.empty(array.shape[:-1], dtype=TEXT)
    flat = np.ascontiguousarray(array).reshape(-1).view(f"S{array.shape[-1]}")
    return flat.astype(TEXT).reshape(array.shape[:-1])
