"""A page among Dask's: jobs that run on a scheduler, how far each step is, and images per second, as jobs tell it.

Dask itself knows tasks alone: how many images one has, and which step they belong to in which job, it does not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from cloudem.errors import one_line
from cloudem.execution.doing import JobDoing, StepDoing
from cloudem.text import amount_done, clock

FORGOTTEN_S = 60.0
"""A job that has said nothing for so long is shown no more."""

MOST_SHOWN = 50
"""Jobs that are kept, those that said something last."""

COLUMNS = {
    "job": ("Job", 400),
    "iterations": ("Iterations", 80),
    "step": ("Step", 120),
    "state": ("", 70),
    "done": ("Done", 200),
    "rate": ("Per second", 130),
    "took": ("Time", 90),
    "left": ("Left", 90),
}
"""Of the page: title and width, pixels."""


class ToldJobs:
    """What jobs have told a scheduler lately."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, JobDoing]] = {}

    def tell(self, job: str, doing: JobDoing, now: float) -> None:
        """Keep what a job does; ``now`` is in seconds."""
        self._told.pop(job, None)
        self._told[job] = now, doing
        self._told = dict(list(self._told.items())[-MOST_SHOWN:])

    def rows(self, now: float) -> dict[str, list[str]]:
        """Return what the page shows, by column; a line for each step of each job."""
        told = {job: doing for job, (at, doing) in self._told.items() if now - at < FORGOTTEN_S}
        lines = [_line(job, doing, step) for job, doing in sorted(told.items()) for step in doing.steps]
        return {name: [line[name] for line in lines] for name in COLUMNS}


def _line(job: str, doing: JobDoing, step: StepDoing) -> Mapping[str, str]:
    run = step.running
    seconds, done = (run.seconds, run.done) if run is not None and run.done else (step.seconds, step.done)
    rate = done / seconds if seconds > 0 else 0.0
    left = (run.total - run.done) / rate if run is not None and run.total and run.done and rate else None
    return {
        "job": one_line(job),
        "iterations": f"{doing.iterations:,}",
        "step": one_line(step.name),
        "state": "runs" if run is not None else "",
        "done": one_line(_done(step)),
        "rate": one_line(f"{rate:,.1f} {step.unit}") if done else "",
        "took": clock(step.seconds),
        "left": clock(max(left, 0.0)) if left is not None else "",
    }


def _done(step: StepDoing) -> str:
    """Return what is done: of a step that runs, this time, and else in all."""
    if step.running is not None:
        return amount_done(step.running.done, step.running.total, step.unit)
    return amount_done(step.done, None, step.unit)


def jobs_page(told: ToldJobs, extra: dict[str, Any], doc: Any) -> None:
    """Draw the page."""
    from bokeh.models import ColumnDataSource
    from bokeh.models.widgets import DataTable, TableColumn
    from distributed.dashboard.components import add_periodic_callback
    from distributed.dashboard.components.scheduler import BOKEH_THEME, env

    class Jobs:
        def __init__(self) -> None:
            self.source = ColumnDataSource({name: [] for name in COLUMNS})
            columns = [TableColumn(field=name, title=title, width=width) for name, (title, width) in COLUMNS.items()]
            self.root = DataTable(
                source=self.source, columns=columns, autosize_mode="none", sizing_mode="stretch_both",
                index_position=None, sortable=False,
            )  # fmt: skip

        def update(self) -> None:
            now = told.rows(time.time())
            if now != self.source.data:
                self.source.data = now

    page = Jobs()
    doc.title = "cloudem: jobs"
    page.update()
    add_periodic_callback(doc, page, 1000)
    doc.add_root(page.root)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME
