"""The table of imported movies: what options, tables and headers say is put together, and what is odd is said."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.gain import FrameCorrection, correction_of, orient_gain
from cloudem.errors import ParameterError
from cloudem.io.movies.eer_movie import frame_groups, group_of_dose
from cloudem.io.movies.references import read_defects, read_gain
from cloudem.io.movies.store import MOVIE_TABLE, read_movies
from cloudem.io.storage.groups import has_group
from cloudem.model.movies import Movies
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import TEXT, joined_tables

if TYPE_CHECKING:
    from cloudem.io.movies.sources import SourceMovies
    from cloudem.jobs.mapping import Found

PLAUSIBLE_A, PLAUSIBLE_KV, PLAUSIBLE_DOSE = (0.1, 20.0), (30.0, 3000.0), 20.0
"""Pixel sizes of movies, Å, voltages, and the greatest dose of a frame, e/Å²."""

_MM = 1e7


class StatedOptics(Protocol):
    """What the options of jobs that import images say of the microscope; None where one was not given."""

    voltage_kV: float | None
    cs_mm: float | None
    amplitude_contrast: float | None


class Stated(StatedOptics, Protocol):
    """What the options of ``import-movies`` say; None where one was not given."""

    movies: str
    pixel_size_A: float | None
    dose_per_frame_e_per_A2: float | None
    pre_exposure_e_per_A2: float | None
    gain: str | None
    gain_rotation: Literal[0, 1, 2, 3]
    gain_flip: Literal[0, 1, 2]
    defects: str | None
    eer_group: int | None
    eer_frame_dose_e_per_A2: float | None


def stated_pixel_size(given: str, what: str, size: float) -> float:
    """Return a pixel size in Å if it can be one.

    Parameters
    ----------
    given, what
        Where the images are, and what they are, for messages.
    size
        Å; 0 where nothing says it.

    Raises
    ------
    ParameterError
        It is not known, or no microscope has it.
    """
    if not size:
        raise ParameterError(f"nothing says the pixel size of {given}; give --pixel-size-A")
    if not PLAUSIBLE_A[0] <= size <= PLAUSIBLE_A[1]:
        raise ParameterError(
            f"{given}: a pixel size of {size:g} Å came, {PLAUSIBLE_A[0]:g} to {PLAUSIBLE_A[1]:g} are plausible for"
            f" {what}; give the true one with --pixel-size-A"
        )
    return size


def stated_optics(given: str, job: StatedOptics, groups: Sequence[OpticsGroup]) -> tuple[OpticsGroup, ...]:
    """Return optics groups with what options say of the microscope.

    Raises
    ------
    ParameterError
        Nothing says the voltage or the aberration; or a value that no microscope has.
    """
    optics = []
    for group in groups:
        voltage = job.voltage_kV or group.voltage
        cs = group.spherical_aberration if job.cs_mm is None else job.cs_mm * _MM
        if not voltage:
            raise ParameterError(f"nothing says the voltage of {given}; give --voltage-kV")
        if not PLAUSIBLE_KV[0] <= voltage <= PLAUSIBLE_KV[1]:
            raise ParameterError(
                f"{given}: a voltage of {voltage:g} kV came, {PLAUSIBLE_KV[0]:g} to {PLAUSIBLE_KV[1]:g} are"
                " plausible; give the true one with --voltage-kV"
            )
        if not cs and job.cs_mm is None:
            raise ParameterError(f"nothing says the spherical aberration of {given}; give --cs-mm (0 if corrected)")
        contrast = job.amplitude_contrast
        contrast = contrast if contrast is not None else group.amplitude_contrast or 0.1
        optics.append(replace(group, voltage=voltage, spherical_aberration=cs, amplitude_contrast=contrast))
    return tuple(optics)


def with_options(job: Stated, source: SourceMovies, header_pixel_size: float) -> SourceMovies:
    """Return movies with what the options say; an option goes before the table, and the table before the header.

    Raises
    ------
    ParameterError
        Nothing says the pixel size, the voltage or the aberration; or a value that no microscope has.
    """
    size = stated_pixel_size(job.movies, "movies", job.pixel_size_A or source.pixel_size or header_pixel_size)
    optics = stated_optics(job.movies, job, source.movies.optics)
    movies = replace(source.movies, optics=optics)
    count = len(movies)
    given: dict[str, Any] = {"pixel_size": np.full(count, size)}
    if job.dose_per_frame_e_per_A2 is not None:
        given["dose_per_frame"] = np.full(count, job.dose_per_frame_e_per_A2)
    if job.pre_exposure_e_per_A2 is not None:
        given["pre_exposure"] = np.full(count, job.pre_exposure_e_per_A2)
    for name, place in (("gain", job.gain), ("defects", job.defects)):
        if place is not None or name not in movies:
            given[name] = np.array([place or ""] * count, TEXT)
    given["gain_rotation"], given["gain_flip"] = np.full(count, job.gain_rotation), np.full(count, job.gain_flip)
    return source._replace(movies=movies.with_columns(**given))


def movie_table(job: Stated, source: SourceMovies, found: Found, good: NDArray[np.bool_]) -> tuple[Movies, list[str]]:
    """Return the table of the movies that can be used, and lines about what is not known of them."""
    headers = {name: found[name] for name in ("format", "encoding", "frames", "height", "width", "file_bytes", "group")}
    table = source.movies.with_columns(**headers, file_version=found["file_version"]).take(good)
    notes: list[str] = []
    dose = table.get("dose_per_frame", math.nan)
    if "dose_per_frame" not in table:
        table = table.with_columns(dose_per_frame=dose)
    unknown = int(np.count_nonzero(~(dose > 0)))
    if unknown:
        notes.append(
            f"the dose is not known of {unknown:,} of {movies_in_words(len(table))}: they cannot be dose-weighted; give"
            " --dose-per-frame-e-per-A2"
        )
    much = (dose > PLAUSIBLE_DOSE) & (table["frames"] > 1)
    if much.any():
        notes.append(f"a frame received up to {dose[much].max():g} e/Å², which is much: is it that of the whole movie?")
    stated = found["header_pixel_size"][good]
    size = float(table["pixel_size"][0])
    other = (stated > 0) & (np.abs(stated / size - 1) > 0.01)
    if other.any():
        notes.append(
            f"headers of {movies_in_words(int(other.sum()))} state {float(stated[other][0]):g} Å, and {size:g} Å are"
            " taken"
        )
    return table, [*notes, *_of_groups(job, table)]


def with_those_gone(url: str, table: Movies, names: Sequence[str]) -> tuple[Movies, int]:
    """Return a table with the movies that an earlier run imported and that are no longer there, and how many they are.

    Microscopes' computers delete movies that were copied. What was made of these is not to be lost with them.

    Parameters
    ----------
    url
        Of the results that hold the earlier table, if there is one.
    table
        Of the movies that can be used now.
    names
        Of all that are there now, whether they can be used or not.
    """
    if not has_group(url, MOVIE_TABLE):
        return table, 0
    before, there = read_movies(url), set(names)
    gone = np.array([name not in there for name in before["movie"].tolist()], bool)
    if not gone.any():
        return table, 0
    both = joined_tables(table, before.take(gone))
    order = sorted(range(len(both)), key=both["movie"].tolist().__getitem__)
    return both.take(np.array(order)), int(gone.sum())


def short_of_a_group(job: Stated, source: SourceMovies, found: Found) -> Found:
    """Return what was found, with EER movies left out that have fewer raw frames than one group.

    Raises
    ------
    ParameterError
        Groups are to have a dose, and that of a raw frame is not known.
    """
    groups = _groups(job, source.movies.get("dose_per_frame", math.nan), found["format"])
    problems = found["problem"].tolist()
    for row in np.flatnonzero((found["frames"] < groups) & (found["problem"] == "")).tolist():
        problems[row] = f"has {found['frames'][row]} raw frames, fewer than one group of {groups[row]}"
    return {**found, "problem": np.array(problems, TEXT), "group": groups}


def _groups(job: Stated, dose: NDArray[np.float64], formats: NDArray[Any]) -> NDArray[np.int32]:
    """Return how many raw frames each movie's frames have."""
    groups, eer = np.ones(len(formats), np.int32), formats == "EER"
    if job.eer_group is not None:
        groups[eer] = job.eer_group
    elif job.eer_frame_dose_e_per_A2 is not None and eer.any():
        if not (dose[eer] > 0).all():
            raise ParameterError(
                "--eer-frame-dose-e-per-A2 needs the dose of a raw frame: give --dose-per-frame-e-per-A2, or take"
                " --eer-group"
            )
        groups[eer] = [group_of_dose(job.eer_frame_dose_e_per_A2, float(each)) for each in dose[eer]]
    return groups


def _of_groups(job: Stated, table: Movies) -> list[str]:
    """Return lines about raw frames of EER and how they are added up."""
    eer = table["format"] == "EER"
    if not eer.any():
        return []
    if job.eer_group is None and job.eer_frame_dose_e_per_A2 is None:
        return ["EER raw frames are not grouped; give --eer-group or --eer-frame-dose-e-per-A2"]
    frames, groups = table["frames"][eer].tolist(), table["group"][eer].tolist()
    left = np.array([frame_groups(count, group, False)[1] for count, group in zip(frames, groups, strict=True)])
    if not left.any():
        return []
    share = 100 * left.sum() / sum(frames)
    return [
        f"{movies_in_words(int((left > 0).sum()))} of EER with raw frames at the end that fill no group, up to"
        f" {left.max()} ({share:.1f} % of all raw frames): they and their electrons are left out"
    ]


def kinds_of(table: Movies) -> dict[str, NDArray[Any]]:
    """Return the kinds of movies, the most frequent first, as arrays ``kind_…`` of the same length."""
    names = ("format", "encoding", "frames", "width", "height")
    counts = Counter(zip(*(table[name].tolist() for name in names), strict=True)).most_common()
    columns = list(zip(*(kind for kind, _ in counts), strict=True))
    arrays: dict[str, NDArray[Any]] = {"kind_movies": np.array([count for _, count in counts])}
    for name, values in zip(names, columns, strict=True):
        arrays[f"kind_{name}"] = np.array(values, TEXT if isinstance(values[0], str) else np.int64)
    return arrays


def movies_in_words(count: int) -> str:
    """Return so many movies in words."""
    return "1 movie" if count == 1 else f"{count:,} movies"


def sayings(
    names: Sequence[str], found: Found, good: NDArray[np.bool_], kinds: Mapping[str, NDArray[Any]]
) -> list[str]:
    """Return lines about movies that are left out, that differ from the others, and that are odd."""
    problems = found["problem"].tolist()
    first = {why: name for name, why in zip(reversed(names), reversed(problems), strict=True) if why}
    reasons = Counter(why for why in problems if why)
    lines = [
        f"left out: {first[why]}" + (f" and {count - 1:,} more" if count > 1 else "") + f": {why}"
        for why, count in reasons.most_common(5)
    ]
    if len(reasons) > 5:
        lines.append(
            f"{sum(reasons.values()) - sum(c for _, c in reasons.most_common(5)):,} left out for other reasons"
        )
    if len(kinds["kind_movies"]) > 1:
        rest = int(kinds["kind_movies"][1:].sum())
        lines.append(f"the movies are of {len(kinds['kind_movies'])} kinds; of others than the most frequent: {rest:,}")
    single = int(((found["frames"] == 1) & good).sum())
    if single:
        lines.append(f"{movies_in_words(single)} with a single frame: images, whose motion cannot be corrected")
    doubts = int(((found["doubts"] != "") & good).sum())
    if doubts:
        odd = np.flatnonzero((found["doubts"] != "") & good)[0]
        more = f" and {doubts - 1:,} more (see the report)" if doubts > 1 else ""
        lines.append(f"{names[odd]}{more}: {found['doubts'][odd]}")
    return lines


def movie_correction(movies: Movies, row: int, upsampling: int = 1) -> FrameCorrection:
    """Return what gain reference and defects do to the frames of a movie of a table.

    Parameters
    ----------
    movies
        The table.
    row
        Of the movie.
    upsampling
        Of EER, pixels of a frame along each side of one of the detector's.

    Raises
    ------
    CloudemError
        The gain reference or the defects cannot be read, or do not fit the frames.
    """
    names = ("height", "width", "gain_rotation", "gain_flip")
    height, width, turns, flip = (int(movies[name][row]) for name in names)
    eer = str(movies["format"][row]) == "EER"
    return _correction(
        (height, width), str(movies["gain"][row]), turns, flip, str(movies["defects"][row]), eer, upsampling
    )


@lru_cache(maxsize=4)
def _correction(
    shape: tuple[int, int], gain: str, turns: int, flip: int, defects: str, eer: bool, upsampling: int
) -> FrameCorrection:
    read = read_gain(gain) if gain else None
    return correction_of(
        (shape[0] * upsampling, shape[1] * upsampling),
        orient_gain(read.image, turns, flip) if read is not None else None,
        read_defects(defects, shape) if defects else None,
        divides=eer and read is not None and not read.multiplies_eer,
        upsampling=upsampling,
    )
