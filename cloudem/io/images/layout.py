"""Stacks of images as Zarr v3 shards: written in order, read through memory maps.

A shard is what the ``sharding_indexed`` codec of Zarr v3 says it is: the chunks, then for each chunk its offset and
length (two little-endian uint64), then the CRC-32C of that index. Chunks that are stored in order and not compressed
make a shard one plain array followed by its index, and that is how they are written here; the reader verifies it from
each index before it maps the file, and leaves any other order or compression to zarr.

Two kinds of stacks are written. One that is made as a whole has full shards, one after the other
(`StackLayout.choose`). One that grows has shards that begin with the images of a micrograph and hold no others
(`StackLayout.growing`, `cloudem.io.growing_store`): what is missing at their ends is missing in their indices, too.
"""

import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cloudem.errors import DamagedShardError, FormatError
from cloudem.io.storage.location import object_store, size_of
from cloudem.kernels.float16 import widen

CHUNK_IMAGES = 16
"""Images in a chunk, unless they are so large that a shard holds fewer."""

SHARD_IMAGES = 1024
"""Images in a shard, unless that is more than `SHARD_BYTES`."""

SHARD_BYTES = 64 * 2**20
"""Bytes in a shard at most, unless one image has more: a shard is held in memory while it is written."""

GROWING_SHARDS = 2**48
"""Shards that a stack that grows has room for; nearly all of them are never written."""

_ABSENT = 2**64 - 1
"""Offset and length, in the index of a shard, of a chunk that is not there."""

MOST_PIXELS, _MOST_CHUNKS = 2**14, 2**20
"""Side of an image, and chunks in a shard, beyond which metadata are not believed: memory is taken by them."""

_MOST_SHARD_PIXELS = 2**31
"""Pixels in a shard, likewise."""

_MAPS_KEPT = 256
"""Memory maps kept open in a process: each holds a file descriptor, of which a process often has no more than 1,024."""


@dataclass(frozen=True)
class StackLayout:
    """How a stack of images lies in shards.

    Parameters
    ----------
    count, box
        The stack has shape ``(count, box, box)``.
    dtype
        ``"float16"`` or ``"float32"``.
    chunk, shard
        Images in a chunk and in a shard.
    direct
        Whether images are ranges of bytes; only zarr can read them otherwise.
    windows
        Whether images are not there, but cut out of micrographs, see `cloudem.io.windows`.
    """

    count: int
    box: int
    dtype: str
    chunk: int
    shard: int
    direct: bool = True
    windows: bool = False

    @classmethod
    def choose(cls, count: int, box: int, dtype: str) -> "StackLayout":
        """Return the layout for a stack: shards of up to 1,024 images or 64 MiB.

        Parameters
        ----------
        count
            Number of images.
        box
            Their side in pixels.
        dtype
            ``"float16"`` or ``"float32"``.
        """
        fit = _images_that_fit(box, dtype)
        chunk = min(CHUNK_IMAGES, fit)
        most, needed = fit // chunk * chunk, max(1, -(-count // chunk)) * chunk
        return cls(count, box, dtype, chunk, min(SHARD_IMAGES // chunk * chunk, most, needed))

    @classmethod
    def growing(cls, box: int, dtype: str, *, windows: bool = False) -> "StackLayout":
        """Return the layout of a stack that grows: a chunk is one image, so that shards end where their images do."""
        shard = min(SHARD_IMAGES, _images_that_fit(box, dtype))
        return cls(GROWING_SHARDS * shard, box, dtype, 1, shard, windows=windows)

    @property
    def grows(self) -> bool:
        """Whether it is the layout of a stack that grows, most of whose images are not there."""
        return self == self.growing(self.box, self.dtype, windows=self.windows)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.box, self.box

    @property
    def pixels(self) -> int:
        """Pixels in an image."""
        return self.box * self.box

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard)

    @property
    def chunk_bytes(self) -> int:
        """Bytes in a chunk."""
        return self.chunk * self.pixels * np.dtype(self.dtype).itemsize

    def metadata(self, attributes: Mapping[str, Any]) -> bytes:
        """Return the ``zarr.json`` of the array."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": [self.chunk, *self.shape],
            "codecs": [little],
            "index_codecs": [little, {"name": "crc32c"}],
            "index_location": "end",
        }
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.count, *self.shape],
            "data_type": self.dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.shard, *self.shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": dict(attributes),
            "storage_transformers": [],
            "dimension_names": ["particle", "y", "x"],
        }
        return json.dumps(document, indent=2).encode()

    def index(self, chunks: int | None = None) -> bytes:
        """Return the index of a shard whose chunks lie in order, all or the first ones, with its checksum."""
        entries = np.empty((self.shard // self.chunk, 2), dtype="<u8")
        entries[:, 0] = np.arange(len(entries), dtype="<u8") * np.uint64(self.chunk_bytes)
        entries[:, 1] = self.chunk_bytes
        entries[chunks:] = _ABSENT if chunks is not None else entries[chunks:]
        raw = entries.tobytes()
        return raw + int(google_crc32c.value(raw)).to_bytes(4, "little")

    @property
    def index_bytes(self) -> int:
        """Bytes of an index with its checksum."""
        return self.shard // self.chunk * 16 + 4

    def blank(self) -> NDArray[np.uint8]:
        """Return the bytes of a shard of zeros, with its index."""
        index = self.index()
        raw = np.zeros(self.shard // self.chunk * self.chunk_bytes + len(index), dtype=np.uint8)
        raw[-len(index) :] = np.frombuffer(index, dtype=np.uint8)
        return raw

    def images_of(self, raw: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the images in the bytes of a shard, ``(shard, box, box)``, to be written into."""
        pixels = raw[: -self.index_bytes].view(np.dtype(self.dtype).newbyteorder("<"))
        return pixels.reshape(self.shard, *self.shape)

    def key(self, shard: int) -> str:
        """Return the key of a shard under the URL of the store."""
        return f"windows/{shard}" if self.windows else f"images/c/{shard}/0/0"

    def held(self, shard: int) -> tuple[int, int]:
        """Return the numbers of the first and the last image of a shard."""
        return shard * self.shard, min(self.count, (shard + 1) * self.shard) - 1

    def verify(self, tail: bytes, size: int) -> int:
        """Check the end of a shard of `size` bytes; return how many images, from the first on, lie in it in order.

        That is 0 where only zarr can read it.

        Raises
        ------
        DamagedShardError
            It is too short, or its index does not match its checksum.
        """
        if len(tail) < self.index_bytes:
            raise DamagedShardError(f"has {size} bytes, its index alone needs {self.index_bytes}")
        if int(google_crc32c.value(tail[:-4])) != int.from_bytes(tail[-4:], "little"):
            raise DamagedShardError("is damaged: the checksum of its index does not match")
        chunks = min((size - self.index_bytes) // self.chunk_bytes, self.shard // self.chunk)
        whole = size == chunks * self.chunk_bytes + self.index_bytes
        return chunks * self.chunk if whole and tail == self.index(chunks) else 0

    def require(self, rows: NDArray[np.int64], held: int) -> None:
        """Make sure that rows of a shard are among the images that it holds.

        Raises
        ------
        DamagedShardError
            It holds fewer.
        """
        if rows.size and rows.max() >= held:
            raise DamagedShardError(f"has {held} images, where number {int(rows.max()) + 1} was asked for")


def _images_that_fit(box: int, dtype: str) -> int:
    return max(1, SHARD_BYTES // (box * box * np.dtype(dtype).itemsize))


class ShardRead(NamedTuple):
    """What a call reads of one shard: ``out[places] = shard[rows]``."""

    shard: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


def parse_layout(document: Mapping[str, Any]) -> StackLayout:
    """Return the layout that a ``zarr.json`` describes.

    Parameters
    ----------
    document
        What it says.

    Raises
    ------
    FormatError
        It is not a stack of square images of floating point numbers.
    """
    again = "import the particles again"
    shape, dtype = document.get("shape"), document.get("data_type")
    if not _are_sizes(shape, 3) or max(shape[1:]) > MOST_PIXELS or dtype not in ("float16", "float32"):
        raise FormatError(
            f"images of shape {shape!r:.60} and type {dtype!r:.20} were found where (n, y, x) of float16 or float32 is "
            f"needed; {again}"
        )
    count, height, width = shape
    if height != width:
        raise FormatError(
            f"images of {height} x {width} pixels (y, x) were found where square ones are needed; {again}"
        )
    try:
        shard = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(f"the images lie in no regular grid of chunks; {again}") from error
    if not _are_sizes([shard], 1):
        raise FormatError(f"the images lie in chunks of {shard!r:.20}, at least 1 is needed; {again}")
    try:
        (outer,) = document["codecs"]
        chunk = outer["configuration"]["chunk_shape"][0]
        layout = StackLayout(count, height, dtype, chunk, shard)
        same = json.loads(layout.metadata({}))
        whole = _are_sizes([chunk], 1) and shard % chunk == 0 and shard // chunk <= _MOST_CHUNKS
        if whole and all(document[key] == same[key] for key in ("codecs", "chunk_grid", "chunk_key_encoding")):
            return layout
    except (KeyError, ValueError, TypeError, IndexError):
        pass
    return StackLayout(count, height, dtype, shard, shard, direct=False)


def check_chunks(document: Mapping[str, Any]) -> None:
    """Refuse chunks that Zarr would take more memory for than there can be images; for what only Zarr can read.

    Raises
    ------
    FormatError
        The ``zarr.json`` describes such chunks.
    """
    try:
        grid = document["chunk_grid"]["configuration"]["chunk_shape"]
        codecs = [codec.get("configuration") or {} for codec in document["codecs"]]
        inner = [configuration["chunk_shape"] for configuration in codecs if "chunk_shape" in configuration]
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError("the images have no codecs that Zarr knows; import again") from error
    for chunks in (grid, *inner):
        if not _are_sizes(chunks, 3) or math.prod(chunks) > _MOST_SHARD_PIXELS:
            raise FormatError(f"the images cannot lie in chunks of {chunks!r:.60}; import again")
        if math.prod(-(-whole // part) for whole, part in zip(grid, chunks, strict=True)) > _MOST_CHUNKS:
            raise FormatError(f"the images cannot lie in shards of {grid} in chunks of {chunks}; import again")


def _are_sizes(values: Any, count: int) -> TypeGuard[list[int]]:
    """Say whether these are so many numbers of at least 1."""
    return isinstance(values, list) and len(values) == count and all(type(n) is int and n > 0 for n in values)


class ShardMaps:
    """The memory maps of this process, by file; the least recently used one is dropped first."""

    def __init__(self, kept: int = _MAPS_KEPT) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._maps: OrderedDict[tuple[str, int, int], NDArray[Any] | None] = OrderedDict()

    def open(self, path: Path, layout: StackLayout) -> NDArray[Any] | None:
        """Return the images of a shard, ``(images, box * box)``, mapped; None where its chunks are not in order.

        Raises
        ------
        DamagedShardError
            The file is missing, too short, or its index does not match its checksum.
        """
        try:
            status = path.stat()
        except OSError as error:
            raise DamagedShardError("is missing") from error
        key = (str(path), status.st_ino, status.st_mtime_ns)
        with self._lock:
            if key in self._maps:
                self._maps.move_to_end(key)
                return self._maps[key]
        mapped = _map_shard(path, status.st_size, layout)
        with self._lock:
            self._maps[key] = mapped
            while len(self._maps) > self._kept:
                self._maps.popitem(last=False)
        return mapped


_MAPS = ShardMaps()


class LocalShards:
    """The shards of a store in a folder; safe in threads.

    Parameters
    ----------
    folder
        Of the store.
    layout
        Of its images.
    """

    def __init__(self, folder: Path, layout: StackLayout) -> None:
        self._folder = folder
        self._layout = layout

    def read(self, parts: Sequence[ShardRead], out: NDArray[np.float32]) -> list[ShardRead]:
        """Read images; return the parts that only zarr can read.

        Raises
        ------
        DamagedShardError
            A shard is missing or damaged.
        """
        left = []
        for part in parts:
            with naming(self._folder, self._layout, part.shard):
                source = _MAPS.open(self._folder / self._layout.key(part.shard), self._layout)
                if source is not None:
                    self._layout.require(part.rows, len(source))
            if source is None:
                left.append(part)
            else:
                widen(source, part.rows, part.places, out)
        return left

    def check(self, shard: int) -> None:
        """Check that a shard is there and has a sound index.

        Raises
        ------
        DamagedShardError
            If not; with the reason alone.
        """
        path = self._folder / self._layout.key(shard)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise DamagedShardError("is missing") from error
        self._layout.verify(_tail(path, size, self._layout), size)


class ShardsOfZarr:
    """The shards of a store that only zarr can read, which takes a missing one for zeros.

    Parameters
    ----------
    url
        Of the store.
    layout
        Of its images.
    """

    def __init__(self, url: str, layout: StackLayout) -> None:
        self._store = object_store(url)
        self._url = url
        self._layout = layout

    def read(self, parts: Sequence[ShardRead], out: NDArray[np.float32]) -> list[ShardRead]:
        """Return all parts, once their shards were found.

        Raises
        ------
        DamagedShardError
            A shard is missing.
        """
        for part in parts:
            with naming(self._url, self._layout, part.shard):
                self.check(part.shard)
        return list(parts)

    def check(self, shard: int) -> None:
        """Check that a shard is there.

        Raises
        ------
        DamagedShardError
            If not; with the reason alone.
        """
        if size_of(self._store, self._layout.key(shard)) is None:
            raise DamagedShardError("is missing")


@contextmanager
def naming(url: str | os.PathLike[str], layout: StackLayout, shard: int) -> Iterator[None]:
    """Name the shard, and what it held, in an error that gives the reason alone."""
    try:
        yield
    except DamagedShardError as error:
        held, again = "the particles of one micrograph", "extract"
        if not layout.grows:
            first, last = layout.held(shard)
            held, again = f"the images {first} to {last} of {layout.count}", "import"
        raise DamagedShardError(
            f"{os.fspath(url)}/{layout.key(shard)} {error}; it holds {held}: {again} the particles again, or leave "
            "these out"
        ) from error


def _map_shard(path: Path, size: int, layout: StackLayout) -> NDArray[Any] | None:
    held = layout.verify(_tail(path, size, layout), size)
    if not held:
        return None
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    mapped = np.memmap(path, dtype=dtype, mode="r", shape=(held, layout.pixels))
    return mapped.view(np.ndarray)


def _tail(path: Path, size: int, layout: StackLayout) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, size - layout.index_bytes))
        return file.read()
