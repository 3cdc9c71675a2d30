"""The most probable tracks of the particles of a micrograph, given how well each agrees with its reference where.

The prior is that of Bayesian polishing (Zivanov, Nakane & Scheres 2019, 10.1107/S205225251801463X). Velocities of all
particles in a frame are normal with the covariance ``K_ij = σ_V² exp(-|p_i - p_j| / σ_D)``; they are written in the
eigenvectors of K. Changes of velocity from frame to frame are normal and independent with σ_A. Where a particle starts
is nearly free. Here the prior is on what tracks do beside those of `cloudem.algorithms.movie_correction`, where the
search begins: the motion of the whole and a field, of which the micrograph knows more than its particles do.

In the basis of the eigenvectors, frames of one of them depend on no other's, with the precision
``1 + λ_b / σ_A² Dᵀ D`` (D: differences of neighbours). Unknowns are taken in units in which the prior is a unit normal,
so that a few dozen steps of L-BFGS are enough.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import spline_filter1d
from scipy.optimize import minimize

from cloudem.kernels.spline_patches import patch_values

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

OFFSET = 2.0
"""Å, standard deviation of where tracks start beside where the particles' poses say: as good as free."""

LEAST_SHARE = 1e-4
"""Of the variance of velocities, below which an eigenvector of K has no say."""

MOST_STEPS, EXACT = 300, 1e-6
"""Steps of the search at most, and the change of the probability, as a share, at which it ends."""


class MotionPrior(NamedTuple):
    """How particles may move.

    Attributes
    ----------
    velocity, together, acceleration
        σ_V, Å per e/Å²; σ_D, Å; σ_A, Å per e/Å²: the defaults are those of RELION.
    """

    velocity: float = 0.5
    together: float = 5000.0
    acceleration: float = 2.0


class TrackBasis(NamedTuple):
    """What turns unit normal unknowns into tracks.

    Attributes
    ----------
    vectors
        Eigenvectors of K times the root of their eigenvalue, ``(n, b)``.
    roots
        ``R`` with ``R Rᵀ`` the covariance of velocities over the frames, ``(b, frames - 1, frames - 1)``.
    """

    vectors: Float64
    roots: Float64

    def tracks(self, unknowns: Float64, offsets: Float64) -> Float64:
        """Return tracks, Å, ``(n, frames, 2)``, of unknowns ``(b, frames - 1, 2)`` and offsets ``(n, 2)``."""
        steps = np.matmul(self.roots, unknowns)
        moved = (self.vectors @ steps.reshape(len(steps), -1)).reshape(len(offsets), -1, 2)
        found = np.zeros((len(offsets), moved.shape[1] + 1, 2))
        np.cumsum(moved, axis=1, out=found[:, 1:])
        return found + OFFSET * offsets[:, None]

    def slopes(self, by_track: Float64) -> tuple[Float64, Float64]:
        """Return slopes by unknowns and by offsets, of slopes by tracks: the adjoint of `tracks`."""
        later = np.cumsum(by_track[:, :0:-1], axis=1)[:, ::-1]
        by_step = (self.vectors.T @ later.reshape(len(later), -1)).reshape(self.vectors.shape[1], -1, 2)
        return np.matmul(self.roots.transpose(0, 2, 1), by_step), OFFSET * by_track.sum(axis=1)


def track_basis(places: Float64, doses: Float64, prior: MotionPrior) -> TrackBasis:
    """Return the basis of the tracks of particles.

    Parameters
    ----------
    places
        Å, ``(n, 2)``.
    doses
        e/Å² from each frame to the next, ``(frames - 1,)``.
    prior
        How they may move.
    """
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    values, vectors = np.linalg.eigh(prior.velocity**2 * np.exp(-distance / prior.together))
    kept = values > LEAST_SHARE * prior.velocity**2
    values, vectors = values[kept][::-1], vectors[:, kept][:, ::-1]
    differences = np.diff(np.eye(len(doses)), axis=0)
    coupling = differences.T @ differences / prior.acceleration**2
    precision = np.eye(len(doses)) + values[:, None, None] * coupling
    roots = np.linalg.cholesky(np.linalg.inv(precision))
    return TrackBasis(np.ascontiguousarray(vectors * np.sqrt(values)), doses[:, None] * roots)


class FoundTracks(NamedTuple):
    """Most probable tracks.

    Attributes
    ----------
    moved
        Å, ``(n, frames, 2)``: displacements beside where the search began.
    gain
        By how much the logarithm of the probability is greater there than where the search began.
    steps
        Of the search.
    """

    moved: Float64
    gain: float
    steps: int


def probable_tracks(patches: Float32, spacing: float, basis: TrackBasis) -> FoundTracks:
    """Return the most probable tracks.

    Parameters
    ----------
    patches
        Log-likelihood of each particle in each frame, displaced by so much: ``(n, frames, s, s)`` [y, x], s odd, the
        middle for none. Overwritten.
    spacing
        Of the patches, Å.
    basis
        Of the prior.
    """
    count, frames, side, _ = patches.shape
    flat = patches.reshape(-1, side, side)
    for axis in (1, 2):
        flat = spline_filter1d(flat, 3, axis=axis, output=np.float32, mode="mirror")
    middle = side // 2
    modes = basis.vectors.shape[1]
    inner = modes * (frames - 1) * 2

    def cost(unknowns: Float64) -> tuple[float, Float64]:
        steps, offsets = unknowns[:inner].reshape(modes, -1, 2), unknowns[inner:].reshape(count, 2)
        track = basis.tracks(steps, offsets)
        found = patch_values(flat, track.reshape(-1, 2) / spacing + middle)
        by_step, by_offset = basis.slopes(found[:, 1:].reshape(track.shape) / spacing)
        gradient = unknowns - np.concatenate([by_step.ravel(), by_offset.ravel()])
        return 0.5 * float(unknowns @ unknowns) - float(found[:, 0].sum()), gradient

    start = np.zeros(inner + 2 * count)
    found = minimize(
        cost, start, jac=True, method="L-BFGS-B", options={"maxiter": MOST_STEPS, "ftol": EXACT, "maxcor": 20}
    )
    best = basis.tracks(found.x[:inner].reshape(modes, -1, 2), found.x[inner:].reshape(count, 2))
    return FoundTracks(best, cost(start)[0] - float(found.fun), int(found.nit))
