"""Machines of one computer with addresses of their own: network namespaces on a switch, one network for each cluster.

A cluster's network is 10.97.N.0/24. The switch and every machine have a namespace each, named
``cloudem.<key>.<N>.switch`` and ``cloudem.<key>.<N>.<last number of the address>``: what exists is what
``ip netns`` lists, and nothing else is remembered. The computer itself is 10.97.N.1, through a link that goes with
the switch. Machines reach each other and the computer, nothing beyond. Needs root and iproute2 (Linux).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from cloudem.errors import CapacityError, ProviderError

PLACE = Path("/run/netns")
_LOCK = Path("/run/cloudem-networks.lock")
_NAME = re.compile(r"cloudem\.(?P<key>[0-9a-f]{10})\.(?P<network>\d+)\.(?P<host>\d+|switch)")
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h


def why_impossible_here() -> str:
    """Return why there can be no namespaces here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2 (`ip`)"
    return ""


def key_of(folder: Path, cluster: str) -> str:
    """Return what names of a cluster's namespaces have in common."""
    return hashlib.sha256(f"{folder.resolve()}\n{cluster}".encode()).hexdigest()[:10]


def existing(key: str) -> list[str]:
    """Return the namespaces of a cluster, the switch last."""
    found = [each for each in _all() if each["key"] == key]
    return [each[0] for each in sorted(found, key=lambda each: (each["host"] == "switch", each[0]))]


def computer(key: str) -> str:
    """Return the address under which a cluster's machines reach this computer; empty if there is no such network."""
    switch = _switch(key)
    return "" if switch is None else f"10.97.{switch['network']}.1"


def make_switch(key: str) -> None:
    """Make a cluster's network, unless there is one.

    Raises
    ------
    ProviderError
        The kernel refuses.
    """
    with _alone():
        if _switch(key) is not None:
            return
        taken = {int(each["network"]) for each in _all()}
        number = next((number for number in range(1, 255) if number not in taken), None)
        if number is None:
            raise ProviderError("254 local clusters exist already; `cloudem cluster sweep` removes what is left over")
        switch, computer = f"cloudem.{key}.{number}.switch", f"cloudem{number}"
        ip("netns", "add", switch)
        try:
            ip("-n", switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            ip("link", "add", computer, "type", "veth", "peer", "name", "computer", "netns", switch)
            ip("-n", switch, "link", "set", "computer", "master", "bridge", "up")
            ip("address", "add", f"10.97.{number}.1/24", "dev", computer)
            ip("link", "set", computer, "up")
        except BaseException:
            with contextlib.suppress(ProviderError):
                ip("netns", "del", switch)
            raise


def add_machine(key: str) -> tuple[str, str]:
    """Make one more machine's namespace; return its name and its address.

    Raises
    ------
    CapacityError
        A network has 253 machines.
    ProviderError
        The kernel refuses, or there is no such network.
    """
    with _alone():
        switch = _switch(key)
        if switch is None:
            raise ProviderError("the cluster's network is gone; prepare the cluster again")
        taken = {each["host"] for each in _all() if each["key"] == key}
        host = next((host for host in range(2, 255) if str(host) not in taken), None)
        if host is None:
            raise CapacityError("a local cluster has at most 253 nodes in namespaces")
        name, address = f"cloudem.{key}.{switch['network']}.{host}", f"10.97.{switch['network']}.{host}"
        ip("netns", "add", name)
        try:
            ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", f"n{host}", "netns", switch[0])
            ip("-n", switch[0], "link", "set", f"n{host}", "master", "bridge", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        except BaseException:
            with contextlib.suppress(ProviderError):
                ip("netns", "del", name)
            raise
    return name, address


def enter(namespace: str) -> None:
    """Let this thread, and what it starts from now on, be in a namespace."""
    library = ctypes.CDLL(None, use_errno=True)
    with (PLACE / namespace).open() as there:
        if library.setns(there.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def end_all(namespace: str) -> None:
    """Kill whatever runs in a namespace, but this process."""
    for _ in range(100):  # what is ending may have started something
        pids = [pid for pid in _inside(namespace) if pid != os.getpid()]
        if not pids:
            return
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def remove(namespace: str) -> None:
    """Kill what runs in a namespace, but this process, and remove it; one that is gone is no error."""
    if _NAME.fullmatch(namespace) and (PLACE / namespace).exists():
        try:
            end_all(namespace)
            with contextlib.suppress(ProviderError):  # now, and not whenever the kernel clears up: the name is needed
                ip("-n", namespace, "link", "del", "computer" if namespace.endswith(".switch") else "eth0")
            ip("netns", "del", namespace)
        except (ProviderError, FileNotFoundError):
            if (PLACE / namespace).exists():
                raise


def remove_if_empty(namespace: str) -> None:
    """Remove the network that a machine's namespace belonged to, if it was the last."""
    with _alone():
        found = _NAME.fullmatch(namespace)
        left = existing(found["key"]) if found else []
        if len(left) == 1 and left[0].endswith(".switch"):
            remove(left[0])


def ip(*arguments: str) -> str:
    """Run iproute2 and return what it prints.

    Raises
    ------
    ProviderError
        It failed.
    """
    try:
        done = subprocess.run(  # noqa: S603  arguments made here
            ["ip", *arguments],  # noqa: S607  wherever it is installed
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ProviderError(f"ip {' '.join(arguments)}: {error}") from None
    if done.returncode:
        raise ProviderError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _inside(namespace: str) -> list[int]:
    """Return the processes in a namespace; without ``ip``, which would be one of them."""
    network, pids = (PLACE / namespace).stat().st_ino, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (process / "ns" / "net").stat().st_ino == network:
                pids.append(int(process.name))
    return pids


def _all() -> list[re.Match[str]]:
    if not PLACE.is_dir():
        return []
    return [found for path in PLACE.iterdir() if (found := _NAME.fullmatch(path.name))]


def _switch(key: str) -> re.Match[str] | None:
    return next((each for each in _all() if each["key"] == key and each["host"] == "switch"), None)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Let nobody else on this computer choose numbers."""
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
