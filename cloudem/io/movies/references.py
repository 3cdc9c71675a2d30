"""Gain references and defect lists in the files of detectors' programs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import FormatError, InconsistentDataError
from cloudem.io.movies.opening import open_movie
from cloudem.io.movies.ranges import RangeReader

_MOST_BYTES = 2**26
_SERIALEM = ("CameraSizeX", "BadColumns", "BadRows", "BadPixels", "PartialBadColumn", "PartialBadRow")


class GainReference(NamedTuple):
    """A gain reference as it is stored.

    Attributes
    ----------
    image
        Float32, ``(rows, columns)``; of TIFF flipped in y, as movies in TIFF are; a ``.gain`` file is not, as EER.
    multiplies_eer
        Whether EER frames are multiplied by it (a ``.gain`` file, which is TIFF); otherwise they are divided. Other
        movies are always multiplied.
    """

    image: NDArray[np.float32]
    multiplies_eer: bool


def read_gain(url: str | os.PathLike[str]) -> GainReference:
    """Read a gain reference: one image in MRC or TIFF (also called ``.gain``).

    Raises
    ------
    MissingInputError
        There is no such file.
    FormatError
        It is of no such format, or holds several images.
    """
    place = os.fspath(url)
    if place.lower().endswith((".dm4", ".dm3")):
        raise FormatError(f"{place}: gain references are read as MRC or TIFF; convert it with IMOD's dm2mrc")
    movie = open_movie(place)
    if movie.format == "EER" or movie.frames != 1:
        raise FormatError(
            f"{place} holds {movie.frames} frames, a gain reference is one image; give the reference itself"
        )
    image = movie.read()[0].astype(np.float32)
    if movie.damaged:
        raise FormatError(f"{place} {movie.damaged[0]}; copy it again")
    falcon = place.lower().endswith(".gain")
    return GainReference(np.ascontiguousarray(image[::-1]) if falcon and movie.format == "TIFF" else image, falcon)


def read_defects(url: str | os.PathLike[str], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read which pixels are bad: True in an array of the size of a frame.

    Lines ``x y width height`` (MotionCor, RELION) count from the first pixel of the array, SerialEM's list from the top
    of the image, which is the array's last row. An image has ones where pixels are bad.

    Parameters
    ----------
    url
        Of the file.
    shape
        Rows and columns of a frame of the detector.

    Raises
    ------
    MissingInputError
        There is no such file.
    FormatError
        It is none of these, or goes beyond the frame.
    InconsistentDataError
        It is for a detector of another size.
    """
    place = os.fspath(url)
    ranges = RangeReader(place)
    start = ranges.read(0, 4096)
    if b"\0" in start:
        image = read_gain(place).image
        if image.shape != shape:
            raise InconsistentDataError(
                f"{place} has {image.shape[1]} x {image.shape[0]} pixels and the frames {shape[1]} x {shape[0]}"
            )
        return np.asarray(image != 0)
    if ranges.size > _MOST_BYTES:
        raise FormatError(f"{place} has {ranges.size} bytes, more than any list of defects")
    text = ranges.read(0, ranges.size).decode("utf-8", errors="replace")
    lines = [line.split("#")[0].split() for line in text.splitlines()]
    rows = [(number, words) for number, words in enumerate(lines, 1) if words]
    if any(words[0] in _SERIALEM for _, words in rows):
        return _serialem(place, rows, shape)
    bad = np.zeros(shape, bool)
    for number, words in rows:
        x, y, width, height = _numbers(place, number, words, 4)
        _mark(place, number, bad, (y, y + height), (x, x + width))
    return bad


def _serialem(place: str, rows: Sequence[tuple[int, list[str]]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    size = {words[0]: int(words[1]) for _, words in rows if words[0].startswith("CameraSize") and len(words) > 1}
    camera = size.get("CameraSizeY", shape[0]), size.get("CameraSizeX", shape[1])
    times = shape[0] // camera[0] if camera[0] else 0
    if times not in (1, 2) or (camera[0] * times, camera[1] * times) != shape:
        raise InconsistentDataError(
            f"{place} is for a camera of {camera[1]} x {camera[0]} pixels, the frames have {shape[1]} x {shape[0]};"
            " give the list that was saved with these frames"
        )
    bad = np.zeros(camera, bool)
    everything = (0, camera[0]), (0, camera[1])
    for number, (key, *words) in ((number, words) for number, words in rows):
        if key == "UsableArea":
            top, left, bottom, right = _numbers(place, number, words, 4)
            if bottom > top and right > left:
                usable = np.zeros(camera, bool)
                _mark(place, number, usable, (top, bottom + 1), (left, right + 1))
                bad |= ~usable
        elif key in ("BadColumns", "BadRows"):
            for at in _numbers(place, number, words):
                across = (everything[0], (at, at + 1)) if key == "BadColumns" else ((at, at + 1), everything[1])
                _mark(place, number, bad, *across)
        elif key == "BadPixels":
            values = _numbers(place, number, words)
            for x, y in zip(values[::2], values[1::2], strict=False):
                _mark(place, number, bad, (y, y + 1), (x, x + 1))
        elif key in ("PartialBadColumn", "PartialBadRow"):
            at, width, first, last = _numbers(place, number, words, 4)
            along, across_ = (first, last + 1), (at, at + width)
            _mark(place, number, bad, *((along, across_) if key == "PartialBadColumn" else (across_, along)))
    flipped = bad[::-1]
    return flipped.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else np.ascontiguousarray(flipped)


def _numbers(place: str, number: int, words: Sequence[str], count: int | None = None) -> list[int]:
    try:
        values = [int(word) for word in words]
    except ValueError:
        values = []
    if (count is not None and len(values) != count) or not values:
        raise FormatError(
            f"{place} line {number}: {' '.join(words)[:40]!r} is no defect; lines are 'x y width height', or SerialEM's"
        )
    return values


def _mark(place: str, number: int, bad: NDArray[np.bool_], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    if not (0 <= rows[0] < rows[1] <= bad.shape[0] and 0 <= columns[0] < columns[1] <= bad.shape[1]):
        raise FormatError(
            f"{place} line {number}: a defect from {columns[0]}, {rows[0]} to {columns[1] - 1}, {rows[1] - 1} is not"
            f" within {bad.shape[1]} x {bad.shape[0]} pixels; is the list for this detector?"
        )
    bad[slice(*rows), slice(*columns)] = True
