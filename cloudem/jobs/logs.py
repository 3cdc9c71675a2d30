"""The log of a job, beside its results."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, final

from cloudem.errors import CloudemError
from cloudem.io.storage.location import UNFINISHED, contents, folder_of, is_remote, join, read_bytes, write_bytes
from cloudem.io.storage.private import open_file

LOG_FILE = "log.txt"


@contextlib.contextmanager
def keep_log(log: logging.Logger, url: str, guard: Callable[[], None] | None = None) -> Iterator[None]:
    """Write lines of a log to ``log.txt`` under a URL while the block runs, behind those of earlier runs.

    The guard is called before an object is replaced, and raises if it is somebody else's by now.
    """
    handler = _LogObject(url, guard) if is_remote(url) else _LogFile(url)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


class _Log(logging.Handler, ABC):
    """Writes as soon as there are results: a job that fails before it writes anything leaves nothing.

    Trouble with the log stops no job: whatever is wrong with the place, the job itself will say. Lines are written by a
    thread of their own. Whoever logs holds the handler's lock: if storage that does not answer were waited for there,
    everybody who has something to say would wait too, and for ever if the storage has something to say itself.
    """

    EVERY_S: ClassVar[float]
    """Pause between two writes, seconds."""

    LAST_S: ClassVar[float] = 60.0
    """How long the end waits for what is left to be written, seconds."""

    def __init__(self, url: str) -> None:
        super().__init__(logging.DEBUG)
        self._url = url
        self._lines: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="cloudem-log", daemon=True)
        self._thread.start()

    @final
    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self._lines.append(self.format(record))

    @final
    def close(self) -> None:
        """Write what is left."""
        self._over.set()
        self._thread.join(self.LAST_S)
        super().close()

    @final
    def _keep(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self.EVERY_S)
            with contextlib.suppress(OSError, CloudemError):
                self._write(len(self._lines))

    @abstractmethod
    def _write(self, count: int) -> None:
        """Write the first so many lines, as far as that has not been done and can be done now."""


@final
class _LogFile(_Log):
    """Appends to a file."""

    EVERY_S = 0.2

    def __init__(self, url: str) -> None:
        self._written = 0
        super().__init__(url)

    def _write(self, count: int) -> None:
        if count == self._written or not contents(self._url):
            return
        file = open_file(folder_of(self._url) / LOG_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open(file, "a", encoding="utf-8") as text:  # noqa: PTH123  an open file
            text.write("\n".join(self._lines[self._written : count]) + "\n")
        self._written = count


@final
class _LogObject(_Log):
    """Writes the whole text again now and then: an object cannot be appended to."""

    EVERY_S = 5.0

    def __init__(self, url: str, guard: Callable[[], None] | None) -> None:
        self._guard = guard or (lambda: None)
        self._before: str | None = None
        self._written = 0
        super().__init__(url)

    def _write(self, count: int) -> None:
        if count == self._written:
            return
        self._guard()
        found = contents(self._url)
        if not found or UNFINISHED in found:
            return
        place = join(self._url, LOG_FILE)
        if self._before is None:
            self._before = (read_bytes(place) or b"").decode(errors="replace")
        write_bytes(place, (self._before + "\n".join(self._lines[:count]) + "\n").encode())
        self._written = count
