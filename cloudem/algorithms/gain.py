"""Gain references and defects of a detector, applied to frames.

A gain reference is oriented as RELION's ``--gain_rot`` and ``--gain_flip`` do: first turned by quarter turns, clockwise
where the first row is shown at the top, then flipped. Where it is 0 the pixel is a defect. Defects take the mean of the
nearest good pixels of the same frame, so that they are alike from frame to frame no more than their neighbours are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError, ParameterError

NEIGHBOURS, FARTHEST = 8, 12
"""Good pixels that stand in for a defect, and how far they may lie, in pixels."""

_LARGEST = 1e4
"""Factors of a gain reference beyond which it is none."""


class FrameCorrection(NamedTuple):
    """What is done to frames.

    Attributes
    ----------
    factor
        Shape ``(rows, columns)``, 1 where there is no gain reference or the pixel is a defect; None for no gain.
    defects
        Places of bad pixels, counted row by row, ``(m,)``.
    neighbours
        Places of the good ones that stand in for each, ``(m, NEIGHBOURS)``; -1 for none.
    """

    factor: NDArray[np.float32] | None
    defects: NDArray[np.int64]
    neighbours: NDArray[np.int64]


def orient_gain(gain: NDArray[np.float32], quarter_turns: int, flip: int) -> NDArray[np.float32]:
    """Turn and flip a gain reference.

    Parameters
    ----------
    gain
        Shape ``(rows, columns)``.
    quarter_turns
        0 to 3, clockwise where the first row is at the top.
    flip
        0 for none, 1 upside down, 2 left to right; after turning.

    Raises
    ------
    ParameterError
        Other numbers.
    """
    if quarter_turns not in range(4) or flip not in range(3):
        raise ParameterError(f"a gain is turned 0 to 3 times and flipped 0 to 2; got {quarter_turns} and {flip}")
    turned = np.rot90(gain, -quarter_turns)
    return np.ascontiguousarray(turned if flip == 0 else turned[::-1] if flip == 1 else turned[:, ::-1])


def correction_of(
    shape: tuple[int, int],
    gain: NDArray[np.float32] | None = None,
    defects: NDArray[np.bool_] | None = None,
    *,
    divides: bool = False,
    upsampling: int = 1,
) -> FrameCorrection:
    """Prepare the correction of frames.

    Parameters
    ----------
    shape
        Rows and columns of a frame.
    gain
        Oriented, ``(rows, columns)`` of the detector.
    defects
        True for bad pixels, of the same shape.
    divides
        Whether frames are divided by the gain; otherwise they are multiplied.
    upsampling
        Pixels of a frame along each side of one of the detector's.

    Raises
    ------
    InconsistentDataError
        Gain or defects are of another size than the frames.
    ParameterError
        The gain holds numbers that no gain has, or nothing but defects.
    """
    rows, columns = shape
    expected = rows // upsampling, columns // upsampling
    for name, given in (("gain reference", gain), ("defect map", defects)):
        if given is not None and given.shape != expected:
            raise InconsistentDataError(
                f"the {name} has {given.shape[1]} x {given.shape[0]} pixels and the frames {expected[1]} x"
                f" {expected[0]}; give the one of this detector and binning, or turn it with --gain-rot"
            )
    bad = np.zeros(expected, bool) if defects is None else defects.copy()
    factor = None
    if gain is not None:
        if not np.isfinite(gain).all() or gain.min() < 0 or gain.max() > _LARGEST:
            raise ParameterError(
                f"the gain reference holds values from {gain.min():g} to {gain.max():g}; 0 to {_LARGEST:g} are"
                " plausible: is it the right file?"
            )
        bad |= gain == 0
        safe = np.where(gain == 0, np.float32(1), gain)
        factor = _enlarged(np.float32(1) / safe if divides else safe, upsampling).astype(np.float32)
    if bad.all():
        raise ParameterError("every pixel is a defect: the gain reference or the list of defects is the wrong one")
    bad = _enlarged(bad, upsampling)
    places = np.flatnonzero(bad)
    return FrameCorrection(factor, places, _good_neighbours(bad, places))


def correct_frames(frames: NDArray[Any], correction: FrameCorrection) -> NDArray[np.float32]:
    """Return frames multiplied by the gain, with defects filled from their neighbours.

    Parameters
    ----------
    frames
        Shape ``(n, rows, columns)``.
    correction
        Made by `correction_of` for frames of that size.
    """
    corrected = frames.astype(np.float32)
    if correction.factor is not None:
        corrected *= correction.factor
    fill_defects(corrected, correction)
    return corrected


def fill_defects(frames: NDArray[np.float32], correction: FrameCorrection) -> None:
    """Fill the defects of frames from their neighbours, in place; see `correct_frames`."""
    if not len(correction.defects):
        return
    known = correction.neighbours >= 0
    counts = known.sum(axis=1)
    alone = bool((counts == 0).any())
    good = np.setdiff1d(np.arange(frames[0].size), correction.defects, assume_unique=True) if alone else None
    for frame in frames.reshape(len(frames), -1):
        values = np.where(known, frame[correction.neighbours], np.float32(0)).sum(axis=1, dtype=np.float64)
        mean = 0.0 if good is None else float(frame[good].mean(dtype=np.float64))
        frame[correction.defects] = np.where(counts > 0, values / np.maximum(counts, 1), mean)


def _enlarged(image: NDArray[Any], times: int) -> NDArray[Any]:
    return image if times == 1 else image.repeat(times, axis=0).repeat(times, axis=1)


def _good_neighbours(bad: NDArray[np.bool_], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the nearest good pixels of each bad one, those at the same distance in a fixed order."""
    rows, columns = bad.shape
    found = np.full((len(places), NEIGHBOURS), -1, np.int64)
    counts = np.zeros(len(places), np.int64)
    reach = np.arange(-FARTHEST, FARTHEST + 1)
    steps = sorted((y * y + x * x, y, x) for y in reach for x in reach if 0 < y * y + x * x <= FARTHEST**2)
    for _, y, x in steps:
        open_ = np.flatnonzero(counts < NEIGHBOURS)
        if not len(open_):
            break
        row, column = places[open_] // columns + y, places[open_] % columns + x
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        open_, row, column = open_[inside], row[inside], column[inside]
        good = ~bad[row, column]
        found[open_[good], counts[open_[good]]] = row[good] * columns + column[good]
        counts[open_[good]] += 1
    return found
