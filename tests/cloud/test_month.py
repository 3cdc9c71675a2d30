"""The simulated month plays: a small run from its plan to its end, its market, and its jobs (benchmarks/month.py)."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not (BENCHMARKS / "month.py").exists():
    pytest.skip("the benchmarks lie beside the package, not in it", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import month  # noqa: E402
from bars.month_job import Alignment, machine  # noqa: E402
from bars.month_market import RecordedMonth, lives  # noqa: E402
from bars.month_runs import BEGIN, Play, spec_of, workflow_of, works_of  # noqa: E402
from bars.month_truth import World  # noqa: E402

from cloudem.cloud.catalogue import Catalogue  # noqa: E402
from cloudem.cloud.nodes import Pool  # noqa: E402

CATALOGUE = Catalogue.shipped()
KIND = CATALOGUE.types["c7a.xlarge"]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def job(begun: list[float] | None = None) -> Alignment:
    work = works_of(spec_of(0, 0), workflow_of(spec_of(0, 0)))["refine"]
    assert work is not None
    return Alignment("refine3d", "refine", World("0/0"), work, 0.0, 1.0, [] if begun is None else begun)


def played(number: int) -> Play:
    play = Play(spec_of(number, 0), CATALOGUE, RecordedMonth(CATALOGUE, BEGIN, "0"))
    play.play()
    return play


def test_a_run_ends_with_its_steps_done_and_nothing_left() -> None:
    found = month.told(played(7))
    assert found["status"] == "done"
    assert found["left"] == 0
    assert found["overshoot_share"] < 1
    assert found["preset_usd"] > 0
    summed = month.summary([found])
    assert summed["runs"] == summed["done"] == 1


def test_spot_machines_are_taken_as_often_as_recorded() -> None:
    market = RecordedMonth(CATALOGUE, BEGIN, "0")
    pools = [Pool("g4dn.xlarge", zone, "spot") for zone in CATALOGUE.zones("us-east-1")]
    pools = [pool for pool in pools if CATALOGUE.price(pool)]
    lived = [
        min(market.taken(pool, BEGIN + 3000 * n, f"m-{n}") - (BEGIN + 3000 * n), 20 * 86400)
        for pool in pools
        for n in range(200)
    ]
    assert 0.2 < 3600 * len(lived) / sum(lived) < 1.5  # 0.57 of the recordings, each weighted by its machines
    assert market.taken(Pool("g4dn.xlarge", pools[0].zone, "on-demand"), BEGIN, "m-0") == math.inf
    assert all(0 < share <= 1 for life in lives().values() for _, share in life.losses)
    for pool in pools:
        on_demand = market.price(pool._replace(market="on-demand"), BEGIN)
        assert all(0 < market.price(pool, BEGIN + 3600 * n) <= on_demand for n in range(0, 720, 24))


def test_two_machines_are_faster_than_one_and_a_lost_one_costs_time() -> None:
    ends = []
    for names, lost in ((["a"], ""), (["a", "b"], ""), (["a", "b"], "b")):
        one = job()
        for name in names:
            one.join(0.0, machine(one.world, name, KIND, one.work))
        if lost:
            one.leave(60.0, lost, handed_on=False)
        one.advance(math.inf)
        assert one.how == "done"
        ends.append(one.ended)
    assert ends[1] < ends[2] < ends[0] * 1.1


def test_a_stopped_job_goes_on_where_it_was() -> None:
    committed: list[float] = []
    one = job(committed)
    one.join(0.0, machine(one.world, "a", KIND, one.work))
    one.ask_to_stop()
    one.advance(1e6)
    assert (one.poll(), len(committed)) == ("stopped", 1)
    again = job(committed)
    again.join(0.0, machine(again.world, "a", KIND, again.work))
    again.advance(math.inf)
    assert again.how == "done"
    assert len(committed) == len(again._costs)
