"""Tracks of particles: the prior is what it says; where likelihoods are parabolas, the best tracks are known."""

from __future__ import annotations

import numpy as np

from cloudem.algorithms.particle_tracks import OFFSET, MotionPrior, probable_tracks, track_basis

RNG = np.random.default_rng(0)
PLACES = RNG.uniform(0, 3000, (12, 2))
DOSES = np.array([1.0, 1.0, 2.0, 1.0, 1.0])
PRIOR = MotionPrior(0.6, 1500.0, 0.4)


def test_velocities_have_the_covariance_of_the_prior() -> None:
    """Without a say of accelerations it is, of two particles, σ_V² exp(-d / σ_D) times the doses between the frames."""
    basis = track_basis(PLACES, DOSES, PRIOR._replace(acceleration=1e6))
    steps = np.einsum("pb,bfg->pfbg", basis.vectors, basis.roots).reshape(12, 5, -1)
    covariance = np.einsum("pfu,qgu->pfqg", steps, steps)
    distance = np.hypot(*(PLACES[:, None] - PLACES[None]).transpose(2, 0, 1))
    alike = PRIOR.velocity**2 * np.exp(-distance / PRIOR.together)
    expected = np.einsum("pq,fg->pfqg", alike, np.diag(DOSES**2))
    np.testing.assert_allclose(covariance, expected, atol=1e-8)


def test_changes_of_velocity_are_held_back() -> None:
    loose, tight = (track_basis(PLACES, DOSES, PRIOR._replace(acceleration=value)) for value in (1e6, 1e-4))
    for basis, least in ((loose, 0.0), (tight, 0.999)):
        steps = np.einsum("pb,bfg->pfbg", basis.vectors, basis.roots).reshape(12, 5, -1)[3] / DOSES[:, None]
        covariance = steps @ steps.T
        correlation = covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        assert correlation.min() >= least - 1e-9


def test_slopes_are_the_adjoint_of_tracks() -> None:
    basis = track_basis(PLACES, DOSES, PRIOR)
    unknowns, offsets = RNG.normal(size=(basis.vectors.shape[1], 5, 2)), RNG.normal(size=(12, 2))
    tracks = basis.tracks(unknowns, offsets)
    weights = RNG.normal(size=tracks.shape)
    by_unknowns, by_offsets = basis.slopes(weights)
    np.testing.assert_allclose((tracks * weights).sum(), (unknowns * by_unknowns).sum() + (offsets * by_offsets).sum())


def test_of_parabolas_the_most_probable_tracks_are_those_of_linear_algebra() -> None:
    basis, spacing, side = track_basis(PLACES, DOSES, PRIOR), 0.5, 31
    precision = RNG.uniform(0.5, 3.0, (12, 6))
    measured = RNG.normal(size=(12, 6, 2))
    at = (np.arange(side) - side // 2) * spacing
    away = (at[None, None, None, :] - measured[..., 0, None, None]) ** 2
    away = away + (at[None, None, :, None] - measured[..., 1, None, None]) ** 2
    patches = (-0.5 * precision[..., None, None] * away).astype(np.float32)
    found = probable_tracks(patches, spacing, basis)
    modes = basis.vectors.shape[1]
    unit = np.eye(modes * 5).reshape(-1, modes, 5, 1)
    columns = [basis.tracks(np.repeat(one, 2, axis=2), np.zeros((12, 2)))[..., 0].ravel() for one in unit]
    columns += [np.repeat(OFFSET * one, 6) for one in np.eye(12)]
    design = np.stack(columns, axis=1)
    weighted = design.T * precision.ravel()
    normal = weighted @ design + np.eye(design.shape[1])
    for axis in (0, 1):
        expected = design @ np.linalg.solve(normal, weighted @ measured[..., axis].ravel())
        np.testing.assert_allclose(found.moved[..., axis].ravel(), expected, atol=0.01)
    assert found.gain > 0
