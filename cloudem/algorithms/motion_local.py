"""Motion that differs over a micrograph: a field, quadratic over the image and cubic in time.

Patches are not followed one by one, for a patch of one frame may show too little. The coefficients of the field
themselves are moved to where the frames of all patches agree best, and held back by a normal prior whose width comes
from the data. Whether the field is real is asked of patches that it was not fitted to: in each of two turns, one half
of the patches, as on a chessboard, says what the field found in the other half is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.frame_spectra import FrameSpectra, agreement_weights, ring_powers, spectra_of
from cloudem.algorithms.motion import refined_places
from cloudem.algorithms.motion_track import smoothed_track
from cloudem.kernels.motion import correlation_steps

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PATCH, FEWEST_PATCHES, MOST_PATCHES = 420.0, 3, 8
"""Å along a side of a patch, nearly; and patches along a side of the micrograph."""

SPATIAL = 5
"""Terms of the field over the image, those of `cloudem.kernels.motion.FIELD_TERMS` without the first, which is the same
everywhere."""

TEMPORAL = 3
"""Powers of time, from the first."""

ROUNDS = 4
WORTH_KEEPING = 6.0
"""What the held-out patches' log-likelihood must gain at least."""

OUTLYING = 4.0
"""How many times the usual a patch's misfit is where it counts half."""


class LocalMotion(NamedTuple):
    """A field of displacements beside those of the whole.

    Attributes
    ----------
    coefficients
        Of x and y, over the six terms of a field and the powers 1, 2, 3 of the frame's number, ``(2, 6, 3)``, in
        pixels; as in RELION's motion files. 0 where there is no field.
    track
        Of the whole, ``(frames, 2)``, with the field taken into account.
    gain
        Log-likelihood of held-out patches with the field less that without it.
    patches
        Along y and x.
    dropped
        Patches that count less than half.
    problem
        Why there is no field; empty where there is.
    """

    coefficients: Float64
    track: Float64
    gain: float
    patches: tuple[int, int]
    dropped: int
    problem: str

    def extent(self, frame: int) -> float:
        """Return the root mean square over a micrograph of the local displacement in a frame of that number, pixels."""
        u = np.linspace(-0.5, 0.5, 9)
        v = u[:, None]
        terms = np.stack(np.broadcast_arrays(1.0, u, u * u, v, v * v, u * v))
        places = np.einsum("at,tyx->ayx", field_at(self.coefficients, frame), terms)
        return float(np.sqrt((places**2).sum(axis=0).mean()))


class _Patches(NamedTuple):
    spectra: list[FrameSpectra]
    weights: list[Float32]
    terms: Float64
    """Of the field at the centre of each patch, ``(patches, SPATIAL)``."""
    times: Float64
    """Orthonormal powers of time, ``(frames, TEMPORAL)``, times the root of the number of frames."""
    chessboard: NDArray[np.bool_]
    pattern: float

    def field(self, patch: int, coefficients: Float64) -> Float64:
        """Return the displacements of a patch, ``(frames, 2)``, of coefficients ``(2, SPATIAL, TEMPORAL)``."""
        return np.asarray(self.times @ np.einsum("s,ast->ta", self.terms[patch], coefficients))


def field_at(coefficients: Float64, frame: int) -> Float64:
    """Return the coefficients of a field in one frame, over the six terms, ``(2, 6)``."""
    return np.asarray(coefficients @ float(frame) ** np.arange(1, 1 + TEMPORAL))


def patch_counts(shape: tuple[int, int], pixel_size: float) -> tuple[int, int]:
    """Return the number of patches along y and x of frames of this shape."""
    counts = [int(np.clip(round(side * pixel_size / PATCH), FEWEST_PATCHES, MOST_PATCHES)) for side in shape]
    return counts[0], counts[1]


def local_motion(
    small: Float32,
    factor: int,
    track: Float64,
    pattern: float,
    counts: tuple[int, int],
    numbers: NDArray[np.int64] | None = None,
) -> LocalMotion:
    """Find the field of motion over a micrograph, and better its motion as a whole.

    Parameters
    ----------
    small
        Small frames, ``(frames, rows, columns)``.
    factor
        Pixels of a frame along a side of one of theirs.
    track
        Motion of the whole, pixels of a frame, ``(frames, 2)``.
    pattern
        Power of what does not move.
    counts
        Patches along y and x.
    numbers
        Of the frames in the movie, rising; None for 0, 1, ….
    """
    numbers = np.arange(len(small)) if numbers is None else numbers
    frames = len(small)
    nothing = np.zeros((2, 1 + SPATIAL, TEMPORAL))
    if frames < 6:
        return LocalMotion(nothing, track, 0.0, counts, 0, f"{frames} frames are too few to fit a field")
    spectra, terms = _cut(small, factor, track, counts)
    whole = track - track.mean(axis=0)
    still = [whole] * len(spectra)
    found = ring_powers(spectra, still, pattern)
    if not (found.signal > 0).any():
        return LocalMotion(nothing, track, 0.0, counts, 0, "patches show nothing that their frames have in common")
    rows, columns = np.indices(counts)
    weights = [agreement_weights(each, found) for each in spectra]
    patches = _Patches(spectra, weights, terms, _times(numbers), ((rows + columns) % 2 == 0).ravel(), pattern)
    gain = _worth(patches, whole)
    if gain < WORTH_KEEPING:
        reason = f"patches that it was not fitted to do not confirm it (log-likelihood {gain:+.1f})"
        return LocalMotion(nothing, track, gain, counts, 0, reason)
    everything = np.ones(len(spectra))
    coefficients, trust = _fitted(patches, whole, everything, ROUNDS)
    for _ in range(2):
        moved = [whole + patches.field(number, coefficients) for number in range(len(spectra))]
        found = ring_powers(spectra, moved, pattern)
        patches = patches._replace(weights=[agreement_weights(each, found) for each in spectra])
        places, precision = refined_places(spectra, patches.weights, moved, pattern)
        whole = smoothed_track(whole + places, precision)
        whole -= whole.mean(axis=0)
        coefficients, trust = _fitted(patches, whole, trust, 2, coefficients)
    dropped = int((trust < 0.5).sum())
    kept = _in_powers(coefficients, numbers)
    return LocalMotion(kept, whole - whole[0], gain, counts, dropped, "")


def _times(numbers: NDArray[np.int64]) -> Float64:
    """Return the powers of time, made orthonormal and of mean 0: moving all frames of a patch changes no agreement."""
    tau = numbers / max(int(numbers[-1]), 1)
    powers = tau[:, None] ** np.arange(1, 1 + TEMPORAL)
    basis, _ = np.linalg.qr(powers - powers.mean(axis=0))
    return np.asarray(basis * np.sqrt(len(numbers)))


def _in_powers(coefficients: Float64, numbers: NDArray[np.int64]) -> Float64:
    """Return coefficients over orthonormal times as those of powers of the frame's number, at which 0 is no field."""
    last = float(max(int(numbers[-1]), 1))
    powers = (numbers[:, None] / last) ** np.arange(1 + TEMPORAL)
    change = np.linalg.lstsq(powers, _times(numbers), rcond=None)[0] / last ** np.arange(1 + TEMPORAL)[:, None]
    full = np.zeros((2, 1 + SPATIAL, TEMPORAL))
    full[:, 1:] = coefficients @ change[1:].T
    return full


def _cut(small: Float32, factor: int, track: Float64, counts: tuple[int, int]) -> tuple[list[FrameSpectra], Float64]:
    """Return the spectra of all patches, and the field's terms at their centres."""
    spectra, terms = zip(*patch_spectra(small, factor, track, counts), strict=True)
    return list(spectra), np.array(terms)[:, 1:]


def patch_spectra(
    small: Float32, factor: int, track: Float64, counts: tuple[int, int]
) -> Iterator[tuple[FrameSpectra, Float64]]:
    """Yield the spectra of each patch, and the six terms of a field at its centre.

    A patch follows the specimen by whole small pixels, so that it keeps what it shows; displacements stay those in the
    frame, for the whole pixels are put back as phases.

    Parameters
    ----------
    small, factor, track, counts
        As `local_motion` takes them.
    """
    frames, rows, columns = small.shape
    height, width = rows // counts[0], columns // counts[1]
    whole = np.rint((track - track.mean(axis=0)) / factor).astype(int)
    first = (rows - height * counts[0]) // 2, (columns - width * counts[1]) // 2
    for place in range(counts[0] * counts[1]):
        y0, x0 = first[0] + place // counts[1] * height, first[1] + place % counts[1] * width
        pieces = np.empty((frames, height, width), np.float32)
        moved = np.empty((frames, 2))
        for number in range(frames):
            y = min(max(y0 + whole[number, 1], 0), rows - height)
            x = min(max(x0 + whole[number, 0], 0), columns - width)
            pieces[number] = small[number, y : y + height, x : x + width]
            moved[number] = (x - x0) * factor, (y - y0) * factor
        u, v = (x0 + width / 2) / columns - 0.5, (y0 + height / 2) / rows - 0.5
        yield _moved(spectra_of(pieces, factor), moved), np.array([1, u, u * u, v, v * v, u * v])


def _moved(spectra: FrameSpectra, by: Float64) -> FrameSpectra:
    """Return spectra of what lies elsewhere by so many pixels, ``(frames, 2)``."""
    if not by.any():
        return spectra
    ky, kx = (spectra.waves * spectra.steps).T
    real, imaginary = spectra.real.copy(), spectra.imaginary.copy()
    for x, y in {(float(x), float(y)) for x, y in by} - {(0.0, 0.0)}:
        here = np.flatnonzero((by == (x, y)).all(axis=1))
        turn = np.exp(-1j * (kx * x + ky * y)).astype(np.complex64)[:, None]
        values = (spectra.real[:, here] + 1j * spectra.imaginary[:, here]) * turn
        real[:, here], imaginary[:, here] = values.real, values.imag
    return spectra._replace(real=real, imaginary=imaginary)


def _slopes(patches: _Patches, patch: int, displacement: Float64) -> tuple[Float64, Float64, float]:
    each, weight = patches.spectra[patch], patches.weights[patch]
    constant = np.full(len(weight), patches.pattern, np.float32)
    return correlation_steps(each.real, each.imaginary, each.waves, each.steps, weight, constant, displacement)


def _fitted(
    patches: _Patches, whole: Float64, trust: Float64, rounds: int, start: Float64 | None = None
) -> tuple[Float64, Float64]:
    """Return the most probable coefficients ``(2, SPATIAL, TEMPORAL)``, and how much each patch is trusted.

    Patches that are trusted with 0 take no part.
    """
    size = 2 * SPATIAL * TEMPORAL
    coefficients = np.zeros((2, SPATIAL, TEMPORAL)) if start is None else start.copy()
    # the terms of an image have a root mean square of 0.29, 0.11 and 0.08; their coefficients may be larger the smaller
    scale = np.repeat(np.tile(1 / np.array([0.29, 0.11, 0.29, 0.11, 0.083]), 2), TEMPORAL) ** 2
    width = np.full(TEMPORAL, 1.0)
    used = np.flatnonzero(trust > 0).tolist()
    for _ in range(rounds):
        slopes, curvatures = [], []
        for patch in used:
            gradient, curvature, _ = _slopes(patches, patch, whole + patches.field(patch, coefficients))
            slopes.append(gradient)
            curvatures.append(curvature.mean(axis=0))
        bends = _plausible(np.array(curvatures))
        misfit = np.array([_misfit(patches.times, slope, bend) for slope, bend in zip(slopes, bends, strict=True)])
        trust = trust.copy()
        if len(used) > 8:
            usual = max(float(np.median(misfit)), 1.0)
            trust[used] = 1 / (1 + np.maximum(misfit / usual - 1, 0) / (OUTLYING - 1))
        matrix, right = np.zeros((size, size)), np.zeros(size)
        for patch, slope, bend in zip(used, slopes, bends, strict=True):
            bent = np.array([[bend[0], bend[1]], [bend[1], bend[2]]]) * trust[patch]
            over_image = np.outer(patches.terms[patch], patches.terms[patch])
            matrix += np.kron(bent, np.kron(over_image, patches.times.T @ patches.times))
            wanted = slope.T @ patches.times  # (2, TEMPORAL)
            right += trust[patch] * (wanted[:, None, :] * patches.terms[patch][:, None]).ravel()
        current = coefficients.ravel()
        for _ in range(8):  # the prior's width: what the coefficients are, and what is not known of them
            prior = 1 / (scale * np.tile(width, 2 * SPATIAL))
            covariance = np.linalg.inv(matrix + np.diag(prior))
            new = covariance @ (right + matrix @ current)
            second = ((new**2 + np.diag(covariance)) / scale).reshape(-1, TEMPORAL).mean(axis=0)
            width = np.maximum(second, 1e-6)
        coefficients = new.reshape(2, SPATIAL, TEMPORAL)
    return coefficients, trust


def _plausible(bends: Float64) -> Float64:
    """Return curvatures that a patch may have: of the mean's form, and of a size between a tenth and five times it."""
    mean = bends.mean(axis=0)
    mean[[0, 2]] = np.maximum(mean[[0, 2]], 1e-9)
    most = 0.9 * np.sqrt(mean[0] * mean[2])
    mean[1] = np.clip(mean[1], -most, most)
    size = (bends[:, 0] + bends[:, 2]) / (mean[0] + mean[2])
    return np.asarray(np.clip(size, 0.1, 5.0)[:, None] * mean)


def _misfit(times: Float64, slope: Float64, bend: Float64) -> float:
    """Return by how much a patch would like to leave the field along powers of time, in units of its uncertainty."""
    matrix = np.array([[bend[0], bend[1]], [bend[1], bend[2]]])
    wanted = slope.T @ times / np.sqrt(len(times))
    return float(np.einsum("at,ab,bt->", wanted, np.linalg.inv(matrix), wanted)) / (2 * TEMPORAL)


def _worth(patches: _Patches, whole: Float64) -> float:
    """Return what fields are worth to the patches that they were not fitted to."""
    gain = 0.0
    for half in (patches.chessboard, ~patches.chessboard):
        coefficients, _ = _fitted(patches, whole, half.astype(float), ROUNDS - 1)
        for patch in np.flatnonzero(~half).tolist():
            _, _, with_field = _slopes(patches, patch, whole + patches.field(patch, coefficients))
            _, _, without = _slopes(patches, patch, whole)
            gain += with_field - without
    return gain
