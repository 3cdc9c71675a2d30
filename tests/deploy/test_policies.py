"""Least privilege: every recorded call is allowed, every action is needed, and nothing is wider than AWS forces."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.iam import ACCOUNT, REGION, Call, Need, allows, needs, statements, without
from tests.deploy.test_account import LACKS, TEMPLATE, render

TESTS = Path(__file__).parents[1]
ROLES = ("submitter", "head", "worker")
NAMES = {
    **render.PLACEHOLDERS,
    "AWS::Region": REGION,
    "AWS::AccountId": ACCOUNT,
    "HeadRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/cloudem-head",
    "WorkerRole.Arn": f"arn:aws:iam::{ACCOUNT}:role/cloudem-worker",
}

STORAGE = {
    "s3:GetObject": "arn:aws:s3:::BUCKET/project/particles.zarr/zarr.json",
    "s3:PutObject": "arn:aws:s3:::BUCKET/project/runs/first-map/state.json",
    "s3:DeleteObject": "arn:aws:s3:::BUCKET/project/refine/lease.json",
    "s3:ListBucket": "arn:aws:s3:::BUCKET",
}
"""What cloudem does in object storage, in every role; tests/deploy/test_storage.py shows that each is needed."""

pytestmark = pytest.mark.filterwarnings(f"ignore:{LACKS}:UserWarning")


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    pytest.importorskip("moto", reason="moto is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # hundreds of Amazon's
        from tests.deploy.recording import record

        return record(TEMPLATE.read_text())


@pytest.fixture(scope="module")
def policies(calls: list[Call]) -> dict[str, Any]:
    vpc = next(call.given["VpcId"] for call in calls if call.action == "ec2:CreateSecurityGroup")
    found: dict[str, Any] = render.policies({**NAMES, "Vpc": vpc})
    return found


def needed(calls: list[Call], role: str) -> set[tuple[str, str, str]]:
    """Return what a role needs, in a form that can be kept in sets."""
    found = [need for call in calls if call.role == role for need in needs(call)]
    found += [Need(action, resource) for action, resource in STORAGE.items()]
    return {(need.action, need.resource, json.dumps(dict(need.context))) for need in found}


def is_allowed(policy: Any, need: tuple[str, str, str]) -> bool:
    return allows(policy, Need(need[0], need[1], json.loads(need[2])))


@pytest.mark.parametrize("role", ROLES)
def test_whatever_a_role_does_is_allowed(calls: list[Call], policies: dict[str, Any], role: str) -> None:
    assert [need for need in needed(calls, role) if not is_allowed(policies[role], need)] == []


@pytest.mark.parametrize("role", ROLES)
def test_each_action_of_each_statement_is_needed(calls: list[Call], policies: dict[str, Any], role: str) -> None:
    wanted = [need for need in needed(calls, role) if is_allowed(policies[role], need)]
    idle = []
    for statement, action in statements(policies[role]):
        less = without(policies[role], statement["Sid"], action)
        if all(is_allowed(less, need) for need in wanted):
            idle.append(f"{statement['Sid']}: {action}")
    assert idle == []


METHODS = {
    "submitter": {"prepare", "put_secret", "secret", "launch", "nodes", "quotas", "spot_prices", "terminate"}
    | {"resources", "remove"},
    "head": {"secret", "launch", "nodes", "spot_prices", "terminate"},
    "worker": {"secret"},
}
"""Which methods of the provider are called in each role."""

OTHERS = {"submitter": {"pricing:GetProducts", "ec2:DescribeInstanceTypeOfferings"}}
"""What a role may besides: of `cloudem prices update`."""


@pytest.mark.parametrize("role", ROLES)
def test_policies_and_the_provider_s_own_tests_name_the_same_actions(role: str) -> None:
    """They were recorded apart, in another simulation."""
    recorded = json.loads((TESTS / "cloud" / "aws" / "calls.json").read_text())
    assert set(recorded) == METHODS["submitter"]
    needed = {action for method in METHODS[role] for action in recorded[method]} | OTHERS.get(role, set())
    allowed = {action for _, action in statements(render.policies()[role])}
    assert {action for action in allowed if not action.startswith("s3:")} == needed


@functools.cache
def _services() -> Any:
    """What AWS says of its services' actions, as cfn-lint ships it."""
    cfnlint = pytest.importorskip("cfnlint", reason="cfn-lint is not installed")
    return json.loads((Path(cfnlint.__file__).parent / "data" / "AdditionalSpecs" / "Policies.json").read_text())


def _resources_of(action: str) -> list[str]:
    """Return the kinds of resources that AWS lets a policy name for an action."""
    service, _, name = action.partition(":")
    found: list[str] = _services()[service]["Actions"][name.lower()].get("Resources", [])
    return found


@pytest.mark.parametrize("role", ROLES)
def test_everything_is_named_where_aws_lets_it_be(policies: dict[str, Any], role: str) -> None:
    for statement, action in statements(policies[role]):
        assert "*" not in action
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        if "*" in resources:
            assert _resources_of(action) == [], f"{action} can be narrowed to these"
            assert action.partition(":")[2].startswith(("Describe", "Get", "List")), f"{action} does more than read"
        else:
            assert _resources_of(action), f"{action} knows no resources: a statement that names some allows nothing"


def test_each_star_is_commented() -> None:
    lines = TEMPLATE.read_text().splitlines()
    stars = [number for number, line in enumerate(lines) if line.strip() == 'Resource: "*"']
    assert len(stars) == 2
    for number in stars:
        begin = max(n for n in range(number) if lines[n].lstrip().startswith("- Sid:"))
        assert lines[begin - 1].lstrip().startswith("#")


@pytest.mark.parametrize("role", ROLES)
def test_policies_fit_into_what_iam_takes(policies: dict[str, Any], role: str) -> None:
    assert len(json.dumps(policies[role], separators=(",", ":"))) < 6144  # of a managed policy, without white space


EC2 = f"arn:aws:ec2:{REGION}:{ACCOUNT}:"
TO_EC2 = {"iam:PassedToService": "ec2.amazonaws.com"}
FOREIGN = {"aws:ResourceTag/creator": "somebody"}


@pytest.mark.parametrize(
    ("role", "need"),
    [
        ("submitter", Need("ec2:TerminateInstances", f"{EC2}instance/i-1")),
        ("submitter", Need("ec2:TerminateInstances", f"{EC2}instance/i-1", FOREIGN)),
        ("submitter", Need("ec2:DeleteVolume", f"{EC2}volume/vol-1", FOREIGN)),
        ("submitter", Need("ec2:AuthorizeSecurityGroupIngress", f"{EC2}security-group/sg-1", FOREIGN)),
        ("submitter", Need("ec2:CreateTags", f"{EC2}instance/i-1", {"aws:RequestTag/creator": "cloudem"})),
        ("submitter", Need("ec2:RunInstances", f"{EC2}instance/*")),
        ("submitter", Need("ec2:RunInstances", f"arn:aws:ec2:{REGION}::image/ami-1", {"ec2:Owner": "999999999999"})),
        ("submitter", Need("iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin", TO_EC2)),
        ("submitter", Need("iam:PassRole", NAMES["HeadRole.Arn"], {"iam:PassedToService": "lambda.amazonaws.com"})),
        ("submitter", Need("ssm:GetParameter", f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/other/secret")),
        ("submitter", Need("s3:GetObject", "arn:aws:s3:::OTHER/key")),
        ("head", Need("iam:PassRole", NAMES["HeadRole.Arn"], TO_EC2)),
        ("head", Need("ec2:TerminateInstances", f"{EC2}instance/i-1", FOREIGN)),
        ("head", Need("ec2:RunInstances", f"{EC2}instance/*")),
        ("head", Need("ec2:RunInstances", f"{EC2}subnet/subnet-1", FOREIGN)),
        ("head", Need("ssm:PutParameter", f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/cloudem/first-map/certificates")),
        ("worker", Need("ec2:TerminateInstances", f"{EC2}instance/i-1", {"aws:ResourceTag/creator": "cloudem"})),
        ("worker", Need("ec2:DescribeInstances", "*")),
    ],
)
def test_what_nobody_may(policies: dict[str, Any], role: str, need: Need) -> None:
    assert not allows(policies[role], need)
