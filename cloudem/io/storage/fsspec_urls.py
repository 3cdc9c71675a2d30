"""Files under URLs of everything else that fsspec reaches: Google, Azure, the web, SSH, S3 by way of s3fs.

Tables, stacks and maps are read there, and files exported there; particle stores and results are folders or on S3.
What a place needs to know (keys, endpoints) is fsspec's own configuration, in ``FSSPEC_…`` variables or
``~/.config/fsspec``: it stands in no URL, since URLs are recorded and shown. fsspec is imported when it is needed.
"""

import io
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, BinaryIO, NamedTuple, cast

from cloudem import traffic
from cloudem.errors import ChangedFileError, CloudemError, ParameterError, StorageError

_PROTOCOLS = {"s3fs": "s3"}
"""Scheme -> what fsspec calls it, where that is something else."""

_NO_PLACES = ("async_wrapper", "asyncwrapper", "asynclocal", "blockcache", "cached", "dask", "data", "dir", "file",
              "filecache", "ftp", "generic", "libarchive", "local", "reference", "s3", "s3a", "simplecache", "tar",
              "zip")  # fmt: skip
"""What fsspec lists that is this machine, is `cloudem.io.storage.s3`'s, or only lies over another place; and ``ftp``,
whose connection (fsspec 2026.9) lists empty folders and breaks after part of a file was read."""

READ_ONLY = ("http", "https")
"""Schemes of the web."""

_WITH_FOLDERS = ("box", "dropbox", "hdfs", "memory", "sftp", "smb", "ssh", "webdav", "webhdfs")
"""Where a folder has to be there before a file in it; elsewhere making one could make a bucket."""

_NAMES_WITH_AT = ("abfs", "abfss", "hdfs", "sftp", "smb", "ssh", "webhdfs")
"""Where ``name@host`` names a user or a container, which is no secret."""

_BLOCK_BYTES = 16 * 2**20
_MOST_BLOCKS = 9000  # S3 takes 10,000

_VERSIONS = ("ETag", "etag", "generation", "Content-MD5", "Last-Modified", "LastModified", "last_modified", "updated",
             "mtime", "modified", "created")  # fmt: skip
"""What file systems of fsspec say of a file that changes with it."""


class _Place(NamedTuple):
    system: Any
    path: str


def scheme_of(url: str | os.PathLike[str]) -> str:
    """Return the scheme of a URL that is read by fsspec, in small letters; empty for any other."""
    scheme, separator, _ = os.fspath(url).partition("://")
    return scheme.lower() if separator and scheme not in ("file", "s3") and _is_known(scheme.lower()) else ""


@cache
def _is_known(scheme: str) -> bool:
    if scheme in _PROTOCOLS:
        return True
    try:
        from fsspec import available_protocols
    except ImportError:
        return scheme in ("gs", "abfs", "http", "https", "sftp")  # so that what is missing is said
    return scheme in available_protocols() and scheme not in _NO_PLACES


def normal(url: str) -> str:
    """Return a URL as it is recorded.

    Raises
    ------
    ParameterError
        It holds a password or a signature, names nothing, or has ``..`` in it.
    """
    scheme, rest = scheme_of(url), url.partition("://")[2]
    host, _, path = rest.partition("/")
    user, at, _ = host.rpartition("@")
    if (at and (":" in user or scheme not in _NAMES_WITH_AT)) or "?" in rest:  # which no message may show
        raise ParameterError(
            f"{scheme}:// URLs hold no user:password@ and no ?signature, since they are recorded; give them in fsspec's"
            " configuration (FSSPEC_… variables, ~/.config/fsspec)"
        )
    parts = [part for part in path.split("/") if part]
    if not host or "::" in url or "." in parts or ".." in parts:
        raise ParameterError(f"{url} names no place; give {scheme}://host-or-bucket/path, without . or .. in it")
    return f"{scheme}://" + "/".join([host, *parts])


def refuse(url: str) -> ParameterError:
    """Return the error for a URL where a folder or S3 is needed."""
    return ParameterError(
        f"{without_secrets(url)}: particle stores and results are folders or s3://bucket/prefix; {scheme_of(url)}://"
        " is for tables, stacks and maps that are read, and for exported files"
    )


def without_secrets(text: str) -> str:
    """Take out of a text what URLs in it hold before ``@`` and behind ``?``."""
    text = re.sub(r"://[^/\s@]*:[^/\s]*@", "://", text)
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1", text)


def read_first(url: str, stop: int | None) -> tuple[bytes, int, str] | None:
    """Return the bytes up to `stop` of a file, all its bytes' number, and its version; None where there is none.

    Raises
    ------
    StorageError
        It cannot be reached, or read; the package that this takes is not installed.
    """
    with _errors(url):
        place = _open(url)
        info = _info(place)
        if info is None or info.get("type") == "directory":
            return None
        size = info.get("size")
        if stop is None:
            data = bytes(place.system.cat_file(place.path))
            size = len(data)
        elif stop == 0:
            data = b""
        elif _is_web(url):  # as a stream: its server may know no ranges
            with place.system.open(place.path, "rb", block_size=0) as file:
                data = _up_to(file, stop)
        else:
            data = bytes(place.system.cat_file(place.path, start=0, end=min(stop, int(size or stop))))
        if size is None:
            raise StorageError(f"{url}: its server does not say how large it is; copy it here first")
    traffic.count(traffic.current_purpose(), received=len(data))
    return data, int(size), _version(info)


def read_range(url: str, start: int, stop: int, version: str) -> bytes:
    """Return a range of the bytes of a file that is still of that version.

    Raises
    ------
    StorageError
        It is not; it cannot be read; its server sends no ranges.
    """
    with _errors(url):
        place = _open(url)
        if _is_web(url):  # which raises, instead of taking the whole, where the server knows no ranges
            try:
                with place.system.open(place.path, "rb", block_size=stop - start, cache_type="none") as file:
                    file.seek(start)
                    data = bytes(file.read(stop - start))
            except ValueError as error:
                raise StorageError(
                    f"{url}: its server sends whole files, not the parts that images are; copy the stacks here first"
                ) from error
        else:
            data = bytes(place.system.cat_file(place.path, start=start, end=stop))
        info = _info(place)
        if info is None:
            raise ChangedFileError(f"{url} was deleted while it was read; copy or make it again")
        if _version(info) != version:
            raise ChangedFileError(f"{url} was changed while it was read; start again")
    return data


def is_there(url: str) -> bool:
    """Return whether there is a file or folder; on the web, whether its server knows the address."""
    with _errors(url):
        return _info(_open(url)) is not None


def names_under(url: str) -> list[str]:
    """Return the names of what lies right under a URL, sorted."""
    with _errors(url):
        place = _open(url)
        try:
            found = place.system.ls(place.path, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        top = str(place.path).strip("/") + "/"
        below = (str(each).strip("/") for each in found)
        return sorted({each.removeprefix(top).split("/")[0] for each in below if each.startswith(top)})


def delete_under(url: str) -> None:
    """Delete every file under a URL."""
    with _errors(url):
        place = _open(url)
        for each in place.system.find(place.path):
            place.system.rm_file(each)


@contextmanager
def file_to_write(url: str, size: int = 0) -> Iterator[BinaryIO]:
    """Give a file to write into that appears when it is whole, as far as the place can do that.

    When the block raises it is given up, and what appeared of it all the same is deleted.

    Parameters
    ----------
    url
        The file.
    size
        Bytes that it will have, about; 0 if that is not known.

    Raises
    ------
    StorageError
        It cannot be written.
    """
    require_writable(url)
    blocks = max(1, -(-size // (_MOST_BLOCKS * _BLOCK_BYTES)))
    written = _renamed if scheme_of(url) in _WITH_FOLDERS else _committed
    with written(url, blocks * _BLOCK_BYTES) as file:
        yield cast(BinaryIO, _Counted(file, url))


@contextmanager
def _renamed(url: str, block_size: int) -> Iterator[Any]:
    """Give a file that takes its name at the end."""
    with _errors(url):
        place = _open(url)
        folder, _, name = str(place.path).rpartition("/")
        place.system.makedirs(folder, exist_ok=True)
        partial = f"{folder}/.{name}.{secrets.token_hex(8)}.partial"
        file = place.system.open(partial, "wb", block_size=block_size)
    try:
        yield file
        with _errors(url):
            file.close()
            try:
                place.system.mv(partial, place.path)
            except OSError:  # some servers rename onto no file that is there
                place.system.rm_file(place.path)
                place.system.mv(partial, place.path)
    except BaseException:
        for undo in (file.close, lambda: place.system.rm_file(partial)):
            with suppress(Exception):  # what went wrong first is said
                undo()
        raise


@contextmanager
def _committed(url: str, block_size: int) -> Iterator[Any]:
    """Give an object that appears when it is committed."""
    with _errors(url):
        place = _open(url, alone=True)  # a transaction belongs to an instance
        before = _info(place)
        place.system.start_transaction()
        file = place.system.open(place.path, "wb", block_size=block_size)
    try:
        yield file
        with _errors(url):
            file.close()
            place.system.end_transaction()
    except BaseException:
        for undo in (file.close, lambda: place.system.transaction.complete(commit=False), lambda: _undo(place, before)):
            with suppress(Exception):  # what went wrong first is said
                undo()
        raise


def _undo(place: _Place, before: dict[str, Any] | None) -> None:
    """Delete a file that appeared although it was given up."""
    after = _info(place)
    if after is not None and (before is None or _version(after) != _version(before)):
        place.system.rm_file(place.path)


def write_whole(url: str, data: bytes | memoryview) -> None:
    """Write one file."""
    with file_to_write(url, len(data)) as file:
        file.write(data)


def delete(url: str) -> None:
    """Delete one file."""
    with _errors(url):
        place = _open(url)
        place.system.rm_file(place.path)


def require_writable(url: str) -> None:
    """Refuse to write where nothing can be written.

    Raises
    ------
    ParameterError
        On the web.
    """
    if scheme_of(url) in READ_ONLY:
        raise ParameterError(f"{url}: {scheme_of(url)}:// can only be read; give another place to write to")


class _Counted(io.RawIOBase):
    """A file whose bytes are counted as sent."""

    def __init__(self, file: Any, url: str) -> None:
        self._file, self._url = file, url

    def writable(self) -> bool:
        """Return that it can be written."""
        return True

    def write(self, data: Any) -> int:
        """Take bytes, all of them."""
        view = memoryview(data).cast("B")
        with _errors(self._url):
            for start in range(0, len(view), _BLOCK_BYTES):
                self._file.write(view[start : start + _BLOCK_BYTES])
        traffic.count(traffic.current_purpose(), sent=len(view))
        return len(view)


def _open(url: str, *, alone: bool = False) -> _Place:
    """Return the file system of a URL, which has forgotten its listings, and the path there."""
    scheme = scheme_of(url)
    try:
        from fsspec.core import url_to_fs

        protocol = _PROTOCOLS.get(scheme, scheme)
        known = f"{protocol}://{url.partition('://')[2]}"
        place = _Place(*url_to_fs(known, **({"skip_instance_cache": True} if alone else {})))
        place.system.invalidate_cache()
        return place
    except ImportError as error:
        extra = "s3fs" if scheme == "s3fs" else "fsspec"
        said = str(error).partition("\n")[0].rstrip(".")
        raise StorageError(f"{url}: {said} (pip install 'cloudem[{extra}]' and what is named here)") from error


def _info(place: _Place) -> dict[str, Any] | None:
    """Return what a file system says of a file or folder; None where there is none."""
    try:
        return dict(place.system.info(place.path))
    except FileNotFoundError as error:
        if _is_missing(error):
            return None
        raise (error.__cause__ or error) from None


def _is_missing(error: FileNotFoundError) -> bool:
    """Return whether there is no such file: the one for the web says so of servers that do not answer, too."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if status is not None:
        return status in (404, 410)
    broken = isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")
    return not broken or isinstance(cause, FileNotFoundError)


def is_denied(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, says that access is denied."""
    while error is not None:
        if isinstance(error, PermissionError) or getattr(error, "status", None) in (401, 403):
            return True
        error = error.__cause__
    return False


def _version(info: dict[str, Any]) -> str:
    return ", ".join(str(info[name]) for name in ("size", *_VERSIONS) if info.get(name) is not None)


def _is_web(url: str) -> bool:
    return scheme_of(url) in READ_ONLY


def _up_to(file: Any, stop: int) -> bytes:
    data = b""
    while len(data) < stop and (part := file.read(stop - len(data))):
        data += part
    return data


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Turn whatever a file system of fsspec raises, each its own kinds, into `StorageError` with one line."""
    try:
        yield
    except (CloudemError, MemoryError):
        raise
    except Exception as error:
        first = (without_secrets(str(error)).splitlines() or [""])[0].strip() or type(error).__name__
        raise StorageError(f"{without_secrets(url)}: {first[:300]}") from error
