"""Ranges of the bytes of one file, wherever it lies, all of one version of it."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import obstore
from obstore.exceptions import PreconditionError

from cloudem import traffic
from cloudem.errors import ChangedFileError, MissingInputError, StorageError
from cloudem.io.images.remote import in_threads
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.location import (
    absolute,
    first_bytes,
    folder_of,
    is_fsspec,
    is_remote,
    object_store,
    parent_and_name,
    storage_errors,
)

BLOCK_BYTES, BLOCKS = 2**14, 4096
"""What is read of a file at once where a format is a chain of small directories, and how much of that is kept."""


class RangeReader:
    """A file, an object of S3, or a file that fsspec reaches, of which ranges are read.

    Parameters
    ----------
    url
        Where it is.

    Attributes
    ----------
    size
        Bytes.
    version
        What tells it from what comes later under the same URL: of a file its time, of an object its etag.

    Raises
    ------
    MissingInputError
        There is no such file.
    StorageError
        It cannot be reached.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = absolute(url)
        self._store: Any = None
        self._key = ""
        found: tuple[int, str] | None = None
        with storage_errors(self.url):
            if is_fsspec(self.url):
                there = fsspec_urls.read_first(self.url, 0)
                found = there and there[1:]
            elif is_remote(self.url):
                parent, self._key = parent_and_name(self.url)
                self._store = object_store(parent)
                there = first_bytes(self._store, self._key, 0)
                found = there and there[1:]
            elif (path := folder_of(self.url)).is_file():
                status = path.stat()
                found = status.st_size, str(status.st_mtime_ns)
        if found is None:
            raise MissingInputError(f"{self.url} does not exist; check the path")
        self.size, self.version = found

    @property
    def remote(self) -> bool:
        """Whether each range is a request."""
        return self._store is not None or is_fsspec(self.url)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, or up to the end.

        Raises
        ------
        ChangedFileError
            The file was changed or deleted since this was opened.
        StorageError
            It cannot be read.
        """
        start, stop = max(start, 0), min(stop, self.size)
        if stop <= start:
            return b""
        if is_fsspec(self.url):
            data = fsspec_urls.read_range(self.url, start, stop, self.version)
        elif self._store is not None:
            data = self._from_object(start, stop)
        else:
            data = self._from_file(start, stop)
        if len(data) != stop - start:
            raise StorageError(f"{self.url}: {len(data)} bytes came where {stop - start} were asked for; try again")
        return data

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of several ranges; where each is a request, many at a time."""
        if not self.remote:
            return [self.read(*each) for each in ranges]
        return in_threads(lambda each: self.read(*each), ranges)

    def _from_file(self, start: int, stop: int) -> bytes:
        with storage_errors(self.url):
            try:
                file = folder_of(self.url).open("rb")
            except FileNotFoundError as error:
                raise ChangedFileError(f"{self.url} was deleted while it was read; copy it again") from error
        with storage_errors(self.url), file:
            if str(os.fstat(file.fileno()).st_mtime_ns) != self.version:
                raise ChangedFileError(f"{self.url} was changed while it was read; it may still be being written")
            file.seek(start)
            return file.read(stop - start)

    def _from_object(self, start: int, stop: int) -> bytes:
        with storage_errors(self.url):
            options: Any = {"range": (start, stop), "if_match": self.version or None}
            try:
                data = bytes(obstore.get(self._store, self._key, options=options).bytes())
            except (PreconditionError, FileNotFoundError) as error:
                raise ChangedFileError(f"{self.url} was changed or deleted while it was read; start again") from error
        traffic.count("images", received=len(data))
        return data


class RangeFile(io.RawIOBase):
    """The same as a file that is read from anywhere; what was read lately is kept.

    Parameters
    ----------
    ranges
        What is read.
    """

    def __init__(self, ranges: RangeReader) -> None:
        self.ranges = ranges
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._held: dict[int, bytes] = {}

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it can be read from anywhere."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place, counted from the start, from here or from the end."""
        self._at = offset + (0, self._at, self.ranges.size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read from here on."""
        view = memoryview(buffer).cast("B")
        data = self.read_at(self._at, self._at + len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def hold(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Fetch ranges that will be asked for, and forget those of before."""
        self._held = {start: data for (start, _), data in zip(ranges, self.ranges.read_many(ranges), strict=True)}

    def expect(self, places: Sequence[int], reach: int) -> None:
        """Fetch what lies up to `reach` bytes around places that will probably be asked for, if that saves waiting."""
        if not self.ranges.remote:
            return
        last = (self.ranges.size - 1) // BLOCK_BYTES
        around = {(place + step) // BLOCK_BYTES for place in places for step in (-reach, 0, reach)}
        numbers = sorted(number for number in around if 0 <= number <= last and number not in self._blocks)
        data = self.ranges.read_many([(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES) for number in numbers])
        for number, block in zip(numbers, data, strict=True):
            self._keep(number, block)

    def read_at(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`, or up to the end."""
        for first, data in self._held.items():
            if first <= start and stop <= first + len(data):
                return data[start - first : stop - first]
        stop = min(stop, self.ranges.size)
        if stop - start > BLOCK_BYTES:
            return self.ranges.read(start, stop)
        parts = [self._block(number) for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))]
        skipped = start % BLOCK_BYTES
        return b"".join(parts)[skipped : skipped + max(stop - start, 0)]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._keep(number, self.ranges.read(number * BLOCK_BYTES, (number + 1) * BLOCK_BYTES))
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _keep(self, number: int, block: bytes) -> None:
        self._blocks[number] = block
        if len(self._blocks) > BLOCKS:
            self._blocks.popitem(last=False)
