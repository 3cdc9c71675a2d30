"""Starting maps from particles alone, held against the truth."""

from __future__ import annotations

from typing import Any

from bars.hard_sets import Recipe, make_set
from bars.measure import Bench, refined
from bars.molecules import MOLECULES, density
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.placing import place
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.storage.groups import read_group
from cloudem.kernels.shells import fourier_shell_correlation

BOX, COUNT, STARTS = 96, 3000, 4
CASES: dict[str, tuple[str, float, float]] = {
    "gpcr": ("gpcr", 2.0, 0.05),
    "gpcr, SNR 0.02": ("gpcr", 2.0, 0.02),
    "unc18": ("unc18", 2.0, 0.05),
    "dimer": ("dimer", 2.5, 0.05),
    "hinge of D2": ("hinge of D2", 2.5, 0.05),
    "noise": ("gpcr", 2.0, 0.0),
}
"""Molecule, pixel size in Å, and SNR; the group of the molecule is imposed."""


def abinitio(bench: Bench) -> None:
    """Without a reference, 3,000 × 96 px, four starts: FSC 0.5 with the truth (either hand), and how many agree."""
    bench.warm()
    for name, (molecule, pixel_size, snr) in CASES.items():
        for seed in bench.seeds:
            truth = density(bench, molecule, BOX, pixel_size)
            count = bench.few(COUNT, 400)
            folder = make_set(bench.work / f"abinitio-{molecule}-{snr}-{count}-{seed}", truth, Recipe(count, snr), seed)
            diameter, group, out = MOLECULES[molecule].diameter, MOLECULES[molecule].group, bench.fresh("abinitio-out")
            given = ("--particles", folder / "particles.zarr", "--diameter-A", diameter, "--symmetry", group)
            starts = ("--starts", bench.few(STARTS, 2), "--seed", 100 * seed)
            cost = bench.cloudem("abinitio", *given, *starts, "--out", out)
            arrays, attributes = read_group(out, "result")
            row: dict[str, Any] = {"case": name, "seed": seed, "agree": attributes["starts_agreeing"]}
            row |= {"evidence": round(float(attributes["evidence"]), 1), "FSC 0.5 Å": "", **cost.columns()}
            if "map" in arrays:
                placed = place(arrays["map"], truth.data, pixel_size, diameter / 2)
                sphere = soft_sphere(BOX, diameter / 2 / pixel_size, 4)
                curve = fourier_shell_correlation(arrays["map"] * sphere, placed.volume * sphere)
                row["FSC 0.5 Å"] = round(resolution_at(curve, BOX, pixel_size, 0.5), 1)
                if not bench.quick:
                    row |= onward(bench, folder, out, truth, diameter, group, pixel_size)
            bench.add(row, {"said": "; ".join(str(text)[:50] for text in attributes["warnings"])})


def onward(
    bench: Bench, folder: Any, start: Any, truth: Any, diameter: float, group: str, pixel_size: float
) -> dict[str, Any]:
    """Return how good a refinement from that map becomes."""
    out = bench.fresh("abinitio-refined")
    given = ("--particles", folder / "particles.zarr", "--reference", start, "--diameter-A", diameter)
    waves = ("--initial-resolution-A", round(diameter / 6, 1))
    cost = bench.cloudem("refine3d", *given, *waves, "--symmetry", group, "--out", out)
    volume = refined(out)[0]["map_unfiltered"]
    placed = place(volume, truth.data, pixel_size, diameter / 2)
    sphere = soft_sphere(BOX, diameter / 2 / pixel_size, 4)
    curve = fourier_shell_correlation(volume * sphere, placed.volume * sphere)
    return {
        "refined, FSC 0.5 Å": round(resolution_at(curve, BOX, pixel_size, 0.5), 2),
        "CPU-s of that": round(cost.cpu, 1),
    }
