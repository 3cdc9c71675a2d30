"""What the provider asks of AWS in each role: a cluster's whole life against a simulated account, recorded."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import moto

from cloudem.cloud.aws.calls import Calls
from cloudem.cloud.aws.prices import refresh
from cloudem.cloud.aws.provider import AWSProvider
from cloudem.cloud.nodes import HEAD, Pool, Request
from tests.deploy.iam import REGION, Call

CLUSTER = "first-map"
TYPE = "c7i.4xlarge"
SERVICES = {"service-quotas": "servicequotas"}
"""Services whose permissions begin differently."""

LACKED = {"service-quotas.GetServiceQuota": {"Quota": {"Value": 512.0}}, "pricing.GetProducts": {"PriceList": []}}
"""What moto lacks, and what is answered: any limit is 512 vCPUs, nothing has a price."""


class Recorder:
    """Sessions of a simulated account whose calls are noted with the role that made them."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.admin = boto3.session.Session(region_name=REGION)
        self._ec2 = self.admin.client("ec2")

    def session(self, role: str) -> Any:
        """Return a session whose calls are noted for a role."""
        session = boto3.session.Session(region_name=REGION)
        session.events.register("provide-client-params.*.*", functools.partial(self._note, role))
        for call, answer in LACKED.items():
            session.events.register(f"before-call.{call}", functools.partial(_answer, answer))
        return session

    def _note(self, role: str, params: Any, model: Any, **_: Any) -> dict[str, Any]:
        service = model.service_model.service_name
        action = f"{SERVICES.get(service, service)}:{model.name}"
        given = dict(params)
        if action == "ec2:CreateFleet":
            given["_template"] = self._template(given["LaunchTemplateConfigs"][0]["LaunchTemplateSpecification"])
        self.calls.append(Call(role, action, given, dict(self._tags(given)) if service == "ec2" else {}))
        if action == "ec2:CreateLaunchTemplateVersion":  # AWS begins with the source version, moto does not
            source = {"LaunchTemplateId": params["LaunchTemplateId"], "Version": params["SourceVersion"]}
            return {**params, "LaunchTemplateData": {**self._template(source), **params["LaunchTemplateData"]}}
        return dict(params)

    def _template(self, which: Any) -> Any:
        """Return what a version of a template says."""
        (version,) = self._ec2.describe_launch_template_versions(
            LaunchTemplateId=which["LaunchTemplateId"], Versions=[which["Version"]]
        )["LaunchTemplateVersions"]
        return version["LaunchTemplateData"]

    def _tags(self, given: Any) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield the tags of all that a call names, at this moment."""
        names = {word for word in json.dumps(given, default=str).split('"') if "-" in word}
        found: dict[str, dict[str, str]] = {name: {} for name in names}
        for tag in self._ec2.describe_tags()["Tags"]:
            if tag["ResourceId"] in found:
                found[tag["ResourceId"]][tag["Key"]] = tag["Value"]
        yield from found.items()


def record(template: str) -> list[Call]:
    """Live through a cluster's life in an account made by the template; return all calls."""
    with moto.mock_aws():
        recorder = Recorder()
        admin = recorder.admin.client
        admin("cloudformation").create_stack(
            StackName="cloudem", TemplateBody=template, Capabilities=["CAPABILITY_NAMED_IAM"]
        )
        ec2 = admin("ec2")
        _image(ec2)
        user = AWSProvider(REGION, session=recorder.session("submitter"))
        user.prepare(CLUSTER, {"owner": "somebody"})
        for _ in range(2):  # anew, and over what is there
            user.put_secret(CLUSTER, "certificates", b"not really")
        user.quotas()
        asked = functools.partial(Calls, session=recorder.session("submitter"))
        with tempfile.TemporaryDirectory() as folder:
            refresh([REGION], [TYPE], path=Path(folder) / "prices.json", calls=asked)
        user.launch(_request(HEAD, "on-demand"))
        user.launch(_request("worker-0000", "spot"))  # as AWSCluster does
        head = AWSProvider(REGION, session=recorder.session("head"))
        head.secret(CLUSTER, "certificates")
        worker = head.launch(_request("worker-0001", "spot"))
        head.launch(_request("worker-0002", "on-demand"))
        head.spot_prices([worker.pool])
        head.nodes(CLUSTER)
        head.terminate([worker.id])
        AWSProvider(REGION, session=recorder.session("worker")).secret(CLUSTER, "certificates")
        user.secret(CLUSTER, "certificates")
        user.spot_prices([worker.pool])
        user.terminate([node.id for node in user.nodes(CLUSTER)])
        _leave_behind(recorder, ec2)
        assert user.release(CLUSTER) == []
        assert user.resources() == []
        return recorder.calls


def _image(ec2: Any) -> None:
    reservation = ec2.run_instances(ImageId="ami-12c6146b", InstanceType="t3.micro", MinCount=1, MaxCount=1)
    instance = reservation["Instances"][0]["InstanceId"]
    image = ec2.create_image(InstanceId=instance, Name="cloudem")["ImageId"]
    ec2.create_tags(Resources=[image], Tags=[{"Key": "cloudem:image", "Value": "0.1.0"}])
    ec2.terminate_instances(InstanceIds=[instance])


def _request(slot: str, market: Any) -> Request:
    pools = (Pool(TYPE, "use1-az6", market),)
    return Request(f"{CLUSTER}/{slot}", CLUSTER, slot, 1, pools, 2e9, json.dumps({"cloudem": 1}))


def _leave_behind(recorder: Recorder, ec2: Any) -> None:
    """Make what a cluster may leave if its instances ended badly."""
    tags = [{"Key": "creator", "Value": "cloudem"}, {"Key": "cloudem:cluster", "Value": CLUSTER}]
    subnet = ec2.describe_subnets(Filters=[{"Name": "tag:creator", "Values": ["cloudem"]}])["Subnets"][0]

    def tagged(kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": tags}]

    ec2.create_volume(AvailabilityZone=subnet["AvailabilityZone"], Size=1, TagSpecifications=tagged("volume"))
    ec2.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip"))
    ec2.create_network_interface(SubnetId=subnet["SubnetId"], TagSpecifications=tagged("network-interface"))
    recorder.admin.client("logs").create_log_group(logGroupName=f"/cloudem/{CLUSTER}/head")


def _answer(answer: Any, **_: Any) -> tuple[Any, Any]:
    """Answer instead of AWS."""
    return type("Answer", (), {"status_code": 200})(), answer
