"""The run of ``cloudem polish``: tracks of all movies, weights of their frames, and the images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.particle_frames import SharedSignal, next_window
from cloudem.algorithms.particle_tracks import MotionPrior
from cloudem.algorithms.polishing_weights import FrameWeights, added_signals, polishing_weights, shown_signals
from cloudem.conventions import FSC_THRESHOLD
from cloudem.errors import InconsistentDataError
from cloudem.execution.executor import itself
from cloudem.io.growing_store import begin_growing_store, check_rows
from cloudem.io.particle_store import RESULT_TABLE, ImageSource, open_particles
from cloudem.io.storage.groups import read_attributes
from cloudem.io.storage.location import absolute, join
from cloudem.io.storage.relative import relative
from cloudem.io.storage.tables import table_to_arrays
from cloudem.jobs.base import Context
from cloudem.jobs.extract import PIXELS, example_images
from cloudem.jobs.extract_tables import OF_OLD_IMAGES
from cloudem.jobs.mapping import Found, Items, found_parts, tidy_parts
from cloudem.jobs.polish.inputs import (
    HalfReferences,
    PolishedParticles,
    half_map_volumes,
    half_references,
    particles_to_polish,
)
from cloudem.jobs.polish.job import COMPARED_BYTES, Polish
from cloudem.jobs.polish.tasks import (
    FOLLOWED,
    SUMMED,
    MovieParticles,
    PolishOptions,
    doses_of,
    follow_particles,
    sum_particles,
)
from cloudem.jobs.provenance import job_record
from cloudem.jobs.report import run_attributes
from cloudem.kernels.boxes import BoxRecipe
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.shells import crossing
from cloudem.model.table import TEXT

Float64 = NDArray[np.float64]

FEWEST_SHELLS = 4
"""Shells of agreement below which there is nothing to follow particles by."""


class _Geometry(NamedTuple):
    """Windows of frames, and the images that are made of them."""

    side: int
    size: int
    pixel_size: float
    length: float


def polish(job: Polish, context: Context) -> None:
    """Follow all particles, weight all frames, sum, and write the result."""
    job.check_out()
    if read_attributes(context.url, "") is None:
        context.write("", {}, {"kind": "result", **job_record(job)})
    progress = context.progress
    given = particles_to_polish(job.particles, job.motion, job.movies, progress.warning)
    entries = given.entries()
    with progress.stage("reference"):
        references = half_references(job.halves or job.particles, job.mask, progress, job.seed)
    geometry = geometry_of(job, given, entries)
    largest = max(len(entry.places) * len(entry.frames) for entry in entries)
    options = polish_options(job, context.url, references, geometry, largest)
    progress.facts({
        "particles": f"{len(given.order):,} in {len(entries):,} movies",
        "compared up to": f"{geometry.length / options.shells:.1f} Å",
    })  # fmt: skip
    begin_growing_store(
        options.store, options.recipe, pixel_size=geometry.pixel_size, dtype=job.dtype, copied=True,
        attributes={"date": (read_attributes(context.url, "") or {}).get("date", "")}, guard=context.check,
    )  # fmt: skip
    counts = [len(entry.places) for entry in entries]
    maps = context.executor.spread(
        half_map_volumes, references, int(np.ceil(options.shells * references.length / geometry.length)), local=itself
    )
    follow = Items(entries, counts, follow_particles, (options,), "tracks", "particles")
    followed = found_parts(follow, context, name=FOLLOWED, shared=(maps,))
    weighted = weights_of_frames(entries, followed, options, geometry)
    table = np.stack([each.weights for each in weighted])
    summing = Items(entries, counts, sum_particles, (options, table), "sums", "particles")
    summed = found_parts(summing, context, name=SUMMED)
    write_polished(job, context, given, entries, (followed, summed), weighted, options, geometry)
    tidy_parts(context)


def geometry_of(job: Polish, given: PolishedParticles, entries: Sequence[MovieParticles]) -> _Geometry:
    """Return windows and images: as the particles' images are, unless other ones are asked for.

    Raises
    ------
    InconsistentDataError
        Images of the same size as the particles' would need windows of other pixels than movies have.
    """
    store, row = given.dataset.store, int(given.rows[0])
    corrected = given.corrected
    height = int(corrected.table["width"][row]) * float(corrected.table["pixel_size"][row])
    upsampling = job.upsampling(corrected.parameters, str(corrected.movies["format"][row]))
    pixel = float(corrected.movies["pixel_size"][row]) / upsampling
    columns = int(corrected.movies["width"][row]) * upsampling
    pixel = height / (columns - columns % 2) if abs(height / (columns * pixel) - 1) < 0.01 else pixel
    side = job.box_px or next_window(store.box * store.pixel_size / pixel)
    size = job.scale_to_px or (store.box if job.box_px is None else side)
    if size > side:
        raise InconsistentDataError(
            f"images of {size} px are asked for of windows of {side} pixels of the movies; give a smaller --scale-to-px"
        )
    return _Geometry(side, size, side * pixel / size, side * pixel)


def affordable_shells(largest: int) -> int:
    """Return how many shells a movie of so many particles times frames can be compared in, within `COMPARED_BYTES`.

    Half a disc of s shells has π s² / 2 waves, of eight bytes each.
    """
    return int(np.sqrt(2 * COMPARED_BYTES / (8 * np.pi * max(largest, 1))))


def polish_options(
    job: Polish, url: str, references: HalfReferences, geometry: _Geometry, largest: int
) -> PolishOptions:
    """Return what is done to all movies; of the largest, particles times frames.

    Raises
    ------
    InconsistentDataError
        The half-maps agree on next to nothing.
    """
    last = crossing(references.fsc, FSC_THRESHOLD)
    frequency = (last if np.isfinite(last) else len(references.fsc) - 1) / references.length
    if job.finest_A:
        frequency = min(frequency, 1 / job.finest_A)
    shells = min(int(frequency * geometry.length), geometry.size // 2 - 1, geometry.side // 2 - 1)
    shells = min(shells, affordable_shells(largest))
    if shells < FEWEST_SHELLS:
        raise InconsistentDataError(
            f"the half-maps agree to {1 / max(frequency, 1e-9):.0f} Å only, which is no reference to follow particles"
            " by; refine them first"
        )
    at = np.arange(shells + 1) / geometry.length * references.length
    fsc = np.interp(at, np.arange(len(references.fsc)), references.fsc)
    fsc[0] = 1.0
    share = 0.9 if job.background_diameter_A is None else job.background_diameter_A / geometry.length
    recipe = BoxRecipe(geometry.side, geometry.size, share, -1.0 if job.contrast == "dark" else 1.0)
    prior = MotionPrior(job.velocity_A_per_dose, job.together_A, job.acceleration_A_per_dose)
    return PolishOptions(
        url, geometry.length, shells, fsc, prior, recipe, absolute(join(url, PIXELS)), job.dtype,
        job.upsampling(job.motion_parameters(), "EER"),
    )  # fmt: skip


def weights_of_frames(
    entries: Sequence[MovieParticles], followed: Sequence[Found], options: PolishOptions, geometry: _Geometry
) -> list[FrameWeights]:
    """Return the weights of frames of each half-set, from what all movies say; each half-set has its own.

    Raises
    ------
    InconsistentDataError
        No movie could be used.
    """
    good = [number for number, found in enumerate(followed) if not found["problem"][0]]
    if not good:
        raise InconsistentDataError(f"no movie can be used; the first: {followed[0]['problem'][0]}")
    most = 1 + max(int(entries[number].frames.max()) for number in good)
    parts = [SharedSignal(*(followed[number][name] for name in SharedSignal._fields)) for number in good]
    total = added_signals(parts, [entries[number].frames for number in good], most)
    counts = np.zeros((2, most))
    for number in good:
        counts[:, entries[number].frames] += followed[number]["counts"][:, None]
    disc = half_disc(geometry.side, options.shells)
    waves = np.bincount(disc.shell, minlength=options.shells + 1).astype(np.float64)
    movie = entries[good[0]].movie
    doses = doses_of(movie, np.arange(most))
    voltage = movie.optics[int(movie["optics_group"][0])].voltage
    frequency = np.arange(geometry.side // 2 + 1) / geometry.length
    return [
        polishing_weights(shown_signals(total, counts, half, waves, geometry.length), frequency, doses, voltage)
        for half in (0, 1)
    ]


def write_polished(
    job: Polish,
    context: Context,
    given: PolishedParticles,
    entries: Sequence[MovieParticles],
    parts: tuple[Sequence[Found], Sequence[Found]],
    weighted: Sequence[FrameWeights],
    options: PolishOptions,
    geometry: _Geometry,
) -> None:
    """Write the particles with their new images, their tracks and the weights of frames."""
    followed, summed = parts
    rows = np.concatenate([found["rows"] for found in summed])
    good = rows >= 0
    table = given.table.take(np.flatnonzero(good)).without_columns(OF_OLD_IMAGES).with_columns(store_row=rows[good])
    if not len(table):
        raise InconsistentDataError(f"no particle could be polished; the first movie: {summed[0]['problem'][0]}")
    check_rows(table["store_row"], table["micrograph"].tolist())
    date = str((read_attributes(options.store, "") or {}).get("date", ""))
    arrays, attributes = table_to_arrays(table)
    source = ImageSource(options.store, date, relative(options.store, context.url))
    context.write(RESULT_TABLE, arrays, {**attributes, "images": source._asdict()})
    lines = problems_of(entries, summed)
    for line in lines:
        context.progress.warning(line)
    if lost := int((~good).sum()):
        context.progress.warning(
            f"{lost:,} of {len(good):,} particles have no polished image; the table leaves them out"
        )
    found = {**tracks_of(entries, followed, len(weighted[0].weights)), **weight_arrays(weighted, geometry)}
    problem = np.array([str(each["problem"][0]) for each in summed], TEXT)
    found |= {"micrograph": np.array([entry.name for entry in entries], TEXT), "problem": problem}
    found["particles_each"] = np.array([len(entry.places) for entry in entries])
    for name in ("deviations", "gain"):
        found[name] = np.array([float(each[name][0]) for each in followed])
    if lines:
        bad = problem != ""
        found |= {"left_out_micrograph": found["micrograph"][bad], "left_out_reason": problem[bad]}
    opened = open_particles(context.url)
    images = example_images(opened)
    found |= {"example_images": images, "example_pixel_size_A": np.array([geometry.length / images.shape[1]])}
    picture = shown_picture(given, entries, summed)
    kept = run_attributes(context.progress, context.executor.traffic())
    said = {
        "box": geometry.size, "pixel_size_A": geometry.pixel_size, "particle_count": len(table),
        "compared_to_A": geometry.length / options.shells, "notes": lines,
    }  # fmt: skip
    context.write("result", {**found, **picture}, {**kept, **said})
    context.progress.message(f"{len(table):,} particles polished into {context.url}")


def problems_of(entries: Sequence[MovieParticles], summed: Sequence[Found]) -> list[str]:
    """Return a line for each movie that could not be used, of the first few."""
    bad = [(entry.name, str(found["problem"][0])) for entry, found in zip(entries, summed, strict=True)]
    bad = [pair for pair in bad if pair[1]]
    lines = [f"{name} {why}" for name, why in bad[:3]]
    return lines + ([f"{len(bad) - 3:,} more movies are of no use"] if len(bad) > 3 else [])


def tracks_of(entries: Sequence[MovieParticles], followed: Sequence[Found], most: int) -> dict[str, NDArray[Any]]:
    """Return all tracks, Å since the first frame, ``(n, frames)``; NaN in frames that were left out."""
    count = sum(len(entry.places) for entry in entries)
    tracks = np.full((2, count, most, 2), np.nan, np.float32)
    first = 0
    for entry, found in zip(entries, followed, strict=True):
        here = slice(first, first + len(entry.places))
        for which, name in enumerate(("moved", "begun")):
            kept = np.flatnonzero(entry.frames < most)
            mine = tracks[which, here]
            mine[:, entry.frames[kept]] = found[name][:, kept]
        first += len(entry.places)
    places = np.concatenate([entry.places for entry in entries])
    own = tracks[0] - tracks[1]
    own -= np.nanmean(own, axis=1, keepdims=True) if own.size else 0
    spread = np.sqrt(np.nanmean((own**2).sum(axis=2), axis=1)) if own.size else np.zeros(0)
    return {
        "track_x": tracks[0, ..., 0], "track_y": tracks[0, ..., 1], "place_x": places[:, 0], "place_y": places[:, 1],
        "own_motion_A": spread,
    }  # fmt: skip


def weight_arrays(weighted: Sequence[FrameWeights], geometry: _Geometry) -> dict[str, NDArray[Any]]:
    """Return weights of frames, and the numbers that they follow from, half-sets first."""
    return {
        "frame_weights": np.stack([each.weights for each in weighted]).astype(np.float32),
        "weight_frequency": np.arange(weighted[0].weights.shape[1]) / geometry.length,
        "frame_factors": np.stack([each.factors for each in weighted]),
        "frame_b_factors_A2": np.stack([each.b_factors for each in weighted]),
        "shown": np.stack([each.signals.amplitude for each in weighted]),
        "shown_error": np.stack([each.signals.error for each in weighted]),
        "shown_frequency": weighted[0].signals.frequency,
    }


def shown_picture(
    given: PolishedParticles, entries: Sequence[MovieParticles], summed: Sequence[Found]
) -> Mapping[str, NDArray[Any]]:
    """Return the micrograph with the most particles, for looking, and what its pixels and its particles are."""
    from cloudem.errors import CloudemError
    from cloudem.io.micrographs.images import open_micrograph_image

    good = [number for number, found in enumerate(summed) if not found["problem"][0]]
    if not good:
        return {}
    best = max(good, key=lambda number: (len(entries[number].places), -number))
    names = given.corrected.table["micrograph"].tolist()
    row = names.index(entries[best].name)
    try:
        image = open_micrograph_image(str(given.corrected.table["image"][row]))
        shown = image.thumbnail()
    except CloudemError:
        return {}
    first = sum(len(entry.places) for entry in entries[:best])
    return {
        "shown_micrograph": shown, "shown_pixel_size_A": np.array([float(given.corrected.table["pixel_size"][row])]),
        "shown_width": np.array([image.shape[1]]), "shown_rows": np.array([first, first + len(entries[best].places)]),
        "shown_name": np.array([entries[best].name], TEXT),
    }  # fmt: skip
