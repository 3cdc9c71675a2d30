"""Images in shards under one URL, with columns beside them.

::

    <url>/zarr.json     what it is; a store that is made as a whole is none without it
    <url>/images        (number, y, x), float16 or float32, see `cloudem.io.images.layout`
    <url>/columns       a table with a row for each image, a group as in `cloudem.io.storage.groups`

Any Zarr v3 reader can read all of it. A store that grows (`cloudem.io.growing_store`) has no columns: the tables that
use it lie elsewhere, and its images may be windows of micrographs, which are cut when they are read.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray
from obstore.exceptions import BaseError

from cloudem import traffic
from cloudem.errors import CloudemError, DamagedShardError, FormatError, ParameterError, StorageError
from cloudem.io.images.layout import LocalShards, ShardRead, ShardsOfZarr, StackLayout, check_chunks, parse_layout
from cloudem.io.images.remote import IN_FLIGHT, RemoteShards, in_threads, remote_shards
from cloudem.io.storage.groups import read_attributes, read_group, read_rows
from cloudem.io.storage.location import folder_of, get, is_remote, object_store, storage_errors
from cloudem.io.storage.tables import table_from_arrays
from cloudem.io.storage.zarr_store import zarr_store
from cloudem.io.windows import WINDOWS, WindowShards, layout_of_windows
from cloudem.model.particles import Particles

KIND = "particles"
"""What a store of images says that it is."""

UNIT = "standard deviations of the background"
"""Of pixels."""

GROWS = "grows"
"""Attribute of a store that grows."""


@dataclass(frozen=True)
class Damage:
    """A shard that cannot be read.

    Attributes
    ----------
    shard
        Its key under the URL of the store of images.
    rows
        Numbers of the rows whose images it held, in order.
    reason
        What is wrong with it.
    """

    shard: str
    rows: NDArray[np.int64]
    reason: str


class ImageStore:
    """Images on disk and the table beside them, opened for reading; safe in threads, small to pickle.

    Parameters
    ----------
    url
        Where its table is.
    image_url
        Where its images are.
    attributes
        What is said of the store at `image_url`.

    Attributes
    ----------
    url, image_url, attributes
        As given.
    box
        Side of the images in pixels.
    pixel_size
        Å per pixel.
    dtype
        ``"float16"`` or ``"float32"``: type of the images on disk; they are read as float32.
    """

    CACHED: ClassVar[tuple[str, ...]] = ("_shards",)
    """Attributes that are not pickled, but read again."""

    def __init__(self, url: str, image_url: str, attributes: dict[str, Any]) -> None:
        self.url, self.image_url, self.attributes = url, image_url, attributes
        self._layout = _layout(image_url, attributes)
        self.box, self.dtype = self._layout.box, self._layout.dtype
        self.pixel_size = float(attributes["pixel_size_A"])

    @property
    def date(self) -> str:
        """When its images were stored; tells it from a store made later under the same name."""
        return date_of(self.attributes)

    @property
    def remote(self) -> bool:
        """Whether its images lie in object storage."""
        return is_remote(self.image_url)

    @property
    def rows(self) -> NDArray[np.int64] | None:
        """Number of each row's image among the images, (n,); None where all are there in order."""
        return None

    @property
    def table_group(self) -> str:
        """Group of the table."""
        return "columns"

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._layout.count

    def __getstate__(self) -> dict[str, Any]:
        """Pickle neither images nor table, but all that it takes to read them.

        A worker without access must not fail before its task has begun: Dask would send it the task again, for ever.
        """
        return {name: value for name, value in vars(self).items() if name not in self.CACHED}

    def _read_table(self) -> Particles:
        """Return the table.

        Raises
        ------
        StorageError, FormatError
            Part of it is lost or changed, or it has another number of rows than there are images.
        """
        table = table_from_arrays(Particles, *read_group(self.url, self.table_group))
        if self.url == self.image_url and len(table) != self._layout.count:
            raise FormatError(
                f"{self.url} holds {self._layout.count} images and a table of {len(table)} particles; import again"
            )
        return table

    def columns(self, names: Iterable[str]) -> Particles:
        """Return the table with some of its columns, as far as it has them; no others are read."""
        attributes = read_attributes(self.url, self.table_group) or {}
        stated = attributes.get("columns")
        if not isinstance(stated, dict):
            return self._read_table()  # says what is wrong
        wanted = set(names)
        found = {name: meaning for name, meaning in stated.items() if name in wanted}
        arrays = read_rows(self.url, self.table_group, list(found), 0, len(self))
        return table_from_arrays(Particles, arrays, {**attributes, "columns": found})

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
        return self.read_rows(wanted if self.rows is None else self.rows[wanted])

    def read_rows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return images by their numbers in the store of images, whatever the table here has of it; see `read_images`.

        Raises
        ------
        FormatError
            The store of images has none of such a number.
        StorageError
            A shard is missing or damaged.
        """
        wanted = rows
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < self._layout.count):
            raise FormatError(
                f"{self.url} refers to images {wanted.min()} to {wanted.max()}, but {self.image_url} holds 0 to "
                f"{self._layout.count - 1}; run the job that made {self.url} again"
            )
        out = np.empty((wanted.size, self._layout.pixels), dtype=np.float32)
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

        rows = np.arange(self._layout.count) if self.rows is None else self.rows
        each = rows // self._layout.shard
        numbers: list[int] = np.unique(each).tolist()
        with storage_errors(self.image_url):
            if self._layout.windows:  # opening micrographs may wait for the threads that others use here
                with ThreadPoolExecutor(IN_FLIGHT, "cloudem-windows") as pool:
                    reasons = list(pool.map(reason, numbers))
            else:
                reasons = in_threads(reason, numbers)
        return [
            Damage(self._layout.key(shard), np.flatnonzero(each == shard), reason)
            for shard, reason in zip(numbers, reasons, strict=True)
            if reason
        ]

    @cached_property
    def _shards(self) -> LocalShards | RemoteShards | ShardsOfZarr | WindowShards:
        if WINDOWS in self.attributes:
            return WindowShards(self.image_url, self._layout, self.attributes[WINDOWS])
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


def date_of(attributes: Mapping[str, Any]) -> str:
    """Return when a store was made, as its attributes say; empty where they do not."""
    return str(attributes.get("date") or "")


def sizes_stated(layout: StackLayout) -> dict[str, Any]:
    """Return what a store says of the shape of its stack."""
    return {"box": layout.box, **({GROWS: True} if layout.grows else {"particles": layout.count})}


def _layout(url: str, attributes: Mapping[str, Any]) -> StackLayout:
    """Return how the images lie, if that agrees with what the store says of itself.

    Raises
    ------
    FormatError
        It does not, or cannot be.
    """
    size = attributes.get("pixel_size_A")
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < np.inf:
        raise FormatError(f"{url}/zarr.json has the pixel size {size!r:.40}; one above 0 Å is needed: import again")
    if WINDOWS in attributes:
        return layout_of_windows(url, attributes)
    with storage_errors(url):
        raw = get(object_store(url), "images/zarr.json")
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
        if not layout.direct:
            check_chunks(document)
    except FormatError as error:
        raise FormatError(f"{url}/images/zarr.json: {error}") from error
    for name, found in sizes_stated(layout).items():
        if attributes.get(name) != found:
            raise FormatError(
                f"{url}/images/zarr.json has {found} for {name}, {url}/zarr.json {attributes.get(name)!r:.40}: one "
                "of them is damaged; import again"
            )
    return layout
