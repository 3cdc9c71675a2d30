"""How a job stands while it runs, beside its results: ``<out>/live.json``, written every few seconds.

A thread of its own writes it, so that storage that is slow, fails or does not answer delays no job; what it says may be
some seconds old. The last write says how the job ended. Whoever is killed writes no last word: a job that says that it
runs, and has been silent for longer than it ever is, counts as lost (`state_in_words`). As the log, it comes as soon as
there are results: a job that fails before it writes anything leaves nothing. Where a lease is held, it is checked
before each write.
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloudem import __version__
from cloudem.errors import CloudemError, StoppedError, one_line
from cloudem.execution.workers import ClusterSeen
from cloudem.io.storage.location import UNFINISHED, contents, is_remote, join, read_start, write_bytes
from cloudem.jobs.logs import LOG_FILE
from cloudem.jobs.preview import PREVIEW_FOLDER, write_previews
from cloudem.jobs.progress import Progress
from cloudem.text import amount_done, clock, rough_time

LIVE_FILE = "live.json"

BESIDE_RESULTS = (LOG_FILE, LIVE_FILE, PREVIEW_FOLDER)
"""What any job may have left in its ``OUT`` that is no result."""

EVERY_S, EVERY_REMOTE_S = 3.0, 10.0
"""Pause between two writes, seconds, in a folder and on S3."""

LOST_S, LOST_REMOTE_S = 60.0, 120.0
"""A job that says that it runs and has been silent for so long, in a folder or on S3, has been killed or cut off."""

LAST_S = 3.0
"""How long the end of a job waits for the last write, seconds: less than an interrupted command has to end."""

MOST_ROWS, MOST_WARNINGS = 200, 50
"""Of the last iterations and warnings, so many are kept."""

LARGEST_LIVE = 1 << 20
"""Bytes of the largest record that is read."""

LiveState: TypeAlias = Literal["running", "finished", "failed", "stopped"]

Cell: TypeAlias = float | int | str | None

Moment: TypeAlias = Annotated[float, Field(ge=0, le=1e11)]


class Frozen(BaseModel):
    """A record that neither changes nor holds what it does not declare, nor numbers that are none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LiveTiming(Frozen):
    """Cost of one stage that has run: seconds on the clock and of the CPU, bytes of memory at most, items done."""

    name: str
    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    done: int = 0


class LiveTraffic(Frozen):
    """Bytes received and sent for one purpose, in the iterations that are done."""

    received: int
    sent: int


class Live(Frozen):
    """How a job stands.

    Attributes
    ----------
    job, step
        Kind of the job, and what it is called in its workflow; empty where it runs by itself.
    version
        Of cloudem.
    state
        What the job said last of itself; see `state_in_words` for what that means by now.
    why
        Of a job that failed, its error; of one that was stopped, how to go on. One line.
    began, updated
        When this run of the job began and when this was written, unix seconds.
    host, pid
        Where it runs.
    stage, done, total, unit
        The stage that runs, how many of its items are done, of how many (None: not known), and what they are.
    stage_s, stage_seconds_left
        Seconds since it began, and to its end at the rate so far (None: not known).
    iterations
        Rows of the last iterations, as given to `Progress.iteration`; None for what is no number. How they are called
        and shown the job declares: `cloudem.model.columns.described`.
    timings
        Of the stages that have run.
    warnings
        The last ones.
    moved
        Bytes by purpose.
    cluster
        What it runs on, as it was seen last; None before that is known.
    """

    format: Literal[1] = 1
    job: str
    step: str = ""
    version: str = __version__
    state: LiveState = "running"
    why: str = ""
    began: Moment
    updated: Moment
    host: str = ""
    pid: int = 0
    stage: str = ""
    done: int = 0
    total: int | None = None
    unit: str = ""
    stage_s: float = 0.0
    stage_seconds_left: float | None = None
    iterations: tuple[dict[str, Cell], ...] = ()
    timings: tuple[LiveTiming, ...] = ()
    warnings: tuple[str, ...] = ()
    moved: dict[str, LiveTraffic] = Field(default_factory=dict)
    cluster: ClusterSeen | None = None

    @property
    def resolution_A(self) -> float | None:  # noqa: N802  the unit is part of the name
        """Resolution that the last iteration states, Å; None where none is known."""
        found = self.iterations[-1].get("resolution_A") if self.iterations else None
        return float(found) if isinstance(found, float | int) else None


def is_silent(live: Live, now: float, silent_s: float = LOST_S) -> bool:
    """Return whether a job says that it runs, and has given no sign of life for ``silent_s`` seconds."""
    return live.state == "running" and now - live.updated >= silent_s


def state_in_words(live: Live, now: float, silent_s: float = LOST_S) -> str:
    """Return how a job stands, in words.

    Parameters
    ----------
    live
        What it said last.
    now
        Unix seconds, by a clock that is right: that of the job is believed, too.
    silent_s
        Silence after which a running job counts as lost, seconds (`LOST_S`, `LOST_REMOTE_S`).

    Returns
    -------
    str
        One line without control characters: ``running``, ``finished``, ``failed: …``, ``stopped: …`` or ``lost: …``.
    """
    if is_silent(live, now, silent_s):
        silence = rough_time(now - live.updated)
        return f"lost: no sign of life for {silence}; run the same command to resume"
    return one_line(f"{live.state}: {live.why}") if live.why and live.state != "running" else live.state


def stage_in_words(live: Live) -> str:
    """Return how far a running job is: ``3 iterations done, align 340 of 600 images, 1:05 left``."""
    said = []
    if live.iterations and isinstance(done := live.iterations[-1].get("iteration"), int):
        said.append(f"{done} iteration{'s' if done != 1 else ''} done")
    if live.stage:
        said.append(f"{live.stage} {done_in_words(live)}".rstrip())
    return one_line(", ".join(said))


def done_in_words(live: Live) -> str:
    """Return how far the stage that runs is: ``340 of 600 images, 1:05 left``."""
    left = f"{clock(live.stage_seconds_left)} left" if live.stage_seconds_left else ""
    return ", ".join(filter(None, (amount_done(live.done, live.total or None, live.unit), left)))


def silence_of(url: str) -> float:
    """Return after how many seconds of silence a running job under a URL counts as lost."""
    return LOST_REMOTE_S if is_remote(url) else LOST_S


def read_live(url: str) -> Live | None:
    """Return how the job whose results lie under a URL stands; None where nothing says so, or it cannot be read."""
    found = read_start(join(url, LIVE_FILE), LARGEST_LIVE)
    return None if found is None else parse_live(found[0])


def parse_live(raw: bytes) -> Live | None:
    """Return what a ``live.json`` says; None if it was damaged, or written by a version that says more."""
    try:
        return Live.model_validate_json(raw)
    except ValidationError:
        return None


@contextlib.contextmanager
def keep_live(
    url: str,
    kind: str,
    progress: Progress,
    *,
    step: str = "",
    guard: Callable[[], None] | None = None,
    note: Callable[[Live], None] | None = None,
    writes: bool = True,
    every_s: float | None = None,
) -> Iterator[None]:
    """Write how a job stands while the block runs, and how it ended at its end.

    Parameters
    ----------
    url
        Of its results.
    kind
        Of the job.
    progress
        What it is asked for.
    step
        What the job is called in its workflow.
    guard
        Called before each write; raises if somebody else writes there by now.
    note
        Told, in the same thread, when the job has begun to write and when it has ended; again, while it raises.
    writes
        Whether there is a record beside the results; what is made as a whole, or is one file, has none, and is noted
        alone, once it is there.
    every_s
        Pause between two writes, seconds; by default as suits the place.
    """
    pause = every_s if every_s is not None else EVERY_REMOTE_S if is_remote(url) else EVERY_S
    first = Live(job=kind, step=step, **_here(time.time()))
    writer = _Writer(url, first, progress, guard or (lambda: None), note or (lambda _: None), pause, writes)
    try:
        yield
    except BaseException as error:
        writer.end(*how_it_failed(error))
        raise
    writer.end("finished", "")


def how_it_failed(error: BaseException) -> tuple[LiveState, str]:
    """Return what becomes of a job that raised an error, and why in one line."""
    if isinstance(error, StoppedError):
        return "stopped", str(error).removeprefix("stopped ")
    if isinstance(error, KeyboardInterrupt):
        return "stopped", "interrupted; run the same command again to resume"
    if isinstance(error, CloudemError):
        return "failed", str(error)
    if isinstance(error, MemoryError):
        return "failed", "out of memory; try fewer --threads, or a machine with more memory"
    if isinstance(error, OSError):
        return "failed", one_line(f"{error.filename or 'reading or writing'}: {error.strerror or error}")
    return "failed", one_line(f"unexpected {type(error).__name__}: {error}; see {LOG_FILE}")


class _Writer:
    """Writes the record from a thread of its own."""

    def __init__(
        self,
        url: str,
        first: Live,
        progress: Progress,
        guard: Callable[[], None],
        note: Callable[[Live], None],
        pause: float,
        writes: bool,
    ) -> None:
        self._writes = writes
        self._url, self._first, self._progress, self._pause = url, first, progress, pause
        self._guard, self._note, self._noted = guard, note, ""
        self._end: tuple[LiveState, str] = ("running", "")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="cloudem-live", daemon=True)
        self._thread.start()

    def end(self, state: LiveState, why: str) -> None:
        """Have the last record written, which says how it ended; wait for that a moment only."""
        self._end = (state, why)
        self._over.set()
        self._thread.join(LAST_S)

    def _keep(self) -> None:
        over = False
        while not over:
            # trouble with the record stops no job: whatever is wrong with the place, the job itself will say
            with contextlib.suppress(Exception):
                self._write()
            over = self._over.wait(self._pause)
        with contextlib.suppress(Exception):
            self._write()

    def _write(self) -> None:
        state, why = self._end
        live = now_of(self._first, self._progress, state, why)
        if self._writes:
            found = contents(self._url)
            if not found or UNFINISHED in found:
                return
            self._guard()
            write_bytes(join(self._url, LIVE_FILE), live.model_dump_json().encode())
            self._write_previews()
        elif state != "finished":
            return
        if self._noted != state:
            self._note(live)
            self._noted = state

    def _write_previews(self) -> None:
        shown = self._progress.previews.take()
        try:
            write_previews(self._url, shown)
        except BaseException:
            self._progress.previews.give_back(shown)
            raise


def now_of(first: Live, progress: Progress, state: LiveState, why: str) -> Live:
    """Return how a job stands by now, from what its view keeps; the job goes on meanwhile."""
    running = progress.running()
    stage = running[-1] if running else None
    now: dict[str, Any] = {"state": state, "why": why, "updated": time.time()}
    if stage is not None and state == "running":
        left = _finite(stage.seconds_left)
        now |= {"stage": stage.name, "done": stage.done, "total": stage.total, "unit": stage.unit}
        now |= {"stage_s": stage.elapsed, "stage_seconds_left": left if isinstance(left, float) else None}
    timings = [LiveTiming(**asdict(each)) for each in progress.timings()]
    moved = {name: LiveTraffic(**part._asdict()) for name, part in progress.moved().items() if any(part)}
    return first.model_copy(
        update={
            **now,
            "iterations": _rows(progress.iterations()),
            "timings": tuple(timings),
            "warnings": tuple(one_line(text) for text in progress.warnings()[-MOST_WARNINGS:]),
            "moved": moved,
            "cluster": progress.cluster.look(progress.doing()),
        }
    )


def _here(now: float) -> dict[str, Any]:
    return {"began": now, "updated": now, "host": platform.node(), "pid": os.getpid()}


def _rows(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Cell], ...]:
    return tuple({str(name): _finite(value) for name, value in row.items()} for row in rows[-MOST_ROWS:])


def _finite(value: Any) -> Cell:
    """Return a value as JSON holds it; None for what is no number."""
    if isinstance(value, str) or value is None:
        return value
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, int):
        return int(plain)
    return float(plain) if math.isfinite(plain) else None
