"""A server that answers as AWS does, for the control plane: moto, in a process of its own on a free port."""

import functools
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

REGION = "us-east-1"


@dataclass(frozen=True)
class Moto:
    """A server, and what an account of it looks like after its owner made the stack and an image."""

    url: str

    @property
    def environment(self) -> Mapping[str, str]:
        """What lets boto3 talk to the server, and to nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def session(self) -> Any:
        """Return a boto3 session for the server; all share what was read of boto3's files, which takes a while."""
        import boto3
        import botocore.session

        session = botocore.session.get_session()
        session.register_component("data_loader", _loader())
        given = self.environment
        session.set_credentials(given["AWS_ACCESS_KEY_ID"], given["AWS_SECRET_ACCESS_KEY"])
        return boto3.session.Session(region_name=REGION, botocore_session=session)

    def client(self, service: str) -> Any:
        """Return a client of a service that sees what is there, whatever a test's layer hides."""
        return _client(self, service)

    def reset(self) -> None:
        """Empty the account, then give it what every account has: subnets of a stack, and an image."""
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset", method="POST"), timeout=10):
            pass
        ec2 = self.client("ec2")
        subnets = [one["SubnetId"] for one in ec2.describe_subnets()["Subnets"]]
        ec2.create_tags(Resources=subnets, Tags=[{"Key": "creator", "Value": "cloudem"}])
        image = ec2.register_image(Name="cloudem", RootDeviceName="/dev/sda1")["ImageId"]
        ec2.create_tags(Resources=[image], Tags=[{"Key": "cloudem:image", "Value": "test"}])


@functools.cache
def _loader() -> Any:
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


@functools.cache
def _client(moto: Moto, service: str) -> Any:
    from botocore.config import Config

    return moto.session().client(service, endpoint_url=moto.url, config=Config(retries={"max_attempts": 0}))


@contextmanager
def server(folder: Path) -> Iterator[Moto]:
    """Run a server until the end of the context; its log is ``moto.log`` in a folder."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "moto.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            _await(process, port)
            yield Moto(f"http://127.0.0.1:{port}")
        finally:
            process.kill()  # it keeps nothing that would have to be saved
            process.wait(10)


def _await(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.05)
    pytest.fail("the moto server did not start")


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Moto]:
    """A server for the session; tests reset it."""
    for name in ("moto", "flask", "boto3"):
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed; pip install 'moto[server]' boto3")
    with server(tmp_path_factory.mktemp("moto")) as running:
        yield running
