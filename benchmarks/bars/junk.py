"""Refinements of images of which 30 % show another molecule, or nothing, held against those without these images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bars.measure import Bench, refined, sphere_fsc
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.formats.mrc import read_volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_group
from cloudem.io.storage.tables import table_from_arrays
from cloudem.model.particles import DOUBTFUL, Particles
from cloudem.model.poses import angle_between, euler_to_matrix

BOX, PIXEL_A, DIAMETER_A = 64, 3.0, 170
GOOD, JUNK = 1400, 600
SNRS = (0.05, 0.02)
SEEDS = (100, 200)
"""Added to the seed of the run: the molecule's and the other's, none of them seen while the settings were chosen."""

WRONG_DEG = 10
"""Poses further off are wrong: such images are rightly left out."""


def junk(bench: Bench) -> None:
    """30 % of another molecule or of noise: map within 3 % of that without, 90 % flagged at 5 % of the good."""
    for snr in SNRS if not bench.quick else SNRS[:1]:
        for seed in bench.seeds:
            good, other, nothing = (
                simulated(bench, number + seed, count, snr if number < 300 else 0)
                for number, count in ((SEEDS[0], GOOD), (SEEDS[1], JUNK), (300, JUNK))
            )
            clean = None
            for name, added in (("none", None), ("another molecule", other), ("noise", nothing)):
                clean = row_of(bench, {"SNR": snr, "seed": seed, "junk": name}, good, added, clean)


def simulated(bench: Bench, seed: int, count: int, snr: float) -> Path:
    """Return the folder of a demo molecule that depends on the seed, and of its particles."""
    folder = bench.work / f"junk-{seed}-{snr}-{bench.few(count, count // 5)}"
    if not (folder / "particles.zarr" / "truth").exists():
        given = ("--box-px", BOX, "--pixel-size-A", PIXEL_A, "--count", bench.few(count, count // 5), "--snr", snr)
        bench.cloudem("simulate", "--demo", "--blind", *given, "--seed", seed, "--out", bench.fresh(folder.name))
    return folder


def mixed(path: Path, folders: Sequence[Path]) -> tuple[Particles, np.ndarray]:
    """Write one store of the particles of several, shuffled; return the truth, and the folder of each particle.

    Micrographs have the same names in all, so that each holds images of all.
    """
    stores = [open_particles(folder / "particles.zarr") for folder in folders]
    truth = [table_from_arrays(Particles, *read_group(folder / "particles.zarr", "truth")) for folder in folders]
    source = np.repeat(np.arange(len(stores)), [len(store) for store in stores])
    order = np.random.default_rng(0).permutation(len(source))
    images = np.concatenate([store.read_images(np.arange(len(store))) for store in stores])
    table, known = (joined(tables).take(order) for tables in ([store.particles for store in stores], truth))
    write_particles(path, table, [images[order]], box=BOX, pixel_size=PIXEL_A)
    return known, source[order]


def joined(tables: Sequence[Particles]) -> Particles:
    names = tables[0].columns
    return replace(tables[0], columns={name: np.concatenate([table[name] for table in tables]) for name in names})


def row_of(bench: Bench, names: dict[str, Any], good: Path, added: Path | None, clean: float | None) -> float:
    """Refine a mixture and add its row; return its resolution against the truth, Å."""
    store = bench.fresh("junk.zarr")
    truth, source = mixed(store, [good] if added is None else [good, added])
    out = bench.fresh("junk-out")
    given = ("--reference", good / "start.mrc", "--diameter-A", DIAMETER_A, "--out", out)
    cost = bench.cloudem("refine3d", "--particles", store, *given)
    arrays, attributes, particles = refined(out)
    density = read_volume(good / "density.mrc").data
    resolution = resolution_at(
        sphere_fsc(arrays["map_unfiltered"], density, PIXEL_A, DIAMETER_A / 2), BOX, PIXEL_A, 0.5
    )
    keep, shows = particles["keep"], source == 0
    rotations = [euler_to_matrix(table["rot"], table["tilt"], table["psi"]) for table in (particles, truth)]
    right = shows & (np.degrees(angle_between(*rotations)) < WRONG_DEG)
    columns: dict[str, Any] = {
        "stated Å": round(float(attributes["resolution_A"]), 2),
        "true 0.5 Å": round(resolution, 2),
        "of that without": round(resolution / (clean or resolution), 3),
        "mask": round(float(arrays["mask"].mean()), 3),
        "flagged, good": round(float(np.mean(keep[shows] < DOUBTFUL)), 4),
        "flagged, rightly posed": round(float(np.mean(keep[right] < DOUBTFUL)), 4),
    }
    if added is not None:
        columns["flagged, junk"] = round(float(np.mean(keep[~shows] < DOUBTFUL)), 3)
        columns["junk at 5 % of good"] = round(float(np.mean(keep[~shows] <= np.quantile(keep[shows], 0.05))), 3)
    bench.add(names, columns, {"CPU-s": round(cost.cpu, 1)})
    return clean or resolution
