"""Planned against actual, from a ledger."""

from __future__ import annotations

import pytest
from rich.console import Console

from cloudem.cli.cost_tables import ledger_table, node_table, step_table
from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import CapChanged, Charge, NodeEnded, NodeStarted, StepEnded, StepStarted
from cloudem.cloud.nodes import Pool
from cloudem.errors import BudgetError, ParameterError
from cloudem.runs.accounting import costs
from cloudem.runs.cluster_plan import cluster_plan

POOL = Pool("local.1", "local-a", "spot")

LEDGER = [
    CapChanged(0.0, 2.0, 1.0),
    NodeStarted(0.0, "h", "head", POOL, 3.6),
    NodeStarted(100.0, "w", "worker", POOL, 7.2),
    StepStarted(200.0, "0-refine3d", (0.5, 1.0, 2.0), (100.0, 200.0, 400.0)),
    StepEnded(300.0, "0-refine3d", "stopped"),
    StepStarted(400.0, "0-refine3d", (0.5, 1.0, 2.0), (100.0, 200.0, 400.0)),
    StepEnded(600.0, "0-refine3d", "done"),
    NodeEnded(600.0, "w", "ended"),
    StepStarted(600.0, "1-mask", (0.0, 0.1, 0.2), (1.0, 2.0, 3.0)),
]


def plan(**values):
    given = {"types": ("local.1",), "count": 2, "markets": ("spot",), "max_usd": 5.0, "max_hours": 1.0}
    return cluster_plan(Catalogue.shipped(), "local", **{**given, **values})


def test_a_step_that_was_begun_twice_took_both_times() -> None:
    found = costs(plan(), LEDGER, 700.0)
    refine, mask, *rest = found.steps
    assert (refine.name, refine.wall, refine.how) == ("0-refine3d", 300.0, "done")
    assert refine.usd == pytest.approx(300 * (3.6 + 7.2) / 3600)
    assert (mask.wall, mask.how, mask.usd) == (100.0, "", pytest.approx(0.1))
    assert [step.name for step in rest] == ["(idle)", "(start-up)"]
    assert sum(step.usd for step in found.steps) == pytest.approx(found.spent.total)
    assert [(node.node, node.seconds, node.alive) for node in found.nodes] == [("h", 700.0, True), ("w", 500.0, False)]
    assert found.max_usd == 2.0


def test_a_step_whose_controller_died_goes_on_counting() -> None:
    ledger = [
        NodeStarted(0.0, "h", "head", POOL, 3.6),
        StepStarted(100.0, "0-refine3d"),
        StepStarted(200.0, "0-refine3d"),
    ]
    assert costs(plan(), ledger, 300.0).steps[0].wall == 200.0


def test_tables_hold_what_they_should() -> None:
    screen = Console(width=160, record=True)
    found = costs(plan(), [*LEDGER, Charge(650.0, "requests", 0.02)], 700.0)
    for table in (step_table(found), node_table(found), ledger_table(LEDGER)):
        screen.print(table)
    text = screen.export_text()
    for expected in ("0-refine3d", "$0.50 to $2.00", "stopped", "requests", "of $2.00", "StepStarted", "total"):
        assert expected in text, expected


def test_a_standing_cluster_is_refused_where_it_cannot_be_paid() -> None:
    found = plan(count=3)
    assert found.steps[0].count == 3
    assert found.head.market == "on-demand"
    assert {pool.zone for pool in found.steps[0].fallbacks} == {"local-b"}
    with pytest.raises(BudgetError, match="more than"):
        plan(max_usd=0.1)
    with pytest.raises(ParameterError, match="p99"):
        plan(types=("p99.giant",))
