"""Laws of planning: more money or time never gives a worse plan, nothing shown is dominated, ranges hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.nodes import Pool
from cloudem.cloud.planning.estimate import Duration, Fleet, Range, Refusal, StepEstimate
from cloudem.cloud.planning.plan import Plan, plan
from cloudem.cloud.planning.totals import likely
from cloudem.errors import BudgetError, FormatError, ParameterError
from cloudem.text import rough_dollars, rough_time

NOW = 1763700000.0
CATALOGUE = Catalogue.shipped()
TYPES = ("m7i.large", "c7a.4xlarge", "c7a.16xlarge", "g6.xlarge", "g5.xlarge")
REGION = "eu-central-1"


def scaling(name: str, work: float, serial: float, memory: float = 4.0, gpu: float = 10.0) -> StepEstimate:
    """A step that shares `work` among threads (a GPU counts for `gpu`), and `serial` that nobody shares."""

    def estimate(fleet: Fleet) -> Duration | Refusal:
        kind = fleet.type
        if kind.memory_GiB < memory:
            return Refusal(f"too little memory: {memory:g} GiB are needed")
        speed = fleet.count * (gpu if kind.gpus else kind.vcpus)
        shared = work / speed
        whole = serial + shared
        return Duration(Range(whole / 2, whole, whole * 2), "shared", {"shared": shared, "serial": serial}, lost_s=60)

    return StepEstimate(name, estimate, most=256, head_GiB=1.0, stored_GiB=2.0, result_GiB=1.0, puts=100, gets=1000)


def on_head(name: str, seconds: float) -> StepEstimate:
    return StepEstimate(name, lambda fleet: Duration(Range.within(seconds, 1.5), "one thread"), on_head=True)


def make(stages: list[StepEstimate], **given: object) -> Plan:
    return plan(stages, CATALOGUE, **{"region": REGION, "now": NOW, "types": TYPES, **given})  # type: ignore[arg-type]


@st.composite
def workflows(draw: st.DrawFn) -> list[StepEstimate]:
    count = draw(st.integers(1, 3))
    return [
        on_head(f"step{n}", draw(st.floats(1, 1000)))
        if draw(st.booleans()) and n
        else scaling(f"step{n}", draw(st.floats(10, 1e6)), draw(st.floats(0, 3000)), gpu=draw(st.floats(2, 200)))
        for n in range(count)
    ]


few = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@few
@given(workflows(), st.floats(1.0, 3.0), st.floats(1.0, 3.0))
def test_more_money_is_never_slower_and_more_time_never_dearer(stages, little, more) -> None:
    cheapest = make(stages, objective="cheapest")
    fastest = make(stages, objective="fastest")
    budget = cheapest.usd.expected * little * 1.0001
    poor = make(stages, objective="fastest", max_usd=budget)
    rich = make(stages, objective="fastest", max_usd=budget * more)
    assert rich.wall.expected <= poor.wall.expected * (1 + 1e-9)
    assert poor.usd.expected <= budget
    assert rich.usd.expected <= budget * more
    limit = fastest.wall.expected / 3600 * little * 1.04
    hasty = make(stages, max_hours=limit)
    patient = make(stages, max_hours=limit * more)
    assert patient.usd.expected <= hasty.usd.expected * (1 + 1e-9)
    assert hasty.wall.expected <= 3600 * limit


@few
@given(workflows())
def test_no_alternative_is_dominated_and_one_of_them_is_chosen(stages) -> None:
    found = make(stages).alternatives
    assert sum(other.chosen for other in found) == 1
    for a in found:
        for b in found:
            if a is not b:
                assert a.usd.expected < b.usd.expected or a.wall.expected < b.wall.expected


@few
@given(workflows())
def test_ranges_hold_what_is_expected_and_steps_add_up(stages) -> None:
    found = make(stages, objective="fastest")
    for part in (*found.steps, found, *found.alternatives):
        assert part.usd.holds(part.usd.expected)
        assert part.wall.holds(part.wall.expected)
    for name in Range._fields:
        whole = sum(getattr(s.usd, name) for s in found.steps) + sum(getattr(x, name) for x in found.extra.values())
        assert whole == pytest.approx(getattr(found.usd, name))
        assert sum(getattr(s.wall, name) for s in found.steps) < getattr(found.wall, name)
    for step in found.steps:
        assert sum(step.costs.values()) == pytest.approx(step.usd.expected)
        assert step.on_head == (step.count == 0)


@few
@given(workflows(), st.sampled_from(["cheapest", "fastest"]))
def test_a_plan_comes_back_from_json(stages, objective) -> None:
    found = make(stages, objective=objective, max_hours=1e6)
    assert Plan.from_json(json.loads(json.dumps(found.as_json()))) == found


def test_workers_of_a_plan_may_come_from_elsewhere_in_the_right_order() -> None:
    step = make([scaling("refine", 1e5, 10)]).step("refine")
    assert step.market == "spot"
    kinds = [(pool.market == "on-demand", pool.zone != step.pool.zone) for pool in step.fallbacks]
    assert kinds == sorted(kinds)
    assert len(set(step.pools)) == len(step.pools)
    assert {True, False} == {pool.market == "on-demand" for pool in step.fallbacks}
    here = [pool for pool in step.fallbacks if (pool.zone, pool.market) == (step.pool.zone, "spot")]
    assert step.instance_type not in {pool.instance_type for pool in here}


def test_on_demand_is_no_fallback_beyond_the_budget() -> None:
    stages = [scaling("refine", 1e6, 10)]
    cheap = make(stages)
    tight = make(stages, max_usd=cheap.usd.expected * 1.05)
    assert tight.step("refine").market == "spot"
    assert all(pool.market == "spot" for pool in tight.step("refine").fallbacks)


def test_a_machine_with_too_little_memory_is_refused_and_said() -> None:
    found = make([scaling("refine", 1e5, 10, memory=100.0)])
    assert found.step("refine").instance_type == "c7a.16xlarge"
    assert ("m7i.large for refine", "too little memory: 100 GiB are needed") in found.refused
    with pytest.raises(BudgetError, match=r"no machine in eu-central-1 can run refine: too little memory: 5000 GiB"):
        make([scaling("refine", 1e5, 10, memory=5000.0)])


def test_the_nearest_is_named_when_nothing_fits() -> None:
    stages = [scaling("refine", 1e6, 600)]
    cheapest, fastest = make(stages), make(stages, objective="fastest")
    middle = (cheapest.wall.expected * fastest.wall.expected) ** 0.5 / 3600
    with pytest.raises(BudgetError) as caught:
        make(stages, max_hours=middle, max_usd=cheapest.usd.expected * 1.01)
    named = [other for other in cheapest.alternatives if other.wall.expected <= 3600 * middle]
    least = min(other.usd.expected for other in named)
    assert f"the cheapest under {rough_time(3600 * middle)} is {rough_dollars(least)}" in str(caught.value)
    assert "the fastest under $" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(BudgetError, match="the fastest of all takes"):
        make(stages, max_hours=0.001)
    with pytest.raises(BudgetError, match=r"no plan fits \$0.0001: the cheapest is \$"):
        make(stages, max_usd=0.0001)


def test_what_is_likely_within_the_limits_goes_before_what_is_only_expected_to_be() -> None:
    stages = [scaling("refine", 1e6, 600)]
    cheapest, fastest = make(stages), make(stages, objective="fastest")
    limit = cheapest.wall.expected * 1.01 / 3600
    found = make(stages, max_hours=limit)
    assert found.usd.expected > cheapest.usd.expected
    assert likely(found.wall) <= 3600 * limit
    assert make(stages, max_hours=likely(cheapest.wall) * 1.01 / 3600).steps == cheapest.steps
    barely = fastest.wall.expected * 1.01 / 3600  # nothing is likely in time: then what comes nearest to it
    assert likely(make(stages, max_hours=barely).wall) > 3600 * barely


def test_quotas_are_kept_and_said() -> None:
    quotas = {("standard", "spot"): 20.0, ("standard", "on-demand"): 4.0, ("G", "spot"): 0.0, ("G", "on-demand"): 0.0}
    found = make([scaling("refine", 1e6, 600)], objective="fastest", quotas=quotas)
    step = found.step("refine")
    kind = CATALOGUE.types[step.instance_type]
    assert kind.quota == "standard"
    assert step.count * kind.vcpus <= quotas["standard", step.market]
    assert any("quota G spot: 0 vCPUs free, 4 needed" in why for _, why in found.refused)


def test_a_note_says_what_may_be_beyond_the_limits() -> None:
    stages = [scaling("refine", 1e5, 600)]
    cheapest = make(stages)
    limit = cheapest.wall.expected * 1.2 / 3600
    found = make(stages, max_hours=limit, max_usd=cheapest.usd.expected * 1.1)
    assert any("it may take up to" in note for note in found.notes)
    assert any("it would be stopped early" in note for note in found.notes)
    assert any("stale" in note for note in found.notes)


def test_spot_rework_and_the_head_are_in_the_price() -> None:
    step = make([scaling("refine", 1e7, 600)], markets=("spot",)).step("refine")
    assert {"workers", "head", "disks", "requests", "spot rework"} <= step.costs.keys()
    assert step.parts["starting nodes"] > 0
    assert step.parts["spot rework"] > 0
    surely = make([scaling("refine", 1e7, 600)], markets=("on-demand",)).step("refine")
    assert "spot rework" not in surely.costs
    assert surely.usd.expected > step.usd.expected


def test_a_gpu_that_is_faster_for_its_money_is_taken_and_its_speed_said_to_be_scaled() -> None:
    def with_gpu(stage: StepEstimate) -> Callable[[Fleet], Duration | Refusal]:
        def estimate(fleet: Fleet) -> Duration | Refusal:
            found = stage.estimate(fleet)
            if isinstance(found, Refusal):
                return found
            return replace(found, gpu_GiB=6.0 if fleet.type.gpus else 0.0)

        return estimate

    stage = scaling("refine", 1e7, 10, gpu=2000)
    found = make([replace(stage, estimate=with_gpu(stage))])
    step = found.step("refine")
    assert CATALOGUE.types[step.instance_type].gpus
    assert step.gpu_GiB == 6.0
    assert all(CATALOGUE.types[pool.instance_type].gpus for pool in step.fallbacks)
    assert any("GPU speeds are scaled" in note for note in found.notes)


def on_gpus(name: str, gpus: int, holds: Callable[[str], int]) -> StepEstimate:
    """A step that runs on GPUs alone; of a type's machines the memory holds so many workers."""

    def estimate(fleet: Fleet) -> Duration | Refusal:
        tasks = min(fleet.type.gpus, holds(fleet.type.name))
        if not tasks:
            return Refusal("no GPU")
        seconds = Range.within(1e5 / fleet.count / tasks, 1.5)
        return Duration(seconds, "shared", {"shared": seconds.expected}, gpu_GiB=5.0, tasks=tasks)

    return StepEstimate(name, estimate, most=gpus, head_GiB=1.0)


SEVERAL = ("g5.12xlarge", "g6.12xlarge", "g6e.12xlarge", "g5.48xlarge", "g6e.48xlarge", "c7a.16xlarge")


def test_nodes_are_told_of_their_gpus_and_only_machines_that_hold_as_many_workers_take_their_place() -> None:
    stage = on_gpus("refine", 64, lambda name: 8)
    step = make([stage], types=SEVERAL).step("refine")
    assert (step.tasks, step.workers) == (0, {"gpus": "all"})
    assert step.fallbacks
    chosen, few = step.instance_type, "g6.12xlarge" if step.instance_type != "g6.12xlarge" else "g5.12xlarge"
    scarce = make([on_gpus("refine", 64, lambda name: 3 if name == few else 8)], types=SEVERAL).step("refine")
    assert scarce.instance_type == chosen
    assert few in {pool.instance_type for pool in step.fallbacks}
    assert few not in {pool.instance_type for pool in scarce.fallbacks}  # it would be told to use all
    limited = make([on_gpus("refine", 64, lambda name: 3)], types=SEVERAL).step("refine")
    assert (limited.tasks, limited.workers) == (3, {"gpus": 3})
    assert few in {pool.instance_type for pool in limited.fallbacks}


def test_a_step_on_processors_is_told_to_leave_gpus_alone() -> None:
    def estimate(fleet: Fleet) -> Duration | Refusal:
        tasks = fleet.type.vcpus if fleet.type.memory_GiB > 4 * fleet.type.vcpus else fleet.type.vcpus // 2
        return Duration(Range.exactly(1e6 / fleet.count / tasks), "shared", tasks=tasks)

    step = make([StepEstimate("reconstruct", estimate, most=512)]).step("reconstruct")
    kind = CATALOGUE.types[step.instance_type]
    assert step.workers == {"gpus": "none", "tasks": step.tasks}
    assert step.tasks == (0 if kind.memory_GiB > 4 * kind.vcpus else kind.vcpus // 2)


def test_the_rehearsal_region_has_plans_of_small_cost() -> None:
    found = make([scaling("refine", 60, 5, memory=1.0)], region="local", types=None)
    assert found.head.zone.startswith("local-")
    assert 0 < found.usd.expected < 0.1
    assert found.wall.expected < 200


def test_what_cannot_be_asked_is_one_line() -> None:
    stages = [scaling("refine", 1e5, 10)]
    with pytest.raises(ParameterError, match="no prices are known for 'mars'; known regions are"):
        make(stages, region="mars")
    with pytest.raises(ParameterError, match="no prices are known for zone 'euc9'"):
        make(stages, zones=["euc9"])
    with pytest.raises(ParameterError, match=r"there is no instance type 'x9.unknown'; known types are .*c7a\.4xlarge"):
        make(stages, types=("x9.unknown",))


def test_types_limit_the_workers_and_not_the_head() -> None:
    found = make([scaling("refine", 1e5, 10)], types=("g6.xlarge",))
    assert found.step("refine").instance_type == "g6.xlarge"
    assert not CATALOGUE.types[found.head.instance_type].gpus


@pytest.mark.parametrize("change", [{"cloudem_plan": 99}, {"head": 3}, {"steps": [{}]}, {"unknown": 1}, {"usd": [1]}])
def test_what_is_no_plan_is_refused(change) -> None:
    good = make([scaling("refine", 1e5, 10)]).as_json()
    with pytest.raises(FormatError, match="cloudem plan"):
        Plan.from_json({**good, **change})


def test_a_zone_may_be_chosen() -> None:
    zone = CATALOGUE.zones(REGION)[-1]
    found = make([scaling("refine", 1e5, 10)], zones=[zone])
    assert found.zone == zone
    assert all(pool.zone == zone for step in found.steps for pool in step.pools)
    assert isinstance(found.head, Pool)
