"""Atoms and how strongly they scatter electrons."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import gemmi
import numpy as np
from numpy.typing import NDArray

DISPLACED_VOLUMES = {
    "H": 5.15,
    "C": 16.44,
    "N": 2.49,
    "O": 9.13,
    "MG": 17.16,
    "P": 5.73,
    "S": 19.86,
    "CA": 31.89,
    "MN": 9.20,
    "FE": 7.99,
    "CU": 8.78,
    "ZN": 9.85,
}
"""Solvent that an atom displaces, Å³ (Fraser et al. 1978, 10.1107/S0021889878014296; metals as in Svergun et al. 1995,
10.1107/S0021889895007047). Others: the sphere of the covalent radius."""

ICE_MOLECULES_PER_A3 = 0.0311
"""Water molecules per Å³ of vitreous ice of 0.93 g/cm³."""

HYDROGEN_DISTANCE = 1.05
"""Mean distance of a hydrogen from the atom that binds it, Å."""


class Atoms(NamedTuple):
    """The atoms of a model."""

    positions: NDArray[np.float64]
    """(c, 3): x, y, z in Å."""
    elements: NDArray[Any]
    """(c,) symbols as text, upper case."""
    hydrogens: NDArray[np.float64]
    """(c,) bound hydrogens that the model leaves out; may be fractional, where they are shared out over a residue."""
    b_factors: NDArray[np.float64]
    """(c,) Å²."""
    occupancies: NDArray[np.float64]
    """(c,)."""

    def centre_of_mass(self) -> NDArray[np.float64]:
        """Return the centre of mass of the atoms, (3,) Å, their hydrogens included."""
        symbols, index = np.unique(self.elements, return_inverse=True)
        weights = np.array([gemmi.Element(str(symbol)).weight for symbol in symbols])[index]
        weights = (weights + self.hydrogens * gemmi.Element("H").weight) * self.occupancies
        return np.asarray(weights @ self.positions / weights.sum())


@cache
def form_factor(element: str) -> tuple[tuple[float, float], ...]:
    """Return the electron scattering factor of a neutral atom as Gaussians (a in Å, b in Å²).

    ``f(s) = sum a exp(-b s² / 4)`` with s = 1/d in 1/Å: International Tables C, table 4.3.2.2 (Peng et al. 1996), from
    gemmi.
    """
    coefficients = gemmi.Element(element).c4322.get_coefs()
    half = len(coefficients) // 2
    return tuple(zip(coefficients[:half], coefficients[half:], strict=True))


def displaced_volume(element: str) -> float:
    """Return the volume of solvent that an atom displaces, Å³."""
    if element in DISPLACED_VOLUMES:
        return DISPLACED_VOLUMES[element]
    return 4 / 3 * math.pi * float(gemmi.Element(element).covalent_r) ** 3


def ice_density() -> float:
    """Return the scattering density of vitreous ice: f(0) of the water molecules in 1 Å³, Å/Å³."""
    water = sum(a for a, _ in form_factor("O")) + 2 * sum(a for a, _ in form_factor("H"))
    return ICE_MOLECULES_PER_A3 * water


def scattering_table(
    elements: NDArray[Any], hydrogens: NDArray[np.float64], solvent: bool
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the kind of each atom and the Gaussians of each kind.

    A kind is an element with its bound hydrogens, which are smeared over the sphere on which they sit, and less the
    solvent that both displace: ``-rho V exp(-pi V^(2/3) s²)`` (Fraser et al. 1978).

    Parameters
    ----------
    elements, hydrogens
        As in `Atoms`.
    solvent
        Whether the atoms stand in ice.

    Returns
    -------
        Kinds (c,) int32, and the table (kinds, terms, 2): a in Å and b in Å²; terms that are not used have a = 0.
    """
    pairs = np.array([f"{e}|{h:.6f}" for e, h in zip(elements.tolist(), hydrogens.tolist(), strict=True)])
    names, kinds = np.unique(pairs, return_inverse=True)
    rows = []
    smear = 8 * math.pi**2 * HYDROGEN_DISTANCE**2 / 3
    for name in names.tolist():
        element, _, count = name.partition("|")
        bound = float(count)
        terms = list(form_factor(element))
        if bound:
            terms += [(bound * a, b + smear) for a, b in form_factor("H")]
        if solvent:
            volume = displaced_volume(element) + bound * DISPLACED_VOLUMES["H"]
            terms.append((-ice_density() * volume, 4 * math.pi * volume ** (2 / 3)))
        rows.append(terms)
    table = np.zeros((len(rows), max(len(terms) for terms in rows), 2))
    table[:, :, 1] = 1.0
    for row, terms in zip(table, rows, strict=True):
        row[: len(terms)] = terms
    return kinds.astype(np.int32), table
