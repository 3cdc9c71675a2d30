"""Whether a map has the axes of its point group where the group has them, and where else they are.

A map agrees with itself turned about each axis of its group, and with nothing else. An n-fold axis is looked for in all
directions first, each order by itself; the directions of all axes of the group are then laid on these, turned in all
ways; the best are refined. The map is compared within a sphere, on a grid of `GRID` points across it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

Float64 = NDArray[np.float64]

GRID = 24
"""Points across the particle on which maps are compared."""

DIRECTIONS = 2000
"""In which axes are looked for: 4° apart."""

TURNS = 20000
"""In which the axes of the group are laid on those of the map: 7° apart."""

REFINED = 4
"""Turns that are refined, the best ones."""

SCANNED = 6
"""Every so many-th point is used to look for axes, and all of them for what is reported."""

SURE = 0.99
"""A map that correlates so with its symmetry mates has its axes where the group has them."""

AGREES = 0.8
"""A map whose correlation with its symmetry mates is less has not this symmetry."""

BETTER = 0.5
"""Other axes are taken where they leave less than this share of the disagreement."""


class Axes(NamedTuple):
    """Where the axes of a map are.

    Attributes
    ----------
    turn
        (3, 3), that lays the map's axes on the group's; the identity where they lie there.
    before, after
        Mean correlation of the map with its symmetry mates, as it is and turned so.
    """

    turn: Float64
    before: float
    after: float


class _Points:
    """A map within a sphere, at points, and what correlates it with itself turned."""

    def __init__(self, volume: NDArray[Any], radius: float) -> None:
        step = max(2 * radius / GRID, 1.0)
        smooth = np.asarray(volume, np.float32)
        centre, every = volume.shape[0] // 2, max(int(step // 2), 1)  # of a large box a coarser grid is enough
        if step > 1:
            smooth = ndimage.gaussian_filter(smooth, 0.5 * step)[(slice(centre % every, None, every),) * 3]
        self._values = ndimage.spline_filter(smooth, order=3)
        step, radius = step / every, radius / every
        count = int(radius / step)
        line = step * np.arange(-count, count + 1)
        points = np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1).reshape(-1, 3)
        self._centre = centre // every
        inside = points[np.linalg.norm(points, axis=1) <= radius]  # x, y, z
        self._points = {every: inside[::every] for every in (1, SCANNED)}
        self._own = {every: self._at(some) for every, some in self._points.items()}

    def _at(self, points: Float64) -> Float64:
        places = points.T[::-1] + self._centre  # z, y, x
        found = ndimage.map_coordinates(self._values, places, order=3, prefilter=False, mode="nearest")
        return np.asarray(found - found.mean())

    def agreement(self, rotation: Float64, every: int = SCANNED) -> float:
        """Return the correlation of the map with the map turned by a rotation (3, 3)."""
        own, there = self._own[every], self._at(self._points[every] @ rotation.T)
        return float(there @ own / np.sqrt((there @ there) * (own @ own) + 1e-300))

    def symmetry(self, operators: Float64, turn: Float64, every: int = SCANNED) -> float:
        """Return the mean correlation of the map, once turned, with its mates."""
        return float(np.mean([self.agreement(turn.T @ operator @ turn, every) for operator in operators]))


def find_axes(volume: NDArray[Any], group: Float64, radius: float) -> Axes:
    """Look for the axes of a point group in a map.

    Parameters
    ----------
    volume
        (n, n, n); its centre, voxel n // 2, lies on all axes.
    group
        Operators (g, 3, 3), the identity first, at least two.
    radius
        Of the particle, voxels.

    Returns
    -------
    The turn is the identity if the map agrees with its mates as it is, or if other axes are not clearly better.
    """
    points, axes, identity = _Points(volume, radius), one_of_each_axis(group), np.eye(3)
    before = points.symmetry(axes, identity, every=1)
    if before >= SURE:
        return Axes(identity, before, before)
    found = [_refined(points, axes, turn) for turn in _turns(points, axes)]
    best = max(found, key=lambda turn: points.symmetry(axes, turn))
    after = points.symmetry(axes, best, every=1)
    if after < AGREES or 1 - after > BETTER * (1 - before):
        return Axes(identity, before, before)
    return Axes(smallest_turn(best, group), before, after)


def _refined(points: _Points, axes: Float64, turn: Float64) -> Float64:
    """Climb from a turn to the nearest best one."""

    def at(vector: Float64) -> Float64:
        return np.asarray(Rotation.from_rotvec(vector).as_matrix() @ turn)

    def disagreement(vector: Float64) -> float:
        return -points.symmetry(axes, at(vector))

    options: Any = {"initial_simplex": 0.08 * np.vstack([np.zeros(3), np.eye(3)]), "xatol": 2e-3, "fatol": 1e-4}
    found = optimize.minimize(disagreement, np.zeros(3), method="Nelder-Mead", options=options)
    return at(np.asarray(found.x))


def smallest_turn(turn: Float64, group: Float64) -> Float64:
    """Return of the turns that lead to the same axes the smallest: by operators, and about the axis if there is one."""
    flips = [np.eye(3)]
    about_z = np.allclose(group[:, 2, 2], 1)  # a cyclic group: nothing fixes the turn about z, nor which end is up
    if about_z:
        flips.append(np.diag([1.0, -1.0, -1.0]))
    candidates = [flip @ operator @ turn for flip in flips for operator in group]
    if about_z:
        angles = [np.arctan2(each[0, 1] - each[1, 0], each[0, 0] + each[1, 1]) for each in candidates]
        about = [Rotation.from_rotvec([0, 0, angle]).as_matrix() for angle in angles]
        candidates = [turn @ each for turn, each in zip(about, candidates, strict=True)]
    return np.asarray(max(candidates, key=np.trace))


def turned(volume: NDArray[Any], turn: Float64) -> NDArray[np.float32]:
    """Return a map (n, n, n) turned about its centre: what was at x is at ``turn @ x``."""
    inverse = turn.T[::-1, ::-1]  # of z, y, x
    centre = np.full(3, volume.shape[0] // 2)
    moved = ndimage.affine_transform(np.asarray(volume, np.float64), inverse, centre - inverse @ centre, order=3)
    return np.asarray(moved, np.float32)


def one_of_each_axis(group: Float64) -> Float64:
    """Return of the operators about each axis that with the smallest angle."""
    vectors = Rotation.from_matrix(group[1:]).as_rotvec()
    angle = np.linalg.norm(vectors, axis=1)
    order = np.argsort(angle, kind="stable")
    directions = vectors / angle[:, None]
    kept: list[np.intp] = []
    for i in order:
        if all(abs(directions[i] @ directions[j]) < 1 - 1e-6 for j in kept):
            kept.append(i)
    return np.asarray(group[1:][kept])


def _turns(points: _Points, axes: Float64) -> list[Float64]:
    """Return the most promising turns of the group onto the map."""
    vectors = Rotation.from_matrix(axes).as_rotvec()
    angle = np.linalg.norm(vectors, axis=1)
    number = np.arange(DIRECTIONS)  # of points on a spiral over half a sphere
    z, azimuth = 1 - (number + 0.5) / DIRECTIONS, np.pi * (1 + 5**0.5) * number
    flat = np.sqrt(1 - z**2)
    directions = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), z], axis=1)
    tree = cKDTree(np.concatenate([directions, -directions]))
    all_turns = Rotation.random(TURNS, random_state=0).as_matrix()
    score = np.zeros(TURNS)
    for size in np.unique(np.round(angle, 6)):
        about = Rotation.from_rotvec(size * directions).as_matrix()
        agreement = np.array([points.agreement(each) for each in about])
        for axis in np.flatnonzero(np.abs(angle - size) < 1e-5):
            # the axis that a turn lays on that of the group
            _, nearest = tree.query(all_turns.transpose(0, 2, 1) @ (vectors[axis] / angle[axis]))
            score += agreement[nearest % DIRECTIONS]
    return list(all_turns[np.argsort(score)[::-1][:REFINED]])
