"""Where a workflow stops for a human: results that later steps would build on, and that do not bear it.

Each kind of job has a function that looks at what its result says, and returns what there is to decide, or None. A
step is asked only if a later one relies on what is in doubt: whoever has edited the workflow has decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from cloudem.jobs.changes import below, reads_from
from cloudem.runs.automatic import FOUND
from cloudem.runs.workflow import Step, Workflow

DARK = "check diameter_A, and whether protein is bright in them: invert_contrast = true where they are imported"
"""What to try where nothing is seen."""

WITH_SYMMETRY = "the same command with --symmetry {}, or whatever it is: it is imposed from the start"

FEW_LEFT, FEW_IMAGES = 0.2, 500
"""A selection that keeps a smaller share, or fewer images, is to be looked at before a map is made of it."""


class Way(NamedTuple):
    """A way to go on: in which case, and what to change in the workflow for that."""

    case: str
    how: str


class Decision(NamedTuple):
    """What a human has to decide.

    Attributes
    ----------
    why
        One line.
    look
        Places of the results to look at, relative to the project.
    ways
        What to change in the workflow, in which case.
    """

    why: str
    look: tuple[str, ...]
    ways: tuple[Way, ...]


class FinishedStep(NamedTuple):
    """A step, the result that it left, and what comes after it."""

    step: Step
    result: Mapping[str, Any]
    later: Sequence[Step]
    workflow: Workflow

    def place(self, url: str) -> str:
        """Return a place as it is called in the project."""
        return url.removeprefix(f"{self.workflow.project.rstrip('/')}/")

    @property
    def readers(self) -> list[Step]:
        """The later steps that read what this one has made."""
        places = ((each, reads_from(each.job).values()) for each in self.later)
        return [each for each, those in places if any(below(place, self.step.job.out) for place in those)]


def decision_after(workflow: Workflow, number: int) -> Decision | None:
    """Return what a human has to decide after the step of a number (from 0) is finished; None if nothing.

    Raises
    ------
    CloudemError
        Its result cannot be read.
    """
    from cloudem.io.storage.groups import read_attributes

    step = workflow.steps[number]
    judge = JUDGES.get(step.job.name)
    if judge is None:
        return None
    result = read_attributes(step.job.out, "result")
    return None if result is None else judge(FinishedStep(step, result, workflow.steps[number + 1 :], workflow))


def few_are_left(found: FinishedStep) -> Decision | None:
    """After a selection: hardly anything is left of the particles."""
    kept = int(found.result.get("particle_count") or 0)
    out = sum(int(count) for count in (found.result.get("left_out") or {}).values())
    if not found.readers or not getattr(found.step.job, "auto", False) or not out:
        return None
    if kept >= FEW_LEFT * (kept + out) and kept >= FEW_IMAGES:
        return None
    name, classes = found.step.name, found.place(reads_from(found.step.job)["particles"])
    numbers = f'classes = "1,3,5-9" in place of auto = true in step {name}'
    return Decision(
        f"the selection keeps only {kept:,} of {kept + out:,} particles",
        (classes, found.place(found.step.job.out)),
        (
            Way("classes that were left out show particles", f"{numbers}, with the numbers of all good classes"),
            Way("few classes show particles, as the selection says", f"{numbers}, with the numbers of those it keeps"),
            Way("no class shows a particle", DARK),
        ),
    )


def no_start(found: FinishedStep) -> Decision | None:
    """After starts from nothing: they do not agree, and there is no map."""
    if not found.readers or "filter_A" in found.result:
        return None
    name, particles = found.step.name, reads_from(found.step.job).get("particles", "")
    said = next((str(text) for text in found.result.get("warnings", ()) if "no agreement" in str(text)), "no agreement")
    chosen = [step.name for step in found.workflow.steps if step.job.out == particles and step.job.name == "select"]
    ways = [Way("some classes that were kept show junk", f'not_classes = "4,7" in step {step}') for step in chosen]
    if "sphere" not in said:
        starts = 2 * int(getattr(found.step.job, "start_count", 4))
        ways.append(Way("no class shows a particle", DARK))
        ways.append(Way("the classes show particles", f"more starts: starts = {starts} in step {name}"))
    ways.append(Way("you know its symmetry", WITH_SYMMETRY.format("D2")))
    refining = [step.name for step in found.later if step.job.name == "refine3d"]
    between = [name, *(step.name for step in found.readers if step.name not in refining)]
    for step in refining:
        of_others = (
            f'reference = "/path/map.mrc" and its symmetry in step {step}, without steps {" and ".join(between)}'
        )
        ways.append(Way("you have a map of something alike", of_others))
    look = (*(found.place(place) for place in _sources(found, particles)), found.place(found.step.job.out))
    return Decision(said.partition(", so there")[0], look, tuple(ways))


def doubtful_group(found: FinishedStep) -> Decision | None:
    """After a search for the point group: it is not determined, or nearly another one."""
    readers = [step for step in found.readers if getattr(step.job, "symmetry", "") == FOUND]
    nearly = str(found.result.get("symmetry_nearly") or "")
    if not readers or (found.result.get("symmetry_determined") and not nearly):
        return None
    group = str(found.result.get("symmetry") or "C1")
    if nearly:
        why = f"the starting map is nearly {nearly}, but agrees with {'no group' if group == 'C1' else f'{group} only'}"
    else:
        why = "the point group of the starting map is not determined"
    go_on = f'symmetry = "{group}" in step {readers[0].name}: more can be found in the refined map'
    ways = (
        Way("you do not know better", go_on),
        Way(f"it has a symmetry, such as {nearly or 'D2'}", WITH_SYMMETRY.format(nearly or "D2")),
    )
    return Decision(why, (found.place(found.step.job.out),), ways)


def _sources(found: FinishedStep, place: str) -> list[str]:
    """Return from which results of this workflow those at a place were made, the first one first, with themselves."""
    for step in found.workflow.steps:
        if step.job.out == place and step.job.name in ("select", "classify2d"):
            return [*_sources(found, reads_from(step.job).get("particles", "")), place]
    return []


JUDGES: dict[str, Callable[[FinishedStep], Decision | None]] = {
    "select": few_are_left,
    "abinitio": no_start,
    "find_symmetry": doubtful_group,
}
"""By the name of the job."""
