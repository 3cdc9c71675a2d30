"""What a URL means: the only place that turns one into a store."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
import zarr.storage
from obstore.exceptions import BaseError
from obstore.store import LocalStore

from cloudem.errors import CloudemError, OutputExistsError, ParameterError, StorageError


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
        return Path(unquote(urlsplit(text).path))
    if scheme:
        raise ParameterError(f"{text}: {scheme}:// locations cannot be read or written yet; give a folder")
    if not text:
        raise ParameterError("an empty path was given where a folder is needed")
    return Path(text)


def object_store(url: str | os.PathLike[str], *, create: bool = False) -> LocalStore:
    """Open the object store under a URL; keys are relative to it.

    Raises
    ------
    StorageError
        The folder is not there (and `create` is false), or cannot be made.
    """
    folder = folder_of(url)
    if not create and not folder.is_dir():
        raise StorageError(f"{folder} is not a folder: nothing can be read from it; check the path")
    with storage_errors(url):
        return LocalStore(prefix=str(folder.absolute()), mkdir=create, automatic_cleanup=True)


def zarr_store(url: str | os.PathLike[str], *, create: bool = False) -> zarr.storage.LocalStore:
    """Open the Zarr store under a URL.

    Zarr's own local store and not its wrapper of obstore: that one answers through callbacks from threads of Rust, and
    one that arrives while the interpreter ends aborts the process (two of eight runs, zarr 3.1.6 and obstore 0.12.1).
    """
    object_store(url, create=create)  # checks the folder
    return zarr.storage.LocalStore(folder_of(url), read_only=False)


def put(store: LocalStore, key: str, data: bytes | memoryview) -> None:
    """Write one object; it is there as a whole or not at all."""
    obstore.put(store, key, data, use_multipart=False)


def get(store: LocalStore, key: str) -> bytes | None:
    """Return one object, or None where there is none."""
    try:
        return bytes(obstore.get(store, key).bytes())
    except FileNotFoundError:
        return None


def folders(store: LocalStore, prefix: str) -> list[str]:
    """Return the names of the folders right under a prefix, sorted."""
    found = obstore.list_with_delimiter(store, prefix or None)
    return sorted(str(path).rsplit("/", 1)[-1] for path in found["common_prefixes"])


def delete_all(store: LocalStore, prefix: str) -> None:
    """Delete every object under a prefix."""
    for batch in obstore.list(store, prefix or None):
        obstore.delete(store, [str(entry["path"]) for entry in batch])


@contextmanager
def storage_errors(url: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the file system or the object store raises into `StorageError` with one line."""
    try:
        yield
    except CloudemError:
        raise
    except (OSError, BaseError) as error:
        place = os.fspath(url)
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise StorageError(f"{place}: the disk is full; free some space or choose another place") from error
        if getattr(error, "errno", None) in (errno.EACCES, errno.EPERM, errno.EROFS) or "Permission" in str(error):
            raise StorageError(f"{place}: no permission to write there; choose another place") from error
        raise StorageError(f"{place}: {str(error).splitlines()[0]}") from error


@contextmanager
def new_folder(url: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write into that takes its name only when everything went well.

    It is ``<url>.partial`` until then, and removed when the block raises; what a killed run left there is removed
    first.

    Raises
    ------
    OutputExistsError
        There is something under that name already.
    StorageError
        The disk is full, or nothing may be written there.
    """
    final = folder_of(url)
    if os.path.lexists(final):
        raise OutputExistsError(f"{final} exists already; remove it or choose another --out")
    partial = final.with_name(final.name + ".partial")
    with storage_errors(url):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
