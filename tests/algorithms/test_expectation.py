from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.align import Poses, Prior, start_poses
from cloudem.algorithms.batch import Batch, weigh
from cloudem.algorithms.expectation import NOISE_STRIDE, IterationPlan, Model, best_shifts, expect, join_poses, spectra
from cloudem.algorithms.mask import soft_circle
from cloudem.algorithms.noise import noise_variance, power_spectrum
from cloudem.algorithms.reconstruct import Sums, empty_sums, reference_volume
from cloudem.algorithms.search import search_grid
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fill_half_disc, fourier_images, half_disc, real_images
from cloudem.kernels.slices import padded_box
from cloudem.model.poses import angle_between, random_rotations, rotate
from cloudem.model.symmetry import operators
from tests.phantom import blobs

BOX, PIXEL, RADIUS = 32, 3.0, 12.0
K_SCORE, K_SEARCH, STEP = 12, 8, 0.25
PHANTOM = blobs(reach=8, sigma=(1.0, 1.5))
REFERENCE = reference_volume(PHANTOM.density(BOX), K_SCORE)
ONE = operators("C1")
NOISE = 1.0  # standard deviation of a pixel
PLAN = IterationPlan(
    box=BOX, pixel_size=PIXEL, radius=RADIUS, k_score=K_SCORE, k_insert=K_SCORE, k_search=K_SEARCH, step=STEP,
    shift_radius=2.0, shift_step=1.0, candidates=6, poses=4, first=False,
)  # fmt: skip


def make_batch(images: np.ndarray, terms: np.ndarray, scale: np.ndarray, group: np.ndarray) -> Batch:
    settled = np.zeros(len(images), bool)
    return Batch(images=images, terms=terms, scale=scale, optics_group=group, settled=settled, poses=None)


def simulate(count: int, seed: int, noise: float = NOISE) -> tuple[Batch, np.ndarray, np.ndarray]:
    """Return particles of two optics groups, the second twice as noisy, with their rotations and shifts in pixels."""
    rng = np.random.default_rng(seed)
    disc = half_disc(BOX, BOX // 2 - 1)
    rotations, shifts = random_rotations(count, rng), rng.normal(0, 0.7, (count, 2))
    u = rng.uniform(1e4, 2e4, count)
    terms = ctf_terms(
        voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, defocus_u=u, defocus_v=u, defocus_angle=0 * u
    )
    signal = PHANTOM.slices(rotations, disc.kx, disc.ky, BOX) * ctf_values(disc.kx, disc.ky, terms, 1 / (BOX * PIXEL))
    signal *= np.exp(-2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    images = real_images(fill_half_disc(signal.astype(np.complex64), disc, BOX))
    group = (np.arange(count) % 2).astype(np.int32)
    images += (noise * (1 + group)[:, None, None] * rng.standard_normal(images.shape)).astype(np.float32)
    return make_batch(images, terms, np.ones(count), group), rotations, shifts


def model_of(noise: float = NOISE) -> Model:
    grid = search_grid(REFERENCE, padded_box(BOX) / BOX, BOX, K_SEARCH, RADIUS, STEP, ONE)
    level = BOX**2 * noise**2 / 2  # of the real part of an unnormalised coefficient
    sigma2 = np.stack([np.full(BOX // 2 + 1, level), np.full(BOX // 2 + 1, 4 * level)])
    return Model(REFERENCE, grid, sigma2, Prior(1.0), ONE)


def most_probable(poses: Poses) -> Poses:
    return poses.take(np.flatnonzero(np.r_[True, np.diff(poses.images) > 0]))


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of()


def test_search_and_refinement_find_the_planted_poses(model: Model) -> None:
    batch, rotations, shifts = simulate(60, 0)
    sums = empty_sums(BOX, K_SCORE)
    found = expect(batch, PLAN, model, sums)
    best = most_probable(found.poses)
    np.testing.assert_array_equal(best.images, np.arange(60))
    clean = batch.optics_group == 0
    angle = np.degrees(angle_between(best.rotations, rotations))
    assert np.median(angle[clean]) < 3
    assert np.mean(angle[clean] < 8) > 0.9
    assert np.median(np.linalg.norm(best.shifts - shifts, axis=1)[clean]) < 0.3
    np.testing.assert_allclose(np.bincount(found.poses.images, found.weights), 1)
    assert np.bincount(found.poses.images).max() <= PLAN.poses
    assert found.count.sum() == 60 / NOISE_STRIDE
    assert abs(np.diff(found.count)) <= 1  # groups that alternate are both heard


def test_known_poses_are_kept_and_improved_without_a_search(model: Model) -> None:
    batch, rotations, shifts = simulate(30, 1)
    start = start_poses(np.arange(30), rotations, shifts)
    plan = replace(PLAN, k_search=0, step=0.0)
    found = expect(replace(batch, poses=start), plan, replace(model, grid=None), empty_sums(BOX, K_SCORE))
    best = most_probable(found.poses)
    assert np.degrees(angle_between(best.rotations, rotations)).max() < 15
    assert len(best.images) == 30
    with pytest.raises(ValueError, match="needs poses"):
        expect(batch, plan, model, empty_sums(BOX, K_SCORE))


def test_poses_that_are_fanned_out_leave_a_wrong_maximum_and_compete(model: Model) -> None:
    """Known poses that are 26° wrong: climbing alone leaves most of them on other maxima."""
    batch, rotations, shifts = simulate(40, 3, noise=0.5)
    given = replace(batch, poses=start_poses(np.arange(40), rotate(rotations, np.array([0.45, 0, 0])), shifts))
    right = []
    for fan in (0.0, 0.45):
        plan = replace(PLAN, k_search=0, step=0.0, fan=fan)
        found = expect(given, plan, replace(model, grid=None), empty_sums(BOX, K_SCORE))
        np.testing.assert_array_equal(np.unique(found.poses.images), np.arange(40))
        np.testing.assert_allclose(np.bincount(found.poses.images, found.weights), 1)
        assert (len(found.poses.images) > 40) == bool(fan)
        right.append(np.mean(angle_between(most_probable(found.poses).rotations, rotations) < np.radians(8)))
    assert right[1] > right[0] + 0.2


def test_splitting_a_batch_changes_nothing_but_rounding(model: Model) -> None:
    batch, _, _ = simulate(12, 2)

    def part(rows: slice) -> Batch:
        return make_batch(batch.images[rows], batch.terms[rows], batch.scale[rows], batch.optics_group[rows])

    whole, parts = empty_sums(BOX, K_SCORE), empty_sums(BOX, K_SCORE)
    at_once = expect(batch, PLAN, model, whole)
    first, second = (expect(part(rows), PLAN, model, parts) for rows in (slice(0, 5), slice(5, 12)))
    np.testing.assert_allclose(parts.data, whole.data, atol=1e-3 * np.abs(whole.data).max())
    np.testing.assert_allclose(parts.weight, whole.weight, atol=1e-3 * whole.weight.max())
    np.testing.assert_array_equal(np.concatenate([first.poses.images, 5 + second.poses.images]), at_once.poses.images)
    np.testing.assert_allclose(np.concatenate([first.weights, second.weights]), at_once.weights, atol=1e-3)


def test_settled_images_keep_their_poses_without_a_search(model: Model) -> None:
    batch, rotations, shifts = simulate(8, 15)
    known = replace(batch, poses=start_poses(np.arange(8), rotations, shifts), settled=np.arange(8) % 2 == 0)
    best = most_probable(expect(known, PLAN, model, empty_sums(BOX, K_SCORE)).poses)
    np.testing.assert_array_equal(best.images, np.arange(8))
    still = np.degrees(angle_between(best.rotations, rotations))[::2]
    assert still.max() < 15
    part = known.rows(np.array([5, 2]))
    np.testing.assert_array_equal(part.images, batch.images[[5, 2]])
    np.testing.assert_array_equal(part.settled, [False, True])
    np.testing.assert_array_equal(part.poses.shifts[np.argsort(part.poses.images)], shifts[[5, 2]])


def test_half_sets_share_nothing(model: Model) -> None:
    """What one half-set gathers does not change, to the bit, with the other's images or reference."""
    half1, _, _ = simulate(6, 3)

    def gathered(other_seed: int, other: Model) -> Sums:
        half2, _, _ = simulate(6, other_seed)
        sums = empty_sums(BOX, K_SCORE), empty_sums(BOX, K_SCORE)
        expect(half2, PLAN, other, sums[1])
        expect(half1, PLAN, model, sums[0])
        return sums[0]

    a, b = gathered(4, model), gathered(5, replace(model, volume=2 * model.volume))
    np.testing.assert_array_equal(a.data, b.data)
    np.testing.assert_array_equal(a.weight, b.weight)
    assert a.data.any()


def test_inputs_are_left_alone(model: Model) -> None:
    batch, rotations, shifts = simulate(4, 6)
    batch = replace(batch, poses=start_poses(np.arange(4), rotations, shifts))
    before = [
        np.copy(value) for value in (batch.images, batch.terms, batch.poses.rotations, model.volume, model.sigma2)
    ]
    expect(batch, PLAN, model, empty_sums(BOX, K_SCORE))
    for kept, now in zip(before, (batch.images, batch.terms, rotations, model.volume, model.sigma2), strict=True):
        np.testing.assert_array_equal(kept, now)


def test_residual_at_the_true_poses_is_the_noise(model: Model) -> None:
    batch, rotations, shifts = simulate(400, 7)
    plan = replace(PLAN, k_search=0, step=0.0)
    start = start_poses(np.arange(400), rotations, shifts)
    found = expect(replace(batch, poses=start), plan, model, empty_sums(BOX, K_SCORE))
    variance = noise_variance(found.residual, found.count, BOX)
    assert variance.shape == (2, BOX // 2 + 1)
    # five parameters of a pose are fitted, which takes a little of the noise of the inner shells
    np.testing.assert_allclose(variance[:, 3:K_SCORE] / model.sigma2[:, 3:K_SCORE], 1, atol=0.12)


def test_noise_of_white_images_is_theirs() -> None:
    rng = np.random.default_rng(8)
    group = np.array([0, 0, 0, 1] * 50, np.int32)
    images = rng.standard_normal((200, BOX, BOX)).astype(np.float32) * (1 + group)[:, None, None].astype(np.float32)
    variance = noise_variance(*power_spectrum(images, group, 2), BOX)
    np.testing.assert_allclose(variance[0] / (BOX**2 / 2), 1, atol=0.15)
    np.testing.assert_allclose(variance[1] / (4 * BOX**2 / 2), 1, atol=0.25)
    np.testing.assert_array_equal(variance[:, 0], variance[:, 1])


def test_a_group_without_images_takes_the_others_noise() -> None:
    images = np.random.default_rng(9).standard_normal((50, BOX, BOX)).astype(np.float32)
    variance = noise_variance(*power_spectrum(images, np.zeros(50, np.int32), 2), BOX)
    np.testing.assert_allclose(variance[1], variance[0])
    assert np.all(variance > 0)


def test_weighing_is_single_precision_and_what_it_says(model: Model) -> None:
    batch, _, _ = simulate(3, 10)
    spectrum = spectra(replace(batch, scale=np.array([1.0, 0.5, 2.0])), PLAN)
    inverse = (1 / model.sigma2).astype(np.float32)[batch.optics_group]
    data = weigh(spectrum.whole, spectrum.ctf, inverse, spectrum.disc, np.flatnonzero(spectrum.disc.shell <= 5))
    kept = spectrum.disc.shell <= 5
    q = inverse[:, spectrum.disc.shell[kept]]
    np.testing.assert_allclose(data.numerators, (spectrum.whole * spectrum.ctf)[:, kept] * q, rtol=1e-5)
    np.testing.assert_allclose(data.denominators, spectrum.ctf[:, kept] ** 2 * q, rtol=1e-5)
    parts = (spectrum.masked, spectrum.whole, spectrum.origin, spectrum.ctf, *data[:2])
    assert {part.dtype for part in parts} == {np.dtype(np.complex64), np.dtype(np.float32)}
    plain = spectra(batch, PLAN).ctf
    np.testing.assert_allclose(spectrum.ctf, plain * np.array([[1], [0.5], [2]]), rtol=1e-6)


def test_masked_spectra_are_those_of_images_cut_to_the_particle() -> None:
    batch, _, _ = simulate(2, 11)
    spectrum = spectra(batch, PLAN)
    inside = real_images(fill_half_disc(spectrum.masked, spectrum.disc, BOX))
    y, x = np.indices((BOX, BOX)) - BOX // 2
    outside = np.hypot(x, y) > RADIUS + 5
    # the mean and the corners of Fourier space are not on the disc
    assert np.std(inside[:, outside]) < 0.15 * np.std(batch.images[:, outside])
    low = fourier_images(batch.images)
    radius = np.hypot(np.fft.fftfreq(BOX, 1 / BOX)[:, None], np.arange(BOX // 2 + 1))
    low[:, np.rint(radius) > K_SCORE] = 0
    cut = real_images(low) * soft_circle(BOX, RADIUS, BOX / 2 - RADIUS)
    np.testing.assert_allclose(spectrum.origin, cut.sum(axis=(1, 2)), atol=1e-2)


def test_nothing_beyond_the_last_shell_scored_touches_what_is_scored() -> None:
    batch, _, _ = simulate(3, 12)
    beyond = half_disc(BOX, BOX // 2 - 1)
    noise = np.random.default_rng(1).standard_normal((3, len(beyond.kx), 2)) @ [1, 1j] * (beyond.shell > K_SCORE)
    other = replace(batch, images=batch.images + 1e-2 * real_images(fill_half_disc(noise, beyond, BOX)))
    one, two = (spectra(each, PLAN) for each in (batch, other.rows(np.arange(3))))
    assert np.abs(one.whole - two.whole).max() > 1e-3
    np.testing.assert_allclose(two.masked, one.masked, atol=1e-4)


def test_first_shift_is_that_of_the_most_probable_pose() -> None:
    batch, _, _ = simulate(3, 12)
    np.testing.assert_array_equal(best_shifts(batch), np.zeros((3, 2)))
    images = np.array([0, 0, 2])
    shifts = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    known = start_poses(images, random_rotations(3, np.random.default_rng(13)), shifts)
    np.testing.assert_array_equal(best_shifts(replace(batch, poses=known)), [[1, 2], [0, 0], [5, 6]])
    both = join_poses(known, known)
    np.testing.assert_array_equal(both.images, np.r_[images, images])
    np.testing.assert_array_equal(both.shifts[3:], shifts)


def test_first_iteration_does_not_depend_on_the_references_scale(model: Model) -> None:
    batch, rotations, _ = simulate(30, 14)
    plan = replace(PLAN, first=True)
    weak = 0.2 * REFERENCE
    grid = search_grid(weak, padded_box(BOX) / BOX, BOX, K_SEARCH, RADIUS, STEP, ONE)
    strong = expect(batch, plan, model, empty_sums(BOX, K_SCORE))
    faint = expect(batch, plan, replace(model, volume=weak, grid=grid), empty_sums(BOX, K_SCORE))
    clean = batch.optics_group == 0
    for found in (strong, faint):
        angle = np.degrees(angle_between(most_probable(found.poses).rotations, rotations))
        assert np.degrees(STEP) > np.median(angle[clean])
