"""From the frames of a movie to its sums: bad pixels, motion of the whole and local motion, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.dose import dose_weights
from cloudem.algorithms.frame_information import FrameSignals, frame_products, frame_signals, information_weights
from cloudem.algorithms.frame_spectra import shrink_factor, small_frame, spectra_of
from cloudem.algorithms.gain import FrameCorrection, correction_of, fill_defects
from cloudem.algorithms.information import BANDS, SharedInformation, pattern_products, shared_information
from cloudem.algorithms.motion import whole_motion
from cloudem.algorithms.motion_local import LocalMotion, field_at, local_motion, patch_counts, patch_spectra
from cloudem.algorithms.motion_sums import FrameSums, images_of, sum_frames, weight_places
from cloudem.kernels.motion import FIELD_TERMS, corrected, frame_moments, roughness

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

Weighting: TypeAlias = Literal["dose", "information", "none"]

INFORMATION_SAMPLING = 2.0
"""Å of a pixel of the small frames that information is estimated from, nearly."""

OUTLYING_SUM, OUTLYING_FRAME = 8.0, 10.0
"""Standard deviations from the mean beyond which a pixel is bad: of the sum of all frames, and in one frame."""

BLANK = 0.3
"""Share of the usual mean below which a frame is blank."""

_ONE = np.ones((1, 1), np.float32)


class MovieSettings(NamedTuple):
    """What is done to a movie.

    Attributes
    ----------
    pixel_size
        Å, of a frame.
    voltage
        kV.
    doses
        Electrons that the specimen had received at the end of each frame, e/Å², ``(frames,)``; None if not known.
    local
        Whether local motion is looked for.
    weighting
        ``dose`` for weights by the fixed curve of `cloudem.algorithms.dose`, where doses are known; ``information`` for
        those of `cloudem.algorithms.frame_information`.
    binning
        Factor by which the images are smaller.
    """

    pixel_size: float
    voltage: float
    doses: Float64 | None = None
    local: bool = True
    weighting: Weighting = "dose"
    binning: float = 1.0


class CorrectedMovie(NamedTuple):
    """What became of a movie.

    Attributes
    ----------
    images
        ``sum``, ``even``, ``odd``, and where frames are weighted ``unweighted``.
    used
        Numbers of the frames that were summed, ``(n,)``.
    track
        Displacements of the whole, pixels of a frame, x and y, ``(n, 2)``; 0 in the first.
    local
        Motion besides.
    problem
        Why motion could not be corrected at all; empty where it was.
    information
        What even and odd sums share.
    hot_pixels, outliers
        Bad pixels of all frames that were found, and values of single frames that were replaced.
    pattern
        Variance of a frame that stays with the detector.
    mean
        Of a frame, in its units.
    signals
        What frames show, where weights come from it.
    """

    images: Mapping[str, Float32]
    used: NDArray[np.int64]
    track: Float64
    local: LocalMotion
    problem: str
    information: SharedInformation
    hot_pixels: int
    outliers: int
    pattern: float
    mean: float
    signals: FrameSignals | None = None


class Survey(NamedTuple):
    """What a first look at all frames tells.

    Attributes
    ----------
    used
        Frames that can be used, ``(n,)``.
    means, variances
        Of these, over pixels, ``(n,)``.
    correction
        With the bad pixels that were found.
    hot_pixels
        How many these are.
    total
        Sum of the frames, multiplied by the gain and their defects filled.
    """

    used: NDArray[np.int64]
    means: Float64
    variances: Float64
    correction: FrameCorrection
    hot_pixels: int
    total: Float32


def survey_of(read: Callable[[int], NDArray[Any]], numbers: NDArray[np.int64], correction: FrameCorrection) -> Survey:
    """Look at all frames once: find blank ones, and pixels that are always too bright or too dark.

    Parameters
    ----------
    read
        Returns a frame by its number, as the file has it.
    numbers
        Of the frames, ``(n,)``.
    correction
        Gain and known defects.
    """
    factor = _ONE if correction.factor is None else correction.factor
    used = numbers
    while True:
        total: Float32 = np.zeros(read(int(used[0])).shape, np.float32)
        moments = np.array([frame_moments(read(int(number)), factor, total) for number in used]) / total.size
        means, variances = moments[:, 0], moments[:, 1] - moments[:, 0] ** 2
        usual = float(np.median(means))
        good = np.isfinite(moments).all(axis=1) & ((means >= BLANK * usual) | (usual <= 0))
        if good.all() or not good.any():
            break
        used = used[good]
    bad = _outlying(total, correction.defects)
    if len(bad):
        holes = np.zeros(total.size, bool)
        holes[correction.defects] = True
        holes[bad] = True
        rows, columns = total.shape
        filled = correction_of((rows, columns), defects=holes.reshape(rows, columns))
        correction = filled._replace(factor=correction.factor)
    fill_defects(total[None], correction)
    return Survey(used, means, variances, correction, len(bad), total)


def _outlying(total: Float32, known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return places of pixels of a sum that are far from the rest, without those that are known."""
    some = total.ravel()[:: max(1, total.size // 200_000)]
    middle = float(np.median(some))
    spread = float(np.median(abs(some - middle))) / 0.6745
    if spread <= 0:
        spread = float(some.std())
    # counts: a spread of nothing but zeros and ones is that of their mean
    spread = max(spread, np.sqrt(max(middle, 0.0)) if spread < 1 else 0.0)
    if spread <= 0:
        return np.zeros(0, np.int64)
    found = np.flatnonzero(abs(total - np.float32(middle)) > np.float32(OUTLYING_SUM * spread))
    if len(found) > 0.01 * total.size:  # that is an edge or a crack, no bad pixels
        return np.zeros(0, np.int64)
    return np.setdiff1d(found, known)


def correct_movie(
    read: Callable[[int], NDArray[Any]],
    numbers: NDArray[np.int64],
    correction: FrameCorrection,
    settings: MovieSettings,
) -> CorrectedMovie:
    """Correct a movie.

    Parameters
    ----------
    read
        Returns a frame by its number, as the file has it; each is asked for three times.
    numbers
        Of the frames that can be read, ``(n,)``.
    correction
        Gain and defects of the detector.
    settings
        What is done.

    Notes
    -----
    Of frames with an odd number of rows or columns the last one is left out.
    """
    survey = survey_of(read, numbers, correction)
    outliers = np.zeros(len(survey.used), np.int64)
    rows, columns = (side - side % 2 for side in survey.total.shape)
    whole_frame = np.empty(survey.total.shape, np.float32)

    def frame(place: int, out: Float32) -> float:
        outliers[place] = clean_frame(read(int(survey.used[place])), survey, place, whole_frame)
        out[:] = whole_frame[:rows, :columns]
        return float(survey.means[place])

    factor = shrink_factor(settings.pixel_size)
    small = np.empty((len(survey.used), rows // factor, columns // factor), np.float32)
    rough = 0.0
    for place in range(len(survey.used)):
        outliers[place] = clean_frame(read(int(survey.used[place])), survey, place, whole_frame)
        rough += roughness(whole_frame)
        small[place] = small_frame(whole_frame[:rows, :columns], factor)
    count = len(small)
    together = roughness(survey.total)
    pattern = max(0.0, (together - rough) / (4 * count * (count - 1))) if count > 1 else 0.0
    spectra = spectra_of(small, factor)
    whole = whole_motion(spectra, pattern, settings.pixel_size)
    local = LocalMotion(np.zeros((2, FIELD_TERMS, 3)), whole.track, 0.0, (0, 0), 0, "it was not asked for")
    if settings.local and not whole.problem:
        counts = patch_counts((rows, columns), settings.pixel_size)
        local = local_motion(small, factor, whole.track, pattern, counts, survey.used)
    del small, spectra
    fields = np.stack([field_at(local.coefficients, int(number)) for number in survey.used])
    fields[:, :, 0] += local.track
    signals = None
    if settings.weighting == "information":
        signals = _signals(frame, fields, (rows, columns), settings, pattern)
    weights = _weights(settings, survey.used, (rows, columns), signals)
    sums = sum_frames(frame, fields, (rows, columns), weights)
    information = _information(sums, local.track, pattern, settings)
    return CorrectedMovie(
        images_of(sums, settings.binning), survey.used, local.track, local, whole.problem, information,
        survey.hot_pixels, int(outliers.sum()), pattern, float(survey.means.mean()), signals,
    )  # fmt: skip


def clean_frame(raw: NDArray[Any], survey: Survey, place: int, out: Float32) -> int:
    """Put a frame into an array, gain applied, outliers replaced, defects filled; return how many outliers there were.

    Parameters
    ----------
    raw
        As the file has it.
    survey
        Of the movie.
    place
        Of the frame among those that are used.
    out
        Of its shape.
    """
    correction = survey.correction
    mean, variance = float(survey.means[place]), float(survey.variances[place])
    # a few electrons in one pixel are no outlier, however rare electrons are
    limit = mean + OUTLYING_FRAME * np.sqrt(variance) + (4 * variance / mean if mean > 0 else 0.0)
    count = corrected(raw, _ONE if correction.factor is None else correction.factor, limit, mean, out)
    fill_defects(out[None], correction)
    return count


def _weights(
    settings: MovieSettings,
    used: NDArray[np.int64],
    shape: tuple[int, int],
    signals: FrameSignals | None,
) -> Float32 | None:
    frequency = weight_places(shape, settings.pixel_size)
    if settings.weighting == "none" or (settings.weighting == "dose" and settings.doses is None):
        return None

    def left(at: Float64) -> Float64:
        if settings.doses is None:
            return np.ones((len(used), len(at)))
        return dose_weights(at, settings.doses[used], settings.voltage)

    if signals is None:
        return left(frequency).astype(np.float32)
    return information_weights(signals, left(signals.frequency), frequency, left(frequency)).astype(np.float32)


def _signals(
    frame: Callable[[int, Float32], float],
    fields: Float64,
    shape: tuple[int, int],
    settings: MovieSettings,
    pattern: float,
) -> FrameSignals:
    """Return what frames show, from small frames that are finer than those for alignment."""
    factor = int(np.clip(round(INFORMATION_SAMPLING / settings.pixel_size), 1, 8))
    small = np.empty((len(fields), shape[0] // factor, shape[1] // factor), np.float32)
    whole = np.empty(shape, np.float32)
    for place in range(len(fields)):
        frame(place, whole)
        small[place] = small_frame(whole, factor)
    counts = patch_counts(shape, settings.pixel_size)
    patches = (
        (spectra, np.einsum("fat,t->fa", fields, terms))
        for spectra, terms in patch_spectra(small, factor, fields[:, :, 0], counts)
    )
    products, waves = frame_products(patches, len(fields), pattern)
    return frame_signals(products, waves, 0.5 / (factor * settings.pixel_size))


def _information(sums: FrameSums, track: Float64, pattern: float, settings: MovieSettings) -> SharedInformation:
    """Return what even and odd sums share, beside what the detector's pattern explains."""
    count = len(track)
    weights = np.ones((count, BANDS))
    if sums.weights is not None:
        places = (np.arange(BANDS) + 0.5) / BANDS * sums.shape[0]
        weights = sums.weights[:, np.minimum(places.astype(np.int64), sums.weights.shape[1] - 1)].astype(np.float64)
    expected = pattern_products(track, weights, pattern, sums.shape)
    return shared_information(sums.even, sums.odd, sums.shape, settings.pixel_size, expected)
