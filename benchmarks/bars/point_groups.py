"""Point groups of maps whose group is known: what `find_symmetry` answers, and where it puts the axes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from bars.measure import Bench
from bars.molecules import atoms_of
from cloudem.algorithms.density import density_of_atoms
from cloudem.algorithms.mask import particle_sphere
from cloudem.algorithms.point_group import PointGroup, find_point_group
from cloudem.kernels.fourier import shell_index
from cloudem.model.atoms import Atoms
from cloudem.model.symmetry import operators

Float32 = NDArray[np.float32]

BLOCKS = ("unc18", "ace2")
"""Molecules of which assemblies are made, in turn with the seeds."""

GROUPS = ("C1", "C2", "C3", "C4", "D2", "D7", "T", "O", "I")
RESOLUTIONS_A = (20.0, 8.0)

TOUCH_A, TOUCHING = 9.0, 0.02
"""Copies are moved away from the axes until this share of the atoms at most is so near to another copy."""

AWAY_A = 4.0
"""By how much the particle is off the box centre at most along x, y and z."""

MOST_BOX = 200
"""Voxels of a map, as long as they are no longer than `RESOLUTION / 2.1`."""

NEARLY_DEG = (4.0, 8.0, 15.0)
"""By which the second copy of a molecule that is nearly C2 is turned about its own centre."""


class Simulated(NamedTuple):
    """Half-maps of an assembly: what they show, pixel size in Å, and the turn of its axes from the standard ones."""

    halves: tuple[Float32, Float32]
    pixel_size: float
    turn: NDArray[np.float64]


def assembly(bench: Bench, block: str, group: str, rng: np.random.Generator, wrong_deg: float = 0.0) -> Atoms:
    """Return copies of a molecule around the axes of a group, which touch and do not overlap; turned at random first.

    With ``wrong_deg``, the second copy is turned by that about its own centre.
    """
    single, mates = atoms_of(bench, block), operators(group)
    centred = (single.positions - single.centre_of_mass()) @ Rotation.random(rng=rng).as_matrix().T
    aside, sample = rng.standard_normal(3), centred[::8]
    aside /= np.linalg.norm(aside)
    away = 0.0
    for away in np.arange(0.0, 400.0, 3.0) if len(mates) > 1 else ():
        tree = cKDTree(sample + away * aside)
        near = [tree.query((sample + away * aside) @ mate.T, distance_upper_bound=TOUCH_A)[0] for mate in mates[1:]]
        if all(np.mean(each < TOUCH_A) < TOUCHING for each in near):
            break
    copies = [(centred + away * aside) @ mate.T for mate in mates]
    if wrong_deg:
        middle, axis = copies[1].mean(axis=0), rng.standard_normal(3)
        turn = Rotation.from_rotvec(np.radians(wrong_deg) * axis / np.linalg.norm(axis))
        copies[1] = turn.apply(copies[1] - middle) + middle
    rest = {name: np.tile(values, len(mates)) for name, values in single._asdict().items() if name != "positions"}
    return Atoms(positions=np.concatenate(copies), **rest)


def simulated_map(
    bench: Bench, group: str, resolution: float, block: str, rng: np.random.Generator, wrong_deg: float = 0.0
) -> Simulated:
    """Return half-maps with white noise, whose FSC in the whole box is 0.5 at a resolution; axes anyhow, off centre."""
    atoms = assembly(bench, block, group, rng, wrong_deg)
    turn = Rotation.random(rng=rng).as_matrix()
    positions = (atoms.positions - atoms.centre_of_mass()) @ turn.T + rng.uniform(-AWAY_A, AWAY_A, 3)
    length = 1.35 * 2 * float(np.linalg.norm(positions, axis=1).max())
    pixel_size = min(max(resolution / 3.2, length / MOST_BOX), resolution / 2.1)
    box = 2 * int(np.ceil(length / pixel_size / 2))
    density = density_of_atoms(
        atoms._replace(positions=positions), box, pixel_size, b_factor=max(resolution**2, 80.0), centre=False
    )
    return Simulated(with_noise(density, pixel_size, resolution, rng), pixel_size, turn)


def with_noise(density: Float32, pixel_size: float, resolution: float, rng: np.random.Generator) -> Any:
    """Return a density twice, with white noise of the power that the density has at a resolution."""
    shell, box = shell_index(len(density)), len(density)
    at = round(box * pixel_size / resolution)
    power = float(np.mean(np.square(np.abs(fft.rfftn(density)))[np.abs(shell - at) <= 1]))
    sigma = np.float32(np.sqrt(power / density.size))
    return tuple(density + sigma * rng.standard_normal(density.shape, np.float32) for _ in range(2))


def asked(halves: Any, pixel_size: float) -> tuple[PointGroup, float]:
    """Return the answer and the CPU-seconds that it took."""
    began = time.process_time()
    centre, radius = particle_sphere((halves[0] + halves[-1]) / np.float32(2), pixel_size)
    found = find_point_group(halves, pixel_size, centre, radius)
    return found, time.process_time() - began


def axis_error(found: PointGroup, group: str, turn: NDArray[np.float64]) -> float:
    """Return by how many degrees the axis that is farthest off lies from where it should be."""
    mates, best = operators(group), found.best
    if best is None or len(mates) == 1:
        return 0.0
    off = best.turn @ turn
    moved = off @ mates @ off.T
    axes = [Rotation.from_matrix(each[1:]).as_rotvec() for each in (mates, moved)]
    known, seen = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in axes)
    return float(np.degrees(np.arccos(np.clip(np.abs(seen @ known.T).max(axis=1).min(), -1, 1))))


def point_groups(bench: Bench) -> None:
    """Point groups of simulated maps, 8 and 20 Å: 95 % right, axes within 1° and 3°, nothing claimed of others."""
    groups = ("C1", "D2") if bench.quick else GROUPS
    for resolution in RESOLUTIONS_A[:1] if bench.quick else RESOLUTIONS_A:
        for group in groups:
            add_row(bench, group, group, resolution, partial(simulated_map, bench, group, resolution))
        for name, nothing in NOTHING.items():
            add_row(bench, name, "C1", resolution, partial(nothing, resolution))
        for degrees in () if bench.quick else NEARLY_DEG:
            make = partial(simulated_map, bench, "C2", resolution, wrong_deg=degrees)
            add_row(bench, f"nearly C2, off by {degrees:g}°", "C1", resolution, make)


def add_row(bench: Bench, what: str, group: str, resolution: float, make: Callable[..., Simulated]) -> None:
    """Ask about maps of all seeds, and add what came of it."""
    answers, errors, shares, chances, cpu = [], [], [], [], []
    for seed in bench.seeds:
        made = make(BLOCKS[seed % len(BLOCKS)], np.random.default_rng([seed, *what.encode()]))
        found, took = asked(made.halves, made.pixel_size)
        answers.append(found.name or "undetermined")
        errors.append(axis_error(found, group, made.turn) if found.name == group != "C1" else np.nan)
        shown = found.best or max(found.tried, key=lambda one: one.least, default=None)
        shares.append(np.nan if shown is None else shown.least)
        chances.append(found.chance)
        cpu.append(took)
    known = [error for error in errors if np.isfinite(error)]
    said = ", ".join(f"{answers.count(one)} × {one}" for one in sorted(set(answers)))
    spread = f"{np.nanmin(shares):.2f} to {np.nanmax(shares):.2f}" if np.isfinite(shares).any() else "–"
    bench.add({
        "map": what, "Å": resolution, "answers": said, "worst axis °": round(max(known), 2) if known else "–",
        "agreement, worst axis": spread, "chance": round(float(np.max(chances)), 2),
        "CPU-s": round(float(np.mean(cpu)), 1),
    })  # fmt: skip


def noise_alone(resolution: float, block: str, rng: np.random.Generator) -> Simulated:
    """Return halves that have nothing in common."""
    halves = rng.standard_normal((2, 64, 64, 64)).astype(np.float32)
    return Simulated((halves[0], halves[1]), resolution / 3.2, np.eye(3))


def hollow_sphere(resolution: float, block: str, rng: np.random.Generator) -> Simulated:
    """Return a hollow sphere off the centre of its box, with noise."""
    box, pixel_size = 64, resolution / 3.2
    line = (np.arange(box) - box // 2) * pixel_size
    x, y, z = (line - off for off in rng.uniform(-AWAY_A, AWAY_A, 3))
    distance = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    radius = 0.3 * box * pixel_size
    density = np.exp(-(((distance - radius) / resolution) ** 2)).astype(np.float32)
    return Simulated(with_noise(density, pixel_size, 2 * resolution, rng), pixel_size, np.eye(3))


def ellipsoid(resolution: float, block: str, rng: np.random.Generator) -> Simulated:
    """Return an ellipsoid filled with noise that both halves share: an outline of D2, and detail of none."""
    box, pixel_size = 64, resolution / 3.2
    line = np.arange(box) - box // 2
    turned = np.stack(np.meshgrid(line, line, line, indexing="ij"), -1) @ Rotation.random(rng=rng).as_matrix()
    inside = np.sum((turned / (np.array([0.36, 0.28, 0.2]) * box)) ** 2, axis=-1) < 1
    texture = inside * (1 + 0.5 * rng.standard_normal(inside.shape))
    blurred = np.exp(-((np.minimum(line % box, -line % box) * pixel_size) ** 2) / resolution**2)
    kernel = blurred[:, None, None] * blurred[:, None] * blurred
    density = fft.irfftn(fft.rfftn(texture) * fft.rfftn(fft.ifftshift(kernel))).astype(np.float32)
    return Simulated(with_noise(density, pixel_size, 2 * resolution, rng), pixel_size, np.eye(3))


NOTHING = {"noise alone": noise_alone, "hollow sphere": hollow_sphere, "ellipsoid of noise": ellipsoid}
