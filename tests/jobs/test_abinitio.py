"""A map from nothing is that of the molecule where there is one, and none where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.algorithms.abinitio import STAGES, Agreement, agreement_of, is_isotropic
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.placing import moved_map, place
from cloudem.algorithms.resolution import low_pass
from cloudem.errors import OutputExistsError, ParameterError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.executor import SerialExecutor
from cloudem.io.formats.mrc import read_volume
from cloudem.io.storage.groups import read_group
from cloudem.jobs.abinitio import SPHERE, AbInitio, no_agreement
from cloudem.jobs.maps import read_map
from cloudem.jobs.simulate import Simulate
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.symmetry import operators
from tests.jobs.conftest import BOX, DIAMETER, PIXEL, Scene, assert_same_bits, make_scene, molecule, needs, run


def start(scene: Scene, out: Path | str, **values: Any) -> AbInitio:
    return AbInitio(**{"particles": scene.particles, "diameter_A": DIAMETER, "starts": 3, "out": str(out), **values})


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("many"), count=300, snr=0.4)


def test_the_molecule_is_found_without_a_reference(tmp_path: Path) -> None:
    demo = Simulate(demo=True, box_px=48, pixel_size_A=5.0, count=800, snr=0.2, blind=True, out=str(tmp_path / "demo"))
    run(demo)
    job = AbInitio(particles=f"{demo.out}/particles.zarr", diameter_A=180.0, starts=2, out=str(tmp_path / "out"))
    progress = run(job, lambda: DaskExecutor(threads=2))
    assert progress.warnings() == []
    arrays, attributes = read_group(job.out, "result")
    assert attributes["starts_agreeing"] == 2
    assert attributes["evidence"] > 50
    assert arrays["start_evidence"].max() == pytest.approx(attributes["evidence"])
    volume = read_map(job.out)  # as the next job reads it
    truth = read_volume(f"{demo.out}/density.mrc")
    placed = place(volume.data, truth.data, 5.0, 90.0)
    sphere = soft_sphere(48, 18.0, 3)
    curve = fourier_shell_correlation(volume.data * sphere, placed.volume * sphere)
    assert np.all(curve[1:9] > 0.9)
    assert attributes["filter_A"] < 24  # the starts end at 180 / 7.5 Å
    assert attributes["filter_A"] == pytest.approx(arrays["carried_agrees_A"][1])
    assert (tmp_path / "out" / "report.html").exists()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer and smaller batches."""
    fewer = tuple(stage._replace(batches=3, images=60) for stage in STAGES[::2])
    monkeypatch.setattr("cloudem.algorithms.abinitio.STAGES", fewer)


def test_of_noise_there_is_no_map(short: None, tmp_path: Path) -> None:
    scene = make_scene(tmp_path, count=300, snr=0)
    job = start(scene, tmp_path / "out", starts=2)
    progress = run(job)
    arrays, attributes = read_group(job.out, "result")
    assert "map" not in arrays
    assert "no agreement" in progress.warnings()[0]
    assert attributes["evidence"] < 8
    with pytest.raises(OutputExistsError, match="with other parameters"):
        start(scene, tmp_path / "out", starts=3).preflight()


def test_starts_are_the_same_to_the_bit_anywhere(short: None, many: Scene, tmp_path: Path) -> None:
    for name, executor in (("serial", SerialExecutor), ("dask", lambda: DaskExecutor(threads=2))):
        run(start(many, tmp_path / name, starts=2), executor)
    assert_same_bits(tmp_path / "serial", tmp_path / "dask", ("result",))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"diameter_A": 500.0}, "does not fit"),
        ({"diameter_A": 20.0}, "is less than 8 px"),
        ({"starts": 1}, "cannot agree with another one"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], said: str, many: Scene, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=said):
        start(many, tmp_path / "out", **values).preflight()


def test_too_few_particles_are_refused(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="160 particles are too few"):
        start(scene, tmp_path / "out").preflight()


def test_a_plan_counts_starts(many: Scene, tmp_path: Path) -> None:
    def counted(**values: Any) -> list[int]:
        return [stage.items for stage in needs(start(many, tmp_path / "out", **values)).stages]

    assert counted(starts=7) == [7, 2]
    assert counted(starts=0) == [4, 2]
    assert counted(starts=0, symmetry="D2") == [8, 2]


def test_maps_of_either_hand_agree_and_another_molecule_does_not() -> None:
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    mine = low_pass(molecule(), PIXEL, 16.0)
    other = moved_map(mine, turn, np.array([1.0, -1.0, 0.5]), mirrored=True)
    foreign = low_pass(np.roll(molecule("D2"), 2, axis=0), PIXEL, 16.0)
    found = agreement_of([other, mine, foreign], np.array([2.5, 3.0, 2.0]), BOX * PIXEL, DIAMETER / 2, 10)
    assert found.best == 1
    assert found.agrees.tolist() == [True, True, False]
    assert found.mirrored[0]
    unlikely = agreement_of([other, mine], np.array([1.5, 3.0]), BOX * PIXEL, DIAMETER / 2, 10)
    assert unlikely.shells.tolist() == [0.0, 10.0]  # is not compared


def test_a_hollow_sphere_says_nothing() -> None:
    rng = np.random.default_rng(1)
    grid = np.arange(BOX) - BOX // 2
    distance = np.sqrt(grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2)
    shell = np.exp(-((distance - 8) ** 2) / 4)
    shape = low_pass(shell * rng.standard_normal((BOX,) * 3), PIXEL, 16.0)
    found = agreement_of([(10 * shell + shape).astype(np.float32)] * 2, np.ones(2), BOX * PIXEL, DIAMETER / 2, 10)
    assert found.aspherical < SPHERE
    assert "hardly more than a sphere" in no_agreement(4, 50.0, found.aspherical)
    assert agreement_of([molecule()] * 2, np.ones(2), BOX * PIXEL, DIAMETER / 2, 10).aspherical > SPHERE


def test_starts_whose_maps_diverged_are_no_agreement() -> None:
    lost = np.full((BOX,) * 3, np.nan, np.float32)
    found = agreement_of([lost, molecule(), lost], np.array([np.nan, 9.0, -np.inf]), BOX * PIXEL, DIAMETER / 2, 10)
    assert (found.best, found.agrees.tolist()) == (1, [False, True, False])
    nothing = agreement_of([lost, lost], np.array([np.nan, np.nan]), BOX * PIXEL, DIAMETER / 2, 10)
    assert not nothing.agrees.any()
    assert "no better than noise" in no_agreement(2, float("nan"), nothing.aspherical)


def test_groups_without_an_axis_unlike_the_others_begin_finer() -> None:
    groups = ("C1", "C2", "C12", "D2", "D3", "D7", "T", "O", "I")
    assert [is_isotropic(operators(group)) for group in groups] == [False] * 6 + [True] * 3


def test_there_are_more_starts_while_one_is_alone(
    short: None, many: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def alone(maps: list[np.ndarray], evidence: np.ndarray, *_: Any) -> Agreement:
        asked.append(len(maps))
        return Agreement(0, np.zeros(len(maps)), np.arange(len(maps)) == 0, np.zeros(len(maps), bool), 0.5)

    monkeypatch.setattr("cloudem.algorithms.abinitio.agreement_of", alone)
    monkeypatch.setattr("cloudem.jobs.abinitio.EVIDENT", -1e9)
    job = start(many, tmp_path / "out", starts=2)
    progress = run(job)
    assert asked == [2, 4, 6]
    assert "no other of 6 starts" in progress.warnings()[0]
    arrays, _ = read_group(job.out, "result")
    assert len(np.unique(arrays["start_evidence"])) == 6


def test_starts_that_fall_apart_leave_no_map(
    short: None, many: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = Agreement(1, np.array([8.0, 8.0]), np.array([True, True]), np.array([False, True]), 0.5)
    monkeypatch.setattr("cloudem.algorithms.abinitio.agreement_of", lambda *_: agreed)
    monkeypatch.setattr("cloudem.algorithms.abinitio.agreed_shell", lambda *_: (2.0, False))
    monkeypatch.setattr("cloudem.jobs.abinitio.EVIDENT", -1e9)
    job = start(many, tmp_path / "out", starts=2)
    progress = run(job)
    arrays, _ = read_group(job.out, "result")
    assert "map" not in arrays
    assert arrays["carried_start"].tolist() == [2, 1] or arrays["start_evidence"][0] > arrays["start_evidence"][1]
    assert "carried on, their maps agree only to" in progress.warnings()[0]
