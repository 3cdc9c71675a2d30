"""Particle store: speed of writing and reading, and what half precision costs.

    python benchmarks/particle_store.py [--count 8192] [--box 128] [--star particles.star]

Speed: images of noise, written to and read from a temporary folder (``--folder``), beside zarr itself and a memory map
of an MRC stack, in one process and warm from the page cache. GB/s count the bytes on disk; images/s are what matters
when comparing types.

Accuracy: rounding noise of float16 relative to the noise of the images, by frequency, of the particles in ``--star``
or of white noise; with ``--star`` and RELION installed also the FSC between RELION's reconstructions of what the
float16 store gives back and of the original images.
"""

import argparse
import platform
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import zarr

from cloudem.io.exporting import export, source_values
from cloudem.io.formats.mrc import map_stack, read_volume
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.sources import SourceImages
from cloudem.io.importing import import_particles
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles

REPEATS = 5


def seconds(run: Callable[[], object]) -> float:
    """Return the median time of a few runs; the first, which compiles and fills caches, does not count."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_threads(count: int, run: Callable[[np.ndarray], object], parts: list[np.ndarray]) -> None:
    """Run over the parts in threads."""
    threads = [threading.Thread(target=lambda i=i: [run(part) for part in parts[i::count]]) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def through_zarr(url: Path, count: int) -> np.ndarray:
    """Read the first images as any Zarr program would."""
    return np.asarray(zarr.open_group(url, mode="r")["images"][:count], dtype=np.float32)


def row(what: str, elapsed: float, count: int, bytes_each: int) -> None:
    print(f"| {what:<44} | {count / elapsed:>10,.0f} | {count * bytes_each / elapsed / 1e9:>6.2f} |")


def speed(folder: Path, count: int, box: int) -> None:
    print(f"\n{count} images of {box} x {box}\n\n| what | images/s | GB/s |\n| --- | ---: | ---: |")
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((512, box, box), dtype=np.float32)
    table = Particles((OpticsGroup("a", 300.0, 2.7e7, 0.1),), {"optics_group": np.zeros(count, dtype=np.int32)})
    batches = [batch] * (count // 512)
    every = np.arange(count)
    chosen = rng.permutation(count)[: min(1000, count)]
    pieces = np.array_split(every, max(1, count // 512))
    for dtype in ("float16", "float32"):
        url, size = folder / f"{dtype}.zarr", box * box * np.dtype(dtype).itemsize

        def write(url: Path = url, dtype: str = dtype) -> None:
            shutil.rmtree(url, ignore_errors=True)
            write_particles(url, table, batches, box=box, pixel_size=1.0, dtype=dtype)

        row(f"write, {dtype}", seconds(write), count, size)
        store = open_particles(url)
        read = store.read_images
        row(f"read in batches of 512, {dtype}", seconds(partial(in_threads, 1, read, pieces)), count, size)
        row(f"the same, 2 threads, {dtype}", seconds(partial(in_threads, 2, read, pieces)), count, size)
        row(f"read 1,000 at random, {dtype}", seconds(partial(read, chosen)), len(chosen), size)
        first = min(1024, count)
        row(f"zarr itself, first 1,024, {dtype}", seconds(partial(through_zarr, url, first)), first, size)
    write_stack(folder / "s.mrcs", batches, count, 1.0)
    mapped, _ = map_stack(folder / "s.mrcs")
    row(
        "memory map of an MRC stack, batches of 512", seconds(lambda: [mapped[p] for p in pieces]), count, box * box * 4
    )


def shell_power(images: np.ndarray) -> np.ndarray:
    """Return the mean power in each Fourier shell up to Nyquist."""
    box = images.shape[-1]
    power = (np.abs(np.fft.rfft2(images)) ** 2).mean(axis=0)
    shell = np.rint(np.hypot(np.fft.fftfreq(box, 1 / box)[:, None], np.arange(box // 2 + 1)[None])).astype(int)
    return (np.bincount(shell.ravel(), power.ravel()) / np.bincount(shell.ravel()))[1 : box // 2]


def accuracy(folder: Path, star: Path | None) -> None:
    if star is None:
        exact = np.random.default_rng(0).standard_normal((500, 128, 128), dtype=np.float32)
        rounded = exact.astype(np.float16).astype(np.float32)
        print("\nRounding to float16, white noise")
    else:
        source = read_particles_star(star)
        import_particles(source, folder / "p.zarr")
        store = open_particles(folder / "p.zarr")
        chosen = np.arange(min(500, len(store)))
        exact = SourceImages(source).read(0, len(chosen))
        rounded = source_values(store, store.particles, chosen)
        print(f"\nRounding to float16, {star}")
    error = rounded - exact
    ratio = shell_power(error) / shell_power(exact)
    print(f"rms error / rms of the images: {error.std() / exact.std():.2e}")
    print(f"power of the error / power of the images, any shell: {ratio.min():.1e} to {ratio.max():.1e}")
    if star is not None and shutil.which("relion_reconstruct") and "rot" in store.particles:
        export(folder / "p.zarr", folder / "files")
        project = folder / "files"
        reconstruct(project, "particles.star", folder / "half.mrc")
        reconstruct(star.parent, star.name, folder / "exact.mrc")
        a, b = (read_volume(folder / name).data for name in ("half.mrc", "exact.mrc"))
        curve = fourier_shell_correlation(a, b)[1 : len(a) // 2]
        print(f"FSC of the two reconstructions: 1 - FSC is at most {np.max(1 - curve):.1e} up to Nyquist")


def reconstruct(folder: Path, star: str, out: Path) -> None:
    command = ["relion_reconstruct", "--i", star, "--o", str(out), "--ctf"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=8192)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--star", type=Path)
    parser.add_argument("--folder", type=Path, help="where to write; the system's temporary folder if none")
    options = parser.parse_args()
    print(f"{platform.platform()}, zarr {zarr.__version__}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speed(Path(folder), options.count // 512 * 512, options.box)
        accuracy(Path(folder), options.star)


if __name__ == "__main__":
    main()
