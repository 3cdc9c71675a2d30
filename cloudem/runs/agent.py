"""The node agent: what runs on every rented machine, starts what belongs there, and ends the machine in time.

A machine is told at its start what it is (`cloudem.cloud.nodes.Request.start`). The head runs the scheduler and the
controller of a run, every other node a worker. Each watches for itself, and needs nobody's help to end: the deadline,
the notice that the machine is about to be taken, the disappearance of its scheduler or controller, SIGTERM. What has to
do with stores, which may hang, runs in threads; the watch itself is a loop that waits for nothing but a local metadata
service. See docs/nodes.md.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.metadata import Metadata
from cloudem.cloud.nodes import HEAD, InstanceType
from cloudem.cloud.provider import Provider
from cloudem.cloud.providers import provider_of
from cloudem.errors import CloudemError, ParameterError, ProviderError
from cloudem.runs.supervision import Child, Notice, Notices, Repeated, Watch, say, utc

NODE = "CLOUDEM_NODE"
"""Environment variable in which the controller finds the start document, with scheduler and certificates' folder."""

LOOK_S = {"local": 2.0, "aws": 5.0}
"""How often the metadata service is asked, seconds: a notice comes 120 s ahead."""

PATIENCE_S = 120.0
"""How long a worker looks for a scheduler that does not answer, before its machine ends."""

HEAD_S = 300.0
"""How long a worker waits for the head to say where the scheduler is."""

SILENCE_S = 180.0
"""How long the controller may give no sign of life; after half of it, it is started again."""

ALONE_S = SILENCE_S + PATIENCE_S + 60.0
"""How long after the last sign of life of its controller the last node begins to shut down, at most: the head notices
that (looking every 10 s) and ends what it runs, then workers lose patience and do the same."""

MARGIN_S = 10.0
"""Time left, of the notice, for the worker and its machine to end once the worker holds nothing any more."""

PORT, PAGES = 8786, 8787

CLUSTER = "cluster"
"""``mode`` of nodes of a cluster that somebody's Python process keeps: there is no project, and no controller."""

SCHEDULER = "scheduler"
"""Secret in which the head of such a cluster tells where its scheduler is, if that is not at its usual port."""

CLOUDEM = (sys.executable, "-m", "cloudem")

CONTROLLER = (sys.executable, "-m", "cloudem.runs.controller.loop")


@dataclass(frozen=True)
class Start:
    """What this node was told, and what it found out about itself.

    Attributes
    ----------
    document
        The start document as it came.
    id, address
        This machine's, from its provider.
    certificates_folder
        Where the cluster's certificates are, private and temporary.
    """

    document: Mapping[str, Any]
    id: str
    address: str
    certificates_folder: Path

    def __getattr__(self, name: str) -> Any:
        try:
            return self.document[name]
        except KeyError:
            raise ParameterError(f"this node's start document has no {name!r}; launch it with this version") from None

    @property
    def run_url(self) -> str:
        """Where the run keeps its records."""
        return f"{str(self.project).rstrip('/')}/runs/{self.run}"


def run_agent() -> int:
    """Be a node until its end; return the exit code of the process.

    The machine ends with it: where machines are processes because this one exits, elsewhere it is shut down.
    """
    watch, provider = Watch(), ""
    try:
        metadata, document = _told(watch)
        provider = str(document.get("provider", ""))
        os.environ.update({str(name): str(value) for name, value in document.get("environment", {}).items()})
        watch.until(float(document["deadline"]))
        with _place(metadata, document, watch) as start:
            say(f"{start.slot} of {start.cluster} at {start.address}, until {utc(start.deadline)}")
            kept = document.get("mode") == CLUSTER
            what = _worker if start.slot != HEAD else _kept_head if kept else _head
            why = what(start, metadata, watch)
        say(f"this machine shuts down: {why}")
        return 0
    except (CloudemError, KeyError, ValueError) as error:
        say(f"this machine shuts down: {type(error).__name__}: {error}")
        return 1
    finally:
        if provider == "aws":  # whose machines end for good, and cost nothing any more, when they shut down
            with contextlib.suppress(OSError):
                subprocess.run(["systemctl", "poweroff"], check=False)  # noqa: S607  wherever the image has it


def _told(watch: Watch) -> tuple[Metadata, dict[str, Any]]:
    """Return what this machine was told; the service may need a while after boot."""
    metadata, limit = Metadata(), time.monotonic() + 60.0
    while True:
        try:
            return metadata, metadata.start()
        except ProviderError:
            if time.monotonic() > limit or watch.over():
                raise


@contextlib.contextmanager
def _place(metadata: Metadata, document: Mapping[str, Any], watch: Watch) -> Iterator[Start]:
    """Make a private folder with the cluster's certificates; it goes when the node ends."""
    folder = Path(tempfile.mkdtemp(prefix="cloudem-node-"))
    try:
        start = Start(document, metadata.instance_id(), metadata.address(), folder / "certificates")
        value, limit = None, time.monotonic() + 60.0
        while value is None:
            try:
                value = _provider(start).secret(start.cluster, start.certificates)
            except ProviderError:
                if time.monotonic() > limit:
                    raise
            if value is None and (time.monotonic() > limit or watch.over()):
                raise ProviderError(f"{start.cluster} has no secret {start.certificates}, so no certificates")
        certificates_from_secret(value, start.certificates_folder)
        yield start
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _head(start: Start, metadata: Metadata, watch: Watch) -> str:
    """Run scheduler and controller; return why that is over."""
    scheduler, address, pages = _scheduler(start)
    given = {**start.document, "scheduler": address, "certificates_folder": str(start.certificates_folder)}
    given |= {"node": start.id, "address": start.address}
    controller = Child("controller", [*CONTROLLER], {NODE: json.dumps(given)})

    try:
        scheduler.start()
        from cloudem.io.storage.location import join, read_bytes, write_bytes  # while the scheduler imports

        def publish() -> str:
            where = {"scheduler": address, "pages": pages, "at": time.time()}
            write_bytes(join(start.run_url, "head.json"), json.dumps(where).encode())
            return address

        published = Repeated(publish, 1.0, once=True)
        sign = Repeated(lambda: _field(read_bytes(join(start.run_url, "state.json")), "at"), 10.0)
        while not (why := watch.over()):
            scheduler.keep()
            silent = time.monotonic() - sign.changed
            if silent > SILENCE_S:
                return f"the controller gave no sign of life for {silent:.0f} s"
            if controller.starts == 0:
                if published.value:
                    controller.start()
                    sign.changed = time.monotonic()
                continue
            if controller.code == 0:
                return "the controller has finished"
            controller.keep()
            if silent > SILENCE_S / 2 and controller.starts == 1:
                say(f"the controller gave no sign of life for {silent:.0f} s")
                controller.end(1.0)
        return why
    finally:
        controller.end()
        scheduler.end()


def _kept_head(start: Start, metadata: Metadata, watch: Watch) -> str:
    """Run the scheduler of a cluster that somebody's process keeps; return why that is over."""
    scheduler, address, _ = _scheduler(start)
    try:
        scheduler.start()
        if not address.endswith(f":{PORT}"):
            _provider(start).put_secret(start.cluster, SCHEDULER, address.encode())
        while not (why := watch.over()):
            if scheduler.code is not None:
                return f"the scheduler ended with {scheduler.code}"
        return why
    finally:
        scheduler.end()


def _scheduler(start: Start) -> tuple[Child, str, str]:
    """Return the scheduler, not yet started, its address and that of its pages, empty if nobody asked for them.

    On the loopback other nodes may have the usual ports.
    """
    loopback = start.address.startswith("127.")
    port, pages = _free_ports(start.address, 2) if loopback else (PORT, PAGES)
    where = ["--host", start.address, "--port", str(port), "--certificates", str(start.certificates_folder)]
    # what anybody can read who reaches it: within this computer all may, elsewhere nobody but this machine itself
    host = start.address if start.provider == "local" else "127.0.0.1"
    asked = bool(start.document.get("dashboard"))
    if asked and importlib.util.find_spec("bokeh") is None:
        say("no Dask dashboard: Bokeh is not installed on this machine")  # no reason to end what is paid for
        asked = False
    if asked:
        where += ["--dashboard", "--dashboard-host", host, "--dashboard-port", str(pages)]
    child = Child("scheduler", [*CLOUDEM, "cluster", "scheduler", *where])
    return child, f"tls://{start.address}:{port}", f"http://{host}:{pages}/status" if asked else ""


def _worker(start: Start, metadata: Metadata, watch: Watch) -> str:
    """Run the workers, one for each GPU; return why that is over."""
    from cloudem.io.storage.location import join, read_bytes

    def told() -> Any:
        known = start.document.get("scheduler")
        return known or _field(read_bytes(join(start.run_url, "head.json")), "scheduler")

    head = Repeated(told, 0.5)
    limit = time.monotonic() + HEAD_S
    while not head.value:
        if why := watch.over():
            return why
        if time.monotonic() > limit:
            return f"the head gave no sign of life for {HEAD_S:.0f} s"
    scheduler, folder = str(head.value), start.certificates_folder.parent / start.id
    certificates = ("--certificates", str(start.certificates_folder))
    options: tuple[str, ...] = ("--host", start.address, "--local-folder", str(folder), "--patience-s", str(PATIENCE_S))
    options += ("--node", start.id)
    options += worker_options(start.document, _kind(metadata), os.environ.get("CLOUDEM_NODE_VCPUS"))
    worker = Child("worker", [*CLOUDEM, "cluster", "worker", scheduler, *certificates, *options])
    notices, hint_heeded = Notices(metadata, LOOK_S.get(start.provider, 5.0)), False
    try:
        worker.start()
        while not (why := watch.over()):
            if worker.code is not None:
                return f"the worker ended with {worker.code}"
            notice = notices.look()
            if notice is None or (hint_heeded and not notice.certain):
                continue
            hint_heeded = True
            _tell(start, notice)
            if _leave(start, watch, scheduler, folder, notice):
                return f"{notice.text}, and its worker has left"
            if notice.certain:
                return _work_on(worker, watch)
        return why
    finally:
        worker.end()


def worker_options(document: Mapping[str, Any], kind: InstanceType | None, vcpus: str | None) -> tuple[str, ...]:
    """Return which GPUs and how many threads a node's workers have, as ``cloudem cluster worker`` takes it.

    Parameters
    ----------
    document
        The start document, in which the planner says what memory allows: ``gpus`` is ``none``, ``all`` or how many,
        ``tasks`` how many threads. Without it all is used that is found.
    kind
        The machine's type; None where it is not known. One that lacks a planned GPU is of no use, and ends.
    vcpus
        Hardware threads of a machine that is a process, and so has fewer than its computer.
    """
    planned, gpus = document.get("gpus"), "auto"
    if planned == "none" or (kind is not None and not kind.gpus):
        gpus = "none"
    elif planned == "all":
        gpus = str(kind.gpus) if kind is not None else "auto"
    elif planned is not None:
        gpus = str(min(int(planned), kind.gpus) if kind is not None else planned)
    limits = [int(each) for each in (vcpus, document.get("tasks")) if each]
    return ("--gpus", gpus, *(("--threads", str(min(limits))) if limits else ()))


def _kind(metadata: Metadata) -> InstanceType | None:
    """Return the type of this machine, if the catalogue knows it."""
    try:
        return Catalogue.shipped().types.get(metadata.instance_type())
    except ProviderError:
        return None


def _tell(start: Start, notice: Notice) -> None:
    """Tell the controller, so that it sees to another node before this one is gone."""
    from cloudem.io.storage.location import join, write_bytes

    if "run" in start.document:
        told = json.dumps({"taken": time.time() + notice.left_s}).encode()
        Repeated(lambda: write_bytes(join(start.run_url, "notices", f"{start.id}.json"), told), 1.0, once=True)


def _leave(start: Start, watch: Watch, scheduler: str, folder: Path, notice: Notice) -> bool:
    """Move what the worker holds to others within the notice; say whether it has left."""
    say(f"{notice.text}: its worker is leaving")
    limit_s = max(notice.left_s - MARGIN_S, 1.0)
    argv = [
        sys.executable,
        "-m",
        "cloudem.execution.dask.draining",
        scheduler,
        str(start.certificates_folder),
        str(folder),
    ]
    retiring = Child("retiring", [*argv, f"{limit_s:.1f}"])
    retiring.start()
    end = time.monotonic() + limit_s + MARGIN_S / 3
    try:
        while retiring.running and time.monotonic() < end and not watch.over():
            pass
    finally:
        retiring.end(1.0)
    return retiring.code == 0


def _work_on(worker: Child, watch: Watch) -> str:
    """Wait for the end, which is near; the worker may still be of use."""
    say("the worker could not leave in time; it works until this machine is reclaimed")
    while not (why := watch.over()) and worker.running:
        pass
    return why or f"the worker ended with {worker.code}"


def certificates_as_secret(folder: str | Path) -> bytes:
    """Return the certificates in a folder as the secret that nodes read them from."""
    from cloudem.execution.dask.security import FILES

    return json.dumps({name: (Path(folder) / name).read_text() for name in FILES}).encode()


def certificates_from_secret(value: bytes, folder: Path) -> None:
    """Write the certificates of a secret into a new folder that its owner alone can read.

    Raises
    ------
    ProviderError
        The secret holds no certificates; what it holds is not shown.
    """
    from cloudem.execution.dask.security import FILES

    try:
        contents = json.loads(value)
        texts = {name: str(contents[name]).encode() for name in FILES}
    except Exception:  # what a parser says may quote the key
        raise ProviderError(f"the secret of the certificates does not hold {', '.join(FILES)}") from None
    folder.mkdir(mode=0o700, parents=True)
    for name, text in texts.items():
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
            file.write(text)


def _provider(start: Start) -> Provider:
    region = start.document.get("region") or os.environ.get("AWS_REGION") or start.provider
    return provider_of(start.provider, str(region))


def _free_ports(host: str, count: int) -> list[int]:
    """Return ports of an address that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server((host, 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


def _field(raw: bytes | None, name: str) -> Any:
    """Return what a record of the run says; None where it cannot be read, so that it is asked for again."""
    try:
        return None if not raw else json.loads(raw).get(name)
    except (ValueError, AttributeError, RecursionError):
        return None


if __name__ == "__main__":
    sys.exit(run_agent())
