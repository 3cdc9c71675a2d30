"""The connection to a scheduler: made, and lost."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

from cloudem.errors import WorkerLostError
from cloudem.execution.dask.security import refusal_of


def wake(dask_scheduler: Any) -> None:
    """Have the scheduler look again at tasks that wait for a worker that is gone.

    They may run anywhere (``allow_other_workers``), and it sends them anywhere else as long as there is somebody; those
    that came up while there was nobody at all wait for their own worker for ever (distributed 2026.8).
    """
    waiting = {task.key: "processing" for task in dask_scheduler.unrunnable if task.loose_restrictions}
    dask_scheduler.transitions(waiting, f"cloudem-wake-{time.time()}")


@contextlib.contextmanager
def scheduler_lost() -> Iterator[None]:
    """Say so, if it is lost; where no task raises anything."""
    from distributed import CancelledError

    try:
        yield
    except (CancelledError, OSError) as error:
        raise WorkerLostError("the scheduler was lost; start it and run again to resume") from error


def connect(undo: contextlib.ExitStack, where: Any, patience_s: float, security: Any = None) -> Any:
    """Return a client of a scheduler, closed by ``undo``; what is wrong is said in one line."""
    from distributed import Client

    log = logging.getLogger("distributed.client")  # what it complains about is raised here as well, in one line
    undo.callback(log.setLevel, log.level)
    log.setLevel(logging.CRITICAL)
    try:
        return undo.enter_context(Client(where, timeout=min(patience_s, 10.0), set_as_default=False, security=security))
    except (OSError, TimeoutError, ValueError) as error:
        refusal = refusal_of(error)
        if refusal:
            raise WorkerLostError(f"the scheduler at {where} is not to be used: {refusal}") from error
        raise WorkerLostError(
            f"no Dask scheduler answers at {where}; give --scheduler as tls://host:8786, start one with `cloudem"
            f" cluster scheduler`, or leave --scheduler out ({error})"
        ) from error
