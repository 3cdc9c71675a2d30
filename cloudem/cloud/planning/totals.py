"""A choice for every step put together: what it takes and costs in all, which of them are worth considering."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cloudem.cloud.nodes import InstanceType, Pool
from cloudem.cloud.planning.choices import ChoiceSequence, Offers
from cloudem.cloud.planning.estimate import Range, StepEstimate, total
from cloudem.text import rough_dollars, rough_time


class Whole(NamedTuple):
    """A course with its place and head, and all that it takes and costs."""

    zone: str
    head: InstanceType
    course: ChoiceSequence
    start: Range
    extra: Mapping[str, Range]
    wall: Range
    usd: Range


def with_overheads(
    stages: Sequence[StepEstimate], offers: Offers, zone: str, head: InstanceType, course: ChoiceSequence
) -> Whole:
    """Add what belongs to no step: the head before and after them, what is kept for a month, what is fetched."""
    rates, rate = offers.catalogue.rates_in(offers.region), offers.rate(Pool(head.name, zone, "on-demand"))
    assert rate is not None  # noqa: S101 - a head has a price
    start, end = offers.start, Range.exactly(offers.end)
    alone = start.plus(end)
    extra = {
        "head before and after": rate.times(alone).times(1 / 3600).plus(offers.disk(alone)),
        "storage, one month": Range.within(sum(s.stored_GiB for s in stages) * rates.storage_usd_per_GiB_month, 1.3),
        "results to you": Range.within(sum(s.result_GiB for s in stages) * rates.egress_usd_per_GiB, 1.3),
    }
    wall = total([alone, *(choice.wall for choice in course.choices)])
    usd = total([*extra.values(), *(choice.usd for choice in course.choices)])
    return Whole(zone, head, course, start, extra, wall, usd)


def front_of(wholes: Sequence[Whole]) -> list[Whole]:
    """Return the Pareto set, by time."""
    best: list[Whole] = []
    for whole in sorted(wholes, key=lambda w: (w.wall.expected, w.usd.expected)):
        if not best or whole.usd.expected < best[-1].usd.expected:
            best.append(whole)
    return best


def fits(whole: Whole, max_usd: float | None, max_hours: float | None) -> bool:
    """Tell whether a whole is expected to stay within limits; None is none."""
    within = max_usd is None or whole.usd.expected <= max_usd
    return within and (max_hours is None or whole.wall.expected <= 3600 * max_hours)


def likely(figure: Range) -> float:
    """Return what a figure stays below in about four of five cases: halfway from expected to its end, in logarithms."""
    return math.sqrt(figure.expected * figure.high)


def excess(whole: Whole, max_usd: float | None, max_hours: float | None) -> float:
    """Return by which factor what is likely is beyond limits: 1 or less where it is within."""
    money = likely(whole.usd) / max_usd if max_usd is not None else 0.0
    return max(money, likely(whole.wall) / (3600 * max_hours) if max_hours is not None else 0.0)


def limits_in_words(max_usd: float | None, max_hours: float | None) -> str:
    """Return limits as people say them."""
    given = [
        f"${max_usd:g}" if max_usd is not None else "",
        rough_time(3600 * max_hours) if max_hours is not None else "",
    ]
    return " and ".join(filter(None, given))


def why_impossible(stages: Sequence[StepEstimate], offers: Offers) -> str:
    """Say which step no machine can do, and the reason that most of them have."""
    for stage in stages:
        reasons = [why for what, why in offers.refused if what.endswith((f" for {stage.name}", " as head"))]
        if reasons and not any(offers.choices(stage, z, h) for z in offers.zones for h in offers.heads(stages, z)):
            return f"no machine in {offers.region} can run {stage.name}: {reasons[-1]} ({len(reasons)} refused)"
    reasons = list(dict.fromkeys(why for _, why in offers.refused))
    return f"nothing can be rented in {offers.region}: {'; '.join(reasons[:3]) or 'it has no machines'}"


def nearest(front: Sequence[Whole], max_usd: float | None, max_hours: float | None) -> str:
    """Say what comes nearest: the cheapest that is fast enough, and the fastest that is cheap enough."""
    near = []
    quick = [whole for whole in front if fits(whole, None, max_hours)]
    cheap = [whole for whole in front if fits(whole, max_usd, None)]
    if quick:
        under = f" under {limits_in_words(None, max_hours)}" if max_hours is not None else ""
        near.append(
            f"the cheapest{under} is {rough_dollars(quick[-1].usd.expected)} ({rough_time(quick[-1].wall.expected)})"
        )
    else:
        near.append(
            f"the fastest of all takes {rough_time(front[0].wall.expected)} ({rough_dollars(front[0].usd.expected)})"
        )
    if cheap and max_hours is not None:
        under = f" under {limits_in_words(max_usd, None)}" if max_usd is not None else ""
        near.append(
            f"the fastest{under} takes {rough_time(cheap[0].wall.expected)} ({rough_dollars(cheap[0].usd.expected)})"
        )
    elif not cheap and quick != list(front):
        near.append(
            f"the cheapest of all is {rough_dollars(front[-1].usd.expected)} ({rough_time(front[-1].wall.expected)})"
        )
    return f"no plan fits {limits_in_words(max_usd, max_hours)}: {'; '.join(dict.fromkeys(near))}; allow that much"
