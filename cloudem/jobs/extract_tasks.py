"""What ``cloudem extract`` does with one micrograph: boxes are chosen, cut, and written where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.extraction import BEYOND, DUPLICATE, NO_NUMBER, TAKEN, ChosenBoxes, choose_boxes
from cloudem.errors import CloudemError, recorded_reason
from cloudem.io.growing_store import growing_rows, write_copies, write_places
from cloudem.io.images.layout import StackLayout
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.kernels.background import USABLE
from cloudem.kernels.boxes import BoxRecipe, boxed_particles, replace_hot_pixels
from cloudem.model.table import TEXT

UNUSABLE = 4
"""What becomes of a position whose box holds no usable image, beside those of `cloudem.algorithms.extraction`."""

FATES = {
    BEYOND: "the box reaches beyond the micrograph",
    DUPLICATE: "too close to a better one",
    NO_NUMBER: "the position is no number",
    UNUSABLE: "constant, not finite, or nearly all beyond the micrograph",
}
"""In words."""


class ExtractionSettings(NamedTuple):
    """How all micrographs are treated.

    Attributes
    ----------
    store
        URL of the store of images.
    recipe
        How boxes become images.
    dtype
        Of the images.
    copied
        Whether pixels are written, or where they lie.
    padded
        Whether boxes may reach beyond the micrograph.
    distance
        Å between two particles that are kept; 0 where it does not matter.
    hot_sigma
        Standard deviations of the micrograph by which a hot pixel stands out; 0 for none.
    pixel_size
        Of the micrographs, Å.
    """

    store: str
    recipe: BoxRecipe
    dtype: str
    copied: bool
    padded: bool
    distance: float
    hot_sigma: float
    pixel_size: float


class MicrographPositions(NamedTuple):
    """A micrograph and what is to be cut out of it.

    Attributes
    ----------
    image
        Place of its image.
    problem
        Why it is of no use; empty where it is.
    identity
        Tells it, and its positions, from every other.
    places
        Pixels, (n, 2) as x, y.
    quality
        Which of two that are too close is the better one, (n,).
    """

    image: str
    problem: str
    identity: str
    places: NDArray[np.float64]
    quality: NDArray[np.float64]


class _Cut(NamedTuple):
    problem: str
    hot: int
    fate: NDArray[np.uint8]
    centres: NDArray[np.int64]
    rows: NDArray[np.int64]
    unread: bool = False


def extract_particles(entries: Sequence[MicrographPositions], settings: ExtractionSettings) -> dict[str, NDArray[Any]]:
    """Write the images of the particles of some micrographs; return what became of their positions.

    Returns
    -------
    found
        Of each micrograph: ``problem``, whether it is ``unread``, ``hot`` pixels, ``each_count`` positions. Of each
        position: its ``each_fate`` (`TAKEN` or a number of `FATES`), the pixel of its box's origin, ``each_x`` and
        ``each_y``, and the number of its image in the store, ``each_row``; -1 where it has none.
    """
    cuts = [_one(entry, settings) for entry in entries]
    return {
        "problem": np.array([cut.problem for cut in cuts], TEXT),
        "unread": np.array([cut.unread for cut in cuts], np.bool_),
        "hot": np.array([cut.hot for cut in cuts], np.int64),
        "each_count": np.array([len(cut.fate) for cut in cuts], np.int64),
        "each_fate": np.concatenate([cut.fate for cut in cuts]),
        "each_x": np.concatenate([cut.centres[:, 0] for cut in cuts]).astype(np.int32),
        "each_y": np.concatenate([cut.centres[:, 1] for cut in cuts]).astype(np.int32),
        "each_row": np.concatenate([cut.rows for cut in cuts]),
    }


def _one(entry: MicrographPositions, settings: ExtractionSettings) -> _Cut:
    nothing = np.full(len(entry.places), -1, np.int64)
    none = _Cut(entry.problem, 0, np.full(len(nothing), UNUSABLE, np.uint8), np.stack([nothing] * 2, axis=1), nothing)
    if entry.problem or not len(entry.places):
        return none
    try:
        image = open_micrograph_image(entry.image)
        problem = _unfit(image.pixel_size, image.shape, settings)
        if problem:
            return none._replace(problem=problem)
        chosen = choose_boxes(
            entry.places, entry.quality, settings.recipe.box, image.shape,
            padded=settings.padded, distance=settings.distance / settings.pixel_size,
        )  # fmt: skip
        pixels = image.read()
    except CloudemError as error:
        return none._replace(problem=recorded_reason(error), unread=True)
    return _cut(entry, chosen, pixels, settings)


def _cut(
    entry: MicrographPositions, chosen: ChosenBoxes, pixels: NDArray[np.float32], settings: ExtractionSettings
) -> _Cut:
    """Cut the boxes that were chosen, and write what comes of them."""
    limit, hot = None, 0
    if settings.hot_sigma:
        limit = settings.hot_sigma * float(pixels[::4].std(dtype=np.float64))  # some rows say enough
        hot = replace_hot_pixels(pixels, limit)
    fate, taken = chosen.fate.copy(), np.flatnonzero(chosen.fate == TAKEN)
    boxed = boxed_particles(pixels, chosen.corners[taken], settings.recipe)
    good = boxed.found == USABLE
    fate[taken[~good]] = UNUSABLE
    layout = StackLayout.growing(settings.recipe.size, settings.dtype, windows=not settings.copied)
    rows = growing_rows(entry.identity, int(good.sum()), layout)
    if settings.copied:
        write_copies(settings.store, rows, boxed.images if good.all() else boxed.images[good], layout)
    else:
        write_places(settings.store, rows, entry.image, limit, chosen.corners[taken[good]], layout)
    numbers = np.full(len(fate), -1, np.int64)
    numbers[taken[good]] = rows
    return _Cut("", hot, fate, chosen.centres, numbers)


def _unfit(pixel_size: float, shape: tuple[int, int], settings: ExtractionSettings) -> str:
    """Say why a micrograph cannot be used with the others; empty where it can."""
    if pixel_size and abs(pixel_size / settings.pixel_size - 1) > 0.01:
        return f"has pixels of {pixel_size:g} Å, the others of {settings.pixel_size:g} Å; extract it by itself"
    if min(shape) < settings.recipe.box and not settings.padded:
        return f"has {shape[1]} x {shape[0]} pixels, less than a box of {settings.recipe.box}"
    return ""
