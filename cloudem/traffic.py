"""Bytes that this process moves over the network, by what they are for.

Whoever moves bytes counts them here: the stores for what they read and write, the executor for what workers send each
other. The counters only rise; differences between two readings belong to what ran in between.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import NamedTuple

from cloudem.text import size

PURPOSES = ("images", "reference", "bricks", "poses", "other")
"""What bytes are for. ``bricks`` are partial sums of the Fourier volume."""

PROCESS = uuid.uuid4().hex
"""Names this process; in containers, host names and numbers of processes are not enough."""


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


Moved = Mapping[str, Traffic]
"""Traffic by purpose."""

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


def total_traffic(parts: Iterable[Moved]) -> dict[str, Traffic]:
    """Return the sum of all parts, by purpose."""
    found = dict.fromkeys(PURPOSES, Traffic())
    for part in parts:
        found |= {name: found[name].plus(moved) for name, moved in part.items()}
    return found


def difference(later: Moved, earlier: Moved) -> dict[str, Traffic]:
    """Return what came between two readings, by purpose."""
    return {name: moved.minus(earlier.get(name, Traffic())) for name, moved in later.items()}


def in_words(moved: Moved) -> str:
    """Return all of it as a line: ``received: images 312 MB, poses 1.2 MB; sent: poses 2 kB``; empty if it is nothing.

    Purposes for which nothing was moved are left out.
    """
    ways = []
    for way in Traffic._fields:
        sizes = {name: getattr(part, way) for name, part in moved.items()}
        ways.append(f"{way}: " + (", ".join(f"{name} {size(n)}" for name, n in sizes.items() if n) or "nothing"))
    return "; ".join(ways) if any(map(any, moved.values())) else ""
