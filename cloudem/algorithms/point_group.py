"""Which point group a map has, and where its axes are.

A map of a symmetric molecule agrees with itself turned about each axis to the detail that it holds; every other map
does so in its coarse shape alone, or by chance (`cloudem.algorithms.self_agreement`). Axes of each order are looked for
in all directions at `SCAN_WAVES` waves across the particle. The groups that these orders allow are laid on them, and
climb to the nearest best turn and centre, in the end with all the detail there is.

Two controls say what a search finds where there is nothing: the same search for turns of `CONTROLS_DEG`, which are no
symmetry, and turns by half a step about the axis that was found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from scipy.spatial.transform import Rotation

from cloudem.algorithms.axes import one_of_each_axis, smallest_turn
from cloudem.algorithms.self_agreement import Prepared, TurnedMap, prepared
from cloudem.errors import ParameterError
from cloudem.model.poses import cap_directions, random_rotations
from cloudem.model.symmetry import operators

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SCAN_WAVES, FINEST_WAVES = 8.0, 32.0
"""Waves across the particle up to which axes are looked for, and up to which they are judged at most."""

DIRECTIONS = 1500
"""In which axes are looked for, of one half of the sphere: 3.7° apart."""

PEAKS, APART_DEG = 3, 12.0
"""Axes of each order from which a group is tried, and how far apart they are at least."""

SPIN_STEP_DEG = 3.0
"""Step in which a group is turned about its main axis."""

CONTROLS_DEG = (114.0, 105.0)
"""Turns that are no symmetry: of the axes up to order 12, all but those of order 10 have none within 6° of both."""

FEW, MANY = 1200, 6000
"""Points inside the sphere at which maps are compared, in the search and in the end."""

MOST_CLIMBED = 6
"""Axes of a group that are compared while it climbs; all of them are judged."""

HOLDS, NEARLY = 0.7, 0.4
"""A group is the map's if each axis reaches this share of what is possible; between the two it is so nearly."""

FOLLOWED = 0.6
"""Axes that agree by less than this share of what the best of their order does are no main axes of a group."""

PROMISING = 0.25
"""Share at `SCAN_WAVES` below which an order of axes is not followed."""

ASPHERICAL = 0.02
"""Share of the power that is no sphere about the centre below which nothing is said of a group."""

RANDOM_TURNS = 200
"""Whose agreement says what a turn has by chance."""


class Tried(NamedTuple):
    """How far a map has a point group.

    Attributes
    ----------
    name
        Of the group.
    turn, centre
        (3, 3), that lays the map's axes on the group's; and where they meet, (3,), Å along x, y, z from the map's voxel
        n // 2.
    share, least
        Agreement with the mates as a share of what the map's noise allows: mean over the axes, and of the worst one.
    correlation
        The same as a correlation, weighted towards detail.
    deviations
        By how many standard deviations of random turns the mean lies above their mean.
    between
        Share of a turn by half the step about the main axis, which is none of the group.
    """

    name: str
    turn: Float64
    centre: Float64
    share: float
    least: float
    correlation: float
    deviations: float
    between: float

    @property
    def nearly(self) -> bool:
        """Whether the map has the group in part: clearly more than half-way between two mates."""
        return self.least >= NEARLY and self.between <= self.share / 2


class PointGroup(NamedTuple):
    """What is known of a map's symmetry.

    Attributes
    ----------
    name
        The group; C1 for none, "" where nothing can be said.
    tried
        All groups that were judged, the largest first.
    chance
        Share that the search for a turn which is no symmetry reached.
    prepared
        The map as it was compared.
    why
        What keeps the group from being known, as a clause; "" where nothing does.
    """

    name: str
    tried: Sequence[Tried]
    chance: float
    prepared: Prepared
    why: str = ""

    @property
    def bar(self) -> float:
        """Share that the worst axis of the map's group has to reach: half-way from chance to all, at least `HOLDS`."""
        return max(HOLDS, (1 + self.chance) / 2)

    @property
    def best(self) -> Tried | None:
        """What was found of the map's own group; None for C1 and where nothing is known."""
        return next((one for one in self.tried if one.name == self.name), None)

    @property
    def nearly(self) -> Tried | None:
        """Return the largest group that the map has in part, beyond its own, if any."""
        order = len(operators(self.name or "C1"))
        return next((one for one in self.tried if one.nearly and len(operators(one.name)) > order), None)


def find_point_group(
    halves: tuple[Float32, Float32] | tuple[Float32],
    pixel_size: float,
    centre: Float64,
    radius: float,
    *,
    finest: float = 0.0,
    most_fold: int = 12,
) -> PointGroup:
    """Find the point group of a map.

    Parameters
    ----------
    halves, pixel_size, centre, radius
        As `cloudem.algorithms.self_agreement.prepared`.
    finest
        Detail that the map is known to have at most, Å; 0: as it says itself.
    most_fold
        Highest order of axes that is tried.
    """
    finest = max(finest, 2 * radius / FINEST_WAVES, 2 * pixel_size)
    found = _Search(halves, pixel_size, centre, radius, finest, most_fold).answer()
    best = found.best or found.nearly
    if best is not None and np.linalg.norm(best.centre - found.prepared.middle) > 0.3 * found.prepared.resolution:
        # the mean at each distance was taken about another centre
        found = _Search(halves, pixel_size, best.centre, radius, finest, most_fold).answer()
    return found


def lay_on_axes(
    halves: tuple[Float32, Float32] | tuple[Float32],
    pixel_size: float,
    centre: Float64,
    radius: float,
    name: str,
    *,
    finest: float = 0.0,
) -> Tried:
    """Find how a map has to be turned and shifted onto the axes of a point group that is known.

    Parameters
    ----------
    halves, pixel_size, centre, radius, finest
        As `find_point_group`.
    name
        Of the group.

    Raises
    ------
    ParameterError
        No shell of the map holds more signal than noise.
    """
    finest = max(finest, 2 * radius / FINEST_WAVES, 2 * pixel_size)
    each = one_of_each_axis(operators(name))
    order = round(2 * np.pi / float(Rotation.from_matrix(each[0]).magnitude()))
    search = _Search(halves, pixel_size, centre, radius, finest, order)
    if search.prepared.last_shell == 0:
        raise ParameterError(
            "no shells of the map hold more signal than noise, so no axes can be found in it; give another map"
        )
    return search.tried(name, {order: search.axes_of(2 * np.pi / order)})


class _Search:
    """The search in one map about one centre."""

    def __init__(self, halves: Any, pixel_size: float, centre: Float64, radius: float, finest: float, most: int):
        coarse = max(2 * radius / SCAN_WAVES, finest)
        self.prepared = prepared(halves, pixel_size, centre, radius, finest)
        self.orders = range(2, most + 1)
        if self.prepared.last_shell == 0:
            return
        scan = prepared(halves, pixel_size, centre, radius, max(coarse, self.prepared.resolution))
        if scan.last_shell == 0:  # too few shells of the scan hold signal by themselves
            scan = self.prepared
        self.possible = max(self.prepared.possible(), 1e-6)
        self.possible_scan = max(self._own_possible(scan), 1e-6)
        fine, self.start = self.prepared, centre
        self.scan = TurnedMap(scan.whole, scan.whole, scan, FEW)
        self.climb = TurnedMap(fine.whole, fine.whole, fine, MANY // 2)
        self.judge = TurnedMap(fine.first, fine.second, fine, MANY)
        self.directions = cap_directions(DIRECTIONS, 0.0)
        rng = np.random.default_rng(0)
        self.random = self._judged(random_rotations(RANDOM_TURNS, rng), centre)

    @staticmethod
    def _own_possible(scan: Prepared) -> float:
        """Return what the mean of the halves could reach with itself turned."""
        shells, signal = np.arange(len(scan.signal)) ** 2, scan.signal
        whole = signal if scan.first is scan.second else 2 * signal / (1 + signal)
        return float((shells * whole**2).sum() / max(float((shells * whole).sum()), 1e-30))

    def _judged(self, rotations: Float64, centre: Float64) -> Float64:
        return self.judge.agreement(rotations, centre) / self.possible

    def answer(self) -> PointGroup:
        """Search, and decide."""
        if self.prepared.last_shell == 0:
            return PointGroup("", (), 0.0, self.prepared, "no shells hold more signal than noise")
        if self.prepared.aspherical < ASPHERICAL:
            said = f"only {self.prepared.aspherical:.1%} of its power is no sphere about the centre"
            return PointGroup("", (), 0.0, self.prepared, said)
        axes = {order: self.axes_of(2 * np.pi / order) for order in self.orders}
        chance = max(min(self._best_turn(angle) for angle in np.radians(CONTROLS_DEG)), 0.0)
        tried = [self.tried(f"C{order}", axes) for order, found in axes.items() if found[0][0] >= PROMISING]
        there = {int(one.name[1:]) for one in tried if one.share >= NEARLY}
        tried += [self.tried(name, axes) for name in _groups_of(there)]
        tried.sort(key=lambda one: (len(operators(one.name)), one.share), reverse=True)
        if chance >= HOLDS:
            said = f"it agrees with itself by {chance:.2f} of what is possible even for a turn that is no symmetry"
            return PointGroup("", tried, chance, self.prepared, said)
        found = PointGroup("C1", tried, chance, self.prepared)
        best = next((one for one in tried if one.least >= found.bar), None)
        if best is None:
            return found
        if best.between >= HOLDS:
            said = f"a turn by half a step of {best.name} agrees by {best.between:.2f}, too, as of a body of revolution"
            return PointGroup("", tried, chance, self.prepared, said)
        return found._replace(name=best.name)

    def axes_of(self, angle: float) -> list[tuple[float, Float64, Float64]]:
        """Return the best axes of a turn: share, direction (3,) and centre, Å."""
        about = Rotation.from_rotvec(angle * self.directions).as_matrix()
        agreement = self.scan.agreement(about, self.start)
        kept: list[int] = []
        for index in np.argsort(agreement)[::-1]:
            if all(abs(self.directions[index] @ self.directions[k]) < np.cos(np.radians(APART_DEG)) for k in kept):
                kept.append(int(index))
            if len(kept) == PEAKS:
                break
        found = []
        for index in kept:
            step = Rotation.from_rotvec([0, 0, angle]).as_matrix()[None]
            turn, centre, value = _climbed(self.scan, step, _onto_z(self.directions[index]), self.start, 120)
            found.append((value / self.possible_scan, turn[2], centre))
        return sorted(found, key=lambda one: one[0], reverse=True)

    def _best_turn(self, angle: float) -> float:
        """Return the share that the best turn by an angle reaches with all detail."""
        step, most = Rotation.from_rotvec([0, 0, angle]).as_matrix()[None], -1.0
        for _, axis, centre in self.axes_of(angle)[:2]:
            turn, there, _ = _climbed(self.climb, step, _onto_z(axis), centre)
            most = max(most, float(self._judged(turn.T @ step @ turn, there)[0]))
        return most

    def tried(self, name: str, axes: dict[int, Any]) -> Tried:
        """Lay a group on the map's axes, and judge it."""
        group = operators(name)
        each = one_of_each_axis(group)
        main = Rotation.from_matrix(each[0]).as_rotvec()
        order = round(2 * np.pi / float(np.linalg.norm(main)))
        some = each[np.unique(np.linspace(0, len(each) - 1, MOST_CLIMBED).astype(int))]
        starts = []
        for share, axis, centre in axes[order][: 1 if len(each) == 1 else PEAKS]:
            if share >= FOLLOWED * axes[order][0][0]:
                value, turn = self._spun(some, main / np.linalg.norm(main), axis, centre, order)
                starts.append((value, turn, centre))
        _, turn, centre = max(starts, key=lambda one: one[0])
        if len(each) > 1:
            turn, centre, _ = _climbed(self.scan, some, turn, centre)
        turn, centre, _ = _climbed(self.climb, some, turn, centre)
        if np.allclose(group[:, 2, 2], 1):  # nothing fixes the place along the one axis
            centre = self.start + turn.T @ np.diag([1.0, 1.0, 0.0]) @ turn @ (centre - self.start)
        shares = self._judged(turn.T @ each @ turn, centre)
        mean = float(shares.mean())
        deviations = (mean - float(self.random.mean())) / max(float(self.random.std()), 1e-9)
        turn = smallest_turn(turn, group)
        half = Rotation.from_rotvec(main / 2).as_matrix()
        between = float(self._judged((turn.T @ half @ turn)[None], centre)[0])
        return Tried(name, turn, centre, mean, float(shares.min()), mean * self.possible, deviations, between)

    def _spun(self, some: Float64, main: Float64, axis: Float64, centre: Float64, order: int) -> tuple[float, Float64]:
        """Return the best turn of a group whose main axis is laid on one of the map's, after its agreement."""
        onto = _onto_z(main).T @ _onto_z(axis)  # takes the map's axis to the group's
        if len(some) == 1:
            return 1.0, onto
        steps = np.arange(0, 2 * np.pi / order, np.radians(SPIN_STEP_DEG))
        spins = Rotation.from_rotvec(steps[:, None] * main).as_matrix()
        flip = _onto_z(main).T @ np.diag([1.0, -1.0, -1.0]) @ _onto_z(main)
        turns = np.concatenate([spins @ onto, spins @ flip @ onto])
        mates = np.einsum("tji,gjk,tkl->tgil", turns, some, turns)
        value = self.scan.agreement(mates.reshape(-1, 3, 3), centre).reshape(len(turns), -1).mean(axis=1)
        best = int(np.argmax(value))
        return float(value[best]), np.asarray(turns[best])


def turns_about_axes(one: Tried) -> Float64:
    """Return turns about some of the axes of a group, where the map has them, (k, 3, 3)."""
    each = one_of_each_axis(operators(one.name))
    some = each[np.unique(np.linspace(0, len(each) - 1, MOST_CLIMBED).astype(int))]
    return np.asarray(one.turn.T @ some @ one.turn)


def _groups_of(orders: set[int]) -> list[str]:
    """Return the groups of several axes that axes of these orders allow."""
    names = [f"D{order}" for order in sorted(orders)] if 2 in orders else []
    return names + [name for name, needs in (("T", {2, 3}), ("O", {2, 3, 4}), ("I", {2, 3, 5})) if needs <= orders]


def _onto_z(direction: Float64) -> Float64:
    """Return a turn that takes a direction to z."""
    other = np.eye(3)[np.argmin(np.abs(direction))]
    first = np.cross(other, direction)
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(direction, first), direction])


def _climbed(
    points: TurnedMap, axes: Float64, turn: Float64, centre: Float64, most: int = 250
) -> tuple[Float64, Float64, float]:
    """Climb to the nearest best turn and centre; return them and the agreement."""

    def at(six: Float64) -> tuple[Float64, Float64]:
        return np.asarray(Rotation.from_rotvec(six[:3]).as_matrix() @ turn), centre + 50 * six[3:]

    def loss(six: Float64) -> float:
        there, about = at(six)
        return -float(points.agreement(there.T @ axes @ there, about).mean())

    simplex = np.vstack([np.zeros(6), 0.06 * np.eye(6)])  # radians, and of 50 Å
    options: Any = {"initial_simplex": simplex, "xatol": 1e-3, "fatol": 1e-4, "maxfev": most}
    found = optimize.minimize(loss, np.zeros(6), method="Nelder-Mead", options=options)
    return (*at(np.asarray(found.x)), -float(found.fun))
