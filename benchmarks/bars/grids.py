"""Optics groups of two pixel sizes: their joint map beside that of as many particles of one group."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bars.measure import Bench, refined, sphere_fsc
from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.io.formats.mrc_writer import write_stack
from cloudem.io.formats.relion import particles_to_blocks
from cloudem.io.formats.star import write_star
from cloudem.io.storage.groups import read_attributes

COUNT = 1200
"""Of a group."""
NOISE = 0.1
"""Standard deviation of the noise in a pixel of 1 Å, in units of the projected potential, Å/Å²."""
DIAMETER_A = 75.0
"""The molecule has 62 Å. At a defocus of at most 0.45 µm, no wave of 2.4 Å is displaced beyond the edge of the box: it
would come in again at the other side, which no camera sees and no cropped image can hold."""
SETS: dict[str, tuple[tuple[int, float], ...]] = {
    "one group": ((128, 1.2), (128, 1.2)),
    "two groups": ((128, 1.2), (144, 1.06)),
    "odd box": ((128, 1.2), (145, 1.06)),
}
"""Box and pixel size of the halves of a set."""


def grids(bench: Bench) -> None:
    """Groups of 1.2 Å, 128 px and 1.06 Å, 144 px: the FSC with the truth is that of one group within 0.01."""
    for seed in bench.seeds:
        curves: dict[str, NDArray[np.float64]] = {}
        for name, groups in SETS.items():
            folder = bench.fresh(f"grids-{name.replace(' ', '-')}-{seed}")
            star = write_set(bench, folder, groups, seed)
            store, out = folder / "particles.zarr", folder / "map"
            # the same box for all: FSC curves are then of the same shells
            cost = bench.cloudem("import", star, "--target-box-px", 126, "--out", store, cwd=folder)
            bench.cloudem("reconstruct", "--particles", store, "--diameter-A", DIAMETER_A, "--no-report", "--out", out)
            stated = read_attributes(store, "") or {}
            box, pixel_size = int(stated["box"]), float(stated["pixel_size_A"])
            truth = density_of_atoms(molecule(seed), box, pixel_size, b_factor=60.0)
            curves[name] = sphere_fsc(refined(out)[0]["map_unfiltered"], truth, pixel_size, DIAMETER_A / 2)
            difference = curves[name][1 : box // 2] - curves["one group"][1 : box // 2]
            shells: dict[str, Any] = {
                f"FSC {at:g} Å": round(float(curves[name][round(box * pixel_size / at)]), 4) for at in (6, 4, 3, 2.6)
            }
            bench.add({"seed": seed, "set": name, "grid": f"{box} px, {pixel_size:g} Å", **shells},
                      {"least difference": round(float(difference.min()), 4),
                       "mean": round(float(difference.mean()), 4)}, {"import CPU-s": round(cost.cpu, 2)})  # fmt: skip


def molecule(seed: int) -> Any:
    return demo_molecule(62.0, seed=200 + seed)


def write_set(bench: Bench, folder: Path, groups: tuple[tuple[int, float], ...], seed: int) -> Path:
    """Write a STAR file of optics groups whose images show one molecule at one dose on an area."""
    folder.mkdir()
    count = bench.few(COUNT, 100)
    recording = Recording(snr=None, shift_sigma=2.0, defocus_min=2e3, defocus_max=4.5e3)
    blocks: list[dict[str, dict[str, NDArray[Any]]]] = []
    for number, (box, pixel_size) in enumerate(groups, 1):
        even = box + box % 2
        table = random_particles(count, recording, 1000 * seed + number)
        density = density_of_atoms(molecule(seed), even, pixel_size, b_factor=60.0)
        simulator = Simulator(density, pixel_size, table, recording, seed)
        random = np.random.default_rng([seed, number])
        # a projection is the sum over voxels times their size; counts in a pixel grow with its area
        stack = (
            (pixel_size * images + NOISE / pixel_size * random.standard_normal(images.shape, np.float32))[
                :, even - box :, even - box :  # the origin of an odd box is the pixel n // 2, too
            ].astype(np.float32)
            for images in simulator.images(100)
        )
        write_stack(folder / f"group{number}.mrcs", stack, count, pixel_size)
        named = table.with_columns(image_name=[f"{row + 1:06d}@group{number}.mrcs" for row in range(count)])
        group = replace(table.optics[0], name=f"group{number}", extra={"rlnOpticsGroup": str(number)})
        blocks.append(particles_to_blocks(replace(named, optics=(group,)), box=box, pixel_size=pixel_size))
    joined = {
        block: {label: np.concatenate([one[block][label] for one in blocks]) for label in blocks[0][block]}
        for block in blocks[0]
    }
    write_star(folder / "particles.star", joined)
    return folder / "particles.star"
