"""``cloudem watch``: a workflow that goes on as movies arrive, on this computer or on rented machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.cli.runs import confirm
from cloudem.errors import CloudemError, MissingInputError
from cloudem.interrupts import advise
from cloudem.jobs.growing import GrowingJob
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    from cloudem.runs.arrivals import Rule
    from cloudem.runs.project import RunSummary
    from cloudem.runs.workflow import Step, Workflow


ENDED = "nothing arrived any more; everything that arrived is done"


class WatchWorkflow(Command):
    """What ``cloudem watch`` takes."""

    name: ClassVar[str] = "watch"
    summary: ClassVar[str] = "Carry a workflow on as movies arrive: motion, CTF, picks, particles, classes, a map."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem watch /data/session12 --workflow live.toml",
        "cloudem watch s3://bucket/session12 --workflow live.toml --end-after-min 30",
        "cloudem watch --workflow live.toml --dry-run                       # show the steps and what is there",
        "cloudem watch --workflow live.toml --max-usd 80 --at-least 50      # rent machines when 50 movies wait",
    )

    movies: str | None = parameter(
        None,
        meaning="folder, pattern or URL to watch; by default, what the first step of the workflow names",
        positional=True,
    )
    workflow: str = parameter(
        meaning="workflow file whose first step imports movies or micrographs (see docs/watch.md)"
    )
    poll_s: float = parameter(20.0, meaning="pause between two looks while nothing arrives", gt=0)
    first_particles: int = parameter(
        1000, meaning="particles from which on steps that begin anew (classes, maps) are run", ge=1
    )
    growth: float = parameter(2.0, meaning="run them again when there are so many times more particles", gt=1)
    end_after_min: float | None = parameter(
        None,
        meaning="run everything and end when nothing has arrived for so long; by default, go on until Ctrl-C",
        ge=0,
    )
    max_usd: float | None = parameter(
        None, meaning="rent machines for each round, for at most so many dollars in all; by default, work here", gt=0
    )
    region: str | None = parameter(None, meaning="region to rent in, or local for this computer, as of submit")
    at_least: int = parameter(20, meaning="movies that have to wait before machines are rented", ge=1)
    yes: bool = parameter(False, meaning="do not ask for confirmation before spending money")

    def read(self) -> Workflow:
        """Return the workflow, with the movies that are to be watched.

        Raises
        ------
        CloudemError
            It is none, or cannot be watched.
        """
        from cloudem.runs.workflow import Step, read_workflow

        workflow = read_workflow(self.workflow)
        if self.movies is None:
            return workflow
        first, *rest = workflow.steps
        if not isinstance(first.job, GrowingJob):
            return workflow  # which cannot be watched, as will be said
        job = type(first.job)(**{**first.job.model_dump(), first.job.grows[0]: self.movies})
        return replace(workflow, steps=(Step(first.name, job), *rest))

    def show(self, workflow: Workflow) -> None:
        """Show the steps, and how each stands."""
        from cloudem.runs.arrivals import Rule, Watcher, standing_of

        watcher = Watcher(workflow, lambda step: None, say_line, Rule())
        for step in workflow.steps:
            begins = "" if isinstance(step.job, GrowingJob) else ", begins anew"
            try:
                standing = standing_of(step, watcher.counts().get(step.name, 0))
                items = f"{standing.items:,} items, " if standing.items or standing.changed else ""
                words = items + ("something to do" if standing.changed else "up to date")
            except MissingInputError as error:
                words = f"waits: {error}"
            click.echo(f"{step.name} ({step.job.name}{begins}): {words}")

    def watch(self, workflow: Workflow, run_step: Callable[[Step], None]) -> None:
        """Carry the workflow on, on this computer or on rented machines."""
        from cloudem.runs.arrivals import Rule, Watcher

        idle = None if self.end_after_min is None else 60 * self.end_after_min
        rule = Rule(self.first_particles, self.growth, idle)
        advise("the same command goes on where this one stopped; no movie is taken up twice")
        if self.max_usd is None:
            Watcher(workflow, run_step, say_line, rule, self.poll_s, reread=self.read).watch()
            say_line(ENDED)
        else:
            if not self.yes:
                confirm(f"Rent machines whenever {self.at_least} movies wait, for at most ${self.max_usd:g} in all?")
            _RentedRounds(self, workflow, rule, run_step).go()


class _RentedRounds:
    """Rounds on rented machines: the first step here, since it only reads headers, the others as a run of their own.

    The plan of each run follows from what waits, so that more movies get more machines, and its cap is
    what is left.
    """

    def __init__(self, wanted: WatchWorkflow, workflow: Workflow, rule: Rule, run_step: Callable[[Step], None]) -> None:
        from cloudem.runs.arrivals import Watcher

        self.wanted, self.workflow, self.rule = wanted, workflow, rule
        self.run_name = f"{workflow.name}-watch"
        first = replace(workflow, steps=workflow.steps[:1])
        self.importing = Watcher(first, run_step, say_line, rule, wanted.poll_s)

    def go(self) -> None:
        """Go on until nothing arrives any more, or the money is spent."""
        self._follow_what_runs()
        last = time.monotonic()
        while True:
            if self.importing.round():
                last = time.monotonic()
            idle = self.rule.idle_s is not None and time.monotonic() - last >= self.rule.idle_s
            waiting, steps = self._due(ends=idle)
            if steps and (idle or waiting >= self.wanted.at_least):
                self._rent(waiting, steps)
                last = time.monotonic()
            elif idle:
                say_line(ENDED)
                return
            else:
                time.sleep(self.wanted.poll_s)

    def _due(self, *, ends: bool) -> tuple[int, tuple[Step, ...]]:
        """Return how many movies wait, and the steps that a run is to do."""
        from cloudem.runs.arrivals import fresh, is_due, standing_of

        rest = [fresh(step) for step in self.workflow.steps[1:]]
        second = rest[0].job if rest else None
        try:
            waiting = second.left() if isinstance(second, GrowingJob) else 0
        except MissingInputError:
            return 0, ()
        due: list[Step] = []
        for step in rest:
            grows = isinstance(step.job, GrowingJob)
            try:
                standing = standing_of(step, self.importing.counts().get(step.name, 0))
            except MissingInputError:  # what it reads is made by a step before it
                standing = None
            if grows and (waiting or (standing is not None and standing.changed)):
                due.append(step)
            elif not grows and standing is not None:
                anew = any(not isinstance(each.job, GrowingJob) for each in due)
                changed = replace(standing, changed=standing.changed or bool(due))
                if is_due(changed, self.rule, ends=ends, before_it=anew):
                    due.append(step)
            elif not grows and ends and due:
                due.append(step)
        return waiting, tuple(due)

    def _rent(self, waiting: int, steps: tuple[Step, ...]) -> None:
        """Do steps on machines that are rented for them, and given back.

        Raises
        ------
        CloudemError
            The money is spent, or the run failed.
        """
        from cloudem.cli.submit import Submit
        from cloudem.runs.arrivals import items_read, standing_of

        left = (self.wanted.max_usd or 0.0) - self._spent()
        if left <= 0:
            raise CloudemError(
                f"${self.wanted.max_usd:g} are spent, and {waiting:,} movies wait; go on with a higher --max-usd"
            )
        say_line(f"{waiting:,} movies wait; machines are rented for at most ${left:.2f}")
        submit = Submit(
            workflow=self.wanted.workflow, max_usd=left, region=self.wanted.region, run_name=self.run_name, yes=True
        )
        submit.submit(replace(self.workflow, steps=steps))
        for step in steps:
            standing = standing_of(step, 0)
            if not standing.grows and not standing.changed:
                self.importing.keep_count(step.name, items_read(step))

    def _runs(self) -> list[RunSummary]:
        from cloudem.runs.project import summary_of_run
        from cloudem.runs.records import runs_of

        names = [name for name in runs_of(self.workflow.project) if name.rsplit("-", 2)[0] == self.run_name]
        return [summary_of_run(self.workflow.project, name, time.time()) for name in names]

    def _spent(self) -> float:
        return sum(run.spent_usd for run in self._runs())

    def _follow_what_runs(self) -> None:
        """Follow a run that an earlier watch began and that is not over."""
        from cloudem.cli.runs import follow_run
        from cloudem.runs.records import RunStore

        for run in self._runs():
            if run.status == "running":
                say_line(f"goes on with the run {run.name}")
                follow_run(RunStore.of(self.workflow.project, run.name))


def say_line(line: str) -> None:
    """Print a line with the time."""
    click.echo(f"{datetime.now().astimezone():%H:%M:%S} {line}")
