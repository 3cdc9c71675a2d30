"""Images are shared out between references in all poses, and make new references that are theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.classes import class_images, noise_ratio
from cloudem.algorithms.marginal import (
    NEVER,
    SHIFT_STEP,
    References,
    SoftSums,
    assign,
    near_choices,
    no_sums,
    polar_view,
    rings_of,
    shift_choices,
    solve_references,
)
from cloudem.algorithms.search import shift_grid
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import fill_half_disc, fourier_images, half_disc, real_images, sample_half_disc
from cloudem.kernels.polar import Harmonics, decode, harmonics
from cloudem.model.poses import random_rotations
from tests.algorithms.test_expectation import BOX, NOISE, PHANTOM, PIXEL, RADIUS, model_of, simulate

K_MAX = 10
VIEW = polar_view(BOX, PIXEL, RADIUS, K_MAX)
GRID = VIEW.grid
SIGMA2 = model_of().sigma2


def slices_of(rotations: np.ndarray) -> Harmonics:
    """Return exact slices of the phantom as references, (q, 2, K, d)."""
    samples = PHANTOM.slices(rotations, GRID.kx, GRID.ky, BOX).reshape(len(rotations), K_MAX, -1)
    return harmonics(*(np.ascontiguousarray(part, np.float32) for part in (samples.real, samples.imag)), GRID)


def shared_out(count: int, seed: int, references: References, noise: float = NOISE, **options: bool):
    batch, rotations, shifts = simulate(count, seed, noise)
    rings = rings_of(batch, SIGMA2, VIEW)
    tried = shift_grid(2.5, 0.8)
    every = np.broadcast_to(tried, (count, *tried.shape)).copy()
    prior = np.full((count, len(tried)), -np.log(len(tried)), np.float32)
    found, sums = assign(references, rings, every, prior, VIEW, no_sums(GRID, len(references.log_prior)), **options)
    return batch, rotations, shifts, found, sums, tried


def even(count: int) -> np.ndarray:
    return np.full(count, -np.log(count))


def test_references_of_nothing_are_no_evidence() -> None:
    slices = slices_of(random_rotations(4, np.random.default_rng(0)))
    nothing = References(Harmonics(*(0 * part for part in slices)), even(4))
    *_, found, sums, _ = shared_out(6, 1, nothing)
    np.testing.assert_allclose(found.evidence, 0, atol=1e-4)
    np.testing.assert_allclose(found.mass, 1 / 8, atol=1e-4)
    assert sums.images == pytest.approx(6)
    assert sums.mass.sum() == pytest.approx(6, rel=1e-4)


def test_noise_that_is_known_is_found_to_be_right() -> None:
    nothing = References(Harmonics(*(0 * part for part in slices_of(np.eye(3)[None]))), even(1))
    batch, *_ = simulate(200, 2, noise=0.0)
    images = np.random.default_rng(3).standard_normal(batch.images.shape).astype(np.float32)
    images *= (1 + batch.optics_group[:, None, None]).astype(np.float32)
    rings = rings_of(replace(batch, images=images), SIGMA2, VIEW)
    zero = np.zeros((200, 1, 2))
    _, sums = assign(nothing, rings, zero, np.zeros((200, 1), np.float32), VIEW, no_sums(GRID, 1))
    np.testing.assert_allclose(noise_ratio(sums, VIEW), 1, atol=0.06)


def test_sums_of_two_batches_are_those_of_one() -> None:
    references = References(slices_of(random_rotations(3, np.random.default_rng(1))), even(3))
    batch, *_ = simulate(6, 4)
    rings = rings_of(batch, SIGMA2, VIEW)
    tried = np.zeros((6, 1, 2))
    prior = np.zeros((6, 1), np.float32)
    _, whole = assign(references, rings, tried, prior, VIEW, no_sums(GRID, 3))
    total: SoftSums = no_sums(GRID, 3)
    for rows in (slice(0, 2), slice(2, 6)):
        part = rings._replace(**{name: getattr(rings, name)[rows] for name in rings._fields})
        _, total = assign(references, part, tried[rows], prior[rows], VIEW, total)
    for name, value in vars(whole).items():
        np.testing.assert_allclose(
            getattr(total, name), value, rtol=1e-4, atol=1e-3 * np.abs(value).max(), err_msg=name
        )


def test_images_find_their_view_and_its_mirror_image() -> None:
    rng = np.random.default_rng(5)
    _, rotations, shifts = simulate(12, 6, noise=0.3)
    opposite = np.diag([1.0, -1.0, -1.0]) @ rotations[:6]
    references = References(slices_of(np.concatenate([opposite, random_rotations(6, rng)])), even(12))
    *_, found, _, tried = shared_out(12, 6, references, noise=0.3, best=True)
    chosen = found.mass.reshape(12, -1).argmax(axis=1)
    side, number = chosen // 12, chosen % 12
    np.testing.assert_array_equal(number[:6], np.arange(6))
    assert np.all(side[:6] == 1)  # the images show the other side
    shift, _ = decode(found.code[np.arange(12), side, number], GRID.angles)
    assert np.median(np.hypot(*(tried[shift[:6]] - shifts[:6]).T)) < 0.8
    assert found.evidence[:6].min() > 20


def test_without_mirror_images_only_one_side_is_looked_at() -> None:
    references = References(slices_of(random_rotations(3, np.random.default_rng(1))), even(3))
    *_, found, _, _ = shared_out(4, 7, references, mirrored=False)
    assert np.all(found.mass[:, 1] == 0)
    np.testing.assert_allclose(found.mass[:, 0].sum(axis=1), 1, rtol=1e-5)


def test_sums_make_the_references_that_images_were_made_of() -> None:
    """Averages of images without noise are the views that these show."""
    truth = References(slices_of(random_rotations(3, np.random.default_rng(8))), even(3))
    pictures = class_images(truth.slices, VIEW)
    batch, *_ = simulate(60, 9, noise=0.0)
    owner = np.arange(60) % 3
    disc = half_disc(BOX, BOX // 2 - 1)
    values = ctf_values(disc.kx, disc.ky, batch.terms, 1 / (BOX * PIXEL))
    seen = sample_half_disc(fourier_images(pictures[owner]), disc) * values
    images = real_images(fill_half_disc(seen.astype(np.complex64), disc, BOX))
    rings = rings_of(replace(batch, images=images), SIGMA2, VIEW)
    zero, none = np.zeros((60, 1, 2)), np.zeros((60, 1), np.float32)
    _, sums = assign(truth, rings, zero, none, VIEW, no_sums(GRID, 3))
    np.testing.assert_allclose(sums.mass, 20, rtol=0.05)
    found = class_images(solve_references(sums, np.full(K_MAX, 1e9)), VIEW)
    for one, other in zip(found, pictures, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.97


def test_class_images_are_those_of_their_rings() -> None:
    rotations = random_rotations(3, np.random.default_rng(10))
    found = class_images(slices_of(rotations), VIEW)
    disc = VIEW.disc
    exact = PHANTOM.slices(rotations, disc.kx, disc.ky, BOX)
    kept = (disc.shell >= 1) & (disc.shell <= K_MAX - 2)
    mine = sample_half_disc(fourier_images(found.astype(float)), disc)
    for one, other in zip(mine[:, kept], exact[:, kept], strict=True):
        product = np.vdot(one, other).real / np.linalg.norm(one) / np.linalg.norm(other)
        assert product > 0.99


def test_shifts_near_a_known_one_are_those_of_the_whole_grid_around_it() -> None:
    shifts, prior = shift_choices(2.5, 3.0, 1)
    step = SHIFT_STEP * 3.0
    known = np.array([[0.1, -0.2], shifts[0][-1]])
    near, logs = near_choices(2.5, 3.0, known, 1.0)
    assert near.shape == (2, 7, 2)
    assert np.count_nonzero(logs[0] > NEVER) == 7
    assert 3 <= np.count_nonzero(logs[1] > NEVER) < 7  # at the rim
    for one, log, centre in zip(near, logs, known, strict=True):
        real = one[log > NEVER]
        assert np.all(np.linalg.norm(real - centre, axis=1) < 1.6 * step)
        index = [int(np.argmin(np.linalg.norm(shifts[0] - each, axis=1))) for each in real]
        assert len(set(index)) == len(index)
        np.testing.assert_allclose(prior[0][index], log[log > NEVER])


def test_all_shifts_near_are_all_shifts() -> None:
    references = References(slices_of(random_rotations(3, np.random.default_rng(1))), even(3))
    batch, _, shifts = simulate(4, 8)
    rings = rings_of(batch, SIGMA2, VIEW)
    finest = BOX / K_MAX
    whole, _ = assign(references, rings, *shift_choices(2.0, finest, 4), VIEW, no_sums(GRID, 3))
    near, _ = assign(references, rings, *near_choices(2.0, finest, shifts, 9.0), VIEW, no_sums(GRID, 3))
    np.testing.assert_allclose(near.evidence, whole.evidence, rtol=1e-5)
    np.testing.assert_allclose(near.mass, whole.mass, atol=1e-5)
