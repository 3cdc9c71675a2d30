"""One small value under a URL that is compared and swapped: what is replaced is what the writer knows.

On object storage that is a conditional put: If-None-Match and If-Match. In a folder it is done under ``flock``, on the
file itself, which is written in place: the kernel frees the lock when a process ends, however it ends, and it is held
for a moment only. On network file systems that pass ``flock`` on to the server (NFS 4, and 3 with lockd; Lustre mounted
with ``flock``; GPFS) that holds between machines, too. Where they do not, of two machines that write within the same
millisecond the last one wins, and the other is told of success: whoever must be sure swaps again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import obstore

from cloudem.errors import StorageError
from cloudem.io.storage.location import (
    folder_of,
    get_with_etag,
    is_remote,
    prompt_store,
    put_if_absent,
    put_if_match,
    storage_errors,
)
from cloudem.io.storage.private import open_file

_LOCK_PATIENCE_S = 5.0

_MOST_BYTES = 64 << 20
"""Of a value in a folder."""

OWN_FOLDER = ".lease"
"""Ending of a folder that exists for a value alone, and is removed with it whoever made it."""


class Slot(Protocol):
    """The place of a value."""

    url: str

    def read(self) -> tuple[bytes, str] | None:
        """Return what is there and its tag."""

    def swap(self, tag: str | None, data: bytes) -> str | None:
        """Replace what has that tag (None: make it where there is none) and return the new tag, or None."""

    def delete(self, tag: str) -> None:
        """Delete what has that tag."""


def slot(url: str, key: str) -> Slot:
    """Return the place of a value: an object under a URL."""
    with storage_errors(url):
        return _Object(url, key) if is_remote(url) else _File(url, key)


class _Object:
    """A value on object storage."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._key = key
        self._store = prompt_store(url)

    def read(self) -> tuple[bytes, str] | None:
        return get_with_etag(self._store, self._key)

    def swap(self, tag: str | None, data: bytes) -> str | None:
        if tag is None:
            return put_if_absent(self._store, self._key, data)
        return put_if_match(self._store, self._key, data, tag)

    def delete(self, tag: str) -> None:
        # Not every server deletes on a condition: whoever deletes has swapped just before.
        obstore.delete(self._store, self._key)


class _File:
    """A value in a folder; folders that are made for it are removed with it, if nothing else came into them."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self._path = folder_of(url) / key
        self._made: list[Path] = []

    def read(self) -> tuple[bytes, str] | None:
        try:
            file = open_file(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            raw = _whole(file)
        finally:
            os.close(file)
        return (raw, _digest(raw)) if raw else None  # empty: somebody is about to write it

    def swap(self, tag: str | None, data: bytes) -> str | None:
        if tag is None:
            self._make_folder()
        try:
            with _locked(self._path, os.O_RDWR | (os.O_CREAT if tag is None else 0)) as file:
                raw = _whole(file)
                if (_digest(raw) if raw else None) != tag:
                    return None
                os.pwrite(file, data, 0)
                os.ftruncate(file, len(data))
                return _digest(data)
        except FileNotFoundError:
            return None

    def delete(self, tag: str) -> None:
        with contextlib.suppress(FileNotFoundError), _locked(self._path, os.O_RDWR) as file:
            if _digest(_whole(file)) == tag:
                self._path.unlink()
        left = [self._path.parent] if self._path.parent.name.endswith(OWN_FOLDER) else []  # by one that was killed
        for folder in self._made or left:
            with contextlib.suppress(OSError):  # it holds results
                folder.rmdir()

    def _make_folder(self) -> None:
        if self._path.parent.name.endswith(OWN_FOLDER) and self._path.parent.is_symlink():
            raise StorageError(f"{self._path.parent} is a link, where cloudem keeps a folder of its own; remove it")
        missing = [folder for folder in (self._path.parent, *self._path.parent.parents) if not folder.exists()]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._made = self._made or missing


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    """Open a file and lock it; where a file system cannot, go without."""
    deadline = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        file = open_file(path, flags)
        try:
            if _lock(file) and _is(path, file):
                yield file
                return
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # a fork may have a copy of the file, which would keep the lock
            os.close(file)
        if time.monotonic() > deadline:
            raise StorageError(f"{path} is locked by a process that does not go on; end it, or delete the file")
        time.sleep(0.002)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # not on this file system
        return True
    return True


def _is(path: Path, file: int) -> bool:
    """Return whether an open file is still the one of that name."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _whole(file: int) -> bytes:
    """Return what an open file holds."""
    return os.read(file, min(os.fstat(file).st_size, _MOST_BYTES))


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
