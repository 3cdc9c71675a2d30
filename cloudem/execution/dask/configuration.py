"""Dask's settings: the only place where cloudem changes them, for embedded clusters and for those of many machines."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CONFIGURATION: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 30,  # workers come and go; only a task that kills them all is to blame
    # A worker that hangs says nothing for 15 s; it is looked for that often, so that it is replaced within 30 s.
    "distributed.scheduler.worker-ttl": "15s",
    # A machine that has vanished refuses nothing: nobody waits longer than that for an answer or a connection.
    "distributed.comm.timeouts.connect": "10s",
    "distributed.comm.timeouts.tcp": "15s",
    # It drops copies of a shared value as soon as no task waits for them, and the next tasks copy it once more.
    "distributed.scheduler.active-memory-manager.start": False,
    "distributed.admin.large-graph-warning-threshold": "1TB",  # volumes are shared on purpose
    "distributed.scheduler.work-stealing": False,  # who works on what is decided in folding, with an eye on bytes
    "distributed.worker.profile.enabled": False,
    # Health checks every 20 ms cost 5 % of a core; with these an idle cluster costs 0.6 %.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.cycle": "10s",
    "distributed.admin.system-monitor.interval": "10s",
    # Jobs project their memory beforehand; a worker that spills or dies half-way through a sum helps nobody.
    # The limit of memory that Dask's pages show is that of the machine, and does nothing.
    "distributed.worker.memory.transfer": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": False,
    # Pages that show, and nothing that passes requests on to other machines.
    "distributed.scheduler.http.routes": [
        "distributed.http.scheduler.prometheus",
        "distributed.http.scheduler.info",
        "distributed.http.scheduler.json",
        "distributed.http.health",
        "distributed.http.statics",
    ],
    "distributed.worker.http.routes": ["distributed.http.worker.prometheus", "distributed.http.health"],
}

WITHOUT_PAGES: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
"""Dask's own schedulers and workers always listen for HTTP; without a dashboard there is nothing to be had there."""

IN_THIS_PROCESS: dict[str, Any] = {"distributed.scheduler.worker-ttl": None}
"""A worker that lives in the scheduler's process cannot be replaced, and is not lost when a laptop has slept."""


@contextmanager
def private_scratch() -> Iterator[None]:
    """Let what Dask starts in this block keep its files in a folder that is ours alone, and removed in the end.

    By default all users of a machine share one folder, in which Dask opens files of known names and from which it
    imports modules: whoever made it first could have any file of ours emptied, and any code run.
    """
    import dask

    settings: dict[str, Any] = {"distributed.worker.use-file-locking": False}  # which is for sharing it with others
    with tempfile.TemporaryDirectory(prefix="cloudem-dask-", ignore_cleanup_errors=True) as place:
        settings["temporary-directory"] = place
        with dask.config.set(settings):
            yield
