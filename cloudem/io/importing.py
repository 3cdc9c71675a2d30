"""From a table and its stacks to a particle store: normalise, leave out what cannot be used, write."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError, ParameterError
from cloudem.io.formats.grids import SOURCE_BOX, SOURCE_PIXEL_SIZE, PixelGrid, ResampledImages, common_grid
from cloudem.io.formats.plausible import doubts
from cloudem.io.formats.sources import SourceImages, SourceTable
from cloudem.io.formats.unapplied import unapplied, without_unapplied
from cloudem.io.image_writer import DTYPES, ImageWriter, image_writer
from cloudem.kernels.background import (
    CONSTANT,
    NOT_FINITE,
    TOO_LARGE,
    USABLE,
    background,
    fingerprint,
    measure_background,
    scale_images,
)
from cloudem.model.particles import Particles
from cloudem.model.table import distinct

_BATCH_BYTES = 4 * 2**20
"""Images that are read at a time, into the same memory: what the caches hold need not come from memory again."""

_NAMED = 1000
"""Left-out images that are named in the store; all are counted."""

_REASONS = {
    NOT_FINITE: dict.fromkeys(DTYPES, "NaN or infinite"),
    CONSTANT: dict.fromkeys(DTYPES, "constant"),
    TOO_LARGE: {"float16": "values beyond half precision", "float32": "values beyond single precision"},
}
"""Why an image is left out of a store of some type."""


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


def background_of(box: int, diameter: float | None, pixel_size: float) -> NDArray[np.bool_]:
    """Return the `background` of a particle of a diameter in Å, 0.9 of the box where None."""
    return background(box, diameter / pixel_size if diameter is not None else 0.9 * box)


def import_particles(
    source: SourceTable,
    url: str | os.PathLike[str],
    *,
    pixel_size: float | None = None,
    target_pixel_size: float | None = None,
    target_box: int | None = None,
    without_aberrations: bool = False,
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
    target_pixel_size, target_box
        Grid that images are brought to, Å and pixels: see `cloudem.io.formats.grids.common_grid`. Where None, images
        stay as they are if they have one even box and one pixel size.
    without_aberrations
        Take particles without those aberrations that cannot be applied, instead of refusing them.
    diameter
        Diameter of the particle in Å; what is outside is background. 0.9 of the box where None.
    dtype
        ``"float16"`` or ``"float32"``.
    keep_greyscale
        Store the values as they are, always as float32.
    invert_contrast
        Images have dark protein: turn their sign.
    project_folder
        Where relative names of stacks start from, see `cloudem.io.formats.stacks.find_stacks`.
    attributes
        What else the store should say of itself.
    on_progress
        Called with the number of images done since the last call.
    guard
        As for `cloudem.io.image_writer.image_writer`.

    Returns
    -------
    summary
        What was imported and what left out.

    Raises
    ------
    CloudemError
        As `SourceImages`, `common_grid`, `without_unapplied`, `doubts` and `image_writer` say; nothing is left behind.
    """
    summary = ImportSummary()
    particles, said = without_unapplied(source.particles, source.path, allowed=without_aberrations)
    source, images, size = _on_one_grid(
        replace(source, particles=particles), project_folder, pixel_size, (target_box, target_pixel_size), summary
    )
    summary.warnings += doubts(source.particles, source.path, box=images.box, pixel_size=size, stated=False)
    summary.warnings += [*said, *unapplied(source.particles)]
    outside = background_of(images.box, diameter, size)
    stored = "float32" if keep_greyscale else dtype
    sign = (source.sign * (-1.0 if invert_contrast else 1.0)).astype(np.float32)
    with image_writer(
        url, expected=len(source.particles), box=images.box, pixel_size=size, dtype=stored, guard=guard
    ) as writer:
        mean, std, found, prints = _write_images(writer, images, sign, outside, stored, keep_greyscale, on_progress)
        rows = np.flatnonzero(found == USABLE)
        for reason, why in _REASONS.items():
            _leave_out(np.flatnonzero(found == reason), why[stored], source, summary)
        if not len(rows):
            reasons = ", ".join(f"{len(names)} {reason}" for reason, names in summary.left_out.items())
            raise FormatError(f"{source.path}: no image can be used ({reasons}); look at the stacks")
        # A turned image has a negative deviation, so that the source comes back from it.
        table = source.particles.take(rows).with_columns(image_mean=mean[rows], image_std=(std * sign)[rows])
        table = _with_copies(table, prints[rows], summary)
        left_out = {
            reason: {"count": len(names), "images": names[:_NAMED]} for reason, names in summary.left_out.items()
        }
        writer.finish(
            table,
            {
                **(attributes or {}),
                "left_out": left_out,
                "warnings": summary.warnings,
                "normalised": not keep_greyscale,
                "dtype": stored,
            },
        )
    summary.imported = len(rows)
    return summary


def _write_images(
    writer: ImageWriter,
    images: SourceImages | ResampledImages,
    sign: NDArray[np.float32],
    outside: NDArray[np.bool_],
    dtype: str,
    keep_greyscale: bool,
    on_progress: Callable[[int], None] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint64]]:
    """Write the images that can be used; return of all: mean and deviation taken out, what was found, fingerprints."""
    mean, std = np.empty((2, len(sign)), dtype=np.float32)
    found, prints = np.empty(len(sign), dtype=np.uint8), np.empty(len(sign), dtype=np.uint64)
    weights, limit = outside.astype(np.float64), np.float32(np.finfo(dtype).max)
    for here, batch in _batches(images, len(sign)):
        measure_background(batch, weights, mean[here], std[here], found[here])
        fingerprint(batch, prints[here])
        if keep_greyscale:
            mean[here], std[here] = 0, 1
        scale_images(batch, mean[here], std[here], sign[here], limit, found[here])
        writer.append(batch, np.flatnonzero(found[here] == USABLE))
        if on_progress is not None:
            on_progress(len(batch))
    return mean, std, found, prints


def _leave_out(rows: NDArray[np.int64], reason: str, source: SourceTable, summary: ImportSummary) -> None:
    if len(rows):
        names = source.particles["image_name"][rows].tolist()
        summary.left_out.setdefault(reason, []).extend(names)


def pixel_size_of(source: SourceTable, of_stacks: float, given: float | None) -> float:
    """Return the pixel size in Å of what is imported: as was given, as the table says, or as its stacks do.

    Raises
    ------
    InconsistentDataError
        Nobody says any.
    """
    size = given or source.pixel_size or of_stacks
    if not size:
        raise InconsistentDataError(f"neither {source.path} nor its stacks state a pixel size; give --pixel-size-A")
    return size


def refuse_one_size(source: SourceTable, given: float | None) -> None:
    """Refuse a pixel size that is given for images of several.

    Raises
    ------
    ParameterError
        It is.
    """
    sizes = sorted({size for size, _ in source.group_sizes})
    if given and len(sizes) > 1:
        raise ParameterError(
            f"--pixel-size-A {given:g} cannot stand for the pixel sizes of several optics groups "
            f"({', '.join(f'{size:g}' for size in sizes)} Å) in {source.path}; correct the table, or give "
            "--target-pixel-size-A to resample the images"
        )


def _on_one_grid(
    source: SourceTable,
    project_folder: str | os.PathLike[str] | None,
    given: float | None,
    wanted: tuple[int | None, float | None],
    summary: ImportSummary,
) -> tuple[SourceTable, SourceImages | ResampledImages, float]:
    """Return the table with shifts in Å, its images on one grid, and their pixel size."""
    refuse_one_size(source, given)
    parts = [(rows, part, SourceImages(part, project_folder)) for rows, part in source.parts()]
    grids = [PixelGrid(images.box, _pixel_size(part, images, given, summary)) for _, part, images in parts]
    scaled = [_at_pixel_size(part, grid.pixel_size, summary) for (_, part, _), grid in zip(parts, grids, strict=True)]
    target = common_grid(grids, *wanted)
    if len(parts) == 1 and target == grids[0]:
        return scaled[0], parts[0][2], target.pixel_size
    summary.warnings = [*dict.fromkeys(summary.warnings), regridded(grids, target)]
    optics, table = list(source.particles.optics), source.particles
    shifts = {name: table[name].copy() for name in ("shift_x", "shift_y") if name in table}
    for (rows, _, _), part, grid in zip(parts, scaled, grids, strict=True):
        for name, values in shifts.items():
            values[rows] = part.particles[name]
        if grid != target:
            said = {SOURCE_PIXEL_SIZE: f"{grid.pixel_size:.12g}", SOURCE_BOX: str(grid.box)}
            for number in np.unique(part.particles.get("optics_group", 0)).tolist():
                optics[number] = replace(optics[number], extra={**optics[number].extra, **said})
    table = replace(table, optics=tuple(optics)).with_columns(**shifts)
    images = ResampledImages([(rows, opened) for rows, _, opened in parts], grids, target)
    return replace(source, particles=table, shifts_in_pixels=False), images, target.pixel_size


def regridded(grids: Sequence[PixelGrid], target: PixelGrid) -> str:
    """Return a sentence about images that are brought to one grid."""
    found = " and ".join(dict.fromkeys(str(grid) for grid in grids))
    return f"images of {found} are resampled to {target}: shifts stay in Å, and an exported stack has the new pixels"


def _pixel_size(source: SourceTable, images: SourceImages, given: float | None, summary: ImportSummary) -> float:
    size = pixel_size_of(source, images.pixel_size, given)
    if not given and source.pixel_size and images.pixel_size and abs(images.pixel_size / size - 1) > 0.01:
        summary.warnings.append(
            f"{source.path} says {size:g} Å per pixel, the stacks say {images.pixel_size:g}: the table is believed"
        )
    return size


def _with_copies(particles: Particles, prints: NDArray[np.uint64], summary: ImportSummary) -> Particles:
    """Count images that are there more than once, and mark them, so that copies come into one half-set."""
    _, kind, count = np.unique(prints, return_inverse=True, return_counts=True)
    repeated = count > 1
    if not repeated.any():
        return particles
    number = np.where(repeated, np.cumsum(repeated), 0)[kind]
    rows = np.flatnonzero(number)
    again, named = len(rows) - int(repeated.sum()), len(rows) - len(distinct(particles["image_name"][rows]).values)
    how = f"{named:,} by its name, {again - named:,} with the same pixels, such as {particles['image_name'][rows[0]]}"
    summary.warnings.append(
        f"{again:,} of {len(particles):,} particles repeat the image of another ({how}): copies stay in one half-set, "
        "but each counts; leave them out unless they are meant"
    )
    return particles.with_columns(same_image=number)


def _at_pixel_size(source: SourceTable, size: float, summary: ImportSummary) -> SourceTable:
    """Return the table at another pixel size than it states: shifts were measured in pixels, and keep their number."""
    before = 1.0 if source.shifts_in_pixels else source.pixel_size or size
    factor, particles = size / before, source.particles
    shifts = {name: particles[name] * factor for name in ("shift_x", "shift_y") if name in particles}
    if factor == 1.0:
        return source
    if not source.shifts_in_pixels:
        what = [f"the table's {before:g} Å per pixel are replaced by {size:g}"]
        if shifts:
            what.append("shifts keep their number of pixels")
        if "defocus_u" in particles:
            what.append(
                f"defocus was fitted at the old one and would be about {factor**2:.3g} times as large: fit it anew"
            )
        summary.warnings.append("; ".join(what))
    return replace(source, particles=particles.with_columns(**shifts), shifts_in_pixels=False)


def _batches(images: SourceImages | ResampledImages, count: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield the images of all rows, a few at a time, always in the same memory."""
    step = min(count, max(1, _BATCH_BYTES // (4 * images.box**2)))
    memory = np.empty((step, images.box, images.box), dtype=np.float32)
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield slice(start, stop), images.read(start, stop, memory)
