"""Symmetry expansion, subtraction and local refinement against sets whose truth is known (`bars.hinges`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bars.hinges import HingeRecipe, HingeSet, hinge_set
from bars.measure import Bench, refined
from bars.symmetry import simulated_in
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import resolution_at
from cloudem.algorithms.significance import independent_voxels, mask_fraction
from cloudem.algorithms.simulate import Recording, Simulator
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import open_particles
from cloudem.jobs.dataset import open_dataset
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_between, euler_to_matrix

MOLECULES = {"dimer": (80, 205.0, 130.0), "hinge": (64, 135.0, 100.0)}
"""Box, diameter of the molecule, and of the part that is refined, by its name in `bars.molecules`."""

PIXEL_A, COUNT, SNR, FALL_OFF = 3.0, 2000, 0.08, 250.0
TURNED = {"half": (SNR, FALL_OFF, 0.5), "half, 2 x dose": (2 * SNR, 350.0, 0.5), "two thirds": (SNR, FALL_OFF, 2 / 3)}
"""SNR, B-factor in Å², and share of the molecule that turns. More dose is steeper, lest known poses reach Nyquist."""
GROUPS = ("D2", "O", "D7", "C3", "C7", "I1")


def expansion(bench: Bench) -> None:
    """Symmetry expansion: 1,500 × 64 px reconstructed in C1 from all mates, and in the group."""
    for seed in bench.seeds:
        for group in GROUPS[:1] if bench.quick else GROUPS:
            folder, truth = simulated_in(bench, group, seed)
            known = bench.fresh("with-poses")
            # `simulated_in` leaves the poses out of the table; the truth beside it has them
            with_truth(folder / "particles.zarr", known)
            mates, one, other = (bench.fresh(name) for name in ("mates", "in-the-group", "in-C1"))
            bench.cloudem("expand_symmetry", known, "--symmetry", group, "--out", mates)
            cost = bench.cloudem("reconstruct", "--particles", known, "--symmetry", group, "--out", one)
            drawn = ("--new-halves",) if seed % 2 else ()
            inserted = bench.cloudem("reconstruct", "--particles", mates, *drawn, "--out", other)
            a, b = (refined(out)[0]["map_unfiltered"] for out in (one, other))
            row = {"seed": seed, "group": group, "difference, rms of the map": f"{rms(a - b) / rms(a):.1e}"}
            row |= {"lowest FSC": f"1 - {1 - fourier_shell_correlation(a, b)[1:31].min():.1e}"}
            mask = soft_sphere(len(a), 0.4 * len(a), 4)
            of_group, of_mates = (fourier_shell_correlation(each * mask, truth.data * mask)[1:31] for each in (a, b))
            row |= {"FSC with the truth: mean gain": f"{np.mean(of_mates - of_group):.5f}"}
            row |= {"greatest difference": f"{np.abs(of_mates - of_group).max():.5f}"}
            row |= {"CPU-s": f"{cost.cpu:.1f}, {inserted.cpu:.1f}"}
            bench.add(row, {"mates in both half-sets": mates_apart(refined(other)[2])})


def with_truth(store: Path, out: Path) -> None:
    """Write the images of a simulated store again, with their true poses and half-sets."""
    from cloudem.io.particle_store import write_particles
    from cloudem.io.storage.groups import read_group
    from cloudem.io.storage.tables import table_from_arrays

    given = open_particles(store)
    truth = table_from_arrays(Particles, *read_group(store, "truth"))
    images = [given.read_images(np.arange(len(truth)))]
    write_particles(out, truth, images, box=given.box, pixel_size=given.pixel_size, dtype="float32")


def rms(values: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def mates_apart(table: Particles) -> int:
    """Return of how many images there are mates in both half-sets."""
    pairs = np.unique(np.stack([table["same_image"], table["half_set"]], axis=1), axis=0)
    return int(np.count_nonzero(np.unique(pairs[:, 0], return_counts=True)[1] > 1))


def subtraction(bench: Bench) -> None:
    """Subtraction of a half of a molecule, 2,000 × 64 px: what is left of it, seen in images without noise."""
    for seed in bench.seeds:
        for contrast in (0.0, 0.25):
            recipe = HingeRecipe("hinge", 64, PIXEL_A, bench.few(COUNT, 300), SNR, 0.0, 0.4, FALL_OFF, contrast)
            made = hinge_set(bench, recipe, seed, f"subtraction-{contrast}")
            for name, of in (("clean", "without noise"), ("particles", "with noise")):
                halves, less = bench.fresh("halves"), bench.fresh("less")
                bench.cloudem("reconstruct", "--particles", made.folder / f"{name}.zarr", "--diameter-A", 135, "--out",
                              halves)  # fmt: skip
                cost = bench.cloudem("subtract", halves, "--mask", made.folder / "mask_b.mrc", "--out", less)
                row = {"seed": seed, "contrast": contrast, "half-maps": of}
                bench.add(row, {"left, %": round(100 * left(made, recipe, less), 2), "CPU-s": round(cost.cpu, 1)})


def left(made: HingeSet, recipe: HingeRecipe, less: Path) -> float:
    """Return the power that is left of what is subtracted, over its power, in images without noise."""
    rows = np.arange(0, recipe.count, 10)
    dataset = open_dataset(str(less))
    clean = open_particles(made.folder / "clean.zarr").read_images(rows)
    noisy = open_particles(dataset.store.image_url).read_images(rows)
    done = clean - (noisy - dataset.images(rows))
    still = Recording(snr=None, b_factor=recipe.b_factor)
    outside = Simulator((1 - made.mask_b) * (made.a + made.b), recipe.pixel_size, made.poses_a, still)
    gone = outside.some_images(rows) * (made.scale * made.contrast[rows, None, None]).astype(np.float32)
    return float(np.mean(np.square(done - (clean - gone))) / np.mean(np.square(gone)))


def hinge(bench: Bench) -> None:
    """Local refinement of a part: turned by 5° rms in each image, rigid, and where there is nothing but noise."""
    bench.warm()
    for seed in bench.seeds:
        for molecule in tuple(MOLECULES)[1:] if bench.quick else MOLECULES:
            refine_part(bench, molecule, seed, 0.0, "half")
            for what in TURNED:
                refine_part(bench, molecule, seed, 5.0, what)


def turned_set(bench: Bench, molecule: str, seed: int, degrees: float, what: str) -> HingeSet:
    """Return a set of `TURNED`."""
    snr, fall_off, share = TURNED[what]
    recipe = HingeRecipe(
        molecule, MOLECULES[molecule][0], PIXEL_A, bench.few(COUNT, 400), snr, degrees, share, fall_off
    )
    return hinge_set(bench, recipe, seed, f"hinge-{molecule}-{degrees:g}-{list(TURNED).index(what)}")


def diameter_of_part(molecule: str, what: str) -> float:
    """Return the diameter of part B, Å: that of `MOLECULES`, and more where it is more than a half."""
    _, whole, half = MOLECULES[molecule]
    return float(half + (TURNED[what][2] - 0.5) * 0.7 * whole)


def refine_part(bench: Bench, molecule: str, seed: int, degrees: float, what: str) -> None:
    """Refine a molecule as a whole and then part B of it, and add a row of what is true of B."""
    box, diameter, _ = MOLECULES[molecule]
    of_part, made = diameter_of_part(molecule, what), turned_set(bench, molecule, seed, degrees, what)
    folder, mask = made.folder, made.folder / "mask_b.mrc"
    outs = {name: bench.fresh(f"{folder.name}-{name}") for name in ("known", "part", "before")}
    bench.cloudem("reconstruct", "--particles", folder / "known.zarr", "--mask", mask, "--out", outs["known"])
    outs["whole"], outs["less"] = consensus(bench, made, diameter)
    bench.cloudem("reconstruct", "--particles", outs["less"], "--mask", mask, "--out", outs["before"])
    cost = bench.cloudem("refine3d", "--particles", outs["less"], "--reference", outs["whole"], "--local", "--mask",
                         mask, "--diameter-A", of_part, "--out", outs["part"])  # fmt: skip
    row: dict[str, Any] = {"seed": seed, "molecule": molecule, "turned by °": degrees, "part": what}
    for name, words in (("known", "known poses"), ("before", "whole"), ("part", "part")):
        arrays, attributes, particles = refined(outs[name])
        curve = fourier_shell_correlation(arrays["map_unfiltered"] * made.mask_b, made.b * made.mask_b)
        length = box * PIXEL_A
        row[f"{words}: true shell"] = round(length / resolution_at(curve, box, PIXEL_A, 0.5), 1)
        row[f"{words}: stated"] = round(length / attributes["resolution_A"], 1)
        row[f"{words}: pose error °"] = round(turned_by(particles, made.poses_b), 2)
    bench.add(row, {"CPU-s": round(cost.cpu, 1)})
    if degrees and what == "half":
        noise_in_mask(bench, made, outs["whole"], seed, molecule)


def consensus(bench: Bench, made: HingeSet, diameter: float) -> tuple[Path, Path]:
    """Refine the whole molecule, subtract all but part B, and return both results."""
    whole, less = (bench.fresh(f"{made.folder.name}-{name}") for name in ("whole", "less"))
    bench.cloudem("refine3d", "--particles", made.folder / "particles.zarr", "--reference", made.folder / "whole.mrc",
                  "--local", "--diameter-A", diameter, "--out", whole)  # fmt: skip
    bench.cloudem("subtract", whole, "--mask", made.folder / "mask_b.mrc", "--out", less)
    return whole, less


def turned_by(found: Particles, truth: Particles) -> float:
    a, b = (euler_to_matrix(p["rot"], p["tilt"], p["psi"]) for p in (found, truth))
    return float(np.degrees(np.median(angle_between(a, b))))


def noise_in_mask(bench: Bench, made: HingeSet, whole: Path, seed: int, molecule: str) -> None:
    """Refine what lies in a mask beside the molecule, and add the FSC there."""
    box, _, of_part = MOLECULES[molecule]
    radius, edge = 0.09 * box, 3.0
    ball = np.roll(soft_sphere(box, radius, edge), empty_place(made, box, radius + edge), (0, 1, 2))
    mask = bench.fresh("beside.mrc")
    write_volume(mask, ball, PIXEL_A)
    less, out = bench.fresh("less-beside"), bench.fresh("beside")
    bench.cloudem("subtract", whole, "--mask", mask, "--out", less)
    bench.cloudem("refine3d", "--particles", less, "--reference", whole, "--local", "--mask", mask, "--diameter-A",
                  of_part / 2, "--out", out)  # fmt: skip
    arrays, attributes, _ = refined(out)
    fsc = arrays["fsc_masked"]  # the corrected one is cut off at 0
    row: dict[str, Any] = {"seed": seed, "molecule": molecule, "turned by °": "noise in the mask"}
    inside = float((made.a + made.b)[ball > 0.5].std() / (made.a + made.b).std())
    # so small a mask leaves few voxels of a shell independent: by chance alone single shells correlate by 0.3 and more
    voxels = independent_voxels(box, mask_fraction(ball), 1)[3:]
    row |= {"density there, of the map's": round(inside, 3)}
    row |= {"mean FSC of all voxels": round(float(np.average(fsc[3:], weights=voxels)), 3)}
    row |= {"to Nyquist / 2": round(float(np.average(fsc[3 : box // 4], weights=voxels[: box // 4 - 3])), 3)}
    row |= {"± by chance": round(float(voxels[: box // 4 - 3].sum() ** -0.5), 3)}
    bench.add(row, {"stated": round(box * PIXEL_A / attributes["resolution_A"], 1),
                    "said": said(attributes["warnings"])})  # fmt: skip


def empty_place(made: HingeSet, box: int, reach: float) -> tuple[int, int, int]:
    """Return where, from the middle along z, y, x, a ball holds least of the molecule."""
    density, step = np.abs(made.a + made.b), max(2, box // 16)
    most = int(box / 2 - reach - 2)
    ball = soft_sphere(box, reach, 1.0)
    tried = [(z, y, x) for z in range(-most, most + 1, step) for y in range(-most, most + 1, step)
             for x in range(-most, most + 1, step) if (z * z + y * y + x * x) ** 0.5 < most]  # fmt: skip
    held = [float((np.roll(ball, place, (0, 1, 2)) * density).sum()) for place in tried]
    return tried[int(np.argmin(held))]


def said(warnings: Sequence[str]) -> str:
    return "; ".join("nothing beyond the start" if "nothing is shown" in text else text[:40] for text in warnings)
