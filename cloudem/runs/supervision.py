"""What a node does all the time: look at the clock, at notices that it will be taken, and after its processes."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cloudem.cloud.metadata import Metadata
from cloudem.errors import ProviderError

TICK_S = 0.25
"""How often processes and the clock are looked at, seconds."""

STOP_S = 12.0
"""How long what was started may take to end in order."""

HINT_S = 120.0
"""How long a worker may take to leave a machine that is likely to be taken; after that it works on."""


class Watch:
    """What can end a node whatever it is: its deadline, and SIGTERM.

    The deadline holds by the clock of the world and, should somebody set that back, by the time that has passed.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._deadline, self._limit = float("inf"), float("inf")
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.asked.set())

    def until(self, deadline: float) -> None:
        """Set the deadline, unix seconds."""
        self._deadline, self._limit = deadline, passed() + max(deadline - time.time(), 0.0)

    def over(self) -> str:
        """Wait for a moment; return why the node has to end, empty while it has not."""
        if self.asked.wait(TICK_S):
            return "asked to end"
        if time.time() >= self._deadline or passed() >= self._limit:
            return "its deadline has passed"
        return ""


class Notice(NamedTuple):
    """That this machine is taken, or may be."""

    text: str
    left_s: float
    certain: bool


class Notices:
    """Looks for notices that this machine will be taken.

    Parameters
    ----------
    metadata
        The service.
    every_s
        How often to ask it, seconds.
    """

    def __init__(self, metadata: Metadata, every_s: float) -> None:
        self._metadata, self._every_s = metadata, every_s
        self._next, self._silent = 0.0, False

    def look(self) -> Notice | None:
        """Return the notice; None while there is none, or when it was asked for just before."""
        if time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + self._every_s
        try:
            taken, likely = self._metadata.interruption(), self._metadata.rebalance()
        except ProviderError as error:
            if not self._silent:
                say(str(error))
            self._silent = True
            return None
        self._silent = False
        if taken is not None:
            return Notice(f"this machine will be reclaimed at {utc(taken)}", max(taken - time.time(), 0.0), True)
        if likely is not None:
            return Notice("this machine is likely to be reclaimed soon", HINT_S, False)
        return None


@dataclass
class Child:
    """A process that this node runs.

    Attributes
    ----------
    name
        For people.
    argv
        Command.
    environment
        Besides this process's.
    """

    name: str
    argv: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    _again: float = 0.0

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(self.argv, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL)  # noqa: S603
        self.starts += 1
        say(f"{self.name} started")

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """How it ended; None while it runs, or before it was started."""
        return None if self._process is None else self._process.poll()

    def keep(self) -> None:
        """Start it again if it has ended, after a pause that grows."""
        now = time.monotonic()
        if self.running:
            self._again = 0.0
        elif not self._again:
            pause = min(2.0 ** (self.starts - 1), 30.0) if self.starts else 0.0
            if self.starts:
                say(f"{self.name} ended with {self.code}; starting it again in {pause:.0f} s")
            self._again = now + pause
        if self._again and now >= self._again:
            self._again = 0.0
            self.start()

    def ask_to_end(self) -> None:
        """Send SIGTERM."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self, limit_s: float = STOP_S) -> None:
        """End it in order within a limit, then by force."""
        self.ask_to_end()
        if self._process is not None:
            try:
                self._process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Repeated:
    """Calls something again and again in a thread that nobody waits for, and keeps what it returned last.

    Parameters
    ----------
    call
        What to call; may hang, or raise.
    every_s
        Pause between two calls, seconds.
    once
        Whether to stop once it did not raise.
    """

    def __init__(self, call: Callable[[], Any], every_s: float, once: bool = False) -> None:
        self._call, self._every_s, self._once = call, every_s, once
        self.value: Any = None
        self.changed = time.monotonic()
        self._last_error = ""
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                found = self._call()
            except Exception as error:
                if str(error) != self._last_error:
                    self._last_error = str(error)
                    say(f"{type(error).__name__}: {error}")
            else:
                if found != self.value:
                    self.value, self.changed = found, time.monotonic()
                if self._once:
                    return
            time.sleep(self._every_s)


def say(line: str) -> None:
    """Write a line into the node's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def passed() -> float:
    """Return seconds since some moment, those included for which the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc(unix: float) -> str:
    """Return a time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix))
