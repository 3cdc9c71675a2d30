"""Several states of a molecule, told apart by the images of particles whose poses are known.

A state is the consensus of all images and a difference from it. What an image says of a difference is in its residual:
with the slice S of the consensus, ``R = C (X - C S) / σ²``. With weights w of the images, differences are solved from
residuals as maps are from images, ``D = Σ w R / (Σ w C² / σ² + 1 / τ²)``, so that what nothing is known of is left as
in the consensus, and not empty.

Images are cut into parts, each in one half-set. The images of a part are compared with differences to which the others
contributed, never with their own: otherwise the noise of an image would hold it in its class. Shells of a difference
are weighted by its correlation between the two half-sets, and places by how well the halves agree around them.

Everything is done on a grid no finer than the resolution asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.algorithms.align import Poses, Prior, Weighted, by_direction, evaluate, evidence, newton_step, start_poses
from cloudem.algorithms.batch import Batch, add_slices, weigh
from cloudem.algorithms.reconstruct import Sums, solve
from cloudem.algorithms.resolution import multiply_shells
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import HalfDisc, half_disc, sample_half_disc
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.kernels.slices import extract, fast_even, magnified_axes, padded_box
from cloudem.model.poses import rotate

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

PARTS = 4
"""Parts of the images that are not held out, two of each half-set: each is compared with what the other three know."""

LEAST_SHARE = 1e-3
"""Images that belong to a class with less probability are not in its sums."""

SOLVED_AT = 20.0
"""Signal-to-noise ratio of each shell with which differences are solved before they are weighted: it only keeps voxels
that few images saw from standing out."""

SPARE_SHELLS = 4
"""Shells of the grid beyond the last that is compared."""

LEAST_BOX = 48
"""Voxels of the coarsest grid."""

AGREEMENT_REACH = 1.4
"""Standard deviation of the window in which the halves' agreement is taken, in resolutions."""

FURTHEST = 8.0
"""Limit of how much further than a step of expectation maximisation a pass goes (`overstep`)."""

OUTSIDE = 0.1
"""Weight of differences outside the molecule's outline, where it was not given: a part that few images have may stand
there."""


@dataclass(frozen=True)
class StateSettings:
    """What stays the same during a classification.

    Attributes
    ----------
    whole_box
        Pixels of the images.
    box
        Of the grid that is worked on, voxels; as long as the images are.
    length
        Of the box, Å.
    radius
        Of the particle, pixels of the grid.
    last_limit
        Finest shell that images may be compared on.
    start_limit
        Finest shell that the first classes are found on.
    classes
        How many there are; 0 to find out.
    most_iterations
        Passes at most.
    """

    whole_box: int
    box: int
    length: float
    radius: float
    last_limit: int
    start_limit: int
    classes: int
    most_iterations: int

    @property
    def pixel_size(self) -> float:
        """Of the grid, Å."""
        return self.length / self.box

    @property
    def padding(self) -> float:
        """Voxels of a padded volume per cycle per box."""
        return padded_box(self.box) / self.box


def grid_box(whole: int, limit: int) -> int:
    """Return the voxels of the grid that shells up to a limit need."""
    return min(whole, fast_even(max(2 * (limit + SPARE_SHELLS), LEAST_BOX)))


class SeenImages(NamedTuple):
    """A batch in Fourier space up to a limit: coefficients and CTF (b, p), 1 / σ² by image and shell, half disc.

    ``magnification`` is that of each image, (b, 2, 2), None for none.
    """

    images: Complex64
    ctf: Float32
    inverse: Float32
    disc: HalfDisc
    magnification: Float64 | None

    def weighted(self) -> Weighted:
        """Return C X / σ² and C² / σ²."""
        pixels = np.arange(len(self.disc.shell))
        return weigh(self.images, self.ctf, self.inverse, self.disc, pixels, self.magnification)

    def residual(self, slices: Complex64) -> SeenImages:
        """Return what the slices of a map, shifted as the images are, leave of the images."""
        return self._replace(images=self.images - self.ctf * slices)


def see(batch: Batch, sigma2: Float64, settings: StateSettings, limit: int) -> SeenImages:
    """Bring whole images into Fourier space, up to a shell.

    Parameters
    ----------
    batch
        Images (b, n, n) with their CTFs.
    sigma2
        Noise variance by optics group and shell, (g, n // 2 + 1).
    settings, limit
        Of the classification, and the shell.
    """
    disc = half_disc(settings.whole_box, limit)
    # the mean of an image says nothing
    disc = disc.take(np.flatnonzero((disc.shell >= 1) & (batch.aberrations.reach(disc) <= limit)))
    images = sample_half_disc(batch.transforms(settings.length), disc)
    ctf = ctf_values(disc.kx, disc.ky, batch.terms, 1 / settings.length)
    ctf *= batch.scale.astype(np.float32)[:, None]
    inverse = (1 / sigma2).astype(np.float32)[batch.optics_group]
    return SeenImages(images, ctf, inverse, disc, batch.aberrations.of(batch.optics_group))


def shifted_slices(
    volume: Complex64, poses: Poses, disc: HalfDisc, settings: StateSettings, magnification: Float64 | None = None
) -> Complex64:
    """Return the slices (b, p) of a padded half-volume at poses, shifted as the images are; one pose for each image."""
    order, axes = by_direction(poses.rotations), poses.rotations
    if magnification is not None:
        axes = magnified_axes(axes, magnification)
    slices = np.empty((len(order), len(disc.kx)), np.complex64)
    slices[order] = extract(volume, axes[order], disc.kx, disc.ky, settings.padding)
    turn = (-2 * np.pi / settings.box * poses.shifts).astype(np.float32)
    angle = turn[:, :1] * disc.kx.astype(np.float32) + turn[:, 1:] * disc.ky.astype(np.float32)
    phase = np.empty_like(slices)
    np.cos(angle, out=phase.real)
    np.sin(angle, out=phase.imag)
    slices *= phase
    return slices


class StateScores(NamedTuple):
    """How images match each of several maps: evidence (b, c), and the pose in each, (b, c, 3, 3) and (b, c, 2)."""

    evidence: Float64
    rotations: Float64
    shifts: Float64

    def of(self, number: NDArray[np.int64]) -> tuple[Float64, Float64]:
        """Return the pose of each image in one of the maps."""
        rows = np.arange(len(number))
        return self.rotations[rows, number], self.shifts[rows, number]


def score_states(
    seen: SeenImages, poses: Poses, volumes: Sequence[Complex64], prior: Prior, settings: StateSettings
) -> StateScores:
    """Score images with each of several maps, each after one Newton step of its pose.

    The evidence is the log-likelihood that the step promises to reach, with Laplace's approximation of the integral
    over poses about it: what a turn of the whole particle explains as well is no difference between states.

    Parameters
    ----------
    seen
        The images.
    poses
        One for each.
    volumes
        Padded half-volumes.
    prior
        Of the shifts.
    settings
        Of the classification.
    """
    order = by_direction(poses.rotations)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    data, limit = seen.weighted(), int(seen.disc.shell.max())
    longest, found = 0.15 * settings.box / (limit * settings.radius), []
    for volume in volumes:
        here, gradient = evaluate(volume, settings.padding, settings.box, data, poses.take(order), prior)
        step, gain = newton_step(here.precision, gradient, longest)
        there = replace(
            here,
            rotations=rotate(here.rotations, step[:, :3]),
            shifts=here.shifts + step[:, 3:],
            score=here.score + gain,
        )
        found.append(there.take(back))
    return StateScores(
        np.stack([evidence(each) for each in found], axis=1),
        np.stack([each.rotations for each in found], axis=1),
        np.stack([each.shifts for each in found], axis=1),
    )


def posterior(evidences: Float64, share: Float64) -> tuple[Float64, Float64]:
    """Return the probability of each class (b, c), and the logarithm of the evidence of all together, (b,)."""
    scores = evidences + np.log(np.maximum(share, 1e-12))
    most = scores.max(axis=1, keepdims=True)
    weights = np.exp(scores - most)
    total = weights.sum(axis=1, keepdims=True)
    return weights / total, most[:, 0] + np.log(total[:, 0])


def best_shares(evidences: Float64, share: Float64, steps: int = 200) -> Float64:
    """Return the shares of the classes that make the evidences of images (b, c) most probable, from a first guess."""
    for _ in range(steps):
        share = posterior(evidences, share)[0].mean(axis=0)
    return share


def add_residuals(
    sums: Sums, residual: Weighted, poses: Poses, weights: Float64, squares: Float64, settings: StateSettings
) -> None:
    """Add residuals times ``weights`` (b,) to a difference's sums, and C² / σ² times ``squares`` (b,), in place."""
    some = np.flatnonzero(squares > LEAST_SHARE)
    if not len(some):
        return
    factor = (weights[some].astype(np.float32)[:, None], squares[some].astype(np.float32)[:, None])
    part = Weighted(residual.numerators[some] * factor[0], residual.denominators[some] * factor[1], residual.disc)
    if residual.magnification is not None:
        part = part._replace(magnification=residual.magnification[some])
    own = start_poses(np.arange(len(some)), poses.rotations[some], poses.shifts[some])
    add_slices(sums, part, own, np.ones(len(some)), settings.box)


def solve_difference(sums: Sums, settings: StateSettings, limit: int) -> Float32:
    """Return the map of a difference, not weighted, (m, m, m)."""
    ratio = np.full(settings.box // 2 + 1, SOLVED_AT)
    return solve(sums, settings.box, ratio, limit)


def centred(differences: Float32, share: Float64 | None) -> Float32:
    """Return differences less their mean by shares: what all states have in common is the consensus."""
    if share is None:
        return differences
    mean = np.einsum("k,kzyx->zyx", share / share.sum(), differences).astype(np.float32)
    return np.asarray(differences - mean, np.float32)


def overstep(probability: Float64) -> Float64:
    """Return by how much further than its M-step expectation maximisation has to go, as a matrix (c, c).

    Classes that images tell apart poorly are each a mixture of the true ones: with γ the probabilities of images, a sum
    with weights γ_k holds ``Σ γ_k γ_j`` images of class j. A step of expectation maximisation moves by what the data
    say times the part that is known, and needs many steps. The inverse of that part, ``(Σ γ_k γ_j)⁻¹ Σ γ_k``, makes
    up for it (Louis 1982, J. R. Stat. Soc. B 44, 226), and takes off what the noise of the maps that images were
    compared with leaves in the sums. It is 1 where classes are told apart. No eigenvalue exceeds `FURTHEST`.
    """
    mass = np.maximum(probability.sum(axis=0), 1e-9)
    root = np.sqrt(mass)
    values, vectors = np.linalg.eigh(probability.T @ probability / np.outer(root, root))
    inverse = (vectors / np.maximum(values, 1 / FURTHEST)) @ vectors.T
    return np.asarray(inverse * root / root[:, None])


def further(found: Float32, before: Float32, matrix: Float64) -> Float32:
    """Return differences (c, m, m, m) that lie further from those before than the ones found, by `overstep`."""
    moved = np.einsum("kj,jzyx->kzyx", matrix, (found - before).astype(np.float64))
    return np.asarray(before + moved, np.float32)


class Agreement3D(NamedTuple):
    """How far two halves of a difference agree: by shell (m // 2 + 1,), and by place, (m, m, m), both 0 to 1."""

    fsc: Float64
    local: Float32


def halves_agreement(
    first: Float32, second: Float32, where: Float32, limit: int, settings: StateSettings
) -> Agreement3D:
    """Compare two halves of a difference inside a soft outline."""
    raw = fourier_shell_correlation(first * where, second * where)
    raw = np.clip(np.where(np.arange(len(raw)) <= limit, raw, 0.0), 0, 1)
    raw[0] = raw[1]
    fsc = raw.copy()
    fsc[1:-1] = (raw[:-2] + 2 * raw[1:-1] + raw[2:]) / 4  # inner shells have few voxels
    one, other = (multiply_shells(half * where, fsc) for half in (first, second))
    reach = AGREEMENT_REACH * settings.box / limit
    common = ndimage.gaussian_filter(one * other, reach)
    power = (ndimage.gaussian_filter(one * one, reach) + ndimage.gaussian_filter(other * other, reach)) / 2
    known = power > 1e-4 * max(float(power.max()), 1e-30)
    local = np.where(known, np.clip(common / np.maximum(power, 1e-30), 0, 1), 0)
    return Agreement3D(fsc, local.astype(np.float32))


def weighted_difference(difference: Float32, known: Agreement3D, where: Float32, halves: float, limit: int) -> Float32:
    """Return a difference, weighted by shell and by place.

    With the correlation F of two halves, one of h halves' images has the signal-to-noise ratio ``h F / (1 - F)``. Of
    the local agreement w of the halves, the weight is ``2 w / (1 + w)``, that of their mean.

    Parameters
    ----------
    difference
        (m, m, m).
    known
        Of its halves.
    where
        Outline within which it is looked for.
    halves
        How many halves' images it was made of: 2 for all.
    limit
        Last shell.
    """
    fsc = np.where(np.arange(len(known.fsc)) <= limit, known.fsc, 0.0)
    ratio = halves * fsc / np.maximum(1 - fsc, 1e-3)
    return multiply_shells(difference * where, ratio / (1 + ratio)) * (2 * known.local / (1 + known.local))


class Gain(NamedTuple):
    """Evidence of several states against one: the mean over images, its standard error, and images."""

    mean: float
    error: float
    images: int

    @property
    def deviations(self) -> float:
        """The mean in standard errors."""
        return self.mean / self.error if self.error > 0 else 0.0


def gain_of(values: Float64) -> Gain:
    """Return the gain of images whose evidence rose by so much, (b,)."""
    count = len(values)
    if count < 2:
        return Gain(0.0, 0.0, count)
    return Gain(float(values.mean()), float(values.std(ddof=1) / np.sqrt(count)), count)
