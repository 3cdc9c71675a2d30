"""The expectation step for one batch of images: weigh, search, refine, insert, and gather what the next step needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import (
    Anchors,
    Poses,
    Prior,
    Weighted,
    best_of,
    compete,
    evaluate,
    frequency_limits,
    join_poses,
    owed_to_itself,
    refine_poses,
    start_poses,
)
from cloudem.algorithms.batch import Batch, add_slices, mask_scored_to, weigh
from cloudem.algorithms.junk import alike_shell, pose_matches
from cloudem.algorithms.reconstruct import Sums
from cloudem.algorithms.search import Hits, SearchGrid, poses, search, shift_grid
from cloudem.algorithms.view_density import drawn_in
from cloudem.backend.arrays import array_namespace
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import HalfDisc, half_disc, sample_half_disc
from cloudem.kernels.shells import shell_sums
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.poses import rotate

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

LEAST_WEIGHT = 1e-3
"""Poses less probable than this are not inserted."""

NOISE_STRIDE = 4
"""Every how many-th image the noise is measured on: a shell of radius k has pi k pixels in each, which is plenty."""

HOPELESS = 1e-6
"""Poses less probable than this at the search limit are not refined further."""


@dataclass(frozen=True)
class IterationPlan:
    """What an iteration does, the same for all batches and half-sets.

    Attributes
    ----------
    box, pixel_size
        Pixels, Å.
    radius
        Particle radius, pixels: images are masked beyond it for scoring.
    k_score, k_insert
        Highest shell that is scored, and that is inserted.
    k_search, step
        Highest shell of the grid search and distance between its directions in radians; 0 for no search.
    shift_radius, shift_step
        Of the shifts that the search tries, pixels.
    candidates
        Poses of each image that are refined after a search.
    poses
        Most poses of each image that are inserted.
    first
        The reference's scale is not to be trusted: the search fits a factor to each image and pose.
    fan
        Without a search, poses are tried as they are, and turned by this about each axis, both ways, radians; 0 for
        none.
    """

    box: int
    pixel_size: float
    radius: float
    k_score: int
    k_insert: int
    k_search: int
    step: float
    shift_radius: float
    shift_step: float
    candidates: int
    poses: int
    first: bool
    fan: float = 0.0


@dataclass(frozen=True)
class Model:
    """What a half-set knows: the reference, and the statistics of its noise and shifts.

    Attributes
    ----------
    volume
        Padded half-volume of the reference (:func:`cloudem.algorithms.reconstruct.reference_volume`).
    grid
        For the search; None where the plan has none.
    sigma2
        Noise variance by optics group and shell, (g, n // 2 + 1).
    prior
        Of the shifts.
    group
        Symmetry operators.
    own_share
        What an image owes to itself in the reference, by shell (:func:`cloudem.algorithms.reconstruct.own_share`).
    view_gradient
        Of the density of views (:func:`cloudem.algorithms.view_density.density_gradient`), (d, 3); None for even ones.
    """

    volume: Complex64
    grid: SearchGrid | None
    sigma2: Float64
    prior: Prior
    group: Float64
    own_share: Float64 | None = None
    view_gradient: NDArray[np.float16] | None = None

    def near(self, anchors: Anchors | None) -> Model:
        """Return the model with a prior about the poses that the images of a batch are believed to be near."""
        return self if anchors is None else replace(self, prior=replace(self.prior, anchors=anchors))


@dataclass(frozen=True)
class Expected:
    """What a batch gives back, besides its slices.

    Attributes
    ----------
    poses, weights
        Poses that remain and their weights.
    residual, count
        ``sum |X - C S|²`` over the shells (g, n // 2 + 1), and the number of images by group, (g,).
    matches
        What the best pose of each image says of it (:func:`cloudem.algorithms.junk.pose_matches`), (b, 3).
    inserted
        The poses as they were inserted.
    """

    poses: Poses
    weights: Float64
    residual: Float64
    count: Float64
    matches: Float64
    inserted: Poses


class Spectra(NamedTuple):
    """A batch in Fourier space, freed of odd aberrations.

    Attributes
    ----------
    disc, reach
        The full half disc, and the highest shell of the map that each of its pixels shows.
    masked, whole, origin
        Masked and whole images on it, (b, p), and the zero frequency of masked ones, (b,).
    ctf
        (b, p).
    magnification
        (b, 2, 2); None for none.
    """

    disc: HalfDisc
    reach: NDArray[np.int32]
    masked: Complex64
    whole: Complex64
    origin: Float32
    ctf: Float32
    magnification: Float64 | None

    def rows(self, index: NDArray[np.int64]) -> Spectra:
        """Return some of the images."""
        images = (self.masked[index], self.whole[index], self.origin[index], self.ctf[index])
        magnification = None if self.magnification is None else self.magnification[index]
        return Spectra(self.disc, self.reach, *images, magnification)

    def scored_pixels(self, k_max: int) -> NDArray[np.int64]:
        """Return the pixels that are scored up to a shell: those that lie within it in images and in the map."""
        return np.flatnonzero(np.maximum(self.disc.shell, self.reach) <= k_max)

    def scored(self, inverse: Float32, k_max: int) -> Weighted:
        """Return masked images for scoring up to a shell; ``inverse`` is 1 / σ² by image and shell."""
        return weigh(self.masked, self.ctf, inverse, self.disc, self.scored_pixels(k_max), self.magnification)

    def inserted(self, inverse: Float32, k_max: int) -> Weighted:
        """Return whole images for sums up to a shell of the map."""
        pixels = np.flatnonzero(self.reach <= k_max)
        return weigh(self.whole, self.ctf, inverse, self.disc, pixels, self.magnification)


def spectra(batch: Batch, plan: IterationPlan) -> Spectra:
    """Transform a batch."""
    disc = half_disc(plan.box, plan.box // 2 - 1).beside(batch.images)
    transforms = batch.transforms(plan.box * plan.pixel_size)
    whole = sample_half_disc(transforms, disc)
    masked, origin = mask_scored(transforms, disc, plan)
    values = ctf_values(disc.kx, disc.ky, batch.terms, 1 / (plan.box * plan.pixel_size))
    values *= array_namespace(whole).asarray(batch.scale, np.float32)[:, None]
    aberrations = batch.aberrations
    return Spectra(disc, aberrations.reach(disc), masked, whole, origin, values, aberrations.of(batch.optics_group))


def mask_scored(transforms: Complex64, disc: HalfDisc, plan: IterationPlan) -> tuple[Complex64, Float32]:
    """Return the shells that are scored, of masked images, and these images' zero frequency.

    Shells beyond are cut off before the circle is applied, which would otherwise carry their noise over those that
    decide the poses: of 1,500 images of noise alone, the two half-maps then correlate up to six shells beyond the last
    one scored. So poses, and with them the sums of shells beyond, know nothing of the noise there.

    What is left fits fewer pixels; the circle, too, is smooth enough for them.
    """
    return mask_scored_to(transforms, disc, plan.box, plan.radius, plan.k_score)


def inverse_noise(batch: Batch, model: Model) -> Float32:
    """Return 1 / σ² by image and shell, (b, n // 2 + 1), where the images are."""
    inverse: Float32 = (1 / model.sigma2).astype(np.float32)[batch.optics_group]
    placed: Float32 = array_namespace(batch.images).asarray(inverse)
    return placed


def find(batch: Batch, spectrum: Spectra, inverse: Float32, plan: IterationPlan, model: Model) -> tuple[Hits, Float64]:
    """Search a batch; return the hits and the shifts (b, t, 2) that were tried."""
    grid = model.grid
    assert grid is not None  # noqa: S101 - the caller's plan has a search
    xp = array_namespace(spectrum.masked)
    samples = sample_from(spectrum, spectrum.masked, grid.disc)
    kx, ky = xp.asarray(grid.grid.kx), xp.asarray(grid.grid.ky)
    weight = ctf_values(kx, ky, batch.terms, 1 / (plan.box * plan.pixel_size))
    weight *= xp.asarray(batch.scale, np.float32)[:, None]
    by_ring = weight.reshape(len(weight), plan.k_search, -1)
    by_shell = inverse[:, 1 : plan.k_search + 1]
    power = np.mean(by_ring**2, axis=-1) * by_shell
    by_ring *= by_shell[:, :, None]
    tried = shift_grid(plan.shift_radius, plan.shift_step)
    centre = best_shifts(batch)
    shifts = centre[:, None] + tried
    prior = np.zeros(shifts.shape[:2], np.float32)
    if not plan.first:
        prior = model.prior.log(shifts).astype(np.float32)
    return search(grid, samples, spectrum.origin, weight, power, shifts, prior), shifts


def best_shifts(batch: Batch) -> Float64:
    """Return the most probable shift so far, (b, 2) pixels, 0 where none is known."""
    shifts = np.zeros((len(batch.images), 2))
    if batch.poses is not None:
        # poses are ordered from the most to the least probable
        shifts[batch.poses.images[::-1]] = batch.poses.shifts[::-1]
    return shifts


def sample_from(spectrum: Spectra, images: Complex64, disc: HalfDisc) -> Complex64:
    """Return the coefficients on a smaller half disc."""
    return np.take(images, np.flatnonzero(spectrum.disc.shell <= disc.shell.max()), axis=1)


def candidates(hits: Hits, shifts: Float64, plan: IterationPlan, model: Model) -> Poses:
    """Choose the best directions of each image."""
    grid = model.grid
    assert grid is not None  # noqa: S101
    score = hits.numerator - hits.norm[:, None] / 2
    if plan.first:  # the best factor a >= 0 of a N - a² D / 2
        score = np.maximum(hits.numerator, 0) ** 2 / (2 * np.maximum(hits.norm[:, None], 1e-30))
    flat = score.reshape(len(score), -1)
    keep = min(plan.candidates, flat.shape[1])
    chosen = np.argpartition(flat, -keep, axis=1)[:, -keep:]
    images = np.repeat(np.arange(len(flat)), keep)
    side, direction = np.divmod(chosen.ravel(), hits.norm.shape[1])
    return start_poses(images, *poses(grid, hits, images, side, direction, shifts))


def align(
    batch: Batch, spectrum: Spectra, inverse: Float32, plan: IterationPlan, model: Model
) -> tuple[Poses, Float64]:
    """Return the poses that remain for each image, and their weights."""
    data = spectrum.scored(inverse, plan.k_score)
    current = explore(batch, spectrum, inverse, data, plan, model) if plan.k_search else batch.poses
    if current is None:
        raise ValueError("an iteration without a search needs poses")
    if plan.fan:
        current = fanned_out(current, plan.fan)
    current = without_own(batch, data, climb(data, current, plan, model, plan.k_score, steps=10), plan, model)
    apart = 0.25 * plan.box / (plan.k_score * 2 * np.pi * plan.radius)
    return compete(current, apart=apart, keep=plan.poses, least=LEAST_WEIGHT, group=model.group)


def fanned_out(current: Poses, angle: float) -> Poses:
    """Return poses and, after them, what they are turned by an angle about each axis, both ways."""
    turns = angle * np.concatenate([np.eye(3), -np.eye(3)])
    return join_poses(current, *(replace(current, rotations=rotate(current.rotations, turn)) for turn in turns))


def explore(
    batch: Batch, spectrum: Spectra, inverse: Float32, data: Weighted, plan: IterationPlan, model: Model
) -> Poses:
    """Search the images that are not settled and refine what is found, up to the last limit but one.

    Candidates climb two steps before the hopeless ones are dropped: the grid alone cannot tell them apart.
    """
    unsettled = np.flatnonzero(~batch.settled)
    if not len(unsettled):
        assert batch.poses is not None  # noqa: S101 - an image without poses is never settled
        return batch.poses
    part = batch.rows(unsettled)
    hits, shifts = find(part, spectrum.rows(unsettled), inverse[unsettled], plan, model)
    found = candidates(hits, shifts, plan, model)
    if part.poses is not None:  # the poses so far compete
        found = join_poses(found, part.poses)
    found = replace(found, images=unsettled[found.images].astype(np.int32))
    rising = frequency_limits(plan.k_search, plan.k_score)[:-1]
    for k_max, steps in ((plan.k_search, 2), (plan.k_search, 3), *((k, 3) for k in rising)):
        found = without_own(batch, data.within(k_max), climb(data, found, plan, model, k_max, steps), plan, model)
        found, _ = compete(
            found, apart=plan.step / 3, keep=plan.candidates, least=HOPELESS, group=model.group
        )  # fmt: skip
    if batch.poses is None:
        return found
    return join_poses(found, batch.poses.take(batch.settled[batch.poses.images]))


def without_own(batch: Batch, data: Weighted, current: Poses, plan: IterationPlan, model: Model) -> Poses:
    """Return poses scored without what each image owes to itself in the reference."""
    if batch.poses is None or model.own_share is None:
        return current
    weights = np.ones(len(batch.poses.images)) if batch.weights is None else batch.weights
    if batch.keep is not None:
        weights = weights * batch.keep[batch.poses.images]
    owed = owed_to_itself(data, current, batch.poses, weights, model.own_share, plan.box, plan.radius, model.group)
    return replace(current, score=current.score - owed)


def climb(data: Weighted, poses: Poses, plan: IterationPlan, model: Model, k_max: int, steps: int) -> Poses:
    """Refine poses on the shells up to ``k_max``; no step moves the rim by more than 0.15 of the finest wavelength."""
    padding = padded_box(plan.box) / plan.box
    return refine_poses(
        model.volume, padding, plan.box, data.within(k_max), poses, model.prior,
        steps=steps, longest_turn=0.15 * plan.box / (k_max * plan.radius),
    )  # fmt: skip


def expect(batch: Batch, plan: IterationPlan, model: Model, sums: Sums) -> Expected:
    """Align a batch, add its slices to the accumulator, and return poses and noise.

    Parameters
    ----------
    batch, plan, model
        What came, what to do, what is known.
    sums
        Accumulator for shells up to ``plan.k_insert``, changed in place.
    """
    model = model.near(batch.anchors)
    spectrum = spectra(batch, plan)
    inverse = inverse_noise(batch, model)
    found, weights = align(batch, spectrum, inverse, plan, model)
    whole = spectrum.inserted(inverse, plan.k_insert)
    kept = weights if batch.keep is None else weights * batch.keep[found.images]
    inserted = found if model.view_gradient is None else drawn_in(found, model.view_gradient)
    add_slices(sums, whole, inserted, kept, plan.box)
    residual, count = residual_power(batch, spectrum, found, plan, model)
    matches = matches_of(spectrum, inverse, found, weights, plan, model)
    return Expected(found, weights, residual, count, matches, inserted)


def matches_of(
    spectrum: Spectra, inverse: Float32, found: Poses, weights: Float64, plan: IterationPlan, model: Model
) -> Float64:
    """Return what the most probable pose of each image says of it, (b, 3)."""
    rows = best_of(found.images)
    shell = min(alike_shell(plan.box, plan.radius), plan.k_score)
    low = spectrum.scored(inverse, shell)
    return pose_matches(
        model.volume, padded_box(plan.box) / plan.box, plan.box, low, plan.k_score, found.take(rows), weights[rows],
        model.prior, len(model.group),
    )  # fmt: skip


def residual_power(
    batch: Batch, spectrum: Spectra, found: Poses, plan: IterationPlan, model: Model
) -> tuple[Float64, Float64]:
    """Return ``sum |X - C S|²`` by optics group and shell at the most probable poses, and images by group.

    Of every fourth image of each group (:data:`NOISE_STRIDE`).

    Whole images are used, not masked ones, because the accumulator takes whole ones, and because with the noise of the
    whole image the likelihood of a masked one is right: by Parseval it is that of the pixels inside the mask.
    """
    rows = best_of(found.images)
    by_group = np.argsort(batch.optics_group[found.images[rows]], kind="stable")  # groups may alternate
    best = found.take(np.sort(rows[by_group][::NOISE_STRIDE]))
    disc = spectrum.disc
    pixels = spectrum.scored_pixels(plan.k_score)
    kx, ky = disc.kx[pixels], disc.ky[pixels]
    axes = batch.aberrations.axes(best.rotations, batch.optics_group[best.images])
    slices = extract(model.volume, axes, kx, ky, padded_box(plan.box) / plan.box)
    xp = array_namespace(slices)
    shifts = xp.asarray(best.shifts)
    angle = (-2 * np.pi / plan.box * (shifts[:, :1] * kx + shifts[:, 1:] * ky)).astype(np.float32)
    slices *= np.exp(1j * angle)
    residual = spectrum.whole[best.images]
    residual[:, pixels] -= spectrum.ctf[best.images][:, pixels] * slices
    groups = len(model.sigma2)
    by_pixel = xp.zeros((groups, residual.shape[1]))
    power = residual.real**2 + residual.imag**2
    membership = batch.optics_group[best.images]
    for g in range(groups):
        by_pixel[g] = power[membership == g].sum(axis=0, dtype=np.float64)
    count = np.bincount(membership, minlength=groups).astype(np.float64)
    return shell_sums(by_pixel, disc.shell, plan.box // 2 + 1), count


def contrast(batch: Batch, plan: IterationPlan, model: Model) -> Float64:
    """Return how images match the reference with its own sign and with the opposite one.

    Returns
    -------
    Shape (b, 4), the best hit of each image, or the pose that it came with if the plan has no search: likelihood ratio
    N² / 2D with the reference's sign, the same with the opposite sign, and N and D of the former. The sum of N over
    that of D is the scale of the reference.
    """
    model = model.near(batch.anchors)
    spectrum = spectra(batch, plan)
    inverse = inverse_noise(batch, model)
    if batch.poses is not None and not plan.k_search:
        data = spectrum.scored(inverse, plan.k_score)
        known, _ = evaluate(model.volume, padded_box(plan.box) / plan.box, plan.box, data, batch.poses, model.prior)
        ratio = [np.maximum(n, 0) ** 2 / np.maximum(2 * known.norm, 1e-30) for n in (known.numerator, -known.numerator)]
        return np.stack([*ratio, known.numerator, known.norm], axis=1)
    opposite = spectrum._replace(masked=-spectrum.masked, origin=-spectrum.origin)
    columns = []
    for images in (spectrum, opposite):
        hits, _ = find(batch, images, inverse, plan, model)
        norm = np.maximum(hits.norm[:, None], 1e-30)
        ratio = (np.maximum(hits.numerator, 0) ** 2 / (2 * norm)).reshape(len(hits.norm), -1)
        best = ratio.argmax(axis=1)
        rows = np.arange(len(best))
        columns.append(ratio[rows, best])
        if images is spectrum:
            chosen = (hits.numerator.reshape(len(best), -1)[rows, best], hits.norm[rows, best % hits.norm.shape[1]])
    return np.stack([*columns, *chosen], axis=1).astype(np.float64)
