"""Images that are windows of micrographs: nothing is copied, they are cut when they are read.

::

    <url>/windows/<shard>     where the particles of a micrograph lie in it, a group of `cloudem.io.storage.groups`

An image comes out as the store that holds copies has it, to the bit: the same is done to the same pixels, in the same
order, and it is rounded to the type of the store. A micrograph is read as a whole, once for all images that are asked
for together. Where there is a cache (`cloudem.io.images.cache`), all its windows are put there then, so that it is not
read again.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import CloudemError, DamagedShardError, FormatError, recorded_reason
from cloudem.io.images.cache import CachedShard, image_cache
from cloudem.io.images.layout import ShardRead, StackLayout, naming
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.io.storage.groups import read_attributes, write_same_group
from cloudem.io.storage.location import exists, join
from cloudem.io.storage.relative import resolved
from cloudem.kernels.background import USABLE
from cloudem.kernels.boxes import BoxRecipe, boxed_particles, replace_hot_pixels
from cloudem.kernels.float16 import narrow, widen

WINDOWS = "windows"
"""Attribute of a store of windows: how they become images (`cloudem.kernels.boxes.BoxRecipe`); and their folder."""

_KEPT = 4096
"""Micrographs whose windows a process remembers."""


class Windows(NamedTuple):
    """Where the particles of a micrograph lie.

    Attributes
    ----------
    image
        Place of its image, see `cloudem.io.micrographs.images`.
    beside
        The same place as seen from the store, so that a project can be moved as a whole; empty where they share none.
    hot
        What makes a pixel a hot one, in grey values, see `cloudem.kernels.boxes.replace_hot_pixels`; None for nothing.
    corners
        First pixel of each window, (n, 2) as x, y; in the order of the rows.
    """

    image: str
    beside: str
    hot: float | None
    corners: NDArray[np.int64]


def write_windows(url: str, shard: int, windows: Windows) -> None:
    """Write down the windows of a shard; tasks do it themselves, and may run twice."""
    corners = {"x": windows.corners[:, 0].tolist(), "y": windows.corners[:, 1].tolist()}
    said = {"image": windows.image, "beside": windows.beside, "hot": windows.hot, **corners}
    write_same_group(url, f"{WINDOWS}/{shard}", {}, said)


def read_windows(url: str, shard: int) -> Windows:
    """Return the windows of a shard.

    Raises
    ------
    DamagedShardError
        They are not there, or not what was written; with the reason alone.
    """
    try:
        found = read_attributes(url, f"{WINDOWS}/{shard}")
    except FormatError as error:
        raise DamagedShardError(f"is damaged ({error})") from error
    if found is None:
        raise DamagedShardError("is missing")
    corners = np.stack([found["x"], found["y"]], axis=1).astype(np.int64)
    return Windows(found["image"], found["beside"], found["hot"], corners)


def layout_of_windows(url: str, attributes: Mapping[str, Any]) -> StackLayout:
    """Return the layout of a store of windows, and make sure that its attributes say how they become images.

    Raises
    ------
    FormatError
        They do not.
    """
    try:
        recipe = recipe_of(attributes[WINDOWS])
        return StackLayout.growing(recipe.size, str(attributes["dtype"]), windows=True)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{url}/zarr.json does not say how windows become images; extract again") from error


def recipe_of(said: Mapping[str, Any]) -> BoxRecipe:
    """Return a recipe from what a store says of it."""
    return BoxRecipe(int(said["box"]), int(said["size"]), float(said["diameter"]), float(said["sign"]))


class WindowShards:
    """The shards of a store whose images are windows of micrographs; safe in threads.

    Parameters
    ----------
    url
        Of the store.
    layout
        Of its images.
    said
        What its attribute `WINDOWS` says.
    """

    def __init__(self, url: str, layout: StackLayout, said: Mapping[str, Any]) -> None:
        self._url, self._layout = url, layout
        self._recipe = recipe_of(said)
        self._moved = said.get("url", url) != url
        self._windows = lru_cache(maxsize=_KEPT)(self._found)

    def read(self, parts: Sequence[ShardRead], out: NDArray[np.float32]) -> list[ShardRead]:
        """Read images; nothing is left to zarr.

        Raises
        ------
        DamagedShardError
            Windows or a micrograph are missing or damaged.
        """
        for part in parts:
            with naming(self._url, self._layout, part.shard):
                self._read(part, out)
        return []

    def check(self, shard: int) -> None:
        """Check that the windows of a shard are there, and the header of their micrograph.

        Raises
        ------
        DamagedShardError
            If not; with the reason alone.
        """
        place = self._windows(shard).image
        try:
            open_micrograph_image(place)
        except CloudemError as error:
            reason = recorded_reason(error)
            raise DamagedShardError(f"is to be cut out of {place}, which cannot be read: {reason}") from error

    def _found(self, shard: int) -> Windows:
        """Return the windows of a shard; of a store that was moved, with where its micrographs are now."""
        windows = read_windows(self._url, shard)
        if self._moved and windows.beside and exists(place := resolved(join(self._url, windows.beside))):
            return windows._replace(image=place)
        return windows

    def _read(self, part: ShardRead, out: NDArray[np.float32]) -> None:
        windows = self._windows(part.shard)
        self._layout.require(part.rows, len(windows.corners))
        cached = self._cached(part.shard, windows)
        here = np.zeros(len(part.rows), np.bool_) if cached is None else cached.holds(part.rows)
        if cached is not None:
            widen(cached.images, part.rows[here], part.places[here], out)
        rows, places = part.rows[~here], part.places[~here]
        if not len(rows):
            return
        wanted = np.unique(rows) if cached is None else np.arange(len(windows.corners))
        images = self._cut(windows, wanted)
        widen(images, np.searchsorted(wanted, rows), places, out)
        cache = image_cache()
        if cached is not None and cache is not None:
            cache.write(cached, 0, images)

    def _cached(self, shard: int, windows: Windows) -> CachedShard | None:
        cache = image_cache()
        if cache is None:
            return None
        return cache.shard(self._url, shard, repr((windows.hot, self._recipe)), self._layout)

    def _cut(self, windows: Windows, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return images as the store that holds copies has them, (n, pixels) in its type.

        Raises
        ------
        DamagedShardError
            The micrograph cannot be read, or has other pixels than when it was extracted from.
        """
        try:
            pixels = open_micrograph_image(windows.image).read()
        except CloudemError as error:
            reason = recorded_reason(error)
            raise DamagedShardError(f"is to be cut out of {windows.image}, which cannot be read: {reason}") from error
        if windows.hot is not None:
            replace_hot_pixels(pixels, windows.hot)
        images, found = boxed_particles(pixels, windows.corners[rows], self._recipe)
        out = np.empty((len(rows), self._layout.pixels), self._layout.dtype)
        if (found != USABLE).any() or not narrow(images.reshape(len(rows), -1), np.arange(len(rows)), out):
            raise DamagedShardError(f"is to be cut out of {windows.image}, which holds other pixels by now")
        return out
