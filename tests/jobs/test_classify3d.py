"""States of small simulated sets: found again, not invented, with the same bits whatever happens on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.algorithms.states import Gain
from cloudem.errors import MissingColumnError, OutputExistsError, ParameterError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.executor import SerialExecutor
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import has_group, read_group
from cloudem.jobs.classify3d.job import Classify3D
from cloudem.jobs.classify3d.run import particle_parts
from cloudem.jobs.classify3d.state import MOST_PASSES, PASSES, first_states, next_states
from cloudem.jobs.classify3d.tasks import HELD, NOWHERE
from cloudem.jobs.export import Export
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.select import Select
from tests.jobs.conftest import BOX, DIAMETER, PIXEL, assert_same_bits, molecule, run

COUNT, SECOND = 500, 0.3


class Mixed:
    """A store of particles with poses, and the state that each shows."""

    def __init__(self, folder: Path, *, share: float, seed: int = 0, snr: float = 0.3) -> None:
        self.store = str(folder / "particles.zarr")
        whole = molecule()
        other = whole.copy()
        other[:, :, BOX // 2 + 3 :] = 0  # a part of it is not there
        table = random_particles(COUNT, Recording(snr=snr, per_micrograph=20, defocus_min=8e3, defocus_max=2e4), seed)
        rng = np.random.default_rng(seed)
        self.state = (rng.random(COUNT) < share).astype(np.int64)
        first, second = (Simulator(each, PIXEL, table, Recording(snr=snr), seed) for each in (whole, other))
        second.scale = first.scale
        images = [(second if each else first).some_images(np.array([i]))[0] for i, each in enumerate(self.state)]
        write_particles(self.store, table, [np.stack(images)], box=BOX, pixel_size=PIXEL, dtype="float32")
        self.reference = str(folder / "reference.mrc")
        write_volume(self.reference, whole, PIXEL)


def sorting(mixed: Mixed, out: Path | str, **values: Any) -> Classify3D:
    given = {"particles": mixed.store, "diameter_A": DIAMETER, "classes": 2, "resolution_A": 15.0, "group_size": 50}
    return Classify3D(**{**given, "report": False, "out": str(out), **values})


def right(mixed: Mixed, number: NDArray[np.int64]) -> float:
    """Return the share of particles that are in the class of their state."""
    return float(np.mean(mixed.state == number - 1))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    return Mixed(tmp_path_factory.mktemp("mixed"), share=SECOND)


@pytest.fixture(scope="module")
def undisturbed(mixed: Mixed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(sorting(mixed, out, report=True))
    return out


def test_two_states_are_told_apart(mixed: Mixed, undisturbed: Path) -> None:
    arrays, attributes = read_group(str(undisturbed), "result")
    table = open_particles(str(undisturbed)).particles
    assert right(mixed, table["class_number"]) > 0.97
    assert attributes["states"] == 2
    assert attributes["gain"] > 5 * attributes["gain_error"]
    assert attributes["held_out"] == 100
    np.testing.assert_allclose(arrays["class_share"], [1 - SECOND, SECOND], atol=0.05)
    np.testing.assert_allclose(arrays["class_posterior"].sum(axis=1), 1)
    assert arrays["class_maps"].shape == (2, BOX, BOX, BOX)
    first, second = arrays["class_maps"]
    gone = np.s_[BOX // 4 : -BOX // 4, BOX // 4 : -BOX // 4, BOX // 2 + 4 : BOX // 2 + 9]
    assert second[gone].mean() < 0.3 * first[gone].mean()
    page = (undisturbed / "report.html").read_text()
    assert "2 states" in page
    assert "Class 2, difference" in page


def test_one_state_is_an_answer(tmp_path: Path) -> None:
    alike = Mixed(tmp_path, share=0.0, seed=1)
    run(sorting(alike, tmp_path / "out", classes=3))
    arrays, attributes = read_group(str(tmp_path / "out"), "result")
    table = open_particles(str(tmp_path / "out")).particles
    assert attributes["states"] == 1
    assert attributes["notes"][0].startswith("One state: 3 classes explain")
    np.testing.assert_array_equal(table["class_number"], 1)
    assert arrays["class_maps"].shape == (1, BOX, BOX, BOX)
    np.testing.assert_allclose(table["rot"], open_particles(alike.store).particles["rot"])


def test_noise_is_one_state_and_said(tmp_path: Path) -> None:
    run(sorting(Mixed(tmp_path, share=0.0, snr=0.0), tmp_path / "out", classes=0, resolution_A=0.0))
    attributes = read_group(str(tmp_path / "out"), "result")[1]
    assert attributes["states"] == 1
    assert any(text.startswith("halves of the consensus agree to") for text in attributes["warnings"])


def test_the_number_of_states_is_found(mixed: Mixed, tmp_path: Path) -> None:
    run(sorting(mixed, tmp_path / "out", classes=0))
    assert read_group(str(tmp_path / "out"), "result")[1]["states"] == 2
    assert right(mixed, open_particles(str(tmp_path / "out")).particles["class_number"]) > 0.97
    assert not has_group(str(tmp_path / "out"), "best/2")


def test_a_selection_of_a_class_is_refined_and_exported(mixed: Mixed, undisturbed: Path, tmp_path: Path) -> None:
    run(Select(particles=str(undisturbed), classes="2", report=False, out=str(tmp_path / "second")))
    members = open_particles(str(tmp_path / "second")).particles
    assert len(members) == pytest.approx(SECOND * COUNT, abs=25)
    given = {"particles": str(tmp_path / "second"), "reference": mixed.reference, "diameter_A": DIAMETER}
    run(Refine3D(**given, local=True, max_iterations=1, report=False, out=str(tmp_path / "refine")))
    assert len(open_particles(str(tmp_path / "refine")).particles) == len(members)
    run(Export(source=str(undisturbed), out=str(tmp_path / "files"), stack=True))
    assert "rlnClassNumber" in (tmp_path / "files" / "particles.star").read_text()
    with mrcfile.open(tmp_path / "files" / "class002.mrc") as file:
        np.testing.assert_array_equal(file.data, read_group(str(undisturbed), "result")[0]["class_maps"][1])


def test_dask_gives_the_same_bits(mixed: Mixed, undisturbed: Path, tmp_path: Path) -> None:
    run(sorting(mixed, tmp_path / "out"), lambda: DaskExecutor(threads=2))
    assert_same_bits(undisturbed, tmp_path / "out")


def test_poses_are_searched_by_option(mixed: Mixed, tmp_path: Path) -> None:
    run(sorting(mixed, tmp_path / "out", search=True))
    assert right(mixed, open_particles(str(tmp_path / "out")).particles["class_number"]) > 0.97
    assert read_group(str(tmp_path / "out"), "result")[1]["states"] == 2


class Stopped(SerialExecutor):
    """Fails in its n-th accumulation."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def accumulate(self, *given: Any, **options: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return super().accumulate(*given, **options)


@pytest.mark.parametrize("left", [1, 3, 4])
def test_stopped_and_resumed(left: int, mixed: Mixed, undisturbed: Path, tmp_path: Path) -> None:
    job = sorting(mixed, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(job, lambda: Stopped(left))
    assert not has_group(job.out, "result")
    run(job)
    assert_same_bits(undisturbed, tmp_path / "out")
    with pytest.raises(OutputExistsError, match="contains this job with another --classes"):
        sorting(mixed, tmp_path / "out", classes=3).preflight()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"classes": 1}, "--classes 1 compares nothing"),
        ({"classes": 6}, "500 particles are too few: 600 are needed for 6 classes"),
        ({"diameter_A": 500.0}, "does not fit in the images"),
        ({"resolution_A": 60.0}, "--resolution-A 60 is too coarse for a box of 160 Å; give 40 Å or finer"),
        ({"symmetry": "Q"}, "Q"),
    ],
)
def test_wrong_parameters(values: dict[str, Any], said: str, mixed: Mixed, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=said):
        sorting(mixed, tmp_path / "out", **values).preflight()


def test_poses_are_needed(mixed: Mixed, tmp_path: Path) -> None:
    store = open_particles(mixed.store)
    bare = store.particles.without_columns(("rot", "tilt", "psi"))
    write_particles(tmp_path / "bare", bare, [store.read_images(np.arange(COUNT))], box=BOX, pixel_size=PIXEL)
    with pytest.raises(MissingColumnError, match="rot"):
        sorting(mixed, tmp_path / "out", particles=str(tmp_path / "bare")).preflight()


def test_parts_are_of_one_half_set_each() -> None:
    halves = np.repeat(np.array([0, 1, 2], np.int8), 100)
    part = particle_parts(halves, 0, np.arange(300))
    assert np.all(part[:100] == NOWHERE)
    assert np.count_nonzero(part == HELD) == 40
    assert set(part[100:200]) == {0, 2, HELD}
    assert set(part[200:]) == {1, 3, HELD}


def test_what_comes_next() -> None:
    certain, uncertain = Gain(0.2, 0.02, 400), Gain(0.02, 0.02, 400)
    state = next_states(first_states(0), 0, 8, limit=20)
    assert (state.phase, state.limit, state.classes) == ("start", 20, 2)
    state = next_states(state, 0, 8, limit=20)
    rounding = next_states(state, 2, 8, limit=20, moved=0.01, gain=Gain(1e-12, 1e-16, 400))
    assert (rounding.finished, rounding.classes) == (True, 1)
    again = next_states(state, 0, 8, limit=20, moved=0.2, gain=certain)
    assert (again.phase, again.passes) == ("classes", 1)
    one = next_states(state, 0, 8, limit=20, moved=0.01, gain=uncertain)
    assert (one.finished, one.classes) == (True, 1)
    three = next_states(state, 0, 8, limit=20, moved=0.01, gain=certain)
    assert (three.phase, three.classes, three.kept) == ("start", 3, 2)
    back = next_states(next_states(three, 0, 8, limit=20), 0, 8, limit=20, moved=0.01, gain=uncertain)
    assert (back.phase, back.classes) == ("join", 2)
    asked = next_states(state, 2, 8, limit=20, moved=0.025, gain=certain)
    assert (asked.phase, asked.classes) == ("join", 2)
    settled = next_states(state, 2, 8, limit=20, moved=0.0, gain=certain)
    assert (settled.finished, settled.classes) == (True, 2)
    assert next_states(state, 2, 8, limit=20, moved=0.0, gain=certain, search=True).phase == "join"
    assert next_states(asked, 2, 8, limit=20, moved=0.0).finished
    assert next_states(asked, 2, 8, limit=20, moved=0.0, search=True).phase == "settle"
    lost = state
    for _ in range(PASSES):
        lost = next_states(lost, 2, 8, limit=20, moved=0.5, gain=uncertain)
    assert lost.finished
    for _ in range(MOST_PASSES):
        state = next_states(state, 2, 8, limit=20, moved=0.5, gain=certain)
    assert state.phase == "join"
