"""Rounds of ``cloudem watch`` on rented machines: when they are rented, for what, and when the watch ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cloudem.cli.submit import Submit
from cloudem.cli.watch import WatchWorkflow
from cloudem.cloud.local.provider import LocalProvider
from cloudem.errors import CloudemError
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.movies.store import read_movies
from cloudem.jobs.base import Context, Job
from cloudem.jobs.growing import Found, Growing, GrowingJob, row_keys
from cloudem.jobs.import_movies import ImportMovies
from cloudem.jobs.parameters import Place, parameter
from cloudem.runs.records import RunRecord, RunState, RunStore, Wishes, runs_of
from cloudem.runs.workflow import Step, Workflow
from tests.io.movies_files import write_mrc
from tests.jobs.conftest import run
from tests.runs.test_runs import provider  # noqa: F401

DONE: list[str] = []


def look_at(entries: Sequence[str]) -> Found:
    DONE.extend(entries)
    problems = np.array(["it is bad" if name.startswith("bad") else "" for name in entries], np.dtypes.StringDType())
    return {"problem": problems}


class Look(GrowingJob):
    """A step that goes on, and cannot use some movies."""

    name: ClassVar[str] = "look"
    summary: ClassVar[str] = "Look."
    grows: ClassVar[tuple[str, ...]] = ("movies",)

    movies: Place = parameter(meaning="movies", reads=("movies",))

    def growing(self, url: str) -> Growing:
        table = read_movies(self.movies)
        return Growing(row_keys(table), table["micrograph"].tolist(), look_at)

    def settled(self, found: Found) -> Any:
        return found["problem"] == ""

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        return {"problem": found["problem"]}, {}


class Failing(Job):
    """A step that begins anew, and fails."""

    name: ClassVar[str] = "classify2d"
    summary: ClassVar[str] = "Fail."

    movies: Place = parameter(meaning="movies", reads=("movies",))

    def run(self, context: Context) -> None:
        raise CloudemError("two starts do not agree")


def movie(folder: Path, name: str) -> None:
    write_mrc(folder / f"{name}.mrc", np.ones((3, 16, 16), np.int8), 0)


class Rented:
    """Stands for rented machines: does what is submitted here, at a price."""

    def __init__(self, project: str, meanwhile: Callable[[int], None], status: str = "done") -> None:
        self.project, self.meanwhile, self.status = project, meanwhile, status
        self.caps: list[float] = []
        self.steps: list[list[str]] = []

    def __call__(self, submit: Submit, workflow: Workflow) -> None:
        assert submit.max_usd is not None
        self.caps.append(submit.max_usd)
        self.steps.append([step.name for step in workflow.steps])
        store = RunStore.of(self.project, f"{submit.run_name}-20260101-{len(self.caps):06d}")
        steps = tuple({"job": step.job.name, "out": step.job.out} for step in workflow.steps)
        store.create(
            RunRecord(name=store.url.rpartition("/")[2], created=1e9, owner="me", provider="local", region="local",
                      steps=steps, plan={}, version="0"),
            Wishes(max_usd=submit.max_usd, deadline=2e9),
        )  # fmt: skip
        self.meanwhile(len(self.caps))
        status = self.status
        try:
            for number, step in enumerate(workflow.steps):
                run(step.job)
                store.finish(number, {})
        except CloudemError:
            status = "failed"
            raise
        finally:
            store.write_state(RunState(at=time.time(), status=status, spent_usd=0.4, why="so it is"))  # type: ignore[arg-type]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rented]:
    """Runs a watch to its end on machines that are none."""
    DONE.clear()
    frames, project = tmp_path / "frames", str(tmp_path / "project")
    frames.mkdir()
    for name in ("m0", "m1", "bad0", "bad1"):
        movie(frames, name)

    def watch(meanwhile: Callable[[int], None] = lambda turn: None, status: str = "done", **given: Any) -> Rented:
        movies = ImportMovies(movies=str(frames), pixel_size_A=1.0, voltage_kV=300, cs_mm=2.7, out=f"{project}/movies")
        steps = [Step("movies", movies), Step("look", Look(movies=f"{project}/movies", out=f"{project}/look"))]
        if given.pop("fails", False):
            steps.append(Step("classes", Failing(movies=f"{project}/movies", out=f"{project}/classes")))
        rented = Rented(project, meanwhile, status)
        monkeypatch.setattr(Submit, "submit", lambda self, workflow: rented(self, workflow))
        values = {"max_usd": 2.0, "at_least": 2, "end_after_min": 0.0, "poll_s": 0.01, "yes": True, **given}
        command = WatchWorkflow(workflow="live.toml", **values)
        command.watch(Workflow(project, "live", "local", tuple(steps)), lambda step: run(step.job))
        return rented

    return watch


def test_what_came_meanwhile_is_gone_on_with_and_what_cannot_be_used_rents_nothing(watched, tmp_path) -> None:
    def come(turn: int) -> None:
        if turn == 1:
            movie(tmp_path / "frames", "m2")
            movie(tmp_path / "frames", "m3")

    rented = watched(come)
    assert rented.caps == pytest.approx([2.0, 1.6])
    assert [name for name in DONE if name.startswith("m")] == ["m0", "m1", "m2", "m3"]
    assert DONE.count("bad0") == 2  # tried once more where something else was to be done, and not by itself


def test_the_watch_ends_when_the_money_is_spent(watched, tmp_path) -> None:
    def come(turn: int) -> None:
        for number in (0, 1):
            movie(tmp_path / "frames", f"n{turn}-{number}")

    with pytest.raises(CloudemError, match=r"\$1 are spent, and 2 movies wait; go on with a --max-usd above 1"):
        watched(come, max_usd=1.0)
    assert len(DONE) == 12  # three rounds: the last began with a fifth of the money


def test_a_step_that_begins_anew_and_fails_is_not_paid_for_again_and_again(watched) -> None:
    rented = watched(fails=True, first_particles=1)
    assert rented.steps == [["look", "classes"]]


def test_a_run_that_was_stopped_ends_the_watch(watched) -> None:
    with pytest.raises(CloudemError, match="was stopped"):
        watched(status="stopped", max_usd=9.0)


@pytest.mark.usefixtures("provider")
def test_a_round_on_this_computer_as_if_it_were_rented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path / "cache"))
    frames, project = tmp_path / "sums", tmp_path / "project"
    frames.mkdir()
    for number in range(2):
        write_stack(frames / f"m{number}.mrc", [np.ones((1, 16, 16), np.float32)], 1, 1.0)
    workflow = tmp_path / "live.toml"
    workflow.write_text(
        f'project = "{project}"\nname = "live"\n[[step]]\njob = "import_micrographs"\nname = "all"\n'
        f'micrographs = "{frames}"\npixel_size_A = 1.0\nvoltage_kV = 300\ncs_mm = 2.7\n'
        '[[step]]\njob = "select_micrographs"\nname = "good"\nmicrographs = "all"\n'
    )
    command = WatchWorkflow(
        workflow=str(workflow), max_usd=1.0, region="local", at_least=2, end_after_min=0.0, poll_s=0.1, yes=True
    )
    command.watch(command.read(), lambda step: run(step.job))
    assert read_micrograph_table(str(project / "good"))["micrograph"].tolist() == ["m0", "m1"]
    (name,) = runs_of(str(project))
    store = RunStore.of(str(project), name)
    state = store.state()
    assert state is not None
    assert (state.status, store.finished().keys()) == ("done", {0})
    assert 0 < state.spent_usd < 0.1
    assert LocalProvider().resources() == []
