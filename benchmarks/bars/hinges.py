"""Sets of images of a molecule of two parts, of which one is turned about a hinge by a little in every image.

The molecule is cut across its longest axis. Part A is where the pose says; part B is turned about the middle of the cut
by a random rotation vector. In the image that is B in a pose of its own, which is the truth for whoever refines B.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from bars.measure import Bench
from bars.molecules import atoms_of
from cloudem.algorithms.density import density_of_atoms
from cloudem.algorithms.mask import estimate_mask
from cloudem.algorithms.simulate import Recording, Simulator, random_particles
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import write_particles
from cloudem.model.atoms import Atoms
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix, matrix_to_euler

BATCH = 200
MASK = {"low_pass_resolution": 12.0, "extend": 4.0, "edge": 9.0}
"""Of a part, Å."""


@dataclass(frozen=True)
class HingeRecipe:
    """What a set is made of.

    Attributes
    ----------
    molecule
        Name in `bars.molecules`.
    box, pixel_size
        Pixels, Å.
    count
        Images.
    snr
        Variance of the signal over that of the noise in a box; None for no noise.
    hinge_deg
        Root mean square of the turns of part B, degrees.
    share
        Of the atoms, that are part B.
    b_factor
        Of the signal's fall-off, Å².
    contrast
        Standard deviation of the logarithm of each image's amplitude.
    """

    molecule: str
    box: int = 64
    pixel_size: float = 3.0
    count: int = 2000
    snr: float | None = 0.1
    hinge_deg: float = 5.0
    share: float = 0.5
    b_factor: float = 100.0
    contrast: float = 0.0


@dataclass(frozen=True)
class HingeSet:
    """A set on disk, and its truth.

    Attributes
    ----------
    folder
        Holds ``particles.zarr`` with the true poses of A, ``known.zarr`` with those of B, ``clean.zarr`` without noise,
        ``mask_a.mrc``, ``mask_b.mrc`` and ``whole.mrc``.
    a, b
        Densities, (n, n, n).
    mask_a, mask_b
        Masks of them.
    poses_a, poses_b
        True poses.
    scale, contrast
        Factor on the densities in the images, and further one of each image, (count,).
    """

    folder: Path
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    mask_a: NDArray[np.float32]
    mask_b: NDArray[np.float32]
    poses_a: Particles
    poses_b: Particles
    scale: float
    contrast: NDArray[np.float32]


def two_parts(atoms: Atoms, share: float) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return which atoms are part B, and where the hinge is, (3,) Å."""
    centred = atoms.positions - atoms.centre_of_mass()
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    along = centred @ (axis * np.sign(axis[np.abs(axis).argmax()]))
    cut = np.quantile(along, 1 - share)
    return along > cut, centred[np.abs(along - cut) < 4].mean(axis=0)


def moved_about(poses: Particles, hinge: NDArray[np.float64], turns: NDArray[np.float64]) -> Particles:
    """Return the poses of a part that is turned by (n, 3, 3) about a point, Å from the middle of the box."""
    a = euler_to_matrix(poses["rot"], poses["tilt"], poses["psi"])
    b = a @ turns
    rot, tilt, psi = matrix_to_euler(b)
    x, y = ((a - b) @ hinge)[:, :2].T
    return poses.with_columns(rot=rot, tilt=tilt, psi=psi, shift_x=poses["shift_x"] + x, shift_y=poses["shift_y"] + y)


def hinge_set(bench: Bench, recipe: HingeRecipe, seed: int, name: str) -> HingeSet:
    """Make a set, or read the one that is there."""
    folder = bench.work / f"{name}-{seed}"
    atoms = atoms_of(bench, recipe.molecule)
    n, px = recipe.box, recipe.pixel_size
    is_b, hinge = two_parts(atoms, recipe.share)
    # both parts on the grid on which the whole molecule's centre of mass is the origin voxel
    parts = [Atoms(*(values[which] for values in atoms)) for which in (~is_b, is_b)]
    a, b = (density_of_atoms(part, n, px, centre=False) for part in parts)
    mask_a, mask_b = (estimate_mask(part, px, **MASK) for part in (a, b))
    recording = Recording(snr=recipe.snr, b_factor=recipe.b_factor)
    poses_a = random_particles(recipe.count, recording, seed)
    rng = np.random.default_rng([seed, 7])
    vectors = rng.normal(0, np.radians(recipe.hinge_deg) / 3**0.5, (recipe.count, 3))
    poses_b = moved_about(poses_a, hinge, Rotation.from_rotvec(vectors).as_matrix())
    contrast = np.exp(rng.normal(0, recipe.contrast, recipe.count)).astype(np.float32)
    still = Recording(snr=None, b_factor=recipe.b_factor)
    of_a, of_b = (Simulator(v, px, p, still, seed) for v, p in ((a, poses_a), (b, poses_b)))
    whole = Simulator(a + b, px, poses_a, recording, seed)
    scale = whole.scale
    made = HingeSet(folder, a, b, mask_a, mask_b, poses_a, poses_b, scale, contrast)
    if (folder / "done.zarr").exists():
        return made
    bench.fresh(folder.name)
    folder.mkdir()

    def images(noise: bool, only_b: bool = False):
        for first in range(0, recipe.count, BATCH):
            rows = np.arange(first, min(first + BATCH, recipe.count))
            signal = of_b.some_images(rows) + (0 if only_b else of_a.some_images(rows))
            signal = signal * np.float32(scale) * contrast[rows, None, None]
            if noise:
                signal += np.stack([np.random.default_rng([seed, 1, int(row)]).standard_normal((n, n)) for row in rows])
            yield signal

    where = {"box": n, "pixel_size": px, "dtype": "float32"}
    write_volume(folder / "mask_a.mrc", mask_a, px)
    write_volume(folder / "mask_b.mrc", mask_b, px)
    write_volume(folder / "whole.mrc", a + b, px)
    noisy = recipe.snr is not None
    write_particles(folder / "particles.zarr", poses_a, images(noisy), **where)
    write_particles(folder / "known.zarr", poses_b, images(noisy), **where)
    write_particles(folder / "clean.zarr", poses_a, images(False), **where)
    write_particles(folder / "clean_b.zarr", poses_b, images(False, only_b=True), **where)
    (folder / "done.zarr").mkdir()
    return made
