"""One suite for every provider of machines: what the planner, the controller and users count on, whoever rents."""

from __future__ import annotations

import base64
import contextlib
import functools
import itertools
import math
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloudem.cloud.nodes import HEAD, Node, Pool, Request, Resource
from cloudem.cloud.provider import Provider
from cloudem.errors import CapacityError, QuotaError
from cloudem.testing.market import RecordedMarket
from cloudem.testing.simulated_cloud import Clock, MemoryProvider
from tests.cloud.aws.moto import Moto

ORDER = ("pending", "running", "stopping", "ended")


@dataclass
class Cloud:
    """A provider, and what a test needs to do behind its back."""

    another: Callable[[], Provider]
    """Returns one more object for the same account."""
    pools: tuple[Pool, ...]
    """At least two that are on sale, of different types."""
    sell_out: Callable[[Sequence[Pool]], None]
    """Lets pools have no capacity from now on."""
    use_up: Callable[[], None]
    """Lets the account's limits be used up from now on."""
    restore: Callable[[], None]
    """Undoes both."""
    now: Callable[[], float] = time.time
    wait: Callable[[float], None] = time.sleep
    visible: Callable[[], str] = str
    """All that listing shows to who may list, but may not read secrets."""
    start: str = "{}"
    """Start document with which a node stays until it is ended."""
    wait_s: float = 30.0
    provider: Provider = field(init=False)

    def __post_init__(self) -> None:
        self.provider = self.another()

    def eventually(self, holds: Callable[[], bool]) -> None:
        end = self.now() + self.wait_s
        while not holds():
            assert self.now() < end, "did not come true"
            self.wait(0.05)

    def state(self, cluster: str, node: str) -> str:
        return next((one.state for one in self.provider.nodes(cluster) if one.id == node), "not listed")

    def request(self, cluster: str, slot: str = "worker-0001", generation: int = 1, **other: Any) -> Request:
        given: dict[str, Any] = {
            "token": f"{cluster}/{slot}/{generation}/{secrets.token_hex(4)}",
            "pools": self.pools,
            "deadline": float(round(self.now()) + 600),
            "start": self.start,
            "tags": {"owner": "conformance", "project": "none"},
        }
        return Request(cluster=cluster, slot=slot, generation=generation, **(given | other))

    def launch(self, cluster: str, slot: str = "worker-0001", **other: Any) -> Node:
        node = self.provider.launch(self.request(cluster, slot, **other))
        self.eventually(lambda: any(one.id == node.id for one in self.provider.nodes(cluster)))
        return node


def _memory(stack: contextlib.ExitStack, request: pytest.FixtureRequest) -> Cloud:
    clock, sold_out = Clock(), dict[Pool, list[tuple[float, float]]]()
    pools = (Pool("small", "a", "spot"), Pool("large", "b", "on-demand"))
    prices = {pool._replace(market=market): [(0.0, 0.1)] for pool in pools for market in ("spot", "on-demand")}
    limits: dict[tuple[str, str], float] = {("standard", "spot"): 64, ("standard", "on-demand"): 64}
    provider = MemoryProvider(clock, RecordedMarket(prices, sold_out), quotas=limits)
    return Cloud(
        another=lambda: provider,
        pools=pools,
        sell_out=lambda pools: sold_out.update({pool: [(clock(), math.inf)] for pool in pools}),
        use_up=lambda: provider.limits.update(dict.fromkeys(limits, 0.0)),
        restore=lambda: (sold_out.clear(), provider.limits.update(limits)),
        now=clock,
        wait=clock.advance,
        wait_s=120.0,
        visible=lambda: repr([provider.truth(one.cluster) for one in provider.resources()]),
    )


def _memory(stack: contextlib.ExitStack, request: pytest.FixtureRequest) -> Cloud:
    from cloudem.testing.market import RecordedMarket
    from cloudem.testing.simulated_cloud import Clock, MemoryProvider

    pools = (Pool("local.1", "local-a", "spot"), Pool("local.2", "local-b", "on-demand"))
    sold_out: dict[Pool, list[tuple[float, float]]] = {}
    clock = Clock()
    prices = {pool._replace(market=market): [(0.0, 0.1)] for pool in pools for market in ("spot", "on-demand")}
    market = RecordedMarket(prices, sold_out, boot=(1.0, 3.0))
    limits = {("standard", "spot"): 64.0, ("standard", "on-demand"): 64.0}
    provider = MemoryProvider(clock, market, quotas=limits, lag_s=0.5)  # the account is the object: there is no other

    def restore() -> None:
        sold_out.clear()
        provider.limits.update(limits)

    return Cloud(
        another=lambda: provider,
        pools=pools,
        sell_out=lambda pools: sold_out.update({pool: [(0.0, float("inf"))] for pool in pools}),
        use_up=lambda: provider.limits.update(dict.fromkeys(limits, 0.0)),
        restore=restore,
        now=clock,
        wait=clock.advance,
    )


def _local(stack: contextlib.ExitStack, request: pytest.FixtureRequest) -> Cloud:
    from cloudem.cloud.local.provider import LocalProvider

    folder = request.getfixturevalue("tmp_path_factory").mktemp("cloud")
    agent = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
    provider = LocalProvider(folder, agent=agent)  # in network namespaces where this is root

    def visible() -> str:
        files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "secrets"]
        return "".join(path.read_text() for path in files)

    def restore() -> None:
        provider.sell_out([])
        provider.limit(spot=64, on_demand=64)

    def close() -> None:
        for cluster in {one.cluster for one in provider.resources()}:
            provider.release(cluster)

    stack.callback(close)
    return Cloud(
        another=lambda: LocalProvider(folder, agent=agent),
        pools=(Pool("local.1", "local-a", "spot"), Pool("local.2", "local-b", "on-demand")),
        sell_out=provider.sell_out,
        use_up=lambda: provider.limit(spot=0, on_demand=0),
        restore=restore,
        visible=visible,
    )


def _aws(stack: contextlib.ExitStack, request: pytest.FixtureRequest) -> Cloud:
    moto: Moto = request.getfixturevalue("moto")
    from cloudem.cloud.aws.provider import AWSProvider
    from tests.cloud.aws.recorded import LIMITS, REGION, Recorded

    moto.reset()
    recorded = Recorded(moto)
    session = recorded.session()
    make = functools.cache(session.client)  # a client takes half a second to make
    session.client = lambda service, **_: make(service, region_name=REGION)
    environment = stack.enter_context(pytest.MonkeyPatch.context())
    for name, value in moto.environment.items():
        environment.setenv(name, value)
    first, second, *_ = sorted(recorded.zone_names)

    def restore() -> None:
        recorded.sold_out.clear()
        recorded.limits.update(LIMITS)

    def visible() -> str:
        ec2 = moto.client("ec2")
        instances = [one for each in ec2.describe_instances()["Reservations"] for one in each["Instances"]]
        names = [one["InstanceId"] for one in instances]
        data = [ec2.describe_instance_attribute(InstanceId=one, Attribute="userData")["UserData"] for one in names]
        templates = [one["LaunchTemplateId"] for one in ec2.describe_launch_templates()["LaunchTemplates"]]
        versions = [ec2.describe_launch_template_versions(LaunchTemplateId=one) for one in templates]
        data += [
            one["LaunchTemplateData"].get("UserData") for each in versions for one in each["LaunchTemplateVersions"]
        ]
        given = [one.get("Value", "") if isinstance(one, dict) else one or "" for one in data]
        told = [instances, versions, ec2.describe_tags()["Tags"], moto.client("ssm").describe_parameters()]
        return repr([*told, *(base64.b64decode(one) for one in given)])

    return Cloud(
        another=lambda: AWSProvider(REGION, session=session),
        pools=(Pool("c7a.large", first, "spot"), Pool("m7a.large", second, "on-demand")),
        sell_out=lambda pools: recorded.sold_out.update(tuple(pool) for pool in pools),
        use_up=lambda: recorded.limits.update(dict.fromkeys(recorded.limits, 0.0)),
        restore=restore,
        visible=visible,
    )


CLOUDS = {"memory": _memory, "local": _local, "aws": _aws}


@pytest.fixture(scope="module", params=CLOUDS)
def account(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    """Each provider in turn."""
    with contextlib.ExitStack() as stack:
        yield CLOUDS[request.param](stack, request)


@pytest.fixture
def cloud(account: Cloud) -> Iterator[Cloud]:
    """One that knows nothing of the test before."""
    account.provider = account.another()
    yield account
    account.restore()


@pytest.fixture
def clusters(cloud: Cloud) -> Iterator[Callable[[], str]]:
    """Makes clusters; all that they have is removed in the end."""
    made: list[str] = []

    def make() -> str:
        made.append(f"conformance-{secrets.token_hex(4)}")
        cloud.provider.prepare(made[-1], {"owner": "conformance"})
        return made[-1]

    yield make
    for cluster in made:
        release(cloud, cluster)


@pytest.fixture
def cluster(clusters: Callable[[], str]) -> str:
    return clusters()


def release(cloud: Cloud, cluster: str) -> None:
    def empty() -> bool:
        cloud.provider.release(cluster)
        return cloud.provider.resources(cluster) == []

    cloud.eventually(empty)


# --- Launching ------------------------------------------------------------------------------------------------------


def test_a_node_is_as_requested(cloud: Cloud, cluster: str) -> None:
    before = cloud.now()
    request = cloud.request(cluster, HEAD, generation=3)
    launched = cloud.provider.launch(request)
    cloud.eventually(lambda: bool(cloud.provider.nodes(cluster)))
    (listed,) = cloud.another().nodes(cluster)
    for node in (launched, listed):
        assert (node.cluster, node.slot, node.generation) == (cluster, HEAD, 3)
        assert node.token == request.token
        assert node.pool == cloud.pools[0]
        assert node.deadline == request.deadline
        assert node.ended is None
        assert node.alive
        assert before - 2 <= node.launched <= cloud.now() + 2, "seconds since 1970"
    assert listed.id == launched.id
    cloud.eventually(lambda: cloud.provider.nodes(cluster)[0].state == "running")
    cloud.eventually(lambda: bool(cloud.provider.nodes(cluster)[0].address))


def test_the_same_token_makes_one_node(cloud: Cloud, cluster: str) -> None:
    request = cloud.request(cluster)
    providers = [cloud.provider, cloud.another()]
    with ThreadPoolExecutor(4) as pool:
        launched = list(pool.map(lambda i: providers[i % 2].launch(request).id, range(4)))
    launched.append(cloud.another().launch(request).id)
    assert len(set(launched)) == 1
    cloud.eventually(lambda: bool(cloud.provider.nodes(cluster)))
    assert [node.id for node in cloud.provider.nodes(cluster)] == launched[:1]


def test_a_token_of_a_node_that_ended_makes_no_other(cloud: Cloud, cluster: str) -> None:
    request = cloud.request(cluster)
    node = cloud.provider.launch(request)
    cloud.provider.terminate([node.id])
    cloud.eventually(lambda: cloud.state(cluster, node.id) == "ended")
    with contextlib.suppress(OSError):  # the node that ended, or an error: never a second node
        assert cloud.provider.launch(request).id == node.id
    cloud.wait(0.6)
    assert not [one for one in cloud.provider.nodes(cluster) if one.alive]


def test_other_tokens_make_other_nodes(cloud: Cloud, cluster: str) -> None:
    first, second = (cloud.launch(cluster, f"worker-{number:04d}") for number in (1, 2))
    assert first.id != second.id
    assert {node.slot: node.id for node in cloud.provider.nodes(cluster)} == {
        "worker-0001": first.id,
        "worker-0002": second.id,
    }


def test_what_is_sold_out_is_passed_over(cloud: Cloud, cluster: str) -> None:
    cloud.sell_out(cloud.pools[:1])
    assert cloud.launch(cluster).pool == cloud.pools[1]


def test_all_sold_out_names_the_pools(cloud: Cloud, cluster: str) -> None:
    cloud.sell_out(cloud.pools)
    with pytest.raises(CapacityError) as caught:
        cloud.provider.launch(cloud.request(cluster))
    for pool in cloud.pools:
        assert pool.instance_type in str(caught.value)
        assert pool.zone in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not [node for node in cloud.provider.nodes(cluster) if node.alive]


def test_limits_are_not_capacity(cloud: Cloud, cluster: str) -> None:
    cloud.use_up()
    with pytest.raises(QuotaError) as caught:
        cloud.provider.launch(cloud.request(cluster))
    assert len(str(caught.value).splitlines()) == 1
    assert not [node for node in cloud.provider.nodes(cluster) if node.alive]


def test_limits_and_prices(cloud: Cloud) -> None:
    quotas = cloud.provider.quotas()
    assert quotas
    assert all(market in ("spot", "on-demand") and free >= 0 for (_, market), free in quotas.items())
    spot = [pool._replace(market="spot") for pool in cloud.pools]
    prices = cloud.provider.spot_prices([*spot, Pool("no.such", cloud.pools[0].zone, "spot")])
    assert set(prices) <= set(spot), "what is not sold has no price"
    assert prices
    assert all(price > 0 for price in prices.values())


# --- Ending ---------------------------------------------------------------------------------------------------------


def test_ending_may_be_repeated(cloud: Cloud, cluster: str) -> None:
    node = cloud.launch(cluster)
    cloud.provider.terminate([])
    for _ in range(2):
        cloud.provider.terminate([node.id, "i-0123456789abcdef0"])
    cloud.eventually(lambda: cloud.state(cluster, node.id) == "ended")
    cloud.another().terminate([node.id])
    (ended,) = cloud.provider.nodes(cluster)
    assert not ended.alive
    assert ended.ended is not None
    assert node.launched - 2 <= ended.ended <= cloud.now() + 2
    assert (ended.slot, ended.token, ended.pool) == (node.slot, node.token, node.pool)


def test_the_others_stay(cloud: Cloud, clusters: Callable[[], str]) -> None:
    mine, other = clusters(), clusters()
    ending, staying = cloud.launch(mine), cloud.launch(mine, "worker-0002")
    theirs = cloud.launch(other)
    cloud.provider.put_secret(other, "certificates", b"theirs")
    cloud.provider.terminate([ending.id])
    cloud.eventually(lambda: cloud.state(mine, ending.id) == "ended")
    assert cloud.state(mine, staying.id) in ("pending", "running")
    before = cloud.provider.resources(other)
    release(cloud, mine)
    assert cloud.state(other, theirs.id) in ("pending", "running")
    assert set(cloud.provider.resources(other)) >= {one for one in before if one.kind == "instance"}
    assert cloud.provider.secret(other, "certificates") == b"theirs"
    assert [node.id for node in cloud.provider.nodes(other)] == [theirs.id]


def test_a_state_never_goes_back(cloud: Cloud, cluster: str) -> None:
    node = cloud.provider.launch(cloud.request(cluster))
    seen = [node.state]

    def reached(state: str) -> bool:
        told = [one.state for one in cloud.provider.nodes(cluster) if one.id == node.id]
        seen.extend(told)
        return state in told

    cloud.eventually(lambda: reached("running"))
    cloud.provider.terminate([node.id])
    cloud.eventually(lambda: reached("ended"))
    cloud.wait(0.2)
    reached("ended")
    ranks = [ORDER.index(state) for state in seen]
    assert all(before <= after for before, after in itertools.pairwise(ranks)), seen


# --- What belongs to a cluster --------------------------------------------------------------------------------------


def test_what_exists_is_listed_and_nothing_else(cloud: Cloud, cluster: str) -> None:
    node = cloud.launch(cluster)
    mine = cloud.provider.resources(cluster)
    assert {one.cluster for one in mine} == {cluster}
    assert len({(one.kind, one.id) for one in mine}) == len(mine), "each once"
    assert node.id in {one.id for one in mine}
    assert set(mine) <= set(cloud.another().resources())
    cloud.provider.terminate([node.id])
    cloud.eventually(lambda: node.id not in {one.id for one in cloud.provider.resources(cluster)})
    release(cloud, cluster)
    assert cluster not in {one.cluster for one in cloud.provider.resources()}
    cloud.eventually(lambda: not [one for one in cloud.provider.nodes(cluster) if one.alive])


def test_removing_may_be_repeated(cloud: Cloud, cluster: str) -> None:
    cloud.launch(cluster)
    cloud.provider.put_secret(cluster, "certificates", b"key")
    listed = cloud.provider.resources(cluster)
    release(cloud, cluster)
    for one in listed:
        cloud.provider.remove(one)
        cloud.another().remove(one)
    assert cloud.provider.resources(cluster) == []
    assert cloud.provider.release(cluster) == []
    assert cloud.provider.release("conformance-unknown") == []
    cloud.provider.remove(Resource("instance", "i-0123456789abcdef0", cluster))


def test_preparing_may_be_repeated(cloud: Cloud, cluster: str) -> None:
    before = cloud.provider.resources(cluster)
    cloud.provider.prepare(cluster, {"owner": "conformance"})
    cloud.another().prepare(cluster, {"owner": "conformance"})
    assert sorted(cloud.provider.resources(cluster), key=repr) == sorted(before, key=repr)
    release(cloud, cluster)
    cloud.provider.prepare(cluster, {"owner": "conformance"})
    cloud.launch(cluster)


# --- Secrets --------------------------------------------------------------------------------------------------------


def test_secrets_come_back(cloud: Cloud, clusters: Callable[[], str]) -> None:
    mine, other = clusters(), clusters()
    largest = bytes(range(256)) * 16
    assert cloud.provider.secret(mine, "certificates") is None
    cloud.provider.put_secret(mine, "certificates", largest)
    assert cloud.another().secret(mine, "certificates") == largest
    cloud.provider.put_secret(mine, "certificates", b"another")
    assert cloud.provider.secret(mine, "certificates") == b"another"
    assert cloud.provider.secret(mine, "scheduler") is None
    assert cloud.provider.secret(other, "certificates") is None
    release(cloud, mine)
    assert cloud.another().secret(mine, "certificates") is None


def test_secrets_are_seen_nowhere_else(cloud: Cloud, cluster: str) -> None:
    secret = secrets.token_hex(16)
    cloud.provider.put_secret(cluster, "certificates", secret.encode())
    node = cloud.launch(cluster)
    listed = [node, cloud.provider.nodes(cluster), cloud.provider.resources(), cloud.visible()]
    assert secret not in repr(listed)
    assert any(one.kind not in ("instance", "process") for one in cloud.provider.resources(cluster)), "it is listed"
