"""The same against AWS itself: one node of the smallest kind, for some minutes and less than a cent.

``pytest tests/cloud/aws/test_real.py --run-aws`` with credentials, in an account that has the stack of
deploy/account.yaml in the region of ``AWS_REGION``. Everything that it made is removed again, also when it fails.
"""

import os
import secrets
import time
from collections.abc import Callable, Iterator

import pytest

from cloudem.cloud.aws.provider import AWSProvider
from cloudem.cloud.nodes import Pool, Request
from cloudem.errors import CapacityError, ProviderError

pytestmark = pytest.mark.aws

IMAGE = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
"""Any image will do: the node is ended before it would have done anything."""


def within(limit_s: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(5)
    return True


@pytest.fixture
def real(request: pytest.FixtureRequest) -> AWSProvider:
    if not request.config.getoption("--run-aws"):
        pytest.skip("rents a machine of AWS; run with --run-aws")
    region = os.environ.get("AWS_REGION", "us-east-1")
    provider = AWSProvider(region, image=os.environ.get("CLOUDEM_AWS_IMAGE", IMAGE))
    try:
        provider.quotas()
    except ProviderError as error:
        pytest.skip(f"no account: {error}")
    return provider


@pytest.fixture
def cluster(real: AWSProvider) -> Iterator[str]:
    name = f"test-{secrets.token_hex(4)}"
    yield name
    assert within(300, lambda: not real.release(name) and not real.resources(name)), real.resources(name)


@pytest.mark.timeout(900)
def test_one_node(real: AWSProvider, cluster: str) -> None:
    real.prepare(cluster, {"owner": "tests"})
    real.prepare(cluster, {"owner": "tests"})
    largest = bytes(range(256)) * 16
    real.put_secret(cluster, "certificates", largest)
    assert real.secret(cluster, "certificates") == largest
    zones = sorted(real._subnet())
    pools = tuple(
        Pool(name, zones[0], market) for market in ("spot", "on-demand") for name in ("t3.micro", "t3a.micro")
    )
    assert set(real.spot_prices(pools)) <= set(pools)
    request = Request(f"{cluster}/1", cluster, "worker-0001", 1, pools, time.time() + 900)
    try:
        node = real.launch(request)
    except CapacityError as error:
        pytest.skip(str(error))
    assert real.launch(request).id == node.id
    assert within(120, lambda: [one.id for one in real.nodes(cluster)] == [node.id])
    assert within(120, lambda: real.nodes(cluster)[0].state == "running")
    (running,) = real.nodes(cluster)
    assert (running.pool, running.token, running.deadline) == (node.pool, node.token, node.deadline)
    assert running.address
    real.terminate([node.id])
    assert within(300, lambda: not real.nodes(cluster)[0].alive)
