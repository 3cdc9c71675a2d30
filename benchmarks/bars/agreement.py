"""Agreement with RELION on the same input, and the cost of reconstruction from known poses beside it."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bars.measure import Bench, against_truth, refined, sphere_fsc
from bars.sets import DIAMETER_A, RADIUS_A, imported, relion_reconstruct, ribosome, truth
from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.reconstruct import reference_volume, solve
from cloudem.io.formats.mrc import map_stack, read_volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.formats.relion import read_particles_star
from cloudem.io.formats.star import read_star, write_star
from cloudem.io.storage.groups import read_group
from cloudem.jobs.dataset import open_dataset
from cloudem.jobs.refine3d.solving import whole_sums
from cloudem.jobs.refine3d.tasks import Item, insert_group
from cloudem.kernels.ctf import ctf
from cloudem.kernels.fourier import fourier_images, half_disc, sample_half_disc
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.poses import euler_to_matrix

BOX = 96
PROJECTED = 100


def reconstruct128(bench: Bench) -> None:
    """Reconstruction of 5,000 × 128 px from known poses: below 3 CPU-s after import (RELION 5: 6.3)."""
    bench.warm()
    volume = truth(bench, 128)
    folder = ribosome(bench, 128, bench.seeds[0])
    store, importing = imported(bench, folder, star="particles.star")
    bench.add({"step": "import", **importing.columns()})
    repeats = bench.few(3, 1)
    given = ("reconstruct", "--particles", store, "--diameter-A", DIAMETER_A, "--out")
    rows: list[tuple[str, Any, NDArray[Any]]] = []
    stages: dict[str, float] = {}
    for name, how in (("cloudem reconstruct", ()), ("cloudem reconstruct, serial", ("--executor", "serial"))):
        costs = [bench.cloudem(*given, bench.fresh("reconstruct128"), *how) for _ in range(repeats)]
        arrays, attributes, _ = refined(bench.work / "reconstruct128")
        stages[name] = round(sum(stage["cpu_s"] for stage in attributes["stages"]), 2)
        rows.append((name, costs, arrays["map_unfiltered"]))
    for how in ((), ("--skip_gridding",)):
        out = bench.work / f"relion128{''.join(how)}.mrc"
        costs = [relion_reconstruct(bench, folder, out, *how) for _ in range(repeats)]
        rows.append((" ".join(["relion_reconstruct --ctf", *how]), costs, read_volume(out).data))
    ours = rows[0][2]
    for name, costs, found in rows:
        median = statistics.median_low([cost.cpu for cost in costs])
        chosen = next(cost for cost in costs if cost.cpu == median)
        with_ours = sphere_fsc(found, ours, volume.pixel_size, RADIUS_A)[1 : int(0.9 * 64) + 1]
        columns = {"least FSC with cloudem's to 0.9 Nyquist": round(float(with_ours.min()), 4)}
        inner = {"of that without start and report": stages.get(name, "")}
        bench.add({"step": name, **chosen.columns()}, inner, against_truth(bench, found, volume, RADIUS_A), columns)


def agreement(bench: Bench) -> None:
    """Projection, CTF, reconstruction and FSC agree with RELION: FSC at least 0.999, CTF within 1e-3."""
    images(bench)
    reconstructions(bench, noise=False)
    reconstructions(bench, noise=True)
    postprocessing(bench)


def images(bench: Bench) -> None:
    """Compare projections, with and without CTF, with those of relion_project."""
    volume = truth(bench, BOX)
    folder = bench.fresh("agreement")
    folder.mkdir()
    blocks = read_star(bench.need(bench.data / "ribosome" / "poses_96_2000.star"))
    blocks["particles"] = {name: column[:PROJECTED] for name, column in blocks["particles"].items()}
    write_star(folder / "poses.star", blocks)
    command = [
        bench.program("relion_project"),
        "--i",
        str(bench.data / "ribosome" / "map_96.mrc"),
        "--ang",
        "poses.star",
    ]
    disc = half_disc(BOX, BOX // 2 - 1)
    transforms = []
    for name, how in (("plain", ("--pad", "4")), ("coarse", ()), ("seen", ("--ctf",))):
        bench.measured([*command, "--o", name, *how], cwd=folder)
        stack, _ = map_stack(folder / f"{name}.mrcs")
        transforms.append(sample_half_disc(fourier_images(np.array(stack, np.float32)), disc))
    plain, coarse, seen = transforms
    table = read_particles_star(folder / "plain.star").particles
    rotations = euler_to_matrix(table["rot"], table["tilt"], table["psi"])
    x, y = table["shift_x"][:, None] / volume.pixel_size, table["shift_y"][:, None] / volume.pixel_size
    ours = extract(reference_volume(volume.data, BOX // 2 - 1), rotations, disc.kx, disc.ky, padded_box(BOX) / BOX)
    ours = ours * np.exp(-2j * np.pi / BOX * (x * disc.kx + y * disc.ky))
    cross = np.sum((ours * plain.conj()).real, axis=1)
    correlation = cross / np.sqrt(np.sum(np.abs(ours) ** 2, axis=1) * np.sum(np.abs(plain) ** 2, axis=1))
    scale = float(cross.sum() / np.sum(np.abs(plain) ** 2))
    bench.add({"compared": "projection", "images": PROJECTED, "least correlation": round(float(correlation.min()), 6),
               "scale": round(scale, 5)})  # fmt: skip
    optics = table.optics[0]
    values = ctf(
        disc.kx, disc.ky, volume.pixel_size, BOX, voltage=optics.voltage,
        spherical_aberration=optics.spherical_aberration, amplitude_contrast=optics.amplitude_contrast,
        defocus_u=table["defocus_u"], defocus_v=table["defocus_v"], defocus_angle=table["defocus_angle"],
    )  # fmt: skip
    # where a projection is all but zero the quotient of two of them is only rounding
    strong = np.abs(coarse) > 1e-3 * np.abs(coarse).max()
    error = np.abs(np.where(strong, values - (seen / np.where(strong, coarse, 1)).real, 0))
    bench.add({"compared": "CTF", "pixels": int(strong.sum()), "largest error": float(f"{error.max():.1e}")})


def reconstructions(bench: Bench, *, noise: bool) -> None:
    """Compare reconstructions of one stack; without noise also the one that corrects all shells for uneven weights."""
    volume = truth(bench, BOX)
    folder = ribosome(bench, BOX, 0, noise=noise)
    store, _ = imported(bench, folder, "--keep-greyscale", star="particles.star")
    out = bench.fresh(f"agreement-{'noisy' if noise else 'noiseless'}")
    bench.cloudem("reconstruct", "--particles", store, "--diameter-A", DIAMETER_A, "--out", out)
    relion_reconstruct(bench, folder, bench.work / "agreement.mrc", "--pad", "2")
    theirs = read_volume(bench.work / "agreement.mrc").data
    name = f"reconstruction, {'noise' if noise else 'no noise'}"
    maps = {name: refined(out)[0]["map_unfiltered"]}
    if not noise:
        maps[f"{name}, all shells levelled"] = levelled(store)
    last = int(0.9 * BOX / 2)
    for which, ours in maps.items():
        both, mine, other = (
            sphere_fsc(a, b, volume.pixel_size, RADIUS_A)[: last + 1]
            for a, b in ((ours, theirs), (ours, volume.data), (theirs, volume.data))
        )
        below = [shell for shell in range(1, last + 1) if both[shell] < 0.999]
        row: dict[str, Any] = {"compared to 0.9 Nyquist": which, "least FSC": round(float(both[1:].min()), 4)}
        row |= {"mean FSC": round(float(both[1:].mean()), 4), "shells below 0.999": f"{len(below)} of {last}"}
        for who, curve in (("cloudem", mine), ("RELION", other)):
            row |= {f"{who}'s least with truth": round(float(curve[1:].min()), 4)}
            row |= {f"{who}'s mean": round(float(curve[1:].mean()), 4)}
        bench.add(row)


def levelled(store: Path) -> NDArray[np.float32]:
    """Reconstruct with all shells corrected, which the command does not do because noise would grow."""
    dataset = open_dataset(str(store))
    brick = insert_group(Item(1, np.arange(len(dataset.store))), dataset, BOX // 2 - 1, "C1").sums[1]
    sums = whole_sums(brick, BOX, BOX // 2 - 1, "C1")
    return solve(sums, BOX, None, BOX // 2 - 1, levelled=BOX // 2)


def postprocessing(bench: Bench) -> None:
    """Compare FSC curves, resolution and B-factor of the noisy reconstruction's half-maps."""
    volume = truth(bench, BOX)
    halves = bench.work / "agreement-noisy"
    folder = bench.work / "agreement"
    arrays = refined(halves)[0]
    for name in ("half1", "half2"):
        write_volume(folder / f"{name}.mrc", arrays[name], volume.pixel_size)
    mask = soft_sphere(BOX, 120 / volume.pixel_size, 6.0)
    write_volume(folder / "mask.mrc", mask, volume.pixel_size)
    out = bench.fresh("agreement-post")
    bench.cloudem("postprocess", "--halves", halves, "--mask", folder / "mask.mrc", "--out", out)
    (folder / "relion").mkdir()
    bench.measured(
        [bench.program("relion_postprocess"), "--i", "half1.mrc", "--i2", "half2.mrc", "--mask", "mask.mrc",
         "--auto_bfac", "--o", "relion/run"], cwd=folder,
    )  # fmt: skip
    ours, attributes = read_group(out, "result")
    theirs = read_star(folder / "relion" / "run.star")
    columns = {"unmasked": "UnmaskedMaps", "masked": "MaskedMaps", "corrected": "Corrected"}
    last = BOX // 2 - 1
    row: dict[str, Any] = {"compared": "postprocess"}
    for name, label in columns.items():
        curve = theirs["fsc"][f"rlnFourierShellCorrelation{label}"].astype(float)
        row[f"largest difference, {name}"] = round(float(np.abs(ours[f"fsc_{name}"][1:last] - curve[1:last]).max()), 4)
    general = {key: values[0] for key, values in theirs["general"].items()}
    row["resolution Å (RELION)"] = f"{attributes['resolution_A']:.2f} ({float(general['rlnFinalResolution']):.2f})"
    row["B Å² (RELION)"] = f"{attributes['b_factor_A2']:.0f} ({float(general['rlnBfactorUsedForSharpening']):.0f})"
    bench.add(row)
