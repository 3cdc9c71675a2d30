"""Aberrations and defocus by ``refine_ctf``: against the truth, against RELION, and what a pass costs."""

from __future__ import annotations

import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bars.measure import Bench, Cost, refined, sphere_fsc
from bars.molecules import MOLECULES, density
from cloudem.algorithms.aberrations import even_terms, odd_terms
from cloudem.algorithms.ctf_refinement import NAMES, microscope_of, refined_optics
from cloudem.algorithms.joint_fit import Freedom, Pictures, solve_images, start_fitted
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.algorithms.resolution import resolution_at
from cloudem.algorithms.simulate import Recording, random_particles
from cloudem.execution.executor import SerialExecutor
from cloudem.io.formats.mrc import Volume, read_volume
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.star import read_star, write_star
from cloudem.io.particle_store import write_particles
from cloudem.jobs.refine_ctf.job import RefineCtf
from cloudem.jobs.runner import run_job
from cloudem.kernels.aberrations import aberrated, odd_phase
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fill_half_disc, fourier_images, half_disc, real_images, sample_half_disc
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_up_to, euler_to_matrix, matrix_to_euler, rotate
from cloudem.model.symmetry import operators

PUT_IN = np.array([0.005, 0.003, 0, -66, 39, -4, 3, -2, 1, 40, -15, 10, 20, -10], np.float64)
"""Aberrations of the sets: 1 % magnification, beam tilt of (1, -0.6) mrad, trefoil, astigmatism, fourth order."""

PER_MICROGRAPH, POSE_DEG, SHIFT_A = 50, 0.4, 0.4


class Set(NamedTuple):
    """A set of particles: its store, molecule, density, and truth; the store has poses that are a little wrong, the
    mean defocus of each micrograph, and no aberrations."""

    store: Path
    molecule: str
    volume: Volume
    truth: Particles
    given: Particles

    @property
    def symmetry(self) -> str:
        return MOLECULES[self.molecule].group


def signal(volume: Volume, particles: Particles) -> NDArray[np.float32]:
    """Return images without noise, by direct evaluation of the model with the optics of the table."""
    box, pixel_size, optics = len(volume.data), volume.pixel_size, particles.optics
    disc, step, padding = half_disc(box, box // 2 - 1), 1 / (box * volume.pixel_size), padded_box(box) / box
    transform = reference_volume(volume.data, box // 2 + 1)
    group = particles["optics_group"].astype(int)
    matrices = np.array([one.magnification for one in optics])[group]
    rotations = euler_to_matrix(*(particles[name] for name in ("rot", "tilt", "psi")))
    rotations[:, :2] = np.swapaxes(matrices, 1, 2) @ rotations[:, :2]
    by_group = {
        name: np.array([getattr(one, name) for one in optics])[group]
        for name in ("voltage", "spherical_aberration", "amplitude_contrast")
    }
    defocus = {name: particles[name] for name in ("defocus_u", "defocus_v", "defocus_angle")}
    even, odd = (np.array([terms(one) for one in optics])[group] for terms in (even_terms, odd_terms))
    terms = aberrated(ctf_terms(**by_group, **defocus), even, matrices)
    shifts = np.stack([particles["shift_x"], particles["shift_y"]], axis=1) / pixel_size
    images = []
    for rows in np.array_split(np.arange(len(particles)), max(1, len(particles) // 100)):
        values = extract(transform, rotations[rows], disc.kx, disc.ky, padding)
        values *= ctf_values(disc.kx, disc.ky, terms[rows], step)
        ramp = 2 * np.pi / box * (shifts[rows, :1] * disc.kx + shifts[rows, 1:] * disc.ky)
        values = values * np.exp(1j * (odd_phase(disc.kx, disc.ky, odd[rows], step) - ramp))
        images.append(real_images(fill_half_disc(values, disc, box)).astype(np.float32))
    return np.concatenate(images)


def made(
    bench: Bench, molecule: str, box: int, pixel_size: float, count: int, seed: int, strength: float, snr: float
) -> Set:
    """Simulate a set; a strength of 0 puts no aberrations in."""
    volume = density(bench, molecule, box, pixel_size)
    truth = random_particles(count, Recording(defocus_min=6e3, defocus_max=1.6e4, per_micrograph=PER_MICROGRAPH), seed)
    plain = truth.optics
    truth = replace(truth, optics=(refined_optics(plain[0], strength * PUT_IN),))
    random = np.random.default_rng([seed, 3])
    images = signal(volume, truth)
    images *= np.float32(np.sqrt(snr / images.var(axis=(1, 2)).mean()))
    images += random.standard_normal(images.shape, np.float32)
    micrograph = np.arange(count) // PER_MICROGRAPH
    mean = np.bincount(micrograph, truth["defocus_u"]) / np.bincount(micrograph)
    height = truth["defocus_u"] - mean[micrograph]
    turns = random.normal(0, np.deg2rad(POSE_DEG) / 3**0.5, (count, 3))
    rot, tilt, psi = matrix_to_euler(rotate(euler_to_matrix(truth["rot"], truth["tilt"], truth["psi"]), turns))
    moved = random.normal(0, SHIFT_A, (2, count))
    given = replace(truth, optics=plain).with_columns(
        rot=rot, tilt=tilt, psi=psi, shift_x=truth["shift_x"] + moved[0], shift_y=truth["shift_y"] + moved[1],
        defocus_u=truth["defocus_u"] - height, defocus_v=truth["defocus_v"] - height,
    )  # fmt: skip
    store = bench.fresh(f"ctf-{molecule.replace(' ', '-')}-{box}-{count}-{seed}-{strength:g}.zarr")
    write_particles(str(store), given, [images], box=box, pixel_size=pixel_size, dtype="float16")
    return Set(store, molecule, volume, truth, given)


def errors(found: Particles, those: Set) -> dict[str, Any]:
    """Return errors of defocus and poses, and by how much the former are above the errors that are claimed."""
    mean = [(table["defocus_u"] + table["defocus_v"]) / 2 for table in (found, those.truth)]
    away = mean[0] - mean[1]
    turns = [euler_to_matrix(table["rot"], table["tilt"], table["psi"]) for table in (found, those.truth)]
    columns = {
        "defocus bias Å": round(float(away.mean()), 1),
        "defocus error Å": round(float(away.std()), 1),
        "pose error °": round(float(np.median(np.degrees(angle_up_to(*turns, operators(those.symmetry))))), 3),
    }
    if "defocus_error" in found:
        claimed = float(np.sqrt(np.mean(found["defocus_error"] ** 2)))
        columns["over claimed"] = round(float(away.std()) / claimed, 3)
    return columns


def once(bench: Bench, those: Set) -> tuple[dict[str, Any], NDArray[np.float64], NDArray[np.float64], float]:
    """Run the job; return errors, aberrations, their standard errors, and CPU-seconds of the fit."""
    out = bench.fresh("ctf-out")
    job = RefineCtf(
        particles=str(those.store), symmetry=those.symmetry, diameter_A=MOLECULES[those.molecule].diameter,
        out=str(out), report=False,
    )  # fmt: skip
    began = time.process_time()
    run_job(job, lambda _: SerialExecutor())
    seconds = time.process_time() - began
    arrays, attributes, particles = refined(out)
    known = arrays["aberration_values"][0], np.sqrt(np.diag(arrays["aberration_covariance"][0]))
    shutil.rmtree(those.store)
    columns = {**errors(particles, those), "stated Å": round(attributes["resolution_A"], 2), "CPU-s": round(seconds)}
    return columns, *known, seconds


def ctf_refined(bench: Bench) -> None:
    """Aberrations of 20 sets, put in and not: 95 % of z within 2.5, none above 4 without, defocus bias below 10 Å."""
    free = np.arange(14) != 2
    count, box, pixel_size = bench.few(300, 200), 64, 2.3
    for strength in (2.0, 0.0):
        deviations, biases, over = [], [], []
        for seed in bench.seeds:
            those = made(bench, "apoferritin", box, pixel_size, count, seed, strength, 0.1)
            columns, values, deviation, _ = once(bench, those)
            z = ((values - strength * PUT_IN) / deviation)[free]
            worst = int(np.argmax(np.abs(z)))
            deviations.append(z)
            biases.append(columns["defocus bias Å"])
            over.append(columns["over claimed"])
            bench.add(
                {"seed": seed, "put in": strength, "greatest |z|": round(float(np.abs(z[worst])), 2)},
                {"of": np.array(NAMES)[free][worst], "rms z": round(float(np.sqrt(np.mean(z**2))), 2), **columns},
            )
        every = np.concatenate(deviations)
        bench.add(
            {
                "put in": strength, "sets": len(bench.seeds),
                "z within 2.5 %": round(100 * np.mean(np.abs(every) <= 2.5), 1),
                "greatest |z|": round(float(np.abs(every).max()), 2),
                "rms z": round(float(np.sqrt(np.mean(every**2))), 2),
                "mean bias Å": round(statistics.mean(biases), 1), "greatest bias Å": max(biases, key=abs),
                "defocus error over claimed": round(statistics.mean(over), 3),
            }
        )  # fmt: skip


def ctf_refined_relion(bench: Bench) -> None:
    """FSC 0.5 with the truth, 1,200 images of 128 px: no worse than RELION's four passes on the same set."""
    name, box, pixel_size = "apoferritin", bench.few(128, 64), bench.few(122, 240) / 100
    for seed in bench.seeds[:1]:
        those = made(bench, name, box, pixel_size, bench.few(1200, 200), seed, 1.0, 0.05)
        plain = bench.fresh("ctf-plain")
        given = ("--symmetry", those.symmetry, "--diameter-A", MOLECULES[name].diameter, "--out")
        bench.cloudem("reconstruct", "--particles", those.store, *given, plain)
        arrays = refined(plain)[0]
        bench.add({"what": "before", "seed": seed, **errors(those.given, those)},
                  beside_truth({"map": arrays["map_unfiltered"], "half": arrays["half1"]}, those))  # fmt: skip
        out = bench.fresh("ctf-ours")
        cost = bench.cloudem("refine_ctf", those.store, *given, out)
        arrays, _, particles = refined(out)
        bench.add({"what": "refine_ctf", "seed": seed, **errors(particles, those)},
                  beside_truth({"map": arrays["map_unfiltered"], "half": arrays["half1"]}, those),
                  cost.columns())  # fmt: skip
        relion(bench, those, plain, seed)
        shutil.rmtree(those.store)


def beside_truth(found: dict[str, NDArray[Any]], those: Set) -> dict[str, Any]:
    """Return where the FSC with the truth falls below 0.5, of maps by name, and its mean up to Nyquist."""
    columns: dict[str, Any] = {}
    box, pixel_size = len(those.volume.data), those.volume.pixel_size
    for name, data in found.items():
        curve = sphere_fsc(data, those.volume.data, pixel_size, MOLECULES[those.molecule].diameter / 2)
        curve[:INNER] = 1.0  # the mean of the box differs between programs
        limit = resolution_at(curve, box, pixel_size, 0.5)
        columns[f"{name} FSC 0.5 Å"] = round(limit, 2) if np.isfinite(limit) else f"{2 * pixel_size:g} (Nyquist)"
        columns[f"{name} mean FSC"] = round(float(curve[INNER : box // 2 - 1].mean()), 4)
    return columns


INNER = 5
"""Shells that do not count in comparisons of maps."""

PASSES = (
    ("magnification", ("--fit_aniso", "--kmin_mag", "20")),
    ("beam tilt and trefoil", ("--fit_beamtilt", "--kmin_tilt", "20", "--odd_aberr_max_n", "3")),
    ("even", ("--fit_aberr", "--kmin_aberr", "20", "--even_aberr_max_n", "4")),
    ("defocus", ("--fit_defocus", "--kmin_defocus", "20", "--fit_mode", "fpmff")),
)
"""RELION's passes in their best order."""


def relion(bench: Bench, those: Set, plain: Path, seed: int) -> None:
    """Refine with RELION, half-maps made anew by relion_reconstruct before each pass, and report each."""
    folder = bench.fresh("ctf-relion")
    folder.mkdir()
    bench.cloudem("export", plain, "--stack", "--out", folder / "start")
    star = stacked(folder)
    shutil.copy(folder / "start" / "mask.mrc", folder / "mask.mrc")
    total = 0.0
    for number, (what, options) in enumerate((*PASSES, ("", ()))):
        for half in (1, 2):
            total += rebuilt(bench, folder, star, f"half{half}.mrc", those.symmetry, "--subset", str(half)).cpu
        if not options:
            break
        process = [bench.program("relion_postprocess"), "--i", "half1.mrc", "--i2", "half2.mrc", "--mask", "mask.mrc",
                   "--angpix", str(those.volume.pixel_size), "--o", f"post{number}"]  # fmt: skip
        (folder / f"post{number}").mkdir()  # it puts its plots there, or an empty file without ghostscript
        total += bench.measured(process, cwd=folder).cpu
        command = [bench.program("relion_ctf_refine"), "--i", star, "--f", f"post{number}.star", "--m1", "half1.mrc",
                   "--m2", "half2.mrc", "--mask", "mask.mrc", "--o", f"pass{number}/", *options]  # fmt: skip
        (folder / f"pass{number}").mkdir()
        cost = bench.measured(command, cwd=folder)
        total += cost.cpu
        star = f"pass{number}/particles_ctf_refine.star"
        bench.add({"what": f"RELION, {what}", "seed": seed, **cost.columns()})
    rebuilt(bench, folder, star, "whole.mrc", those.symmetry)
    found = read_particles_star(folder / star).particles
    maps = {"map": read_volume(folder / "whole.mrc").data, "half": read_volume(folder / "half1.mrc").data}
    bench.add({"what": "RELION, after four passes", "seed": seed, **errors(found, those)},
              beside_truth(maps, those), {"CPU-s": round(total, 1)})  # fmt: skip


def stacked(folder: Path) -> str:
    """Return the STAR file of the images as commands in the folder find it."""
    table = read_star(folder / "start" / "particles.star")
    names = [str(name).split("@") for name in table["particles"]["rlnImageName"]]
    table["particles"]["rlnImageName"] = np.array([f"{n}@start/{path.split('/')[-1]}" for n, path in names])
    write_star(folder / "particles.star", table)
    return "particles.star"


def rebuilt(bench: Bench, folder: Path, star: str, out: str, symmetry: str, *options: str) -> Cost:
    command = [bench.program("relion_reconstruct"), "--i", star, "--o", out, "--ctf", "--sym", symmetry, *options]
    return bench.measured(command, cwd=folder)


def ctf_refine_time(bench: Bench) -> None:
    """A pass of the joint fit, all 13 parameters, 128 px up to the last shell: below 5 ms for a particle, one core."""
    box, pixel_size, count = 128, 1.22, bench.few(256, 64)
    random = np.random.default_rng(0)
    grid = np.mgrid[:box, :box, :box] - box // 2
    blobs = random.normal(0, box / 9, (12, 3))
    shapes = [np.exp(-np.sum((grid - at[:, None, None, None]) ** 2, axis=0) / 6) for at in blobs]
    volume = Volume(np.sum(shapes, axis=0).astype(np.float32), pixel_size)
    truth = random_particles(count, Recording(per_micrograph=PER_MICROGRAPH), 0)
    truth = replace(truth, optics=(refined_optics(truth.optics[0], PUT_IN),))
    images = signal(volume, truth)
    noise = 3 * images.std()
    images += noise * random.standard_normal(images.shape, np.float32)
    disc = half_disc(box, box // 2 - 1)
    transforms = sample_half_disc(fourier_images(images), disc)
    precision = np.full(transforms.shape, 2 / (noise * box) ** 2, np.float32)
    pictures = Pictures(transforms, precision, np.ones(count), disc, box, pixel_size, padded_box(box) / box)
    rotations = euler_to_matrix(truth["rot"], truth["tilt"], truth["psi"])
    rotations = rotate(rotations, random.normal(0, 0.003, (count, 3)))
    shifts = np.stack([truth["shift_x"], truth["shift_y"]], axis=1) / pixel_size
    optics = microscope_of(truth, np.arange(count), 0.9 * (np.arange(14) != 2)[None] * 0.1 * PUT_IN)
    half, micrograph = np.ones(count, np.int8), np.arange(count) // PER_MICROGRAPH
    transform = reference_volume(volume.data, box // 2 + 3)
    for repeat in range(4):
        began = time.process_time()
        solve_images([transform, transform], half, micrograph, pictures, optics, start_fitted(rotations, shifts),
                     np.ones(count), 100.0, Freedom(), 3)  # fmt: skip
        if repeat:
            bench.add({"repeat": repeat, "ms for a particle": round(1e3 * (time.process_time() - began) / count, 2)})
