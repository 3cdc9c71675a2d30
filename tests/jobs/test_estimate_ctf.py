"""Micrographs get their CTF, one by one; a bad one is a row with a reason; what came later is taken up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import ParameterError
from cloudem.io.formats.relion import read_micrographs_star
from cloudem.io.micrographs.images import write_micrograph_image
from cloudem.io.micrographs.tables import read_micrograph_table, write_micrograph_table
from cloudem.io.storage.groups import read_group
from cloudem.jobs.ctf_tasks import spectrum_place
from cloudem.jobs.estimate_ctf import EstimateCtf
from cloudem.jobs.export import Export
from cloudem.jobs.import_micrographs import ImportMicrographs
from cloudem.testing.micrographs import SimulatedScene, simulate_micrograph
from tests.io.movies_files import write_mrc
from tests.jobs.conftest import assert_same_bits, needs, quiet_context, run

SCENE = SimulatedScene(shape=(512, 600), pixel_size=1.5, ice=2.0, defocus_u=16000.0, defocus_v=15000.0)


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    shown = {f"m{at}": simulate_micrograph(replace(SCENE, defocus_angle=0.3 * at), at) for at in range(3)}
    return {**shown, "noise": np.random.default_rng(0).normal(50, 5, (512, 600)).astype(np.float32)}


@pytest.fixture
def folder(tmp_path: Path, images: dict[str, np.ndarray]) -> Path:
    (tmp_path / "sums").mkdir()
    for name, image in images.items():
        write_mrc(tmp_path / f"sums/{name}.mrc", image[None], 2)
    write_mrc(tmp_path / "sums/flat.mrc", np.ones((1, 512, 600), np.float32), 2)
    return tmp_path / "sums"


def imported(folder: Path) -> str:
    out = folder.parent / "micrographs"
    run(ImportMicrographs(micrographs=str(folder), pixel_size_A=1.5, voltage_kV=300, cs_mm=2.7, out=str(out)))
    return str(out)


def test_from_files_to_a_star_file(folder, tmp_path):
    run(EstimateCtf(micrographs=imported(folder), out=str(tmp_path / "ctf")))
    table = read_micrograph_table(tmp_path / "ctf")
    assert table["micrograph"].tolist() == ["flat", "m0", "m1", "m2", "noise"]
    good = table["problem"] == ""
    assert good.tolist() == [False, True, True, True, False]
    assert "flat" in table["problem"][0]
    assert "no rings" in table["problem"][4]
    np.testing.assert_allclose(table["defocus_u"][good], 16000, atol=250)
    np.testing.assert_allclose(table["defocus_v"][good], 15000, atol=250)
    assert np.isnan(table["defocus_u"][0])
    arrays, attributes = read_group(tmp_path / "ctf", spectrum_place("m1"))
    assert arrays["picture"].dtype == np.uint8
    assert set(arrays) == {"picture", "data", "model", "quality"}
    assert attributes["defocus_u"] == table["defocus_u"][2]
    report = (tmp_path / "ctf/report.html").read_text()
    assert "3 of 5 micrographs have a CTF" in report
    assert "no rings" in report
    run(Export(source=str(tmp_path / "ctf"), out=str(tmp_path / "files")))
    back = read_micrographs_star(tmp_path / "files/micrographs_ctf.star")
    assert back.pixel_size == 1.5
    assert back.micrographs["micrograph"].tolist() == [str(folder / f"m{at}.mrc") for at in range(3)]
    np.testing.assert_allclose(back.micrographs["defocus_u"], table["defocus_u"][good])
    np.testing.assert_allclose(back.micrographs["defocus_angle"], table["defocus_angle"][good])


def test_a_micrograph_that_comes_later_is_added_and_the_others_are_not_done_again(folder, tmp_path, monkeypatch):
    late = (folder / "m2.mrc").rename(tmp_path / "late.mrc")
    run(EstimateCtf(micrographs=imported(folder), out=str(tmp_path / "ctf")))
    late.rename(folder / "m2.mrc")
    done = []
    from cloudem.jobs import ctf_tasks

    once = ctf_tasks.estimate_ctf
    monkeypatch.setattr(ctf_tasks, "estimate_ctf", lambda *given: (done.append(1), once(*given))[1])
    run(EstimateCtf(micrographs=imported(folder), out=str(tmp_path / "ctf")))
    assert len(done) == 1
    monkeypatch.undo()
    run(EstimateCtf(micrographs=imported(folder), out=str(tmp_path / "whole")))
    assert_same_bits(tmp_path / "ctf", tmp_path / "whole", ("micrographs",))


def test_images_of_a_result_are_read_without_weights_and_exported(tmp_path, images):
    kinds = {"sum": images["m0"] * 0 + 1, "unweighted": images["m0"]}
    places = [write_micrograph_image(str(tmp_path / "motion"), "a/m0", kinds, pixel_size=1.5)]
    from cloudem.model.micrographs import Micrographs
    from cloudem.model.optics import OpticsGroup
    from cloudem.model.table import TEXT

    columns = {
        "micrograph": np.array(["a/m0"], TEXT), "image": np.array(places, TEXT), "pixel_size": np.array([1.5]),
        "optics_group": np.zeros(1, np.int32),
    }  # fmt: skip
    context = quiet_context(tmp_path / "motion")
    write_micrograph_table(context.write, Micrographs((OpticsGroup("one", 300.0, 2.7e7, 0.1),), columns))
    run(EstimateCtf(micrographs=str(tmp_path / "motion"), tile_defocus=True, tilt=True, out=str(tmp_path / "ctf")))
    table = read_micrograph_table(tmp_path / "ctf")
    assert table["problem"].tolist() == [""]
    assert table["tilt_angle"][0] >= 0
    assert len(read_group(tmp_path / "ctf", "result")[0]["tile_residual"]) > 3
    run(Export(source=str(tmp_path / "ctf"), stack=True, out=str(tmp_path / "files")))
    assert (tmp_path / "files/micrographs/a_m0.mrc").stat().st_size == 1024 + 4 * 512 * 600
    back = read_micrographs_star(tmp_path / "files/micrographs_ctf.star")
    assert back.micrographs["micrograph"].tolist() == ["micrographs/a_m0.mrc"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_defocus_A": 5e4}, "--min-defocus-A 50000 has to be below --max-defocus-A 50000"),
        ({"max_resolution_A": 40.0}, "has to be below --min-resolution-A"),
        ({"min_phase_shift_deg": 90.0}, "--max-phase-shift-deg is below"),
    ],
)
def test_ranges_that_are_none_are_refused(folder, tmp_path, options, said):
    with pytest.raises(ParameterError, match=said):
        run(EstimateCtf(micrographs=imported(folder), out=str(tmp_path / "ctf"), **options))


def test_what_it_needs_is_known_beforehand(folder, tmp_path):
    given = imported(folder)
    plain, tilted = (needs(EstimateCtf(micrographs=given, out=str(tmp_path / "x"), tilt=tilt)) for tilt in (0, 1))
    assert plain.stages[0].items == 5
    assert plain.stages[0].cpu_s < tilted.stages[0].cpu_s
