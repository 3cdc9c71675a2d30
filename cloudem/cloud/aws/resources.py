"""Everything that clusters have in an account of AWS, and how it is removed.

What EC2 keeps is found by its tags, parameters and log groups by their names: all of it got them in the call that made
it, so that nothing exists without. A fleet of type ``instant`` is a record of its launch: it costs nothing, is not
listed by AWS and goes with its instances.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloudem.cloud.aws.calls import Calls
from cloudem.cloud.aws.template import CLUSTER, CREATOR
from cloudem.cloud.nodes import Resource
from cloudem.errors import ProviderError

FOLDER = "/cloudem/"
"""Where the parameters and log groups of clusters are: ``/cloudem/<cluster>/<name>``."""


@dataclass(frozen=True)
class _Kind:
    """How a kind of things of EC2 is listed."""

    operation: str
    key: str
    id: str
    note: Callable[[Mapping[str, Any]], str]
    tags: str = "Tags"


_LISTED = {
    "volume": _Kind("describe_volumes", "Volumes", "VolumeId", lambda one: f"{one['Size']} GiB, {one['State']}"),
    "address": _Kind("describe_addresses", "Addresses", "AllocationId", lambda one: str(one.get("PublicIp", ""))),
    "interface": _Kind(
        "describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId", lambda one: one["Status"], "TagSet"
    ),
    "launch-template": _Kind(
        "describe_launch_templates", "LaunchTemplates", "LaunchTemplateId", lambda one: one["LaunchTemplateName"]
    ),
    "security-group": _Kind("describe_security_groups", "SecurityGroups", "GroupId", lambda one: one["GroupName"]),
}

_REMOVED = {
    "volume": ("ec2", "delete_volume", "VolumeId"),
    "address": ("ec2", "release_address", "AllocationId"),
    "interface": ("ec2", "delete_network_interface", "NetworkInterfaceId"),
    "launch-template": ("ec2", "delete_launch_template", "LaunchTemplateId"),
    "security-group": ("ec2", "delete_security_group", "GroupId"),
    "parameter": ("ssm", "delete_parameter", "Name"),
    "log-group": ("logs", "delete_log_group", "logGroupName"),
}


def listed(calls: Calls, cluster: str | None) -> list[Resource]:
    """Return everything that a cluster has, or all have, in the order in which it is to be removed.

    Instances first: their disks and interfaces go with them. The security group last: it cannot go before the last
    interface. What ends is listed until it has ended.
    """
    return [
        *_instances(calls, cluster),
        *_of_ec2(calls, "volume", cluster),
        *_of_ec2(calls, "address", cluster),
        *_of_ec2(calls, "interface", cluster),
        *_of_ec2(calls, "launch-template", cluster),
        *_parameters(calls, cluster),
        *_log_groups(calls, cluster),
        *_of_ec2(calls, "security-group", cluster),
    ]


def removed(calls: Calls, resource: Resource) -> None:
    """Remove something that is not an instance; what is gone is no error."""
    if resource.kind not in _REMOVED:
        raise ProviderError(f"AWS has no {resource.kind} {resource.id} that could be removed")
    service, operation, key = _REMOVED[resource.kind]
    given: dict[str, Any] = {key: resource.id}
    calls.call(service, operation, accept=("NotFound",), **given)


def ours(cluster: str | None) -> list[dict[str, Any]]:
    """Return filters of EC2 for what a cluster has, or all have."""
    return [
        {"Name": f"tag:{CREATOR}", "Values": ["cloudem"]},
        {"Name": f"tag:{CLUSTER}", "Values": [cluster]} if cluster else {"Name": "tag-key", "Values": [CLUSTER]},
    ]


def tags_of(one: Mapping[str, Any], key: str = "Tags") -> dict[str, str]:
    """Return tags as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in one.get(key, ())}


def _instances(calls: Calls, cluster: str | None) -> Iterator[Resource]:
    states = ["pending", "running", "shutting-down", "stopping", "stopped"]
    only = [*ours(cluster), {"Name": "instance-state-name", "Values": states}]
    for reservation in calls.pages("ec2", "describe_instances", "Reservations", Filters=only):
        for one in reservation["Instances"]:
            note = f"{one['InstanceType']}, {one['State']['Name']}"
            yield Resource("instance", one["InstanceId"], tags_of(one)[CLUSTER], note)


def _of_ec2(calls: Calls, kind: str, cluster: str | None) -> Iterator[Resource]:
    how = _LISTED[kind]
    for one in calls.pages("ec2", how.operation, how.key, Filters=ours(cluster)):
        yield Resource(kind, one[how.id], tags_of(one, how.tags)[CLUSTER], how.note(one))


def _parameters(calls: Calls, cluster: str | None) -> Iterator[Resource]:
    folder = f"{FOLDER}{cluster}" if cluster else FOLDER.rstrip("/")
    only = [{"Key": "Path", "Option": "Recursive", "Values": [folder]}]
    for one in calls.pages("ssm", "describe_parameters", "Parameters", ParameterFilters=only):
        yield from _named("parameter", one["Name"])


def _log_groups(calls: Calls, cluster: str | None) -> Iterator[Resource]:
    prefix = f"{FOLDER}{cluster}/" if cluster else FOLDER
    for one in calls.pages("logs", "describe_log_groups", "logGroups", logGroupNamePrefix=prefix):
        yield from _named("log-group", one["logGroupName"])


def _named(kind: str, name: str) -> Iterator[Resource]:
    """Yield what is in the folder of a cluster; ``/cloudem/image`` and its like belong to none."""
    cluster, inside, _ = name.removeprefix(FOLDER).partition("/")
    if inside:
        yield Resource(kind, name, cluster)
