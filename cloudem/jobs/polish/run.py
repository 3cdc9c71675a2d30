"""The run of ``cloudem polish``: tracks of all movies, weights of their frames, and the images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.particle_frames import SharedSignal, next_window
from cloudem.algorithms.particle_tracks import MotionPrior
from cloudem.algorithms.polishing_weights import FrameWeights, added_signals, polishing_weights, shown_signals
from cloudem.conventions import FSC_THRESHOLD
from cloudem.errors import InconsistentDataError
from cloudem.execution.executor import itself
from cloudem.io.growing_store import begin_growing_store
from cloudem.io.storage.groups import read_attributes
from cloudem.io.storage.location import absolute, join
from cloudem.jobs.base import Context
from cloudem.jobs.extract import PIXELS
from cloudem.jobs.mapping import Found, Items, found_parts, tidy_parts
from cloudem.jobs.polish.inputs import (
    HalfReferences,
    PolishedParticles,
    half_map_volumes,
    half_references,
)
from cloudem.jobs.polish.job import COMPARED_BYTES, Polish
from cloudem.jobs.polish.result import ImageGeometry, write_polished
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
from cloudem.kernels.boxes import BoxRecipe
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.shells import crossing

Float64 = NDArray[np.float64]

ALIKE = 0.05
"""Share by which doses may differ at the end of the first and of the last frame of movies whose weights are found
together."""

FEWEST_SHELLS = 4
"""Shells of agreement below which there is nothing to follow particles by."""


def polish(job: Polish, context: Context) -> None:
    """Follow all particles, weight all frames, sum, and write the result."""
    job.check_out()
    progress = context.progress
    given = job.given
    entries = given.entries()
    with progress.stage("reference"):
        references = half_references(job.halves or job.particles, job.mask, progress, job.seed)
    geometry = geometry_of(job, given)
    largest = max(len(entry.places) * len(entry.frames) for entry in entries)
    options = polish_options(job, context.url, references, geometry, largest)
    if read_attributes(context.url, "") is None:  # what is refused until here leaves nothing
        context.write("", {}, {"kind": "result", **job_record(job)})
    progress.facts({
        "particles": f"{len(given.order):,} in {len(entries):,} movies",
        "compared up to": f"{geometry.length / options.shells:.1f} Å",
    })  # fmt: skip
    begin_growing_store(
        options.store, options.recipe, pixel_size=geometry.pixel_size, dtype=job.dtype, copied=True,
        attributes={"date": (read_attributes(context.url, "") or {}).get("date", "")}, guard=context.check,
    )  # fmt: skip
    counts = [len(entry.places) for entry in entries]
    # with magnification, images show shells of the map that lie further out
    reach = int(given.dataset.aberrations.reach(half_disc(geometry.side, options.shells)).max())
    last = int(np.ceil(reach * references.length / geometry.length))
    maps = context.executor.spread(half_map_volumes, references, last, local=itself)
    follow = Items(entries, counts, follow_particles, (options,), "tracks", "particles")
    followed = found_parts(follow, context, name=FOLLOWED, shared=(maps,))
    exposure = exposures_of(entries, followed)
    weighted = [
        weights_of_frames(*_of_exposure(entries, followed, exposure, kind), options, geometry)
        for kind in range(1 + int(exposure.max()))
    ]
    table = [np.stack([each.weights for each in halves]) for halves in weighted]
    summing = Items(entries, counts, sum_particles, (options, table, exposure), "sums", "particles")
    summed = found_parts(summing, context, name=SUMMED)
    write_polished(context, given, entries, (followed, summed), weighted, geometry, options)
    tidy_parts(context)


def geometry_of(job: Polish, given: PolishedParticles) -> ImageGeometry:
    """Return windows and images: as the particles' images are, unless other ones are asked for.

    Raises
    ------
    InconsistentDataError
        Images would have more pixels than the windows that they are made of.
    """
    store, corrected = given.dataset.store, given.corrected
    movies = corrected.movies.take(np.unique(given.rows))
    upsampling = [job.upsampling(corrected.parameters, kind) for kind in movies["format"].tolist()]
    pixels = movies["pixel_size"] / upsampling
    pixel, coarsest = float(pixels[0]), int(pixels.argmax())
    side = job.box_px or next_window(store.box * store.pixel_size / pixel)
    size = job.scale_to_px or (store.box if job.box_px is None else side)
    least = next_window(side * pixel / float(pixels[coarsest]))
    if size > side:
        raise InconsistentDataError(
            f"images of {size} px are asked for of windows of {side} pixels of the movies; give a smaller --scale-to-px"
        )
    if size > least:
        raise InconsistentDataError(
            f"images of {size} px are asked for of windows of {side * pixel:g} Å, and the pixels of"
            f" {pixels[coarsest]:g} Å of {movies['micrograph'][coarsest]} are {least} there; give --scale-to-px {least}"
        )
    return ImageGeometry(side, size, side * pixel / size, side * pixel)


def affordable_shells(largest: int) -> int:
    """Return how many shells a movie of so many particles times frames can be compared in, within `COMPARED_BYTES`.

    Half a disc of s shells has π s² / 2 waves, of eight bytes each.
    """
    return int(np.sqrt(2 * COMPARED_BYTES / (8 * np.pi * max(largest, 1))))


def polish_options(
    job: Polish, url: str, references: HalfReferences, geometry: ImageGeometry, largest: int
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


def exposures_of(entries: Sequence[MovieParticles], followed: Sequence[Found]) -> NDArray[np.int64]:
    """Return which exposure each movie had, from 0, that of the most particles first; -1 for movies of no use.

    Frames of one number get one weight, so that movies whose frames received other doses have weights of their own.

    Raises
    ------
    InconsistentDataError
        No movie could be used.
    """
    kinds: list[tuple[float, Float64 | None]] = []
    found = np.full(len(entries), -1, np.int64)
    for number, entry in enumerate(entries):
        if followed[number]["problem"][0]:
            continue
        doses = doses_of(entry.movie, entry.frames[[0, -1]])
        mine = entry.movie.optics[int(entry.movie["optics_group"][0])].voltage, doses
        known = [kind for kind, other in enumerate(kinds) if _alike(mine, other)]
        found[number] = known[0] if known else len(kinds)
        kinds += [] if known else [mine]
    if not kinds:
        raise InconsistentDataError(f"no movie can be used; the first: {followed[0]['problem'][0]}")
    sizes = np.array([len(entry.places) for entry in entries])
    particles = np.bincount(found[found >= 0], sizes[found >= 0])
    place = np.argsort(np.argsort(-particles, kind="stable"))
    return np.where(found >= 0, place[found], -1)


def _alike(one: tuple[float, Float64 | None], other: tuple[float, Float64 | None]) -> bool:
    if one[0] != other[0] or (one[1] is None) != (other[1] is None):
        return False
    return one[1] is None or other[1] is None or bool(np.all(abs(one[1] - other[1]) <= ALIKE * other[1]))


def _of_exposure(
    entries: Sequence[MovieParticles], followed: Sequence[Found], exposure: NDArray[np.int64], kind: int
) -> tuple[list[MovieParticles], list[Found]]:
    mine = np.flatnonzero(exposure == kind).tolist()
    return [entries[number] for number in mine], [followed[number] for number in mine]


def weights_of_frames(
    entries: Sequence[MovieParticles], followed: Sequence[Found], options: PolishOptions, geometry: ImageGeometry
) -> list[FrameWeights]:
    """Return the weights of frames of each half-set by itself, from what movies of one exposure say."""
    most = 1 + max(int(entry.frames.max()) for entry in entries)
    parts = [SharedSignal(*(found[name] for name in SharedSignal._fields)) for found in followed]
    total = added_signals(parts, [entry.frames for entry in entries], most)
    counts = np.zeros((2, most))
    for entry, found in zip(entries, followed, strict=True):
        counts[:, entry.frames] += found["counts"][:, None]
    disc = half_disc(geometry.side, options.shells)
    waves = np.bincount(disc.shell, minlength=options.shells + 1).astype(np.float64)
    movie = entries[0].movie
    doses = doses_of(movie, np.arange(most))
    voltage = movie.optics[int(movie["optics_group"][0])].voltage
    frequency = np.arange(geometry.side // 2 + 1) / geometry.length
    return [
        polishing_weights(shown_signals(total, counts, half, waves, geometry.length), frequency, doses, voltage)
        for half in (0, 1)
    ]
