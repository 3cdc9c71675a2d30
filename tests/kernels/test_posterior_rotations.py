"""Scores of all poses become probabilities, and go back through the products by which they came about."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.kernels.polar import (
    Harmonics,
    Workspace,
    polar_grid,
    posterior_rotations,
    rotation_scores,
    rotation_weights,
)
from tests.conftest import Twin

GRID = polar_grid(5, 9.0, 32)
IMAGES, SHIFTS, DIRECTIONS = 3, 4, 6


def random_harmonics(rows: int, rng: np.random.Generator) -> Harmonics:
    parts = [rng.standard_normal((len(q), 2, GRID.k_max, rows)).astype(np.float32) for q in (GRID.even, GRID.odd)]
    parts[0][0, 1] = 0  # the mean of a ring's real part is real
    return Harmonics(*parts)


def case(seed: int) -> tuple[Harmonics, Harmonics, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    prior = rng.standard_normal(IMAGES * SHIFTS).astype(np.float32)
    offset = rng.standard_normal((IMAGES, 2, DIRECTIONS)).astype(np.float32)
    return random_harmonics(IMAGES * SHIFTS, rng), random_harmonics(DIRECTIONS, rng), prior, offset


def scores(image: Harmonics, slices: Harmonics, prior: np.ndarray) -> list[np.ndarray]:
    return [part.copy() for part in rotation_scores(image, slices, GRID, prior, Workspace())]


def direct(image: Harmonics, slices: Harmonics, prior: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Return the score of every pose from the definition, (rows, 2, d, m)."""
    psi = 2 * np.pi * np.arange(GRID.angles) / GRID.angles
    total = np.zeros((IMAGES * SHIFTS, 2, DIRECTIONS, GRID.angles))
    for y, s, q in zip(image, slices, (GRID.even, GRID.odd), strict=True):
        image_q, slice_q = (part[:, 0].astype(float) + 1j * part[:, 1] for part in (y, s))
        for side in (0, 1):
            seen = slice_q if side == 0 else (-1.0) ** q[:, None, None] * slice_q.conj()
            turned = np.exp(1j * q[:, None] * psi)
            total[:, side] += np.einsum("qkr,qkd,qj->rdj", image_q, seen.conj(), turned.conj()).real
    return total + prior[:, None, None, None] + offset.repeat(SHIFTS, axis=0)[..., None]


@pytest.fixture(params=[0, 1])
def drawn(request: pytest.FixtureRequest) -> tuple[Harmonics, Harmonics, np.ndarray, np.ndarray]:
    return case(request.param)


def test_evidence_is_the_sum_over_all_poses(drawn, twin: Twin) -> None:
    image, slices, prior, offset = drawn
    exact = direct(*drawn).reshape(IMAGES, SHIFTS, 2, DIRECTIONS, -1)
    evidence, mass = twin(posterior_rotations)(*scores(image, slices, prior), offset, SHIFTS)
    total = np.exp(exact).sum(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(evidence, np.log(total), rtol=1e-4)
    np.testing.assert_allclose(mass, np.exp(exact).sum(axis=(1, 4)) / total[:, None, None], atol=1e-4)


def test_weights_are_the_adjoint_of_scores(drawn, twin: Twin) -> None:
    """The gradient of the evidence in the slices is the sum of images over all poses by their probability."""
    image, slices, prior, offset = drawn
    weights = scores(image, slices, prior)
    twin(posterior_rotations)(*weights, offset, SHIFTS)
    back = rotation_weights(image, *weights, GRID, Workspace())
    change = random_harmonics(DIRECTIONS, np.random.default_rng(9))

    def evidence(step: float) -> float:
        moved = Harmonics(*(s + np.float32(step) * c for s, c in zip(slices, change, strict=True)))
        exact = direct(image, moved, prior, offset).reshape(IMAGES, -1)
        return float(np.sum(np.logaddexp.reduce(exact, axis=1)))

    slope = (evidence(0.01) - evidence(-0.01)) / 0.02
    found = sum(float(np.sum(b.astype(float) * c)) for b, c in zip(back, change, strict=True))
    assert found == pytest.approx(slope, rel=3e-3)


def test_equal_scores_are_equal_probabilities(twin: Twin) -> None:
    _, slices, prior, offset = case(2)
    nothing = Harmonics(*(np.zeros((*s.shape[:3], IMAGES * SHIFTS), np.float32) for s in slices))
    evidence, mass = twin(posterior_rotations)(*scores(nothing, slices, 0 * prior), 0 * offset, SHIFTS)
    np.testing.assert_allclose(evidence, np.log(2 * DIRECTIONS * SHIFTS * GRID.angles), rtol=1e-6)
    np.testing.assert_allclose(mass, 1 / (2 * DIRECTIONS), rtol=1e-5)


def test_a_pose_far_above_all_others_takes_all(twin: Twin) -> None:
    image, slices, prior, offset = case(3)
    strong = Harmonics(*(30 * y for y in image))
    exact = direct(strong, slices, prior, offset).reshape(IMAGES, -1)
    evidence, mass = twin(posterior_rotations)(*scores(strong, slices, prior), offset, SHIFTS)
    np.testing.assert_allclose(evidence, exact.max(axis=1), rtol=1e-3)
    np.testing.assert_allclose(mass.sum(axis=(1, 2)), 1, rtol=1e-5)
