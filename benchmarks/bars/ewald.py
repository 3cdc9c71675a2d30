"""Curvature of the Ewald sphere: maps with it, without it and with the wrong hand, beside RELION on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bars.measure import Bench, refined, sphere_fsc
from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.simulate import Recording, random_particles
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import particles_to_blocks
from cloudem.io.formats.star import write_star
from cloudem.kernels.ctf import ctf_terms
from cloudem.kernels.curved import curvatures, extract_curved, heights, sidebands
from cloudem.kernels.fourier import fill_half_disc, fourier_volume, half_disc, real_images
from cloudem.kernels.slices import correct_gridding, crop_volume
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix

BOX, LENGTH_A, DIAMETER_A, VOLTAGE = 160, 300.0, 270.0, 100.0
COUNT = 3000
PIXEL_A = LENGTH_A / BOX
RADIUS_A = 140.0
NOISE = 3.0
"""Standard deviation of the noise of a pixel over that of the signal."""

SIDES = {"flat": (), "right hand": ("ewald",), "wrong hand": ("ewald", "reverse")}


def ewald(bench: Bench) -> None:
    """Ewald-sphere curvature at 100 kV: the right hand is better than none, and as good as RELION's within 0.01."""
    for seed in bench.seeds:
        folder, truth = images(bench, seed)
        store = folder / "particles.zarr"
        if not store.exists():
            bench.cloudem("import", folder / "particles.star", "--out", store, "--keep-greyscale", cwd=folder)
        flat = np.zeros(0)
        for name, how in SIDES.items():
            out = bench.fresh(f"ewald-{seed}-{name.split()[0]}")
            options = [{"ewald": "--ewald-sphere", "reverse": "--reverse-curvature"}[word] for word in how]
            given = ("--particles", store, "--diameter-A", DIAMETER_A, "--no-report", "--out", out)
            cost = bench.cloudem("reconstruct", *given, *options)
            ours = sphere_fsc(refined(out)[0]["map_unfiltered"], truth, PIXEL_A, RADIUS_A)
            options = [{"ewald": "--ewald", "reverse": "--reverse_curvature"}[word] for word in how]
            masked = ("--mask_diameter", str(DIAMETER_A)) if how else ()
            command = [bench.program("relion_reconstruct"), "--i", "particles.star", "--o", "relion.mrc", "--ctf"]
            other = bench.measured([*command, *options, *masked], cwd=folder)
            theirs = sphere_fsc(np.array(read_volume(folder / "relion.mrc").data), truth, PIXEL_A, RADIUS_A)
            flat = flat if how else ours
            less = (ours - theirs)[1 : BOX // 2]
            bench.add(
                {"seed": seed, "sphere": name}, columns("", ours), columns("RELION ", theirs),
                {"over flat at 4 Å": round(float((ours - flat)[round(LENGTH_A / 4)]), 4),
                 "least over RELION": round(float(less.min()), 4), "mean": round(float(less.mean()), 4),
                 "CPU-s": round(cost.cpu, 1), "RELION CPU-s": round(other.cpu, 1)},
            )  # fmt: skip


def columns(prefix: str, curve: NDArray[np.float64]) -> dict[str, Any]:
    return {f"{prefix}FSC {at:g} Å": round(float(curve[round(LENGTH_A / at)]), 4) for at in (8, 5, 4)}


def images(bench: Bench, seed: int) -> tuple[Path, NDArray[np.float32]]:
    """Return a folder with particles that were simulated with curvature, and the density."""
    folder = bench.work / f"ewald-{bench.few(COUNT, 200)}-{seed}"
    truth = density_of_atoms(demo_molecule(DIAMETER_A - 20, seed=100 + seed), BOX, PIXEL_A, b_factor=40.0)
    recording = Recording(defocus_min=6e3, defocus_max=1.6e4, voltage=VOLTAGE, shift_sigma=3.0)
    table = random_particles(bench.few(COUNT, 200), recording, seed)
    if not folder.exists():
        making = bench.fresh(folder.name + "-unfinished")
        making.mkdir()
        clean = signal(truth, table.take(np.arange(20)))
        noise = NOISE * float(clean.std())
        random = np.random.default_rng(seed)
        stack = (
            signal(truth, table.take(np.arange(first, min(first + 100, len(table)))), noise, random)
            for first in range(0, len(table), 100)
        )
        write_stack(making / "particles.mrcs", stack, len(table), PIXEL_A)
        named = table.with_columns(image_name=[f"{number + 1:06d}@particles.mrcs" for number in range(len(table))])
        write_star(making / "particles.star", particles_to_blocks(named, box=BOX, pixel_size=PIXEL_A))
        making.rename(folder)
    return folder, truth


def signal(
    truth: NDArray[np.float32], some: Particles, noise: float = 0.0, random: np.random.Generator | None = None
) -> NDArray[np.float32]:
    """Return images of particles with curvature, and white noise of a standard deviation."""
    disc = half_disc(BOX, BOX // 2 - 1)
    optics = some.optics[0]
    bent = np.repeat(curvatures(optics.voltage, LENGTH_A), len(some), axis=0)
    high = heights(disc.kx, disc.ky, bent[:1])[0]
    disc = disc.take(np.hypot(np.hypot(disc.kx, disc.ky), high) < BOX // 2 - 0.5)
    volume = crop_volume(fourier_volume(correct_gridding(truth, 2 * BOX), 2), BOX, BOX // 2 - 1)
    rotations = euler_to_matrix(some["rot"], some["tilt"], some["psi"])
    terms = ctf_terms(
        voltage=optics.voltage, spherical_aberration=optics.spherical_aberration,
        amplitude_contrast=optics.amplitude_contrast, defocus_u=some["defocus_u"], defocus_v=some["defocus_v"],
        defocus_angle=some["defocus_angle"],
    )  # fmt: skip
    bands = sidebands(disc.kx, disc.ky, terms, 1 / LENGTH_A)
    above, below = (extract_curved(volume, rotations, disc.kx, disc.ky, side * bent, 2.0) for side in (1, -1))
    values = (bands * above - bands.conj() * below) / 2j
    shifts = np.stack([some["shift_x"], some["shift_y"]], axis=1) / LENGTH_A
    values *= np.exp(-2j * np.pi * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    found = real_images(fill_half_disc(values.astype(np.complex64), disc, BOX))
    if random is not None:
        found = found + noise * random.standard_normal(found.shape, np.float32)
    return np.asarray(found, np.float32)
