"""The local provider: machines that are processes end as machines do, whatever happens to whom."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.local import machine, namespaces
from cloudem.cloud.local import provider as local
from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.nodes import Node, Pool, Request
from cloudem.errors import CapacityError, ProviderError

SPOT = Pool("local.1", "local-a", "spot")

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=False)
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
"""An agent that cannot be asked to end, with a child; says both numbers."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a cloud whose nodes are ended afterwards, however the test went."""
    place = tmp_path / "cloud"
    yield place
    provider = LocalProvider(place)
    for cluster in {one.cluster for one in provider.resources()}:
        provider.release(cluster)
        assert provider.resources(cluster) == []


def cloud(folder: Path, *agent: str) -> LocalProvider:
    provider = LocalProvider(folder, namespaces=False, agent=agent or SLEEPER)
    provider.prepare("c", {"owner": "somebody"})
    return provider


def request(token: str = "t", **given: Any) -> Request:
    return Request(token, "c", "worker-0001", 1, (SPOT,), **{"deadline": time.time() + 600} | given)


def eventually(holds: Callable[[], bool], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.02)


def ended(provider: LocalProvider, node: Node) -> bool:
    return not next(one for one in provider.nodes("c") if one.id == node.id).alive


def why(provider: LocalProvider, node: Node) -> str:
    return str((machine.read(provider.folder / "clusters/c/nodes" / node.id / "ended.json") or {})["why"])


def pids(provider: LocalProvider, node: Node) -> list[int]:
    eventually(lambda: "\n" in provider.log(node.id))
    return [int(word) for word in provider.log(node.id).split()]


def gone(numbers: list[int]) -> bool:
    """Say whether all of these processes have ended, be it unnoticed by their parents."""

    def ended(number: int) -> bool:
        try:
            return bool(psutil.Process(number).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    return all(map(ended, numbers))


def known_pid(provider: LocalProvider, node: Node) -> int:
    return int((machine.read(provider.folder / "clusters/c/nodes" / node.id / "machine.json") or {})["pid"])


LAUNCH = """
import json, sys, time
from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.nodes import Pool, Request
provider = LocalProvider(sys.argv[1], namespaces=False, agent=json.loads(sys.argv[2]))
pools = (Pool("local.1", "local-a", "spot"),)
print(provider.launch(Request("race", "c", "head", 1, pools, time.time() + 600)).id, flush=True)
"""


def test_processes_that_launch_the_same_token_get_one_node_which_outlives_them(folder: Path) -> None:
    provider = cloud(folder)
    argv = [sys.executable, "-c", LAUNCH, str(folder), json.dumps(SLEEPER)]
    launching = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=30)[0].strip() for process in launching}
    (node,) = provider.nodes("c")
    assert said == {node.id}
    assert node.state == "running"
    assert provider.quotas()["standard", "spot"] == local.LIMITS["spot"] - 1


def test_a_node_that_was_never_started_has_ended(folder: Path) -> None:
    provider = cloud(folder)
    node = provider.launch(request())
    place = folder / "clusters/c/nodes" / node.id
    provider.kill(node.id)
    for name in ("ended.json", "machine.json"):  # as if its launcher had died after writing down what it wants
        (place / name).unlink()
    assert ended(provider, node)
    assert not provider.launch(request()).alive
    assert len(provider.nodes("c")) == 1


def test_what_a_machine_runs_dies_with_it(folder: Path) -> None:
    provider = cloud(folder, sys.executable, "-S", "-c", STUBBORN)
    node = provider.launch(request())
    running = pids(provider, node)
    os.kill(known_pid(provider, node), signal.SIGKILL)
    eventually(lambda: ended(provider, node))
    eventually(lambda: gone(running))
    assert why(provider, node) == "its machine died"


def test_a_node_is_taken_without_notice(folder: Path) -> None:
    provider = cloud(folder, sys.executable, "-S", "-c", STUBBORN)
    node = provider.launch(request())
    running = pids(provider, node)
    provider.kill(node.id)
    assert ended(provider, node)
    eventually(lambda: gone(running), 1.0)
    assert why(provider, node) == "killed"
    provider.kill(node.id)


def test_a_node_is_taken_when_the_notice_says(folder: Path) -> None:
    provider = cloud(folder, sys.executable, "-S", "-c", STUBBORN)
    node = provider.launch(request())
    running = pids(provider, node)
    began = time.time()
    provider.interrupt(node.id, 0.5)
    assert not ended(provider, node)
    eventually(lambda: ended(provider, node))
    (told,) = provider.nodes("c")
    assert told.ended is not None
    assert 0.5 <= told.ended - began < 3
    assert why(provider, node) == "interrupted"
    assert gone(running)
    assert not (folder / "clusters/c/nodes" / node.id / "disk").exists()


def test_an_agent_is_asked_before_its_machine_ends(folder: Path) -> None:
    polite = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(print('bye'))); print('hello', flush=True)"
    )
    provider = cloud(folder, sys.executable, "-S", "-c", f"{polite}; time.sleep(600)")
    node = provider.launch(request())
    eventually(lambda: "hello" in provider.log(node.id))
    provider.terminate([node.id, "local-unknown", "../../x"])
    eventually(lambda: ended(provider, node))
    assert provider.log(node.id) == "hello\nbye\n"
    assert why(provider, node) == "terminated"


def test_a_machine_ends_with_its_agent(folder: Path) -> None:
    provider = cloud(folder, sys.executable, "-S", "-c", "import os; os._exit(3)")
    node = provider.launch(request())
    eventually(lambda: ended(provider, node))
    assert why(provider, node) == "agent exited with 3"


def test_a_machine_ends_an_agent_that_overlooks_its_deadline(folder: Path) -> None:
    provider = cloud(folder)
    node = provider.launch(request(deadline=time.time() - machine.LATE_S + 0.3))
    eventually(lambda: ended(provider, node))
    assert why(provider, node) == "its deadline has passed"


def test_a_machine_whose_folder_is_gone_ends(folder: Path) -> None:
    provider = cloud(folder, sys.executable, "-S", "-c", STUBBORN)
    node = provider.launch(request())
    running = [*pids(provider, node), known_pid(provider, node)]
    shutil.rmtree(folder)
    eventually(lambda: gone(running))


def test_an_agent_that_cannot_be_started_is_an_error_and_no_node(folder: Path) -> None:
    provider = cloud(folder, "/no/such/program")
    with pytest.raises(ProviderError, match="did not start: FileNotFoundError") as caught:
        provider.launch(request())
    assert len(str(caught.value).splitlines()) == 1
    assert not [node for node in provider.nodes("c") if node.alive]


def test_a_cluster_is_prepared_first(folder: Path) -> None:
    provider = LocalProvider(folder, namespaces=False)
    with pytest.raises(ProviderError, match="prepare it first"):
        provider.launch(request())
    with pytest.raises(ProviderError, match="prepare it first"):
        provider.put_secret("c", "certificates", b"")
    assert provider.resources() == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 129])
def test_names_stay_in_their_folder(folder: Path, name: str) -> None:
    provider = cloud(folder)
    with pytest.raises(ProviderError, match="a name has letters"):
        provider.put_secret("c", name, b"")
    with pytest.raises(ProviderError, match="a name has letters"):
        provider.prepare(name, {})


def test_secrets_are_their_owners_alone(folder: Path) -> None:
    provider = cloud(folder)
    provider.put_secret("c", "certificates", b"key")
    place = folder / "clusters/c/secrets"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "certificates").stat().st_mode) == 0o600
    with pytest.raises(ProviderError, match="4,097 bytes, at most 4,096"):
        provider.put_secret("c", "certificates", b"x" * 4097)
    assert provider.secret("c", "certificates") == b"key"


def test_only_what_is_sold_can_be_had(folder: Path) -> None:
    provider = cloud(folder)
    for pool in (Pool("m7i.large", "local-a", "spot"), Pool("local.1", "local-z", "spot")):
        with pytest.raises(CapacityError, match=" ".join(pool)):
            provider.launch(Request("x", "c", "head", 1, (pool,), 0.0))


def test_the_catalogue_has_the_same_machines() -> None:
    catalogue = Catalogue.shipped()
    assert set(catalogue.zones("local")) == set(local.ZONES)
    for name, vcpus in local.VCPUS.items():
        assert catalogue.types[name].vcpus == vcpus
        price = catalogue.price(Pool(name, "local-a", "spot"))
        assert price is not None
        assert price.usd_per_hour == local.SPOT_USD[name]


def test_without_root_all_nodes_are_on_the_loopback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    provider = LocalProvider(folder, agent=SLEEPER)
    provider.prepare("c", {})
    assert provider.launch(request()).address == "127.0.0.1"
    assert provider.computer("c") == "127.0.0.1"
    with pytest.raises(ProviderError, match=r"need root; without them .*CLOUDEM_LOCAL_NAMESPACES=0"):
        LocalProvider(folder, namespaces=True).prepare("d", {})


def test_others_may_look_while_a_cluster_is_removed(folder: Path) -> None:
    provider, done, stumbled = cloud(folder), threading.Event(), []

    def look() -> None:
        other = LocalProvider(folder)
        while not done.is_set():
            try:
                other.resources()
                other.nodes("c")
                other.quotas()
            except Exception as error:
                stumbled.append(error)

    looking = [threading.Thread(target=look) for _ in range(2)]
    for thread in looking:
        thread.start()
    for turn in range(3):
        provider.prepare("c", {})
        nodes = [provider.launch(request(f"{turn}/{number}")) for number in range(3)]
        provider.kill(nodes[0].id)
        assert provider.release("c") == []
        assert provider.resources() == []
    done.set()
    for thread in looking:
        thread.join()
    assert stumbled == []
    assert sorted(path.name for path in folder.iterdir()) == ["clusters", "lock"]


def test_nodes_that_need_s3_are_on_the_loopback(folder: Path) -> None:
    """From a namespace only this computer is reached."""
    provider = LocalProvider(folder, agent=SLEEPER)
    provider.prepare("c", {"project": "s3://bucket/project"})
    assert provider.launch(request()).address == "127.0.0.1"


# --- With addresses of their own ------------------------------------------------------------------------------------

TALK = """
import os, sys, time, urllib.request
from pathlib import Path
from cloudem.cloud.metadata import Metadata
import http.server, threading
server = http.server.HTTPServer((Metadata().address(), 8000), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for address in (Metadata().start()["computer"], "10.97.{}.2:8000".format(Metadata().address().split(".")[2])):
    with urllib.request.urlopen(f"http://{address}/", timeout=5) as answer:
        print(answer.status, flush=True)
time.sleep(600)
"""


@pytest.fixture
def spread(folder: Path) -> LocalProvider:
    """A cloud whose nodes have addresses of their own."""
    if reason := namespaces.why_impossible_here():
        pytest.skip(reason)
    provider = LocalProvider(folder, namespaces=True, agent=SLEEPER)
    provider.prepare("c", {})
    return provider


class Silent(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_nodes_reach_each_other_and_this_computer(spread: LocalProvider, folder: Path) -> None:
    talking = LocalProvider(folder, agent=[sys.executable, "-c", TALK])
    with http.server.HTTPServer((spread.computer("c"), 0), Silent) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        start = json.dumps({"computer": f"{spread.computer('c')}:{server.server_port}"})
        nodes = [talking.launch(request(f"t{number}", start=start)) for number in range(2)]
        for node in nodes:
            eventually(lambda node=node: spread.log(node.id).count("200\n") == 2)  # type: ignore[misc]
        server.shutdown()
        serving.join()
    assert len({node.address for node in nodes}) == 2
    assert all(node.address.startswith("10.97.") for node in nodes)


def test_nothing_is_left_of_a_network(spread: LocalProvider) -> None:
    nodes = [spread.launch(request(f"t{number}")) for number in range(2)]
    names = [one.id for one in spread.resources("c") if one.kind == "namespace"]
    assert len(names) == 3
    spread.kill(nodes[0].id)
    switch = next(one for one in spread.resources("c") if one.id.endswith(".switch"))
    with pytest.raises(ProviderError, match="in use by nodes of c"):
        spread.remove(switch)
    again = spread.launch(request("t2"))
    assert again.address == nodes[0].address
    assert spread.release("c") == []
    assert not [name for name in names if (namespaces.PLACE / name).exists()]
    assert f"cloudem{names[0].split('.')[2]}@" not in namespaces.ip("-o", "link")
    assert spread.computer("c") == "127.0.0.1"


def test_a_network_goes_with_its_last_machine_where_the_folder_is_gone(spread: LocalProvider, folder: Path) -> None:
    spread.launch(request())
    names = namespaces.existing(namespaces.key_of(folder, "c"))
    assert len(names) == 2
    shutil.rmtree(folder)
    eventually(lambda: not any((namespaces.PLACE / name).exists() for name in names))


def test_what_runs_in_a_node_dies_with_it_whoever_its_parents_are(folder: Path) -> None:
    """A process that left the session of the agent is still in the node's namespace."""
    if reason := namespaces.why_impossible_here():
        pytest.skip(reason)
    script = STUBBORN.replace("start_new_session=False", "start_new_session=True")
    provider = LocalProvider(folder, namespaces=True, agent=[sys.executable, "-S", "-c", script])
    provider.prepare("c", {})
    node = provider.launch(request())
    running = pids(provider, node)
    os.kill(known_pid(provider, node), signal.SIGKILL)
    eventually(lambda: ended(provider, node))
    eventually(lambda: gone(running), 1.0)


LAUNCHER = """
import sys, time
from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.nodes import Pool, Request
provider = LocalProvider(agent=[sys.executable, "-c", "import time; time.sleep(600)"])
pools = (Pool("local.1", "local-a", "spot"),)
print(provider.launch(Request("second", "c", "worker-0001", 1, pools, time.time() + 600)).id, flush=True)
"""


def test_a_node_launches_nodes_that_outlive_it(spread: LocalProvider, folder: Path) -> None:
    head = LocalProvider(folder, agent=[sys.executable, "-c", LAUNCHER]).launch(request("first"))
    eventually(lambda: ended(spread, head), 20.0)
    assert why(spread, head) == "agent exited with 0"
    (worker,) = (node for node in spread.nodes("c") if node.alive)
    assert worker.id == spread.log(head.id).strip()
    assert worker.address.rpartition(".")[0] == head.address.rpartition(".")[0]
    assert worker.address != head.address
