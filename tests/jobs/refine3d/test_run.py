"""Refinements of small simulated sets, run as the command line runs them, held against the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudem.algorithms import local_filter
from cloudem.algorithms.axes import find_axes, turned
from cloudem.algorithms.evidence import known_up_to
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import masked_fsc
from cloudem.algorithms.significance import resolution_shell
from cloudem.cli import main
from cloudem.conventions import LEAST_EVIDENCE
from cloudem.errors import InconsistentDataError
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.storage.groups import has_group, list_groups, read_attributes, read_group
from cloudem.io.storage.tables import table_from_arrays
from cloudem.jobs.refine3d import iteration
from cloudem.jobs.refine3d.job import CIRCLE_LEAKAGE, Refine3D
from cloudem.jobs.refine3d.run import how_it_ended
from cloudem.jobs.results import HELD_OUT, within
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_between, euler_to_matrix
from cloudem.model.symmetry import operators
from tests.jobs.conftest import BOX, DIAMETER, PIXEL, Scene, make_scene, molecule, needs, run


def pose_errors(found: Particles, scene: Scene, symmetry: str) -> tuple[np.ndarray, np.ndarray]:
    """Return errors of rotation in degrees, the point group taken out, and of shift in Å."""
    mine, true = (euler_to_matrix(t["rot"], t["tilt"], t["psi"]) for t in (found, scene.truth))
    angle = np.min([angle_between(mine, true @ operator) for operator in operators(symmetry)], axis=0)
    shift = np.hypot(*(found[name] - scene.truth[name] for name in ("shift_x", "shift_y")))
    return np.degrees(angle), shift


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_planted_poses_are_found_and_the_map_becomes_better(symmetry, scene, tmp_path):
    if symmetry != "C1":
        scene = make_scene(tmp_path, count=120, density=molecule(symmetry))
    job = Refine3D(**scene.refinement(tmp_path / "out", symmetry=symmetry, max_resolution_A=12))
    progress = run(job)
    result, attributes = read_group(job.out, "result")
    particles = table_from_arrays(Particles, *read_group(job.out, "particles"))
    angle, shift = pose_errors(particles, scene, symmetry)
    assert np.median(angle) < 5  # a shell of 12 Å is 6 Å wide at a radius of 55 Å: 6°
    assert np.mean(angle < 15) > 0.85
    assert np.median(shift) < 1.5
    start = fourier_shell_correlation(read_volume(scene.reference).data, scene.density)
    end = fourier_shell_correlation(result["map_unfiltered"], scene.density)
    assert resolution_shell(start) < 6.5 < 12 < resolution_shell(end)
    assert np.all(end[1:12] > 0.7)
    assert attributes["resolution_A"] < 14
    assert attributes["symmetry"] == symmetry
    # these images are so good, and their pixels so coarse, that the FSC of the symmetric one is high up to Nyquist
    assert [text for text in progress.warnings() if "high up to Nyquist" not in text] == []
    assert set(particles["half_set"]) == {1, 2}
    np.testing.assert_array_equal(particles["half_set"], scene.truth["half_set"])
    asked = result[HELD_OUT]  # beyond what the first iteration scored, images know it
    assert not np.isfinite(asked[: int(BOX * PIXEL / job.start_resolution) - CIRCLE_LEAKAGE]).any()
    assert known_up_to(asked, LEAST_EVIDENCE) >= 9
    assert attributes["notes"][0].startswith(("The refinement converged after", "The refinement stopped after"))
    assert result["map"].shape == result["mask"].shape == (BOX,) * 3
    assert (Path(job.out) / "report.html").stat().st_size > 10_000
    assert len(list_groups(job.out, "iterations")) == len(progress.iterations())
    assert not has_group(job.out, "checkpoint")


def test_a_start_off_its_axes_is_turned_and_one_without_symmetry_is_said(scene, tmp_path, no_report):
    twofold = make_scene(tmp_path, count=60, density=molecule("D2"))
    start = read_volume(twofold.reference).data
    tip = Rotation.from_euler("xz", [20, 15], degrees=True).as_matrix()
    write_volume(twofold.reference, turned(start, tip), PIXEL)
    progress = run(Refine3D(**twofold.refinement(tmp_path / "tipped", symmetry="D2", max_iterations=2)))
    assert any("was turned by" in text and "onto the axes of D2" in text for text in progress.warnings())
    result = read_group(tmp_path / "tipped", "result")[0]
    assert find_axes(result["map_unfiltered"], operators("D2"), 10.0).before > 0.95
    assert progress.iterations()[-1]["resolution_A"] < 20
    progress = run(Refine3D(**scene.refinement(tmp_path / "none", symmetry="D2", max_iterations=1)))
    assert any("does not have the symmetry D2" in text for text in progress.warnings())


def test_images_with_hardly_any_noise_are_no_harder(tmp_path, no_report):
    scene = make_scene(tmp_path, count=80, snr=5.0)
    progress = run(Refine3D(**scene.refinement(tmp_path / "out", max_iterations=4)))
    angle, shift = pose_errors(table_from_arrays(Particles, *read_group(tmp_path / "out", "particles")), scene, "C1")
    assert np.median(angle) < 2.5
    assert np.median(shift) < 0.6
    assert progress.iterations()[-1]["resolution_A"] < 11


def test_half_sets_are_drawn_where_the_table_has_none(tmp_path, no_report):
    names = ("rot", "tilt", "psi", "shift_x", "shift_y", "half_set", "micrograph")
    scene = make_scene(tmp_path, count=60, columns=lambda truth: truth.without_columns(names))
    job = Refine3D(**scene.refinement(tmp_path / "out", max_iterations=1, seed=3, initial_resolution_A=40))
    progress = run(job)
    assert progress.warnings()[0] == "not converged after 1 iterations; raise --max-iterations to continue"
    halves = read_group(job.out, "particles")[0]["half_set"]
    assert np.bincount(halves).tolist() == [0, 30, 30]
    assert np.any(halves != scene.truth["half_set"])


def test_a_local_refinement_starts_from_the_table(tmp_path, no_report):
    scene = make_scene(tmp_path, count=80, columns=lambda truth: truth)
    reference = read_volume(scene.reference).data
    write_volume(scene.reference, 100 * reference, PIXEL)  # on any scale
    job = Refine3D(**scene.refinement(tmp_path / "out", local=True, initial_resolution_A=20, max_iterations=2))
    run(job)
    angle, _ = pose_errors(table_from_arrays(Particles, *read_group(job.out, "particles")), scene, "C1")
    assert np.median(angle) < 5
    assert np.mean(angle < 20) > 0.95
    mask = read_group(job.out, "result")[0]["mask"]
    assert mask.sum() < 0.8 * soft_sphere(BOX, DIAMETER / 2 / PIXEL, 3).sum()  # it has the outline of the map
    write_volume(scene.reference, -reference, PIXEL)
    with pytest.raises(InconsistentDataError, match="negative of the reference"):
        run(Refine3D(**scene.refinement(tmp_path / "dark", local=True, initial_resolution_A=20)))


def test_noise_alone_does_not_get_beyond_the_start(tmp_path, no_report):
    """A reference of 16 Å that no image holds: shells beyond it, with many coefficients each, must stay empty."""
    scene = make_scene(tmp_path, snr=0, count=120)
    write_volume(scene.reference, scene.density, PIXEL)
    job = Refine3D(**scene.refinement(tmp_path / "out", initial_resolution_A=16))
    progress = run(job)
    first = int(BOX * PIXEL / 16)
    rows = [read_group(job.out, f"iterations/{name}") for name in list_groups(job.out, "iterations")]
    assert len(rows) >= 3
    for curves, attributes in rows:
        assert curves["fsc_corrected"][first + 2 :].max() < 0.143 + 0.1  # single shells have a deviation of 0.08
        assert curves["fsc_corrected"][first + 2 :].mean() < 0.07
        assert resolution_shell(curves["fsc_corrected"]) <= first + 1
        assert attributes["state"]["limit"] == first - CIRCLE_LEAKAGE
    result = read_attributes(job.out, "result")
    assert result["resolution_A"] >= 16
    for warnings in (progress.warnings(), result["warnings"]):
        assert any("nothing is shown beyond the 16 Å of the starting map" in text for text in warnings)
    assert all(row["resolution_A"] >= 16 for row in progress.iterations())


def test_what_is_said_in_the_end_is_what_happened():
    assert "resolution and poses no longer improve" in how_it_ended(7, True, 0.1)
    assert how_it_ended(9, True, 0.62).endswith("the resolution stands still, while 62 % of the poses still move")
    assert "converged" not in how_it_ended(9, True, 0.62)
    assert how_it_ended(5, False, 0.9).endswith("nothing is found beyond the starting map")


def test_dark_protein_is_refused_or_warned_of(tmp_path, no_report):
    scene = make_scene(tmp_path, count=80, sign=-1)
    out = tmp_path / "out"
    with pytest.raises(InconsistentDataError, match=r"negative of the reference.*--invert-contrast"):
        run(Refine3D(**scene.refinement(out)))
    with pytest.raises(InconsistentDataError, match="negative of the reference"):  # nothing resumes from a refusal
        run(Refine3D(**scene.refinement(out)))
    assert not has_group(out, "result")
    progress = run(Refine3D(**scene.refinement(out, ignore_contrast=True, max_iterations=1)))
    assert any("match the negative of the reference" in text for text in progress.warnings())
    assert any("not converged" in text for text in progress.warnings())


def test_dark_protein_and_dark_reference_are_noticed_in_the_map(tmp_path, no_report):
    scene = make_scene(tmp_path, count=80, sign=-1)
    write_volume(scene.reference, -read_volume(scene.reference).data, PIXEL)
    progress = run(Refine3D(**scene.refinement(tmp_path / "out", max_iterations=2)))
    assert any("mean density inside the mask is negative" in text for text in progress.warnings())


def test_a_reference_on_another_grid_is_resampled_and_that_is_said(scene, tmp_path, no_report):
    density = read_volume(scene.reference).data
    larger = np.pad(density, 4)  # the same molecule in a box of 40
    write_volume(tmp_path / "larger.mrc", larger, PIXEL)
    values = scene.refinement(tmp_path / "out", reference=str(tmp_path / "larger.mrc"), max_iterations=1)
    progress = run(Refine3D(**values))
    assert any(
        "the reference is 40 px at 5 Å and the particles are 32 px at 5 Å: resampled" in text
        for text in progress.warnings()
    )
    run(Refine3D(**scene.refinement(tmp_path / "same", max_iterations=1)))
    maps = [read_group(tmp_path / name, "result")[0]["map_unfiltered"] for name in ("out", "same")]
    assert np.corrcoef(*(m.ravel() for m in maps))[0, 1] > 0.999


def test_a_dry_run_says_what_it_needs(scene, tmp_path, capsys):
    out = tmp_path / "out"
    line = f"refine3d --particles {scene.particles} --reference {scene.reference} --diameter-A 120 --out {out}"
    with pytest.raises(SystemExit) as end:
        main([*line.split(), "--dry-run"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "160 particles of 32 px, about 2 tasks per pass" in shown
    assert "memory" in shown
    assert "MiB" in shown
    assert not out.exists()


@pytest.mark.parametrize(("stated", "said"), [(1.0, False), (1.06, True)])
def test_a_starting_map_of_another_size_is_named(tmp_path, no_report, stated, said):
    scene = make_scene(tmp_path, count=300)
    reference = str(tmp_path / "whole.mrc")
    write_volume(reference, scene.density, PIXEL)
    job = Refine3D(**replace(scene, reference=reference).refinement(tmp_path / "out"),
                   reference_pixel_size_A=PIXEL * stated)  # fmt: skip
    progress = run(job)
    sentences = [text for text in progress.warnings() if "than the starting map" in text]
    assert bool(sentences) == said
    assert not said or "smaller" in sentences[0]


def test_references_are_filtered_from_place_to_place_and_claims_are_those_of_unfiltered_maps(
    scene, tmp_path, monkeypatch, no_report
):
    monkeypatch.setattr(local_filter, "LOCAL_FROM_A", 22.0)  # pixels of 5 Å leave no band beyond 10 Å
    made = []
    find = iteration.local_gains
    monkeypatch.setattr(iteration, "local_gains", lambda *given: made.append(find(*given)) or made[-1])
    shares = []
    in_core = iteration.compare_core

    def noted(*rest):
        core = in_core(*rest)
        shares.append((core.fraction, rest[4].fraction))
        return core

    monkeypatch.setattr(iteration, "compare_core", noted)
    given = scene.refinement(tmp_path / "out", max_iterations=4, max_resolution_A=11)
    job, uniform = Refine3D(**given, non_uniform=True), Refine3D(**given)
    run(job)
    gains = [local for local in made if local is not None]
    assert gains
    assert any(core < whole for core, whole in shares)  # what the limit follows, and nothing else
    inside = soft_sphere(BOX, DIAMETER / 2 / PIXEL, 1.0) > 0.5
    for gain in gains[-1].gains[1:]:
        here = local_filter.at_voxels(inside.astype(np.float32), len(gain)) > 0.5
        assert gain[here].mean() > 1.05 * gain[~here].mean()
    arrays, attributes = read_group(job.out, "result")
    end = fourier_shell_correlation(arrays["map_unfiltered"], scene.density)
    assert np.all(end[1:12] > 0.7)
    assert attributes["resolution_A"] < 14
    curves = within(masked_fsc(arrays["half1"], arrays["half2"], arrays["mask"], job.seed), BOX // 2 - 1)
    np.testing.assert_allclose(arrays["fsc_corrected"], curves.corrected, atol=1e-6)
    assert needs(job).base_bytes > needs(uniform).base_bytes
    assert needs(job).stages[1].cpu_s > needs(uniform).stages[1].cpu_s
