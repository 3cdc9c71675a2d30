"""The data sets: simulated once by RELION or by cloudem itself, kept in the work folder, and imported."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from bars.measure import Bench, Cost
from cloudem.io.formats.mrc import Volume, map_stack, read_volume
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.star import read_star, write_star
from cloudem.io.storage.groups import read_group
from cloudem.io.storage.tables import table_from_arrays
from cloudem.model.particles import Particles

RIBOSOME = {96: 2000, 128: 5000}
DIAMETER_A = 320
RADIUS_A = 160.0
POSES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst")
NOISE = ("--add_noise", "--white_noise", "1.0")


def truth(bench: Bench, box: int) -> Volume:
    return read_volume(bench.need(bench.data / "ribosome" / f"map_{box}.mrc"))


def ribosome(bench: Bench, box: int, seed: int = 0, *, noise: bool = True) -> Path:
    """Return a folder with ``particles.star`` (poses), ``particles_blind.star`` and the stack, by relion_project.

    RELION's noise is the same in every run and cannot be seeded. Seed 0 is therefore its own stack with the half-sets
    of the file; other seeds are its noiseless projections with white noise drawn here, and half-sets left to cloudem.
    """
    source = bench.data / "ribosome"
    count = bench.few(RIBOSOME[box], 250)
    folder = bench.work / f"ribosome{box}-{count}-{seed if noise else 'noiseless'}"
    if folder.exists():
        return folder
    program = bench.program("relion_project")
    bench.need(source / f"map_{box}.mrc")
    making = bench.fresh(folder.name + "-unfinished")
    making.mkdir()
    blocks = read_star(bench.need(source / f"poses_{box}_{RIBOSOME[box]}.star"))
    blocks["particles"] = {name: column[:count] for name, column in blocks["particles"].items()}
    write_star(making / "poses.star", blocks)
    shutil.copy(source / f"map_{box}.mrc", making)
    command = [program, "--i", f"map_{box}.mrc", "--ang", "poses.star", "--ctf", "--pad", "4", "--o", "particles"]
    bench.measured([*command, *(NOISE if noise and not seed else ())], cwd=making)
    if seed:
        add_noise(making / "particles.mrcs", truth(bench, box).pixel_size, seed)
    dropped = {*POSES, *(("rlnRandomSubset",) if seed else ())}
    blocks = read_star(making / "particles.star")
    blocks["particles"] = {name: column for name, column in blocks["particles"].items() if name not in dropped}
    write_star(making / "particles_blind.star", blocks)
    return making.rename(folder)


def add_noise(stack: Path, pixel_size: float, seed: int) -> None:
    """Add white noise of variance 1 to the images of a stack."""
    random = np.random.default_rng(seed)
    clean = stack.rename(stack.with_name("noiseless.mrcs"))
    images, _ = map_stack(clean)
    noisy = (image[None] + random.standard_normal((1, *image.shape), dtype=np.float32) for image in images)
    write_stack(stack, noisy, len(images), pixel_size)
    clean.unlink()


def true_poses(folder: Path) -> Particles:
    return read_particles_star(folder / "particles.star").particles


def imported(bench: Bench, folder: Path, *options: Any, star: str = "particles_blind.star") -> tuple[Path, Cost]:
    """Import a STAR file of a folder; the store lies beside it and is made anew each time."""
    store = folder / f"{Path(star).stem}{''.join(map(str, options))}.zarr"
    shutil.rmtree(store, ignore_errors=True)
    return store, bench.cloudem("import", folder / star, "--out", store, *options, cwd=folder)


def simulated(bench: Bench, name: str, *options: Any) -> Path:
    """Return the folder of a ``cloudem simulate`` with density, start and particles, poses left out of the table."""
    folder = bench.work / name
    if not (folder / "particles.zarr" / "truth").exists():
        bench.cloudem("simulate", "--blind", *options, "--out", bench.fresh(name))
    return folder


def simulated_poses(folder: Path) -> Particles:
    return table_from_arrays(Particles, *read_group(folder / "particles.zarr", "truth"))


def noise_stack(bench: Bench, seed: int) -> Path:
    """Return a folder like :func:`ribosome`'s with images of nothing but white noise, and no poses."""
    box, count = 96, bench.few(RIBOSOME[96], 250)
    folder = bench.work / f"noise-{count}-{seed}"
    if folder.exists():
        return folder
    making = bench.fresh(folder.name + "-unfinished")
    making.mkdir()
    blocks = read_star(bench.need(bench.data / "ribosome" / "poses_96_2000.star"))
    kept = {name: column[:count] for name, column in blocks["particles"].items() if name not in POSES}
    kept["rlnImageName"] = np.array([f"{i + 1:06d}@particles.mrcs" for i in range(count)])
    write_star(making / "particles_blind.star", {**blocks, "particles": kept})
    random = np.random.default_rng(seed)
    batches = (random.standard_normal((50, box, box), dtype=np.float32) for _ in range(count // 50))
    write_stack(making / "particles.mrcs", batches, count, truth(bench, box).pixel_size)
    return making.rename(folder)


def relion_reconstruct(bench: Bench, folder: Path, out: Path, *options: str) -> Cost:
    command = [bench.program("relion_reconstruct"), "--i", "particles.star", "--o", str(out), "--ctf", *options]
    return bench.measured(command, cwd=folder)


def relion_version(bench: Bench) -> str:
    said = subprocess.run([bench.program("relion_project"), "--version"], capture_output=True, text=True)
    words = (said.stdout + said.stderr).split()
    return next((word for word in words if word[:1].isdigit()), "of unknown version")
