"""What the tasks of a refinement iteration cost by themselves: one thread, arrays in memory, at several boxes.

Those from the sums to the next reference also on two threads, and with the memory that they need beside their input.
"""

from __future__ import annotations

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from bars.measure import Bench
from cloudem.algorithms.align import Prior, start_poses
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.bricks import (
    Brick,
    cut,
    join_bricks,
    merge_bricks,
    pack,
    pack_reference,
    packed_sphere_of,
    unpack,
    unpack_reference,
)
from cloudem.algorithms.expectation import IterationPlan, Model, expect
from cloudem.algorithms.mask import estimate_mask
from cloudem.algorithms.reconstruct import Sums, empty_sums, reference_volume, solve
from cloudem.algorithms.resolution import masked_fsc
from cloudem.execution.threads import one_thread_per_task
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fill_half_disc, half_disc, real_images
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.poses import random_rotations, rotate
from cloudem.model.symmetry import operators

LENGTH_A = 480.0
"""Of the box, whatever its pixels."""

SNR = 0.05
SCORED = 0.7
"""Share of Nyquist to which poses are scored: all shells are inserted then."""

BRICKS = 32
ONE = np.eye(3)[None]


class Scene(NamedTuple):
    """A reference, images of it with what is known of them, and what to do."""

    density: NDArray[np.float32]
    model: Model
    batch: Batch
    plan: IterationPlan


def plan_at(box: int) -> IterationPlan:
    """Return the plan of a late iteration: local refinement, four poses of an image at most."""
    last = box // 2 - 1
    return IterationPlan(
        box=box, pixel_size=LENGTH_A / box, radius=0.3 * box, k_score=int(SCORED * box / 2), k_insert=last,
        k_search=0, step=0.13, shift_radius=1.0, shift_step=1.0, candidates=8, poses=4, first=False,
    )  # fmt: skip


def phantom(box: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Return blobs in a sphere of a quarter of the box."""
    axis = np.arange(box, dtype=np.float32) - box // 2
    density = np.zeros((box, box, box), np.float32)
    for centre in random.normal(size=(60, 3)) * 0.1 * box:
        lines = [np.exp(-((axis - c) ** 2) / (2 * (0.02 * box) ** 2)) for c in centre]
        density += lines[0][:, None, None] * lines[1][:, None] * lines[2]
    return density


def scene(box: int, count: int) -> Scene:
    """Simulate a batch of images, known to 1° and half a pixel (median)."""
    random = np.random.default_rng(0)
    plan, padding = plan_at(box), padded_box(box) / box
    density = phantom(box, random)
    volume = reference_volume(density, plan.k_insert)
    disc = half_disc(box, plan.k_insert)
    rotations, shifts = random_rotations(count, random), random.normal(size=(count, 2))
    defocus = random.uniform(1e4, 2.5e4, count)
    terms = ctf_terms(
        voltage=np.full(count, 300.0), spherical_aberration=np.full(count, 2.7e7),
        amplitude_contrast=np.full(count, 0.1), defocus_u=defocus, defocus_v=defocus,
        defocus_angle=np.zeros(count), phase_shift=0.0, b_factor=0.0,
    )  # fmt: skip
    values = extract(volume, rotations, disc.kx, disc.ky, padding)
    values *= ctf_values(disc.kx, disc.ky, terms, 1 / (box * plan.pixel_size))
    values *= np.exp(-2j * np.pi / box * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky)).astype(np.complex64)
    images = np.asarray(real_images(fill_half_disc(values, disc, box)), np.float32)
    noise = float(images.std() / SNR**0.5)
    images += noise * random.standard_normal(images.shape, dtype=np.float32)
    known = start_poses(
        np.arange(count), rotate(rotations, np.radians(1 / 1.54) * random.normal(size=(count, 3))),
        shifts + 0.5 / 1.18 * random.normal(size=(count, 2)),
    )  # fmt: skip
    sigma2 = np.full((1, box // 2 + 1), box * box * noise**2 / 2)
    table = (terms, np.ones(count), np.zeros(count, np.int32), np.ones(count, bool), known)
    return Scene(density, Model(volume, None, sigma2, Prior(4.0), ONE), Batch(images, *table), plan)


def cpu(run: Callable[[], Any], repeats: int) -> float:
    """Return the median of CPU-seconds."""
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def resident(field: str) -> int:
    """Return a line of this process's memory, ``VmRSS`` or ``VmHWM``, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def threaded(run: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Return CPU-seconds on one thread, seconds on one and two, and the most memory beyond that before, on one.

    Medians. The second thread is free only if the machine is: compare seconds within a row.
    """
    taken: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    beyond = 0
    for _ in range(repeats):
        for threads, times in taken.items():
            Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
            before, began, start = resident("VmRSS"), time.process_time(), time.perf_counter()
            with scipy.fft.set_workers(threads):
                kept = run()
            times.append((time.process_time() - began, time.perf_counter() - start))
            if threads == 1:
                beyond = max(beyond, resident("VmHWM") - before)
            del kept
    one, two = (np.median(taken[threads], axis=0) for threads in (1, 2))
    return {
        "repeats": repeats, "CPU-s": round(one[0], 4), "wall s": round(one[1], 4),
        "CPU-s, 2 threads": round(two[0], 4), "wall s, 2 threads": round(two[1], 4),
        "peak MiB beyond": round(beyond / 2**20),
    }  # fmt: skip


def aligning(bench: Bench, box: int, count: int, repeats: int) -> tuple[Scene, Sums]:
    """Time the expectation step on a batch of images; return what it leaves."""
    given = scene(box, count)
    sums = empty_sums(box, given.plan.k_insert)
    expect(given.batch.rows(np.arange(4)), given.plan, given.model, sums)  # compiles
    took = cpu(lambda: expect(given.batch, given.plan, given.model, sums), repeats)
    bench.add({
        "task": "aligning", "box": box, "images": count, "repeats": repeats,
        "CPU-ms per particle": round(1e3 * took / count, 3),
        "CPU-ns per pixel": round(1e9 * took / count / box**2, 1),
    })  # fmt: skip
    took = cpu(lambda: [np.ones_like(part) for part in (sums.data, sums.weight)], repeats)
    bench.add({
        "task": "empty", "box": box, "voxels": sums.weight.size, "repeats": repeats, "CPU-s": round(took, 4),
        "CPU-ns per voxel": round(1e9 * took / sums.weight.size, 2),
    })  # fmt: skip
    return given, sums


def bricks(bench: Bench, given: Scene, sums: Sums, repeats: int) -> Brick:
    """Time what is done to partial sums and references, per voxel; return packed sums that are ready to be solved."""
    plan = given.plan
    box, padding = plan.box, padded_box(plan.box) / plan.box
    ball = packed_sphere_of(box, plan.k_insert, operators("C1"))
    spare = Sums(sums.data.copy(), sums.weight.copy())
    packed = pack(sums, ball)
    np.maximum(packed.weight, 1e-3 * packed.weight.max(), out=packed.weight)  # as after many images: all are touched
    values = pack_reference(given.model.volume, plan.k_insert, padding)
    voxels = len(packed.data)
    runs: dict[str, tuple[int, Callable[[], Any]]] = {
        "pack": (voxels, lambda: pack(spare, ball)),
        "merge": (voxels, lambda: merge_bricks(packed, packed)),
        "cut": (voxels, lambda: [cut(packed, number, BRICKS) for number in range(BRICKS)]),
        "unpack_reference": (len(values), lambda: unpack_reference(values, plan.k_insert, padding)),
    }
    for name, (count, run) in runs.items():
        took = cpu(run, repeats)
        bench.add({
            "task": name, "box": box, "voxels": count, "repeats": repeats, "CPU-s": round(took, 4),
            "CPU-ns per voxel": round(1e9 * took / count, 2),
        })  # fmt: skip
    return packed


def solving(bench: Bench, density: NDArray[np.float32], packed: Brick, plan: IterationPlan, repeats: int) -> None:
    """Time what turns a half-set's packed sums into map, mask, curves and the next reference."""
    box, k_max, padding = plan.box, plan.k_insert, padded_box(plan.box) / plan.box
    ball = packed_sphere_of(box, k_max, operators("C1"))
    pieces = [cut(packed, number, BRICKS) for number in range(BRICKS)]
    snr = np.linspace(100, 0.01, box // 2 + 1)

    def timed(name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        bench.add({"task": name, "box": box, **threaded(lambda: function(*args, **kwargs), repeats)})
        return function(*args, **kwargs)

    timed("join", join_bricks, pieces)
    del pieces
    sums = timed("unpack", unpack, packed, ball)
    half = timed("solve", solve, sums, box, None, k_max)
    timed("solve filtered", solve, sums, box, snr, k_max)
    del sums
    mask = timed("mask", estimate_mask, density, plan.pixel_size, diameter=2 * plan.radius * plan.pixel_size)
    timed("fsc", masked_fsc, half, density, mask, seed=0)
    volume = timed("transform", reference_volume, half, k_max)
    timed("pack_reference", pack_reference, volume, k_max, padding)


def packed_sums(density: NDArray[np.float32], plan: IterationPlan) -> Brick:
    """Return sums as of very many slices of a map, with noise: weights fall as 1 / |k|."""
    ball = packed_sphere_of(plan.box, plan.k_insert, operators("C1"))
    data = reference_volume(density, plan.k_insert)
    m = data.shape[2] - 2
    rows, half = np.arange(-m, m + 1) ** 2, np.arange(-1, m + 1) ** 2
    weight = np.empty(data.shape, np.float32)
    for plane, z in zip(weight, rows, strict=True):
        plane[...] = m / np.sqrt(1 + z + rows[:, None] + half)
    data *= weight
    for array in (data, weight):  # what packing adds to these columns
        array[:, :, :3] *= np.float32([0, 0.5, 1])
    brick = pack(Sums(data, weight), ball)
    random, noise = np.random.default_rng(1), np.float32(1e-3 * np.abs(brick.data).max())
    brick.data.real += noise * np.sqrt(brick.weight) * random.standard_normal(len(brick.data), np.float32)
    brick.data.imag += noise * np.sqrt(brick.weight) * random.standard_normal(len(brick.data), np.float32)
    return brick


def solving_alone(bench: Bench, boxes: Sequence[int]) -> None:
    """Time the tasks from the sums to the next reference without aligning anything before."""
    repeats = bench.few(3, 1)
    with one_thread_per_task():
        small = Bench(bench.data, bench.work, True, [0])
        for own, box in ((small, 32), *((bench, box) for box in boxes)):  # the first compiles
            plan, density = plan_at(box), phantom(box, np.random.default_rng(0))
            solving(own, density, packed_sums(density, plan), plan, repeats)


def poses(bench: Bench, count: int, repeats: int) -> None:
    """Time what the client does with poses, per particle: sort, compare, write and read the checkpoint."""
    from cloudem.algorithms.align import Poses
    from cloudem.algorithms.view_density import grid
    from cloudem.io.storage.groups import read_group, write_group
    from cloudem.jobs.refine3d.poses import changes, pose_arrays, sorted_found
    from cloudem.jobs.refine3d.tasks import Checkpoint, Found, Placed

    random = np.random.default_rng(0)
    plan, rotations = plan_at(512), random_rotations(count, random)
    halves = (1 + np.arange(count) % 2).astype(np.int8)
    parts = []
    for half in (1, 2):
        for rows in np.array_split(np.flatnonzero(halves == half), 64):
            some: Poses = start_poses(rows.astype(np.int32), rotations[rows], random.normal(size=(len(rows), 2)))
            parts.append(
                (half, Found(some, np.ones(len(rows)), np.zeros((len(rows), 3)), Placed(some.rotations, some.shifts)))
            )

    def gathered() -> Checkpoint:
        gradient = np.zeros((2, *grid().shape), np.float16)
        found = [sorted_found([part for half, part in parts if half == h]) for h in (1, 2)]
        state = (
            np.ones((2, 1, 257)),
            np.ones(2),
            halves,
            np.ones(count),
            np.ones(count, bool),
            np.ones(count),
            gradient,
        )
        checkpoint = Checkpoint(*state, **pose_arrays(found))
        changes(plan, checkpoint, found, ONE)
        return checkpoint

    checkpoint = gathered()
    with tempfile.TemporaryDirectory() as folder:
        write_group(folder, "checkpoint", checkpoint.arrays(), {})
        runs: dict[str, Callable[[], Any]] = {
            "sort and compare poses": gathered,
            "write poses": lambda: write_group(folder, "checkpoint", checkpoint.arrays(), {}),
            "read poses": lambda: read_group(folder, "checkpoint"),
        }
        for name, run in runs.items():
            took = cpu(run, repeats)
            bench.add({
                "task": name, "particles": count, "repeats": repeats, "CPU-s": round(took, 3),
                "CPU-µs per particle": round(1e6 * took / count, 3),
            })  # fmt: skip


def table_bytes(bench: Bench) -> None:
    """Weigh the particle table as it is handed to workers."""
    folder = bench.fresh("table")
    bench.cloudem("simulate", "--demo", "--box-px", 16, "--pixel-size-A", 14, "--count", 20000, "--out", folder)
    from cloudem.jobs.dataset import open_for_tasks

    start = time.process_time()
    table = open_for_tasks(str(folder / "particles.zarr"))
    took = time.process_time() - start
    size = len(pickle.dumps(table, protocol=5))
    bench.add({
        "task": "table", "particles": 20000, "bytes per particle": round(size / 20000, 1),
        "CPU-µs per particle": round(1e6 * took / 20000, 2),
    })  # fmt: skip


def tasks(bench: Bench, boxes: Sequence[int]) -> None:
    """Cost of the tasks of a refinement iteration by box, one thread."""
    repeats = bench.few(3, 1)
    with one_thread_per_task():
        for box in boxes:
            given, sums = aligning(bench, box, bench.few(128, 8), repeats)
            solving(bench, given.density, bricks(bench, given, sums, repeats), given.plan, repeats)
        poses(bench, bench.few(100_000, 2_000), repeats)
        table_bytes(bench)
