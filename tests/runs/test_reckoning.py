"""What a run costs where its ledger has gaps or its head is gone, and how that is shown."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cloudem.cli import main
from cloudem.cli.tables import Seen, seen, state_view
from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import SHUTDOWN_S, NodeEnded, NodeStarted, StepEnded, StepStarted, account
from cloudem.cloud.nodes import HEAD, Node, Pool
from cloudem.runs.agent import ALONE_S
from cloudem.runs.cluster_plan import cluster_plan
from cloudem.runs.reckoning import SILENT_S, reckon
from cloudem.runs.records import NodeStatus, RunRecord, RunState, RunStore, wishes_of

POOL = Pool("local.1", "local-a", "spot")
HEAD_LINE = NodeStatus(slot=HEAD, id="h", pool=" ".join(POOL), state="running", since=0.0)

LEDGER = [
    NodeStarted(0.0, "h", HEAD, POOL, 3.6),
    NodeStarted(100.0, "w", "worker", POOL, 36.0),
    StepStarted(150.0, "0-refine3d"),
    StepEnded(600.0, "0-refine3d", "done"),
    NodeEnded(600.0, "w", "ended"),
    NodeEnded(700.0, "h", "the run is over"),
]
TOTAL = account(LEDGER, 700.0).total


def a_run(folder: Path, entries: list[Any] = LEDGER, **state: Any) -> RunStore:
    """Return a run with a ledger and a state: over, by default."""
    store = RunStore.of(str(folder), "run-20261121-061300")
    plan = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 1, ("spot",), 50.0, 1.0).as_json()
    record = {"owner": "me", "provider": "local", "region": "local", "steps": (), "plan": plan, "version": "0"}
    store.create(RunRecord(name="run-20261121-061300", created=0.0, **record), wishes_of(max_usd=50.0, deadline=9e9))
    store.append(*entries)
    store.write_state(RunState(**{"at": 700.0, "status": "done", "spent_usd": TOTAL, "nodes": (HEAD_LINE,), **state}))
    return store


def entry(store: RunStore, number: int) -> Path:
    return Path(store.url) / "ledger" / f"{number:08d}.json"


def test_a_whole_ledger_is_believed(tmp_path: Path) -> None:
    found = reckon(a_run(tmp_path), 9e8)
    assert (list(found.entries), found.until, found.gap, found.lost) == (LEDGER, 700.0, "", "")


@pytest.mark.parametrize("number", range(len(LEDGER) - 1))
@pytest.mark.parametrize("how", ["removed", "empty"])
def test_a_gap_is_said_and_what_the_controller_reckoned_is_not_lost(how: str, number: int, tmp_path: Path) -> None:
    store = a_run(tmp_path)
    entry(store, number).unlink() if how == "removed" else entry(store, number).write_bytes(b"")
    found = reckon(store, 9e8)
    assert f"the ledger has a gap: entry {number} missing or empty" in found.gap
    assert found.gap.endswith("the sum is a lower bound")
    assert account(found.entries, found.until).total >= TOTAL - 1e-9


def test_last_entries_that_are_missing_show_in_the_sum(tmp_path: Path) -> None:
    store = a_run(tmp_path, LEDGER[:1], at=600.0, status="running", usd_per_hour=39.6)
    found = reckon(store, 610.0)
    assert "its last entries are missing" in found.gap
    paid = TOTAL + 10 * 39.6 / 3600  # as the state says, and what is paid since then
    assert account(found.entries, found.until).total == pytest.approx(paid)


def test_no_ledger_at_all_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = a_run(tmp_path, [])
    for url in (store.url, str(tmp_path)):
        with pytest.raises(SystemExit) as end:
            main(["cost", url])
        said = capsys.readouterr()
        assert end.value.code == 1
        assert "the ledger has a gap: it has no entry of any node" in said.err
        assert f"${TOTAL:.2f}" in said.out


def test_numbers_are_never_used_again(tmp_path: Path) -> None:
    store = a_run(tmp_path)
    entry(store, 2).unlink()
    again = RunStore(store.url)
    assert again.read_ledger()[1] == [2]
    again.append(NodeEnded(800.0, "x", "late"))
    assert entry(store, len(LEDGER)).exists()
    assert not entry(store, 2).exists()


def shown(state: RunState, what: Seen | None) -> str:
    screen = Console(width=160, record=True, file=io.StringIO())
    screen.print(state_view("run", state, wishes_of(max_usd=50.0, deadline=9e9), what))
    return screen.export_text()


def test_a_finished_run_is_shown_as_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = a_run(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["cluster", "status", store.url])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert "done  ended" in said
    assert "no machine of it is running" in said
    assert not any(word in said for word in ("left", "an hour", "head"))


def node(name: str, slot: str, state: Any, ended: float | None = None) -> Node:
    return Node(name, "run", slot, 1, name, state, POOL, 0.0, 9e9, ended)


def test_what_is_still_there_of_a_finished_run_is_shown(tmp_path: Path) -> None:
    state = a_run(tmp_path).state()
    assert state is not None
    said = shown(state, seen(state, 760.0, [node("h", HEAD, "stopping")], TOTAL, ""))
    assert "stopping" in said
    assert "no machine" not in said


def running(folder: Path, at: float) -> RunStore:
    spent = account(LEDGER[:3], at).total
    return a_run(folder, LEDGER[:3], at=at, status="running", spent_usd=spent, usd_per_hour=39.6)


def test_a_run_whose_head_was_killed_is_shown_as_that_and_its_cost_is_bounded(tmp_path: Path) -> None:
    at, now = 500.0, 510.0
    store = running(tmp_path, at)
    alive = [node("h", HEAD, "running"), node("w", "worker", "running")]
    assert reckon(store, now, alive).lost == ""
    dead = [node("h", HEAD, "ended", 505.0), node("w", "worker", "running")]
    found = reckon(store, now, dead)
    assert found.lost.startswith("head not heard of since ")
    assert "1 of its nodes is left" in found.lost
    assert f"at most ${39.6 * (ALONE_S + SHUTDOWN_S) / 3600:.5f}" in found.lost
    assert account(found.entries, found.until).alive == {"w"}
    state = store.state()
    assert state is not None
    said = shown(state, seen(state, now, dead, 1.0, found.lost))
    assert "head not heard of since" in said
    assert "an hour" not in said
    gone = reckon(store, now, [node("h", HEAD, "ended", 505.0), node("w", "worker", "ended", 508.0)])
    assert gone.lost.endswith("none of its nodes is left")
    ends = [*LEDGER[:3], NodeEnded(505.0, "h"), NodeEnded(508.0, "w")]
    assert account(gone.entries, 9e8).total == pytest.approx(account(ends, 9e8).total)


def test_nodes_of_a_dead_run_do_not_cost_for_ever_where_nobody_can_be_asked(tmp_path: Path) -> None:
    store = running(tmp_path, 500.0)
    assert reckon(store, 500.0 + SILENT_S - 1).lost == ""
    found = reckon(store, time.time())
    assert "its nodes ended themselves by" in found.lost
    spent = account(found.entries, found.until)
    assert not spent.alive
    most = account(LEDGER[:3], 500.0).total + 39.6 * (ALONE_S + SHUTDOWN_S) / 3600
    assert spent.total == pytest.approx(most)
