"""Where results begin and end: folders and prefixes that appear when whole, and are withdrawn to be made again."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from obstore.exceptions import BaseError

from cloudem.errors import CloudemError, OutputExistsError
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.location import (
    UNFINISHED,
    absolute,
    contents,
    delete_all,
    folder_of,
    is_fsspec,
    is_local,
    is_remote,
    join,
    object_store,
    parent_and_name,
    put,
    storage_errors,
)
from cloudem.io.storage.private import held_folder, partial_name


def require_out(url: str, *, anywhere: bool) -> None:
    """Refuse to write where nothing can be written, or, unless files may lie `anywhere`, where no store can lie.

    Raises
    ------
    ParameterError
        On the web; or where only fsspec reaches.
    """
    if is_fsspec(url) and not anywhere:
        raise fsspec_urls.refuse(url)
    fsspec_urls.require_writable(url)


def check_new(url: str | os.PathLike[str]) -> None:
    """Make sure that nothing is under a URL but what a killed run left on S3 of what is to be written there.

    Raises
    ------
    OutputExistsError
        There is something.
    """
    if is_fsspec(url):
        fsspec_urls.require_writable(os.fspath(url))
    elif not is_remote(url):
        if os.path.lexists(folder_of(url)):
            raise OutputExistsError(f"{folder_of(url)} exists already; remove it or choose another --out")
        return
    found = contents(url)
    if found and UNFINISHED not in found:
        raise OutputExistsError(f"{os.fspath(url)} exists already ({found[0]}, …); remove it or choose another --out")


def withdraw(url: str | os.PathLike[str]) -> None:
    """Delete the file, folder, object or prefix that a URL names, so that it can be written anew; all at once.

    A prefix on S3 only loses what makes it whole, and is marked with `UNFINISHED`: the rest goes when it is written
    again (`new_prefix`).

    Raises
    ------
    StorageError
        It cannot be deleted.
    """
    if is_fsspec(url):
        if fsspec_urls.names_under(absolute(url)):
            fsspec_urls.write_whole(join(absolute(url), UNFINISHED), b"{}")
        else:
            fsspec_urls.delete(absolute(url))
        return
    with storage_errors(url):
        if is_remote(url):
            found = contents(url)
            place, name = (os.fspath(url), "zarr.json") if found else parent_and_name(url)
            store = object_store(place)
            if found:
                put(store, UNFINISHED, b"{}")
            if not found or name in found:
                store.delete(name)
            return
        path = folder_of(url)
        if path.is_dir() and not path.is_symlink():
            going = path.rename(partial_name(path))  # what a kill leaves of it is removed by whoever writes there next
            shutil.rmtree(going)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def new_folder(url: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a folder to write into that takes its name only when everything went well.

    It is ``.<name>.<random>.partial`` beside it until then, and removed when the block raises; what killed runs left
    there is removed first.

    Raises
    ------
    OutputExistsError
        There is something under that name already.
    StorageError
        The disk is full, or nothing may be written there.
    """
    check_new(url)
    final = folder_of(url)
    with storage_errors(url), held_folder(final) as partial:
        try:
            yield partial
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def new_prefix(url: str | os.PathLike[str], guard: Callable[[], None] | None = None) -> Iterator[str]:
    """Give a URL to write under, for what has its last object written last; nothing is left when the block raises.

    A folder is a `new_folder`. Objects on S3 cannot be renamed: there the object `UNFINISHED` is written first and
    deleted last, and what a killed run left beside it is removed before anything is written. The guard is called before
    anything is deleted, and raises if somebody else may be writing there. The same holds for what fsspec reaches.

    Raises
    ------
    OutputExistsError
        There is something already.
    StorageError
        Nothing can be written there.
    """
    if is_local(url):
        with new_folder(url) as folder:
            yield str(folder)
        return
    check_new(url)
    if is_fsspec(url):
        with _new_files(absolute(url)):
            yield absolute(url)
        return
    with storage_errors(url):
        store = object_store(url)
        guard = guard or (lambda: None)
        guard()
        delete_all(store, "")
        put(store, UNFINISHED, b"{}")
        try:
            yield os.fspath(url)
        except BaseException:
            with suppress(BaseError, OSError, CloudemError):
                guard()
                delete_all(store, "")
            raise
        store.delete(UNFINISHED)


@contextmanager
def _new_files(url: str) -> Iterator[None]:
    fsspec_urls.delete_under(url)
    fsspec_urls.write_whole(join(url, UNFINISHED), b"{}")
    try:
        yield
    except BaseException:
        with suppress(CloudemError):
            fsspec_urls.delete_under(url)
        raise
    fsspec_urls.delete(join(url, UNFINISHED))
