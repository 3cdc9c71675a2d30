"""How nodes come about: from what, where, in which order, and what is said of them."""

import base64
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from cloudem.cloud.aws.provider import AWSProvider
from cloudem.cloud.aws.quotas import family
from cloudem.cloud.aws.template import user_data
from cloudem.cloud.metadata import Metadata
from cloudem.cloud.nodes import HEAD, Pool
from cloudem.errors import CapacityError, ProviderError, QuotaError
from tests.cloud.aws.recorded import Recorded
from tests.cloud.aws.rising import ON_DEMAND, OTHER, SPOT, ZONE, wanted

Another = Callable[..., AWSProvider]


def instance(account: Recorded, name: str) -> dict[str, Any]:
    reservations = account.moto.client("ec2").describe_instances(InstanceIds=[name])["Reservations"]
    found: dict[str, Any] = reservations[0]["Instances"][0]
    return found


def versions(account: Recorded, cluster: str = "one") -> list[dict[str, Any]]:
    answer = account.moto.client("ec2").describe_launch_template_versions(LaunchTemplateName=f"cloudem-{cluster}")
    return [one["LaunchTemplateData"] for one in answer["LaunchTemplateVersions"]]


# --- what nodes are made from ---------------------------------------------------------------------------------------


def test_what_all_nodes_have(account: Recorded, aws: AWSProvider) -> None:
    aws.prepare("one", {"owner": "somebody"})
    (data,) = versions(account)
    assert data["MetadataOptions"] == {
        "HttpEndpoint": "enabled",
        "HttpTokens": "required",
        "HttpPutResponseHopLimit": 1,
        "InstanceMetadataTags": "enabled",
    }
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert not {"KeyName", "UserData", "SecurityGroups", "SecurityGroupIds"} & set(data)
    (interface,) = data["NetworkInterfaces"]
    assert interface["AssociatePublicIpAddress"] is False
    (disk,) = data["BlockDeviceMappings"]
    assert (disk["Ebs"]["Encrypted"], disk["Ebs"]["DeleteOnTermination"], disk["Ebs"]["VolumeType"]) == (
        True,
        True,
        "gp3",
    )


def test_nobody_reaches_nodes_but_nodes(account: Recorded, aws: AWSProvider) -> None:
    aws.prepare("one", {})
    only = [{"Name": "group-name", "Values": ["cloudem-one"]}]
    (group,) = account.moto.client("ec2").describe_security_groups(Filters=only)["SecurityGroups"]
    (rule,) = group["IpPermissions"]
    assert rule["IpProtocol"] == "-1"
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [group["GroupId"]]
    assert not rule["IpRanges"]
    assert not rule["Ipv6Ranges"]


@pytest.mark.parametrize(("slot", "profile"), [(HEAD, "cloudem-head"), ("worker-0001", "cloudem-worker")])
def test_what_one_node_has(account: Recorded, aws: AWSProvider, slot: str, profile: str) -> None:
    aws.prepare("one", {})
    start = json.dumps({"cloudem": 1, "slot": slot, "name": "quotes \" and ' and Å"})
    node = aws.launch(
        wanted("one", slot, start=start, disk_GiB=50, generation=3, tags={"owner": "a;b", "job": "refine"})
    )
    first, second = versions(account)
    assert second["IamInstanceProfile"] == {"Name": profile}
    assert second["ImageId"] == first["ImageId"]
    (disk,) = second["BlockDeviceMappings"]
    assert (disk["Ebs"]["VolumeSize"], disk["Ebs"]["Encrypted"]) == (50, True)
    expected = {
        "Name": f"one {slot}",
        "creator": "cloudem",
        "cloudem:cluster": "one",
        "cloudem:slot": slot,
        "cloudem:generation": "3",
        "cloudem:token": f"one/{slot}/3",
        "cloudem:deadline": "1900000000.0",
        "owner": "a_b",
        "job": "refine",
    }
    for spec in second["TagSpecifications"]:
        assert {tag["Key"]: tag["Value"] for tag in spec["Tags"]} == expected
    assert {spec["ResourceType"] for spec in second["TagSpecifications"]} == {"instance", "volume", "network-interface"}
    real = instance(account, node.id)
    assert {tag["Key"]: tag["Value"] for tag in real["Tags"]} == expected
    assert "PublicIpAddress" not in real
    assert real["MetadataOptions"]["HttpTokens"] == "required"
    assert told(base64.b64decode(second["UserData"]).decode()) == json.loads(start)


def told(text: str) -> dict[str, Any]:
    """Return what a node that got this user-data reads out of it, from a metadata service."""

    class Service(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self._say("token")

        def do_GET(self) -> None:
            self._say(text)

        def _say(self, words: str) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(words.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as service:
        threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            return Metadata(f"http://127.0.0.1:{service.server_port}").start()
        finally:
            service.shutdown()


def test_what_cloud_init_does() -> None:
    head, _, document = user_data('{"cloudem": 1}').partition("\n")
    assert head == "#cloud-config"
    assert json.loads(document)["runcmd"] == [["systemctl", "enable", "--now", "cloudem-node"]]
    (file,) = json.loads(document)["write_files"]
    assert (file["path"], file["content"]) == ("/etc/cloudem/start.json", '{"cloudem": 1}')


def test_a_start_document_that_is_too_long() -> None:
    with pytest.raises(ProviderError, match="17000 bytes; EC2 takes 16384"):
        user_data("x" * 17000)


def test_roles_of_another_stack(account: Recorded, another: Another) -> None:
    """They are in the template, so that a head, which does not know the name, gives its workers the right one."""
    another(instance_profile="lab").prepare("one", {})
    another().launch(wanted("one", HEAD))
    another().launch(wanted("one", "worker-0001"))
    assert [data["IamInstanceProfile"]["Name"] for data in versions(account)] == [
        "lab-worker",
        "lab-head",
        "lab-worker",
    ]


# --- images and subnets ---------------------------------------------------------------------------------------------


def test_the_newest_image_or_one_by_name(account: Recorded, another: Another) -> None:
    ec2: Any = account.moto.client("ec2")
    (old,) = ec2.describe_images(Owners=["self"])["Images"]
    other = ec2.register_image(Name="another", RootDeviceName="/dev/sda1")["ImageId"]
    account.moto.client("ssm").put_parameter(Name="/cloudem/image", Value=other, Type="String")
    for number, (name, image) in enumerate([(None, old["ImageId"]), (other, other), ("/cloudem/image", other)]):
        another(image=name).prepare(f"c{number}", {})
        assert versions(account, f"c{number}")[0]["ImageId"] == image


def test_without_an_image_nothing_is_made(account: Recorded, another: Another) -> None:
    ec2: Any = account.moto.client("ec2")
    ec2.deregister_image(ImageId=ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"])
    with pytest.raises(ProviderError, match="no image tagged cloudem:image in us-east-1; build one"):
        another().prepare("one", {})
    with pytest.raises(ProviderError, match="ami-12345678"):
        another(image="ami-12345678").prepare("one", {})
    assert another().resources() == []


def test_where_nodes_may_be(account: Recorded, another: Another) -> None:
    ec2: Any = account.moto.client("ec2")
    subnets = [one["SubnetId"] for one in ec2.describe_subnets()["Subnets"]]

    def addressed(cluster: str, **given: Any) -> bool:
        another(**given).prepare(cluster, {})
        told: bool = versions(account, cluster)[0]["NetworkInterfaces"][0]["AssociatePublicIpAddress"]
        return told

    assert addressed("public", public_addresses=None), "the stack's owner wanted it so"
    assert not addressed("given", public_addresses=None, subnets=subnets[:1])
    ec2.modify_subnet_attribute(SubnetId=subnets[0], MapPublicIpOnLaunch={"Value": False})
    assert not addressed("private", public_addresses=None)
    ec2.delete_tags(Resources=subnets, Tags=[{"Key": "creator"}])
    with pytest.raises(ProviderError, match=r"deploy/account\.yaml"):
        another(public_addresses=None).prepare("none", {})
    assert addressed("default", public_addresses=True)


# --- from which pool ------------------------------------------------------------------------------------------------


def test_neighbours_of_one_market_and_zone_are_one_fleet(account: Recorded, aws: AWSProvider) -> None:
    pools = (
        *(Pool("c7a.xlarge", ZONE, "spot"), Pool("c7a.large", ZONE, "spot")),
        *(
            Pool("m7a.large", OTHER, "spot"),
            Pool("c7a.large", OTHER, "on-demand"),
            Pool("m7a.large", OTHER, "on-demand"),
        ),
        Pool("c7a.large", ZONE, "spot"),
    )
    account.sold_out = {pool[:2] + pool[2:] for pool in pools}
    aws.prepare("one", {})
    with pytest.raises(CapacityError):
        aws.launch(wanted("one", pools=pools))
    asked = [
        [
            (one["InstanceType"], account.zones[one["SubnetId"]])
            for one in fleet["LaunchTemplateConfigs"][0]["Overrides"]
        ]
        for fleet in account.fleets
    ]
    assert asked == [
        [("c7a.xlarge", ZONE), ("c7a.large", ZONE)],
        [("m7a.large", OTHER)],
        [("c7a.large", OTHER), ("m7a.large", OTHER)],
        [("c7a.large", ZONE)],
    ]
    assert len({fleet["ClientToken"] for fleet in account.fleets}) == 4
    assert (
        len({json.dumps(fleet["LaunchTemplateConfigs"][0]["LaunchTemplateSpecification"]) for fleet in account.fleets})
        == 1
    )


def test_spot_by_price_and_on_demand_in_order(account: Recorded, aws: AWSProvider) -> None:
    aws.prepare("one", {})
    assert aws.launch(wanted("one", "worker-0001", SPOT)).pool == SPOT[1], "the cheaper"
    pools = (Pool("c7a.xlarge", ZONE, "on-demand"), Pool("c7a.large", ZONE, "on-demand"))
    node = aws.launch(wanted("one", "worker-0002", pools))
    assert node.pool == pools[0], "the first"
    assert instance(account, node.id)["Placement"]["AvailabilityZone"] == account.zone_names[ZONE]
    assert {one.pool for one in aws.nodes("one")} == {SPOT[1], pools[0]}


def test_from_spot_to_another_zone_to_on_demand(account: Recorded, aws: AWSProvider) -> None:
    aws.prepare("one", {})
    pools = (*SPOT, Pool("c7a.large", "use1-az9", "spot"), Pool("c7a.large", OTHER, "spot"), *ON_DEMAND)
    account.sold_out = {("c7a.xlarge", ZONE, "spot"), ("c7a.large", ZONE, "spot")}
    assert aws.launch(wanted("one", "worker-0001", pools)).pool == pools[3]
    account.sold_out.add(("c7a.large", OTHER, "spot"))
    assert aws.launch(wanted("one", "worker-0002", pools)).pool == ON_DEMAND[0]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("InsufficientInstanceCapacity", CapacityError),
        ("SpotMaxPriceTooLow", CapacityError),
        ("UnfulfillableCapacity", CapacityError),
        ("Unsupported", CapacityError),
        ("RequestLimitExceeded", CapacityError),  # the token is used up: the same cannot be asked again
        ("MaxSpotInstanceCountExceeded", QuotaError),
        ("VcpuLimitExceeded", QuotaError),
        ("UnauthorizedOperation", ProviderError),
    ],
)
def test_why_a_fleet_has_no_instance(account: Recorded, aws: AWSProvider, code: str, kind: type[ProviderError]) -> None:
    aws.prepare("one", {})
    account.fleet_errors = {pool.instance_type: code for pool in SPOT}
    with pytest.raises(ProviderError) as caught:
        aws.launch(wanted("one"))
    assert type(caught.value) is kind
    assert code in str(caught.value)
    assert "c7a.xlarge spot in use1-az6" in str(caught.value)
    assert aws.nodes("one") == []


def test_limits_of_spot_leave_on_demand(account: Recorded, aws: AWSProvider) -> None:
    aws.prepare("one", {})
    account.fleet_errors = {"c7a.xlarge": "MaxSpotInstanceCountExceeded"}
    assert aws.launch(wanted("one", pools=(SPOT[0], *ON_DEMAND))).pool == ON_DEMAND[0]


def test_a_cluster_that_is_not_prepared(aws: AWSProvider) -> None:
    with pytest.raises(ProviderError, match="one has no launch template in us-east-1; prepare it"):
        aws.launch(wanted("one"))


# --- what is told, late and wrongly ---------------------------------------------------------------------------------


def test_a_node_that_is_not_told_of_yet(account: Recorded, another: Another) -> None:
    another().prepare("one", {})
    account.hidden = 2
    first = another().launch(wanted("one"))
    assert first.state == "pending"
    assert another().nodes("one") == []
    assert another().launch(wanted("one")).id == first.id, "the same token is the same fleet, seen or not"
    assert [node.id for node in another().nodes("one")] == [first.id]


def test_a_token_that_aws_forgot(account: Recorded, another: Another) -> None:
    """It remembers them for some hours; the tag stays."""
    another().prepare("one", {})
    first = another().launch(wanted("one"))
    account.tokens.clear()
    assert another().launch(wanted("one")).id == first.id


def test_what_was_just_made_and_is_not_known_everywhere(
    account: Recorded, aws: AWSProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("cloudem.cloud.aws.calls.time", SimpleNamespace(sleep=pauses.append))  # others sleep on
    account.unknown = {"AuthorizeSecurityGroupIngress": 2, "CreateLaunchTemplateVersion": 1, "CreateFleet": 3}
    aws.prepare("one", {})
    assert aws.launch(wanted("one")).alive
    assert pauses == [0.5, 1.0, 0.5, 0.5, 1.0, 2.0]
    account.unknown = {"CreateFleet": 4}
    with pytest.raises(ProviderError, match=r"NotFound"):
        aws.launch(wanted("one", "worker-0002"))


def test_a_token_with_another_wish(account: Recorded, another: Another) -> None:
    another().prepare("one", {})
    account.hidden = 9
    another().launch(wanted("one"))
    with pytest.raises(ProviderError, match="IdempotentParameterMismatch"):
        another().launch(wanted("one", pools=ON_DEMAND))


def test_when_a_node_ended(account: Recorded, aws: AWSProvider) -> None:
    aws.prepare("one", {})
    node = aws.launch(wanted("one"))
    aws.terminate([node.id])
    (ended,) = aws.nodes("one")
    assert ended.ended is not None
    assert 0 <= ended.ended - node.launched + 2 < 60

    def untold(parsed: dict[str, Any], model: Any, **_: Any) -> None:
        if model.name == "DescribeInstances":
            for reservation in parsed["Reservations"]:
                for one in reservation["Instances"]:
                    one["StateTransitionReason"] = "Server.SpotInstanceTermination"

    session = account.session()
    session.events.register("after-call", untold)
    other = AWSProvider("us-east-1", session=session)
    (first,), (second,) = other.nodes("one"), other.nodes("one")
    assert first.ended == second.ended is not None, "not told: since it was first seen"


def test_lists_of_many_pages(account: Recorded, another: Another) -> None:
    aws = another()
    aws.prepare("one", {})
    for number in range(3):
        aws.launch(wanted("one", f"worker-{number:04d}"))

    def pages(params: dict[str, Any], model: Any, **_: Any) -> None:
        if model.name == "DescribeInstances" and "InstanceIds" not in params:
            params["MaxResults"] = 1  # moto then gives as many

    session = account.session()
    session.events.register("before-parameter-build", pages)
    account.calls.clear()
    assert len(AWSProvider("us-east-1", session=session).nodes("one")) == 3
    assert account.calls.count(("ec2", "DescribeInstances")) >= 2


# --- limits and prices ----------------------------------------------------------------------------------------------


def test_limits_less_what_runs(account: Recorded, aws: AWSProvider) -> None:
    ec2: Any = account.moto.client("ec2")
    image = ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"]
    for name, spot in [("c7a.4xlarge", True), ("g5.xlarge", False), ("x2idn.16xlarge", False), ("p3.2xlarge", False)]:
        market = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
        ec2.run_instances(ImageId=image, InstanceType=name, MinCount=1, MaxCount=1, **market)  # whoever started them
    del account.limits["L-3819A6DF"]
    assert aws.quotas() == {
        ("standard", "on-demand"): 256.0,
        ("standard", "spot"): 640.0 - 16,
        ("G", "on-demand"): 64.0 - 4,
        ("P", "on-demand"): 0.0,
        ("P", "spot"): 0.0,
    }


def test_families() -> None:
    """By the letters that a type begins with (Amazon EC2 User Guide, names of instance types)."""
    expected = {
        "standard": ["c7a.large", "im4gn.large", "t3.micro"],
        "G": ["g6e.xlarge", "vt1.3xlarge"],
        "P": ["p5en.48xlarge"],
        "X": ["x2gd.large"],
        "Inf": ["inf2.xlarge"],
        "hpc": ["hpc7a.96xlarge"],
        "U": ["u-6tb1.metal"],
    }
    assert {name: family(name) for names in expected.values() for name in names} == {
        name: kind for kind, names in expected.items() for name in names
    }


def test_spot_prices(account: Recorded, aws: AWSProvider) -> None:
    pools = [Pool("c7a.large", ZONE, "spot"), Pool("g5.xlarge", OTHER, "spot"), Pool("c7a.large", ZONE, "on-demand")]
    assert aws.spot_prices(pools) == {pools[0]: 0.0361, pools[1]: 0.4412}
    assert aws.spot_prices([]) == {}
