"""One thread for each task: the only place that tells numerical libraries how many threads to use.

What cloudem itself spreads over threads (`cloudem.backend.threads`) takes those that no task uses, and gives the same
bits for any number of them: a worker on a GPU, with one task at a time, has its share of the cores for that.

Tasks run side by side, one for each core. A library that started threads of its own inside a task would make the two
of them wait for each other; and sums that depend on the number of threads would not be the same to the bit on another
machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Read by the libraries when they are loaded."""

CHILD_ENVIRONMENT = {**ENVIRONMENT, "NUMBA_NUM_THREADS": "1"}
"""For worker processes. Numba refuses another number once its threads run, so this one is not for our own process."""

CORES = "cores"
"""Resource, as Dask calls it, of a worker that has more cores than it runs tasks: how many."""


@contextmanager
def one_thread_per_task() -> Iterator[None]:
    """Hold the numerical libraries to one thread: those in memory by a call, those loaded later by the environment."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        with threadpool_limits(1):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
