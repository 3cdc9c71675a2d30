"""Half-sets: drawn as before where nothing belongs together, and never with parts of one thing in both."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem.errors import MissingColumnError, ParameterError
from cloudem.io.storage.groups import read_group
from cloudem.jobs.halves import Drawing, half_sets
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.results import suspicious, unknown_to_images
from cloudem.model.particles import TEXT, Particles
from tests.jobs.conftest import make_scene, run

NONE = np.zeros(0, np.int64)


def table(count, **columns):
    made = Particles((), {}).with_columns(rot=np.zeros(count))
    known = {name: values for name, values in columns.items() if name != "tube"}
    made = made.with_columns(**known)
    tube = {"rln:rlnHelicalTubeID": np.array([str(t) for t in columns["tube"]], TEXT)} if "tube" in columns else {}
    return Particles((), {**made.columns, **tube})


def draw(particles, seed=0, new=False, by="particle", without=NONE):
    said: list[str] = []
    return half_sets(particles, Drawing(seed, new, by), without, said.append), said


def assert_together(halves, labels):
    for label in set(labels):
        assert len(set(halves[np.array([other == label for other in labels])])) == 1, label


def test_particles_of_no_group_are_drawn_as_ever():
    """The same bits as before there were groups: results can be made again."""
    names = np.array([f"{i + 1}@p.mrcs" for i in range(101)], TEXT)
    before = 1 + np.random.default_rng(7).permutation(101) % 2
    for columns in ({}, {"image_name": names}, {"tube": np.zeros(101, int)}, {"same_image": np.zeros(101, int)}):
        assert draw(table(101, **columns), seed=7) == (pytest.approx(before), [])
    half = np.where(np.arange(101) < 50, 1 + np.arange(101) % 2, 0)
    known, _ = draw(table(101, half_set=half), seed=7)
    np.testing.assert_array_equal(known[:50], half[:50])
    np.testing.assert_array_equal(known[50:], 1 + np.random.default_rng(7).permutation(51) % 2)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    tubes=st.lists(st.integers(0, 9), min_size=12, max_size=60),
    images=st.lists(st.integers(0, 40), min_size=60, max_size=60),
    seed=st.integers(0, 9),
)
def test_what_belongs_together_is_never_in_both(tubes, images, seed):
    count = len(tubes)
    micrographs = [f"m{i // 30}" for i in range(count)]
    particles = table(count, tube=tubes, micrograph=np.array(micrographs, TEXT), same_image=images[:count])
    with contextlib.suppress(ParameterError):  # all belong together, by one thing or the other
        check_together(particles, tubes, micrographs, images[:count], seed)


def check_together(particles, tubes, micrographs, images, seed):
    halves, said = draw(particles, seed)
    assert said == []
    assert_together(halves, [(m, t) if t else i for i, (m, t) in enumerate(zip(micrographs, tubes, strict=True))])
    assert_together(halves, [number or -i for i, number in enumerate(images, start=1)])
    np.testing.assert_array_equal(halves, draw(particles, seed)[0])


def test_halves_are_balanced_and_differ_with_the_seed():
    tube = np.repeat(np.arange(1, 101), np.random.default_rng(0).integers(1, 30, 100))
    drawn = [draw(table(len(tube), tube=tube), seed)[0] for seed in range(3)]
    for halves in drawn:
        assert abs(np.mean(halves == 1) - 0.5) < 0.01
    assert any((drawn[0] != other).any() for other in drawn[1:])


def test_a_micrograph_is_one_when_asked_for():
    names = np.array([f"m{i % 7}" for i in range(70)], TEXT)
    halves, _ = draw(table(70, micrograph=names), by="micrograph")
    assert_together(halves, names.tolist())
    with pytest.raises(MissingColumnError, match="micrograph"):
        draw(table(70), by="micrograph")
    with pytest.raises(ParameterError, match=r"particles of one micrograph are in both half-sets .* --new-halves"):
        draw(table(70, micrograph=names, half_set=1 + np.arange(70) // 35), by="micrograph")


def test_a_tube_is_one_within_its_micrograph():
    tube, names = np.ones(40, int), np.array([f"m{i // 10}" for i in range(40)], TEXT)
    assert sorted(draw(table(40, tube=tube, micrograph=names))[0][::10].tolist()) == [1, 1, 2, 2]
    with pytest.raises(ParameterError, match=r"half-set . is empty .* of one tube, micrograph or image"):
        draw(table(40, tube=tube))


def test_those_of_an_older_store_are_known_by_name():
    names = np.array([f"{1 + i % 20}@p.mrcs" for i in range(40)], TEXT)
    assert_together(draw(table(40, image_name=names))[0], names.tolist())


def test_half_sets_of_the_table_that_share_are_said_or_refused():
    tube, half = np.repeat(np.arange(1, 11), 4), 1 + np.arange(40) % 2
    halves, (line,) = draw(table(40, tube=tube, half_set=half))
    np.testing.assert_array_equal(halves, half)
    assert "segments of one helical tube are in both half-sets of the table (40 of 40 particles in 10" in line
    copies = np.where(np.arange(1000) < 2, 1, 0)
    halves, (line,) = draw(table(1000, same_image=copies, half_set=1 + np.arange(1000) % 2))
    assert "copies of one image are in both half-sets of the table (2 of 1,000 particles in 1" in line
    many = table(40, same_image=1 + np.arange(40) // 2, half_set=half)
    with pytest.raises(ParameterError, match=r"copies of one image are in both .* draw new ones with --new-halves"):
        draw(many)
    halves, said = draw(many, new=True)
    assert said == []
    assert_together(halves, (np.arange(40) // 2).tolist())


def test_copies_follow_the_one_whose_half_set_is_known():
    half = np.where(np.arange(60) % 3, 0, 1 + np.arange(60) // 3 % 2)
    halves, said = draw(table(60, same_image=1 + np.arange(60) // 3, half_set=half))
    assert said == []
    np.testing.assert_array_equal(halves, np.repeat(half[::3], 3))


def test_new_halves_are_drawn_when_asked_for(tmp_path, no_report):
    scene = make_scene(tmp_path, count=60, columns=lambda truth: truth.with_columns(half_set=np.full(60, 1, np.int8)))
    with pytest.raises(ParameterError, match=r"half-set 2 is empty among 60 particles.* --new-halves"):
        run(Reconstruct(particles=scene.particles, out=str(tmp_path / "out")))
    run(Reconstruct(particles=scene.particles, new_halves=True, out=str(tmp_path / "out")))
    drawn = read_group(tmp_path / "out", "particles")[0]["half_set"]
    np.testing.assert_array_equal(drawn, 1 + np.random.default_rng(0).permutation(60) % 2)


def test_an_fsc_that_stays_high_up_to_nyquist_is_suspicious():
    high, falls = np.linspace(1, 0.85, 17), np.linspace(1, 0.6, 17)  # sound simulated images may keep 0.66 there
    assert "the corrected FSC stays high up to Nyquist (0.87 at 10 Å)" in suspicious(high, 15, 32, 5.0)
    assert suspicious(falls, 15, 32, 5.0) == suspicious(high * (np.arange(17) < 12), 15, 32, 5.0) == ""
    assert suspicious(high, 11, 32, 5.0) == ""  # no more was asked for


def test_new_halves_of_poses_that_are_kept_are_said(tmp_path):
    scene = make_scene(tmp_path, count=30, columns=lambda truth: truth)
    for new in (True, False):
        job = Refine3D(**scene.refinement(tmp_path / "out", local=True, new_halves=new))
        assert any("both new ones have seen the same" in text for text in job.preflight().warnings) == new


def test_a_resolution_that_images_do_not_know_is_named():
    known = np.full(33, np.nan)
    known[5:] = [9] * 10 + [0] * 18  # up to shell 14, and two more together with it
    assert unknown_to_images(known, 160 / 18, 160) == unknown_to_images(None, 8, 160) == ""
    said = unknown_to_images(known, 160 / 24, 160)
    assert said.startswith("the half-maps agree to 6.67 Å, but images match the other half-set's map only to 9.41 Å")
    assert "--halves-by micrograph" in said
    known[18:24] = np.nan  # nobody asked
    assert unknown_to_images(known, 160 / 24, 160) == ""
