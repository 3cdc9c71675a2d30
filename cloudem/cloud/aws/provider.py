"""Machines of Amazon EC2: spot and on demand, by fleets of one node each.

What is made for a cluster, with which tags and rights, and how it goes again, is told in docs/aws.md.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from cloudem.cloud.aws import resources as aws_resources
from cloudem.cloud.aws.calls import Calls
from cloudem.cloud.aws.nodes import Refused, launched_node, node_of, refusal, refusals
from cloudem.cloud.aws.quotas import free_vcpus, spot_prices
from cloudem.cloud.aws.template import TOKEN, base_data, cluster_tags, name_of, node_data, tag_list, tagged
from cloudem.cloud.nodes import Node, Pool, Request, Resource
from cloudem.cloud.provider import Provider
from cloudem.errors import CapacityError, ProviderError, QuotaError

_Answer: TypeAlias = "tuple[Mapping[str, Any] | None, Sequence[Mapping[str, Any]]]"

_BATCH = 100

SCHEDULER_PORT = 8786
"""Where the scheduler of a cluster listens, on its head."""


class AWSProvider(Provider):
    """Rents nodes of EC2 in one region of one account.

    Parameters
    ----------
    region
        Such as ``us-east-1``.
    profile
        Of the user's AWS configuration; None for the standard order of credentials.
    image
        ``ami-…``, or the name of a parameter that holds one; None for the newest image of the account that is tagged
        ``cloudem:image``.
    subnets
        IDs of subnets of one network, at most one for each zone; None for those of the account's stack (tagged
        ``creator=cloudem``).
    instance_profile
        Beginning of the names of two instance profiles: that of heads ends with ``-head``, of workers with
        ``-worker``.
    public_addresses
        Whether nodes get a public address. None does as the subnets of the stack say, and False elsewhere. True also
        allows the default network where there is no stack: there nodes reach nothing without. In either case nothing
        from outside reaches them.
    clients
        Networks, such as ``10.0.0.0/16``, whose machines may reach the scheduler of a cluster, at its usual port; by
        default none may, and only nodes of the cluster do. Whoever connects has to show the cluster's certificates.
    session
        A boto3 session to be used instead of a new one.

    Raises
    ------
    ProviderError
        boto3 is not installed, or there is no such profile.
    """

    name = "aws"

    def __init__(
        self,
        region: str,
        profile: str | None = None,
        *,
        image: str | None = None,
        subnets: Sequence[str] | None = None,
        instance_profile: str = "cloudem",
        public_addresses: bool | None = None,
        clients: Sequence[str] = (),
        session: Any = None,
    ) -> None:
        self._calls = Calls(region, profile, session)
        self._image_name = image
        self._subnet_ids = tuple(subnets or ())
        self._instance_profile = instance_profile
        self._public = public_addresses
        self._clients = tuple(clients)
        self._zone_ids: dict[str, str] = {}
        self._subnets: dict[str, Mapping[str, Any]] = {}
        self._seen_ended: dict[str, float] = {}

    def prepare(self, cluster: str, tags: Mapping[str, str]) -> None:
        """Make the security group and the launch template of a cluster.

        Raises
        ------
        ProviderError
            No image, or no subnets; nothing was made then.
        """
        image = self._image()
        (network,) = {one["VpcId"] for one in self._subnet().values()}
        own = cluster_tags(cluster, tags)
        group = self._group(cluster, network, own)
        template = self._template(cluster)
        if template is not None and template["LaunchTemplateData"]["NetworkInterfaces"][0]["Groups"] != [group]:
            self._calls.call("ec2", "delete_launch_template", LaunchTemplateName=name_of(cluster), accept=("NotFound",))
            template = None  # of a former cluster of this name, whose removal was cut short
        if template is None:
            self._calls.call(
                "ec2",
                "create_launch_template",
                accept=("InvalidLaunchTemplateName.AlreadyExistsException",),
                LaunchTemplateName=name_of(cluster),
                LaunchTemplateData=base_data(image, group, self._instance_profile, self._with_address()),
                TagSpecifications=tagged(("launch-template",), own),
            )

    def launch(self, request: Request) -> Node:
        """Start one node: a fleet for each run of pools of one market in one zone, until one has capacity.

        A fleet chooses among spot pools by price and capacity; on demand it keeps their order. A token that made a node
        once returns that node, also when it has ended; a fleet that was asked for twice is the same fleet to AWS.
        """
        only = [*aws_resources.ours(request.cluster), _filter(f"tag:{TOKEN}", request.token)]
        for node in self._nodes(only):
            return node
        template = self._template(request.cluster)
        if template is None:
            raise ProviderError(f"cluster {request.cluster} has no launch template in {self._calls.region}; prepare it")
        refused: list[Refused] = []
        groups = list(self._groups(request, refused))
        if groups:
            target = {"LaunchTemplateId": template["LaunchTemplateId"], "Version": self._version(template, request)}
        for number, pools in groups:
            started, errors = self._fleet(request, number, pools, target)
            if started is not None:
                pool = pools[0]._replace(instance_type=started["InstanceType"])
                return launched_node(request, started["InstanceIds"][0], pool, time.time())
            refused += refusals(pools, errors)
        raise refusal(request, self._calls.region, refused)

    def nodes(self, cluster: str) -> list[Node]:
        """Return the nodes of a cluster; AWS tells of those that ended for about an hour."""
        return list(self._nodes(aws_resources.ours(cluster)))

    def terminate(self, ids: Sequence[str]) -> None:
        """End instances; those that are gone, or never were, are no error."""
        for start in range(0, len(ids), _BATCH):
            batch = list(ids[start : start + _BATCH])
            answer = self._calls.call(
                "ec2", "terminate_instances", accept=("NotFound", "InvalidInstanceID.Malformed"), InstanceIds=batch
            )
            if answer is None and len(batch) > 1:  # one ID that is not known makes AWS refuse them all
                for one in batch:
                    self.terminate([one])

    def put_secret(self, cluster: str, name: str, value: bytes) -> None:
        """Keep a secret as an encrypted parameter ``/cloudem/<cluster>/<name>``; those above 3,072 bytes cost a little.

        Encoded, 3,072 bytes fill a standard parameter. Larger ones become advanced ones: $0.05 a month, by the hour.
        """
        given = {
            "Name": _parameter(cluster, name),
            "Value": base64.b64encode(value).decode(),
            "Type": "SecureString",
            "Tier": "Intelligent-Tiering",
        }
        tags = tag_list(cluster_tags(cluster, {}))
        made = self._calls.call(
            "ssm", "put_parameter", secret=True, accept=("ParameterAlreadyExists",), Tags=tags, **given
        )
        if made is None:
            self._calls.call("ssm", "put_parameter", secret=True, Overwrite=True, **given)

    def secret(self, cluster: str, name: str) -> bytes | None:
        """Return a secret; None where there is none."""
        given = {"Name": _parameter(cluster, name), "WithDecryption": True}
        answer = self._calls.call("ssm", "get_parameter", secret=True, accept=("NotFound",), **given)
        return None if answer is None else base64.b64decode(answer["Parameter"]["Value"])

    def quotas(self) -> Mapping[tuple[str, str], float]:
        """Return the account's limits less what runs in the account, vCPUs, of the families standard, G and P."""
        return free_vcpus(self._calls)

    def spot_prices(self, pools: Sequence[Pool]) -> Mapping[Pool, float]:
        """Return today's spot prices per hour, dollars."""
        return spot_prices(self._calls, pools, self._zones())

    def resources(self, cluster: str | None = None) -> list[Resource]:
        """Return everything that clusters have, in the order in which it can be removed."""
        return aws_resources.listed(self._calls, cluster)

    def remove(self, resource: Resource) -> None:
        """Remove something; what is gone is no error."""
        if resource.kind == "instance":
            self.terminate([resource.id])
        else:
            aws_resources.removed(self._calls, resource)

    def _nodes(self, only: list[dict[str, Any]]) -> Iterator[Node]:
        for reservation in self._calls.pages("ec2", "describe_instances", "Reservations", Filters=only):
            for instance in reservation["Instances"]:
                node = node_of(instance, self._zones())
                if not node.alive and node.ended is None:  # AWS does not always tell when: as soon as it was seen
                    node = replace(node, ended=self._seen_ended.setdefault(node.id, time.time()))
                yield node

    # --- what a cluster shares ---------------------------------------------------------------------------------------

    def _group(self, cluster: str, network: str, tags: Mapping[str, str]) -> str:
        """Return the security group in which nodes reach each other and whatever they ask, and nobody reaches them."""
        made = self._calls.call(
            "ec2",
            "create_security_group",
            accept=("InvalidGroup.Duplicate",),
            GroupName=name_of(cluster),
            Description=f"Nodes of cloudem cluster {cluster}",
            VpcId=network,
            TagSpecifications=tagged(("security-group",), tags),
        )
        if made is None:
            only = [_filter("group-name", name_of(cluster)), _filter("vpc-id", network)]
            (made,) = self._calls.pages("ec2", "describe_security_groups", "SecurityGroups", Filters=only)
        group = str(made["GroupId"])
        allowed: list[dict[str, Any]] = [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}]
        port = {"IpProtocol": "tcp", "FromPort": SCHEDULER_PORT, "ToPort": SCHEDULER_PORT}
        allowed += [port | {"IpRanges": [{"CidrIp": network}]} for network in self._clients]
        for rule in allowed:  # one by one: of several AWS adds none if one is there already
            self._calls.call_on_new(
                "ec2",
                "authorize_security_group_ingress",
                accept=("InvalidPermission.Duplicate",),
                GroupId=group,
                IpPermissions=[rule],
            )
        return group

    def _template(self, cluster: str) -> Mapping[str, Any] | None:
        """Return version 1 of a cluster's launch template; None where there is none."""
        answer = self._calls.call(
            "ec2",
            "describe_launch_template_versions",
            accept=("NotFound", "InvalidLaunchTemplateName.NotFoundException"),
            LaunchTemplateName=name_of(cluster),
            Versions=["1"],
        )
        versions = answer["LaunchTemplateVersions"] if answer else []
        return versions[0] if versions else None

    def _version(self, template: Mapping[str, Any], request: Request) -> str:
        made = self._calls.call_on_new(
            "ec2",
            "create_launch_template_version",
            ClientToken=_client_token(request, "version"),
            LaunchTemplateId=template["LaunchTemplateId"],
            SourceVersion="1",
            LaunchTemplateData=node_data(template["LaunchTemplateData"], request),
        )
        return str(made["LaunchTemplateVersion"]["VersionNumber"])

    def _image(self) -> Mapping[str, Any]:
        name = self._image_name
        if name and not name.startswith("ami-"):
            name = self._calls.call("ssm", "get_parameter", Name=name)["Parameter"]["Value"]
        if name:
            images = list(self._calls.pages("ec2", "describe_images", "Images", ImageIds=[name]))
        else:
            only = [{"Name": "tag-key", "Values": ["cloudem:image"]}, _filter("state", "available")]
            images = list(self._calls.pages("ec2", "describe_images", "Images", Owners=["self"], Filters=only))
        if not images:
            raise ProviderError(
                f"the account has no {name or 'image tagged cloudem:image'} in {self._calls.region}; "
                "build one as docs/cloud.md says, or name another image"
            )
        return max(images, key=lambda one: (one.get("CreationDate", ""), one["ImageId"]))

    # --- where nodes can be ------------------------------------------------------------------------------------------

    def zones(self) -> Sequence[str]:
        """Return the zones of the subnets that nodes can be in."""
        return tuple(self._subnet())

    def _subnet(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the subnets that nodes can be in: ID of the zone -> subnet."""
        if not self._subnets:
            given: dict[str, Any] = {"SubnetIds": list(self._subnet_ids)}
            if not self._subnet_ids:
                given = {"Filters": [_filter("tag:creator", "cloudem"), _filter("state", "available")]}
            found = list(self._calls.pages("ec2", "describe_subnets", "Subnets", **given))
            if not found and self._public:
                default = [_filter("default-for-az", "true")]
                found = list(self._calls.pages("ec2", "describe_subnets", "Subnets", Filters=default))
            networks = sorted({one["VpcId"] for one in found})
            if len(networks) != 1:
                raise ProviderError(
                    f"nodes need subnets of one network in {self._calls.region}, not of {len(networks)}; "
                    "make the account's stack (deploy/account.yaml), or name subnets"
                )
            ordered = sorted(found, key=lambda one: str(one["SubnetId"]), reverse=True)
            self._subnets = {one["AvailabilityZoneId"]: one for one in ordered}
        return self._subnets

    def _with_address(self) -> bool:
        if self._public is not None or self._subnet_ids:
            return bool(self._public)
        return all(one.get("MapPublicIpOnLaunch", False) for one in self._subnet().values())

    def _zones(self) -> Mapping[str, str]:
        """Return name of a zone -> its ID; names differ from account to account."""
        if not self._zone_ids:
            answer = self._calls.call("ec2", "describe_availability_zones")
            self._zone_ids = {one["ZoneName"]: one["ZoneId"] for one in answer["AvailabilityZones"]}
        return self._zone_ids

    def _groups(self, request: Request, refused: list[Refused]) -> Iterator[tuple[int, list[Pool]]]:
        """Yield what is asked for in one call, numbered: neighbours in preference of one market and zone."""
        runs = itertools.groupby(request.pools, key=lambda pool: (pool.zone, pool.market))
        for number, ((zone, _), run) in enumerate(runs):
            if zone in self._subnet():
                yield number, list(run)
            else:
                refused += [Refused(pool, "NoSubnet", "the network has no subnet in this zone") for pool in run]

    def _fleet(self, request: Request, number: int, pools: Sequence[Pool], template: Mapping[str, str]) -> _Answer:
        """Ask for one node of these pools; return the instance, or why there is none."""
        overrides: list[dict[str, Any]] = [
            {"InstanceType": pool.instance_type, "SubnetId": self._subnet()[pool.zone]["SubnetId"]} for pool in pools
        ]
        how: dict[str, Any] = {"SpotOptions": {"AllocationStrategy": "price-capacity-optimized"}}
        if pools[0].market == "on-demand":
            how = {"OnDemandOptions": {"AllocationStrategy": "prioritized"}}
            for place, override in enumerate(overrides):
                override["Priority"] = float(place)
        try:
            answer = self._calls.call_on_new(
                "ec2",
                "create_fleet",
                Type="instant",
                ClientToken=_client_token(request, f"fleet {number}"),
                LaunchTemplateConfigs=[{"LaunchTemplateSpecification": template, "Overrides": overrides}],
                TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": pools[0].market},
                TagSpecifications=tagged(("fleet",), cluster_tags(request.cluster, request.tags)),
                **how,
            )
        except QuotaError as error:  # it may refuse as a whole instead of telling of each pool
            return None, [{"ErrorCode": "VcpuLimitExceeded", "ErrorMessage": str(error)}]
        except CapacityError as error:
            return None, [{"ErrorCode": "InsufficientInstanceCapacity", "ErrorMessage": str(error)}]
        return next(iter(answer.get("Instances", ())), None), answer.get("Errors", ())


def _client_token(request: Request, what: str) -> str:
    """Return what makes a call one that AWS does once: 64 characters at most, whatever the request's token."""
    return hashlib.sha256(f"{request.cluster}\n{request.token}\n{what}".encode()).hexdigest()[:48]


def _parameter(cluster: str, name: str) -> str:
    return f"{aws_resources.FOLDER}{cluster}/{name}"


def _filter(name: str, value: str) -> dict[str, Any]:
    return {"Name": name, "Values": [value]}
