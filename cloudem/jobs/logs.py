"""The log of a job, beside its results."""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import final

from cloudem.errors import LeaseLostError, StorageError
from cloudem.io.storage.location import UNFINISHED, contents, folder_of, is_remote, join, read_bytes, write_bytes

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

    Trouble with the log stops no job: whatever is wrong with the place, the job itself will say.
    """

    def __init__(self, url: str) -> None:
        super().__init__(logging.DEBUG)
        self._url = url
        self._lines: list[str] = []

    @final
    def emit(self, record: logging.LogRecord) -> None:
        """Take a line."""
        self._lines.append(self.format(record))
        self._write(last=False)

    @final
    def close(self) -> None:
        """Write what is left."""
        self._write(last=True)
        super().close()

    @abstractmethod
    def _write(self, *, last: bool) -> None:
        """Write what can be written now."""


@final
class _LogFile(_Log):
    """Appends to a file."""

    def _write(self, *, last: bool) -> None:
        with contextlib.suppress(OSError):
            if not self._lines or not contents(self._url):
                return
            with (folder_of(self._url) / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write("\n".join(self._lines) + "\n")
            self._lines.clear()


@final
class _LogObject(_Log):
    """Writes the whole text again now and then: an object cannot be appended to."""

    EVERY_S = 5.0

    def __init__(self, url: str, guard: Callable[[], None] | None) -> None:
        super().__init__(url)
        self._guard = guard or (lambda: None)
        self._before: str | None = None
        self._written = 0
        self._next = 0.0

    def _write(self, *, last: bool) -> None:
        if len(self._lines) == self._written or not (last or time.monotonic() >= self._next):
            return
        with contextlib.suppress(StorageError, LeaseLostError):
            self._guard()
            found = contents(self._url)
            if found and UNFINISHED not in found:
                place = join(self._url, LOG_FILE)
                if self._before is None:
                    self._before = (read_bytes(place) or b"").decode(errors="replace")
                write_bytes(place, (self._before + "\n".join(self._lines) + "\n").encode())
                self._written = len(self._lines)
        self._next = time.monotonic() + self.EVERY_S
