"""A Zarr store over the objects under a URL.

Zarr's own wrapper of obstore answers through callbacks from threads of Rust, and one that arrives while the interpreter
ends aborts the process (two of eight runs, zarr 3.1.6 and obstore 0.12.1). This one makes blocking calls in threads of
Python.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

import obstore
from obstore.store import LocalStore, S3Store
from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype

from cloudem.errors import DamagedShardError
from cloudem.io.storage.location import delete_all, fetch, get_ranges, object_store, put, put_if_absent, size_of


class ObjectsForZarr(Store):  # type: ignore[misc]  # zarr is not followed
    """Objects as Zarr wants them.

    Parameters
    ----------
    store
        Where they are.
    whole
        Whether each object that Zarr asks for must be there; it would take a lost one for zeros.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, store: LocalStore | S3Store, *, whole: bool = False, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._store = store
        self._whole = whole

    def __eq__(self, other: object) -> bool:
        """Return whether it is the same store."""
        return isinstance(other, ObjectsForZarr) and self._store == other._store

    def __reduce__(self) -> Any:
        """Refuse: the store may hold credentials."""
        raise TypeError("a store is not pickled; pass its URL")

    def with_read_only(self, read_only: bool = False) -> "ObjectsForZarr":
        """Return the same store, to be read only or not."""
        return ObjectsForZarr(self._store, whole=self._whole, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object, or a range of it; None where there is none."""
        data = await asyncio.to_thread(self._read, key, byte_range)
        if data is None and self._whole:
            raise DamagedShardError(f"{key} is missing; import the particles again")
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several."""
        return list(await asyncio.gather(*(self.get(key, prototype, each) for key, each in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Return whether there is an object."""
        return await asyncio.to_thread(size_of, self._store, key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object."""
        self._check_writable()
        await asyncio.to_thread(put, self._store, key, memoryview(value.as_array_like()))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object unless there is one."""
        self._check_writable()
        await asyncio.to_thread(put_if_absent, self._store, key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        self._check_writable()
        await asyncio.to_thread(_delete, self._store, key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects under a prefix."""
        self._check_writable()
        await asyncio.to_thread(delete_all, self._store, prefix)

    async def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys under a prefix."""
        for batch in await asyncio.to_thread(lambda: list(obstore.list(self._store, prefix or None, chunk_size=1000))):
            for entry in batch:
                yield str(entry["path"])

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right under a prefix."""
        found = await asyncio.to_thread(obstore.list_with_delimiter, self._store, prefix.rstrip("/") or None)
        for path in [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]:
            yield str(path).rsplit("/", 1)[-1]

    def _read(self, key: str, byte_range: ByteRequest | None) -> Any:
        if byte_range is None:
            found = fetch(self._store, key)
            return None if found is None else found[0]
        size = size_of(self._store, key)
        if size is None:
            return None
        start, stop = _limits(byte_range, size)
        return get_ranges(self._store, key, [start], [stop - start])[0] if stop > start else b""


def _limits(byte_range: ByteRequest, size: int) -> tuple[int, int]:
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.start, min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest):
        return byte_range.offset, size
    if isinstance(byte_range, SuffixByteRequest):
        return max(0, size - byte_range.suffix), size
    raise TypeError(f"Unexpected byte_range, got {byte_range!r}")  # in the words of Zarr


def _delete(store: LocalStore | S3Store, key: str) -> None:
    if size_of(store, key) is not None:
        obstore.delete(store, key)


def zarr_store(url: str | os.PathLike[str], *, whole: bool = False) -> ObjectsForZarr:
    """Open the Zarr store under a URL; a `whole` one has no fill values for objects that are missing."""
    return ObjectsForZarr(object_store(url), whole=whole)
