"""Particles as another program left them: a table, and the stacks that it refers to."""

import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError
from cloudem.io.location import storage_errors
from cloudem.io.mrc import MrcHeader, read_header
from cloudem.model.particles import Particles

_FILES_KEPT = 128


@dataclass(frozen=True)
class SourceTable:
    """Particles that refer to images in stacks.

    Parameters
    ----------
    path
        File that the table came from.
    particles
        The table in cloudem's columns and units.
    stacks
        Names of the stacks as the file has them.
    stack
        Which of them each image is in, shape ``(n,)``.
    section
        Which section of it, from 0, shape ``(n,)``.
    pixel_size
        Å per pixel; 0 where the file does not say.
    box
        Side of the images in pixels; 0 where the file does not say.
    sign
        Factor, 1 or -1, that makes protein bright, shape ``(n,)``.
    """

    path: Path
    particles: Particles
    stacks: tuple[str, ...]
    stack: NDArray[np.int32]
    section: NDArray[np.int64]
    pixel_size: float
    box: int
    sign: NDArray[np.float64]


class SourceImages:
    """The images of a table, read from the files; every header is checked before the first image is read.

    Parameters
    ----------
    source
        The table.
    project_folder
        Folder that relative names start from; without one it is looked for, see `find_stacks`.

    Raises
    ------
    MissingInputError
        Stacks that are not found.
    FormatError
        A stack that is truncated, or not MRC.
    InconsistentDataError
        Images that are not square, boxes that differ, image numbers beyond a stack's end.

    Attributes
    ----------
    box
        Side of the images in pixels.
    pixel_size
        Å per pixel as the first stack's header has it; 0 where it does not say.
    """

    def __init__(self, source: SourceTable, project_folder: str | os.PathLike[str] | None = None) -> None:
        self._source = source
        self._paths = find_stacks(source.stacks, source.path, project_folder)
        headers = [read_header(path) for path in self._paths]
        self.box = _common_box(self._paths, headers, source)
        self.pixel_size = headers[0].pixel_size if headers else 0.0
        _check_sections(self._paths, headers, source)
        self._headers = headers
        self._files: OrderedDict[int, int] = OrderedDict()
        self._raw = np.empty(0, dtype=np.uint8)
        weakref.finalize(self, _close, self._files)

    def read(self, start: int, stop: int, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return images `start` to `stop` of the table as they are in the stacks, ``(b, box, box)`` float32.

        They are read into the first rows of `out`, if it is given: memory that is new to the process costs more than
        to fill it.

        Raises
        ------
        FormatError
            A stack has become shorter meanwhile.
        StorageError
            A stack that was there cannot be read any more.
        """
        if out is None:
            out = np.empty((stop - start, self.box, self.box), dtype=np.float32)
        images = out[: stop - start]
        stacks, sections = self._source.stack[start:stop], self._source.section[start:stop]
        for first, last in _runs(stacks, sections):
            self._read_run(int(stacks[first]), int(sections[first]), images[first:last])
        return images

    def _read_run(self, stack: int, section: int, out: NDArray[np.float32]) -> None:
        """Read images that lie one after the other in a stack."""
        header = self._headers[stack]
        start = header.offset + section * self.box**2 * header.dtype.itemsize
        if header.dtype == out.dtype:
            self._read_bytes(stack, start, out.reshape(-1).view(np.uint8))
            return
        size = out.size * header.dtype.itemsize
        if len(self._raw) < size:
            self._raw = np.empty(size, dtype=np.uint8)
        self._read_bytes(stack, start, self._raw[:size])
        with np.errstate(all="ignore"):
            out[...] = self._raw[:size].view(header.dtype).reshape(out.shape)

    def _read_bytes(self, stack: int, start: int, out: NDArray[np.uint8]) -> None:
        path, left = self._paths[stack], out.data
        with storage_errors(path):
            file = self._open(stack)
            while left:
                got = os.preadv(file, [left], start)
                if not got:
                    raise FormatError(f"{path} has become shorter while it was read; copy or make it again")
                left, start = left[got:], start + got

    def _open(self, stack: int) -> int:
        if stack not in self._files:
            self._files[stack] = os.open(self._paths[stack], os.O_RDONLY)
            while len(self._files) > _FILES_KEPT:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(stack)
        return self._files[stack]


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)


def find_stacks(
    names: Sequence[str], table: Path, project_folder: str | os.PathLike[str] | None = None
) -> tuple[Path, ...]:
    """Return where the stacks are.

    Relative names start, in this order, from the project folder if one is given; else from the working directory, as in
    RELION; else from the folder of the table or one above it.

    Raises
    ------
    MissingInputError
        Some are nowhere.
    """
    if project_folder is not None:
        bases = [Path(project_folder)]
    else:
        here = table.absolute().parent
        bases = [Path.cwd(), here, *here.parents]
    found: list[Path] = []
    missing: list[str] = []
    for name in names:
        place = next((base / name for base in bases if (base / name).is_file()), None)
        if place is None:
            missing.append(name)
        else:
            bases.sort(key=lambda base, place=place, name=name: base / name != place)  # type: ignore[misc]
            found.append(place)
    if missing:
        more = f" and {len(missing) - 1} other stacks" if len(missing) > 1 else ""
        where = f"under {bases[0]}" if project_folder is not None else "here or beside the table"
        raise MissingInputError(
            f"{table} refers to {missing[0]}{more}, not found {where}; give the folder that the names start from "
            "with --project-folder"
        )
    return tuple(found)


def split_image_names(names: Sequence[str], path: Path) -> tuple[tuple[str, ...], NDArray[np.int32], NDArray[np.int64]]:
    """Take ``N@stack`` apart.

    Returns
    -------
    stacks, stack, section
        As in `SourceTable`.

    Raises
    ------
    FormatError
        A name without a usable number.
    """
    known: dict[str, int] = {}
    stack = np.empty(len(names), dtype=np.int32)
    section = np.empty(len(names), dtype=np.int64)
    for row, name in enumerate(names):
        number, at, file = str(name).partition("@")
        if not at:
            number, file = "1", number
        if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) > 0 and file):
            raise FormatError(
                f"{path}: image {row + 1} is called {name!r}, which is not number@stack with numbers from 1"
            )
        stack[row] = known.setdefault(file, len(known))
        section[row] = int(number) - 1
    return tuple(known), stack, section


def _common_box(paths: Sequence[Path], headers: Sequence[MrcHeader], source: SourceTable) -> int:
    boxes: dict[int, Path] = {}
    for path, header in zip(paths, headers, strict=True):
        _, rows, columns = header.shape
        if rows != columns:
            raise InconsistentDataError(f"{path} has images of {columns} x {rows} pixels; square ones are needed")
        boxes.setdefault(rows, path)
    if len(boxes) > 1:
        (box, path), (other, place) = list(boxes.items())[:2]
        raise InconsistentDataError(
            f"mixed box sizes: {path} has {box} pixels, {place} has {other}; import them apart, or scale them"
        )
    box = next(iter(boxes), 0)
    if source.box and box and source.box != box:
        raise InconsistentDataError(
            f"{source.path} says the images have {source.box} pixels, {paths[0]} has {box}; correct the table"
        )
    return box


def _check_sections(paths: Sequence[Path], headers: Sequence[MrcHeader], source: SourceTable) -> None:
    counts = np.array([header.shape[0] for header in headers], dtype=np.int64)
    beyond = np.flatnonzero(source.section >= counts[source.stack])
    if len(beyond):
        row = beyond[0]
        stack = source.stack[row]
        raise InconsistentDataError(
            f"{source.path} asks for image {source.section[row] + 1} of {paths[stack]}, which has {counts[stack]} "
            f"({len(beyond)} such particles); the stack is not the one that the table was written for"
        )


def _runs(stacks: NDArray[np.int32], sections: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the first and last-plus-one index of each run of images that follow each other in one stack."""
    breaks = (np.diff(stacks) != 0) | (np.diff(sections) != 1)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(stacks)]
    yield from ((first, last) for first, last in pairwise(edges) if first < last)
