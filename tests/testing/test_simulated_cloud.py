"""The simulated provider, beyond what every provider does."""

from collections.abc import Callable
from typing import Any

import pytest

from cloudem.cloud.nodes import InstanceType, Node, Pool, Request
from cloudem.errors import CapacityError, ProviderError, QuotaError, ThrottledError
from cloudem.testing.market import NEVER, RecordedMarket
from cloudem.testing.simulated_cloud import NOTICE_S, Clock, Fault, MemoryProvider

SPOT, DEMAND = Pool("large", "a", "spot"), Pool("large", "a", "on-demand")
T = 1.8e9
MARKET = RecordedMarket({SPOT: [(0, 36.0), (T + 100, 72.0)], DEMAND: [(0, 108.0)]}, boot=(30, 30))


def make(market: RecordedMarket = MARKET, **other: Any) -> tuple[MemoryProvider, Clock]:
    clock = Clock(T)
    provider = MemoryProvider(clock, market, **other)
    provider.prepare("c", {})
    return provider, clock


def request(number: int = 1, pools: tuple[Pool, ...] = (SPOT,), deadline: float = NEVER) -> Request:
    return Request(f"c/w/{number}", "c", "w", number, pools, deadline)


def states(provider: MemoryProvider) -> list[str]:
    return [node.state for node in provider.nodes("c")]


def once(call: str, fault: Fault) -> Callable[[str, float], Fault | None]:
    """Have a call go wrong the first time."""
    left = [fault]
    return lambda name, now: left.pop() if name == call and left else None


def test_a_life() -> None:
    provider, clock = make(shutdown_s=20)
    node = provider.launch(request())
    seen = []
    for seconds in (0, 29, 1, 1000):
        clock.advance(seconds)
        seen += states(provider)
    provider.terminate([node.id])
    for seconds in (0, 19, 1, 3599):
        clock.advance(seconds)
        seen += states(provider)
    assert seen == ["pending", "pending", "running", "running", "stopping", "stopping", "ended", "ended"]
    clock.advance(1)
    assert provider.nodes("c") == []
    assert [one.ended for one in provider.truth("c")] == [T + 1030 + 20]


def test_a_node_ends_itself_at_its_deadline() -> None:
    provider, clock = make()
    provider.launch(request(deadline=T + 500))
    clock.advance(500)
    assert states(provider) == ["ended"]


def test_what_it_costs() -> None:
    provider, clock = make(shutdown_s=0)
    node = provider.launch(request())
    assert provider.spent("c") == pytest.approx(0.6), "at least a minute"
    clock.advance(150)
    assert provider.spent("c") == pytest.approx(1.0 + 1.0), "at the price that holds at each moment"
    provider.terminate([node.id])
    clock.advance(9999)
    assert provider.spent("c") == pytest.approx(2.0)
    assert provider.spot_prices([SPOT, DEMAND]) == {SPOT: 72.0}


def test_pools_that_get_sold_out_take_their_spot_nodes() -> None:
    market = RecordedMarket(MARKET.prices, {SPOT: [(T + 600, T + 900)], DEMAND: [(T + 600, T + 900)]})
    provider, clock = make(market)
    nodes = [provider.launch(request(number, (pool,))) for number, pool in enumerate((SPOT, DEMAND))]
    clock.advance(600 - NOTICE_S - 1)
    assert provider.notices("c") == {}
    clock.advance(1)
    assert provider.notices("c") == {nodes[0].id: T + 600}
    clock.advance(NOTICE_S)
    assert states(provider) == ["ended", "running"]
    with pytest.raises(CapacityError):
        provider.launch(request(7))
    clock.advance(300)
    assert provider.launch(request(7)).pool == SPOT


def test_interruptions_come_at_their_rate_and_follow_from_the_seed() -> None:
    def lives(seed: int) -> list[float]:
        market = RecordedMarket(MARKET.prices, interruptions_per_hour={SPOT: 2.0}, seed=seed)
        return [market.taken(SPOT, T, f"n{number}") - T for number in range(2000)]

    assert lives(1) == lives(1) != lives(2)
    assert sum(lives(1)) / 2000 == pytest.approx(1800, rel=0.1)


def test_limits_count_what_is_alive() -> None:
    types = {"large": InstanceType("large", 8, 4, 32.0, quota="G")}
    provider, clock = make(quotas={("G", "spot"): 20.0}, types=types, shutdown_s=10)
    first = provider.launch(request(1))
    provider.launch(request(2))
    assert provider.quotas() == {("G", "spot"): 4.0}
    with pytest.raises(QuotaError):
        provider.launch(request(3))
    assert provider.launch(request(3, (SPOT, DEMAND))).pool == DEMAND
    provider.terminate([first.id])
    clock.advance(10)
    assert provider.launch(request(4)).pool == SPOT


@pytest.mark.parametrize(
    ("kind", "error", "made"),
    [
        ("throttled", ThrottledError, 0),
        ("failed", ProviderError, 0),
        ("lost", ProviderError, 1),
        ("denied", CapacityError, 1),
    ],
)
def test_faults_of_launches(kind: Any, error: type[ProviderError], made: int) -> None:
    provider, _ = make(faults=once("launch", Fault(kind)))
    with pytest.raises(error):
        provider.launch(request())
    assert len(provider.nodes("c")) == made
    node = provider.launch(request())
    assert [one.id for one in provider.nodes("c")] == [node.id], "with the same token there is one"


def test_listings_are_late_and_lie() -> None:
    provider, clock = make(lag_s=10, shutdown_s=0)

    def listed() -> list[Node]:
        return provider.nodes("c")

    node = provider.launch(request())
    assert listed() == []
    clock.advance(10)
    assert [one.state for one in listed()] == ["pending"]
    clock.advance(40)
    provider.terminate([node.id])
    assert [one.state for one in listed()] == ["running"], "it has ended"
    clock.advance(10)
    assert [one.state for one in listed()] == ["ended"]
    late, clock = make(faults=once("nodes", Fault("late", 60)))
    late.launch(request())
    clock.advance(59)
    assert [late.nodes("c"), len(late.nodes("c"))] == [[], 1]


def test_without_a_template_there_are_no_nodes() -> None:
    provider, _ = make()
    with pytest.raises(ProviderError, match="prepare"):
        provider.launch(Request("t", "another", "w", 1, (SPOT,), NEVER))


def test_a_group_is_removed_after_its_nodes() -> None:
    provider, clock = make()
    provider.launch(request())
    assert [one.kind for one in provider.release("c")] == ["security-group"]
    clock.advance(60)
    assert provider.release("c") == []
    assert provider.resources() == []
