"""Which GPU a worker has, beside the figures of it that Dask's metrics have already."""

from __future__ import annotations

from typing import Any

from distributed import WorkerPlugin

GPU_NAME = "gpu_name"
"""Of the metric, which is text."""


class NameGpu(WorkerPlugin):  # type: ignore[misc]
    """Has a worker say with each sign of life what its GPU is called.

    Dask would say it once, when a worker starts, and only if the driver had been asked before that.
    """

    name = "cloudem-gpu-name"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Begin to say it, where the driver was found."""
        if worker.monitor.gpu_name:
            worker.metrics[GPU_NAME] = lambda worker: worker.monitor.gpu_name
