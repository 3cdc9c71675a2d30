"""Particles are picked in simulated micrographs: found, not found in noise, and with one model as micrographs come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.cli import main
from cloudem.errors import FormatError, ParameterError
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.micrographs.images import write_micrograph_image
from cloudem.io.micrographs.tables import read_micrograph_table, read_picks, write_micrograph_table
from cloudem.io.storage.groups import has_group, read_attributes, read_group, write_group
from cloudem.jobs.pick.job import Pick
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import TEXT
from tests.jobs.conftest import needs, run

PIXEL, DIAMETER, SHAPE = 3.0, 120.0, (480, 560)
OPTICS = (OpticsGroup("o", 300.0, 2.7e7, 0.1),)


def scene(seed: int, count: int = 60) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return a micrograph with dark balls that do not touch, and where they are (x, y)."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 1, SHAPE).astype(np.float32)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    places: list[NDArray[np.float64]] = []
    while len(places) < count:
        place = rng.uniform(20, np.array(SHAPE[::-1]) - 20)
        if all(np.hypot(*(place - other)) > 44 for other in places):
            places.append(place)
    for px, py in places:
        image -= 0.9 * np.sqrt(np.clip(1 - ((x - px) ** 2 + (y - py) ** 2) / 20**2, 0, None)).astype(np.float32)
    return image, np.array(places).reshape(-1, 2)


def micrographs(folder: Path, images: dict[str, NDArray[np.float32]]) -> str:
    places = [
        write_micrograph_image(str(folder), name, {"sum": image}, pixel_size=PIXEL) for name, image in images.items()
    ]
    count = len(images)
    table = Micrographs(OPTICS, {
        "micrograph": np.array(list(images), TEXT), "image": np.array(places, TEXT),
        "height": np.full(count, SHAPE[0], np.int32), "width": np.full(count, SHAPE[1], np.int32),
        "pixel_size": np.full(count, PIXEL), "optics_group": np.zeros(count, np.int32),
    })  # fmt: skip
    if not has_group(folder, ""):
        write_group(folder, "", {}, {"kind": "result"})
    write_micrograph_table(lambda path, arrays, said: write_group(folder, path, arrays, said), table)
    write_group(folder, "result", {"count": np.array([count])}, {})
    return str(folder)


def found_share(picks: NDArray[np.float64], truth: NDArray[np.float64]) -> tuple[float, float]:
    """Return the share of true places that are picked, and of picks that are true."""
    apart = np.hypot(*(picks[:, None] - truth[None]).transpose(2, 0, 1))
    return float((apart.min(0) < 5).mean()), float((apart.min(1) < 5).mean())


def picks_of(out: Path, name: str) -> NDArray[np.float64]:
    picks = read_picks(out)
    mine = np.array([each == name for each in picks["micrograph"].tolist()])
    return np.stack([picks["coordinate_x"][mine], picks["coordinate_y"][mine]], 1)


def test_particles_are_found_and_noise_and_junk_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = {f"m{number}": scene(number) for number in range(4)}
    images = {name: image for name, (image, _) in scenes.items()}
    images["noise"] = scene(9, 0)[0]
    images["m3"][200:300, 100:220] -= 9  # ice
    given = micrographs(tmp_path / "in", images)
    out = tmp_path / "picks"
    with pytest.raises(SystemExit) as ended:
        main(["pick", given, "--diameter-A", "120", "--out", str(out)])
    assert ended.value.code == 0
    for name in ("m0", "m1", "m2"):
        recall, precision = found_share(picks_of(out, name), scenes[name][1])
        assert recall > 0.9
        assert precision > 0.95
    table = read_micrograph_table(out)
    assert table["pick_count"].tolist()[:4] == [len(picks_of(out, f"m{number}")) for number in range(4)]
    assert table["pick_count"][4] <= 1
    assert table["masked_fraction"][3] > 0.05 > table["masked_fraction"][0]
    ice = picks_of(out, "m3")
    assert not ((ice > (105, 205)) & (ice < (215, 295))).all(1).any()
    assert (read_picks(out)["pick_score"] > 0.2).all()
    page = (out / "report.html").read_text()
    assert "Micrographs with picks" in page
    assert "<circle" in page
    capsys.readouterr()


def test_a_model_is_kept_and_used_for_micrographs_that_come_later(tmp_path: Path) -> None:
    images = {f"m{number}": scene(number)[0] for number in range(9)}
    first = {name: images[name] for name in list(images)[:8]}
    given, out = micrographs(tmp_path / "in", first), tmp_path / "out"
    job = Pick(micrographs=given, diameter_A=DIAMETER, out=str(out))
    assert needs(job).stages[1].items == 8
    run(job)
    digest, before = read_attributes(out, "model")["digest"], picks_of(out, "m2")
    micrographs(tmp_path / "in", images)
    assert not job.is_finished()
    run(job)
    assert job.is_finished()
    assert read_attributes(out, "model")["digest"] == digest
    np.testing.assert_array_equal(picks_of(out, "m2"), before)
    assert len(picks_of(out, "m8")) > 50
    other = tmp_path / "other"
    run(Pick(micrographs=given, diameter_A=DIAMETER, model=str(out), threshold=0.8, out=str(other)))
    assert read_group(other, "model")[1]["taken_from"] == str(out)
    assert 0 < len(read_picks(other)) < len(read_picks(out))


def test_a_model_of_few_micrographs_is_learned_anew_when_there_are_more(tmp_path: Path) -> None:
    given, out = micrographs(tmp_path / "in", {"m0": scene(0)[0]}), tmp_path / "out"
    job = Pick(micrographs=given, diameter_A=100.0, largest_diameter_A=150.0, out=str(out))
    run(job)
    micrographs(tmp_path / "in", {"m0": scene(0)[0], "m1": scene(1)[0]})
    run(job)
    assert read_attributes(out, "model")["micrograph_count"] == 2


def test_noise_alone_gives_nothing_and_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    given = micrographs(
        tmp_path / "in", {f"n{number}": rng.normal(0, 1, SHAPE).astype(np.float32) for number in range(4)}
    )
    out = tmp_path / "out"
    run(Pick(micrographs=given, diameter_A=DIAMETER, out=str(out)))
    assert len(read_picks(out)) == 0
    assert "nothing stands out" in read_group(out, "result")[0]["empty_reason"][0]


def test_what_cannot_be_picked_is_said(tmp_path: Path) -> None:
    images = {"m0": scene(0)[0], "lost": scene(1)[0], "m2": scene(2)[0]}
    given = micrographs(tmp_path / "in", images)
    for path in sorted((tmp_path / "in/images/lost").rglob("*")):
        if path.is_file() and path.name != "zarr.json":
            path.write_bytes(b"damaged")
    out = tmp_path / "out"
    run(Pick(micrographs=given, diameter_A=DIAMETER, out=str(out)))
    assert read_micrograph_table(out)["pick_count"].tolist()[1] == 0
    assert read_group(out, "result")[0]["empty_micrograph"].tolist() == ["lost"]
    for wrong, word in (({"diameter_A": 15.0}, "at least 8"), ({"diameter_A": 600.0}, "smaller than four particles")):
        with pytest.raises(ParameterError, match=word):
            Pick(micrographs=given, out=str(tmp_path / "x"), **wrong).preflight()
    with pytest.raises(FormatError, match="no picking model"):
        Pick(micrographs=given, diameter_A=DIAMETER, model=given, out=str(tmp_path / "x")).preflight()
    with pytest.raises(ParameterError, match="exchange them"):
        Pick(micrographs=given, diameter_A=200.0, largest_diameter_A=100.0, out=str(tmp_path / "x")).preflight()


def test_a_network_is_trained_on_marks_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr("cloudem.algorithms.picking_model.taught.__defaults__", (40,))
    scenes = {f"m{number}": scene(number) for number in range(3)}
    given = micrographs(tmp_path / "in", {name: image for name, (image, _) in scenes.items()})
    for name in ("m0", "m1"):
        np.savetxt(tmp_path / f"{name}_marks.csv", scenes[name][1], delimiter=",", header="x,y", comments="")
    marks = str(tmp_path / "*_marks.csv")
    out = tmp_path / "out"
    run(Pick(micrographs=given, diameter_A=DIAMETER, learned=True, train_on=marks, out=str(out)))
    assert read_group(out, "model")[1]["micrographs"] == ["m0", "m1"]
    recall, precision = found_share(picks_of(out, "m2"), scenes["m2"][1])
    assert recall > 0.9
    assert precision > 0.9
    other = tmp_path / "other"
    run(Pick(micrographs=given, diameter_A=DIAMETER, model=str(out), out=str(other)))
    np.testing.assert_array_equal(picks_of(other, "m2"), picks_of(out, "m2"))


def test_micrographs_that_are_of_no_use_have_no_picks_and_others_may_come_later(tmp_path: Path) -> None:
    given, out = micrographs(tmp_path / "in", {"m0": scene(0)[0]}), tmp_path / "out"
    table = read_micrograph_table(given)
    bad = table.with_columns(problem=["it drifted"])
    write_micrograph_table(lambda path, arrays, said: write_group(given, path, arrays, said), bad)
    job = Pick(micrographs=given, diameter_A=DIAMETER, out=str(out))
    run(job)
    assert read_group(out, "result")[0]["empty_reason"].tolist() == ["it drifted"]
    assert read_micrograph_table(out)["pick_count"].tolist() == [0]
    write_micrograph_table(lambda path, arrays, said: write_group(given, path, arrays, said), table)
    run(job)
    assert read_micrograph_table(out)["pick_count"][0] > 40


def test_views_of_a_map_are_templates(tmp_path: Path) -> None:
    given, out = micrographs(tmp_path / "in", {f"m{number}": scene(number)[0] for number in range(2)}), tmp_path / "out"
    z, y, x = np.mgrid[:32, :32, :32] - 16
    write_volume(tmp_path / "ball.mrc", (x**2 + y**2 + z**2 < 10**2).astype(np.float32), 6.0)
    run(Pick(micrographs=given, diameter_A=DIAMETER, template=str(tmp_path / "ball.mrc"), out=str(out)))
    recall, precision = found_share(picks_of(out, "m1"), scene(1)[1])
    assert recall > 0.9
    assert precision > 0.95
