"""Which run a job belongs to: by place, kind and time, also where a project was moved or records are damaged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.planning.estimate import Range
from cloudem.io.storage.location import join, write_bytes
from cloudem.runs import job_money
from cloudem.runs.cluster_plan import cluster_plan
from cloudem.runs.job_money import JobRuns
from cloudem.runs.project import JobState
from cloudem.runs.records import NodeStatus, RunRecord, RunState, RunStore, Wishes

NOW = 2e9
PLANNED = Range(1.0, 2.0, 4.0)
FIRST, SECOND = "map-20330518-013320", "map-20330518-023320"
"""Begun two hours and one hour before that."""


def submitted(project: str, name: str = FIRST, *, created: float = NOW - 7200, plan: Any = None, **state: Any) -> None:
    made = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot",), 9.0, 0.5)
    steps = ({"job": "mask", "out": f"{project}/mask.mrc"}, {"job": "refine3d", "out": f"{project}/a/refine/"})
    record = RunRecord(
        name=name, created=created, owner="me@here", provider="local", region="local", steps=steps,
        plan=plan or replace(made, usd=PLANNED).as_json(), version="0",
    )  # fmt: skip
    store = RunStore.of(project, name)
    store.create(record, Wishes(max_usd=5.0, deadline=NOW))
    head = NodeStatus(slot="head", id="i", pool="local.1", state="running", since=created)
    given = {"at": NOW - 20, "status": "running", "spent_usd": 1.25, "usd_per_hour": 0.75, "nodes": (head,), **state}
    store.write_state(RunState(**given))


def job(path: str = "a/refine", kind: str = "refine3d", began: float = NOW - 3000) -> JobState:
    return JobState(path, kind, "running", "running", began=began)


@pytest.fixture(params=["folder", "s3"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "project") if request.param == "folder" else f"s3://{request.getfixturevalue('bucket')}/money"


def test_a_step_of_a_run_knows_what_the_run_costs(project: str) -> None:
    submitted(project)
    found = JobRuns(project).money_of(job(), NOW)
    assert found is not None
    assert (found.run.name, found.step, found.steps, found.planned_usd) == (FIRST, 2, 2, PLANNED)
    assert (found.run.spent_usd, found.run.cap_usd, found.run.usd_per_hour, found.run.age_s) == (1.25, 5.0, 0.75, 20.0)
    assert found.rehearsal


@pytest.mark.parametrize("other", [
    job(path="refine"), job(path="b/refine"), job(kind="reconstruct"), job(began=NOW - 9000), job(began=0.0),
    job(path=""),
])  # fmt: skip
def test_jobs_of_another_place_kind_or_time_belong_to_none(tmp_path: Path, other: JobState) -> None:
    submitted(str(tmp_path))
    assert JobRuns(str(tmp_path)).money_of(other, NOW) is None
    assert JobRuns(str(tmp_path)).money_of(job(), NOW) is not None


@pytest.mark.parametrize("state", [{"status": "done", "at": NOW - 4000}, {"at": NOW - 4000}])
def test_what_somebody_runs_again_after_the_run_costs_no_money(tmp_path: Path, state: dict[str, Any]) -> None:
    submitted(str(tmp_path), **state)
    runs = JobRuns(str(tmp_path))
    assert runs.money_of(job(began=NOW - 3000), NOW) is None
    found = runs.money_of(job(began=NOW - 6000), NOW)
    assert found is not None
    assert found.run.spent_usd == 1.25


def test_of_several_runs_the_job_belongs_to_that_in_which_it_began(tmp_path: Path) -> None:
    submitted(str(tmp_path), FIRST, created=NOW - 7200, status="done", at=NOW - 4000)
    submitted(str(tmp_path), SECOND, created=NOW - 3600)
    runs = JobRuns(str(tmp_path))
    found = [runs.money_of(job(began=began), NOW) for began in (NOW - 6000, NOW - 3000)]
    assert [each and each.run.name for each in found] == [FIRST, SECOND]


def test_a_project_that_was_moved_keeps_its_runs(tmp_path: Path) -> None:
    submitted(str(tmp_path / "before"))
    shutil.move(tmp_path / "before", tmp_path / "after")
    found = JobRuns(str(tmp_path / "after")).money_of(job(), NOW)
    assert found is not None
    assert found.step == 2


@pytest.mark.parametrize(("name", "text"), [("run.json", "{"), ("state.json", '{"at": NaN}'), ("wanted.json", "[]")])
def test_of_damaged_runs_nothing_is_said(tmp_path: Path, name: str, text: str) -> None:
    submitted(str(tmp_path))
    write_bytes(join(str(tmp_path), "runs", FIRST, name), text.encode())
    assert JobRuns(str(tmp_path)).money_of(job(), NOW) is None


@pytest.mark.parametrize("plan", [
    {"cloudem_plan": 1}, {"usd": "much"}, {"usd": [1, float("nan"), 2]}, {"usd": ["1", [], {}]}, {"extra": 3},
])  # fmt: skip
def test_without_a_plan_there_is_still_what_was_spent(tmp_path: Path, plan: dict[str, Any]) -> None:
    whole = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot",), 9.0, 0.5).as_json()
    submitted(str(tmp_path), plan={**whole, **plan} if "cloudem_plan" not in plan else plan)
    found = JobRuns(str(tmp_path)).money_of(job(), NOW)
    assert found is not None
    assert found.planned_usd is None
    assert found.run.spent_usd == 1.25


def test_what_never_changes_of_a_run_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted(str(tmp_path))
    read: list[str] = []
    real = RunStore.record

    def record(store: RunStore) -> RunRecord:
        read.append(store.url)
        return real(store)

    monkeypatch.setattr(RunStore, "record", record)
    listed: list[str] = []
    monkeypatch.setattr(job_money, "runs_of", lambda url: listed.append(url) or [FIRST])
    runs = JobRuns(str(tmp_path))
    for _ in range(5):
        assert runs.money_of(job(), NOW) is not None
    assert (len(read), len(listed)) == (1, 1)
    RunStore.of(str(tmp_path), FIRST).write_state(RunState(at=NOW, status="running", spent_usd=3.0))
    found = runs.money_of(job(), NOW)
    assert found is not None
    assert found.run.spent_usd == 3.0
