"""A map from particles of which nothing is known: soft assignment to all views of a grid, in batches.

It begins with a random density. Small batches of images are shared out between all views of the map in all in-plane
angles and shifts (:mod:`cloudem.algorithms.marginal`); the sums of the views make the next map, and what they were is
forgotten little by little. The resolution rises from under four waves across the particle to seven and a half. With few
waves and small batches, maps still change their mind; a run that does not find the molecule ends with less evidence. So
several are made from different seeds, and compared: by the evidence of images that none of them has seen, and by the
correlation of their maps once they lie on one another.

All takes place on a coarse grid of the same length as the images: only a few Fourier shells are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.algorithms.batch import Batch
from cloudem.algorithms.bricks import pack, packed_sphere_of, unpack
from cloudem.algorithms.classes import noise_ratio
from cloudem.algorithms.marginal import (
    PolarView,
    References,
    SoftSums,
    assign,
    in_use,
    no_sums,
    polar_view,
    ring_power,
    rings_of,
    shift_choices,
    to_samples,
)
from cloudem.algorithms.mask import circle_edge, soft_sphere, without_sphere
from cloudem.algorithms.placing import place
from cloudem.algorithms.reconstruct import Sums, empty_sums, reference_volume, solve
from cloudem.conventions import FSC_HALF
from cloudem.kernels.polar import Harmonics, angular_matrices, harmonics
from cloudem.kernels.shells import crossing, fourier_shell_correlation
from cloudem.kernels.slices import extract, fast_even, insert, padded_box
from cloudem.model.poses import asymmetric_directions, view_rotations

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

FORGOTTEN = 0.3
"""Share of the sums that is forgotten with each batch."""

SIGNAL_TO_NOISE = 20.0
"""Of the sums in each shell, for the Wiener filter: with 1 or 2, most maps stayed where they began."""

TURN_STEP = 0.5
"""Distance of directions at the rim of the particle, in the finest wavelengths."""

MARGIN = 3
"""Shells of the coarse grid beyond the finest."""


NEAR_SPHERE = 2.0
"""Factor on all waves where no axis is unlike the others (T, O, I): particles are then nearly spheres, and what is
coarser than that says nothing of their views."""


class BlindStage(NamedTuple):
    """Batches of one size on one number of waves across the particle."""

    waves: float
    batches: int
    images: int


STAGES = tuple(
    BlindStage(*one) for one in ((3.75, 15, 100), (4.5, 15, 100), (5.25, 15, 150), (6.0, 10, 200), (7.5, 6, 400))
)


@dataclass(frozen=True)
class Blind:
    """What is known beforehand.

    Attributes
    ----------
    box, pixel_size, radius
        Of the images: pixels, Å, and the particle's radius in pixels.
    shift_range
        Furthest shift from the centre, pixels.
    group
        Symmetry operators (g, 3, 3) that are imposed.
    sigma2
        Noise variance by optics group and shell, (g, n // 2 + 1).
    """

    box: int
    pixel_size: float
    radius: float
    shift_range: float
    group: Float64
    sigma2: Float64

    def rings(self, waves: float) -> int:
        """Return the highest ring of so many waves across the particle."""
        return rings_of_waves(waves, self.box, self.radius)

    @property
    def stages(self) -> tuple[BlindStage, ...]:
        """The batches."""
        factor = NEAR_SPHERE if is_isotropic(self.group) else 1.0
        return tuple(stage._replace(waves=factor * stage.waves) for stage in STAGES)

    @property
    def finest_waves(self) -> float:
        """Waves across the particle in the end."""
        return self.stages[-1].waves

    @property
    def finest(self) -> int:
        """Highest ring of all."""
        return self.rings(self.finest_waves)

    @property
    def side(self) -> int:
        """Voxels along an edge of the coarse grid, which is as long as the images."""
        return min(self.box, fast_even(2 * (self.finest + MARGIN) + 8))


def is_isotropic(group: Float64) -> bool:
    """Return whether a point group (g, 3, 3) leaves no axis unlike the others: T, O and I.

    Its operators are then an irreducible representation, of which the mean square of the character is 1 (of all others
    at least 2).
    """
    return bool(np.mean(np.trace(group, axis1=1, axis2=2) ** 2) < 1.5)


def rings_of_waves(waves: float, box: int, radius: float) -> int:
    """Return the ring of so many waves across a particle of a radius in pixels, in a box of so many."""
    return int(np.clip(round(waves * box / (2 * radius)), 4, box // 2 - MARGIN - 1))


class SeenViews(NamedTuple):
    """The views of one stage: rings, and a pose for each direction (d, 3, 3)."""

    view: PolarView
    rotations: Float64


def views_of(known: Blind, rings: int) -> SeenViews:
    """Lay rings and directions for a stage."""
    step = TURN_STEP * known.box / rings / known.radius
    directions = asymmetric_directions(step, known.group)
    return SeenViews(polar_view(known.box, known.pixel_size, known.radius, rings), view_rotations(directions))


def slices_of(volume: Float32, seen: SeenViews) -> Harmonics:
    """Return the views of a map on the coarse grid, (q, 2, K, d)."""
    grid, side = seen.view.grid, len(volume)
    padding = padded_box(side) / side
    reference = reference_volume(volume, min(grid.k_max + 2, side // 2 - 1))
    samples = extract(reference, seen.rotations, grid.kx, grid.ky, padding)  # type: ignore[arg-type]
    samples = samples.reshape(len(seen.rotations), grid.k_max, -1)
    return harmonics(np.ascontiguousarray(samples.real), np.ascontiguousarray(samples.imag), grid)


def shared_out(known: Blind, seen: SeenViews, slices: Harmonics, batch: Batch, sigma2: Float64) -> SoftSums:
    """Share images out between all views."""
    count, views = len(batch.images), len(seen.rotations)
    references = References(slices, np.full(views, -np.log(views)))
    shifts, log_prior = shift_choices(known.shift_range, known.box / seen.view.grid.k_max, count)
    rings = rings_of(batch, sigma2, seen.view)
    return assign(references, rings, shifts, log_prior, seen.view, no_sums(seen.view.grid, views))[1]


def inserted(known: Blind, seen: SeenViews, sums: SoftSums) -> Sums:
    """Insert the sums of all views into an accumulator of the coarse grid, with all its mates."""
    view, side = seen.view, known.side
    grid, disc, k_max = view.grid, view.disc, view.grid.k_max
    views = len(seen.rotations)
    samples = [to_samples(*pair) for pair in zip((sums.even, sums.odd), angular_matrices(grid), strict=True)]
    # back to pixels: each sample stands for its area, and the window is that of the interpolation to the rings
    area = np.repeat(np.arange(1, k_max + 1), grid.angles // 2) * (2 * np.pi / grid.angles)
    back = (samples[0] * area) @ view.to_real.T + 1j * ((samples[1] * area) @ view.to_imaginary.T)
    pixels = np.flatnonzero((disc.shell >= 1) & (disc.shell <= k_max))
    values = np.ascontiguousarray(back[:, pixels], np.complex64)
    weights = np.ascontiguousarray(sums.weight.T[:, disc.shell[pixels] - 1], np.float32)
    total = empty_sums(side, k_max)
    numbers, still = np.arange(views, dtype=np.int32), np.zeros((views, 2))
    insert(
        total.data, total.weight, numbers, seen.rotations, still, np.ones(views), values, weights, disc.kx[pixels],
        disc.ky[pixels], padded_box(side) / side, side,
    )  # fmt: skip
    ball = packed_sphere_of(side, k_max, known.group)
    return unpack(pack(total, ball), ball)


def solved(known: Blind, total: Sums, k_max: int) -> Float32:
    """Return the map of an accumulator, inside the particle's sphere.

    Uneven weights are not corrected for: where few views are used, that amplifies noise until the map diverges.
    """
    side = known.side
    copy = Sums(total.data.copy(), total.weight.copy())
    return solve(copy, side, np.full(side // 2 + 1, SIGNAL_TO_NOISE), k_max, 0) * sphere_of(known)


def sphere_of(known: Blind) -> Float32:
    """Return the particle's sphere on the coarse grid."""
    radius = known.radius * known.side / known.box
    return soft_sphere(known.side, radius, circle_edge(known.side, radius))


class FromNothing(NamedTuple):
    """What one seed ends with.

    Attributes
    ----------
    volume
        The map on the coarse grid, protein positive, (m, m, m).
    evidence
        Mean logarithm of the evidence of images that were held out.
    views
        Number of views that are used, counted by their shares, over that of all.
    course
        Mean evidence of the images of each batch.
    """

    volume: Float32
    evidence: float
    views: float
    course: Float64


def from_nothing(
    known: Blind,
    images: Callable[[NDArray[np.int64]], Batch],
    order: NDArray[np.int64],
    held_out: NDArray[np.int64],
    seed: int,
) -> FromNothing:
    """Make a map from nothing.

    Parameters
    ----------
    known
        What is known beforehand.
    images
        Gives the images of some numbers, ascending.
    order, held_out
        Numbers of the images that are used, and of those that are only asked for their evidence in the end.
    seed
        Of the random density, and of the batches.
    """
    rng = np.random.default_rng([seed, 5])
    sigma2, course = known.sigma2.copy(), []
    stages = known.stages
    first = known.rings(stages[0].waves)
    noise = ndimage.gaussian_filter(rng.standard_normal((known.side,) * 3), known.side / first / 3)
    volume: Float32 = noise.astype(np.float32) * sphere_of(known)
    seen, total, scaled = views_of(known, first), None, False
    used = 0.0
    for stage in stages:
        k_max = known.rings(stage.waves)
        if k_max != seen.view.grid.k_max:
            seen, total = views_of(known, k_max), None
        for _ in range(stage.batches):
            chosen = np.sort(rng.choice(order, min(stage.images, len(order)), replace=False))
            batch = images(chosen)
            slices = slices_of(volume, seen)
            if not scaled:  # the random density shall have about the power of what the images show
                factor = amplitude_of(batch, sigma2, seen.view, slices)
                volume, slices, scaled = volume * factor, Harmonics(*(factor * part for part in slices)), True
            sums = shared_out(known, seen, slices, batch, sigma2)
            sigma2[:, 1 : k_max + 1] *= noise_ratio(sums, seen.view)
            new = inserted(known, seen, sums)
            if total is not None:
                new.data += np.float32(1 - FORGOTTEN) * total.data
                new.weight += np.float32(1 - FORGOTTEN) * total.weight
            total, used = new, in_use(sums.mass) / len(sums.mass)
            volume = solved(known, total, k_max)
            course.append(sums.evidence / sums.images)
    asked = shared_out(known, seen, slices_of(volume, seen), images(np.sort(held_out)), sigma2)
    return FromNothing(volume, asked.evidence / asked.images, used, np.array(course))


def amplitude_of(batch: Batch, sigma2: Float64, view: PolarView, slices: Harmonics) -> np.float32:
    """Return the factor that gives views about the power that images have beyond their noise."""
    rings = rings_of(batch, sigma2, view)
    beyond = np.maximum(rings.signal.mean(axis=0) - 2 * view.left, 0.02) / np.maximum(rings.power.mean(axis=0), 1e-30)
    power = ring_power(slices, view.grid).mean(axis=1)
    return np.float32(np.sqrt(np.median(beyond / np.maximum(power, 1e-30))))


class Agreement(NamedTuple):
    """How the maps of several seeds agree with the one of the most evidence.

    Attributes
    ----------
    best
        Its number.
    shells
        Shell up to which each correlates with it by 0.5, once it lies on it, (s,); that of the finest for itself, 0 for
        those that are not compared (`LIKELY`).
    agrees
        Whether each agrees: to `ENOUGH` of the finest shell, (s,).
    mirrored
        Whether each has the other hand, (s,).
    aspherical
        Share of the best map's power that is no sphere about its centre: 0.4 to 0.6 of most proteins.
    """

    best: int
    shells: Float64
    agrees: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]
    aspherical: float


def agreed_shell(one: Float32, other: Float32, length: float, radius: float) -> tuple[float, bool]:
    """Return the shell up to which two maps correlate by 0.5 beyond a sphere, and whether they are of different hands.

    Parameters
    ----------
    one, other
        (n, n, n); the other is laid on the one first, in either hand.
    length, radius
        Of the box and of the particle's sphere, Å.
    """
    side, pixel = len(one), length / len(one)
    sphere = soft_sphere(side, radius / pixel, circle_edge(side, radius / pixel))
    placed = place(one, other, pixel, radius)
    # a sphere about the same centre, so only once they lie on one another
    bare = [without_sphere(volume) * sphere for volume in (one, placed.volume)]
    at = crossing(fourier_shell_correlation(bare[0], bare[1]), FSC_HALF)
    return float(side // 2 if np.isnan(at) else at), placed.mirrored


LIKELY = 0.6
"""Starts with less than this share of the greatest evidence are wrong: they are not compared. Right ones have 0.9."""

ENOUGH = 0.75
"""Share of the shells up to which two maps have to correlate by 0.5."""


def agreement_of(
    maps: Sequence[Float32], evidence: NDArray[Any], length: float, radius: float, finest: int
) -> Agreement:
    """Lay the maps of all seeds on the one of the most evidence, in either hand, and compare them beyond a sphere.

    Parameters
    ----------
    maps, evidence
        Of all seeds.
    length, radius
        Of the box and of the particle's sphere, Å.
    finest
        Highest shell of the maps.
    """
    # a start whose map diverged has no evidence, and compares with nothing
    known = np.isfinite(evidence) & (evidence >= LIKELY * np.max(evidence, initial=0.0, where=np.isfinite(evidence)))
    best = int(np.argmax(np.where(known, evidence, -np.inf)))
    whole = maps[best] - maps[best].mean()
    beyond = float(np.sum(np.square(without_sphere(maps[best]))))
    aspherical = beyond / max(float(np.sum(np.square(whole))), 1e-30)
    shells, mirrored = np.where(known, float(finest), 0.0), np.zeros(len(maps), bool)
    for number, volume in enumerate(maps):
        if number != best and known[number] and known[best]:
            shells[number], mirrored[number] = agreed_shell(maps[best], volume, length, radius)
    shells = np.minimum(shells, finest)
    return Agreement(best, shells, shells >= ENOUGH * finest, mirrored, aspherical)
