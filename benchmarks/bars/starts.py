"""Refinements from starting maps whose axes are not those of the point group, held against the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from bars.measure import Bench, refined
from cloudem.algorithms.axes import turned
from cloudem.algorithms.mask import soft_sphere
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.kernels.shells import crossing, fourier_shell_correlation
from cloudem.model.symmetry import operators

GROUP, DIAMETER_A = "D7", 180
TURNS = {"on its axes": ("z", 0.0), "turned about z by 12.9°": ("z", 180 / 14), "tipped by 25°": ("x", 25.0)}


def axes(bench: Bench) -> None:
    """A ring of D7, 1,500 × 64 px, SNR 0.03: a start off its axes ends as well as one on them, and that is said."""
    bench.warm()
    count = bench.few(1500, 200)
    for seed in bench.seeds:
        density = ring(bench, seed)
        folder = bench.fresh(f"axes-{seed}")
        bench.cloudem("simulate", "--density", density, "--count", count, "--snr", 0.03, "--seed", seed, "--blind",
                      "--out", folder)  # fmt: skip
        for name, (axis, angle) in TURNS.items():
            truth = read_volume(density)
            turn = Rotation.from_euler(axis, angle, degrees=True).as_matrix()
            write_volume(folder / "turned.mrc", turned(truth.data, turn), truth.pixel_size)
            out = bench.fresh("axes-out")
            cost = bench.cloudem("refine3d", "--particles", folder / "particles.zarr", "--reference",
                                 folder / "turned.mrc", "--symmetry", GROUP, "--diameter-A", DIAMETER_A,
                                 "--out", out)  # fmt: skip
            arrays, attributes, _ = refined(out)
            true = resolution_with(arrays["map_unfiltered"], truth.data, truth.pixel_size)
            said = next((text for text in attributes["warnings"] if "was turned" in text), "nothing")
            stated = round(float(attributes["resolution_A"]), 2)
            row = {"seed": seed, "start": name, "stated Å": stated, "true 0.5 Å": round(true, 2)}
            bench.add(row, {"stated / true": round(stated / true, 3), "said": said[:48], "CPU-s": round(cost.cpu, 1)})


def ring(bench: Bench, seed: int) -> Path:
    """Return the density of a ring of a molecule that depends on the seed."""
    path = bench.work / f"ring-{seed}.mrc"
    if not path.exists():
        made = bench.fresh(f"ring-of-{seed}")
        bench.cloudem("simulate", "--demo", "--box-px", 64, "--pixel-size-A", 3, "--count", 0, "--seed", seed, "--out",
                      made)  # fmt: skip
        single = read_volume(made / "density.mrc")
        aside = np.roll(single.data, (4, 9), (0, 2))
        mates = [turned(aside, operator) for operator in operators(GROUP)]
        write_volume(path, np.mean(mates, axis=0, dtype=np.float32), single.pixel_size)
    return path


def resolution_with(found: np.ndarray, truth: np.ndarray, pixel_size: float) -> float:
    """Return where the FSC with the truth falls below 0.5, in the better of the two settings of a D group."""
    box = len(truth)
    sphere, best = soft_sphere(box, DIAMETER_A / 2 / pixel_size, 6.0), np.inf
    for angle in (0.0, 180 / 7):
        there = turned(found, Rotation.from_euler("z", angle, degrees=True).as_matrix())
        shell = crossing(fourier_shell_correlation(there * sphere, truth * sphere), 0.5)
        best = min(best, box * pixel_size / max(shell, 1.0))
    return float(best)
