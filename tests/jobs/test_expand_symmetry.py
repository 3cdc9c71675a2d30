"""Symmetry expansion: rows and no images, mates together, and the map that the group gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import ParameterError
from cloudem.io.formats.star import read_star
from cloudem.io.particle_store import open_particles
from cloudem.io.storage.groups import read_group
from cloudem.jobs.classify3d.run import particle_parts
from cloudem.jobs.expand_symmetry import ExpandSymmetry, expanded
from cloudem.jobs.export import Export
from cloudem.jobs.halves import Drawing, half_sets, image_numbers, repeated
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.select import Select
from cloudem.model.poses import angle_between, euler_to_matrix
from cloudem.model.symmetry import operators
from tests.jobs.conftest import DIAMETER, Scene, make_scene, molecule, run

COUNT, GROUP = 90, "D2"
NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def scene_of_d2(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("expand")
    return make_scene(folder, count=COUNT, snr=0.2, density=molecule(GROUP), columns=lambda truth: truth)


@pytest.fixture(scope="module")
def mates(scene_of_d2: Scene, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("mates") / "expanded")
    assert run(ExpandSymmetry(particles=scene_of_d2.particles, symmetry=GROUP, out=out)).warnings() == []
    return out


def test_each_particle_is_there_in_all_poses_of_the_group(scene_of_d2: Scene, mates: str) -> None:
    store, before = open_particles(mates), open_particles(scene_of_d2.particles)
    table, given = store.particles, before.particles
    assert len(table) == 4 * COUNT
    np.testing.assert_array_equal(table["rot"][:COUNT], given["rot"])  # as they were, to the bit
    poses = euler_to_matrix(given["rot"], given["tilt"], given["psi"])
    for number, operator in enumerate(operators(GROUP)):
        rows = np.arange(number * COUNT, (number + 1) * COUNT)
        part = table.take(rows)
        assert angle_between(euler_to_matrix(part["rot"], part["tilt"], part["psi"]), poses @ operator).max() < 1e-6
        np.testing.assert_array_equal(part["half_set"], given["half_set"])
        np.testing.assert_array_equal(store.read_images(rows[:3]), before.read_images(np.arange(3)))
    assert not (Path(mates) / "images").exists()


@pytest.mark.usefixtures("no_report")
def test_their_map_in_c1_is_that_of_the_group(scene_of_d2: Scene, mates: str, tmp_path: Path) -> None:
    one, other = tmp_path / "group", tmp_path / "mates"
    run(Reconstruct(particles=scene_of_d2.particles, symmetry=GROUP, diameter_A=DIAMETER, out=str(one)))
    run(Reconstruct(particles=mates, diameter_A=DIAMETER, out=str(other)))
    maps = [read_group(out, "result")[0] for out in (one, other)]
    for name in ("half1", "half2", "map_unfiltered"):
        a, b = (held[name] for held in maps)
        assert np.sqrt(np.mean((a - b) ** 2)) < 1e-5 * np.sqrt(np.mean(a**2)), name


@pytest.mark.parametrize("by", ["particle", "micrograph"])
def test_mates_are_in_one_half_set_and_one_part(mates: str, by: str) -> None:
    table = open_particles(mates).particles
    image = image_numbers(table)
    for seed in range(3):
        halves = half_sets(table, Drawing(seed, new=True, by=by), NONE)  # type: ignore[arg-type]
        parts = particle_parts(halves, seed, image)
        for values in (halves, parts):
            assert len(np.unique(np.stack([image, values]), axis=1).T) == COUNT
        assert len(set(halves.tolist())) == 2
        assert len(set(parts.tolist())) > 2


def test_images_that_belong_together_before_do_so_afterwards(scene_of_d2: Scene) -> None:
    table = scene_of_d2.truth.with_columns(same_image=np.where(np.arange(COUNT) < 4, 7, 0))
    image = image_numbers(expanded(table, operators("C2")))
    assert len(np.unique(image)) == COUNT - 3
    assert len(set(image[[0, 1, 2, 3, COUNT, COUNT + 3]].tolist())) == 1


def test_an_expanded_table_goes_into_other_jobs(mates: str, tmp_path: Path) -> None:
    run(Select(particles=mates, where="defocus_u < 15000", out=str(tmp_path / "some"), report=False))
    some = open_particles(str(tmp_path / "some"))
    kept = some.particles
    assert 0 < len(kept) < 4 * COUNT
    assert repeated(kept)
    rows = kept["store_row"]
    np.testing.assert_array_equal(some.read_images(np.arange(5)), open_particles(mates).read_rows(rows[:5]))
    run(Export(source=str(tmp_path / "some"), stack=True, out=str(tmp_path / "files")))
    assert len(read_star(tmp_path / "files/particles.star")["particles"]["rlnAngleRot"]) == len(kept)


def test_what_cannot_be_expanded_is_refused(scene_of_d2: Scene, mates: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    with pytest.raises(ParameterError, match="expanded already"):
        ExpandSymmetry(particles=mates, symmetry="C2", out=out).preflight()
    with pytest.raises(ParameterError, match="nothing to expand"):
        ExpandSymmetry(particles=scene_of_d2.particles, symmetry="C1", out=out).preflight()
    with pytest.raises(ParameterError, match="states no point group"):
        ExpandSymmetry(particles=scene_of_d2.particles, out=out).preflight()
