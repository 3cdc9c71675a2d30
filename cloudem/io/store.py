"""The particle store: images in shards, columns beside them, under one URL.

::

    <url>/zarr.json     what it is; written last, so that a store without it is not one
    <url>/images        (particle, y, x), float16 or float32, see `cloudem.io.shards`
    <url>/columns       the particle table, a group as in `cloudem.io.groups`

Any Zarr v3 reader can read all of it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError, ParameterError
from cloudem.io.groups import (
    delete_group,
    has_group,
    list_groups,
    particles_from_arrays,
    particles_to_arrays,
    read_attributes,
    read_group,
    write_group,
)
from cloudem.io.half import gather, narrow
from cloudem.io.location import folder_of, get, new_folder, object_store, put, storage_errors, zarr_store
from cloudem.io.shards import ShardMaps, StackLayout, parse_layout
from cloudem.model.particles import Particles

__all__ = [
    "ParticleStore",
    "ParticleWriter",
    "delete_group",
    "has_group",
    "list_groups",
    "open_particles",
    "particle_writer",
    "particles_from_arrays",
    "particles_to_arrays",
    "read_attributes",
    "read_group",
    "write_group",
    "write_particles",
]

DTYPES = ("float16", "float32")
_MAPS = ShardMaps()


class ParticleStore:
    """Particles on disk, opened for reading; safe in threads, small to pickle.

    Attributes
    ----------
    url
        Where it is.
    box
        Side of the images in pixels.
    pixel_size
        Å per pixel.
    dtype
        ``"float16"`` or ``"float32"``: type of the images on disk; they are read as float32.
    attributes
        What the writer said of the store.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        attributes = read_attributes(url, "")
        if attributes is None or attributes.get("kind") != "particles":
            raise _not_particles(self.url, attributes)
        raw = get(object_store(url), "images/zarr.json")
        if raw is None:
            raise FormatError(f"{self.url} has lost its images; import the particles again")
        document = json.loads(raw)
        self._layout = parse_layout(document)
        self._count, self.box = int(document["shape"][0]), int(document["shape"][1])
        self.dtype = str(document["data_type"])
        self.pixel_size = float(attributes["pixel_size_A"])
        self.attributes = attributes

    def __len__(self) -> int:
        """Return the number of particles."""
        return self._count

    def __reduce__(self) -> tuple[type["ParticleStore"], tuple[str]]:
        """Pickle the URL alone."""
        return ParticleStore, (self.url,)

    @cached_property
    def particles(self) -> Particles:
        """The particle table."""
        return particles_from_arrays(*read_group(self.url, "columns"))

    def read_images(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return images.

        Parameters
        ----------
        indices
            Numbers of the images, from 0, shape ``(m,)``; any order, repeats allowed.

        Returns
        -------
        images
            Shape ``(m, box, box)``, float32.

        Raises
        ------
        ParameterError
            An index outside the store.
        StorageError
            A shard is missing or damaged.
        """
        wanted = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self._count):
            raise ParameterError(
                f"image numbers {wanted.min()} to {wanted.max()} were asked for, "
                f"but {self.url} holds 0 to {self._count - 1}"
            )
        out = np.empty((wanted.size, self.box * self.box), dtype=np.float32)
        if self._layout is None:
            self._read_through_zarr(wanted, np.arange(wanted.size), out)
        else:
            self._read_directly(self._layout, wanted, out)
        return out.reshape(-1, self.box, self.box)

    def _read_directly(self, layout: StackLayout, wanted: NDArray[np.int64], out: NDArray[np.float32]) -> None:
        shards, rows = np.divmod(wanted, layout.shard)
        order = np.argsort(shards, kind="stable")
        edges = np.flatnonzero(np.diff(shards[order])) + 1
        folder = folder_of(self.url) / "images" / "c"
        for places in np.split(order, edges):
            if not places.size:
                continue
            source = _MAPS.open(folder / str(shards[places[0]]) / "0" / "0", layout)
            if source is None:
                self._read_through_zarr(wanted[places], places, out)
            else:
                gather(source, rows[places], places, out)

    def _read_through_zarr(
        self, wanted: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[np.float32]
    ) -> None:
        with storage_errors(self.url):
            stack = zarr.open_array(zarr_store(self.url), path="images", mode="r", zarr_format=3)
            images = np.asarray(stack.oindex[np.unique(wanted)])
        out[places] = images[np.searchsorted(np.unique(wanted), wanted)].reshape(len(wanted), -1)


def open_particles(url: str | os.PathLike[str]) -> ParticleStore:
    """Open a particle store.

    Raises
    ------
    MissingInputError
        There is nothing under that name.
    FormatError
        What is there is not a finished particle store.
    """
    return ParticleStore(url)


class ParticleWriter:
    """Takes images in order and turns them into a particle store; made by `particle_writer`."""

    def __init__(self, folder: Path, layout: StackLayout, pixel_size: float) -> None:
        self._folder = folder
        self._store = object_store(folder)
        self._layout = layout
        self._pixel_size = pixel_size
        self._waiting: list[NDArray[Any]] = []
        self._waiting_count = 0
        self._shards = 0
        self._finished = False

    @property
    def count(self) -> int:
        """Images taken so far."""
        return self._shards * self._layout.shard + self._waiting_count

    @property
    def finished(self) -> bool:
        """Whether `finish` was called."""
        return self._finished

    def append(self, images: NDArray[np.float32]) -> None:
        """Take the next images, ``(b, box, box)``.

        Raises
        ------
        InconsistentDataError
            Another box.
        ParameterError
            Values that are not finite in the type on disk.
        """
        box = self._layout.box
        if images.ndim != 3 or images.shape[1:] != (box, box):
            raise InconsistentDataError(f"images of shape {images.shape[1:]} were given to a store of box {box}")
        if self._layout.dtype == "float16":
            stored: NDArray[Any]
            stored, fits = narrow(images)
        else:
            stored = np.array(images, dtype=np.float32)
            fits = bool(np.isfinite(stored).all())
        if not fits:
            raise ParameterError(
                f"images with values up to {np.abs(images).max():g} cannot be stored as {self._layout.dtype}; "
                "normalise them, or store float32"
            )
        self._waiting.append(stored)
        self._waiting_count += len(stored)
        while self._waiting_count >= self._layout.shard:
            self._write_shard()

    def finish(self, particles: Particles, attributes: Mapping[str, Any] | None = None) -> None:
        """Write the table and declare the store finished.

        Raises
        ------
        InconsistentDataError
            The table has another number of rows than there are images.
        """
        count = self.count
        if len(particles) != count:
            raise InconsistentDataError(f"{count} images were written, but the table has {len(particles)} particles")
        if count == 0:
            raise ParameterError("no particles are left to store: the selection is empty")
        if self._waiting_count:
            self._write_shard()
        layout = StackLayout(count, self._layout.box, self._layout.dtype, self._layout.chunk, self._layout.shard)
        put(self._store, "images/zarr.json", layout.metadata({"unit": "standard deviations of the background"}))
        arrays, table = particles_to_arrays(particles)
        write_group(self._folder, "columns", arrays, table)
        described = {"kind": "particles", "pixel_size_A": self._pixel_size, "box": layout.box, "particles": count}
        write_group(self._folder, "", {}, {**(attributes or {}), **described})
        self._finished = True

    def _write_shard(self) -> None:
        joined = np.concatenate(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        put(self._store, f"images/c/{self._shards}/0/0", self._layout.encode(joined[: self._layout.shard]))
        rest = joined[self._layout.shard :]
        self._waiting = [rest] if len(rest) else []
        self._waiting_count = len(rest)
        self._shards += 1


@contextmanager
def particle_writer(
    url: str | os.PathLike[str], *, expected: int, box: int, pixel_size: float, dtype: str = "float16"
) -> Iterator[ParticleWriter]:
    """Open a new particle store for writing; it appears under its name only when finished.

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

    Raises
    ------
    OutputExistsError
        Something is there.
    ParameterError
        An odd box, a pixel size that is not positive, another dtype, no particles.
    StorageError
        Disk full, no permission.
    """
    if box < 2 or box % 2:
        raise ParameterError(f"images have a box of {box} pixels; cloudem needs an even box: crop or pad by one pixel")
    if not (np.isfinite(pixel_size) and pixel_size > 0):
        raise ParameterError(f"the pixel size is {pixel_size:g} Å; give one above 0")
    if dtype not in DTYPES:
        raise ParameterError(f"images cannot be stored as {dtype}; choose {' or '.join(DTYPES)}")
    if expected < 1:
        raise ParameterError("no particles were selected: the input is empty")
    layout = StackLayout.choose(expected, box, dtype)
    with new_folder(url) as folder:
        writer = ParticleWriter(folder, layout, pixel_size)
        yield writer
        if not writer.finished:
            raise ParameterError(f"{os.fspath(url)}: writing stopped before the particle table came")


def write_particles(
    url: str | os.PathLike[str],
    particles: Particles,
    images: Iterable[NDArray[np.float32]],
    *,
    box: int,
    pixel_size: float,
    dtype: str = "float16",
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a particle store.

    Parameters
    ----------
    url
        Where; nothing may be there yet.
    particles
        The table, one row per image.
    images
        Batches ``(b, box, box)`` in the order of the rows.
    box
        Side of the images in pixels, even.
    pixel_size
        Å per pixel.
    dtype
        ``"float16"`` (rounds at 2⁻¹¹ of each value) or ``"float32"``.
    attributes
        What else the store should say of itself; anything that JSON holds.

    Raises
    ------
    OutputExistsError, ParameterError, InconsistentDataError, StorageError
        As `particle_writer`, `ParticleWriter.append` and `ParticleWriter.finish` say. Nothing is left behind.
    """
    with particle_writer(url, expected=len(particles), box=box, pixel_size=pixel_size, dtype=dtype) as writer:
        for batch in images:
            writer.append(batch)
        writer.finish(particles, attributes)


def _not_particles(url: str, attributes: Mapping[str, Any] | None) -> Exception:
    folder = folder_of(url)
    if not folder.exists():
        return MissingInputError(f"{url} does not exist; make it with: cloudem import particles.star --out {url}")
    if folder.is_file():
        return FormatError(f"{url} is a file; import it first: cloudem import {url} --out particles.zarr")
    what = f"a result of kind {attributes.get('kind')!r}" if attributes else "no finished cloudem store"
    return FormatError(f"{url} is {what}, where a particle store is needed; make one with cloudem import")
