"""What a table says of the microscope that cloudem carries along and does not apply, and about how much that costs."""

import re
from collections.abc import Sequence
from math import radians

import numpy as np
from numpy.typing import NDArray

from cloudem.io.formats.plausible import used_optics
from cloudem.kernels.ctf import wavelength
from cloudem.model.particles import TEXT, Particles

TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
MATRIX = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
OTHER = {
    "rlnOddZernike": "odd Zernike terms (trefoil, coma)",
    "rlnEvenZernike": "even Zernike terms (tetrafoil and the like)",
    "cs:ctf/tilt_A": "beam tilt (ctf/tilt_A)",
    "cs:ctf/shift_A": "shift of the beam (ctf/shift_A)",
    "cs:ctf/trefoil_A": "trefoil (ctf/trefoil_A)",
    "cs:ctf/tetra_A": "tetrafoil (ctf/tetra_A)",
}
"""Aberrations whose cost is not known offhand."""

_ANISOMAG = "cs:ctf/anisomag"
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_AWAY = 100.0
"""Å from the centre of the particle, for which the cost of a magnification is told."""


def unapplied(particles: Particles, pixel_size: float) -> list[str]:
    """Return one sentence for each thing that a table states, not as zero, and that is not applied.

    Parameters
    ----------
    particles
        The table, with its text.
    pixel_size
        Å per pixel.
    """
    said = []
    tilt = float(np.linalg.norm(_rows(particles, TILT), axis=1).max(initial=0))
    if tilt:
        said.append(f"beam tilt of up to {tilt:.2g} mrad is not applied{_harm_of_tilt(particles, tilt, pixel_size)}")
    others = [words for label, words in OTHER.items() if np.any(_rows(particles, (label,)))]
    if others:
        said.append(f"not applied: {', '.join(others)}; fine detail is blurred where they are not small")
    stretch = max((_stretch(row) for label in (MATRIX, (_ANISOMAG,)) for row in _rows(particles, label)), default=0.0)
    if stretch > 1e-6:
        said.append(
            f"a magnification matrix is not applied: {stretch:.1%} of anisotropic magnification blurs what lies "
            f"{_AWAY:.0f} Å from the particle's centre by up to {_AWAY * stretch:.2g} Å"
        )
    return said


def lost_in_star(particles: Particles) -> list[str]:
    """Return what a STAR file has no place for, in words: aberrations that cryoSPARC stated."""
    lost = [label for label in (*OTHER, _ANISOMAG) if label.startswith("cs:") and np.any(_rows(particles, (label,)))]
    if not lost:
        return []
    names = ", ".join(label.removeprefix("cs:") for label in lost)
    return [f"the STAR file has no place for {names}, which are lost in it; estimate aberrations again in RELION"]


def _rows(particles: Particles, labels: Sequence[str]) -> NDArray[np.float64]:
    """Return the different values of some labels, in optics groups or among the particles, ``(kinds, numbers)``."""
    texts = {tuple(group.extra.get(label, "") for label in labels) for group in used_optics(particles)}
    columns = [particles.columns.get(label if ":" in label else f"rln:{label}") for label in labels]
    if any(values is not None for values in columns):
        nothing = np.full(len(particles), "", dtype=TEXT)
        texts |= set(zip(*((nothing if v is None else v).tolist() for v in columns), strict=True))
    rows = [[float(number) for text in row for number in _NUMBER.findall(str(text))] for row in texts]
    width = max(map(len, rows), default=0)
    return np.array([row + [0.0] * (width - len(row)) for row in rows if row], np.float64).reshape(-1, max(width, 1))


def _stretch(row: NDArray[np.float64]) -> float:
    """Return by how much a matrix stretches or shrinks at most, as a share; cryoSPARC writes what differs from 1."""
    if len(row) != 4 or not np.isfinite(row).all():
        return 0.0
    matrix = row.reshape(2, 2)
    if abs(np.trace(matrix)) < 1:
        matrix = matrix + np.eye(2)
    return float(abs(np.linalg.svd(matrix, compute_uv=False) - 1).max())


def _harm_of_tilt(particles: Particles, tilt: float, pixel_size: float) -> str:
    """Say from which resolution on phases are wrong by 45°: ``2 pi Cs lambda² theta k³``."""
    worst = max(
        (
            float(abs(g.spherical_aberration) * wavelength(g.voltage) ** 2)
            for g in used_optics(particles)
            if g.voltage > 0
        ),
        default=0.0,
    )
    if not worst:
        return ""
    from_A = (2 * np.pi * worst * tilt * 1e-3 / radians(45)) ** (1 / 3)
    finer = (
        f", finer than {2 * pixel_size:.3g} Å, which is all that these images hold" if from_A < 2 * pixel_size else ""
    )
    return f": phases are wrong by more than 45° beyond {from_A:.2g} Å{finer}"
