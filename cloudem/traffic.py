"""Bytes that this process moves over the network, by what they are for.

Whoever moves bytes counts them here: the stores for what they read and write, the executor for what workers send each
other. The counters only rise; differences between two readings belong to what ran in between.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

PURPOSES = ("images", "reference", "bricks", "poses", "other")
"""What bytes are for. ``bricks`` are partial sums of the Fourier volume."""


class Traffic(NamedTuple):
    """Bytes received and sent."""

    received: int = 0
    sent: int = 0

    def plus(self, other: Traffic) -> Traffic:
        """Return the sum of two."""
        return Traffic(self.received + other.received, self.sent + other.sent)

    def minus(self, other: Traffic) -> Traffic:
        """Return what came since an earlier reading."""
        return Traffic(self.received - other.received, self.sent - other.sent)


_LOCK = threading.Lock()
_TOTALS: dict[str, Traffic] = dict.fromkeys(PURPOSES, Traffic())
_PURPOSE: ContextVar[str] = ContextVar("purpose", default="other")


def count(purpose: str, received: int = 0, sent: int = 0) -> None:
    """Add bytes to a counter."""
    with _LOCK:
        _TOTALS[purpose] = _TOTALS[purpose].plus(Traffic(received, sent))


def totals() -> dict[str, Traffic]:
    """Return all counters of this process."""
    with _LOCK:
        return dict(_TOTALS)


@contextlib.contextmanager
def purpose(name: str) -> Iterator[None]:
    """Let what is moved in this block, by this thread, count for a purpose."""
    token = _PURPOSE.set(name)
    try:
        yield
    finally:
        _PURPOSE.reset(token)


def current_purpose() -> str:
    """Return the purpose of the block that runs."""
    return _PURPOSE.get()
