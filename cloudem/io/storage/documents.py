"""The document of a group, its ``zarr.json``: what it says, and how damage to it is noticed.

That of a finished group names its arrays, where they lie, and the checksum of each chunk
(`cloudem.io.storage.arrays.ArrayRecord`); and it holds the CRC-32C of all that it says.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import google_crc32c
import numpy as np

from cloudem.errors import FormatError
from cloudem.io.storage.arrays import ArrayRecord

MARKER = "cloudem_group"
"""Attribute of finished groups that says where their arrays lie."""

GENERATION = re.compile(r"arrays-(\d+)(?:-[0-9a-f]+)?")
"""Names of the folders that hold the arrays of a group as it was written once."""


def _document(attributes: Mapping[str, Any]) -> bytes:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=2).encode()


UNFINISHED_DOCUMENT = _document({})
"""Of a group that is not finished, or that only holds others."""


class Marker(NamedTuple):
    """Which arrays a finished group has, and where."""

    generation: str
    arrays: dict[str, ArrayRecord]


def parse_document(place: str, raw: bytes) -> tuple[dict[str, Any], Marker] | None:
    """Return what a group's document says, once it was verified; None if the group was never finished.

    Raises
    ------
    FormatError
        It is not what was written.
    """
    where = f"{place}/zarr.json"
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{where} is not Zarr v3 metadata, or damaged; check the path, copy it again, or make it again"
        ) from error
    if document == json.loads(UNFINISHED_DOCUMENT):
        return None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    marker = attributes.pop(MARKER, None) if isinstance(attributes, dict) else None
    if not isinstance(attributes, dict) or not isinstance(marker, dict):
        raise FormatError(f"{where} was not written by cloudem, or is damaged; check the path, or make it again")
    if "checksum" not in marker:
        raise FormatError(
            f"{where} holds no checksums: an older version of cloudem wrote it, or it is damaged; import again, or run "
            "the job again"
        )
    checksum = marker.pop("checksum")
    if checksum != checksum_of({**document, "attributes": {**attributes, MARKER: marker}}):
        raise FormatError(f"{where} is damaged: it does not match its own checksum; copy it again, or make it again")
    try:
        arrays = {}
        for name, value in marker["arrays"].items():
            try:
                arrays[name] = ArrayRecord.from_json(value)
            except FormatError as error:
                raise FormatError(f"{where} is damaged: the array {name[:80]!r} {error}; make it again") from error
        if not GENERATION.fullmatch(marker["generation"]):
            raise KeyError("generation")
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{where} is damaged: it does not say where its arrays lie; make it again") from error
    return attributes, Marker(marker["generation"], arrays)


def finished_document(attributes: Mapping[str, Any], marker: Marker) -> bytes:
    """Return the document of a finished group, with a checksum of all that it says.

    In attributes, NumPy scalars and arrays become numbers and lists.
    """
    arrays = {name: record.to_json() for name, record in marker.arrays.items()}
    marked = {**_plain(attributes), MARKER: {"generation": marker.generation, "arrays": arrays}}
    document = json.loads(_document(marked))
    document["attributes"][MARKER]["checksum"] = checksum_of(document)
    return json.dumps(document, indent=2).encode()


def checksum_of(document: Any) -> str:
    """Return the CRC-32C of what a document says, however it is set."""
    return f"{google_crc32c.value(json.dumps(document, sort_keys=True, separators=(',', ':')).encode()):08x}"


def _plain(value: Any) -> Any:
    """Return `value` with NumPy's types replaced by those that JSON has."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    return value.item() if isinstance(value, np.generic) else value
