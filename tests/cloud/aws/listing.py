"""All that is in the account of a moto server, by every listing call of EC2 that it answers, and of other services."""

import functools
import json
from collections.abc import Mapping, Sequence

from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from tests.cloud.aws.moto import Moto

Inventory = Mapping[str, frozenset[str]]
"""Listing call -> what it told, each as JSON."""

USUAL = (
    "describe_instances",
    "describe_volumes",
    "describe_addresses",
    "describe_network_interfaces",
    "describe_security_groups",
    "describe_launch_templates",
)

OTHERS = (
    ("ssm", "describe_parameters"),
    ("logs", "describe_log_groups"),
    ("iam", "list_roles"),
    ("iam", "list_instance_profiles"),
    ("s3", "list_buckets"),
    ("resourcegroupstaggingapi", "get_resources"),
)

_CATALOGUES = ("Offerings", "InstanceTypes", "SpotPrice", "Images", "Snapshot", "Regions", "Services", "Zones", "Tags")
"""What AWS has on offer: long, and nobody's; and tags, which moto keeps of what is gone."""


@functools.cache
def operations(moto: Moto) -> tuple[str, ...]:
    """Return the listing calls of EC2 without parameters that the server answers."""
    ec2 = moto.client("ec2")
    answered = []
    for name in ec2.meta.service_model.operation_names:
        shape = ec2.meta.service_model.operation_model(name).input_shape
        if not name.startswith("Describe") or any(word in name for word in _CATALOGUES):
            continue
        if shape is not None and shape.required_members:
            continue
        try:
            getattr(ec2, xform_name(name))()
        except (ClientError, ResponseParserError):  # not one of those that moto has
            continue
        answered.append(xform_name(name))
    return tuple(answered)


def everything(moto: Moto) -> Inventory:
    """Return all that exists; instances that ended, which AWS tells of for an hour, are nothing any more."""
    return _asked(moto, [*(("ec2", name) for name in operations(moto)), *OTHERS])


def usual(moto: Moto) -> Inventory:
    """Return what exists of the kinds that clusters have: some of `everything`, and quicker."""
    return _asked(moto, [*(("ec2", name) for name in USUAL), OTHERS[0]])


def _asked(moto: Moto, calls: Sequence[tuple[str, str]]) -> Inventory:
    found = {}
    for service, operation in calls:
        answer = getattr(moto.client(service), operation)()
        answer.pop("ResponseMetadata")
        items = [item for value in answer.values() if isinstance(value, list) for item in value]
        if operation == "describe_instances":
            ended = [one for item in items for one in item["Instances"] if one["State"]["Name"] == "terminated"]
            gone = {one["InstanceId"] for one in ended}
            items = [one for item in items for one in item["Instances"] if one["InstanceId"] not in gone]
        if operation == "get_resources":
            items = [one for one in items if one["ResourceARN"].rpartition("/")[2] not in gone]
        if operation == "describe_subnets":
            items = [{**one, "AvailableIpAddressCount": 0} for one in items]  # it tells of addresses, which come and go
        found[operation] = frozenset(json.dumps(item, sort_keys=True, default=str) for item in items)
    return found


def added(before: Inventory, after: Inventory) -> dict[str, list[str]]:
    """Return what is there that was not there before, by listing call."""
    more = {name: sorted(after[name] - before[name]) for name in after}  # `before` may have been asked for more
    return {name: items for name, items in more.items() if items}
