"""Images of a micrograph: a group of its own, as jobs write them, or one image in an MRC or TIFF file.

A group holds an image of each kind in half precision, as (value - mean) / standard deviation, and the two numbers, so
that no camera's counts exceed what such numbers hold.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, ParameterError
from cloudem.io.movies.opening import open_movie
from cloudem.io.storage.groups import arrays_in, read_attributes, read_rows, write_same_group
from cloudem.io.storage.location import is_fsspec, join

SUM, UNWEIGHTED, EVEN, ODD = "sum", "unweighted", "even", "odd"
"""Kinds of images: the sum of all frames, weighted by dose where it is known; without weights; of every other frame."""

THUMBNAIL, THUMBNAIL_PX = "thumbnail", 320
"""Array of a group that is for looking only, and its greatest size in pixels."""

FOLDER = "images"
"""Where the groups lie in a result."""

_KIND = "micrograph image"
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")


class MicrographImage(NamedTuple):
    """The images of a micrograph, opened for reading; small to pickle.

    Attributes
    ----------
    place
        URL of the group, or the file.
    shape
        Rows and columns.
    pixel_size
        Å; 0 where a file does not say it.
    scales
        Mean and standard deviation of each kind in a group; empty for a file, which has `SUM` alone.
    attributes
        What the job that wrote the group says besides.
    """

    place: str
    shape: tuple[int, int]
    pixel_size: float
    scales: Mapping[str, tuple[float, float]]
    attributes: Mapping[str, Any]

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which images there are."""
        return tuple(self.scales) or (SUM,)

    def thumbnail(self) -> NDArray[np.uint8]:
        """Return the image for looking, see `thumbnail_of`; of a file it is made anew from all of it."""
        if not self.scales:
            return thumbnail_of(self.read())
        found: NDArray[np.uint8] = read_rows(self.place, "", [THUMBNAIL], 0, THUMBNAIL_PX)[THUMBNAIL]
        return found

    def read(self, kind: str = SUM, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return an image, or some of its rows.

        Parameters
        ----------
        kind
            One of `kinds`.
        rows
            Which; with a step of 1.

        Returns
        -------
        image
            ``(rows, columns)``; row 0 is the first that is stored, y = 0.

        Raises
        ------
        ParameterError
            There is no such kind.
        StorageError, FormatError
            It is lost or damaged.
        """
        if kind not in self.kinds:
            raise ParameterError(f"{self.place} has no image {kind!r}; it has {', '.join(self.kinds)}")
        start, stop, _ = rows.indices(self.shape[0])
        if not self.scales:
            movie = open_movie(self.place)
            image = movie.read(0, 1)[0].astype(np.float32)
            if movie.damaged or not np.isfinite(image).all():
                raise FormatError(f"{self.place}: its image is damaged; copy it again, or leave it out")
            return np.ascontiguousarray(image[start:stop])
        mean, std = self.scales[kind]
        values = read_rows(self.place, "", [kind], start, stop)[kind].astype(np.float32)
        values *= np.float32(std)
        values += np.float32(mean)
        return values


def thumbnail_of(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return an image at most `THUMBNAIL_PX` wide and high, for looking: means of squares of pixels, as grey bytes.

    Parameters
    ----------
    image
        ``(rows, columns)``.

    Returns
    -------
    thumbnail
        0 and 255 are 2.5 standard deviations of the means below and above their mean.
    """
    means = means_of_squares(image, THUMBNAIL_PX)
    spread = float(means.std()) or 1.0
    grey: NDArray[np.uint8] = np.clip(np.rint((means - means.mean()) / spread * 51 + 127.5), 0, 255).astype(np.uint8)
    return grey


def means_of_squares(image: NDArray[np.float32], most_px: int) -> NDArray[np.floating[Any]]:
    """Return an image at most so many pixels wide and high: means of squares of pixels, what is left over cut off.

    Parameters
    ----------
    image
        ``(rows, columns)``.
    most_px
        Of the result.
    """
    step = max(1, -(-max(image.shape) // most_px))
    rows, columns = (max(size // step, 1) for size in image.shape)
    part = image[: rows * step, : columns * step]
    if part.size < rows * columns * step * step:  # narrower than one square
        return np.zeros((rows, columns), np.float32)
    # Sums along rows first: a reduction over two strided axes at once takes ten times as long.
    sums = part.reshape(rows, step, columns * step).sum(axis=1)
    means: NDArray[np.floating[Any]] = sums.reshape(rows, columns, step).mean(axis=2) / step
    return means


def image_place(url: str, name: str) -> str:
    """Return where the images of a micrograph of that name lie in the results under a URL."""
    return join(url, f"{FOLDER}/{name_as_group(name)}")


def name_as_group(name: str) -> str:
    """Return the name of a micrograph, or one that stands for it where a group cannot have that."""
    if _SAFE.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-80:].strip("._-")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def write_micrograph_image(
    url: str,
    name: str,
    images: Mapping[str, NDArray[np.float32]],
    *,
    pixel_size: float,
    attributes: Mapping[str, Any] | None = None,
) -> str:
    """Write the images of a micrograph into the results of a job; tasks do it themselves, and may run twice.

    Parameters
    ----------
    url
        Of the results.
    name
        Of the micrograph.
    images
        Kind -> ``(rows, columns)``; all of one shape, `SUM` among them.
    pixel_size
        Å.
    attributes
        What else is kept beside them, as JSON.

    Returns
    -------
    place
        What `open_micrograph_image` opens; belongs into the column ``image``.

    Raises
    ------
    InconsistentDataError
        An image holds what is not finite, or they are of several shapes.
    StorageError
        It cannot be written.
    """
    if SUM not in images or len({image.shape for image in images.values()}) != 1:
        raise InconsistentDataError(f"the images of {name} are of several shapes, or there is no sum among them")
    scales, halves = {}, {}
    for kind, image in images.items():
        mean, std = float(image.mean(dtype=np.float64)), float(image.std(dtype=np.float64))
        if not (math.isfinite(mean) and math.isfinite(std)):
            raise InconsistentDataError(f"{name}: its image {kind} holds what is not finite")
        scales[kind] = (mean, std)
        scaled = (image - np.float32(mean)) * np.float32(1 / std if std else 1)
        halves[kind] = np.clip(scaled, -60000, 60000).astype(np.float16)
    halves[THUMBNAIL] = thumbnail_of(images[SUM])
    place = image_place(url, name)
    said = {"kind": _KIND, "micrograph": name, "pixel_size_A": pixel_size, "scales": scales, **(attributes or {})}
    write_same_group(place, "", halves, said)
    return place


def open_micrograph_image(place: str | os.PathLike[str]) -> MicrographImage:
    """Open what the column ``image`` of a micrograph names.

    Raises
    ------
    MissingInputError
        It is not there.
    FormatError
        It is no image of a micrograph, or damaged.
    """
    text = os.fspath(place)
    found = None if is_fsspec(text) else read_attributes(text, "")  # results lie in folders and on S3 alone
    if found is None:
        movie = open_movie(text)
        if movie.frames != 1:
            raise FormatError(f"{text} holds {movie.frames} images, where one is needed; import it as a movie")
        return MicrographImage(text, movie.shape, movie.pixel_size, {}, {})
    try:
        if found["kind"] != _KIND:
            raise KeyError("kind")
        scales = {str(kind): (float(mean), float(std)) for kind, (mean, std) in found["scales"].items()}
        size = float(found["pixel_size_A"])
        arrays = arrays_in(text, "")
        shape = arrays[SUM].shape
        if any(arrays[kind].shape != shape for kind in scales) or len(shape) != 2:
            raise ValueError("shapes")
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{text} is no image of a micrograph, or is damaged; make it again") from error
    return MicrographImage(text, (shape[0], shape[1]), size, scales, found)
