"""What is done to one movie: its particles are followed through the frames, and then summed along their tracks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.dose import dose_weights
from cloudem.algorithms.gain import FrameCorrection, correction_of
from cloudem.algorithms.motion_local import field_at
from cloudem.algorithms.movie_correction import Survey, clean_frame, survey_of
from cloudem.algorithms.particle_frames import (
    HalfMap,
    Molecules,
    WeightedSums,
    WindowPlan,
    compare_frame,
    expected_signal,
    expected_views,
    likelihood_patches,
    next_window,
    no_frames,
    shared_signal,
    visible_amplitudes,
)
from cloudem.algorithms.particle_tracks import MotionPrior, probable_tracks, track_basis
from cloudem.errors import ChangedFileError, CloudemError, InconsistentDataError, recorded_reason
from cloudem.io.growing_store import growing_rows, write_copies
from cloudem.io.images.layout import StackLayout
from cloudem.io.movies.held import HeldFrames
from cloudem.io.movies.opening import open_movie
from cloudem.io.movies.ranges import RangeReader
from cloudem.io.storage.groups import read_group
from cloudem.io.storage.location import join
from cloudem.jobs.mapping import PARTS, Found
from cloudem.jobs.movie_table import movie_correction
from cloudem.kernels.background import USABLE, background
from cloudem.kernels.boxes import BoxRecipe, scale_boxes
from cloudem.model.movies import Movies
from cloudem.model.table import TEXT

Float64 = NDArray[np.float64]

SAME_LENGTH = 0.002
"""Share by which windows of different movies may differ in size."""

LEAST_SIGNAL = 4.0
"""Standard errors by which a movie's frames have to show their reference."""


class MovieParticles(NamedTuple):
    """A movie, what is known of its motion, and its particles.

    Attributes
    ----------
    number
        Of the part.
    name
        Of the micrograph.
    movie
        Table of one row.
    problem
        Why it is of no use; empty where it is.
    width
        Pixels of the micrograph that was made of it, along x.
    frames, track, coefficients
        Frames that were summed, ``(f,)``, where the whole was in each, Å, ``(f, 2)``, and the field besides,
        ``(2, 6, 3)``, pixels of the movie.
    places
        Origins of the particles' images in the micrograph, pixels, ``(n, 2)`` as x, y.
    molecules
        What else is known of the particles.
    """

    number: int
    name: str
    movie: Movies
    problem: str
    width: int
    frames: NDArray[np.int64]
    track: Float64
    coefficients: Float64
    places: Float64
    molecules: Molecules


class PolishOptions(NamedTuple):
    """What is done to all movies alike.

    Attributes
    ----------
    url
        Of the results.
    length
        Å, of a window.
    shells
        Last shell of a window that is compared with the reference.
    fsc
        Of the half-maps at these shells, ``(shells + 1,)``.
    prior
        Of the tracks.
    recipe
        How sums become images; its box is the window of the first movie.
    store, dtype
        Of the images.
    eer_upsampling
        With which motion was found.
    """

    url: str
    length: float
    shells: int
    fsc: Float64
    prior: MotionPrior
    recipe: BoxRecipe
    store: str
    dtype: str
    eer_upsampling: int


class _Opened(NamedTuple):
    """A movie that is gone through frame by frame."""

    shape: tuple[int, int]
    pixel_size: float
    places: Float64
    expected: Float64
    plan: WindowPlan
    survey: Survey
    raw: Iterator[NDArray[Any]]

    def frames(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the frames that are used, once, each for a moment."""
        (rows, columns), whole = self.shape, np.empty(self.survey.total.shape, np.float32)
        for place, raw in enumerate(self.raw):
            clean_frame(raw, self.survey, place, whole)
            yield place, np.ascontiguousarray(whole[:rows, :columns])


def _opened(part: MovieParticles, options: PolishOptions, known: Found | None = None) -> _Opened:
    """Open a movie, looked through before or not; expected displacements are in Å, ``(n, f, 2)``."""
    entry, url = part.movie, str(part.movie["movie"][0])
    if "file_version" in entry and RangeReader(url).version != str(entry["file_version"][0]):
        raise ChangedFileError(f"{url} was changed since it was imported; import and correct the movies again")
    upsampling = options.eer_upsampling if str(entry["format"][0]) == "EER" else 1
    movie = open_movie(url, upsampling=upsampling, group=int(entry["group"][0]))
    held = HeldFrames(movie)
    if part.frames[-1] >= movie.frames:
        raise InconsistentDataError(f"frame {part.frames[-1] + 1} is not there any more; correct the motion again")
    correction = movie_correction(entry, 0, upsampling)
    if known is None:
        lost = sorted(set(part.frames.tolist()) - set(held.whole_frames()))
        if lost:
            raise InconsistentDataError(f"frame {lost[0] + 1} cannot be read any more; correct the motion again")
        survey = survey_of(held, part.frames, correction)
        raw: Iterator[NDArray[Any]] = map(held, part.frames.tolist())
    else:
        survey, raw = _survey_again(part, known, movie.shape, correction), held.in_turn(part.frames)
    if len(survey.used) != len(part.frames):
        raise InconsistentDataError("other frames are blank than when its motion was found; correct the motion again")
    rows, columns = (side - side % 2 for side in movie.shape)
    size = float(entry["pixel_size"][0]) / upsampling
    places = part.places * (columns / part.width)
    side = next_window(options.length / size)
    if abs(side * size / options.length - 1) > SAME_LENGTH:
        raise InconsistentDataError(
            f"no even number of its pixels of {size:g} Å is a window of {options.length:.4g} Å; give another --box-px"
        )
    outside = background(side, options.recipe.diameter * side).astype(np.float64)
    plan = WindowPlan(side, options.length / side, options.shells, outside, options.recipe.sign)
    return _Opened((rows, columns), size, places, _expected(part, places, (rows, columns), size), plan, survey, raw)


def _survey_again(part: MovieParticles, known: Found, shape: tuple[int, int], correction: FrameCorrection) -> Survey:
    """Return what a first look has told of a movie, which need not be looked through again."""
    holes = np.zeros(shape[0] * shape[1], bool)
    holes[known["holes"]] = True
    filled = correction_of(shape, defects=holes.reshape(shape))._replace(factor=correction.factor)
    nothing = np.broadcast_to(np.float32(0), shape)
    return Survey(part.frames, known["means"], known["variances"], filled, 0, nothing)


def _expected(part: MovieParticles, places: Float64, shape: tuple[int, int], pixel_size: float) -> Float64:
    """Return what is known of the displacement of each particle in each frame, Å, ``(n, f, 2)``."""
    u, v = places[:, 0] / shape[1] - 0.5, places[:, 1] / shape[0] - 0.5
    terms = np.stack([np.ones_like(u), u, u * u, v, v * v, u * v])
    local = np.stack([field_at(part.coefficients, int(frame)) @ terms for frame in part.frames])
    return np.asarray(part.track[None] + local.transpose(2, 0, 1) * pixel_size)


def doses_of(movie: Movies, frames: NDArray[np.int64]) -> Float64 | None:
    """Return what the specimen had received at the end of each frame, e/Å², ``(f,)``; None where it is not known."""
    dose = float(movie.get("dose_per_frame", np.nan)[0]) * int(movie["group"][0])
    before = float(np.nan_to_num(movie.get("pre_exposure", 0.0)[0]))
    return np.asarray(max(before, 0.0) + dose * (frames + 1.0), np.float64) if dose > 0 else None


def follow_particles(
    part: MovieParticles, options: PolishOptions, maps: tuple[HalfMap, HalfMap]
) -> dict[str, NDArray[Any]]:
    """Find the tracks of the particles of a movie, and how much of the reference its frames show.

    Returns
    -------
    found
        ``problem``; ``moved`` ``(n, f, 2)`` and ``begun``, Å: displacements since the first frame, found, and those of
        the micrograph; ``usable`` ``(n,)``; ``shared``, ``squares``, ``powers`` and ``counts`` of
        `cloudem.algorithms.polishing_weights`; ``signal_before``, what all frames show of the reference before
        particles are followed, by shell; ``deviations`` and ``gain``; and what a look at all frames has told,
        ``holes``, ``means`` and ``variances``.
    """
    try:
        if part.problem:
            raise InconsistentDataError(part.problem)
        return _followed(part, options, maps)
    except CloudemError as error:
        count, frames, size = len(part.places), len(part.frames), options.shells + 1
        return {
            "problem": np.array([recorded_reason(error)], TEXT), "usable": np.zeros(count, np.bool_),
            "moved": np.zeros((count, frames, 2), np.float32), "begun": np.zeros((count, frames, 2), np.float32),
            "shared": np.zeros((2, frames, size)), "squares": np.zeros((2, size)),
            "powers": np.zeros((2, frames, size)), "counts": np.zeros(2, np.int64), "deviations": np.zeros(1),
            "gain": np.zeros(1), "signal_before": np.zeros(size),
        }  # fmt: skip


def _followed(part: MovieParticles, options: PolishOptions, maps: tuple[HalfMap, HalfMap]) -> dict[str, NDArray[Any]]:
    opened, half = _opened(part, options), part.molecules.half
    plan = opened.plan
    views = expected_views(part.molecules, maps, plan)
    compared = no_frames(views, len(part.frames), plan)
    for place, frame in opened.frames():
        at = opened.places + opened.expected[:, place] / opened.pixel_size
        compare_frame(compared, place, frame, at, views, half, plan)
    doses = doses_of(part.movie, part.frames)
    frequency = np.arange(plan.shells + 1) / plan.length
    damage = np.ones((len(part.frames), plan.shells + 1))
    if doses is not None:
        damage = dose_weights(frequency, doses, part.movie.optics[int(part.movie["optics_group"][0])].voltage)
    amplitude, noise, deviations = visible_amplitudes(compared, options.fsc, damage, plan)
    if deviations < -LEAST_SIGNAL:
        raise InconsistentDataError(
            f"its frames show the negative of the reference (by {-deviations:.0f} standard errors); give the other"
            " --contrast"
        )
    moved, gain = np.zeros_like(opened.expected), 0.0
    if deviations > LEAST_SIGNAL:
        steps = np.diff(part.frames.astype(np.float64)) * (1.0 if doses is None else (doses[1:] - doses[:-1]).mean())
        basis = track_basis(opened.places * opened.pixel_size, steps, options.prior)
        patches, spacing = likelihood_patches(compared, amplitude, noise, plan)
        found = probable_tracks(patches, spacing, basis)
        moved, gain = found.moved, found.gain
    signal = shared_signal(compared, moved, half, plan)
    return {
        "problem": np.array([""], TEXT), "usable": compared.usable,
        "moved": (opened.expected + moved).astype(np.float32), "begun": opened.expected.astype(np.float32),
        **signal._asdict(), "counts": np.bincount(half, minlength=3)[1:], "deviations": np.array([deviations]),
        "gain": np.array([gain]), "signal_before": expected_signal(compared, plan).sum(axis=0),
        "holes": opened.survey.correction.defects, "means": opened.survey.means,
        "variances": opened.survey.variances,
    }  # fmt: skip


def sum_particles(
    part: MovieParticles, options: PolishOptions, weights: Sequence[Float64], exposure: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Sum the frames of a movie along its particles' tracks, and write the images.

    Parameters
    ----------
    part, options
        As `follow_particles`, whose part in the results is read.
    weights
        Of frames by half-set and number in the movie, at the window's shells, ``(2, frames, m)``, of each exposure.
    exposure
        Of each movie, by its number, ``(movies,)``.

    Returns
    -------
    found
        ``problem``, and ``rows`` in the store, ``(n,)``, -1 where there is no image.
    """
    rows = np.full(len(part.places), -1, np.int64)
    followed = read_group(options.url, join(PARTS, f"{FOLLOWED}{part.number:06d}"))[0]
    if followed["problem"][0]:
        return {"problem": followed["problem"], "rows": rows}
    try:
        images, good = _summed(part, options, followed, weights[exposure[part.number]])
    except CloudemError as error:
        return {"problem": np.array([recorded_reason(error)], TEXT), "rows": rows}
    layout = StackLayout.growing(options.recipe.size, options.dtype)
    said = hashlib.sha256(part.places.tobytes() + part.molecules.axes.tobytes()).hexdigest()[:32]
    rows[good] = growing_rows(f"{part.name} {said}", int(good.sum()), layout)
    write_copies(options.store, rows[good], images[good], layout)
    return {"problem": np.array([""], TEXT), "rows": rows}


def _summed(
    part: MovieParticles, options: PolishOptions, followed: Found, weights: Float64
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    opened = _opened(part, options, followed)
    sums = WeightedSums(weights[:, part.frames], part.molecules.half, options.recipe.size, opened.plan)
    for place, frame in opened.frames():
        sums.add(place, frame, opened.places + followed["moved"][:, place] / opened.pixel_size)
    images = sums.images()
    corners = np.floor(opened.places + 0.5).astype(np.int64) - opened.plan.side // 2
    # the sums have the particles' sign already
    recipe = options.recipe._replace(box=opened.plan.side, sign=1.0)
    found = scale_boxes(images, corners, opened.shape, recipe)
    return images, (found == USABLE) & sums.usable


FOLLOWED, SUMMED = "tracks", "images"
"""Names of the parts of the results."""
