"""The views of a running job: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from typing import TextIO, final

from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cloudem.errors import printable
from cloudem.jobs.progress import Progress, RunningStage
from cloudem.model.columns import Value, described
from cloudem.text import amount_done, clock

COLUMN_WIDTH = 12
TABLE_WIDTH = 78
"""Of the rows, if there are many columns: what terminals hold without being asked for more."""


@final
class LiveProgress(Progress):
    """Facts and rows scroll by above a bar for each running stage; close it at the end."""

    def __init__(self, log: logging.Logger, console: Console | None = None) -> None:
        super().__init__(log)
        self._console = console or Console(highlight=False)
        self._stages: list[RunningStage] = []
        self._heading: list[str] = []
        self._handler = _Screen(self._console)
        self._live = Live(get_renderable=self._bars, console=self._console, refresh_per_second=4, transient=True)
        log.addHandler(self._handler)
        self._live.start()

    def close(self) -> None:
        """Take the bars away and leave the rows."""
        self._live.stop()
        self.log.removeHandler(self._handler)

    def show_facts(self, facts: Mapping[str, str]) -> None:
        """Print names and values, aligned."""
        for name, value in facts.items():
            self._console.print(Text.assemble((f"  {name:<{COLUMN_WIDTH}}", "dim"), value), soft_wrap=True)

    def show_stage(self, stage: RunningStage) -> None:
        """Add a bar."""
        self._stages.append(stage)

    def show_advance(self, stage: RunningStage) -> None:
        """Nothing: the bars are drawn four times a second."""

    def show_end(self, stage: RunningStage) -> None:
        """Take the bar away."""
        self._stages.remove(stage)

    def show_iteration(self, row: Mapping[str, Value]) -> None:
        """Print the row, below a heading if it is the first with these names."""
        width = min(COLUMN_WIDTH, TABLE_WIDTH // len(row))
        if self._heading != list(row):
            self._heading = list(row)
            heading = "".join(f"{described(self.columns, name).heading:>{width}}" for name in row)
            self._console.print()
            self._console.print(Text(heading, "bold"))
            self._console.print(Text("  " + "─" * (len(heading) - 2), "dim"))
        cells = Text()
        for name, value in row.items():
            text = described(self.columns, name, value).text(value)
            style = "bold green" if name == "resolution_A" else ""
            cells.append(" " * max(width - cell_len(text), 1)).append(text, style)
        self._console.print(cells)

    def _bars(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for stage in list(self._stages):
            table.add_row(
                Text(f"  {stage.name:<{COLUMN_WIDTH}}", "bold"),
                ProgressBar(total=stage.total, completed=stage.done, width=28, pulse=stage.total is None),
                Text(_counts(stage)),
                Text(_pace(stage), "dim"),
            )
        return table


@final
class PlainProgress(Progress):
    """Lines of text, for output that is not a terminal; a long stage says now and then how far it is."""

    EVERY_S = 30.0

    def __init__(self, log: logging.Logger) -> None:
        super().__init__(log)
        self._handler = _Lines(sys.stdout)
        self._handler.setLevel(logging.INFO)
        self._handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
        self._next_line = 0.0
        log.addHandler(self._handler)

    def close(self) -> None:
        """Print nothing any more."""
        self.log.removeHandler(self._handler)

    def show_facts(self, facts: Mapping[str, str]) -> None:
        """Nothing: the line of the log is enough."""

    def show_stage(self, stage: RunningStage) -> None:
        """Nothing yet."""
        self._next_line = time.monotonic() + self.EVERY_S

    def show_advance(self, stage: RunningStage) -> None:
        """Say how far it is, if it has not been said for a while."""
        if time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self.EVERY_S
            self.log.info("%s: %s, %s", stage.name, _counts(stage), _pace(stage))

    def show_end(self, stage: RunningStage) -> None:
        """Nothing: the file has a line of it."""

    def show_iteration(self, row: Mapping[str, Value]) -> None:
        """Nothing: the line of the log is enough."""


class _Lines(logging.StreamHandler[TextIO]):
    """Prints lines of the log as long as somebody reads them; the file has them anyway."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a line that a terminal does not act upon, whatever names it quotes."""
        return printable(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is of the standard library
        if not isinstance(sys.exception(), BrokenPipeError):
            super().handleError(record)


class _Screen(logging.Handler):
    """Prints lines of the log above the bars, apart from those that the view draws itself."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "drawn", False):
            return
        warns, message = record.levelno >= logging.WARNING, printable(record.getMessage())
        text = Text.assemble(("  ! ", "bold yellow"), message) if warns else Text("  " + message)
        self._console.print(text, soft_wrap=True)


def _counts(stage: RunningStage) -> str:
    return amount_done(stage.done, stage.total, stage.unit)


def _pace(stage: RunningStage) -> str:
    left = stage.seconds_left
    if left is None:
        return clock(stage.elapsed)
    rate = f"{stage.rate:,.0f}" if stage.rate >= 10 else f"{stage.rate:.2g}"
    return f"{rate} {stage.unit}/s, {clock(left)} left" if left > 0 else f"{rate} {stage.unit}/s"
