"""What a table says of the microscope that is not applied: refused at import, and said of stores that have it.

Beam tilt, Zernike terms up to fifth order (odd) and fourth (even), and the magnification matrix of optics groups are
applied (:mod:`cloudem.algorithms.aberrations`). What stands in the particle table of an older store is not, nor is what
cryoSPARC states: the public sources do not agree on the signs and units of its fields. pyem converts two of them
without a test (`asarnow/pyem`, ``cryosparc_2_cs_ctf_parameters``), and its users found that tilts and Zernike terms of
the same set in both programs do not match (pull request 94); another reader gives each tetrafoil term its own sign.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError
from cloudem.kernels.aberrations import EVEN_ORDERS, ODD_ORDERS
from cloudem.model.optics import EVEN, MATRIX, ODD, TILT, OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.table import distinct

OF_CRYOSPARC = {
    "cs:ctf/tilt_A": "beam tilt (ctf/tilt_A)",
    "cs:ctf/shift_A": "shift of the beam (ctf/shift_A)",
    "cs:ctf/trefoil_A": "trefoil (ctf/trefoil_A)",
    "cs:ctf/tetra_A": "tetrafoil (ctf/tetra_A)",
    "cs:ctf/anisomag": "anisotropic magnification (ctf/anisomag)",
}
"""Columns, and what they hold in words; all are 0 where there is nothing."""

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def unapplied(particles: Particles) -> list[str]:
    """Return one sentence for each kind of thing that a table states, not as zero, and that is not applied."""
    said = []
    columns = (*TILT, ODD, EVEN, *MATRIX)
    rows = [label for label in columns if np.any(_values(particles, f"rln:{label}") - _nothing(label))]
    if rows:
        said.append(
            f"not applied: {', '.join(rows)}, which stand in the particle table; import the particles again, so that "
            "they become those of optics groups"
        )
    found = _of_cryosparc(particles)
    if found:
        said.append(f"not applied: {', '.join(found)}; fine detail is blurred where they are not small")
    return said


def without_unapplied(particles: Particles, where: str, *, allowed: bool) -> tuple[Particles, list[str]]:
    """Refuse a table with aberrations that cannot be applied, or return it without them and what was left out.

    Parameters
    ----------
    particles
        As a file has them.
    where
        The file, for messages.
    allowed
        Whether to go on without.

    Raises
    ------
    InconsistentDataError
        It has some, and that is not allowed.
    """
    found = _of_cryosparc(particles)
    if found and not allowed:
        raise InconsistentDataError(
            f"{where} states {', '.join(found)}, whose signs and units are not documented, so that they cannot be "
            "applied; give --without-aberrations to import without them, and fit them anew"
        )
    numbers = set(np.unique(particles.get("optics_group", 0)).tolist())
    optics, said = list(particles.optics), []
    for number, group in enumerate(optics):
        for label, orders in ((ODD, ODD_ORDERS), (EVEN, EVEN_ORDERS)):
            values = _numbers(group.extra.get(label, ""))
            if number not in numbers or not any(values[len(orders) :]):
                continue
            what = f"{label} of optics group {group.name} beyond its first {len(orders)} of {len(values)} entries"
            if not allowed:
                raise InconsistentDataError(
                    f"{where} states {what}, which are of an order that cannot be applied; estimate aberrations of "
                    "lower order, or give --without-aberrations to import without these"
                )
            optics[number] = group = _cut(group, label, len(orders))
            said.append(f"{what} are left out, and fine detail is blurred where they are not small")
    return replace(particles, optics=tuple(optics)), said


def lost_in_star(particles: Particles) -> list[str]:
    """Return what a STAR file has no place for, in words: aberrations that cryoSPARC stated."""
    lost = [label.removeprefix("cs:") for label in OF_CRYOSPARC if np.any(_values(particles, label))]
    if not lost:
        return []
    return [f"the STAR file has no place for {', '.join(lost)}, which are lost in it; estimate aberrations again"]


def _of_cryosparc(particles: Particles) -> list[str]:
    return [words for label, words in OF_CRYOSPARC.items() if np.any(_values(particles, label))]


def _values(particles: Particles, name: str) -> NDArray[np.float64]:
    """Return the different numbers in a column of text."""
    if name not in particles:
        return np.zeros(0)
    texts = distinct(particles[name]).values.tolist()
    return np.array([number for text in texts for number in _numbers(str(text))])


def _numbers(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text)]


def _nothing(label: str) -> float:
    return 1.0 if label in (MATRIX[0], MATRIX[3]) else 0.0


def _cut(group: OpticsGroup, label: str, count: int) -> OpticsGroup:
    """Return a group with the first entries of a list, as they were printed."""
    words: Sequence[str] = group.extra[label].strip().strip("[]").replace(",", " ").split()
    return replace(group, extra={**group.extra, label: "[" + ",".join(words[:count]) + "]"})
