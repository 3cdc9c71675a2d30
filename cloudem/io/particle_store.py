"""The particle store: images, see `cloudem.io.image_store`, and the particle table beside them.

The result of a job that holds particles is a particle store, too: its table is the group ``particles``, which says
where the images lie (`ImageSource`), and whose column ``store_row`` says which of them belong to its rows.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudem.errors import FormatError, InconsistentDataError, MissingInputError, ParameterError
from cloudem.io.image_store import KIND, ImageStore, date_of
from cloudem.io.image_writer import image_writer
from cloudem.io.storage import fsspec_urls
from cloudem.io.storage.groups import has_group, list_groups, read_attributes
from cloudem.io.storage.location import exists, folder_of, is_fsspec, is_remote, join
from cloudem.io.storage.relative import relative, resolved
from cloudem.model.particles import Particles

RESULT_TABLE = "particles"
"""Group of a result that holds its particles."""


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


MODEL = "model"
"""Group of a result of ``cloudem subtract``: what is subtracted of images when they are read."""


class ModelSource(NamedTuple):
    """Where that lies which is subtracted of the images of a table; its columns say in which pose.

    Attributes
    ----------
    url
        Of the result whose group `MODEL` it is.
    fingerprint
        Tells it from one made later under the same name.
    beside
        The same place as seen from the table; empty where they share none.
    """

    url: str
    fingerprint: str
    beside: str = ""

    def seen_from(self, table: str) -> "ModelSource":
        """Return what a table under a URL is to record of it."""
        return self._replace(beside=relative(self.url, table))


class ParticleStore(ImageStore):
    """Particles on disk, opened for reading; safe in threads, small to pickle.

    Attributes
    ----------
    url
        Where its table is.
    image_url
        Where its images are: the same, unless it is the result of a job.
    attributes
        What the writer said of the store of images.
    model
        What is to be subtracted of its images, `cloudem.jobs.dataset.Dataset.images` does it; None for nothing.
    """

    CACHED = (*ImageStore.CACHED, "particles", "rows")

    drawn_by: "ClassVar[Callable[[ParticleStore], str] | None]" = None
    """Returns how a notebook shows a store; `cloudem.jobs.opened` puts it here, since nothing below it can draw."""

    def __init__(self, url: str | os.PathLike[str]) -> None:
        url = image_url = os.fspath(url)
        self.model: ModelSource | None = None
        attributes = read_attributes(url, "")
        if attributes is not None and attributes.get("kind") == "result" and RESULT_TABLE in list_groups(url, ""):
            image_url, attributes = _images_of(url)
            self.model = _model_of(url)
        if attributes is None or attributes.get("kind") != KIND:
            raise _not_particles(url, attributes)
        super().__init__(url, image_url, attributes)
        self._count = None if self.is_result else self._layout.count

    @property
    def is_result(self) -> bool:
        """Whether it is the result of a job, with the images of another store."""
        return self.url != self.image_url

    def __repr__(self) -> str:
        return f"<ParticleStore {self.url}: box {self.box} px, {self.pixel_size:g} Å per pixel>"

    def _repr_html_(self) -> str | None:
        """Return how a notebook shows it; None where only the text above is known."""
        return None if ParticleStore.drawn_by is None else ParticleStore.drawn_by(self)

    def __len__(self) -> int:
        """Return the number of particles."""
        if self._count is None:
            self._count = len(self.particles)
        return self._count

    @cached_property
    def particles(self) -> Particles:
        """The particle table.

        Raises
        ------
        StorageError, FormatError
            Part of it is lost or changed, or it has another number of rows than there are images.
        """
        return self._read_table()

    def read_images(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return images, see `ImageStore.read_images`.

        Raises
        ------
        ParameterError
            Besides: something is to be subtracted of them, which is not done here.
        """
        if self.model is not None:
            raise ParameterError(
                f"part of the images of {self.url} is subtracted when they are read; read them with "
                "cloudem.jobs.dataset.open_dataset(url).images(numbers), or export them"
            )
        return super().read_images(indices)

    def numbers_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of its particles have their images in some rows of the store of images, (m,).

        Raises
        ------
        InconsistentDataError
            A row is none of theirs.
        """
        mine = np.arange(len(self)) if self.rows is None else self.rows
        order = np.argsort(mine, kind="stable")
        places = np.searchsorted(mine[order], rows)
        if len(rows) and (places.max() >= len(mine) or (mine[order[places]] != rows).any()):
            raise InconsistentDataError(f"{self.url} does not hold all of these particles; give the store they are of")
        return np.asarray(order[places])

    @property
    def table_group(self) -> str:
        """Group of the table."""
        return RESULT_TABLE if self.is_result else "columns"

    @cached_property
    def rows(self) -> NDArray[np.int64] | None:
        """Number of each particle's image in the store of images, (n,); None where all are there in order."""
        if not self.is_result or "store_row" not in self.particles:
            return None
        rows: NDArray[np.int64] = self.particles["store_row"]
        return rows


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
        if attributes is not None and attributes.get("kind") == KIND:
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


def _model_of(url: str) -> ModelSource | None:
    """Return what is to be subtracted of the images of a result's particles; None for nothing.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        It is not where it was; the result does not say where; there is another one now.
    """
    found = (read_attributes(url, RESULT_TABLE) or {}).get("subtracted")
    if found is None:
        return None
    try:
        source = ModelSource(**found)
    except TypeError as error:
        raise FormatError(f"{url} does not say what is subtracted of its images; run the job again") from error
    places = [url, source.url, *([join(url, source.beside)] if source.beside else [])]  # its own, if it has one
    prints = {resolved(place): (read_attributes(resolved(place), MODEL) or {}).get("fingerprint") for place in places}
    for place, fingerprint in prints.items():
        if fingerprint == source.fingerprint:
            return source._replace(url=place)
    if any(prints.values()):
        raise InconsistentDataError(
            f"{source.url}, which says what is subtracted of the images of {url}, has been made anew since; run the "
            f"job that made {url} again"
        )
    raise MissingInputError(
        f"{source.url} does not exist, which says what is subtracted of the images of {url}; put it back, or run the "
        "job again"
    )


def _not_particles(url: str, attributes: Mapping[str, Any] | None) -> Exception:
    if is_fsspec(url):
        return fsspec_urls.refuse(url)
    if not exists(url):
        return MissingInputError(f"{url} does not exist; make it with: cloudem import particles.star --out {url}")
    if not is_remote(url) and folder_of(url).is_file():
        if url.endswith((".star", ".cs")):
            return FormatError(f"{url} is a file; import it first: cloudem import {url} --out particles.zarr")
        return FormatError(
            f"{url} is a file, where a particle store or the results of a job are needed; make a store from a .star or "
            ".cs file with cloudem import"
        )
    if has_group(url, "picks"):
        return FormatError(
            f"{url} holds coordinates of particles, where images of them are needed; cut them out first: "
            f"cloudem extract {url} --box-px 256 --out particles"
        )
    what = f"a result of kind {attributes.get('kind')!r}" if attributes else "no finished cloudem store"
    return FormatError(f"{url} is {what}, where a particle store is needed; make one with cloudem import")


def write_particles(
    url: str | os.PathLike[str],
    particles: Particles,
    images: Iterable[NDArray[np.float32]],
    *,
    box: int,
    pixel_size: float,
    dtype: str = "float16",
    attributes: Mapping[str, Any] | None = None,
    guard: Callable[[], None] | None = None,
) -> None:
    """Write a particle store.

    Parameters
    ----------
    url
        Where; nothing may be there yet.
    particles
        One row per image.
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
    guard
        As for `image_writer`.

    Raises
    ------
    OutputExistsError, ParameterError, InconsistentDataError, StorageError
        As `image_writer`, `ImageWriter.append` and `ImageWriter.finish` say. Nothing is left behind.
    """
    with image_writer(url, expected=len(particles), box=box, pixel_size=pixel_size, dtype=dtype, guard=guard) as writer:
        for batch in images:
            writer.append(batch)
        writer.finish(particles, attributes)
