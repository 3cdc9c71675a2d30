"""What is done next: by example, and over random histories."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from cloudem.cloud.nodes import HEAD, Node, Pool, State
from cloudem.cloud.reconcile import (
    BACKOFF_S,
    BURST,
    GIVE_UP_S,
    LISTING_S,
    QUIET_S,
    READY_S,
    RESEND_S,
    SOLD_OUT_S,
    UNANSWERED_S,
    Action,
    Attempt,
    Desired,
    GiveUp,
    Launch,
    Observed,
    Phase,
    Retire,
    Terminate,
    WantedNode,
    noted,
    owners,
    reconcile,
    sent,
    settled,
    token_of,
)
from tests.cloud.histories import CLUSTER, START, History, Play, histories

NOW = 1e6
SPOT, OTHER, DEMAND = Pool("large", "a", "spot"), Pool("small", "a", "spot"), Pool("large", "a", "on-demand")
WANTED = WantedNode((SPOT, OTHER, DEMAND), '{"cloudem": 1, "run": "r"}')
SLOT = "worker-0001"


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(histories())
def test_histories(history: History) -> None:
    Play(history).play()


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(histories().map(lambda history: replace(history, outages=(), crashes=(), dead_at=1e9)))
def test_where_nothing_fails_the_cap_is_not_passed_at_all(history: History) -> None:
    played = Play(history).play()
    assert played.provider.spent(CLUSTER) <= played.cap.max_usd


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(histories())
def test_when_all_is_well_again_every_slot_gets_its_owner(history: History) -> None:
    """Whatever went wrong in the first two hours: one node for each slot, which owns it, an hour later."""
    h = history
    calm = replace(h, tick_s=60.0, hours=100, max_usd=1e6, fewer_at=1e9, down_at=4.5 * 3600, dead_at=1e9)
    calm = replace(calm, interruptions_per_hour=0, sold_out=(), never_ready=0)
    outages = tuple(replace(one, begin=one.begin % 3600, length=min(one.length, 3600)) for one in h.outages)
    crashes = tuple(replace(one, at=one.at % 7200) for one in h.crashes[:1])
    unready = tuple((at, 600.0) for at, _ in h.unready if at < 6600)
    kills = tuple(at for at in h.kills if at < 7200)
    played = Play(replace(calm, outages=outages, crashes=crashes, unready=unready, kills=kills))
    played.until_done(lambda: played.provider.prepare(CLUSTER, {}))
    while played.clock() - START < 4 * 3600:
        played.clock.advance(60)
        played.step()
    alive = played.provider.truth(CLUSTER, lately_s=0)
    assert sorted(node.slot for node in alive) == sorted(played.slots(played.clock()))
    assert owners(played.observed()) == {node.slot: node.id for node in alive}


def desired(phase: Phase = "run", **slots: WantedNode) -> Desired:
    return Desired("c", phase, slots or {SLOT: WANTED}, NOW + 36000)


def node(generation: int = 1, state: State = "running", slot: str = SLOT, **other: Any) -> Node:
    id_ = other.pop("id", f"{slot}-{generation}")
    given: dict[str, Any] = {"pool": SPOT, "launched": NOW - 5000, "deadline": NOW + 9000} | other
    return Node(id_, "c", slot, generation, token_of("c", slot, generation), state, **given)


def attempt(generation: int, outcome: Any, ago: float, slot: str = SLOT, **other: Any) -> Attempt:
    given = {"pools": (SPOT, OTHER, DEMAND), "node": f"{slot}-{generation}" if outcome == "launched" else ""} | other
    return Attempt(token_of("c", slot, generation), slot, generation, NOW - ago, outcome, **given)


def decide(*attempts: Attempt, nodes: tuple[Node, ...] = (), phase: Phase = "run", **other: Any) -> list[Action]:
    return reconcile(desired(phase), Observed(nodes, attempts, **other), NOW)


def generations(actions: list[Action]) -> list[int]:
    return [action.request.generation for action in actions if isinstance(action, Launch)]


def ended(actions: list[Action]) -> set[str]:
    return {one for action in actions if isinstance(action, Terminate) for one in action.nodes}


# --- Launching ------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_launched() -> None:
    (action,) = decide()
    assert isinstance(action, Launch)
    request = action.request
    assert (request.token, request.slot, request.generation) == ("c/worker-0001/1", SLOT, 1)
    assert request.pools == WANTED.pools
    start = {"cloudem": 1, "run": "r", "cluster": "c", "slot": SLOT, "generation": 1, "deadline": request.deadline}
    assert json.loads(request.start) == start


@pytest.mark.parametrize("state", ["pending", "running"])
def test_what_is_there_is_left_alone(state: State) -> None:
    assert decide(attempt(1, "launched", 100), nodes=(node(1, state, launched=NOW - 100),)) == []


def test_a_request_without_answer_is_repeated_as_it_was() -> None:
    first = decide()[0]
    assert isinstance(first, Launch)
    written = sent(first.request, NOW)
    later = replace(desired(), deadline=NOW + 5000)
    assert reconcile(later, Observed(attempts=(written,)), NOW + RESEND_S - 1) == []
    assert reconcile(later, Observed(attempts=(written,)), NOW + RESEND_S) == [first]


def test_a_request_that_never_gets_an_answer_gives_way_to_the_next_generation() -> None:
    known: tuple[Attempt, ...] = ()
    for ago in (UNANSWERED_S, 200, 100):
        known = noted(known, attempt(1, "unknown", ago))
    assert (known[0].failures, known[0].first) == (2, NOW - UNANSWERED_S)
    assert generations(decide(*known)) == [2]


@pytest.mark.parametrize("outcome", ["no-capacity", "quota"])
def test_a_refusal_is_followed_by_another_generation_after_a_pause(outcome: str) -> None:
    assert decide(attempt(1, outcome, BACKOFF_S - 1)) == []
    assert generations(decide(attempt(1, outcome, BACKOFF_S))) == [2]
    twice = attempt(1, outcome, 100), attempt(2, outcome, 2 * BACKOFF_S - 1)
    assert decide(*twice) == []


def test_throttling_waits_longer_each_time() -> None:
    assert generations(decide(attempt(1, "throttled", BACKOFF_S))) == [1]
    known: tuple[Attempt, ...] = ()
    for ago in (60, 50, 40, 30):
        known = noted(known, attempt(1, "throttled", ago))
    assert known[0].failures == 3
    assert generations(decide(*known)) == []


def test_what_was_launched_may_not_be_listed_yet() -> None:
    assert decide(attempt(1, "launched", LISTING_S - 1)) == []
    assert generations(decide(attempt(1, "launched", LISTING_S))) == [2]


def test_a_node_that_ended_is_replaced() -> None:
    gone = node(1, "ended", ended=NOW - 1)
    assert generations(decide(attempt(1, "launched", 5000), nodes=(gone,))) == [2]


def test_nodes_that_end_at_once_are_replaced_ever_more_slowly() -> None:
    early = [node(n, "ended", launched=NOW - 100, ended=NOW - 30) for n in (1, 2, 3)]
    known = [attempt(n, "launched", 100) for n in (1, 2, 3)]
    assert generations(decide(*known[:1], nodes=tuple(early[:1]))) == [2]
    assert generations(decide(*known, nodes=tuple(early))) == []
    worked = {each.id: NOW - 40 for each in early}
    assert generations(decide(*known, nodes=tuple(early), ready_at=worked)) == [4]


def test_pools_that_were_sold_out_come_last() -> None:
    known = attempt(1, "no-capacity", 600, "worker-0009", pools=(SPOT,)), attempt(2, "launched", 590, "worker-0009")
    (action,) = [one for one in decide(*known) if isinstance(one, Launch)]
    assert action.request.pools == (OTHER, DEMAND, SPOT)
    forgotten = [replace(each, at=each.at - SOLD_OUT_S) for each in known]
    (action,) = [one for one in decide(*forgotten) if isinstance(one, Launch)]
    assert action.request.pools == (SPOT, OTHER, DEMAND)


def test_after_a_failure_one_at_a_time() -> None:
    many = desired(**{f"worker-{number:04d}": WANTED for number in range(50)})
    assert len(reconcile(many, Observed(), NOW)) == BURST
    failed = attempt(1, "throttled", 400, "worker-0000")
    (action,) = reconcile(many, Observed(attempts=(failed,)), NOW)
    assert isinstance(action, Launch)
    assert action.request.slot == "worker-0001", "those first that waited longest"
    worked = attempt(1, "launched", 5, "worker-0001")
    assert len(reconcile(many, Observed(attempts=(failed, worked)), NOW)) == BURST


def test_it_says_when_there_is_no_hope_and_goes_on() -> None:
    known = [attempt(n, "no-capacity", GIVE_UP_S - 300 * (n - 1)) for n in range(1, 6)]
    gives_up = [one for one in decide(*known) if isinstance(one, GiveUp)]
    assert [one.slot for one in gives_up] == [SLOT]
    assert generations(decide(*known)) == [6]
    assert "no-capacity" in gives_up[0].why
    elsewhere = [replace(each, pools=(SPOT,)) for each in known]
    assert not [one for one in decide(*elsewhere) if isinstance(one, GiveUp)], "not all pools were tried"


def test_no_launch_without_time_or_while_draining() -> None:
    assert decide(phase="drain") == []
    assert reconcile(replace(desired(), deadline=NOW + 30), Observed(), NOW) == []


# --- Owners ---------------------------------------------------------------------------------------------------------


def test_the_next_generation_fences_the_one_before() -> None:
    old, new = node(1), node(2, "pending")
    both = attempt(1, "launched", 5000), attempt(2, "launched", 10)
    ready = frozenset({old.id})
    assert owners(Observed((old,), both[:1], ready=ready)) == {SLOT: old.id}
    written = Observed((old,), (both[0], attempt(2, "sent", 0)), ready=ready)
    assert owners(written) == {}, "from when it is written down"
    assert owners(Observed((old, new), both, ready=ready)) == {}, "the older is ready, and owns nothing"
    assert owners(Observed((old, new), both, ready=frozenset({old.id, new.id}))) == {SLOT: new.id}
    gone = replace(new, state="ended", ended=NOW)
    assert owners(Observed((old, gone), both, ready=ready)) == {}, "and never again"


def test_what_was_replaced_is_ended() -> None:
    old, new = node(1), node(2, launched=NOW - 100)
    ready = frozenset({old.id, new.id})
    assert ended(decide(attempt(2, "launched", 100), nodes=(old, new), ready=ready)) == {old.id}


def test_should_one_token_make_two_nodes_all_agree_on_one() -> None:
    pair = node(1, id="b"), node(1, id="a", launched=NOW - 4000)
    ready = frozenset({"a", "b"})
    for nodes in (pair, pair[::-1]):
        assert owners(Observed(nodes, ready=ready)) == {SLOT: "b"}
        assert ended(decide(nodes=nodes, ready=ready)) == {"a"}


# --- Ending ---------------------------------------------------------------------------------------------------------


def test_a_notice_retires_and_replaces_at_once() -> None:
    taken = node(1)
    known: dict[str, Any] = {"nodes": (taken,), "notices": {taken.id: NOW + 100}, "ready": frozenset({taken.id})}
    actions = decide(attempt(1, "launched", 5000), **known)
    assert Retire(taken.id) in actions
    assert generations(actions) == [2]
    (launch,) = [one for one in actions if isinstance(one, Launch)]
    assert launch.request.pools[-1] == SPOT, "there they are being taken"
    replaced = decide(attempt(1, "launched", 5000), attempt(2, "sent", 1), **known)
    assert replaced == [Retire(taken.id)], "it is not ended before it has retired"
    retired = decide(attempt(1, "launched", 5000), attempt(2, "sent", 1), **(known | {"ready": frozenset()}))
    assert ended(retired) == {taken.id}
    draining = decide(attempt(1, "launched", 5000), phase="drain", **known)
    assert draining == [Retire(taken.id)]


def test_what_does_not_get_ready_is_replaced() -> None:
    stuck = node(1, "pending", launched=NOW - READY_S)
    known = attempt(1, "launched", READY_S)
    assert ended(decide(known, nodes=(stuck,))) == {stuck.id}
    assert generations(decide(known, nodes=(stuck,))) == [2]
    silent = node(1, "running")
    assert decide(known, nodes=(silent,)) == []
    assert decide(known, nodes=(silent,), ready_at={silent.id: NOW - READY_S + 1}) == []
    assert ended(decide(known, nodes=(silent,), ready_at={silent.id: NOW - READY_S})) == {silent.id}


def test_what_is_not_wanted_and_what_is_overdue_ends() -> None:
    idle, late = node(1, slot="worker-0002"), node(1, deadline=NOW)
    assert ended(decide(attempt(1, "launched", 5000), nodes=(idle, late))) == {idle.id, late.id}


def test_down_ends_everything_listed_or_not() -> None:
    nodes = node(1), node(1, "pending", HEAD), node(1, "ended", "worker-0003", ended=NOW - 5)
    known = attempt(1, "launched", 5, "worker-0004"), attempt(1, "launched", LISTING_S, "worker-0005")
    actions = decide(*known, nodes=nodes, phase="down")
    assert ended(actions) == {nodes[0].id, nodes[1].id, "worker-0004-1"}
    assert not generations(actions)


def test_it_is_over_when_nothing_can_appear_any_more() -> None:
    def over(*attempts: Attempt, nodes: tuple[Node, ...] = (), quiet: float = QUIET_S) -> bool:
        return settled(Observed(nodes, attempts), NOW, NOW - quiet)

    assert over()
    assert not over(quiet=QUIET_S - 1)
    assert not over(nodes=(node(1),))
    assert over(attempt(1, "launched", 5), nodes=(node(1, "ended", ended=NOW - 60),))
    assert not over(attempt(1, "launched", LISTING_S - 1))
    assert not over(attempt(1, "no-capacity", LISTING_S - 1))
    assert not over(attempt(1, "unknown", UNANSWERED_S - 1))
    assert over(attempt(1, "unknown", UNANSWERED_S), attempt(2, "launched", LISTING_S))


# --- Attempts -------------------------------------------------------------------------------------------------------


def test_what_launched_stays_launched() -> None:
    known = noted((attempt(1, "launched", 50),), attempt(1, "throttled", 10))
    assert [(each.outcome, each.node) for each in known] == [("launched", f"{SLOT}-1")]
