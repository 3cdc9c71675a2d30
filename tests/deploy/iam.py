"""What IAM would say: which permissions a recorded call needs, and whether a policy gives them.

Small on purpose. It knows the statements that our policies are made of, and raises where it meets anything else.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

REGION, ACCOUNT = "us-east-1", "123456789012"
PREFIX = f"arn:aws:ec2:{REGION}:{ACCOUNT}:"
CREATOR = "creator"


@dataclass(frozen=True)
class Need:
    """One permission: an action on a resource, in a context of condition keys."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """A call as botocore was given it, with the tags that its resources had then (ID or name -> tags)."""

    role: str
    action: str
    given: Mapping[str, Any]
    tags: Mapping[str, Mapping[str, str]]


def allows(policy: Mapping[str, Any], need: Need) -> bool:
    """Whether a policy gives a permission."""
    return any(_covers(statement, need) for statement in policy["Statement"])


def statements(policy: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each statement with each of its actions."""
    for statement in policy["Statement"]:
        for action in _list(statement["Action"]):
            yield statement, action


def without(policy: Mapping[str, Any], sid: str, action: str) -> dict[str, Any]:
    """Return a policy that lacks one action of one statement."""
    kept = []
    for statement in policy["Statement"]:
        actions = [each for each in _list(statement["Action"]) if (statement["Sid"], each) != (sid, action)]
        if actions:
            kept.append({**statement, "Action": actions})
    return {**policy, "Statement": kept}


def _covers(statement: Mapping[str, Any], need: Need) -> bool:
    unknown = set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition"}
    if unknown or statement["Effect"] != "Allow":
        raise NotImplementedError(f"{statement['Sid']}: {unknown or statement['Effect']}")
    if need.action not in _list(statement["Action"]):
        return False
    if not any(fnmatch.fnmatchcase(need.resource, pattern) for pattern in _list(statement["Resource"])):
        return False
    return all(_holds(operator, keys, need) for operator, keys in statement.get("Condition", {}).items())


def _holds(operator: str, keys: Mapping[str, Any], need: Need) -> bool:
    if operator != "StringEquals":
        raise NotImplementedError(operator)
    return all(need.context.get(key) in _list(values) for key, values in keys.items())  # a key that is absent fails


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# --- what a call needs ------------------------------------------------------------------------------------------------


def needs(call: Call) -> list[Need]:
    """Return all permissions that a call needs.

    Sources: Service Authorization Reference, "Actions, resources, and condition keys for Amazon EC2", "… AWS Systems
    Manager", "… Service Quotas", "… CloudWatch Logs"; for fleets the policy that Karpenter's "Getting started" gives
    its controller, which launches by instant fleets from launch templates of its own as well.
    """
    return list(_NEEDS.get(call.action, _reads)(call))


def _reads(call: Call) -> Iterator[Need]:
    """Describe… and the like know no resources."""
    yield Need(call.action, "*")


def _fleet(call: Call) -> Iterator[Need]:
    (config,) = call.given["LaunchTemplateConfigs"]
    template = config["LaunchTemplateSpecification"]["LaunchTemplateId"]
    data = call.given["_template"]
    made = {spec["ResourceType"]: _tags(spec["Tags"]) for spec in data["TagSpecifications"]}
    used = [("launch-template", template), *(("subnet", one["SubnetId"]) for one in config["Overrides"])]
    used += [("security-group", group) for one in data["NetworkInterfaces"] for group in one["Groups"]]
    for kind, name in used:
        yield Need("ec2:RunInstances", f"{PREFIX}{kind}/{name}", _resource(call.tags[name]))
        if kind != "security-group":
            yield Need("ec2:CreateFleet", f"{PREFIX}{kind}/{name}")
    image = f"arn:aws:ec2:{REGION}::image/{data['ImageId']}"
    yield Need("ec2:CreateFleet", image)
    yield Need("ec2:RunInstances", image, {"ec2:Owner": ACCOUNT})
    spot = call.given["TargetCapacitySpecification"]["DefaultTargetCapacityType"] == "spot"
    for kind in ("instance", "network-interface", "volume", *(["spot-instances-request"] if spot else [])):
        yield Need("ec2:RunInstances", f"{PREFIX}{kind}/*", _request(made.get(kind, {})))
        if kind in ("instance", "volume"):
            yield Need("ec2:CreateFleet", f"{PREFIX}{kind}/*")
        if kind in made:
            yield Need("ec2:CreateTags", f"{PREFIX}{kind}/*", _request(made[kind], "RunInstances"))
    (fleet,) = [_tags(spec["Tags"]) for spec in call.given["TagSpecifications"]]
    yield Need("ec2:CreateFleet", f"{PREFIX}fleet/*", _request(fleet))
    yield Need("ec2:CreateTags", f"{PREFIX}fleet/*", _request(fleet, "CreateFleet"))
    role = f"arn:aws:iam::{ACCOUNT}:role/{data['IamInstanceProfile']['Name']}"
    yield Need("iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"})


def _makes(kind: str, *also: tuple[str, str]) -> Callable[[Call], Iterator[Need]]:
    """Return the needs of a call that makes something with tags; also: kind and parameter of what it is made in."""

    def of(call: Call) -> Iterator[Need]:
        (spec,) = call.given["TagSpecifications"]
        tags = _tags(spec["Tags"])
        yield Need(call.action, f"{PREFIX}{kind}/*", _request(tags))
        yield Need("ec2:CreateTags", f"{PREFIX}{kind}/*", _request(tags, call.action.partition(":")[2]))
        for other, parameter in also:
            yield Need(call.action, f"{PREFIX}{other}/{call.given[parameter]}")

    return of


def _changes(kind: str, *parameters: str) -> Callable[[Call], Iterator[Need]]:
    """Return the needs of a call that changes or removes what is there."""

    def of(call: Call) -> Iterator[Need]:
        for parameter in parameters:
            for name in _list(call.given.get(parameter, [])):
                yield Need(call.action, f"{PREFIX}{kind}/{name}", _resource(call.tags[name]))

    return of


def _parameter(call: Call) -> Iterator[Need]:
    name = call.given["Name"].lstrip("/")
    resource = f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/{name}"
    yield Need(call.action, resource)
    if call.given.get("Tags"):
        yield Need("ssm:AddTagsToResource", resource)


def _log_group(call: Call) -> Iterator[Need]:
    yield Need(call.action, f"arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{call.given['logGroupName']}:*")


def _quota(call: Call) -> Iterator[Need]:
    given = call.given
    yield Need(call.action, f"arn:aws:servicequotas:{REGION}:{ACCOUNT}:{given['ServiceCode']}/{given['QuotaCode']}")


_NEEDS: Mapping[str, Callable[[Call], Iterator[Need]]] = {
    "ec2:CreateFleet": _fleet,
    "ec2:CreateLaunchTemplate": _makes("launch-template"),
    "ec2:CreateSecurityGroup": _makes("security-group", ("vpc", "VpcId")),
    "ec2:CreateLaunchTemplateVersion": _changes("launch-template", "LaunchTemplateId"),
    "ec2:AuthorizeSecurityGroupIngress": _changes("security-group", "GroupId"),
    "ec2:DeleteLaunchTemplate": _changes("launch-template", "LaunchTemplateId"),
    "ec2:DeleteNetworkInterface": _changes("network-interface", "NetworkInterfaceId"),
    "ec2:DeleteSecurityGroup": _changes("security-group", "GroupId"),
    "ec2:DeleteVolume": _changes("volume", "VolumeId"),
    "ec2:ReleaseAddress": _changes("elastic-ip", "AllocationId"),
    "ec2:TerminateInstances": _changes("instance", "InstanceIds"),
    "logs:DeleteLogGroup": _log_group,
    "servicequotas:GetServiceQuota": _quota,
    "ssm:DeleteParameter": _parameter,
    "ssm:GetParameter": _parameter,
    "ssm:PutParameter": _parameter,
}
"""Calls that need more than their own action on ``*``."""


def _request(tags: Mapping[str, str], create_action: str = "") -> dict[str, str]:
    context = {f"aws:RequestTag/{key}": value for key, value in tags.items()}
    return {**context, "ec2:CreateAction": create_action} if create_action else context


def _resource(tags: Mapping[str, str]) -> dict[str, str]:
    return {f"aws:ResourceTag/{key}": value for key, value in tags.items()}


def _tags(listed: list[Mapping[str, str]]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in listed}
