"""Starting maps from particles alone, held against the truth."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bars.blind import KINDS, drawn
from bars.hard_sets import Recipe, Views, make_set
from bars.measure import Bench, refined
from bars.molecules import MOLECULES, density
from bars.sets import DIAMETER_A as RIBOSOME_A
from bars.sets import truth as ribosome_of
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.placing import place
from cloudem.algorithms.resolution import resolution_at
from cloudem.algorithms.simulate import POSE_COLUMNS, Recording, random_particles
from cloudem.io.formats.mrc import Volume
from cloudem.io.particle_store import write_particles
from cloudem.io.storage.groups import read_group
from cloudem.kernels.shells import fourier_shell_correlation

BOX = 96
ONE_SIDED = Views(share=0.8, within_deg=20.0, axis=(0.3, 0.2, 1.0))


class Case(NamedTuple):
    """What is started from: molecule, pixel size in Å, SNR (0: noise alone), images, share of what is no particle."""

    molecule: str
    pixel_size: float
    snr: float
    count: int = 3000
    views: Views = Views()
    junk: float = 0.0


CASES = {
    "ribosome": Case("ribosome", 0, 0.05, 2000),
    "C1": Case("gpcr", 2.0, 0.05),
    "C1, unc18": Case("unc18", 2.0, 0.05),
    "C1, dimer": Case("dimer", 2.5, 0.05),
    "D2": Case("hinge of D2", 2.5, 0.05),
    "C4": Case("gpcr of C4", 2.5, 0.05),
    "O": Case("apoferritin", 2.2, 0.05, 2500),
    "SNR 0.02": Case("gpcr", 2.0, 0.02),
    "SNR 0.01": Case("gpcr", 2.0, 0.01, 20_000),
    "10 % junk": Case("gpcr", 2.0, 0.05, junk=0.1),
    "80 % of views in 20°": Case("gpcr", 2.0, 0.05, views=ONE_SIDED),
    "noise": Case("gpcr", 2.0, 0.0),
}
"""The group of the molecule is imposed."""


def abinitio(bench: Bench) -> None:
    """Without a reference: FSC 0.5 with the truth, either hand, at 15 Å in 9 of 10; at most 20 CPU-s a start."""
    bench.warm()
    for name, case in CASES.items():
        if bench.only and name not in bench.only:
            continue
        for seed in bench.seeds:
            truth, diameter, group = truth_of(bench, case)
            store, out = images_of_case(bench, case, truth, diameter, seed), bench.fresh("abinitio-out")
            given = ("--particles", store, "--diameter-A", diameter, "--symmetry", group)
            starts = ("--starts", 2) if bench.quick else ()
            cost = bench.cloudem("abinitio", *given, *starts, "--seed", 100 * seed, "--out", out)
            arrays, attributes = read_group(out, "result")
            row: dict[str, Any] = {"case": name, "seed": seed, "agree": attributes["starts_agreeing"]}
            row |= {"starts": len(arrays["start_evidence"]), "evidence": round(float(attributes["evidence"]), 1)}
            row |= {"agree to Å": "", "FSC 0.5 Å": "", **cost.columns()}
            if "map" in arrays:
                row["agree to Å"] = round(float(attributes["filter_A"]), 1)
                row["FSC 0.5 Å"] = held_against(arrays["map"], truth, diameter)
            bench.add(row, {"said": "; ".join(str(text)[:50] for text in attributes["warnings"])})


def abinitio_refined(bench: Bench) -> None:
    """A refinement from a map that was made of nothing: FSC 0.5 with the truth (either hand)."""
    bench.warm()
    for name in ("C1, unc18", "D2"):
        case = CASES[name]
        for seed in bench.seeds:
            truth, diameter, group = truth_of(bench, case)
            store, start = images_of_case(bench, case, truth, diameter, seed), bench.fresh("abinitio-out")
            given = ("--particles", store, "--diameter-A", diameter, "--symmetry", group)
            bench.cloudem("abinitio", *given, "--seed", 100 * seed, "--out", start)
            out = bench.fresh("abinitio-refined")
            cost = bench.cloudem("refine3d", *given, "--reference", start, "--out", out)
            found = held_against(refined(out)[0]["map_unfiltered"], truth, diameter)
            bench.add({"case": name, "seed": seed, "FSC 0.5 Å": found, **cost.columns()})


def truth_of(bench: Bench, case: Case) -> tuple[Volume, float, str]:
    """Return the density, the diameter in Å and the group of a case's molecule."""
    if case.molecule == "ribosome":
        return ribosome_of(bench, BOX), RIBOSOME_A, "C1"
    molecule = MOLECULES[case.molecule]
    return density(bench, case.molecule, BOX, case.pixel_size), molecule.diameter, molecule.group


def images_of_case(bench: Bench, case: Case, truth: Volume, diameter: float, seed: int) -> Path:
    """Return the particle store of a case, made unless it is there."""
    count = bench.few(case.count, 400)
    views = "biased" if case.views.share else "even"
    folder = bench.work / f"abinitio-{case.molecule}-{case.snr}-{count}-{views}-{case.junk}-{seed}".replace(" ", "-")
    if not case.junk:
        return make_set(folder, truth, Recipe(count, case.snr, case.views), seed) / "particles.zarr"
    store = folder / "particles.zarr"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rng = np.random.default_rng([seed, 12])
        kinds = rng.integers(1, len(KINDS), count)
        kinds[rng.random(count) >= case.junk] = 0
        table = random_particles(count, Recording(snr=case.snr), seed)
        images = drawn([truth], table, np.zeros(count, np.int64), kinds, case.snr, seed, rng, diameter)
        bare = table.without_columns((*POSE_COLUMNS, "half_set"))
        write_particles(store, bare, images, box=BOX, pixel_size=truth.pixel_size)
        (folder / "whole").touch()
    return store


def held_against(volume: Any, truth: Volume, diameter: float) -> float:
    """Return where the FSC of a map with the truth, once that lies on it in either hand, falls below 0.5, Å."""
    placed = place(volume, truth.data, truth.pixel_size, diameter / 2)
    sphere = soft_sphere(BOX, diameter / 2 / truth.pixel_size, 4)
    curve = fourier_shell_correlation(volume * sphere, placed.volume * sphere)
    return round(resolution_at(curve, BOX, truth.pixel_size, 0.5), 2)
