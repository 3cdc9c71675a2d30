"""Maps that a user gives, checked, and fitted to the particles' box and pixel size.

Maps on different grids are laid on one another by the centres of their boxes, voxel ``n // 2``. Origins follow: a map
that was resampled has the origin with which its centre stays where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.errors import InconsistentDataError, MissingInputError, ParameterError, StorageError
from cloudem.io.formats.mrc import EQUAL, NOWHERE, MrcHeader, Vector, Volume, read_volume, read_volume_header
from cloudem.io.storage.groups import has_group, holds_arrays, read_attributes, read_rows
from cloudem.io.storage.location import contents
from cloudem.jobs.progress import Progress
from cloudem.model.symmetry import operators

LEAST_BOX = 8
"""Voxels along a map's edge: with less there is nothing to filter, outline or align."""

SAME_PLACE = 0.1
"""Voxels by which maps that lie on one another may differ, by their headers."""

REFERENCE_OPTION = "--reference-pixel-size-A"


Held: TypeAlias = Literal["map", "mask"]
"""What to take of results that hold both."""


class Grid(NamedTuple):
    """Where a map's voxels are.

    Attributes
    ----------
    box
        Voxels along an edge.
    pixel_size
        Å.
    origin
        Position of the first voxel, Å along x, y, z.
    """

    box: int
    pixel_size: float
    origin: Vector = NOWHERE

    @property
    def centre(self) -> Vector:
        """Position of the voxel ``n // 2``, Å along x, y, z."""
        x, y, z = (v + self.pixel_size * (self.box // 2) for v in self.origin)
        return x, y, z

    def same_voxels(self, other: Grid) -> bool:
        """Return whether box and pixel size are the same."""
        return self.box == other.box and abs(self.pixel_size / other.pixel_size - 1) < EQUAL

    def apart(self, other: Grid) -> float:
        """Return how far the boxes' centres lie from one another, in voxels."""
        return max(abs(a - b) for a, b in zip(self.centre, other.centre, strict=True)) / self.pixel_size

    def origin_on(self, box: int, pixel_size: float) -> Vector:
        """Return the origin of another box about the same centre."""
        if self.same_voxels(Grid(box, pixel_size)):
            return self.origin
        x, y, z = (v - pixel_size * (box // 2) for v in self.centre)
        return x, y, z

    def __str__(self) -> str:
        """Return box and pixel size."""
        return f"{self.box} px at {self.pixel_size:.4g} Å"


def grid_of(header: MrcHeader) -> Grid:
    """Return the grid of a cubic map."""
    return Grid(header.shape[0], header.pixel_size, header.origin)


def check_map(path: str, pixel_size: float | None = None, option: str | None = None, held: Held = "map") -> Grid:
    """Check the header of a map and return its grid; only the beginning of the file is read.

    Parameters
    ----------
    path, pixel_size, option
        As `cloudem.io.formats.mrc.read_volume_header`; the path may be that of the results of a job, too.
    held
        What to take of these.

    Raises
    ------
    MissingInputError, FormatError
        As `cloudem.io.formats.mrc.read_volume_header`.
    InconsistentDataError
        As there; also a box of less than `LEAST_BOX`.
    """
    if has_group(path, "result"):
        return _of_result(path, pixel_size, held)[1]
    if contents(path):
        raise MissingInputError(f"{path} holds no {held}; give an MRC file, or finished results that hold one")
    grid = grid_of(read_volume_header(path, pixel_size, option))
    if grid.box < LEAST_BOX:
        raise InconsistentDataError(f"{path} has a box of {grid.box} voxels, at least {LEAST_BOX} are needed")
    return grid


def _of_result(url: str, pixel_size: float | None, held: Held) -> tuple[str, Grid]:
    """Return which array of a result is its map, before it was sharpened where there is that, or its mask."""
    for name in ("map_unfiltered", "map") if held == "map" else (held,):
        with suppress(MissingInputError):
            return name, result_grid(url, pixel_size, (name,))
    raise MissingInputError(f"{url} holds no {held}; give an MRC file, or finished results that hold one")


def read_map(path: str, pixel_size: float | None = None, option: str | None = None, held: Held = "map") -> Volume:
    """Read a map, checked: the way in for every map of a job.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        As `check_map` and `cloudem.io.formats.mrc.read_volume`.
    """
    grid = check_map(path, pixel_size, option, held)
    if has_group(path, "result"):
        return _whole(path, _of_result(path, pixel_size, held)[0], grid)
    return read_volume(path, pixel_size, option)


def result_map(url: str, name: str = "map") -> Volume:
    """Return one map of the results of a job, by the name of its array.

    Raises
    ------
    MissingInputError
        There is none.
    """
    if not holds_arrays(url, "result", name):
        raise MissingInputError(f"{url} holds no {name} yet; see cloudem status {url}")
    return _whole(url, name, result_grid(url, names=(name,)))


def _whole(url: str, name: str, grid: Grid) -> Volume:
    return Volume(read_rows(url, "result", (name,), 0, grid.box)[name], grid.pixel_size, grid.origin)


def result_grid(url: str, pixel_size: float | None = None, names: Sequence[str] = ("half1", "half2")) -> Grid:
    """Return the grid of maps in the results of a job; a pixel size in Å counts instead of theirs.

    Raises
    ------
    MissingInputError
        There are none.
    """
    attributes = read_attributes(url, "result") or {}
    try:
        planes = read_rows(url, "result", names, 0, 1)
        own = float(attributes["pixel_size_A"])
    except (StorageError, KeyError) as error:
        if names[0] in str(error) or isinstance(error, KeyError) or not attributes:
            raise MissingInputError(
                f"{url} contains no half-maps; give the finished results of refine3d or reconstruct"
            ) from error
        raise
    factor = pixel_size / own if pixel_size else 1.0
    x, y, z = (factor * float(v) for v in attributes.get("origin_A", NOWHERE))
    return Grid(planes[names[0]].shape[-1], pixel_size or own, (x, y, z))


def check_start_map(path: str, stated: float | None, diameter: float, box: int, pixel_size: float) -> Grid:
    """Check the header of a reference against particles and return its grid; no densities are read.

    Parameters
    ----------
    path
        MRC file or URL.
    stated
        Its pixel size in Å as the user states it; None for that of its header.
    diameter
        Of the particle, Å.
    box, pixel_size
        Of the particles, pixels and Å.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        As `check_map`; also a box smaller than the particle, or a pixel size of exactly 1 Å that the particles
        contradict.
    """
    grid, particles = check_map(path, stated, REFERENCE_OPTION), Grid(box, pixel_size)
    if grid.box * grid.pixel_size < diameter:
        raise InconsistentDataError(
            f"the reference {path} is {grid} = {grid.box * grid.pixel_size:.4g} Å, smaller than the particle of"
            f" --diameter-A {diameter:g}; state its pixel size with {REFERENCE_OPTION} if its header is wrong"
        )
    unset = stated is None and abs(grid.pixel_size - 1) < 1e-6  # written by programs that do not know it
    if unset and grid.box == box and not grid.same_voxels(particles):
        raise InconsistentDataError(
            f"the reference {path} is {grid} by its header and the particles are {particles}: the same box, and 1 Å is"
            f" what programs write that do not know; state its pixel size with {REFERENCE_OPTION}"
        )
    return grid


def read_start_map(
    path: str, stated: float | None, diameter: float, box: int, pixel_size: float, progress: Progress
) -> Volume:
    """Return a reference on the particles' grid, its centre where it was; say so if it had to be resampled.

    Parameters
    ----------
    path, stated, diameter, box, pixel_size
        As `check_start_map`.
    progress
        Is told.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        As `check_start_map` and `read_map`.
    ParameterError
        It has the same value everywhere.
    """
    grid = check_start_map(path, stated, diameter, box, pixel_size)
    volume = read_map(path, stated, REFERENCE_OPTION)
    if volume.data.min() == volume.data.max():
        value = volume.data.flat[0]
        raise ParameterError(f"the reference has the value {value:g} everywhere; give a map with density in it")
    return Volume(fitted(volume, "reference", box, pixel_size, progress), pixel_size, grid.origin_on(box, pixel_size))


def fitted(
    volume: Volume, what: str, box: int, pixel_size: float, progress: Progress, whose: str = "particles"
) -> NDArray[np.float32]:
    """Return a map on the particles' grid, (n, n, n) float32; say so if it had to be resampled.

    Linear interpolation about the box centre: good for a reference, which is low-passed afterwards, and for a mask.
    """
    data = np.asarray(volume.data, np.float32)
    size = data.shape[0]
    own, wanted = Grid(size, volume.pixel_size), Grid(box, pixel_size)
    if own.same_voxels(wanted):
        return data
    progress.warning(f"the {what} is {own} and the {whose} are {wanted}: resampled")
    step = pixel_size / volume.pixel_size
    if step > 1:  # average over the coarser pixel first, so that nothing folds back
        data = ndimage.gaussian_filter(data, 0.4 * step)
    offset = size // 2 - step * (box // 2)
    moved = ndimage.affine_transform(data, np.full(3, step), offset=offset, output_shape=(box,) * 3, order=1)
    return np.asarray(moved, np.float32)


def read_mask(
    path: str,
    box: int,
    pixel_size: float,
    progress: Progress,
    *,
    origin: Vector | None = None,
    whose: str = "particles",
    stated: float | None = None,
) -> Volume:
    """Return a mask on a grid, values in 0..1; say so if it had to be resampled, or lies elsewhere by its header.

    Parameters
    ----------
    path
        MRC file or URL.
    box, pixel_size
        Of the grid.
    progress
        Is told.
    origin
        Of the maps that the mask is for; None where they have none, so that the mask's own counts.
    whose
        What lies on that grid, for messages.
    stated
        Pixel size of the mask in Å, instead of that of its header.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        As `read_map`; also values outside 0..1: it is a map.
    ParameterError
        Nothing of it lies on the grid.
    """
    volume = read_map(path, stated, held="mask")
    low, high = volume.data.min(), volume.data.max()
    if low < -1e-3 or high > 1 + 1e-3:
        raise InconsistentDataError(
            f"the mask {path} has values from {low:.3g} to {high:.3g}, a mask from 0 to 1; make one with cloudem mask"
        )
    own = Grid(len(volume.data), volume.pixel_size, volume.origin)
    data = fitted(volume, "mask", box, pixel_size, progress, whose).clip(0, 1)
    if data.max() <= 0:
        raise ParameterError(f"nothing of the mask {path} lies inside {box} px at {pixel_size:.4g} Å; give another")
    if origin is None:
        return Volume(data, pixel_size, own.origin_on(box, pixel_size))
    # one without origin says nothing of where it lies: many programs drop it
    if own.origin != NOWHERE and own.apart(Grid(box, pixel_size, origin)) > SAME_PLACE:
        x, y, z = (a - b for a, b in zip(own.centre, Grid(box, pixel_size, origin).centre, strict=True))
        progress.warning(
            f"by its header the mask {path} lies {x:.4g}, {y:.4g}, {z:.4g} Å away from the {whose}; it is laid on them"
            " by the centres of the boxes"
        )
    return Volume(data, pixel_size, origin)


AUTO = "auto"
"""In place of a point group: the one that a reference states."""


def stated_symmetry(symmetry: str, reference: str) -> str:
    """Return a point group, or the one that the results of a reference state where ``auto`` is asked for.

    Raises
    ------
    ParameterError
        It is none, or the reference states none.
    """
    if symmetry.strip().lower() != AUTO:
        operators(symmetry)
        return symmetry
    stated = (read_attributes(reference, "result") or {}).get("symmetry") if contents(reference) else None
    if not stated:
        raise ParameterError(
            f"--symmetry is auto, but {reference} states no point group; name the group with --symmetry, or give "
            "results that state it, of refine3d or find_symmetry"
        )
    operators(str(stated))
    return str(stated)


def soft_edge(box: int, radius: float) -> float:
    """Return a width in pixels for the edge of a sphere of ``radius``: 5, or what the box leaves."""
    return float(np.clip(box / 2 - radius - 1, 1.0, 5.0))
