"""The plan of a cluster that waits for jobs: no steps are known, only machines and for how long."""

from __future__ import annotations

from collections.abc import Sequence

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.nodes import Market, Pool
from cloudem.cloud.planning.estimate import Range
from cloudem.cloud.planning.plan import Plan, PlannedStep
from cloudem.errors import BudgetError, ParameterError

HEAD_GIB = 4.0
"""Memory of the smallest head node that is taken."""


def cluster_plan(
    catalogue: Catalogue,
    region: str,
    types: Sequence[str],
    count: int,
    markets: Sequence[Market],
    max_usd: float,
    max_hours: float,
) -> Plan:
    """Return a plan for so many workers of one of some types, in the zone where the first of them is cheapest.

    Raises
    ------
    ParameterError
        A type or region is not known, or none of the types is sold there.
    BudgetError
        Head and workers for the whole time would cost more than the maximum.
    """
    unknown = [name for name in types if name not in catalogue.types]
    if unknown or region not in catalogue.regions():
        what = f"--instance-type {unknown[0]}" if unknown else f"--region {region}"
        raise ParameterError(f"{what}: no price is known; `cloudem prices show` lists known prices")
    pools = [
        (price.usd_per_hour, types.index(name), Pool(name, zone, market))
        for name in types
        for zone in catalogue.zones(region)
        for market in markets
        if (price := catalogue.price(Pool(name, zone, market))) is not None
    ]
    if not pools:
        raise ParameterError(f"none of {', '.join(types)} has a price in {region}; `cloudem prices show` lists them")
    best = min(pools, key=lambda each: (each[1], each[0]))[2]
    ordered = sorted(
        pools, key=lambda each: (each[2].zone != best.zone, each[2].market != best.market, each[1], each[0])
    )
    head, head_usd = smallest(catalogue, region, best.zone)
    rate = head_usd + count * min(usd for usd, _, pool in pools if pool == best)
    highest = head_usd + count * max(usd for usd, _, _ in pools)
    if rate * max_hours > max_usd:
        raise BudgetError(
            f"{max_hours:g} h of {count} × {best.instance_type} {best.market} and a head cost ${rate * max_hours:.2f}, "
            f"more than ${max_usd:.2f}; try --max-hours {max_usd / rate:.2f} or fewer workers"
        )
    seconds, usd = Range.exactly(max_hours * 3600), Range(0.0, rate * max_hours, highest * max_hours)
    step = PlannedStep(
        "workers", best, count, tuple(pool for _, _, pool in ordered if pool != best), seconds, usd, "waits for jobs"
    )
    return Plan(region, best.zone, "cheapest", max_usd, max_hours, head, (step,), Range.exactly(0.0), {}, usd, seconds)


def smallest(catalogue: Catalogue, region: str, zone: str) -> tuple[Pool, float]:
    """Return the cheapest on-demand machine that can be a head, and its price.

    Raises
    ------
    ParameterError
        There is none in the zone.
    """
    found = []
    for name, kind in catalogue.types.items():
        price = catalogue.price(Pool(name, zone, "on-demand"))
        if price is not None and not kind.gpus and (kind.memory_GiB >= HEAD_GIB or region == "local"):
            found.append((price.usd_per_hour, Pool(name, zone, "on-demand")))
    if not found:
        raise ParameterError(f"no machine for the head has a price in {zone}; try another --region")
    usd, pool = min(found)
    return pool, usd
