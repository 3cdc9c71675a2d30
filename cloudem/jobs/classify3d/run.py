"""The run of ``cloudem classify3d``, as the engine of iterations sees it.

The half-sets meet in the consensus, in the weights of differences, and in the class of an image, which depends on the
maps of all other parts. Classes are therefore a choice of images, and no more: `refine3d` begins anew from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.bricks import Brick
from cloudem.algorithms.leading import LinearModel, Mixture, fit_mixture
from cloudem.algorithms.noise import noise_variance
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.algorithms.states import (
    PARTS,
    StateSettings,
    best_shares,
    gain_of,
    overstep,
    posterior,
)
from cloudem.errors import InconsistentDataError
from cloudem.execution.executor import Shared, itself
from cloudem.execution.task_names import labelled
from cloudem.io.storage.groups import read_group
from cloudem.jobs.base import Context
from cloudem.jobs.classify2d.tasks import noise_of_group
from cloudem.jobs.classify3d.job import MOST_CLASSES, Classify3D
from cloudem.jobs.classify3d.result import StatesOutcome, StatesRun, write_states
from cloudem.jobs.classify3d.solving import Before, Consensus, SolvedMaps, solve_consensus, solve_maps
from cloudem.jobs.classify3d.state import StatesState, first_states, next_states, searches
from cloudem.jobs.classify3d.tasks import (
    HELD,
    NOWHERE,
    Shared3D,
    StateCheckpoint,
    StateItem,
    StateModel,
    classify_group,
    compare_group,
    consensus_group,
    coordinate_group,
    difference_group,
    joined_states,
    leading_of,
    read_state_checkpoint,
    read_state_model,
    residual_group,
    state_fold,
)
from cloudem.jobs.dataset import Dataset, groups_of, left_out, open_dataset, open_for_tasks
from cloudem.jobs.halves import Drawing, half_sets, image_numbers
from cloudem.jobs.iterative import IterationResult, Iterations, clear, source_of
from cloudem.jobs.maps import read_mask
from cloudem.jobs.provenance import job_record
from cloudem.jobs.refine3d.poses import table_poses
from cloudem.kernels.shells import crossing
from cloudem.model.columns import Value
from cloudem.model.table import distinct

Float64 = NDArray[np.float64]
Bricks = Mapping[tuple[int, int], Shared[Brick]]

HELD_OUT_SHARE, MOST_HELD = 0.2, 5000
"""Share of the images that train nothing until the number of states is settled, and how many at most."""

SAMPLE = 10_000
"""Images on which the first classes are found."""

AGREES = 0.143
"""Correlation of the consensus' halves down to which images are compared."""


class StateClassification(Iterations[StatesState]):
    """A classification in the words of the engine."""

    def __init__(self, job: Classify3D, context: Context, *, resumes: bool) -> None:
        super().__init__(context)
        self.job = job
        self.dataset = open_dataset(job.particles)
        store = self.dataset.store
        self.settings: StateSettings = job.settings(len(store), store.box, store.pixel_size)
        self.without = left_out(store, job.skip_damaged)
        facts = {
            "particles": f"{len(store):,} of {store.box} px at {store.pixel_size:.4g} Å",
            "classes": str(job.classes or f"up to {MOST_CLASSES}"),
            "grid": f"{self.settings.box} voxels of {self.settings.pixel_size:.3g} Å",
        }
        context.progress.facts(facts)
        self.mask = None
        if job.mask is not None:
            self.mask = read_mask(job.mask, self.settings.box, self.settings.pixel_size, context.progress).data
        with labelled(step="open"):
            self.data: Shared[Dataset] = context.executor.spread(open_for_tasks, job.particles, local=itself)

    def begin(self) -> StatesState:
        """Cut the images into parts, measure their noise, and commit that."""
        s, job, store = self.settings, self.job, self.dataset.store
        halves = half_sets(self.dataset.particles, Drawing(job.seed, job.new_halves, job.halves_by), self.without)
        part = particle_parts(halves, job.seed, image_numbers(self.dataset.particles))
        posed = table_poses(self.dataset.particles, store.pixel_size)
        groups = groups_of(np.flatnonzero(part >= 0), job.group_size)
        with self.context.progress.stage("noise", sum(map(len, groups))) as stage:
            done = lambda index: stage.advance(len(groups[index]))  # noqa: E731
            powers = self.context.executor.map(noise_of_group, groups, shared=lambda _: [self.data], on_done=done)
            power = np.sum(list(powers), axis=0)
        clear(self.context, job)
        self.context.write("", {}, {"kind": "result", "source": source_of(job.particles), **job_record(job)})
        empty = np.zeros((s.box,) * 3, np.float32)
        start = StateCheckpoint(
            part=part,
            half_set=halves,
            rotations=posed["pose_rotations"],
            shifts=posed["pose_shifts"] * (s.box / s.whole_box),
            probability=np.zeros((len(part), 0)),
            evidence=np.full(len(part), np.nan),
            sigma2=noise_variance(power[:, :-1], power[:, -1], s.whole_box),
            consensus=empty,
            outline=empty,
            maps=np.zeros((0, 0, *empty.shape), np.float32),
            share=np.zeros(0),
        )
        state = first_states(job.classes)
        self.commit(state, start._asdict(), {"best": []})
        return state

    def state(self, record: Mapping[str, Any]) -> StatesState:
        """Return the state."""
        return StatesState(**record)

    def resume(self, state: StatesState) -> None:
        """Check that the particles are still those that it began with."""
        before = len(read_state_checkpoint(self.context.url).part)
        if before != len(self.dataset.store):
            raise InconsistentDataError(
                f"{self.context.url} was started with {before} particles, but {self.job.particles} now has "
                f"{len(self.dataset.store)}; choose another --out, or --restart to replace it"
            )

    def iterate(self, state: StatesState) -> IterationResult[StatesState]:
        """Do what the phase says."""
        before = read_state_checkpoint(self.context.url)
        if state.phase == "consensus":
            return self._consensus(state, before)
        if state.phase == "start":
            return self._start(state, before)
        return self._pass(state, before)

    def _items(
        self, checkpoint: StateCheckpoint, which: NDArray[np.bool_], weights: Float64 | None = None
    ) -> list[StateItem]:
        """Return tasks for some images, part by part; weights (N, c) go with them."""
        items = []
        for part in range(HELD + 1):
            own = np.flatnonzero(which & (checkpoint.part == part))
            for group in groups_of(own, self.job.group_size) if len(own) else []:
                carried = np.zeros((len(group), 0)) if weights is None else weights[group]
                poses = (checkpoint.rotations[group], checkpoint.shifts[group])
                items.append(StateItem(part, part, group, *poses, carried))
        return items

    def _advance(self, stage: Any, items: Sequence[StateItem]) -> Any:
        return lambda index: stage.advance(len(items[index].indices))

    def _consensus(self, state: StatesState, before: StateCheckpoint) -> IterationResult[StatesState]:
        """Make the map of all images that train, and measure what it leaves of them."""
        s, job, executor = self.settings, self.job, self.context.executor
        training = (before.part >= 0) & (before.part < HELD)
        items, limit = self._items(before, training), s.last_limit
        add = partial(consensus_group, sigma2=before.sigma2, settings=s, limit=limit, symmetry=job.symmetry)
        with self.context.progress.stage("consensus", 2 * int(training.sum())) as stage:
            on_done = self._advance(stage, items)
            bricks, _ = executor.accumulate(
                state_fold(add, 1), items, shared=lambda _: [self.data], on_done=on_done
            )  # fmt: skip
            solved: Consensus = executor.fetch(
                executor.share(solve_consensus, s, job.symmetry, self.mask, *(bricks[p, 0] for p in range(PARTS)))
            )
            volume = executor.spread(reference_volume, solved.volume, limit, local=itself, purpose="reference")
            task = partial(residual_group, sigma2=before.sigma2, settings=s, limit=limit)
            residuals = executor.map(task, items, shared=lambda _: [self.data, volume], on_done=on_done)
            left = np.sum(list(residuals), axis=0)
        sigma2 = before.sigma2.copy()
        measured = noise_variance(left[:, :-1], left[:, -1], s.whole_box)
        sigma2[:, : limit + 1] = measured[:, : limit + 1]
        sigma2[:, 0] = sigma2[:, 1]
        at = crossing(solved.fsc[: limit + 1], AGREES)
        reached = limit if np.isnan(at) else int(at)
        if reached < s.start_limit:
            self.context.progress.warning(
                f"halves of the consensus agree to {s.length / max(at, 0.5):.1f} Å only: check that the particles have "
                "the poses of a refinement that found something"
            )
        chosen = limit if job.resolution_A else min(max(reached, s.start_limit), limit)
        after = next_states(state, job.classes, MOST_CLASSES, limit=chosen)
        checkpoint = before._replace(sigma2=sigma2, consensus=solved.volume, outline=solved.outline)
        row: dict[str, Value] = {
            "iteration": state.iteration, "classes": 1, "limit_A": s.length / chosen, "images": int(training.sum())
        }  # fmt: skip
        return IterationResult(after, row, checkpoint._asdict(), {"best": []}, {"fsc": solved.fsc})

    def _models(
        self, parts: Sequence[int], limit: int, *, added: bool, shift_variance: float, wide: str = ""
    ) -> dict[int, Shared[StateModel]]:
        """Return what the images of each part are compared with."""
        with labelled(step="reference"):
            return {
                part: self.context.executor.spread(
                    read_state_model, self.context.url, part, self.settings, limit, added, shift_variance, wide,
                    local=itself, purpose="reference",
                )
                for part in parts
            }  # fmt: skip

    def _solve(
        self, bricks: Bricks, columns: int, checkpoint: StateCheckpoint, limit: int, share: Float64 | None,
        before: Before | None = None,
    ) -> SolvedMaps:  # fmt: skip
        """Return the differences that each part is compared with."""
        executor = self.context.executor
        where = (self.settings, limit, self.job.symmetry, checkpoint.outline, share, before)
        ordered = [bricks[part, column] for part in range(PARTS) for column in range(columns)]
        solved: SolvedMaps = executor.fetch(executor.share(solve_maps, *where, *ordered))
        return solved

    def _differences(
        self, checkpoint: StateCheckpoint, which: NDArray[np.bool_], weights: Float64, limit: int, *, signed: bool
    ) -> Bricks:
        """Add residuals of some images with weights."""
        items, columns = self._items(checkpoint, which, weights), weights.shape[1]
        model = self._models([0], limit, added=False, shift_variance=np.inf)[0]
        add = partial(
            difference_group, settings=self.settings, limit=limit, symmetry=self.job.symmetry, signed=signed
        )  # fmt: skip
        with self.context.progress.stage("differences", int(which.sum())) as stage:
            bricks, _ = self.context.executor.accumulate(
                state_fold(add, columns),
                items,
                shared=lambda _: [self.data, model],
                on_done=self._advance(stage, items),
            )
        return bricks

    def _start(self, state: StatesState, before: StateCheckpoint) -> IterationResult[StatesState]:
        """Find the first classes along the leading differences of the images that train."""
        limit, training = state.limit, (before.part >= 0) & (before.part < HELD)
        bare = before._replace(maps=np.zeros((0, 0, *before.consensus.shape), np.float32))
        self.commit(state, bare._asdict(), {"best": _best(state)})  # models hold the consensus alone
        sample, coordinates = self._leading(state, bare, training)
        bricks = self._differences(bare, sample, coordinates, limit, signed=True)
        solved = self._solve(bricks, coordinates.shape[1], before, limit, None)
        self.commit(state, before._replace(maps=solved.maps)._asdict(), {"best": _best(state)})
        mixture, indices = self._mixture(state, before, training)
        probability = np.zeros((len(training), state.classes))
        probability[indices] = mixture.probability
        bricks = self._differences(before, training, probability, limit, signed=False)
        solved = self._solve(bricks, state.classes, before, limit, mixture.share)
        after = next_states(state, self.job.classes, MOST_CLASSES, limit=limit)
        checkpoint = before._replace(probability=probability, maps=solved.maps, share=mixture.share)
        row: dict[str, Value] = {
            "iteration": state.iteration,
            "classes": state.classes,
            "limit_A": self.settings.length / limit,
            "images": int(training.sum()),
        }
        return IterationResult(after, row, checkpoint._asdict(), {"best": _best(state)}, {"fsc": solved.fsc})

    def _leading(
        self, state: StatesState, bare: StateCheckpoint, training: NDArray[np.bool_]
    ) -> tuple[NDArray[np.bool_], Float64]:
        """Return which images the first differences are found on, and the coordinates of all, 0 for the others."""
        s, job, executor, count = self.settings, self.job, self.context.executor, state.classes - 1
        chosen = np.random.default_rng([job.seed, 1]).permutation(np.flatnonzero(training))[:SAMPLE]
        sample = np.isin(np.arange(len(training)), chosen)
        items = self._items(bare, sample)
        model = self._models([0], state.limit, added=False, shift_variance=np.inf)[0]
        with self.context.progress.stage("start", len(chosen)) as stage:
            task = (leading_of, items, self.data, model, bare.outline, s, job.symmetry, count, job.seed)
            leading = executor.fetch(executor.share(*task))
            stage.advance(len(chosen))
        coordinates = np.zeros((len(training), count))
        coordinates[np.concatenate([item.indices for item in items])] = leading
        return sample, coordinates

    def _mixture(
        self, state: StatesState, before: StateCheckpoint, training: NDArray[np.bool_]
    ) -> tuple[Mixture, NDArray[np.int64]]:
        """Return a mixture of what images say of their coordinates along the differences, and the images."""
        executor, items = self.context.executor, self._items(before, training)
        models = self._models(range(PARTS), state.limit, added=False, shift_variance=np.inf)
        task = partial(coordinate_group, settings=self.settings, limit=state.limit)
        with self.context.progress.stage("coordinates", int(training.sum())) as stage:
            on_done = self._advance(stage, items)
            found = list(
                executor.map(task, items, shared=lambda item: [self.data, models[item.compared]], on_done=on_done)
            )
        linear = LinearModel(*(np.concatenate(each) for each in zip(*found, strict=True)))
        mixture = executor.fetch(executor.share(fit_mixture, linear, state.classes, self.job.seed))
        return mixture, np.concatenate([item.indices for item in items])

    def _compare(self, state: StatesState, before: StateCheckpoint) -> tuple[Shared3D, Bricks]:
        """Compare all images with what others know of the classes; those of the parts that train make the next sums."""
        s, job, executor, limit = self.settings, self.job, self.context.executor, state.limit
        posed = before.part >= 0
        items = self._items(before, posed)
        if state.phase == "join":
            items = [joining for item in items for joining in _joined_parts(item, before.half_set)]
        variance = float(np.mean(before.shifts[posed] ** 2)) + 1.0
        wide = job.symmetry if job.search and searches(state) else ""
        compared = sorted({item.compared for item in items})
        models = self._models(compared, limit, added=True, shift_variance=variance, wide=wide)

        def shared(item: StateItem) -> Sequence[Shared[Any]]:
            return self.data, models[item.compared]

        training = [item for item in items if item.part != HELD]
        others = [item for item in items if item.part == HELD]
        with self.context.progress.stage("classify", int(posed.sum())) as stage:
            bricks: Bricks = {}
            found: list[Shared3D] = []
            if training:
                add = partial(classify_group, settings=s, limit=limit, symmetry=job.symmetry)
                bricks, found = executor.accumulate(
                    state_fold(add, state.classes), training, shared=shared, on_done=self._advance(stage, training)
                )
            compare = partial(compare_group, settings=s, limit=limit)
            found += list(executor.map(compare, others, shared=shared, on_done=self._advance(stage, others)))
        return joined_states(found), bricks

    def _pass(self, state: StatesState, before: StateCheckpoint) -> IterationResult[StatesState]:
        """Do one pass over the images."""
        s, job, limit = self.settings, self.job, state.limit
        found, bricks = self._compare(state, before)
        probability = np.zeros((len(before.part), state.classes))
        probability[found.indices] = found.probability
        rotations, shifts = before.rotations.copy(), before.shifts.copy()
        held = np.flatnonzero(before.part[found.indices] == HELD)
        training = np.flatnonzero(before.part[found.indices] != HELD)
        # the poses of images held out stay where no class has drawn them, until they join
        moving = training if state.phase == "classes" else np.arange(len(found.indices))
        rotations[found.indices[moving]], shifts[found.indices[moving]] = found.rotations[moving], found.shifts[moving]
        evidence = before.evidence.copy()
        row: dict[str, Value] = {
            "iteration": state.iteration,
            "classes": state.classes,
            "limit_A": s.length / limit,
            "images": len(found.indices),
        }
        if state.phase == "classes":
            rose = posterior(found.evidence[held], before.share)[1] - found.one[held]
            evidence[found.indices[held]] = rose
            gain = gain_of(rose)
            row |= {"gain": gain.mean, "gain_error": gain.error}
        was = before.probability[found.indices[training]]
        moved = float(np.mean(was.argmax(axis=1) != found.probability[training].argmax(axis=1)))
        row["moved"] = moved
        over = gain_of(evidence[found.indices[held]] - self._evidence_before(state)[found.indices[held]])
        after = next_states(
            state,
            job.classes,
            MOST_CLASSES,
            limit=limit,
            moved=moved,
            gain=over,
            most_iterations=s.most_iterations,
            search=job.search,
        )
        checkpoint = before._replace(
            probability=probability, rotations=rotations, shifts=shifts, evidence=evidence
        )  # fmt: skip
        share = best_shares(found.evidence[training], before.share)
        earlier = Before(before.maps[HELD], overstep(found.probability[training]))
        solved = self._solve(bricks, state.classes, before, limit, share, earlier)
        checkpoint = checkpoint._replace(maps=solved.maps, share=share)
        if state.phase == "join":
            checkpoint = checkpoint._replace(part=_all_training(before))
        outcome = StatesOutcome(found if after.classes > 1 else None, checkpoint, state.classes)
        result = IterationResult(after, row, checkpoint._asdict(), {"best": _best(after)}, result=outcome)
        return self._keep(state, result, checkpoint)

    def _evidence_before(self, state: StatesState) -> Float64:
        """Return the evidence of images with the classes that were borne out before, against one state."""
        if state.kept < 2 or state.phase != "classes":
            return np.zeros(len(self.dataset.store))
        arrays, _ = read_group(self.context.url, f"best/{state.kept}")
        return np.asarray(arrays["evidence"], np.float64)

    def _keep(
        self, state: StatesState, result: IterationResult[StatesState], checkpoint: StateCheckpoint
    ) -> IterationResult[StatesState]:
        """Keep classes that were borne out while more are tried; go back to them if more are not."""
        after = result.after
        if after.phase == "start":
            self.context.write(f"best/{state.classes}", checkpoint._asdict(), {})
        elif state.phase == "classes" and after.phase == "join" and after.classes < state.classes:
            kept = StateCheckpoint(**read_group(self.context.url, f"best/{after.classes}")[0])
            return replace(result, arrays=kept._asdict())
        return result

    def converged(self, iterations: int) -> str:
        """Return what that means."""
        return f"finished after {iterations} iterations"

    def finish(self, last: IterationResult[StatesState], wall_s: float) -> None:
        """Write the particles with their classes, the maps of these, and the report."""
        run = StatesRun(self.job, self.context, self.dataset, self.settings, self.data)
        write_states(run, last.result, wall_s)


def _best(state: StatesState) -> list[str]:
    """Return the names of the kept classes' groups that are still needed."""
    return [str(state.kept)] if state.kept > 1 and state.phase in ("start", "classes") else []


def particle_parts(half_set: NDArray[np.int8], seed: int, image: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return the part of each particle: `PARTS` of the two half-sets in turn, `HELD`, or `NOWHERE`.

    Particles of one image (``image`` numbers it, (n,)), such as symmetry mates, are in one part.
    """
    part = np.full(len(half_set), NOWHERE, np.int8)
    rng = np.random.default_rng([seed, 2])
    used = np.flatnonzero(half_set > 0)
    held = min(int(HELD_OUT_SHARE * len(used)), MOST_HELD) // 2
    for half in (1, 2):
        own = np.flatnonzero(half_set == half)
        images = distinct(image[own])
        drawn = rng.permutation(len(images.values))
        some = int(np.count_nonzero(np.cumsum(images.counts[drawn]) <= min(held, len(own) // 2)))
        of_image = np.full(len(drawn), HELD, np.int8)
        of_image[drawn[some:]] = (half - 1) + 2 * (np.arange(len(drawn) - some) % (PARTS // 2))
        part[own] = of_image[images.number]
    return part


def _joining(indices: NDArray[np.int64], half_set: NDArray[np.int8]) -> NDArray[np.int64]:
    """Return the part, of its own half-set, that each image joins that was held out."""
    return np.asarray(half_set[indices] - 1 + 2 * (indices % (PARTS // 2)), np.int64)


def _all_training(checkpoint: StateCheckpoint) -> NDArray[np.int8]:
    """Return parts once the images that were held out have joined."""
    held = np.flatnonzero(checkpoint.part == HELD)
    after = checkpoint.part.copy()
    after[held] = _joining(held, checkpoint.half_set)
    return after


def _joined_parts(item: StateItem, half_set: NDArray[np.int8]) -> list[StateItem]:
    """Return an item of images held out as items of the parts that they join; another one as it is."""
    if item.part != HELD:
        return [item]
    joins, items = _joining(item.indices, half_set), []
    for part in range(PARTS):
        own = np.flatnonzero(joins == part)
        if len(own):
            poses = item.rotations[own], item.shifts[own]
            items.append(StateItem(part, HELD, item.indices[own], *poses, item.weights[own]))
    return items
