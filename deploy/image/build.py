"""Builds the machine image of nodes: ``python deploy/image/build.py --region eu-central-1``.

One machine starts from Amazon's image with NVIDIA's driver, runs install.sh and stops itself; its disk becomes the
image, tagged ``cloudem:image`` with the version, and the machine goes. Takes about a quarter of an hour and less than
$0.10 of machine time; the image is then kept for about $0.05 per GiB and month. Needs an administrator's credentials,
not those of the submitter, and a subnet that reaches the internet: the default network, or --subnet.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BASE = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id"
"""Public parameter of Amazon's image: Amazon Linux 2023 with NVIDIA's driver, good for machines without GPU as well."""

LIMIT_S = 3600
"""How long the machine may take; then it stops itself, and the build has failed."""

USER_DATA = """#!/bin/bash
shutdown -h +{minutes}
mkdir -p /root/image && cd /root/image
aws s3 cp --recursive --only-show-errors {place}/ . &&
  CLOUDEM_EXTRAS={extras} bash install.sh /root/image >log.txt 2>&1 && echo done >result.txt || echo failed >result.txt
aws s3 cp --only-show-errors log.txt {place}/log.txt
aws s3 cp --only-show-errors result.txt {place}/result.txt
rm -rf /root/image
shutdown -h now
"""


class BuildError(Exception):
    """The image was not made."""


def build(
    session: Any, bucket: str, extras: str, instance_type: str, base: str, subnet: str, wheel: Path, pause_s: float = 10
) -> str:
    """Return the ID of a new image; whatever else was made is removed again."""
    version = wheel.name.split("-")[1]
    key = f"image/{version}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    ec2, s3 = session.client("ec2"), session.client("s3")
    tags = [{"Key": "creator", "Value": "cloudem"}, {"Key": "Name", "Value": f"cloudem {version} image"}]
    base = base if base.startswith("ami-") else session.client("ssm").get_parameter(Name=base)["Parameter"]["Value"]
    files = {path.name: path for path in (wheel, HERE / "install.sh", *(ROOT / "deploy").glob("constraints*.txt"))}
    files |= {f"files/{path.name}": path for path in (HERE / "files").iterdir()}
    instance = ""
    try:
        for name, path in files.items():
            s3.upload_file(str(path), bucket, f"{key}/{name}")
        (started,) = ec2.run_instances(
            ImageId=base,
            InstanceType=instance_type,
            MinCount=1,
            MaxCount=1,
            InstanceInitiatedShutdownBehavior="stop",  # its disk is what is wanted
            IamInstanceProfile={"Name": "cloudem-worker"},  # reads and writes the bucket
            MetadataOptions={"HttpTokens": "required", "HttpEndpoint": "enabled"},
            UserData=USER_DATA.format(place=f"s3://{bucket}/{key}", minutes=LIMIT_S // 60, extras=extras),
            TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
            **({"SubnetId": subnet} if subnet else {}),
        )["Instances"]
        instance = started["InstanceId"]
        print(f"{instance} installs {wheel.name} on {base}")
        _wait(lambda: _state(ec2, instance) in ("stopped", "terminated"), LIMIT_S + 300, pause_s, instance)
        _check(s3, bucket, key)
        kept = [*tags, {"Key": "cloudem:image", "Value": version}, {"Key": "cloudem:base", "Value": base}]
        image = ec2.create_image(
            InstanceId=instance,
            Name=f"cloudem-{key.removeprefix('image/')}",
            TagSpecifications=[{"ResourceType": "image", "Tags": kept}],
        )["ImageId"]
        print(f"{image} is being made")
        _wait(lambda: _image_is_ready(ec2, image), LIMIT_S, pause_s, image)
        (found,) = ec2.describe_images(ImageIds=[image])["Images"]
        disks = [one["Ebs"]["SnapshotId"] for one in found["BlockDeviceMappings"] if "Ebs" in one]
        ec2.create_tags(Resources=disks, Tags=kept)
        return str(image)
    finally:
        if instance:
            ec2.terminate_instances(InstanceIds=[instance])
        for name in (*files, "log.txt", "result.txt"):
            s3.delete_object(Bucket=bucket, Key=f"{key}/{name}")


def _check(s3: Any, bucket: str, key: str) -> None:
    """Raise BuildError, with the end of its log, unless the machine said that it was done."""
    said = {}
    for name in ("result.txt", "log.txt"):
        try:
            said[name] = s3.get_object(Bucket=bucket, Key=f"{key}/{name}")["Body"].read().decode()
        except s3.exceptions.NoSuchKey:
            said[name] = ""
    if said["result.txt"].strip() != "done":
        log = said["log.txt"][-3000:] or "it said nothing: can it reach the internet and the bucket?"
        raise BuildError(f"the machine did not finish:\n{log}")


def _state(ec2: Any, instance: str) -> str:
    return str(ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]["State"]["Name"])


def _image_is_ready(ec2: Any, image: str) -> bool:
    state = ec2.describe_images(ImageIds=[image])["Images"][0]["State"]
    if state in ("failed", "error", "invalid"):
        raise BuildError(f"{image} is {state}")
    return bool(state == "available")


def _wait(there: Callable[[], bool], limit_s: float, pause_s: float, what: str) -> None:
    end = time.monotonic() + limit_s
    while not there():
        if time.monotonic() > end:
            raise BuildError(f"{what} is not ready after {limit_s:.0f} s")
        time.sleep(pause_s)


def make_wheel(folder: Path) -> Path:
    """Return the wheel of this working tree."""
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(argv, check=True)  # noqa: S603 - this interpreter's pip
    return next(folder.glob("cloudem-*.whl"))


def main() -> int:
    """Build an image and print its ID."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--region", required=True)
    parser.add_argument("--profile", help="of the AWS configuration")
    parser.add_argument("--stack", default="cloudem", help="the account's stack, for its bucket")
    parser.add_argument(
        "--extras", default="aws,fsspec,movies,gpu", help="of cloudem: aws,fsspec,movies for machines without GPU"
    )
    parser.add_argument("--instance-type", default="c7i.2xlarge")
    parser.add_argument("--base", default=BASE, help="ami-… to build the same again; default: Amazon's newest")
    parser.add_argument("--subnet", default="", help="that reaches the internet; default: of the default network")
    given = parser.parse_args()
    session = boto3.session.Session(profile_name=given.profile, region_name=given.region)
    try:
        (stack,) = session.client("cloudformation").describe_stacks(StackName=given.stack)["Stacks"]
        outputs = {one["OutputKey"]: one["OutputValue"] for one in stack["Outputs"]}
        with tempfile.TemporaryDirectory() as folder:
            wheel = make_wheel(Path(folder))
            how = (given.extras, given.instance_type, given.base, given.subnet)
            print(build(session, outputs["Bucket"], *how, wheel))
    except (BuildError, BotoCoreError, ClientError, subprocess.CalledProcessError) as error:
        print(f"no image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
