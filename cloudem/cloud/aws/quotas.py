"""What an account may rent on EC2, and for how much: limits of vCPUs, what runs of them, spot prices."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cloudem.cloud.aws.calls import Calls
from cloudem.cloud.nodes import Market, Pool

CODES: Mapping[tuple[str, Market], str] = {
    ("standard", "on-demand"): "L-1216C47A",
    ("standard", "spot"): "L-34B43A08",
    ("G", "on-demand"): "L-DB2E81BA",
    ("G", "spot"): "L-3819A6DF",
    ("P", "on-demand"): "L-417A185B",
    ("P", "spot"): "L-7212CCBC",
}
"""Codes in Service Quotas of the limits of vCPUs, the same in all accounts and regions; those of families that have no
GPU, or none that cloudem uses, are left to EC2 itself (Amazon EC2 User Guide, "Amazon EC2 service quotas")."""

_FAMILIES = {"g": "G", "vt": "G", "p": "P", "f": "F", "x": "X", "u": "U", "dl": "DL", "inf": "Inf", "trn": "Trn"}
_OTHER = frozenset({"hpc", "mac"})
_TYPES = 100  # in one filter


def family(instance_type: str) -> str:
    """Return the family whose limit an instance type counts against: ``standard``, ``G``, ``P``, …."""
    letters = re.match(r"[a-z]+", instance_type)
    first = letters.group() if letters else ""
    if first in _OTHER:
        return first
    return _FAMILIES.get(first, "standard")


def free_vcpus(calls: Calls) -> dict[tuple[str, str], float]:
    """Return the limits less what runs in the account, whoever started it: (family, market) -> vCPUs.

    Not asked at each launch: EC2 itself refuses what is above a limit, and nodes in a private network do not reach
    Service Quotas. A limit that the account was never given is left out.
    """
    left: dict[tuple[str, str], float] = {}
    for key, code in CODES.items():
        given: dict[str, Any] = {"ServiceCode": "ec2", "QuotaCode": code}
        answer = calls.call("service-quotas", "get_service_quota", accept=("NoSuchResourceException",), **given)
        if answer is not None:
            left[key] = float(answer["Quota"]["Value"])
    running = list(_running(calls))
    vcpus = _vcpus(calls, sorted({name for name, _ in running}))
    for name, market in running:
        if (family(name), market) in left:
            left[family(name), market] -= vcpus.get(name, 0)
    return {key: max(0.0, value) for key, value in left.items()}


def spot_prices(calls: Calls, pools: Sequence[Pool], zone_ids: Mapping[str, str]) -> dict[Pool, float]:
    """Return today's spot price of pools, dollars per hour, Linux.

    Parameters
    ----------
    calls
        Of an account.
    pools
        Those on demand are left out, as are those that are not sold.
    zone_ids
        Name of a zone -> its ID.
    """
    wanted = {pool for pool in pools if pool.market == "spot"}
    types = sorted({pool.instance_type for pool in wanted})
    newest: dict[Pool, tuple[float, float]] = {}
    for start in range(0, len(types), _TYPES):
        only = [
            {"Name": "instance-type", "Values": types[start : start + _TYPES]},
            {"Name": "product-description", "Values": ["Linux/UNIX"]},
        ]
        now = int(time.time())  # from now on: the price that holds, and no history
        for one in calls.pages("ec2", "describe_spot_price_history", "SpotPriceHistory", Filters=only, StartTime=now):
            zone = one.get("AvailabilityZoneId") or zone_ids.get(one["AvailabilityZone"], "")
            pool = Pool(one["InstanceType"], zone, "spot")
            since = one["Timestamp"].timestamp()
            if pool in wanted and since >= newest.get(pool, (float("-inf"), 0.0))[0]:
                newest[pool] = (since, float(one["SpotPrice"]))
    return {pool: price for pool, (_, price) in newest.items()}


def _running(calls: Calls) -> Iterator[tuple[str, Market]]:
    states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
    for reservation in calls.pages("ec2", "describe_instances", "Reservations", Filters=states):
        for one in reservation["Instances"]:
            yield one["InstanceType"], "spot" if one.get("InstanceLifecycle") == "spot" else "on-demand"


def _vcpus(calls: Calls, types: Sequence[str]) -> dict[str, int]:
    """Return the hardware threads of instance types."""
    found = {}
    for start in range(0, len(types), _TYPES):
        only = [{"Name": "instance-type", "Values": types[start : start + _TYPES]}]
        for one in calls.pages("ec2", "describe_instance_types", "InstanceTypes", Filters=only):
            found[one["InstanceType"]] = int(one["VCpuInfo"]["DefaultVCpus"])
    return found
