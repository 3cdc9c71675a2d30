"""What a moto server lacks or tells wrongly, put right between boto3 and the wire; and what goes wrong on purpose.

Answered here, in the form that AWS gives them: Service Quotas, spot prices, fleets (moto's never lack capacity, take
the first override, forget disks, interfaces, metadata options and the template's earlier version; here the instance is
started by ``RunInstances`` from the very data that the fleet was given), and client tokens (the same token is the same
fleet, as the same token with other parameters is an error). On purpose: calls that are refused, that time out before
or after they took effect, throttling, and instances that are told of only later.
"""

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal

from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError

from tests.cloud.aws.moto import REGION, Moto

Mode = Literal["refused", "throttled", "lost before", "lost after", "killed before", "killed after"]

LIMITS = {
    "L-1216C47A": 256.0,
    "L-34B43A08": 640.0,
    "L-DB2E81BA": 64.0,
    "L-3819A6DF": 64.0,
    "L-417A185B": 0.0,
    "L-7212CCBC": 0.0,
}
"""Standard, G and P, on demand and spot: an account that was used for a while."""

SPOT = {"c7a.large": 0.0361, "c7a.xlarge": 0.0702, "m7a.large": 0.0402, "g5.xlarge": 0.4412, "g6.xlarge": 0.3217}
"""Dollars per hour in every zone; recorded from the price history of us-east-1 in form, not in figures."""

_OK = SimpleNamespace(status_code=200)
_Answer = tuple[Any, dict[str, Any]]


@dataclass
class Recorded:
    """The state of AWS that moto does not have. Set its attributes to let things happen.

    Attributes
    ----------
    sold_out
        (type, zone ID, market) that have no capacity.
    limits, spot
        vCPUs of each quota code; dollars per hour of each type.
    fleet_errors
        Error codes that types are refused with besides.
    hidden
        For how many lists a new instance is not told of.
    unknown
        How many times an operation is told that what it is about does not exist.
    fail, mode
        Number (from 1) of the call that goes wrong, counted from `arm`, and how.
    calls
        What was called: (service, operation).
    """

    moto: Moto
    sold_out: set[tuple[str, str, str]] = field(default_factory=set)
    limits: dict[str, float] = field(default_factory=lambda: dict(LIMITS))
    spot: dict[str, float] = field(default_factory=lambda: dict(SPOT))
    fleet_errors: dict[str, str] = field(default_factory=dict)
    hidden: int = 0
    unknown: dict[str, int] = field(default_factory=dict)
    fail: int = 0
    mode: Mode = "refused"
    calls: list[tuple[str, str]] = field(default_factory=list)
    tokens: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    fleets: list[Mapping[str, Any]] = field(default_factory=list)
    _unseen: dict[str, int] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self._ec2 = self.moto.client("ec2")
        zones = self._ec2.describe_subnets()["Subnets"]
        self.zones = {one["SubnetId"]: one["AvailabilityZoneId"] for one in zones}
        self.zone_names = {one["AvailabilityZoneId"]: one["AvailabilityZone"] for one in zones}

    def session(self) -> Any:
        """Return a boto3 session whose clients speak through this layer."""
        session = self.moto.session()
        session.events.register("provide-client-params", self._asked)
        session.events.register("before-call", self._before)
        session.events.register("after-call", self._after)
        return session

    def arm(self, fail: int, mode: Mode) -> None:
        """Let the call with this number, counted from now, go wrong."""
        self.calls.clear()
        self.fail, self.mode = fail, mode

    # --- events of botocore, in this order for each call -------------------------------------------------------------

    def _asked(self, params: dict[str, Any], model: Any, context: dict[str, Any], **_: Any) -> None:
        context["asked"] = params

    def _before(self, model: Any, context: dict[str, Any], **_: Any) -> _Answer | None:
        service, operation = model.service_model.service_name, model.name
        with self._lock:
            self.calls.append((service, operation))
            context["wrong"] = self.mode if len(self.calls) == self.fail else ""
        if context["wrong"]:
            self._go_wrong(context["wrong"], "before", operation)
            if context["wrong"] in ("refused", "throttled"):
                return _error(*_CODES[context["wrong"]])
        if self.unknown.get(operation, 0) > 0:
            self.unknown[operation] -= 1
            return _error(400, "InvalidSomething.NotFound", "The something does not exist")
        answer: Callable[[dict[str, Any]], _Answer | None] | None = getattr(self, f"_do_{operation}", None)
        if answer is None:
            return None
        with self._lock:
            return self._once(operation, context["asked"], answer)

    def _after(self, model: Any, parsed: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        if model.name == "DescribeInstances":
            self._hide(parsed)
        if context.get("wrong"):
            self._go_wrong(context["wrong"], "after", model.name)

    def _go_wrong(self, mode: str, when: str, operation: str) -> None:
        if mode == f"killed {when}":
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == f"lost {when}":
            error = ConnectTimeoutError if when == "before" else ReadTimeoutError
            raise error(endpoint_url=f"https://{operation}.example", error="timed out")

    def _once(
        self, operation: str, asked: dict[str, Any], answer: Callable[[dict[str, Any]], _Answer | None]
    ) -> _Answer | None:
        token = asked.get("ClientToken", "")
        said = json.dumps(asked, sort_keys=True, default=str)
        if token and (operation + token) in self.tokens:
            before, parsed = self.tokens[operation + token]
            if before != said:
                return _error(400, "IdempotentParameterMismatch", "Arguments on this idempotent request differ")
            return _OK, parsed
        answered = answer(asked)
        if token and answered is not None and answered[0].status_code == 200:
            self.tokens[operation + token] = (said, answered[1])
        return answered

    def _hide(self, parsed: dict[str, Any]) -> None:
        for reservation in parsed.get("Reservations", []):
            seen = []
            for one in reservation["Instances"]:
                name = one["InstanceId"]
                if self._unseen.get(name, 0) > 0:
                    self._unseen[name] -= 1
                else:
                    seen.append(one)
            reservation["Instances"] = seen

    # --- what moto lacks ---------------------------------------------------------------------------------------------

    def _do_GetServiceQuota(self, asked: dict[str, Any]) -> _Answer:  # noqa: N802 - the operation's name
        code = asked["QuotaCode"]
        if asked["ServiceCode"] != "ec2" or code not in self.limits:
            return _error(400, "NoSuchResourceException", "The request failed because the specified quota is not valid")
        quota = {"ServiceCode": "ec2", "QuotaCode": code, "Value": self.limits[code], "Unit": "None"}
        return _OK, {"Quota": quota}

    def _do_DescribeSpotPriceHistory(self, asked: dict[str, Any]) -> _Answer:  # noqa: N802
        filters = {one["Name"]: one["Values"] for one in asked.get("Filters", [])}
        types = filters.get("instance-type", list(self.spot))
        history = [
            {
                "AvailabilityZone": zone,
                "InstanceType": name,
                "ProductDescription": "Linux/UNIX",
                "SpotPrice": f"{self.spot[name]:.6f}",
                "Timestamp": datetime(2026, 11, 20, 12, tzinfo=UTC),
            }
            for name in types
            if name in self.spot
            for zone in self.zone_names.values()
        ]
        return _OK, {"SpotPriceHistory": history}

    # --- what moto tells wrongly -------------------------------------------------------------------------------------

    def _do_CreateLaunchTemplateVersion(self, asked: dict[str, Any]) -> _Answer:  # noqa: N802
        """Merge with the source version, as AWS does."""
        source = self._version(asked["LaunchTemplateId"], asked["SourceVersion"])
        merged = {**source, **asked["LaunchTemplateData"]}
        sent = {key: value for key, value in asked.items() if key not in ("SourceVersion", "LaunchTemplateData")}
        return _OK, self._ec2.create_launch_template_version(LaunchTemplateData=merged, **sent)

    def _do_CreateFleet(self, asked: dict[str, Any]) -> _Answer:  # noqa: N802
        self.fleets.append(asked)
        assert asked["Type"] == "instant"
        assert asked["TargetCapacitySpecification"]["TotalTargetCapacity"] == 1
        (config,) = asked["LaunchTemplateConfigs"]
        market = asked["TargetCapacitySpecification"]["DefaultTargetCapacityType"]
        errors, free = [], []
        for override in config["Overrides"]:
            code = self._why_not(override, market)
            told = {"LaunchTemplateSpecification": config["LaunchTemplateSpecification"], "Overrides": override}
            if code:
                error = {"LaunchTemplateAndOverrides": told, "Lifecycle": market}
                errors.append(error | {"ErrorCode": code, "ErrorMessage": f"{code} of {override['InstanceType']}"})
            else:
                free.append(override)
        fleet = {"FleetId": f"fleet-{len(self.fleets):08x}", "Errors": errors, "Instances": []}
        if free:
            chosen = self._choose(free, asked)
            name = self._start(config["LaunchTemplateSpecification"], chosen, market)
            one = {"InstanceIds": [name], "InstanceType": chosen["InstanceType"], "Lifecycle": market}
            fleet |= {"Instances": [one], "Errors": []}
        return _OK, fleet

    def _do_DeleteSecurityGroup(self, asked: dict[str, Any]) -> _Answer | None:  # noqa: N802
        """Refuse while an interface is in the group."""
        only = [{"Name": "group-id", "Values": [asked["GroupId"]]}]
        if self._ec2.describe_network_interfaces(Filters=only)["NetworkInterfaces"]:
            return _error(400, "DependencyViolation", f"resource {asked['GroupId']} has a dependent object")
        return None

    def _do_DeleteNetworkInterface(self, asked: dict[str, Any]) -> _Answer | None:  # noqa: N802
        """Refuse while an instance has it; moto removes it, and then cannot end the instance any more."""
        only = [{"Name": "network-interface-id", "Values": [asked["NetworkInterfaceId"]]}]
        for one in self._ec2.describe_network_interfaces(Filters=only)["NetworkInterfaces"]:
            if one["Status"] == "in-use":
                return _error(400, "InvalidParameterValue", f"{one['NetworkInterfaceId']} is currently in use")
        return None

    def _why_not(self, override: Mapping[str, Any], market: str) -> str:
        name, zone = override["InstanceType"], self.zones[override["SubnetId"]]
        if name in self.fleet_errors:
            return self.fleet_errors[name]
        if (name, zone, market) in self.sold_out:
            return "InsufficientInstanceCapacity" if market == "on-demand" else "UnfulfillableCapacity"
        if not any(self.limits.values()):
            return "VcpuLimitExceeded" if market == "on-demand" else "MaxSpotInstanceCountExceeded"
        return ""

    def _choose(self, free: list[Any], asked: Mapping[str, Any]) -> Any:
        if asked.get("OnDemandOptions", {}).get("AllocationStrategy") == "prioritized":
            return min(free, key=lambda one: one["Priority"])
        assert asked["SpotOptions"]["AllocationStrategy"] == "price-capacity-optimized"
        return min(free, key=lambda one: self.spot.get(one["InstanceType"], 1e9))

    def _start(self, template: Mapping[str, str], override: Mapping[str, Any], market: str) -> str:
        data = self._version(template["LaunchTemplateId"], template["Version"])
        data.pop("IamInstanceProfile")  # moto wants it to exist; the template's content is tested for it
        (interface,) = data.pop("NetworkInterfaces")
        data["NetworkInterfaces"] = [interface | {"SubnetId": override["SubnetId"]}]
        if market == "spot":
            data["InstanceMarketOptions"] = {"MarketType": "spot"}
        made = self._ec2.run_instances(InstanceType=override["InstanceType"], MinCount=1, MaxCount=1, **data)
        (one,) = made["Instances"]
        for spec in data["TagSpecifications"]:
            if spec["ResourceType"] == "network-interface":
                names = [card["NetworkInterfaceId"] for card in one["NetworkInterfaces"]]
                self._ec2.create_tags(Resources=names, Tags=spec["Tags"])
        self._unseen[one["InstanceId"]] = self.hidden
        return str(one["InstanceId"])

    def _version(self, template: str, version: str) -> dict[str, Any]:
        answer = self._ec2.describe_launch_template_versions(LaunchTemplateId=template, Versions=[version])
        return dict(answer["LaunchTemplateVersions"][0]["LaunchTemplateData"])


_CODES = {
    "refused": (500, "InternalError", "An internal error has occurred"),
    "throttled": (503, "RequestLimitExceeded", "Request limit exceeded."),
}


def _error(status: int, code: str, message: str) -> _Answer:
    return SimpleNamespace(status_code=status), {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {}}


__all__ = ["LIMITS", "REGION", "SPOT", "Mode", "Recorded"]
