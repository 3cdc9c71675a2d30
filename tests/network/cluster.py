"""A cluster as users start it: certificates, a scheduler and workers, each by ``cloudem cluster`` on a host."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import psutil

from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.security import make_certificates
from tests.network.namespaces import Hosts

PORT = 8786
ROOT = Path(__file__).parents[2]


class Cluster:
    """A scheduler on one host and workers on others, with certificates; a context manager that ends them.

    Parameters
    ----------
    hosts
        Where it runs.
    folder
        Gets certificates and logs.
    head
        Host of the scheduler.
    workers
        Hosts of workers, one on each.
    threads
        Threads of each worker.
    environment
        Environment of all processes, by default this process's; functions of tests are found in any.
    """

    def __init__(
        self,
        hosts: Hosts,
        folder: Path,
        *,
        head: str = "head",
        workers: tuple[str, ...] = ("w1", "w2"),
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.hosts, self.folder, self.head, self._threads = hosts, folder, head, threads
        self.certificates = folder / "certs"
        self.address = f"tls://{hosts.address(head)}:{PORT}"
        self.processes: dict[str, subprocess.Popen[Any]] = {}
        self._environment = {**(os.environ if environment is None else environment), "PYTHONPATH": str(ROOT)}
        make_certificates(self.certificates)
        try:
            self.start_scheduler()
            for node in workers:
                self.start_worker(node)
            for node in workers:
                self.wait(node, lambda text: " is at " in text)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def start_scheduler(self, *options: str) -> subprocess.Popen[Any]:
        """Start the scheduler, also again after it has ended."""
        host = ("--host", self.hosts.address(self.head))
        return self._start(self.head, "scheduler", *host, "--certificates", str(self.certificates), *options)

    def start_worker(self, node: str, *options: str) -> subprocess.Popen[Any]:
        """Start a worker under its supervisor, also again after it has ended."""
        threads = ("--threads", str(self._threads))
        return self._start(node, "worker", self.address, "--certificates", str(self.certificates), *threads, *options)

    def executor(self) -> DaskExecutor:
        """Return an executor on this cluster; make and use it where ``hosts.inside`` reaches the scheduler."""
        return DaskExecutor(scheduler=self.address, certificates=str(self.certificates))

    def log(self, node: str) -> str:
        """Return what a host's process has said."""
        return (self.folder / f"{node}.log").read_text()

    def wait(self, node: str, condition: Callable[[str], bool], timeout_s: float = 60.0) -> None:
        """Wait until what a host's process has said fulfils a condition."""
        deadline = time.monotonic() + timeout_s
        while not condition(self.log(node)):
            ended = self.processes[node].poll() is not None
            if ended or time.monotonic() > deadline:
                raise TimeoutError(f"{node} {'ended' if ended else 'is late'} and said: {self.log(node)}")
            time.sleep(0.05)

    def worker_pid(self, node: str) -> int:
        """Return the process that runs tasks on a host: the child that its supervisor spawned."""
        children = psutil.Process(self.processes[node].pid).children()
        return next(child.pid for child in children if any("spawn_main" in word for word in child.cmdline()))

    def close(self) -> None:
        """End all processes, in order first."""
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(timeout=12)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, node: str, *arguments: str) -> subprocess.Popen[Any]:
        with (self.folder / f"{node}.log").open("a") as log:
            argv = [sys.executable, "-m", "cloudem", "cluster", *arguments]
            started = self.hosts.run(node, argv, stdout=log, stderr=log, env=self._environment, cwd=self.folder)
        self.processes[node] = started
        return started
