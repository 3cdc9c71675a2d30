"""Which permissions cloudem needs in object storage: all of those of the policies, and no others."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest

from cloudem.errors import StorageError
from cloudem.io.storage.location import (
    contents,
    delete_all,
    join,
    object_store,
    read_bytes,
    storage_errors,
    write_bytes,
)
from tests.deploy.iam import statements
from tests.deploy.test_account import render

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()


def _use(server: str, monkeypatch: pytest.MonkeyPatch, *, without: str | None) -> None:
    """Do in a bucket what cloudem does in one, as a user with the policy of workers, or with less."""
    import boto3
    from moto.core.authorization import enable_iam_authentication

    bucket = f"bucket-{next(_numbers)}"
    policy = render.policies({**render.PLACEHOLDERS, "Bucket.Arn": f"arn:aws:s3:::{bucket}"})["worker"]
    for statement in policy["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        if "s3:DeleteObject" in actions:  # AWS compares each object, moto the bucket that DeleteObjects is sent to
            statement["Resource"] = [statement["Resource"], f"arn:aws:s3:::{bucket}"]
        statement["Action"] = [action for action in actions if action != without]
    policy["Statement"] = [statement for statement in policy["Statement"] if statement["Action"]]
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    iam = boto3.client("iam")
    iam.create_user(UserName=bucket)
    iam.put_user_policy(UserName=bucket, PolicyName="worker", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=bucket)["AccessKey"]
    boto3.client("s3").create_bucket(Bucket=bucket)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    with enable_iam_authentication():
        url = f"s3://{bucket}/project"
        write_bytes(join(url, "small"), b"small")
        write_bytes(join(url, "large"), bytes(40 << 20))  # in parts
        assert read_bytes(join(url, "small")) == b"small"
        assert sorted(contents(url)) == ["large", "small"]
        with storage_errors(url):
            delete_all(object_store(url), "")
        assert contents(url) == []


ACTIONS = sorted({action for _, action in statements(render.policies()["worker"]) if action.startswith("s3:")})


def test_a_worker_may_do_all_that_it_does(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(server, monkeypatch, without=None)


@pytest.mark.parametrize("action", ACTIONS)
def test_each_permission_is_needed(server: str, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    with pytest.raises(StorageError, match="denies access"):
        _use(server, monkeypatch, without=action)
