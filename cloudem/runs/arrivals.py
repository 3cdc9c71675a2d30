"""A workflow that is carried on as movies arrive: which steps are due, decided by what is there, and doing them.

Nothing is kept but one small file: that each movie is taken up once follows from the keys of growing jobs
(`cloudem.jobs.growing`), so the watcher may be killed at any moment and started again, anywhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cloudem.errors import CloudemError, MissingInputError, ParameterError, StoppedError
from cloudem.io.storage.location import join, read_bytes, write_bytes
from cloudem.jobs.artefacts import inputs_of, size_at
from cloudem.jobs.changes import change_of
from cloudem.jobs.growing import GrowingJob, digest_of
from cloudem.jobs.parameters import Kind
from cloudem.runs.workflow import Step, Workflow

STATE_FILE = "watch.json"
"""In the project: with how many items each step that begins anew ran last."""

AGAIN_S = 60.0
"""After which time movies that could not be used are looked at again, seconds."""

MOST_PAUSE_S = 120.0
"""Pause after errors that repeat, at most."""


@dataclass(frozen=True)
class Rule:
    """When steps that begin anew, such as classes and maps, are run again.

    Attributes
    ----------
    first
        Items that there have to be for the first time.
    growth
        By what factor they have to have grown since.
    idle_s
        Seconds without anything new after which they are run with what there is, and the watch ends; None for never.
    """

    first: int = 1000
    growth: float = 2.0
    idle_s: float | None = None


@dataclass(frozen=True)
class Standing:
    """How a step stands.

    Attributes
    ----------
    name
        Of the step.
    grows
        Whether it goes on with what is new, rather than begin anew.
    changed
        Whether it has something to do.
    items
        That it would work on.
    before
        That it worked on last; 0 if never.
    left
        Of a step that goes on: how many items it has not done, or could not use.
    digest
        What tells of which items that is said.
    """

    name: str
    grows: bool
    changed: bool
    items: int
    before: int = 0
    left: int = 0
    digest: str = ""


def is_due(step: Standing, rule: Rule, *, ends: bool, before_it: bool) -> bool:
    """Return whether a step is to be run now.

    Parameters
    ----------
    step
        How it stands.
    rule
        When it is due.
    ends
        Whether the watch ends with this round.
    before_it
        Whether a step that begins anew, before it in the workflow, was run in this round.
    """
    if not step.changed or not step.items:
        return False
    if step.grows or ends or before_it:
        return True
    return step.items >= rule.first and step.items >= rule.growth * step.before


@dataclass
class Watcher:
    """Carries a workflow on.

    Attributes
    ----------
    workflow
        In a project; its first step imports movies, or finds micrographs.
    run_step
        Runs a step to its end, or those that it is given on rented machines.
    say
        Tells the user a line.
    rule
        When steps that begin anew are due.
    poll_s
        Seconds between two looks while nothing arrives.
    now, sleep
        The clock, seconds, and how to wait.
    reread
        Returns the workflow as its file has it now, so that limits may be changed meanwhile; None not to look.
    """

    workflow: Workflow
    run_step: Callable[[Step], None]
    say: Callable[[str], None]
    rule: Rule = field(default_factory=Rule)
    poll_s: float = 30.0
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    reread: Callable[[], Workflow] | None = None

    def __post_init__(self) -> None:
        """Check that there is something to watch.

        Raises
        ------
        ParameterError
            The workflow is in no project, or its first step does not go on with what is new.
        """
        first = self.workflow.steps[0]
        if not self.workflow.project:
            raise ParameterError('watching needs a project: write project = "…" at the top of the workflow')
        if not isinstance(first.job, GrowingJob):
            raise ParameterError(
                f"step {first.name} cannot be watched; let the first step import movies or micrographs"
            )
        self._said, self._errors = "", 0
        self.undone = ""  # why the last round was not done to its end
        self._kept = ""
        self._unsettled: dict[str, tuple[Standing, float]] = {}

    def watch(self) -> None:
        """Go on until nothing has arrived for long enough, or until it is interrupted."""
        last = self.now()
        while True:
            idle = self.rule.idle_s is not None and self.now() - last >= self.rule.idle_s
            done = self.round(ends=idle)
            if idle and not done and not self._errors:
                return
            if done:
                arrived = any(isinstance(step.job, GrowingJob) for step in self.workflow.steps if step.name in done)
                last = self.now() if arrived or not idle else last  # what was run for the end is nothing that arrived
            else:
                self.sleep(min(self.poll_s * 2**self._errors, max(MOST_PAUSE_S, self.poll_s)))

    def round(self, *, ends: bool = False) -> list[str]:
        """Run each step that is due, once; return the names of those that got further by it."""
        self._take_changes()
        done: list[str] = []
        anew = False
        for planned in self.workflow.steps:
            step, standing = fresh(planned), None
            try:
                standing = standing_of(step, self.counts().get(step.name, 0))
                if not is_due(standing, self.rule, ends=ends, before_it=anew) or self._waits(standing):
                    continue
                self.run_step(step)
                if self._got_further(standing, standing_of(fresh(planned), 0)):
                    done.append(step.name)
            except StoppedError:
                raise
            except MissingInputError as error:
                self._say_once(f"{step.name} waits: {error}")
                break
            except CloudemError as error:
                self._say_once(f"{step.name}: {error}")
                if standing is None or isinstance(step.job, GrowingJob):  # not even how it stands could be told
                    self._errors = min(self._errors + 1, 8)
                    return done
                self.keep_count(step.name, standing.items)  # again when more has come
                break
            if not standing.grows:
                anew = True
                self.keep_count(step.name, standing.items)
        else:
            self.undone = ""
        self._errors = 0
        if done:
            self._said = ""
        return done

    def _take_changes(self) -> None:
        """Go on with the workflow as its file has it now, if that can be watched."""
        if self.reread is None:
            return
        why = ""
        try:
            found = self.reread()
            if found.project != self.workflow.project or not isinstance(found.steps[0].job, GrowingJob):
                why = "another project or first step is taken when the watch is started again"
        except CloudemError as error:
            why = str(error)
        if why:
            if why != self._kept:
                self.say(f"the changed workflow is not taken, the watch goes on with what it has: {why}")
        elif _written(found) != _written(self.workflow):
            self.say("the workflow was changed; its steps follow")
            self.workflow = found
            self._unsettled = {}
        self._kept = why

    def _waits(self, standing: Standing) -> bool:
        """Return whether all that a step has to do are items that it could not use a short while ago."""
        before, at = self._unsettled.get(standing.name, (None, 0.0))
        return standing == before and self.now() - at < AGAIN_S

    def _got_further(self, before: Standing, after: Standing) -> bool:
        self._unsettled.pop(after.name, None)
        if after.grows and after.left:
            self._unsettled[after.name] = after, self.now()
        return not after.grows or not after.left or (before.left, before.digest) != (after.left, after.digest)

    def _say_once(self, line: str) -> None:
        self.undone = line
        if line != self._said:
            self.say(line)
        self._said = line

    def counts(self) -> dict[str, int]:
        """Return with how many items each step that begins anew ran last, by name."""
        try:
            found = json.loads(read_bytes(join(self.workflow.project, STATE_FILE)) or b"{}")
            return {str(name): int(count) for name, count in found.items()}
        except (ValueError, TypeError, AttributeError):  # at worst, something is run once more
            return {}

    def keep_count(self, name: str, count: int) -> None:
        """Note with how many items a step that begins anew ran."""
        write_bytes(join(self.workflow.project, STATE_FILE), json.dumps({**self.counts(), name: count}).encode())


def _written(workflow: Workflow) -> list[tuple[str, str, dict[str, object]]]:
    return [(step.name, step.job.name, step.job.model_dump()) for step in workflow.steps]


def fresh(step: Step) -> Step:
    """Return a step whose job has seen nothing yet: jobs keep what they have listed."""
    return Step(step.name, type(step.job)(**step.job.model_dump()))


def standing_of(step: Step, before: int) -> Standing:
    """Return how a step stands.

    Parameters
    ----------
    step
        Of a workflow.
    before
        How many items it worked on last; 0 if never.
    """
    job = step.job
    if isinstance(job, GrowingJob):
        keys = job.growing(job.out).keys
        finished, left = job.is_finished_with(keys), job.left(keys)
        return Standing(step.name, True, not finished, len(keys), left=left, digest=digest_of(keys))
    changed = change_of(job).status != "unchanged"
    return Standing(step.name, False, changed, items_read(step) if changed else before, before)


def items_read(step: Step) -> int:
    """Return the greatest number of particles, micrographs or movies that a step reads; 1 if it reads no such.

    Raises
    ------
    MissingInputError
        What it reads is not there yet.
    """
    kinds: Sequence[Kind] = ("particles", "micrographs", "movies")
    found = []
    for place in inputs_of(step.job).values():
        for kind in kinds:
            try:
                found.append(size_at(place, (kind,)).count)
                break
            except MissingInputError:
                raise
            except CloudemError:
                continue
    return max(found, default=1)
