"""Live pages: one poller for each job that somebody watches, whose news go to all who do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable

BEAT_S = 4.0
"""So often a page hears something, if only that the connection lives: after 5 s of silence it asks instead."""

MOST_WATCHERS = 500
"""Pages that are served at the same time; more are told to ask now and then instead."""


class Watched:
    """Somebody's news of one thing, from one poller however many listen.

    Parameters
    ----------
    look
        Returns what there is to say now.
    every_s
        Seconds between two looks.
    """

    def __init__(self, look: Callable[[], Awaitable[str]], every_s: float) -> None:
        self._look, self._every_s = look, every_s
        self._listeners: set[asyncio.Queue[str]] = set()
        self._poller: asyncio.Task[None] | None = None
        self._last = ""

    @property
    def listeners(self) -> int:
        """How many listen."""
        return len(self._listeners)

    async def news(self) -> AsyncGenerator[str, None]:
        """Yield what is new, and "" as a sign of life; polling ends with the last listener."""
        mine: asyncio.Queue[str] = asyncio.Queue(maxsize=1)
        self._listeners.add(mine)
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll())
        elif self._last:
            mine.put_nowait(self._last)
        try:
            while True:
                try:
                    yield await asyncio.wait_for(mine.get(), BEAT_S)
                except TimeoutError:
                    yield ""
        finally:
            self._listeners.discard(mine)
            if not self._listeners and self._poller is not None:
                self._poller.cancel()
                self._poller, self._last = None, ""

    async def _poll(self) -> None:
        while True:
            # whatever goes wrong with one look, the next may succeed: pages stay as they are meanwhile
            with contextlib.suppress(Exception):
                found = await self._look()
                if found != self._last:
                    self._last = found
                    for queue in self._listeners:
                        if queue.full():  # a slow page hears the newest only
                            queue.get_nowait()
                        queue.put_nowait(found)
            await asyncio.sleep(self._every_s)


class Watches:
    """All that is watched, by name."""

    def __init__(self) -> None:
        self._watches: dict[str, Watched] = {}

    def of(self, name: str, look: Callable[[], Awaitable[str]], every_s: float) -> Watched | None:
        """Return the watch of one thing; None if too many are listening."""
        self._watches = {key: watch for key, watch in self._watches.items() if watch.listeners}
        if sum(watch.listeners for watch in self._watches.values()) >= MOST_WATCHERS:
            return None
        return self._watches.setdefault(name, Watched(look, every_s))
