"""Sums of the frames of a movie, each moved back: weighted and unweighted, and of every other frame.

Weights of frames at each frequency, ``(frames, m)``, are nearly of a low rank: a few curves of frequency, each times an
amount for each frame. So frames are added up in space, once for each curve, and what is transformed is a few sums
instead of all frames. Frames are moved by a cubic B-spline, whose smoothing is the same everywhere and is taken away
from the spectra of the sums. Weighted sums are divided by the root of the sum of squared weights, so that their noise
is white.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.kernels.motion import FIELD_TERMS, add_warped, add_weighted, wave_scale

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

TOGETHER = 4
"""Frames that are moved back at a time: sums are read and written once for all of them."""

RANK_ERROR, MOST_CURVES = 1e-3, 10
"""Greatest error of a weight, of which the largest is 1, and most curves that they are made of."""


class FrameSums(NamedTuple):
    """Spectra of the sums of a movie, half transforms of its frames' size, without the spline's smoothing.

    Attributes
    ----------
    even, odd
        Of the 1st, 3rd, … and of the 2nd, 4th, … frame, weighted where there are weights; not yet divided.
    unweighted
        Of all frames, where there are weights; else None, for it is the sum of the two.
    weights
        Shape ``(frames, m)``, see `cloudem.kernels.motion.add_weighted`; None for the same weight everywhere.
    shape
        Rows and columns of a frame.
    """

    even: Complex64
    odd: Complex64
    unweighted: Complex64 | None
    weights: Float32 | None
    shape: tuple[int, int]


def weight_places(shape: tuple[int, int], pixel_size: float) -> Float64:
    """Return the frequencies, 1/Å, at which weights of frames of a shape are wanted: half a wave apart, ``(m,)``."""
    rows, half = shape[0], shape[1] // 2 + 1
    farthest = np.hypot(rows, 2 * (half - 1) * wave_scale((rows, half)))
    return np.arange(int(farthest) + 3) / (2 * rows * pixel_size)


def sum_frames(
    frame: Callable[[int, Float32], float],
    fields: Float64,
    shape: tuple[int, int],
    weights: Float32 | None = None,
) -> FrameSums:
    """Move all frames back and add them up.

    Parameters
    ----------
    frame
        Puts a frame, by its number, into an array and returns its mean; each is asked for once.
    fields
        Displacements in each frame, over the terms of `cloudem.kernels.motion.add_warped`, ``(frames, 2, 6)``.
    shape
        Rows and columns, both even.
    weights
        Of each frame at `weight_places`, ``(frames, m)``; None for 1.
    """
    if fields.shape[1:] != (2, FIELD_TERMS):
        raise ValueError(f"fields have shape {fields.shape}, not (frames, 2, {FIELD_TERMS})")
    one = np.ones((len(fields), 1), np.float32)
    # the weights of a plain sum come last
    amounts, curves = rank_factors(one if weights is None else np.concatenate([weights, one], axis=1))
    half = shape[0], shape[1] // 2 + 1
    unweighted = None if weights is None else np.zeros(half, np.complex64)
    buffer = np.empty((min(TOGETHER, len(fields)), *shape), np.float32)
    totals = np.empty((len(curves), *shape), np.float32)
    sums = []
    for parity in range(2):
        totals[:] = 0
        mine = range(parity, len(fields), 2)
        for first in range(0, len(mine), TOGETHER):
            some = list(mine[first : first + TOGETHER])
            means = np.array([frame(number, buffer[place]) for place, number in enumerate(some)], np.float32)
            add_warped(buffer[: len(some)], fields[some], means, amounts[some], totals)
        spectrum = np.zeros(half, np.complex64)
        for each, curve in zip(totals, curves, strict=True):
            part = scipy.fft.rfft2(each)
            add_weighted(part, curve if weights is None else curve[:-1], spectrum)
            if unweighted is not None:
                part *= curve[-1]
                unweighted += part
        sums.append(spectrum)
    for whole in (*sums, unweighted):
        if whole is not None:
            _divide_by_spline(whole, shape)
    return FrameSums(sums[0], sums[1], unweighted, weights, shape)


def rank_factors(weights: Float32) -> tuple[Float32, Float32]:
    """Return amounts ``(frames, r)`` and curves ``(r, m)`` whose product is the weights, but for `RANK_ERROR`."""
    left, sizes, right = np.linalg.svd(weights.astype(np.float64), full_matrices=False)
    rank = 1
    while rank < min(len(sizes), MOST_CURVES):
        if abs((left[:, :rank] * sizes[:rank]) @ right[:rank] - weights).max() < RANK_ERROR * abs(weights).max():
            break
        rank += 1
    amounts, curves = left[:, :rank] * sizes[:rank], right[:rank]
    return amounts.astype(np.float32), curves.astype(np.float32)


def spline_response(count: int, waves: Float64) -> Float64:
    """Return what a cubic B-spline, sampled at whole pixels, leaves of so many waves across `count` pixels."""
    return np.asarray((2 + np.cos(2 * np.pi * waves / count)) / 3)


def _divide_by_spline(spectrum: Complex64, shape: tuple[int, int]) -> None:
    along_y = 1 / spline_response(shape[0], np.arange(float(shape[0])))
    along_x = 1 / spline_response(shape[1], np.arange(float(spectrum.shape[1])))
    spectrum *= along_y[:, None].astype(np.float32)
    spectrum *= along_x.astype(np.float32)


def binned_shape(shape: tuple[int, int], binning: float) -> tuple[int, int]:
    """Return rows and columns of images that are smaller by a factor, both even."""
    rows, columns = (max(2, 2 * round(side / binning / 2)) for side in shape)
    return rows, columns


def images_of(sums: FrameSums, binning: float = 1.0) -> Mapping[str, Float32]:
    """Return the images: ``sum``, ``unweighted`` where there are weights, ``even`` and ``odd``.

    Parameters
    ----------
    sums
        Of `sum_frames`.
    binning
        Factor by which images are smaller, by leaving out high frequencies; electrons are kept.
    """
    size = binned_shape(sums.shape, binning)
    cut = {"even": _cropped(sums.even, sums.shape, size), "odd": _cropped(sums.odd, sums.shape, size)}
    cut["sum"] = cut["even"] + cut["odd"]
    if sums.weights is not None:
        for name, frames in (("sum", slice(None)), ("even", slice(0, None, 2)), ("odd", slice(1, None, 2))):
            _normalise(cut[name], sums.weights[frames], sums.shape, size)
    if sums.unweighted is not None:
        cut["unweighted"] = _cropped(sums.unweighted, sums.shape, size)
    return {
        name: scipy.fft.irfft2(cut.pop(name), s=size) for name in ("sum", "unweighted", "even", "odd") if name in cut
    }


def _cropped(spectrum: Complex64, shape: tuple[int, int], size: tuple[int, int]) -> Complex64:
    if size == shape:
        return spectrum.copy()
    rows, half = size[0] // 2, size[1] // 2 + 1
    cut = np.concatenate([spectrum[:rows, :half], spectrum[-rows:, :half]])
    cut[rows] = 0  # waves that are as short as the new pixels have no partner
    cut[:, -1] = 0
    return cut


def _normalise(spectrum: Complex64, weights: Float32, shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Divide by the root of the sum of squared weights."""
    norm = (1 / np.sqrt(np.maximum((weights.astype(np.float64) ** 2).sum(axis=0), 1e-12))).astype(np.float32)
    ky = np.minimum(np.arange(size[0]), size[0] - np.arange(size[0])) * np.float32(2)
    kx = np.arange(size[1] // 2 + 1) * np.float32(2 * shape[0] / shape[1])
    for row, at in zip(spectrum, ky, strict=True):
        row *= norm[np.minimum((np.sqrt(at * at + kx * kx) + 0.5).astype(np.int64), len(norm) - 1)]
