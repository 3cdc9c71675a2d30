"""``cloudem auto`` on particles, a fifth of them junk, held against a refinement of the others from a reference."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bars.blind import KINDS, drawn
from bars.measure import Bench, refined, sphere_fsc
from bars.sets import DIAMETER_A, RADIUS_A, truth
from cloudem.algorithms.placing import place
from cloudem.algorithms.resolution import resolution_at
from cloudem.algorithms.simulate import POSE_COLUMNS, Recording, random_particles
from cloudem.io.formats.mrc import Volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_group, write_group

BOX, COUNT, JUNK, SNR = 128, 5000, 0.2, 0.05


def spoiled_ribosome(bench: Bench, seed: int) -> Path:
    """Return a folder with ``particles.zarr``, a fifth of it junk of four kinds, and ``clean.zarr`` without it."""
    count = bench.few(COUNT, 300)
    folder = bench.work / f"spoiled-{count}-{seed}"
    if folder.exists():
        return folder
    making = bench.fresh(folder.name + "-unfinished")
    making.mkdir(parents=True)
    volume, rng = truth(bench, BOX), np.random.default_rng([seed, 13])
    kinds = rng.integers(1, len(KINDS), count)
    kinds[rng.random(count) >= JUNK] = 0
    table = random_particles(count, Recording(snr=SNR), seed)
    species = np.zeros(count, np.int64)
    images = np.concatenate(list(drawn([volume], DIAMETER_A, table, species, kinds, SNR, seed, rng)))
    bare = table.without_columns((*POSE_COLUMNS, "half_set"))
    for name, rows in (("particles", np.arange(count)), ("clean", np.flatnonzero(kinds == 0))):
        write_particles(making / f"{name}.zarr", bare.take(rows), [images[rows]], box=BOX, pixel_size=volume.pixel_size)
    write_group(making / "particles.zarr", "drawn", {"kind": kinds}, {})
    return making.rename(folder)


def auto(bench: Bench) -> None:
    """Ribosome, 5,000 x 128 px, 20 % junk: within a shell of a refinement without junk, at most 5 minutes."""
    bench.warm()
    volume = truth(bench, BOX)
    for seed in bench.seeds:
        folder, project = spoiled_ribosome(bench, seed), bench.fresh(f"auto-{seed}")
        kinds = read_group(folder / "particles.zarr", "drawn")[0]["kind"]
        cost = bench.cloudem(
            "auto", folder / "particles.zarr", "--diameter-A", DIAMETER_A, "--symmetry", "C1", "--seed", seed,
            "--project", project,
        )  # fmt: skip
        known = bench.fresh("auto-known")
        given = ("--particles", folder / "clean.zarr", "--reference", bench.data / "ribosome" / f"start_{BOX}.mrc")
        bench.cloudem("refine3d", *given, "--diameter-A", DIAMETER_A, "--seed", seed, "--out", known)
        shells = [shell_of(result, volume) for result in (project / "refine", known)]
        kept = np.zeros(len(kinds), bool)
        kept[open_particles(project / "good").particles["store_row"]] = True
        row: dict[str, Any] = {"seed": seed, **cost.columns()}
        row["particles kept"] = round(float(kept[kinds == 0].mean()), 3)
        row["junk out"] = round(float((~kept[kinds > 0]).mean()), 3)
        for name, shell in zip(("auto", "known reference"), shells, strict=True):
            row[f"{name}, FSC 0.5 Å"] = round(BOX * volume.pixel_size / shell, 2)
        bench.add(row, {"shells less": round(shells[1] - shells[0], 2)})
        shutil.rmtree(known)


def shell_of(result: Path, volume: Volume) -> float:
    """Return the shell at which a map, of either hand, correlates with the truth by 0.5."""
    found, size = refined(result)[0]["map_unfiltered"], volume.pixel_size
    placed = place(found, volume.data, size, RADIUS_A)
    curve = sphere_fsc(found, placed.volume, size, RADIUS_A)
    return BOX * size / resolution_at(curve, BOX, size, 0.5)
