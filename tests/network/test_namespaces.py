"""The hosts themselves: what they count, how fast they are, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.network.namespaces import Hosts

SENT = 4_000_000


def send(hosts: Hosts, source: str, sink: str) -> float:
    """Send some bytes from one host to another and return the seconds that it took."""
    with hosts.inside(sink):
        server = socket.create_server((hosts.address(sink), 5000))
    with server, hosts.inside(source):
        client = socket.create_connection((hosts.address(sink), 5000))
        accepted, _ = server.accept()
        with client, accepted:
            start = time.monotonic()
            sender = threading.Thread(target=client.sendall, args=(bytes(SENT),))
            sender.start()
            received = 0
            while received < SENT:
                received += len(accepted.recv(1 << 20))
            sender.join()
            return time.monotonic() - start


def test_links_count_what_is_sent(hosts: Hosts) -> None:
    before = {node: hosts.bytes(node) for node in ("w1", "w2", "w3")}
    send(hosts, "w1", "w2")
    moved = {
        node: (hosts.bytes(node).received - then.received, hosts.bytes(node).sent - then.sent)
        for node, then in before.items()
    }
    # headers, and on a busy machine a few packets again
    assert moved["w1"][1] == pytest.approx(SENT, rel=0.03)
    assert moved["w2"][0] == pytest.approx(SENT, rel=0.03)
    assert sum(moved["w3"]) < 2_000  # who has which address is asked of all


def test_a_limit_holds_and_can_be_lifted(hosts: Hosts) -> None:
    hosts.limit("w2", "40mbit")
    allowed_s = (SENT - 512_000) * 8 / 40e6  # the first 512 kB pass at once
    assert send(hosts, "w1", "w2") > 0.9 * allowed_s
    hosts.limit("w2", None)
    assert send(hosts, "w1", "w2") < 0.5 * allowed_s


def test_a_host_that_is_cut_off_is_not_reached_until_it_is_mended(hosts: Hosts) -> None:
    hosts.cut("w2")
    with hosts.inside("w1"), pytest.raises(OSError, match=r"timed out|No route"):
        socket.create_connection((hosts.address("w2"), 5000), timeout=0.5)
    hosts.mend("w2")
    assert send(hosts, "w1", "w2") > 0


@pytest.mark.usefixtures("_namespaces")
def test_nothing_stays_behind_after_a_failure() -> None:
    with contextlib.suppress(KeyboardInterrupt), Hosts("one") as hosts:
        process = hosts.run("one", ["sleep", "60"])
        assert Path("/run/netns", hosts.namespace("one")).exists()
        raise KeyboardInterrupt
    assert process.poll() is not None
    assert not Path("/run/netns", hosts.namespace("one")).exists()
    assert not Path("/run/netns", hosts.namespace("switch")).exists()
