"""What an account may rent on EC2, and for how much: limits of vCPUs, what runs of them, spot prices."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from cloudem.cloud.aws_calls import Calls
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
_FRESH_S = 60.0


def family(instance_type: str) -> str:
    """Return the family whose limit an instance type counts against: ``standard``, ``G``, ``P``, …."""
    letters = re.match(r"[a-z]+", instance_type)
    first = letters.group() if letters else ""
    if first in _OTHER:
        return first
    return _FAMILIES.get(first, "standard")


class Quotas:
    """Limits of an account in a region, asked for at most once a minute."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._vcpus: dict[str, int] = {}
        self._free: dict[tuple[str, str], float] = {}
        self._asked = float("-inf")
        self._lock = threading.Lock()

    def free(self) -> dict[tuple[str, str], float]:
        """Ask for the limits, and for what runs in the account, whoever started it; return the vCPUs that are left."""
        left: dict[tuple[str, str], float] = {}
        for (group, market), code in CODES.items():
            answer = self._calls.call("service-quotas", "get_service_quota", ServiceCode="ec2", QuotaCode=code)
            left[group, market] = float(answer["Quota"]["Value"])
        running = list(self._running())
        vcpus = self.vcpus({name for name, _ in running})
        for name, market in running:
            if (family(name), market) in left:
                left[family(name), market] -= vcpus.get(name, 0)
        left = {key: max(0.0, value) for key, value in left.items()}
        with self._lock:
            self._free, self._asked = dict(left), time.monotonic()
        return left

    def fits(self, pool: Pool) -> bool:
        """Whether one more node from a pool is within the limits, as far as they are known; EC2 has the last word."""
        if time.monotonic() - self._asked > _FRESH_S:
            self.free()
        left = self._free.get((family(pool.instance_type), pool.market))
        return left is None or self.vcpus([pool.instance_type]).get(pool.instance_type, 0) <= left

    def took(self, pool: Pool) -> None:
        """Count a node that was just launched."""
        with self._lock:
            key = (family(pool.instance_type), pool.market)
            if key in self._free:
                self._free[key] -= self._vcpus.get(pool.instance_type, 0)

    def vcpus(self, names: Collection[str]) -> Mapping[str, int]:
        """Return the hardware threads of instance types; those that the region does not have are left out."""
        unknown = sorted(set(names) - set(self._vcpus))
        for start in range(0, len(unknown), 100):
            only = [{"Name": "instance-type", "Values": unknown[start : start + 100]}]
            for one in self._calls.pages("ec2", "describe_instance_types", "InstanceTypes", Filters=only):
                self._vcpus[one["InstanceType"]] = int(one["VCpuInfo"]["DefaultVCpus"])
        return self._vcpus

    def _running(self) -> Iterable[tuple[str, Market]]:
        states = [{"Name": "instance-state-name", "Values": ["pending", "running"]}]
        for reservation in self._calls.pages("ec2", "describe_instances", "Reservations", Filters=states):
            for one in reservation["Instances"]:
                yield one["InstanceType"], "spot" if one.get("InstanceLifecycle") == "spot" else "on-demand"


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
    for start in range(0, len(types), 100):
        only = [
            {"Name": "instance-type", "Values": types[start : start + 100]},
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
