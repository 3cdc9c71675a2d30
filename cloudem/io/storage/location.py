"""What a URL means: the only place that turns one into a store.

A URL is a folder, ``file:///folder`` or ``s3://bucket/prefix`` (see `cloudem.io.storage.s3`); single files may also lie
where fsspec reaches them (see `cloudem.io.storage.fsspec_urls`). What moves over the
network is counted in `cloudem.traffic`, for the purpose of the block that runs.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore, S3Store

from cloudem import traffic
from cloudem.errors import CloudemError, ParameterError, StorageError
from cloudem.io.storage import fsspec_urls, s3

Store: TypeAlias = LocalStore | S3Store
"""Objects under a URL; keys are relative to it."""

UNFINISHED = "unfinished"
"""Object that is there while something is being written that is of no use before it is whole."""

LEASE_FILE = "lease.json"
"""Object that says who writes, see `cloudem.io.storage.lease`; it belongs to no content."""

_SCHEME = re.compile(r"(s3a?:|gs:|gcs:|az:|abfss?:|https?:|s?ftp:|hdfs:|file:)/?([^/].*)?$", re.IGNORECASE)
"""What begins as a URL of a known kind and is none."""

_IN_PARTS = 96 * 2**20
"""Objects above this size are sent in parts; a smaller one is one request, and so one that can be conditional."""


def is_remote(url: str | os.PathLike[str]) -> bool:
    """Return whether a URL lies on S3."""
    return os.fspath(url).startswith(s3.SCHEME)


def is_fsspec(url: str | os.PathLike[str]) -> bool:
    """Return whether what lies under a URL is reached by fsspec."""
    return bool(fsspec_urls.scheme_of(url))


def is_local(url: str | os.PathLike[str]) -> bool:
    """Return whether a URL is a path of this machine, as far as it is a URL that is known."""
    return not is_remote(url) and not is_fsspec(url)


def folder_of(url: str | os.PathLike[str]) -> Path:
    """Return the folder that a URL names.

    Raises
    ------
    ParameterError
        The URL does not name a folder of this machine.
    """
    text = os.fspath(url)
    scheme = urlsplit(text).scheme if "://" in text else ""
    if scheme == "file":
        host, path = urlsplit(text).netloc, unquote(urlsplit(text).path)
        if host not in ("", "localhost") or not path:
            raise ParameterError(f"{text} names no folder of this machine; give file:///folder, with three slashes")
        return Path(path)
    if text.lower().startswith(s3.SCHEME) and not text.startswith(s3.SCHEME):
        raise ParameterError(f"{text}: write s3:// in small letters")
    if not scheme and (begun := _SCHEME.match(text)):
        raise ParameterError(
            f"{text}: after {begun[1]} of a URL there are two slashes; give {begun[1].lower()}//{begun[2] or ''}, or"
            f" ./{text} for a folder of that name"
        )
    if scheme == "s3":
        raise ParameterError(f"{text}: a folder or file of this machine is needed here")
    if is_fsspec(text):
        raise fsspec_urls.refuse(text)
    if scheme:
        raise ParameterError(
            f"{fsspec_urls.without_secrets(text)}: {scheme}:// locations are not known; give a folder or"
            " s3://bucket/prefix (for tables, stacks, maps and exports also gs://, abfs://, https://, sftp://, …)"
        )
    if not text:
        raise ParameterError("an empty path was given where a folder is needed")
    if not text.startswith("~"):
        return Path(text)
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ParameterError(f"{text}: there is no such user; give ./{text} for a folder of that name") from None


def absolute(url: str | os.PathLike[str]) -> str:
    """Return a URL that means the same from any working directory.

    Raises
    ------
    ParameterError
        The URL has an unknown scheme, or names no bucket.
    """
    if is_fsspec(url):
        return fsspec_urls.normal(os.fspath(url))
    if not is_remote(url):
        return str(folder_of(url).absolute())
    bucket, prefix = s3.bucket_and_prefix(os.fspath(url))
    return f"{s3.SCHEME}{bucket}/{prefix}".rstrip("/")


def join(url: str | os.PathLike[str], *parts: str) -> str:
    """Return the URL of something under a URL."""
    return "/".join([os.fspath(url).rstrip("/"), *(part for part in parts if part)])


def parent_and_name(url: str | os.PathLike[str]) -> tuple[str, str]:
    """Return where the one file or object that a URL names lies, absolute, and what it is called there.

    Raises
    ------
    ParameterError
        The URL names none.
    """
    parent, _, name = absolute(url).rpartition("/")
    if not parent or parent.endswith(":/"):
        raise ParameterError(f"{os.fspath(url)} names no file or object; give one under a folder or a bucket")
    return parent, name


def exists(url: str | os.PathLike[str]) -> bool:
    """Return whether there is anything: a file, a folder, an object, or objects under that prefix."""
    if is_fsspec(url):
        return fsspec_urls.is_there(absolute(url))
    if not is_remote(url):
        return os.path.lexists(folder_of(url))
    if contents(url):
        return True
    return "/" in absolute(url).removeprefix(s3.SCHEME) and read_start(url, 0) is not None


def contents(url: str | os.PathLike[str]) -> list[str]:
    """Return the names of what lies right under a URL, sorted, but for a lease; none where there is nothing."""
    if is_fsspec(url):
        return fsspec_urls.names_under(absolute(url))
    if not is_remote(url):
        folder = folder_of(url)
        return sorted({path.name for path in folder.iterdir()} - {LEASE_FILE}) if folder.is_dir() else []
    with storage_errors(url):
        found = obstore.list_with_delimiter(object_store(url))
    paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
    return sorted({str(path).rsplit("/", 1)[-1] for path in paths} - {LEASE_FILE})


def object_store(url: str | os.PathLike[str], *, create: bool = False) -> Store:
    """Open the object store under a URL; keys are relative to it.

    It holds credentials if it is remote: give other processes the URL, never the store.

    Raises
    ------
    StorageError
        The folder is not there (and `create` is false), or cannot be made. No boto3, no credentials, refused
        credentials, no such bucket, or its server cannot be reached.
    """
    if is_remote(url):
        return s3.open_store(absolute(url))
    folder = folder_of(url)
    if not create and not folder.is_dir():
        raise StorageError(f"{folder} is not a folder: nothing can be read from it; check the path")
    with storage_errors(url):
        return LocalStore(prefix=str(folder.absolute()), mkdir=create, automatic_cleanup=True)


def prompt_store(url: str | os.PathLike[str]) -> S3Store:
    """Open the store under an S3 URL with requests that end within 20 s: for what must not be written late."""
    return s3.open_store(absolute(url), prompt=True)


def put(store: Store, key: str, data: bytes | memoryview) -> None:
    """Write one object; it is there as a whole or not at all."""
    in_parts = isinstance(store, S3Store) and len(data) > _IN_PARTS
    obstore.put(store, key, data, use_multipart=in_parts, chunk_size=16 * 2**20, max_concurrency=4)
    _count(store, sent=len(data))


def put_if_absent(store: Store, key: str, data: bytes) -> str | None:
    """Write one object unless there is one; return its etag, or None if there was one.

    When the answer of a server is lost, the writer itself may be told None: who must know reads the object.
    """
    try:
        etag = obstore.put(store, key, data, mode="create", use_multipart=False)["e_tag"]
    except AlreadyExistsError:
        return None
    _count(store, sent=len(data))
    return etag or ""


def put_if_match(store: S3Store, key: str, data: bytes, etag: str) -> str | None:
    """Replace an object that still has that etag; return its new etag, or None if it is another one or none.

    When the answer of a server is lost, the writer itself may be told None: who must know reads the object. Files
    cannot be replaced on a condition (see `cloudem.io.storage.compare_and_swap`).
    """
    try:
        # Ceph's gateway wants the etag without the quotes that HTTP gives it; AWS takes both.
        new = obstore.put(store, key, data, mode={"e_tag": etag.strip('"')}, use_multipart=False)["e_tag"]
    except (PreconditionError, FileNotFoundError):
        return None
    _count(store, sent=len(data))
    return new or ""


def get(store: Store, key: str) -> bytes | None:
    """Return one object, or None where there is none."""
    found = fetch(store, key)
    return None if found is None else bytes(found[0])


def get_with_etag(store: Store, key: str) -> tuple[bytes, str] | None:
    """Return one object and its etag, or None where there is none."""
    found = fetch(store, key)
    return None if found is None else (bytes(found[0]), found[1])


def fetch(store: Store, key: str) -> tuple[Any, str] | None:
    """Return one object as a buffer, which costs no copy, and its etag; None where there is none."""
    try:
        result = obstore.get(store, key)
        data = result.bytes()
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise
        return None
    _count(store, received=len(data))
    return data, str(result.meta["e_tag"] or "")


def get_ranges(store: Store, key: str, starts: Sequence[int], lengths: Sequence[int]) -> list[Any]:
    """Return ranges of bytes of an object, as buffers; each is one request, ten at a time."""
    ranges = obstore.get_ranges(store, key, starts=starts, lengths=lengths, coalesce=0)
    _count(store, received=sum(len(each) for each in ranges))
    return list(ranges)


def first_bytes(store: Store, key: str, stop: int) -> tuple[bytes, int, str] | None:
    """Return the bytes up to `stop` of an object, all its bytes' number, and its etag; None where there is none."""
    try:
        if not stop:
            meta = obstore.head(store, key)
            return b"", int(meta["size"]), str(meta["e_tag"] or "")
        result = obstore.get(store, key, options={"range": (0, stop)})
        data = bytes(result.bytes())
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise
        return None
    except BaseError as error:
        if "416 Range" not in str(error):
            raise
        return first_bytes(store, key, 0)  # it is empty, so that no range can be had
    _count(store, received=len(data))
    return data, int(result.meta["size"]), str(result.meta["e_tag"] or "")


def size_of(store: Store, key: str) -> int | None:
    """Return the bytes of an object, or None where there is none."""
    try:
        return int(obstore.head(store, key)["size"])
    except FileNotFoundError:
        return None


def read_bytes(url: str | os.PathLike[str]) -> bytes | None:
    """Return what is in the one file or object that a URL names; None where there is none."""
    found = read_start(url, None)
    return None if found is None else found[0]


def read_start(url: str | os.PathLike[str], stop: int | None) -> tuple[bytes, int] | None:
    """Return the bytes up to `stop` of the file or object that a URL names, and its size; None where there is none."""
    if is_fsspec(url):
        there = fsspec_urls.read_first(absolute(url), stop)
        return None if there is None else there[:2]
    with storage_errors(url):
        if not is_remote(url):
            path = folder_of(url)
            if not path.is_file():
                return None
            with path.open("rb") as file:
                return file.read(-1 if stop is None else stop), file.seek(0, os.SEEK_END)
        parent, name = parent_and_name(url)
        store = object_store(parent)
        if stop is None:
            whole = get(store, name)
            return None if whole is None else (whole, len(whole))
        found = first_bytes(store, name, stop)
        return None if found is None else found[:2]


def read_end(url: str | os.PathLike[str], count: int) -> tuple[bytes, int] | None:
    """Return the last bytes, so many at most, of a file or an object of S3, and its size; None where there is none."""
    found = read_start(url, 0)
    if found is None or not found[1]:
        return found
    size = found[1]
    start = max(size - count, 0)
    with storage_errors(url):
        if not is_remote(url):
            with folder_of(url).open("rb") as file:
                file.seek(start)
                return file.read(size - start), size
        parent, name = parent_and_name(url)
        return bytes(get_ranges(object_store(parent), name, [start], [size - start])[0]), size


def version_of(url: str | os.PathLike[str]) -> str:
    """Return what tells a file, an object, a store or the results of a job from what came later under the same URL.

    That is size and time of a file, size and etag of an object, and what stores and results say of themselves; empty
    where there is nothing.
    """
    if is_fsspec(url):
        there = fsspec_urls.read_first(absolute(url), 0)
        return "" if there is None else f"{there[1]} bytes, {there[2]}"
    with storage_errors(url):
        if not is_remote(url):
            path = folder_of(url)
            if path.is_file():
                status = path.stat()
                return f"{status.st_size} bytes, {status.st_mtime_ns}"
        elif "/" in absolute(url).removeprefix(s3.SCHEME):
            parent, name = parent_and_name(url)
            found = first_bytes(object_store(parent), name, 0)
            if found is not None:
                return f"{found[1]} bytes, {found[2]}"
        documents = [read_bytes(join(url, key)) or b"" for key in ("zarr.json", "result/zarr.json")]
    return hashlib.sha256(b"\0".join(documents)).hexdigest() if any(documents) else ""


def write_bytes(url: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write the one object that a URL names; it is there as a whole or not at all.

    Raises
    ------
    StorageError
        Disk full, no permission, no such bucket, no connection.
    """
    if is_fsspec(url):
        fsspec_urls.write_whole(absolute(url), data)
        return
    parent, name = parent_and_name(url)
    with storage_errors(url):
        put(object_store(parent, create=True), name, data)


def folders(store: Store, prefix: str) -> list[str]:
    """Return the names of the folders right under a prefix, sorted."""
    found = obstore.list_with_delimiter(store, prefix or None)
    return sorted(str(path).rsplit("/", 1)[-1] for path in found["common_prefixes"])


def delete_all(store: Store, prefix: str) -> None:
    """Delete every object under a prefix, but for the lease of the store.

    Documents go first, also those of groups further down: whoever is killed in between leaves nothing that says that it
    is whole, and is not.
    """
    for documents in (True, False):
        for batch in obstore.list(store, prefix or None, chunk_size=1000):
            keys = [str(entry["path"]) for entry in batch if entry["path"] != LEASE_FILE]
            keys = [key for key in keys if key.endswith("zarr.json")] if documents else keys
            if keys:
                obstore.delete(store, keys)


@contextmanager
def storage_errors(url: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the file system or the object store raises into `StorageError` with one line."""
    try:
        yield
    except CloudemError:
        raise
    except (OSError, BaseError) as error:
        place, first_line = os.fspath(url), str(error).partition("\n")[0] or type(error).__name__
        if is_remote(place):
            raise StorageError(f"{place}: {s3.what_is_wrong(error)}") from error
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise StorageError(f"{place}: the disk is full; free some space or choose another place") from error
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission" in str(error):
            raise StorageError(
                f"{place}: no permission to read or write there; allow it, or choose another place"
            ) from error
        raise StorageError(f"{place}: {first_line}") from error


def _count(store: Store, received: int = 0, sent: int = 0) -> None:
    if isinstance(store, S3Store):
        traffic.count(traffic.current_purpose(), received=received, sent=sent)
