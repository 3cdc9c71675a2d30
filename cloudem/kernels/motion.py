"""Loops of motion correction: frames made smaller, correlated with one another, warped, and added up in Fourier space.

A displacement says where the specimen lies in a frame: what is at `r` in the first one is at ``r + d`` in this one, in
pixels, x along the columns. Spectra of frames carry ``exp(-ik·d)``, and are moved back by ``exp(+ik·d)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

FIELD_TERMS = 6
"""Of a field over an image: 1, u, u², v, v², uv with u = x / width - 1/2 and v = y / height - 1/2, as RELION has it."""


@kernel
def corrected(raw: NDArray[Any], factor: Float32, limit: float, instead: float, out: Float32) -> int:
    """Multiply a frame by its gain; what is above a limit is an outlier of this frame and gets another value.

    Parameters
    ----------
    raw
        Shape ``(rows, columns)``, numbers of any kind.
    factor
        Of the same shape, or ``(1, 1)`` for one factor everywhere.
    limit, instead
        In units of the frame times the factor.
    out
        Of the same shape.

    Returns
    -------
    count
        Outliers.
    """
    out[:] = raw * factor
    outliers = out > np.float32(limit)
    out[outliers] = instead
    return int(outliers.sum())


@kernel
def frame_moments(raw: NDArray[Any], factor: Float32, total: Float32) -> Float64:
    """Add a frame, multiplied by its gain, to a sum; return the sum of its pixels and of their squares, ``(2,)``.

    Parameters
    ----------
    raw, factor
        As `corrected` takes them.
    total
        Shape ``(rows, columns)``; the frame is added to it.
    """
    frame = (raw * factor).astype(np.float32)
    total += frame
    return np.array([frame.sum(dtype=np.float64), (frame.astype(np.float64) ** 2).sum()])


@kernel
def roughness(image: Float32) -> float:
    """Return the mean square of ``a - b - c + d`` over squares of four pixels: the power of the highest frequencies.

    It is four times the variance of an image of independent pixels.
    """
    mixed = np.asarray(image, np.float64)
    mixed = mixed[1:] - mixed[:-1]
    mixed = mixed[:, 1:] - mixed[:, :-1]
    return float((mixed**2).mean())


@kernel
def shrunk(image: Float32, taps: Float32, factor: int) -> Float32:
    """Return an image low-passed and sampled at every `factor`-th pixel along both axes.

    Parameters
    ----------
    image
        Shape ``(rows, columns)``.
    taps
        Symmetric, an even number of them if `factor` is even, else an odd one, so that sample ``j`` is centred at
        ``j * factor + (factor - 1) / 2``.
    factor
        Whole number from 1.

    Returns
    -------
    small
        Shape ``(rows // factor, columns // factor)``; beyond its edge the image goes on with its last pixel.
    """
    small = np.asarray(image, np.float64)
    for _ in range(2):
        count, before = small.shape[0] // factor, (len(taps) - factor) // 2
        places = np.arange(count)[:, None] * factor - before + np.arange(len(taps))
        lines = small[np.clip(places, 0, small.shape[0] - 1)]
        small = np.tensordot(lines, taps.astype(np.float64), axes=([1], [0])).T
    return small.astype(np.float32)


@kernel
def correlation_steps(
    real: Float32,
    imaginary: Float32,
    waves: NDArray[np.int32],
    steps: Float64,
    weight: Float32,
    pattern: Float32,
    displacement: Float64,
) -> tuple[Float64, Float64, float]:
    """Compare each frame with the sum of all others, moved back: how to move it for a better agreement.

    With frames ``Y = X exp(+ik·d)``, the agreement is the sum over waves and pairs of frames ``f > g`` of
    ``weight * Re(Y_f conj(Y_g) - pattern exp(ik·(d_f - d_g)))``, where ``pattern`` is the power of what does not move
    with the specimen. The derivatives are those by the displacement of one frame, the others held.

    Parameters
    ----------
    real, imaginary
        Spectra, ``(n, frames)``.
    waves
        Whole numbers of waves along y and x, ``(n, 2)``, in order of the first.
    steps
        Radians per pixel of one wave, along y and x, ``(2,)``.
    weight, pattern
        Shape ``(n,)``.
    displacement
        Along x and y, ``(frames, 2)``.

    Returns
    -------
    gradient
        Shape ``(frames, 2)``, along x and y.
    curvature
        Minus the second derivatives xx, xy, yy, ``(frames, 3)``.
    agreement
        The sum.
    """
    ky, kx = (waves * steps).T
    shift = np.exp(1j * (kx[:, None] * displacement[:, 0] + ky[:, None] * displacement[:, 1]))
    moved = (real + 1j * imaginary) * shift
    total, shifts = moved.sum(axis=1, keepdims=True), shift.sum(axis=1, keepdims=True)
    product = moved * (total - moved).conj() - pattern[:, None] * shift * (shifts - shift).conj()
    product *= weight[:, None]
    gradient = np.stack([-(k[:, None] * product.imag).sum(axis=0) for k in (kx, ky)], axis=1)
    squares = (kx * kx, kx * ky, ky * ky)
    curvature = np.stack([(k[:, None] * product.real).sum(axis=0) for k in squares], axis=1)
    return gradient, curvature, float(product.real.sum()) / 2


@kernel
def coherence(
    real: Float32, imaginary: Float32, waves: NDArray[np.int32], steps: Float64, displacement: Float64
) -> Float64:
    """Return for each wave what frames have in common once they are moved back.

    Parameters
    ----------
    real, imaginary, waves, steps, displacement
        As `correlation_steps` takes them.

    Returns
    -------
    sums
        Shape ``(n, 3)``: ``|sum Y|²``, ``sum |Y|²`` and ``|sum exp(ik·d)|²``.
    """
    ky, kx = (waves * steps).T
    shift = np.exp(1j * (kx[:, None] * displacement[:, 0] + ky[:, None] * displacement[:, 1]))
    moved = (real + 1j * imaginary) * shift
    return np.stack(
        [np.abs(moved.sum(axis=1)) ** 2, (np.abs(moved) ** 2).sum(axis=1), np.abs(shift.sum(axis=1)) ** 2], axis=1
    )


@kernel
def add_warped(frames: Float32, fields: Float64, outside: Float32, amounts: Float32, totals: Float32) -> None:
    """Move frames back by fields of displacements, and add them to several sums, a different amount to each.

    A frame that was moved back is ``sum B(r + d(r) - s) frame[s]`` at `r`, with B the cubic B-spline. It smooths;
    dividing the spectrum of the sums by `cloudem.algorithms.motion_sums.spline_response` makes it an interpolation, as
    long as the field is smooth (Unser 1999, 10.1109/79.799930).

    Parameters
    ----------
    frames
        Shape ``(b, rows, columns)``.
    fields
        Coefficients of the displacement along x and y over `FIELD_TERMS`, pixels, ``(b, 2, 6)``.
    outside
        Value of pixels that would need any beyond the edge, ``(b,)``.
    amounts
        Of each frame in each sum, ``(b, sums)``.
    totals
        Shape ``(sums, rows, columns)``; they are added to.
    """
    for frame, field, value, amount in zip(frames, fields, outside, amounts, strict=True):
        totals += amount[:, None, None] * _warped(frame, field, float(value))


def _warped(frame: Float32, field: Float64, outside: float) -> Float64:
    rows, columns = frame.shape
    u, v = np.arange(columns) / columns - 0.5, (np.arange(rows) / rows - 0.5)[:, None]
    terms = np.stack(np.broadcast_arrays(1.0, u, u * u, v, v * v, u * v))
    dx, dy = np.tensordot(field, terms, axes=1)
    x, y = np.arange(columns) + dx, np.arange(rows)[:, None] + dy
    ix, iy = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (ix >= 1) & (ix < columns - 2) & (iy >= 1) & (iy < rows - 2)
    wx, wy = _spline(x - ix), _spline(y - iy)
    result = np.zeros((rows, columns))
    for a in range(4):
        for b in range(4):
            source = frame[np.clip(iy + a - 1, 0, rows - 1), np.clip(ix + b - 1, 0, columns - 1)]
            result += wy[a] * wx[b] * source
    return np.where(inside, result, outside)


@kernel
def add_weighted(spectrum: NDArray[np.complex64], weights: Float32, total: NDArray[np.complex64]) -> None:
    """Add a spectrum, weighted by the distance from its origin.

    Parameters
    ----------
    spectrum
        Half of a transform, ``(rows, columns // 2 + 1)``.
    weights
        Shape ``(m,)``: at 0, 1, … in units of half a wave across the rows, m - 1 beyond the farthest corner; the
        nearest one counts. Waves across the columns are turned into waves across the rows.
    total
        Of the spectrum's shape; it is added to.
    """
    total += weights[half_waves(spectrum.shape, len(weights))] * spectrum


@kernel
def ring_products(first: NDArray[np.complex64], second: NDArray[np.complex64], count: int) -> Float64:
    """Sum the products of two half transforms over rings, without waves along the axes.

    Parameters
    ----------
    first, second
        Half transforms, ``(rows, columns // 2 + 1)``.
    count
        Rings from the origin to the shortest wave along the rows; waves beyond are left out.

    Returns
    -------
    sums
        Shape ``(4, count)``: real part of ``first conj(second)``, ``|first|²``, ``|second|²``, and the number of waves.
    """
    rows, half = first.shape
    ky = np.minimum(np.arange(rows), rows - np.arange(rows)).astype(np.float64)
    kx = np.arange(half) * wave_scale(first.shape)
    ring = (np.sqrt((ky * ky)[:, None] + kx * kx) * (2 * count / rows)).astype(np.int64)
    used = (ring < count) & (ky[:, None] >= AXIS) & (np.arange(half) >= AXIS) & (np.arange(half) < half - 1)
    products = (first * second.conj()).real, np.abs(first) ** 2, np.abs(second) ** 2, np.ones(first.shape)
    return np.stack([np.bincount(ring[used], each[used], minlength=count) for each in products])


AXIS = 2
"""Waves along an axis that are left out: rows and columns of a detector differ."""


def half_waves(shape: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Return the place of each pixel of a half transform among weights, see `add_weighted`.

    Rows and columns are taken as of one length: frames that are not square are handled by `wave_scale`.
    """
    rows, half = shape
    ky = np.minimum(np.arange(rows), rows - np.arange(rows)) * 2.0
    kx = np.arange(half) * 2.0 * wave_scale(shape)
    radius = np.sqrt((ky * ky)[:, None] + kx * kx)
    return np.minimum((radius + 0.5).astype(np.int64), count - 1)


def wave_scale(shape: tuple[int, ...]) -> float:
    """Return how many waves across the rows one wave across the columns is, of a half transform of an even image."""
    return shape[0] / (2 * (shape[1] - 1))


def _spline(t: Float64) -> tuple[Float64, ...]:
    """Return the weights of the four pixels around a place, `t` behind the second one."""
    return (1 - t) ** 3 / 6, (3 * t - 6) * t * t / 6 + 2 / 3, ((3 - 3 * t) * t + 3) * t / 6 + 1 / 6, t**3 / 6
