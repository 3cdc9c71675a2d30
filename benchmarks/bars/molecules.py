"""Atomic models from the tests of Python packages, and assemblies of their copies, as densities."""

from __future__ import annotations

from typing import Any, NamedTuple

import gemmi
import numpy as np
from scipy.spatial.transform import Rotation

from bars.measure import Bench, MissingError
from cloudem.algorithms.density import density_of_atoms
from cloudem.io.formats.atomic_model import read_atoms
from cloudem.io.formats.mrc import NOWHERE, Volume
from cloudem.model.atoms import Atoms
from cloudem.model.symmetry import operators


class Molecule(NamedTuple):
    """Where a molecule comes from, and how it is looked at.

    Attributes
    ----------
    file, assembly
        Name in the folder of molecules, and the biological assembly in it (None: as deposited).
    group, aside
        Point group of which copies are made, and where the first copy's centre stands from its axes, Å (x, y, z).
    turn
        Rotation vector, degrees, of the first copy before it is set aside.
    diameter
        Of the circle that contains it, Å.
    made
        Whether copies are made; otherwise the file holds the whole of it.
    """

    file: str
    diameter: float
    assembly: str | None = None
    group: str = "C1"
    aside: tuple[float, float, float] = (0.0, 0.0, 0.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    made: bool = True


ALONG_Z_GPCR = (18.2, 70.5, 155.8)
"""Turn that lays the longest principal axis of the receptor along z, and the shortest along x."""

ALONG_Z = (-3.4, 36.9, 108.7)
"""Turn that lays the longest principal axis of the hinge along z; set aside as below, its copies touch and do not
overlap."""

MOLECULES = {
    "hinge": Molecule("6WG6.cif", 135, "1"),
    "unc18": Molecule("2XHE.cif", 130),
    "gpcr": Molecule("7CFN.cif", 150),
    "ace2": Molecule("7DDO.pdb", 135),
    "dimer": Molecule("3KPR.cif.gz", 205),
    "apoferritin": Molecule("4v1w.cif", 140, group="O", made=False),
    "gpcr of C4": Molecule("7CFN.cif", 190, None, "C4", (48.0, 0.0, 0.0), ALONG_Z_GPCR),
    "hinge of D2": Molecule("6WG6.cif", 180, "1", "D2", (39.0, 16.0, 30.0), ALONG_Z),
    "hinge of D7": Molecule("6WG6.cif", 225, "1", "D7", (60.0, 25.0, 38.0), ALONG_Z),
}


def atoms_of(bench: Bench, name: str) -> Atoms:
    """Return the atoms of a molecule, its copies included, the centre of mass at the origin."""
    molecule = MOLECULES[name]
    folders = [bench.molecules, bench.data / "apoferritin"]
    files = [folder / molecule.file for folder in folders if folder is not None and (folder / molecule.file).exists()]
    if not files:
        where = bench.molecules or "no folder is given with --molecules"
        raise MissingError(
            f"the atomic model {molecule.file} is missing ({where}); benchmarks/README.md says its source"
        )
    atoms = read_atoms(str(files[0]), molecule.assembly)
    turn = Rotation.from_rotvec(molecule.turn, degrees=True)
    single = turn.apply(atoms.positions - atoms.centre_of_mass()) + molecule.aside
    mates = operators(molecule.group if molecule.made else "C1")
    repeated: dict[str, Any] = {
        key: np.tile(values, len(mates)) for key, values in atoms._asdict().items() if key != "positions"
    }
    return Atoms(positions=np.concatenate([single @ mate.T for mate in mates]), **repeated)


def kilodaltons(atoms: Atoms) -> float:
    """Return the mass of the atoms that the model holds, bound hydrogens included."""
    masses = np.array([gemmi.Element(str(one)).weight for one in atoms.elements])
    return float(np.sum((masses + atoms.hydrogens * gemmi.Element("H").weight) * atoms.occupancies) / 1e3)


def density(bench: Bench, name: str, box: int, pixel_size: float) -> Volume:
    """Return the density of a molecule in ice."""
    return Volume(density_of_atoms(atoms_of(bench, name), box, pixel_size), pixel_size, NOWHERE)
