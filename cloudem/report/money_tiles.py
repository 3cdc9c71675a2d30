"""The headline figures of a run's money, in the same words wherever they are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from cloudem.text import dollars

Triple: TypeAlias = tuple[float, float, float]
"""Low, expected, high."""


def spent_tile(spent_usd: float, max_usd: float) -> tuple[str, str]:
    """Return what a run has spent, and of how much: the figure and what it is."""
    return dollars(spent_usd), f"spent, of an approximate maximum of {dollars(max_usd)}"


def rate_tile(usd_per_hour: float) -> tuple[str, str]:
    """Return what a run costs while it runs: the figure and what it is."""
    return dollars(usd_per_hour), "an hour now"


def expected_tile(planned_usd: Triple) -> tuple[str, str]:
    """Return what a run was expected to cost in all: the figure and what it is."""
    return dollars(planned_usd[1]), f"expected; planned {range_in_words(planned_usd, dollars)}"


def range_in_words(planned: Triple, say: Callable[[float], str]) -> str:
    """Return from where to where a planned figure goes: ``$1.20 to $2.30``."""
    return f"{say(planned[0])} to {say(planned[2])}"
