"""Density of an atomic model, and a protein-like molecule to try things on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial import cKDTree

from cloudem.errors import ParameterError
from cloudem.kernels.atoms import add_gaussians
from cloudem.model.atoms import Atoms, scattering_table

NARROWEST = 80.0
"""Least ``b + B`` of a Gaussian in units of the working grid's squared spacing: sampled without aliasing (1e-4)."""

RISE, TURN = 1.5, np.deg2rad(100.0)
"""Rise in Å and turn of an alpha helix per residue (Pauling, Corey & Branson 1951, 10.1073/pnas.37.4.205)."""

ROD_SPACING = 9.8
"""Distance between the axes of packed helices, Å."""

DEMO_B_FACTOR = 250.0
"""B-factor of the demo molecule's atoms, Å²: 2,000 particles of 2.5 Å/px at a signal-to-noise ratio of 0.05 then reach
about 6 Å, short of Nyquist."""

BACKBONE = (("N", 1.55, -0.48, -0.90), ("C", 2.29, 0.0, 0.0), ("C", 1.66, 0.45, 1.08), ("O", 2.02, 0.40, 2.28))
"""Element, radius (Å), turn (rad) and height (Å) about the helix axis of N, C-alpha, C and O, rounded."""


def density_of_atoms(
    atoms: Atoms,
    box: int,
    pixel_size: float,
    *,
    b_factor: float | None = None,
    solvent: bool = True,
    centre: bool = True,
) -> NDArray[np.float32]:
    """Return the electrostatic potential of atoms, in units of the scattering factor: f in Å per Å³.

    The sum of all atoms' Gaussians is taken on a grid of half the spacing, blurred as far as that grid needs; in
    Fourier space it is cropped to the box's own frequencies and the blur is taken back. The result holds exactly the
    frequencies below Nyquist: its sum times the voxel's volume is ``sum f(0)``, and a shift of the atoms by a voxel is
    a shift of the map by a voxel.

    Parameters
    ----------
    atoms
        Positions, elements, B-factors.
    box, pixel_size
        Voxels (even), Å.
    b_factor
        One B-factor for all atoms, Å²; each atom's own if None.
    solvent
        Whether the atoms stand in ice, whose density they displace, or in vacuum.
    centre
        Put the centre of mass on the origin voxel; otherwise the model's origin.

    Returns
    -------
        (n, n, n) float32 [z, y, x]; protein positive.

    Raises
    ------
    ParameterError
        The box is odd or too small for the model.
    """
    if box < 2 or box % 2:
        raise ParameterError(f"the box is {box} voxels; cloudem needs an even number")
    positions = atoms.positions - atoms.centre_of_mass() if centre else atoms.positions
    _require_room(positions, box, pixel_size)
    kinds, table = scattering_table(atoms.elements, atoms.hydrogens, solvent)
    widths = atoms.b_factors if b_factor is None else np.full(len(kinds), b_factor, np.float64)
    fine = _even_fast_length(2 * box)
    spacing = box * pixel_size / fine
    narrowest = float(np.min(table[:, :, 1][table[:, :, 0] != 0]) + widths.min())
    blur = max(0.0, NARROWEST * spacing**2 - narrowest)
    grid = np.zeros((fine,) * 3, np.float32)
    add_gaussians(grid, positions, kinds, widths + blur, atoms.occupancies, table, spacing)
    return _crop_frequencies(grid, box, pixel_size, blur)


def _require_room(positions: NDArray[np.float64], box: int, pixel_size: float) -> None:
    reach = float(np.abs(positions).max())
    if reach > (box / 2 - 1) * pixel_size:
        needed = 2 * int(np.ceil(reach / pixel_size + 1))
        raise ParameterError(
            f"the model reaches {reach:.0f} Å from its centre, but the box of {box} voxels of {pixel_size:g} Å only "
            f"{box * pixel_size / 2:.0f} Å; give a box of at least {needed}, better {2 * int(np.ceil(0.7 * needed))}"
        )


def _even_fast_length(least: int) -> int:
    length = least
    while length % 2 or fft.next_fast_len(length, real=True) != length:
        length += 1
    return length


def _crop_frequencies(grid: NDArray[np.float32], box: int, pixel_size: float, blur: float) -> NDArray[np.float32]:
    """Return what a finer periodic grid holds below the box's Nyquist frequency, a Gaussian blur of B Å² taken back.

    Both grids have their origin at the voxel in the middle, whose phase (-1)^k is the same for both.
    """
    fine = grid.shape[0]
    transform = fft.rfftn(grid)
    k = np.arange(-(box // 2) + 1, box // 2)
    half = k[k >= 0]
    cropped = np.zeros((box, box, box // 2 + 1), np.complex64)
    cropped[np.ix_(k, k, half)] = transform[np.ix_(k, k, half)]
    del transform
    frequency = np.fft.fftfreq(box, pixel_size)
    line = np.exp(blur / 4 * frequency**2) * (box / fine)
    cropped *= (line[:, None, None] * line[None, :, None] * line[: box // 2 + 1]).astype(np.float32)
    return np.asarray(fft.irfftn(cropped, s=(box,) * 3, overwrite_x=True), np.float32)


def demo_molecule(diameter: float = 160.0, seed: int = 0) -> Atoms:
    """Build a globular molecule of alpha helices, without symmetry and of the density of protein.

    Spherical domains of different sizes, each touching an earlier one, are filled with bundles of roughly parallel
    helices; each residue has a backbone and a side chain of up to five atoms.

    Parameters
    ----------
    diameter
        Of the sphere that holds all domains, Å.
    seed
        Decides where domains, helices and side chains are; the same seed gives the same molecule.
    """
    if diameter < 60:
        raise ParameterError(f"the demo molecule needs a diameter of at least 60 Å, not {diameter:g}")
    rng = np.random.default_rng(seed)
    axes: list[NDArray[np.float64]] = []
    positions: list[NDArray[np.float64]] = []
    elements: list[str] = []
    for centre, radius in _domains(diameter / 2, rng):
        taken = cKDTree(np.concatenate(axes)) if axes else None
        for axis, start, residues in _rods(centre, radius, rng):
            line = start + axis * RISE * np.arange(residues)[:, None]
            if taken is not None:
                line = line[taken.query(line)[0] > ROD_SPACING]
            if len(line) < 6:
                continue
            axes.append(line)
            for atom_positions, atom_elements in _residues(line, axis, rng):
                positions.append(atom_positions)
                elements += atom_elements
    count = len(elements)
    ones = np.ones(count)
    return Atoms(np.concatenate(positions), np.array(elements), ones, DEMO_B_FACTOR * ones, ones)


def _domains(radius: float, rng: np.random.Generator) -> list[tuple[NDArray[np.float64], float]]:
    """Return centres and radii of spheres that touch one another inside a sphere."""
    domains: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(400):
        size = radius * rng.uniform(0.22, 0.45)
        if domains:
            near, near_size = domains[rng.integers(len(domains))]
            centre = near + _direction(rng) * 0.9 * (near_size + size)
        else:
            centre = _direction(rng) * 0.3 * radius
        inside = np.linalg.norm(centre) + size <= radius
        apart = all(np.linalg.norm(centre - other) > 0.8 * (size + other_size) for other, other_size in domains)
        if inside and apart:
            domains.append((centre, size))
        if len(domains) == 11:
            break
    return domains


def _rods(
    centre: NDArray[np.float64], radius: float, rng: np.random.Generator
) -> list[tuple[NDArray[np.float64], NDArray[np.float64], int]]:
    """Return axis, start and number of residues of roughly parallel helices that fill a sphere."""
    common = _direction(rng)
    first, second = _perpendicular(common)
    reach = int(radius / ROD_SPACING) + 1
    rods = []
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            across = ROD_SPACING * ((i + j / 2) * first + j * np.sqrt(0.75) * second)
            half_chord2 = radius**2 - across @ across
            if half_chord2 > 0 and rng.random() < 0.85:
                half = np.sqrt(half_chord2) * rng.uniform(0.6, 1.0)
                # a lattice would diffract like a crystal: helices of a protein cross at an angle
                across = across + rng.normal(0, 0.8, 3)
                axis = common + 0.25 * rng.normal(0, 1, 2) @ np.array([first, second])
                axis /= np.linalg.norm(axis)
                rods.append((axis, centre + across - half * axis, int(2 * half / RISE)))
    return rods


def _residues(
    line: NDArray[np.float64], axis: NDArray[np.float64], rng: np.random.Generator
) -> list[tuple[NDArray[np.float64], list[str]]]:
    """Return positions and elements of the residues whose centres run along a helix axis."""
    first, second = _perpendicular(axis)
    phase = rng.uniform(0, 2 * np.pi)
    residues = []
    for number, point in enumerate(line):
        side = int(rng.integers(0, 6))
        radii = [r for _, r, _, _ in BACKBONE] + list(3.3 + 0.7 * np.arange(side))
        turns = [t for _, _, t, _ in BACKBONE] + list(-0.3 + rng.uniform(-0.4, 0.4, side))
        heights = [h for _, _, _, h in BACKBONE] + list(rng.uniform(-1.5, 0.5, side))
        angle = phase + number * TURN + np.array(turns)
        around = np.cos(angle)[:, None] * first + np.sin(angle)[:, None] * second
        positions = point + np.array(radii)[:, None] * around + np.array(heights)[:, None] * axis
        residues.append((positions, [e for e, _, _, _ in BACKBONE] + ["C"] * side))
    return residues


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    vector = rng.standard_normal(3)
    return np.asarray(vector / np.linalg.norm(vector))


def _perpendicular(axis: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two unit vectors that make a right-handed frame with an axis."""
    other = np.eye(3)[np.argmin(np.abs(axis))]
    first = np.cross(other, axis)
    first /= np.linalg.norm(first)
    return first, np.cross(axis, first)
