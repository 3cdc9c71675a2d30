"""A Dask cluster object whose scheduler and workers are rented machines, ``with NodeCluster(...) as cluster``.

Who rents them is behind a few plain calls (`Rental`), so that nothing here knows a cloud. Nodes do what they were told
at their start: the head runs the scheduler, each of the others one worker process with all of its cores. This object
asks for them, replaces those that vanish, destroys those that never come to work, and in the end removes everything.
It scales when it is told to and not otherwise: who follows the load ends workers that hold the sums of others' work.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Collection, Generator
from pathlib import Path, PurePath
from typing import Any, NoReturn, Self

from distributed.core import Status, rpc
from distributed.deploy.spec import ProcessInterface, SpecCluster

from cloudem.errors import (
    BudgetError,
    CapacityError,
    CloudemError,
    ParameterError,
    ProviderError,
    QuotaError,
    WorkerLostError,
)
from cloudem.execution.dask.rental import LATE_S, Fate, Patience, Rental, WorkerSlot
from cloudem.execution.dask.security import refusal_of, security_of

HEAD = "head"
"""Slot of the node with the scheduler."""

RETIRE_S = 60.0
"""How long a worker that is let go may take to hand on what it holds."""


class _Head(ProcessInterface):  # type: ignore[misc]
    """The node with the scheduler."""

    def __init__(self, rental: Rental, security: Any, patience: Patience) -> None:
        super().__init__()
        self._rental, self._security, self._patience = rental, security, patience
        self.node = ""

    async def start(self) -> None:
        await asyncio.to_thread(self._rental.prepare)
        self.node = await asyncio.to_thread(self._rental.launch, HEAD, 1)
        self.address = await self._found()
        await super().start()

    async def close(self) -> None:
        if self.node:  # should that fail, it ends when the cluster is removed
            with contextlib.suppress(ProviderError):
                await asyncio.to_thread(self._rental.terminate, [self.node])
        await super().close()

    async def _found(self) -> str:
        """Return the scheduler's address when it answers there."""
        start, listed, why = time.time(), False, "the node has not told its address"
        while time.time() < start + self._patience.ready_s:
            try:
                address = await asyncio.to_thread(self._rental.scheduler)
                there = self.node in await asyncio.to_thread(self._rental.alive)
            except ProviderError as error:  # asked too often, or no answer: it may answer next time
                why = str(error)
            else:
                if address and not (why := await self._refusal(address)):
                    return address
                if not there and (listed or time.time() > start + LATE_S):
                    raise WorkerLostError(f"node {self.node} has ended before its scheduler answered; {SEE_ITS_LOG}")
                listed |= there
            await asyncio.sleep(min(self._patience.look_s, 0.5))
        raise WorkerLostError(f"no scheduler within {self._patience.ready_s:g} s: {why}; {SEE_ITS_LOG}")

    async def _refusal(self, address: str) -> str:
        """Return why a scheduler does not answer, empty if it does."""
        try:
            arguments = self._security.get_connection_args("client")
            limit = asyncio.timeout(min(10.0, self._patience.ready_s))
            async with limit, rpc(address, timeout=5.0, connection_args=arguments) as remote:
                await remote.identity(n_workers=0)
        except (OSError, TimeoutError, ValueError) as error:
            return f"{address} cannot be reached from here ({refusal_of(error) or type(error).__name__})"
        return ""


SEE_ITS_LOG = "look at the log of the node, and whether this machine reaches the nodes' network"


class _Worker(ProcessInterface):  # type: ignore[misc]
    """A slot for a worker; which node has it changes."""

    _cluster: Any  # a weak reference, set by Dask

    def __init__(self, scheduler: str, rental: Rental, name: str) -> None:
        super().__init__(scheduler, name)
        self.name, self._rental, self.place = name, rental, WorkerSlot()

    async def close(self) -> None:
        """Let the worker hand on what it holds, then end its node."""
        self.status = Status.closing
        cluster = self._cluster()
        if self.place.node and cluster is not None:
            if cluster.status == Status.running:
                await cluster._retire(self.place.node)
            await cluster._let_go([self.place.node])
        await super().close()


class NodeCluster(SpecCluster):  # type: ignore[misc]
    """A Dask cluster of rented machines.

    It is made when its scheduler answers and, where workers are asked for, one of them has joined; the others join as
    they come (``cluster.wait_for_workers(n)``). It is closed by ``with`` or `close`: all nodes are ended, and all that
    was made for them is removed, also after an exception or Ctrl-C. ``async with NodeCluster(..., asynchronous=True)``
    is the same inside an event loop.

    Parameters
    ----------
    rental
        Rents the machines.
    workers
        Number of worker nodes.
    certificates
        Folder of the cluster's certificates, kept as attribute for other clients, such as cloudem's own executor.
    most
        Largest number of worker nodes that its time and money are reckoned for; None for any.
    patience
        How long is waited for nodes.
    name
        Name of the cluster.
    asynchronous, loop
        As for any Dask cluster.
    quiet
        Whether what happens to nodes is only kept for ``get_logs()``, and not printed.

    Raises
    ------
    CapacityError, QuotaError, ProviderError
        If a node is not to be had.
    WorkerLostError
        If the scheduler does not answer, or no worker joins, in time. Nothing is left behind then.
    """

    def __init__(
        self,
        rental: Rental,
        *,
        workers: int,
        certificates: str | Path,
        most: int | None = None,
        patience: Patience | None = None,
        name: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
        quiet: bool = False,
    ) -> None:
        self._rental, self._patience, self._most = rental, patience or Patience(), most
        self._watcher: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._generations: dict[str, int] = {}
        self._leaving: set[str] = set()
        self._why_not, self._released, self._quiet = "", False, quiet
        self.certificates = str(certificates)
        worker = {"cls": _Worker, "options": {"rental": rental}}
        try:
            self._check_count(workers)
            security = security_of(certificates)
            head = {"rental": rental, "security": security, "patience": self._patience}
            super().__init__(
                scheduler={"cls": _Head, "options": head},
                worker=worker,
                workers={self._new_worker_name(number): worker for number in range(workers)},
                security=security,
                name=name,
                asynchronous=asynchronous,
                loop=loop,
            )
            if not self.called_from_running_loop:
                self.sync(self._first_worker)
        except BaseException:  # Ctrl-C too: nothing may stay that costs money
            self._abandon()
            raise

    def scale(self, n: int = 0, memory: object = None, cores: object = None) -> Any:
        """Have that many worker nodes from now on.

        Those that have no worker yet are given back first, then the latest. A worker that is let go hands on what it
        holds.

        Parameters
        ----------
        n
            Number of worker nodes.
        memory, cores
            Are refused: say how many nodes.
        """
        if memory is not None or cores is not None:
            raise ParameterError("scale(n) takes the number of worker nodes; memory= and cores= are not known here")
        self._check_count(n)
        order = sorted(self.worker_spec, key=lambda name: (not self._joined(name), name))
        for name in order[n:]:
            del self.worker_spec[name]
        result = super().scale(n)
        if self._wake is not None:
            self.loop.add_callback(self._wake.set)
        return result

    def adapt(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: it ends workers that are busy."""
        raise ParameterError(
            "adapt() follows the load and ends workers that hold sums or are about to be needed, so that work is done"
            " twice; say how many nodes the next step needs with scale(n)"
        )

    @property
    def observed(self) -> set[str]:
        """Slots whose worker is at the scheduler."""
        return {name for name in self.workers if self._joined(name)}

    def close(self, timeout: float | None = None) -> Any:
        """End all nodes and remove all that was made for them.

        Raises
        ------
        ProviderError
            If something could not be removed.
        """
        try:
            return super().close(timeout)
        finally:
            if not self.asynchronous:
                self._loop_runner.stop()

    def __await__(self) -> Generator[Any, Any, Self]:
        async def started() -> Self:
            try:
                if self.status in (Status.created, Status.starting):
                    await self._start()
                await self._correct_state()
                await self._first_worker()
            except BaseException:
                await asyncio.shield(self._close())
                raise
            return self

        return started().__await__()

    def _check_count(self, count: object) -> None:
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ParameterError(f"got {count!r} workers, needs a whole number of nodes, 0 or more")
        if self._most is not None and count > self._most:
            raise BudgetError(
                f"got {count} workers, but time and money are reckoned for at most {self._most}; make a cluster with"
                f" max_workers={count}"
            )

    def _abandon(self) -> None:
        """Leave nothing behind of a cluster that could not be made."""
        try:
            if getattr(self, "status", Status.closed) != Status.closed and not self.called_from_running_loop:
                self.close()
        finally:
            if not self._released:
                self._rental.close()

    def _new_worker_name(self, worker_number: int) -> str:
        return f"worker-{worker_number:04d}"

    async def _start(self) -> None:
        self.quiet = self._quiet  # Dask's own constructor sets it
        try:
            await super()._start()
        except RuntimeError as error:  # Dask wraps what came
            if isinstance(error.__cause__, CloudemError):
                raise error.__cause__ from None
            raise
        except BaseException:
            self.status = Status.failed
            raise
        if self._watcher is None and self.status == Status.running:
            self._log(f"scheduler at {self.scheduler_address}")
            self._wake = asyncio.Event()
            self._watcher = asyncio.ensure_future(self._watch())

    async def _close(self) -> None:
        if self.status == Status.starting:
            self.status = Status.failed
        closing = self.status not in (Status.closing, Status.closed)
        if self._watcher is not None and closing:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._scheduler_is_gone():  # nobody waits for its answer
            self.shutdown_scheduler = False
            self.scheduler.status = Status.closed
        try:
            await super()._close()
        finally:
            if closing:
                self._released = True
                left = await asyncio.to_thread(self._rental.close)
                if left:
                    raise ProviderError(
                        f"{', '.join(left)} could not be removed yet; `cloudem cluster sweep` removes what is left"
                    )

    def _update_worker_status(self, op: str, msg: Any) -> None:
        """Keep Dask's copy of who is there; who was lost is seen at the nodes.

        Dask's own fails, and hears nothing any more, if a worker has left that it does not know: `wait_for_workers`
        may have replaced the copy by a newer one meanwhile.
        """
        if op == "remove":
            self.scheduler_info["workers"].pop(msg, None)
        else:
            super()._update_worker_status(op, msg)

    async def _first_worker(self) -> None:
        """Return when a worker has joined, or none is wanted; raise if there will be none."""
        while self.status == Status.running and not self.observed:
            if not self.worker_spec:
                if self._why_not:
                    raise WorkerLostError(f"no worker node came to work: {self._why_not}")
                return
            await asyncio.sleep(min(self._patience.look_s, 0.1))

    async def _watch(self) -> None:
        """Look at the nodes again and again."""
        wake, trouble = self._wake, ""
        assert wake is not None  # noqa: S101  made before this task
        while not self._scheduler_is_gone():
            try:
                await self._look()
                trouble = ""
            except Exception as error:  # of any kind: who keeps rented machines goes on
                if str(error) != trouble:
                    self._log(f"nodes cannot be looked at: {error}")
                trouble = str(error)
            wake.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(wake.wait(), self._patience.look_s)
        for worker in list(self.workers.values()):
            self._give_up(worker, "the scheduler is gone")
        self._log("the scheduler is gone; all nodes are ended")
        await asyncio.to_thread(self._rental.close)

    def _scheduler_is_gone(self) -> bool:
        """Whether the connection to the scheduler, which Dask keeps, has ended."""
        task = self._watch_worker_status_task
        return task is not None and bool(task.done())

    async def _look(self) -> None:
        """Replace what has vanished, destroy what is silent, ask for what is missing."""
        alive = frozenset(await asyncio.to_thread(self._rental.alive))
        at_work = frozenset(self._at_work().values())
        now, empty = time.time(), []
        for worker in [one for one in self.workers.values() if one.status == Status.running]:
            before = worker.place.joined
            fate = worker.place.fate(alive, at_work, now, self._patience.ready_s)
            if worker.place.joined and not before:
                self._log(f"{worker.name} works on {worker.place.node}")
            if fate == "launch":
                empty.append(worker)
            elif fate != "wait":
                self._leaving.add(worker.place.node)
                self._lose(worker, fate, now)
        await self._let_go(self._leaving & alive)
        await asyncio.gather(*(self._launch(worker) for worker in empty))

    def _lose(self, worker: _Worker, fate: Fate, now: float) -> None:
        node = worker.place.node
        why = {
            "vanished": f"its node {node} has ended",
            "silent": f"its node {node} did not come to work within {self._patience.ready_s:g} s and is ended",
            "left": f"its node {node} has lost its worker and is ended",
        }[fate]
        worker.place = worker.place.without_node()
        self._next_try(worker, why, now)

    async def _launch(self, worker: _Worker) -> None:
        generation, asked = self._generations.setdefault(worker.name, 1), time.time()
        worker.place.asking = True
        try:
            node = await asyncio.to_thread(self._rental.launch, worker.name, generation)
        except Exception as error:  # of any kind: who keeps rented machines goes on
            if isinstance(error, CapacityError | QuotaError):  # after others the same token may have made a node
                self._generations[worker.name] += 1
            worker.place = worker.place.without_node()
            self._next_try(worker, str(error) or type(error).__name__, time.time())
            return
        self._generations[worker.name] += 1
        worker.place = WorkerSlot(node, asked, failures=worker.place.failures)
        if worker.status != Status.running:  # it was let go meanwhile
            await self._let_go([node])

    async def _let_go(self, nodes: Collection[str]) -> None:
        """End nodes; those that are still there at the next look are told again."""
        self._leaving.update(nodes)
        if nodes:
            with contextlib.suppress(ProviderError):
                await asyncio.to_thread(self._rental.terminate, sorted(nodes))

    def _next_try(self, worker: _Worker, why: str, now: float) -> None:
        """Say what happened to a slot's node, and when there will be another."""
        failures = worker.place.failures
        if failures < self._patience.tries:
            worker.place.again = now + (self._patience.again_s * 2 ** (failures - 1) if failures else 0.0)
            self._log(f"{worker.name}: {why}; another one {'follows' if not failures else 'will be tried'}")
            return
        self._log(f"{worker.name} is given up: {why}; scale(n) asks again")
        self._give_up(worker, why)

    def _give_up(self, worker: _Worker, why: str) -> None:
        self._why_not = why
        worker.status = Status.failed
        self.worker_spec.pop(worker.name, None)
        self.workers.pop(worker.name, None)

    async def _retire(self, node: str) -> None:
        """Have a node's worker hand on what it holds, for a while."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(RETIRE_S):
                leaving = [address for address, where in self._at_work().items() if where == node]
                await self.scheduler_comm.retire_workers(workers=leaving, close_workers=True)

    def _at_work(self) -> dict[str, str]:
        """Return which node each worker is on: nodes' agents name the folder of their worker's files after the node."""
        nodes = {worker.place.node for worker in self.workers.values()} - {""}
        found = {}
        for address, worker in self.scheduler_info["workers"].items():
            for node in nodes.intersection(PurePath(worker["local_directory"]).parts):
                found[address] = node
        return found

    def _joined(self, name: str) -> bool:
        worker = self.workers.get(name)
        return worker is not None and worker.place.joined and worker.place.missed is None
