"""A pilot: the expectation of a refinement on some of its particles, on this machine, to correct the estimate.

It tells what the data decide of a particle's cost: how many candidates compete, how long they climb. How many
iterations there will be, and how far the resolution goes, it cannot tell; that stays in the range.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Poses, Prior, best_of, start_poses
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.expectation import IterationPlan, Model, contrast, expect
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.noise import noise_variance, power_spectrum
from cloudem.algorithms.reconstruct import empty_sums, reference_volume
from cloudem.algorithms.resolution import low_pass
from cloudem.algorithms.search import MARGIN, search_grid
from cloudem.cloud.planning.calibration import LOCAL, MEASURED_SPREAD, SpeedRow, benchmark, keep, speeds
from cloudem.execution.threads import one_thread_per_task
from cloudem.io.storage.location import exists
from cloudem.jobs.base import Job
from cloudem.jobs.dataset import BATCH, Dataset, open_dataset
from cloudem.jobs.maps import read_mask, read_start_map, soft_edge, stated_symmetry
from cloudem.jobs.progress import SilentProgress
from cloudem.jobs.refine3d import cost
from cloudem.jobs.refine3d.duration import Correction
from cloudem.jobs.refine3d.focusing import focus_of
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.subtracted import poses_in
from cloudem.kernels.slices import padded_box
from cloudem.model.symmetry import operators

SHARE, LEAST = 0.015, 200
"""Of the particles, and particles at least."""

POSE = "rot", "tilt", "psi", "shift_x", "shift_y"
"""Columns that hold it."""

PATIENCE_S = 60.0
"""After which no further batch is begun, beyond :data:`LEAST`."""

BOUNDS = 0.1, 10.0
"""A factor beyond these says that something else is wrong."""


@dataclass(frozen=True)
class Pilot:
    """What a pilot found.

    Attributes
    ----------
    images
        Particles that it took.
    search_s, local_s
        CPU-seconds of a particle, searching and without, in threads of the reference; the former 0 where poses are
        known.
    correction
        Of the model.
    """

    images: int
    search_s: float
    local_s: float
    correction: Correction

    def describe(self) -> str:
        """Return it in a line."""
        c = self.correction
        parts = [("refining a pose", self.local_s, c.local)]
        if self.search_s:
            parts = [("searching", self.search_s, c.search), ("the rest", self.local_s, c.local)]
        said = ", ".join(f"{name} {1e3 * seconds:.2f} ms ({of:.2f} of the model)" for name, seconds, of in parts)
        return f"{self.images} particles, each on a thread of the reference: {said}"


@dataclass(frozen=True)
class _Scene:
    """Particles, the start map on their scale, about the pivot if there is one, and the noise before all is known."""

    symmetry: str
    dataset: Dataset
    batches: Sequence[NDArray[np.int64]]
    density: NDArray[np.float32]
    sigma2: NDArray[np.float64]

    def model(self, plan: IterationPlan) -> Model:
        """Return what images are compared with in an iteration."""
        group, padding = operators(self.symmetry), padded_box(plan.box) / plan.box
        volume = reference_volume(self.density, max(plan.k_score, plan.k_search + MARGIN))
        grid = None
        if plan.k_search:
            grid = search_grid(volume, padding, plan.box, plan.k_search, plan.radius, plan.step, group)
        return Model(volume, grid, self.sigma2, Prior(max(plan.shift_radius, 1.0) ** 2), group)

    def batch(self, rows: NDArray[np.int64], poses: Poses | None) -> Batch:
        """Return images with what is known of them."""
        d = self.dataset
        table = (d.terms[rows], d.ctf_scale[rows], d.optics_group[rows], np.full(len(rows), poses is not None))
        return Batch(d.images(rows), *table, poses, aberrations=d.aberrations)

    def known(self, rows: NDArray[np.int64]) -> Poses:
        """Return the poses of the table."""
        d = self.dataset
        if d.focus is not None:
            rotations, shifts, _ = d.focused(rows, d.focus)
        else:
            rotations, shifts = poses_in(d.particles.take(rows), *POSE, d.store.pixel_size)
        return start_poses(np.arange(len(rows)), rotations, shifts)


def pilot_of(job: Job) -> Pilot | None:
    """Return what a pilot of a job finds; None for jobs that do not align, or whose input is not there yet."""
    if not isinstance(job, Refine3D) or not (exists(f"{job.particles}/zarr.json") and exists(job.reference)):
        return None
    if job.mask is not None and not exists(job.mask):
        return None
    with one_thread_per_task():
        return _run(job, own_row())


def own_row() -> SpeedRow:
    """Return the speed of this machine, measured now if it never was."""
    row = speeds().families[LOCAL]
    if row.how != "measured":
        row = benchmark()
        keep(row)
    return row


def _run(job: Refine3D, row: SpeedRow) -> Pilot:
    dataset = open_dataset(job.particles)
    box, pixel_size = dataset.store.box, dataset.store.pixel_size
    symmetry = stated_symmetry(job.symmetry, job.reference)
    mask = None if job.mask is None else read_mask(job.mask, box, pixel_size, SilentProgress()).data
    dataset = replace(dataset, focus=focus_of(job, mask, box, pixel_size, symmetry))
    settings = job.settings(dataset.focus.box if dataset.focus else box, pixel_size)
    course = cost.iterations_of(settings, cost.EXPECTED, local=job.local)
    searching, local = course[min(1, len(course) - 1)][0], replace(course[-1][0], k_search=0)
    scene = _scene(job, dataset, searching, mask, symmetry)
    models = scene.model(searching), scene.model(local)

    def timed(rows: NDArray[np.int64]) -> tuple[float, float]:
        searched, poses = (0.0, scene.known(rows)) if job.local else _expect(scene, searching, models[0], rows, None)
        return searched, _expect(scene, local, models[1], rows, poses)[0]

    timed(scene.batches[0][:4])  # compiles
    begun, seconds, images = time.monotonic(), [], 0
    for rows in scene.batches:
        if images >= LEAST and time.monotonic() > begun + PATIENCE_S:
            break
        seconds.append(np.array(timed(rows)) / len(rows))
        images += len(rows)
    return _compare(np.array(seconds) * row.core, images, None if job.local else searching, local, symmetry, row)


def _scene(
    job: Refine3D, dataset: Dataset, plan: IterationPlan, mask: NDArray[np.float32] | None, symmetry: str
) -> _Scene:
    """Choose particles, and put the start map on their scale."""
    n, focus = len(dataset.store), dataset.focus
    count = min(n, max(LEAST, math.ceil(SHARE * n)))
    rows = np.sort(np.random.default_rng(job.seed).choice(n, count, replace=False))
    batches = np.array_split(rows, -(-count // BATCH))
    density = read_start_map(
        job.reference, job.reference_pixel_size_A, job.diameter_A, dataset.store.box, plan.pixel_size, SilentProgress()
    ).data
    if focus is not None:
        density = focus.map_about_pivot(density if mask is None else density * mask)
    density = low_pass(density, plan.pixel_size, job.start_resolution)
    density = density * soft_sphere(plan.box, plan.radius, soft_edge(plan.box, plan.radius))
    few = batches[0]
    power, number = power_spectrum(dataset.images(few), dataset.optics_group[few], len(dataset.particles.optics))
    scene = _Scene(symmetry, dataset, batches, density, noise_variance(power, number, plan.box))
    known = scene.known(few) if job.local else None
    numerator, norm = contrast(scene.batch(few, known), plan, scene.model(plan))[:, 2:].sum(axis=0)
    factor = numerator / norm if numerator > 0 and norm > 0 else 1.0
    return replace(scene, density=(density * factor).astype(np.float32))


def _expect(
    scene: _Scene, plan: IterationPlan, model: Model, rows: NDArray[np.int64], poses: Poses | None
) -> tuple[float, Poses]:
    """Run the expectation on a batch; return its CPU-seconds and the best pose of each image."""
    batch, sums = scene.batch(rows, poses), empty_sums(plan.box, plan.k_insert)
    start = time.thread_time()
    found = expect(batch, plan, model, sums).poses
    return time.thread_time() - start, found.take(best_of(found.images))


def _compare(
    seconds: NDArray[np.float64],
    images: int,
    searching: IterationPlan | None,
    local: IterationPlan,
    symmetry: str,
    row: SpeedRow,
) -> Pilot:
    """Compare CPU-seconds of particles, (batches, 2), in threads of the reference, with the model's."""
    search_s, local_s = seconds.mean(axis=0)
    factor, rest, searched = local_s / cost.local_seconds(local), 0.0, 1.0
    if searching is not None:
        rest = search_s - factor * cost.local_seconds(searching)
        searched = rest / cost.search_seconds(searching, symmetry)
    error = float((seconds.std(axis=0) / np.maximum(seconds.mean(axis=0), 1e-12)).max()) / math.sqrt(len(seconds))
    spread = math.exp(math.hypot(math.log(MEASURED_SPREAD), math.log(row.spread), error))
    low, high = BOUNDS
    correction = Correction(float(np.clip(searched, low, high)), float(np.clip(factor, low, high)), spread)
    return Pilot(images, float(max(rest, 0.0)), float(local_s), correction)
