"""Preferred views: the resolution by direction, held against that of the map and the truth in the same cones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bars.measure import Bench, refined
from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.directional import EXTREME_SHARE, HALF_ANGLE, directional_fsc, smoothed_curves
from cloudem.algorithms.resolution import masked_fsc
from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.algorithms.spectra import cone_sums, extent_of, mixed_of
from cloudem.conventions import FSC_HALF
from cloudem.io.particle_store import write_particles
from cloudem.kernels.shells import correlation, crossing
from cloudem.model.particles import Particles
from cloudem.model.symmetry import operators

BOX, PIXEL_A, SNR, DIAMETER_A = 96, 2.5, 0.05, 170
CAP_DEG = 15.0
SETS = {
    "even": (0.0, 3000),
    "80 % within 15°": (0.8, 3000),
    "95 % within 15°": (0.95, 3000),
    "even, 1,000": (0.0, 1000),
}
"""Name -> share of the views near one axis, and images."""


def views(bench: Bench) -> None:
    """Preferred views, 96 px, known poses: resolution by direction within 10 % of the true one; no false warning."""
    bench.warm()
    for seed in bench.seeds:
        for name, (share, count) in SETS.items():
            folder, density = preferred(bench, seed, share, bench.few(count, 300))
            out = bench.fresh("views-out")
            cost = bench.cloudem("reconstruct", "--particles", folder, "--diameter-A", DIAMETER_A, "--out", out)
            arrays, attributes, _ = refined(out)
            said, true = arrays["directional_resolution_A"], true_by_direction(arrays, density)
            error = np.abs(said / true - 1)
            row: dict[str, Any] = {"seed": seed, "views": name, "stated Å": round(attributes["resolution_A"], 2)}
            for which in ("best", "mean", "worst"):
                row[f"{which} Å"] = round(attributes["directional"][f"{which}_A"], 2)
                row[f"true {which} Å"] = round(extreme(true, which), 2)
            row |= {
                "median error": round(float(np.median(error)), 3),
                "within 10 %": round(float(np.mean(error < 0.1)), 2),
            }
            row |= {key: round(attributes["directional"][key], 2) for key in ("sphericity", "sampling_compensation")}
            row["deviations"] = round(attributes["directional"]["deviations"], 1)
            row["warned"] = any("depends on direction" in text for text in attributes["warnings"])
            bench.add(row, {"CPU-s": round(cost.cpu, 1)})


def extreme(resolution: NDArray[np.float64], which: str) -> float:
    """Return the mean of the best or worst directions, or of all, as a result states them: by spatial frequency."""
    few = max(1, round(EXTREME_SHARE * len(resolution)))
    ordered = np.sort(1 / resolution)
    part = {"best": ordered[-few:], "mean": ordered, "worst": ordered[:few]}[which]
    return float(1 / part.mean())


def preferred(bench: Bench, seed: int, share: float, count: int) -> tuple[Path, NDArray[np.float32]]:
    """Return a store of particles with their true poses, a share of which look along one axis, and their density."""
    density = density_of_atoms(demo_molecule(seed=seed), BOX, PIXEL_A)
    recording = Recording(snr=SNR)
    truth = crowded(random_particles(count, recording, seed), share, seed)
    folder = bench.work / f"views-{seed}-{share:g}-{count}.zarr"
    if not folder.exists():
        images = Simulator(density, PIXEL_A, truth, recording, seed).images()
        write_particles(folder, truth, images, box=BOX, pixel_size=PIXEL_A, dtype="float16")
    return folder, density


def crowded(particles: Particles, share: float, seed: int) -> Particles:
    """Return particles of which a share has view directions spread evenly over a cap about a random axis."""
    random = np.random.default_rng([seed, 15])
    chosen = random.random(len(particles)) < share
    z = 1 - (1 - np.cos(np.deg2rad(CAP_DEG))) * random.random(len(particles))
    angle = random.uniform(0, 2 * np.pi, len(particles))
    radius = np.sqrt(1 - z * z)
    near = np.stack([radius * np.cos(angle), radius * np.sin(angle), z], 1) @ Rotation.random(rng=random).as_matrix().T
    rot, tilt = np.arctan2(near[:, 1], near[:, 0]), np.arccos(np.clip(near[:, 2], -1, 1))
    return particles.with_columns(
        rot=np.where(chosen, rot, particles["rot"]), tilt=np.where(chosen, tilt, particles["tilt"])
    )


def true_by_direction(arrays: dict[str, Any], density: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return where the map of all images and the truth fall below 0.5 in each cone, Å.

    That is where half-maps fall below 0.143 (Rosenthal & Henderson 2003). Mask and smoothing are the result's own.
    """
    mask, last = arrays["mask"], BOX // 2 - 1
    extent, halves = extent_of(mask), (arrays["half1"], arrays["half2"])
    found = directional_fsc(*halves, mask, masked_fsc(*halves, mask), last, operators("C1"))
    both = [mixed_of(volume, mask, extent) for volume in (arrays["map_unfiltered"], density)]
    sums = cone_sums(*both, extent.first_plane, found.directions, float(np.cos(HALF_ANGLE)), last)
    curves = np.where(sums[1] == 0, 1.0, correlation(*sums))  # shells of which a cone holds nothing
    shells = [crossing(curve, FSC_HALF) for curve in smoothed_curves(curves, found.voxels[:, : last + 1])]
    return BOX * PIXEL_A / np.maximum(np.nan_to_num(shells, nan=float(last)), 1.0)
