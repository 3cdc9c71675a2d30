"""Scheduler and workers of a cluster of many machines, each run until it is told to stop.

Both listen on the addresses that were asked for and on nothing else. Each worker runs under a supervisor of its own
that starts it again when it dies; the scheduler has a worker that says nothing any more killed by its supervisor. A
worker that has lost its scheduler looks for it for a while, so that a scheduler that is started again finds its
workers, and then ends; a scheduler that is stopped, or that lets a worker go, ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NoReturn

import dask
from distributed import Nanny, Scheduler, SchedulerPlugin, Worker
from distributed.comm import CommClosedError
from distributed.comm.core import FatalCommClosedError
from distributed.core import Status, rpc
from distributed.http.routing import RoutingApplication
from distributed.system import MEMORY_LIMIT
from distributed.utils import get_ip
from tornado.httpserver import HTTPServer

from cloudem.errors import ParameterError, WorkerLostError
from cloudem.execution.dask.configuration import CONFIGURATION, private_scratch
from cloudem.execution.dask.security import host_of, refusal_of
from cloudem.execution.gpus import VISIBLE
from cloudem.execution.threads import CHILD_ENVIRONMENT, CORES
from cloudem.interrupts import keep_from_children

Say = Callable[[str], None]

START_S = 60.0
"""How long a worker process may take to start."""

STOP_S = 10.0
"""How long all may take to stop after a signal; what still runs then is left behind."""

AGAIN_S = 1.0
"""Pause between two attempts to reach a scheduler."""

STOPPED_BY_SCHEDULER = ("scheduler-close", "scheduler-close-worker", "scheduler-remove-worker")
"""What Dask says to a worker that is to end for good; whatever else ends it is a connection that was lost."""


def run_scheduler(
    host: str,
    port: int,
    security: Any | None,
    *,
    pages: tuple[str, int] | None = None,
    origins: Sequence[str] = (),
    say: Say = print,
) -> None:
    """Run a scheduler until SIGTERM, Ctrl-C or a client stops it.

    Parameters
    ----------
    host, port
        Where it listens.
    security
        A ``distributed.Security``; None listens without encryption.
    pages
        Host and port of Dask's pages, which are neither encrypted nor protected; None serves none.
    origins
        Whose pages in a browser may read those, beside their own (`cloudem.execution.dask.pages`).
    say
        Is told in one line what happens.

    Raises
    ------
    ParameterError
        If it cannot listen there, or what draws the pages is missing.
    """
    plugins: list[Any] = [_Doorman(say)]
    if pages is not None:
        from cloudem.execution.dask.pages import DaskPages, check_bokeh

        check_bokeh()
        check_free(*pages)
        plugins.append(DaskPages(origins))
    check_free(host, port)
    _allow_many_connections()
    with _configured():
        asyncio.run(_scheduler(host, port, security, pages, plugins, say))


def run_workers(
    scheduler: str,
    security: Any | None,
    *,
    visible: Sequence[str | None],
    threads: int,
    cores: int,
    host: str | None = None,
    folder: str | None = None,
    metrics_port: int | None = None,
    patience_s: float = 300.0,
    preload: Sequence[str] = (),
    node: str | None = None,
    say: Say = print,
) -> None:
    """Run worker processes until SIGTERM, Ctrl-C or their scheduler stops them.

    Parameters
    ----------
    scheduler
        Address of the scheduler.
    security
        A ``distributed.Security``; None is for a scheduler without encryption.
    visible
        For each worker process the GPUs that it sees (`cloudem.execution.gpus`), the first of which it uses: "" for
        none, None for all that this process sees.
    threads, cores
        Of each: tasks at the same time, and cores that they have together.
    host
        Address on which they listen; by default the one from which the scheduler is reached.
    folder
        Where workers keep files while they run, a folder that nobody else can write to; by default a new one that is
        removed in the end.
    metrics_port
        Port of the first worker's ``/metrics`` for Prometheus, the next ones count up; None serves none.
    patience_s
        How long they look for a scheduler that does not answer, seconds.
    preload
        Modules that each worker imports when it starts, so that its first task need not.
    node
        What this machine is called on Dask's pages; by default its host name.
    say
        Is told in one line what happens.

    Raises
    ------
    ParameterError
        If the addresses or certificates do not fit.
    WorkerLostError
        If the scheduler was not found for that long.
    """
    host = host or get_ip(host_of(scheduler))
    check_free(host, 0)
    count = len(visible)
    ports = [None] * count if metrics_port is None else list(range(metrics_port, metrics_port + count))
    for port in ports:
        if port is not None:
            check_free(host, port)
    _allow_many_connections()
    with _configured(), contextlib.ExitStack() as stack:
        place = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="cloudem-worker-"))
        options = {
            "security": security,
            "host": host,
            "nthreads": threads,
            "resources": {CORES: cores},
            "memory_limit": MEMORY_LIMIT // count,  # for Dask's pages: nothing is done when it is reached
            "local_directory": place,
            "preload": list(preload),
        }
        names = worker_names(node or socket.gethostname(), visible)
        keep = [
            _keep_worker(scheduler, options | {"name": name}, seen, port, patience_s, say)
            for name, seen, port in zip(names, visible, ports, strict=True)
        ]
        keep_from_children()
        asyncio.run(_until_signal(keep, say, "worker"))


def worker_names(node: str, visible: Sequence[str | None]) -> list[str]:
    """Return what the workers of a node are called: after their GPU, else by number where there are several."""
    if len(visible) == 1 and not visible[0]:
        return [node]
    return [f"{node} GPU {seen}" if seen else f"{node} {number}" for number, seen in enumerate(visible)]


def check_free(host: str, port: int) -> None:
    """Raise ParameterError if nothing can listen on this port of this address; 0 is any port."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ParameterError(
            f"cannot listen on {host}:{port} ({reason}); give an address of this machine and a free port"
        ) from None


class _ListensAsAsked:
    """Serves pages on one address and port, or none: Dask would open a port in any case, another one if need be."""

    http_application: Any
    http_server: Any
    services: dict[str, Any]

    def start_http_server(
        self, routes: Any, dashboard_address: str | None, default_port: int = 0, ssl_options: Any = None
    ) -> None:
        self.http_application = RoutingApplication(routes)
        self.http_server = HTTPServer(self.http_application)
        if dashboard_address is not None:
            host, _, port = dashboard_address.rpartition(":")
            self.http_server.listen(int(port), host)
            self.http_server.address, self.http_server.port = host, int(port)
            self.services["dashboard"] = self.http_server


class _Scheduler(_ListensAsAsked, Scheduler):  # type: ignore[misc]
    """A scheduler that listens on nothing else, and calls no two workers the same."""

    async def add_worker(self, comm: Any, *, name: Any, **known: Any) -> None:
        """Admit a worker; one whose name is taken gets a number as well.

        Dask would turn it away: two machines with one host name, or one that has vanished and comes back sooner than
        it is missed.
        """
        free, number = name, 1
        while free in self.aliases:
            number += 1
            free = f"{name}.{number}"
        await super().add_worker(comm, name=free, **known)


class _Worker(_ListensAsAsked, Worker):  # type: ignore[misc]
    """A worker that listens on nothing else, and shows with Dask's metrics what it has moved."""

    def start_http_server(self, routes: Any, dashboard_address: str | None, *rest: Any, **options: Any) -> None:
        super().start_http_server(routes, dashboard_address, *rest, **options)
        if dashboard_address is not None:
            from cloudem.execution.metrics import export_traffic  # Prometheus only where it is asked for

            export_traffic()


class _Supervisor(Nanny):  # type: ignore[misc]
    """Starts a worker again when it dies; knows why it was told to stop doing so."""

    why = ""
    say: Say

    async def _on_worker_exit(self, exitcode: int) -> None:
        died = self.status == Status.running
        if died:
            how = signal.Signals(-exitcode).name if exitcode < 0 else f"exit code {exitcode}"
            self.say(f"worker {self.worker_address} has died ({how}); starting it again")
        await super()._on_worker_exit(exitcode)
        if died and self.status == Status.running:
            self.say(f"worker {self.worker_address} has taken its place")

    def close_gracefully(self, reason: str = "") -> None:
        self.why = self.why or reason
        super().close_gracefully(reason=reason)

    async def close(self, timeout: float = 5, reason: str = "nanny-close") -> str:
        child = self.process and self.process.process
        try:
            with contextlib.suppress(AssertionError):  # Dask cannot stop a worker that has not finished starting
                await super().close(timeout, reason)
        finally:
            if child is not None:
                with contextlib.suppress(ValueError):  # it has ended
                    await child.kill()
        return "OK"


class _Doorman(SchedulerPlugin):  # type: ignore[misc]
    """Says who joins and who leaves."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def add_worker(self, scheduler: Any, worker: str) -> None:
        self._say(f"{worker} joined, {scheduler.workers[worker].nthreads} threads; {_count(scheduler)}")

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        self._say(f"{worker} left; {_count(scheduler)}")


def _count(scheduler: Any) -> str:
    return f"{len(scheduler.workers)} workers, {scheduler.total_nthreads} threads"


async def _scheduler(
    host: str, port: int, security: Any | None, pages: tuple[str, int] | None, plugins: Sequence[Any], say: Say
) -> None:
    async def serve() -> None:
        server = _Scheduler(
            host=host,
            port=port,
            protocol="tcp" if security is None else "tls",
            security=security,
            dashboard=False,
            dashboard_address=pages and f"{pages[0]}:{pages[1]}",
            plugins=plugins,
        )
        async with server:
            say(f"scheduler at {server.address}")
            if pages is not None:
                say(f"Dask dashboard at http://{pages[0]}:{pages[1]}/status")
            await server.finished()
            say("scheduler stopped by a client")

    await _until_signal([serve()], say, "scheduler")


async def _keep_worker(
    scheduler: str, options: dict[str, Any], visible: str | None, metrics_port: int | None, patience_s: float, say: Say
) -> None:
    """Keep one worker at the scheduler, whatever happens to either; return when the scheduler lets it go."""
    found = time.monotonic()
    what = f"{options['nthreads']} threads" + (f" on GPU {visible}" if visible else "")
    while True:
        await _find_scheduler(scheduler, options["security"], found + patience_s, say)
        supervisor = _Supervisor(
            scheduler,
            **options,
            protocol=scheduler.partition("://")[0],
            worker_class=_Worker,
            env=CHILD_ENVIRONMENT if visible is None else CHILD_ENVIRONMENT | {VISIBLE: visible},
            death_timeout=START_S,
            dashboard=False,
            dashboard_address=metrics_port and f"{options['host']}:{metrics_port}",
        )
        supervisor.say = say
        try:
            async with asyncio.timeout(2 * START_S):
                await supervisor
            say(f"worker {supervisor.worker_address} with {what} is at {scheduler}")
            await supervisor.finished()
            found = time.monotonic()
        except (
            RuntimeError,
            OSError,
            TimeoutError,
        ) as error:  # the scheduler has gone again, or the worker cannot start
            if time.monotonic() > found + patience_s:
                raise WorkerLostError(f"a worker for {scheduler} could not be started ({_cause(error)})") from error
            await asyncio.sleep(AGAIN_S)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await supervisor.close(timeout=STOP_S / 2)
        if supervisor.why in STOPPED_BY_SCHEDULER:
            return say(f"worker stopped by {scheduler}")
        say(f"worker lost {scheduler}")


async def _find_scheduler(scheduler: str, security: Any | None, deadline: float, say: Say) -> None:
    """Return when the scheduler answers; raise when it is another's, or when the deadline has passed."""
    arguments = {} if security is None else security.get_connection_args("worker")
    told = False
    while True:
        try:
            async with asyncio.timeout(START_S), rpc(scheduler, timeout=5.0, connection_args=arguments) as remote:
                await remote.identity(n_workers=0)
            return
        except (OSError, TimeoutError, ValueError) as error:
            refusal = refusal_of(error)
            if isinstance(error, FatalCommClosedError) or (refusal and isinstance(error, CommClosedError)):
                raise ParameterError(f"{scheduler}: {refusal or error}; copy the scheduler's certificates") from None
            if time.monotonic() > deadline:
                raise WorkerLostError(f"no scheduler answers at {scheduler} ({_cause(error)})") from None
        if not told:
            say(f"waiting for {scheduler}")
            told = True
        await asyncio.sleep(AGAIN_S)


async def _until_signal(work: Sequence[Awaitable[None]], say: Say, what: str) -> None:
    """Await all of the work; SIGTERM or Ctrl-C stops it in order, and a second one, or a time limit, at once."""
    loop = asyncio.get_running_loop()
    everything = asyncio.gather(*work)

    def leave() -> NoReturn:
        say(f"{what} killed")
        os._exit(1)

    def stop() -> None:
        everything.cancel()
        loop.call_later(STOP_S, leave)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, leave)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await everything
    except asyncio.CancelledError:
        say(f"{what} stopped")


@contextlib.contextmanager
def _configured() -> Iterator[None]:
    """Set Dask up for this process and those that it starts."""
    logging.getLogger("distributed").setLevel(logging.ERROR)  # who comes and goes is said here, in one line each
    settings = CONFIGURATION | {"distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical"}
    with dask.config.set(settings), private_scratch():
        yield


def _allow_many_connections() -> None:
    """Let this process open as many files as the system allows: each worker and client holds a few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {cause}"
