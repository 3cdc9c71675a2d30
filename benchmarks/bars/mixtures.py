"""Mixtures of two states of a molecule, sorted by maps with poses of a blind refinement of all: are they found again?

A state has one chain less, or one chain turned by 6° about an axis through its root. Homogeneous sets have to be
answered with one state, and so has noise.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from bars.hard_sets import Recipe, drawn_of, make_set
from bars.measure import Bench, refined
from bars.molecules import MOLECULES
from cloudem.algorithms.density import density_of_atoms
from cloudem.io.formats.atomic_model import read_atoms
from cloudem.io.formats.mrc import NOWHERE, Volume
from cloudem.io.formats.star import read_star
from cloudem.model.atoms import Atoms

BOX, PIXEL_A = 96, 2.0
TURN_DEG = 6.0
NEAR_A = 5.0
"""Atoms of the chain that turns, so near to another one, are its root."""

CHAINS = {"gpcr": ("N", "R"), "unc18": ("B", "B"), "ace2": ("C", "C")}
"""Of each molecule, the chain that is missing and the one that turns: 14 and 31 of 115 kDa; 25 of 90; 22 of 92."""


@dataclass(frozen=True)
class Mix:
    """What a set shows: a molecule, what sets its second state apart, the share of that, and how many images."""

    molecule: str
    kind: str
    share: float = 0.5
    count: int = 2000
    snr: float = 0.05
    classes: int = 2
    search: bool = False


MIXES = {
    "missing": Mix("gpcr", "missing"),
    "missing-90": Mix("gpcr", "missing", 0.1),
    "turned": Mix("gpcr", "turned"),
    "turned-90": Mix("gpcr", "turned", 0.1, 10_000),
    "one": Mix("gpcr", "same", 0.0, classes=3),
    "noise": Mix("gpcr", "same", 0.0, snr=0.0),
    "unc18-missing": Mix("unc18", "missing"),
    "unc18-missing-search": Mix("unc18", "missing", search=True),
    "unc18-turned": Mix("unc18", "turned"),
    "unc18-one": Mix("unc18", "same", 0.0, classes=3),
    "ace2-missing": Mix("ace2", "missing"),
    "ace2-missing-search": Mix("ace2", "missing", search=True),
    "ace2-turned": Mix("ace2", "turned"),
}
"""Name -> set. The settings were chosen on ``gpcr`` with seed 1 and, the last, on ``ace2`` with seed 2."""

RELION_CLASSES = (
    "--ini_high 20 --iter 25 --skip_align --ctf --zero_mask --flatten_solvent --tau2_fudge 4 --pool 30 --pad 2 "
    "--dont_combine_weights_via_disc --norm --scale --random_seed 1 --j 1"
)
"""Of RELION's 3D classification with the same poses."""


def mixtures(bench: Bench) -> None:
    """Two states of a molecule by a missing chain or one turned by 6°, and sets of one state or none."""
    bench.warm()
    for name in [each for each in MIXES if not bench.only or each in bench.only]:
        for seed in bench.seeds:
            row_of_mix(bench, name, MIXES[name], seed)


def row_of_mix(bench: Bench, name: str, mix: Mix, seed: int) -> None:
    """Refine a set blindly, sort its particles, and add a row."""
    count = bench.few(mix.count, 600)
    folder = set_of_mix(bench, name, mix, count, seed)
    diameter = MOLECULES[mix.molecule].diameter
    posed = folder / "refine"
    if not (posed / "result").exists():
        given = ("--particles", folder / "particles.zarr", "--reference", folder / "start.mrc")
        few = ("--max-iterations", 3) if bench.quick else ()
        bench.cloudem("refine3d", *given, "--diameter-A", diameter, *few, "--seed", seed, "--out", posed)
    out = bench.fresh("mixtures-out")
    given = ("--particles", posed, "--diameter-A", diameter, "--classes", mix.classes, "--seed", seed)
    few = (*(("--resolution-A", 12) if bench.quick else ()), *(("--search",) if mix.search else ()))
    cost = bench.cloudem("classify3d", *given, *few, "--out", out)
    _, attributes, particles = refined(out)
    truth = states_of(folder, particles)
    columns: dict[str, Any] = {"row": name, "seed": seed, "images": count, "classes": mix.classes}
    columns["states"] = int(attributes["states"])
    columns["ARI"] = round(adjusted_rand(truth, particles["class_number"] - 1), 3) if mix.share else ""
    columns["gain"] = round(float(attributes["gain"]), 3)
    columns["error"] = round(float(attributes["gain_error"]), 3)
    bench.add(columns, {"CPU-s": round(cost.cpu, 1), "passes": len(attributes["iterations"])})
    if bench.relion and mix.share:
        beside_relion_classes(bench, name, mix, seed, folder)


def states_of(folder: Path, particles: Any) -> NDArray[np.int64]:
    """Return the true state of each particle of a table."""
    state = drawn_of(folder).foreign.astype(np.int64)
    return state[particles["store_row"]] if "store_row" in particles else state


def set_of_mix(bench: Bench, name: str, mix: Mix, count: int, seed: int) -> Path:
    """Return the folder of a set, made unless it is there."""
    states = states_of_molecule(bench, mix.molecule, mix.kind)
    volumes = [Volume(density_of_atoms(each, BOX, PIXEL_A, centre=False), PIXEL_A, NOWHERE) for each in states]
    recipe = Recipe(count=count, snr=mix.snr, foreign=mix.share)
    folder = bench.work / f"mixtures-{name.removesuffix('-search')}-{count}-{seed}"
    return make_set(folder, volumes[0], recipe, seed, volumes[1])


def states_of_molecule(bench: Bench, name: str, kind: str) -> tuple[Atoms, Atoms]:
    """Return the atoms of a molecule, its centre of mass at the origin, and those of its second state."""
    path = bench.need((bench.molecules or Path("molecules")) / MOLECULES[name].file)
    atoms = read_atoms(str(path))
    atoms = atoms._replace(positions=atoms.positions - atoms.centre_of_mass())
    chains = chains_of(path, read_atoms(str(path)).positions)
    missing, turning = CHAINS[name]
    if kind == "missing":
        return atoms, Atoms(*(values[chains != missing] for values in atoms))
    mine = chains == turning
    distance, _ = cKDTree(atoms.positions[~mine]).query(atoms.positions[mine])
    root = atoms.positions[mine][distance < NEAR_A].mean(axis=0)
    along = atoms.positions[mine].mean(axis=0) - root
    axis = np.cross(along, [0.3, 0.5, 0.8])
    turn = Rotation.from_rotvec(np.radians(TURN_DEG) * axis / np.linalg.norm(axis))
    positions = atoms.positions.copy()
    positions[mine] = turn.apply(positions[mine] - root) + root
    return atoms, atoms._replace(positions=positions)


def chains_of(path: Path, positions: NDArray[np.float64]) -> NDArray[Any]:
    """Return the name of the chain of each atom, by where it is."""
    named = [
        (atom.pos.tolist(), chain.name)
        for chain in gemmi.read_structure(str(path))[0]
        for residue in chain
        for atom in residue
    ]
    _, nearest = cKDTree(np.array([place for place, _ in named])).query(positions)
    return np.array([name for _, name in named])[nearest]


def adjusted_rand(truth: Sequence[int] | NDArray[np.int64], found: Sequence[int] | NDArray[np.int64]) -> float:
    """Return the adjusted Rand index of two partitions (Hubert & Arabie 1985): 1 if they are equal, 0 by chance."""
    table = np.zeros((int(np.max(truth)) + 1, int(np.max(found)) + 1))
    np.add.at(table, (truth, found), 1)
    pairs, rows, columns, whole = (
        float(np.sum(counts * (counts - 1)) / 2)
        for counts in (table, table.sum(axis=1), table.sum(axis=0), table.sum())
    )
    expected = rows * columns / whole
    return (pairs - expected) / max((rows + columns) / 2 - expected, 1e-12)


def beside_relion_classes(bench: Bench, name: str, mix: Mix, seed: int, folder: Path) -> None:
    """Sort the same particles, with the same poses, by RELION's 3D classification, and add a row."""
    files, out = bench.fresh("mixtures-files"), bench.fresh("mixtures-relion")
    bench.cloudem("export", folder / "refine", "--stack", "--out", files)
    out.mkdir()
    command = [bench.program("relion_refine"), "--i", "particles.star", "--ref", "map.mrc", "--o", str(out / "run")]
    sizes = ["--K", str(mix.classes), "--particle_diameter", str(MOLECULES[mix.molecule].diameter)]
    cost = bench.measured([*command, *sizes, *RELION_CLASSES.split()], files)
    last = sorted(out.glob("run_it*_data.star"))[-1]
    table = read_star(last)["particles"]
    order = np.argsort([int(str(one).split("@")[0]) for one in table["rlnImageName"]])
    number = np.array(table["rlnClassNumber"]).astype(int)[order] - 1
    _, _, particles = refined(folder / "refine")
    ari = adjusted_rand(states_of(folder, particles), number)
    row = {"row": name, "seed": seed, "program": "RELION, --skip_align, 25 iterations"}
    bench.add(row, {"ARI": round(ari, 3), "CPU-s": round(cost.cpu, 1)})
    shutil.rmtree(files)
