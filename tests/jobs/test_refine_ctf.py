"""CTF refinements of small sets whose aberrations are known."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cloudem.algorithms.aberrations import Aberrations
from cloudem.algorithms.ctf_refinement import FIRST, NAMES, matrix_of, refined_optics
from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.errors import OutputExistsError, ParameterError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_group
from cloudem.jobs.base import Inputs
from cloudem.jobs.expand_symmetry import ExpandSymmetry
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine_ctf.job import RefineCtf
from cloudem.jobs.refine_ctf.run import MOST_MAGNIFICATION, fit_aberrations, shells_reached
from cloudem.kernels.fourier import half_disc
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from tests.jobs.conftest import BOX, DIAMETER, PIXEL, assert_same_bits, molecule, run

PUT_IN = np.array([0.02, -0.01, 0, -1500, 900, 400, 0, 40, 0, 0, 0, 0, 3000, 0], np.float64)
"""Large aberrations: of images that end at 10 Å."""


COUNT = 200

UNSEEN = {"rlnEvenZernike": "[" + ",".join(["1"] * 16) + "]", "rlnMagMat00": "0"}
"""What cannot be applied, of optics groups without particles."""


def made(folder: Path, *, put_in: np.ndarray, snr: float = 3.0, groups: int = 1) -> tuple[str, Particles]:
    """Write particles with true poses, plain optics and the mean defocus of their micrographs; return the truth."""
    recording = Recording(snr=snr, per_micrograph=20, defocus_min=8e3, defocus_max=2e4)
    truth = random_particles(COUNT, recording, 0)
    plain = tuple(replace(truth.optics[0], name=f"group{number}") for number in range(groups))
    group = np.where(np.arange(COUNT) < 40, groups - 1, 0)  # the first two micrographs are of the last group
    truth = replace(truth, optics=tuple(refined_optics(one, put_in) for one in plain)).with_columns(optics_group=group)
    mean = np.bincount(np.arange(COUNT) // 20, truth["defocus_u"]) / 20
    height = truth["defocus_u"] - mean[np.arange(COUNT) // 20]
    stated = tuple(replace(one, extra=UNSEEN if 0 < number < groups - 1 else {}) for number, one in enumerate(plain))
    given = replace(truth, optics=stated).with_columns(
        defocus_u=truth["defocus_u"] - height, defocus_v=truth["defocus_v"] - height
    )
    images = Simulator(molecule(), PIXEL, truth, recording, 0).images()
    write_particles(str(folder / "particles.zarr"), given, images, box=BOX, pixel_size=PIXEL, dtype="float32")
    return str(folder / "particles.zarr"), truth


def job(particles: str, out: Path, **values: Any) -> RefineCtf:
    given = {"particles": particles, "out": str(out), "symmetry": "C1", "diameter_A": DIAMETER, "group_size": 50}
    return RefineCtf(**{**given, "max_iterations": 2, **values})


@pytest.fixture(scope="module")
def aberrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Particles]:
    return made(tmp_path_factory.mktemp("aberrated"), put_in=PUT_IN)


def test_aberrations_are_found_and_written_to_the_optics_group(aberrated, tmp_path):
    particles, truth = aberrated
    progress = run(job(particles, tmp_path / "ctf"))
    result, attributes = read_group(str(tmp_path / "ctf"), "result")
    table = open_particles(str(tmp_path / "ctf")).particles
    optics, true = table.optics[0], truth.optics[0]
    np.testing.assert_allclose(optics.beam_tilt, true.beam_tilt, atol=0.15 * max(map(abs, true.beam_tilt)))
    np.testing.assert_allclose(optics.magnification, true.magnification, atol=0.003)
    deviation = (result["aberration_values"][0] - PUT_IN) / np.sqrt(np.diag(result["aberration_covariance"][0]))
    assert np.nanmax(np.abs(deviation)) < 6
    with_defocus = "not significant, applied with the defocus"
    assert set(result["aberration_verdict"]) == {"applied", "not significant", with_defocus}
    assert result["aberration_name"][result["aberration_verdict"] == with_defocus] == ["spherical aberration, k⁴"]
    assert result["phases"].shape[:2] == (1, 4)
    assert (tmp_path / "ctf" / "report.html").read_text().count("Phases of the microscope") == 1
    away = [t["defocus_u"] - truth["defocus_u"] for t in (open_particles(particles).particles, table)]
    assert away[1].std() < away[0].std()
    assert np.all(table["defocus_error"] > 0)
    assert progress.iterations()[0]["gain"] > 1
    run(Reconstruct(particles=particles, symmetry="C1", diameter_A=DIAMETER, out=str(tmp_path / "before")))
    assert attributes["resolution_A"] <= read_group(str(tmp_path / "before"), "result")[1]["resolution_A"]


def test_dask_gives_the_same_bits(aberrated, tmp_path, no_report):
    given = {"max_iterations": 1, "micrograph_astigmatism": True, "particle_scale": True, "particle_b_factor": True}
    run(job(aberrated[0], tmp_path / "serial", **given))
    run(job(aberrated[0], tmp_path / "dask", **given), lambda: DaskExecutor(threads=2))
    assert_same_bits(tmp_path / "serial", tmp_path / "dask")
    names = read_group(str(tmp_path / "serial"), "result")[0]["aberration_name"]
    assert not [name for name in names if name.startswith("astigmatism")]


def test_a_run_that_goes_on_is_one_that_never_stopped(aberrated, tmp_path, no_report):
    particles, _ = aberrated
    run(job(particles, tmp_path / "whole", max_iterations=2))
    run(job(particles, tmp_path / "parts", max_iterations=1))
    with pytest.raises(OutputExistsError, match="seed"):
        job(particles, tmp_path / "parts", max_iterations=2, seed=1).preflight(Inputs())
    progress = run(job(particles, tmp_path / "parts", max_iterations=2))
    assert [row["iteration"] for row in progress.iterations()] == [1, 2]
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_a_small_group_keeps_what_it_has_and_the_other_is_fitted(tmp_path, no_report):
    particles, _ = made(tmp_path, put_in=PUT_IN, groups=3)
    progress = run(job(particles, tmp_path / "ctf", max_iterations=1))
    before, after = (open_particles(place).particles.optics for place in (particles, str(tmp_path / "ctf")))
    assert before[1:] == after[1:]
    assert before[0] != after[0]
    assert any("group2 has 40 particles" in line for line in progress.warnings())


def test_maps_reach_as_far_as_images_of_any_magnification():
    """What the table says, and what may be added to it: beyond, slices would read what is no map."""
    matrix = np.array([[1.15, 0.03], [0.02, 0.9]])
    optics = [OpticsGroup("plain", 300, 2.7e7, 0.1), OpticsGroup("wide", 300, 2.7e7, 0.1)]
    optics[1] = optics[1].with_aberrations(magnification=matrix)
    added = matrix_of(np.full(3, MOST_MAGNIFICATION / 2))
    for limit in (8, 60):
        shown = Aberrations(magnification=np.array([matrix + added])).reach(half_disc(128, limit))
        assert shown.max() <= shells_reached(limit, optics)
        assert shells_reached(limit, optics[:1]) < shells_reached(limit, optics)


def test_images_of_noise_alone_have_no_aberrations(tmp_path, no_report):
    particles, _ = made(tmp_path, put_in=0 * PUT_IN, snr=0.0)
    run(job(particles, tmp_path / "ctf", max_iterations=1))
    assert open_particles(particles).particles.optics == open_particles(str(tmp_path / "ctf")).particles.optics


def test_what_cannot_be_fitted_is_refused_before(aberrated, tmp_path):
    particles, _ = aberrated
    with pytest.raises(ParameterError, match="states no point group"):
        job(particles, tmp_path / "ctf", symmetry="auto").preflight(Inputs())
    with pytest.raises(ParameterError, match="coarser than 20"):
        job(particles, tmp_path / "ctf", max_resolution_A=25).preflight(Inputs())
    expanded = str(tmp_path / "expanded")
    run(ExpandSymmetry(particles=particles, symmetry="C2", out=expanded))
    with pytest.raises(ParameterError, match="would count many times"):
        job(expanded, tmp_path / "ctf").preflight(Inputs())
    (tmp_path / "other").mkdir()
    run(Reconstruct(particles=particles, diameter_A=DIAMETER, out=str(tmp_path / "other")))
    with pytest.raises(OutputExistsError):
        job(particles, tmp_path / "other").preflight(Inputs())


def test_steps_that_go_too_far_are_made_shorter(monkeypatch):
    """Images that follow aberrations less than all the way make the Schur complement too small: steps were 2.4 times
    too long for faint even terms at 6 Å, went to and fro ever further, and never ended."""
    true, curvature, term = 1.0, 14.0, NAMES.index("fourth order, k⁴ cos 2φ")

    def one_pass(run, fit, maps):
        off = true - fit.change[0, term]
        matrix, gradient = np.zeros((1, 14, 14)), np.zeros((1, 14))
        matrix[0, term, term], gradient[0, term] = curvature / 2.4, curvature * off
        sums = SimpleNamespace(cost=np.array([curvature * off**2 / 2]), weight=np.array([1500.0]), matrix=matrix,
                               gradient=gradient)  # fmt: skip
        return sums, fit.fitted, fit.variance

    monkeypatch.setattr("cloudem.jobs.refine_ctf.run.one_pass", one_pass)
    free = np.zeros((1, 14), bool)
    free[0, term] = True
    fitted = SimpleNamespace(defocus=np.full(1, 1e4), put=lambda accepted, parameters: parameters)
    fit = SimpleNamespace(change=np.zeros((1, 14)), fitted=fitted, variance=np.zeros(1), free=free, spread=100.0,
                          precision=np.zeros((1, 14, 14)))  # fmt: skip
    zero = np.zeros(1, np.int64)
    run = SimpleNamespace(job=SimpleNamespace(freedom=SimpleNamespace(group=np.arange(14) + FIRST)), group=zero, box=96,
                          pixel_size=2.0, micrograph=zero, weight=np.ones(1), context=SimpleNamespace(
                              log=logging.getLogger("test")))  # fmt: skip
    passes, _ = fit_aberrations(run, fit, SimpleNamespace(limit=30))
    assert passes < 6
    assert fit.change[0, term] == pytest.approx(true, abs=0.1)
