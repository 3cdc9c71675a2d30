"""Counting what Dask's workers send each other and to clients, beside what they read and write in stores.

Dask keeps a list of a worker's last transfers and forgets older ones. Here the same list also counts what is put into
it, in `cloudem.traffic`, by the purpose that keys tell. Sizes are those of the values in memory, which is what
is sent but for headers.
"""

from __future__ import annotations

import dataclasses
import sys
from collections import deque
from typing import Any, TypeAlias

from dask.sizeof import sizeof
from distributed import WorkerPlugin
from tornado.ioloop import PeriodicCallback

from cloudem import traffic
from cloudem.traffic import Traffic

TOPIC = "cloudem-traffic"
"""Of the events by which workers tell clients what their processes have moved."""

TELL_S = 10.0
"""How often workers tell; what a worker moved after that is not known when it is killed."""


@sizeof.register(object)  # type: ignore[untyped-decorator]
def size_of_value(value: Any) -> int:
    """Return the bytes of a value; Dask itself takes a data class to be as large as its pointers."""
    size = sys.getsizeof(value)
    if dataclasses.is_dataclass(value) and type(value).__sizeof__ is object.__sizeof__:
        size += sum(int(sizeof(getattr(value, field.name))) for field in dataclasses.fields(value))
    return size


TaskKey: TypeAlias = tuple[str, str, str]
"""Of a task: where the job is, ``purpose_function``, and what makes it the only one of its name."""


def purpose_of(key: object) -> str:
    """Return what the bytes of a task's result are for."""
    purpose = str(key[1] if isinstance(key, tuple) and len(key) > 1 else key).partition("_")[0]
    return purpose if purpose in traffic.PURPOSES else "other"


def count_received(key: object, result: Any) -> None:
    """Count the result of a task that came to this process."""
    traffic.count(purpose_of(key), received=int(sizeof(result)))


class CountTransfers(WorkerPlugin):  # type: ignore[misc]
    """Lets a worker count what it exchanges, and tell clients what its process has moved."""

    name = "cloudem-traffic"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Begin to count, unless the worker lives in its client's process: nothing leaves that."""
        self._told: traffic.Moved = {}
        self._teller: Any = None
        if worker.address.startswith("inproc://"):
            return
        worker.transfer_incoming_log = _Log(worker.transfer_incoming_log, received=True)
        worker.transfer_outgoing_log = _Log(worker.transfer_outgoing_log, received=False)
        self._teller = PeriodicCallback(lambda: self._tell(worker), TELL_S * 1000)
        self._teller.start()

    def teardown(self, worker: Any) -> None:
        """Tell for the last time."""
        if self._teller is not None:
            self._teller.stop()
            self._tell(worker)

    def _tell(self, worker: Any) -> None:
        now = traffic.totals()
        if now != self._told:
            worker.log_event(TOPIC, (traffic.PROCESS, {purpose: tuple(moved) for purpose, moved in now.items()}))
            self._told = now


class _Log(deque[dict[str, Any]]):
    """A worker's last transfers, as Dask keeps them; counts those to come."""

    def __init__(self, last: deque[dict[str, Any]], *, received: bool) -> None:
        super().__init__(last, last.maxlen)
        self._received = received

    def append(self, entry: dict[str, Any]) -> None:
        """Keep and count a transfer."""
        super().append(entry)
        for key, size in entry["keys"].items():
            moved = Traffic(size or 0, 0) if self._received else Traffic(0, size or 0)
            traffic.count(purpose_of(key), *moved)
