"""Particles of which nothing is known: two species with preferred views, and 30 % of what is no particle, sorted and
selected without a threshold being given."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from bars.hard_sets import Views, near_axis
from bars.measure import Bench
from bars.molecules import density
from cloudem.algorithms.simulate import POSE_COLUMNS, Recording, Simulator, random_particles
from cloudem.io.formats.mrc import Volume
from cloudem.io.particle_store import open_particles, write_particles
from cloudem.io.storage.groups import read_group, write_group
from cloudem.model.poses import matrix_to_euler

BOX, PIXEL_A, DIAMETER_A = 96, 2.5, 205.0
COUNT, CLASSES = 5000, 50
JUNK = 0.3
SPECIES = ("gpcr", "dimer")
KINDS = ("particle", "nothing", "ice", "edge of the film", "two particles off centre")
BIASED = Views(share=0.5, within_deg=30.0, axis=(0.3, 0.2, 1.0))
SNRS = (0.05, 0.03)
BATCH = 200


def blind(bench: Bench) -> None:
    """Two species, 30 % junk of four kinds: 95 % of the junk out, 95 % of the particles kept, at most 30 CPU-s."""
    bench.warm()
    for snr in SNRS if not bench.quick else SNRS[:1]:
        for seed in bench.seeds:
            folder, kinds = images_of(bench, snr, seed)
            out, chosen = bench.fresh("blind-classes"), bench.fresh("blind-selected")
            given = ("--particles", folder / "particles.zarr", "--diameter-A", DIAMETER_A, "--seed", seed)
            few = ("--max-iterations", 4) if bench.quick else ()
            cost = bench.cloudem("classify2d", *given, "--classes", bench.few(CLASSES, 8), *few, "--out", out)
            bench.cloudem("select", "--particles", out, "--auto", "--out", chosen)
            kept = np.zeros(len(kinds), bool)
            kept[open_particles(chosen).particles["store_row"]] = True
            _, attributes = read_group(chosen, "result")
            row: dict[str, Any] = {"SNR": snr, "seed": seed, "images": len(kinds), **cost.columns()}
            row["particles kept"] = round(float(kept[kinds == 0].mean()), 3)
            row["junk out"] = round(float((~kept[kinds > 0]).mean()), 3)
            for number, name in enumerate(KINDS[1:], 1):
                row[f"{name} out"] = round(float((~kept[kinds == number]).mean()), 3)
            bench.add(row, {"said": "; ".join(str(text)[:80] for text in attributes["warnings"])})


def images_of(bench: Bench, snr: float, seed: int) -> tuple[Path, NDArray[np.int64]]:
    """Return the folder of a set, made unless it is there, and the kind of each image."""
    count = bench.few(COUNT, 400)
    folder = bench.work / f"blind-{count}-{snr}-{seed}"
    store = folder / "particles.zarr"
    if not (store / "drawn").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rng = np.random.default_rng([seed, 11])
        species, kinds = rng.integers(0, 2, count), rng.integers(1, len(KINDS), count)
        kinds[rng.random(count) >= JUNK] = 0
        table = random_particles(count, Recording(snr=snr), seed)
        near = rng.random(count) < BIASED.share
        angles = np.stack([table[name] for name in ("rot", "tilt", "psi")])
        angles[:, near] = matrix_to_euler(near_axis(BIASED, int(near.sum()), rng))
        table = table.with_columns(rot=angles[0], tilt=angles[1], psi=angles[2])
        volumes = [density(bench, name, BOX, PIXEL_A) for name in SPECIES]
        images = drawn(volumes, table, species, kinds, snr, seed, rng, DIAMETER_A)
        bare = table.without_columns((*POSE_COLUMNS, "half_set"))
        write_particles(store, bare, images, box=BOX, pixel_size=PIXEL_A)
        write_group(store, "drawn", {"kind": kinds, "species": species}, {})
    return folder, read_group(store, "drawn")[0]["kind"].astype(np.int64)


def drawn(
    volumes: list[Volume], table: Any, species: NDArray[Any], kinds: NDArray[Any], snr: float, seed: int, rng: Any,
    diameter: float,
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """Yield the images in batches: of species by number, or of what is no particle (`KINDS`)."""
    count, turn, box = len(table), rng.uniform(0, 2 * np.pi, len(table)), len(volumes[0].data)
    pixel_size = volumes[0].pixel_size
    away = table.with_columns(
        shift_x=table["shift_x"] + 0.45 * diameter * np.cos(turn),
        shift_y=table["shift_y"] + 0.45 * diameter * np.sin(turn),
    )
    noisy = [Simulator(one.data, pixel_size, table, Recording(snr=snr), seed) for one in volumes]
    clean, moved, back = (
        [Simulator(one.data, pixel_size, those, Recording(snr=None), seed) for one in volumes]
        for those in (table, away, away.take(np.roll(np.arange(count), 1)).with_columns(
            shift_x=-away["shift_x"], shift_y=-away["shift_y"]))
    )  # fmt: skip
    for simulators in (clean, moved, back):
        for one, other in zip(simulators, noisy, strict=True):
            one.scale = other.scale
    y, x = np.mgrid[:box, :box] - box // 2
    for first in range(0, count, BATCH):
        rows = np.arange(first, min(first + BATCH, count))
        batch = np.empty((len(rows), box, box), np.float32)
        for place, row in enumerate(rows):
            mine, one = species[row], np.array([row])
            image, signal = noisy[mine].some_images(one)[0], clean[mine].some_images(one)[0]
            noise = image - signal
            level, kind = float(noise.std()), int(kinds[row])
            if kind == 2:
                blobs = ndimage.gaussian_filter(rng.standard_normal((box, box)), rng.uniform(3, 6))
                image = noise + level * rng.uniform(0.5, 1.0) * np.maximum(blobs / blobs.std() - 1, 0)
            elif kind == 3:
                angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.2, 0.2) * box
                side = np.clip((x * np.cos(angle) + y * np.sin(angle) - offset) / 3, -1, 1)
                image = (noise + 0.5 * level * side) * np.where(side > 0, 1.2, 1.0)
            elif kind == 4:
                image = noise + moved[mine].some_images(one)[0] + back[mine].some_images(one)[0]
            batch[place] = noise if kind == 1 else image
        yield batch
