"""Time each GPU kernel: images per second, and the share of the device's memory bandwidth and matrix speed.

    python benchmarks/gpu_kernels.py [box]

Bytes counted are those that have to move: every array once. A window's 64 voxels are read from the caches; their rate
is given apart, because for the slices it is what limits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from cloudem.backend.arrays import why_no_gpu
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.polar import best_rotations, polar_grid, shift_samples
from cloudem.kernels.slices import extract, half_width, insert, padded_box, score_derivatives
from cloudem.model.poses import euler_to_matrix

IMAGES = 256
POSES_PER_IMAGE = 8
DIRECTIONS = 768
SHIFTS = 24
REPEATS = 20


def seconds(run: Callable[[], Any]) -> float:
    """Return the median time of a call on the device, between events."""
    import cupy

    run()
    times = []
    for _ in range(REPEATS):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) * 1e-3)
    return float(np.median(times))


def copy_speed() -> float:
    """Return bytes read and written per second by a copy of 1 GiB."""
    import cupy

    buffer = cupy.zeros(1 << 27, np.float64)
    return 2 * buffer.nbytes / seconds(buffer.copy)


def product_speed() -> float:
    """Return floating-point operations per second of a large matrix product in float32."""
    import cupy

    square = cupy.ones((8192, 8192), np.float32)
    return 2 * 8192**3 / seconds(lambda: square @ square)


def main() -> None:
    box = int(sys.argv[1]) if len(sys.argv) > 1 else 128
    reason = why_no_gpu()
    if reason is not None:
        print(f"no GPU to time on: {reason}")
        return
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    bandwidth, peak = copy_speed(), product_speed()
    print(f"{name}, box {box}: copies {bandwidth / 1e9:.0f} GB/s, float32 matrix products {peak / 1e12:.1f} TFLOP/s")
    print(f"{'kernel':<20}{'ms':>9}{'images/s':>12}{'of bandwidth':>14}   remark")

    def report(kernel: str, images: int, nbytes: float, run: Callable[[], Any], remark: Any = "") -> None:
        time = seconds(run)
        text = remark(time) if callable(remark) else remark
        share = nbytes / time / bandwidth
        print(f"{kernel:<20}{time * 1e3:>9.3f}{images / time:>12.0f}{share:>13.1%}   {text}")

    slices(box, report)
    polar(box, report, peak)
    ctf(box, report)


def slices(box: int, report: Callable[..., None]) -> None:
    """Time extraction, insertion and derivatives with poses on the host, as the algorithms call them."""
    import cupy

    random = np.random.default_rng(0)
    k_max = box // 2 - 4
    disc, padding = half_disc(box, k_max), padded_box(box) / box
    pixels, m = len(disc.kx), half_width(k_max, padding)
    shape = (2 * m + 1, 2 * m + 1, m + 2)
    volume = cupy.ones(shape, np.complex64)
    weights = cupy.zeros(shape, np.float32)
    count = IMAGES * POSES_PER_IMAGE
    images = np.repeat(np.arange(IMAGES, dtype=np.int32), POSES_PER_IMAGE)
    rotations = euler_to_matrix(*(random.uniform(0, 6.28, count) for _ in range(3)))
    shifts, gamma = random.normal(size=(count, 2)), np.ones(count)
    data = cupy.ones((IMAGES, pixels), np.complex64), cupy.ones((IMAGES, pixels), np.float32)
    rest: Any = (cupy.asarray(disc.kx), cupy.asarray(disc.ky), padding)
    grid, samples = volume.nbytes, count * pixels

    def voxels(time: float) -> str:
        return f"{samples / time:.2e} samples/s, {64 * 8 * samples / time / 1e9:.0f} GB/s of voxels"

    report("extract", count, grid + 8 * samples, lambda: extract(volume, rotations, *rest), voxels)
    report(
        "score_derivatives", count, grid + 12 * IMAGES * pixels,
        lambda: score_derivatives(volume, images, rotations, shifts, *data, *rest, box), voxels,
    )  # fmt: skip
    report(
        "insert", count, 3 * grid + 12 * IMAGES * pixels,
        lambda: insert(volume, weights, images, rotations, shifts, gamma, *data, *rest, box), voxels,
    )  # fmt: skip


def polar(box: int, report: Callable[..., None], peak: float) -> None:
    """Time the search: shifts, the matrix products that score, and the best of their outcome."""
    import cupy

    k_max = box // 5
    grid = polar_grid(k_max, 0.35 * box, box)
    samples, images = len(grid.kx), 16
    rows = images * SHIFTS
    real = cupy.ones((IMAGES, samples), np.float32)
    shifts = np.random.default_rng(0).normal(size=(IMAGES, SHIFTS, 2))
    moved = 8 * IMAGES * samples * (1 + SHIFTS)
    kx, ky = cupy.asarray(grid.kx), cupy.asarray(grid.ky)
    report("shift_samples", IMAGES, moved, lambda: shift_samples(real, real, kx, ky, shifts, box))

    frequencies, angles = len(grid.even), grid.angles // 4 + 1
    left = cupy.ones((frequencies, rows, k_max), np.float32)
    right = cupy.ones((frequencies, k_max, DIRECTIONS), np.float32)
    table = cupy.ones((angles, frequencies), np.float32)
    flops = 8 * 2 * rows * DIRECTIONS * frequencies * (k_max + angles)

    def products() -> None:
        # four products of harmonics for each parity, and each to the angles
        for _ in range(8):
            table @ cupy.matmul(left, right).reshape(frequencies, -1)

    size = 8 * 4 * rows * DIRECTIONS
    report(
        "matrix products", images, size * (2 * frequencies + angles), products,
        lambda time: f"{flops / time / 1e12:.1f} TFLOP/s, {flops / time / peak:.0%} of the matrix peak",
    )  # fmt: skip
    sums: Any = [cupy.ones((angles, 2, rows, DIRECTIONS), np.float32) for _ in range(4)]
    poses = images * SHIFTS * DIRECTIONS * 2 * grid.angles
    report(
        "best_rotations", images, size * angles, lambda: best_rotations(sums[0], sums[1], sums[2], sums[3], SHIFTS),
        lambda time: f"{poses / time:.2e} poses/s",
    )  # fmt: skip


def ctf(box: int, report: Callable[..., None]) -> None:
    """Time the CTF on the whole half disc."""
    import cupy

    disc = half_disc(box, box // 2 - 1)
    terms = ctf_terms(
        voltage=300, spherical_aberration=2.7e7, amplitude_contrast=0.1, defocus_u=np.full(IMAGES, 2e4),
        defocus_v=np.full(IMAGES, 1.9e4), defocus_angle=np.zeros(IMAGES),
    )  # fmt: skip
    kx, ky = cupy.asarray(disc.kx), cupy.asarray(disc.ky)
    report("ctf_values", IMAGES, 4 * IMAGES * len(disc.kx), lambda: ctf_values(kx, ky, terms, 1 / box))


if __name__ == "__main__":
    main()
