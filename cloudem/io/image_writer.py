"""Writing particle stores as a whole: shards on their way while the next images are prepared."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem import traffic
from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.io.image_store import KIND, UNIT, sizes_stated
from cloudem.io.images.layout import MOST_PIXELS, StackLayout
from cloudem.io.storage.groups import write_group
from cloudem.io.storage.location import Store, object_store, put
from cloudem.io.storage.outputs import new_prefix
from cloudem.io.storage.tables import table_to_arrays
from cloudem.kernels.float16 import narrow
from cloudem.model.particles import Particles

DTYPES = ("float16", "float32")

_HELD = 3
"""Shards in memory at a time: the one that is being filled, and those that are being sent."""


class ImageWriter:
    """Takes images in order and turns them into a particle store; made by `image_writer`."""

    def __init__(
        self,
        url: str,
        layout: StackLayout,
        pixel_size: float,
        uploads: "_Uploads",
        guard: Callable[[], None] | None,
    ) -> None:
        self._url = url
        self._layout = layout
        self._pixel_size = pixel_size
        self._uploads = uploads
        self._guard = guard
        self._spare: list[NDArray[np.uint8]] = []
        self._room = threading.Semaphore(_HELD)
        self._raw: NDArray[np.uint8] | None = None
        self._in_shard = 0
        self._shards = 0
        self._finished = False

    @property
    def count(self) -> int:
        """Images taken so far."""
        return self._shards * self._layout.shard + self._in_shard

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._finished

    def append(self, images: NDArray[np.float32], rows: NDArray[np.int64] | None = None) -> None:
        """Take the next images, ``(b, box, box)``, or those of them that `rows` names.

        Raises
        ------
        InconsistentDataError
            Images of another shape.
        ParameterError
            Values that are not finite in the type on disk.
        """
        pixels = self._layout.pixels
        if images.ndim != 3 or images.shape[1:] != self._layout.shape:
            raise InconsistentDataError(
                f"images of shape {images.shape[1:]} were given to a store of images of shape {self._layout.shape}"
            )
        source = np.ascontiguousarray(images, dtype=np.float32).reshape(len(images), pixels)
        rows = np.arange(len(images)) if rows is None else rows
        while len(rows):
            part, rows = np.split(rows, [self._layout.shard - self._in_shard])
            place = self._layout.images_of(self._filled())[self._in_shard :][: len(part)]
            if not narrow(source, part, place.reshape(len(part), pixels)):
                raise ParameterError(
                    f"images with values up to {np.abs(images).max():g} cannot be stored as {self._layout.dtype}; "
                    "normalise them, or store float32"
                )
            self._in_shard += len(part)
            if self._in_shard == self._layout.shard:
                self._write_shard()

    def finish(self, table: Particles, attributes: Mapping[str, Any] | None = None) -> None:
        """Write the table and declare the store finished.

        Raises
        ------
        InconsistentDataError
            The table has another number of rows than there are images.
        """
        count = self.count
        if len(table) != count:
            raise InconsistentDataError(f"{count} images were written, but the table has {len(table)} particles")
        if count == 0:
            raise ParameterError("no particles are left to store: the selection is empty")
        if self._in_shard:
            self._layout.images_of(self._filled())[self._in_shard :] = 0  # what another shard left
            self._write_shard()
        layout = replace(self._layout, count=count)
        self._uploads.send("images/zarr.json", layout.metadata({"unit": UNIT}))
        write_group(self._url, "columns", *table_to_arrays(table), guard=self._guard)
        self._uploads.wait()
        described = {"kind": KIND, "pixel_size_A": self._pixel_size, **sizes_stated(layout)}
        write_group(self._url, "", {}, {**(attributes or {}), **described}, guard=self._guard)
        self._finished = True

    def _filled(self) -> NDArray[np.uint8]:
        """Return the bytes of the shard that is being filled; wait where all that may be held are being sent."""
        if self._raw is None:
            self._room.acquire()
            # Buffers are used again: memory that is new to the process costs more than to fill it.
            self._raw = self._spare.pop() if self._spare else self._layout.blank()
        return self._raw

    def _write_shard(self) -> None:
        if self._guard is not None:
            self._guard()
        full, self._raw = self._filled(), None

        def release() -> None:
            self._spare.append(full)
            self._room.release()

        with traffic.purpose("images"):
            self._uploads.send(self._layout.key(self._shards), full.data, release)
        self._in_shard = 0
        self._shards += 1


class _Uploads:
    """Objects on their way; an error is raised by whatever is called next."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._pool = pool
        self._sent: list[Future[None]] = []

    def send(self, key: str, data: bytes | memoryview, then: Callable[[], None] = lambda: None) -> None:
        """Send an object. What comes `then` runs once it is there, or has failed."""
        ended = [each for each in self._sent if each.done()]
        self._sent = [each for each in self._sent if not each.done()]
        for each in ended:
            each.result()
        self._sent.append(self._pool.submit(copy_context().run, self._put, key, data, then))

    def _put(self, key: str, data: bytes | memoryview, then: Callable[[], None]) -> None:
        try:
            put(self._store, key, data)
        finally:
            then()

    def wait(self) -> None:
        """Wait until all are there."""
        for each in self._sent:
            each.result()
        self._sent = []


@contextmanager
def image_writer(
    url: str | os.PathLike[str],
    *,
    expected: int,
    box: int,
    pixel_size: float,
    dtype: str = "float16",
    guard: Callable[[], None] | None = None,
) -> Iterator[ImageWriter]:
    """Open a new particle store for writing; it is one only when finished.

    In a folder it appears under its name then. On S3 its ``zarr.json`` is written then; what a killed writer left there
    is removed first.

    Parameters
    ----------
    url
        Where it will be; nothing may be there yet.
    expected
        Number of images that will come; fewer may.
    box
        Side of the images in pixels.
    pixel_size
        Å per pixel.
    dtype
        ``"float16"`` or ``"float32"``.
    guard
        Called before anything is written; raises if somebody else may be writing there.

    Raises
    ------
    OutputExistsError
        Something is there.
    ParameterError
        An odd box, images without pixels, a pixel size that is not positive, another dtype, no images.
    StorageError
        Disk full, no permission, no such bucket, no connection.
    """
    check_box(box)
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ParameterError(f"the pixel size is {pixel_size:g} Å; give one above 0")
    if dtype not in DTYPES:
        raise ParameterError(f"images cannot be stored as {dtype}; choose {' or '.join(DTYPES)}")
    if expected < 1:
        raise ParameterError("no particles were selected: the input is empty")
    layout = StackLayout.choose(expected, box, dtype)
    with new_prefix(url, guard) as place, ThreadPoolExecutor(_HELD, "cloudem-uploads") as pool:
        writer = ImageWriter(place, layout, pixel_size, _Uploads(object_store(place), pool), guard)
        yield writer
        if not writer.finished:
            raise ParameterError(f"{os.fspath(url)}: writing stopped before the particle table came")


def check_box(box: int) -> None:
    """Refuse a box that images cannot have.

    Raises
    ------
    ParameterError
        It is odd, or too large.
    """
    if box < 2 or box % 2:
        raise ParameterError(f"images have a box of {box} pixels; cloudem needs an even box: crop or pad by one pixel")
    if box > MOST_PIXELS:
        raise ParameterError(f"images of {box} x {box} pixels cannot be stored: a side has at most {MOST_PIXELS}")
