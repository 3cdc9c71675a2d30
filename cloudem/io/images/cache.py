"""A cache of images on a local disk or in memory, between the passes of a refinement over a remote store.

Each shard that was read has one sparse file, which every process of the machine maps into memory::

    <folder>/images/<store>/<shard>-<version>     the images where they lie in the shard, then one checksum for each

A checksum of zero says that the image is not there. Checksums are written after the images and compared when a process
first uses an image, so nothing that happens between the two, a crash of the machine included, can give wrong images:
what does not match is fetched again. Two processes that write the same image write the same bytes. A file is evicted by
removing its name: whoever has it mapped goes on reading.
"""

import hashlib
import logging
import mmap
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cloudem.errors import ParameterError
from cloudem.io.images.layout import StackLayout
from cloudem.io.storage.private import open_file, private_folder

FOLDER, LIMIT = "CLOUDEM_CACHE", "CLOUDEM_CACHE_GIB"
"""Environment variables: where the cache is, and how many GiB it may hold; 0 for none."""

IDLE_SAME, IDLE_OTHER = 6 * 3600.0, 600.0
"""Seconds for which a shard must not have been read before one of the same store, or of another, takes its place.

A refinement reads all particles again and again. Were the shard evicted that was not read for longest, a store larger
than the cache would lose each shard just before it is read again; so what is in the cache stays, and the rest is not
kept.
"""

_KEPT = 256
"""Files mapped at a time in a process: each map holds a file descriptor."""

_TOUCH = 60.0
"""Seconds between two notes that a file was used, and for which nothing is written once the cache or disk is full."""

_LOG = logging.getLogger(__name__)


class CachedShard:
    """The images of one shard that are here."""

    def __init__(self, path: Path, layout: StackLayout) -> None:
        self.path = path
        self._image_bytes = layout.pixels * np.dtype(layout.dtype).itemsize
        self._sums_at = layout.shard * self._image_bytes
        size = self._sums_at + 4 * layout.shard
        descriptor = open_file(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
            self._inode = os.fstat(descriptor).st_ino
            raw = np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
        finally:
            os.close(descriptor)
        dtype = np.dtype(layout.dtype).newbyteorder("<")
        self.images: NDArray[Any] = raw[: self._sums_at].view(dtype).reshape(layout.shard, layout.pixels)
        self._sums = raw[self._sums_at :].view("<u4")
        self._right = np.zeros(layout.shard, dtype=bool)
        self._touched = -np.inf

    def is_current(self) -> bool:
        """Say whether the file has not been evicted."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def holds(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Say which images are here, and whole."""
        there = self._right[rows]
        for place in np.flatnonzero(~there):
            row = rows[place]
            if self._sums[row] and self._sums[row] == _checksum(self.images[row]):
                self._right[row] = there[place] = True
        now = time.monotonic()
        if now - self._touched > _TOUCH and there.any():
            self._touched = now
            with suppress(OSError):
                os.utime(self.path)
        return there

    def write(self, first: int, images: NDArray[Any]) -> None:
        """Put consecutive images, ``(b, pixels)`` as they are in the shard.

        Raises
        ------
        OSError
            The disk is full, or the file was evicted meanwhile.
        """
        sums = np.array([_checksum(image) for image in images], dtype="<u4")
        descriptor = open_file(self.path, os.O_WRONLY)
        try:
            _write_at(descriptor, images, first * self._image_bytes)
            _write_at(descriptor, sums, self._sums_at + 4 * first)
        finally:
            os.close(descriptor)


class _File(NamedTuple):
    path: Path
    store: str
    size: int
    used: float


class ImageCache:
    """Files of shards in a folder, within a limit in bytes; safe in threads and for several processes.

    Parameters
    ----------
    folder
        Made where it is not there.
    limit
        Bytes on disk; half of what is free there, counting what the cache holds, if None. Processes look every 32nd of
        the limit, so that several may pass it by that for a moment.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        self._folder = folder / "images"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        private_folder(self._folder)
        free = shutil.disk_usage(self._folder).free
        self.limit = (free + sum(file.size for file in self._files())) // 2 if limit is None else limit
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str], CachedShard] = OrderedDict()
        self._allowance = 0
        self._paused = -np.inf

    def shard(self, store: str, number: int, version: str, layout: StackLayout) -> CachedShard | None:
        """Return the file of a shard, or None where none can be made.

        Parameters
        ----------
        store
            URL of the store.
        number
            Of the shard.
        version
            Whatever changes when the shard is written anew, its ETag for example.
        layout
            Of the stack.
        """
        key = (_short(store), f"{number}-{_short(f'{version} {layout}')}")
        with self._lock:
            found = self._open.get(key)
            if found is not None:
                self._open.move_to_end(key)
        if found is not None and found.is_current():
            return found
        path = self._folder.joinpath(*key)
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            found = CachedShard(path, layout)
        except OSError as error:
            _LOG.warning("images are not cached in %s: %s", self._folder, str(error))
            return None
        with self._lock:
            self._open[key] = found  # of two threads that opened it, the last one's map is kept; both can be used
            while len(self._open) > _KEPT:
                self._open.popitem(last=False)
        return found

    def write(self, shard: CachedShard, first: int, images: NDArray[Any]) -> None:
        """Put consecutive images of a shard, unless the cache or the disk is full."""
        with self._lock:
            if time.monotonic() < self._paused:
                return
            full = self._allowance < images.nbytes
        if full:
            self._make_room(shard.path.parent.name, images.nbytes)
        with self._lock:
            if self._allowance < images.nbytes:
                self._paused = time.monotonic() + _TOUCH
                return
            self._allowance -= images.nbytes
        try:
            shard.write(first, images)
        except FileNotFoundError:  # evicted
            return
        except OSError as error:
            _LOG.warning("images are not cached in %s for a while: %s", self._folder, str(error))
            self._paused = time.monotonic() + _TOUCH

    def _make_room(self, store: str, needed: int) -> None:
        """Evict what has not been used, the oldest first, and allow as much as there is room for.

        Several threads may do so at a time: what one has evicted is not there for the next.
        """
        step = self.limit // 32
        files = self._files()
        total, now = sum(file.size for file in files), time.time()
        if total + max(step, needed) > self.limit:
            for file in sorted(files, key=lambda file: file.used):
                if now - file.used < (IDLE_SAME if file.store == store else IDLE_OTHER):
                    continue
                with suppress(OSError):
                    file.path.unlink()
                total -= file.size
                if total < self.limit * 7 // 8 - needed:
                    break
            with self._lock:
                opened = list(self._open.items())
            gone = [(key, shard) for key, shard in opened if not shard.is_current()]
            with self._lock:
                for key, shard in gone:  # the bytes are free only when nobody maps them
                    if self._open.get(key) is shard:
                        del self._open[key]
        with self._lock:
            self._allowance = min(max(step, needed), self.limit - total)

    def _files(self) -> list[_File]:
        return list(_walk(self._folder))


def image_cache() -> ImageCache | None:
    """Return the cache of this process, or None where there is none.

    Raises
    ------
    ParameterError
        The limit in the environment is not a number.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return _image_cache(os.environ.get(FOLDER) or str(home / "cloudem"), os.environ.get(LIMIT, ""))


@cache
def _image_cache(folder: str, limit: str) -> ImageCache | None:
    try:
        most = int(float(limit) * 2**30) if limit else None
    except (ValueError, OverflowError) as error:
        raise ParameterError(f"{LIMIT} is {limit!r}, a number of GiB is needed (0 for no cache)") from error
    if most is not None and most <= 0:
        return None
    try:
        return ImageCache(Path(folder), most)
    except OSError as error:
        _LOG.warning("images are not cached: %s", str(error))
        return None


def _walk(folder: Path) -> Iterator[_File]:
    for path in folder.glob("*/*"):
        with suppress(OSError):  # evicted meanwhile
            status = path.stat()
            yield _File(path, path.parent.name, status.st_blocks * 512, status.st_mtime)


def _write_at(descriptor: int, values: NDArray[Any], offset: int) -> None:
    rest = values.view(np.uint8).data.cast("B")
    while rest:
        done = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[done:], offset + done


def _checksum(image: NDArray[Any]) -> int:
    """Return the CRC-32C of an image; never 0, which is what a hole reads as."""
    return int(google_crc32c.value(image)) or 1


def _short(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
