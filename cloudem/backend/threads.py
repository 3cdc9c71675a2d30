"""Threads inside a task: as many as the caller leaves free, and the same bits for any number of them.

How many there are is SciPy's own setting (:func:`scipy.fft.set_workers`, one by default), so that transforms and the
loops here obey one number. Work is cut into slabs by its size alone, and what slabs return is kept in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import scipy.fft

T = TypeVar("T")


def over_slabs(work: Callable[[int, int], T], count: int, slab: int) -> list[T]:
    """Call ``work(start, stop)`` for consecutive slabs of ``range(count)``; return what the calls return, in order.

    Inside ``work`` transforms run on one thread. What it calls should release the interpreter's lock.

    Parameters
    ----------
    work
        Must not write where another slab reads or writes.
    count, slab
        How many there are, and how many of them make a slab.
    """
    starts = range(0, count, slab)
    threads = min(scipy.fft.get_workers(), len(starts))
    if threads < 2:
        return [work(start, min(start + slab, count)) for start in starts]
    with ThreadPoolExecutor(threads) as pool:  # a new thread begins with one worker of its own
        return list(pool.map(lambda start: work(start, min(start + slab, count)), starts))
