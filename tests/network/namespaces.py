"""Several hosts on one machine: network namespaces on a switch of their own, with byte counters and speed limits.

Hosts have the addresses 10.99.0.1, 10.99.0.2, … in the order in which they are named. Nothing of it touches the
machine's own network, so that several sets may exist side by side. Usable outside pytest::

    with Hosts("head", "w1", "w2") as hosts:
        hosts.run("w1", ["cloudem", "cluster", "worker", "tls://10.99.0.1:8786", ...])

or by hand, until Ctrl-C: ``python -m tests.network.namespaces head w1 w2``.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h
_COUNTER = itertools.count()
_PREFIX = "cloudem"


class Bytes(NamedTuple):
    """What passed a host's link, in bytes with the headers of all layers."""

    received: int
    sent: int


class Hosts:
    """Network namespaces that see each other; a context manager that ends what runs in them and removes them.

    Parameters
    ----------
    *names
        Names of the hosts, of at most 15 characters.
    rate
        Limit of every link in each direction, as ``tc`` writes it: ``400mbit``.
    """

    def __init__(self, *names: str, rate: str | None = None) -> None:
        self._names = names
        self._prefix = f"{_PREFIX}-{os.getpid()}-{next(_COUNTER)}"
        self._processes: list[subprocess.Popen[Any]] = []
        self._remove_orphans()
        try:
            self._make()
            for name in names if rate else ():
                self.limit(name, rate)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def namespace(self, node: str) -> str:
        """Return the name of a host's namespace, as ``ip netns`` shows it."""
        return f"{self._prefix}-{node}"

    def address(self, node: str) -> str:
        """Return the address of a host."""
        return f"10.99.0.{self._names.index(node) + 1}"

    def run(self, node: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program on a host; the options are those of `subprocess.Popen`. It ends with the hosts."""
        process = subprocess.Popen(["ip", "netns", "exec", self.namespace(node), *argv], **options)
        self._processes.append(process)
        return process

    @contextlib.contextmanager
    def inside(self, node: str) -> Iterator[None]:
        """Let what this thread does, and threads and processes that it starts, happen on a host."""
        library = ctypes.CDLL(None, use_errno=True)
        own, other = Path("/proc/thread-self/ns/net"), Path("/run/netns", self.namespace(node))
        with own.open() as here, other.open() as there:
            _check(library.setns(there.fileno(), _NETWORK))
            try:
                yield
            finally:
                _check(library.setns(here.fileno(), _NETWORK))

    def bytes(self, node: str) -> Bytes:
        """Return what a host's link has carried since it exists; on the switch, both directions are the other way."""
        shown = _ip("-n", self.namespace("switch"), "-s", "-j", "link", "show", "dev", node)
        counted = json.loads(shown)[0]["stats64"]
        return Bytes(received=counted["tx"]["bytes"], sent=counted["rx"]["bytes"])

    def limit(self, node: str, rate: str | None) -> None:
        """Limit a host's link in each direction, as ``400mbit``; None lifts the limit."""
        for namespace, device in ((self.namespace(node), "eth0"), (self.namespace("switch"), node)):
            place = ["tc", "-n", namespace, "qdisc", "replace" if rate else "del", "dev", device, "root"]
            _run([*place, *(["tbf", "rate", rate, "burst", "512kb", "latency", "100ms"] if rate else [])])

    def cut(self, node: str) -> None:
        """Let a host vanish: its link carries nothing, and nobody is told."""
        _ip("-n", self.namespace("switch"), "link", "set", node, "down")

    def mend(self, node: str) -> None:
        """Undo `cut`."""
        _ip("-n", self.namespace("switch"), "link", "set", node, "up")

    def listening(self, node: str) -> set[tuple[str, int]]:
        """Return address and port of every socket that listens on a host, TCP or UDP."""
        shown = _run(["ip", "netns", "exec", self.namespace(node), "ss", "-H", "-l", "-n", "-t", "-u"])
        places = [line.split()[4].rpartition(":") for line in shown.splitlines()]
        return {(host.strip("[]"), int(port)) for host, _, port in places}

    def close(self) -> None:
        """End all processes in the namespaces, then remove these."""
        for node in (*self._names, "switch"):
            _remove(self.namespace(node))
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def _make(self) -> None:
        switch = self.namespace("switch")
        _ip("netns", "add", switch)
        _quiet(switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for node in self._names:
            namespace = self.namespace(node)
            _ip("netns", "add", namespace)
            _quiet(namespace)
            _ip("link", "add", "eth0", "netns", namespace, "type", "veth", "peer", "name", node, "netns", switch)
            _ip("-n", switch, "link", "set", node, "master", "bridge", "up")
            _ip("-n", namespace, "link", "set", "lo", "up")
            _ip("-n", namespace, "address", "add", f"{self.address(node)}/24", "dev", "eth0")
            _ip("-n", namespace, "link", "set", "eth0", "up")

    @staticmethod
    def _remove_orphans() -> None:
        """Remove what processes left that were killed themselves."""
        for name in _namespaces():
            owner = name.split("-")[1] if name.startswith(f"{_PREFIX}-") else ""
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                _remove(name)


def missing() -> str:
    """Return why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"{_PREFIX}-{os.getpid()}-probe"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
            _run(["tc", "-n", name, "qdisc", "add", "dev", "one", "root", "tbf", *_LIMIT])
            _run(["ss", "-V"])
        finally:
            _remove(name)
    except (OSError, RuntimeError) as error:
        return f"no network namespaces with veth, tc and ss here: {error}"
    return ""


_LIMIT = ("rate", "1mbit", "burst", "512kb", "latency", "100ms")


def _quiet(namespace: str) -> None:
    """Keep IPv6 from announcing itself on links whose bytes are counted."""
    with contextlib.suppress(RuntimeError):  # a kernel without IPv6
        setting = (
            "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6"
        )
        _run(["ip", "netns", "exec", namespace, "sh", "-c", setting])


def _namespaces() -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return [entry.name for entry in Path("/run/netns").iterdir()]
    return []


def _remove(namespace: str) -> None:
    """End what runs in a namespace and remove it; harmless if there is none."""
    if namespace not in _namespaces():
        return
    for _ in range(50):  # a process that is ending may have started another
        pids = [int(pid) for pid in _ip("netns", "pids", namespace).split() if int(pid) != os.getpid()]
        if not pids:
            break
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    _ip("netns", "del", namespace)


def _ip(*arguments: str) -> str:
    return _run(["ip", *arguments])


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _check(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with Hosts(*sys.argv[1:]) as up, contextlib.suppress(KeyboardInterrupt):
        for name in sys.argv[1:]:
            print(f"{name}: {up.address(name)}, ip netns exec {up.namespace(name)} …", flush=True)
        signal.pause()
