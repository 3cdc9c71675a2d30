"""Where a map lies on another one, the truth for instance: turn, shift and hand, and how it is stretched."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from cloudem.algorithms.mask import particle_sphere
from cloudem.algorithms.resolution import low_pass
from cloudem.algorithms.spectra import low_frequencies, resampled
from cloudem.kernels.pruned import frequencies
from cloudem.kernels.slices import fast_even
from cloudem.model.poses import mirrored_poses, sphere_directions, view_rotations

Float64 = NDArray[np.float64]

COARSE_A, FINE_A = 25.0, 12.0
"""Resolutions of search and of refinement."""

STEP_DEG, KEPT = 15.0, 12
"""Grid of the search, and how many of its turns are refined."""

FEW, MANY = 1500, 8000
"""Voxels inside the particle's sphere at which maps are compared, in the search and in the end."""

FINEST_GRID = 128
"""Voxels across the particle of the grid on which maps of different boxes are compared, at most."""

LENGTHS, ROUNDS = (0.7, 1.4), 4
"""Factors of a stretch that are looked at, and how often it is fitted in turn with turn and shift."""


class PlacedMap(NamedTuple):
    """How the truth is moved onto a map: what was at x is at ``turn @ (±x) + shift``.

    Attributes
    ----------
    turn, shift
        (3, 3), and (3,) in voxels, x, y, z.
    mirrored
        Whether the truth was inverted first: the map has the other hand.
    agreement
        Correlation of the map with the moved truth inside the sphere, both at `FINE_A`.
    volume
        The truth once moved, (n, n, n).
    """

    turn: Float64
    shift: Float64
    mirrored: bool
    agreement: float
    volume: NDArray[np.float32]

    def poses(self, matrices: Float64) -> Float64:
        """Return poses of the map as poses of the truth."""
        found = matrices @ self.turn
        return mirrored_poses(found) if self.mirrored else found


class Superposition(NamedTuple):
    """How a map is moved onto another one: what was at x is at ``turn @ (±x) + shift``, from the centres of the boxes.

    Attributes
    ----------
    turn, shift
        (3, 3), and (3,) in Å, x, y, z; a centre is voxel n // 2.
    mirrored
        Whether the map is inverted first.
    agreement
        Correlation inside the particle's sphere, both at `FINE_A`.
    radius
        Of that sphere, Å.
    """

    turn: Float64
    shift: Float64
    mirrored: bool
    agreement: float
    radius: float

    def moved(self, volume: NDArray[Any], pixel_size: float, box: int, step: float) -> NDArray[np.float32]:
        """Return the map once moved on a grid of ``box`` voxels of ``step`` Å; its own are of ``pixel_size`` Å."""
        if step > pixel_size:  # what the coarser grid cannot hold would come back as something else
            volume = low_pass(np.asarray(volume, np.float32), pixel_size, 2 * step)
        return moved_map(
            volume, self.turn, self.shift / pixel_size, mirrored=self.mirrored, box=box, step=step / pixel_size
        )


class _Points:
    """A map and the truth at points inside a sphere, for one resolution."""

    def __init__(
        self, found: NDArray[Any], truth: NDArray[Any], pixel_size: float, radius: float, at: float, count: int = MANY
    ) -> None:
        box = len(found)
        self._truth = low_pass(np.asarray(truth, np.float32), pixel_size, at)
        grid = np.stack(np.meshgrid(*[np.arange(box) - box // 2] * 3, indexing="ij")[::-1], axis=-1).reshape(-1, 3)
        inside = np.flatnonzero(np.sum(grid**2, axis=1) <= (radius / pixel_size) ** 2)
        chosen = inside[np.linspace(0, len(inside) - 1, min(count, len(inside))).astype(np.int64)]
        self._points = grid[chosen].astype(np.float64)
        own = low_pass(np.asarray(found, np.float32), pixel_size, at).ravel()[chosen].astype(np.float64)
        self._own = own - own.mean()

    def agreement(self, turn: Float64, shift: Float64, *, mirrored: bool, stretch: Float64 | None = None) -> float:
        """Return the correlation with the truth once moved; stretched first by a matrix (3, 3), if one is given."""
        there = (self._points - shift) @ turn  # the inverse of the turn, for rows
        if stretch is not None:
            there = there @ np.linalg.inv(stretch).T
        centre = len(self._truth) // 2
        at = (centre - there if mirrored else centre + there).T[::-1]
        values = ndimage.map_coordinates(self._truth, at, order=1, mode="constant").astype(np.float64)
        values -= values.mean()
        return float(values @ self._own / np.sqrt((values @ values) * (self._own @ self._own) + 1e-300))


def place(
    found: NDArray[Any],
    truth: NDArray[Any],
    pixel_size: float,
    radius: float,
    hands: tuple[bool, ...] = (False, True),
) -> PlacedMap:
    """Find how the truth lies on a map: from where it is, and from a grid of all turns, in both hands.

    Parameters
    ----------
    found, truth
        (n, n, n).
    pixel_size, radius
        Å; the radius is that of the sphere that holds the particle.
    hands
        Whether the truth is inverted, for each hand that is tried.
    """
    coarse = _Points(found, truth, pixel_size, radius, COARSE_A, FEW)
    fine = _Points(found, truth, pixel_size, radius, FINE_A)
    still = np.zeros(3)
    turns = [(turn, mirrored) for turn in _turns() for mirrored in hands]
    scores = [coarse.agreement(turn, still, mirrored=mirrored) for turn, mirrored in turns]
    kept = [(np.eye(3), False), *(turns[index] for index in np.argsort(scores)[::-1][:KEPT])]
    candidates = [(*_climbed(coarse, turn, still, mirrored), mirrored) for turn, mirrored in kept]
    best = max(candidates, key=lambda one: fine.agreement(one[0], one[1], mirrored=one[2]))
    turn, shift = _climbed(fine, best[0], best[1], best[2])
    agreement = fine.agreement(turn, shift, mirrored=best[2])
    return PlacedMap(turn, shift, best[2], agreement, moved_map(truth, turn, shift, mirrored=best[2]))


def superpose(
    target: tuple[NDArray[Any], float],
    other: tuple[NDArray[Any], float],
    radius: float = 0.0,
    *,
    either_hand: bool = False,
) -> Superposition:
    """Find how a map has to be moved onto another one, whatever their boxes and pixel sizes are.

    Both are laid with the particle's centre in the middle of one grid first, so that it does not matter where in its
    box a particle is; the last climb goes to three voxels of that grid.

    Parameters
    ----------
    target, other
        Maps (n, n, n) of even side, protein positive, and their pixel sizes in Å; the other one is moved.
    radius
        Of the sphere that holds the particle, Å; 0: by the outline of the target.
    either_hand
        Whether the other map's mirror image is tried, too.
    """
    spheres = [particle_sphere(np.asarray(data, np.float32), step) for data, step in (target, other)]
    centres = [centre for centre, _ in spheres]
    radius = radius or spheres[0][1]
    grid = max(target[1], 2 * radius / FINEST_GRID)
    box = fast_even(int(np.ceil(2.5 * radius / grid)))
    centred = [_centred(*each, centre, box, grid) for each, centre in zip((target, other), centres, strict=True)]
    placed = place(centred[0], centred[1], grid, radius, (False, True) if either_hand else (False,))
    points = _Points(centred[0], centred[1], grid, radius, 3 * grid)
    turn, shift = _climbed(points, placed.turn, placed.shift, placed.mirrored)
    sign = -1.0 if placed.mirrored else 1.0
    whole = grid * shift + centres[0] - sign * turn @ centres[1]
    return Superposition(turn, whole, placed.mirrored, placed.agreement, radius)


def _centred(volume: NDArray[Any], pixel_size: float, centre: Float64, box: int, grid: float) -> NDArray[np.float32]:
    """Return a map with a point, Å from its middle, in the middle of another grid."""
    size = min(fast_even(int(np.ceil(len(volume) * pixel_size / grid))), len(volume))
    coarse, step = map_on(volume, size), len(volume) * pixel_size / size
    return moved_map(coarse, np.eye(3), -centre / step, mirrored=False, box=box, step=grid / step)


def _turns() -> list[Float64]:
    """Return turns about 15° apart."""
    directions = sphere_directions(np.radians(STEP_DEG))
    views = view_rotations(np.concatenate([directions, -directions]))
    spins = Rotation.from_euler("z", np.arange(0, 360, STEP_DEG)[:, None], degrees=True).as_matrix()
    return [np.asarray(spin @ view) for view in views for spin in spins]


def _climbed(
    points: _Points, turn: Float64, shift: Float64, mirrored: bool, stretch: Float64 | None = None
) -> tuple[Float64, Float64]:
    """Climb to the nearest best turn and shift."""

    def at(six: Float64) -> tuple[Float64, Float64]:
        return np.asarray(Rotation.from_rotvec(six[:3]).as_matrix() @ turn), shift + 10 * six[3:]

    def loss(six: Float64) -> float:
        return -points.agreement(*at(six), mirrored=mirrored, stretch=stretch)

    simplex = np.vstack([np.zeros(6), np.diag([0.15, 0.15, 0.15, 0.1, 0.1, 0.1])])
    options: Any = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-5, "maxfev": 500}
    return at(np.asarray(optimize.minimize(loss, np.zeros(6), method="Nelder-Mead", options=options).x))


def moved_map(
    volume: NDArray[Any], turn: Float64, shift: Float64, *, mirrored: bool, box: int | None = None, step: float = 1.0
) -> NDArray[np.float32]:
    """Return a volume (inverted,) turned about its centre and shifted, interpolated on a grid of half the spacing.

    Cubic splines on the volume's own grid would damp and mix its finest shells.

    Parameters
    ----------
    volume
        (n, n, n), n even.
    turn, shift
        As in `PlacedMap`; the shift in voxels of the volume.
    mirrored
        Whether it is inverted first.
    box, step
        Edge of the result, in its own voxels, and how long these are, in voxels of the volume; by default the volume's
        own. Of a coarser grid the volume must not hold more than that grid can.
    """
    box, own = box or len(volume), len(volume)
    fine = ndimage.spline_filter(finer(volume), order=3, output=np.float32)
    moved, line = np.empty((box,) * 3, np.float32), step * (np.arange(box) - box // 2)
    y, x = np.meshgrid(line, line, indexing="ij")
    back = turn * (-1 if mirrored else 1)
    for number, z in enumerate(line):  # plane by plane: coordinates of all voxels would take twelve times the map
        there = (np.stack([x, y, np.full_like(x, z)], axis=-1) - shift) @ back
        at = np.moveaxis(2 * there + own, -1, 0)[::-1]  # the centre of the finer box is at 2 (n // 2) = n for even n
        ndimage.map_coordinates(fine, at, output=moved[number], order=3, mode="constant", prefilter=False)
    return moved


def symmetrised(volume: NDArray[Any], turn: Float64, shift: Float64, group: Float64) -> NDArray[np.float32]:
    """Return the mean of a volume's images under a point group (g, 3, 3), once turned and shifted onto its axes."""
    total = np.zeros(volume.shape, np.float32)
    for operator in group:
        total += moved_map(volume, operator @ turn, operator @ shift, mirrored=False)
    return total / np.float32(len(group))


def inverted(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a volume (n, n, n) inverted through voxel n // 2: the molecule's mirror image.

    Of a box of even side, the first plane along each axis has no mate but itself.
    """
    flipped = volume[::-1, ::-1, ::-1]
    return np.ascontiguousarray(np.roll(flipped, 1, (0, 1, 2)) if len(volume) % 2 == 0 else flipped)


def map_on(volume: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Return a volume on another even number of voxels along each edge of the same length, the first where it was."""
    data = np.asarray(volume, np.float32)
    if size == len(data):
        return data
    return resampled(low_frequencies(data, min(size, len(data)) // 2 - 1), len(data), size)


def finer(volume: NDArray[Any]) -> NDArray[np.float32]:
    """Return a volume of even side at half the spacing: what it holds below its Nyquist frequency in all directions.

    Once turned, the corners of its transform would lie beyond that frequency and come back as others.
    """
    box = len(volume)
    spectrum = low_frequencies(np.asarray(volume, np.float32), box // 2 - 1)
    squared = frequencies(len(spectrum)) ** 2
    outside = squared[:, None, None] + squared[:, None] + np.arange(spectrum.shape[2]) ** 2 >= (box // 2) ** 2
    spectrum[outside] = 0
    return resampled(spectrum, box, 2 * box)


def stretched(found: NDArray[Any], placed: PlacedMap, truth: NDArray[Any], pixel_size: float, radius: float,
              axis: tuple[float, float, float]) -> float:  # fmt: skip
    """Return by which factor the map is longer along an axis of the truth than the truth is.

    The factor, turn and shift with which the truth, once stretched along the axis, agrees best at `FINE_A`, by turns.
    """
    points = _Points(found, truth, pixel_size, radius, FINE_A)
    along = np.outer(axis, axis) / np.dot(axis, axis)
    turn, shift, factor = placed.turn, placed.shift, 1.0
    for _ in range(ROUNDS):

        def loss(tried: float, turn: Float64 = turn, shift: Float64 = shift) -> float:
            stretch = np.eye(3) + (tried - 1) * along
            return -points.agreement(turn, shift, mirrored=placed.mirrored, stretch=stretch)

        factor = float(optimize.minimize_scalar(loss, bounds=LENGTHS, method="bounded").x)
        turn, shift = _climbed(points, turn, shift, placed.mirrored, np.eye(3) + (factor - 1) * along)
    return factor
