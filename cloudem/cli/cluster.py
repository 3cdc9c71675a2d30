"""``cloudem cluster``: certificates, scheduler and workers of a cluster of several machines."""

from __future__ import annotations

import time
from pathlib import Path
from typing import ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.errors import ParameterError
from cloudem.jobs.parameters import parameter
from cloudem.text import moment

TASKS = ("cloudem.jobs.refine3d.run", "cloudem.jobs.reconstruct.run")
"""What a worker's tasks are made of: seconds to import, so that is done while it waits for work."""

SUMMARY = "Manage clusters of several machines, rented or your own."


class Certificates(Command):
    """Everything that a cluster's members need to know each other."""

    name: ClassVar[str] = "cluster certificates"
    summary: ClassVar[str] = "Create the certificates by which members of a cluster identify each other."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cluster certificates --out certs",
        "scp -pr certs node1:    # copy to every machine of the cluster, and nowhere else",
    )

    out: str = parameter(meaning="folder for the certificates and the key")
    days: int = parameter(365, meaning="days until the certificates expire", ge=1, le=3650)

    def run(self) -> None:
        """Write the folder."""
        from cloudem.execution.dask.security import make_certificates

        end = make_certificates(self.out, self.days)
        click.echo(
            f"{self.out}: certificates valid until {end:%Y-%m-%d}; copy the folder to every machine of the cluster, and"
            " nowhere else: whoever has it can run code on all of them"
        )


class Scheduler(Command):
    """The scheduler of a cluster."""

    name: ClassVar[str] = "cluster scheduler"
    summary: ClassVar[str] = "Run the scheduler of a cluster until Ctrl-C."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cluster scheduler --host 10.99.0.1 --certificates certs",
        "cloudem cluster scheduler --host 10.99.0.1 --certificates certs --dashboard",
        "cloudem cluster scheduler --insecure        # this machine alone; anybody on it can run code as you",
    )

    host: str = parameter("127.0.0.1", meaning="address to listen on; 0.0.0.0: all addresses of this machine")
    port: int = parameter(8786, meaning="port to listen on", ge=1, le=65535)
    certificates: str | None = parameter(
        None, meaning="folder with the certificates; by default, $CLOUDEM_CERTIFICATES"
    )
    insecure: bool = parameter(
        False, meaning="do without certificates on 127.0.0.1: every user of this machine can then run code as you"
    )
    dashboard: bool = parameter(
        False, meaning="serve the Dask dashboard and /metrics, without encryption or access control"
    )
    dashboard_host: str = parameter("127.0.0.1", meaning="address of the dashboard")
    dashboard_port: int = parameter(8787, meaning="port of the dashboard", ge=1, le=65535)
    dashboard_origin: tuple[str, ...] = parameter(
        (), meaning="HOST:PORT at which a browser sees the dashboard through a tunnel or proxy; repeat for several"
    )

    def run(self) -> None:
        """Listen until told to stop."""
        from cloudem.execution.dask.cluster import run_scheduler
        from cloudem.execution.dask.security import security_to_listen
        from cloudem.io.storage.lease import user

        security = security_to_listen(self.host, self.certificates, insecure=self.insecure)
        if security is None:
            _say(
                f"WARNING: no certificates: every user of this machine can run code as {user()}, who starts this"
                " scheduler, and as whoever starts its workers and jobs"
            )
        pages = (self.dashboard_host, self.dashboard_port) if self.dashboard else None
        run_scheduler(self.host, self.port, security, pages=pages, origins=self.dashboard_origin, say=_say)


class Worker(Command):
    """The workers of one machine."""

    name: ClassVar[str] = "cluster worker"
    summary: ClassVar[str] = "Run workers of a cluster on this machine until Ctrl-C, or until the scheduler stops."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cluster worker tls://10.99.0.1:8786 --certificates certs",
        "cloudem cluster worker tls://10.99.0.1:8786 --certificates certs --host 10.99.0.2 --workers 2 --threads 8",
        "cloudem cluster worker tls://10.99.0.1:8786 --certificates certs --gpus 4     # one worker on each of 4 GPUs",
        "cloudem cluster worker tcp://127.0.0.1:8786     # a scheduler on this machine that runs with --insecure",
    )

    scheduler: str = parameter(meaning="address of the scheduler, such as tls://host:8786", positional=True)
    certificates: str | None = parameter(
        None, meaning="folder with the certificates; by default, $CLOUDEM_CERTIFICATES"
    )
    host: str | None = parameter(None, meaning="address to listen on; by default, the one that reaches the scheduler")
    gpus: str = parameter("auto", meaning="GPUs to use, with one worker each: auto (all), none, or a number")
    workers: int | None = parameter(
        None, meaning="number of worker processes if no GPUs are used; by default, one", ge=1
    )
    threads: int | None = parameter(
        None, meaning="parallel tasks per worker; by default, its share of the cores, or one on a GPU", ge=1
    )
    node: str | None = parameter(None, meaning="name of this machine on the Dask dashboard; by default, its host name")
    local_folder: str | None = parameter(
        None, meaning="folder for the workers' temporary files; by default, in the system's temporary folder"
    )
    metrics_port: int | None = parameter(
        None, meaning="port for /metrics of the first worker; further workers use the ports above it", ge=1, le=65535
    )
    patience_s: float = parameter(300.0, meaning="how long to wait for a scheduler that does not answer", ge=0)

    def run(self) -> None:
        """Work until told to stop."""
        from cloudem.execution.dask.cluster import run_workers
        from cloudem.execution.dask.security import security_for
        from cloudem.io.storage.private import private_folder

        scheme, separator, _ = self.scheduler.partition("://")
        if not separator or scheme not in ("tls", "tcp"):
            raise ParameterError(f"SCHEDULER: got {self.scheduler!r}, needs an address such as tls://10.99.0.1:8786")
        if self.local_folder is not None:
            private_folder(Path(self.local_folder))
        visible, threads, cores = self._layout()
        run_workers(
            self.scheduler,
            security_for(self.scheduler, self.certificates),
            visible=visible,
            threads=threads,
            cores=cores,
            host=self.host,
            folder=self.local_folder,
            metrics_port=self.metrics_port,
            patience_s=self.patience_s,
            preload=TASKS,
            node=self.node,
            say=_say,
        )

    def _layout(self) -> tuple[list[str | None], int, int]:
        """Return which GPUs each worker sees (None for as it is), and of each the threads and the cores."""
        from cloudem.execution.dask.embedded import layout
        from cloudem.execution.gpus import choose_gpus

        gpus = choose_gpus(self.gpus, _say)
        if not gpus:
            workers, threads = layout(processes=True, workers=self.workers or 1, threads=self.threads)
            return [None if self.gpus == "auto" else ""] * workers, threads, threads
        if self.workers not in (None, len(gpus)):
            raise ParameterError(
                f"--workers: got {self.workers}, but each of the {len(gpus)} GPUs gets one worker; leave it out, or"
                " give --gpus none"
            )
        _, cores = layout(processes=True, workers=len(gpus))
        return [*gpus], self.threads or 1, cores


COMMANDS: dict[str, type[Command]] = {
    "certificates": Certificates,
    "scheduler": Scheduler,
    "worker": Worker,
}


def _say(line: str) -> None:
    click.echo(f"{moment(time.time(), seconds=True)} {line}")
