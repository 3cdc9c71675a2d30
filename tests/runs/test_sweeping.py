"""What a sweep removes, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable

from cloudem.cloud.nodes import HEAD, Pool, Request
from cloudem.runs.leftovers import look, sweep
from cloudem.testing.market import RecordedMarket
from cloudem.testing.simulated_cloud import Clock, MemoryProvider

POOL = Pool("a", "zone", "on-demand")


def account() -> tuple[Clock, MemoryProvider]:
    clock = Clock()
    return clock, MemoryProvider(clock, RecordedMarket({POOL: [(0.0, 1.0)]}, boot=(1.0, 2.0)))


def launch(clock: Clock, provider: MemoryProvider, cluster: str, slot: str) -> None:
    provider.launch(Request(f"{cluster}/{slot}/1", cluster, slot, 1, (POOL,), clock() + 3600))


def sleeping(clock: Clock, *then: Callable[[], None]) -> Callable[[float], None]:
    """Return what lets time pass, and in it, once each, something happen."""
    left = list(then)

    def sleep(seconds: float) -> None:
        clock.advance(seconds)
        if left:
            left.pop(0)()

    return sleep


def test_a_cluster_that_is_just_being_started_is_left_alone() -> None:
    clock, provider = account()
    provider.prepare("begun", {})
    provider.prepare("left", {})
    assert {each.cluster for each in look(provider, clock()).left} == {"begun", "left"}
    sleep = sleeping(clock, lambda: launch(clock, provider, "begun", HEAD))
    assert sweep(provider, {"begun", "left"}, clock, sleep) == []
    found = look(provider, clock())
    assert (set(found.used), found.left) == ({"begun"}, [])


def test_nothing_is_removed_that_was_not_shown() -> None:
    clock, provider = account()
    provider.prepare("left", {})
    launch(clock, provider, "left", "worker-0")
    sleep = sleeping(clock, lambda: provider.prepare("new", {}))
    assert sweep(provider, {"left"}, clock, sleep) == []
    assert {each.cluster for each in look(provider, clock()).left} == {"new"}
