"""What errors of poses owe to the density of views, on poses whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.align import Poses, start_poses
from cloudem.algorithms.view_density import FEWEST_VIEWS, FURTHEST, density_gradient, drawn_in, grid
from cloudem.model.poses import angle_between, random_rotations, rotate
from cloudem.model.symmetry import operators

ONE = np.eye(3)[None]


def tipped(count: int, spread_deg: float, seed: int) -> np.ndarray:
    """Rotations whose views are spread about the z axis as a Gaussian of that deviation along x and along y."""
    rng = np.random.default_rng(seed)
    turn = np.zeros((count, 3))
    turn[:, 2] = rng.uniform(0, 2 * np.pi, count)
    upright = rotate(np.tile(np.eye(3), (count, 1, 1)), turn)
    turn[:, :2], turn[:, 2] = np.deg2rad(spread_deg) * rng.standard_normal((count, 2)), 0
    return rotate(upright, turn)


def with_errors(rotations: np.ndarray, error_deg: float, seed: int) -> Poses:
    """Poses that are off by a Gaussian error, and know its covariance."""
    sigma, rng = np.deg2rad(error_deg), np.random.default_rng(seed)
    off = rotate(rotations, sigma * rng.standard_normal((len(rotations), 3)))
    precision = np.tile(np.diag([1 / sigma**2] * 3 + [1.0, 1.0]), (len(off), 1, 1))
    return replace(start_poses(np.arange(len(off)), off, np.zeros((len(off), 2))), precision=precision)


def stretch(found: np.ndarray, true: np.ndarray) -> float:
    """Regression of the true views, as offsets from the axis, on those found."""
    a, b = true[:, 2, :2], found[:, 2, :2]
    return float(np.sum(a * b) / np.sum(b * b))


def test_gradient_of_a_gaussian() -> None:
    views = tipped(40_000, 8.0, 1)[:, 2]
    directions, found = grid(), density_gradient(views, ONE)
    near = (directions[:, 2] > 0) & (np.hypot(directions[:, 0], directions[:, 1]) < np.sin(np.deg2rad(15)))
    expected = -directions[near, :2] / np.deg2rad(8.0) ** 2
    slope = np.sum(found[near, :2] * expected) / np.sum(expected**2)
    assert 0.85 < slope < 1.02  # the disc flattens it a little
    np.testing.assert_allclose(np.sum(found * directions, axis=1), 0, atol=2e-3 * np.abs(found).max())


@pytest.mark.parametrize("error_deg", [2.0, 4.0])
def test_views_about_an_axis_are_drawn_in_to_where_they_are(error_deg: float) -> None:
    true = tipped(4000, 8.0, 2)
    poses = with_errors(true, error_deg, 3)
    drawn = drawn_in(poses, density_gradient(poses.rotations[:, 2], ONE))
    amiss = 1 - stretch(poses.rotations, true)
    assert amiss > 0.8 * error_deg**2 / (64 + error_deg**2)
    assert abs(1 - stretch(drawn.rotations, true)) < max(0.02, amiss / 3)
    before, after = (np.mean(angle_between(p.rotations, true) ** 2) for p in (poses, drawn))
    assert after < before


def test_even_views_stay_where_they_are() -> None:
    poses = with_errors(random_rotations(3000, np.random.default_rng(4)), 1.5, 5)
    drawn = drawn_in(poses, density_gradient(poses.rotations[:, 2], ONE))
    moved = np.degrees(angle_between(drawn.rotations, poses.rotations))
    assert np.sqrt(np.mean(moved**2)) < 0.2  # of an error of 1.5 degrees along each axis


def test_a_pose_is_drawn_in_by_a_small_angle_only() -> None:
    poses = with_errors(tipped(500, 5.0, 6), 30.0, 7)
    drawn = drawn_in(poses, density_gradient(tipped(500, 5.0, 8)[:, 2], ONE))
    assert angle_between(drawn.rotations, poses.rotations).max() < FURTHEST + 1e-6


@pytest.mark.parametrize("symmetry", ["C4", "D2", "O"])
def test_mates_have_the_same_density(symmetry: str) -> None:
    group = operators(symmetry)
    rotations = tipped(2000, 8.0, 9)
    gradient = density_gradient(rotations[:, 2], group)
    chosen = np.random.default_rng(10).integers(0, len(group), len(rotations))
    mates = np.einsum("cab,cbd->cad", rotations, group[chosen])
    np.testing.assert_allclose(density_gradient(mates[:, 2], group), gradient, atol=1e-2 * np.abs(gradient).max())


def test_few_views_say_nothing() -> None:
    assert not density_gradient(tipped(FEWEST_VIEWS - 1, 8.0, 11)[:, 2], ONE).any()
