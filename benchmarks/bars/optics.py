"""Sets with beam tilt, trefoil, tetrafoil and anisotropic magnification: maps beside RELION's, and refinements."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from bars.measure import Bench, refined, refinement_columns, sphere_fsc
from bars.molecules import MOLECULES, atoms_of
from bars.refinements import refine
from bars.sets import simulated, simulated_poses
from cloudem.algorithms.aberrations import aberrations_of, terms_with
from cloudem.algorithms.align import Prior, best_of
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.density import density_of_atoms
from cloudem.algorithms.expectation import Model, align, spectra
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.algorithms.refinement import Settings, State, iteration_plan
from cloudem.algorithms.search import MARGIN, search_grid
from cloudem.algorithms.simulate import UNIT, Recording, Simulator, anisotropic, random_particles
from cloudem.execution.threads import one_thread_per_task
from cloudem.io.formats.mrc import read_volume
from cloudem.io.formats.star import read_star, write_star
from cloudem.kernels.ctf import ctf_terms
from cloudem.kernels.slices import padded_box
from cloudem.model.poses import angle_between, euler_to_matrix

TILT, MATRIX = ("rlnBeamTiltX", "rlnBeamTiltY"), ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
LEFT_OUT = {
    "all applied": (),
    "none": (*TILT, *MATRIX, "rlnOddZernike", "rlnEvenZernike"),
    "without odd": (*TILT, "rlnOddZernike"),
    "without even": ("rlnEvenZernike",),
    "without magnification": MATRIX,
}
"""Columns that are taken out of the table of the same images."""

ABERRATED = (
    "--beam-tilt-x-mrad", 1.0, "--beam-tilt-y-mrad=-0.6", "--odd-zernike-rad", "[0,0,20,0,0,-12]",
    "--even-zernike-rad", "[0,0,0,0,40,0,0,0,30]", "--anisotropy", 0.01, "--anisotropy-angle-deg", 30,
)  # fmt: skip
"""Of trefoil and tetrafoil, 0.9 and 0.6 radians at 3 Å."""

OF_SEED = ("hinge", "gpcr", "ace2")
"""Molecules of the seeds, in turn."""

LAST = 0.95
"""Share of Nyquist up to which curves are compared: in the last shell, RELION's map is the worse one."""

ENDS = 8
"""Pixels from half the box at which the second sphere of measurement ends: five of its soft edge, and three in which
cloudem's maps end; RELION's end beyond half the box, and hold noise there."""


def molecule(bench: Bench, seed: int) -> tuple[str, float, tuple[Any, ...]]:
    """Return the name and the diameter of a seed's molecule, and the options that simulate it."""
    name = OF_SEED[seed % len(OF_SEED)]
    one = MOLECULES[name]
    assert bench.molecules is not None
    assembly = ("--assembly", one.assembly) if one.assembly else ()
    model = ("--model", bench.need(bench.molecules / one.file), *assembly)
    return name, one.diameter, (*model, "--seed", seed)


def optics(bench: Bench) -> None:
    """Known poses, 3,000 × 128 px of 1.2 Å: FSC with the truth equal to relion_reconstruct's within 0.01."""
    bench.warm()
    for seed in bench.seeds:
        name, diameter, model = molecule(bench, seed)
        grid = ("--box-px", 128, "--pixel-size-A", 1.2, "--count", bench.few(3000, 200), "--snr", 0.1)
        out = bench.work / f"optics-{seed}"
        if not (out / "particles.zarr" / "truth").exists():
            bench.cloudem("simulate", *model, *grid, *ABERRATED, "--out", bench.fresh(out.name))
        files = bench.fresh(f"optics-{seed}-files")
        bench.cloudem("export", out / "particles.zarr", "--stack", "--out", files)
        blocks, truth = read_star(files / "particles.star"), read_volume(out / "density.mrc")
        for which, left_out in LEFT_OUT.items():
            kept = {label: column for label, column in blocks["optics"].items() if label not in left_out}
            write_star(files / "some.star", {**blocks, "optics": kept})
            maps = both(bench, files, diameter)
            ours, theirs = (sphere_fsc(found, truth.data, 1.2, diameter / 2) for found in maps)
            shell, last = round(128 * 1.2 / 3.0), int(LAST * 64)
            apart = np.abs(ours - theirs)[1 : last + 1]
            inside = [sphere_fsc(found, truth.data, 1.2, min(diameter / 2, 1.2 * (64 - ENDS))) for found in maps]
            within = np.abs(inside[0] - inside[1])[1:]
            bench.add({
                "molecule": name, "seed": seed, "table": which, "FSC at 3.0 Å": round(float(ours[shell]), 3),
                "RELION's": round(float(theirs[shell]), 3), "furthest apart": round(float(apart.max()), 4),
                "in shell": 1 + int(apart.argmax()), "inside the box": round(float(within[:last].max()), 4),
                "in the shells beyond": round(float(within[last:63].max()), 4),
            })  # fmt: skip


def both(bench: Bench, files: Path, diameter: float) -> tuple[Any, Any]:
    """Return cloudem's map and RELION's, from ``some.star``."""
    store, out = bench.fresh("optics.zarr"), bench.fresh("optics-map")
    bench.cloudem("import", files / "some.star", "--keep-greyscale", "--out", store, cwd=files)
    bench.cloudem("reconstruct", "--particles", store, "--diameter-A", diameter, "--no-report", "--out", out)
    relion = bench.work / "optics-relion.mrc"
    bench.measured(
        [bench.program("relion_reconstruct"), "--i", "some.star", "--ctf", "--o", str(relion)], cwd=files
    )  # fmt: skip
    return refined(out)[0]["map_unfiltered"], read_volume(relion).data


def optics_refined(bench: Bench) -> None:
    """Blind refinement of 2,000 × 96 px of 1.6 Å with aberrations: as good as the same images without."""
    bench.warm()
    grid = ("--box-px", 96, "--pixel-size-A", 1.6, "--count", bench.few(2000, 200), "--snr", 0.1)
    for seed in bench.seeds:
        name, diameter, model = molecule(bench, seed)
        plain = simulated(bench, f"optics-plain-{seed}", *model, *grid)
        wide = simulated(bench, f"optics-wide-{seed}", *model, *grid, *ABERRATED)
        files, ignored = bench.fresh(f"optics-wide-{seed}-files"), bench.fresh(f"optics-ignored-{seed}.zarr")
        bench.cloudem("export", wide / "particles.zarr", "--stack", "--out", files)
        blocks = read_star(files / "particles.star")
        left_out = LEFT_OUT["none"]
        blocks["optics"] = {label: column for label, column in blocks["optics"].items() if label not in left_out}
        write_star(files / "some.star", blocks)
        bench.cloudem("import", files / "some.star", "--keep-greyscale", "--out", ignored, cwd=files)
        truth = read_volume(plain / "density.mrc")
        for which, folder, store in (
            ("none in the images", plain, plain / "particles.zarr"),
            ("in images and table", wide, wide / "particles.zarr"),
            ("in images alone", wide, ignored),
        ):
            out, cost = refine(bench, "optics-refined", store, plain / "start.mrc", diameter, "--seed", seed)
            columns = refinement_columns(bench, out, truth, simulated_poses(folder), diameter / 2)
            bench.add({"molecule": name, "seed": seed, "aberrations": which, **columns, "CPU-s": round(cost.cpu, 1)})


MATRICES = {
    "none": UNIT,
    "1 % anisotropic": anisotropic(0.01, 0.5),
    "3 % anisotropic": anisotropic(0.03, 0.5),
    "6 % anisotropic": anisotropic(0.06, 0.5),
    "3 % all round": (1.03, 0.0, 0.0, 1.03),
    "6 % all round": (1.06, 0.0, 0.0, 1.06),
}
"""Magnifications of which the search on a grid knows nothing."""


def optics_search(bench: Bench) -> None:
    """Global search without prior, reference = truth, where the grid leaves out the magnification of the images."""
    box, pixel_size, scored_A = 96, 1.6, 6.0
    for seed in bench.seeds:
        name, diameter, _ = molecule(bench, seed)
        density, radius = density_of_atoms(atoms_of(bench, name), box, pixel_size), diameter / 2 / pixel_size
        limit = round(box * pixel_size / scored_A)
        settings = Settings(
            box=box, pixel_size=pixel_size, radius=radius, first_limit=limit, search_step=float(np.radians(7.5)),
            shift_range=8.0, candidates=10, poses=4, last_limit=box // 2 - 1, most_iterations=25,
        )  # fmt: skip
        plan = iteration_plan(State(iteration=2, limit=limit), settings)
        one = np.eye(3)[None]
        for which, matrix in MATRICES.items():
            recording = Recording(snr=0.01, magnification=matrix)
            particles = random_particles(bench.few(400, 24), recording, seed)
            simulator = Simulator(density, pixel_size, particles, recording, seed)
            volume = reference_volume(density * np.float32(simulator.scale), max(limit, plan.k_search + MARGIN))
            grid = search_grid(volume, padded_box(box) / box, box, plan.k_search, plan.radius, plan.step, one)
            model = Model(volume, grid, np.full((1, box // 2 + 1), box * box / 2), Prior(np.inf), one)
            optics, count = particles.optics, len(particles)
            defocus = {name: particles[name] for name in ("defocus_u", "defocus_v", "defocus_angle")}
            terms = ctf_terms(voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, **defocus)
            group = particles["optics_group"]
            table = (terms_with(terms, optics, group), np.ones(count), group, np.zeros(count, bool))
            images = np.concatenate(list(simulator.images()))
            batch = Batch(images, *table, None, aberrations=aberrations_of(optics))
            with one_thread_per_task():
                start = time.process_time()
                inverse = (1 / model.sigma2).astype(np.float32)[group]
                found, _ = align(batch, spectra(batch, plan), inverse, plan, model)
                cpu = time.process_time() - start
            truth = euler_to_matrix(*(particles[name] for name in ("rot", "tilt", "psi")))
            error = np.degrees(angle_between(found.take(best_of(found.images)).rotations, truth))
            bench.add({
                "molecule": name, "seed": seed, "magnification": which, "images": count,
                "search to Å": round(box * pixel_size / plan.k_search, 1),
                "within 5°": round(float(np.mean(error < 5)), 3),
                "median pose error °": round(float(np.median(error)), 3),
                "CPU-s per particle": round(cpu / count, 4),
            })  # fmt: skip
