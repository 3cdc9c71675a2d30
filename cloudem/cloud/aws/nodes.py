"""What EC2 says of instances and of fleets that got none, in cloudem's words. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cloudem.cloud.aws.calls import clean, error_class
from cloudem.cloud.aws.resources import tags_of
from cloudem.cloud.aws.template import CLUSTER, DEADLINE, GENERATION, SLOT, TOKEN
from cloudem.cloud.nodes import Market, Node, Pool, Request, State
from cloudem.errors import CapacityError, ProviderError, QuotaError, ThrottledError

_STATES: Mapping[str, State] = {
    "pending": "pending",
    "running": "running",
    "shutting-down": "stopping",
    "stopping": "stopping",
    "stopped": "stopping",  # its disk is still paid for
    "terminated": "ended",
}

_ENDED_AT = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


class Refused(NamedTuple):
    """Why a pool gave no node."""

    pool: Pool
    code: str
    message: str


def node_of(instance: Mapping[str, Any], zone_ids: Mapping[str, str]) -> Node:
    """Return an instance as a node; ``ended`` is None also for one that ended at a time that AWS does not tell."""
    tags = tags_of(instance)
    place = instance["Placement"]
    zone = place.get("AvailabilityZoneId") or zone_ids.get(place["AvailabilityZone"], place["AvailabilityZone"])
    market: Market = "spot" if instance.get("InstanceLifecycle") == "spot" else "on-demand"
    return Node(
        id=instance["InstanceId"],
        cluster=tags[CLUSTER],
        slot=tags.get(SLOT, ""),
        generation=int(tags.get(GENERATION, "0")),
        token=tags.get(TOKEN, ""),
        state=_STATES[instance["State"]["Name"]],
        pool=Pool(instance["InstanceType"], zone, market),
        launched=instance["LaunchTime"].timestamp(),
        deadline=float(tags.get(DEADLINE, "0")),
        ended=_ended(instance),
        address=instance.get("PrivateIpAddress", ""),
    )


def launched_node(request: Request, instance: str, pool: Pool, now: float) -> Node:
    """Return the node that a fleet just got: EC2 may not tell of it for some seconds."""
    return Node(
        id=instance,
        cluster=request.cluster,
        slot=request.slot,
        generation=request.generation,
        token=request.token,
        state="pending",
        pool=pool,
        launched=now,
        deadline=request.deadline,
    )


def refusals(pools: Sequence[Pool], errors: Sequence[Mapping[str, Any]]) -> list[Refused]:
    """Return what a fleet without a node says of the pools that it was given: at least one line."""
    by_type = {pool.instance_type: pool for pool in pools}
    told = []
    for error in errors:
        overrides = error.get("LaunchTemplateAndOverrides", {}).get("Overrides", {})
        pool = by_type.get(overrides.get("InstanceType", ""), pools[0])
        told.append(Refused(pool, str(error.get("ErrorCode", "unknown")), str(error.get("ErrorMessage", ""))))
    return told or [Refused(pool, "UnfulfillableCapacity", "no instance and no reason") for pool in pools]


def refusal(request: Request, region: str, refused: Sequence[Refused]) -> ProviderError:
    """Return the error of a launch that got no node: the class is that of the most serious refusal.

    What is neither capacity nor a limit comes first, since it will not pass by itself; then capacity, which may come
    back, before limits. A fleet that was throttled inside has used its token up, so that this counts as capacity.
    """
    kinds = [(error_class(one.code), one) for one in refused]
    other = [one for kind, one in kinds if kind not in (CapacityError, QuotaError, ThrottledError)]
    if other:
        one = other[0]
        return ProviderError(
            f"AWS refused {request.slot} of {request.cluster} in {region}, {_words(one.pool)} "
            f"({one.code}): {clean(one.message)}"
        )
    pools = ", ".join(_words(pool) for pool in request.pools)
    codes = ", ".join(sorted({one.code for one in refused}))
    if any(kind is not QuotaError for kind, _ in kinds):
        return CapacityError(
            f"AWS has no capacity now for {request.slot}: {pools} ({codes}); try other types, zones or on-demand"
        )
    return QuotaError(
        f"the account's limits in {region} do not allow {request.slot}: {pools} ({codes}); "
        "end what runs, or ask for more vCPUs in Service Quotas"
    )


def _words(pool: Pool) -> str:
    return f"{pool.instance_type} {pool.market} in {pool.zone}"


def _ended(instance: Mapping[str, Any]) -> float | None:
    found = _ENDED_AT.search(instance.get("StateTransitionReason") or "")
    if instance["State"]["Name"] != "terminated" or found is None:
        return None
    return datetime.strptime(found.group(1), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
