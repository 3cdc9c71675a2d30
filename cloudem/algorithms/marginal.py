"""Soft assignment of images to references in all poses of a grid, and the exact way back to the references.

A reference is a slice in polar harmonics (:mod:`cloudem.kernels.polar`): a class average, or the view of a map. Each
image is scored against all references, their mirror images (the view from the opposite side), in-plane rotations and
shifts by matrix products, as in the exhaustive search. Probabilities go back through the same products, so that the
sums of a reference are those of whole images in all poses, each with its probability; nothing is interpolated.

With the sums ``B = Σ γ (C X / σ²)`` and ``A = Σ γ C² / σ²``, the reference that explains the images best is
``B / (A + 1 / τ²)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.batch import Batch, mask_scored_to
from cloudem.algorithms.search import MARGIN, shift_grid
from cloudem.backend.arrays import array_namespace
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import HalfDisc, fourier_images, half_disc
from cloudem.kernels.polar import (
    Harmonics,
    PolarGrid,
    Workspace,
    best_rotations,
    harmonics,
    polar_grid,
    polar_interpolation,
    posterior_rotations,
    ring_norms,
    rotation_scores,
    rotation_weights,
    shift_samples,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

NOISE_BATCHES, NOISE_IMAGES = 8, 32
"""Images of noise, on which it is measured what masking leaves: ring 1 is then known to 3 %, the others better."""

SHIFT_STEP = 0.35
"""Distance between shifts, in the finest wavelengths compared."""

ROUGH_STEP = 0.5
"""The same where a shift is only roughly wanted."""

NEVER = -1e30
"""Logarithm of the probability of a pose that is not to be taken."""

ROWS = 64
"""Images × shifts that are worked on at a time."""


@dataclass(frozen=True)
class PolarView:
    """How images are seen on rings: the grid, and what takes a half disc there.

    Attributes
    ----------
    left
        Share of white noise that masking and interpolation leave on each ring, (K,): about the circle's share of the
        box.
    """

    box: int
    pixel_size: float
    radius: float
    grid: PolarGrid
    disc: HalfDisc
    to_real: Float32
    to_imaginary: Float32
    from_origin: Float32
    left: Float64

    @property
    def fold(self) -> Float32:
        """Pixels of each ring that a half circle stands for, (K,)."""
        return (np.pi * np.arange(1, self.grid.k_max + 1)).astype(np.float32)


def polar_view(box: int, pixel_size: float, radius: float, k_max: int) -> PolarView:
    """Lay rings up to ``k_max`` cycles per box for particles of a radius in pixels."""
    grid = polar_grid(k_max, radius, box)
    disc = half_disc(box, min(k_max + MARGIN, box // 2 - 1))
    to_real, to_imaginary, from_origin = polar_interpolation(grid, disc, box, radius)
    view = PolarView(box, pixel_size, radius, grid, disc, to_real, to_imaginary, from_origin, np.ones(k_max))
    rng, power = np.random.default_rng(0), np.zeros(k_max)
    for _ in range(NOISE_BATCHES):
        noise = rng.standard_normal((NOISE_IMAGES, box, box)).astype(np.float32)
        real, imaginary = on_polar(fourier_images(noise), view)
        power += np.mean((real**2 + imaginary**2).reshape(NOISE_IMAGES, k_max, -1), axis=(0, 2), dtype=np.float64)
    return replace(view, left=power / NOISE_BATCHES / box**2)


def on_polar(transforms: NDArray[np.complex64], view: PolarView) -> tuple[Float32, Float32]:
    """Return images, from their transforms, masked on the polar samples of a view: real and imaginary part, (b, s)."""
    masked, origin = mask_scored_to(transforms, view.disc, view.box, view.radius, view.grid.k_max)
    return masked.real @ view.to_real + origin[:, None] * view.from_origin, masked.imag @ view.to_imaginary


class Rings(NamedTuple):
    """Images of a batch on rings.

    Attributes
    ----------
    real, imaginary
        ``C X / σ²`` of the masked images on the polar samples, (b, s).
    power
        Ring means of ``C² / σ²``, (b, K).
    signal
        Ring means of ``|X|² / σ²``, (b, K): 2 for noise alone that is not masked, since σ² is that of a real part.
    """

    real: Float32
    imaginary: Float32
    power: Float32
    signal: Float32


def rings_of(batch: Batch, sigma2: Float64, view: PolarView) -> Rings:
    """Bring a batch of images onto rings.

    Parameters
    ----------
    batch
        Images.
    sigma2
        Noise variance of the masked images by optics group and shell, (g, n // 2 + 1).
    view
        The rings.
    """
    grid, k_max = view.grid, view.grid.k_max
    real, imaginary = on_polar(batch.transforms(view.box * view.pixel_size), view)
    inverse = (1 / sigma2).astype(np.float32)[batch.optics_group, 1 : k_max + 1]
    signal = np.mean((real**2 + imaginary**2).reshape(len(real), k_max, -1), axis=-1) * inverse
    weight = ctf_values(grid.kx, grid.ky, batch.terms, 1 / (view.box * view.pixel_size))
    weight *= batch.scale.astype(np.float32)[:, None]
    by_ring = weight.reshape(len(weight), k_max, -1)
    power = np.mean(by_ring**2, axis=-1) * inverse
    by_ring *= inverse[:, :, None]
    return Rings(real * weight, imaginary * weight, power, signal)


class References(NamedTuple):
    """What images are compared with.

    Attributes
    ----------
    slices
        Harmonics (q, 2, K, d).
    log_prior
        Logarithm of the share of each, (d,).
    """

    slices: Harmonics
    log_prior: Float64


@dataclass(frozen=True)
class SoftSums:
    """Sums over images of what makes new references; those of two batches add up.

    Attributes
    ----------
    even, odd
        ``Σ γ C X / σ²`` as harmonics, (q, 2, K, d), float64.
    weight
        ``Σ γ C² / σ²`` by ring, (K, d).
    mass
        Images, by their probability, (d,).
    residual
        ``Σ |X - C S|² / σ²`` over half rings, (K,): for noise alone, 2 for each pixel and image that masking leaves.
    images, evidence
        Images, and the sum of the logarithm of their evidence.
    """

    even: Float64
    odd: Float64
    weight: Float64
    mass: Float64
    residual: Float64
    images: float
    evidence: float

    def plus(self, other: SoftSums, factor: float = 1.0) -> SoftSums:
        """Return these sums and others, times a factor, together."""
        return SoftSums(**{name: mine + factor * getattr(other, name) for name, mine in vars(self).items()})

    def times(self, factor: float) -> SoftSums:
        """Return the sums times a factor."""
        return SoftSums(**{name: factor * mine for name, mine in vars(self).items()})


def summed(parts: Sequence[SoftSums]) -> SoftSums:
    """Return the sums of several parts together, added in their order."""
    total = parts[0]
    for part in parts[1:]:
        total = total.plus(part)
    return total


def in_use(mass: Float64) -> float:
    """Return how many references are used, counted by their shares of the images: the exponential of their entropy."""
    share = mass / mass.sum()
    return float(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-30)))))


def shift_choices(furthest: float, finest: float, count: int, step: float = SHIFT_STEP) -> tuple[Float64, Float32]:
    """Return shifts for each of ``count`` images, (b, t, 2) pixels, and the logarithm of their probability, (b, t).

    Parameters
    ----------
    furthest
        Pixels; the prior is a normal distribution with half of that for its standard deviation.
    finest
        Finest wavelength that is compared, pixels.
    count
        Images.
    step
        Distance between shifts, in the finest wavelengths.
    """
    tried = shift_grid(furthest, step * finest)
    prior = -np.sum(tried**2, axis=1) / 2 / (furthest / 2) ** 2
    prior -= np.log(np.sum(np.exp(prior)))
    shifts = np.broadcast_to(tried, (count, *tried.shape)).copy()
    return shifts, np.broadcast_to(prior.astype(np.float32), (count, len(prior))).copy()


def near_choices(furthest: float, finest: float, centres: Float64, reach: float) -> tuple[Float64, Float32]:
    """Return those of `shift_choices` that lie near a shift already known, for each image.

    Parameters
    ----------
    furthest, finest
        As for `shift_choices`.
    centres
        The known shifts, (b, 2) pixels.
    reach
        Distance, in steps of the grid, up to which shifts are taken: 1 for the six neighbours, 2 for eighteen. Images
        at the rim have fewer; what is missing is filled up with the centre at a probability of 0.
    """
    shifts, prior = shift_choices(furthest, finest, 1)
    distance = np.linalg.norm(shifts[0] - centres[:, None], axis=2) / (SHIFT_STEP * finest)
    nearest = distance.argmin(axis=1)
    within = np.linalg.norm(shifts[0] - shifts[0][nearest][:, None], axis=2) <= (reach + 0.05) * SHIFT_STEP * finest
    most = int(within.sum(axis=1).max())
    chosen = np.argsort(~within, axis=1, kind="stable")[:, :most]
    missing = ~np.take_along_axis(within, chosen, axis=1)
    return shifts[0][chosen], np.where(missing, NEVER, prior[0][chosen]).astype(np.float32)


def to_samples(part: NDArray[np.floating[Any]], matrix: Float32) -> Float64:
    """Return the polar samples (d, K m / 2) whose harmonics (q, 2, K, d) these are.

    ``matrix`` is that of their parity (:func:`cloudem.kernels.polar.angular_matrices`).
    """
    _, _, rings, count = part.shape
    flat = part.transpose(3, 2, 1, 0).reshape(count * rings, -1).astype(np.float64)
    return np.asarray(np.linalg.lstsq(matrix.T.astype(np.float64), flat.T, rcond=None)[0].T.reshape(count, -1))


def no_sums(grid: PolarGrid, references: int) -> SoftSums:
    """Return empty sums."""
    even, odd = (np.zeros((len(q), 2, grid.k_max, references)) for q in (grid.even, grid.odd))
    return SoftSums(even, odd, np.zeros((grid.k_max, references)), np.zeros(references), np.zeros(grid.k_max), 0.0, 0.0)


class Assigned(NamedTuple):
    """What becomes of each image.

    Attributes
    ----------
    evidence
        Logarithm of the mean of ``exp(score)`` over all references and poses by their prior, (b,): 0 is what nothing at
        all would give.
    mass
        Probability by side and reference, (b, 2, d).
    code
        Best in-plane rotation and shift (:func:`cloudem.kernels.polar.decode`) by side and reference, (b, 2, d); None
        unless asked for.
    """

    evidence: Float64
    mass: Float32
    code: NDArray[np.int32] | None


def twice(q: NDArray[np.int64]) -> Float32:
    """Return how often each angular frequency counts, (q, 1, 1, 1): those above 0 stand for their negative, too."""
    return (1 + (q > 0)).astype(np.float32)[:, None, None, None]


def ring_power(slices: Harmonics, grid: PolarGrid) -> Float32:
    """Return the mean of ``|S|²`` over each ring, (K, d)."""
    parts = [
        np.sum(twice(q) * s.astype(np.float64) ** 2, axis=(0, 1))
        for q, s in zip((grid.even, grid.odd), slices, strict=True)
    ]
    return np.asarray(parts[0] + parts[1], np.float32)


def assign(
    references: References,
    rings: Rings,
    shifts: Float64,
    shift_prior: Float32,
    view: PolarView,
    sums: SoftSums,
    *,
    mirrored: bool = True,
    best: bool = False,
) -> tuple[Assigned, SoftSums]:
    """Share images out between references in all poses, and sum them up.

    Parameters
    ----------
    references
        Of any number.
    rings
        The images.
    shifts, shift_prior
        Shifts to try, (b, t, 2) pixels, and the logarithm of their probability, (b, t).
    view
        The rings.
    sums
        To which theirs are added.
    mirrored
        Whether images may show the mirror image of a reference.
    best
        Whether to return the best pose for each reference.
    """
    xp, grid = array_namespace(rings.real), view.grid
    count, tried = shifts.shape[:2]
    slices, power = references.slices, ring_power(references.slices, grid)
    fold = view.fold
    norm = ring_norms(rings.power * fold, power)
    # all in-plane rotations are as likely as each other, and both sides
    prior = references.log_prior - np.log(grid.angles * (2 if mirrored else 1))
    offset = np.repeat((prior - norm / 2)[:, None], 2, axis=1).astype(np.float32)
    if not mirrored:
        offset[:, 1] = NEVER
    evidence, mass = np.empty(count), np.empty((count, 2, len(prior)), np.float32)
    code = np.empty(mass.shape, np.int32) if best else None
    even, odd = (np.zeros(part.shape, np.float32) for part in slices)
    workspace = Workspace()
    per_tile = max(1, ROWS // tried)
    for first in range(0, count, per_tile):
        rows = slice(first, min(first + per_tile, count))
        turned = shift_samples(rings.real[rows], rings.imaginary[rows], grid.kx, grid.ky, shifts[rows], view.box)
        real, imaginary = (part.reshape(-1, grid.k_max, grid.angles // 2) for part in turned)
        image = harmonics(real, imaginary, grid)
        weights = [twice(q) * fold[:, None] for q in (grid.even, grid.odd)]
        folded = Harmonics(image.even * weights[0], image.odd * weights[1])
        scores = rotation_scores(folded, slices, grid, xp.asarray(shift_prior[rows].ravel()), workspace)
        if code is not None:
            _, code[rows] = best_rotations(*scores, tried)
        evidence[rows], mass[rows] = posterior_rotations(*scores, offset[rows], tried)
        back = rotation_weights(image, *scores, grid, workspace)
        even += back.even
        odd += back.odd
    total = mass.sum(axis=1)
    weight = rings.power.T.astype(np.float64) @ total
    matched = sum(
        np.sum(twice(q) * s.astype(np.float64) * b, axis=(0, 1, 3))
        for q, s, b in zip((grid.even, grid.odd), slices, (even, odd), strict=True)
    )
    residual = fold * (rings.signal.sum(axis=0, dtype=np.float64) - 2 * matched + np.sum(weight * power, axis=1))
    mine = SoftSums(
        even.astype(np.float64),
        odd.astype(np.float64),
        weight,
        total.sum(axis=0, dtype=np.float64),
        residual,
        count,
        float(evidence.sum()),
    )
    return Assigned(evidence, mass, code), sums.plus(mine)


def ring_matches(
    references: References,
    rings: Rings,
    view: PolarView,
    number: NDArray[np.int64],
    side: NDArray[np.int64],
    psi: Float64,
    shifts: Float64,
) -> tuple[Float64, Float64]:
    """Return how images match their reference in one pose, ring by ring.

    Parameters
    ----------
    references, rings, view
        As for `assign`.
    number, side, psi, shifts
        Reference, side, in-plane angle (radians) and shift (pixels) of each image, (b,) and (b, 2).

    Returns
    -------
    ``Re⟨C X / σ², S⟩`` and ``⟨C² / σ², |S|²⟩`` by ring, (b, K) each. Of noise, the first has the mean 0 and the second,
    times `PolarView.left`, for its variance.
    """
    grid, count = view.grid, len(number)
    turned = shift_samples(rings.real, rings.imaginary, grid.kx, grid.ky, shifts[:, None], view.box)
    real, imaginary = (part.reshape(count, grid.k_max, -1) for part in turned)
    image = harmonics(real, imaginary, grid)
    match = np.zeros((grid.k_max, count))
    for parity, (q, y, s) in enumerate(zip((grid.even, grid.odd), image, references.slices, strict=True)):
        mine = s[..., number].astype(np.float64)
        seen = mine[:, 0] + 1j * np.where(side == 1, -1, 1) * mine[:, 1]
        if parity:  # the opposite side: the conjugate, with the sign of odd frequencies changed
            seen = np.where(side == 1, -1, 1) * seen
        seen = seen * np.exp(1j * q[:, None] * psi)[:, None]
        match += np.sum(twice(q)[..., 0] * (y[:, 0] * seen.real + y[:, 1] * seen.imag), axis=0)
    power = ring_power(references.slices, grid)[:, number].T
    norm = np.asarray(view.fold * rings.power * power, np.float64)
    return np.asarray(view.fold * match.T, np.float64), norm


def solve_references(sums: SoftSums, signal: Float64) -> Harmonics:
    """Return the references that sums make, ``B / (A + 1 / τ²)``, given the power of the signal τ², (K,) or (K, d)."""
    precision = sums.weight + 1 / np.maximum(np.broadcast_to(signal.reshape(len(signal), -1), sums.weight.shape), 1e-30)
    return Harmonics(*((part / precision).astype(np.float32) for part in (sums.even, sums.odd)))
