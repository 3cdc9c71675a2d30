"""Read atomic models: mmCIF and PDB, through gemmi."""

import gzip
import os
import re
from pathlib import Path
from typing import Any

import gemmi
import numpy as np

from cloudem.errors import FormatError, MissingInputError, ParameterError, parsing, shown
from cloudem.model.atoms import Atoms

_RANGES = {"position": (-1e5, 1e5), "B-factor": (-100.0, 1e4), "occupancy": (0.0, 100.0)}
"""Å, Å² and pure number: what is beyond was not meant, and a wider atom would be spread over the whole map."""

_MOST_COPIES = 2000
"""Of a biological assembly; a large capsid has hundreds."""

_MILLIONS = re.compile(rb"\d-\d{6}")
"""A range of operators, each of which gemmi would write out."""

_UNPACKED_BYTES, _MOST_PACKED = 64 << 20, 40
"""A packed model may unpack to so many bytes in any case, or to so many times its own; models shrink to a fifth."""


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
    damaged = f"{path} cannot be read as mmCIF or PDB", "download or export it again"
    with parsing(*damaged):
        _check_size(Path(path))
        structure = gemmi.read_structure(os.fspath(path))
        structure.remove_waters()
        structure.remove_empty_chains()
        names = [one.name for one in structure.assemblies]
    if len(structure) == 0 or structure[0].count_atom_sites() == 0:
        raise FormatError(f"{path} holds no atoms; give an mmCIF or PDB file of a model")
    if assembly is not None and assembly not in names:
        known = ", ".join(names[:10]) or "none"
        raise ParameterError(f"{path} has no biological assembly {shown(assembly)}; it has {known}")
    with parsing(*damaged):
        model = structure[0]
        if assembly is not None:
            chosen = structure.assemblies[names.index(assembly)]
            copies = sum(len(generator.operators) for generator in chosen.generators)
            if copies > _MOST_COPIES:
                raise ValueError(
                    f"its assembly {shown(assembly)} has {copies:,} copies, at most {_MOST_COPIES:,} are made"
                )
            # names of copies do not matter here, and to find new ones takes long
            model = gemmi.make_assembly(chosen, model, gemmi.HowToNameCopiedChain.Dup)
        atoms = _atoms_of(model)
    if not len(atoms.elements):
        raise FormatError(f"{path}: its biological assembly {shown(assembly)} holds no atoms; leave out --assembly")
    numbers = {"position": atoms.positions, "B-factor": atoms.b_factors, "occupancy": atoms.occupancies}
    for what, values in numbers.items():
        least, most = _RANGES[what]
        bad = np.flatnonzero(~((values >= least) & (values <= most)).reshape(len(values), -1).all(axis=1))
        if len(bad):
            raise FormatError(
                f"{path}: the {what} of atom {bad[0] + 1} is not a number from {least:,.0f} to {most:,.0f} "
                f"({len(bad)} such atoms); correct it"
            )
    if not atoms.occupancies.any():
        raise FormatError(f"{path}: the occupancies of all atoms are 0; correct them")
    if (atoms.elements == "X").any():
        at = int(np.argmax(atoms.elements == "X")) + 1
        raise FormatError(f"{path}: the element of atom {at} is not known; correct it, or leave that atom out")
    return atoms


def _check_size(path: Path) -> None:
    """Refuse what would fill the memory: a packed file that unpacks to very much, a range of millions of copies."""
    packed = path.suffix.lower() == ".gz"
    limit, size, operators = max(_UNPACKED_BYTES, _MOST_PACKED * path.stat().st_size), 0, 0
    with gzip.open(path) if packed else path.open("rb") as file:
        while line := file.readline(1 << 20):
            size += len(line)
            if packed and size > limit:
                raise ValueError(f"it unpacks to more than {limit >> 20} MiB, which is no model")
            operators = 1000 if b"oper_expression" in line else max(operators - 1, 0)  # lines that may hold some
            if operators and _MILLIONS.search(line):
                raise ValueError("an assembly of it has hundreds of thousands of copies")


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
