"""Where a map lies on another one, the truth for instance: turn, shift and hand, and how it is stretched."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize
from scipy.spatial.transform import Rotation

from cloudem.algorithms.resolution import low_pass
from cloudem.model.poses import sphere_directions, view_rotations

Float64 = NDArray[np.float64]

COARSE_A, FINE_A = 25.0, 12.0
"""Resolutions of search and of refinement."""

STEP_DEG, KEPT = 15.0, 12
"""Grid of the search, and how many of its turns are refined."""

FEW, MANY = 1500, 8000
"""Voxels inside the particle's sphere at which maps are compared, in the search and in the end."""

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
        """Return poses of the map as poses of the truth.

        A projection of the inverted density along a pose is that of the density, turned by half a turn in the plane:
        ``∫ V(-Aᵀ(u, z)) dz = P(-u)``.
        """
        found = matrices @ self.turn
        return np.diag([-1.0, -1.0, 1.0]) @ found if self.mirrored else found


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


def place(found: NDArray[Any], truth: NDArray[Any], pixel_size: float, radius: float) -> PlacedMap:
    """Find how the truth lies on a map: from where it is, and from a grid of all turns, in both hands.

    Parameters
    ----------
    found, truth
        (n, n, n).
    pixel_size, radius
        Å; the radius is that of the sphere that holds the particle.
    """
    coarse = _Points(found, truth, pixel_size, radius, COARSE_A, FEW)
    fine = _Points(found, truth, pixel_size, radius, FINE_A)
    still = np.zeros(3)
    turns = [(turn, mirrored) for turn in _turns() for mirrored in (False, True)]
    scores = [coarse.agreement(turn, still, mirrored=mirrored) for turn, mirrored in turns]
    kept = [(np.eye(3), False), *(turns[index] for index in np.argsort(scores)[::-1][:KEPT])]
    candidates = [(*_climbed(coarse, turn, still, mirrored), mirrored) for turn, mirrored in kept]
    best = max(candidates, key=lambda one: fine.agreement(one[0], one[1], mirrored=one[2]))
    turn, shift = _climbed(fine, best[0], best[1], best[2])
    agreement = fine.agreement(turn, shift, mirrored=best[2])
    return PlacedMap(turn, shift, best[2], agreement, moved_map(truth, turn, shift, mirrored=best[2]))


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


def moved_map(volume: NDArray[Any], turn: Float64, shift: Float64, *, mirrored: bool) -> NDArray[np.float32]:
    """Return a volume (inverted,) turned about its centre and shifted, interpolated on a grid of half the spacing.

    Cubic splines on the volume's own grid would damp and mix its finest shells.
    """
    box = len(volume)
    fine = finer(volume)
    grid = np.indices((box,) * 3)[::-1].reshape(3, -1).T - box // 2
    there = (grid - shift) @ turn * (-1 if mirrored else 1)
    at = (2 * there + box).T[::-1]  # the centre of the finer box is at 2 (n // 2) = n for even n
    values = ndimage.map_coordinates(fine, at, order=3, mode="constant")
    return values.reshape((box,) * 3).astype(np.float32)


def finer(volume: NDArray[Any]) -> Float64:
    """Return a volume of even side at half the spacing: what it holds below its Nyquist frequency in all directions.

    Once turned, the corners of its transform would lie beyond that frequency and come back as others.
    """
    box = len(volume)
    transform = fft.fftshift(fft.fftn(np.asarray(volume, np.float64)))
    k = np.arange(box) - box // 2
    transform[k[:, None, None] ** 2 + k[:, None] ** 2 + k**2 >= (box // 2) ** 2] = 0
    wide = np.zeros((2 * box,) * 3, np.complex128)
    inner = slice(box // 2, box // 2 + box)
    wide[inner, inner, inner] = transform
    return np.asarray(fft.ifftn(fft.ifftshift(wide)).real * 8)


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
