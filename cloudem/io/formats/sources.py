"""Particles as another program left them: a table, and the stacks that it refers to."""

import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError
from cloudem.io.formats.prefetch import PrefetchedImages
from cloudem.io.formats.stacks import Stack, find_stacks
from cloudem.io.storage.location import storage_errors
from cloudem.model.micrographs import Micrographs
from cloudem.model.movies import Movies
from cloudem.model.particles import Particles

_FILES_KEPT = 128

LARGEST = 1e30
"""No number of a table is beyond, in any unit; what is would only overflow later."""


class SourceMovieTable(NamedTuple):
    """Movies as a table of another program lists them.

    Attributes
    ----------
    path
        File that the table came from, or its URL.
    movies
        The table in cloudem's columns and units; names are the file's.
    pixel_size
        Å per pixel of the frames; 0 where the file does not say.
    """

    path: str
    movies: Movies
    pixel_size: float


class SourceMicrographTable(NamedTuple):
    """Micrographs as a table of another program lists them.

    Attributes
    ----------
    path
        File that the table came from, or its URL.
    micrographs
        The table in cloudem's columns and units; names are the file's.
    pixel_size
        Å per pixel; 0 where the file does not say.
    """

    path: str
    micrographs: Micrographs
    pixel_size: float


@dataclass(frozen=True)
class SourceTable:
    """Particles that refer to images in stacks.

    Parameters
    ----------
    path
        File that the table came from, or its URL.
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
    shifts_in_pixels
        Whether ``shift_x`` and ``shift_y`` are in pixels still, because the file states no pixel size.
    group_sizes
        Where these differ, pixel size and box of each optics group (0 for what the file does not say); `pixel_size`
        and `box` are then 0.
    """

    path: str
    particles: Particles
    stacks: tuple[str, ...]
    stack: NDArray[np.int32]
    section: NDArray[np.int64]
    pixel_size: float
    box: int
    sign: NDArray[np.float64]
    shifts_in_pixels: bool = False
    group_sizes: tuple[tuple[float, int], ...] = ()

    def parts(self) -> list[tuple[NDArray[np.int64], "SourceTable"]]:
        """Return the rows of each pixel and box size, and the table of these."""
        if not self.group_sizes:
            return [(np.arange(len(self.particles)), self)]
        sizes, kind = np.unique(np.array(self.group_sizes), axis=0, return_inverse=True)
        of_row = kind.reshape(-1)[self.particles["optics_group"]]
        rows = {number: np.flatnonzero(of_row == number) for number in np.unique(of_row).tolist()}
        return [(here, self._part(here, *sizes[number].tolist())) for number, here in rows.items()]

    def _part(self, rows: NDArray[np.int64], pixel_size: float, box: float) -> "SourceTable":
        used, stack = np.unique(self.stack[rows], return_inverse=True)
        return SourceTable(
            self.path, self.particles.take(rows), tuple(self.stacks[number] for number in used),
            stack.reshape(-1).astype(np.int32), self.section[rows], pixel_size, int(box), self.sign[rows],
            self.shifts_in_pixels and not pixel_size,
        )  # fmt: skip


class SourceImages:
    """The images of a table, read from the stacks; every header is checked before the first image is read.

    Those on S3 are fetched ahead, in the order of the table.

    Parameters
    ----------
    source
        The table.
    project_folder
        Folder or URL that relative names start from; without one it is looked for, see `find_stacks`.

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
        self._stacks, self.box = check_stacks(source, project_folder)
        self.pixel_size = self._stacks[0].header.pixel_size
        self._ahead = PrefetchedImages(self._stacks, source.stack, source.section) if self._stacks[0].root else None
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
            A stack that was there cannot be read any more, or is another one on S3.
        """
        if out is None:
            out = np.empty((stop - start, self.box, self.box), dtype=np.float32)
        images = out[: stop - start]
        if self._ahead is not None:
            self._ahead.read(start, stop, images)
            return images
        stacks, sections = self._source.stack[start:stop], self._source.section[start:stop]
        for first, last in _runs(stacks, sections):
            self._read_run(int(stacks[first]), int(sections[first]), images[first:last])
        return images

    def _read_run(self, stack: int, section: int, out: NDArray[np.float32]) -> None:
        """Read images that lie one after the other in a stack."""
        header = self._stacks[stack].header
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
        path, left = self._stacks[stack].place, out.data
        with storage_errors(path):
            file = self._open(stack)
            while left:
                got = os.preadv(file, [left], start)
                if not got:
                    raise FormatError(f"{path} has become shorter while it was read; copy or make it again")
                left, start = left[got:], start + got

    def _open(self, stack: int) -> int:
        if stack not in self._files:
            self._files[stack] = os.open(self._stacks[stack].place, os.O_RDONLY)
            while len(self._files) > _FILES_KEPT:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(stack)
        return self._files[stack]


def _close(files: dict[int, int]) -> None:
    for file in files.values():
        os.close(file)


def check_stacks(
    source: SourceTable, project_folder: str | os.PathLike[str] | None = None
) -> tuple[Sequence[Stack], int]:
    """Find the stacks of a table, check them by their headers, and return them with their box; see `SourceImages`."""
    stacks = find_stacks(source.stacks, source.path, project_folder)
    box = _common_box(stacks, source)
    _check_sections(stacks, source)
    return stacks, box


def split_image_names(names: Sequence[str], path: str) -> tuple[tuple[str, ...], NDArray[np.int32], NDArray[np.int64]]:
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


def _common_box(stacks: Sequence[Stack], source: SourceTable) -> int:
    boxes: dict[int, str] = {}
    for place, header, *_ in stacks:
        _, rows, columns = header.shape
        if rows != columns:
            raise InconsistentDataError(f"{place} has images of {columns} x {rows} pixels; square ones are needed")
        boxes.setdefault(rows, place)
    (box, place), *others = boxes.items()
    if others:
        other, where = others[0]
        raise InconsistentDataError(
            f"mixed box sizes: {place} has {box} pixels, {where} has {other}; import them apart, or scale them"
        )
    if source.box and source.box != box:
        raise InconsistentDataError(
            f"{source.path} says the images have {source.box} pixels, {place} has {box}; correct the table"
        )
    return box


def _check_sections(stacks: Sequence[Stack], source: SourceTable) -> None:
    counts = np.array([stack.header.shape[0] for stack in stacks], dtype=np.int64)
    beyond = np.flatnonzero(source.section >= counts[source.stack])
    if len(beyond):
        row = beyond[0]
        stack = source.stack[row]
        raise InconsistentDataError(
            f"{source.path} asks for image {source.section[row] + 1} of {stacks[stack].place}, which has "
            f"{counts[stack]} ({len(beyond)} such particles); the stack is not the one that the table was written for"
        )


def _runs(stacks: NDArray[np.int32], sections: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the first and last-plus-one index of each run of images that follow each other in one stack."""
    breaks = (np.diff(stacks) != 0) | (np.diff(sections) != 1)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(stacks)]
    yield from ((first, last) for first, last in pairwise(edges) if first < last)
