"""Local resolution against the truth, and refinements whose references are filtered from place to place."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from bars.hard_sets import Recipe, make_set, truth_of
from bars.measure import Bench, FailedError, MissingError, against_truth, pose_errors, refined
from bars.micelles import MEMBRANES, Particle, micelle_set, particle_of
from bars.molecules import atoms_of, density
from bars.sets import DIAMETER_A, RADIUS_A, imported, ribosome, truth
from cloudem.algorithms.density import density_of_atoms
from cloudem.algorithms.local_resolution import local_resolution, spherical_resolution
from cloudem.algorithms.mask import estimate_mask, soft_sphere
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.storage.groups import read_group
from cloudem.kernels.fourier import shell_index
from cloudem.kernels.shells import crossing, fourier_shell_correlation

Float32 = NDArray[np.float32]

B_FACTORS_A2 = (20.0, 60.0, 120.0, 200.0, 300.0)
"""Of five parts of a molecule, one behind the other along its longest axis."""

NOISE = {"ace2": 3.0, "gpcr": 3.0, "unc18": 5.0}
"""Molecules, and the noise of a half-map in units of the amplitude that the sharp molecule has at `NOISE_AT_A`."""

NOISE_AT_A, BOX, PIXEL_A = 3.4, 96, 1.7
POINTS = 300
"""Voxels inside the mask at which the truth is looked at."""

TRUE_RADIUS_A = 16.0
"""Of the soft sphere in which a map is correlated with the truth, Å."""


def local_regions(bench: Bench) -> None:
    """Local resolution: maps with regions of B 20 to 300 Å² against the local FSC with the truth; cost at 256 px."""
    for molecule, level in NOISE.items():
        for seed in bench.seeds:
            try:
                bench.add({"molecule": molecule, "seed": seed}, regions_row(bench, molecule, level, seed))
            except MissingError as error:
                print(f"  SKIPPED {molecule}: {error}", flush=True)
                break
    box = bench.few(256, 64)
    halves = np.random.default_rng(0).standard_normal((2, box, box, box), np.float32)
    began = time.process_time()
    local_resolution(halves[0], halves[1], 1.0)
    bench.add({"box": box, "CPU-s": round(time.process_time() - began, 1)})


def regions_row(bench: Bench, molecule: str, level: float, seed: int) -> dict[str, Any]:
    """Return errors of the local resolution of a molecule with regions, by both definitions, in shares of the truth."""
    blurred, sharp = (regions(bench, molecule, factors) for factors in (B_FACTORS_A2, (B_FACTORS_A2[0],) * 5))
    rng = np.random.default_rng([seed, 11])
    shell = shell_index(BOX)
    at = shell == round(BOX * PIXEL_A / NOISE_AT_A)
    sigma = level * np.sqrt(np.mean(np.abs(fft.rfftn(sharp)[at]) ** 2) / sharp.size)
    first, second = (np.float32(sigma) * rng.standard_normal(sharp.shape, np.float32) + blurred for _ in range(2))
    mask = estimate_mask(blurred, PIXEL_A, low_pass_resolution=10.0, extend=2.0, edge=4.0)
    places = np.argwhere(mask > 0.9)
    places = places[rng.permutation(len(places))[: bench.few(POINTS, 40)]]
    mean = np.float32(0.5) * (first + second)
    true = np.array([true_resolution_at(mean, blurred, place) for place in places])
    columns: dict[str, Any] = {"true Å, 5 %": round(float(np.percentile(true, 5)), 2)}
    columns["true Å, 95 %"] = round(float(np.percentile(true, 95)), 2)
    by = {
        "bands": local_resolution(first, second, PIXEL_A).resolution,
        "spheres": spherical_resolution(first, second, mask, PIXEL_A),
    }
    for name, found in by.items():
        ratio = found[tuple(places.T)] / true
        columns[f"{name}: median error"] = round(float(np.median(np.abs(ratio - 1))), 3)
        columns[f"{name}: bias"] = round(float(np.median(ratio) - 1), 3)
    return columns


def regions(bench: Bench, molecule: str, factors: tuple[float, ...]) -> Float32:
    """Return the density of a molecule whose parts along its longest axis have B-factors of their own."""
    atoms = atoms_of(bench, molecule)
    centred = atoms.positions - atoms.centre_of_mass()
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][0]
    part = np.searchsorted(np.quantile(along, np.linspace(0, 1, len(factors) + 1)[1:-1]), along)
    whole = np.zeros((BOX,) * 3, np.float32)
    for number, factor in enumerate(factors):
        own = atoms._replace(positions=centred)._asdict()
        some = atoms._replace(**{name: np.asarray(values)[part == number] for name, values in own.items()})
        whole += density_of_atoms(some, BOX, PIXEL_A, b_factor=factor, centre=False)
    return whole


def true_resolution_at(found: Float32, known: Float32, place: NDArray[np.int64]) -> float:
    """Return where the FSC of map and truth in a soft sphere around a voxel falls below 0.5, Å."""
    half = int(TRUE_RADIUS_A / PIXEL_A) + 6
    where = np.ix_(*(np.arange(at - half, at + half) % BOX for at in place))
    sphere = soft_sphere(2 * half, TRUE_RADIUS_A / PIXEL_A, 4.0)
    shell = crossing(fourier_shell_correlation(found[where] * sphere, known[where] * sphere), 0.5)
    return 2 * half * PIXEL_A / max(half if np.isnan(shell) else shell, 1.0)


class Micelles(NamedTuple):
    """A set of images of a membrane protein: frozen before the seeds that are stated."""

    membrane: str
    box: int
    pixel_size: float
    recipe: Recipe


MICELLES = {
    name: Micelles(name, 96, 1.9, Recipe(1500, 0.016, b_factor=60.0, off_deg=1.95, off_shift=0.5, start_resolution=8.0))
    for name in ("unc18", "ace2")
} | {
    name: Micelles(name, 96, 1.9, Recipe(2500, 0.01, b_factor=60.0, off_deg=1.95, off_shift=0.5, start_resolution=8.0))
    for name in ("unc18-large", "ace2-large")
}
"""Poses 2° off about each axis, as a first refinement leaves them."""

FROM_POSES = ("--local", "--initial-resolution-A", 8)


def non_uniform_micelle(bench: Bench) -> None:
    """A membrane protein in a disordered micelle: references filtered by shells and from place to place."""
    bench.warm()
    for name, case in MICELLES.items():
        for seed in bench.seeds:
            try:
                micelle_rows(bench, name, case, seed)
            except (MissingError, FailedError) as error:
                print(f"  SKIPPED {name}: {error}", flush=True)
                break


def micelle_rows(bench: Bench, name: str, case: Micelles, seed: int) -> None:
    """Add a row for each way to filter, and one for known poses."""
    membrane = MEMBRANES[case.membrane]
    recipe = replace(case.recipe, count=bench.few(case.recipe.count, 300))
    particle = particle_of(bench, membrane, case.box, case.pixel_size, seed)
    folder = micelle_set(bench.work / f"micelle-{name}-{recipe.count}-{seed}", particle, recipe, seed)
    given = ("--particles", folder / "particles.zarr", "--reference", folder / "start.mrc")
    few = ("--max-iterations", 3) if bench.quick else ()
    for way, options in (("by shells", ()), ("from place to place", ("--non-uniform",))):
        out = bench.fresh("micelle-out")
        cost = bench.cloudem(
            "refine3d",
            *given,
            *FROM_POSES,
            *options,
            *few,
            "--diameter-A",
            membrane.diameter,
            "--seed",
            seed,
            "--out",
            out,
        )
        arrays, attributes, particles = refined(out)
        row = {"set": name, "seed": seed, "references": way, **held_against(particle, arrays, attributes)}
        bench.add(row, pose_errors(particles, truth_of(folder)), {"CPU-s": round(cost.cpu)})
    out = bench.fresh("micelle-known")
    bench.cloudem("reconstruct", "--particles", folder / "known.zarr", "--diameter-A", membrane.diameter, "--out", out)
    arrays, attributes, _ = refined(out)
    bench.add({"set": name, "seed": seed, "references": "known poses", **held_against(particle, arrays, attributes)})


def held_against(particle: Particle, arrays: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> dict[str, Any]:
    """Return where map and truth part, in the core and in the run's own mask, what was stated, and shells between."""
    found, known = arrays["map_unfiltered"], particle.truth
    length = len(found) * known.pixel_size
    core, own = (
        resolution_at(fourier_shell_correlation(found * mask, known.data * mask), len(found), known.pixel_size, 0.5)
        for mask in (particle.mask, arrays["mask"])
    )
    stated = float(attributes["resolution_A"])
    return {
        "core FSC 0.5 Å": round(core, 2),
        "own mask FSC 0.5 Å": round(own, 2),
        "stated Å": round(stated, 2),
        "stated beyond true, shells": round(length / stated - length / own, 1),
    }


def non_uniform_others(bench: Bench) -> None:
    """Ribosome, real apoferritin and noise: references filtered by shells and from place to place."""
    bench.warm()
    for case in (apoferritin_row, noise_row, ribosome_row):
        for options in ((), ("--non-uniform",)):
            try:
                way = {"references": "from place to place" if options else "by shells"}
                bench.add(way, case(bench, options))
            except MissingError as error:
                print(f"  SKIPPED: {error}", flush=True)
                break


def apoferritin_row(bench: Bench, options: tuple[str, ...]) -> dict[str, Any]:
    """Refine the real particles in O; against the atomic model, by ``cloudem compare_maps``."""
    source = bench.need(bench.data / "apoferritin" / "relion_extract")
    store = bench.fresh("local-apoferritin.zarr")
    bench.cloudem("import", source / "particles.star", "--diameter-A", 140, "--out", store)
    out = bench.fresh("local-apoferritin")
    given = ("--particles", store, "--reference", source / "ref_O.mrc", "--symmetry", "O", "--diameter-A", 140)
    cost = bench.cloudem("refine3d", *given, "--initial-resolution-A", 20, *options, *quick(bench), "--out", out)
    compared = bench.fresh("local-apoferritin-compared")
    bench.cloudem("compare_maps", out, source / "model_O.mrc", "--diameter-A", 160, "--out", compared)
    half = read_group(compared, "result")[1]["resolution_half_A"]
    stated = refined(out)[1]["resolution_A"]
    return {"set": "apoferritin", "FSC 0.5 Å": round(half, 2), "stated Å": round(stated, 2), "CPU-s": round(cost.cpu)}


def ribosome_row(bench: Bench, options: tuple[str, ...]) -> dict[str, Any]:
    """Refine 2,000 images of 96 px from 40 Å."""
    folder = ribosome(bench, 96, bench.seeds[0])
    store, _ = imported(bench, folder)
    out = bench.fresh("local-ribosome")
    cost = bench.cloudem("refine3d", "--particles", store, "--reference", bench.data / "ribosome" / "start_96.mrc",
                         "--diameter-A", DIAMETER_A, *options, *quick(bench), "--out", out)  # fmt: skip
    arrays, attributes, _ = refined(out)
    columns = against_truth(bench, arrays["map_unfiltered"], truth(bench, 96), RADIUS_A)
    return {"set": "ribosome", "FSC 0.5 Å": columns["map FSC 0.5 Å"], "stated Å": round(attributes["resolution_A"], 2),
            "CPU-s": round(cost.cpu)}  # fmt: skip


def noise_row(bench: Bench, options: tuple[str, ...]) -> dict[str, Any]:
    """Refine images of noise from a start that is trusted to 9 Å; nothing may be claimed beyond it."""
    volume = density(bench, "gpcr", 64, 3.0)
    recipe = Recipe(bench.few(600, 200), 0.0, start_resolution=9.0)
    folder = make_set(bench.work / f"local-noise-{recipe.count}-{bench.seeds[0]}", volume, recipe, bench.seeds[0])
    out = bench.fresh("local-noise")
    cost = bench.cloudem("refine3d", "--particles", folder / "particles.zarr", "--reference", folder / "start.mrc",
                         "--diameter-A", 150, "--initial-resolution-A", 9, "--ignore-contrast", *options,
                         *quick(bench), "--out", out)  # fmt: skip
    _, attributes, _ = refined(out)
    limits = [round(row["limit_A"], 2) for row in attributes["iterations"]]
    return {"set": "noise", "limit Å": min(limits), "stated Å": round(attributes["resolution_A"], 2),
            "CPU-s": round(cost.cpu)}  # fmt: skip


def quick(bench: Bench) -> tuple[Any, ...]:
    return ("--max-iterations", 3) if bench.quick else ()
