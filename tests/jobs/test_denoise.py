"""``cloudem denoise``: micrographs with even and odd sums are denoised; picks of them belong to the recorded ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudem.io.micrographs.images import open_micrograph_image, write_micrograph_image
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.storage.groups import read_group
from cloudem.jobs.denoise import Denoise
from cloudem.jobs.pick.job import Pick
from tests.jobs.conftest import needs, run
from tests.jobs.test_pick import DIAMETER, PIXEL, SHAPE, found_share, micrographs, picks_of, scene


def with_sums(tmp_path: Path) -> str:
    given = micrographs(tmp_path / "in", {name: scene(0)[0] for name in ("m0", "m1", "plain", "noise")})
    rng = np.random.default_rng(3)
    for number, name in enumerate(("m0", "m1", "noise")):
        clean = 0 if name == "noise" else scene(number)[0]
        sums = {kind: (clean + rng.normal(0, 1, SHAPE)).astype(np.float32) for kind in ("even", "odd")}
        whole = (sums["even"] + sums["odd"]) / 2
        write_micrograph_image(given, name, {"sum": whole, **sums}, pixel_size=PIXEL)
    return given


def test_denoised_micrographs_are_picked_and_particles_are_of_the_recorded_ones(tmp_path: Path) -> None:
    given = with_sums(tmp_path)
    job = Denoise(micrographs=given, out=str(tmp_path / "denoised"))
    assert needs(job).stages[0].items == 4
    run(job)
    arrays, _ = read_group(tmp_path / "denoised", "result")
    assert arrays["left_out_micrograph"].tolist() == ["plain", "noise"]
    assert "no sums of even and odd" in arrays["left_out_reason"][0]
    assert "above noise" in arrays["left_out_reason"][1]
    assert (arrays["hallucination"] < 0.01).all()
    recorded, table = read_micrograph_table(given), read_micrograph_table(tmp_path / "denoised")
    assert open_micrograph_image(table["image"][0]).shape == SHAPE
    assert table["image"][0] != recorded["image"][0]
    assert "Denoised micrographs" in (tmp_path / "denoised/report.html").read_text()
    run(Pick(micrographs=str(tmp_path / "denoised"), diameter_A=DIAMETER, out=str(tmp_path / "picks")))
    recall, precision = found_share(picks_of(tmp_path / "picks", "m1"), scene(1)[1])
    assert recall > 0.8
    assert precision > 0.9
    assert read_micrograph_table(tmp_path / "picks")["image"].tolist() == recorded["image"].tolist()


def test_a_network_learns_one_sum_from_the_other_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr("cloudem.algorithms.denoising_network.train_denoiser.__defaults__", (150,))
    job = Denoise(micrographs=with_sums(tmp_path), method="noise2noise", out=str(tmp_path / "denoised"))
    run(job)
    assert read_group(tmp_path / "denoised", "model")[1]["micrographs"] == ["m0", "m1", "noise"]
    arrays, _ = read_group(tmp_path / "denoised", "result")
    assert (arrays["hallucination"] < 0.01).all()
    assert arrays["left_out_micrograph"].tolist() == ["plain"]
    assert job.is_finished()
    image = open_micrograph_image(read_micrograph_table(tmp_path / "denoised")["image"][0]).read()
    clean = scene(0)[0] - np.random.default_rng(0).normal(0, 1, SHAPE)  # the same without its noise
    assert np.corrcoef(image.ravel(), clean.ravel())[0, 1] > 0.6
