"""Sums of the frames of a movie, each moved back: weighted and unweighted, and of every other frame.

Frames are moved by a cubic B-spline, whose smoothing is the same everywhere and is taken away from the spectra of the
sums. Weighted sums are divided by the root of the sum of squared weights, so that their noise is white.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.kernels.motion import FIELD_TERMS, add_weighted, warped, wave_scale

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]


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
    frame: Callable[[int], Float32],
    fields: Float64,
    shape: tuple[int, int],
    weights: Float32 | None = None,
    seen: Callable[[int, Complex64], None] | None = None,
) -> FrameSums:
    """Move all frames back and add them up.

    Parameters
    ----------
    frame
        Returns a frame by its number; it is read once each.
    fields
        Displacements in each frame, over the terms of `cloudem.kernels.motion.warped`, ``(frames, 2, 6)``.
    shape
        Rows and columns, both even.
    weights
        Of each frame at `weight_places`, ``(frames, m)``; None for 1.
    seen
        Given the number and the spectrum of each frame that was moved back, the spline's smoothing not yet taken away.
    """
    if fields.shape[1:] != (2, FIELD_TERMS):
        raise ValueError(f"fields have shape {fields.shape}")
    moved = np.empty(shape, np.float32)
    plain = np.zeros((1 if weights is not None else 2, *shape), np.float32)
    half = shape[0], shape[1] // 2 + 1
    total = np.zeros((2, *half), np.complex64) if weights is not None else None
    for number, field in enumerate(fields):
        image = frame(number)
        warped(image, field, float(image.mean(dtype=np.float64)), moved)
        plain[number % len(plain)] += moved
        if total is not None or seen is not None:
            spectrum = scipy.fft.rfft2(moved)
            if seen is not None:
                seen(number, spectrum)
            if total is not None and weights is not None:
                add_weighted(spectrum, weights[number], total[number % 2])
    spectra = [scipy.fft.rfft2(each) for each in plain]
    if total is not None:
        spectra = [total[0], total[1], *spectra]
    for each in spectra:
        _divide_by_spline(each, shape)
    return FrameSums(spectra[0], spectra[1], spectra[2] if total is not None else None, weights, shape)


def spline_response(count: int, waves: Float64) -> Float64:
    """Return what a cubic B-spline, sampled at whole pixels, leaves of so many waves across `count` pixels."""
    return np.asarray((2 + np.cos(2 * np.pi * waves / count)) / 3)


def _divide_by_spline(spectrum: Complex64, shape: tuple[int, int]) -> None:
    along_y = 1 / spline_response(shape[0], np.arange(shape[0]))
    along_x = 1 / spline_response(shape[1], np.arange(spectrum.shape[1]))
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
