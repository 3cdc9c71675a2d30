"""What is known of the workers that run a job's tasks: for people alone, no result and no decision depends on it."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Annotated, TypeAlias

import psutil
from pydantic import BaseModel, ConfigDict, Field

from cloudem.errors import one_line

MOST_WORKERS = 500
"""Of so many workers it is kept what they do; of a cluster that has more, the first."""

Count: TypeAlias = Annotated[int, Field(ge=0, le=10**18)]

Percent: TypeAlias = Annotated[float, Field(ge=0, le=1e9)]

Seconds: TypeAlias = Annotated[float, Field(ge=0, le=1e11)]

Label: TypeAlias = Annotated[str, Field(max_length=400)]


class _Record(BaseModel):
    """A record that neither changes nor holds what it does not declare, nor numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GpuSeen(_Record):
    """The GPU of a worker.

    Attributes
    ----------
    name
        As its driver calls it; empty where that is not known.
    memory_bytes, limit_bytes
        That are used by whoever uses it, and that it has; None where that is not known.
    busy_percent
        Of the time in which it computes something; None where that is not known.
    """

    name: Label = ""
    memory_bytes: Count | None = None
    limit_bytes: Count | None = None
    busy_percent: Percent | None = None


class WorkerSeen(_Record):
    """A worker, as it said last.

    Attributes
    ----------
    name, host
        What it is called, and where it is.
    threads
        Tasks that it runs at the same time.
    running
        That it runs.
    memory_bytes, limit_bytes
        Of its process, and that it should not use more than; None where there is no limit.
    cpu_percent
        Of its process; 100 is one core.
    silent_s
        Seconds since it gave a sign of life.
    gpu
        None where it has none, or nothing is known of it.
    """

    name: Label
    host: Label = ""
    threads: Count = 1
    running: Count = 0
    memory_bytes: Count = 0
    limit_bytes: Count | None = None
    cpu_percent: Percent = 0
    silent_s: Seconds = 0
    gpu: GpuSeen | None = None


class ClusterSeen(_Record):
    """What a job runs on.

    Attributes
    ----------
    what
        Its executor, in words.
    at
        When that was asked, unix seconds.
    workers
        Those that answered; none where nobody did.
    more
        Workers beyond the first `MOST_WORKERS`.
    """

    what: Label
    at: Seconds
    workers: Annotated[tuple[WorkerSeen, ...], Field(max_length=MOST_WORKERS)] = ()
    more: Count = 0


class ThisProcess:
    """The process that calls this, as a worker."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # begins to count

    def seen(self) -> WorkerSeen:
        """Return what it uses, CPU time since the last call."""
        with self._process.oneshot():
            return WorkerSeen(
                name="this process",
                host=one_line(platform.node()),
                running=1,
                memory_bytes=self._process.memory_info().rss,
                limit_bytes=machine_memory(),
                cpu_percent=self._process.cpu_percent(),
            )


def cluster_of(what: str, workers: tuple[WorkerSeen, ...]) -> ClusterSeen:
    """Return workers as what a job runs on now, as many as are kept; ``what`` is the executor in words."""
    kept = workers[:MOST_WORKERS]
    return ClusterSeen(what=one_line(what), at=time.time(), workers=kept, more=len(workers) - len(kept))


def machine_memory() -> int:
    """Return bytes of memory that this process may use: those of the machine, or of its control group."""
    return min(int(psutil.virtual_memory().total), _container_limit())


def _container_limit() -> int:
    """Memory limit of the control group that this process runs in (version 2); very large where there is none."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return 1 << 62
