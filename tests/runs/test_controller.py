"""The controller alone, with simulated machines, a clock, and a job that does as it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import NodeEnded, NodeStarted, StepEnded, account
from cloudem.cloud.nodes import HEAD, Node, Pool, Request
from cloudem.errors import ProviderError
from cloudem.io.storage.lease import Refuse, hold
from cloudem.runs import submit
from cloudem.runs.agent import ALONE_S, PATIENCE_S, SILENCE_S
from cloudem.runs.cluster_plan import cluster_plan
from cloudem.runs.controller import loop as module
from cloudem.runs.controller.loop import Controller, SupersededError
from cloudem.runs.controller.meter import Meter
from cloudem.runs.controller.steps import KILL_S, TRIES
from cloudem.runs.records import RunRecord, RunState, RunStore, Wishes
from cloudem.testing.market import RecordedMarket
from cloudem.testing.simulated_cloud import Clock, Fault, MemoryProvider

START = 1.8e9
SPOT = Pool("local.1", "local-a", "spot")


class Job:
    """A job that ends when, and as, a test says."""

    job, progress = "refine3d", ("last words",)

    def __init__(self, step: Any) -> None:
        self.how: Any = None
        self.calls: list[str] = []

    def poll(self) -> Any:
        return self.how

    def iteration_s(self) -> float:
        return 5.0

    def ask_to_stop(self) -> None:
        self.calls.append("stop")

    def interrupt(self) -> None:
        self.calls.append("interrupt")

    def kill(self) -> None:
        self.calls.append("kill")
        self.how = "failed"


class World:
    """A run of one step on two spot nodes, in a folder."""

    def __init__(self, folder: Path, max_usd: float = 5.0) -> None:
        self.clock, self.jobs = Clock(START), list[Job]()
        self.faults: Callable[[str, float], Fault | None] = lambda call, at: None
        pools = [Pool(name, zone, market) for name in ("local.1", "local.2") for zone in ("local-a", "local-b")
                 for market in ("spot", "on-demand")]  # fmt: skip
        market = RecordedMarket({pool: [(0.0, 0.05)] for pool in pools}, boot=(1.0, 2.0))
        self.provider = MemoryProvider(self.clock, market, faults=lambda call, at: self.faults(call, at))
        plan = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot",), 9.0, 0.5)
        self.store = RunStore.of(str(folder), "run-20270101-000000")
        step = {"job": "refine3d", "out": str(folder / "out")}
        record = RunRecord(
            name="run-20270101-000000", created=START, owner="me", provider="local", region="local", steps=(step,),
            plan=plan.as_json(), version="0",
        )  # fmt: skip
        self.store.create(record, Wishes(max_usd=max_usd, deadline=START + 3600))
        self.provider.prepare(record.name, {})
        self.head = self.provider.launch(
            Request(f"{record.name}/head/1", record.name, HEAD, 1, (plan.head,), START + 3600)
        )

    def controller(self, generation: int = 1) -> Controller:
        node = {"slot": HEAD, "generation": generation, "project": "p", "run": "r", "cloudem": 1}
        made = Controller(
            self.store,
            self.provider,
            node,
            Catalogue.shipped(),
            self.begin,
            lambda: frozenset(self.alive()),
            self.clock,
        )
        made.begin()
        return made

    def begin(self, step: Any, on_head: bool) -> Job:
        self.jobs.append(Job(step))
        return self.jobs[-1]

    def nodes(self) -> list[Node]:
        return [node for node in self.provider.nodes("run-20270101-000000") if node.slot != HEAD]

    def alive(self) -> list[str]:
        return [node.id for node in self.nodes() if node.alive]

    def tick(self, controller: Controller, seconds: float, pause: float = 5.0) -> RunState:
        until = self.clock() + seconds
        while self.clock() < until and not controller.over:
            controller.tick()
            self.clock.advance(pause)
        state = self.store.state()
        assert state is not None
        return state


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_job_that_does_not_end_is_killed_and_nothing_is_left(world: World) -> None:
    controller = world.controller()
    assert world.tick(controller, 20).status == "running"
    world.store.change(deadline=world.clock() + 30)  # less than it takes to end all nodes
    world.tick(controller, 10)
    assert world.jobs[0].calls == ["interrupt"]
    state = world.tick(controller, 400)
    assert world.jobs[0].calls == ["interrupt", "kill"]
    assert (state.status, world.alive()) == ("stopped", [])
    ledger = world.store.ledger()
    ended = next(entry for entry in ledger if isinstance(entry, StepEnded))
    assert ended.how == "stopped"
    assert ended.at - START < 20 + 10 + KILL_S + 10


def test_a_job_that_somebody_stops_again_and_again_is_not_begun_for_ever(world: World) -> None:
    controller = world.controller()
    for number in range(TRIES):
        world.tick(controller, 20)
        assert len(world.jobs) == number + 1
        world.jobs[-1].how = "stopped"
    assert world.tick(controller, 400).status == "failed"
    assert len(world.jobs) == TRIES


def test_a_run_whose_limits_are_raised_while_it_drains_goes_on(world: World) -> None:
    controller = world.controller()
    world.tick(controller, 120)
    spent = account(world.store.ledger(), world.clock())
    enough_to_finish = spent.total + spent.rate_per_hour * 62 / 3600  # for shutting down, and 2 s of the iteration's 5
    world.store.change(max_usd=enough_to_finish)
    assert world.tick(controller, 1, 1.0).status == "draining"
    assert world.jobs[0].calls == ["stop"]
    world.store.change(max_usd=5.0)
    state = world.tick(controller, 1, 1.0)
    assert (state.status, state.why) == ("running", "")
    world.jobs[0].how = "stopped"  # as it was asked to
    world.tick(controller, 10)
    assert len(world.jobs) == 2  # it goes on where it stopped
    world.jobs[1].how = "done"
    assert world.tick(controller, 400).status == "done"


def test_a_node_ends_itself_no_sooner_than_the_run_is_drained(tmp_path: Path) -> None:
    world = World(tmp_path, max_usd=0.03)
    controller = world.controller()
    world.tick(controller, 20)
    cap = world.store.wanted().max_usd
    (deadline,) = {node.deadline for node in world.nodes()}
    spent = account(world.store.ledger(), world.clock())
    left_then = cap - spent.total - spent.rate_per_hour * (deadline - world.clock()) / 3600
    assert left_then < spent.rate_per_hour * 60 / 3600  # less than what shutting down costs: the meter acted before


def test_damaged_wishes_change_nothing(world: World) -> None:
    controller = world.controller()
    world.tick(controller, 20)
    for damage in ('{"max_usd": NaN, "deadline": 2e9}', '{"max_usd": 1e400, "deadline": 2e9}', "[", "null", "{}"):
        Path(world.store.url, "wanted.json").write_text(damage)
        assert world.tick(controller, 10).status == "running"
    Path(world.store.url, "wanted.json").unlink()
    assert world.tick(controller, 10).status == "running"


def test_a_controller_ends_when_its_run_was_launched_again(world: World) -> None:
    controller = world.controller()
    world.tick(controller, 20)
    world.store.change(after=1, launch=2)
    with pytest.raises(SupersededError, match="launch 2"):
        controller.tick()
    world.tick(world.controller(2), 20)


@pytest.mark.parametrize(
    ("gpu_GiB", "tasks", "slot", "told"),
    [
        (0.0, 0, "worker-local.1-0000", {"gpus": "none", "tasks": 0}),
        (0.0, 3, "worker-local.1-3-0000", {"gpus": "none", "tasks": 3}),
        (5.0, 0, "worker-local.1-gpu-0000", {"gpus": "all"}),
        (5.0, 3, "worker-local.1-gpu-3-0000", {"gpus": 3}),
    ],
)
def test_nodes_are_told_what_was_planned_for_their_workers(world: World, gpu_GiB, tasks, slot, told) -> None:
    plan = world.store.record().plan
    plan["steps"][0] |= {"gpu_GiB": gpu_GiB, "tasks": tasks}
    Path(world.store.url, "run.json").write_text(json.dumps(vars(world.store.record()) | {"plan": plan}))
    requests: list[Request] = []
    launch = world.provider.launch
    world.provider.launch = lambda request: requests.append(request) or launch(request)  # type: ignore[method-assign,func-returns-value]
    world.tick(world.controller(), 10)
    start = json.loads({request.slot: request.start for request in requests}[slot])
    assert {name: start[name] for name in ("gpus", "tasks") if name in start} == told


def test_nodes_are_metered_from_their_launch_although_nobody_lists_them(world: World) -> None:
    controller = world.controller()
    world.faults = lambda call, at: Fault("late", 60.0) if call == "nodes" else None
    controller.tick()
    assert {entry.slot for entry in world.store.ledger() if isinstance(entry, NodeStarted)} >= {
        "worker-local.1-0000", "worker-local.1-0001"
    }  # fmt: skip
    world.tick(controller, 200)
    assert not [entry for entry in world.store.ledger() if isinstance(entry, NodeEnded)]


def test_a_run_that_goes_on_the_next_day_has_not_paid_for_the_night(world: World) -> None:
    controller = world.controller()
    before = world.tick(controller, 60)
    last = world.clock()
    world.provider.terminate([*world.alive(), world.head.id])  # the head died, and workers ended themselves
    world.clock.advance(12 * 3600)
    world.store.change(after=1, launch=2, deadline=world.clock() + 3600)
    state = world.tick(world.controller(2), 20)
    assert state.status == "running"
    after = account(world.store.ledger(), world.clock())
    ends = [entry.at for entry in world.store.ledger() if isinstance(entry, NodeEnded)]
    assert len(ends) == 3
    assert all(last <= end <= last + ALONE_S for end in ends)
    rate = before.usd_per_hour
    assert after.total <= before.spent_usd + rate * (ALONE_S + 120) / 3600


def test_what_somebody_else_launched_meanwhile_is_not_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "certificates", lambda: b"{}")
    world.provider.terminate([world.head.id])
    world.clock.advance(600)
    other = Request("run-20270101-000000/head/2", "run-20270101-000000", HEAD, 2, (world.head.pool,), START + 3600)

    def fails(request: Request) -> Node:
        world.store.change(after=1, launch=2)  # somebody else resumes it
        MemoryProvider.launch(world.provider, other)
        raise ProviderError("it does not start")

    monkeypatch.setattr(world.provider, "launch", fails)
    with pytest.raises(ProviderError, match="does not start"):
        submit.start(world.store, world.provider, Catalogue.shipped(), lambda line: None, world.clock)
    (head,) = [node for node in world.provider.nodes("run-20270101-000000") if node.alive]
    assert head.generation == 2


def test_what_is_promised_is_all_of_what_silence_can_cost(world: World) -> None:
    plan = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot", "on-demand"), 9.0, 0.5)
    said = submit.promise(plan, world.store.wanted(), Catalogue.shipped())
    worst = 0.10 + 2 * 0.10  # a head, and both workers on demand
    dead = SILENCE_S + PATIENCE_S + 60 + 60
    assert f"worst overshoot ${worst * 60 / 3600:.2f} (all nodes for 60 s)" in said
    assert f"${worst * dead / 3600:.2f} if the control plane dies (nodes end themselves after {dead:.0f} s)" in said


def test_prices_that_stay_are_not_entered_again(world: World) -> None:
    controller = world.controller()
    world.tick(controller, 1900, pause=60.0)
    changes = [entry for entry in world.store.ledger() if type(entry).__name__ == "PriceChanged"]
    assert len(changes) <= 2


def test_what_costs_money_is_ended_before_anything_is_asked_for(world: World) -> None:
    controller, calls = world.controller(), list[str]()
    world.tick(controller, 20)
    world.provider.launch(
        Request("run-20270101-000000/worker-old/1", "run-20270101-000000", "worker-old", 1, (SPOT,), START + 3600)
    )
    world.provider.terminate(world.alive()[:1])
    world.clock.advance(130)
    world.faults = lambda call, at: calls.append(call)
    world.tick(controller, 30)
    assert "launch" in calls
    assert calls.index("terminate") < calls.index("launch")


def test_a_type_without_a_price_costs_as_much_as_the_dearest(world: World) -> None:
    meter = Meter(world.store, world.store.record(), world.provider, Catalogue.shipped(), world.clock)
    assert meter.rate(Pool("p99.huge", "local-a", "on-demand")) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("ledger/00000000.json", '{"kind": "NodeEnded", "at": NaN, "node": "n"}', "at = nan"),
        ("attempts.json", "[3]", "attempts.json is damaged"),
        ("steps/0.json", "[", "delete it"),
    ],
)
def test_records_that_no_controller_can_read_end_the_run_with_one_line(
    name: str, text: str, says: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(world.store.url, name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    monkeypatch.setattr(module, "provider_of", lambda name, region: world.provider)
    monkeypatch.setattr(module, "workers_of", lambda *_: {})
    monkeypatch.setattr("signal.signal", lambda *_: None)
    project = world.store.url.rpartition("/runs/")[0]
    node = {"project": project, "run": "run-20270101-000000", "provider": "local", "scheduler": "s", "generation": 3}
    assert module.main({"CLOUDEM_NODE": json.dumps(node)}) == 0  # so that the head ends at once
    state = world.store.state()
    assert state is not None
    assert (state.status, state.launch) == ("failed", 3)
    assert says in state.why
    with hold(world.store.url, log=module.LOG):  # while another controller lives, nothing is said for it
        world.store.write_state(RunState(at=1.0, status="running"))
        monkeypatch.setattr("cloudem.io.storage.lease.observe", lambda looks: Refuse())
        assert module.main({"CLOUDEM_NODE": json.dumps(node)}) == 0
    state = world.store.state()
    assert state is not None
    assert state.status == "running"
