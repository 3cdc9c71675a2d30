"""From a workflow to what the planner knows of its steps: sizes of the data, memory, and the time on any fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cloudem.cloud.planning.calibration import Speeds
from cloudem.cloud.planning.estimate import StepEstimate
from cloudem.cloud.planning.stages import step_estimate
from cloudem.cloud.planning.work import Size, Work
from cloudem.errors import CloudemError, ParameterError
from cloudem.jobs.artefacts import inputs_of, kinds_read, sizes_if_known
from cloudem.jobs.base import Job
from cloudem.jobs.parameters import Kind
from cloudem.jobs.refine3d.duration import AlignmentModel, Correction
from cloudem.runs.workflow import Step, Workflow

COUNTED = ("particles", "table", "micrographs", "movies", "coordinates")
"""Kinds of which there are so many; without that number nothing can be planned."""


@dataclass(frozen=True)
class Given:
    """What the user says of particles or movies that are not there yet; None for what is to be read from the store.

    Attributes
    ----------
    count, box
        Particles, and the side of their images, pixels.
    pixel_size
        Å.
    movies, frames, frame_shape
        Movies or micrographs, frames of each movie, and their shape (y, x), pixels.
    """

    count: int | None = None
    box: int | None = None
    pixel_size: float | None = None
    movies: int | None = None
    frames: int | None = None
    frame_shape: tuple[int, int] | None = None

    @property
    def is_enough(self) -> bool:
        """Whether a workflow can be planned of which no input is there."""
        return self.over(None) is not None or self.movies_over(None) is not None

    def movies_over(self, found: Size | None, *, of_frames: bool = True) -> Size | None:
        """Return what was found of movies, or micrographs, with what the user said instead; None if not enough."""
        count = self.movies or (found.count if found else None)
        known = found.shape if found else ()
        shape = self.frame_shape or (known[-2:] if len(known) >= 2 else None)
        if count is None or shape is None:
            return None
        if of_frames:
            frames = self.frames or (known[0] if len(known) == 3 else None)
            if frames is None:
                return None
            shape = (frames, *shape)
        pixel_size = self.pixel_size or (found.pixel_size if found else 0.0) or 1.0
        return Size(count, tuple(shape), pixel_size, found.remote if found else False)

    def over(self, found: Size | None) -> Size | None:
        """Return what was found of particles with what the user said instead; None if that is not enough."""
        count = self.count or (found.count if found else None)
        box = self.box or (found.box if found else None)
        if count is None or box is None:
            return None
        remote = found.remote if found else False
        return Size(count, (box, box), self.pixel_size or (found.pixel_size if found else 1.0), remote)


@dataclass(frozen=True)
class MeasuredCost:
    """What a pilot found of a step whose items are independent.

    Attributes
    ----------
    cpu_s
        CPU-seconds of an item, in threads of the reference.
    spread
        Factor either way by which it may be off.
    items
        That were timed.
    """

    cpu_s: float
    spread: float
    items: int

    def of(self, work: Work) -> Work:
        """Return what a step does with this cost."""
        stages = (
            replace(stage, cpu_s=self.cpu_s, spread=self.spread) if stage.parallel else stage for stage in work.stages
        )
        return replace(work, stages=tuple(stages))

    def describe(self) -> str:
        """Return it in a line."""
        return f"{self.cpu_s:.2f} s for each of {self.items} on a thread of the reference (within {self.spread:.2f}x)"


def step_estimates(
    workflow: Workflow,
    speeds: Speeds,
    given: Given | None = None,
    corrections: Mapping[str, Correction | MeasuredCost] | None = None,
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
        if isinstance(correction, MeasuredCost):
            work = correction.of(work)
        elif correction is not None and isinstance(work.model, AlignmentModel):
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
        kinds = kinds_read(type(job).model_fields[name])
        if set(kinds) & set(COUNTED) and not of_a_map(job, name, sizes, wrong):
            known = sizes.get(name) if place in made else _given_of(job, kinds, given, sizes.get(name))
            if known is None:
                raise ParameterError(_unknown(place, wrong.get(name), kinds))
            sizes[name] = known if place in made else replace(known, remote=_is_remote(place))
        elif name not in sizes:
            sizes[name] = Size(shape=(given.box,) * 3 if given.box else (), pixel_size=given.pixel_size or 0.0)
    if given.movies and given.count and "coordinates" in type(job).model_fields and "coordinates" not in sizes:
        sizes["coordinates"] = Size(given.count)  # picks, as many as the user expects of particles
    work = job.work(sizes)
    made |= {f"{job.out}/{name}" if name else job.out: size for name, size in work.makes.items()}
    return work


def _given_of(job: Job, kinds: Sequence[Kind], given: Given, found: Size | None) -> Size | None:
    """Return what was found of an input of a job with what the user said of such inputs instead; None if not enough."""
    if not {"movies", "micrographs"} & set(kinds):
        return given.over(found)
    size = given.movies_over(found, of_frames="movies" in kinds)
    stated = getattr(job, "pixel_size_A", None)
    return replace(size, pixel_size=float(stated)) if size and stated and given.pixel_size is None else size


def of_a_map(job: Job, name: str, sizes: Mapping[str, Size], wrong: Mapping[str, CloudemError]) -> bool:
    """Return whether an input may hold a map instead of particles, and there is no more to know of it."""
    kinds = kinds_read(type(job).model_fields[name])
    return bool(set(kinds) - set(COUNTED)) and (name in sizes or name in wrong)


def _unknown(place: str, error: CloudemError | None, kinds: Sequence[Kind]) -> str:
    reason = str(error) if error is not None else f"{place}: no earlier step creates it"
    needed = "--particles 100000 --box-px 256"
    if "movies" in kinds:
        needed = "--movies 5000 --frames 40 --frame-px 4096"
    elif "micrographs" in kinds:
        needed = "--movies 5000 --frame-px 4096"
    return f"{reason}; give its size: {needed}"


def _is_remote(place: str) -> bool:
    from cloudem.io.storage.location import is_local

    return not is_local(place)
