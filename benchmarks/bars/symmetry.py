"""Refinements in point groups that are the molecule's and in others: what is stated, what is true, what is said.

The true resolution is that of the map where it lies: in a group that is not the molecule's it may have turned about the
axis, and then is no better than it looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bars.measure import Bench, refined
from bars.starts import DIAMETER_A, resolution_with
from cloudem.algorithms.axes import turned
from cloudem.io.formats.mrc import Volume, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.model.symmetry import operators

CASES = (("C1", "C2"), ("C1", "D2"), ("C1", "O"), ("C2", "C2"), ("C2", "D2"), ("D2", "D2"), ("D7", "D7"), ("C7", "D7"),
         ("O", "O"))  # fmt: skip
"""The molecule's group, and the one that is imposed."""

ASIDE = {"C2": (2, 6), "D2": (3, 7)}
"""Voxels along z and x by which a molecule is moved off the axes before its mates are added."""


def symmetry(bench: Bench) -> None:
    """Point groups imposed, 1,500 × 64 px, SNR 0.03: the molecule's are believed, and others are contradicted."""
    bench.warm()
    for seed in bench.seeds:
        for own, imposed in CASES[:2] if bench.quick else CASES:
            folder, truth = simulated_in(bench, own, seed)
            for name in ("as it is",) if own == imposed else ("as it is", "symmetrised"):
                start = start_in(folder, imposed if name == "symmetrised" else "C1")
                out = bench.fresh(f"symmetry-out-{seed}")
                cost = bench.cloudem("refine3d", "--particles", folder / "particles.zarr", "--reference", start,
                                     "--symmetry", imposed, "--diameter-A", DIAMETER_A, "--out", out)  # fmt: skip
                arrays, attributes, _ = refined(out)
                true = resolution_with(arrays["map_unfiltered"], truth.data, truth.pixel_size)
                asking = sum(stage["cpu_s"] for stage in attributes["stages"] if stage["name"] == "symmetry")
                row = {"seed": seed, "molecule": own, "imposed": imposed, "start": name}
                row |= {"stated Å": round(attributes["resolution_A"], 2), "true 0.5 Å": round(true, 2)}
                bench.add(row, {"said": said_of(attributes["warnings"]),
                                "asking, share of CPU-s": round(asking / cost.cpu, 3)})  # fmt: skip


def said_of(warnings: Sequence[str]) -> str:
    """Return what a refinement said of its result, in short."""
    for text in warnings:
        if "contradict the symmetry" in text:
            return f"contradicted; {text.rpartition('; ')[2]}"
        if "nothing is shown beyond" in text:
            return "nothing beyond the start"
    return "nothing"


def simulated_in(bench: Bench, own: str, seed: int) -> tuple[Path, Volume]:
    """Return the folder of images of a molecule of a group, and its density."""
    folder = bench.work / f"symmetry-{own}-{seed}"
    if not (folder / "particles.zarr" / "truth").exists():
        made = bench.fresh(f"symmetry-of-{own}-{seed}")
        bench.cloudem("simulate", "--demo", "--box-px", 64, "--pixel-size-A", 3, "--count", 0, "--seed", seed, "--out",
                      made)  # fmt: skip
        single = read_volume(made / "density.mrc")
        density = single.data
        if own != "C1":
            aside = np.roll(density, ASIDE.get(own, (4, 9)), (0, 2))
            density = np.mean([turned(aside, each) for each in operators(own)], axis=0, dtype=np.float32)
        write_volume(made / "molecule.mrc", density, single.pixel_size)
        bench.cloudem("simulate", "--density", made / "molecule.mrc", "--count", bench.few(1500, 300), "--snr", 0.03,
                      "--seed", seed, "--blind", "--out", bench.fresh(folder.name))  # fmt: skip
    return folder, read_volume(folder / "density.mrc")


def start_in(folder: Path, symmetry: str) -> Path:
    """Return the starting map, with the symmetry of a group."""
    start = read_volume(folder / "start.mrc")
    path = folder / f"start-{symmetry}.mrc"
    mates = [turned(start.data, each) for each in operators(symmetry)] if symmetry != "C1" else [start.data]
    write_volume(path, np.mean(mates, axis=0, dtype=np.float32), start.pixel_size)
    return path
