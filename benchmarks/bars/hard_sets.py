"""Sets of images that are hard to refine: few views, uneven contrast, mixtures, coloured noise, poses that are off.

The images are those of :class:`cloudem.algorithms.simulate.Simulator`; only what it is asked for differs.

    from bars.hard_sets import Recipe, make_set
    make_set(folder, volume, Recipe(count=2000, snr=0.03, views=Views(share=0.8, within_deg=15)), seed=0)

writes ``density.mrc`` (the truth), ``start.mrc`` (low-passed), ``particles.zarr`` (what is refined; without poses
unless the recipe keeps some; the truth is in its group ``truth``, what is drawn here in ``drawn``) and ``known.zarr``
(the molecule's own images with their true poses and half-sets, for ``cloudem reconstruct``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cloudem.algorithms.resolution import low_pass
from cloudem.algorithms.simulate import POSE_COLUMNS, Recording, Simulator, random_particles
from cloudem.io.formats.mrc import Volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.particle_store import write_particles
from cloudem.io.storage.groups import read_group, write_group
from cloudem.io.storage.tables import table_from_arrays, table_to_arrays
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix, matrix_to_euler, rotate, view_rotations

BATCH = 200


@dataclass(frozen=True)
class Views:
    """How directions are distributed: a share of them near an axis, the others uniform.

    Attributes
    ----------
    share
        Of the images, 0 to 1, that are seen from near the axis; 0 for uniform directions.
    within_deg
        Their largest angle from the axis, degrees; directions are uniform inside this cap.
    axis
        In the frame of the map, (x, y, z). Only one end of it is looked at.
    """

    share: float = 0.0
    within_deg: float = 15.0
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Recipe:
    """What a set of images is made of.

    Attributes
    ----------
    count
        Images in all.
    snr
        Variance of the signal over that of the noise, for images of the molecule at contrast 1; 0 for noise alone.
    views
        Distribution of directions.
    contrast
        Least and greatest factor on the signal of an image, uniform in its logarithm.
    foreign
        Share of images that show another molecule, on the same scale of density, from uniform directions.
    noise_ratio
        Of coloured noise, as in ``cloudem simulate --noise-ratio``; 0 for white.
    b_factor
        Of the signal's fall-off, Å², as in ``cloudem simulate --b-factor-A2``.
    off_deg, off_shift
        Standard deviations of the turn about each axis, degrees, and of the shift in x and y, Å, by which the poses in
        the table of images are off; None leaves them out, 0 keeps the true ones.
    start_resolution
        Of ``start.mrc``, Å.
    """

    count: int = 2000
    snr: float = 0.05
    views: Views = field(default_factory=Views)
    contrast: tuple[float, float] = (1.0, 1.0)
    foreign: float = 0.0
    noise_ratio: float = 0.0
    b_factor: float = 0.0
    off_deg: float | None = None
    off_shift: float = 0.0
    start_resolution: float = 40.0

    def recording(self) -> Recording:
        return Recording(snr=self.snr, noise_ratio=self.noise_ratio, b_factor=self.b_factor)


@dataclass(frozen=True)
class Drawn:
    """What was drawn for each image beside what its table says: factor on the signal, and whether it is foreign."""

    contrast: NDArray[np.float64]
    foreign: NDArray[np.bool_]


def draw(recipe: Recipe, seed: int) -> tuple[Particles, Drawn]:
    """Return the particles with their true poses, CTFs and half-sets, and what else was drawn for each.

    The particles are those of ``cloudem simulate`` with the same seed, unless directions are preferred.
    """
    truth = random_particles(recipe.count, recipe.recording(), seed)
    rng = np.random.default_rng([seed, 2])
    near = rng.random(recipe.count) < recipe.views.share
    angles = np.stack([truth[name] for name in ("rot", "tilt", "psi")])
    angles[:, near] = matrix_to_euler(near_axis(recipe.views, int(near.sum()), rng))
    truth = truth.with_columns(rot=angles[0], tilt=angles[1], psi=angles[2])
    contrast = np.exp(rng.uniform(*np.log(recipe.contrast), recipe.count))
    foreign = rng.random(recipe.count) < recipe.foreign
    return truth, Drawn(contrast, foreign)


def near_axis(views: Views, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return poses (count, 3, 3) that look along directions uniform in a cap about the axis, turned at random."""
    height = rng.uniform(np.cos(np.radians(views.within_deg)), 1.0, count)
    azimuth, spin = rng.uniform(0, 2 * np.pi, (2, count))
    across = np.sqrt(1 - height**2)
    directions = np.stack([across * np.cos(azimuth), across * np.sin(azimuth), height], axis=1)
    axis = np.array(views.axis) / np.linalg.norm(views.axis)
    onto, _ = Rotation.align_vectors(axis[None], np.array([[0.0, 0.0, 1.0]]))
    about = Rotation.from_euler("z", spin[:, None]).as_matrix()
    return np.asarray(about @ view_rotations(onto.apply(directions)))


def perturbed(truth: Particles, degrees: float, shift_A: float, seed: int) -> Particles:
    """Return particles whose poses are off: turned about each axis, and shifted in x and y, by normal deviates."""
    rng = np.random.default_rng([seed, 3])
    matrices = euler_to_matrix(truth["rot"], truth["tilt"], truth["psi"])
    rot, tilt, psi = matrix_to_euler(rotate(matrices, rng.normal(0, np.radians(degrees), (len(truth), 3))))
    x, y = (truth[name] + rng.normal(0, shift_A, len(truth)) for name in ("shift_x", "shift_y"))
    return truth.with_columns(rot=rot, tilt=tilt, psi=psi, shift_x=x, shift_y=y)


def make_set(folder: Path, volume: Volume, recipe: Recipe, seed: int, other: Volume | None = None) -> Path:
    """Write a set and return its folder; one of the same recipe that is there is kept, another one replaced.

    Parameters
    ----------
    folder
        Written beside it first, then renamed: it is there as a whole or not at all.
    volume
        The truth.
    recipe
        What the images are.
    seed
        Of particles and noise, as in ``cloudem simulate``.
    other
        Density of the foreign images, on the same grid and scale.
    """
    if is_made(folder, recipe):
        return folder
    truth, drawn = draw(recipe, seed)
    simulators = simulators_of(volume, other, truth, drawn, recipe, seed)
    return write_set(folder, volume, recipe, seed, truth, drawn, lambda rows: batches(simulators, drawn, rows))


def is_made(folder: Path, recipe: Recipe) -> bool:
    """Return whether a set is there and was made by this recipe."""
    if not folder.exists():
        return False
    _, attributes = read_group(folder / "particles.zarr", "drawn")
    return bool(attributes["recipe"] == json.loads(json.dumps(asdict(recipe))))  # tuples come back as lists


def write_set(
    folder: Path,
    volume: Volume,
    recipe: Recipe,
    seed: int,
    truth: Particles,
    drawn: Drawn,
    images: Callable[[NDArray[np.int64]], Iterable[NDArray[np.float32]]],
) -> Path:
    """Write a set whose images somebody else makes; return its folder.

    Parameters
    ----------
    folder, volume, recipe, seed
        As for :func:`make_set`.
    truth, drawn
        Of all images.
    images
        Gives those of some rows, in batches (b, n, n).
    """
    making = folder.with_name(folder.name + "-unfinished")
    for old in (making, folder):
        shutil.rmtree(old, ignore_errors=True)
    making.mkdir(parents=True)
    write_volume(making / "density.mrc", volume.data, volume.pixel_size)
    start = low_pass(volume.data, volume.pixel_size, recipe.start_resolution)
    write_volume(making / "start.mrc", start, volume.pixel_size)
    table = truth.without_columns((*POSE_COLUMNS, "half_set"))
    if recipe.off_deg is not None:
        table = perturbed(truth, recipe.off_deg, recipe.off_shift, seed)
    grid: dict[str, Any] = {"box": len(volume.data), "pixel_size": volume.pixel_size}
    store, everything, own = making / "particles.zarr", np.arange(recipe.count), np.flatnonzero(~drawn.foreign)
    write_particles(store, table, images(everything), **grid)
    write_group(store, "truth", *table_to_arrays(truth))
    write_group(store, "drawn", {"contrast": drawn.contrast, "foreign": drawn.foreign}, {"recipe": asdict(recipe)})
    write_particles(making / "known.zarr", truth.take(own), images(own), **grid)
    return making.rename(folder)


def simulators_of(
    volume: Volume, other: Volume | None, truth: Particles, drawn: Drawn, recipe: Recipe, seed: int
) -> list[Simulator]:
    """Return what projects the molecule and, if there is one, the other; both have one scale and the same noise."""
    if drawn.foreign.any() and other is None:
        raise ValueError("the recipe mixes in foreign images, but no other density is given")
    recording = recipe.recording()
    own = Simulator(volume.data, volume.pixel_size, truth, recording, seed)
    # the signal's scale is that at contrast 1; the factor comes after, and the table does not mention it
    scale, seen = own.scale, truth.with_columns(ctf_scale=drawn.contrast)
    found = []
    for density in (volume, other):
        if density is not None:
            one = Simulator(density.data, density.pixel_size, seen, recording, seed)
            one.scale = scale
            found.append(one)
    return found


def batches(simulators: list[Simulator], drawn: Drawn, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yield the images of some rows, each by the simulator of its molecule."""
    for first in range(0, len(rows), BATCH):
        some = rows[first : first + BATCH]
        images = simulators[0].some_images(some)
        foreign = np.flatnonzero(drawn.foreign[some])
        if foreign.size:
            images[foreign] = simulators[1].some_images(some[foreign])
        yield images


def drawn_of(folder: Path) -> Drawn:
    """Return what was drawn for the images of a set."""
    arrays, _ = read_group(folder / "particles.zarr", "drawn")
    return Drawn(arrays["contrast"], arrays["foreign"].astype(bool))


def truth_of(folder: Path) -> Particles:
    """Return the true poses of a set."""
    return table_from_arrays(Particles, *read_group(folder / "particles.zarr", "truth"))
