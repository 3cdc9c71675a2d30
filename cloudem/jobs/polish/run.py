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

FEWEST_SHELLS = 4
"""Shells of agreement below which there is nothing to follow particles by."""


def polish(job: Polish, context: Context) -> None:
    """Follow all particles, weight all frames, sum, and write the result."""
    job.check_out()
    if read_attributes(context.url, "") is None:
        context.write("", {}, {"kind": "result", **job_record(job)})
    progress = context.progress
    given = job.given
    entries = given.entries()
    with progress.stage("reference"):
        references = half_references(job.halves or job.particles, job.mask, progress, job.seed)
    geometry = geometry_of(job, given)
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
    # with magnification, images show shells of the map that lie further out
    reach = int(given.dataset.aberrations.reach(half_disc(geometry.side, options.shells)).max())
    last = int(np.ceil(reach * references.length / geometry.length))
    maps = context.executor.spread(half_map_volumes, references, last, local=itself)
    follow = Items(entries, counts, follow_particles, (options,), "tracks", "particles")
    followed = found_parts(follow, context, name=FOLLOWED, shared=(maps,))
    weighted = weights_of_frames(entries, followed, options, geometry)
    table = np.stack([each.weights for each in weighted])
    summing = Items(entries, counts, sum_particles, (options, table), "sums", "particles")
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
    store, row = given.dataset.store, int(given.rows[0])
    corrected = given.corrected
    upsampling = job.upsampling(corrected.parameters, str(corrected.movies["format"][row]))
    pixel = float(corrected.movies["pixel_size"][row]) / upsampling
    side = job.box_px or next_window(store.box * store.pixel_size / pixel)
    size = job.scale_to_px or (store.box if job.box_px is None else side)
    if size > side:
        raise InconsistentDataError(
            f"images of {size} px are asked for of windows of {side} pixels of the movies; give a smaller --scale-to-px"
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


def weights_of_frames(
    entries: Sequence[MovieParticles], followed: Sequence[Found], options: PolishOptions, geometry: ImageGeometry
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
