"""The graph of a project's jobs: which was made from which, laid out in columns from left to right.

A job stands right of all that it was made from (longest path). Lines that pass a column take a place in it, places are
ordered to cross little (barycentres, Sugiyama et al. 1981, 10.1109/TSMC.1981.4308636), and each stands as near to its
neighbours as the order allows (least squares: pools of adjacent violators). Jobs that nothing connects are laid out
apart, beside or below each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

MOST_SHOWN = 60
"""Jobs of the graph: more nobody follows."""

WIDE, HIGH = 158, 42
"""Pixels of a job."""

BETWEEN, ABOVE = 40, 14
"""Pixels between columns, and between jobs of a column."""

LINE = 12
"""Pixels that a line takes that passes a column."""

PAGE = 998
"""Pixels that parts which nothing connects may take beside each other."""

APART = 26
"""Pixels between such parts."""

MOST_LINES = 8
"""Lines to one job; jobs read less, records may say anything."""

SWEEPS = 8


class PlacedJob(NamedTuple):
    """A job, by the left upper corner of its box, pixels."""

    name: str
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """A graph as it is drawn.

    Attributes
    ----------
    nodes
        Jobs.
    lines
        What leads from a job to one that was made from it: data of SVG paths.
    width, height
        Pixels.
    left_out
        Jobs that have such a line and are not drawn.
    """

    nodes: Sequence[PlacedJob]
    lines: Sequence[str]
    width: int
    height: int
    left_out: int = 0


def maker_of(place: str, jobs: Mapping[str, object]) -> str | None:
    """Return the job that made what lies at a place of the project: that of the nearest folder around it."""
    while place and place not in jobs:
        place = place.rpartition("/")[0]
    return place or None


def shortened(text: str, most: int) -> str:
    """Return a text of so many characters at most, without its middle."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[len(text) - (most - 1) // 2 :]}"


@lru_cache(8)  # pages ask every second, and it changes seldom
def laid_out(inputs: tuple[tuple[str, tuple[str, ...]], ...]) -> Graph | None:
    """Return the graph of jobs; None where none was made from another one.

    Parameters
    ----------
    inputs
        Jobs, the newest first, and those that each was made from. What contradicts itself, such as a job made from
        itself, is not drawn: records may say anything.
    """
    known = dict(inputs)
    parents = _without_cycles({name: [one for one in ones if one in known][:MOST_LINES] for name, ones in inputs})
    connected = {one for name, ones in parents.items() if ones for one in (name, *ones)}
    if not connected:
        return None
    chosen = _newest(parents, connected)
    kept = {name: [one for one in parents[name] if one in chosen] for name in parents if name in chosen}
    nodes: list[PlacedJob] = []
    lines: list[str] = []
    x = y = height = width = 0.0
    for part in _parts(kept):
        places, paths, (wide, high) = _Part(part).drawn()
        if x and x + wide > PAGE:
            x, y = 0.0, y + height + APART
            height = 0.0
        nodes += [PlacedJob(name, x + left, y + top) for name, left, top in places]
        lines += [_path([(x + left, y + top) for left, top in points]) for points in paths]
        width, height = max(width, x + wide), max(height, high)
        x += wide + APART + BETWEEN
    return Graph(nodes, lines, round(width), round(y + height), len(connected) - len(chosen))


def _without_cycles(parents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return the parents without those that lead back, found by a walk that needs no stack of calls."""
    kept: dict[str, list[str]] = {name: [] for name in parents}
    done: set[str] = set()
    for start in parents:
        path, walks = {start}, [(start, iter(parents[start]))]
        if start in done:
            continue
        while walks:
            name, rest = walks[-1]
            for one in rest:
                if one in path:
                    continue
                kept[name].append(one)
                if one not in done:
                    path.add(one)
                    walks.append((one, iter(parents[one])))
                    break
            else:
                walks.pop()
                path.discard(name)
                done.add(name)
    return kept


def _newest(parents: Mapping[str, Sequence[str]], connected: set[str]) -> set[str]:
    """Return the jobs that are drawn: the newest, each with what it was made from."""
    chosen: set[str] = set()
    for name in parents:
        waiting = [name] if name in connected else []
        while waiting and len(chosen) < MOST_SHOWN:
            one = waiting.pop(0)
            if one not in chosen:
                chosen.add(one)
                waiting += parents[one]
    return chosen


def _parts(parents: Mapping[str, Sequence[str]]) -> list[dict[str, list[str]]]:
    """Return what is connected, each part by itself."""
    near: dict[str, list[str]] = {name: list(ones) for name, ones in parents.items()}
    for name, ones in parents.items():
        for one in ones:
            near[one].append(name)
    found, seen = [], set[str]()
    for start in parents:
        if start in seen:
            continue
        part, waiting = {start}, [start]
        while waiting:
            fresh = set(near[waiting.pop()]) - part
            part |= fresh
            waiting += fresh
        seen |= part
        found.append({name: list(parents[name]) for name in parents if name in part})
    return found


@dataclass
class _Spot:
    """A place in a column: of a job, or, without a name, of a line that passes."""

    column: int
    name: str = ""
    left: list[_Spot] = field(default_factory=list)
    right: list[_Spot] = field(default_factory=list)
    order: float = 0.0
    y: float = 0.0

    @property
    def high(self) -> int:
        return HIGH if self.name else LINE


class _Part:
    """Layout of jobs that are connected."""

    def __init__(self, parents: Mapping[str, Sequence[str]]) -> None:
        self._parents = parents
        column = _columns(parents)
        self._spots = {name: _Spot(column[name], name) for name in parents}
        self._columns: list[list[_Spot]] = [[] for _ in range(1 + max(column.values()))]
        for spot in self._spots.values():
            self._columns[spot.column].append(spot)
        self._ways: list[list[_Spot]] = []
        for name, ones in parents.items():
            for one in ones:
                self._connect(self._spots[one], self._spots[name])
        self._order()
        self._settle()

    def drawn(self) -> tuple[list[tuple[str, float, float]], list[list[tuple[float, float]]], tuple[float, float]]:
        """Return jobs with their places, lines as points, and width and height of all."""
        top = min(spot.y - spot.high / 2 for column in self._columns for spot in column)
        low = max(spot.y + spot.high / 2 for column in self._columns for spot in column)
        step = WIDE + BETWEEN
        nodes = [(name, float(step * spot.column), spot.y - HIGH / 2 - top) for name, spot in self._spots.items()]
        lines = []
        for way in self._ways:
            points = [(float(step * way[0].column + WIDE), way[0].y - top)]
            for spot in way[1:-1]:
                points += [(float(step * spot.column), spot.y - top), (float(step * spot.column + WIDE), spot.y - top)]
            lines.append([*points, (float(step * way[-1].column), way[-1].y - top)])
        return nodes, lines, (step * len(self._columns) - BETWEEN, low - top)

    def _connect(self, first: _Spot, last: _Spot) -> None:
        passing = [_Spot(column) for column in range(first.column + 1, last.column)]
        way = [first, *passing, last]
        for spot in passing:
            self._columns[spot.column].append(spot)
        for one, other in pairwise(way):
            one.right.append(other)
            other.left.append(one)
        self._ways.append(way)

    def _order(self) -> None:
        """Order the columns; the best order that was seen is kept."""
        for column in self._columns:
            _number(column)
        best, kept = self._crossings(), [list(column) for column in self._columns]
        for sweep in range(SWEEPS):
            forward = sweep % 2 == 0
            for column in self._columns if forward else self._columns[::-1]:
                for spot in column:
                    near = spot.left if forward else spot.right
                    if near:
                        spot.order = sum(one.order for one in near) / len(near)
                column.sort(key=lambda spot: spot.order)
                _number(column)
            crossings = self._crossings()
            if crossings < best:
                best, kept = crossings, [list(column) for column in self._columns]
        self._columns = kept
        for column in kept:
            _number(column)

    def _crossings(self) -> int:
        count = 0
        for column in self._columns:
            ends = [(spot.order, one.order) for spot in column for one in spot.right]
            count += sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for i, a in enumerate(ends) for b in ends[:i])
        return count

    def _settle(self) -> None:
        """Move each spot to the middle of its neighbours, as far as the order allows."""
        for column in self._columns:
            _stack(column, [0.0] * len(column))
        for sweep in range(2 * SWEEPS):
            for column in self._columns if sweep % 2 == 0 else self._columns[::-1]:
                wanted = []
                for spot in column:
                    near = (
                        [*spot.left, *spot.right] if sweep >= SWEEPS else (spot.left if sweep % 2 == 0 else spot.right)
                    )
                    wanted.append(sum(one.y for one in near) / len(near) if near else spot.y)
                _stack(column, wanted)


def _columns(parents: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the column of each job: right of all that it was made from, and what begins no earlier than it must."""
    order: list[str] = []
    children: dict[str, list[str]] = {name: [] for name in parents}
    missing = {name: len(ones) for name, ones in parents.items()}
    for name, ones in parents.items():
        for one in ones:
            children[one].append(name)
    ready = [name for name, count in missing.items() if not count]
    while ready:
        name = ready.pop()
        order.append(name)
        for child in children[name]:
            missing[child] -= 1
            if not missing[child]:
                ready.append(child)
    column: dict[str, int] = {}
    for name in order:
        column[name] = 1 + max((column[one] for one in parents[name]), default=-1)
    for name in order:
        if not parents[name] and children[name]:
            column[name] = min(column[child] for child in children[name]) - 1
    return column


def _number(column: Sequence[_Spot]) -> None:
    for number, spot in enumerate(column):
        spot.order = float(number)


def _stack(column: Sequence[_Spot], wanted: Sequence[float]) -> None:
    """Place spots in their order, apart, as near to where they want to be as least squares bring them."""
    offsets, at = [], 0.0
    for number, spot in enumerate(column):
        at += (spot.high + column[number - 1].high) / 2 + ABOVE if number else 0.0
        offsets.append(at)
    pools: list[list[float]] = []  # sum and number of those that touch
    for want, offset in zip(wanted, offsets, strict=True):
        pools.append([want - offset, 1.0])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    places = [total / count for total, count in pools for _ in range(int(count))]
    for spot, place, offset in zip(column, places, offsets, strict=True):
        spot.y = place + offset


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Return a curve from one job to another, level where it passes a column."""
    said = [f"M{points[0][0]:.0f} {points[0][1]:.1f}"]
    for number, ((x, y), (to_x, to_y)) in enumerate(pairwise(points)):
        if number % 2:
            said.append(f"H{to_x:.0f}")
        else:
            bend = (to_x - x) / 2
            said.append(f"C{x + bend:.0f} {y:.1f} {to_x - bend:.0f} {to_y:.1f} {to_x:.0f} {to_y:.1f}")
    return "".join(said)
