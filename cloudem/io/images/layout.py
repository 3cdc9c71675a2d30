"""Stacks of images as Zarr v3 shards: written in order, read through memory maps.

A shard is what the ``sharding_indexed`` codec of Zarr v3 says it is: the chunks, then for each chunk its offset and
length (two little-endian uint64), then the CRC-32C of that index. Chunks that are stored in order and not compressed
make a shard one plain array followed by its index, and that is how they are written here; the reader verifies it from
each index before it maps the file, and leaves any other order or compression to zarr.
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
    count, height, width
        The stack has shape ``(count, height, width)``.
    dtype
        ``"float16"`` or ``"float32"``.
    chunk, shard
        Images in a chunk and in a shard.
    direct
        Whether images are ranges of bytes; only zarr can read them otherwise.
    item
        What each is an image of: ``"particle"`` or ``"micrograph"``, as the name of the first axis and in errors.
    """

    count: int
    height: int
    width: int
    dtype: str
    chunk: int
    shard: int
    direct: bool = True
    item: str = "particle"

    @classmethod
    def choose(cls, count: int, shape: int | tuple[int, int], dtype: str, item: str = "particle") -> "StackLayout":
        """Return the layout for a stack: shards of up to 1,024 images or 64 MiB.

        Parameters
        ----------
        count
            Number of images.
        shape
            Height and width of an image, or the side of a square one.
        dtype
            ``"float16"`` or ``"float32"``.
        item
            What each is an image of.
        """
        height, width = (shape, shape) if isinstance(shape, int) else shape
        fit = max(1, SHARD_BYTES // (height * width * np.dtype(dtype).itemsize))
        chunk = min(CHUNK_IMAGES, fit)
        most, needed = fit // chunk * chunk, max(1, -(-count // chunk)) * chunk
        shard = min(SHARD_IMAGES // chunk * chunk, most, needed)
        return cls(count, height, width, dtype, chunk, shard, item=item)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of an image."""
        return self.height, self.width

    @property
    def pixels(self) -> int:
        """Pixels in an image."""
        return self.height * self.width

    @property
    def box(self) -> int:
        """Side of the images; `FormatError` where they are not square."""
        if self.height != self.width:
            raise FormatError(
                f"images of {self.height} x {self.width} pixels (y, x) were found where square ones are "
                f"needed; import the {self.item}s again"
            )
        return self.height

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
            "dimension_names": [self.item, "y", "x"],
        }
        return json.dumps(document, indent=2).encode()

    def index(self) -> bytes:
        """Return the index of a shard whose chunks lie in order, with its checksum."""
        entries = np.empty((self.shard // self.chunk, 2), dtype="<u8")
        entries[:, 0] = np.arange(len(entries), dtype="<u8") * np.uint64(self.chunk_bytes)
        entries[:, 1] = self.chunk_bytes
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
        """Return the images in the bytes of a shard, ``(shard, height, width)``, to be written into."""
        pixels = raw[: -self.index_bytes].view(np.dtype(self.dtype).newbyteorder("<"))
        return pixels.reshape(self.shard, *self.shape)

    def key(self, shard: int) -> str:
        """Return the key of a shard under the URL of the store."""
        return f"images/c/{shard}/0/0"

    def held(self, shard: int) -> tuple[int, int]:
        """Return the numbers of the first and the last image of a shard."""
        return shard * self.shard, min(self.count, (shard + 1) * self.shard) - 1

    def verify(self, tail: bytes, size: int) -> bool:
        """Check the end of a shard of `size` bytes; return whether its chunks lie in order.

        Raises
        ------
        DamagedShardError
            It is too short, or its index does not match its checksum.
        """
        index = self.index()
        if len(tail) < len(index):
            raise DamagedShardError(f"has {size} bytes, its index alone needs {len(index)}")
        if int(google_crc32c.value(tail[:-4])) != int.from_bytes(tail[-4:], "little"):
            raise DamagedShardError("is damaged: the checksum of its index does not match")
        return tail == index and size == self.shard // self.chunk * self.chunk_bytes + len(index)


class ShardRead(NamedTuple):
    """What a call reads of one shard: ``out[places] = shard[rows]``."""

    shard: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


def parse_layout(document: Mapping[str, Any], item: str = "particle") -> StackLayout:
    """Return the layout that a ``zarr.json`` describes.

    Parameters
    ----------
    document
        What it says.
    item
        What each is an image of.

    Raises
    ------
    FormatError
        It is not a stack of images of floating point numbers.
    """
    again = f"import the {item}s again"
    shape, dtype = document.get("shape"), document.get("data_type")
    if not _are_sizes(shape, 3) or max(shape[1:]) > MOST_PIXELS or dtype not in ("float16", "float32"):
        raise FormatError(
            f"images of shape {shape!r:.60} and type {dtype!r:.20} were found where (n, y, x) of float16 or float32 is "
            f"needed; {again}"
        )
    count, height, width = shape
    try:
        shard = document["chunk_grid"]["configuration"]["chunk_shape"][0]
    except (KeyError, TypeError, IndexError) as error:
        raise FormatError(f"the images lie in no regular grid of chunks; {again}") from error
    if not _are_sizes([shard], 1):
        raise FormatError(f"the images lie in chunks of {shard!r:.20}, at least 1 is needed; {again}")
    try:
        (outer,) = document["codecs"]
        chunk = outer["configuration"]["chunk_shape"][0]
        layout = StackLayout(count, height, width, dtype, chunk, shard, item=item)
        same = json.loads(layout.metadata({}))
        whole = _are_sizes([chunk], 1) and shard % chunk == 0 and shard // chunk <= _MOST_CHUNKS
        if whole and all(document[key] == same[key] for key in ("codecs", "chunk_grid", "chunk_key_encoding")):
            return layout
    except (KeyError, ValueError, TypeError, IndexError):
        pass
    return StackLayout(count, height, width, dtype, shard, shard, direct=False, item=item)


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
        """Return the images of a shard, ``(shard, height * width)``, mapped; None where its chunks are not in order.

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
        first, last = layout.held(shard)
        raise DamagedShardError(
            f"{os.fspath(url)}/{layout.key(shard)} {error}; it holds the images {first} to {last} of {layout.count}: "
            f"import the {layout.item}s again, or leave these out"
        ) from error


def _map_shard(path: Path, size: int, layout: StackLayout) -> NDArray[Any] | None:
    if not layout.verify(_tail(path, size, layout), size):
        return None
    dtype = np.dtype(layout.dtype).newbyteorder("<")
    mapped = np.memmap(path, dtype=dtype, mode="r", shape=(layout.shard, layout.pixels))
    return mapped.view(np.ndarray)


def _tail(path: Path, size: int, layout: StackLayout) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, size - layout.index_bytes))
        return file.read()
