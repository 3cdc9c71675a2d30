"""Groups of arrays with attributes: how results and tables are kept, safe at any kill.

A group at ``path`` is a Zarr v3 group. Its arrays lie in a generation of their own, ``path/arrays-<number>``, and the
group's ``zarr.json``, which names the generation, is written last, as one object. Writing a group again writes the next
generation beside the old one, replaces ``zarr.json``, and only then deletes the old one: whoever reads sees the old
group or the new one, never a mixture, whenever the writer was killed. One writer per group: where there may be others,
a guard (see `cloudem.io.storage.lease`) stops all but one, and one that it could not stop in time is refused.

That ``zarr.json`` holds the CRC-32C of each chunk (see `cloudem.io.storage.arrays`) and of all that it says itself (see
`cloudem.io.storage.documents`). Both are verified whenever something is read: what is lost or changed is named, never
taken for values.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

from numpy.typing import NDArray

from cloudem.errors import DamagedArrayError, FormatError, LeaseLostError, ParameterError, StorageError
from cloudem.io.storage.arrays import ArrayRecord, Rows, encode_chunk, prepare, with_sums
from cloudem.io.storage.documents import GENERATION, UNFINISHED_DOCUMENT, Marker, finished_document, parse_document
from cloudem.io.storage.location import (
    Store,
    delete_all,
    fetch,
    folder_of,
    folders,
    get,
    get_with_etag,
    is_fsspec,
    is_remote,
    join,
    object_store,
    prompt_store,
    put,
    put_if_absent,
    put_if_match,
    storage_errors,
)

_Item = TypeVar("_Item")
_T = TypeVar("_T")

_CONCURRENT = 16
"""Objects of a group that are read or written at the same time."""


def write_group(
    url: str | os.PathLike[str],
    path: str,
    arrays: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any],
    *,
    guard: Callable[[], None] | None = None,
) -> None:
    """Write a group, or replace it with a new one.

    Parameters
    ----------
    url
        Of the store; a folder is made when it is not there.
    path
        Path of the group in it; ``""`` is the root. Groups below it are left alone.
    arrays
        Name to array: numbers, booleans or text.
    attributes
        Anything that JSON holds; NumPy scalars and arrays become numbers and lists.
    guard
        Called before anything is written or deleted, and again before what was written takes the place of the old;
        raises if somebody else may be writing.

    Raises
    ------
    StorageError
        Disk full, no permission, no such bucket, no connection.
    LeaseLostError
        Somebody else has written the group meanwhile. Only on S3, and only with a guard.
    """
    guarded, guard = guard is not None, guard or (lambda: None)
    with storage_errors(url):
        guard()
        store = object_store(url, create=True)
        before = get_with_etag(store, _join(path, "zarr.json"))
        found = None if before is None else parse_document(join(url, path), before[0])
        current = None if found is None else found[1].generation
        number = 1 + (0 if current is None else int(GENERATION.fullmatch(current)[1]))  # type: ignore[index]
        # Whoever is not to write here may be writing all the same: not into the same arrays.
        generation = f"arrays-{number}-{secrets.token_hex(4)}" if guarded else f"arrays-{number}"
        _delete_generations(store, path, keep=current)
        _write_parents(store, path)
        etag = None
        if guarded and is_remote(url):
            etag = before[1] if before else _replace(url, path, UNFINISHED_DOCUMENT, None)
        put(store, _join(path, generation, "zarr.json"), UNFINISHED_DOCUMENT)
        stored = {name: prepare(_key(name), values) for name, values in arrays.items()}
        folder = _join(path, generation)
        _each(
            lambda name: put(store, _join(folder, stored[name][1].key, "zarr.json"), stored[name][1].metadata()), stored
        )
        chunks = [(name, number) for name, (_, record) in stored.items() for number in range(record.chunks)]
        sums = _each(lambda chunk: _write_chunk(store, folder, *stored[chunk[0]], chunk[1]), chunks)
        records = {
            name: with_sums(record, {number: sums[name, number] for number in range(record.chunks)})
            for name, (_, record) in stored.items()
        }
        document = finished_document(attributes, Marker(generation, records))
        try:
            guard()
            if etag is not None:
                _replace(url, path, document, etag)
            else:
                put(store, _join(path, "zarr.json"), document)
        except LeaseLostError:  # nothing refers to what was written, and nobody else writes under that name
            delete_all(store, _join(path, generation))
            raise
        if current is not None:
            delete_all(store, _join(path, current))


def write_same_group(
    url: str | os.PathLike[str], path: str, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]
) -> None:
    """Write a group that two writers may write at once as long as both write the same, as tasks that run twice do.

    Its arrays lie under a name that follows from what they hold, so that neither deletes what the other needs.

    Parameters
    ----------
    url, path, arrays, attributes
        As of `write_group`.

    Raises
    ------
    StorageError
        Disk full, no permission, no such bucket, no connection.
    """
    with storage_errors(url):
        store = object_store(url, create=True)
        stored = {name: prepare(_key(name), values) for name, values in arrays.items()}
        chunks = [(name, number) for name, (_, record) in stored.items() for number in range(record.chunks)]
        coded = dict(zip(chunks, (encode_chunk(*stored[name], number) for name, number in chunks), strict=True))
        records = {
            name: with_sums(record, {number: coded[name, number][1] for number in range(record.chunks)})
            for name, (_, record) in stored.items()
        }
        said = finished_document(attributes, Marker("arrays-1", records))
        generation = f"arrays-1-{hashlib.sha256(said).hexdigest()[:16]}"
        folder = _join(path, generation)
        _write_parents(store, path)
        for record in records.values():
            put(store, _join(folder, record.key, "zarr.json"), record.metadata())
        _each(lambda chunk: put(store, _join(folder, records[chunk[0]].chunk_key(chunk[1])), coded[chunk][0]), chunks)
        put(store, _join(path, "zarr.json"), finished_document(attributes, Marker(generation, records)))
        _delete_generations(store, path, keep=generation)


def read_group(url: str | os.PathLike[str], path: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and attributes of a group.

    Raises
    ------
    StorageError
        There is no such group, it was never finished, or part of it is lost or changed.
    FormatError
        Its document is damaged, or of another version.
    """
    return _read(url, path, None, slice(None))


def read_rows(
    url: str | os.PathLike[str], path: str, names: Iterable[str], start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Return rows ``start`` to ``stop`` (exclusive) of some arrays of a group; little more than those is read.

    Raises
    ------
    StorageError
        There is no such group, it was never finished, has no such array, or a part that is read is lost or changed.
    FormatError
        Its document is damaged, or of another version.
    """
    return _read(url, path, list(names), slice(start, stop))[0]


def shapes_in(url: str | os.PathLike[str], path: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each array of a group, text as it is stored; raises as `arrays_in`."""
    return {name: record.shape for name, record in arrays_in(url, path).items()}


def arrays_in(url: str | os.PathLike[str], path: str) -> Mapping[str, ArrayRecord]:
    """Return how each array of a group lies there, by name; no array is read.

    Raises
    ------
    StorageError
        There is no such group, or it was never finished.
    FormatError
        Its document is damaged, or of another version.
    """
    with storage_errors(url):
        _, marker = _finished(object_store(url), url, path)
    return marker.arrays


def read_attributes(url: str | os.PathLike[str], path: str) -> dict[str, Any] | None:
    """Return the attributes of a group alone, or None where there is no finished group.

    Raises
    ------
    FormatError
        Its document is damaged, or of another version.
    """
    found = _finished_if_any(url, path)
    return None if found is None else found[0]


def has_group(url: str | os.PathLike[str], path: str) -> bool:
    """Say whether a finished group is there."""
    return read_attributes(url, path) is not None


def holds_arrays(url: str | os.PathLike[str], path: str, *names: str) -> bool:
    """Say whether a finished group is there that holds arrays of all these names; raises as `read_attributes`."""
    found = _finished_if_any(url, path)
    return found is not None and set(names) <= found[1].arrays.keys()


def list_groups(url: str | os.PathLike[str], path: str) -> list[str]:
    """Return the names of the finished groups right under `path`, sorted."""
    store = _store_if_any(url)
    if store is None:
        return []
    with storage_errors(url):
        found = _each(lambda name: _read_document(store, url, _join(path, name)), folders(store, path))
    return [name for name, document in found.items() if document is not None]


def delete_group(url: str | os.PathLike[str], path: str) -> None:
    """Delete a group and everything under it; nothing happens where there is none."""
    if not path:
        raise ParameterError("the root of a store is not deleted as a group; remove the folder")
    store = _store_if_any(url)
    if store is None:
        return
    with storage_errors(url):
        if get(store, _join(path, "zarr.json")) is not None:
            store.delete(_join(path, "zarr.json"))
        delete_all(store, path)


def delete_result(url: str | os.PathLike[str], files: Iterable[str], guard: Callable[[], None]) -> None:
    """Delete the groups and some files of a result, what says that it is finished first and its record last.

    What says of itself what it is, as other results and particle stores do, stays, and so do all other files.
    """
    store = _store_if_any(url)
    if store is None:
        return
    with storage_errors(url):
        for name in sorted(folders(store, ""), key=lambda name: name != "result"):
            if _is_part(store, url, name):
                guard()
                delete_group(url, name)
        guard()
        for name in files:
            if get(store, name) is not None:
                store.delete(name)
        found = _read_document(store, url, "")
        if found is not None:
            store.delete("zarr.json")
            delete_all(store, found[1].generation)


def _is_part(store: Store, url: str | os.PathLike[str], name: str) -> bool:
    """Return whether a folder is a group of a result, or holds such groups and nothing else that says what it is."""
    try:
        found = _read_document(store, url, name)
        inside = folders(store, name) if found is None else []
        parts = [found, *(_read_document(store, url, _join(name, each)) for each in inside)][found is None :]
    except FormatError:  # somebody else's
        return False
    return bool(parts) and all(part is not None and not part[0].keys() & {"kind", "job"} for part in parts)


def _read(
    url: str | os.PathLike[str], path: str, names: list[str] | None, rows: slice
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return rows of arrays of a finished group, all arrays if none are named, and its attributes."""
    with storage_errors(url):
        store = object_store(url)
        attributes, marker = _finished(store, url, path)
        while True:
            try:
                return _read_arrays(
                    store, url, path, marker, list(marker.arrays) if names is None else names, rows
                ), attributes
            except DamagedArrayError:  # perhaps because another was written meanwhile, and these deleted
                before = marker.generation
                attributes, marker = _finished(store, url, path)
                if marker.generation == before:
                    raise


def _read_arrays(
    store: Store, url: str | os.PathLike[str], path: str, marker: Marker, names: list[str], rows: slice
) -> dict[str, NDArray[Any]]:
    absent = [name for name in names if name not in marker.arrays]
    if absent:
        raise StorageError(f"{join(url, path)} holds no {absent[0]}; it holds {', '.join(marker.arrays)}")
    records = {name: marker.arrays[name] for name in names}

    def checked(name: str, what: str, run: Callable[[], _T]) -> _T:
        try:
            return run()
        except DamagedArrayError:
            raise
        except StorageError as error:
            raise DamagedArrayError(
                f"{join(url, path)} is damaged: {what} of its array {name} {error}; copy it again, or make it again"
            ) from error

    def take(chunk: tuple[str, int]) -> None:
        name, number = chunk
        key = _join(path, marker.generation, records[name].chunk_key(number))
        found = fetch(store, key)
        checked(name, key, lambda: parts[name].put(number, found and found[0]))

    parts = {name: checked(name, "the record", lambda name=name: Rows(records[name], rows)) for name in records}  # type: ignore[misc]
    _each(take, [(name, number) for name in records for number in parts[name].wanted])
    return {name: checked(name, "a value", part.values) for name, part in parts.items()}


def _finished(store: Store, url: str | os.PathLike[str], path: str) -> tuple[dict[str, Any], Marker]:
    """Return the attributes of a finished group and its marker."""
    found = _read_document(store, url, path)
    if found is None:
        raise StorageError(f"{join(url, path)} holds no finished result; run the job that makes it, or check the path")
    return found


def _finished_if_any(url: str | os.PathLike[str], path: str) -> tuple[dict[str, Any], Marker] | None:
    """Return the same, or None where there is no such group, or nothing at all."""
    store = _store_if_any(url)
    if store is None:
        return None
    with storage_errors(url):
        return _read_document(store, url, path)


def _store_if_any(url: str | os.PathLike[str]) -> Store | None:
    """Return the store, or None where it is a folder that is not there, or where no store can be."""
    if is_fsspec(url):
        return None
    return object_store(url) if is_remote(url) or folder_of(url).is_dir() else None


def _each(function: Callable[[_Item], _T], items: Iterable[_Item]) -> dict[_Item, _T]:
    """Return the values of a function at several items, which wait for the store at the same time."""
    items = list(items)
    if len(items) < 2:
        return {item: function(item) for item in items}
    contexts = [copy_context() for _ in items]  # threads count traffic for the purpose of their caller
    with ThreadPoolExecutor(min(_CONCURRENT, len(items)), "cloudem-groups") as pool:
        return dict(
            zip(items, pool.map(lambda context, item: context.run(function, item), contexts, items), strict=True)
        )


def _write_chunk(store: Store, folder: str, array: NDArray[Any], record: ArrayRecord, number: int) -> int:
    raw, checksum = encode_chunk(array, record, number)
    put(store, _join(folder, record.chunk_key(number)), raw)
    return checksum


def _replace(url: str | os.PathLike[str], path: str, document: bytes, etag: str | None) -> str:
    """Write a group's document soon or not at all, and only if it is still the one that was there before."""
    store, key = prompt_store(url), _join(path, "zarr.json")
    written = put_if_absent(store, key, document) if etag is None else put_if_match(store, key, document, etag)
    if written is not None:
        return written
    found = get_with_etag(store, key)
    if found is None or found[0] != document:  # it is ours if only the answer got lost
        raise LeaseLostError(
            f"stopped, and nothing more was written: {join(url, path)} was changed by another client meanwhile; run "
            "the same command again when nobody else writes there"
        )
    return found[1]


def _read_document(store: Store, url: str | os.PathLike[str], path: str) -> tuple[dict[str, Any], Marker] | None:
    """Return the attributes and the marker of a group; None where there is none, or it was never finished."""
    raw = get(store, _join(path, "zarr.json"))
    return None if raw is None else parse_document(join(url, path), raw)


def _write_parents(store: Store, path: str) -> None:
    """Make the groups above `path`, so that any Zarr reader can walk down to it."""
    parts = path.split("/") if path else []
    for depth in range(len(parts)):
        key = _join(*parts[:depth], "zarr.json")
        if get(store, key) is None:
            put(store, key, UNFINISHED_DOCUMENT)


def _delete_generations(store: Store, path: str, keep: str | None) -> None:
    for name in folders(store, path):
        if GENERATION.fullmatch(name) and name != keep:
            delete_all(store, _join(path, name))


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _key(name: str) -> str:
    """Return a name that is safe as part of a key, whatever the source called the column."""
    safe = "".join(c if re.fullmatch(r"[A-Za-z0-9_:-]", c) else "".join(f"={b:02X}" for b in c.encode()) for c in name)
    return safe or "="
