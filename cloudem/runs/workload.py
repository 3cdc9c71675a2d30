"""From a workflow to what the planner knows of its steps: sizes of the data, memory, and the time on any fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cloudem.cloud.planning.calibration import Speeds
from cloudem.cloud.planning.estimate import StepEstimate
from cloudem.cloud.planning.stages import step_estimate
from cloudem.cloud.planning.work import Size, Work
from cloudem.errors import CloudemError, ParameterError
from cloudem.jobs.artefacts import inputs_of, kinds_read, sizes_if_known
from cloudem.jobs.base import Job
from cloudem.jobs.refine3d.duration import AlignmentModel, Correction
from cloudem.runs.workflow import Step, Workflow

COUNTED = ("particles", "table", "micrographs", "movies", "coordinates")
"""Kinds of which there are so many; without that number nothing can be planned."""


@dataclass(frozen=True)
class Given:
    """What the user says of particles that are not there yet; None for what is to be read from the store."""

    count: int | None = None
    box: int | None = None
    pixel_size: float | None = None

    def over(self, found: Size | None) -> Size | None:
        """Return what was found with what the user said instead; None if that is not enough."""
        count = self.count or (found.count if found else None)
        box = self.box or (found.box if found else None)
        if count is None or box is None:
            return None
        remote = found.remote if found else False
        return Size(count, (box, box), self.pixel_size or (found.pixel_size if found else 1.0), remote)


def step_estimates(
    workflow: Workflow, speeds: Speeds, given: Given | None = None, corrections: Mapping[str, Correction] | None = None
) -> list[StepEstimate]:
    """Return the steps of a workflow as the planner sees them.

    Parameters
    ----------
    workflow
        What is to be done.
    speeds
        Of machines.
    given
        Of particles whose store is not there yet, and which no step before makes.
    corrections
        Of pilots, by the name of the step.

    Raises
    ------
    ParameterError
        It is not known how many particles there are, or of which box.
    """
    made: dict[str, Size] = {}
    found = []
    for step in workflow.steps:
        work = work_of(step, made, given or Given())
        correction = (corrections or {}).get(step.name)
        if correction is not None and isinstance(work.model, AlignmentModel):
            work = replace(work, model=work.model.corrected(correction))
        found.append(step_estimate(step.name, work, speeds))
    return found


def work_of(step: Step, made: dict[str, Size], given: Given) -> Work:
    """Return what a step does, and note what it makes in ``made``, by place.

    Raises
    ------
    ParameterError
        As for `step_estimates`.
    """
    job = step.job
    sizes, wrong = sizes_if_known(job, made)
    for name, place in inputs_of(job).items():
        if set(kinds_read(type(job).model_fields[name])) & set(COUNTED) and not of_a_map(job, name, sizes, wrong):
            known = sizes.get(name) if place in made else given.over(sizes.get(name))
            if known is None:
                raise ParameterError(_unknown(place, wrong.get(name)))
            sizes[name] = known if place in made else replace(known, remote=_is_remote(place))
        elif name not in sizes:
            sizes[name] = Size(shape=(given.box,) * 3 if given.box else (), pixel_size=given.pixel_size or 0.0)
    work = job.work(sizes)
    made |= {f"{job.out}/{name}" if name else job.out: size for name, size in work.makes.items()}
    return work


def of_a_map(job: Job, name: str, sizes: Mapping[str, Size], wrong: Mapping[str, CloudemError]) -> bool:
    """Return whether an input may hold a map instead of particles, and there is no more to know of it."""
    kinds = kinds_read(type(job).model_fields[name])
    return len(kinds) > 1 and (name in sizes or name in wrong)


def _unknown(place: str, error: CloudemError | None) -> str:
    reason = str(error) if error is not None else f"{place}: no earlier step creates it"
    return f"{reason}; give its size: --particles 100000 --box-px 256"


def _is_remote(place: str) -> bool:
    from cloudem.io.storage.location import is_local

    return not is_local(place)
