"""What is done to one movie: on a worker, which writes the images itself."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.motion_track import path_lengths
from cloudem.algorithms.movie_correction import CorrectedMovie, MovieSettings, Weighting, correct_movie
from cloudem.errors import ChangedFileError, CloudemError, FormatError, recorded_reason
from cloudem.io.formats.relion_motion import MotionFile, write_motion_star
from cloudem.io.micrographs.images import write_micrograph_image
from cloudem.io.movies.held import HeldFrames
from cloudem.io.movies.opening import open_movie
from cloudem.io.movies.ranges import RangeReader
from cloudem.io.storage.location import join
from cloudem.jobs.movie_table import movie_correction
from cloudem.model.movies import Movies
from cloudem.model.table import TEXT

EARLY_DOSE = 4.0
"""e/Å² up to which motion is early, as RELION has it."""

COEFFICIENTS = 36


class MotionOptions(NamedTuple):
    """What the job asks of each movie; names are its parameters."""

    url: str
    local: bool
    weights: Weighting
    binning: float
    eer_upsampling: int
    motion_files: str | None


NUMBERS: Mapping[str, Any] = {
    "height": np.int32, "width": np.int32, "frames": np.int32, "dose": np.float64, "motion_total": np.float64,
    "motion_early": np.float64, "motion_late": np.float64, "local_motion": np.float64, "bits": np.float64,
    "pixel_size": np.float64, "pattern": np.float64, "hot_pixels": np.int64, "outliers": np.int64,
    "mean_counts": np.float64, "patches_dropped": np.int32, "local_gain": np.float64,
}  # fmt: skip
"""What is found of each movie, and its type."""

TEXTS = ("problem", "image", "image_version", "local_reason", "motion_reason", "note")


def correct_movies(entries: Sequence[Movies], options: MotionOptions) -> dict[str, NDArray[Any]]:
    """Correct movies, each a table of one row.

    Returns
    -------
    found
        `NUMBERS` and `TEXTS` of each; coefficients ``(n, 36)``; and of each frame that was summed its number from 0 and
        its displacement in Å, as ``each_frame``, ``each_x`` and ``each_y``.
    """
    rows = [_row(entry, options) for entry in entries]
    found: dict[str, NDArray[Any]] = {
        name: np.array([row[name] for row in rows], kind) for name, kind in NUMBERS.items()
    }
    found |= {name: np.array([row[name] for row in rows], TEXT) for name in TEXTS}
    found["coefficients"] = np.array([row["coefficients"] for row in rows]).reshape(len(rows), COEFFICIENTS)
    tracks = [row["track"] for row in rows]
    found["each_count"] = np.array([len(track) for track in tracks], np.int32)
    joined = np.concatenate(tracks)
    return found | {"each_frame": joined[:, 0].astype(np.int32), "each_x": joined[:, 1], "each_y": joined[:, 2]}


def _row(entry: Movies, options: MotionOptions) -> dict[str, Any]:
    nothing: dict[str, Any] = {name: np.nan if kind is np.float64 else 0 for name, kind in NUMBERS.items()}
    nothing |= dict.fromkeys(TEXTS, "") | {"coefficients": np.zeros(COEFFICIENTS), "track": np.zeros((0, 3))}
    try:
        return nothing | _corrected_row(entry, options)
    except CloudemError as error:
        return nothing | {"problem": recorded_reason(error).removeprefix(str(entry["movie"][0])).lstrip(": ")}


def _corrected_row(entry: Movies, options: MotionOptions) -> dict[str, Any]:
    name, url = str(entry["micrograph"][0]), str(entry["movie"][0])
    upsampling = options.eer_upsampling if str(entry["format"][0]) == "EER" else 1
    if "file_version" in entry and RangeReader(url).version != str(entry["file_version"][0]):
        raise ChangedFileError(f"{url} was changed since it was imported; delete the table of movies and import again")
    movie = open_movie(url, upsampling=upsampling, group=int(entry["group"][0]))
    held = HeldFrames(movie)
    whole = held.whole_frames()
    if len(whole) < max(1, movie.frames / 2):
        damaged = f"{movie.frames - len(whole)} of {movie.frames} frames cannot be decoded"
        raise FormatError(f"{url}: {damaged}; copy it again")
    settings = _settings(entry, options, movie.frames, upsampling)
    correction = movie_correction(entry, 0, upsampling)
    made = correct_movie(held, np.array(whole), correction, settings)
    shape = made.images["sum"].shape
    size = settings.pixel_size * (movie.shape[0] // 2 * 2) / shape[0]
    place = write_micrograph_image(options.url, name, made.images, pixel_size=size)
    if options.motion_files is not None:
        write_motion_star(
            join(options.motion_files, f"{name}.star"),
            _motion_file(entry, made, settings, (movie.frames, *movie.shape)),
        )
    row = _figures(made, settings)
    notes = []
    if len(made.used) < movie.frames:
        notes.append(f"{movie.frames - len(made.used)} of {movie.frames} frames are damaged or blank and were left out")
    if movie.format == "EER" and movie.damaged:
        notes.append(f"{len(movie.damaged)} raw frames are damaged")
    version = f"{zlib.crc32(np.ascontiguousarray(made.images['sum']).data):08x}"
    return row | {
        "image": place, "image_version": version, "height": shape[0], "width": shape[1], "pixel_size": size,
        "note": "; ".join(notes),
    }  # fmt: skip


def _settings(entry: Movies, options: MotionOptions, frames: int, upsampling: int) -> MovieSettings:
    optics = entry.optics[int(entry["optics_group"][0])]
    dose = float(entry.get("dose_per_frame", np.nan)[0]) * int(entry["group"][0])
    before = float(entry.get("pre_exposure", 0.0)[0])
    before = before if before > 0 else 0.0
    doses = before + dose * np.arange(1, frames + 1, dtype=np.float64) if dose > 0 else None
    size = float(entry["pixel_size"][0]) / upsampling
    return MovieSettings(size, optics.voltage, doses, options.local, options.weights, options.binning)


def _figures(made: CorrectedMovie, settings: MovieSettings) -> dict[str, Any]:
    size, count = settings.pixel_size, len(made.used)
    early, dose = max(1, count // 4), np.nan
    if settings.doses is not None:
        step = settings.doses[1] - settings.doses[0] if len(settings.doses) > 1 else settings.doses[0]
        dose = step * count
        early = int(np.count_nonzero(step * np.arange(1, count + 1) < EARLY_DOSE))
    total, first, rest = path_lengths(made.track, size, early)
    return {
        "frames": count, "dose": dose, "motion_total": total, "motion_early": first, "motion_late": rest,
        "local_motion": made.local.extent(int(made.used[-1])) * size,
        "bits": made.information.bits, "pattern": made.pattern,
        "hot_pixels": made.hot_pixels, "outliers": made.outliers, "mean_counts": made.mean,
        "patches_dropped": made.local.dropped, "local_gain": made.local.gain, "local_reason": made.local.problem,
        "motion_reason": made.problem, "coefficients": made.local.coefficients.ravel(),
        "track": np.column_stack([made.used, made.track * size]),
    }  # fmt: skip


def _motion_file(
    entry: Movies, made: CorrectedMovie, settings: MovieSettings, shape: tuple[int, int, int]
) -> MotionFile:
    """Return what RELION needs to know; its frames without a shift are those that were left out."""
    track = np.full((shape[0], 2), np.nan)
    track[made.used] = made.track
    dose = float(settings.doses[0]) if settings.doses is not None else 0.0
    before = float(entry.get("pre_exposure", 0.0)[0])
    before = before if before > 0 else 0.0
    return MotionFile(
        str(entry["movie"][0]), shape, settings.pixel_size, dose - before if dose else 0.0, before, settings.voltage,
        track, None if made.local.problem else made.local.coefficients,
    )  # fmt: skip
