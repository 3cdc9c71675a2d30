"""Clusters from Python on real machines of the local provider, and what AWS is asked for."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from cloudem.cloud.local import namespaces
from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.nodes import HEAD, Pool
from cloudem.errors import BudgetError, CapacityError, ParameterError, WorkerLostError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.rental import Patience
from cloudem.runs.clusters import AWSCluster, Limits, LocalNodeCluster, offer
from cloudem.runs.leftovers import look
from tests.cloud.aws.moto import REGION, Moto
from tests.cloud.aws.recorded import Recorded

ROOT = Path(__file__).parents[2]
IDLE = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
QUICK = Patience(ready_s=40, look_s=0.1, again_s=0.2, tries=2)


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.05)


def alive(provider: LocalProvider) -> list[str]:
    return [one.id for one in provider.resources() if one.kind == "instance"]


def left_behind(provider: LocalProvider) -> None:
    """Remove what a test that failed may have left."""
    for cluster in {one.cluster for one in provider.resources()}:
        provider.release(cluster)


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalProvider]:
    provider = LocalProvider(tmp_path_factory.mktemp("cloud"), namespaces=False)
    yield provider
    left_behind(provider)


@pytest.fixture(scope="module")
def cluster(provider: LocalProvider) -> Iterator[LocalNodeCluster]:
    start = time.monotonic()
    with LocalNodeCluster(2, provider=provider, name="mine", max_hours=0.2, patience=QUICK, quiet=True) as cluster:
        cluster.took_s = time.monotonic() - start
        yield cluster
    assert provider.resources("mine") == []
    assert not Path(cluster.certificates).exists()


def test_a_client_computes(cluster: LocalNodeCluster) -> None:
    with Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=30)
        assert client.submit(sum, [1, 2, 3]).result(timeout=20) == 6
    assert cluster.scheduler_address.startswith("tls://")
    assert cluster.dashboard_link == "", "nobody asked for it"
    assert "works on local-" in cluster.get_logs()["Cluster"]


def test_jobs_run_on_it(cluster: LocalNodeCluster) -> None:
    with DaskExecutor(scheduler=cluster.scheduler_address, certificates=cluster.certificates) as executor:
        assert executor.workers == 2
        assert list(executor.map(abs, [-1, 2, -3])) == [1, 2, 3]


def test_what_nodes_are_told(cluster: LocalNodeCluster, provider: LocalProvider) -> None:
    nodes = {node.slot: node for node in provider.nodes("mine")}
    assert {node.deadline for node in nodes.values()} == {cluster.deadline}
    assert abs(cluster.deadline - time.time() - 0.2 * 3600) < 120
    assert nodes[HEAD].pool.market == "on-demand"
    assert len({node.pool.zone for node in nodes.values()}) == 1
    key = (Path(cluster.certificates) / "key.pem").read_text().splitlines()[1]
    for path in provider.folder.rglob("node.json"):
        told = json.loads(path.read_text())
        assert json.loads(told["request"]["start"])["mode"] == "cluster"
        assert told["tags"]["owner"]
        assert key not in path.read_text()


def test_a_node_that_is_taken_is_replaced(cluster: LocalNodeCluster, provider: LocalProvider) -> None:
    until(lambda: len(cluster.observed) == 2)
    taken = next(node for node in provider.nodes("mine") if node.slot != HEAD and node.alive)
    provider.kill(taken.id)
    until(lambda: len(cluster.observed) == 2 and any(n.generation == 2 and n.alive for n in provider.nodes("mine")))
    newest = [node for node in provider.nodes("mine") if node.slot == taken.slot]
    assert [(node.generation, node.alive) for node in newest] == [(1, False), (2, True)]


def test_inside_an_event_loop_with_addresses_of_their_own(tmp_path: Path) -> None:
    if reason := namespaces.why_impossible_here():
        pytest.skip(reason)
    provider = LocalProvider(tmp_path, namespaces=True)

    async def use() -> int:
        given: dict[str, Any] = {"provider": provider, "patience": QUICK, "quiet": True, "max_hours": 0.1}
        async with LocalNodeCluster(1, asynchronous=True, **given) as cluster:
            assert cluster.scheduler_address.startswith("tls://10.")
            async with Client(cluster, asynchronous=True) as client:
                return int(await client.submit(sum, [4, 5]))

    try:
        assert asyncio.run(use()) == 9
        assert provider.resources() == []
    finally:
        left_behind(provider)


def test_nodes_that_never_come_to_work_are_destroyed(tmp_path: Path) -> None:
    provider = LocalProvider(tmp_path, namespaces=False, agent=IDLE)
    with pytest.raises(WorkerLostError, match=r"no scheduler within 1 s: .*; look at the log of the node"):
        LocalNodeCluster(1, provider=provider, patience=QUICK._replace(ready_s=1), quiet=True)
    assert provider.resources() == []
    provider = LocalProvider(tmp_path, namespaces=False, agent=[sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(WorkerLostError, match="has ended before its scheduler answered"):
        LocalNodeCluster(1, provider=provider, patience=QUICK, quiet=True)
    assert provider.resources() == []


Orphans = tuple[LocalProvider, float]

OWNER = """
    import sys, time
    from cloudem.cloud.local.provider import LocalProvider
    from cloudem.runs.clusters import LocalNodeCluster

    provider = LocalProvider(sys.argv[1], namespaces=False)
    cluster = LocalNodeCluster(1, provider=provider, name="orphan", max_hours=float(sys.argv[2]), quiet=True)
    print(cluster.deadline, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def orphans(
    cluster: LocalNodeCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalProvider, float]]:
    """A cluster whose process was killed, and its deadline."""
    folder = tmp_path_factory.mktemp("orphans")
    provider = LocalProvider(folder, namespaces=False)
    hours = (5 + 2 * cluster.took_s) / 3600  # long enough to start on a busy machine
    argv = [sys.executable, "-c", textwrap.dedent(OWNER), str(folder), str(hours)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as owner:
        try:
            assert owner.stdout is not None
            deadline = float(owner.stdout.readline())
        finally:
            owner.send_signal(signal.SIGKILL)
    yield provider, deadline
    left_behind(provider)


def test_nodes_do_not_need_their_owner(orphans: Orphans) -> None:
    provider, _ = orphans
    assert len(alive(provider)) == 2
    assert not look(provider, time.time()).left, "it is in use"


# --- Time and money ---------------------------------------------------------------------------------------------------


def test_money_bounds_time() -> None:
    sale = offer("local", "local.1", ["local.1", "local.2"], ["spot", "on-demand"], None)
    assert sale.head_usd == pytest.approx(0.10)
    assert sale.worker_usd == pytest.approx(0.20), "the dearest that may be rented"
    limits = Limits.of(sale, 4, None, 10.0, 1.8)
    assert limits.workers == 4
    assert limits.deadline - time.time() == pytest.approx(1.8 / 0.9 * 3600, abs=5)
    assert Limits.of(sale, 4, 9, 10.0, 1.8).deadline - time.time() == pytest.approx(1.8 / 1.9 * 3600, abs=5)
    assert Limits.of(sale, 4, None, 1.0, 1000.0).deadline - time.time() == pytest.approx(3600, abs=5)
    assert Limits.of(sale, 4, None, 1.0, None).workers is None
    aws = offer("us-east-1", "m7i.large", ["c7a.xlarge"], ["spot"], ["use1-az1"])
    assert aws.workers == (Pool("c7a.xlarge", "use1-az1", "spot"),)
    assert aws.head == (Pool("m7i.large", "use1-az1", "on-demand"),)
    assert aws.head_usd > 0.1008, "its disk is in it"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_hours": 0}, "max_hours: got 0"),
        ({"max_usd": -1.0}, r"max_usd: got -1\.0"),
        ({"instance_type": "local.9"}, r"local\.9 has no price in local"),
        ({"markets": ["cheap"]}, "got cheap; there are spot and on-demand"),
        ({"workers": -1}, "0 or more"),
    ],
)
def test_what_makes_no_sense_is_refused(provider: LocalProvider, wrong: dict[str, Any], said: str) -> None:
    before = provider.resources()
    with pytest.raises(ParameterError, match=said):
        LocalNodeCluster(**({"provider": provider} | wrong))
    assert provider.resources() == before


def test_more_workers_than_the_money_is_for(provider: LocalProvider) -> None:
    with pytest.raises(BudgetError, match="at most 2; make a cluster with max_workers=3"):
        LocalNodeCluster(3, provider=provider, max_usd=1.0, max_workers=2)
    with pytest.raises(ParameterError, match="region: got 'nowhere', prices are known of"):
        AWSCluster(1, instance_types=["c7a.xlarge"], region="nowhere")


# --- AWS, without machines -------------------------------------------------------------------------------------------


def test_aws_is_asked_and_everything_is_removed(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudem.cloud.aws.provider import AWSProvider

    moto.reset()
    recorded = Recorded(moto)
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    provider = AWSProvider(REGION, session=recorded.session())
    given: dict[str, Any] = {"instance_types": ["c7a.xlarge"], "region": REGION, "provider": provider, "quiet": True}
    with pytest.raises(WorkerLostError, match="no scheduler within 1 s"):
        AWSCluster(1, max_usd=5.0, patience=QUICK._replace(ready_s=1), **given)
    (node,) = [one for each in moto.client("ec2").describe_instances()["Reservations"] for one in each["Instances"]]
    assert node["InstanceType"] == "m7i.large"
    assert "InstanceLifecycle" not in node, "on demand"
    assert node["State"]["Name"] == "terminated"
    assert provider.resources() == []
    recorded.sold_out.update(("m7i.large", zone, "on-demand") for zone in recorded.zone_names)
    with pytest.raises(CapacityError, match=r"m7i\.large"):
        AWSCluster(1, **given)
    assert provider.resources() == []


def test_clients_reach_the_scheduler_and_nothing_else(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudem.cloud.aws.provider import AWSProvider

    moto.reset()
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    provider = AWSProvider(REGION, clients=["10.1.0.0/16", "10.2.0.0/16"])
    for _ in range(2):
        provider.prepare("mine", {})
    groups = moto.client("ec2").describe_security_groups()["SecurityGroups"]
    (own,) = [one for one in groups if one["GroupName"] != "default"]
    ports = {(one.get("FromPort"), one.get("ToPort")) for one in own["IpPermissions"] if one["IpRanges"]}
    networks = [each["CidrIp"] for one in own["IpPermissions"] for each in one["IpRanges"]]
    assert ports == {(8786, 8786)}
    assert sorted(networks) == ["10.1.0.0/16", "10.2.0.0/16"]
    assert provider.release("mine") == []


# --- Last, since it takes a while -------------------------------------------------------------------------------------


def test_nodes_end_themselves_when_their_owner_was_killed(orphans: Orphans) -> None:
    provider, deadline = orphans
    until(lambda: not alive(provider), seconds=deadline - time.time() + 20)
    found = look(provider, time.time())
    assert not found.used
    assert {one.kind for one in found.left} == {"parameter", "folder"}, "which cost nothing"
    for one in found.left:
        provider.remove(one)
    assert provider.resources() == []
