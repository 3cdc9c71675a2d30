"""From a table and its stacks to a particle store: normalise, leave out what cannot be used, write."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, ParameterError
from cloudem.io.normalising import scale_by_background
from cloudem.io.sources import SourceImages, SourceTable
from cloudem.io.store import particle_writer

_BATCH_BYTES = 32 * 2**20
_NAMED = 1000
"""Left-out images that are named in the store; all are counted."""

_LARGEST_HALF = 65504.0
NOT_FINITE, CONSTANT, TOO_LARGE = "NaN or infinite", "constant", "values beyond half precision"


@dataclass
class ImportSummary:
    """What an import did.

    Attributes
    ----------
    imported
        Number of particles in the store.
    left_out
        Reason to names of the images that were left out for it.
    warnings
        Further lines for the user.
    """

    imported: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return one line for each reason, and the warnings."""
        reasons = [
            f"left out {len(names)} images ({reason}): {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
            for reason, names in self.left_out.items()
        ]
        return reasons + self.warnings


@dataclass(frozen=True)
class Normalised:
    """Images with the background at mean 0 and standard deviation 1; ``source = images * std + mean``."""

    images: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]


def background(box: int, diameter_px: float) -> NDArray[np.bool_]:
    """Return the pixels outside the circle of a diameter around the origin ``box // 2``, ``(box, box)``.

    Raises
    ------
    ParameterError
        The circle leaves fewer than 1 % of the pixels.
    """
    axis = np.arange(box) - box // 2
    outside = axis[:, None] ** 2 + axis[None, :] ** 2 > (diameter_px / 2) ** 2
    if outside.mean() < 0.01:
        raise ParameterError(
            f"a circle of {diameter_px:.0f} pixels leaves no background in a box of {box}; give a smaller --diameter-A"
        )
    return np.asarray(outside)


def normalise(images: NDArray[np.float32], outside: NDArray[np.bool_]) -> Normalised:
    """Bring the background of each image to mean 0 and standard deviation 1, as RELION does.

    Parameters
    ----------
    images
        Shape ``(b, n, n)``, finite.
    outside
        Pixels of the background, ``(n, n)``.

    Returns
    -------
    normalised
        Where the background alone is constant (noise-free or masked images) the deviation is that of the whole image.
    """
    out = np.empty(images.shape, dtype=np.float32)
    mean, std = np.empty((2, len(images)), dtype=np.float32)
    scale_by_background(images, outside.astype(np.float64), out, mean, std)
    return Normalised(out, mean, std)


def import_particles(
    source: SourceTable,
    url: str | os.PathLike[str],
    *,
    pixel_size: float | None = None,
    diameter: float | None = None,
    dtype: str = "float16",
    keep_greyscale: bool = False,
    invert_contrast: bool = False,
    project_folder: str | os.PathLike[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    on_progress: Callable[[int], None] | None = None,
    guard: Callable[[], None] | None = None,
) -> ImportSummary:
    """Write the particles of a table and their images to a new particle store.

    Memory stays at a few batches of images, whatever the number of particles.

    Parameters
    ----------
    source
        The table.
    url
        The new store.
    pixel_size
        Å per pixel, instead of what the table says.
    diameter
        Diameter of the particle in Å; what is outside is background. 0.9 of the box where None.
    dtype
        ``"float16"`` or ``"float32"``.
    keep_greyscale
        Store the values as they are, always as float32.
    invert_contrast
        Images have dark protein: turn their sign.
    project_folder
        Where relative names of stacks start from, see `cloudem.io.sources.find_stacks`.
    attributes
        What else the store should say of itself.
    on_progress
        Called with the number of images done since the last call.
    guard
        As for `cloudem.io.writing.particle_writer`.

    Returns
    -------
    summary
        What was imported and what left out.

    Raises
    ------
    CloudemError
        As `SourceImages` and `particle_writer` say; nothing is left behind.
    """
    images = SourceImages(source, project_folder)
    summary = ImportSummary()
    size = _pixel_size(source, images, pixel_size, summary)
    outside = background(images.box, diameter / size if diameter is not None else 0.9 * images.box)
    stored = "float32" if keep_greyscale else dtype
    sign = source.sign * (-1.0 if invert_contrast else 1.0)
    kept: list[NDArray[np.int64]] = []
    means: list[NDArray[np.float32]] = []
    deviations: list[NDArray[np.float32]] = []
    with particle_writer(
        url, expected=len(source.particles), box=images.box, pixel_size=size, dtype=stored, guard=guard
    ) as writer:
        for start, stop in _batches(len(source.particles), images.box):
            batch = images.read(start, stop)
            usable = _usable(batch, source, start, summary)
            done = _prepare(_chosen(batch, usable), sign[start:stop][usable], outside, keep_greyscale)
            fits = _fits(done, stored, source, start + np.flatnonzero(usable), summary)
            writer.append(_chosen(done.images, fits))
            kept.append(start + np.flatnonzero(usable)[fits])
            means.append(done.mean[fits])
            deviations.append(done.std[fits])
            if on_progress is not None:
                on_progress(stop - start)
        rows = np.concatenate(kept)
        if not len(rows):
            reasons = ", ".join(f"{len(names)} {reason}" for reason, names in summary.left_out.items())
            raise FormatError(f"{source.path}: no image can be used ({reasons}); look at the stacks")
        table = source.particles.take(rows).with_columns(
            image_mean=np.concatenate(means), image_std=np.concatenate(deviations)
        )
        left_out = {
            reason: {"count": len(names), "images": names[:_NAMED]} for reason, names in summary.left_out.items()
        }
        writer.finish(
            table, {**(attributes or {}), "left_out": left_out, "normalised": not keep_greyscale, "dtype": stored}
        )
    summary.imported = len(rows)
    return summary


def _prepare(
    images: NDArray[np.float32], sign: NDArray[np.float64], outside: NDArray[np.bool_], keep_greyscale: bool
) -> Normalised:
    """Normalise and turn the contrast; a turned image has a negative `std`, so that the source comes back from it."""
    factor = sign.astype(np.float32)
    if keep_greyscale:
        done = Normalised(images, np.zeros(len(images), dtype=np.float32), np.ones(len(images), dtype=np.float32))
    else:
        done = normalise(images, outside)
    if (factor == 1).all():
        return done
    return Normalised(done.images * factor[:, None, None], done.mean, done.std * factor)


def _usable(batch: NDArray[np.float32], source: SourceTable, start: int, summary: ImportSummary) -> NDArray[np.bool_]:
    flat = batch.reshape(len(batch), -1)
    low, high = flat.min(axis=1), flat.max(axis=1)  # NaN wherever there is one
    finite = np.isfinite(low) & np.isfinite(high)
    constant = finite & (low == high)
    _leave_out(start + np.flatnonzero(~finite), NOT_FINITE, source, summary)
    _leave_out(start + np.flatnonzero(constant), CONSTANT, source, summary)
    return np.asarray(finite & ~constant)


def _fits(
    done: Normalised, dtype: str, source: SourceTable, rows: NDArray[np.int64], summary: ImportSummary
) -> NDArray[np.bool_]:
    if dtype != "float16":
        return np.ones(len(rows), dtype=bool)
    largest, least = (bound(done.images, axis=(1, 2), initial=0) for bound in (np.max, np.min))
    fits = (largest <= _LARGEST_HALF) & (least >= -_LARGEST_HALF)
    _leave_out(rows[~fits], TOO_LARGE, source, summary)
    return np.asarray(fits)


def _chosen(images: NDArray[np.float32], which: NDArray[np.bool_]) -> NDArray[np.float32]:
    return images if which.all() else images[which]


def _leave_out(rows: NDArray[np.int64], reason: str, source: SourceTable, summary: ImportSummary) -> None:
    if len(rows):
        names = source.particles["image_name"][rows].tolist()
        summary.left_out.setdefault(reason, []).extend(names)


def _pixel_size(source: SourceTable, images: SourceImages, given: float | None, summary: ImportSummary) -> float:
    size = given or source.pixel_size or images.pixel_size
    if not size:
        raise InconsistentDataError(f"neither {source.path} nor its stacks state a pixel size; give --pixel-size-A")
    if not given and source.pixel_size and images.pixel_size and abs(images.pixel_size / size - 1) > 0.01:
        summary.warnings.append(
            f"{source.path} says {size:g} Å per pixel, the stacks say {images.pixel_size:g}: the table is believed"
        )
    return size


def _batches(count: int, box: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BATCH_BYTES // (4 * box * box))
    yield from ((start, min(start + step, count)) for start in range(0, count, step))
