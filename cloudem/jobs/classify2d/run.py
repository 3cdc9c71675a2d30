"""The run of ``cloudem classify2d``, as the engine of iterations sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.classes import (
    FORGOTTEN,
    PARTS,
    SPLITTING,
    ClassSettings,
    ClassState,
    class_images,
    class_limit,
    first_class_state,
    next_class_state,
    noise_ratio,
    on_rings,
    pairs_to_split,
    ring_correlation,
    signal_power,
    split_classes,
)
from cloudem.algorithms.marginal import SoftSums, in_use, solve_references, summed
from cloudem.algorithms.mask import circle_edge, soft_circle
from cloudem.algorithms.noise import noise_variance
from cloudem.conventions import FSC_HALF
from cloudem.errors import InconsistentDataError
from cloudem.execution.executor import Shared, itself
from cloudem.execution.task_names import labelled
from cloudem.jobs.base import Context
from cloudem.jobs.classify2d.job import Classify2D
from cloudem.jobs.classify2d.tasks import (
    NOISE_IMAGES,
    ClassCheckpoint,
    ClassItem,
    ClassModel,
    Sorted,
    fold_of_classes,
    joined,
    noise_of_group,
    read_class_checkpoint,
    read_class_model,
    seed_group,
    view_of,
)
from cloudem.jobs.dataset import Dataset, groups_of, left_out, open_dataset, open_for_tasks
from cloudem.jobs.iterative import IterationResult, Iterations, clear, source_of
from cloudem.jobs.provenance import job_record
from cloudem.jobs.report import run_attributes, write_report
from cloudem.jobs.results import write_particles_of
from cloudem.kernels.polar import PolarGrid
from cloudem.kernels.shells import crossing
from cloudem.model.columns import Value

NOWHERE = -1


class ClassOutcome(NamedTuple):
    """What the last iteration found: sums of each part, and what becomes of each image."""

    sums: list[SoftSums]
    found: Sorted
    limit: int


class Classification(Iterations[ClassState]):
    """A classification in the words of the engine."""

    def __init__(self, job: Classify2D, context: Context, *, resumes: bool) -> None:
        super().__init__(context)
        self.job = job
        self.dataset = open_dataset(job.particles)
        store = self.dataset.store
        self.settings: ClassSettings = job.settings(len(store), store.box, store.pixel_size)
        self.without = left_out(store, job.skip_damaged)
        facts = {
            "particles": f"{len(store):,} of {store.box} px at {store.pixel_size:.4g} Å",
            "classes": str(self.settings.classes),
        }
        context.progress.facts(facts)
        with labelled(step="open"):
            self.data: Shared[Dataset] = context.executor.spread(open_for_tasks, job.particles, local=itself)

    def begin(self) -> ClassState:
        """Measure the noise, make the first classes of a few images each, and commit them."""
        s, executor = self.settings, self.context.executor
        rng = np.random.default_rng(self.job.seed)
        kept = np.setdiff1d(np.arange(len(self.dataset.store)), self.without)
        order = rng.permutation(kept)
        part = np.full(len(self.dataset.store), NOWHERE, np.int8)
        part[order] = np.arange(len(order)) % PARTS
        some = groups_of(np.sort(order[:NOISE_IMAGES]), self.job.group_size)
        with self.context.progress.stage("noise", sum(map(len, some))) as stage:
            done = lambda index: stage.advance(len(some[index]))  # noqa: E731
            powers = executor.map(noise_of_group, some, shared=lambda _: [self.data], on_done=done)
            power = np.sum(list(powers), axis=0)
            sigma2 = noise_variance(power[:, :-1], power[:, -1], s.box)
            seeds = np.sort(order[: s.batch])
            shared = executor.share(seed_group, seeds, self.data, s, sigma2)
            first = executor.fetch(shared)
        clear(self.context, self.job)
        self.context.write("", {}, {"kind": "result", "source": source_of(self.job.particles), **job_record(self.job)})
        number = np.full(len(self.dataset.store), NOWHERE, np.int32)
        empty = np.zeros(0)
        nowhere = np.full((len(number), 2), np.nan, np.float32)
        start = ClassCheckpoint(empty, empty, empty, empty, sigma2, number, nowhere, part, order).with_sums([first])
        state = first_class_state(s)
        self.commit(state, start._asdict())
        return state

    def state(self, record: Mapping[str, Any]) -> ClassState:
        """Return the state; if fewer iterations are allowed by now, the next is the last."""
        left = ClassState(**record)
        if left.iteration >= self.job.max_iterations:
            return ClassState(left.iteration, "last", left.passes, left.converged)
        return left

    def resume(self, state: ClassState) -> None:
        """Check that the particles are still those that it began with."""
        before = len(read_class_checkpoint(self.context.url).part)
        if before != len(self.dataset.store):
            raise InconsistentDataError(
                f"{self.context.url} was started with {before} particles, but {self.job.particles} now has "
                f"{len(self.dataset.store)}; choose another --out, or --restart to replace it"
            )

    def iterate(self, state: ClassState) -> IterationResult[ClassState]:
        """Share images out between the classes, and make new ones."""
        s = self.settings
        before, limit = read_class_checkpoint(self.context.url), class_limit(state, s)
        sums, found = self._sort(state, before, limit)
        number = before.class_number.copy()
        number[found.indices] = found.class_number
        known = before.class_number[found.indices] != NOWHERE
        changed = before.class_number[found.indices][known] != found.class_number[known]
        moved = float(np.mean(changed)) if state.phase != "batch" and known.any() else 1.0
        after = next_class_state(state, s, moved)
        total = summed(sums)
        sigma2 = before.sigma2.copy()
        sigma2[:, 1 : limit + 1] *= noise_ratio(total, view_of(s, limit))
        row: dict[str, Value] = {
            "iteration": state.iteration,
            "limit_A": s.box * s.pixel_size / limit,
            "images": len(found.indices),
            "evidence": float(np.mean(found.evidence)),
            "classes_in_use": in_use(total.mass),
        }
        if state.phase != "batch" and known.any():
            row["moved"] = moved
        kept = self._next_sums(state, before, sums, view_of(s, limit).grid)
        shift = before.shift.copy()
        if state.phase != "batch":
            shift[found.indices] = found.shifts
        checkpoint = before.with_sums(kept)._replace(sigma2=sigma2, class_number=number, shift=shift)
        outcome = ClassOutcome(sums, found, limit)
        return IterationResult(after, row, checkpoint._asdict(), result=outcome)

    def _sort(self, state: ClassState, before: ClassCheckpoint, limit: int) -> tuple[list[SoftSums], Sorted]:
        """Return the sums of each part of the images of an iteration, and what becomes of the images."""
        s, executor = self.settings, self.context.executor
        parts = 1 if state.phase == "batch" else PARTS
        looked_at = self._images_of(state, before)
        part = np.zeros(len(before.part), np.int8) if parts == 1 else before.part
        near = np.isfinite(before.shift[:, 0])
        items = [
            ClassItem(number, group, before.shift[group] if known else None, state.phase != "last")
            for number in range(parts)
            for known in (False, True)
            if len(own := np.sort(looked_at[(part[looked_at] == number) & (near[looked_at] == known)]))
            for group in groups_of(own, self.job.group_size)
        ]
        with labelled(step="reference"):
            where = [self.context.url, s, limit]
            several = parts if len(before.mass) > 1 else 1  # of one sum of all, each part sees the same
            models: list[Shared[ClassModel]] = [
                executor.spread(read_class_model, where[0], number, *where[1:], local=itself, purpose="reference")
                for number in range(several)
            ]
        fold = fold_of_classes(s, limit, posed=state.phase != "batch")
        with self.context.progress.stage("classify", len(looked_at)) as stage:
            sums, notes = executor.accumulate(
                fold,
                items,
                shared=lambda item: [self.data, models[item.part % several]],
                on_done=lambda index: stage.advance(len(items[index].indices)),
            )
            return [executor.fetch(sums[number]) for number in sorted(sums)], joined(notes)

    def _images_of(self, state: ClassState, before: ClassCheckpoint) -> NDArray[np.int64]:
        """Return the images that an iteration looks at."""
        order, s = before.order, self.settings
        if state.phase == "last":
            return order
        if state.phase == "pass":
            return order[: s.subset]
        first = (state.iteration - 1) * s.batch
        return np.unique(order[np.arange(first, first + s.batch) % len(order)])

    def _next_sums(
        self, state: ClassState, before: ClassCheckpoint, sums: list[SoftSums], grid: PolarGrid
    ) -> list[SoftSums]:
        """Return the sums that the next iteration begins with: weak classes have taken over half of strong ones."""
        total = summed(sums)
        if state.phase == "batch":
            left = on_rings(before.sums()[0], grid).times(1 - FORGOTTEN)
            kept = left.plus(total)
            return [split_classes(kept, pairs_to_split(kept.mass))]
        if state.passes < SPLITTING:
            pairs = pairs_to_split(total.mass)
            return [split_classes(part, pairs) for part in sums]
        return sums

    def converged(self, iterations: int) -> str:
        """Return what that means."""
        return f"converged after {iterations} iterations: few images change their class"

    def finish(self, last: IterationResult[ClassState], wall_s: float) -> None:
        """Write class averages, the table of particles with their classes, and the report."""
        outcome: ClassOutcome = last.result
        write_classes(self, outcome, wall_s)


def write_classes(run: Classification, outcome: ClassOutcome, wall_s: float) -> None:
    """Write what a classification found: the largest class first."""
    s, context, found = run.settings, run.context, outcome.found
    view = view_of(s, outcome.limit)
    total = summed(outcome.sums)
    order = np.argsort(-total.mass, kind="stable")
    rank = np.argsort(order)
    with context.progress.stage("average"):
        slices = solve_references(total, signal_power(total, view))
        images = class_images(slices, view)[order]
        images *= soft_circle(s.box, s.radius, circle_edge(s.box, s.radius))
        resolution = class_resolutions(outcome.sums, outcome.limit, s)[order]
    number = rank[found.class_number]
    count = len(run.dataset.store)
    columns: dict[str, NDArray[Any]] = {
        "class_number": np.zeros(count, np.int64),
        "class_probability": np.zeros(count),
        "noise_evidence": np.zeros(count),
        "class_psi": np.zeros(count),
        "class_shift_x": np.zeros(count),
        "class_shift_y": np.zeros(count),
        "class_mirrored": np.zeros(count, np.int8),
        "class_detail": np.zeros(count),
    }
    shifts = found.shifts * s.pixel_size
    values = (
        number + 1,
        found.probability,
        found.evidence,
        found.psi,
        shifts[:, 0],
        shifts[:, 1],
        found.mirrored,
        found.detail,
    )
    for name, given in zip(columns, values, strict=True):
        columns[name][found.indices] = given
    particles = run.dataset.particles.with_columns(**columns)
    if len(run.without):
        kept = np.sort(found.indices)
        rows = particles["store_row"][kept] if "store_row" in particles else kept
        particles = particles.take(kept).with_columns(store_row=rows)
    write_particles_of(context, particles, run.dataset.store)
    members = np.bincount(number, minlength=s.classes)

    def median(values: NDArray[Any]) -> NDArray[np.float64]:
        own = [values[number == each] for each in range(s.classes)]
        return np.array([np.median(some) if len(some) else np.nan for some in own])

    arrays = {
        "class_averages": images,
        "class_members": members.astype(np.int64),
        "class_share": (total.mass / total.mass.sum())[order],
        "class_resolution_A": resolution,
        "class_evidence": median(found.evidence),
        "class_detail": median(found.detail),
    }
    attributes = {
        "box": s.box,
        "pixel_size_A": s.pixel_size,
        "diameter_A": run.job.diameter_A,
        "wall_s": wall_s,
        "cpu_s": sum(timing.cpu_s for timing in context.progress.timings()),
        "particle_count": len(particles),
        **run_attributes(context.progress, context.executor.traffic()),
    }
    context.write("result", arrays, attributes)
    used = int(np.count_nonzero(members))
    context.progress.message(f"{len(particles):,} particles in {used} classes; the largest has {members.max():,}")
    if run.job.report:
        context.progress.message(f"report: {write_report(context.url)}")


def class_resolutions(sums: list[SoftSums], limit: int, settings: ClassSettings) -> NDArray[np.float64]:
    """Return where the ring correlation of each class between even and odd parts falls below 0.5, Å; NaN if unknown.

    Both halves were compared with averages that hold the other one, so this is a rank among classes, not more.
    """
    halves = []
    for first in (0, 1):
        some = sums[first::2]
        if not some:
            return np.full(settings.classes, np.nan)
        halves.append(summed(some))
    curves = ring_correlation(halves[0], halves[1], view_of(settings, limit).grid)
    length, found = settings.box * settings.pixel_size, []
    for curve in curves:
        at = crossing(np.concatenate([[1.0], np.nan_to_num(curve)]), FSC_HALF)
        found.append(length / max(limit if np.isnan(at) else at, 0.5))
    return np.array(found)
