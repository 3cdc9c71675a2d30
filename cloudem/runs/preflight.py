"""The preflight of a workflow: what every step is to do, checked with what the steps before it will have made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cloudem.errors import CloudemError, OutputExistsError, ParameterError, StorageError
from cloudem.io.storage.fsspec_urls import READ_ONLY, scheme_of
from cloudem.io.storage.location import contents, is_remote
from cloudem.jobs.artefacts import check_kinds, inputs_of
from cloudem.jobs.base import Inputs, Job, find_job
from cloudem.jobs.changes import Change, change_of, replacing
from cloudem.runs.records import RunStore
from cloudem.runs.workflow import Step, Workflow


@dataclass(frozen=True)
class Outlook:
    """What is known of a workflow before it runs.

    Attributes
    ----------
    workflow
        All of it.
    changes
        What has to be done about each step, by name; none where that could not be found out.
    said
        What there is to say about each step, by name; under "", about all of it.
    """

    workflow: Workflow
    changes: Mapping[str, Change]
    said: Mapping[str, Sequence[str]]

    @property
    def lines(self) -> list[str]:
        """What there is to say, in lines."""
        return [f"{name}: {text}" if name else text for name, texts in self.said.items() for text in texts]

    @property
    def left(self) -> Workflow:
        """The workflow without the steps whose results are there and unchanged; perhaps without any."""
        changes = self.changes
        steps = (s for s in self.workflow.steps if s.name not in changes or changes[s.name].status != "unchanged")
        return replace(self.workflow, steps=tuple(steps))


def preflight(
    workflow: Workflow, *, described: bool = False, planning: bool = False, replaces: bool | None = None
) -> Outlook:
    """Check what can be known of all steps before anything runs or is rented.

    Parameters
    ----------
    workflow
        What is to be done.
    described
        The user says what particles will be that are not there yet.
    planning
        Nothing is begun: where the project's storage cannot be reached, that is said instead of raised.
    replaces
        Whether results that a step made otherwise are replaced, or refused; by default they are replaced in a project.

    Raises
    ------
    CloudemError
        A step would be refused; the message names it.
    """
    if planning and is_remote(workflow.project):
        try:
            contents(workflow.project)
        except StorageError as error:
            return Outlook(workflow, {}, {"": (f"inputs were not checked: {error}",)})
    return _outlook(workflow, described, bool(workflow.project) if replaces is None else replaces)


def preflight_of_rest(store: RunStore) -> Outlook:
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
    return _outlook(Workflow("", "rest", "", tuple(steps)), described=False, replaces=True, resuming=True)


def _outlook(workflow: Workflow, described: bool, replaces: bool, resuming: bool = False) -> Outlook:
    before: dict[str, Job] = {}
    redone: dict[str, str] = {}
    changes: dict[str, Change] = {}
    said: dict[str, Sequence[str]] = {}
    for step in workflow.steps:
        inputs = Inputs(tuple(redone), described)
        try:
            changes[step.name] = change = _change(step.job, before, redone)
            said[step.name] = (*_check(step.job, change, inputs, replaces), *_needed_there(step.job, workflow))
        except CloudemError as error:
            if not (resuming and isinstance(error, OutputExistsError)):
                raise type(error)(f"step {step.name}: {error}") from None
            changes.setdefault(step.name, change := Change("run"))
        before[step.name] = step.job
        if change.status != "unchanged" and not step.job.reads_out:
            redone[step.job.out] = step.name
    return Outlook(workflow, changes, said)


def _change(job: Job, before: Mapping[str, Job], redone: Mapping[str, str]) -> Change:
    if not job.reads_out and job.out in {earlier.out for earlier in before.values()}:
        raise ParameterError(f"--out is {job.out}, as of a step before; give each its own")
    check_kinds(job, before)
    return change_of(job, redone)


def _check(job: Job, change: Change, inputs: Inputs, replaces: bool) -> tuple[str, ...]:
    """Check a step that is to run; return what there is to say."""
    if change.status == "unchanged":
        return ()
    if change.replaces and replaces:
        job, inputs = replacing(job, inputs)
    elif change.replaces:
        job.check_out()
    return job.preflight(inputs).warnings


def _needed_there(job: Job, workflow: Workflow) -> tuple[str, ...]:
    """Return what the machines of a project need in order to reach what a step names, and may not have."""
    if not is_remote(workflow.project):
        return ()
    return tuple(
        f"{place}: the image of the machines needs what fsspec takes for {scheme_of(place)}://, and their role the keys"
        for place in map(str, inputs_of(job).values())
        if scheme_of(place) not in ("", *READ_ONLY)
    )
