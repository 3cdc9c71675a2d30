"""What a running job runs on, looked at now and then by the thread that says how the job stands."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from cloudem.execution.doing import JobDoing
from cloudem.execution.executor import Executor
from cloudem.execution.workers import ClusterSeen, cluster_of

LOG = logging.getLogger("cloudem.execution")


class WatchedCluster:
    """The executor of a job while it runs, and what was seen of it last."""

    def __init__(self) -> None:
        self._executor: Executor | None = None
        self._last: ClusterSeen | None = None

    @contextlib.contextmanager
    def watch(self, executor: Executor) -> Iterator[None]:
        """Have it looked at while the block runs, which has to end before the executor is closed."""
        self._last = cluster_of(executor.description, ())
        self._executor = executor
        try:
            yield
        finally:
            self._executor = None

    def look(self, doing: JobDoing) -> ClusterSeen | None:
        """Return what the job runs on; what was seen last where nobody answers or it has ended, None before it began.

        For one thread alone, which may have to wait for a second. ``doing`` is told to what runs the tasks, which may
        show it.
        """
        executor = self._executor
        if executor is None:
            return self._last
        try:
            self._last = cluster_of(executor.description, executor.seen_workers(doing))
        except OSError:  # nobody answers, or not in time: the next look may find somebody
            pass
        except Exception:  # as from a scheduler of another version, which would fail and say so each time
            LOG.debug("workers are looked at no more", exc_info=True)
            self._executor = None
        return self._last
