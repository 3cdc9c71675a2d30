"""Scheduler and workers as ``cloudem cluster`` runs them on one machine: strangers, ports, how they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from distributed.comm.registry import get_backend

from cloudem.errors import ParameterError, WorkerLostError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.security import FILES, make_certificates, security_of
from cloudem.execution.executor import Shared
from tests.conformance.test_executor import counting, dawdle, touch_parts

ROOT = Path(__file__).parents[3]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def cloudem(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "cloudem", "cluster", *arguments]
    return subprocess.run(argv, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def environment() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}


@dataclass
class Running:
    folder: Path
    address: str
    pages: int
    metrics: int
    processes: dict[str, subprocess.Popen[Any]]

    def start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            argv = [sys.executable, "-m", "cloudem", "cluster", *arguments, "--certificates", "certs"]
            self.processes[name] = subprocess.Popen(argv, cwd=self.folder, env=environment(), stdout=log, stderr=log)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def wait(self, name: str, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in self.log(name):
            assert self.processes[name].poll() is None, self.log(name)
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)

    def listening(self, name: str) -> set[tuple[str, int]]:
        process = psutil.Process(self.processes[name].pid)
        found = [one for each in (process, *process.children(recursive=True)) for one in each.net_connections()]
        return {(one.laddr.ip, one.laddr.port) for one in found if one.status == psutil.CONN_LISTEN}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A scheduler on 127.0.0.2 with pages on 127.0.0.1, and a worker on 127.0.0.3 with metrics."""
    folder = tmp_path_factory.mktemp("cluster")
    make_certificates(folder / "certs")
    make_certificates(folder / "other")
    port, pages, metrics = free_ports(3)
    running = Running(folder, f"tls://127.0.0.2:{port}", pages, metrics, {})
    try:
        serve = ("--host", "127.0.0.2", "--port", str(port), "--dashboard", "--dashboard-port", str(pages))
        running.start("scheduler", "scheduler", *serve)
        place = ("--host", "127.0.0.3", "--threads", "1", "--metrics-port", str(metrics))
        running.start("worker", "worker", running.address, *place)
        running.wait("worker", " is at ")
        yield running
    finally:
        for process in running.processes.values():
            process.terminate()
        for process in running.processes.values():
            process.wait(timeout=20)


@pytest.fixture(scope="module")
def doors(running: Running) -> dict[str, str]:
    """The address of everything that runs code when it is told to."""
    with Client(running.address, security=security_of(running.folder / "certs"), set_as_default=False) as client:
        ((worker, known),) = client.scheduler_info()["workers"].items()
        return {"scheduler": running.address, "worker": worker, "supervisor": known["nanny"]}


class Trace:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def context(folder: Path | None) -> ssl.SSLContext:
    """What a stranger uses: he trusts everybody, and shows what he has."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    if folder is not None:
        made.load_cert_chain(folder / FILES[1], folder / FILES[2])
    return made


async def knock(scheme: str, door: str, operation: str, shown: ssl.SSLContext, trace: Path) -> Any:
    """Send code to a door without waiting to be let in; return its answer, or raise what became of the connection."""
    connector = get_backend(scheme).get_connector()
    async with asyncio.timeout(10):
        comm = await connector.connect(door.partition("://")[2], ssl_context=shown)
        try:
            await comm.write(comm.handshake_info())
            await comm.write({"op": operation, "function": pickle.dumps(Trace(trace)), "args": pickle.dumps(())})
            await comm.read()
            return await comm.read()
        finally:
            comm.abort()


STRANGERS = {
    "plaintext": ("tcp", None),
    "no certificate": ("tls", None),
    "another authority's certificate": ("tls", "other"),
    "a member": ("tls", "certs"),
}


@pytest.mark.parametrize("who", STRANGERS)
@pytest.mark.parametrize(
    ("door", "operation"), [("scheduler", "run_function"), ("worker", "run"), ("supervisor", "run")]
)
def test_nothing_is_unpickled_for_strangers(
    running: Running, doors: dict[str, str], door: str, operation: str, who: str, tmp_path: Path
) -> None:
    scheme, folder = STRANGERS[who]
    shown = context(running.folder / folder if folder else None)
    trace = tmp_path / "trace"
    if who == "a member":  # so that the others are not refused for what they send
        answer = asyncio.run(knock(scheme, doors[door], operation, shown, trace))
        assert trace.exists(), answer
    else:
        with pytest.raises(OSError, match=r"closed|alert|reset"):
            asyncio.run(knock(scheme, doors[door], operation, shown, trace))
        assert not trace.exists()


def test_it_listens_on_what_was_asked_for_and_nothing_else(running: Running, doors: dict[str, str]) -> None:
    port = int(running.address.rpartition(":")[2])
    assert running.listening("scheduler") == {("127.0.0.2", port), ("127.0.0.1", running.pages)}
    inside = {("127.0.0.3", int(doors[name].rpartition(":")[2])) for name in ("worker", "supervisor")}
    assert running.listening("worker") == inside | {("127.0.0.3", running.metrics)}


def test_pages_and_metrics_are_where_they_were_asked_for(running: Running) -> None:
    for url in (f"http://127.0.0.1:{running.pages}/metrics", f"http://127.0.0.3:{running.metrics}/metrics"):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert b"dask_" in answer.read()


def test_a_client_is_told_why_it_is_refused(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDEM_CERTIFICATES", raising=False)
    with pytest.raises(WorkerLostError, match=r"is not to be used: it shows certificates of another cluster"):
        DaskExecutor(scheduler=running.address, certificates=str(running.folder / "other"), patience_s=5)
    with pytest.raises(ParameterError, match=r"needs certificates"):
        DaskExecutor(scheduler=running.address)
    with DaskExecutor(scheduler=running.address, certificates=str(running.folder / "certs")) as executor:
        assert list(executor.map(abs, [-1, -2])) == [1, 2]


def test_a_worker_of_another_cluster_is_told_so_and_does_not_wait(running: Running) -> None:
    done = cloudem("worker", running.address, "--certificates", "other", cwd=running.folder)
    assert done.returncode == 1
    assert done.stderr == (
        f"cloudem: {running.address}: it shows certificates of another cluster, or expired ones;"
        " copy the scheduler's certificates\n"
    )


def test_a_worker_that_is_let_go_ends(running: Running) -> None:
    running.start("second", "worker", running.address, "--host", "127.0.0.4", "--threads", "1")
    running.wait("second", " is at ")
    with Client(running.address, security=security_of(running.folder / "certs"), set_as_default=False) as client:
        second = next(address for address in client.nthreads() if "127.0.0.4" in address)
        client.retire_workers([second])
    assert running.processes["second"].wait(timeout=20) == 0
    assert running.log("second").endswith(f"worker stopped by {running.address}\n")


def test_a_worker_ends_in_order_on_a_signal_and_leaves_nothing(running: Running) -> None:
    running.start("third", "worker", running.address, "--host", "127.0.0.5", "--threads", "1")
    running.wait("third", " is at ")
    children = psutil.Process(running.processes["third"].pid).children(recursive=True)
    running.processes["third"].terminate()
    assert running.processes["third"].wait(timeout=20) == 0
    assert running.log("third").endswith("worker stopped\n")
    assert psutil.wait_procs(children, timeout=5)[1] == []


@pytest.mark.parametrize("verb", ["map", "accumulate"])
def test_a_scheduler_that_is_lost_during_work_is_said_in_one_line(running: Running, verb: str) -> None:
    (port,) = free_ports(1)
    address, name = f"tls://127.0.0.1:{port}", f"doomed-{verb}"
    running.start(name, "scheduler", "--port", str(port))
    running.start(f"{name}-worker", "worker", address, "--threads", "1")
    running.wait(f"{name}-worker", " is at ")

    def kill(index: int) -> None:
        if index == 5:
            running.processes[name].kill()

    line = r"^the scheduler was lost; start it and run again to resume$"
    work: dict[str, Callable[[DaskExecutor], object]] = {
        "map": lambda executor: list(executor.map(dawdle, range(200), on_done=kill)),
        "accumulate": lambda executor: executor.accumulate(
            counting(touch_parts), range(200), shared=here, on_done=kill
        ),
    }
    with DaskExecutor(scheduler=address, certificates=str(running.folder / "certs")) as executor:
        folder = executor.share(str, str(running.folder))

        def here(item: int) -> list[Shared[str]]:
            return [folder]

        with pytest.raises(WorkerLostError, match=line):
            work[verb](executor)


def test_a_worker_that_dies_is_replaced_and_both_are_said_in_a_line_each(running: Running) -> None:
    running.start("fourth", "worker", running.address, "--host", "127.0.0.6", "--threads", "1")
    running.wait("fourth", " is at ")
    dead = running.log("fourth").split(" with ")[0].split()[-1]
    children = psutil.Process(running.processes["fourth"].pid).children()
    next(child for child in children if "spawn_main" in " ".join(child.cmdline())).kill()
    running.wait("fourth", " has taken its place")
    running.processes["fourth"].terminate()
    assert running.processes["fourth"].wait(timeout=20) == 0
    _, died, again, stopped = (line.split(maxsplit=2)[2] for line in running.log("fourth").splitlines())
    assert died == f"worker {dead} has died (SIGKILL); starting it again"
    assert again.startswith("worker tls://127.0.0.6:")
    assert again.endswith(" has taken its place")
    assert stopped == "worker stopped"
    assert f"{dead} left; " in running.log("scheduler")
    assert "distributed" not in running.log("scheduler") + running.log("fourth")


def test_a_worker_without_a_scheduler_ends_when_its_patience_does(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    start = time.monotonic()
    done = cloudem("worker", f"tcp://127.0.0.1:{port}", "--patience-s", "1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"cloudem: no scheduler answers at tcp://127.0.0.1:{port} (")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scheduler", "--host", "0.0.0.0"), "can be reached from other machines and needs certificates"),
        (("scheduler", "--host", "10.254.254.254", "--certificates", "certs"), "cannot listen on 10.254.254.254:8786"),
        (("scheduler", "--host", "0.0.0.0", "--insecure"), "can be reached from other machines and needs certificates"),
        (("scheduler",), "lets every user of this machine run code as you"),
        (("worker", "tcp://127.0.0.1:8786", "--local-folder", "/tmp"), "can be written by others; give a folder of"),
        (("worker", "tcp://10.99.0.1:8786"), "is another machine"),
        (("worker", "tls://10.99.0.1:8786"), "needs certificates"),
        (("worker", "10.99.0.1"), "needs an address such as tls://"),
        (("worker",), "cluster worker needs SCHEDULER"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(running: Running, arguments: tuple[str, ...], message: str) -> None:
    done = cloudem(*arguments, cwd=running.folder)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_scheduler_without_certificates_says_who_can_use_it(running: Running) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "cloudem", "cluster", "scheduler", "--insecure", "--port", str(port)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        process.terminate()
    assert "WARNING: no certificates: every user of this machine can run code as" in said


def test_a_port_that_is_taken_is_not_exchanged_for_another(running: Running) -> None:
    port = running.address.rpartition(":")[2]
    certificates = ("--certificates", "certs")
    taken = cloudem("scheduler", "--host", "127.0.0.2", "--port", port, *certificates, cwd=running.folder)
    assert f"cannot listen on 127.0.0.2:{port} (Address already in use)" in taken.stderr
    (free,) = free_ports(1)
    pages = ("--dashboard", "--dashboard-port", str(running.pages))
    taken = cloudem("scheduler", "--port", str(free), *pages, *certificates, cwd=running.folder)
    assert f"cannot listen on 127.0.0.1:{running.pages}" in taken.stderr


@pytest.mark.parametrize("command", ["certificates", "scheduler", "worker"])
def test_help_shows_units_defaults_and_examples(command: str, tmp_path: Path) -> None:
    shown = cloudem(command, "--help", cwd=tmp_path).stdout
    assert f"Usage: cloudem cluster {command}" in shown
    assert "Examples\n  cloudem cluster" in shown
    assert ("--patience-s NUMBER      s      300" in shown) == (command == "worker")


def test_embedded_processes_admit_nobody_else(tmp_path: Path) -> None:
    with DaskExecutor(processes=True, workers=1, threads=1) as executor:
        address = executor._pool.client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        for scheme in ("tcp", "tls"):
            with pytest.raises(OSError, match=r"closed|alert|reset"):
                asyncio.run(knock(scheme, address, "run_function", context(None), tmp_path / "trace"))
    assert not (tmp_path / "trace").exists()


def hears_ctrl_c(process: int | str) -> bool:
    """Whether SIGINT reaches a process that a terminal sends it to."""
    status = Path(f"/proc/{process}/status").read_text()
    masks = [int(mask, 16) for mask in re.findall(r"^Sig(?:Blk|Ign):\s(\w+)", status, re.MULTILINE)]
    return not any(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


def test_worker_processes_leave_ctrl_c_to_those_who_started_them(running: Running) -> None:
    supervisor = running.processes["worker"].pid
    threads = Path(f"/proc/{supervisor}/task").iterdir()
    started = [child for thread in threads for child in (thread / "children").read_text().split()]
    assert len(started) >= 1
    assert not any(hears_ctrl_c(process) for process in started)


def test_embedded_processes_leave_ctrl_c_to_this_one() -> None:
    with DaskExecutor(processes=True, workers=1, threads=1) as executor:
        (process,) = executor._pool.client.run(os.getpid).values()
        assert not hears_ctrl_c(process)
