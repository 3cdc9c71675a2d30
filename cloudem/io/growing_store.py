"""Stores of images that grow: each task writes the shards of its micrograph, and nobody waits for anybody.

::

    <url>/zarr.json             what it is; written first
    <url>/images                copies of pixels, or
    <url>/windows/<shard>       where they lie in micrographs, see `cloudem.io.windows`

A shard holds particles of one micrograph. Its number follows from what is cut, by a hash, so that the same particles
have the same numbers whoever cuts them, when, and beside which others; what was cut stays where it is when the store
grows, and tables that refer to it remain right. The price is an array of 2⁴⁸ shards, of which all but a few are not
there. The tables are elsewhere: `cloudem.io.particle_store`.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem import traffic
from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.io.image_store import KIND, UNIT, sizes_stated
from cloudem.io.image_writer import check_box
from cloudem.io.images.layout import GROWING_SHARDS, StackLayout
from cloudem.io.storage.groups import read_attributes, write_group
from cloudem.io.storage.location import object_store, put, storage_errors
from cloudem.io.storage.relative import relative
from cloudem.io.windows import WINDOWS, Windows, write_windows
from cloudem.kernels.boxes import BoxRecipe
from cloudem.kernels.float16 import narrow


def begin_growing_store(
    url: str | os.PathLike[str],
    recipe: BoxRecipe,
    *,
    pixel_size: float,
    dtype: str,
    copied: bool,
    attributes: Mapping[str, Any],
    guard: Callable[[], None] | None = None,
) -> None:
    """Write what a store is, unless it is there already.

    Parameters
    ----------
    url
        Of the store.
    recipe
        How windows of micrographs become images.
    pixel_size
        Of the images, Å.
    dtype
        ``"float16"`` or ``"float32"``.
    copied
        Whether it will hold pixels, or where they are.
    attributes
        What else it says of itself; ``date`` tells it from others of its name.
    guard
        As for `cloudem.io.storage.groups.write_group`.

    Raises
    ------
    ParameterError
        Images cannot have such a box.
    InconsistentDataError
        There is another store.
    """
    check_box(recipe.size)
    layout = StackLayout.growing(recipe.size, dtype)
    said: dict[str, Any] = {
        "kind": KIND, "pixel_size_A": pixel_size, "dtype": dtype, **sizes_stated(layout),
        **({} if copied else {WINDOWS: {**recipe._asdict(), "url": os.fspath(url)}}),
    }  # fmt: skip
    before = read_attributes(url, "")
    if before is not None:
        if not copied and WINDOWS in before:
            said[WINDOWS]["url"] = before[WINDOWS].get("url")  # the project may have been moved since
        if {name: before.get(name) for name in said} != said or (WINDOWS in before) == copied:
            raise InconsistentDataError(f"{os.fspath(url)} holds other images than these; choose another --out")
        return
    if copied:
        with storage_errors(url):
            put(object_store(url, create=True), "images/zarr.json", layout.metadata({"unit": UNIT}))
    write_group(url, "", {}, {**attributes, **said}, guard=guard)


def growing_rows(identity: str, count: int, layout: StackLayout) -> NDArray[np.int64]:
    """Return the numbers in the store of the images of a micrograph, (count,).

    Parameters
    ----------
    identity
        Says which micrograph it is and what is cut out of it: what differs there gets other numbers.
    count
        Images.
    layout
        Of the store.
    """
    place = np.arange(count, dtype=np.int64)
    shards = [_shard(identity, part) for part in range(-(-count // layout.shard))]
    numbers: NDArray[np.int64] = np.array(shards, np.int64)[place // layout.shard] if count else place
    return np.asarray(numbers * layout.shard + place % layout.shard)


def check_rows(rows: NDArray[np.int64], names: Sequence[str]) -> None:
    """Make sure that no two images have the same number.

    Parameters
    ----------
    rows
        Numbers of images, (n,).
    names
        Their micrographs.

    Raises
    ------
    InconsistentDataError
        Two have; among 100,000 micrographs that happens by chance in one of 50,000 cases.
    """
    order = np.argsort(rows, kind="stable")
    same = np.flatnonzero(np.diff(rows[order]) == 0)
    if len(same):
        one, other = names[order[same[0]]], names[order[same[0] + 1]]
        raise InconsistentDataError(
            f"particles of {one} and {other} have the same number in the store; name each micrograph once"
        )


def write_copies(url: str, rows: NDArray[np.int64], images: NDArray[np.float32], layout: StackLayout) -> None:
    """Write the images of a micrograph into shards of their own; tasks do it themselves, and may run twice.

    Parameters
    ----------
    url
        Of the store.
    rows
        Their numbers, `growing_rows`.
    images
        (n, box, box).
    layout
        Of the store.

    Raises
    ------
    ParameterError
        Values that are not finite in the type on disk.
    """
    with storage_errors(url), traffic.purpose("images"):
        store = object_store(url)
        for first in range(0, len(rows), layout.shard):
            part = np.arange(first, min(first + layout.shard, len(rows)))
            index = layout.index(len(part))
            raw = np.empty(len(part) * layout.chunk_bytes + len(index), np.uint8)
            raw[-len(index) :] = np.frombuffer(index, np.uint8)
            pixels = raw[: -len(index)].view(np.dtype(layout.dtype).newbyteorder("<"))
            if not narrow(images.reshape(len(images), -1), part, pixels.reshape(len(part), layout.pixels)):
                raise ParameterError(f"images cannot be stored as {layout.dtype}: values are too large")
            put(store, layout.key(int(rows[first]) // layout.shard), raw.data)


def write_places(
    url: str,
    rows: NDArray[np.int64],
    image: str,
    hot: float | None,
    corners: NDArray[np.int64],
    layout: StackLayout,
) -> None:
    """Write where the images of a micrograph lie in it; as `write_copies`, and `Windows`."""
    beside = relative(image, url)
    for first in range(0, len(rows), layout.shard):
        part = Windows(image, beside, hot, corners[first : first + layout.shard])
        write_windows(url, int(rows[first]) // layout.shard, part)


def _shard(identity: str, part: int) -> int:
    digest = hashlib.blake2b(f"{part}\n{identity}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % GROWING_SHARDS
