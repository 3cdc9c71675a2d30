"""Files that gzip has compressed: recognised by their first bytes, and never larger in memory than was asked for."""

import gzip
import io
import os
import zlib
from contextlib import AbstractContextManager
from typing import BinaryIO

from cloudem.errors import FormatError, MissingInputError
from cloudem.io.storage.location import folder_of, is_local, read_start, storage_errors

MAGIC = b"\x1f\x8b"
"""First bytes of what gzip has made."""

MOST_RATIO = 1032
"""Bytes that one compressed byte can stand for, at most (deflate)."""

_GZIP = 16 + zlib.MAX_WBITS


def is_compressed(raw: bytes) -> bool:
    """Return whether these are the first bytes of a file made by gzip."""
    return raw[:2] == MAGIC


def decompress_start(raw: bytes, stop: int, path: str) -> bytes:
    """Return the bytes up to `stop` of what the first bytes of a compressed file hold; fewer if there are not as many.

    Raises
    ------
    FormatError
        They are damaged; `path` is what the message calls the file.
    """
    try:
        return zlib.decompressobj(_GZIP).decompress(raw, stop)
    except zlib.error as error:
        raise FormatError(f"{path} is compressed and damaged ({error}); copy or make it again") from error


def read_compressed(path: str | os.PathLike[str], size: int) -> bytearray:
    """Return the first bytes of what a compressed file or object holds; nothing beyond them is kept in memory.

    Where the file ends with them, its checksum is verified.

    Parameters
    ----------
    path
        File or URL on S3.
    size
        Number of bytes.

    Raises
    ------
    MissingInputError, StorageError
        It is not there, or cannot be read.
    FormatError
        It holds fewer bytes, or is damaged.
    """
    place = os.fspath(path)
    data = bytearray()
    try:
        with storage_errors(path), _open(place, size) as raw, gzip.GzipFile(fileobj=raw) as file:
            # part by part: what a header claims takes memory only as far as it comes
            while len(data) < size and (part := file.read(min(16 * 2**20, size - len(data)))):
                data += part
            if len(data) == size:
                file.read(1)  # verifies the checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(place, error) from error
    except OSError as error:
        if isinstance(error.__cause__, gzip.BadGzipFile):  # it is an OSError, too
            raise _damaged(place, error.__cause__) from error
        raise
    if len(data) < size:
        raise FormatError(f"{place} is truncated: it holds {len(data)} bytes of {size}; copy or make it again")
    return data


def _damaged(place: str, error: BaseException) -> FormatError:
    if isinstance(error, EOFError):
        return FormatError(f"{place} is truncated: its compressed data end early; copy or make it again")
    return FormatError(f"{place} is compressed and damaged ({error}); copy or make it again")


def _open(place: str, size: int) -> AbstractContextManager[BinaryIO]:
    if is_local(place):
        return folder_of(place).open("rb")
    found = read_start(place, size + size // 1000 + 2**20)  # compressed bytes are never many more than those within
    if found is None:
        raise MissingInputError(f"{place} does not exist any more")
    return io.BytesIO(found[0])
