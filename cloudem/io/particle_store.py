"""The particle store: images in shards, columns beside them, under one URL.

::

    <url>/zarr.json     what it is; written last, so that a store without it is not one
    <url>/images        (particle, y, x), float16 or float32, see `cloudem.io.images.layout`
    <url>/columns       the particle table, a group as in `cloudem.io.storage.groups`

Any Zarr v3 reader can read all of it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from cloudem import traffic
from cloudem.errors import DamagedShardError, FormatError, MissingInputError, ParameterError
from cloudem.io.images.layout import LocalShards, ShardRead, ShardsOfZarr, parse_layout
from cloudem.io.images.remote import RemoteShards, in_threads, remote_shards
from cloudem.io.particle_writer import ParticleWriter, particle_writer, write_particles
from cloudem.io.storage.groups import particles_from_arrays, read_attributes, read_group
from cloudem.io.storage.location import exists, folder_of, get, is_remote, object_store, storage_errors
from cloudem.io.storage.zarr_store import zarr_store
from cloudem.model.particles import Particles

__all__ = ["Damage", "ParticleStore", "ParticleWriter", "open_particles", "particle_writer", "write_particles"]


@dataclass(frozen=True)
class Damage:
    """A shard that cannot be read.

    Attributes
    ----------
    shard
        Its key under the URL of the store.
    first, last
        Numbers of the first and the last image that it held.
    reason
        What is wrong with it.
    """

    shard: str
    first: int
    last: int
    reason: str


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
        self._layout = parse_layout(json.loads(raw))
        self._count, self.box, self.dtype = self._layout.count, self._layout.box, self._layout.dtype
        self.pixel_size = float(attributes["pixel_size_A"])
        self.attributes = attributes

    def __len__(self) -> int:
        """Return the number of particles."""
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        """Pickle neither images nor table, but all that it takes to read them.

        A worker without access must not fail before its task has begun: Dask would send it the task again, for ever.
        """
        return {name: value for name, value in vars(self).items() if name not in ("particles", "_shards")}

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
        left = self._shards.read(_by_shard(wanted, self._layout.shard), out)
        if left:
            places = np.concatenate([part.places for part in left])
            self._read_through_zarr(wanted[places], places, out)
        return out.reshape(-1, self.box, self.box)

    def damaged(self) -> list[Damage]:
        """Return the shards that are missing, or whose index is not sound, after a look at each.

        The pixels themselves have no checksums: what is changed among them is not noticed.

        Raises
        ------
        StorageError
            The server does not answer, or refuses.
        """

        def reason(shard: int) -> str:
            try:
                self._shards.check(shard)
            except DamagedShardError as error:
                return str(error)
            return ""

        with storage_errors(self.url):
            reasons = in_threads(reason, range(self._layout.shards))
        return [
            Damage(self._layout.key(shard), *self._layout.held(shard), reason)
            for shard, reason in enumerate(reasons)
            if reason
        ]

    @cached_property
    def _shards(self) -> LocalShards | RemoteShards | ShardsOfZarr:
        if not self._layout.direct:
            return ShardsOfZarr(self.url, self._layout)
        if is_remote(self.url):
            return remote_shards(self.url, self._layout)
        return LocalShards(folder_of(self.url), self._layout)

    def _read_through_zarr(
        self, wanted: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[np.float32]
    ) -> None:
        numbers, which = np.unique(wanted, return_inverse=True)
        with storage_errors(self.url), traffic.purpose("images"):
            stack = zarr.open_array(zarr_store(self.url), path="images", mode="r", zarr_format=3)
            images = np.asarray(stack.oindex[numbers])
        out[places] = images[which].reshape(len(wanted), -1)


def _by_shard(wanted: NDArray[np.int64], size: int) -> list[ShardRead]:
    if not wanted.size:
        return []
    shards, rows = np.divmod(wanted, size)
    order = np.argsort(shards, kind="stable")
    edges = np.flatnonzero(np.diff(shards[order])) + 1
    return [ShardRead(int(shards[places[0]]), rows[places], places) for places in np.split(order, edges)]


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


def _not_particles(url: str, attributes: Mapping[str, Any] | None) -> Exception:
    if not exists(url):
        return MissingInputError(f"{url} does not exist; make it with: cloudem import particles.star --out {url}")
    if not is_remote(url) and folder_of(url).is_file():
        return FormatError(f"{url} is a file; import it first: cloudem import {url} --out particles.zarr")
    what = f"a result of kind {attributes.get('kind')!r}" if attributes else "no finished cloudem store"
    return FormatError(f"{url} is {what}, where a particle store is needed; make one with cloudem import")
