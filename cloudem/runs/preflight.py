"""The preflight of a workflow: every step's, with what the steps before it will have made."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cloudem.errors import CloudemError, OutputExistsError, StorageError
from cloudem.io.storage.location import contents, is_remote
from cloudem.jobs.base import Inputs, Job, find_job
from cloudem.runs.records import RunStore
from cloudem.runs.workflow import Step, Workflow


def preflight(workflow: Workflow, *, described: bool = False, planning: bool = False) -> list[str]:
    """Check what can be known of all steps before anything is rented; return what there is to say.

    Parameters
    ----------
    workflow
        What is to be done.
    described
        The user says what particles will be that are not there yet.
    planning
        Nothing is begun: where the project's storage cannot be reached, that is said instead of raised.

    Raises
    ------
    CloudemError
        A step would be refused; the message names it.
    """
    if planning and is_remote(workflow.project):
        try:
            contents(workflow.project)
        except StorageError as error:
            return [f"inputs were not checked: {error}"]
    return _of_steps(workflow.steps, described=described)


def preflight_of_jobs(jobs: Sequence[Job]) -> None:
    """Check jobs that run one after the other before the first begins."""
    _of_steps([Step(job.name, job) for job in jobs])


def preflight_of_rest(store: RunStore) -> list[str]:
    """Check the steps that a run has left, before its machines are rented again.

    Results that are there are no reason to refuse: they may be those of the step that was running.
    """
    finished = store.finished()
    steps = []
    for number, values in enumerate(store.record().steps):
        if number not in finished:
            name = str(values["job"])
            job = find_job(name)(**{key: value for key, value in values.items() if key != "job"})
            steps.append(Step(f"{number}-{name}", job))
    return _of_steps(steps, resuming=True)


def _of_steps(steps: Collection[Step], *, described: bool = False, resuming: bool = False) -> list[str]:
    made: list[str] = []
    said: list[str] = []
    for step in steps:
        try:
            found = step.job.preflight(Inputs(tuple(made), described))
            said += [f"{step.name}: {text}" for text in found.warnings]
        except CloudemError as error:
            if not (resuming and isinstance(error, OutputExistsError)):
                raise type(error)(f"step {step.name}: {error}") from None
        made.append(step.job.out)
    return said
