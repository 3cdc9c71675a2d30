"""Pictures of micrographs for pages: small ones for lists, a large one, one without its noise, and the spectrum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import MissingInputError, ParameterError
from cloudem.io.micrographs.images import MicrographImage, means_of_squares, open_micrograph_image
from cloudem.io.storage.location import is_fsspec, is_remote
from cloudem.report.grey_pictures import grey_jpeg, spread

SMALL_PX, SMALL_QUALITY = 160, 40
"""Greatest size of a picture in a list, and how finely JPEG keeps it: some 4 kB."""

LARGE_PX, LARGE_QUALITY = 1024, 72

SMOOTH_A, FLAT_A = 20.0, 800.0
"""Details finer than the one and broader than the other are left out of a picture without noise."""

KINDS = ("small", "large", "smooth")


def picture_of(place: str, pixel_size: float, kind: str, project: str) -> bytes:
    """Return a picture of a micrograph as JPEG, the first row at the top.

    Parameters
    ----------
    place
        Of its images.
    pixel_size
        Å; 0 where it is not known.
    kind
        One of `KINDS`.
    project
        URL of the project: what lies beyond S3, or on S3 where the project does not, is not read for a page.

    Raises
    ------
    CloudemError
        It is lost, damaged, or not to be read.
    """
    if is_fsspec(place) or (is_remote(place) and not is_remote(project)):
        raise ParameterError(f"{place} is not read for a page; it lies elsewhere than the project")
    opened = open_micrograph_image(place)
    if kind == "small":
        if not opened.scales and is_remote(place):
            raise ParameterError(f"{place} has no small picture, and is not read as a whole for one")
        return grey_jpeg(opened.thumbnail(), SMALL_PX, SMALL_QUALITY)
    means = _means(opened)
    if kind == "smooth":
        means = without_noise(means, (pixel_size or opened.pixel_size or 1.0) * opened.shape[1] / means.shape[1])
    return grey_jpeg(spread(means, 3.0), LARGE_PX, LARGE_QUALITY)


def _means(opened: MicrographImage) -> NDArray[np.floating[Any]]:
    return means_of_squares(opened.read(), LARGE_PX)


def without_noise(image: NDArray[np.floating[Any]], pixel_size: float) -> NDArray[np.floating[Any]]:
    """Return an image between two Gaussian filters: noise finer than `SMOOTH_A` and shades broader than `FLAT_A` go.

    Parameters
    ----------
    image
        ``(rows, columns)``.
    pixel_size
        Å.
    """
    from scipy.ndimage import gaussian_filter

    fine, broad = (size / pixel_size / (2 * np.pi) for size in (SMOOTH_A, FLAT_A))
    values = image.astype(np.float32)
    found: NDArray[np.floating[Any]] = gaussian_filter(values, fine) - gaussian_filter(values, broad)
    return found


def spectrum_picture_of(picture: NDArray[np.uint8]) -> bytes:
    """Return a spectrum as JPEG, the highest ky at the top as in a plot.

    Raises
    ------
    CloudemError
        It is no picture.
    """
    if picture.dtype != np.uint8 or picture.ndim != 2 or max(picture.shape) > LARGE_PX:
        raise MissingInputError("the spectrum has no picture")
    return grey_jpeg(picture[::-1], 0, 80)
