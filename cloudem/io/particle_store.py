"""The particle store: images in shards, columns beside them, under one URL.

::

    <url>/zarr.json     what it is; written last, so that a store without it is not one
    <url>/images        (particle, y, x), float16 or float32, see `cloudem.io.images.layout`
    <url>/columns       the particle table, a group as in `cloudem.io.storage.groups`

Any Zarr v3 reader can read all of it.

The result of a job that holds particles is a particle store, too: its table is the group ``particles``, which says
where the images lie (`ImageSource`), and whose column ``store_row`` says which of them belong to its rows.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from obstore.exceptions import BaseError

from cloudem import traffic
from cloudem.errors import (
    CloudemError,
    DamagedShardError,
    FormatError,
    InconsistentDataError,
    MissingInputError,
    ParameterError,
    StorageError,
)
from cloudem.io.images.layout import LocalShards, ShardRead, ShardsOfZarr, StackLayout, check_chunks, parse_layout
from cloudem.io.images.remote import RemoteShards, in_threads, remote_shards
from cloudem.io.particle_writer import ParticleWriter, particle_writer, write_particles
from cloudem.io.storage.groups import list_groups, particles_from_arrays, read_attributes, read_group, read_rows
from cloudem.io.storage.location import exists, folder_of, get, is_remote, join, object_store, storage_errors
from cloudem.io.storage.zarr_store import zarr_store
from cloudem.model.particles import Particles

__all__ = ["Damage", "ParticleStore", "ParticleWriter", "open_particles", "particle_writer", "write_particles"]


RESULT_TABLE = "particles"
"""Group of a result that holds its particles."""


@dataclass(frozen=True)
class Damage:
    """A shard that cannot be read.

    Attributes
    ----------
    shard
        Its key under the URL of the store of images.
    rows
        Numbers of the particles whose images it held, in order.
    reason
        What is wrong with it.
    """

    shard: str
    rows: NDArray[np.int64]
    reason: str


class ImageSource(NamedTuple):
    """Where the images of a table lie.

    Attributes
    ----------
    url
        Of the particle store that holds them.
    date
        When that was made; tells it from one made later under the same name.
    beside
        The same place as seen from the table, so that a project can be moved as a whole; empty where they share none.
    """

    url: str
    date: str
    beside: str = ""

    @classmethod
    def of(cls, store: "ParticleStore", table: str) -> "ImageSource":
        """Return what a table under a URL is to record of a store whose images it uses."""
        return cls(store.image_url, store.date, relative(store.image_url, table))


class ParticleStore:
    """Particles on disk, opened for reading; safe in threads, small to pickle.

    Attributes
    ----------
    url
        Where its table is.
    image_url
        Where its images are: the same, unless it is the result of a job.
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
        self.url = self.image_url = os.fspath(url)
        attributes = read_attributes(url, "")
        self._count: int | None = None
        if attributes is not None and attributes.get("kind") == "result" and RESULT_TABLE in list_groups(url, ""):
            self.image_url, attributes = _images_of(self.url)
        if attributes is None or attributes.get("kind") != "particles":
            raise _not_particles(self.url, attributes)
        with storage_errors(self.image_url):
            raw = get(object_store(self.image_url), "images/zarr.json")
        self._layout = _layout(self.image_url, raw, attributes)
        self.box, self.dtype = self._layout.box, self._layout.dtype
        if not self.is_result:
            self._count = self._layout.count
        self.pixel_size = float(attributes["pixel_size_A"])
        self.attributes = attributes

    @property
    def is_result(self) -> bool:
        """Whether it is the result of a job, with the images of another store."""
        return self.url != self.image_url

    @property
    def date(self) -> str:
        """When its images were stored; tells it from a store made later under the same name."""
        return date_of(self.attributes)

    @property
    def remote(self) -> bool:
        """Whether its images lie in object storage."""
        return is_remote(self.image_url)

    def __len__(self) -> int:
        """Return the number of particles."""
        if self._count is None:
            self._count = len(self.particles)
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        """Pickle neither images nor table, but all that it takes to read them.

        A worker without access must not fail before its task has begun: Dask would send it the task again, for ever.
        """
        return {name: value for name, value in vars(self).items() if name not in ("particles", "rows", "_shards")}

    @cached_property
    def particles(self) -> Particles:
        """The particle table.

        Raises
        ------
        StorageError, FormatError
            Part of it is lost or changed, or it has another number of rows than there are images.
        """
        table = particles_from_arrays(*read_group(self.url, self._table))
        if not self.is_result and len(table) != self._layout.count:
            raise FormatError(
                f"{self.url} holds {self._layout.count} images and a table of {len(table)} particles; import again"
            )
        return table

    @property
    def _table(self) -> str:
        """Group of the table."""
        return RESULT_TABLE if self.is_result else "columns"

    @cached_property
    def rows(self) -> NDArray[np.int64] | None:
        """Number of each particle's image in the store of images, (n,); None where all are there in order."""
        if not self.is_result or "store_row" not in self.particles:
            return None
        rows: NDArray[np.int64] = self.particles["store_row"]
        return rows

    def columns(self, names: Iterable[str]) -> Particles:
        """Return the particle table with some of its columns, as far as it has them; no others are read."""
        attributes = read_attributes(self.url, self._table)
        if attributes is None:
            return self.particles  # says what is wrong
        wanted = set(names)
        found = [name for name in attributes["columns"] if name in wanted]
        arrays = read_rows(self.url, self._table, found, 0, len(self))
        return particles_from_arrays(arrays, {**attributes, "columns": found})

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
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise ParameterError(
                f"image numbers {wanted.min()} to {wanted.max()} were asked for, "
                f"but {self.url} holds 0 to {len(self) - 1}"
            )
        if self.rows is not None:
            wanted = self.rows[wanted]
            if wanted.size and not (wanted.min() >= 0 and wanted.max() < self._layout.count):
                raise FormatError(
                    f"{self.url} refers to images {wanted.min()} to {wanted.max()}, but {self.image_url} holds 0 to "
                    f"{self._layout.count - 1}; run the job that made {self.url} again"
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

        with storage_errors(self.image_url):
            reasons = in_threads(reason, range(self._layout.shards))
        rows = np.arange(self._layout.count) if self.rows is None else self.rows
        shards = rows // self._layout.shard
        lost = [
            Damage(self._layout.key(shard), np.flatnonzero(shards == shard), reason)
            for shard, reason in enumerate(reasons)
            if reason
        ]
        return [each for each in lost if len(each.rows)]

    @cached_property
    def _shards(self) -> LocalShards | RemoteShards | ShardsOfZarr:
        if not self._layout.direct:
            return ShardsOfZarr(self.image_url, self._layout)
        if self.remote:
            return remote_shards(self.image_url, self._layout)
        return LocalShards(folder_of(self.image_url), self._layout)

    def _read_through_zarr(
        self, wanted: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[np.float32]
    ) -> None:
        numbers, which = np.unique(wanted, return_inverse=True)
        with storage_errors(self.image_url), traffic.purpose("images"):
            try:
                store = zarr_store(self.image_url, whole=True)
                stack = zarr.open_array(store, path="images", mode="r", zarr_format=3)
                images = np.asarray(stack.oindex[numbers])
            except (CloudemError, OSError, BaseError):
                raise
            except Exception as error:  # zarr and its codecs have no common ground for what they raise
                raise StorageError(
                    f"{self.image_url}/images cannot be read ({str(error).partition(chr(10))[0][:200]}); import again"
                ) from error
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


def _images_of(url: str) -> tuple[str, dict[str, Any]]:
    """Return where the images of a result's particles lie, and the attributes of that store.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        They are not where they were; the result does not say where; there are others now.
    """
    found = (read_attributes(url, RESULT_TABLE) or {}).get("images")
    record = (read_attributes(url, "") or {}).get("parameters", {})
    try:
        source = ImageSource(**found) if found else ImageSource(str(record["particles"]), "")
    except (KeyError, TypeError) as error:
        raise FormatError(f"{url} does not say where the images of its particles lie; run the job again") from error
    places = [source.url, *([join(url, source.beside)] if source.beside else [])]
    others = 0
    for place in places:
        attributes = read_attributes(resolved(place), "")
        if attributes is not None and attributes.get("kind") == "particles":
            if not source.date or date_of(attributes) == source.date:
                return resolved(place), attributes
            others += 1
    if others:
        raise InconsistentDataError(
            f"{source.url}, whose images {url} uses, has been made anew since; run the job that made {url} again"
        )
    raise MissingInputError(
        f"{source.url} does not exist, which holds the images of {url}; put it back, or run the job again"
    )


def date_of(attributes: Mapping[str, Any]) -> str:
    """Return when a store was made, as its attributes say; empty where they do not."""
    return str(attributes.get("date") or "")


def relative(place: str, origin: str) -> str:
    """Return a place as seen from another, both absolute; empty where they share no folder or bucket."""
    one, other = place.split("/"), origin.split("/")
    shared = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if shared < (4 if is_remote(place) or is_remote(origin) else 2):
        return ""
    return "/".join([*[".."] * (len(other) - shared), *one[shared:]])


def resolved(place: str) -> str:
    """Return a place without ``..``: object storage knows none."""
    parts: list[str] = []
    for part in place.split("/"):
        if part == ".." and parts:
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts)


def _layout(url: str, raw: bytes | None, attributes: Mapping[str, Any]) -> StackLayout:
    """Return how the images lie, if that agrees with what the store says of itself.

    Raises
    ------
    FormatError
        It does not, or cannot be.
    """
    if raw is None:
        raise FormatError(f"{url}/images/zarr.json is missing: the store has lost its images; import again")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{url}/images/zarr.json is damaged: it is not JSON; import again") from error
    if not isinstance(document, dict):
        raise FormatError(f"{url}/images/zarr.json is damaged: it is not Zarr v3 metadata; import again")
    try:
        layout = parse_layout(document)
        box = layout.box  # particles are square
        if not layout.direct:
            check_chunks(document)
    except FormatError as error:
        raise FormatError(f"{url}/images/zarr.json: {error}") from error
    for name, found in (("particles", layout.count), ("box", box)):
        if attributes.get(name) != found:
            raise FormatError(
                f"{url}/images/zarr.json has {found} for {name}, {url}/zarr.json {str(attributes.get(name))[:40]}: one "
                "of them is damaged; import again"
            )
    size = attributes.get("pixel_size_A")
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < np.inf:
        raise FormatError(f"{url}/zarr.json has the pixel size {str(size)[:40]}; one above 0 Å is needed: import again")
    return layout


def _not_particles(url: str, attributes: Mapping[str, Any] | None) -> Exception:
    if not exists(url):
        return MissingInputError(f"{url} does not exist; make it with: cloudem import particles.star --out {url}")
    if not is_remote(url) and folder_of(url).is_file():
        return FormatError(f"{url} is a file; import it first: cloudem import {url} --out particles.zarr")
    what = f"a result of kind {attributes.get('kind')!r}" if attributes else "no finished cloudem store"
    return FormatError(f"{url} is {what}, where a particle store is needed; make one with cloudem import")
