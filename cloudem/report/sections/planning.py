"""The picture of a plan: what it costs against what it takes, with ranges, and what else could have been rented."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from cloudem.errors import ParameterError
from cloudem.report.style import BLUE, FAINT, GREY, INK, VERMILION, draw_svg, label_axes, styled

WIDTH, HEIGHT = 760, 480

KINDS = (".png", ".svg", ".pdf")

ROOM = 210, 24
"""Pixels beside and above a named point in which no other is named."""


RIGHTMOST = 0.65
"""Share of the width up to which names stand to the right of their points."""


TIMES = (10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 57600, 86400, 172800, 345600, 691200)
"""Seconds at which the axis may have marks."""


class Point(NamedTuple):
    """A choice.

    Attributes
    ----------
    wall, usd
        Seconds and dollars: low, expected, high.
    label
        What is rented.
    chosen
        Whether it is the plan.
    """

    wall: tuple[float, float, float]
    usd: tuple[float, float, float]
    label: str
    chosen: bool = False


def plan_figure(
    points: Sequence[Point],
    title: str,
    max_usd: float | None = None,
    max_hours: float | None = None,
    actual: tuple[float, float] | None = None,
) -> str:
    """Return the figure as an ``<svg>`` element for a page, with what a run came to: seconds and dollars."""

    def fill(figure: Figure) -> None:
        _fill(figure, points, title, max_usd, max_hours, actual)

    return draw_svg(WIDTH, HEIGHT, fill, "Cost against time of the plan and of what else could be rented")


def save_plan_figure(
    path: str, points: Sequence[Point], title: str, max_usd: float | None = None, max_hours: float | None = None
) -> None:
    """Draw the figure into a file, ``.png``, ``.svg`` or ``.pdf``.

    Raises
    ------
    ParameterError
        The file's name ends otherwise.
    """
    if Path(path).suffix.lower() not in KINDS:
        raise ParameterError(f"--figure {path}: needs a name that ends in {', '.join(KINDS)}")
    with styled():
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72, facecolor="white")
        _fill(figure, points, title, max_usd, max_hours)
        figure.savefig(path, dpi=144)


def _fill(
    figure: Figure,
    points: Sequence[Point],
    title: str,
    max_usd: float | None,
    max_hours: float | None,
    actual: tuple[float, float] | None = None,
) -> None:
    axes: Any = figure.add_axes((0.1, 0.13, 0.86, 0.76))
    front = sorted(points, key=lambda p: p.wall[1])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.plot([_hours(p)[1] for p in front], [p.usd[1] for p in front], color=GREY, linewidth=1.2, zorder=1)
    for point in front:
        color, width, order = (VERMILION, 2.2, 4) if point.chosen else (BLUE, 1.0, 2)
        low, x, high = _hours(point)
        alpha = 1.0 if point.chosen else 0.3
        axes.plot([low, high], [point.usd[1]] * 2, color=color, linewidth=width, alpha=alpha, zorder=order)
        axes.plot([x, x], [point.usd[0], point.usd[2]], color=color, linewidth=width, alpha=alpha, zorder=order)
        axes.plot([x], [point.usd[1]], "o", color=color, markersize=9 if point.chosen else 5.5, zorder=order + 1)
    if max_hours is not None:
        axes.axvline(max_hours, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(f" {max_hours:g} h", (max_hours, 1), xycoords=("data", "axes fraction"), va="top", color=FAINT)
    if max_usd is not None:
        axes.axhline(max_usd, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            f"${max_usd:g} ", (1, max_usd), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=FAINT
        )
    axes.xaxis.set_major_locator(FixedLocator([seconds / 3600 for seconds in TIMES]))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    for axis, text in ((axes.xaxis, _time), (axes.yaxis, _money)):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _, text=text: text(value)))
    if actual is not None:
        axes.plot([actual[0] / 3600], [actual[1]], "D", color=INK, markersize=9, mec="white", mew=1.2, zorder=7)
        axes.figure.canvas.draw()  # limits are known only then
        right = axes.transAxes.inverted().transform(axes.transData.transform((actual[0] / 3600, actual[1])))[0] < 0.85
        axes.annotate(
            "this run", (actual[0] / 3600, actual[1]), xytext=(9 if right else -9, -4), textcoords="offset points",
            fontweight="bold", va="top", ha="left" if right else "right", zorder=7,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )  # fmt: skip
    _name(axes, front)
    label_axes(axes, "time", "cost; bars: what time and cost may turn out to be", title)


def _name(axes: Any, front: Sequence[Point]) -> None:
    """Name the plan and, where there is room beside those already named, the others."""
    taken: list[Any] = []
    axes.figure.canvas.draw()  # limits are known only then
    for point in sorted(front, key=lambda p: not p.chosen):
        x, y = axes.transData.transform((_hours(point)[1], point.usd[1]))
        if any(abs(x - other[0]) < ROOM[0] and abs(y - other[1]) < ROOM[1] for other in taken):
            continue
        taken.append((x, y))
        right = axes.transAxes.inverted().transform((x, y))[0] < RIGHTMOST
        axes.annotate(
            point.label, (_hours(point)[1], point.usd[1]), xytext=(9 if right else -9, 8), zorder=6,
            ha="left" if right else "right",
            textcoords="offset points", fontsize=11.5 if point.chosen else 10,
            color=VERMILION if point.chosen else INK, fontweight="bold" if point.chosen else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )  # fmt: skip


def _hours(point: Point) -> tuple[float, float, float]:
    low, expected, high = (seconds / 3600 for seconds in point.wall)
    return low, expected, high


def _time(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.0f} min" if hours < 0.999 else f"{hours:g} h"


def _money(dollars: float) -> str:
    return f"${dollars:.3g}" if dollars < 1000 else f"${dollars:,.0f}"
