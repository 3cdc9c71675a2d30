"""Files of other programs, in a folder or elsewhere: opened to be read, written so that they appear when whole."""

import io
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Full, Queue
from typing import Any, BinaryIO, cast

import obstore
from obstore.store import S3Store

from cloudem import traffic
from cloudem.errors import FormatError, MissingInputError
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.location import (
    Store,
    absolute,
    folder_of,
    is_fsspec,
    is_remote,
    object_store,
    parent_and_name,
    put,
    storage_errors,
)
from cloudem.io.storage.private import partial_file
from cloudem.text import size

TABLE_BYTES = 4 * 2**30
"""The largest table that is read from outside a folder: ten million particles; it is read as a whole."""

PART_BYTES = 16 * 2**20
"""Of an object that is sent in parts, unless it needs more than `_PARTS`; what is smaller is one request."""

_PARTS = 9000  # S3 takes 10,000


@contextmanager
def open_table(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a table to be read; one that is not in a folder is in memory as a whole.

    Raises
    ------
    MissingInputError
        No such file.
    FormatError
        It has more than `TABLE_BYTES` and is not in a folder.
    StorageError
        It cannot be read.
    """
    if is_fsspec(path):
        yield io.BytesIO(_fetch_by_fsspec(absolute(path)))
        return
    with storage_errors(path):
        if is_remote(path):
            yield io.BytesIO(_fetch(os.fspath(path)))
            return
        place = folder_of(path)
        if not place.is_file():
            raise MissingInputError(f"{os.fspath(path)} does not exist; check the path")
        with place.open("rb") as file:
            yield file


def _fetch_by_fsspec(url: str) -> bytes:
    start = fsspec_urls.read_first(url, 0)
    if start is not None:
        _require_table(url, start[1])
    found = None if start is None else fsspec_urls.read_first(url, None)
    if found is None:
        raise MissingInputError(f"{url} does not exist; check the address")
    return found[0]


def _require_table(url: str, held: int) -> None:
    if held > TABLE_BYTES:
        raise FormatError(f"{url} has {size(held)}, more than any table that is read; give the table, not the images")


def _fetch(url: str) -> bytes:
    parent, name = parent_and_name(url)
    try:
        result = obstore.get(object_store(parent), name)
        _require_table(url, result.meta["size"])
        data = bytes(result.bytes())
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise
        raise MissingInputError(f"{url} does not exist; check bucket and name") from error
    traffic.count(traffic.current_purpose(), received=len(data))
    return data


@contextmanager
def new_file(url: str | os.PathLike[str], size: int = 0) -> Iterator[BinaryIO]:
    """Give a file to write into that takes its name only when everything went well; it replaces one of that name.

    A file is ``.<name>.<random>.partial`` until then. An object is sent in parts while it is written, with a few of
    them in memory; it cannot seek. Nothing is left of either when the block raises.

    Parameters
    ----------
    url
        The file or object.
    size
        Bytes that it will have, about; 0 if that is not known, and they are less than 100 GiB.

    Raises
    ------
    StorageError
        Disk full, no permission, no such bucket, no connection.
    """
    if is_fsspec(url):
        with fsspec_urls.file_to_write(absolute(url), size) as there:
            yield there
        return
    with storage_errors(url):
        if is_remote(url):
            parent, name = parent_and_name(url)
            with _upload(object_store(parent), name, max(PART_BYTES, -(-size // _PARTS))) as upload:
                yield cast(BinaryIO, upload)
            return
        with partial_file(folder_of(url)) as descriptor, open(descriptor, "wb", closefd=False) as file:
            yield file


class _AbandonedError(Exception):
    """Tells the sender of an object that the rest of it will not come."""


@contextmanager
def _upload(store: Store, key: str, part: int) -> Iterator["_Upload"]:
    with ThreadPoolExecutor(1, "cloudem-upload") as thread:
        upload = _Upload(store, key, part, thread)
        try:
            yield upload
        except BaseException:
            upload.abandon()
            raise
        upload.finish()


class _Upload(io.RawIOBase):
    """An object that is being written.

    Its parts are sent by a thread of its own, because whoever makes them may ask the same storage for images: requests
    cannot be made from within one that waits for the next part.
    """

    def __init__(self, store: Store, key: str, part: int, thread: ThreadPoolExecutor) -> None:
        self._store, self._key, self._part, self._thread = store, key, part, thread
        self._held = bytearray()
        self._parts: Queue[bytes | _AbandonedError | None] = Queue(maxsize=1)
        self._sent: Future[Any] | None = None

    def writable(self) -> bool:
        """Return that it can be written."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes, all of them; wait where too many are on their way."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self._part):
            self._held += view[start : start + self._part]
            if len(self._held) >= self._part:
                self._send(bytes(self._held))
                self._held.clear()
        return len(view)

    def finish(self) -> None:
        """Send what is left and wait until the object is there."""
        if self._sent is None:
            put(self._store, self._key, bytes(self._held))
            return
        if self._held:
            self._send(bytes(self._held))
        self._send(None)
        self._sent.result()

    def abandon(self) -> None:
        """Have the parts that were sent removed."""
        if self._sent is not None and not self._sent.done():
            while not self._parts.empty():
                self._parts.get_nowait()
            self._parts.put(_AbandonedError())

    def _send(self, part: bytes | None) -> None:
        if self._sent is None:
            self._sent = self._thread.submit(self._run)
        while True:
            if self._sent.done():
                self._sent.result()  # it ends before the last part only by raising
            try:
                self._parts.put(part, timeout=0.5)
                return
            except Full:
                continue

    def _run(self) -> None:
        obstore.put(
            self._store, self._key, iter(self._next, b""), use_multipart=True, chunk_size=self._part, max_concurrency=4
        )

    def _next(self) -> bytes:
        part = self._parts.get()
        if isinstance(part, _AbandonedError):
            raise part
        if part is not None and isinstance(self._store, S3Store):
            traffic.count(traffic.current_purpose(), sent=len(part))
        return part or b""
