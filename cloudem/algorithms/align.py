"""Continuous refinement of rotation and shift, and the weights of the poses that compete for an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.arrays import array_namespace, to_host
from cloudem.kernels.fourier import HalfDisc
from cloudem.kernels.slices import score_derivatives
from cloudem.model.poses import angle_up_to, rotate

Float64 = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

DAMPING = 1e-3
"""Levenberg-Marquardt damping to begin with, relative to the diagonal."""

CONVERGED_GAIN = 0.02
"""A pose is refined when the next step promises to gain less log-likelihood than this."""

TRUSTED_GAIN = 0.5
"""A step that promises less than this, a move by one standard error, is taken without looking: so near the maximum the
quadratic model is good, and looking would double the cost of an iteration in which little moves."""

_ROWS, _COLUMNS = np.triu_indices(5)


class Weighted(NamedTuple):
    """Images made ready for scoring: C X / σ² (b, p) complex64, C² / σ² (b, p) float32, and their half disc.

    ``magnification`` is that of each image, (b, 2, 2), None for none.
    """

    numerators: NDArray[np.complex64]
    denominators: NDArray[np.float32]
    disc: HalfDisc
    magnification: Float64 | None = None

    def within(self, k_max: int) -> Weighted:
        """Return the pixels of shells up to ``k_max``."""
        keep = self.disc.shell <= k_max
        if keep.all():
            return self
        disc = self.disc.take(keep)
        pixels = np.flatnonzero(keep)
        numerators, denominators = np.take(self.numerators, pixels, axis=1), np.take(self.denominators, pixels, axis=1)
        return Weighted(numerators, denominators, disc, self.magnification)


@dataclass(frozen=True)
class Poses:
    """Poses that compete for the images of a batch.

    Attributes
    ----------
    images
        Row of the batch that each pose belongs to, (c,) int32.
    rotations, shifts
        (c, 3, 3), and (c, 2) in pixels.
    score
        Log-likelihood up to a constant of the image, prior included, (c,).
    precision
        Gauss-Newton matrix of (ωx, ωy, ωz, tx, ty), (c, 5, 5): the inverse is the covariance of the pose.
    numerator, norm
        ``Re⟨X C / σ², S⟩`` and ``⟨C² / σ², |S|²⟩``, (c,).
    """

    images: NDArray[np.int32]
    rotations: Float64
    shifts: Float64
    score: Float64
    precision: Float64
    numerator: Float64
    norm: Float64

    def take(self, index: NDArray[Any] | slice) -> Poses:
        """Return some of the poses."""
        return Poses(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def start_poses(images: IntArray, rotations: Float64, shifts: Float64) -> Poses:
    """Return poses that have not been scored yet."""
    count = len(images)
    empty = np.zeros(count)
    return Poses(np.asarray(images, np.int32), rotations, shifts, empty, np.zeros((count, 5, 5)), empty, empty)


def join_poses(*parts: Poses) -> Poses:
    """Return the poses of all parts."""
    names = Poses.__dataclass_fields__
    return Poses(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def best_of(images: IntArray) -> IntArray:
    """Return where each image's first pose is, which :func:`compete` makes the most probable one."""
    return np.flatnonzero(np.r_[True, np.diff(images) != 0][: len(images)])


@dataclass(frozen=True)
class Prior:
    """Gaussian prior of the shift about zero: variance in pixels² (infinite for none)."""

    shift_variance: float

    def log(self, shifts: Float64) -> Float64:
        """Return its logarithm up to a constant, (c,)."""
        return np.asarray(-np.sum(shifts**2, axis=-1) / (2 * self.shift_variance))


def evaluate(
    volume: NDArray[np.complex64], padding: float, box: int, data: Weighted, poses: Poses, prior: Prior
) -> tuple[Poses, Float64]:
    """Score poses; return them with score and precision, and the gradient (c, 5)."""
    disc = data.disc
    magnification = None if data.magnification is None else data.magnification[poses.images]
    sums = score_derivatives(
        volume, poses.images, poses.rotations, poses.shifts, data.numerators, data.denominators,
        disc.kx, disc.ky, padding, box, magnification,
    )  # fmt: skip
    gradient = sums[:, 2:7]
    gradient[:, 3:] -= poses.shifts / prior.shift_variance
    precision = np.empty((len(sums), 5, 5))
    precision[:, _ROWS, _COLUMNS] = sums[:, 7:]
    precision[:, _COLUMNS, _ROWS] = sums[:, 7:]
    precision[:, [3, 4], [3, 4]] += 1 / prior.shift_variance
    score = sums[:, 0] - sums[:, 1] / 2 + prior.log(poses.shifts)
    return replace(poses, score=score, precision=precision, numerator=sums[:, 0], norm=sums[:, 1]), gradient


def refine_poses(
    volume: NDArray[np.complex64],
    padding: float,
    box: int,
    data: Weighted,
    poses: Poses,
    prior: Prior,
    *,
    steps: int,
    longest_turn: float,
) -> Poses:
    """Climb from each pose to the nearest maximum of the log-likelihood.

    Levenberg-Marquardt with the Gauss-Newton matrix of the interpolated slice. A pose leaves the loop when its next
    step promises less than :data:`CONVERGED_GAIN`; one that promises less than :data:`TRUSTED_GAIN` is its last.

    Parameters
    ----------
    volume, padding, box
        Reference, as for :func:`cloudem.kernels.slices.extract`.
    data
        The batch; all its shells are used.
    poses
        Where to start.
    prior
        Of the shifts.
    steps
        Most steps for each pose.
    longest_turn
        No single step turns further, radians; nor does it shift the particle's rim further.

    Returns
    -------
    Poses with score and precision at the place reached.
    """
    order = by_direction(poses.rotations)
    data = data.within(int(data.disc.shell.max()))
    current, gradient = evaluate(volume, padding, box, data, poses.take(order), prior)
    damping = np.full(len(order), DAMPING)
    active = np.arange(len(order))
    for _ in range(steps):
        here = current.take(active)
        step, gain = _step(here.precision, gradient[active], damping[active], longest_turn)
        tried = replace(
            here,
            rotations=rotate(here.rotations, step[:, :3]),
            shifts=here.shifts + step[:, 3:],
            score=here.score + gain,
        )
        near = (gain > CONVERGED_GAIN) & (gain <= TRUSTED_GAIN)
        for name in ("rotations", "shifts", "score"):
            getattr(current, name)[active[near]] = getattr(tried, name)[near]
        moving = gain > TRUSTED_GAIN
        if not moving.any():
            break
        active, here, tried = active[moving], here.take(moving), tried.take(moving)
        tried, slope = evaluate(volume, padding, box, data, tried, prior)
        better = tried.score > here.score
        won = active[better]
        for name in current.__dataclass_fields__:
            getattr(current, name)[won] = getattr(tried, name)[better]
        gradient[won] = slope[better]
        damping[active] = np.where(better, np.maximum(damping[active] / 10, 1e-4), damping[active] * 30)
        active = active[damping[active] < 1e3]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return current.take(back)


def by_direction(rotations: Float64) -> NDArray[np.int64]:
    """Order poses so that neighbours cut the volume in nearly the same plane, which is then still in the cache."""
    view = rotations[:, 2] * np.where(rotations[:, 2, 2:] < 0, -1, 1)
    width = 2 * np.sqrt(2 * np.pi / max(len(rotations), 1))  # twice the distance between neighbours
    sector = np.rint(np.arctan2(view[:, 1], view[:, 0]) / width).astype(int)
    return np.lexsort((view[:, 2] * (1 - 2 * (sector % 2)), sector))


def _step(precision: Float64, gradient: Float64, damping: Float64, longest_turn: float) -> tuple[Float64, Float64]:
    """Return the damped Newton step (c, 5) and the gain in log-likelihood that the quadratic model promises, (c,)."""
    diagonal = np.einsum("caa->ca", precision)
    # a direction in which nothing changes (a sphere has no rotation) must not make the matrix singular
    floor = 1e-6 * diagonal.max(axis=1, keepdims=True) + 1e-12
    damped = precision + (damping[:, None] * diagonal + floor)[:, :, None] * np.eye(5)
    step = np.linalg.solve(damped, gradient[:, :, None])[:, :, 0]
    turn = np.linalg.norm(step[:, :3], axis=1)
    step *= np.minimum(1, longest_turn / np.maximum(turn, 1e-12))[:, None]
    gain = np.einsum("ca,ca->c", gradient, step) - np.einsum("ca,cab,cb->c", step, precision, step) / 2
    return step, gain


def newton_step(precision: Float64, gradient: Float64, longest_turn: float) -> tuple[Float64, Float64]:
    """Return one step from each pose towards the nearest maximum (c, 5), and what it promises to gain, (c,)."""
    return _step(precision, gradient, np.full(len(gradient), DAMPING), longest_turn)


def evidence(poses: Poses) -> Float64:
    """Return the logarithm of the probability mass under each maximum, by Laplace's approximation, (c,)."""
    floor = 1e-6 * np.einsum("caa->ca", poses.precision).max(axis=1) + 1e-12
    _, log_determinant = np.linalg.slogdet(poses.precision + floor[:, None, None] * np.eye(5))
    return np.asarray(poses.score - log_determinant / 2)


def compete(
    poses: Poses, *, apart: float, keep: int, least: float, group: Float64 | None = None
) -> tuple[Poses, Float64]:
    """Drop poses that reached the same maximum or are improbable; weight the rest.

    Parameters
    ----------
    poses
        Any number for each image.
    apart
        Poses closer than this, in radians and up to symmetry, are one.
    keep
        Most poses to keep for an image.
    least
        Least weight to keep.
    group
        Symmetry operators (g, 3, 3).

    Returns
    -------
    The poses that remain, ordered by image and then from the most to the least probable, and their weights, which sum
    to 1 for each image.
    """
    group = np.eye(3)[None] if group is None else group
    mass = evidence(poses)
    order = np.lexsort((-mass, poses.images))
    poses, mass = poses.take(order), mass[order]
    first = np.flatnonzero(np.r_[True, np.diff(poses.images) > 0])
    counts = np.diff(np.r_[first, len(order)])
    best = np.repeat(mass[first], counts)
    alive = mass > best + np.log(least)
    rank = np.arange(len(order)) - np.repeat(first, counts)
    for i in range(1, int(counts.max(initial=1))):
        these = np.flatnonzero((rank == i) & alive)
        for j in range(i):
            before = these - i + j
            same = alive[before] & (angle_up_to(poses.rotations[these], poses.rotations[before], group) < apart)
            alive[these[same]] = False
    kept_before = np.cumsum(alive) - alive
    alive &= kept_before - np.repeat(kept_before[first], counts) < keep
    poses, mass, best = poses.take(alive), mass[alive], best[alive]
    weight = np.exp(mass - best)
    total = np.bincount(poses.images, weight)
    return poses, weight / total[poses.images]


def owed_to_itself(
    data: Weighted,
    current: Poses,
    inserted: Poses,
    weights: Float64,
    share: Float64,
    box: int,
    radius: float,
    group: Float64,
) -> Float64:
    """Return by how much an image's own part in the reference raises the score of each of its poses, (c,).

    The reference holds each image where it was inserted, and its noise with it. There it matches better than elsewhere,
    by as many units of log-likelihood as the map has parameters for each image, commonly two to five: an image too
    faint to be placed by more would never leave a wrong pose.

    Away from the old pose, that falls off as a Gaussian in the phase that a turn gives in depth (the mean square depth
    of a sphere is ``radius² / 5``) and the shift in the plane.

    Parameters
    ----------
    data
        The batch, on the shells that are scored.
    current
        Poses to score.
    inserted, weights
        Poses with which the images are in the reference, ordered by image, and their weights, (d,).
    share
        What comes back of ``C X / σ²``, by shell (:func:`cloudem.algorithms.reconstruct.own_share`).
    box, radius
        Pixels.
    group
        Symmetry operators (g, 3, 3).
    """
    xp = array_namespace(data.numerators)
    shell = np.arange(len(share))
    by_shell = xp.asarray(np.stack([share, share * shell**2], axis=1).astype(np.float32))
    columns = by_shell[data.disc.shell]  # where the images are
    power = data.numerators.real**2 + data.numerators.imag**2
    most, times_k2 = to_host(power @ columns).astype(np.float64).T
    wave2 = (2 * np.pi / box) ** 2 * times_k2 / np.maximum(most, 1e-30)
    start = np.searchsorted(inserted.images, np.arange(len(most) + 1))
    count = np.diff(start)[current.images]
    found = np.zeros(len(current.images))
    for number in range(int(count.max(initial=0))):
        rows = np.flatnonzero(count > number)
        image, old = current.images[rows], start[current.images[rows]] + number
        angle = angle_up_to(current.rotations[rows], inserted.rotations[old], group)
        shift2 = np.sum((current.shifts[rows] - inserted.shifts[old]) ** 2, axis=1)
        phase2 = wave2[image] * (angle**2 * radius**2 / 5 + shift2 / 2)
        found[rows] += weights[old] * np.exp(-phase2 / 2)
    return np.asarray(found * most[current.images])


def frequency_limits(first: int, last: int) -> Sequence[int]:
    """Return a rising sequence of frequency limits from ``first`` to ``last``, each about 1.5 times the one before."""
    if last <= first:
        return [last]
    count = int(np.ceil(np.log(last / first) / np.log(1.5)))
    return [round(first * (last / first) ** (i / count)) for i in range(1, count + 1)]
