"""The micrograph store: a store of images of any height and width, and the micrograph table beside them."""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, MissingInputError
from cloudem.io.image_store import ImageStore, StoreKind
from cloudem.io.image_writer import write_images
from cloudem.io.storage.groups import read_attributes
from cloudem.io.storage.location import exists
from cloudem.model.micrographs import Micrographs

MICROGRAPHS = StoreKind(Micrographs, "grey value", square=False)


class MicrographStore(ImageStore[Micrographs]):
    """Micrographs on disk, opened for reading, see `ImageStore`; all have one shape and one pixel size."""

    KIND = MICROGRAPHS
    CACHED = (*ImageStore.CACHED, "micrographs")

    @cached_property
    def micrographs(self) -> Micrographs:
        """The micrograph table.

        Raises
        ------
        StorageError, FormatError
            Part of it is lost or changed, or it has another number of rows than there are images.
        """
        return self._read_table()


def open_micrographs(url: str | os.PathLike[str]) -> MicrographStore:
    """Open a micrograph store.

    Raises
    ------
    MissingInputError
        There is nothing under that name.
    FormatError
        What is there is not a finished micrograph store.
    """
    url = os.fspath(url)
    attributes = read_attributes(url, "")
    if attributes is None or attributes.get("kind") != MICROGRAPHS.name:
        if not exists(url):
            raise MissingInputError(f"{url} does not exist, where a micrograph store is needed; check the path")
        what = f"a store of kind {str(attributes.get('kind'))[:40]!r}" if attributes else "no finished cloudem store"
        raise FormatError(f"{url} is {what}, where a micrograph store is needed; check the path")
    return MicrographStore(url, url, attributes)


def write_micrographs(
    url: str | os.PathLike[str],
    micrographs: Micrographs,
    images: Iterable[NDArray[np.float32]],
    *,
    shape: tuple[int, int],
    pixel_size: float,
    dtype: str = "float16",
    attributes: Mapping[str, Any] | None = None,
    guard: Callable[[], None] | None = None,
) -> None:
    """Write a micrograph store: `write_images` with micrographs."""
    write_images(
        url, MICROGRAPHS, micrographs, images,
        shape=shape, pixel_size=pixel_size, dtype=dtype, attributes=attributes, guard=guard,
    )  # fmt: skip
