"""The ledger's fold, and when to stop."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.cloud.money import (
    IDLE,
    KINDS,
    START_UP,
    Account,
    Cap,
    CapChanged,
    Charge,
    Entry,
    NodeEnded,
    NodeStarted,
    Note,
    PriceChanged,
    StepEnded,
    StepStarted,
    account,
    describe_cap,
    node_deadline,
    verdict,
    worst_overshoot,
)
from cloudem.cloud.nodes import Pool
from cloudem.cloud.planning.estimate import Range
from cloudem.errors import FormatError

POOL = Pool("large", "a", "spot")
LEDGER: list[Entry] = [
    CapChanged(0, 200, 6),
    NodeStarted(0, "head", "head", POOL, 3.6),
    StepStarted(1000, "refine3d", Range(1, 2, 3), Range(10, 20, 30)),
    NodeStarted(1000, "n1", "worker-0001", POOL, 36.0),
    PriceChanged(1500, "n1", 72.0),
    NodeEnded(2000, "n1", "taken"),
    Charge(1800, "egress", 0.25),
    StepEnded(2500, "refine3d"),
    Note(2600, "that was it"),
]


def test_a_ledger_by_hand() -> None:
    found = account(LEDGER, 3000)
    assert found.by_node == pytest.approx({"head": 3.0, "n1": 5.0 + 10.0})
    assert found.by_step == pytest.approx({START_UP: 1.0, "refine3d": 1.5 + 15.0 + 0.25, IDLE: 0.5})
    assert found.by_charge == {"egress": 0.25}
    assert found.total == pytest.approx(18.25)
    assert (found.alive, found.rate_per_hour) == ({"head"}, 3.6)
    during = account([entry for entry in LEDGER if entry.at <= 1600], 1600)
    assert (during.alive, during.rate_per_hour) == ({"head", "n1"}, pytest.approx(75.6))


def test_a_node_without_an_end_costs_until_now() -> None:
    started = LEDGER[1]
    assert account([started], 7200).total == pytest.approx(7.2)
    assert account([started], 36000).total == pytest.approx(36.0)


def test_at_least_a_minute() -> None:
    started = NodeStarted(0, "n", "s", POOL, 60.0)
    for now, entries in ((1, [started]), (99, [started, NodeEnded(5, "n")]), (99, [started, NodeEnded(-5, "n")])):
        assert account(entries, now).total == pytest.approx(1.0)


def test_an_end_without_a_start_counts_nothing() -> None:
    assert account([NodeEnded(5, "n"), PriceChanged(6, "n", 3.0)], 99) == Account(0.0, {}, {}, {}, 0.0, frozenset())


def test_a_step_that_was_begun_again_is_one_step() -> None:
    entries = [NodeStarted(0, "n", "s", POOL, 3600), StepStarted(10, "a"), StepStarted(100, "a"), StepStarted(200, "b")]
    assert account(entries, 260).by_step == pytest.approx({START_UP: 10, "a": 190, "b": 60})


def test_seen_twice_counts_once() -> None:
    seen_later = [NodeStarted(900, "head", "head", POOL, 9.9), NodeEnded(2900, "n1", "not listed")]
    assert account([*LEDGER, *LEDGER, *seen_later], 3000) == account(LEDGER, 3000)


nodes = st.sampled_from(["n1", "n2", "n3"])
moments = st.integers(0, 20_000)
prices = st.integers(0, 50)
steps = st.sampled_from(["a", "b"])
entries = st.one_of(
    st.builds(NodeStarted, moments, nodes, st.just("s"), st.just(POOL), prices),
    st.builds(PriceChanged, moments, nodes, prices),
    st.builds(NodeEnded, moments, nodes, st.just("")),
    st.builds(StepStarted, moments, steps, st.none(), st.none()),
    st.builds(StepEnded, moments, steps, st.just("finished")),
    st.builds(Charge, moments, st.just("egress"), prices),
)


@given(st.lists(entries, max_size=25), st.integers(0, 2**32))
def test_order_and_repetition_change_nothing(ledger: list[Entry], seed: int) -> None:
    mixed = [*ledger, *ledger[:7]]
    random.Random(seed).shuffle(mixed)
    first, second = account(ledger, 20_000), account(mixed, 20_000)
    assert second.total == pytest.approx(first.total)
    assert second.by_node == pytest.approx(first.by_node)
    assert second.by_step == pytest.approx(first.by_step)
    assert (second.alive, second.rate_per_hour) == (first.alive, pytest.approx(first.rate_per_hour))


@given(st.lists(entries, max_size=25))
def test_the_parts_make_the_whole(ledger: list[Entry]) -> None:
    found = account(ledger, 20_000)
    assert sum(found.by_step.values()) == pytest.approx(found.total)
    assert sum(found.by_node.values()) + sum(found.by_charge.values()) == pytest.approx(found.total)


def test_entries_come_back_from_json() -> None:
    assert {type(entry).__name__ for entry in LEDGER} == set(KINDS)
    for entry in LEDGER:
        back = Entry.from_json(json.loads(json.dumps(entry.as_json())))
        assert back == entry
        assert hash(back) == hash(entry)


@pytest.mark.parametrize("data", [{}, {"kind": "Gift"}, {"kind": "Note", "at": 1}, {"kind": "NodeStarted", "pool": []}])
def test_what_is_no_entry_is_said_so(data: dict[str, object]) -> None:
    with pytest.raises(FormatError) as caught:
        Entry.from_json(data)
    assert len(str(caught.value).splitlines()) == 1


# --- Stopping -------------------------------------------------------------------------------------------------------

SPENT = Account(90.0, {}, {}, {}, 36.0, frozenset())
"""A cent a second."""


@pytest.mark.parametrize(
    ("max_usd", "deadline", "planned", "says"),
    [
        (200, 9999, 0, "run"),
        (90 + 4.01, 9999, 0, "run"),
        (90 + 4.00, 9999, 0, "drain"),  # 300 s to finish and 100 s to shut down, at a cent a second
        (90 + 1.01, 9999, 0, "drain"),
        (90 + 1.00, 9999, 0, "end"),
        (80, 9999, 0, "end"),
        (200, 401, 0, "run"),
        (200, 400, 0, "drain"),
        (200, 100, 0, "end"),
        (90 + 4.01, 9999, 72, "drain"),  # more is about to be launched
        (90 + 2.00, 9999, 72, "end"),
    ],
)
def test_two_thresholds(max_usd: float, deadline: float, planned: float, says: str) -> None:
    cap = Cap(max_usd, deadline)
    assert verdict(cap, SPENT, 0, to_finish_s=300, latency_s=100, planned_rate=planned) == says


def test_what_is_launched_costs_a_minute_at_once() -> None:
    none = replace(SPENT, rate_per_hour=0)
    assert verdict(Cap(90.5, 9999), none, 0, to_finish_s=0, latency_s=1, planned_rate=36) == "end"


def test_nodes_end_before_the_money_does() -> None:
    assert node_deadline(Cap(90 + 10, 9999), SPENT, 72, 1000, shutdown_s=60) == 1000 + 500 - 60
    assert node_deadline(Cap(1e6, 9999), SPENT, 72, 1000, shutdown_s=60) == 9999 - 60
    assert node_deadline(Cap(90 + 10, 9999), SPENT, 1, 1000, shutdown_s=0) == 2000, "at least what is spent now"
    assert node_deadline(Cap(50, 9999), SPENT, 72, 1000) == 1000


def test_what_a_cap_promises() -> None:
    assert worst_overshoot(36, 100) == pytest.approx(1.0)
    text = describe_cap(200, 36, latency_s=100, patience_s=540)
    assert text == (
        "approximate maximum $200.00; worst overshoot $1.00 (all nodes for 100 s), $6.00 if the control plane dies "
        "(nodes end themselves after 600 s)"
    )
