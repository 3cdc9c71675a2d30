"""``cloudem auto`` on particles, a fifth of them junk, held against a refinement of the others from a reference."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bars.blind import KINDS, drawn
from bars.measure import Bench, refined, sphere_fsc
from bars.molecules import MOLECULES, density
from bars.sets import DIAMETER_A, RADIUS_A, truth
from cloudem.algorithms.placing import place
from cloudem.algorithms.resolution import resolution_at
from cloudem.algorithms.simulate import POSE_COLUMNS, Recording, random_particles
from cloudem.io.formats.mrc import Volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_group, write_group

BOX, COUNT, JUNK, SNR = 128, 5000, 0.2, 0.05
OTHERS = {"gpcr": 2.0, "hinge of D2": 2.5}
"""Other molecules, whose symmetry is not given, and the pixel sizes of their images, Å."""

OTHER_BOX, OTHER_COUNT = 96, 3000


def spoiled(bench: Bench, name: str, volume: Volume, diameter: float, count: int, seed: int) -> Path:
    """Return a folder with ``particles.zarr``, a fifth of it junk of four kinds, and ``clean.zarr`` without it."""
    folder = bench.work / f"spoiled-{name.replace(' ', '-')}-{count}-{seed}"
    if folder.exists():
        return folder
    making = bench.fresh(folder.name + "-unfinished")
    making.mkdir(parents=True)
    rng = np.random.default_rng([seed, 13])
    kinds = rng.integers(1, len(KINDS), count)
    kinds[rng.random(count) >= JUNK] = 0
    table = random_particles(count, Recording(snr=SNR), seed)
    species = np.zeros(count, np.int64)
    images = np.concatenate(list(drawn([volume], table, species, kinds, SNR, seed, rng, diameter)))
    bare = table.without_columns((*POSE_COLUMNS, "half_set"))
    grid: dict[str, Any] = {"box": len(volume.data), "pixel_size": volume.pixel_size}
    for store, rows in (("particles", np.arange(count)), ("clean", np.flatnonzero(kinds == 0))):
        write_particles(making / f"{store}.zarr", bare.take(rows), [images[rows]], **grid)
    write_group(making / "particles.zarr", "drawn", {"kind": kinds}, {})
    return making.rename(folder)


def auto(bench: Bench) -> None:
    """Ribosome, 5,000 x 128 px, 20 % junk: within a shell of a refinement without junk, at most 5 minutes."""
    bench.warm()
    volume = truth(bench, BOX)
    for seed in bench.seeds:
        folder = spoiled(bench, "ribosome", volume, DIAMETER_A, bench.few(COUNT, 300), seed)
        row, project = automatically(bench, folder, DIAMETER_A, seed, "--symmetry", "C1")
        known = bench.fresh("auto-known")
        given = ("--particles", folder / "clean.zarr", "--reference", bench.data / "ribosome" / f"start_{BOX}.mrc")
        bench.cloudem("refine3d", *given, "--diameter-A", DIAMETER_A, "--seed", seed, "--out", known)
        shells = [shell_of(result, volume, RADIUS_A) for result in (project / "refine", known)]
        for name, shell in zip(("auto", "known reference"), shells, strict=True):
            row[f"{name}, FSC 0.5 Å"] = round(BOX * volume.pixel_size / shell, 2)
        bench.add(row, {"shells less": round(shells[1] - shells[0], 2)})
        shutil.rmtree(known)


def auto_others(bench: Bench) -> None:
    """Other molecules, 3,000 x 96 px, 20 % junk, no symmetry given: what is found, and how good the map is."""
    bench.warm()
    for name, pixel_size in OTHERS.items():
        volume, diameter = density(bench, name, OTHER_BOX, pixel_size), MOLECULES[name].diameter
        for seed in bench.seeds:
            folder = spoiled(bench, name, volume, diameter, bench.few(OTHER_COUNT, 300), seed)
            row, project = automatically(bench, folder, diameter, seed)
            shell = shell_of(project / "refine", volume, diameter / 2)
            row["FSC 0.5 Å"] = round(OTHER_BOX * pixel_size / shell, 2)
            attributes = refined(project / "refine")[1]
            row |= {"stated Å": round(attributes["resolution_A"], 2), "found": attributes["symmetry"]}
            bench.add({"molecule": name, "group": MOLECULES[name].group}, row)


def automatically(bench: Bench, folder: Path, diameter: float, seed: int, *options: str) -> tuple[dict[str, Any], Path]:
    """Run ``cloudem auto``; return what it cost and what it kept, and its project."""
    project = bench.fresh(f"auto-{folder.name}")
    given = ("--diameter-A", diameter, "--seed", seed, *options, "--project", project)
    cost = bench.cloudem("auto", folder / "particles.zarr", *given)
    kinds = read_group(folder / "particles.zarr", "drawn")[0]["kind"]
    kept = np.zeros(len(kinds), bool)
    kept[open_particles(project / "good").particles["store_row"]] = True
    row: dict[str, Any] = {"seed": seed, **cost.columns()}
    row["particles kept"] = round(float(kept[kinds == 0].mean()), 4)
    row["junk out"] = round(float((~kept[kinds > 0]).mean()), 4)
    return row, project


def shell_of(result: Path, volume: Volume, radius: float) -> float:
    """Return the shell at which a map, of either hand, correlates with the truth by 0.5."""
    found, size = refined(result)[0]["map_unfiltered"], volume.pixel_size
    placed = place(found, volume.data, size, radius)
    curve = sphere_fsc(found, placed.volume, size, radius)
    return len(volume.data) * size / resolution_at(curve, len(volume.data), size, 0.5)
