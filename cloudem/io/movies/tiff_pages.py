"""The chain of directories in a TIFF file (also BigTIFF, either byte order), held against the size of the file.

Pixels are decoded by tifffile; this says how many frames a file really holds, and where a damaged one ends.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from cloudem.errors import FormatError
from cloudem.io.movies.ranges import RangeFile

WIDTH, LENGTH, BITS, COMPRESSION, STRIPS, SAMPLES, STRIP_BYTES = 256, 257, 258, 259, 273, 277, 279
TILES, TILE_BYTES = 324, 325
EER_METADATA, EER_RUN_BITS, EER_X_BITS, EER_Y_BITS = 65001, 65007, 65008, 65009

_WANTED = {WIDTH, LENGTH, BITS, COMPRESSION, STRIPS, SAMPLES, STRIP_BYTES, TILES, TILE_BYTES, *range(65001, 65010)}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 7: 1, 16: 8}
_FORMS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MOST_PAGES = 200_000
_MOST_VALUES = 2**20

_AHEAD = 16
"""Directories that are fetched at once where each would be a request: frames of a movie have nearly the same size, so
that the last ones tell about where the next ones are."""

Value: TypeAlias = "tuple[int, ...] | bytes"


class TiffDirectory(NamedTuple):
    """A directory: the values of the tags that say where the pixels are, and how they are stored."""

    tags: dict[int, Value]

    def number(self, tag: int, default: int = 0) -> int:
        """Return a tag of one number."""
        found = self.tags.get(tag)
        return found[0] if isinstance(found, tuple) and found else default

    @property
    def extents(self) -> list[tuple[int, int]]:
        """Where its pixels begin and end in the file."""
        starts, lengths = self.tags.get(STRIPS), self.tags.get(STRIP_BYTES)
        if starts is None:
            starts, lengths = self.tags.get(TILES), self.tags.get(TILE_BYTES)
        if not isinstance(starts, tuple) or not isinstance(lengths, tuple) or len(starts) != len(lengths):
            return []
        return [(start, start + length) for start, length in zip(starts, lengths, strict=True)]


class TiffChain(NamedTuple):
    """What a TIFF file holds.

    Attributes
    ----------
    whole
        Its directories up to the first that is not whole.
    problem
        What is wrong with the next one; empty where the chain ends as it should.
    """

    whole: list[TiffDirectory]
    problem: str


def is_tiff(start: bytes) -> bool:
    """Return whether a file that begins so is TIFF or BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_pages(file: RangeFile) -> TiffChain:
    """Read the directories of a TIFF file.

    Raises
    ------
    FormatError
        It is none.
    """
    head = file.read_at(0, 16)
    if not is_tiff(head):
        raise FormatError(f"{file.ranges.url} is not a TIFF file; check the path")
    order, big = ("<" if head[:2] == b"II" else ">"), b"+" in head[2:4]
    (at,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", head.ljust(16, b"\0"), 8 if big else 4)
    pages: list[TiffDirectory] = []
    seen: dict[int, None] = {}
    while at:
        if len(seen) >= _AHEAD and len(seen) % _AHEAD == 0:
            _look_ahead(file, at, list(seen)[-_AHEAD:])
        if at in seen or len(pages) >= _MOST_PAGES:
            return TiffChain(pages, f"its directories run in a circle after frame {len(pages)}")
        seen[at] = None
        page, following = _page(file, at, order, big)
        if page is None:
            return TiffChain(pages, f"directory {len(pages) + 1} lies beyond the end of the file")
        if any(stop > file.ranges.size for _, stop in page.extents):
            return TiffChain(pages, f"the data of frame {len(pages) + 1} end beyond the end of the file")
        pages.append(page)
        at = following
    return TiffChain(pages, "" if pages else "it has no directory")


def _look_ahead(file: RangeFile, at: int, before: list[int]) -> None:
    """Fetch what lies where the next directories should be, by the distance between those before."""
    step = (at - before[0]) / len(before)
    if step > 0:
        file.expect([round(at + step * number) for number in range(1, _AHEAD + 1)], reach=2**13)


def _page(file: RangeFile, at: int, order: str, big: bool) -> tuple[TiffDirectory | None, int]:
    """Return a directory and where the next one is; None where the file ends before."""
    count_form, entry, value_bytes = ("Q", 20, 8) if big else ("H", 12, 4)
    first = at + struct.calcsize(f"<{count_form}")
    raw = file.read_at(at, first)
    if len(raw) < first - at:
        return None, 0
    (count,) = struct.unpack(order + count_form, raw)
    stop = first + entry * count + value_bytes
    if stop > file.ranges.size:
        return None, 0
    raw = file.read_at(first, stop)
    tags: dict[int, Value] = {}
    for number in range(count):
        tag, kind = struct.unpack_from(f"{order}HH", raw, entry * number)
        (length,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", raw, entry * number + 4)
        if tag not in _WANTED or kind not in _SIZES or (kind in _FORMS and length > _MOST_VALUES):
            continue
        value = _value(file, raw[entry * (number + 1) - value_bytes : entry * (number + 1)], kind, length, order, big)
        if value is None:
            return None, 0
        tags[tag] = value
    (following,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", raw, entry * count)
    return TiffDirectory(tags), following


def _value(file: RangeFile, field: bytes, kind: int, length: int, order: str, big: bool) -> Value | None:
    """Return the values of a tag, which stand in its field or elsewhere; None where the file ends before."""
    needed = _SIZES[kind] * length
    if needed > len(field):
        (at,) = struct.unpack(f"{order}Q" if big else f"{order}I", field)
        if at + needed > file.ranges.size:
            return None
        field = file.read_at(at, at + needed)
    data = field[:needed]
    return data if kind in (2, 7) else struct.unpack(f"{order}{length}{_FORMS[kind]}", data)
