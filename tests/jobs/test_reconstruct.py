"""Reconstructions from known poses, held against the density that the particles were made of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError, OutputExistsError, ParameterError, StorageError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.storage import groups
from cloudem.io.storage.groups import has_group, read_group
from cloudem.io.storage.tables import table_from_arrays
from cloudem.jobs.export import Export
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix, matrix_to_euler
from cloudem.model.symmetry import operators
from tests.jobs.conftest import BOX, PIXEL, Scene, assert_same_bits, make_scene, molecule, needs, run


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """160 particles with their true poses."""
    return make_scene(tmp_path_factory.mktemp("posed"), columns=lambda truth: truth)


def radius() -> np.ndarray:
    """Return |k| of the coefficients of an rfftn."""
    k = np.fft.fftfreq(BOX, 1 / BOX)
    return np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + np.arange(BOX // 2 + 1) ** 2)


def test_a_reconstruction_from_true_poses_is_the_density(posed, tmp_path):
    job = Reconstruct(particles=posed.particles, diameter_A=120, group_size=50, out=str(tmp_path / "out"))
    progress = run(job)
    result, attributes = read_group(job.out, "result")
    assert np.all(fourier_shell_correlation(result["map_unfiltered"], posed.density)[1:15] > 0.75)
    for half in ("half1", "half2"):
        assert np.all(fourier_shell_correlation(result[half], posed.density)[1:15] > 0.6)
    scale = np.vdot(result["map_unfiltered"], posed.density) / np.vdot(posed.density, posed.density)
    other = np.vdot(result["half1"], posed.density) / np.vdot(posed.density, posed.density)
    assert scale == pytest.approx(other, rel=0.02)  # halves and whole are on one scale
    assert np.corrcoef(result["half1"].ravel(), result["half2"].ravel())[0, 1] < 0.99
    assert attributes["resolution_A"] < 11
    assert (attributes["pixel_size_A"], attributes["symmetry"]) == (PIXEL, "C1")
    assert progress.warnings() == []
    assert result["mask"].shape == (BOX,) * 3
    assert 0.02 < result["mask"].mean() < 0.5
    assert (Path(job.out) / "report.html").stat().st_size > 10_000
    run(Export(source=job.out, out=str(tmp_path / "files")))
    assert {"half1.mrc", "half2.mrc", "map.mrc", "mask.mrc", "particles.star", "fsc.star"} <= {
        path.name for path in (tmp_path / "files").iterdir()
    }


def test_the_scale_of_the_map_is_that_of_the_images(tmp_path, no_report):
    """Images without noise give back the density itself, shell by shell, not a multiple of it."""
    scene = make_scene(tmp_path, count=300, snr=None, columns=lambda truth: truth)
    job = Reconstruct(particles=scene.particles, out=str(tmp_path / "out"))
    run(job)
    found, true = (np.fft.rfftn(v) for v in (read_group(job.out, "result")[0]["map_unfiltered"], scene.density))
    for shell in range(1, 14):
        inside = np.round(radius()) == shell
        scale = np.vdot(true[inside], found[inside]).real / np.vdot(true[inside], true[inside]).real
        assert scale == pytest.approx(1, abs=0.06)


def test_dask_and_task_size_do_not_matter(posed, tmp_path, no_report):
    given = {"particles": posed.particles, "diameter_A": 120.0}
    run(Reconstruct(**given, group_size=50, out=str(tmp_path / "serial")))
    run(Reconstruct(**given, group_size=50, out=str(tmp_path / "dask")), lambda: DaskExecutor(threads=2))
    assert_same_bits(tmp_path / "serial", tmp_path / "dask")
    run(Reconstruct(**given, group_size=1000, out=str(tmp_path / "large")))
    maps = [read_group(tmp_path / name, "result")[0]["map_unfiltered"] for name in ("serial", "large")]
    np.testing.assert_allclose(*maps, atol=1e-5 * np.abs(maps[0]).max())


def test_symmetry_makes_up_for_particles(tmp_path, no_report):
    """Poses turned by operators of the point group, at random, give the same map."""
    density = molecule("D2")
    group = operators("D2")
    turns = group[np.random.default_rng(1).integers(0, len(group), 60)]

    def turned(table):
        rotations = euler_to_matrix(table["rot"], table["tilt"], table["psi"]) @ turns
        rot, tilt, psi = matrix_to_euler(rotations)
        return table.with_columns(rot=rot, tilt=tilt, psi=psi)

    maps = []
    for name, columns in (("true", lambda truth: truth), ("turned", turned)):
        scene = make_scene(tmp_path / name, count=60, density=density, columns=columns)
        job = Reconstruct(particles=scene.particles, symmetry="D2", out=str(tmp_path / name / "out"))
        run(job)
        maps.append(read_group(job.out, "result")[0]["map_unfiltered"])
    np.testing.assert_allclose(*maps, atol=1e-4 * maps[0].max())
    rotated = maps[0][1:, 1:, 1:][:, ::-1, ::-1]  # the twofold axis along z
    np.testing.assert_allclose(rotated, maps[0][1:, 1:, 1:], atol=0.02 * maps[0].max())
    assert np.all(fourier_shell_correlation(maps[0], density)[1:14] > 0.85)


def test_half_sets_of_a_reconstruction_are_apart(posed, tmp_path, no_report):
    """Poses of half-set 2 made wrong leave half-map 1 as it is, to the bit."""

    def second_wrong(table):
        return table.with_columns(tilt=np.where(table["half_set"] == 2, table["tilt"] + 0.7, table["tilt"]))

    wrong = make_scene(tmp_path / "wrong", columns=second_wrong)
    outs = []
    for name, scene in (("a", posed), ("b", wrong)):
        run(Reconstruct(particles=scene.particles, diameter_A=120, out=str(tmp_path / name)))
        outs.append(read_group(tmp_path / name, "result")[0])
    np.testing.assert_array_equal(outs[0]["half1"], outs[1]["half1"])
    assert np.any(outs[0]["half2"] != outs[1]["half2"])


def test_half_sets_are_drawn_and_kept(tmp_path, no_report):
    scene = make_scene(tmp_path, count=40, columns=lambda truth: truth.without_columns(("half_set", "micrograph")))
    run(Reconstruct(particles=scene.particles, seed=4, out=str(tmp_path / "out")))
    kept = table_from_arrays(Particles, *read_group(tmp_path / "out", "particles"))
    assert np.bincount(kept["half_set"]).tolist() == [0, 20, 20]
    np.testing.assert_array_equal(kept["rot"], scene.truth["rot"])


def test_dark_protein_is_noticed(tmp_path, no_report):
    scene = make_scene(tmp_path, count=60, sign=-1, columns=lambda truth: truth)
    write_volume(tmp_path / "mask.mrc", (scene.density > scene.density.max() / 4).astype(np.float32), PIXEL)
    progress = run(Reconstruct(particles=scene.particles, mask=str(tmp_path / "mask.mrc"), out=str(tmp_path / "out")))
    assert any("mean density inside the mask is negative: the contrast is inverted" in t for t in progress.warnings())


def test_a_limit_is_kept(posed, tmp_path, no_report):
    run(Reconstruct(particles=posed.particles, max_resolution_A=20, out=str(tmp_path / "out")))
    result, attributes = read_group(tmp_path / "out", "result")
    power = np.abs(np.fft.rfftn(result["half1"])) ** 2
    assert power[radius() > 10].sum() < 0.01 * power[radius() <= 8.5].sum()
    assert 16 < attributes["resolution_A"] < 21  # and not what the mask's edge carries beyond
    assert result["fsc_corrected"][9:].max() == 0


def test_what_is_there_is_left_alone(posed, tmp_path, no_report, monkeypatch):
    job = Reconstruct(particles=posed.particles, out=str(tmp_path / "out"))
    with monkeypatch.context() as patch:
        patch.setattr(groups, "write_group", lambda *_, **__: (_ for _ in ()).throw(StorageError("the disk is full")))
        with pytest.raises(StorageError):
            run(job)
    assert not has_group(job.out, "result")
    run(job)  # the same place can be used again
    run(job)  # and the same command again does no harm
    with pytest.raises(OutputExistsError, match="already contains results; choose another --out"):
        run(job.model_copy(update={"seed": 3}))
    mask = tmp_path / "mask.mrc"
    write_volume(mask, posed.density * 100, PIXEL)
    with pytest.raises(InconsistentDataError, match="a mask from 0 to 1"):
        run(Reconstruct(particles=posed.particles, mask=str(mask), out=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_a_full_disk_is_said(posed, small_disk, no_report):
    subprocess.run(["mount", "-o", "remount,size=300k", str(small_disk)], check=True)
    job = Reconstruct(particles=posed.particles, out=str(small_disk / "out"))
    with pytest.raises(StorageError, match="the disk is full"):
        run(job)
    assert not has_group(job.out, "result")


def test_the_projection_grows_with_the_box(posed):
    small = needs(Reconstruct(particles=posed.particles, out="x"))
    assert small.base_bytes > 1e8
    assert small.disk_bytes > 5 * 4 * BOX**3
    assert "160 particles of 32 px" in small.notes[0]
    assert small == needs(Reconstruct(particles=posed.particles, out="y"))


def test_the_ewald_sphere_is_an_option_with_a_hand(posed, tmp_path, no_report):
    """At 300 kV and 10 Å the sphere is flat: the map is that without it, but for what sidebands leave behind."""
    maps = {}
    for name, options in (("flat", {}), ("right", {"ewald_sphere": True}), ("wrong", {"reverse_curvature": True})):
        options |= {"ewald_sphere": True} if name == "wrong" else {}
        job = Reconstruct(particles=posed.particles, diameter_A=120, out=str(tmp_path / name), **options)
        run(job)
        maps[name] = read_group(job.out, "result")[0]["map_unfiltered"]
        assert fourier_shell_correlation(maps[name], maps["flat"])[1:15].min() > 0.999
    assert 0 < np.abs(maps["right"] - maps["wrong"]).max() < 0.1 * np.abs(maps["flat"]).max()
    with pytest.raises(ParameterError, match="--reverse-curvature means something with --ewald-sphere alone"):
        Reconstruct(particles=posed.particles, out=str(tmp_path / "none"), reverse_curvature=True)
