"""The picture of the simulated month."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cloudem.report.style import BLUE, FAINT, GREY, INK, PALE_BLUE, VERMILION, label_axes, styled

RATIOS = (0.2, 0.3, 0.5, 1, 2, 3, 5)
DOLLARS = (0.01, 0.1, 1, 10, 100)


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw planned ranges with what came of them, and cost against that of the best preset, into a file."""
    with styled():
        figure = Figure(figsize=(13.5, 4.4), layout="constrained")
        axes = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
        _ranges(axes[0], runs, "usd", "cost")
        _ranges(axes[1], runs, "wall", "time")
        _presets(axes[2], runs)
        figure.savefig(path, dpi=110)


def _ranges(axes: Axes, runs: Sequence[dict[str, Any]], key: str, what: str) -> None:
    """Each run over what was expected: its range, ordered by its upper end, and what it came to."""
    ordered = sorted(runs, key=lambda run: run[key][2] / run[key][1])
    for at, run in enumerate(ordered):
        low, expected, high = run[key]
        actual = run[f"actual_{key}"] / expected
        axes.plot([at, at], [low / expected, high / expected], color=PALE_BLUE, lw=1.1, solid_capstyle="butt", zorder=1)
        inside = run[f"{key}_holds"]
        axes.plot(
            at, actual, "o" if run["launches"] == 1 else "^", ms=3.2 if inside else 5, zorder=3 if inside else 4,
            color=BLUE if inside else VERMILION, mec="none",
        )  # fmt: skip
    axes.axhline(1, color=GREY, lw=0.8, zorder=0)
    held = sum(run[f"{key}_holds"] for run in runs)
    title = f"{what}: {held} of {len(runs)} in the range"
    label_axes(axes, "runs, ordered by the upper end of their range", f"{what} over what was expected", title)
    axes.set_yscale("log")
    axes.set_ylim(0.2, 7)
    axes.yaxis.set_major_locator(FixedLocator(RATIOS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.text(
        0.03, 0.96, "bars: planned range\ndots: simulated runs\ntriangles: stopped at a limit, then resumed",
        transform=axes.transAxes, va="top", fontsize=9, color=FAINT,
    )  # fmt: skip


def _presets(axes: Axes, runs: Sequence[dict[str, Any]]) -> None:
    """Cost of each run against that of its preset."""
    paid = [run for run in runs if run["preset_usd"] is not None]
    equal = [run for run in paid if run["in_time"] and run["preset_in_time"]]
    others = [run for run in paid if run not in equal]
    for some, colour, name in ((others, GREY, "one of them, or both, late"), (equal, BLUE, "both in time")):
        ours, theirs = [run["actual_usd"] for run in some], [run["preset_usd"] for run in some]
        axes.plot(ours, theirs, "o", ms=3.6, color=colour, mec="none", label=f"{name}: {len(some)}")
    ends = (0.008, 100.0)
    for factor, style in ((1, "-"), (2, "--"), (5, ":")):
        axes.plot(ends, [factor * end for end in ends], style, color=INK, lw=0.8, zorder=0)
        axes.text(
            0.5 * ends[1] / factor, 0.5 * ends[1], f"{factor}×", fontsize=9, color=INK, ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    label_axes(axes, "cloudem, $", "best fixed on-demand preset, $", "cost of a run at the same deadline")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator(DOLLARS))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.legend(loc="lower right", frameon=False, fontsize=9)
