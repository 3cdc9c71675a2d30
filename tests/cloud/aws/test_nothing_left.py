"""Whatever goes wrong, and whenever: what exists is listed, and after taking it down the account is as it was."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudem.cloud.aws.provider import AWSProvider
from cloudem.errors import ProviderError, ThrottledError
from tests.cloud.aws.listing import Inventory, added, everything, usual
from tests.cloud.aws.moto import Moto
from tests.cloud.aws.recorded import Mode, Recorded
from tests.cloud.aws.rising import up, wanted

Another = Callable[..., AWSProvider]
Look = Callable[[Moto], Inventory]
ROOT = Path(__file__).resolve().parents[3]

OURS = {
    "describe_instances": "InstanceId",
    "describe_volumes": "VolumeId",
    "describe_network_interfaces": "NetworkInterfaceId",
    "describe_security_groups": "GroupId",
    "describe_launch_templates": "LaunchTemplateId",
    "describe_parameters": "Name",
}
"""The listing calls of what a cluster has; the others tell of the same things again, or of nothing."""

KINDS = ["instance", "volume", "interface", "launch-template", "parameter", "security-group"]
"""What a cluster of one node has."""

AGAIN = {"describe_instance_status", "describe_security_group_rules", "get_resources"}


def all_listed(account: Recorded, before: Inventory, aws: AWSProvider, look: Look = everything) -> None:
    """Whatever is in the account now and was not before is what a sweep would show, no more and no less."""
    more = added(before, look(account.moto))
    assert set(more) <= set(OURS) | AGAIN
    shown = {one.id for one in aws.resources()}
    there = "\n".join(line for name in OURS for line in more.get(name, ()))
    assert sum(len(more.get(name, ())) for name in OURS) == len(shown), there
    assert all(f'"{name}"' in there for name in shown)


def gone(account: Recorded, before: Inventory, aws: AWSProvider, cluster: str) -> None:
    """After `release` nothing is left of a cluster, whoever looks and however."""
    aws.release(cluster)
    assert aws.resources() == []
    assert added(before, everything(account.moto)) == {}


def test_a_cluster_leaves_nothing(account: Recorded, another: Another) -> None:
    before = everything(account.moto)
    aws = another()
    up(aws, "one")
    assert [one.kind for one in aws.resources("one")] == KINDS
    all_listed(account, before, aws)
    gone(account, before, aws, "one")
    aws.prepare("one", {})  # a name may be used again
    assert aws.launch(wanted("one", generation=2)).alive
    gone(account, before, aws, "one")


@pytest.mark.parametrize("mode", ["refused", "lost after"])
def test_each_call_of_a_rise_fails_in_turn(account: Recorded, another: Another, mode: Mode) -> None:
    """Refused before it does anything; or done, and the answer is lost."""
    before = everything(account.moto)
    up(another(), "counting")
    sequence = list(account.calls)
    another().release("counting")
    for number, (_, operation) in enumerate(sequence, 1):
        if mode == "lost after" and operation.startswith("Describe"):
            continue  # as if it had been refused: it changes nothing
        cluster = f"rise-{number}"
        account.arm(number, mode)
        with pytest.raises(ProviderError) as caught:
            up(another(), cluster)
        assert len(str(caught.value).splitlines()) == 1
        assert account.calls[-1][1] == operation, "nothing was asked after the failure"
        account.fail = 0
        aws = another()
        all_listed(account, before, aws, usual)  # and nothing of the clusters before
        aws.release(cluster)
        assert aws.resources() == []
    assert added(before, everything(account.moto)) == {}


def test_a_rise_goes_on_where_it_failed(account: Recorded, another: Another) -> None:
    """The same may be asked again after an answer was lost, and makes nothing twice."""
    up(another(), "counting")
    sequence = list(account.calls)
    another().release("counting")
    for number, (_, operation) in enumerate(sequence, 1):
        if operation.startswith("Describe"):
            continue
        cluster = f"again-{number}"
        account.arm(number, "lost after")
        account.hidden = 2 if operation == "CreateFleet" else 0  # of which EC2 does not even tell yet
        with pytest.raises(ProviderError):
            up(another(), cluster)
        aws = another()
        up(aws, cluster)
        aws.nodes(cluster)
        assert [node.slot for node in aws.nodes(cluster)] == ["head"]
        assert sorted(one.kind for one in aws.resources(cluster)) == sorted(KINDS)
        aws.release(cluster)


@pytest.mark.parametrize("mode", ["throttled", "lost after"])
def test_each_call_of_a_fall_fails_in_turn(account: Recorded, another: Another, mode: Mode) -> None:
    before = everything(account.moto)
    up(another(), "counting")
    account.calls.clear()
    another().release("counting")
    sequence = list(account.calls)
    assert len(sequence) >= 14
    aws = another()
    cluster = "fall"
    up(aws, cluster)
    for number, (_, operation) in enumerate(sequence, 1):
        account.arm(number, mode)
        if operation.startswith("Describe"):
            if mode == "throttled":
                with pytest.raises(ThrottledError):
                    aws.release(cluster)
            continue
        assert aws.release(cluster), "what could not be removed is told"
        assert len(account.calls) == len(sequence), "and does not stop the rest"
        account.fail = 0
        aws.release(cluster)
        assert aws.resources() == [], operation
        cluster = f"fall-{number}"
        up(aws, cluster)
    gone(account, before, aws, cluster)


def test_a_client_that_is_killed(account: Recorded, another: Another, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL right after AWS did what was asked, before the client could note it anywhere."""
    before = everything(account.moto)
    up(another(), "counting")
    made = [
        number for number, (_, name) in enumerate(account.calls, 1) if name in ("CreateSecurityGroup", "CreateFleet")
    ]
    another().release("counting")
    for number in made:
        cluster = f"killed-{number}"
        command = [sys.executable, "-m", "tests.cloud.aws.rising", account.moto.url, cluster, str(number)]
        assert subprocess.run(command, cwd=ROOT, timeout=60, check=False).returncode == -9
        aws = another()
        assert aws.resources(cluster)
        all_listed(account, before, aws, usual)
        aws.release(cluster)
        assert aws.resources() == []
    assert added(before, everything(account.moto)) == {}


def test_what_is_not_ours_stays(account: Recorded, another: Another) -> None:
    ec2: Any = account.moto.client("ec2")
    mine = [{"Key": "owner", "Value": "somebody else"}]
    ec2.create_volume(
        Size=1, AvailabilityZone="us-east-1a", TagSpecifications=[{"ResourceType": "volume", "Tags": mine}]
    )
    image = ec2.describe_images(Owners=["self"])["Images"][0]["ImageId"]
    ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    stack = [{"ResourceType": "security-group", "Tags": [{"Key": "creator", "Value": "cloudem"}]}]
    ec2.create_security_group(GroupName="stack", Description="of the stack", TagSpecifications=stack)
    account.moto.client("ssm").put_parameter(Name="/cloudem/image", Value=image, Type="String")
    account.moto.client("logs").create_log_group(logGroupName="/somebody/else")
    before = everything(account.moto)
    aws = another()
    assert aws.resources() == []
    up(aws, "one")
    up(aws, "one-more")  # whose name begins with the other's
    for cluster in ("one", "one-more"):
        assert {one.cluster for one in aws.resources(cluster)} == {cluster}
    aws.release("one")
    assert {one.cluster for one in aws.resources()} == {"one-more"}
    gone(account, before, aws, "one-more")


def test_what_instances_may_leave_behind(account: Recorded, another: Another) -> None:
    before = usual(account.moto)
    ec2: Any = account.moto.client("ec2")
    tags = [{"Key": "creator", "Value": "cloudem"}, {"Key": "cloudem:cluster", "Value": "one"}]

    def tagged(kind: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": tags}]

    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    ec2.create_volume(Size=7, AvailabilityZone="us-east-1a", TagSpecifications=tagged("volume"))
    ec2.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip"))
    ec2.create_network_interface(SubnetId=subnet, TagSpecifications=tagged("network-interface"))
    account.moto.client("logs").create_log_group(logGroupName="/cloudem/one/head")
    aws = another()
    assert {(one.kind, one.cluster) for one in aws.resources()} == {
        *(("volume", "one"), ("address", "one"), ("interface", "one"), ("log-group", "one"))
    }
    assert [one.note for one in aws.resources() if one.kind == "volume"] == ["7 GiB, available"]
    aws.release("one")
    assert aws.resources() == []
    assert added(before, usual(account.moto)) == {}


def test_the_group_goes_after_the_nodes(account: Recorded, another: Another) -> None:
    """EC2 refuses to remove a group that is used; everything else goes, and the group the next time."""
    aws = another()
    up(aws, "one")
    (group,) = [one for one in aws.resources("one") if one.kind == "security-group"]
    with pytest.raises(ProviderError, match="DependencyViolation"):
        aws.remove(group)
    assert [one.kind for one in aws.resources("one")][-1] == "security-group"
    aws.terminate([node.id for node in aws.nodes("one")])
    aws.remove(group)
    assert group not in aws.resources("one")


def test_a_removal_cut_short_does_not_harm_the_next(account: Recorded, another: Another) -> None:
    """A template that outlived its group is made anew, with the new group."""
    aws = another()
    aws.prepare("one", {})
    (group,) = [one for one in aws.resources("one") if one.kind == "security-group"]
    aws.remove(group)
    aws.prepare("one", {})
    node = aws.launch(wanted("one"))
    groups = account.moto.client("ec2").describe_instances(InstanceIds=[node.id])["Reservations"][0]["Instances"][0]
    (used,) = groups["NetworkInterfaces"][0]["Groups"]
    assert used["GroupId"] == next(one.id for one in aws.resources("one") if one.kind == "security-group") != group.id
