"""A membrane protein in a micelle: a rigid core in a belt that is another one in each image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from bars.hard_sets import BATCH, Recipe, draw, is_made, write_set
from bars.measure import Bench
from bars.molecules import atoms_of
from cloudem.algorithms.density import density_of_atoms
from cloudem.algorithms.mask import estimate_mask
from cloudem.algorithms.resolution import frequency_radius
from cloudem.algorithms.simulate import Simulator
from cloudem.io.formats.mrc import NOWHERE, Volume

Float32 = NDArray[np.float32]

BELTS = 24
"""Different micelles of a set; each image has one of them at random."""

FALL_OFF_A2 = 60.0
"""B-factor of what a belt holds."""


class Membrane(NamedTuple):
    """A protein in its micelle.

    Attributes
    ----------
    molecule
        Name (`bars.molecules`).
    along
        Where the middle of the belt lies along the longest axis of the molecule, as a share of half its length.
    axes
        Semi-axes of the belt, across the longest axis and along it, Å.
    diameter
        Of the whole, Å.
    apart
        The belts have nothing in common but their outline and mean density; otherwise the detail, too, that the mean of
        so few has.
    """

    molecule: str
    along: float
    axes: tuple[float, float]
    diameter: float
    apart: bool = False


MEMBRANES = {
    "gpcr": Membrane("gpcr", -0.45, (48.0, 26.0), 165.0),
    "unc18": Membrane("unc18", 0.4, (58.0, 28.0), 170.0),
    "ace2": Membrane("ace2", -0.4, (58.0, 28.0), 170.0),
    "unc18-large": Membrane("unc18", 0.4, (64.0, 31.0), 170.0, apart=True),
    "ace2-large": Membrane("ace2", -0.4, (64.0, 31.0), 170.0, apart=True),
}
"""The mean belt has 0.47 and 0.49 of the mass of the protein, the large ones 0.71 and 0.75, measured: much of an
ellipsoid is taken up by the protein. Micelles in practice are often heavier."""


class Particle(NamedTuple):
    """The density of a core, the mean belt, the belts, and the core's tight mask; (n, n, n) each."""

    core: Float32
    mean: Float32
    belts: list[Float32]
    mask: Float32
    pixel_size: float

    @property
    def truth(self) -> Volume:
        """What all images have in common."""
        return Volume(self.core + self.mean, self.pixel_size, NOWHERE)


def particle_of(bench: Bench, membrane: Membrane, box: int, pixel_size: float, seed: int) -> Particle:
    """Return a protein with belts whose filling has the mean and the spread of density that the protein has."""
    atoms = atoms_of(bench, membrane.molecule)
    centred = atoms.positions - atoms.centre_of_mass()
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    positions = centred @ (axes[[2, 1, 0]] * np.linalg.det(axes)).T  # longest axis along z
    core = density_of_atoms(atoms._replace(positions=positions), box, pixel_size, b_factor=FALL_OFF_A2, centre=False)
    mask = estimate_mask(core, pixel_size, low_pass_resolution=8.0, extend=2.0, edge=4.0)
    middle = membrane.along * float(np.percentile(np.abs(positions[:, 2]), 99))
    place = (np.arange(box) - box // 2) * pixel_size
    across, along = membrane.axes
    squared = (place[:, None, None] - middle) ** 2 / along**2 + (place[:, None] ** 2 + place**2) / across**2
    outside = np.clip((np.sqrt(squared) - 1) * along / 4 + 0.5, 0, 1)
    belt = (0.5 + 0.5 * np.cos(np.pi * outside)) * (1 - mask)
    inside = core[mask > 0.5]
    rng = np.random.default_rng([seed, 5])
    shape = np.exp(-FALL_OFF_A2 / 4 * (frequency_radius(box) / (box * pixel_size)) ** 2)
    noises = []
    for _ in range(BELTS):
        noise = fft.irfftn(fft.rfftn(rng.standard_normal((box,) * 3)) * shape, s=(box,) * 3)
        noises.append(noise / noise.std())
    if membrane.apart:
        common = np.mean(noises, axis=0)
        noises = [(noise - common) * np.sqrt(BELTS / (BELTS - 1)) for noise in noises]
    belts = [np.asarray(belt * (0.5 * inside.mean() + inside.std() * noise), np.float32) for noise in noises]
    return Particle(core, np.mean(belts, axis=0, dtype=np.float32), belts, mask, pixel_size)


def micelle_set(folder: Path, particle: Particle, recipe: Recipe, seed: int) -> Path:
    """Write a set of images of a protein in its micelles, as `bars.hard_sets.make_set` does, and return its folder."""
    if is_made(folder, recipe):
        return folder
    truth, drawn = draw(recipe, seed)
    volume, recording = particle.truth, recipe.recording()
    scale = Simulator(volume.data, volume.pixel_size, truth, recording, seed).scale
    which = np.random.default_rng([seed, 6]).integers(0, len(particle.belts), recipe.count)

    def images(rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        made: dict[int, NDArray[np.float32]] = {}
        for number, belt in enumerate(particle.belts):
            own = rows[which[rows] == number]
            simulator: Any = Simulator(particle.core + belt, volume.pixel_size, truth, recording, seed)
            simulator.scale = scale
            for first in range(0, len(own), BATCH):
                some = own[first : first + BATCH]
                made |= dict(zip(some.tolist(), simulator.some_images(some), strict=True))
        for first in range(0, len(rows), BATCH):
            yield np.stack([made.pop(row) for row in rows[first : first + BATCH].tolist()])

    return write_set(folder, volume, replace(recipe), seed, truth, drawn, images)
