"""The steps of a workflow, one after another.

Each is a job that runs as a process of its own, so that no job can take the controller with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cloudem.cloud.money import StepEnded, StepStarted
from cloudem.cloud.planning.plan import Plan, PlannedStep
from cloudem.errors import ParameterError
from cloudem.io.storage.groups import list_groups, read_attributes
from cloudem.processes import ending_with_this
from cloudem.runs.controller.meter import Meter
from cloudem.runs.records import RunRecord, RunStore

LOG = logging.getLogger("cloudem.run")

ORDER_S = 6.0
"""How long a job may take to end when its controller ends, before it is killed."""

KILL_S = 30.0
"""How long a job may take to end when it has to, before it is killed."""

TRIES = 3
"""How often a step is begun that fails, where nodes were lost meanwhile."""

FIRST_FINISH_S: Mapping[str, float] = {"local": 10.0, "aws": 120.0}
"""How long an iteration is taken to last before one was seen."""

ITERATION_S = 10.0
"""How often the store is asked for the time that iterations took."""

LINES, LONGEST = 6, 500
"""Of what a job said last: lines that are kept, and characters of each."""

DELETE = "\x7f"
"""The one character that stands for itself in JSON and may not in TOML."""

How = Literal["done", "stopped", "failed"]


class RunningStep(Protocol):
    """A job that runs, as its controller sees it."""

    job: str

    @property
    def progress(self) -> tuple[str, ...]:
        """The last lines that it said."""

    def poll(self) -> How | None:
        """Return how it ended, or None while it runs."""

    def iteration_s(self) -> float:
        """Return the seconds that its longest finished iteration took; 0 where there is none yet."""

    def ask_to_stop(self) -> None:
        """Have it stop where it can go on later: after the running iteration."""

    def interrupt(self) -> None:
        """Have it stop now; what is committed stays."""

    def kill(self) -> None:
        """End it, whatever it does."""


class StepProcess(RunningStep):
    """A job that runs as a process.

    Parameters
    ----------
    step
        Parameters of the job, with its name as ``job``.
    on_head
        Whether it runs in this process's machine alone, as it was planned: then it waits for no workers.
    scheduler, certificates
        Of the cluster that it runs on.
    say
        Is told every line.
    """

    def __init__(
        self,
        step: Mapping[str, Any],
        on_head: bool,
        scheduler: str,
        certificates: str | None,
        say: Callable[[str], None],
    ) -> None:
        self.job, self._out = str(step["job"]), str(step["out"])
        self._say = say
        self._last: deque[str] = deque(maxlen=LINES)
        self._folder = tempfile.TemporaryDirectory(prefix="cloudem-step-")
        file = Path(self._folder.name) / "job.toml"
        file.write_text(as_toml(step), encoding="utf-8")
        where = ["--scheduler", scheduler, *(["--certificates", certificates] if certificates else [])]
        options = ["--executor", "serial"] if on_head else where
        self._process = subprocess.Popen(  # noqa: S603 - this program itself
            # without its controller nobody would hear of its end: the next one has it go on from what is committed
            ending_with_this([sys.executable, "-m", "cloudem", "run", str(file), "--replace", *options]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self._reader = threading.Thread(target=self._read, name="cloudem-step", daemon=True)
        self._reader.start()

    @property
    def progress(self) -> tuple[str, ...]:
        """The last lines that it said."""
        return tuple(self._last)

    def poll(self) -> How | None:
        """Return how it ended, or None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._reader.join(timeout=5)
        self._close()
        return "done" if code == 0 else "stopped" if code in (3, 130, -signal.SIGUSR1) else "failed"

    def iteration_s(self) -> float:
        """Return the seconds that its longest finished iteration took; 0 where there is none yet."""
        names = list_groups(self._out, "iterations")
        found = [read_attributes(self._out, f"iterations/{name}") or {} for name in names]
        return max((float(each.get("row", {}).get("seconds", 0.0)) for each in found), default=0.0)

    def ask_to_stop(self) -> None:
        """Have it stop where it can go on later: after the running iteration."""
        self._signal(signal.SIGUSR1)

    def interrupt(self) -> None:
        """Have it stop now; what is committed stays."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it, whatever it does."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=5)
        self._close()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            text = line.rstrip()
            if text:
                self._last.append(text[:LONGEST])
                self._say(text)

    def _close(self) -> None:
        if self._process.stdout is not None and not self._reader.is_alive():
            self._process.stdout.close()
        self._folder.cleanup()


@dataclass
class _Running:
    """The step that runs.

    Attributes
    ----------
    number, name
        From 0; as the ledger calls it.
    planned
        What was planned for it.
    process
        Its job.
    began
        When, unix seconds.
    losses
        How many nodes had ended before it.
    iteration_s
        Seconds that its longest finished iteration took, as far as it was asked; 0 where none is known.
    asked_to_stop
        Whether it is to stop after the running iteration.
    interrupted
        When it was told to stop at once, unix seconds; None where it was not.
    """

    number: int
    name: str
    planned: PlannedStep
    process: RunningStep
    began: float
    losses: int
    iteration_s: float = 0.0
    asked_to_stop: bool = False
    interrupted: float | None = None


class Steps:
    """The steps of one run: which is next, the one that runs, and how they ended.

    Parameters
    ----------
    store
        Of the run; which steps are finished is read now, and from now on nobody else writes it.
    record
        What was asked for and planned.
    meter
        Is told when steps begin and end, and knows how many nodes were lost.
    start
        Begins a step: its job, and whether it runs on the head alone.
    clock
        Unix seconds.

    Attributes
    ----------
    failure
        Why one has failed for good, for people; empty where none has.
    """

    def __init__(
        self,
        store: RunStore,
        record: RunRecord,
        meter: Meter,
        start: Callable[[Mapping[str, Any], bool], RunningStep],
        clock: Callable[[], float],
    ) -> None:
        self._store, self._record, self._meter, self._start, self._clock = store, record, meter, start, clock
        self._plan = Plan.from_json(record.plan).steps
        self._finished = set(store.finished())
        self._running: _Running | None = None
        self._tries = 0
        self._iteration_at = 0.0
        self.failure = ""

    @property
    def finished(self) -> int:
        """How many are finished."""
        return len(self._finished)

    @property
    def current(self) -> int | None:
        """Number of the step that runs, or is next, from 0; None where none is left."""
        return next((n for n in range(len(self._record.steps)) if n not in self._finished), None)

    @property
    def complete(self) -> bool:
        """Whether there were steps, and all are finished."""
        return bool(self._record.steps) and self.current is None

    @property
    def planned(self) -> PlannedStep | None:
        """What was planned for the step that runs, or is next; for a cluster without steps, its one fleet."""
        number = self.current
        if number is None:
            return self._plan[0] if not self._record.steps and self._plan else None
        return self._plan[number]

    @property
    def left(self) -> list[PlannedStep]:
        """What was planned for all that are not finished."""
        return [planned for n, planned in enumerate(self._plan) if n not in self._finished]

    @property
    def running(self) -> bool:
        """Whether one runs."""
        return self._running is not None

    @property
    def progress(self) -> tuple[str, ...]:
        """The last lines that the running one said."""
        return self._running.process.progress if self._running is not None else ()

    def to_finish_s(self, now: float) -> float:
        """Return the seconds that the running iteration may still take: as long as the longest before it.

        Parameters
        ----------
        now
            The time, unix seconds.
        """
        run = self._running
        if run is None:
            return 0.0
        if now >= self._iteration_at + ITERATION_S:
            self._iteration_at = now
            run.iteration_s = run.process.iteration_s()
        return run.iteration_s or min(FIRST_FINISH_S[self._record.provider], run.planned.wall.high)

    def begin(self, number: int, now: float) -> None:
        """Begin a step; ``now`` is in unix seconds."""
        step, planned = self._record.steps[number], self._plan[number]
        name = f"{number}-{step['job']}"
        self._meter.enter(StepStarted(now, name, planned.usd, planned.wall))
        LOG.info("step %d of %d: %s", number + 1, len(self._record.steps), step["job"])
        losses = self._meter.losses
        self._running = _Running(number, name, planned, self._start(step, planned.on_head), now, losses)

    def follow(self, now: float, *, draining: bool) -> None:
        """Enter how the running step ended, or see to it that it ends where it has to.

        Parameters
        ----------
        now
            The time, unix seconds.
        draining
            Whether it is to stop after the running iteration.
        """
        run = self._running
        if run is None:
            return
        how = run.process.poll()
        if how is not None:
            self._ended(run, how, now, told=draining or run.asked_to_stop or run.interrupted is not None)
        elif draining and not run.asked_to_stop:
            run.asked_to_stop = True
            run.process.ask_to_stop()
        elif run.interrupted is not None and now - run.interrupted >= KILL_S:
            LOG.warning("%s did not end within %.0f s and is killed", run.process.job, KILL_S)
            run.process.kill()

    def interrupt(self) -> None:
        """Have the running one stop at once; `follow` kills it where it does not end within `KILL_S`."""
        if self._running is not None:
            self._running.interrupted = self._clock()
            self._running.process.interrupt()

    def close(self) -> None:
        """End the running one, as its controller ends: within `ORDER_S`. What is committed stays."""
        if self._running is not None:
            process = self._running.process
            process.interrupt()
            limit = time.monotonic() + ORDER_S
            while process.poll() is None and time.monotonic() < limit:
                time.sleep(0.05)
            process.kill()

    def _ended(self, run: _Running, how: How, now: float, *, told: bool) -> None:
        """Enter the end of a step, and decide whether it is begun again; ``told`` is whether it was told to stop."""
        process = run.process
        if how == "failed" and run.interrupted is not None:  # it was ended before it could say so
            how = "stopped"
        self._meter.enter(StepEnded(now, run.name, how))
        self._running = None
        if how == "done":
            self._store.finish(run.number, {"at": now, "seconds": now - run.began, "job": process.job})
            self._finished.add(run.number)
            self._tries = 0
        elif how == "failed" or not told:  # or somebody else stopped it
            self._tries += 1
            lost = self._meter.losses > run.losses
            if (how == "failed" and not lost) or self._tries >= TRIES:
                self.failure = f"{run.name} failed: {process.progress[-1] if process.progress else 'without a message'}"


def as_toml(step: Mapping[str, Any]) -> str:
    """Return a job file: strings, numbers, truth values and lists of them are written alike in TOML and JSON.

    Names are quoted, so that each is one name whatever is in it.
    """
    lines = []
    for name, value in step.items():
        if value is None:
            continue
        if not isinstance(value, str | int | float | bool | Sequence):
            raise ParameterError(f"{name} = {value!r:.60} is no value of a job file")
        text = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        lines.append(f"{json.dumps(name, ensure_ascii=False)} = {text}".replace(DELETE, "\\u007f"))
    return "\n".join(lines) + "\n"
