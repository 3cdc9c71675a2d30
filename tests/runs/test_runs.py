"""Whole runs on real local nodes: killed in the middle, stopped by their cap or owner, resumed, and nothing left."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.local.provider import VCPUS, ZONES, LocalProvider
from cloudem.cloud.money import NodeEnded, NodeStarted, StepEnded, account
from cloudem.cloud.nodes import HEAD, Pool
from cloudem.errors import MissingInputError, ParameterError, ProviderError
from cloudem.execution.executor import SerialExecutor
from cloudem.io.storage.groups import list_groups
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.runs.cluster_plan import cluster_plan
from cloudem.runs.leftovers import look
from cloudem.runs.preflight import preflight
from cloudem.runs.records import RunState, RunStore, new_name
from cloudem.runs.submit import conclude, end, follow, new_run, resume, start
from cloudem.runs.workflow import workflow_of
from tests.jobs.conftest import Scene, assert_same_bits, make_scene, run

TIMEOUT_S = 100.0
FIXED: dict[str, Any] = {"max_iterations": 6, "max_resolution_A": 14.0, "report": False}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("scene"), count=600)


@pytest.fixture(scope="module")
def undisturbed(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run(Refine3D(**scene.refinement(out, **FIXED)), SerialExecutor)
    return str(out)


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalProvider]:
    """Machines that all are on the loopback, so that this runs without root."""
    monkeypatch.setenv("CLOUDEM_LOCAL_CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setenv("CLOUDEM_LOCAL_NAMESPACES", "0")
    made = LocalProvider()
    yield made
    for resource in made.resources():
        end(resource.cluster, made)


def new(scene: Scene, project: Path, max_usd: float, steps: int = 2) -> RunStore:
    """Write a run of a refinement on two nodes, and of a mask on the head."""
    refine = {"job": "refine3d", **scene.refinement(project / "refine", **FIXED)}
    mask = {"job": "mask", "map": str(project / "start.mrc"), "out": str(project / "mask.mrc")}
    (project / "start.mrc").parent.mkdir(exist_ok=True)
    (project / "start.mrc").write_bytes(Path(scene.reference).read_bytes())
    workflow = workflow_of({"project": str(project), "step": [refine, mask][:steps]}, "two-steps")
    plan = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot", "on-demand"), 9.0, 0.5)
    step = plan.steps[0]
    planned = (replace(step, name="refine3d"), replace(step, name="mask", count=0, pool=plan.head))
    now = time.time()
    store, record, wanted = new_run(
        workflow, replace(plan, steps=planned[:steps]), "local", new_name("two steps", now), max_usd, 0.5, now
    )
    store.create(record, wanted)
    return store


def wait(store: RunStore, holds: Callable[[RunState], bool], what: str) -> None:
    limit = time.monotonic() + TIMEOUT_S
    while (state := store.state()) is None or not holds(state):
        assert time.monotonic() < limit, f"{what} did not come true: {state}"
        assert state is None or not state.over, f"it was over before {what}: {state}"
        time.sleep(0.05)


def controllers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[-2:] == ["-m", "cloudem.runs.controller.loop"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_run_survives_its_controller_and_a_node_and_leaves_nothing(scene, undisturbed, provider, tmp_path):
    store = new(scene, tmp_path / "project", 5.0)
    refine = str(tmp_path / "project/refine")
    said: list[str] = []
    start(store, provider, Catalogue.shipped(), said.append)
    cluster = store.record().name
    wait(store, lambda state: bool(list_groups(refine, "iterations")), "the first iteration")
    mine = [p for p in controllers() if p.environ().get("CLOUDEM_NODE", "").find(cluster) >= 0]
    assert len(mine) == 1
    mine[0].send_signal(signal.SIGKILL)
    worker = next(node for node in provider.nodes(cluster) if node.slot != HEAD)
    provider.kill(worker.id)
    states: list[RunState] = []
    state = follow(store, states.append, provider)
    assert (state.status, state.why) == ("done", "")
    assert_same_bits(refine, undisturbed)
    assert (tmp_path / "project/mask.mrc").exists()

    ledger = store.ledger()
    starts = {entry.node: entry for entry in ledger if isinstance(entry, NodeStarted)}
    ends = {entry.node for entry in ledger if isinstance(entry, NodeEnded)}
    assert {entry.slot for entry in starts.values()} == {HEAD, "worker-local.1-0000", "worker-local.1-0001"}
    assert worker.id in ends
    assert starts.keys() == ends
    assert len(starts) >= 4  # the node that was taken was replaced
    assert [entry.how for entry in ledger if isinstance(entry, StepEnded)][-2:] == ["done", "done"]
    assert account(ledger, time.time()).total == pytest.approx(state.spent_usd, abs=1e-4)
    assert sorted(store.finished()) == [0, 1]

    with pytest.raises(ParameterError, match="is finished"):
        resume(store, 9.0, 1.0, time.time())
    assert end(cluster, provider) == []
    found = look(provider, time.time())
    assert (dict(found.used), list(found.left)) == ({}, [])
    assert any("controller of launch 1 started" in line for line in Path(store.url, "log.txt").read_text().splitlines())
    assert "lost without notice, replaced" in Path(store.url, "report.html").read_text()


def test_a_run_that_its_cap_stops_goes_on_with_a_higher_one(scene, undisturbed, provider, tmp_path):
    # two nodes and a head are charged for a minute each at once, $0.0027: so little is left that it may not begin
    store = new(scene, tmp_path / "project", 0.004, steps=1)
    start(store, provider, Catalogue.shipped(), lambda line: None)
    state = follow(store, lambda state: None, provider)
    assert state.status == "stopped"
    assert "of $0.0040 are spent" in state.why
    assert state.spent_usd <= 0.004 + state.overshoot_usd
    end(store.record().name, provider)

    with pytest.raises(ParameterError, match="give a higher limit"):
        resume(store, state.spent_usd / 2, None, time.time())
    wanted = resume(store, 5.0, None, time.time())
    assert wanted.launch == 2
    start(store, provider, Catalogue.shipped(), lambda line: None)
    refine = str(tmp_path / "project/refine")
    wait(store, lambda state: bool(list_groups(refine, "iterations")), "the first iteration")
    with pytest.raises(ParameterError, match="is running"):
        resume(store, 9.0, None, time.time())
    store.change(stop=True)  # by its owner, after the running iteration
    state = follow(store, lambda state: None, provider)
    assert (state.status, state.why) == ("stopped", "requested by its owner")
    before = list_groups(refine, "iterations")
    assert len(before) < 6
    end(store.record().name, provider)

    resume(store, None, 0.5, time.time())
    start(store, provider, Catalogue.shipped(), lambda line: None)
    assert follow(store, lambda state: None, provider).status == "done"
    assert_same_bits(refine, undisturbed)


def test_a_job_that_fails_ends_the_run_and_says_why(scene, provider, tmp_path):
    store = new(scene, tmp_path / "project", 5.0, steps=1)
    Path(scene.reference).rename(scene.reference + ".gone")
    try:
        start(store, provider, Catalogue.shipped(), lambda line: None)
        state = follow(store, lambda state: None, provider)
    finally:
        Path(scene.reference + ".gone").rename(scene.reference)
    assert state.status == "failed"
    assert "reference.mrc" in state.why


def test_what_could_not_be_started_is_removed_again(scene, tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDEM_LOCAL_NAMESPACES", "0")
    agent = [sys.executable, "-c", "raise SystemExit('no image')"]
    provider = LocalProvider(tmp_path / "cloud", agent=agent)
    store = new(scene, tmp_path / "project", 5.0, steps=1)
    with pytest.raises(ProviderError, match="ended at once; its last message: no image"):
        start(store, provider, Catalogue.shipped(), lambda line: None)
    assert provider.resources() == []
    provider.sell_out([Pool(name, zone, "on-demand") for name in VCPUS for zone in ZONES])
    resume(store, None, None, time.time())
    with pytest.raises(ProviderError, match="no capacity"):
        start(store, provider, Catalogue.shipped(), lambda line: None)
    assert provider.resources() == []


def test_what_was_ended_without_its_controller_is_stopped_and_not_paid_for_any_more(scene, provider, tmp_path):
    store = new(scene, tmp_path / "project", 5.0, steps=1)
    store.append(NodeStarted(100.0, "n", HEAD, Pool("local.1", "local-a", "spot"), 36.0))
    store.write_state(RunState(at=200.0, status="running", usd_per_hour=36.0))
    conclude(store, "ended by its owner", 300.0)
    state = store.state()
    assert state is not None
    assert (state.status, state.usd_per_hour, state.spent_usd) == ("stopped", 0.0, pytest.approx(2.0))
    assert account(store.ledger(), 9e9).total == pytest.approx(2.0)
    conclude(store, "again", 400.0)
    assert store.state() == state


def test_an_input_that_is_missing_is_said_before_anything_is_rented(scene: Scene, tmp_path: Path) -> None:
    refine = {"job": "refine3d", **scene.refinement(tmp_path / "refine", **FIXED)}
    mask = {"job": "mask", "map": refine["out"], "out": str(tmp_path / "mask.mrc")}
    preflight(workflow_of({"project": str(tmp_path), "step": [refine, mask]}, "fine"))  # a step makes the map
    wrong = {**refine, "reference": "strat.mrc"}
    with pytest.raises(MissingInputError, match=r"step refine3d: .*/strat\.mrc does not exist"):
        preflight(workflow_of({"project": str(tmp_path), "step": [wrong]}, "wrong"))


def test_a_client_that_is_killed_while_it_starts_leaves_what_sweep_finds(scene, provider, tmp_path):
    store = new(scene, tmp_path / "project", 5.0, steps=1)
    child = os.fork()
    if child == 0:  # dies right after it has made what a head needs
        try:
            provider.launch = lambda request: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign,assignment,return-value]
            start(store, provider, Catalogue.shipped(), lambda line: None)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    found = look(provider, time.time())
    assert found.left
    assert {resource.cluster for resource in found.left} == {store.record().name}
    for resource in found.left:
        provider.remove(resource)
    assert look(provider, time.time()).left == []
