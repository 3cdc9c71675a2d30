"""One step of a workflow: a job that runs as a process of its own, so that no job can take the controller with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from cloudem.errors import ParameterError
from cloudem.io.storage.groups import list_groups, read_attributes
from cloudem.processes import ending_with_this

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
