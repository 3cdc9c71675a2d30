"""What polishing works on: particles with poses, movies that their micrographs were made of, and half-maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.extraction import cut_around
from cloudem.algorithms.mask import estimate_mask, soft_sphere
from cloudem.algorithms.particle_frames import HalfMap, Molecules
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.algorithms.resolution import masked_fsc
from cloudem.errors import FormatError, InconsistentDataError, MissingColumnError, ParameterError
from cloudem.io.formats.mrc import Volume
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.movies.store import read_movies
from cloudem.io.storage.groups import holds_arrays, read_attributes, read_group
from cloudem.jobs.coordinates import coordinates_of, require_coordinates, sizes_of_pixels
from cloudem.jobs.dataset import Dataset, open_dataset, require_finite
from cloudem.jobs.extract_tables import SAME, particles_in
from cloudem.jobs.maps import read_mask, soft_edge
from cloudem.jobs.polish.tasks import MovieParticles
from cloudem.jobs.postprocess import read_halves
from cloudem.kernels.slices import padded_box
from cloudem.model.micrographs import Micrographs
from cloudem.model.movies import Movies
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix

if TYPE_CHECKING:
    from cloudem.jobs.progress import Progress

Float64 = NDArray[np.float64]

POSES = ("rot", "tilt", "psi")


class CorrectedMovies(NamedTuple):
    """What ``correct-motion`` left.

    Attributes
    ----------
    table
        Of micrographs.
    found
        Arrays of its result.
    parameters
        It was run with.
    movies
        Table of the movies.
    """

    table: Micrographs
    found: dict[str, NDArray[Any]]
    parameters: dict[str, Any]
    movies: Movies


def corrected_movies(motion: str, movies: str | None) -> CorrectedMovies:
    """Read the results of ``correct-motion``, and the table of the movies that they are of.

    Raises
    ------
    CloudemError
        They are none, or are not finished; the movies' table is not where it was, or is another one.
    """
    record = read_attributes(motion, "") or {}
    if record.get("job") != "correct_motion":
        made = f"the results of {record['job']}" if record.get("job") else "no results"
        raise FormatError(f"{motion} holds {made}, and the motion in movies is needed; give those of correct-motion")
    table = read_micrograph_table(motion)
    found = read_group(motion, "result")[0]
    parameters = dict(record.get("parameters") or {})
    place = movies or str(parameters.get("movies", ""))
    read = read_movies(place)
    row_of = {name: row for row, name in enumerate(read["micrograph"].tolist())}
    absent = [name for name in table["micrograph"].tolist() if name not in row_of]
    if absent:
        raise InconsistentDataError(
            f"{place} does not hold the movie of {absent[0]}, which {motion} corrected; name the right table with"
            " --movies"
        )
    order = np.array([row_of[name] for name in table["micrograph"].tolist()], np.int64)
    return CorrectedMovies(table, found, parameters, read.take(order))


class PolishedParticles(NamedTuple):
    """Particles, each with its movie.

    Attributes
    ----------
    dataset
        All of the input.
    order
        Numbers there of the particles in movies that are given, in the order of the movies, ``(n,)``.
    rows
        Row of the movie of each, ascending.
    places
        Origins of their images, pixels of the micrograph, ``(n, 2)``.
    corrected
        The movies.
    """

    dataset: Dataset
    order: NDArray[np.int64]
    rows: NDArray[np.int64]
    places: Float64
    corrected: CorrectedMovies

    @property
    def table(self) -> Particles:
        """Of these particles."""
        return self.dataset.particles.take(self.order)

    def entries(self) -> list[MovieParticles]:
        """Return each movie that has particles."""
        table, corrected = self.table, self.corrected
        counts = corrected.found["each_count"].astype(np.int64)
        ends = np.cumsum(counts)
        fields = corrected.found["coefficients"].reshape(-1, 2, 6, 3)
        turned = euler_to_matrix(*(table[name] for name in POSES))
        shifts = np.stack([table.get(name, 0.0) for name in ("shift_x", "shift_y")], axis=1).astype(np.float64)
        group, aberrations = self.dataset.optics_group[self.order], self.dataset.aberrations
        axes = aberrations.axes(turned, group)
        terms, scale = self.dataset.terms[self.order], self.dataset.ctf_scale[self.order]
        found: list[MovieParticles] = []
        for row in np.unique(self.rows).tolist():
            mine = np.flatnonzero(self.rows == row)
            frames = slice(ends[row] - counts[row], ends[row])
            track = np.column_stack([corrected.found["each_x"][frames], corrected.found["each_y"][frames]])
            molecules = Molecules(
                table["half_set"][mine].astype(np.int8),
                axes[mine],
                shifts[mine],
                terms[mine],
                scale[mine],
                None if aberrations.odd is None else aberrations.odd[group[mine]],
            )
            problem = str(corrected.table["problem"][row])
            if not problem and counts[row] < 2:
                problem = "has a single frame, which cannot move"
            found.append(MovieParticles(
                len(found), str(corrected.table["micrograph"][row]), corrected.movies.take(np.array([row])), problem,
                int(corrected.table["width"][row]), corrected.found["each_frame"][frames].astype(np.int64),
                track.astype(np.float64), fields[row].astype(np.float64), self.places[mine], molecules,
            ))  # fmt: skip
        return found


def particles_to_polish(
    particles: str, motion: str, movies: str | None, warn: Callable[[str], None]
) -> PolishedParticles:
    """Read what is to be polished.

    Raises
    ------
    CloudemError
        Particles have no poses, half-sets or coordinates, or lie in no micrograph of these movies.
    """
    corrected = corrected_movies(motion, movies)
    dataset = open_dataset(particles)
    table = dataset.particles
    require_finite(table, *POSES, *(name for name in ("shift_x", "shift_y") if name in table))
    require_coordinates(table)
    if "half_set" not in table:
        raise MissingColumnError(
            f"the particles of {particles} have no half-sets, so that none has a reference that it had no part in"
            " sharing; give the results of refine3d or reconstruct"
        )
    kept = particles_in(table["micrograph"], corrected.table, motion, warn)
    halves = table["half_set"][kept.order]
    of_none = ~np.isin(halves, (1, 2))
    if of_none.any():
        warn(f"{int(of_none.sum()):,} particles have no half-set; they are left out")
    order, rows = kept.order[~of_none], kept.rows[~of_none]
    for half in (1, 2):
        if not (table["half_set"][order] == half).any():
            raise ParameterError(f"no particle of {particles} in these movies is in half-set {half}; give more of them")
    pixel = np.asarray(corrected.table["pixel_size"])[rows]
    some = table.take(order)
    try:
        said = sizes_of_pixels(some, warn)
        scale = np.where(np.abs(said / pixel - 1) < SAME, 1.0, said / pixel)
    except InconsistentDataError:
        scale = np.ones(len(order))
    places = np.asarray(cut_around(coordinates_of(some)) * scale[:, None], np.float64)
    return PolishedParticles(dataset, order, rows, places, corrected)


class HalfReferences(NamedTuple):
    """Two masked half-maps and what they have in common, on one grid."""

    halves: tuple[NDArray[np.float32], NDArray[np.float32]]
    fsc: Float64
    pixel_size: float

    @property
    def length(self) -> float:
        """Å, of the box."""
        return len(self.halves[0]) * self.pixel_size


def half_references(halves: str, mask: str | None, progress: Progress, seed: int) -> HalfReferences:
    """Read half-maps, and mask each: with the mask given, or with the outline of that half-map alone.

    The correlation of the two, corrected for the mask, is that of the mask given, of the results, or of the sphere.

    Raises
    ------
    CloudemError
        As `cloudem.jobs.postprocess.read_halves` and `cloudem.jobs.maps.read_mask`.
    """
    one, two = read_halves(halves)
    box, pixel_size = len(one.data), one.pixel_size
    if box % 2:
        raise InconsistentDataError(f"the half-maps of {halves} have a box of {box} voxels, and an even one is needed")
    if mask is not None:
        shared: NDArray[np.float32] = read_mask(mask, box, pixel_size, progress, origin=one.origin).data
        own = [shared, shared]
    else:
        own = [_outline(volume) for volume in (one, two)]
        held = holds_arrays(halves, "result", "mask")
        shared = read_group(halves, "result")[0]["mask"] if held else _sphere(box)
    curves = masked_fsc(one.data, two.data, shared, seed)
    masked = one.data * own[0], two.data * own[1]
    return HalfReferences((masked[0].astype(np.float32), masked[1].astype(np.float32)), curves.corrected, pixel_size)


def _sphere(box: int) -> NDArray[np.float32]:
    return soft_sphere(box, 0.45 * box, soft_edge(box, 0.45 * box))


def _outline(volume: Volume) -> NDArray[np.float32]:
    try:
        return estimate_mask(volume.data, volume.pixel_size)
    except ParameterError:
        return _sphere(len(volume.data))


def half_map_volumes(references: HalfReferences, last: int) -> tuple[HalfMap, HalfMap]:
    """Return both half-maps as slices are taken from them, up to a shell; what workers are given."""
    box = len(references.halves[0])
    one, two = (
        HalfMap(reference_volume(half, last), padded_box(box) / box, references.length) for half in references.halves
    )
    return one, two
