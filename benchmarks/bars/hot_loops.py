"""The search of poses by itself, and the kernels under it: time for a particle, for a pixel, and against the peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy import ndimage

from bars.measure import Bench
from bars.sets import DIAMETER_A, imported, ribosome, true_poses, truth
from cloudem.algorithms import search as searching
from cloudem.algorithms.align import Poses, Prior, best_of, by_direction, start_poses
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.expectation import IterationPlan, Model, align, spectra
from cloudem.algorithms.reconstruct import empty_sums, reference_volume
from cloudem.algorithms.refinement import Settings, State, iteration_plan
from cloudem.algorithms.search import MARGIN, search_grid, shift_grid
from cloudem.execution.threads import one_thread_per_task
from cloudem.jobs.dataset import open_dataset
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import fourier_volume, half_disc
from cloudem.kernels.polar import (
    Harmonics,
    PolarGrid,
    Workspace,
    best_rotations,
    harmonics,
    rotation_scores,
    shift_samples,
)
from cloudem.kernels.slices import correct_gridding, crop_volume, extract, insert, padded_box, score_derivatives
from cloudem.model.poses import angle_between, euler_to_matrix, random_rotations, rotate

BOX = 128
SCORED_A = 8.0
"""Resolution to which poses are scored: what the images of the set carry one by one."""

PEERS = "cisTEM: 0.13 CPU-s and 0.75° global, 3 to 6 ms and 0.73° local (another molecule)"


def timed(run: Callable[[], Any], seconds: float = 2.0) -> float:
    """Return the mean CPU-seconds of a call, over calls for about the seconds given; the first compiles.

    The mean and not the least: the clock of CPU time may tick as slowly as 10 ms.
    """
    run()
    calls = 0
    began, start = time.monotonic(), time.process_time()
    while time.monotonic() < began + seconds:
        run()
        calls += 1
    return (time.process_time() - start) / calls


def plan_and_model(bench: Bench, box: int) -> tuple[IterationPlan, Model]:
    """Return a global search without a prior, against the truth, and exact white noise of variance 1 in real space."""
    volume = truth(bench, box)
    radius, last = DIAMETER_A / 2 / volume.pixel_size, box // 2 - 1
    limit = min(last, round(box * volume.pixel_size / SCORED_A))
    settings = Settings(
        box=box, pixel_size=volume.pixel_size, radius=radius, first_limit=limit, search_step=float(np.radians(7.5)),
        shift_range=0.06 * DIAMETER_A / volume.pixel_size, candidates=10, poses=4, last_limit=last, most_iterations=25,
    )  # fmt: skip
    plan = replace(iteration_plan(State(iteration=2, limit=limit), settings), shift_radius=settings.shift_range)
    reference = reference_volume(volume.data, max(plan.k_score, plan.k_search + MARGIN))
    one = np.eye(3)[None]
    grid = search_grid(reference, padded_box(box) / box, box, plan.k_search, plan.radius, plan.step, one)
    sigma2 = np.full((1, box // 2 + 1), box * box / 2)
    return plan, Model(reference, grid, sigma2, Prior(np.inf), one)


def search(bench: Bench) -> None:
    """CPU-s per particle of one global search without prior, reference = truth, and of one local refinement."""
    folder = ribosome(bench, BOX, bench.seeds[0])
    store, _ = imported(bench, folder, "--keep-greyscale", star="particles.star")
    dataset, known = open_dataset(str(store)), true_poses(folder)
    count = bench.few(200, 24)
    rows = np.arange(count, dtype=np.int64)
    plan, model = plan_and_model(bench, BOX)
    rotations = euler_to_matrix(*(known[name][:count] for name in ("rot", "tilt", "psi")))
    shifts = np.stack([known["shift_x"], known["shift_y"]], axis=1)[:count] / plan.pixel_size
    random = np.random.default_rng(0)
    # of a normal vector in three dimensions the median length is 1.54 σ, in two 1.18 σ
    turns = random.normal(size=(count, 3)) / 1.54
    moves = random.normal(size=(count, 2)) / 1.18

    def near(degrees: float, pixels: float) -> Poses:
        return start_poses(rows, rotate(rotations, np.radians(degrees) * turns), shifts + pixels * moves)

    none = np.zeros(count, bool)
    table = (dataset.terms[rows], np.ones(count), dataset.optics_group[rows], none)
    batch = Batch(dataset.images(rows), *table, None, aberrations=dataset.aberrations)

    def run(batch: Batch, plan: IterationPlan) -> tuple[float, Poses]:
        align_few(batch, plan, model)
        start = time.process_time()
        spectrum = spectra(batch, plan)
        inverse = (1 / model.sigma2).astype(np.float32)[batch.optics_group]
        found, _ = align(batch, spectrum, inverse, plan, model)
        return (time.process_time() - start) / count, found.take(best_of(found.images))

    with one_thread_per_task():
        for name, one, how in (
            ("global search, no prior", batch, plan),
            ("local refinement from 1°, 0.5 px", replace(batch, poses=near(1, 0.5)), replace(plan, k_search=0)),
            ("local refinement from 3°, 1 px", replace(batch, poses=near(3, 1)), replace(plan, k_search=0)),
        ):
            cpu, best = run(one, how)
            error = np.degrees(angle_between(best.rotations, rotations))
            moved = np.linalg.norm(best.shifts - shifts, axis=1) * plan.pixel_size
            bench.add({
                "task": name, "images": count, "box": BOX, "scored to Å": SCORED_A,
                "CPU-s per particle": round(cpu, 5), "median pose error °": round(float(np.median(error)), 3),
                "within 5°": round(float(np.mean(error < 5)), 3), "shift error Å": round(float(np.median(moved)), 2),
                "peers": PEERS,
            })  # fmt: skip


def align_few(batch: Batch, plan: IterationPlan, model: Model) -> None:
    """Compile what a run needs."""
    some = batch.rows(np.arange(4))
    inverse = (1 / model.sigma2).astype(np.float32)[some.optics_group]
    align(some, spectra(some, plan), inverse, plan, model)


def kernels(bench: Bench) -> None:
    """Nanoseconds per pixel, GFLOP/s of the search against the machine's matrix products, and interpolation errors."""
    with one_thread_per_task():
        slices(bench)
        products(bench)
    interpolation(bench)


def slices(bench: Bench) -> None:
    """Time the compiled kernels on poses sorted by direction, as the algorithms call them."""
    box, images, poses_each = bench.few(BOX, 48), bench.few(64, 8), 4
    random = np.random.default_rng(0)
    k_max = int(0.7 * box / 2)
    disc, padding = half_disc(box, k_max), padded_box(box) / box
    volume = reference_volume(random.normal(size=(box, box, box)).astype(np.float32), k_max)
    sums = empty_sums(box, k_max)
    count, pixels = images * poses_each, len(disc.kx)
    rotations = random_rotations(count, random)
    rotations = rotations[by_direction(rotations)]
    rows = random.integers(0, images, count).astype(np.int32)
    shifts, weights = random.normal(size=(count, 2)), np.ones(count)
    numerators = random.normal(size=(images, pixels, 2)).astype(np.float32).view(np.complex64)[..., 0]
    denominators = np.ones((images, pixels), np.float32)
    optics = np.tile([4e5, 1e3, 4e5, -1e6, 0.1, 0.0], (images, 1))
    grid: Any = (disc.kx, disc.ky, padding, box)
    data = (numerators, denominators)
    runs: dict[str, tuple[int, Callable[[], Any]]] = {
        "extract": (count, lambda: extract(volume, rotations, disc.kx, disc.ky, padding)),
        "insert": (count, lambda: insert(sums.data, sums.weight, rows, rotations, shifts, weights, *data, *grid)),
        "score_derivatives": (count, lambda: score_derivatives(volume, rows, rotations, shifts, *data, *grid)),
        "ctf_values": (images, lambda: ctf_values(disc.kx, disc.ky, optics, 1 / (box * 2.8))),
    }
    for name, (slices_done, run) in runs.items():
        each = timed(run) / (slices_done * pixels)
        bench.add({"kernel": name, "box": box, "pixels of a slice": pixels, "ns per pixel": round(1e9 * each, 2)})


def flops(grid: PolarGrid, rows: int, directions: int) -> int:
    """Return the operations of the matrix products that score rows of images × shifts against directions."""
    angles = grid.angles // 4 + 1
    each = rows * directions
    return sum(len(q) * each * (4 * 2 * grid.k_max + 2 * 2 * 2 * angles) for q in (grid.even, grid.odd))


def products(bench: Bench) -> None:
    """Compare the search with the machine's best matrix product in single precision, on one thread."""
    size = bench.few(2048, 512)
    random = np.random.default_rng(0)
    left, right = (random.normal(size=(size, size)).astype(np.float32) for _ in range(2))
    peak = 2 * size**3 / timed(lambda: left @ right, 3.0)
    bench.add({"products": f"sgemm {size}, NumPy, one thread", "GFLOP/s": round(peak / 1e9, 1), "of that peak": "100%"})
    plan, model = plan_and_model(bench, BOX)
    assert model.grid is not None
    grid, reference = model.grid.grid, model.grid
    directions = reference.power.shape[1]
    images = bench.few(16, 2)
    tried = len(shift_grid(plan.shift_radius, plan.shift_step))
    per_tile = max(1, searching.ROW_TILE // tried)
    tile = min(searching.DIRECTION_TILE, directions)
    rows = per_tile * tried
    samples = random.normal(size=(2, rows, grid.k_max, grid.angles // 2)).astype(np.float32)
    image = harmonics(samples[0], samples[1], grid)
    part = Harmonics(reference.slices.even[..., :tile], reference.slices.odd[..., :tile])
    offset, workspace = np.zeros(rows, np.float32), Workspace()
    tile_time = timed(lambda: rotation_scores(image, part, grid, offset, workspace))
    sums = rotation_scores(image, part, grid, offset, workspace)
    best_time = timed(lambda: best_rotations(*sums, tried))
    half = samples.reshape(2, rows, -1)[:, :per_tile]
    moves = random.normal(size=(per_tile, tried, 2))
    shift_time = timed(lambda: shift_samples(half[0], half[1], grid.kx, grid.ky, moves, BOX))
    harmonics_time = timed(lambda: harmonics(samples[0], samples[1], grid))
    disc_images = random.normal(size=(images, len(reference.disc.kx), 2)).astype(np.float32).view(np.complex64)[..., 0]
    weight = np.ones((images, len(grid.kx)), np.float32)
    shifts = np.broadcast_to(shift_grid(plan.shift_radius, plan.shift_step), (images, tried, 2))
    given: Any = (disc_images, np.zeros(images, np.float32), weight, np.ones((images, grid.k_max), np.float32))
    prior = np.zeros((images, tried), np.float32)
    whole = timed(lambda: searching.search(reference, *given, shifts, prior), 3.0)
    rate = {"matrix products of a tile": flops(grid, rows, tile) / tile_time,
            "whole search step": flops(grid, images * tried, directions) / whole}  # fmt: skip
    for name, speed in rate.items():
        bench.add({"products": name, "GFLOP/s": round(speed / 1e9, 1), "of that peak": f"{speed / peak:.0%}"})
    scored = images * tried * directions * 2 * grid.angles
    shape = f"{grid.k_max} rings × {directions} directions × {tried} shifts × {grid.angles} angles (and mirrored)"
    bench.add(
        {"search of": shape, "ms per image": round(1e3 * whole / images, 2), "poses per s": f"{scored / whole:.2g}"}
    )
    tiles = -(-directions // tile) * images / per_tile
    shares = {"products": tile_time * tiles, "best rotations": best_time * tiles}
    shares["shifts and harmonics"] = (shift_time + harmonics_time) * images / per_tile
    bench.add({"share of the search": "of its time"} | {name: f"{t / whole:.0%}" for name, t in shares.items()})


def interpolation(bench: Bench) -> None:
    """Compare interpolated slices of a phantom of points with its exact transform: rms error over rms signal."""
    box = bench.few(BOX, 48)
    random = np.random.default_rng(0)
    points = random.integers(-int(0.35 * box), int(0.35 * box) + 1, (2000, 3))
    points = points[np.linalg.norm(points, axis=1) <= 0.35 * box][:400]  # x, y, z
    strength = random.normal(size=len(points))
    volume = np.zeros((box, box, box), np.float32)
    np.add.at(volume, tuple((points[:, ::-1] + box // 2).T), strength.astype(np.float32))
    k_max = box // 2 - 1
    disc, rotations = half_disc(box, k_max), random_rotations(10, random)
    position = np.stack([disc.kx, disc.ky], axis=-1) @ rotations[:, :2, :]
    exact = np.exp(-2j * np.pi / box * (position @ points.T)) @ strength
    trilinear = slices_trilinear(volume, position, 2)
    ours = extract(reference_volume(volume, k_max), rotations, disc.kx, disc.ky, padded_box(box) / box)
    enlarged = fourier_volume(correct_gridding(volume, 2 * box), 2)
    finer = extract(crop_volume(enlarged, box, k_max), rotations, disc.kx, disc.ky, 2)
    found = {
        f"Kaiser-Bessel, 4 voxels, padding {padded_box(box) / box:g}": ours,
        "trilinear, padding 2": trilinear,
        "trilinear, padding 3": slices_trilinear(volume, position, 3),
        "Kaiser-Bessel, 4 voxels, padding 2": finer,
    }
    inner = disc.shell <= 0.9 * box / 2
    power = np.mean(np.abs(exact) ** 2)
    for name, values in found.items():
        error = np.abs(values - exact) ** 2 / power
        parts = {"to 0.9 Nyquist": error[:, inner].mean(), "beyond": error[:, ~inner].mean(), "largest": error.max()}
        bench.add({"interpolation": name, "box": box}, {k: float(f"{np.sqrt(v):.2e}") for k, v in parts.items()})


def slices_trilinear(volume: NDArray[Any], position: NDArray[Any], padding: int) -> NDArray[Any]:
    """Interpolate linearly in a padded transform, the volume divided by the square of the sinc beforehand.

    That is what RELION's projector does.
    """
    box = volume.shape[0]
    size = box * padding
    line = np.sinc((np.arange(box) - box // 2) / size) ** 2
    corrected = volume / (line[:, None, None] * line[:, None] * line)
    whole = np.zeros((size, size, size))
    low = size // 2 - box // 2
    whole[low : low + box, low : low + box, low : low + box] = corrected
    transform = np.fft.fftshift(scipy.fft.fftn(np.fft.ifftshift(whole).astype(np.complex64)))
    place = np.moveaxis(position[..., ::-1] * padding + size // 2, -1, 0)
    return ndimage.map_coordinates(transform.real, place, order=1) + 1j * ndimage.map_coordinates(
        transform.imag, place, order=1
    )
