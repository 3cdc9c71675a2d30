"""What a classification in two dimensions does next, and what sums of images make of its class averages.

It begins with small batches of images, whose sums are forgotten little by little, while the resolution rises; so
classes that began as averages of a few images drawn at random part quickly. Then all of a subset is looked at, pass
after pass, until few images change their class, and at last every image once. In these passes the images are in parts,
and those of a part are compared with the averages of all others: otherwise the noise of an image would hold it where
it is.

A class that hardly any image chooses takes over half of the largest one. Its own noisy sums stay in it, so that the two
differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.marginal import PolarView, References, SoftSums, no_sums, solve_references, to_samples, twice
from cloudem.kernels.fourier import fill_half_disc, real_images
from cloudem.kernels.polar import Harmonics, PolarGrid, angular_matrices

Float64 = NDArray[np.float64]

Phase = Literal["batch", "pass", "last"]

BATCHES = 15
"""Batches of the beginning."""

RISING = 0.7
"""Share of them in which the limit rises."""

FORGOTTEN = 0.3
"""Share of the sums that is forgotten with each batch."""

PARTS = 8
"""Parts of the images in a pass."""

MOST_PASSES = 6

SETTLED = 0.05
"""A pass in which fewer images than this share change their class is the last but one."""

SPLITTING = 2
"""Passes after which classes may still be split."""

WEAK, STRONG = 0.4, 1.4
"""A class with less than this share of a mean class takes over half of one with more than that."""

SEEDS = 15
"""Images of which each class is made at the start."""

RIDGE = 1e-3
"""Of the least-squares problem from rings to pixels, relative to its mean: some pixels hardly touch a ring."""

LEAST_SIGNAL = 0.02
"""The power of the signal is at least this share of that of the averages."""


@dataclass(frozen=True)
class ClassSettings:
    """What the user fixed.

    Attributes
    ----------
    box, pixel_size, radius
        Pixels, Å, and the particle's radius in pixels.
    classes
        How many.
    first_limit, last_limit
        Rings (cycles per box) that the first batch, and in the end all images, are compared on.
    shift_range
        Furthest shift from the centre, pixels.
    batch, subset
        Images of a batch, and of a pass.
    mirrored
        Whether a class holds its mirror images.
    most_iterations
        Iterations after which it stops.
    """

    box: int
    pixel_size: float
    radius: float
    classes: int
    first_limit: int
    last_limit: int
    shift_range: float
    batch: int
    subset: int
    mirrored: bool
    most_iterations: int


@dataclass(frozen=True)
class ClassState:
    """Where the classification stands before an iteration.

    Attributes
    ----------
    iteration
        The one to come, from 1.
    phase
        A batch, a pass over a subset, or the last one over all images.
    passes
        Passes done.
    converged, finished
        Whether the data decided that the last pass be the last; whether there is no further iteration.
    """

    iteration: int = 1
    phase: Phase = "batch"
    passes: int = 0
    converged: bool = False
    finished: bool = False

    def record(self) -> dict[str, Any]:
        """Return the state as plain numbers, for a checkpoint."""
        return asdict(self)


def first_class_state(settings: ClassSettings) -> ClassState:
    """Return the state before iteration 1."""
    return ClassState(phase="last" if settings.most_iterations == 1 else "batch")


def class_limit(state: ClassState, settings: ClassSettings) -> int:
    """Return the highest ring of an iteration."""
    share = 1.0 if state.phase != "batch" else min(1.0, (state.iteration - 1) / (RISING * BATCHES))
    return round(settings.first_limit + share * (settings.last_limit - settings.first_limit))


def next_class_state(state: ClassState, settings: ClassSettings, moved: float) -> ClassState:
    """Return the state after an iteration in which the share ``moved`` of the images changed its class."""
    iteration = state.iteration + 1
    if state.phase == "last":
        return replace(state, finished=True)
    passes = state.passes + (state.phase == "pass")
    phase: Phase = "pass" if iteration > BATCHES else "batch"
    settled = passes > SPLITTING and moved < SETTLED
    converged = state.converged or settled or passes >= MOST_PASSES
    if converged or iteration >= settings.most_iterations:
        phase = "last"
    return ClassState(iteration, phase, passes, converged)


def signal_power(sums: SoftSums, view: PolarView) -> Float64:
    """Return the power τ² of the classes by ring, (K,): what the averages have, beyond their noise.

    The noise of an average ``B / A`` has the power ``2 a / A``, for σ² is that of a real part and masking leaves the
    share a of it (`PolarView.left`). The best average from signal of the power P is then ``B / (A + 2 a / P)``, so that
    ``τ² = P / 2 a``.
    """
    grid, left = view.grid, 2 * view.left
    power = squared(sums, grid)
    weight = np.maximum(np.sum(sums.weight**2, axis=1), 1e-30)
    beyond = np.sum(power - left[:, None] * sums.weight, axis=1) / weight
    return np.asarray(np.maximum(beyond, LEAST_SIGNAL * np.sum(power, axis=1) / weight) / left)


def squared(sums: SoftSums, grid: PolarGrid) -> Float64:
    """Return the mean of ``|B|²`` over each ring, (K, d)."""
    parts = [
        np.sum(twice(q) * part**2, axis=(0, 1))
        for q, part in zip((grid.even, grid.odd), (sums.even, sums.odd), strict=True)
    ]
    return np.asarray(parts[0] + parts[1])


def class_references(sums: SoftSums, view: PolarView) -> References:
    """Return class averages, each as likely as the others: with their shares for prior, large ones would take all."""
    classes = len(sums.mass)
    return References(solve_references(sums, signal_power(sums, view)), np.full(classes, -np.log(classes)))


def on_rings(sums: SoftSums, grid: PolarGrid) -> SoftSums:
    """Return sums on the rings of another grid: what it has more is empty, what it has less is cut off."""
    found = no_sums(grid, len(sums.mass))
    rings = min(grid.k_max, len(sums.weight))
    for new, old in ((found.even, sums.even), (found.odd, sums.odd)):
        count = min(len(new), len(old))
        new[:count, :, :rings] = old[:count, :, :rings]
    found.weight[:rings] = sums.weight[:rings]
    return replace(found, mass=sums.mass.copy(), images=sums.images, evidence=sums.evidence)


def pairs_to_split(mass: Float64) -> list[tuple[int, int]]:
    """Return which weak class takes over half of which strong one, from the images of each, (d,)."""
    left, mean, found = mass.astype(float).copy(), float(mass.mean()), []
    for weak in np.argsort(mass, kind="stable"):
        strong = int(np.argmax(left))
        if left[weak] > WEAK * mean or left[strong] < STRONG * mean:
            break
        found.append((int(weak), strong))
        left[weak] = left[strong] = left[strong] / 2
    return found


def split_classes(sums: SoftSums, pairs: Sequence[tuple[int, int]]) -> SoftSums:
    """Return sums in which each weak class of the pairs has taken over half of a strong one."""
    parts = [part.copy() for part in (sums.even, sums.odd, sums.weight, sums.mass)]
    for weak, strong in pairs:
        for part in parts:
            part[..., weak] += part[..., strong] / 2
            part[..., strong] /= 2
    return replace(sums, even=parts[0], odd=parts[1], weight=parts[2], mass=parts[3])


def noise_ratio(sums: SoftSums, view: PolarView) -> Float64:
    """Return by what the noise variance of each ring is to be multiplied, (K,): bounded, for one step.

    Parameters
    ----------
    sums
        Of the images that were compared.
    view
        The rings.
    """
    return np.clip(sums.residual / (2 * max(sums.images, 1.0) * view.fold * view.left), 0.7, 1.3)


def ring_correlation(one: SoftSums, other: SoftSums, grid: PolarGrid) -> Float64:
    """Return the Fourier ring correlation of each class between two sums, (d, K); NaN where one is empty."""
    products: list[Any] = [0.0, 0.0, 0.0]
    for q, a, b in zip((grid.even, grid.odd), (one.even, one.odd), (other.even, other.odd), strict=True):
        for kind, (left, right) in enumerate(((a, b), (a, a), (b, b))):
            products[kind] = products[kind] + np.sum(twice(q) * left * right, axis=(0, 1))
    norm = products[1] * products[2]
    return np.asarray(np.where(norm > 0, products[0] / np.sqrt(np.where(norm > 0, norm, 1)), np.nan).T)


def class_images(slices: Harmonics, view: PolarView) -> NDArray[np.float32]:
    """Return class averages as images (d, n, n), protein positive, from their harmonics.

    The Fourier pixels are those whose interpolation to the rings, where each sample stands for its area, fits best.
    """
    grid = view.grid
    samples = [to_samples(*pair) for pair in zip(slices, angular_matrices(grid), strict=True)]
    area = np.repeat(np.arange(1, grid.k_max + 1), grid.angles // 2) * (2 * np.pi / grid.angles)
    real_to: Float64 = np.vstack([view.to_real, view.from_origin[None]]).astype(np.float64)
    solved: list[NDArray[np.floating[Any]]] = []
    for to_rings, values in ((real_to, samples[0]), (view.to_imaginary.astype(np.float64), samples[1])):
        normal: Float64 = (to_rings * area) @ to_rings.T
        normal += RIDGE * np.trace(normal) / len(normal) * np.eye(len(normal))
        solved.append(np.linalg.solve(normal, (to_rings * area) @ values.T).T)
    disc = np.asarray(solved[0][:, :-1] + 1j * solved[1], np.complex64)
    return np.asarray(real_images(fill_half_disc(disc, view.disc, view.box)), np.float32)
