"""What a classification by maps leaves: particles with their classes, a map of each, and how sure it is."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.mask import estimate_mask, soft_sphere
from cloudem.algorithms.resolution import fsc_weight, masked_fsc, multiply_shells
from cloudem.algorithms.states import Gain, StateSettings, gain_of
from cloudem.errors import ParameterError
from cloudem.execution.executor import Shared
from cloudem.io.storage.groups import read_attributes
from cloudem.jobs.base import Context
from cloudem.jobs.classify3d.job import Classify3D
from cloudem.jobs.classify3d.tasks import HELD, Shared3D, StateCheckpoint, StateItem, insert_class, state_fold
from cloudem.jobs.dataset import Dataset, groups_of, kept_rows
from cloudem.jobs.maps import soft_edge
from cloudem.jobs.refine3d.solving import unfiltered, whole_sums
from cloudem.jobs.report import run_attributes, write_report
from cloudem.jobs.results import claimed_resolution, within, write_particles_of
from cloudem.model.poses import matrix_to_euler
from cloudem.model.symmetry import operators

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

LEAST = 0.05
"""Images that belong to a class with less probability are not in its map."""

GOLD = (
    "The class of an image depends on the maps of images of both half-sets, so the resolutions of the classes rank "
    "them and are not those of a gold standard. refine3d begins anew from a selection, with half-sets that never mix."
)


def said_of(states: int, tried: int, gain: Gain) -> str:
    """Return the answer as a sentence."""
    measured = f"{gain.mean:.3f} ± {gain.error:.3f} in evidence (logarithm, mean of {gain.images:,} images held out)"
    if states == 1:
        return (
            f"one state: {tried} classes explain images that trained none of them no better than one map does, by "
            f"{measured}"
        )
    return (
        f"{states} states: images that trained none of the classes are better explained by them than by one map, by "
        f"{measured}, {gain.deviations:.0f} standard errors"
    )


class StatesRun(NamedTuple):
    """What stays the same during a run; ``data`` is the particles as tasks read them."""

    job: Classify3D
    context: Context
    dataset: Dataset
    settings: StateSettings
    data: Shared[Dataset]


class StatesOutcome(NamedTuple):
    """What the last iteration leaves: what becomes of each image (None: one state), its checkpoint, classes tried."""

    found: Shared3D | None
    checkpoint: StateCheckpoint
    tried: int


class ClassSolved(NamedTuple):
    """Half-maps of a class (2, n, n, n), its mask and filtered map, the FSC by shell, and the resolution, Å."""

    halves: Float32
    mask: Float32
    map: Float32
    fsc: Float64
    resolution: float


def solved_class(halves: Float32, diameter: float, pixel_size: float, symmetry: str, seed: int) -> ClassSolved:
    """Return mask, FSC and map of a class's half-maps."""
    mean, box = (halves[0] + halves[1]) / np.float32(2), halves.shape[-1]
    try:
        mask = estimate_mask(mean, pixel_size, diameter=diameter)
    except ParameterError:  # nothing stands out of the noise
        radius = diameter / 2 / pixel_size
        mask = soft_sphere(box, radius, soft_edge(box, radius))
    curves = within(masked_fsc(halves[0], halves[1], mask, seed), box // 2 - 1)
    resolution = claimed_resolution(curves, pixel_size, symmetry)
    filtered = multiply_shells(mean, fsc_weight(curves.corrected))
    return ClassSolved(halves, mask, filtered, curves.corrected, resolution)


def class_maps(run: StatesRun, found: Shared3D, half_set: NDArray[np.int8]) -> list[ClassSolved]:
    """Return the maps of all classes at full resolution, each of its images with their probabilities.

    Parameters
    ----------
    run
        Of the classification.
    found
        What became of the images.
    half_set
        Of these.
    """
    job, s, executor = run.job, run.settings, run.context.executor
    box, k_max, items = s.whole_box, s.whole_box // 2 - 1, []
    classes = found.probability.shape[1]
    for number, half in product(range(classes), (1, 2)):
        own = np.flatnonzero((found.probability[:, number] > LEAST) & (half_set == half))
        part = 2 * number + half - 1
        for some in groups_of(own, job.group_size) if len(own) else []:
            weights = found.probability[some, number : number + 1]
            poses = (found.rotations[some], found.shifts[some])
            items.append(StateItem(part, part, found.indices[some], *poses, weights))
    add = partial(insert_class, settings=s, k_max=k_max, symmetry=job.symmetry)
    solved = []
    with run.context.progress.stage("average", sum(len(item.indices) for item in items)) as stage:
        bricks, _ = executor.accumulate(
            state_fold(add, 1), items, shared=lambda _: [run.data],
            on_done=lambda index: stage.advance(len(items[index].indices)),
        )  # fmt: skip
        for number in range(classes):
            halves = np.zeros((2, box, box, box), np.float32)
            for half in (0, 1):
                key = 2 * number + half, 0
                if key in bricks:
                    sums = executor.share(whole_sums, bricks[key], box, k_max, job.symmetry)
                    mass = float(found.probability[half_set == half + 1, number].sum())
                    slices = len(operators(job.symmetry)) * max(round(mass), 1)
                    halves[half] = executor.fetch(executor.share(unfiltered, sums, box, k_max, slices))
            solved.append(solved_class(halves, job.diameter_A, s.length / box, job.symmetry, job.seed))
    return solved


def one_state(checkpoint: StateCheckpoint) -> Shared3D:
    """Return all particles as one class, with the poses that they came with."""
    posed = np.flatnonzero(checkpoint.half_set > 0)
    ones = np.ones((len(posed), 1))
    return Shared3D(posed, ones, ones, ones[:, 0], checkpoint.rotations[posed], checkpoint.shifts[posed])


def shown_by_poses(particles: str) -> float:
    """Return the resolution in Å beyond which the refinement of the particles has shown nothing; 0 where it has."""
    said = read_attributes(particles, "result") or {}
    return float(said.get("resolution_A") or 0.0) if said.get("resolution_source") else 0.0


def write_states(run: StatesRun, outcome: StatesOutcome, wall_s: float) -> None:
    """Write particles, maps, evidence and report: the largest class first."""
    context, s, checkpoint = run.context, run.settings, outcome.checkpoint
    found = outcome.found or one_state(checkpoint)
    order = np.argsort(-found.probability.sum(axis=0), kind="stable")
    found = found._replace(probability=found.probability[:, order])
    maps = class_maps(run, found, checkpoint.half_set[found.indices])
    number = found.probability.argmax(axis=1)
    columns: dict[str, NDArray[Any]] = {
        "half_set": checkpoint.half_set[found.indices],
        "class_number": number + 1,
        "class_probability": found.probability.max(axis=1),
    }
    if outcome.found is not None:
        rot, tilt, psi = matrix_to_euler(found.rotations)
        x, y = found.shifts.T * s.pixel_size
        columns |= {"rot": rot, "tilt": tilt, "psi": psi, "shift_x": x, "shift_y": y}
    particles = kept_rows(run.dataset.particles, checkpoint.half_set).with_columns(**columns)
    write_particles_of(context, particles, run.dataset.store)
    arrays: dict[str, NDArray[Any]] = {
        "class_maps": np.stack([each.map for each in maps]),
        "class_half1": np.stack([each.halves[0] for each in maps]),
        "class_half2": np.stack([each.halves[1] for each in maps]),
        "class_masks": np.stack([each.mask for each in maps]),
        "class_fsc": np.stack([each.fsc for each in maps]),
        "class_members": np.bincount(number, minlength=len(order)).astype(np.int64),
        "class_share": found.probability.mean(axis=0),
        # poses that were aligned to a starting map make noise correlate: no more is claimed than they were worth
        "class_resolution_A": np.maximum([each.resolution for each in maps], shown_by_poses(run.job.particles)),
        "class_posterior": found.probability,
    }
    if len(order) > 1:
        arrays["class_differences"] = checkpoint.maps[HELD][order]
    write_answer(run, outcome, arrays, len(particles), wall_s)


def write_answer(
    run: StatesRun, outcome: StatesOutcome, arrays: dict[str, NDArray[Any]], particles: int, wall_s: float
) -> None:
    """Write the group ``result``, say what was found, and draw the report."""
    context, job, s = run.context, run.job, run.settings
    evidence = outcome.checkpoint.evidence
    gain, states = gain_of(evidence[np.isfinite(evidence)]), len(arrays["class_share"])
    sentence = said_of(states, outcome.tried, gain)
    arrays["states_gain"] = np.array([gain.mean, gain.error, gain.images])
    attributes = {
        "box": s.whole_box,
        "pixel_size_A": s.length / s.whole_box,
        "difference_pixel_size_A": s.pixel_size,
        "diameter_A": job.diameter_A,
        "symmetry": job.symmetry,
        "states": states,
        "gain": gain.mean,
        "gain_error": gain.error,
        "held_out": gain.images,
        "wall_s": wall_s,
        "cpu_s": sum(timing.cpu_s for timing in context.progress.timings()),
        "particle_count": particles,
        "notes": [f"{sentence[0].upper()}{sentence[1:]}.", GOLD],
        **run_attributes(context.progress, context.executor.traffic()),
    }
    context.write("result", arrays, attributes)
    context.progress.message(sentence)
    columns = (arrays[name] for name in ("class_members", "class_share", "class_resolution_A"))
    for place, (members, share, resolution) in enumerate(zip(*columns, strict=True), 1):
        context.progress.message(f"class {place}: {members:,} particles, {100 * share:.1f} %, {resolution:.2f} Å")
    if job.report:
        context.progress.message(f"report: {write_report(context.url)}")
