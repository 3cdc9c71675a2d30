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


def information_tile(bits: float, micrographs: int, usd: float) -> tuple[str, str]:
    """Return how much information a dollar of motion correction gave: the figure and what it is."""
    of = f"{micrographs:,} micrograph{'s' if micrographs != 1 else ''}"
    return prefixed(
        bits / usd, "bit"
    ), f"above noise per dollar of motion correction, {of}; compare like specimens only"


def prefixed(value: float, unit: str) -> str:
    """Return a number of three digits with the unit's prefix: ``1.25 Mbit``."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:
            return f"{float(f'{value / factor:.3g}'):g} {prefix}{unit}"
    return f"{value:.0f} {unit}"


def range_in_words(planned: Triple, say: Callable[[float], str]) -> str:
    """Return from where to where a planned figure goes: ``$1.20 to $2.30``."""
    return f"{say(planned[0])} to {say(planned[2])}"
