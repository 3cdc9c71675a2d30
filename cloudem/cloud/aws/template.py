"""What nodes on EC2 are made from: launch template, tags and user-data. Pure functions."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from cloudem.cloud.nodes import HEAD, Request
from cloudem.errors import ProviderError

CREATOR = "creator"
"""Tag of everything that cloudem makes; its value is ``cloudem``. The account's stack carries it as well."""

CLUSTER = "cloudem:cluster"
"""Tag of what belongs to a cluster, and to be removed with it; its value is the cluster's name."""

SLOT, GENERATION, TOKEN, DEADLINE = "cloudem:slot", "cloudem:generation", "cloudem:token", "cloudem:deadline"

_HEAD, _WORKER = "-head", "-worker"  # ends of the names of instance profiles
_USER_DATA_BYTES = 16384  # of EC2, before it is encoded
_NOT_IN_TAGS = re.compile(r"[^\w\s+\-=._:/@]")


def name_of(cluster: str) -> str:
    """Return the name of a cluster's security group and launch template."""
    return f"cloudem-{cluster}"


def cluster_tags(cluster: str, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of what all nodes of a cluster share; those that say whose it is cannot be overruled."""
    return {**{key: _value(value) for key, value in tags.items()}, CREATOR: "cloudem", CLUSTER: cluster}


def node_tags(request: Request) -> dict[str, str]:
    """Return the tags of a node, its disk and its interface."""
    return {
        **cluster_tags(request.cluster, request.tags),
        SLOT: request.slot,
        GENERATION: str(request.generation),
        TOKEN: request.token,
        DEADLINE: str(request.deadline),
        "Name": f"{request.cluster} {request.slot}",
    }


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def tagged(kinds: tuple[str, ...], tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return tags for each kind of thing that a call makes."""
    return [{"ResourceType": kind, "Tags": tag_list(tags)} for kind in kinds]


def base_data(image: Mapping[str, Any], group: str, profiles: str, public: bool) -> dict[str, Any]:
    """Return version 1 of a cluster's launch template: what all its nodes have in common.

    Version 2 of the metadata service only, not reachable from containers (hop limit 1); shutting down is terminating;
    no key pair; one interface in the cluster's group; an encrypted root disk that ends with its node.
    """
    root = image.get("RootDeviceName") or "/dev/sda1"
    sizes = [
        one["Ebs"].get("VolumeSize", 8)
        for one in image.get("BlockDeviceMappings", ())
        if one.get("DeviceName") == root and "Ebs" in one
    ]
    return {
        "ImageId": image["ImageId"],
        "IamInstanceProfile": {"Name": f"{profiles}{_WORKER}"},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpEndpoint": "enabled",
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
            "InstanceMetadataTags": "enabled",
        },
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "Groups": [group],
                "AssociatePublicIpAddress": public,
                "DeleteOnTermination": True,
            }
        ],
        "BlockDeviceMappings": [_root(root, max(sizes, default=8))],
    }


def node_data(base: Mapping[str, Any], request: Request) -> dict[str, Any]:
    """Return what the version for one node has besides the first: user-data, tags, rights, size of the disk.

    A fleet's call takes neither user-data nor tags of disks and interfaces, only a version of a template does. The
    alternative, one template for all and the node's slot read from its tags, would leave the disks without the tags by
    which they are found; ``RunInstances`` takes all of it, but chooses no pool by price and capacity.
    """
    (root,) = base["BlockDeviceMappings"]
    profile = base["IamInstanceProfile"]["Name"]
    if request.slot == HEAD:
        profile = profile.removesuffix(_WORKER) + _HEAD
    return {
        "UserData": base64.b64encode(user_data(request.start).encode()).decode(),
        "IamInstanceProfile": {"Name": profile},
        "BlockDeviceMappings": [_root(root["DeviceName"], max(request.disk_GiB, root["Ebs"]["VolumeSize"]))],
        "TagSpecifications": tagged(("instance", "volume", "network-interface"), node_tags(request)),
    }


def user_data(start: str) -> str:
    """Return a document for cloud-init that writes a node's start document and starts the agent of its image.

    JSON is YAML, so that nothing needs quoting. The image's timer finds the deadline in the file, also where the agent
    could not start (deploy/image); the agent itself asks the metadata service for the same document.

    Raises
    ------
    ProviderError
        It is longer than EC2 takes.
    """
    document = {
        "write_files": [{"path": "/etc/cloudem/start.json", "permissions": "0644", "content": start}],
        "runcmd": [["systemctl", "enable", "--now", "cloudem-node"]],
    }
    text = "#cloud-config\n" + json.dumps(document) + "\n"
    if len(text.encode()) > _USER_DATA_BYTES:
        raise ProviderError(
            f"the start document is too long: {len(start.encode())} bytes; EC2 takes {_USER_DATA_BYTES} with its frame"
        )
    return text


def _root(device: str, size_GiB: int) -> dict[str, Any]:
    disk = {"VolumeSize": size_GiB, "VolumeType": "gp3", "Encrypted": True, "DeleteOnTermination": True}
    return {"DeviceName": device, "Ebs": disk}


def _value(text: str) -> str:
    return _NOT_IN_TAGS.sub("_", text)[:256]
