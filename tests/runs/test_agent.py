"""The node agent, piece by piece, and on real nodes that are taken with and without notice."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.local import machine, namespaces
from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.metadata import ENDPOINT
from cloudem.cloud.nodes import HEAD, Node, Pool, Request
from cloudem.errors import ParameterError, ProviderError
from cloudem.execution.dask.draining import workers_of
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.security import FILES, make_certificates, security_of
from cloudem.execution.dask.worker_pool import WorkerPool
from cloudem.execution.executor import Added, Fold
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.runs import agent, supervision
from cloudem.runs.agent import (
    CLUSTER,
    Start,
    certificates_as_secret,
    certificates_from_secret,
    run_agent,
    worker_options,
)
from cloudem.runs.supervision import Child, Notices, Repeated, Watch
from tests.execution.dask.test_cluster import free_ports
from tests.jobs.conftest import assert_same_bits, make_scene, run
from tests.jobs.conftest import no_report as no_report

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Put back what a watch sets; what listens to this process's signals since a command ran in it hears none."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    listener = signal.set_wakeup_fd(-1)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(listener, warn_on_full_buffer=False)


def eventually(holds: Callable[[], bool], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.02)


# --- What is watched ------------------------------------------------------------------------------------------------


def test_a_deadline_holds_also_when_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    watch.until(time.time() + 0.4)
    assert watch.over() == ""
    monkeypatch.setattr("time.time", lambda: 0.0)
    eventually(lambda: watch.over() == "its deadline has passed", 1.0)


def test_a_deadline_holds_by_the_clock_of_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, now = Watch(), time.time()
    watch.until(now + 3600)
    assert watch.over() == ""
    monkeypatch.setattr("time.time", lambda: now + 3600)
    assert watch.over() == "its deadline has passed"


def test_sigterm_ends_a_node() -> None:
    watch = Watch()
    assert watch.over() == ""
    os.kill(os.getpid(), signal.SIGTERM)
    assert watch.over() == "asked to end"


@dataclass
class Told:
    """What a metadata service says."""

    taken: float | None = None
    likely: float | None = None
    silent: bool = False
    asked: int = 0

    def interruption(self) -> float | None:
        self.asked += 1
        if self.silent:
            raise ProviderError("no answer")
        return self.taken

    def rebalance(self) -> float | None:
        return self.likely

    def instance_type(self) -> str:
        return "local.1"


def test_notices_are_seen_and_silence_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(silent=True)
    notices: Any = Notices(told, 0.0)  # type: ignore[arg-type]
    assert notices.look() is notices.look() is None
    assert capsys.readouterr().out.count("no answer") == 1
    told.silent, told.likely = False, time.time()
    assert notices.look().certain is False
    told.taken = time.time() + 100
    found = notices.look()
    assert found.certain
    assert 99 < found.left_s <= 100
    told.taken = time.time() - 5
    assert notices.look().left_s == 0


def test_the_service_is_not_asked_all_the_time() -> None:
    told = Told()
    notices = Notices(told, 60.0)  # type: ignore[arg-type]
    for _ in range(5):
        assert notices.look() is None
    assert told.asked == 1


def test_what_ends_is_started_again_after_a_pause_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cloudem.runs.supervision.time.monotonic", lambda: now[0])
    child = Child("child", [sys.executable, "-S", "-c", ""])
    starts: list[float] = []
    for _ in range(80):
        child.keep()
        if len(starts) < child.starts:
            starts.append(now[0])
            child._process.wait()  # type: ignore[union-attr]
        now[0] += 0.25
    assert np.diff(starts).round().tolist() == [1, 2, 4, 8]


def test_a_child_that_does_not_listen_is_killed() -> None:
    deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    child = Child("child", [sys.executable, "-S", "-c", deaf])
    child.start()
    time.sleep(0.2)
    child.end(0.2)
    assert child.code in (-signal.SIGKILL, -signal.SIGTERM)
    child.end()


def test_calls_are_repeated_until_they_work(capsys: pytest.CaptureFixture[str]) -> None:
    tries: list[int] = []

    def fail_twice() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise OSError("no store")
        return "done"

    repeated = Repeated(fail_twice, 0.01, once=True)
    eventually(lambda: repeated.value == "done")
    time.sleep(0.1)
    assert len(tries) == 3
    assert capsys.readouterr().out.count("OSError: no store") == 1


# --- Certificates ---------------------------------------------------------------------------------------------------


def test_certificates_travel_as_a_secret(tmp_path: Path) -> None:
    make_certificates(tmp_path / "certs")
    secret = certificates_as_secret(tmp_path / "certs")
    assert len(secret) <= 4096
    certificates_from_secret(secret, tmp_path / "node" / "certs")
    for name in FILES:
        copy = tmp_path / "node" / "certs" / name
        assert copy.read_bytes() == (tmp_path / "certs" / name).read_bytes()
        assert copy.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", [b"hidden", b"[]", b'{"ca.pem": "hidden"}', b"\xff"])
def test_a_secret_that_holds_none_is_refused_and_not_shown(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(ProviderError, match=r"does not hold ca\.pem, certificate\.pem, key\.pem") as caught:
        certificates_from_secret(value, tmp_path / "certs")
    assert "hidden" not in str(caught.value)
    assert not (tmp_path / "certs").exists()


# --- The head -------------------------------------------------------------------------------------------------------


def start(tmp_path: Path, **given: Any) -> Start:
    document = {"project": str(tmp_path / "project"), "run": "r", "cluster": "c", "slot": HEAD, "provider": "local"}
    return Start({**document, **given}, "local-1", "127.0.0.1", tmp_path / "node" / "certificates")


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("installed", [True, False])
def test_a_head_serves_the_dashboard_only_if_that_was_asked_for(
    asked: bool, installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent.importlib.util, "find_spec", lambda name: "there" if installed else None)
    child, _, pages = agent._scheduler(start(tmp_path, **({"dashboard": True} if asked else {})))
    monkeypatch.undo()
    assert ("--dashboard" in child.argv) == (asked and installed)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/status" if asked and installed else "", pages)


@pytest.fixture
def controller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Lets this script be the controller, and nothing the scheduler; returns where the script writes."""
    monkeypatch.setattr(agent, "CLOUDEM", SLEEPER)

    def be(script: str) -> Path:
        said = tmp_path / "said"
        before = f"import json, os, pathlib, sys, time; said = pathlib.Path({str(said)!r})\n"
        before += "said.open('a').write(os.environ['CLOUDEM_NODE'] + chr(10))\n"
        monkeypatch.setattr(agent, "CONTROLLER", [sys.executable, "-S", "-c", before + script])
        return said

    return be


def test_the_head_ends_when_its_controller_is_done(tmp_path: Path, controller: Callable[[str], Path]) -> None:
    said = controller("sys.exit(0 if len(said.read_text().splitlines()) > 1 else 1)")
    assert agent._head(start(tmp_path), Told(), Watch()) == "the controller has finished"  # type: ignore[arg-type]
    first, second = (json.loads(line) for line in said.read_text().splitlines())
    assert first == second
    head = json.loads((tmp_path / "project/runs/r/head.json").read_text())
    assert head["scheduler"] == first["scheduler"]
    assert head["scheduler"].startswith("tls://127.0.0.1:")
    assert abs(head["at"] - time.time()) < 60
    assert first["certificates_folder"] == str(tmp_path / "node" / "certificates")
    assert (first["node"], first["slot"]) == ("local-1", HEAD)


def test_a_controller_that_says_nothing_is_started_again_and_then_the_head_ends(
    tmp_path: Path, controller: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = controller("time.sleep(600)")
    monkeypatch.setattr(agent, "SILENCE_S", 4.0)
    why = agent._head(start(tmp_path), Told(), Watch())  # type: ignore[arg-type]
    assert why == "the controller gave no sign of life for 4 s"
    assert len(said.read_text().splitlines()) == 2


def test_the_head_ends_in_time_where_the_store_cannot_be_reached(
    tmp_path: Path, controller: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    said = controller("")
    (tmp_path / "project").write_text("no folder")
    watch = Watch()
    watch.until(time.time() + 1.5)
    began = time.monotonic()
    assert agent._head(start(tmp_path), Told(), watch) == "its deadline has passed"  # type: ignore[arg-type]
    assert time.monotonic() - began < 4
    assert not said.exists(), "nobody can be told where the scheduler is"
    assert "StorageError" in capsys.readouterr().out


def test_the_head_ends_before_its_deadline_where_the_store_was_never_reached(
    tmp_path: Path, controller: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    controller("")
    (tmp_path / "project").write_text("no folder")
    monkeypatch.setattr(agent, "SILENCE_S", 1.0)
    watch = Watch()
    watch.until(time.time() + 20)
    assert "no sign of life" in agent._head(start(tmp_path), Told(), watch)  # type: ignore[arg-type]


# --- Starting -------------------------------------------------------------------------------------------------------


def test_a_node_that_is_told_too_little_says_so_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = {"id": "local-1", "request": {"start": "{}"}, "pool": ["", "", ""], "address": "127.0.0.1", "tags": {}}
    with machine.Service(tmp_path, node) as service:
        monkeypatch.setenv(ENDPOINT, service.endpoint)
        assert run_agent() == 1
    assert "this machine shuts down: KeyError: 'deadline'" in capsys.readouterr().out


def test_what_a_start_document_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="start document has no 'certificates'"):
        start(tmp_path).certificates  # noqa: B018


G5 = Catalogue.shipped().types["g5.12xlarge"]
C7 = Catalogue.shipped().types["c7a.xlarge"]


@pytest.mark.parametrize(
    ("document", "kind", "vcpus", "options"),
    [
        ({"gpus": "all"}, G5, None, "--gpus 4"),
        ({"gpus": 3}, G5, None, "--gpus 3"),
        ({"gpus": 8}, G5, None, "--gpus 4"),
        ({"gpus": "none", "tasks": 0}, G5, None, "--gpus none"),
        ({"gpus": "none", "tasks": 20}, G5, None, "--gpus none --threads 20"),
        ({}, G5, None, "--gpus auto"),
        ({}, C7, None, "--gpus none"),
        ({"gpus": "none", "tasks": 2}, C7, None, "--gpus none --threads 2"),
        ({}, C7, "1", "--gpus none --threads 1"),
        ({"tasks": 2}, C7, "4", "--gpus none --threads 2"),
        ({"gpus": "all"}, None, None, "--gpus auto"),
        ({"gpus": 3}, None, None, "--gpus 3"),
        ({}, None, None, "--gpus auto"),
    ],
)
def test_a_node_has_a_worker_for_each_gpu_of_its_type_or_as_many_as_were_planned(
    document: dict[str, Any], kind: Any, vcpus: str | None, options: str
) -> None:
    assert worker_options(document, kind, vcpus) == tuple(options.split())


@dataclass
class OnG5(Told):
    """What the metadata service of a machine of four GPUs says."""

    def instance_type(self) -> str:
        return "g5.12xlarge"


def seen() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_workers_on_each_gpu_of_a_node_leave_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds two workers on a machine of four GPUs; it is about to be taken, and another node stays."""
    (tmp_path / "cupy.py").write_text('raise ImportError("there is no GPU here")\n')
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{tmp_path}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(agent, "LOOK_S", {"local": 0.1})
    certificates = tmp_path / "node" / "certificates"
    make_certificates(certificates)
    (port,) = free_ports(1)
    address, told, found = f"tls://127.0.0.1:{port}", OnG5(), list[Any]()
    members = ["--certificates", str(certificates)]
    node = start(tmp_path, slot="worker-0001", scheduler=address, gpus=2, mode=CLUSTER)
    others = [
        Child("scheduler", [*agent.CLOUDEM, "cluster", "scheduler", "--port", str(port), *members]),
        Child("another", [*agent.CLOUDEM, "cluster", "worker", address, "--gpus", "none", *members]),
    ]

    def look() -> None:
        security = security_of(certificates)
        with Client(address, security=security, set_as_default=False, timeout=60) as client:
            eventually(lambda: len(client.nthreads()) == 3, 60)
            names = workers_of(address, str(certificates))
            visible = client.run(seen)
            found.extend((names[worker], visible[worker], client.nthreads()[worker]) for worker in names)
            told.taken = time.time() + 60
            eventually(lambda: len(client.nthreads()) == 1, 60)

    watcher = threading.Thread(target=look)
    try:
        for other in others:
            other.start()
        watcher.start()
        why = agent._worker(node, told, Watch())  # type: ignore[arg-type]
        watcher.join()
    finally:
        for other in reversed(others):
            other.end()
    assert why.endswith("and its worker has left")
    assert {found_ for found_ in found if found_[0] == "local-1"} == {("local-1", "0", 1), ("local-1", "1", 1)}
    assert len(found) == 3


# --- Real nodes -----------------------------------------------------------------------------------------------------


@dataclass
class Nodes:
    """A head and workers on the local provider."""

    provider: LocalProvider
    certificates: Path
    scheduler: str = ""
    nodes: list[Node] = field(default_factory=list)

    def launch(self, slot: str) -> Node:
        deadline = time.time() + 280
        document = {
            **{"cloudem": 1, "mode": CLUSTER, "cluster": "c", "slot": slot, "generation": 1, "provider": "local"},
            **{"deadline": deadline, "certificates": "certificates", "scheduler": self.scheduler, "environment": {}},
        }
        pools = (Pool("local.1", "local-a", "spot"),)
        node = self.provider.launch(Request(slot, "c", slot, 1, pools, deadline, start=json.dumps(document)))
        self.nodes.append(node)
        return node

    def begin(self, workers: int) -> None:
        head = self.launch(HEAD)
        loopback = head.address.startswith("127.")
        eventually(lambda: "scheduler at tls://" in self.provider.log(head.id), 60)
        told = self.provider.secret("c", "scheduler") if loopback else f"tls://{head.address}:8786".encode()
        self.scheduler = (told or b"").decode()
        for number in range(workers):
            self.launch(f"worker-{number:04d}")
        eventually(lambda: len(self.working()) == workers, 60)

    def working(self) -> dict[str, str]:
        """Return address of the worker by node."""
        return {node: address for address, node in workers_of(self.scheduler, str(self.certificates)).items()}

    def executor(self) -> DaskExecutor:
        return DaskExecutor(scheduler=self.scheduler, certificates=str(self.certificates))

    def now(self, node: Node) -> Node:
        return next(one for one in self.provider.nodes("c") if one.id == node.id)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head and three workers; with addresses of their own where that is possible."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # where nodes find the functions of this file
    provider = LocalProvider(tmp_path / "cloud", namespaces=not namespaces.why_impossible_here())
    provider.prepare("c", {})
    made = Nodes(provider, tmp_path / "certs")
    make_certificates(made.certificates)
    provider.put_secret("c", "certificates", certificates_as_secret(made.certificates))
    try:
        made.begin(3)
        yield made
    finally:
        assert provider.release("c") == []
        assert provider.resources() == []


def touch(item: int, folder: str) -> Added[str, Any, int]:
    """Add slowly, and leave a mark for each time that was begun."""
    with (Path(folder) / str(item)).open("a") as file:
        file.write("x")
    time.sleep(0.2)
    return Added({"all": np.float32(1.1) ** np.full(100, item, "f4")}, item)


def keys_of(item: int) -> list[str]:
    return ["all"]


def merge(earlier: Any, later: Any) -> Any:
    return earlier + later


def cut(value: Any, number: int, count: int) -> Any:
    return np.array_split(value, count)[number]


def test_a_notice_costs_nothing_and_a_kill_costs_no_bit(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    """Two of three workers are taken: one with notice, while it computes and holds sums; then one without."""
    noticed, killed, _ = nodes.nodes[1:]
    assert set(nodes.working()) == {node.id for node in nodes.nodes[1:]}
    marks = tmp_path / "marks"
    marks.mkdir()

    # with notice: nothing is computed twice
    fold: Fold[int, str, Any, int] = Fold(keys_of, _Touch(str(marks)), merge, cut, np.concatenate)
    taken_at = time.time() + 60
    notice = threading.Timer(1.0, lambda: nodes.provider.interrupt(noticed.id, 59.0))
    notice.start()
    with nodes.executor() as executor:
        sums, notes = executor.accumulate(fold, range(36))
        executor.fetch(sums["all"])
    assert notes == list(range(36))
    assert Counter(len(path.read_text()) for path in marks.iterdir()) == {1: 36}
    eventually(lambda: not nodes.now(noticed).alive, 60)
    assert (nodes.now(noticed).ended or 0) < taken_at
    assert "its worker is leaving" in nodes.provider.log(noticed.id)
    assert "its worker has left" in nodes.provider.log(noticed.id)

    # without: the map is the same to the bit
    scene = make_scene(tmp_path / "scene", count=300)
    few = {"max_iterations": 1, "max_resolution_A": 15}
    run(Refine3D(**scene.refinement(tmp_path / "alone", **few)), lambda: DaskExecutor(threads=2))
    submit: Callable[..., Any] = WorkerPool.submit_all
    submitted: Counter[str] = Counter()

    def submit_and_kill(pool: WorkerPool, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        submitted[options.get("purpose", "")] += 1
        if submitted["bricks"] == 2:  # what comes after the first ones comes when some are done, and held by workers
            nodes.provider.kill(killed.id)
        return submit(pool, function, *args, **options)

    monkeypatch.setattr(WorkerPool, "submit_all", submit_and_kill)
    run(Refine3D(**scene.refinement(tmp_path / "out", **few)), nodes.executor)
    assert not nodes.now(killed).alive
    assert_same_bits(tmp_path / "alone", tmp_path / "out")


@dataclass(frozen=True)
class _Touch:
    """`touch` in a folder."""

    folder: str

    def __call__(self, item: int) -> Added[str, Any, int]:
        return touch(item, self.folder)


def test_a_worker_whose_scheduler_is_gone_ends_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_certificates(tmp_path / "node" / "certificates")
    monkeypatch.setattr(agent, "PATIENCE_S", 0.5)
    nobody = start(tmp_path, slot="worker-0001", scheduler="tls://127.0.0.1:9", mode=CLUSTER)
    assert agent._worker(nobody, Told(), Watch()) == "the worker ended with 1"  # type: ignore[arg-type]


def test_a_worker_that_hears_nothing_of_the_head_ends_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "HEAD_S", 0.5)
    assert agent._worker(start(tmp_path), Told(), Watch()) == "the head gave no sign of life for 0 s"  # type: ignore[arg-type]


def test_a_worker_that_cannot_leave_works_on_until_its_machine_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a hint, which is heeded once, then the notice itself: the controller is told of both."""
    told, watch = Told(likely=time.time()), Watch()
    left_s: list[float] = []
    known = start(tmp_path, slot="worker-0001", scheduler="tls://127.0.0.1:9")
    notice = Path(known.run_url) / "notices" / "local-1.json"

    def stay(*_: Any) -> bool:
        eventually(notice.exists)
        left_s.append(json.loads(notice.read_text())["taken"] - time.time())
        notice.unlink()
        if told.taken is None:
            threading.Timer(1.0, lambda: setattr(told, "taken", time.time() + 50)).start()
        else:
            watch.asked.set()
        return False

    monkeypatch.setattr(agent, "CLOUDEM", SLEEPER)
    monkeypatch.setattr(agent, "_leave", stay)
    monkeypatch.setattr(agent, "LOOK_S", {"local": 0.0})
    assert agent._worker(known, told, watch) == "asked to end"  # type: ignore[arg-type]
    assert told.asked > 3
    assert len(left_s) == 2
    assert 100 < left_s[0] <= 120
    assert 30 < left_s[1] <= 50


def test_the_loop_looks_often_enough() -> None:
    assert supervision.TICK_S <= 0.5
    assert max(agent.LOOK_S.values()) <= 5.0
