"""What a run's machines were over time, and below it the dollars that were spent."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cloudem.report.style import BLUE, FAINT, GREEN, GREY, INK, PALE_BLUE, VERMILION, draw_svg
from cloudem.text import dollars, duration, round_dollars

WIDTH = 1000
LEFT, RIGHT = 104, 24
HEADING, GAP, CURVE, FOOT = 62, 16, 190, 44
"""Pixels above the machines (names of steps, letters of events), below them, of the curve, and under it."""

ROW = 22, 3
"""Pixels of a slot's row: as a rule, and where there are very many."""

TALLEST = 460
"""Pixels of all rows, as far as the smallest row allows."""

COLOURS = {"on-demand": BLUE, "spot": GREEN}

BREAK = 0.035
"""Share of the width that a pause takes, however long it was."""

STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)
"""Distances between marks of the time axis."""

FAR = 3.0
"""A cap beyond so many times of what was spent and planned is named, and not drawn."""

How = Literal["ended", "taken", "alive"]


class NodeBar(NamedTuple):
    """A node over time.

    Attributes
    ----------
    slot
        Its role; nodes of one slot follow each other in one row.
    market
        ``spot`` or ``on-demand``.
    start, end
        Unix seconds.
    how
        Whether it ``ended`` in order, was ``taken`` from the run, or is ``alive``.
    """

    slot: str
    market: str
    start: float
    end: float
    how: How


class Band(NamedTuple):
    """A step, from when until when it ran."""

    name: str
    start: float
    end: float


class Spending(NamedTuple):
    """Dollars spent by times, and what was planned (low, expected, high) and allowed (from when, dollars)."""

    times: Sequence[float]
    usd: Sequence[float]
    planned: tuple[float, float, float] | None
    caps: Sequence[tuple[float, float]]


class Axis:
    """Time in which there was any machine: pauses in between are as narrow as a mark.

    Parameters
    ----------
    intervals
        From when until when each machine was there, unix seconds.
    """

    def __init__(self, intervals: Sequence[tuple[float, float]]) -> None:
        merged: list[list[float]] = []
        for start, end in sorted(intervals):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        self.active = sum(end - start for start, end in merged) or 1.0
        room = BREAK * self.active
        self.sittings: list[tuple[float, float]] = []
        for start, end in merged:  # a pause that is shorter than its mark is drawn as it was
            if self.sittings and start - self.sittings[-1][1] <= room:
                self.sittings[-1] = self.sittings[-1][0], end
            else:
                self.sittings.append((start, end))
        self.offsets = [0.0]
        for start, end in self.sittings:
            self.offsets.append(self.offsets[-1] + end - start + room)
        self.length = self.offsets[-1] - room
        self.room = room

    def at(self, moment: float) -> float:
        """Return the place of a moment; what is in a pause is at the end of what was before it."""
        for (start, end), offset in zip(reversed(self.sittings), reversed(self.offsets[:-1]), strict=True):
            if moment >= start:
                return offset + min(moment, end) - start
        return 0.0


def timeline(
    bars: Sequence[NodeBar], bands: Sequence[Band], marks: Sequence[tuple[float, str]], spending: Spending
) -> str:
    """Draw nodes by slot, steps as bands and events as lettered lines, above the dollars spent; an ``<svg>`` element.

    Parameters
    ----------
    bars
        At least one.
    bands, marks, spending
        ``marks`` are moments and their letters. All times are unix seconds.
    """
    axis = Axis([(bar.start, bar.end) for bar in bars])
    slots = _slots(bars)
    row = min(ROW[0], max(ROW[1], TALLEST / len(slots)))
    height = round(HEADING + row * len(slots) + GAP + CURVE + FOOT)

    def draw(figure: Figure) -> None:
        across = LEFT / WIDTH, 1 - (LEFT + RIGHT) / WIDTH
        machines: Any = figure.add_axes(
            (across[0], (FOOT + CURVE + GAP) / height, across[1], row * len(slots) / height)
        )
        curve: Any = figure.add_axes((across[0], FOOT / height, across[1], CURVE / height))
        for axes in (machines, curve):
            axes.set_xlim(-0.004 * axis.length, 1.004 * axis.length)
            _bands(axes, bands, axis)
            _pauses(axes, axis)
            for moment, _ in marks:
                axes.axvline(axis.at(moment), color=INK, lw=0.8, ls=(0, (2, 2)), zorder=3)
        _machines(machines, bars, slots, axis, row)
        _headings(machines, bands, marks, axis, row * len(slots))
        _spending(curve, spending, axis)
        _times(machines, curve, axis)

    return draw_svg(WIDTH, height, draw, "Machines over time, and dollars spent")


class Key(NamedTuple):
    """An entry of the legend: a filled box, perhaps with an edge, or a mark, and what it means."""

    text: str
    fill: str = ""
    edge: str = ""
    mark: str = ""
    colour: str = ""


def legend(bars: Sequence[NodeBar]) -> list[Key]:
    """Return what the colours and marks of the figure mean."""
    words = {"on-demand": "on demand", "spot": "spot"}
    keys = [Key(words[name], COLOURS[name]) for name in COLOURS if any(bar.market == name for bar in bars)]
    if any(bar.how == "taken" for bar in bars):
        keys.append(Key("taken or lost", mark="✕", colour=VERMILION))
    if any(bar.how == "alive" for bar in bars):
        keys.append(Key("running", mark="▸"))
    return [*keys, Key("a step runs", *_BANDS), Key("planned cost, lowest to highest", PALE_BLUE)]


_BANDS = "#f3f6f9", "#d5dde5"


def _slots(bars: Sequence[NodeBar]) -> list[str]:
    """Return the slots from top to bottom: the head, then in the order in which they began."""
    first: dict[str, float] = {}
    for bar in bars:
        first[bar.slot] = min(bar.start, first.get(bar.slot, bar.start))
    return sorted(first, key=lambda slot: (slot != "head", round(first[slot], -1), slot))


def _machines(axes: Any, bars: Sequence[NodeBar], slots: Sequence[str], axis: Axis, row: float) -> None:
    thick = 0.62 if row > 8 else 0.8
    rows = {slot: y for y, slot in enumerate(slots)}
    spans = [(rows[bar.slot], axis.at(bar.start), axis.at(bar.end)) for bar in bars]
    shapes = [Rectangle((left, y - thick / 2), right - left, thick) for y, left, right in spans]
    axes.add_collection(PatchCollection(shapes, color=[COLOURS.get(bar.market, GREY) for bar in bars], lw=0, zorder=4))
    for bar, (y, _, right) in zip(bars, spans, strict=True):
        if bar.how == "taken":
            for colour, wide in (("white", 5.5), (VERMILION, 2.6)):
                axes.plot([right], [y], "x", color=colour, ms=min(9, row), mew=wide, zorder=6, clip_on=False)
        elif bar.how == "alive":
            axes.plot([right], [y], ">", color=INK, ms=min(6, row), zorder=6, clip_on=False)
    axes.set_ylim(len(slots) - 0.5, -0.5)
    every = max(1, ceil(13 / row))
    shown = range(0, len(slots), every)
    axes.set_yticks(list(shown), [_short(slots[n]) for n in shown], fontsize=11)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)


def _short(slot: str) -> str:
    """``worker-g6.2xlarge-0003`` is ``worker 3``: its type is in the table of nodes."""
    role, _, number = slot.rpartition("-")
    return f"{role.partition('-')[0]} {int(number)}" if role and number.isdecimal() else slot[:14]


def _bands(axes: Any, bands: Sequence[Band], axis: Axis) -> None:
    for band in bands:
        axes.axvspan(axis.at(band.start), axis.at(band.end), color=_BANDS[0], lw=0, zorder=0)
        for moment in (band.start, band.end):
            axes.axvline(axis.at(moment), color=_BANDS[1], lw=0.8, zorder=1)


def _pauses(axes: Any, axis: Axis) -> None:
    for offset in axis.offsets[1:-1]:
        axes.axvspan(offset - axis.room, offset, facecolor="white", edgecolor="#c3ccd5", hatch="////", lw=0, zorder=2)


def _headings(axes: Any, bands: Sequence[Band], marks: Sequence[tuple[float, str]], axis: Axis, height: float) -> None:
    """Write letters of events right above the rows, and the names of steps above them where they do not meet."""
    scale = (WIDTH - LEFT - RIGHT) / (1.008 * axis.length)
    groups: list[list[tuple[float, str]]] = []
    for moment, letter in sorted(marks):
        if groups and (axis.at(moment) - axis.at(groups[-1][-1][0])) * scale < 15:
            groups[-1].append((moment, letter))
        else:
            groups.append([(moment, letter)])
    for group in groups:
        text = group[0][1] + (f"–{group[-1][1]}" if len(group) > 1 else "")
        middle = (axis.at(group[0][0]) + axis.at(group[-1][0])) / 2
        axes.text(
            middle, 1 + 10 / height, text, transform=axes.get_xaxis_transform(), ha="center", va="center",
            fontsize=10, fontweight="bold", clip_on=False,
        )  # fmt: skip
    ends = [-1e9, -1e9]  # where the names on each of two lines end
    for band in sorted(bands, key=lambda band: band.start):
        left, width = axis.at(band.start) * scale, 6.4 * len(band.name) + 8
        left = min(left, axis.length * scale - width)  # not beyond the figure
        line = next((n for n, end in enumerate(ends) if end <= left), None)
        if line is None:
            continue
        ends[line] = left + width
        axes.text(
            left / scale, 1 + (27 + 16 * line) / height, band.name, transform=axes.get_xaxis_transform(),
            fontsize=11.5, clip_on=False, va="center",
        )  # fmt: skip


def _spending(axes: Any, spending: Spending, axis: Axis) -> None:
    x = np.array([axis.at(moment) for moment in spending.times])
    spent = float(max(spending.usd, default=0.0))
    axes.plot(x, spending.usd, color=INK, lw=2.0, zorder=5, drawstyle="steps-post")
    axes.fill_between(x, spending.usd, color=INK, alpha=0.07, lw=0, zorder=2, step="post")
    top = spent
    if spending.planned is not None and spending.planned[2] > 0:
        low, expected, high = spending.planned
        top = max(top, expected, min(high, FAR * max(spent, expected)))
        axes.axhspan(low, high, xmin=0.985, color=PALE_BLUE, lw=0, zorder=3)
        axes.axhline(expected, color=BLUE, lw=1.2, ls=(0, (6, 3)), zorder=3)
        _label(axes, axis.length * 0.98, expected, f"expected {dollars(expected)}", BLUE, "right")
    near = [cap for cap in spending.caps if cap[1] <= FAR * max(top, 1e-9)]
    top = max([top, *(usd for _, usd in near)])
    axes.set_ylim(0, 1.14 * top or 1.0)
    for (at, usd), after in zip(spending.caps, [*(at for at, _ in spending.caps[1:]), float("inf")], strict=True):
        left, right = axis.at(at), axis.at(after)
        if (at, usd) in near:
            axes.plot([left, right], [usd, usd], color=VERMILION, lw=1.6, zorder=4)
            _label(axes, left, usd, f" maximum {dollars(usd)}", VERMILION, "left")
        elif right - left > 0.12 * axis.length:
            axes.annotate(
                f" maximum {dollars(usd)}, above this figure", (left, 0.98), xycoords=("data", "axes fraction"),
                fontsize=11, va="top", color=VERMILION, zorder=6,
            )  # fmt: skip
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda usd, _: round_dollars(usd)))
    axes.set_ylabel("spent")
    axes.grid(visible=False, axis="x")


def _label(axes: Any, x: float, y: float, text: str, colour: str, side: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(0, 3), textcoords="offset points", ha=side, va="bottom", fontsize=11, color=colour,
        zorder=6,
    )  # fmt: skip


def _times(machines: Any, curve: Any, axis: Axis) -> None:
    """Mark hours of day: the date with the first of each sitting, and how long each pause was in it."""
    step = next((step for step in STEPS_S if axis.active / step <= 11), STEPS_S[-1])
    places, texts = [], []
    for (start, end), offset in zip(axis.sittings, axis.offsets[:-1], strict=True):
        moments = np.arange(np.ceil(start / step) * step, end, step)
        places += [offset + float(moment) - start for moment in moments]
        texts += [_clock(float(moment), seconds=step < 60) for moment in moments]
    for axes in (machines, curve):
        axes.set_xticks(places, texts if axes is curve else [""] * len(places))
        axes.tick_params(axis="x", length=3 if axes is curve else 0)
    days = list(dict.fromkeys(f"{datetime.fromtimestamp(start, UTC):%Y-%m-%d}" for start, _ in axis.sittings))
    curve.set_xlabel(f"time of day, UTC ({days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'})")
    for (_, before), (after, _), offset in zip(axis.sittings, axis.sittings[1:], axis.offsets[1:], strict=False):
        curve.text(
            offset - axis.room / 2, 0.5, f"stopped for {duration(after - before)}", rotation=90, fontsize=10.5,
            transform=curve.get_xaxis_transform(), ha="center", va="center", color=FAINT, zorder=7,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip


def _clock(moment: float, *, seconds: bool) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):{'%H:%M:%S' if seconds else '%H:%M'}}"
