"""What an image owes to itself in a map that it is part of, measured on images of noise alone."""

from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.align import Poses, Prior, Weighted, evaluate, owed_to_itself, start_poses
from cloudem.algorithms.bricks import complete
from cloudem.algorithms.mask import soft_circle, soft_sphere
from cloudem.algorithms.reconstruct import empty_sums, own_share, reference_volume, solve
from cloudem.kernels.fourier import fourier_images, half_disc, real_images, sample_half_disc
from cloudem.kernels.slices import insert, padded_box
from cloudem.model.poses import random_rotations, rotate
from cloudem.model.symmetry import operators

BOX, K_MAX, RADIUS, COUNT = 40, 12, 14.0, 400
PADDING = padded_box(BOX) / BOX
DISC = half_disc(BOX, K_MAX)


def scene(symmetry: str) -> tuple[Weighted, Poses, np.ndarray, np.ndarray]:
    """Images of noise, the poses they were inserted with, the reference made of them, and their share in it."""
    rng = np.random.default_rng(1)
    whole = fourier_images(rng.standard_normal((COUNT, BOX, BOX)).astype(np.float32))
    circle = soft_circle(BOX, RADIUS, 3.0)
    masked = fourier_images(real_images(whole) * circle)
    contrast = np.ones((COUNT, len(DISC.kx)), np.float32) / BOX  # 1 / σ, of unit noise in the transform
    data = [sample_half_disc(images, DISC) / BOX for images in (whole, masked)]
    rotations, shifts = random_rotations(COUNT, rng), rng.normal(0, 2, (COUNT, 2))
    group, sums = operators(symmetry), empty_sums(BOX, K_MAX)
    insert(
        sums.data, sums.weight, np.arange(COUNT, dtype=np.int32), rotations, shifts, np.ones(COUNT),
        data[0] * contrast, contrast**2, DISC.kx, DISC.ky, PADDING, BOX,
    )  # fmt: skip
    full, snr = complete(sums, group), np.full(BOX // 2 + 1, 3.0)
    mask = soft_sphere(BOX, RADIUS, 3.0)
    volume = reference_volume(solve(full, BOX, snr, K_MAX) * mask, K_MAX)
    weighted = Weighted((data[1] * contrast).astype(np.complex64), contrast**2, DISC)
    return weighted, start_poses(np.arange(COUNT), rotations, shifts), volume, own_share(full, snr, mask, circle, K_MAX)


def matches(data: Weighted, poses: Poses, volume: np.ndarray) -> np.ndarray:
    return evaluate(volume, PADDING, BOX, data, poses, Prior(np.inf))[0].numerator


@pytest.mark.parametrize("symmetry", ["C1", "C4"])
def test_noise_matches_the_map_it_is_in_by_what_it_owes_to_itself(symmetry: str) -> None:
    data, poses, volume, share = scene(symmetry)
    owed = owed_to_itself(data, poses, poses, np.ones(COUNT), share, BOX, RADIUS, operators(symmetry))
    found = matches(data, poses, volume)
    error = found.std() / np.sqrt(COUNT)
    assert owed.mean() > 10 * error  # enough to be seen
    assert found.mean() == pytest.approx(owed.mean(), rel=0.15)


def test_elsewhere_it_owes_itself_nothing() -> None:
    data, poses, volume, share = scene("C1")
    away = replace(poses, rotations=rotate(poses.rotations, np.tile([0.0, 0.7, 0.0], (COUNT, 1))))
    owed = owed_to_itself(data, away, poses, np.ones(COUNT), share, BOX, RADIUS, np.eye(3)[None])
    at_home = owed_to_itself(data, poses, poses, np.ones(COUNT), share, BOX, RADIUS, np.eye(3)[None])
    assert np.all(owed < 0.05 * at_home)
    assert abs(matches(data, away, volume).mean()) < 0.2 * at_home.mean()


def test_shells_that_hold_nothing_owe_nothing() -> None:
    _, _, _, share = scene("C1")
    assert np.all(share[: K_MAX + 1] > 0)
    assert not share[K_MAX + 1 :].any()


def test_weights_share_it_out() -> None:
    data, poses, _, share = scene("C1")
    away = replace(poses, rotations=rotate(poses.rotations, np.tile([0.0, 0.7, 0.0], (COUNT, 1))))
    order = np.argsort(np.r_[poses.images, away.images], kind="stable")
    both = Poses(*(np.concatenate([getattr(p, name) for p in (poses, away)])[order] for name in vars(poses)))
    group = np.eye(3)[None]
    alone = owed_to_itself(data, poses, poses, np.ones(COUNT), share, BOX, RADIUS, group)
    shared = owed_to_itself(data, poses, both, np.tile([0.75, 0.25], COUNT), share, BOX, RADIUS, group)
    np.testing.assert_allclose(shared, 0.75 * alone, rtol=0.02)
