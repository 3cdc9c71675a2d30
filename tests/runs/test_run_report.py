"""The page of a run, from what its store holds; and a page that cannot be written."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloudem.cli.cost import Cost
from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import (
    CapChanged,
    Entry,
    NodeEnded,
    NodeStarted,
    Note,
    PriceChanged,
    StepEnded,
    StepStarted,
    account,
)
from cloudem.cloud.nodes import Pool
from cloudem.cloud.planning.plan import Alternative
from cloudem.errors import ParameterError
from cloudem.io.storage.groups import write_group
from cloudem.io.storage.location import read_bytes, write_bytes
from cloudem.model.table import TEXT
from cloudem.report.money_tiles import information_tile, prefixed
from cloudem.report.run_page import render_run
from cloudem.report.sections.timeline import Band
from cloudem.runs.cluster_plan import cluster_plan
from cloudem.runs.controller.loop import Controller
from cloudem.runs.records import RunRecord, RunState, RunStore, Wishes
from cloudem.runs.run_report import link, points_of, run_page_content, write_run_page
from cloudem.testing.market import RecordedMarket
from cloudem.testing.simulated_cloud import MemoryProvider

SPOT, HEAD = Pool("local.1", "local-a", "spot"), Pool("local.1", "local-a", "on-demand")
NAME = "first-20010909-014640"
T0 = 1e9
W0, W1 = "worker-local.1-0000", "worker-local.1-0001"
USD, WALL = (0.5, 1.0, 2.0), (100.0, 200.0, 400.0)

LEDGER: list[Entry] = [
    Note(T0, "controller of launch 1 begins"),
    CapChanged(T0, 2.0, 1.0),
    NodeStarted(T0, "h1", "head", HEAD, 3.6),
    StepStarted(T0 + 10, "0-mask", USD, WALL),
    StepEnded(T0 + 20, "0-mask", "done"),
    NodeStarted(T0 + 20, "a", W0, SPOT, 7.2),
    NodeStarted(T0 + 20, "b", W1, SPOT, 7.2),
    StepStarted(T0 + 30, "1-refine3d", USD, WALL),
    NodeEnded(T0 + 100, "a", "ended"),
    NodeStarted(T0 + 105, "c", W0, SPOT, 7.2),
    PriceChanged(T0 + 150, "b", 3.6),
    Note(T0 + 300, "draining: requested by its owner"),
    StepEnded(T0 + 330, "1-refine3d", "stopped"),
    NodeEnded(T0 + 335, "b", "ended"),
    NodeEnded(T0 + 335, "c", "ended"),
    NodeEnded(T0 + 340, "h1", "the run is over"),
    CapChanged(T0 + 5000, 3.0, 2.0),
    NodeStarted(T0 + 5000, "h2", "head", HEAD, 3.6),
    NodeStarted(T0 + 5010, "d", W0, SPOT, 7.2),
    StepStarted(T0 + 5020, "1-refine3d", USD, WALL),
    StepEnded(T0 + 5120, "1-refine3d", "done"),
    NodeEnded(T0 + 5130, "d", "ended"),
    NodeEnded(T0 + 5140, "h2", "the run is over"),
]


@pytest.fixture(params=["folder", "s3"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "project")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket()}/project"


def begun(project: str, ledger: list[Entry] = LEDGER, status: str = "done") -> RunStore:
    """Write a run as it is after that ledger."""
    plan = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot",), 9.0, 0.5)
    refine = replace(plan.steps[0], name="first map")
    steps = (replace(refine, name="mask", count=0, pool=HEAD), refine)
    best = (Alternative(plan.usd, plan.wall, ("head", "2 × local.1 spot"), chosen=True),)
    record = RunRecord(
        name=NAME, created=T0, owner="me@here", provider="local", region="local",
        steps=({"job": "mask", "out": f"{project}/mask.mrc"}, {"job": "refine3d", "out": f"{project}/refine"}),
        plan=replace(plan, steps=steps, alternatives=best).as_json(), version="0",
    )  # fmt: skip
    store = RunStore.of(project, NAME)
    store.create(record, Wishes(max_usd=3.0, deadline=T0 + 7200))
    if ledger:
        store.append(*ledger)
        store.write_state(RunState(at=T0 + 5140, status=status, why="its last line"))  # type: ignore[arg-type]
    return store


def test_the_page_lies_in_the_run_with_what_the_ledger_says_and_links_to_the_steps(project: str) -> None:
    store = begun(project)
    write_bytes(f"{project}/refine/report.html", b"<html></html>")
    where = write_run_page(store, Catalogue.shipped())
    assert where == f"{store.url}/report.html"
    page = (read_bytes(where) or b"").decode()
    assert 'href="../../refine/report.html"' in page
    assert page.count("<a ") == 1
    content = run_page_content(store, Catalogue.shipped(), None, where)
    assert content.spent == pytest.approx(account(LEDGER, T0 + 5140).total)
    assert content.wall == pytest.approx(340 + 140)
    assert [(line.name, line.how, line.wall) for line in content.steps] == [
        ("mask", "done", 10.0), ("first map", "done", 400.0),
    ]  # fmt: skip
    between = content.others[0]
    assert between.wall == pytest.approx(480 - 410)
    assert sum(line.usd or 0.0 for line in (*content.steps, between)) == pytest.approx(content.spent)
    assert list(content.spending.usd) == sorted(content.spending.usd)
    assert content.spending.usd[-1] == pytest.approx(content.spent)
    assert content.spending.caps == [(T0, 2.0), (T0 + 5000, 3.0)]
    assert (content.why, content.max_usd, content.rehearsal) == ("", 3.0, True)
    assert "worst overshoot" in content.promise
    assert [price.metered for price in content.prices] == ["3.6000", "3.6000 to 7.2000"]
    assert points_of(store_plan(store)) == list(content.points)
    assert content.points[0].label == "2 × local.1 spot"


def test_bits_per_dollar_are_of_the_movies_that_the_run_did(tmp_path: Path) -> None:
    plan = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot",), 9.0, 0.5)
    out = f"{tmp_path}/motion"
    steps = ({"job": "correct_motion", "out": out},)
    record = RunRecord(name=NAME, created=T0, owner="me@here", provider="local", region="local", steps=steps,
                       plan=plan.as_json(), version="0")  # fmt: skip
    store = RunStore.of(str(tmp_path), NAME)
    store.create(record, Wishes(max_usd=3.0, deadline=T0 + 7200))
    ledger: list[Entry] = [
        CapChanged(T0, 3.0, 2.0),
        NodeStarted(T0, "h1", "head", HEAD, 3.6),
        StepStarted(T0 + 10, "0-correct_motion", USD, WALL),
        StepEnded(T0 + 110, "0-correct_motion", "done"),
        NodeEnded(T0 + 120, "h1", "the run is over"),
    ]
    store.append(*ledger)
    store.write_state(RunState(at=T0 + 120, status="done"))
    assert run_page_content(store, Catalogue.shipped(), None, f"{store.url}/report.html").information is None
    at = T0 + np.array([-5.0, 20.0, 100.0, 115.0])
    found = {"key": np.array(["a", "b", "c", "d"], TEXT), "done_at": at, "bits": np.array([1e5, 2e5, 5e5, 1e7])}
    write_group(out, "", {}, {})
    write_group(out, "done", found, {})
    content = run_page_content(store, Catalogue.shipped(), None, f"{store.url}/report.html")
    usd = account(ledger, T0 + 120).by_step["0-correct_motion"]
    assert content.information == pytest.approx((7e5, 2, usd))
    assert content.information is not None
    assert information_tile(*content.information)[0] in render_run(content)
    assert information_tile(7e5, 2, 0.1) == (
        "7 Mbit", "above noise per dollar of motion correction, 2 micrographs; compare like specimens only",
    )  # fmt: skip
    assert [prefixed(value, "bit") for value in (0.0, 999.4, 999.9, 1.2345e12)] == [
        "0 bit",
        "999 bit",
        "1 kbit",
        "1.23 Tbit",
    ]


def store_plan(store: RunStore):
    from cloudem.cloud.planning.plan import Plan

    return Plan.from_json(store.record().plan)


def test_a_node_whose_slot_another_took_while_its_step_ran_was_lost_and_no_other(tmp_path: Path) -> None:
    store = begun(str(tmp_path))
    content = run_page_content(store, Catalogue.shipped(), None, str(tmp_path / "report.html"))
    assert {line.name: line.bar.how for line in content.nodes} == {
        "h1": "ended", "a": "taken", "b": "ended", "c": "ended", "h2": "ended", "d": "ended",
    }  # fmt: skip
    texts = [event.text for event in content.events]
    assert texts == [
        "controller of launch 1 begins",
        f"{W0} (a): lost without notice, replaced",
        "draining: requested by its owner",
        "limits: $3.00, until 2 h after submitting",
    ]
    assert [event.letter for event in content.events] == list("abcd")
    assert content.events[1].at == T0 + 100
    write_bytes(f"{store.url}/notices/b.json", b'{"taken": 1000000330}')
    content = run_page_content(store, Catalogue.shipped(), None, str(tmp_path / "report.html"))
    assert {line.name for line in content.nodes if line.bar.how == "taken"} == {"a", "b"}
    assert "reclaimed by the provider, with notice" in [line.ended for line in content.nodes]


def test_steps_are_bands_also_where_a_controller_died_in_one(tmp_path: Path) -> None:
    ledger = [entry for entry in LEDGER if entry.at < T0 + 200]
    ledger.append(StepStarted(T0 + 200, "1-refine3d", USD, WALL))  # by the next controller
    store = begun(str(tmp_path), ledger, "running")
    content = run_page_content(store, Catalogue.shipped(), None, str(tmp_path / "report.html"))
    first, second = content.bands
    assert first == Band("mask", T0 + 10, T0 + 20)
    assert (second.name, second.start) == ("first map", T0 + 30)
    assert second.end > T0 + 5000  # it runs until now
    assert content.steps[1].how == "running"
    assert "silent since 03:12:20 UTC" in content.why
    assert any("its nodes ended themselves by" in note for note in content.notes)
    assert not any(line.bar.how == "alive" for line in content.nodes)
    assert "ended: its head is gone" in {line.ended for line in content.nodes}


def test_a_stopped_run_says_why_and_what_has_not_begun(tmp_path: Path) -> None:
    store = begun(str(tmp_path), [entry for entry in LEDGER if entry.at < T0 + 25], "stopped")
    content = run_page_content(store, Catalogue.shipped(), None, str(tmp_path / "report.html"))
    assert (content.status, content.why) == ("stopped", "its last line")
    assert [line.how for line in content.steps] == ["done", "not started"]
    assert content.steps[1].wall is None


def test_there_is_no_page_of_a_run_that_has_not_begun(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="has not started"):
        write_run_page(begun(str(tmp_path), []), Catalogue.shipped())


def test_links_are_only_where_they_lead_somewhere(tmp_path: Path) -> None:
    out, page = str(tmp_path / "a b/refine"), str(tmp_path / "runs/x/report.html")
    assert link(out, page) == ""
    write_bytes(f"{out}/report.html", b"page")
    assert link(out, page) == "../../a%20b/refine/report.html"
    assert link(out, "s3://bucket/runs/x/report.html") == ""
    assert link("", page) == ""


def test_a_page_that_cannot_be_written_keeps_no_run_from_ending(tmp_path: Path, caplog) -> None:
    def fails(state: RunState) -> str:
        told.append(state)
        raise RuntimeError("no room")

    told: list[RunState] = []
    ledger = [entry for entry in LEDGER if entry.at < T0 + 25]
    store = begun(str(tmp_path), ledger, "running")
    store.change(stop=True)
    clock = {"now": T0 + 30}
    controller = Controller(
        store, MemoryProvider(lambda: clock["now"], RecordedMarket({})), {"slot": "head"}, Catalogue.shipped(),
        lambda step: pytest.fail("nothing begins any more"), lambda: frozenset(), lambda: clock["now"], fails,
    )  # fmt: skip
    controller.begin()
    with caplog.at_level(logging.ERROR):
        while not controller.over:
            controller.tick()
            clock["now"] += 5.0
            assert clock["now"] < T0 + 2000
    state = store.state()
    assert state is not None
    assert (state.status, state.why) == ("stopped", "requested by its owner")
    assert [each.status for each in told] == ["stopped"]
    assert "the report could not be written" in caplog.text
    assert "no room" in caplog.text


def test_cost_writes_the_page_anew_where_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = begun(str(tmp_path / "project"))
    file = tmp_path / "elsewhere/page.html"
    Cost(url=store.url, report=str(file)).run()
    assert f"report: {file}" in capsys.readouterr().out
    assert f"<title>{NAME}</title>" in file.read_text()
    with pytest.raises(ParameterError, match="one of its runs"):
        Cost(url=str(tmp_path / "project"), report=str(file)).run()
