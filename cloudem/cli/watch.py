"""``cloudem watch``: a workflow that goes on as movies arrive, on this computer or on rented machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.cli.runs import confirm
from cloudem.errors import BudgetError, CloudemError, MissingInputError
from cloudem.interrupts import advise
from cloudem.jobs.growing import GrowingJob
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    from cloudem.runs.arrivals import Rule, Standing
    from cloudem.runs.project import RunSummary
    from cloudem.runs.workflow import Step, Workflow


ENDED = "nothing arrived any more; everything that arrived is done"

ROUND_HOURS = 24.0
"""Of one run at most: it is the money that limits it, and the time of a small run is uncertain."""

UNDER_WAY = ("starting", "running", "draining", "stopping")


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
            watcher = Watcher(workflow, run_step, say_line, rule, self.poll_s, reread=self.read)
            watcher.watch()
            if watcher.undone:
                raise CloudemError(f"nothing arrived any more, and not everything is done: {watcher.undone}")
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
        self.done: dict[str, Standing] = {}  # of all steps, after their last run

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
        from cloudem.runs.arrivals import fresh, is_due

        rest = [fresh(step) for step in self.workflow.steps[1:]]
        waiting = 0
        due: list[Step] = []
        for number, step in enumerate(rest):
            standing = self._standing(step)
            grows = isinstance(step.job, GrowingJob)
            if number == 0 and standing is None:  # nothing was imported yet
                return 0, ()
            if standing is None:  # what it reads is made by a step before it
                if due and (grows or ends):
                    due.append(step)
            elif grows:
                before = self.done.get(step.name)
                if due or (standing.changed and standing != before):
                    due.append(step)
                    # What a run could not use does not wait for another one.
                    waiting += standing.left - (before.left if before else 0) if number == 0 else 0
            elif due or standing != self.done.get(step.name):  # else it would only fail again
                anew = any(not isinstance(each.job, GrowingJob) for each in due)
                changed = replace(standing, changed=standing.changed or bool(due))
                if is_due(changed, self.rule, ends=ends, before_it=anew):
                    due.append(step)
        return max(waiting, 0), tuple(due)

    def _standing(self, step: Step) -> Standing | None:
        """Return how a step stands; None where what it reads is not there yet."""
        from cloudem.runs.arrivals import standing_of

        try:
            return standing_of(step, self.importing.counts().get(step.name, 0))
        except MissingInputError:
            return None

    def _rent(self, waiting: int, steps: tuple[Step, ...]) -> None:
        """Do steps on machines that are rented for them, and given back.

        Raises
        ------
        CloudemError
            The money is spent, or the run failed, or somebody stopped it.
        """
        from cloudem.cli.submit import Submit

        left = (self.wanted.max_usd or 0.0) - self._spent()
        spent = f"{waiting:,} movies wait; go on with a --max-usd above {self.wanted.max_usd:g}"
        if left <= 0:
            raise CloudemError(f"${self.wanted.max_usd:g} are spent, and {spent}")
        say_line(f"{waiting:,} movies wait; machines are rented for at most ${left:.2f}")
        submit = Submit(
            workflow=self.wanted.workflow, max_usd=left, max_hours=ROUND_HOURS, region=self.wanted.region,
            run_name=self.run_name, yes=True,
        )  # fmt: skip
        before = {run.name for run in self._runs()}
        try:
            submit.submit(replace(self.workflow, steps=steps))
        except BudgetError as error:
            raise BudgetError(f"{error}; {spent}") from None
        except CloudemError as error:
            new = [run.name for run in self._runs() if run.name not in before]
            if not new or not self._goes_on_after(new[-1], error):
                raise
        for run in self._runs():
            if run.name not in before and run.status == "stopped":
                raise CloudemError(f"{run.name} was stopped ({run.words}), and {spent}, or with the same command")
        self._note(steps)

    def _goes_on_after(self, name: str, error: CloudemError) -> bool:
        """Return whether a run that failed did so in a step that begins anew, so that movies can be gone on with.

        That step is tried again when there is more, as on this computer.
        """
        from cloudem.jobs.base import find_job
        from cloudem.runs.records import RunStore

        store = RunStore.of(self.workflow.project, name)
        finished = store.finished()
        failed = next((values for number, values in enumerate(store.record().steps) if number not in finished), None)
        if failed is None or issubclass(find_job(str(failed["job"])), GrowingJob):
            return False
        say_line(f"{failed['job']}: {error}")
        return True

    def _note(self, steps: Sequence[Step]) -> None:
        """Note how the steps of a run stand after it."""
        from cloudem.runs.arrivals import fresh, items_read

        for planned in steps:
            step = fresh(planned)
            standing = self._standing(step)
            if standing is None:
                continue
            if not standing.grows:
                self.importing.keep_count(step.name, items_read(step))
                standing = replace(standing, before=items_read(step))
            self.done[step.name] = standing

    def _runs(self) -> list[RunSummary]:
        from cloudem.runs.project import summary_of_run
        from cloudem.runs.records import runs_of

        names = sorted(name for name in runs_of(self.workflow.project) if name.rsplit("-", 2)[0] == self.run_name)
        return [summary_of_run(self.workflow.project, name, time.time()) for name in names]

    def _spent(self) -> float:
        return sum(run.spent_usd for run in self._runs())

    def _follow_what_runs(self) -> None:
        """Follow a run that an earlier watch began and that is not over."""
        from cloudem.cli.runs import follow_run
        from cloudem.runs.records import RunStore

        for run in self._runs():
            if run.status in UNDER_WAY:
                say_line(f"goes on with the run {run.name}")
                try:
                    follow_run(RunStore.of(self.workflow.project, run.name))
                except CloudemError as error:
                    if not self._goes_on_after(run.name, error):
                        raise


def say_line(line: str) -> None:
    """Print a line with the time."""
    click.echo(f"{datetime.now().astimezone():%H:%M:%S} {line}")
