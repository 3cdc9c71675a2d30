"""Where classes begin: rows that correlate with others, whatever their own length, and mixtures of coordinates."""

from __future__ import annotations

import numpy as np

from cloudem.algorithms.align import Weighted, start_poses
from cloudem.algorithms.leading import (
    LinearModel,
    fit_mixture,
    inside_points,
    lay_back,
    leading_coordinates,
    whitening,
)
from cloudem.algorithms.mask import soft_sphere
from cloudem.kernels.fourier import half_disc
from cloudem.model.poses import random_rotations

ONE = np.eye(3)[None]
BOX, LIMIT = 48, 10


def test_images_are_ordered_by_what_they_share_with_others() -> None:
    rng = np.random.default_rng(0)
    state = np.where(rng.random(400) < 0.5, 1.0, -1.0)
    direction = rng.standard_normal(900) / 30
    length = np.exp(rng.normal(0, 0.7, 400))  # some images are much noisier than others
    rows = (length[:, None] * rng.standard_normal((400, 900)) + 6 * np.outer(state, direction)).astype(np.float32)
    found = leading_coordinates(rows.copy(), 2, 0)
    assert found.shape == (400, 2)
    np.testing.assert_allclose(found.var(axis=0), 1, atol=0.05)
    assert abs(np.corrcoef(found[:, 0], state)[0, 1]) > 0.8
    # with each row's product with itself the noisiest image would lead
    _, vectors = np.linalg.eigh(rows.astype(np.float64) @ rows.T)
    assert abs(np.corrcoef(vectors[:, -1], state)[0, 1]) < 0.3
    np.testing.assert_array_equal(found, leading_coordinates(rows.copy(), 2, 0))


def test_a_point_is_laid_back_where_it_is() -> None:
    rng = np.random.default_rng(1)
    outline = soft_sphere(BOX, 16.0, 2.0)
    points = inside_points(outline, LIMIT)
    assert np.all(np.linalg.norm(points, axis=1) < 18)
    at = points[len(points) // 3]
    rotations, shifts = random_rotations(200, rng), rng.normal(0, 2.0, (200, 2))
    disc = half_disc(64, LIMIT)
    disc = disc.take(np.flatnonzero(disc.shell >= 1))
    seen = np.einsum("bij,j->bi", rotations[:, :2], at) + shifts
    images = np.exp(-2j * np.pi / BOX * (seen[:, :1] * disc.kx + seen[:, 1:] * disc.ky)).astype(np.complex64)
    even = np.ones(images.shape, np.float32)
    white = whitening(even, disc.shell, LIMIT)
    np.testing.assert_allclose(white, np.sqrt(np.arange(LIMIT + 1)), rtol=1e-5)
    poses = start_poses(np.arange(200), rotations, shifts)
    rows = lay_back(Weighted(images, even, disc), poses, points, white, BOX, ONE)
    assert rows.shape == (200, len(points))
    assert rows.mean(axis=0).argmax() == len(points) // 3


def test_a_mixture_is_found_again() -> None:
    rng = np.random.default_rng(2)
    centres = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
    state = rng.choice(3, 3000, p=[0.6, 0.3, 0.1])
    strength = rng.uniform(0.5, 2.0, 3000)  # images know of their coordinates more or less
    quadratic = strength[:, None, None] * np.eye(2)
    linear = strength[:, None] * centres[state] + np.sqrt(strength)[:, None] * rng.standard_normal((3000, 2))
    found = fit_mixture(LinearModel(linear, quadratic), 3, 0)
    np.testing.assert_allclose(found.share, [0.6, 0.3, 0.1], atol=0.03)
    np.testing.assert_allclose(found.centres, centres, atol=0.2)
    assert np.mean(found.probability.argmax(axis=1) == state) > 0.85
