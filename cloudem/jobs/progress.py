"""What a person sees of a running job, and how long each of its stages took."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import psutil


@dataclass(frozen=True)
class StageTiming:
    """Cost of one stage, summed over all its runs.

    Attributes
    ----------
    name
        Name of the stage.
    wall_s, cpu_s
        Seconds on the clock, and CPU seconds of this process and its children.
    peak_rss_bytes
        Highest resident memory of this process and its children that was seen during the stage, bytes.
    """

    name: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int


class Stage:
    """The running stage; tells its view how far it is."""

    def __init__(self, name: str, total: int | None, unit: str, view: Progress) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.started = time.monotonic()
        self._view = view

    def advance(self, n: int = 1) -> None:
        """Say that ``n`` more are done."""
        self.done += n
        self._view.show_advance(self)

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self.done / max(time.monotonic() - self.started, 1e-9)


class Progress(ABC):
    """A view of a running job: stages with a bar, one row for each iteration, lines of text, timings."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        self.log = log or logging.getLogger("cloudem")
        self._clock = _Clock()

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "images") -> Iterator[Stage]:
        """Run a stage of ``total`` units; its time and memory are added to those of earlier stages of that name."""
        stage = Stage(name, total, unit, self)
        self.show_stage(stage)
        try:
            with self._clock.measure(name):
                yield stage
        finally:
            self.show_end(stage)

    def iteration(self, row: Mapping[str, float | int | str]) -> None:
        """Add the row of a finished iteration; any names and values, the same names in every row of a job.

        Names that are known get a title and a format: ``iteration``, ``resolution_A``, ``limit_A``,
        ``images_per_s``, ``moving`` (a share, 0 to 1), ``seconds``.
        """
        self.show_iteration(row)

    def message(self, text: str) -> None:
        """Say something: on the screen and in the log."""
        self.log.info(text)

    def warning(self, text: str) -> None:
        """Warn: on the screen and in the log."""
        self.log.warning(text)

    def timings(self) -> list[StageTiming]:
        """Return what each stage has cost so far, in the order in which they first ran."""
        return self._clock.timings()

    @abstractmethod
    def show_stage(self, stage: Stage) -> None:
        """Show that a stage begins."""

    @abstractmethod
    def show_advance(self, stage: Stage) -> None:
        """Show that a stage is further."""

    @abstractmethod
    def show_end(self, stage: Stage) -> None:
        """Show that a stage ends."""

    @abstractmethod
    def show_iteration(self, row: Mapping[str, float | int | str]) -> None:
        """Show a finished iteration."""


@final
class SilentProgress(Progress):
    """Shows nothing, but measures: for tests and for use from Python."""

    def show_stage(self, stage: Stage) -> None:
        """Nothing."""

    def show_advance(self, stage: Stage) -> None:
        """Nothing."""

    def show_end(self, stage: Stage) -> None:
        """Nothing."""

    def show_iteration(self, row: Mapping[str, float | int | str]) -> None:
        """Nothing."""


class _Clock:
    """Wall time, CPU time and peak memory by stage; a stage inside another one counts in both."""

    SAMPLE_S = 0.25

    def __init__(self) -> None:
        self._timings: dict[str, StageTiming] = {}
        self._process = psutil.Process()

    def timings(self) -> list[StageTiming]:
        return list(self._timings.values())

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        peak = _Peak(self._memory)
        wall, cpu = time.monotonic(), self._cpu()
        peak.start()
        try:
            yield
        finally:
            high = peak.stop()
            old = self._timings.get(name, StageTiming(name, 0.0, 0.0, 0))
            self._timings[name] = StageTiming(
                name,
                old.wall_s + time.monotonic() - wall,
                old.cpu_s + max(self._cpu() - cpu, 0.0),
                max(old.peak_rss_bytes, high),
            )

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu(self) -> float:
        """CPU seconds of this process and its living and reaped children."""
        own = self._process.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in self._family()[1:]:
            try:
                times = child.cpu_times()
            except psutil.Error:  # it has just ended, and is counted with its parent
                continue
            total += times.user + times.system
        return float(total)

    def _memory(self) -> int:
        total = 0
        for process in self._family():
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue
        return total


class _Peak:
    """Samples memory in a thread of its own while a stage runs."""

    def __init__(self, memory: Callable[[], int]) -> None:
        self._memory = memory
        self._stop = threading.Event()
        self._high = 0
        self._thread = threading.Thread(target=self._sample, name="cloudem-memory", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self._high

    def _sample(self) -> None:
        while True:
            self._high = max(self._high, self._memory())
            if self._stop.wait(_Clock.SAMPLE_S):
                self._high = max(self._high, self._memory())
                return
