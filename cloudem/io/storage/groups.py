"""Groups of arrays with attributes: how results and tables are kept, safe at any kill.

A group at ``path`` is a Zarr v3 group. Its arrays lie in a generation of their own, ``path/arrays-<number>``, and the
group's ``zarr.json``, which names the generation, is written last, as one object. Writing a group again writes the next
generation beside the old one, replaces ``zarr.json``, and only then deletes the old one: whoever reads sees the old
group or the new one, never a mixture, whenever the writer was killed. One writer per group: where there may be others,
a guard (see `cloudem.io.storage.lease`) stops all but one, and one that it could not stop in time is refused.
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from types import EllipsisType
from typing import Any, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from cloudem.errors import FormatError, LeaseLostError, ParameterError, StorageError
from cloudem.io.storage.location import (
    Store,
    delete_all,
    folder_of,
    folders,
    get,
    get_with_etag,
    is_remote,
    join,
    object_store,
    prompt_store,
    put,
    put_if_absent,
    put_if_match,
    storage_errors,
)
from cloudem.io.storage.zarr_store import zarr_store
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import COLUMNS, TEXT, Particles

_MARKER = "cloudem_group"
_GENERATION = re.compile(r"arrays-(\d+)(?:-[0-9a-f]+)?")
_T = TypeVar("_T")

_CHUNK_BYTES = 256 * 2**20
"""Bytes in an object of an array at most."""

_TABLE_CHUNK_BYTES, _TABLE_ROW_BYTES = 2**20, 1024
"""The same for tables, whose rows are read in ranges; what has more bytes in a row is no table."""

_CONCURRENT = 8
"""Arrays of a group that are read or written at the same time."""


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
        current = None if before is None else _parse(path, before[0])["attributes"].get(_MARKER)
        number = 1 + (0 if current is None else int(_GENERATION.fullmatch(current["generation"])[1]))  # type: ignore[index]
        # Whoever is not to write here may be writing all the same: not into the same arrays.
        generation = f"arrays-{number}-{secrets.token_hex(4)}" if guarded else f"arrays-{number}"
        _delete_generations(store, path, keep=None if current is None else current["generation"])
        _write_parents(store, path)
        etag = None
        if guarded and is_remote(url):
            etag = before[1] if before else _replace(url, path, _group_document({}), None)
        put(store, _join(path, generation, "zarr.json"), _group_document({}))
        keys = {name: _key(name) for name in arrays}
        target = zarr_store(url, fresh=True)
        _each(lambda name: _write_array(target, _join(path, generation, keys[name]), arrays[name]), arrays)
        marker = {"generation": generation, "arrays": keys}
        document = _group_document({**_plain(attributes), _MARKER: marker})
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
            delete_all(store, _join(path, current["generation"]))


def read_group(url: str | os.PathLike[str], path: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return the arrays and attributes of a group.

    Raises
    ------
    StorageError
        There is no such group, or it was never finished.
    """
    with storage_errors(url):
        attributes, marker = _finished(url, path)
        source, folder = zarr_store(url), _join(path, marker["generation"])
        arrays = _each(lambda name: _read_array(source, _join(folder, marker["arrays"][name])), marker["arrays"])
    return arrays, attributes


def read_rows(
    url: str | os.PathLike[str], path: str, names: Iterable[str], start: int, stop: int
) -> dict[str, NDArray[Any]]:
    """Return rows ``start`` to ``stop`` (exclusive) of some arrays of a group; little more than those is read.

    Raises
    ------
    StorageError
        There is no such group, or it was never finished, or has no such array.
    """
    with storage_errors(url):
        _, marker = _finished(url, path)
        names = list(names)
        absent = [name for name in names if name not in marker["arrays"]]
        if absent:
            raise StorageError(f"{join(url, path)} holds no {absent[0]}; it holds {', '.join(marker['arrays'])}")
        source, folder = zarr_store(url), _join(path, marker["generation"])
        rows = slice(start, stop)
        return _each(lambda name: _read_array(source, _join(folder, marker["arrays"][name]), rows), names)


def read_attributes(url: str | os.PathLike[str], path: str) -> dict[str, Any] | None:
    """Return the attributes of a group alone, or None where there is no finished group."""
    store = _store_if_any(url)
    if store is None:
        return None
    with storage_errors(url):
        document = _read_document(store, path)
    if document is None or _MARKER not in document["attributes"]:
        return None
    return {name: value for name, value in document["attributes"].items() if name != _MARKER}


def has_group(url: str | os.PathLike[str], path: str) -> bool:
    """Say whether a finished group is there."""
    return read_attributes(url, path) is not None


def list_groups(url: str | os.PathLike[str], path: str) -> list[str]:
    """Return the names of the finished groups right under `path`, sorted."""
    store = _store_if_any(url)
    if store is None:
        return []
    with storage_errors(url):
        found = _each(lambda name: _read_marker(store, _join(path, name)), folders(store, path))
    return [name for name, marker in found.items() if marker is not None]


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


def particles_to_arrays(particles: Particles) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Return a particle table as arrays and attributes for `write_group`."""
    optics = [
        {
            "name": group.name,
            "voltage_kV": group.voltage,
            "spherical_aberration_A": group.spherical_aberration,
            "amplitude_contrast": group.amplitude_contrast,
            "extra": dict(group.extra),
        }
        for group in particles.optics
    ]
    meanings = {
        name: {"unit": COLUMNS[name].unit, "meaning": COLUMNS[name].meaning}
        if name in COLUMNS
        else {"unit": "", "meaning": "carried as text from the source, not used"}
        for name in particles.columns
    }
    return dict(particles.columns), {"optics": optics, "columns": meanings}


def particles_from_arrays(arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> Particles:
    """Return the particle table that `particles_to_arrays` took apart; other attributes do not matter."""
    try:
        optics = tuple(
            OpticsGroup(
                group["name"],
                float(group["voltage_kV"]),
                float(group["spherical_aberration_A"]),
                float(group["amplitude_contrast"]),
                dict(group["extra"]),
            )
            for group in attributes["optics"]
        )
    except (KeyError, TypeError) as error:
        raise FormatError(f"the stored particle table has no usable optics groups ({error}); import again") from error
    return Particles(optics, {name: arrays[name] for name in attributes["columns"]})


def _finished(url: str | os.PathLike[str], path: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the attributes of a finished group and its marker: the generation, and the key of each array."""
    document = _read_document(object_store(url), path)
    attributes = {} if document is None else document["attributes"]
    if _MARKER not in attributes:
        raise StorageError(f"{join(url, path)} holds no finished result; run the job that makes it, or check the path")
    return {name: value for name, value in attributes.items() if name != _MARKER}, attributes[_MARKER]


def _store_if_any(url: str | os.PathLike[str]) -> Store | None:
    """Return the store, or None where it is a folder that is not there."""
    return object_store(url) if is_remote(url) or folder_of(url).is_dir() else None


def _each(function: Callable[[str], _T], names: Iterable[str]) -> dict[str, _T]:
    """Return the values of a function at several names, which wait for the store at the same time."""
    names = list(names)
    if len(names) < 2:
        return {name: function(name) for name in names}
    contexts = [copy_context() for _ in names]  # threads count traffic for the purpose of their caller
    with ThreadPoolExecutor(min(_CONCURRENT, len(names)), "cloudem-groups") as pool:
        return dict(
            zip(names, pool.map(lambda context, name: context.run(function, name), contexts, names), strict=True)
        )


def _write_array(store: Any, key: str, values: NDArray[Any]) -> None:
    array = np.asarray(values)
    attributes: dict[str, Any] = {}
    if array.dtype.kind in "UTO":
        array, attributes = _encode_text(array), {"encoding": "utf-8, padded with zeros"}
    row_bytes = max(1, array.itemsize * int(np.prod(array.shape[1:])))
    rows = max(1, (_TABLE_CHUNK_BYTES if row_bytes <= _TABLE_ROW_BYTES else _CHUNK_BYTES) // row_bytes)
    chunks = tuple(max(1, min(size, rows) if axis == 0 else size) for axis, size in enumerate(array.shape))
    # Floating point noise does not shrink; everything else does.
    compressors = None if array.dtype.kind in "fc" else "auto"
    target = zarr.create_array(
        store, name=key, shape=array.shape, dtype=array.dtype, chunks=chunks, compressors=compressors,
        filters=None, attributes=attributes, zarr_format=3,
    )  # fmt: skip
    if array.size:
        target[...] = array


def _read_array(store: Any, key: str, rows: slice | EllipsisType = ...) -> NDArray[Any]:
    source = zarr.open_array(store, path=key, mode="r", zarr_format=3)
    array = np.asarray(source[rows])
    return _decode_text(array) if "encoding" in source.attrs else array


def _encode_text(array: NDArray[Any]) -> NDArray[np.uint8]:
    flat = np.array([str(value).encode() for value in array.ravel()], dtype=np.bytes_)
    width = max(1, flat.itemsize)
    return flat.astype(f"S{width}").view(np.uint8).reshape(*array.shape, width)


def _decode_text(array: NDArray[np.uint8]) -> NDArray[Any]:
    flat = np.ascontiguousarray(array).reshape(-1).view(f"S{array.shape[-1]}")
    return flat.astype(TEXT).reshape(array.shape[:-1])


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


def _read_document(store: Store, path: str) -> dict[str, Any] | None:
    raw = get(store, _join(path, "zarr.json"))
    return None if raw is None else _parse(path, raw)


def _parse(path: str, raw: bytes) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(raw)
        return {**document, "attributes": dict(document.get("attributes", {}))}
    except (ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{_join(path, 'zarr.json')} is not Zarr v3 metadata; check the path") from error


def _read_marker(store: Store, path: str) -> dict[str, Any] | None:
    document = _read_document(store, path)
    return None if document is None else document["attributes"].get(_MARKER)


def _write_parents(store: Store, path: str) -> None:
    """Make the groups above `path`, so that any Zarr reader can walk down to it."""
    parts = path.split("/") if path else []
    for depth in range(len(parts)):
        key = _join(*parts[:depth], "zarr.json")
        if get(store, key) is None:
            put(store, key, _group_document({}))


def _delete_generations(store: Store, path: str, keep: str | None) -> None:
    for name in folders(store, path):
        if _GENERATION.fullmatch(name) and name != keep:
            delete_all(store, _join(path, name))


def _group_document(attributes: Mapping[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=2).encode()


def _plain(value: Any) -> Any:
    """Return `value` with NumPy's types replaced by those that JSON has."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _key(name: str) -> str:
    """Return a name that is safe as part of a key, whatever the source called the column."""
    safe = "".join(c if re.fullmatch(r"[A-Za-z0-9_:-]", c) else "".join(f"={b:02X}" for b in c.encode()) for c in name)
    return safe or "="
