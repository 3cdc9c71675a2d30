"""What has to be done about a step of a workflow: nothing, all of it, or all of it anew; and making room for the last.

A result counts as unchanged while its record (`cloudem.jobs.provenance.job_record`) names the parameters and the
inputs that its step has now. Results are replaced only if their record says that the same job made them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

from cloudem.errors import InconsistentDataError, OutputExistsError
from cloudem.jobs.base import Inputs, Job
from cloudem.jobs.growing import GrowingJob
from cloudem.jobs.iterative import IterativeJob
from cloudem.jobs.parameters import label_of, places
from cloudem.jobs.provenance import differences

Status = Literal["run", "unchanged", "changed"]

MANY = 4
"""So many parameters that differ are not named one by one."""


class Change(NamedTuple):
    """What has to be done about a step.

    Attributes
    ----------
    status
        ``unchanged``: nothing; ``changed``: what lies there was made otherwise; ``run``: nothing lies there, or the
        beginning of the very same.
    why
        What differs, in words; empty unless it is changed.
    replaces
        What lies there has to go first. It stays where the job itself goes on from it.
    """

    status: Status
    why: str = ""
    replaces: bool = False


def change_of(job: Job, redone: Mapping[str, str] | None = None) -> Change:
    """Return what has to be done about a step.

    Parameters
    ----------
    job
        The step's.
    redone
        Places that earlier steps will have made anew, and the names of these.

    Raises
    ------
    CloudemError
        What lies in ``OUT`` cannot be read.
    """
    read, made = reads_from(job), redone or {}
    anew = {name: step for name, place in read.items() for out, step in made.items() if below(place, out)}
    if not anew and job.is_finished():
        return Change("unchanged")
    record = job.begun_record()
    if record is None or record.get("job") != job.name:
        return Change("run")
    parameters, others = differences(record, job)
    others = [name for name in others if name not in parameters]
    said = []
    for step in dict.fromkeys(anew.values()):
        names = ", ".join(_label(job, name) for name, by in anew.items() if by == step)
        said.append(f"{names} redone by {step}")
    if len(parameters) >= MANY:
        said += [] if anew else ["parameters or inputs differ"]
    else:
        said += [f"{_label(job, name)} differs" for name in parameters]
    said += [f"{_label(job, name)} was made anew" for name in others if name not in anew]
    if not said:
        return Change("run")
    grows = set(job.grows) if isinstance(job, GrowingJob) else set()
    remade = (anew.keys() | set(others)) - grows
    replaces = bool(remade) or not _goes_on(job)
    if replaces and not remade and _is_valid_still(job, parameters):
        return Change("unchanged", ", ".join(said))
    return Change("changed", ", ".join(said), replaces)


def _is_valid_still(job: Job, parameters: Collection[str]) -> bool:
    """Return whether a finished result only differs in what may change without its iterations beginning anew."""
    changeable = job.changeable if isinstance(job, IterativeJob) else ()
    return job.kept_record() is not None and set(parameters) <= set(changeable)


def reads_from(job: Job) -> dict[str, str]:
    """Return the places that a job reads, by parameter."""
    names = places(type(job)) - (set() if job.reads_out else {"out"})
    values = {name: getattr(job, name) for name in type(job).model_fields if name in names}
    return {name: value for name, value in values.items() if isinstance(value, str)}


def below(place: str, out: str) -> bool:
    """Return whether a place is what a job makes, or lies in it."""
    return place == out or place.startswith(f"{out.rstrip('/')}/")


def _label(job: Job, name: str) -> str:
    return label_of(type(job), name) if name in type(job).model_fields else name


def _goes_on(job: Job) -> bool:
    """Return whether the job accepts what lies in its ``OUT``."""
    try:
        job.check_out()
    except (OutputExistsError, InconsistentDataError):
        return False
    return True


def replacing(job: Job, inputs: Inputs | None = None) -> tuple[Job, Inputs]:
    """Return a job, and what it may expect, for checking and running it where its earlier results have to go.

    Raises
    ------
    OutputExistsError
        Something else lies among them that a new ``OUT`` would take with it.
    """
    from cloudem.io.storage.location import UNFINISHED, contents

    other = sorted(set(contents(job.out)) - {*job.leaves, UNFINISHED}) if job.new_out else []
    if other:
        raise OutputExistsError(
            f"{job.out} is to be made anew, but also contains {other[0]}, which {job.name} does not write; move it away"
        )
    known = inputs or Inputs()
    anew = job.model_copy(update={"restart": True}) if "restart" in type(job).model_fields else job
    return anew, Inputs(known.made, known.described, replaced=True)


def make_room(job: Job, guard: Callable[[], None]) -> None:
    """Delete the results that the same job left in ``OUT``, so that they can be made anew.

    Parameters
    ----------
    job
        What is to run.
    guard
        Called before anything is deleted; raises if somebody else may be writing there.

    Raises
    ------
    OutputExistsError
        What lies there is of another job, or not all of it is.
    """
    from cloudem.io.storage.outputs import withdraw

    record = job.begun_record()
    if record is None:
        return
    if record.get("job") != job.name:
        raise OutputExistsError(f"{job.out} contains the results of {record.get('job')}; choose another --out")
    replacing(job)
    guard()
    if job.new_out or not job.keeps_log:
        withdraw(job.out)
    elif "restart" not in type(job).model_fields:  # those do it themselves
        job.discard(guard)
