"""Images of stacks that are not in a folder, fetched ahead of whoever reads them in the order of their table.

The rows of the table are taken in blocks. Of a block, sections that lie close together in a stack are one range of
bytes, as in `cloudem.io.images.remote`; the ranges of some blocks are fetched while the one before is used.
"""

import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import obstore
from numpy.typing import NDArray
from obstore.exceptions import PreconditionError

from cloudem import traffic
from cloudem.errors import StorageError
from cloudem.io.formats.stacks import Stack
from cloudem.io.images.remote import GAP_BYTES, IN_FLIGHT, in_background, merge_rows
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.location import is_fsspec, object_store, storage_errors

BLOCK_BYTES = 8 * 2**20
"""Images of a block, in single precision, and a range at most; several small requests are faster than a large one."""

BLOCKS = IN_FLIGHT
"""Blocks that are held or fetched: each is at least one request."""

PREFETCH_BYTES = BLOCKS * BLOCK_BYTES + IN_FLIGHT * BLOCK_BYTES
"""Memory that reading takes at most: blocks, and ranges as they came."""


class _Block(NamedTuple):
    images: NDArray[np.float32]
    requests: list[Future[None]]


class PrefetchedImages:
    """The images of a table whose stacks are not in folders.

    Parameters
    ----------
    stacks
        All under one root, with images of one box.
    stack, section
        Which stack and section of it each image is, shape ``(n,)``.
    """

    def __init__(self, stacks: Sequence[Stack], stack: NDArray[np.int32], section: NDArray[np.int64]) -> None:
        self._stacks, self._stack, self._section = stacks, stack, section
        self._root = stacks[0].root
        self._store = None if is_fsspec(self._root) else object_store(self._root)
        self._box = stacks[0].header.shape[-1]
        self._rows = max(1, BLOCK_BYTES // (4 * self._box**2))
        self._blocks: dict[int, _Block] = {}
        weakref.finalize(self, _cancel, self._blocks)

    def read(self, start: int, stop: int, out: NDArray[np.float32]) -> None:
        """Read images `start` to `stop` of the table, ``(stop - start, box, box)``.

        Raises
        ------
        StorageError
            A stack was changed or deleted since its header was read; S3 does not answer, or refuses.
        """
        for number in range(start // self._rows, -(-stop // self._rows)):
            first = number * self._rows
            images = self._block(number)
            here = slice(max(start, first), min(stop, first + self._rows))
            out[here.start - start : here.stop - start] = images[here.start - first : here.stop - first]

    def _block(self, number: int) -> NDArray[np.float32]:
        """Return the images of a block, with the next ones on their way; forget those before."""
        wanted = range(number, min(number + BLOCKS, -(-len(self._stack) // self._rows)))
        for other in self._blocks.keys() - wanted:
            _cancel({other: self._blocks.pop(other)})
        for each in wanted:
            if each not in self._blocks:
                self._blocks[each] = self._request(each)
        block = self._blocks[number]
        try:
            for request in block.requests:
                request.result()
        except BaseException:
            _cancel(self._blocks)  # or else the process would wait for all of them before it ends
            self._blocks.clear()
            raise
        return block.images

    def _request(self, number: int) -> _Block:
        here = slice(number * self._rows, (number + 1) * self._rows)
        stacks, sections = self._stack[here], self._section[here]
        images = np.empty((len(stacks), self._box, self._box), dtype=np.float32)
        order = np.lexsort((sections, stacks))
        requests = []
        for places in np.split(order, np.flatnonzero(np.diff(stacks[order])) + 1):
            stack = self._stacks[stacks[places[0]]]
            size = self._box**2 * stack.header.dtype.itemsize
            rows = sections[places]
            for first, stop in merge_rows(rows, GAP_BYTES // size, max(1, BLOCK_BYTES // size)):
                these = slice(*np.searchsorted(rows, (first, stop)))
                requests.append(in_background(self._fetch, stack, first, stop, rows[these], places[these], images))
        return _Block(images, requests)

    def _fetch(
        self,
        stack: Stack,
        first: int,
        stop: int,
        rows: NDArray[np.int64],
        places: NDArray[np.int64],
        images: NDArray[np.float32],
    ) -> None:
        """Fetch sections `first` to `stop` of a stack; `rows` of them are `places` of a block."""
        header = stack.header
        size = self._box**2 * header.dtype.itemsize
        start, end = header.offset + first * size, header.offset + stop * size
        data = self._bytes_of(stack, start, end)
        traffic.count("images", received=len(data))
        if len(data) != end - start:
            raise StorageError(f"{stack.place}: {len(data)} bytes came where {end - start} were asked for; try again")
        sections = np.frombuffer(memoryview(data), header.dtype).reshape(stop - first, self._box, self._box)
        with np.errstate(all="ignore"):
            for row, place in zip(rows - first, places, strict=True):
                images[place] = sections[row]

    def _bytes_of(self, stack: Stack, start: int, end: int) -> Any:
        """Return a range of bytes of a stack, as a buffer."""
        if self._store is None:
            return fsspec_urls.read_range(stack.place, start, end, stack.etag)
        with storage_errors(stack.place):
            try:
                options: Any = {"range": (start, end), "if_match": stack.etag or None}
                return obstore.get(self._store, stack.place.removeprefix(f"{self._root}/"), options=options).bytes()
            except FileNotFoundError as error:
                raise StorageError(f"{stack.place} was deleted while it was read; copy or make it again") from error
            except PreconditionError as error:
                raise StorageError(f"{stack.place} was changed while it was read; start again") from error


def _cancel(blocks: dict[int, _Block]) -> None:
    for block in blocks.values():
        for request in block.requests:
            request.cancel()
