"""Half-sets are judged apart, not before something is shown, and what to leave out is said in one sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.align import start_poses
from cloudem.algorithms.junk import Judgement, amplitude_evidence
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_group
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.judging import advice, judged
from cloudem.jobs.refine3d.poses import sorted_found
from cloudem.jobs.refine3d.tasks import Found, Placed
from tests.algorithms.test_junk import population
from tests.jobs.conftest import BOX, PIXEL, make_scene, run

COUNT = 1000
UNSCALED = (np.array([80.0]), np.array([90.0]))


def half(matches: np.ndarray, images: np.ndarray) -> Found:
    """Two poses for each image, as the tasks give them back."""
    twice = np.repeat(images, 2).astype(np.int32)
    poses = start_poses(twice, np.repeat(np.eye(3)[None], len(twice), axis=0), np.zeros((len(twice), 2)))
    placed = Placed(poses.rotations[::2], poses.shifts[::2])
    return Found(poses, np.tile([0.7, 0.3], len(images)), matches, placed)


def halves(others: tuple[int, int]) -> tuple[list[Found], np.ndarray]:
    sets = [population(seed, number, 0.1, COUNT) for seed, number in enumerate(others)]
    found = [half(matches, np.arange(h, 2 * COUNT, 2)) for h, (matches, _) in enumerate(sets)]
    return found, np.stack([other for _, other in sets], axis=1).ravel()


def test_images_are_judged_from_their_own_half_set_alone() -> None:
    clean, dirty = halves((300, 0))[0], halves((300, 450))[0]
    one, two = judged(clean, np.ones(2 * COUNT), True), judged(dirty, np.ones(2 * COUNT), True)
    np.testing.assert_array_equal(one.keep[::2], two.keep[::2])
    np.testing.assert_array_equal(one.other_evidence[::2], two.other_evidence[::2])
    assert not one.other_evidence[1::2].any()
    assert two.other_evidence[1::2].all()


def test_judgements_are_those_of_their_images() -> None:
    found, other = halves((300, 200))
    keep = judged(found, np.ones(2 * COUNT), True).keep
    assert np.mean((keep < 0.5) == other) > 0.95


def test_matches_stay_with_their_images_when_parts_are_put_in_order() -> None:
    (one, _), _ = halves((300, 0))
    images = one.poses.images[::2]
    parts = [half(one.matches[rows], images[rows]) for rows in (np.arange(600, 1000), np.arange(600))]
    np.testing.assert_array_equal(sorted_found(parts).matches, one.matches)


def test_nothing_is_weighted_before_something_is_shown() -> None:
    found, _ = halves((300, 300))
    before = judged(found, np.ones(2 * COUNT), False)
    assert np.all(before.keep == 1)
    assert not before.other_evidence.any()
    np.testing.assert_array_equal(before.noise_evidence, judged(found, np.ones(2 * COUNT), True).noise_evidence)


def test_images_are_judged_as_if_they_had_not_been_scaled() -> None:
    found, _ = halves((300, 300))
    scale = np.random.default_rng(5).uniform(0.3, 2.0, 2 * COUNT)
    scaled = []
    for half in found:
        factor = scale[half.poses.images]
        poses = replace(half.poses, numerator=80.0 * factor, norm=90.0 * factor**2)
        matches = half.matches.copy()
        matches[:, 0] += (amplitude_evidence(poses.numerator, poses.norm) - amplitude_evidence(*UNSCALED))[::2]
        scaled.append(replace(half, poses=poses, matches=matches))
    found = [replace(half, poses=replace(half.poses, numerator=np.full(len(half.poses.images), 80.0),
                                         norm=np.full(len(half.poses.images), 90.0))) for half in found]  # fmt: skip
    one, two = judged(found, np.ones(2 * COUNT), True), judged(scaled, scale, True)
    np.testing.assert_allclose(one.noise_evidence, two.noise_evidence, atol=1e-9)
    np.testing.assert_allclose(one.keep, two.keep, atol=2e-4)


def test_images_without_a_half_set_are_not_judged() -> None:
    found, _ = halves((300, 300))
    judgement = judged(found, np.ones(2 * COUNT + 7), True)
    assert np.all(judgement.keep[-7:] == 1)


@pytest.mark.parametrize(("doubtful", "said"), [(0, ""), (10, ""), (300, "300 of 1,000 images (30%)")])
def test_what_to_leave_out_is_said_where_it_matters(doubtful: int, said: str) -> None:
    keep, noise, half_set = np.ones(1200), np.full(1200, 9.0), np.ones(1200, np.int8)
    keep[:doubtful], noise[: doubtful // 3] = 0.1, -2.0
    keep[1000:], half_set[1000:] = 0.0, 0  # not taken part
    sentence = advice(Judgement(keep, noise, np.zeros(1200)), half_set)
    assert sentence.startswith(said)
    assert bool(sentence) == bool(said)
    assert not said or f"{doubtful // 3} of them match no better than noise" in sentence


def test_most_images_are_not_called_junk() -> None:
    keep = np.where(np.arange(1000) < 770, 0.1, 1.0)
    sentence = advice(Judgement(keep, np.full(1000, 9.0), np.zeros(1000)), np.ones(1000, np.int8))
    assert "770 of 1,000 images (77%)" in sentence
    assert "another molecule" not in sentence


def test_a_refinement_finds_the_images_of_nothing(tmp_path, no_report):
    scene = make_scene(tmp_path, count=200)
    store = open_particles(scene.particles)
    images, shows = store.read_images(np.arange(200)), np.arange(200) % 10 < 7
    images[~shows] = np.random.default_rng(1).standard_normal(images[~shows].shape)
    mixed = str(tmp_path / "mixed.zarr")
    write_particles(mixed, store.particles, [images], box=BOX, pixel_size=PIXEL, dtype="float32")
    job = Refine3D(**replace(scene, particles=mixed).refinement(tmp_path / "out"))
    progress = run(job)
    particles, _ = read_group(job.out, "particles")
    assert np.mean(particles["keep"][shows] < 0.5) < 0.05
    assert np.mean(particles["keep"][~shows] < 0.5) > 0.95
    assert np.median(particles["noise_evidence"][shows]) > 10
    assert np.median(particles["noise_evidence"][~shows]) < 0
    assert any("match no better than noise" in text for text in progress.warnings())
