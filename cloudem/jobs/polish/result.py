"""What polishing leaves: particles with new images, their tracks, weights of frames, and what the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.polishing_weights import FrameWeights
from cloudem.errors import CloudemError, InconsistentDataError
from cloudem.io.growing_store import check_rows
from cloudem.io.micrographs.images import open_micrograph_image
from cloudem.io.particle_store import RESULT_TABLE, ImageSource, open_particles
from cloudem.io.storage.groups import read_attributes
from cloudem.io.storage.relative import relative
from cloudem.io.storage.tables import table_to_arrays
from cloudem.jobs.base import Context
from cloudem.jobs.extract import example_images
from cloudem.jobs.extract_tables import OF_OLD_IMAGES
from cloudem.jobs.mapping import Found
from cloudem.jobs.polish.inputs import PolishedParticles
from cloudem.jobs.polish.tasks import MovieParticles, PolishOptions
from cloudem.jobs.report import run_attributes
from cloudem.model.table import TEXT

NAMED = 3
"""Movies that could not be used that messages name."""


class ImageGeometry(NamedTuple):
    """Windows of frames, and the images that are made of them.

    Attributes
    ----------
    side
        Of a window, pixels of the first movie.
    size
        Of an image, pixels.
    pixel_size
        Of an image, Å.
    length
        Å, of both.
    """

    side: int
    size: int
    pixel_size: float
    length: float


def write_polished(
    context: Context,
    given: PolishedParticles,
    entries: Sequence[MovieParticles],
    parts: tuple[Sequence[Found], Sequence[Found]],
    weighted: Sequence[Sequence[FrameWeights]],
    geometry: ImageGeometry,
    options: PolishOptions,
) -> None:
    """Write the particles with their new images, their tracks and the weights of frames.

    Parameters
    ----------
    context
        Of the job.
    given, entries
        What was to be polished, and the same by movie.
    parts
        What was found of each movie: tracks, and images.
    weighted
        Frames, by exposure and by half-set; those of the first exposure are written.
    geometry, options
        Of the images.

    Raises
    ------
    InconsistentDataError
        There is no image.
    """
    followed, summed = parts
    rows = np.concatenate([found["rows"] for found in summed])
    good = np.flatnonzero(rows >= 0)
    if not len(good):
        raise InconsistentDataError(f"no particle could be polished; the first movie: {summed[0]['problem'][0]}")
    table = given.table.take(good).without_columns(OF_OLD_IMAGES).with_columns(store_row=rows[good])
    check_rows(table["store_row"], table["micrograph"].tolist())
    date = str((read_attributes(options.store, "") or {}).get("date", ""))
    arrays, attributes = table_to_arrays(table)
    source = ImageSource(options.store, date, relative(options.store, context.url))
    context.write(RESULT_TABLE, arrays, {**attributes, "images": source._asdict()})
    lines = _problems(entries, summed)
    if len(good) < len(rows):
        lines.append(
            f"{len(rows) - len(good):,} of {len(rows):,} particles have no polished image and are left out: their movie"
            " is of no use, or too little of their window lies in its frames"
        )
    if len(weighted) > 1:
        lines.append(
            f"movies had {len(weighted)} different exposures, each with weights of its own; shown are those of the"
            " exposure of the most particles"
        )
    for line in lines:
        context.progress.warning(line)
    number = np.repeat(np.arange(len(entries)), [len(entry.places) for entry in entries])[good]
    most = max(len(halves[0].weights) for halves in weighted)
    found = {**_tracks(entries, followed, good, most), **_weights(weighted[0], geometry)}
    found |= {
        **_of_movies(entries, followed, summed),
        **_picture(given, entries, number),
        **_signal(followed, geometry),
    }
    images = example_images(open_particles(context.url))
    found |= {"example_images": images, "example_pixel_size_A": np.array([geometry.length / images.shape[1]])}
    said = {
        "box": geometry.size, "pixel_size_A": geometry.pixel_size, "particle_count": len(table),
        "compared_to_A": geometry.length / options.shells, "notes": lines,
    }  # fmt: skip
    context.write("result", found, {**run_attributes(context.progress, context.executor.traffic()), **said})
    context.progress.message(f"{len(table):,} particles polished into {context.url}")


def _problems(entries: Sequence[MovieParticles], summed: Sequence[Found]) -> list[str]:
    """Return a line for each of the first movies that could not be used, and their number."""
    bad = [(entry.name, str(found["problem"][0])) for entry, found in zip(entries, summed, strict=True)]
    lines = [f"{name}: {why}" for name, why in bad if why]
    return lines[:NAMED] + ([f"{len(lines) - NAMED:,} more movies are of no use"] if len(lines) > NAMED else [])


def _of_movies(
    entries: Sequence[MovieParticles], followed: Sequence[Found], summed: Sequence[Found]
) -> dict[str, NDArray[Any]]:
    problem = np.array([str(each["problem"][0]) for each in summed], TEXT)
    name = np.array([entry.name for entry in entries], TEXT)
    found = {"micrograph": name, "problem": problem, "particles_each": np.array([len(e.places) for e in entries])}
    found |= {each: np.array([float(one[each][0]) for one in followed]) for each in ("deviations", "gain")}
    bad = problem != ""
    return found | ({"left_out_micrograph": name[bad], "left_out_reason": problem[bad]} if bad.any() else {})


def _tracks(
    entries: Sequence[MovieParticles], followed: Sequence[Found], good: NDArray[np.int64], most: int
) -> dict[str, NDArray[Any]]:
    """Return tracks of the particles of the table, Å since the first frame; NaN in frames that were left out."""
    count = sum(len(entry.places) for entry in entries)
    tracks, own = np.full((count, most, 2), np.nan, np.float32), np.zeros(count)
    first = 0
    for entry, found in zip(entries, followed, strict=True):
        here = slice(first, first + len(entry.places))
        first = here.stop
        if not found["problem"][0]:
            tracks[here][:, entry.frames] = found["moved"]
            beside = found["moved"].astype(np.float64) - found["begun"]
            beside -= beside.mean(axis=1, keepdims=True)
            own[here] = np.sqrt((beside**2).sum(axis=2).mean(axis=1))
    places = np.concatenate([entry.places for entry in entries])[good]
    return {
        "track_x": tracks[good, :, 0], "track_y": tracks[good, :, 1], "place_x": places[:, 0],
        "place_y": places[:, 1], "own_motion_A": own[good],
    }  # fmt: skip


def _weights(weighted: Sequence[FrameWeights], geometry: ImageGeometry) -> dict[str, NDArray[Any]]:
    """Return weights of frames, and the numbers that they follow from, half-sets first."""
    return {
        "frame_weights": np.stack([each.weights for each in weighted]).astype(np.float32),
        "weight_frequency": np.arange(weighted[0].weights.shape[1]) / geometry.length,
        "frame_factors": np.stack([each.factors for each in weighted]),
        "frame_b_factors_A2": np.stack([each.b_factors for each in weighted]),
        "shown": np.stack([each.signals.amplitude for each in weighted]),
        "shown_error": np.stack([each.signals.error for each in weighted]),
        "frame_noise": np.stack([each.signals.noise for each in weighted]),
        "shown_frequency": weighted[0].signals.frequency,
    }


def _signal(followed: Sequence[Found], geometry: ImageGeometry) -> dict[str, NDArray[Any]]:
    """Return what all frames of all movies show of the reference, by shell, before and along the tracks."""
    good = [found for found in followed if not found["problem"][0]]
    before = np.sum([found["signal_before"] for found in good], axis=0)
    along = np.sum([found["shared"].sum(axis=(0, 1)) for found in good], axis=0)
    frequency = np.arange(len(before)) / geometry.length
    return {"signal_before": before, "signal_along": along, "signal_frequency": frequency}


def _picture(
    given: PolishedParticles, entries: Sequence[MovieParticles], number: NDArray[np.int64]
) -> Mapping[str, NDArray[Any]]:
    """Return the micrograph with the most particles, for looking, and which particles of the table are its own."""
    counts = np.bincount(number, minlength=len(entries))
    best = int(counts.argmax())
    first = int(counts[:best].sum())
    table = given.corrected.table
    row = table["micrograph"].tolist().index(entries[best].name)
    try:
        image = open_micrograph_image(str(table["image"][row]))
        shown = image.thumbnail()
    except CloudemError:  # the page goes without
        return {}
    return {
        "shown_micrograph": shown, "shown_pixel_size_A": np.array([float(table["pixel_size"][row])]),
        "shown_width": np.array([image.shape[1]]), "shown_rows": np.array([first, first + int(counts[best])]),
        "shown_name": np.array([entries[best].name], TEXT),
    }  # fmt: skip
