"""How images differ from their consensus along its leading directions: where classes begin.

The residual of each image is laid back into the particle, at points inside its outline: one row for each image. Two
images that show the same state have rows that correlate, by what they share of the particle. So the leading
eigenvectors of the products of all pairs of rows, each image with the *others* only, order the images along the largest
differences. The product of a row with itself, which is mostly noise, is left out: with it, the eigenvectors would be
those of the noisiest images. This is the linear part of a classification; nothing in it can be trapped.

The residuals are made white first: shell k of N images is seen N / k times in a volume, and its weight is ``C² / σ²``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, eigsh

from cloudem.algorithms.align import Poses, Weighted
from cloudem.kernels.fourier import fill_half_disc, real_images
from cloudem.kernels.slices import fast_even, magnified_axes

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

INSIDE = 0.3
"""Points where the outline is less are left out."""

FINER = 4
"""Pixels of the residual images for each shell: twice what they need, so that they can be interpolated in lines."""

ROWS_AT_ONCE = 500
"""Rows that are multiplied at a time, in double precision: eigenvectors then have the same digits on every machine."""

DIGITS = 6
"""To which coordinates are rounded."""

STARTS, STEPS = 20, 60
"""Random starts of a mixture, and steps of each."""

HOT, COOLING = 8.0, 0.7
"""Temperature of the first step, and by how much it falls with each until it is 1."""


def inside_points(outline: Float32, limit: int) -> Float64:
    """Return points inside an outline, half a wavelength of the finest shell apart, (d, 3): x, y, z in voxels."""
    box = len(outline)
    step = box / (2 * limit)
    reach = np.floor(box / 2 / step)
    line = np.arange(-reach, reach + 1) * step
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    points = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    values = ndimage.map_coordinates(outline, (points[:, ::-1] + box // 2).T, order=1)
    return np.asarray(points[values > INSIDE], np.float64)


def whitening(denominators: Float32, shell: NDArray[np.int32], limit: int) -> Float64:
    """Return the factor on each shell, (limit + 1,), that makes back-projected residuals white noise."""
    count = np.maximum(np.bincount(shell, minlength=limit + 1), 1)
    mean = np.bincount(shell, denominators.mean(axis=0, dtype=np.float64), limit + 1) / count
    return np.asarray(np.sqrt(np.arange(limit + 1) / np.maximum(mean, 1e-30)))


def lay_back(residual: Weighted, poses: Poses, points: Float64, white: Float64, box: int, group: Float64) -> Float32:
    """Return the back-projections of residual images at points, (b, d).

    Parameters
    ----------
    residual
        Up to the shell that the points are for, without shell 0.
    poses
        One for each image; shifts in voxels of ``box``.
    points
        (d, 3), voxels.
    white
        Factor on each shell (`whitening`).
    box
        Voxels of the grid.
    group
        Symmetry operators: residuals are laid back in all mates.
    """
    disc, limit = residual.disc, int(residual.disc.shell.max())
    size = fast_even(FINER * limit)
    turned = 2j * np.pi / box * (poses.shifts[:, :1] * disc.kx + poses.shifts[:, 1:] * disc.ky)
    values = residual.numerators * white[disc.shell].astype(np.float32) * np.exp(turned.astype(np.complex64))
    images = real_images(fill_half_disc(values, disc, size))
    rows = np.zeros((len(images), len(points)), np.float32)
    axes = poses.rotations
    if residual.magnification is not None:
        axes = magnified_axes(axes, residual.magnification)
    for mate in group:
        for row, image, rotation in zip(rows, images, axes, strict=True):
            x, y = (points @ (rotation @ mate)[:2].T * (size / box) + size // 2).T
            row += ndimage.map_coordinates(image, (y, x), order=1, mode="nearest")
    return rows


def leading_coordinates(rows: Float32, count: int, seed: int) -> Float64:
    """Return the leading eigenvectors of the products of rows with all others, (b, count), of variance 1.

    Parameters
    ----------
    rows
        (b, d); changed in place.
    count
        How many.
    seed
        Of the vector that the iteration begins with.
    """
    rows -= rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    images = len(rows)
    blocks = [slice(first, min(first + ROWS_AT_ONCE, images)) for first in range(0, images, ROWS_AT_ONCE)]
    own = np.concatenate([np.sum(rows[block].astype(np.float64) ** 2, axis=1) for block in blocks])

    def products(vector: Float64) -> Float64:
        vector, total = np.ravel(vector), np.zeros(rows.shape[1], np.float64)
        for block in blocks:
            total += vector[block] @ rows[block].astype(np.float64)
        found = [rows[block].astype(np.float64) @ total for block in blocks]
        return np.asarray(np.concatenate(found) - own * vector)

    operator = LinearOperator((images, images), matvec=products, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(images)
    values, vectors = eigsh(operator, k=count, which="LA", v0=start, tol=1e-7)
    vectors = vectors[:, np.argsort(-values)] * np.sqrt(images)
    signs = np.sign(np.sum(vectors**3, axis=0))  # an eigenvector has none of its own
    return np.asarray(np.round(vectors * np.where(signs == 0, 1, signs), DIGITS), np.float64)


class LinearModel(NamedTuple):
    """What images say of coordinates z along given differences: log-likelihood ``b z - z A z / 2``.

    Attributes
    ----------
    linear, quadratic
        b (n, q), and A (n, q, q).
    """

    linear: Float64
    quadratic: Float64


class Mixture(NamedTuple):
    """A mixture of points in the space of coordinates: centres (c, q), shares (c,), evidence per image, posterior."""

    centres: Float64
    share: Float64
    evidence: float
    probability: Float64


def fit_mixture(model: LinearModel, classes: int, seed: int) -> Mixture:
    """Fit a mixture by expectation maximisation, from several random starts, each from hot to cold; return the best."""
    rng, count = np.random.default_rng(seed), len(model.linear)
    q = model.linear.shape[1]
    ridge = np.eye(q) * max(0.1 * float(np.trace(model.quadratic.mean(axis=0))) / q, 1e-30)
    single = np.linalg.solve(model.quadratic + ridge, model.linear[..., None])[..., 0]
    found = [_climb(model, single[rng.choice(count, classes, replace=False)], ridge) for _ in range(STARTS)]
    best = max(found, key=lambda each: each.evidence)
    order = np.argsort(-best.share, kind="stable")
    return Mixture(best.centres[order], best.share[order], best.evidence, best.probability[:, order])


def _climb(model: LinearModel, centres: Float64, ridge: Float64) -> Mixture:
    """Climb from the centres given."""
    classes = len(centres)
    share, evidence = np.full(classes, 1 / classes), 0.0
    probability = np.zeros((len(model.linear), classes))
    for step in range(STEPS):
        scores = np.einsum("iq,kq->ik", model.linear, centres)
        scores -= np.einsum("kq,iqp,kp->ik", centres, model.quadratic, centres, optimize=True) / 2
        scores = (scores + np.log(share)) / max(1.0, HOT * COOLING**step)
        most = scores.max(axis=1, keepdims=True)
        probability = np.exp(scores - most)
        total = probability.sum(axis=1, keepdims=True)
        evidence = float(np.mean(most + np.log(total)))
        probability /= total
        share = probability.mean(axis=0) + 1e-6
        share /= share.sum()
        precision = np.einsum("ik,iqp->kqp", probability, model.quadratic) + 1e-9 * ridge
        centres = np.linalg.solve(precision, np.einsum("ik,iq->kq", probability, model.linear)[..., None])[..., 0]
    return Mixture(centres, share, evidence, probability)
