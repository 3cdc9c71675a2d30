"""Images of a store in object storage: ranges of bytes of its shards, many requests at a time.

The index of a shard is read once. Where it says that the chunks lie in order, an image is a range of bytes: ranges that
lie close together are fetched as one, long ones are cut, and what arrives is widened straight into the caller's array
and kept in the cache, if there is one.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore.exceptions import BaseError, PreconditionError

from cloudem import traffic
from cloudem.errors import DamagedShardError, StorageError
from cloudem.io.images.cache import CachedShard, image_cache
from cloudem.io.images.layout import ShardRead, StackLayout, naming
from cloudem.io.storage.location import object_store, size_of, storage_errors
from cloudem.kernels.float16 import widen

GAP_BYTES = 256 * 2**10
"""Bytes between two images up to which they are fetched as one range: what takes as long as a request of its own."""

RANGE_BYTES = 16 * 2**20
"""Bytes in one request at most, unless one image has more."""

IN_FLIGHT = 16
"""Requests at a time in a process."""


Item = TypeVar("Item")
Result = TypeVar("Result")


class _Shard(NamedTuple):
    etag: str
    held: int
    """Images that lie in order; 0 where only zarr can read them."""


class _Range(NamedTuple):
    """Rows ``first`` to ``stop - 1`` of a shard, and which of them go where."""

    shard: int
    etag: str
    cached: CachedShard | None
    first: int
    stop: int
    rows: NDArray[np.int64]
    places: NDArray[np.int64]


def merge_rows(rows: NDArray[np.int64], gap: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges ``(first, stop)`` that cover rows.

    Parameters
    ----------
    rows
        Ascending, repeats allowed, at least one.
    gap
        Rows that are not wanted between two that are, up to which one range covers both.
    most
        Rows in a range.
    """
    edges = np.flatnonzero(np.diff(rows) > gap + 1) + 1
    for first, last in zip(rows[np.r_[0, edges]], rows[np.r_[edges - 1, len(rows) - 1]], strict=True):
        pieces = -(-(last + 1 - first) // most)
        cuts = np.linspace(first, last + 1, pieces + 1).astype(np.int64)
        yield from zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True)


def remote_shards(url: str, layout: StackLayout) -> "RemoteShards":
    """Return the shards of a store, with what this process knows of them unless the store was made anew."""
    with storage_errors(url):
        marker = obstore.head(object_store(url), "zarr.json")  # written last
    return _remote_shards(os.getpid(), url, f"{marker['e_tag']} {marker['last_modified']}", layout)


def in_threads(run: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return ``[run(item) for item in items]``, run in the threads of this process that wait for storage."""
    return [run(item) for item in items] if len(items) < 2 else list(_threads(os.getpid()).map(run, items))


def in_background(run: Callable[..., Result], *values: Any) -> Future[Result]:
    """Have ``run(*values)`` run in one of those threads; whoever asks for many bounds what they hold."""
    return _threads(os.getpid()).submit(run, *values)


@cache
def _threads(process: int) -> ThreadPoolExecutor:  # threads do not survive a fork
    return ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="cloudem-storage")


class RemoteShards:
    """The shards of a store in object storage; safe in threads.

    Parameters
    ----------
    url
        Of the store.
    layout
        Of its images.
    """

    def __init__(self, url: str, layout: StackLayout) -> None:
        self._url = url
        self._layout = layout
        self._store = object_store(url)
        self._known: dict[int, _Shard] = {}
        self._image_bytes = layout.chunk_bytes // layout.chunk

    def read(self, parts: Sequence[ShardRead], out: NDArray[np.float32]) -> list[ShardRead]:
        """Read images; return the parts that only zarr can read.

        Raises
        ------
        DamagedShardError
            A shard is missing or damaged.
        StorageError
            The server does not answer, or refuses.
        """
        known = in_threads(lambda part: self._open(part.shard), parts)
        ranges = [
            each
            for part, shard in zip(parts, known, strict=True)
            if shard.held
            for each in self._missing(part, shard, out)
        ]
        in_threads(lambda each: self._fetch(each, out), ranges)
        return [part for part, shard in zip(parts, known, strict=True) if not shard.held]

    def check(self, shard: int) -> None:
        """Check that a shard is there and has a sound index.

        Raises
        ------
        DamagedShardError
            If not; with the reason alone.
        StorageError
            The server does not answer, or refuses.
        """
        self._known[shard] = self._read_index(shard)

    def _open(self, shard: int) -> _Shard:
        found = self._known.get(shard)
        if found is None:
            with naming(self._url, self._layout, shard):
                found = self._known[shard] = self._read_index(shard)
        return found

    def _read_index(self, shard: int) -> _Shard:
        key, length = self._layout.key(shard), self._layout.index_bytes
        with storage_errors(self._url):
            try:
                result = obstore.get(self._store, key, options={"range": {"suffix": length}})
                tail = bytes(result.bytes())
            except (OSError, BaseError) as error:
                size = size_of(self._store, key)
                if size is None:
                    raise DamagedShardError("is missing") from error
                if size == 0:  # of which no range can be had
                    raise DamagedShardError("is empty") from error
                raise
        traffic.count("images", received=len(tail))
        return _Shard(result.meta["e_tag"] or "", self._layout.verify(tail, result.meta["size"]))

    def _missing(self, part: ShardRead, shard: _Shard, out: NDArray[np.float32]) -> Iterator[_Range]:
        """Read what the cache holds; yield the ranges of the rest."""
        with naming(self._url, self._layout, part.shard):
            self._layout.require(part.rows, shard.held)
        cache = image_cache()
        cached = None if cache is None else cache.shard(self._url, part.shard, shard.etag, self._layout)
        rows, places = part.rows, part.places
        if cached is not None:
            here = cached.holds(rows)
            widen(cached.images, rows[here], places[here], out)
            rows, places = rows[~here], places[~here]
        if not len(rows):
            return
        order = np.argsort(rows, kind="stable")
        rows, places = rows[order], places[order]
        most = max(1, RANGE_BYTES // self._image_bytes)
        for first, stop in merge_rows(rows, GAP_BYTES // self._image_bytes, most):
            these = slice(*np.searchsorted(rows, (first, stop)))
            yield _Range(part.shard, shard.etag, cached, first, stop, rows[these], places[these])

    def _fetch(self, wanted: _Range, out: NDArray[np.float32]) -> None:
        start, end = wanted.first * self._image_bytes, wanted.stop * self._image_bytes
        key = self._layout.key(wanted.shard)
        with storage_errors(self._url), naming(self._url, self._layout, wanted.shard):
            try:
                # Without the condition, a store that is written anew meanwhile would give images of both.
                options: Any = {"range": (start, end), "if_match": wanted.etag or None}
                data = obstore.get(self._store, key, options=options).bytes()
            except FileNotFoundError as error:
                raise DamagedShardError("is missing") from error
            except PreconditionError as error:
                self.check(wanted.shard)
                raise StorageError(
                    f"{self._url}: the images were written anew while they were read; start again"
                ) from error
        traffic.count("images", received=len(data))
        if len(data) != end - start:
            raise StorageError(
                f"{self._url}/{key}: {len(data)} bytes came where {end - start} were asked for; try again"
            )
        dtype = np.dtype(self._layout.dtype).newbyteorder("<")
        images = np.frombuffer(memoryview(data), dtype).reshape(wanted.stop - wanted.first, -1)
        widen(images, wanted.rows - wanted.first, wanted.places, out)
        cache = image_cache()
        if wanted.cached is not None and cache is not None:
            cache.write(wanted.cached, wanted.first, images)


@lru_cache(maxsize=16)
def _remote_shards(process: int, url: str, version: str, layout: StackLayout) -> RemoteShards:
    return RemoteShards(url, layout)
