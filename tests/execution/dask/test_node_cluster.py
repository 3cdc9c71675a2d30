"""The Dask cluster object over rented machines; here these are servers in another thread, each with its own address."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, Scheduler, Worker

from cloudem.errors import BudgetError, CapacityError, ParameterError, ProviderError, ThrottledError, WorkerLostError
from cloudem.execution.dask.configuration import CONFIGURATION, WITHOUT_PAGES
from cloudem.execution.dask.node_cluster import HEAD, NodeCluster
from cloudem.execution.dask.rental import GONE_S, LATE_S, Patience, WorkerSlot
from cloudem.execution.dask.security import make_certificates, security_of

QUICK = Patience(ready_s=20, look_s=0.05, again_s=0.1, tries=2)


class Room:
    """Rents servers in a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.certificates = folder, folder / "certificates"
        make_certificates(self.certificates)
        self.security = security_of(self.certificates)
        self.servers: dict[str, Any] = {}
        self.slots: dict[str, tuple[str, int]] = {}
        self.addresses: dict[str, str] = {}
        self.at: str | None = None
        self.closed = 0
        self.refuse: Callable[[str], Exception | None] = lambda slot: None
        self.deaf: Callable[[str], bool] = lambda slot: False
        self.left: list[str] = []
        self.loses = ""
        self.silent = self.busy = 0
        self.lost: list[str] = []
        self._hosts = itertools.count(2)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def stop(self) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    # What a cluster asks for

    def prepare(self) -> None:
        pass

    def launch(self, slot: str, generation: int) -> str:
        with self._lock:
            if self.closed:
                raise ProviderError("the cluster is closed")
            error = self.refuse(slot)
            if error is not None:
                raise error
            node, host = f"{slot}.{generation}", f"127.0.7.{next(self._hosts)}"
            if node in self.lost:
                self.lost.remove(node)
                return node
            assert node not in self.slots, "the same token again"
            self.slots[node], self.addresses[node] = (slot, generation), host
            self.servers[node] = None if self.deaf(slot) else self.do(self._serve(node, slot, host))
            if slot == HEAD and self.servers[node] is not None:
                self.at = self.servers[node].address
            if slot == self.loses:
                self.lost, self.loses = [node], ""
                raise ProviderError("no answer")
            return node

    def alive(self) -> Sequence[str]:
        if self.silent > 0:
            self.silent -= 1
            raise ThrottledError("too many calls")
        return list(self.servers)

    def scheduler(self) -> str | None:
        return self.at

    def terminate(self, nodes: Sequence[str]) -> None:
        if self.busy > 0:
            self.busy -= 1
            raise ThrottledError("too many calls")
        for node in nodes:
            server = self.servers.pop(node, None)
            if server is not None:
                self.do(self._end(server))

    def close(self) -> Sequence[str]:
        with self._lock:
            self.closed += 1
            self.terminate(sorted(self.servers, reverse=True))
            return self.left

    async def _end(self, server: Any) -> None:
        with contextlib.suppress(TimeoutError):  # a machine is switched off, whatever it does
            async with asyncio.timeout(3):
                await server.close()

    async def _serve(self, node: str, slot: str, host: str) -> Any:
        options: dict[str, Any] = {"host": host, "protocol": "tls", "security": self.security, "dashboard": False}
        if slot == HEAD:
            return await Scheduler(**options, dashboard_address=f"{host}:0")
        options |= {"nthreads": 1, "memory_limit": 0, "local_directory": str(self.folder / node)}
        return await Worker(self.at, **options, dashboard_address=f"{host}:0")


@pytest.fixture(autouse=True)
def _configured() -> Iterator[None]:
    with dask.config.set(CONFIGURATION | WITHOUT_PAGES):
        yield


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    room.stop()


def made(room: Room, workers: int = 2, **options: Any) -> NodeCluster:
    given = {"certificates": room.certificates, "patience": QUICK, "quiet": True}
    return NodeCluster(room, workers=workers, **(given | options))


def until(holds: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.02)


def test_a_client_computes_and_nothing_stays(room: Room) -> None:
    with made(room) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=20)
        assert sorted(client.gather(client.map(abs, [-1, -2, -3]))) == [1, 2, 3]
        assert cluster.scheduler_address.startswith("tls://127.0.7.")
        until(lambda: cluster.observed == {"worker-0000", "worker-0001"})
        assert "workers=2" in repr(cluster)
        assert cluster.dashboard_link.startswith("http://127.0.7.2:"), "as the scheduler says"
        assert "worker-0000 works on worker-0000.1" in cluster.get_logs()["Cluster"]
    assert room.closed
    assert not room.servers


def test_inside_an_event_loop(room: Room) -> None:
    async def use() -> int:
        async with made(room, asynchronous=True) as cluster, Client(cluster, asynchronous=True) as client:
            cluster.scale(1)
            return int(await client.submit(sum, [1, 2, 3]))

    assert asyncio.run(use()) == 6
    assert not room.servers


def test_scale_is_explicit(room: Room) -> None:
    with made(room, workers=1) as cluster, Client(cluster) as client:
        first = client.submit(list, range(5), key="held")
        assert first.result() == [0, 1, 2, 3, 4]
        cluster.scale(3)
        client.wait_for_workers(3, timeout=20)
        until(lambda: len(cluster.observed) == 3)
        cluster.scale(0)
        until(lambda: list(room.servers) == ["head.1"])
        cluster.scale(1)
        client.wait_for_workers(1, timeout=20)
        until(lambda: len(cluster.observed) == 1)
        assert len(room.servers) == 2
        with pytest.raises(ParameterError, match="ends workers"):
            cluster.adapt(minimum=0, maximum=10)
        for wrong in (-1, 1.5, True):
            with pytest.raises(ParameterError, match="0 or more"):
                cluster.scale(wrong)  # type: ignore[arg-type]
        with pytest.raises(ParameterError, match="number of worker nodes"):
            cluster.scale(memory="1 GiB")


def test_what_a_worker_holds_is_moved_before_it_goes(room: Room) -> None:
    with made(room) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=20)
        until(lambda: len(cluster.observed) == 2)
        latest = next(a for a in client.scheduler_info()["workers"] if room.addresses["worker-0001.1"] in a)
        held = client.submit(time.time, workers=[latest], allow_other_workers=True, pure=False)
        when = held.result()
        cluster.scale(1)
        until(lambda: sorted(room.servers) == ["head.1", "worker-0000.1"])
        assert held.result() == when, "not computed twice"


def test_a_node_that_vanishes_is_replaced(room: Room) -> None:
    with made(room) as cluster, Client(cluster) as client:
        client.wait_for_workers(2, timeout=20)
        room.terminate(["worker-0000.1"])
        until(lambda: "worker-0000.2" in room.servers)
        until(lambda: len(cluster.observed) == 2)
        assert client.submit(sum, [1, 2]).result() == 3
        assert "worker-0000: its node worker-0000.1 has ended" in cluster.get_logs()["Cluster"]


def test_nodes_that_never_come_to_work_are_destroyed(room: Room) -> None:
    room.deaf = lambda slot: slot != HEAD
    with pytest.raises(WorkerLostError, match=r"no worker node came to work: .* within 0\.3 s and is ended"):
        made(room, patience=QUICK._replace(ready_s=0.3))
    assert not room.servers
    assert {generation for _, generation in room.slots.values()} == {1, 2}, "tried again, then given up"


def test_one_that_never_comes_does_not_end_the_others(room: Room) -> None:
    room.deaf = lambda slot: slot == "worker-0001"
    with made(room, patience=QUICK._replace(ready_s=0.5)) as cluster:
        until(lambda: "worker-0001 is given up" in cluster.get_logs()["Cluster"])
        assert sorted(room.servers) == ["head.1", "worker-0000.1"]
        room.deaf = lambda slot: False
        cluster.scale(2)
        until(lambda: len(cluster.observed) == 2)


def test_a_scheduler_that_never_answers_is_destroyed(room: Room) -> None:
    room.deaf = lambda slot: slot == HEAD
    with pytest.raises(WorkerLostError, match=r"no scheduler within 0\.3 s: the node has not told its address"):
        made(room, patience=QUICK._replace(ready_s=0.3))
    assert not room.servers
    assert room.closed


def test_a_scheduler_of_somebody_else_is_refused(room: Room, tmp_path: Path) -> None:
    make_certificates(tmp_path / "other")
    with pytest.raises(WorkerLostError, match="certificates of another cluster"):
        made(room, certificates=tmp_path / "other", patience=QUICK._replace(ready_s=0.3))
    assert not room.servers


def test_no_more_workers_than_are_reckoned_with(room: Room) -> None:
    with pytest.raises(BudgetError, match="at most 1; make a cluster with max_workers=2"):
        made(room, workers=2, most=1)
    assert room.closed
    assert not room.slots


@pytest.mark.parametrize("slot", [HEAD, "worker-0000"])
def test_what_is_sold_out_is_said(room: Room, slot: str) -> None:
    sold_out = CapacityError("local.1 is sold out in local-a")
    room.refuse = lambda asked: sold_out if asked == slot else None
    with pytest.raises((CapacityError, WorkerLostError), match=r"local\.1 is sold out in local-a"):
        made(room, workers=1)
    assert not room.servers


def test_an_answer_that_was_lost_makes_no_second_node(room: Room) -> None:
    room.loses = "worker-0000"
    with made(room, workers=1) as cluster:
        assert sorted(room.servers) == ["head.1", "worker-0000.1"]
        assert "worker-0000: no answer; another one will be tried" in cluster.get_logs()["Cluster"]


def test_a_provider_that_does_not_answer_is_asked_again(room: Room) -> None:
    room.silent = 2
    with made(room, workers=1) as cluster:
        room.silent = 3
        until(lambda: room.silent == 0)
        cluster.scale(2)
        until(lambda: len(cluster.observed) == 2)
        room.busy = 2
        cluster.scale(1)
        until(lambda: len(room.servers) == 2)
        assert room.busy == 0, "told again until it ends"
        assert cluster.get_logs()["Cluster"].count("nodes cannot be looked at: too many calls") == 1


def test_what_stays_is_said(room: Room) -> None:
    cluster = made(room, workers=0)
    room.left = ["volume vol-1"]
    with pytest.raises(ProviderError, match="volume vol-1 could not be removed yet; `cloudem cluster sweep`"):
        cluster.close()
    room.left = []


def test_an_exception_ends_everything(room: Room) -> None:
    with pytest.raises(ZeroDivisionError), made(room):
        raise ZeroDivisionError
    assert not room.servers


def test_a_worker_that_has_left_already_is_no_error(room: Room) -> None:
    with made(room, workers=1) as cluster, Client(cluster) as client:
        (address,) = client.scheduler_info()["workers"]
        cluster.scheduler_info["workers"].pop(address)  # as after a newer copy
        room.terminate(["worker-0000.1"])
        until(lambda: "worker-0000.2" in room.servers)
        until(lambda: len(cluster.observed) == 1)
        assert client.submit(sum, [1, 2]).result(timeout=20) == 3


def test_without_its_scheduler_everything_ends_at_once(room: Room) -> None:
    with made(room) as cluster:
        room.terminate(["head.1"])
        until(lambda: room.closed > 0 and not room.servers)
        start = time.monotonic()
    assert time.monotonic() - start < 5, "nobody waits for a scheduler that is gone"
    assert cluster._cluster_manager_logs[-1][1] == "the scheduler is gone; all nodes are ended"


@pytest.mark.parametrize("deaf", [HEAD, "worker-0000"])
def test_ctrl_c_while_it_starts(room: Room, deaf: str) -> None:
    room.deaf = lambda slot: slot == deaf
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        until(lambda: any(slot == deaf for slot, _ in room.slots.values()))
        time.sleep(0.2)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            made(room, workers=1)
    finally:
        thread.join()
    assert not room.servers
    assert room.closed


def test_cancelled_while_it_starts(room: Room) -> None:
    room.deaf = lambda slot: slot == HEAD

    async def use() -> None:
        async with asyncio.timeout(0.3):
            await made(room, asynchronous=True)

    with pytest.raises(TimeoutError):
        asyncio.run(use())
    assert not room.servers


# --- What follows from what is seen, without any cluster --------------------------------------------------------------


def test_the_fate_of_a_node() -> None:
    place, there, nobody = WorkerSlot("i-1", since=100.0), frozenset({"i-1", "i-2"}), frozenset({"i-2"})
    assert place.fate(frozenset(), nobody, 100.0 + LATE_S, 300.0) == "wait", "not listed yet"
    assert place.fate(frozenset(), nobody, 101.0 + LATE_S, 300.0) == "vanished"
    assert place.fate(there, nobody, 399.0, 300.0) == "wait"
    assert place.fate(nobody, nobody, 399.0, 300.0) == "vanished", "it was listed before"
    assert place.fate(there, nobody, 401.0, 300.0) == "silent"
    assert place.fate(there, there, 402.0, 300.0) == "wait"
    assert place.joined
    assert place.fate(there, nobody, 500.0, 300.0) == "wait", "its supervisor starts it again"
    assert place.fate(there, there, 500.0 + GONE_S, 300.0) == "wait"
    assert place.fate(there, nobody, 600.0, 300.0) == "wait"
    assert place.fate(there, nobody, 601.0 + GONE_S, 300.0) == "left"
    assert place.fate(nobody, nobody, 602.0 + GONE_S, 300.0) == "vanished"
    after = place.without_node()
    assert (after.node, after.failures) == ("", 0), "it had worked"
    assert after.fate(nobody, nobody, 700.0, 300.0) == "launch"


def test_failures_in_a_row_are_counted() -> None:
    place = WorkerSlot("i-1").without_node()
    assert place.failures == 1
    place.again = 50.0
    assert place.fate(frozenset(), frozenset(), 49.0, 1.0) == "wait"
    assert place.fate(frozenset(), frozenset(), 50.0, 1.0) == "launch"
    place.asking = True
    assert place.fate(frozenset(), frozenset(), 51.0, 1.0) == "wait"
