"""What a person sees of a running job, and how long each of its stages took."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import psutil

from cloudem import traffic
from cloudem.cloud.planning.work import Stage
from cloudem.execution.doing import JobDoing, StepDoing, StepRunning
from cloudem.execution.task_names import labelled
from cloudem.jobs.preview import Previews
from cloudem.jobs.watched_cluster import WatchedCluster
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column, Value, described
from cloudem.traffic import Moved

DRAWN = {"drawn": True}
"""Marks a line of the log that a view draws in its own way."""


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
    done
        How many items were done, where the stage counts them: of ``align``, images.
    """

    name: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    done: int = 0


class RunningStage:
    """The running stage; tells its view how far it is."""

    def __init__(self, name: str, total: int | None, unit: str, view: Progress) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self._started = time.monotonic()
        self._view = view

    def advance(self, n: int = 1) -> None:
        """Say that ``n`` more are done."""
        self.done += n
        self._view.show_advance(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        """Units per second so far."""
        return self.done / max(self.elapsed, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Seconds to the end at the rate so far; None where that is not known."""
        return (self.total - self.done) / self.rate if self.total and self.done else None


class Progress(ABC):
    """A view of a running job: facts, stages with a bar, one row for each iteration, lines of text, timings."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        self.log = log or logging.getLogger("cloudem")
        self._clock = _Clock()
        self._iterations: list[dict[str, Value]] = []
        self._moved = traffic.total_traffic([])
        self._warnings: list[str] = []
        self._running: list[RunningStage] = []
        self._units: dict[str, str] = {}
        self.previews = Previews()
        """Of the job's map, for looking."""
        self.cluster = WatchedCluster()
        """What it runs on, for looking."""
        self.columns: Sequence[Column] = (ITERATION, SECONDS, RECEIVED)
        """What the running job declares of its rows."""
        self.declared: Mapping[str, Stage] = {}
        """What it declares of its stages, by name."""

    def facts(self, facts: Mapping[str, str]) -> None:
        """State what is being worked on, as names and values: ``{"particles": "2,000 of 96 px"}``."""
        for name, value in facts.items():
            self.log.info("%s: %s", name, value, extra=DRAWN)
        self.show_facts(facts)

    @contextmanager
    def stage(self, name: str, total: int | None = None, unit: str | None = None) -> Iterator[RunningStage]:
        """Run a stage; its time and memory are added to those of earlier stages of that name.

        Parameters
        ----------
        name
            Of the stage.
        total, unit
            How many items it has, and what they are; by default what the job declares of the stage, if it has several.
        """
        declared = self.declared.get(name)
        if declared is not None:
            total = declared.items if total is None and declared.items > 1 else total
            unit = unit or declared.unit
        unit = unit or "images"
        stage = RunningStage(name, total, unit, self)
        self._units[name] = unit
        self._running.append(stage)
        self.show_stage(stage)
        try:
            with self._clock.measure(name, stage), labelled(step=name):
                yield stage
        finally:
            self._running.remove(stage)
            self.show_end(stage)
            what = f"{stage.done} {unit} in " if total is not None or stage.done else ""
            self.log.debug("%s: %s%.2f s", name, what, stage.elapsed)

    def iteration(self, row: Mapping[str, Value], moved: Moved | None = None) -> None:
        """Add the row of a finished iteration: any names and values; those that the job declares look as it says.

        ``moved`` is what went over the network meanwhile; it is for the log.
        """
        self._iterations.append(dict(row))
        said = ((described(self.columns, name, value), value) for name, value in row.items())
        self.log.info(", ".join(f"{column.heading} {column.text(value)}" for column, value in said), extra=DRAWN)
        self.show_iteration(row)
        if moved and (words := traffic.in_words(moved)):
            self.log.debug("iteration %s %s", row["iteration"], words)
            self._moved = traffic.total_traffic([self._moved, moved])

    def message(self, text: str) -> None:
        """Say something: on the screen and in the log."""
        self.log.info(text)

    def warning(self, text: str) -> None:
        """Warn: on the screen, in the log, and for the report."""
        self._warnings.append(text)
        self.log.warning(text)

    def running(self) -> list[RunningStage]:
        """Return the stages that run, the innermost last."""
        return list(self._running)

    def timings(self) -> list[StageTiming]:
        """Return what each stage has cost so far, in the order in which they first ran."""
        return self._clock.timings()

    def doing(self) -> JobDoing:
        """Return what the job does now, for whoever shows what runs its tasks."""
        units = dict(self._units)
        steps = {
            each.name: StepDoing(each.name, each.wall_s, each.done, units.get(each.name, "")) for each in self.timings()
        }
        for stage in self.running():
            before = steps.get(stage.name, StepDoing(stage.name, 0.0, 0))
            now = StepRunning(stage.elapsed, stage.done, stage.total)
            steps[stage.name] = StepDoing(
                stage.name, before.seconds + now.seconds, before.done + now.done, stage.unit, now
            )
        number = self._iterations[-1].get("iteration") if self._iterations else 0
        return JobDoing(int(number) if isinstance(number, int) else len(self._iterations), tuple(steps.values()))

    def iterations(self) -> list[dict[str, Value]]:
        """Return the rows of all iterations so far."""
        return [dict(row) for row in self._iterations]

    def moved(self) -> Moved:
        """Return what went over the network in all iterations of this run so far."""
        return self._moved

    def warnings(self) -> list[str]:
        """Return the text of all warnings so far."""
        return list(self._warnings)

    @abstractmethod
    def show_facts(self, facts: Mapping[str, str]) -> None:
        """Show what is being worked on."""

    @abstractmethod
    def show_stage(self, stage: RunningStage) -> None:
        """Show that a stage begins."""

    @abstractmethod
    def show_advance(self, stage: RunningStage) -> None:
        """Show that a stage is further."""

    @abstractmethod
    def show_end(self, stage: RunningStage) -> None:
        """Show that a stage ends."""

    @abstractmethod
    def show_iteration(self, row: Mapping[str, Value]) -> None:
        """Show a finished iteration."""


@final
class SilentProgress(Progress):
    """Shows nothing, but keeps and measures: for tests and for use from Python."""

    def show_facts(self, facts: Mapping[str, str]) -> None:
        """Nothing."""

    def show_stage(self, stage: RunningStage) -> None:
        """Nothing."""

    def show_advance(self, stage: RunningStage) -> None:
        """Nothing."""

    def show_end(self, stage: RunningStage) -> None:
        """Nothing."""

    def show_iteration(self, row: Mapping[str, Value]) -> None:
        """Nothing."""


class _Clock:
    """Wall time, CPU time and peak memory by stage; a stage inside another one counts in both."""

    SAMPLE_S = 0.5

    def __init__(self) -> None:
        self._timings: dict[str, StageTiming] = {}
        self._process = psutil.Process()

    def timings(self) -> list[StageTiming]:
        return list(self._timings.values())

    @contextmanager
    def measure(self, name: str, stage: RunningStage) -> Iterator[None]:
        wall, cpu = time.monotonic(), self._cpu()
        over, peaks = threading.Event(), [0]
        sampler = threading.Thread(target=self._sample, args=(over, peaks), name="cloudem-memory", daemon=True)
        sampler.start()
        try:
            yield
        finally:
            over.set()
            sampler.join()
            old = self._timings.get(name, StageTiming(name, 0.0, 0.0, 0))
            self._timings[name] = StageTiming(
                name,
                old.wall_s + time.monotonic() - wall,
                old.cpu_s + max(self._cpu() - cpu, 0.0),
                max(old.peak_rss_bytes, peaks[0]),
                old.done + stage.done,
            )

    def _sample(self, over: threading.Event, peaks: list[int]) -> None:
        """Note the highest memory until the stage is over; looking for children is dear, so not every time."""
        family: list[psutil.Process] = []
        for turn in itertools.count():
            if turn % 10 == 0:
                family = self._family()
            peaks[0] = max(peaks[0], _memory(family))
            if over.wait(self.SAMPLE_S):
                peaks[0] = max(peaks[0], _memory(family))
                return

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu(self) -> float:
        """CPU seconds of this process and of its children, those that have ended included."""
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.Error):  # a child that has just ended is counted with its parent
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def _memory(family: list[psutil.Process]) -> int:
    total = 0
    for process in family:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total
