"""The process that plays one rented machine for the local provider: ``python -m cloudem.cloud.local.machine FOLDER``.

It serves the metadata service, runs the node agent in a session of its own, and ends everything when the agent exits,
when it is asked to, or when its time comes. All that is known of the machine lies in its folder, written by whoever is
named here; each file is whole or not there::

    lock                 held by whoever launches the machine, and then by the machine as long as it lives
    node.json            what was asked for and where it runs; by the launcher
    machine.json         process numbers; by the machine, as soon as the agent runs
    terminate            the machine is to end, in order; by anybody
    interruption.json    {"at": unix seconds}: when it is taken without asking; by anybody
    rebalance.json       {"at": unix seconds}: since when it is likely to be taken; by anybody
    ended.json           {"at", "why"}: all is over; by the machine, or by whoever finds it dead
    disk/                temporary files of the node; gone when it ends
    agent.log            what the agent, and all that it starts, says

Nobody has to be there for a machine to end: it outlives who launched it, and ends when its folder is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cloudem.cloud.local import namespaces
from cloudem.cloud.metadata import ENDPOINT, utc_text
from cloudem.errors import ProviderError, parsing
from cloudem.processes import ending_with_this

LOOK_S = 0.1
"""How often a machine looks whether its time has come, seconds."""

GRACE_S = 15.0
"""How long the agent may take to end what it started once it is asked to, seconds."""

LATE_S = 15.0
"""How long after its deadline the machine ends an agent that did not do so itself, seconds."""


def read(path: Path) -> dict[str, Any] | None:
    """Return what a file says; None where there is none."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    with parsing(f"{path} is damaged", "end the machine and delete its folder", ProviderError):
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
        return found


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there as a whole or not at all."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def lock(folder: Path, *, new: bool = False) -> int | None:
    """Take the lock of a machine's folder; None if somebody has it, so that the machine lives or is being launched."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if new else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def started(pid: int) -> str:
    """Return when a process was started, in the kernel's own words; empty if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def end_session(leader: int, since: str) -> None:
    """Kill every process of the session that a process led which was started then."""
    for _ in range(200):
        if started(leader) not in ("", since):
            return  # the number is another's, so that nobody of that session is left
        left = [pid for path in Path("/proc").glob("[0-9]*") if _session(pid := int(path.name)) == leader]
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def bury(folder: Path, why: str) -> None:
    """Clear away what a dead machine left, and note that it ended; the caller holds its lock."""
    node, known = read(folder / "node.json"), read(folder / "machine.json")
    if known is not None:
        end_session(known["agent"], known["agent_started"])
    if node is not None and node["namespace"]:
        namespaces.remove(node["namespace"])
    shutil.rmtree(folder / "disk", ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):  # the folder may be gone
        write(folder / "ended.json", {"at": time.time(), "why": why})


def _session(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if stat[0] == "Z" else int(stat[3])


class Machine:
    """One machine, from its start to its end.

    Parameters
    ----------
    folder
        Its folder, whose lock this process holds.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        node = read(folder / "node.json")
        if node is None:
            raise ProviderError(f"{folder} is no machine's folder")
        self._node = node
        self._asked = threading.Event()

    def run(self, ready: int) -> None:
        """Run the agent until it, or the machine's time, ends; close ``ready`` when it runs."""
        if self._node["namespace"]:
            namespaces.enter(self._node["namespace"])
        signal.signal(signal.SIGTERM, lambda *_: self._asked.set())
        with Service(self._folder, self._node) as service:
            agent = self._start(service.endpoint)
            write(
                self._folder / "machine.json",
                {"pid": os.getpid(), "agent": agent.pid, "agent_started": started(agent.pid), "at": time.time()},
            )
            os.write(ready, b"1")
            os.close(ready)
            why = self._watch(agent)
            since = started(agent.pid)
            agent.kill()
            end_session(agent.pid, since)
            agent.wait()
        bury(self._folder, why)
        if self._node["namespace"]:  # also where the folder is gone, with what is written there
            namespaces.remove(self._node["namespace"])
            if not self._folder.parents[1].exists():
                namespaces.remove_if_empty(self._node["namespace"])

    def _start(self, endpoint: str) -> subprocess.Popen[bytes]:
        disk = self._folder / "disk"
        disk.mkdir(exist_ok=True)
        private = ("CLOUDEM_NODE", "CLOUDEM_WEBHOOK", "CLOUDEM_WEBHOOK_FILE")
        environment = {name: value for name, value in os.environ.items() if name not in private}
        environment |= {
            ENDPOINT: endpoint,
            "CLOUDEM_LOCAL_CLOUD": str(self._folder.parents[3]),
            "CLOUDEM_NODE_VCPUS": str(self._node["vcpus"]),
            "TMPDIR": str(disk),
            "PYTHONUNBUFFERED": "1",
        }
        with (self._folder / "agent.log").open("ab") as log:
            return subprocess.Popen(  # noqa: S603  what the launcher was told to run
                ending_with_this(self._node["argv"]),  # a machine without power runs nothing
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=disk,
                start_new_session=True,
            )

    def _watch(self, agent: subprocess.Popen[bytes]) -> str:
        """Wait for the end; return why it came."""
        while agent.poll() is None:
            now = time.time()
            if not (self._folder / "node.json").exists():
                return "its folder is gone"
            taken = read(self._folder / "interruption.json")
            if taken is not None and now >= taken["at"]:
                return "interrupted"
            if now >= self._node["request"]["deadline"] + LATE_S:
                return "its deadline has passed"
            if self._asked.is_set() or (self._folder / "terminate").exists():
                agent.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.wait(GRACE_S)
                return "terminated"
            self._asked.wait(LOOK_S)
        return f"agent exited with {agent.returncode}"


class Service(ThreadingHTTPServer):
    """The metadata service of one machine, on a free port of the loopback; a context manager.

    Parameters
    ----------
    folder
        The machine's, where notices appear.
    node
        What its ``node.json`` says.
    """

    daemon_threads = True

    def __init__(self, folder: Path, node: Mapping[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder, self.node = folder, node
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.tokens: dict[str, float] = {}
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __exit__(self, *exception: object) -> None:
        self.shutdown()
        self.server_close()

    def find(self, path: str) -> str | None:
        """Return what there is under a path; None where there is nothing."""
        request, pool = self.node["request"], self.node["pool"]
        tags: dict[str, str] = self.node["tags"]
        known = {
            "user-data": request["start"],
            "meta-data/instance-id": self.node["id"],
            "meta-data/instance-type": pool[0],
            "meta-data/instance-life-cycle": pool[2],
            "meta-data/placement/availability-zone": pool[1],
            "meta-data/placement/region": "local",
            "meta-data/local-ipv4": self.node["address"],
            "meta-data/tags/instance": "\n".join(sorted(tags)),
            **{f"meta-data/tags/instance/{key}": value for key, value in tags.items()},
        }
        taken, likely = read(self.folder / "interruption.json"), read(self.folder / "rebalance.json")
        if taken is not None:
            notice = {"action": "terminate", "time": utc_text(taken["at"])}
            known["meta-data/spot/instance-action"] = json.dumps(notice)
        if likely is not None:
            known["meta-data/events/recommendations/rebalance"] = json.dumps({"noticeTime": utc_text(likely["at"])})
        return known.get(path)


class _Answer(BaseHTTPRequestHandler):
    """One answer of the service, by the rules of IMDSv2."""

    server: Service
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_PUT(self) -> None:
        life = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
        if self.path != "/latest/api/token":
            self._say(404)
        elif "X-Forwarded-For" in self.headers:
            self._say(403)
        elif not life.isdigit() or not 1 <= int(life) <= 21600:
            self._say(400)
        else:
            token = secrets.token_urlsafe(32)
            self.server.tokens[token] = time.monotonic() + int(life)
            self._say(200, token)

    def do_GET(self) -> None:
        token = self.headers.get("X-aws-ec2-metadata-token", "")
        if self.server.tokens.get(token, 0.0) < time.monotonic():
            self._say(401)
            return
        found = self.server.find(self.path.removeprefix("/latest/").rstrip("/"))
        self._say(404 if found is None else 200, found or "")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the agent asks every other second."""

    def _say(self, status: int, text: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(folder: Path) -> None:
    """Become a machine that nobody has to wait for; return in the process that was started once the agent runs."""
    waiting, ready = os.pipe()
    if os.fork():
        os.close(ready)
        sys.exit(0 if os.read(waiting, 1) else 1)
    os.close(waiting)
    Machine(folder).run(ready)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
