"""Read atomic models: mmCIF and PDB, through gemmi."""

import os
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from cloudem.errors import FormatError, MissingInputError, ParameterError
from cloudem.model.atoms import Atoms


def read_atoms(path: str | os.PathLike[str], assembly: str | None = None) -> Atoms:
    """Read the first model of an mmCIF or PDB file, gzipped or not; waters are left out.

    Residues without hydrogen atoms get those of the free residue less the two lost in the polymer bond, shared out
    evenly over its atoms: without them protein would scatter a fifth less.

    Parameters
    ----------
    path
        The file.
    assembly
        Name of the biological assembly to build; the atoms as deposited if None.

    Raises
    ------
    MissingInputError, FormatError, ParameterError
        No such file; no atoms in it; no such assembly.
    """
    if not Path(path).is_file():
        raise MissingInputError(f"there is no atomic model {path}; give an mmCIF or PDB file")
    try:
        structure = gemmi.read_structure(os.fspath(path))
    except (RuntimeError, ValueError) as error:
        raise FormatError(f"{path} cannot be read as mmCIF or PDB: {_first_line(error)}") from error
    structure.remove_waters()
    structure.remove_empty_chains()
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise FormatError(f"{path} holds no atoms; give an mmCIF or PDB file of a model")
    model = structure[0]
    if assembly is not None:
        names = [one.name for one in structure.assemblies]
        if assembly not in names:
            raise ParameterError(f"{path} has no biological assembly {assembly!r}; it has {', '.join(names) or 'none'}")
        chosen = structure.assemblies[names.index(assembly)]
        model = gemmi.make_assembly(chosen, model, gemmi.HowToNameCopiedChain.Short)
    return _atoms_of(model)


def _atoms_of(model: Any) -> Atoms:
    positions, elements, hydrogens, b_factors, occupancies = [], [], [], [], []
    for chain in model:
        for residue in chain:
            bound = _missing_hydrogens(residue)
            for atom in residue:
                positions.append(atom.pos.tolist())
                elements.append(atom.element.name.upper())
                hydrogens.append(bound)
                b_factors.append(atom.b_iso)
                occupancies.append(atom.occ)
    return Atoms(
        np.array(positions, np.float64),
        np.array(elements),
        np.array(hydrogens, np.float64),
        np.array(b_factors, np.float64),
        np.array(occupancies, np.float64),
    )


def _missing_hydrogens(residue: Any) -> float:
    if any(atom.element.is_hydrogen for atom in residue):
        return 0.0
    known = gemmi.find_tabulated_residue(residue.name)
    if not (known.is_amino_acid() or known.is_nucleic_acid()):
        return 0.0
    heavy = sum(atom.occ for atom in residue)
    return max(known.hydrogen_count - 2, 0) / heavy if heavy > 0 else 0.0


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
