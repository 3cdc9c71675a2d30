"""From a workflow to what the planner knows of its steps: sizes of the data, memory, and the time on any fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from cloudem.algorithms.refinement import Settings
from cloudem.cloud.planning.calibration import Speeds
from cloudem.cloud.planning.estimate import Duration, Fleet, Range, Refusal, StepEstimate
from cloudem.errors import CloudemError, ParameterError
from cloudem.jobs.base import Job, Projection
from cloudem.jobs.export import Export
from cloudem.jobs.import_particles import ImportParticles
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d import cost
from cloudem.jobs.refine3d.job import Refine3D, alignment_needs
from cloudem.jobs.simulate import DEMO_BOX, DEMO_PIXEL_A, PARTICLES, Simulate
from cloudem.runs.duration import IMAGE_BYTES, Correction, Work, estimate
from cloudem.runs.fleet_capacity import GIB, fleet_capacity
from cloudem.runs.workflow import Step, Workflow

SERIAL_SPREAD = 2.0
"""By how much the time of a step that runs on the head may be off: only single runs were measured."""

IMPORT_S, SIMULATE_S = 4.5e-8, 1.0e-7
"""A pixel of an image that is imported (measured), or simulated (one run): CPU-seconds."""

VOXEL_S = 2.0e-6
"""A voxel of a map that is masked, or postprocessed with its report: CPU-seconds; one run."""

PUT_S, GET_BYTES = 40.0, 32 << 20
"""Objects that an iteration writes (references, checkpoint, curves); and bytes that one request reads of images."""


@dataclass(frozen=True)
class StoreFacts:
    """What is known of a particle store."""

    count: int
    box: int
    pixel_size: float


@dataclass(frozen=True)
class Given:
    """What the user says of particles that are not there yet; None for what is to be read from the store."""

    count: int | None = None
    box: int | None = None
    pixel_size: float | None = None

    def over(self, found: StoreFacts | None) -> StoreFacts | None:
        """Return what was found with what the user said instead; None if that is not enough."""
        count = self.count or (found.count if found else None)
        box = self.box or (found.box if found else None)
        if count is None or box is None:
            return None
        return StoreFacts(count, box, self.pixel_size or (found.pixel_size if found else 1.0))


def stages(
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
    made: dict[str, StoreFacts] = {}
    return [_stage(step, speeds, given or Given(), made, (corrections or {}).get(step.name)) for step in workflow.steps]


def _stage(
    step: Step, speeds: Speeds, given: Given, made: dict[str, StoreFacts], correction: Correction | None
) -> StepEstimate:
    """Return one step; ``made`` are the particles, or the boxes of maps, that the steps before make, by place."""
    job = step.job
    if isinstance(job, Refine3D | Reconstruct):
        particles = particles_of(job.particles, made, given)
        made[job.out] = particles
        return _parallel(step.name, work_of(job, particles, correction or Correction()), speeds)
    particles = _made_by(job, made, given)
    if isinstance(job, Simulate):
        made[f"{job.out}/{PARTICLES}"] = particles
    made[job.out] = particles
    return _serial(step.name, job, particles, speeds)


def work_of(job: Refine3D | Reconstruct, particles: StoreFacts, correction: Correction) -> Work:
    """Return particles and what a job does with them."""
    from cloudem.io.storage.location import is_remote

    settings = settings_for(job, particles) if isinstance(job, Refine3D) else None
    local = isinstance(job, Refine3D) and job.local
    remote = is_remote(job.particles)
    where = (particles.count, particles.box, job.symmetry, job.group_size, remote)
    return Work(*where, settings, local, correction)


def settings_for(job: Refine3D, particles: StoreFacts) -> Settings:
    """Return what the user fixed, in pixels and shells (:func:`cloudem.jobs.refine3d.run.settings_of`)."""
    from cloudem.jobs.refine3d.run import settings_from

    return settings_from(job, particles.box, particles.pixel_size)


def particles_of(place: str, made: Mapping[str, StoreFacts], given: Given) -> StoreFacts:
    """Return what is known of the particles at a place.

    Raises
    ------
    ParameterError
        Neither is there a store, nor does a step before make it, nor was it said.
    """
    found = made.get(place)
    reason = f"{place}: no earlier step creates it"
    if found is None and given.over(None) is None:
        from cloudem.io.particle_store import open_particles

        try:
            store = open_particles(place)
            found = StoreFacts(len(store), store.box, store.pixel_size)
        except CloudemError as error:
            reason = str(error)  # names the place
    known = given.over(found)
    if known is None:
        raise ParameterError(f"{reason}; give its size: --particles 100000 --box-px 256")
    return known


def _made_by(job: Job, made: Mapping[str, StoreFacts], given: Given) -> StoreFacts:
    """Return the particles, or the box of the map, that a job of one machine works with; of none if that is unknown."""
    if isinstance(job, Simulate):
        box = job.box_px or (DEMO_BOX if job.demo else given.box or 0)
        return StoreFacts(job.count, box, job.pixel_size_A or DEMO_PIXEL_A)
    if isinstance(job, ImportParticles):
        return given.over(None) or _in_table(job)
    for name in ("particles", "source", "halves", "map", "out"):
        if (found := made.get(getattr(job, name, "") or "")) is not None:
            return found
    return StoreFacts(0, given.box or 0, given.pixel_size or 1.0)


def _in_table(job: ImportParticles) -> StoreFacts:
    from cloudem.io.formats.sources import SourceImages

    try:
        source = job.source
        images = SourceImages(source, job.project_folder)
        size = job.pixel_size_A or source.pixel_size or images.pixel_size or 1.0  # as importing does
        return StoreFacts(len(source.particles), images.box, size)
    except CloudemError as error:
        raise ParameterError(f"{error}; or give the size of the import: --particles 100000 --box-px 256") from None


def _parallel(name: str, work: Work, speeds: Speeds) -> StepEstimate:
    needs = alignment_needs(work.count, work.box, work.group_size, remote=work.remote)
    items = cost.items_of(work.count, work.group_size)
    iterations = cost.EXPECTED.iterations if work.settings else 1
    images = IMAGE_BYTES * work.box**2 * work.count
    maps = 3 * 4 * work.box**3
    return StepEstimate(
        name,
        partial(_on_fleet, work=work, needs=needs, speeds=speeds),
        most=items,
        head_GiB=(0.6e9 + 4000 * work.count + 40 * work.box**3) / GIB,
        puts=PUT_S * iterations if work.remote else 0.0,
        gets=iterations * (images / GET_BYTES + 8 * items) if work.remote else 0.0,
        stored_GiB=(maps + 600 * work.count) / GIB,
        result_GiB=(maps + 200 * work.count) / GIB,
    )


def _on_fleet(fleet: Fleet, work: Work, needs: Projection, speeds: Speeds) -> Duration | Refusal:
    crew = fleet_capacity(fleet, needs, work.box if work.settings is not None else 0, speeds)
    return crew if isinstance(crew, Refusal) else estimate(work, crew)


def _serial(name: str, job: Job, particles: StoreFacts, speeds: Speeds) -> StepEstimate:
    pixels, voxels = float(particles.count * particles.box**2), float(particles.box**3)
    stored = 0.0
    if isinstance(job, ImportParticles | Simulate):
        seconds = cost.START_S + (IMPORT_S if isinstance(job, ImportParticles) else SIMULATE_S) * pixels
        memory, stored = 1.0e9 + 2000 * particles.count + 100 * voxels, IMAGE_BYTES * pixels + 8 * voxels
    elif isinstance(job, Export):
        images = pixels if job.stack else 0.0
        seconds = cost.START_S + 2e-7 * voxels + IMPORT_S * images
        memory, stored = 0.4e9 + 40 * voxels + 2000 * particles.count, 16 * voxels + 4 * images
    else:
        seconds, memory, stored = cost.START_S + VOXEL_S * voxels, 0.4e9 + 80 * voxels, 12 * voxels
    return StepEstimate(
        name,
        partial(_on_head, seconds=seconds, memory=memory / GIB, speeds=speeds),
        on_head=True,
        puts=20 + stored / GET_BYTES,
        gets=50.0,
        stored_GiB=stored / GIB,
    )


def _on_head(fleet: Fleet, seconds: float, memory: float, speeds: Speeds) -> Duration | Refusal:
    crew = fleet_capacity(fleet, Projection(int(memory * GIB), 0), 0, speeds)
    if isinstance(crew, Refusal):
        return crew
    wall = seconds / crew.speed(1)
    spread = Range.within(wall, SERIAL_SPREAD * crew.row.spread**0.5)
    return Duration(spread, "one thread", {"one thread": wall}, crew.row.how == "measured", memory)
