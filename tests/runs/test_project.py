"""What is in a project, with and without an index, and how often its storage is asked for that."""

from __future__ import annotations

import json
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import CloudemError, MissingInputError
from cloudem.execution.executor import SerialExecutor
from cloudem.io.storage.compare_and_swap import slot
from cloudem.io.storage.groups import write_group
from cloudem.io.storage.location import contents, exists, join, write_bytes
from cloudem.jobs.live import LIVE_FILE, LOST_REMOTE_S, Live
from cloudem.jobs.project_index import (
    INDEX_FILE,
    IndexEntry,
    note_job,
    project_of,
    read_index,
    relative_to,
)
from cloudem.jobs.report import Report
from cloudem.jobs.runner import run_job
from cloudem.runs import project as projects
from cloudem.runs.project import look_at_job, read_project
from cloudem.runs.records import RunRecord, RunState, RunStore, Wishes
from tests.counting_job import Count

NOW = 2e9


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        (tmp_path / "project").mkdir()
        return str(tmp_path / "project")
    return f"s3://{request.getfixturevalue('bucket')}/{secrets.token_hex(6)}"


def says(url: str, **values: object) -> Live:
    live = Live(**{"job": "count", "began": NOW - 50, "updated": NOW - 1, **values})  # type: ignore[arg-type]
    write_bytes(join(url, LIVE_FILE), live.model_dump_json().encode())
    return live


def result(project: str, name: str, **result_attributes: object) -> None:
    parameters = {"halves": f"{project}/refine", "mask": "/elsewhere/mask.mrc", "out": f"{project}/{name}"}
    record = {"kind": "result", "job": "postprocess", "parameters": parameters, "date": "2026-03-01T12:00:00+00:00"}
    write_group(join(project, name), "", {}, record)
    if result_attributes:
        write_group(join(project, name), "result", {"x": np.zeros(2)}, result_attributes)


def job_at(project: str, name: str) -> Count:
    return Count(numbers=("1",), out=join(project, name))


def entry(project: str, name: str, now: Live, **options: str) -> None:
    note_job(job_at(project, name), now, **options)


def test_jobs_are_found_by_what_they_say_and_by_what_older_ones_left(place: str) -> None:
    says(join(place, "running"), iterations=({"iteration": 2, "resolution_A": 7.5},))
    says(join(place, "broken"), state="failed", why="no room")
    says(join(place, "lost"), updated=NOW - LOST_REMOTE_S - 1)
    result(place, "old", resolution_A=4.5, wall_s=60.0)
    result(place, "begun")
    write_bytes(join(place, "notes", "note.txt"), b"not a job")
    write_bytes(join(place, "damaged", "zarr.json"), b"{")
    found = read_project(place, NOW)
    jobs = {job.path: job for job in found.jobs}
    assert found.jobs[0].path == "running"
    assert {path: job.state for path, job in jobs.items()} == {
        "running": "running", "broken": "failed", "lost": "lost", "old": "finished", "begun": "unfinished",
        "damaged": "unreadable",
    }  # fmt: skip
    assert jobs["broken"].words == "failed: no room"
    assert jobs["lost"].words.startswith("lost: no sign of life for 2 min")
    assert (jobs["running"].resolution_A, jobs["running"].wall_s) == (7.5, 50.0)
    old = jobs["old"]
    assert (old.kind, old.resolution_A, old.wall_s) == ("postprocess", 4.5, 60.0)
    assert old.inputs == {"halves": "refine"}
    assert old.updated - old.began == 60.0
    assert old.live is None


def test_a_job_that_has_just_begun_runs_though_it_has_said_nothing_yet(place: str) -> None:
    result(place, "begun")
    began = read_project(place, NOW).jobs[0].began
    for seconds, state in ((5, "running"), (LOST_REMOTE_S + 1, "unfinished"), (-90, "unfinished")):
        (job,) = read_project(place, began + seconds).jobs
        assert job.state == state
        assert ("run the same command" in job.words) == (state == "unfinished")


def test_jobs_that_run_keep_their_places_whichever_said_something_last(place: str) -> None:
    for turn in range(2):
        for number, name in enumerate(("first", "second", "third")):
            says(join(place, name), began=NOW - 30.0 + number, updated=NOW - 5.0 + (number + turn) % 3)
        assert [job.path for job in read_project(place, NOW).jobs] == ["third", "second", "first"]


def test_a_project_that_was_moved_keeps_its_links(tmp_path: Path) -> None:
    result(str(tmp_path / "before"), "sharpen", resolution_A=3.0)
    (tmp_path / "before").rename(tmp_path / "after")
    (found,) = read_project(str(tmp_path / "after")).jobs
    assert found.inputs == {"halves": "refine"}


def test_the_results_of_one_job_are_a_project_of_one(place: str) -> None:
    says(join(place, "a"), state="finished")
    (found,) = read_project(join(place, "a"), NOW).jobs
    assert (found.path, found.state) == ("", "finished")
    with pytest.raises(MissingInputError, match="does not exist"):
        read_project(join(place, "nowhere"))


def test_jobs_are_noted_in_the_index_of_their_workflow_alone(place: str) -> None:
    live = says(join(place, "a"), state="finished")
    entry(place, "a", live)
    assert not exists(join(place, INDEX_FILE))  # nobody asked for one here
    entry(place, "a", live, workflow_project=place)
    assert read_index(place).jobs["a"].state == "finished"
    entry(place, "b", live)  # now there is one
    assert set(read_index(place).jobs) == {"a", "b"}
    assert [job.path for job in read_project(place, NOW).jobs] == ["a"]  # b is not there


def test_beside_runs_there_is_an_index_and_reports_are_no_jobs_of_their_own(place: str) -> None:
    assert project_of(job_at(place, "a")) == ""
    write_bytes(join(place, "runs", "x", "run.json"), b"{}")
    assert project_of(job_at(place, "a")) == place
    assert project_of(Report(out=join(place, "a"))) == ""
    assert relative_to(place, f"{place}/a/b/") == "a/b"
    assert relative_to(place, f"{place}x/a") is None
    assert relative_to(place, place) is None


def test_of_many_that_end_at_the_same_time_none_is_lost(place: str) -> None:
    live = Live(job="count", began=1.0, updated=2.0, state="finished")
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: entry(place, f"j{number}", live, workflow_project=place), range(12)))
    assert set(read_index(place).jobs) == {f"j{number}" for number in range(12)}


def test_an_index_that_is_damaged_is_as_none_and_is_written_again(place: str) -> None:
    live = says(join(place, "a"), state="failed", why="x")
    for raw in (b"{", b"[]", b'{"jobs": 3}', b'{"format": 1, "jobs": {"b": {"kind": 1}}}'):
        write_bytes(join(place, INDEX_FILE), raw)
        assert read_index(place).jobs == {}
        assert [job.words for job in read_project(place, NOW).jobs] == ["failed: x"]
        entry(place, "a", live, workflow_project=place)
        assert set(read_index(place).jobs) == {"a"}


def test_what_the_index_says_is_not_asked_again_but_what_runs_or_is_new_is(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def look(project: str, path: str, now: float) -> projects.JobState | None:
        asked.append(path)
        return look_at_job(project, path, now)

    for name, state in (("done", "finished"), ("going", "running")):
        entry(place, name, says(join(place, name), state=state, updated=time.time()), workflow_project=place)
    says(join(place, "new"), state="finished")
    monkeypatch.setattr(projects, "look_at_job", look)
    found = read_project(place)
    assert sorted(asked) == ["", "going", "new"]
    assert {job.path for job in found.jobs} == {"done", "going", "new"}


def test_in_a_folder_what_was_said_since_counts(tmp_path: Path) -> None:
    url = str(tmp_path)
    entry(url, "a", says(join(url, "a"), state="finished", updated=time.time() - 10), workflow_project=url)
    os.utime(tmp_path / "a" / LIVE_FILE, (time.time() - 10, time.time() - 10))
    assert read_project(url).jobs[0].live is None
    says(join(url, "a"), state="failed", why="again", updated=time.time())
    assert read_project(url).jobs[0].words == "failed: again"


def test_a_result_that_is_one_file_is_a_job_as_long_as_it_is_there(place: str) -> None:
    for name in ("mask.mrc", "gone.mrc"):
        entry(place, name, Live(job="count", began=NOW - 50, updated=NOW, state="finished"), workflow_project=place)
    write_bytes(join(place, "mask.mrc"), b"a mask")
    assert [(job.path, job.kind, job.state) for job in read_project(place, NOW).jobs] == [
        ("mask.mrc", "count", "finished")
    ]


def test_ten_thousand_jobs_are_one_listing_and_one_object(tmp_path: Path) -> None:
    known = IndexEntry(kind="refine3d", state="finished", resolution_A=3.2, began=1.0, updated=2e9, has_report=True)
    value = known.model_dump()
    for number in range(10_000):
        (tmp_path / f"job-{number:05d}").mkdir()
    raw = json.dumps({"format": 1, "jobs": {f"job-{number:05d}": value for number in range(10_000)}}).encode()
    assert len(raw) > 1 << 20
    assert slot(str(tmp_path), INDEX_FILE).swap(None, raw) is not None
    began = time.process_time()
    assert len(read_project(str(tmp_path)).jobs) == 10_000
    assert time.process_time() - began < 4.0
    entry(str(tmp_path), "job-00007", Live(job="count", began=1.0, updated=3.0, state="failed", why="x"))
    assert read_index(str(tmp_path)).jobs["job-00007"].why == "x"
    assert len(read_index(str(tmp_path)).jobs) == 10_000


def test_folders_that_nothing_knows_are_looked_into_up_to_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projects, "MOST_UNKNOWN", 3)
    for number in range(5):
        says(str(tmp_path / f"j{number}"), state="finished")
    found = read_project(str(tmp_path), NOW)
    assert (len(found.jobs), found.unknown) == (3, 2)


def test_runs_say_what_they_cost_and_since_when_that_is_known(place: str) -> None:
    def run_of(name: str, state: RunState | None) -> None:
        store = RunStore.of(place, name)
        record = RunRecord(
            name=name, created=1e9, owner="me", provider="local", region="local", steps=(), plan={}, version="0"
        )
        store.create(record, Wishes(max_usd=5.0, deadline=NOW))
        if state is not None:
            store.write_state(state)

    run_of("one-20260101-000000", RunState(at=NOW - 9000, status="done", spent_usd=1.5, usd_per_hour=2.0))
    run_of("two-20260102-000000", RunState(at=NOW - 10, status="running", spent_usd=0.5, usd_per_hour=2.0, steps=2))
    run_of("three-20260103-000000", RunState(at=NOW - 900, status="running", why="a\x1b[31mb"))
    run_of("four-20260104-000000", None)
    write_bytes(join(place, "runs", "five-20260105-000000", "state.json"), b"{")
    found = read_project(place, NOW)
    runs = {run.name.split("-")[0]: run for run in found.runs}
    assert list(runs) == ["five", "four", "three", "two", "one"]
    assert [run.status for run in runs.values()] == ["unreadable", "not started", "silent", "running", "done"]
    assert (runs["two"].age_s, runs["two"].usd_per_hour, runs["two"].cap_usd) == (10.0, 2.0, 5.0)
    assert (runs["one"].usd_per_hour, runs["one"].words) == (0.0, "done")
    assert runs["three"].words.startswith("silent for 15 min")
    assert found.spent_usd == 2.0
    assert found.jobs == ()


def test_a_job_that_runs_in_a_workflow_is_in_its_index(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/before").touch()
    job = job_at(str(tmp_path), "a")
    run_job(job, lambda _: SerialExecutor(), step="first", project=str(tmp_path))
    noted = read_index(str(tmp_path)).jobs["a"]
    assert (noted.state, noted.kind, noted.step, noted.resolution_A) == ("finished", "count", "first", 9.875)
    assert "index.json" in contents(str(tmp_path))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/before").touch()
    with pytest.raises(CloudemError):
        run_job(
            Count(numbers=("1",), fail="early", out=str(tmp_path / "b")),
            lambda _: SerialExecutor(),
            project=str(tmp_path),
        )
    assert read_index(str(tmp_path)).jobs["b"].why.startswith("stack has 3 images")
