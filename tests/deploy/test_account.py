"""The account's stack: sound to the linter, made by a simulated CloudFormation, and private."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
TEMPLATE = DEPLOY / "account.yaml"


def module(path: Path) -> Any:
    """Import a script of deploy/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"deploy_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


render = module(DEPLOY / "policies" / "render.py")

LACKS = "Tried to parse AWS..S3..BucketPolicy"
"""What moto's CloudFormation leaves out, and says so; the template itself is looked at for it."""

pytestmark = pytest.mark.filterwarnings(f"ignore:{LACKS}:UserWarning")


def test_the_linter_finds_nothing() -> None:
    cfnlint = pytest.importorskip("cfnlint.api", reason="cfn-lint is not installed")
    found = cfnlint.lint_file(TEMPLATE)
    assert [f"{match.linenumber}: {match.rule.id} {match.message}" for match in found] == []


@pytest.mark.parametrize("role", ["submitter", "head", "worker"])
def test_policy_files_say_what_the_stack_says(role: str) -> None:
    written = (DEPLOY / "policies" / f"{role}.json").read_text()
    assert written == render.text(render.policies()[role]), "run python deploy/policies/render.py"


@pytest.fixture
def cloudformation(monkeypatch: pytest.MonkeyPatch) -> Any:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto")
    for name, value in {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with moto.mock_aws():
        yield lambda service: boto3.client(service, region_name="us-east-1")


def _stack(client: Any, **parameters: str) -> dict[str, str]:
    """Make the stack; return its outputs."""
    formation = client("cloudformation")
    formation.create_stack(
        StackName="cloudem",
        TemplateBody=TEMPLATE.read_text(),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Tags=[{"Key": "creator", "Value": "cloudem"}],
    )
    (stack,) = formation.describe_stacks(StackName="cloudem")["Stacks"]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def test_the_bucket_is_encrypted_versioned_private_and_cleans_up() -> None:
    bucket = render.template()["Resources"]["Bucket"]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert encryption == {"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    blocked = bucket["PublicAccessBlockConfiguration"]
    assert len(blocked) == 4
    assert all(value is True for value in blocked.values())
    rules = {rule["Id"]: rule for rule in bucket["LifecycleConfiguration"]["Rules"]}
    assert rules["unfinished-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == 2
    assert rules["old-versions"]["NoncurrentVersionExpiration"] == {"NoncurrentDays": {"Ref": "OldVersionDays"}}
    assert {rule["Status"] for rule in rules.values()} == {"Enabled"}


def test_unencrypted_connections_are_refused() -> None:
    policy = render.template()["Resources"]["BucketPolicy"]["Properties"]["PolicyDocument"]
    for condition in ({"Bool": {"aws:SecureTransport": "false"}}, {"NumericLessThan": {"s3:TlsVersion": "1.2"}}):
        (refused,) = [one for one in policy["Statement"] if one["Condition"] == condition]
        assert (refused["Effect"], refused["Principal"], refused["Action"]) == ("Deny", "*", "s3:*")
        everything = ["arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/*"]
        assert render.resolve(refused["Resource"], render.PLACEHOLDERS) == everything


def test_the_bucket_outlives_the_stack() -> None:
    bucket = render.template()["Resources"]["Bucket"]
    assert bucket["DeletionPolicy"] == bucket["UpdateReplacePolicy"] == "Retain"


@pytest.mark.parametrize(("network", "zones"), [("private", 4), ("public", 3), ("idle", 3)])
def test_the_network(cloudformation: Any, network: str, zones: int) -> None:
    vpc, ec2 = _stack(cloudformation, Network=network, Zones=str(zones))["Vpc"], cloudformation("ec2")
    ours = [{"Name": "vpc-id", "Values": [vpc]}]
    subnets = ec2.describe_subnets(Filters=ours)["Subnets"]
    assert len({subnet["AvailabilityZone"] for subnet in subnets}) == zones
    assert len({subnet["CidrBlock"] for subnet in subnets}) == zones
    assert all({"Key": "creator", "Value": "cloudem"} in subnet["Tags"] for subnet in subnets)
    endpoints = ec2.describe_vpc_endpoints(Filters=ours)["VpcEndpoints"]
    services = {one["ServiceName"].split(".")[-1]: one["VpcEndpointType"] for one in endpoints}
    interfaces = {"ec2": "Interface", "ssm": "Interface"} if network == "private" else {}
    assert services == {"s3": "Gateway", **interfaces}
    tables = ec2.describe_route_tables(Filters=ours)["RouteTables"]
    out = [route for table in tables for route in table["Routes"] if route.get("DestinationCidrBlock") == "0.0.0.0/0"]
    assert bool(out) == (network == "public")


def test_each_zone_has_a_subnet_with_routes_of_its_own_addresses() -> None:
    resources = render.template()["Resources"]
    subnets = {name: one for name, one in resources.items() if one["Type"] == "AWS::EC2::Subnet"}
    assert len({str(one["Properties"]["CidrBlock"]) for one in subnets.values()}) == len(subnets) == 6
    zones = [one["Properties"]["AvailabilityZone"]["Fn::Select"][0] for one in subnets.values()]
    assert zones == [0, 1, 2, 3, 4, 5]
    assert [one.get("Condition") for one in subnets.values()] == [None, None, None, "Four", "Five", "Six"]
    for one in subnets.values():
        assert one["Properties"]["MapPublicIpOnLaunch"] == {"Fn::If": ["Public", True, False]}
    routed = [one for one in resources.values() if one["Type"] == "AWS::EC2::SubnetRouteTableAssociation"]
    associated = {one["Properties"]["SubnetId"]["Ref"]: one.get("Condition") for one in routed}
    assert associated == {name: one.get("Condition") for name, one in subnets.items()}


def test_roles_are_for_machines_and_hold_one_policy_each(cloudformation: Any) -> None:
    outputs, iam = _stack(cloudformation), cloudformation("iam")
    for role in ("head", "worker"):
        name = f"cloudem-{role}"
        assert outputs[f"{role.title()}Profile"] == name
        (given,) = iam.get_instance_profile(InstanceProfileName=name)["InstanceProfile"]["Roles"]
        assert given["RoleName"] == name
        (trust,) = given["AssumeRolePolicyDocument"]["Statement"]
        assert trust["Principal"] == {"Service": "ec2.amazonaws.com"}
        (policy,) = iam.list_attached_role_policies(RoleName=name)["AttachedPolicies"]
        assert policy["PolicyName"] == name
        assert iam.list_role_policies(RoleName=name)["PolicyNames"] == []
    assert outputs["SubmitterPolicy"].endswith(":policy/cloudem-submitter")
