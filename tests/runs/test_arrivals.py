"""A workflow goes on as micrographs arrive: what is due, and that nothing is done twice or left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cloudem.errors import CloudemError, FormatError, ParameterError, StorageError
from cloudem.io.movies.store import read_movies
from cloudem.jobs.base import Context, Job
from cloudem.jobs.import_movies import ImportMovies
from cloudem.jobs.parameters import Place, parameter
from cloudem.runs.arrivals import Rule, Standing, Watcher, is_due
from cloudem.runs.workflow import Step, Workflow
from tests.io.movies_files import write_mrc
from tests.jobs.conftest import run

SEEN: list[int] = []


class Summary(Job):
    """A step that begins anew: it counts the movies."""

    name: ClassVar[str] = "summary"
    summary: ClassVar[str] = "Count movies."

    movies: Place = parameter(meaning="movies", reads=("movies",))

    def is_finished(self) -> bool:
        return bool(SEEN) and SEEN[-1] == len(read_movies(self.movies))

    def run(self, context: Context) -> None:
        SEEN.append(len(read_movies(self.movies)))
        context.write("", {}, {"kind": "result"})


@pytest.mark.parametrize(
    ("step", "ends", "before_it", "due"),
    [
        (Standing("a", True, True, 1), False, False, True),
        (Standing("a", True, False, 9), True, False, False),
        (Standing("b", False, True, 99), False, False, False),
        (Standing("b", False, True, 100), False, False, True),
        (Standing("b", False, True, 100), False, True, True),
        (Standing("b", False, True, 150, 100), False, False, False),
        (Standing("b", False, True, 200, 100), False, False, True),
        (Standing("b", False, True, 1, 100), True, False, True),
        (Standing("b", False, True, 0), True, True, False),
        (Standing("b", False, False, 500, 100), True, True, False),
    ],
)
def test_what_is_due(step: Standing, ends: bool, before_it: bool, due: bool) -> None:
    assert is_due(step, Rule(first=100, growth=2.0), ends=ends, before_it=before_it) is due


class Clock:
    """Time that passes by sleeping, in which things happen."""

    def __init__(self, *events: tuple[float, Callable[[], object]]) -> None:
        self.time, self.events = 0.0, list(events)

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        while self.events and self.events[0][0] <= self.time:
            self.events.pop(0)[1]()


def movie(folder: Path, number: int) -> bytes:
    folder.mkdir(exist_ok=True)
    path = write_mrc(folder / f"m{number}.mrc", np.full((2, 8, 8), number, "i2"), 1)
    return path.read_bytes()


def watcher(tmp_path: Path, clock: Clock, said: list[str], steps: list[str], **rule: Any) -> Watcher:
    SEEN.clear()
    scope = {"pixel_size_A": 1.0, "voltage_kV": 300.0, "cs_mm": 2.7, "dose_per_frame_e_per_A2": 1.0}
    first = ImportMovies(movies=str(tmp_path / "frames"), out=str(tmp_path / "p/import"), **scope)
    second = Summary(movies=str(tmp_path / "p/import"), out=str(tmp_path / "p/summary"))
    workflow = Workflow(str(tmp_path / "p"), "live", "", (Step("import", first), Step("summary", second)))

    def run_step(step: Step) -> None:
        steps.append(step.name)
        run(step.job)

    return Watcher(workflow, run_step, said.append, Rule(**rule), 10.0, clock.now, clock.sleep)


def test_movies_are_taken_up_when_they_come_and_what_begins_anew_follows_in_steps(tmp_path: Path) -> None:
    folder, said, steps = tmp_path / "frames", [], []
    whole = movie(tmp_path / "elsewhere", 9)

    def begin() -> None:
        (folder / "m9.mrc").write_bytes(whole[:-50])

    clock = Clock(
        (15, lambda: [movie(folder, n) for n in (1, 2)]), (35, begin), (55, lambda: movie(folder, 3)),
        (95, lambda: (folder / "m9.mrc").write_bytes(whole)),
    )  # fmt: skip
    watcher(tmp_path, clock, said, steps, first=2, growth=2.0, idle_s=200.0).watch()
    assert read_movies(tmp_path / "p/import")["micrograph"].tolist() == ["m1", "m2", "m3", "m9"]
    assert SEEN[0] == 2
    assert SEEN[-1] == 4
    assert len(SEEN) <= 3
    assert steps.count("import") <= 6, "a movie that is not complete is not looked at all the time"
    assert said[0].startswith("import waits: ")
    assert json.loads((tmp_path / "p/watch.json").read_text()) == {"summary": 4}


def test_a_watch_that_was_killed_goes_on_and_errors_are_said_once(tmp_path: Path) -> None:
    folder, said, steps = tmp_path / "frames", [], []
    for number in (1, 2):
        movie(folder, number)
    watched = watcher(tmp_path, Clock((5, lambda: None)), said, steps, idle_s=50.0)
    works, broken = watched.run_step, [3]

    def run_step(step: Step) -> None:
        if broken and step.name == "import" and broken[0]:
            broken[0] -= 1
            raise StorageError("the bucket cannot be reached")
        works(step)

    watched.run_step = run_step
    watched.watch()
    assert said.count("import: the bucket cannot be reached") == 1
    assert steps == ["import", "summary"]
    movie(folder, 3)
    again = watcher(tmp_path, Clock(), said, steps, idle_s=50.0)
    again.watch()
    assert len(read_movies(tmp_path / "p/import")) == 3

    def fails(step: Step) -> None:
        if step.name == "summary":
            raise CloudemError("no classes")
        works(step)

    movie(folder, 4)
    failing = watcher(tmp_path, Clock(), said, steps, idle_s=50.0)
    failing.run_step = fails
    failing.round(ends=True)
    assert said[-1] == failing.undone == "summary: no classes"
    failing.run_step = works
    failing.round(ends=True)
    assert failing.undone == ""


@pytest.mark.parametrize("late", [0, 1])
def test_the_end_is_not_waited_for_twice(late: int, tmp_path: Path) -> None:
    """Unless something arrives while the last steps run."""
    movie(tmp_path / "frames", 1)
    clock, steps = Clock(), []
    watched = watcher(tmp_path, clock, [], steps, idle_s=200.0)
    works = watched.run_step

    def run_step(step: Step) -> None:
        works(step)
        if late and SEEN == [1] and step.name == "summary":
            movie(tmp_path / "frames", 2)

    watched.run_step = run_step
    watched.watch()
    assert (SEEN, steps) == ([1, 2][: 1 + late], ["import", "summary"] * (1 + late))
    assert clock.time == 200.0 * (1 + late)


def test_a_step_that_cannot_be_looked_at_was_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps no count of another step, waits, and is run as soon as it can be looked at again."""
    said, steps, broken = [], [], [2]
    for number in range(3):
        movie(tmp_path / "frames", number)
    watched = watcher(tmp_path, Clock(), said, steps, first=3, idle_s=200.0)
    finished = Summary.is_finished

    def is_finished(self: Summary) -> bool:
        if broken[0]:
            broken[0] -= 1
            raise StorageError("the bucket cannot be reached")
        return finished(self)

    monkeypatch.setattr(Summary, "is_finished", is_finished)
    watched.round()
    assert (steps, watched.counts(), said) == (["import"], {}, ["summary: the bucket cannot be reached"])
    watched.watch()
    assert (SEEN, watched.counts()) == ([3], {"summary": 3})
    assert said.count("summary: the bucket cannot be reached") == 1


def test_what_cannot_be_watched_is_refused(tmp_path: Path) -> None:
    step = Step("summary", Summary(movies=str(tmp_path), out=str(tmp_path / "o")))
    with pytest.raises(ParameterError, match="summary cannot be watched"):
        Watcher(Workflow(str(tmp_path), "live", "", (step,)), print, print)
    with pytest.raises(ParameterError, match="needs a project"):
        Watcher(Workflow("", "live", "", (step,)), print, print)


def test_a_workflow_that_is_changed_while_it_is_watched_is_followed(tmp_path: Path) -> None:
    said, steps = [], []
    movie(tmp_path / "frames", 1)
    watched = watcher(tmp_path, Clock(), said, steps)
    first, *rest = watched.workflow.steps
    found: list[Workflow | CloudemError] = [watched.workflow]

    def reread() -> Workflow:
        if isinstance(found[0], CloudemError):
            raise found[0]
        return found[0]

    watched.reread = reread
    watched.round()
    changed = replace(first, job=first.job.model_copy(update={"least_age_s": 3600.0}))
    for now in (FormatError("no TOML"), FormatError("no TOML"), replace(watched.workflow, project="elsewhere")):
        found[0] = now
        watched.round()
        assert watched.workflow.steps[0] is first
    assert [line.partition(": ")[2] for line in said[-2:]] == [
        "no TOML",
        "another project or first step is taken when the watch is started again",
    ]
    found[0] = replace(watched.workflow, steps=(changed, *rest))
    watched.round()
    assert "the workflow was changed; its steps follow" in said
    assert watched.workflow.steps[0] is changed
