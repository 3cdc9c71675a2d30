"""Particles found in a micrograph: the image made small and even, correlated with what particles look like.

The steps, in units of the particle's diameter d, so that one set of constants serves every molecule and pixel size:

1. The image is reduced by cropping its Fourier transform, to about `SAMPLES` pixels across d (5 to 12 Å a pixel).
2. Edges that motion correction has filled, and other rows of copies, are left out, as is junk (`junk_of`).
3. The local mean is subtracted and the local deviation divided out, over a window about two diameters wide.
4. The image is correlated with templates of zero mean and unit norm: discs inside rings, an average profile of
   particles (`cloudem.algorithms.picking_model`), or views of a map.
5. Peaks of the greatest of these correlations that keep a distance of `APART` d are candidates.

Which candidates are particles is decided by `cloudem.algorithms.picking_threshold`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.errors import ParameterError
from cloudem.kernels.picking import local_sums, separate_peaks

Float32: TypeAlias = NDArray[np.float32]

SAMPLES = 22
"""Pixels across a particle in the reduced image."""

WINDOW = 1.2
"""Half the side of the window of local mean and deviation, diameters; it is run over the image twice."""

APART = 0.5
"""Least distance of two candidates, diameters."""

CLIPPED = 6.0
"""Grey values are clipped at so many robust deviations from the median: hot pixels and gold weigh no more."""

DISCS = (0.7, 0.85)
"""Diameters of the discs, in those of the particle: its density falls off before its outline ends."""

RING = 1.5
"""Outer radius of the ring around a disc, in the disc's radius."""

STRONG_VARIANCE = 3.5
"""Where the local variance is so many times the median one, there is carbon, ice or an aggregate."""

FILLED = 0.3
"""Rows at an edge that differ from their neighbours by so little of the usual are copies."""

COPIES = 4
"""Copies that follow each other, at least; beyond them may be a rim of anything."""

EVERY = 5
"""Of the columns along such a row, one in so many is looked at."""


class MicroscopeState(NamedTuple):
    """What the CTF of a micrograph follows from: kV, Å, fraction, Å, Å, radians, radians."""

    voltage: float
    spherical_aberration: float
    amplitude_contrast: float
    defocus_u: float
    defocus_v: float
    defocus_angle: float
    phase_shift: float


class ReducedImage(NamedTuple):
    """A micrograph made smaller.

    Attributes
    ----------
    image
        Shape ``(rows, columns)``.
    pixel_size
        Å, of the reduced image.
    scale
        Pixels of the micrograph for one of the reduced image, along y and x; both begin at their first pixel's centre.
    real
        Where it was recorded (`filled_edges`).
    state
        Of the microscope; None where it is not known.
    """

    image: Float32
    pixel_size: float
    scale: tuple[float, float]
    real: NDArray[np.bool_]
    state: MicroscopeState | None = None


class Candidates(NamedTuple):
    """Peaks of a score, in falling order.

    Attributes
    ----------
    x, y
        Pixels of the reduced image, between them.
    score
        As the templates have it.
    """

    x: Float32
    y: Float32
    score: Float32


@dataclass(frozen=True)
class EvenImage:
    """A reduced image with mean 0 and deviation 1 everywhere, protein positive.

    Attributes
    ----------
    image
        Zero where nothing can be seen.
    usable
        Where there is something to see.
    strength
        Local contrast before the deviation was divided out, robust deviations.
    state
        Of the microscope; None where it is not known.
    """

    image: Float32
    usable: NDArray[np.bool_]
    strength: Float32
    state: MicroscopeState | None = None


def reduce_image(image: Float32, pixel_size: float, diameter: float) -> ReducedImage:
    """Reduce a micrograph to `SAMPLES` pixels across a particle, by cropping its Fourier transform; never enlarge it.

    Parameters
    ----------
    image
        Shape ``(rows, columns)``.
    pixel_size, diameter
        Å.

    Raises
    ------
    ParameterError
        See `check_scale`.
    """
    check_scale((image.shape[0], image.shape[1]), pixel_size, diameter)
    across = diameter / pixel_size
    factor = min(1.0, SAMPLES / across)
    rows, columns = (_even_length(count * factor, count) for count in image.shape)
    image = image.astype(np.float32, copy=False)
    scale = image.shape[0] / rows, image.shape[1] / columns
    real = _shrunk(filled_edges(image), (rows, columns), scale)
    if (rows, columns) == image.shape:
        return ReducedImage(image, pixel_size, scale, real)
    lines = scipy.fft.rfft(image, axis=1)[:, : columns // 2]
    whole = scipy.fft.fft(np.ascontiguousarray(lines.T), axis=1, overwrite_x=True)
    kept = np.zeros((columns // 2 + 1, rows), np.complex64)  # frequencies at Nyquist stay zero: they have no sign
    kept[:-1, : rows // 2] = whole[:, : rows // 2]
    kept[:-1, rows - rows // 2 + 1 :] = whole[:, image.shape[0] - rows // 2 + 1 :]
    mixed = scipy.fft.ifft(kept, axis=1, overwrite_x=True)
    small = scipy.fft.irfft(np.ascontiguousarray(mixed.T), n=columns, axis=1)
    small *= np.float32(rows * columns / (image.shape[0] * image.shape[1]))
    return ReducedImage(small.astype(np.float32), pixel_size * float(np.sqrt(scale[0] * scale[1])), scale, real)


def check_scale(shape: tuple[int, int], pixel_size: float, diameter: float) -> None:
    """Make sure that particles can be picked at this size.

    Raises
    ------
    ParameterError
        The particle is smaller than eight pixels, or the image smaller than four particles.
    """
    across = diameter / pixel_size
    if across < 8:
        raise ParameterError(
            f"a diameter of {diameter:g} Å is {across:.1f} pixels of {pixel_size:g} Å; picking needs at least "
            "8; give that of a particle in Å"
        )
    if min(shape) < 4 * across:
        raise ParameterError(
            f"an image of {shape[1]} x {shape[0]} pixels is smaller than four particles of {diameter:g} Å; "
            "give a smaller diameter"
        )


def _even_length(wanted: float, most: int) -> int:
    length = int(scipy.fft.next_fast_len(max(16, round(wanted)), real=True))
    while length % 2:
        length = int(scipy.fft.next_fast_len(length + 1, real=True))
    return length if length < most else most


def filled_edges(image: Float32) -> tuple[int, int, int, int]:
    """Return how many rows at the start and end, and columns at the start and end, are copies of others or one value.

    Motion correction, or whoever made the image, fills what no frame has seen. Where all are, none is real.
    """
    counts: list[int] = []
    for lines in (image[:, ::EVERY], image[::EVERY].T):
        change = np.mean(np.abs(np.diff(lines, axis=0)), axis=1, dtype=np.float64)
        copied: NDArray[np.bool_] = np.asarray(change <= FILLED * np.median(change))
        if copied.all():
            return image.shape[0], 0, image.shape[1], 0
        counts += [_run(copied), _run(copied[::-1])]
    return counts[0], counts[1], counts[2], counts[3]


def _run(copied: NDArray[np.bool_]) -> int:
    """Return how many lines there are up to the end of the innermost row of copies, in the outer eighth."""
    outer = copied[: len(copied) // 8]
    if len(outer) < COPIES:
        return 0
    rows = np.lib.stride_tricks.sliding_window_view(outer, COPIES).all(1)
    return int(np.flatnonzero(rows)[-1]) + COPIES + 1 if rows.any() else 0


def _shrunk(edges: tuple[int, int, int, int], shape: tuple[int, int], scale: tuple[float, float]) -> NDArray[np.bool_]:
    real = np.ones(shape, bool)
    for axis in (0, 1):
        first, last = (int(np.ceil(count / scale[axis])) for count in edges[2 * axis : 2 * axis + 2])
        view = np.moveaxis(real, axis, 0)
        view[:first] = False
        view[len(view) - last :] = False
    return real


def even_image(reduced: ReducedImage, diameter: float, *, bright: bool = False) -> EvenImage:
    """Return the image with local mean 0 and deviation 1, and without what is no specimen.

    Parameters
    ----------
    reduced
        The image.
    diameter
        Of the particles, Å.
    bright
        Whether protein is bright, as it is after the contrast was inverted; as recorded, it is dark.
    """
    image = reduced.image if bright else -reduced.image
    usable = reduced.real & np.isfinite(image)
    if not usable.any():
        nothing = np.zeros(image.shape, np.float32)
        return EvenImage(nothing, usable, nothing)
    across = diameter / reduced.pixel_size
    half = max(2, round(WINDOW * across))
    for _ in range(2):  # the second time without the junk that the first has seen
        weight = _twice_summed(usable.astype(np.float32), half)
        flat = image - _mean_where(image, usable, weight, half)
        spread = _robust_deviation(flat[usable])
        flat = np.where(usable, np.clip(flat, -CLIPPED * spread, CLIPPED * spread), np.float32(0))
        variance = _mean_where(flat * flat, usable, weight, half)
        strong = usable & (variance > STRONG_VARIANCE * _median(variance[usable]))
        if not strong.any() or strong.sum() > 0.9 * usable.sum():
            break
        usable = usable & ~near(strong, 0.25 * across)
        if not usable.any():
            break
    even = np.where(usable, flat / np.sqrt(np.maximum(variance, 1e-6 * spread**2 + 1e-30)), 0)
    small = max(1, round(0.3 * across))
    weight = _twice_summed(usable.astype(np.float32), small)
    strength = _mean_where(flat, usable, weight, small) / np.float32(spread or 1.0)
    return EvenImage(even.astype(np.float32), usable, np.where(usable, strength, 0).astype(np.float32), reduced.state)


def near(places: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """Return what lies within a distance, pixels, of any of the places."""
    if not places.any():
        return places
    return np.asarray(ndimage.distance_transform_edt(~places) <= distance)


def _mean_where(image: Float32, usable: NDArray[np.bool_], weight: Float32, half: int) -> Float32:
    """Return the mean over a window run twice, of what is usable."""
    values = _twice_summed(np.where(usable, image, np.float32(0)), half)
    return np.asarray(values / np.maximum(weight, np.float32(0.5)), np.float32)


def _twice_summed(values: Float32, half: int) -> Float32:
    once, twice = np.empty_like(values), np.empty_like(values)
    local_sums(values, half, once)
    local_sums(once, half, twice)
    return twice


def _median(values: Float32) -> float:
    return float(np.median(values[:: max(1, values.size // 100_000)]))


def _robust_deviation(values: Float32) -> float:
    some = values[:: max(1, values.size // 100_000)]
    return float(1.4826 * np.median(np.abs(some - np.median(some))))


def disc_templates(diameter: float, pixel_size: float, sizes: tuple[float, ...] = DISCS) -> Float32:
    """Return a disc inside a ring for each size: mean 0, norm 1; (sizes, m, m), the centre in the middle."""
    reach = int(np.ceil(RING * max(sizes) * diameter / pixel_size / 2)) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    radius = np.hypot(x, y)
    templates = []
    for size in sizes:
        edge = size * diameter / pixel_size / 2
        disc = np.clip(edge + 0.5 - radius, 0, 1)
        ring = np.clip(RING * edge + 0.5 - radius, 0, 1) - disc
        template = disc / disc.sum() - ring / ring.sum()
        templates.append(template / np.sqrt((template**2).sum()))
    return np.array(templates, np.float32)


def correlate(even: Float32, templates: Float32) -> Float32:
    """Return the greatest correlation with any of the templates at each pixel; beyond the edges lie zeros.

    Parameters
    ----------
    even
        Shape ``(rows, columns)``.
    templates
        Shape ``(k, m, m)``, m odd.
    """
    reach = templates.shape[1] // 2
    padded = tuple(int(scipy.fft.next_fast_len(count + reach, real=True)) for count in even.shape)
    spectrum = scipy.fft.rfft2(even, s=padded)
    best = np.full(even.shape, -np.inf, np.float32)
    for template in templates:
        kernel_image = np.zeros(padded, np.float32)
        kernel_image[: template.shape[0], : template.shape[1]] = template
        kernel_image = np.roll(kernel_image, (-reach, -reach), (0, 1))
        product = spectrum * np.conj(scipy.fft.rfft2(kernel_image))
        np.maximum(best, scipy.fft.irfft2(product, s=padded)[: even.shape[0], : even.shape[1]], out=best)
    return best


def candidates_of(score: Float32, usable: NDArray[np.bool_], distance: float, least: float = -np.inf) -> Candidates:
    """Return the peaks of a score where the image is usable, to a fraction of a pixel.

    Parameters
    ----------
    score
        Shape ``(rows, columns)``.
    usable
        Where peaks may be.
    distance
        Pixels that they keep.
    least
        Lower ones are left out.
    """
    allowed = np.where(usable, score, np.float32(-np.inf))
    places = separate_peaks(allowed, float(distance), float(least))
    y, x = places[:, 0], places[:, 1]
    shifts = [_between(score, y, x, dy, dx) for dy, dx in ((0, 1), (1, 0))]
    return Candidates((x + shifts[0]).astype(np.float32), (y + shifts[1]).astype(np.float32), score[y, x])


def _between(score: Float32, y: NDArray[np.int64], x: NDArray[np.int64], dy: int, dx: int) -> NDArray[np.float64]:
    """Return where the parabola through three pixels has its top, from the middle one: at most half a pixel."""
    rows, columns = score.shape
    before = score[np.maximum(y - dy, 0), np.maximum(x - dx, 0)].astype(np.float64)
    after = score[np.minimum(y + dy, rows - 1), np.minimum(x + dx, columns - 1)].astype(np.float64)
    curve = before + after - 2.0 * score[y, x]
    top = np.where(curve < 0, 0.5 * (before - after) / np.where(curve < 0, curve, 1), 0.0)
    return np.clip(top, -0.5, 0.5)


def junk_of(even: EvenImage, limit: float, across: float) -> NDArray[np.bool_]:
    """Return where something is stronger than particles ever are, with half a particle's width around it.

    Parameters
    ----------
    even
        The image.
    limit
        Greatest strength of particles (`EvenImage.strength`); the same below zero, where it is bright.
    across
        Of a particle, pixels.
    """
    return near(even.usable & (np.abs(even.strength) > limit), 0.5 * across)


def phase_randomised(reduced: ReducedImage, seed: int) -> ReducedImage:
    """Return an image with the same power at every frequency, and nothing else: what chance alone would show.

    Parameters
    ----------
    reduced
        The image.
    seed
        Of the phases.
    """
    rng = np.random.default_rng(seed)
    usable = reduced.real & np.isfinite(reduced.image)
    middle, spread = (
        (_median(reduced.image[usable]), _robust_deviation(reduced.image[usable])) if usable.any() else (0, 1)
    )
    image = np.where(usable, np.clip(reduced.image - middle, -CLIPPED * spread, CLIPPED * spread), 0)
    power = np.abs(scipy.fft.rfft2(image.astype(np.float32)))
    noise = scipy.fft.rfft2(rng.standard_normal(image.shape, np.float32))
    phases = noise / np.maximum(np.abs(noise), 1e-20)
    random = scipy.fft.irfft2(power * phases, s=image.shape).astype(np.float32)
    return reduced._replace(image=random, real=np.ones(image.shape, bool))


def middle_part(reduced: ReducedImage, side: int) -> ReducedImage:
    """Return the square in the middle of an image, at most so many pixels wide; the whole where it is smaller."""
    first = [max(0, (count - side) // 2) for count in reduced.image.shape]
    part = tuple(slice(low, low + min(side, count)) for low, count in zip(first, reduced.image.shape, strict=True))
    return reduced._replace(image=reduced.image[part], real=reduced.real[part])
