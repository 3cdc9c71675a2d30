"""Curves and histograms: Fourier shell correlation, history of a refinement, defocus, shifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from cloudem.conventions import FSC_HALF, FSC_THRESHOLD
from cloudem.report.content import Iteration
from cloudem.report.style import BLUE, FAINT, GREEN, GREY, INK, PALE_BLUE, VERMILION, draw_svg, label_axes

Array: TypeAlias = NDArray[np.floating[Any]]


class CurveStyle(NamedTuple):
    """How one FSC curve is named and drawn; dashes tell the curves apart without colour."""

    label: str
    colour: str
    dash: Any
    width: float


# In drawing order: the curve that states the resolution lies on top.
CURVES = {
    "unmasked": CurveStyle("unmasked", GREY, "-", 1.6),
    "phase_randomised": CurveStyle("masked, phases randomised", VERMILION, (0, (1.2, 1.6)), 1.8),
    "masked": CurveStyle("masked", "#56a8d8", (0, (5, 2)), 1.8),
    "truth": CurveStyle("map against the truth", GREEN, (0, (6, 2, 1.2, 2)), 2.0),
    "corrected": CurveStyle("corrected for the mask", "#00507f", "-", 2.4),
}
STATED_BY = ("corrected", "masked", "unmasked")
"""Curves that may state the resolution, best first."""

_NICE_RESOLUTIONS = (100, 50, 40, 30, 20, 15, 10, 8, 6, 5, 4, 3.5, 3, 2.5, 2, 1.8, 1.6, 1.4, 1.2, 1.0)


def crossing_A(curve: Array, pixel_size: float, threshold: float) -> float:
    """Resolution in Å at which an FSC curve first falls below a threshold.

    Linear between shells, in 1/Å; NaN where the curve never falls below. Shells whose value is not finite are passed
    over.
    """
    shells = np.flatnonzero(np.isfinite(curve))
    shells = shells[shells > 0]
    values = curve[shells]
    below = np.flatnonzero(values < threshold)
    if below.size == 0:
        return float("nan")
    last = int(below[0])
    if last == 0:
        shell = float(shells[0])
    else:
        upper, lower = float(values[last - 1]), float(values[last])
        step = (upper - threshold) / (upper - lower)
        shell = float(shells[last - 1]) + step * float(shells[last] - shells[last - 1])
    return 2 * (len(curve) - 1) * pixel_size / shell


def _resolution_ticks(lowest: float, highest: float, least_gap: float) -> list[float]:
    """Nice resolutions in Å whose spatial frequencies lie between two, no closer than ``least_gap`` in 1/Å."""
    ticks: list[float] = []
    for resolution in _NICE_RESOLUTIONS:
        frequency = 1 / resolution
        if lowest <= frequency <= highest and (not ticks or frequency - 1 / ticks[-1] >= least_gap):
            ticks.append(resolution)
    return ticks


def fsc_figure(
    fsc: Mapping[str, Array], pixel_size: float, resolution_A: float | None, width: int = 640, height: int = 400
) -> str:
    """Draw FSC curves over spatial frequency with both thresholds and the resolution marked."""
    shells = len(next(iter(fsc.values())))
    frequency = np.arange(shells) / (2 * (shells - 1) * pixel_size)
    nyquist = float(frequency[-1])

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((60 / width, 52 / height, 1 - 84 / width, 1 - 128 / height))
        for name, style in CURVES.items():
            if name in fsc:
                curve = np.where(np.isfinite(fsc[name]), fsc[name], np.nan)
                axes.plot(
                    frequency[1:], curve[1:], color=style.colour, ls=style.dash, lw=style.width, label=style.label
                )
        lowest = min((float(np.nanmin(c[1:])) for c in fsc.values() if np.isfinite(c[1:]).any()), default=0.0)
        axes.set_xlim(0, nyquist)
        axes.set_ylim(max(-1.0, min(-0.05, lowest - 0.03)), 1.03)
        axes.set_yticks(np.arange(0, 1.01, 0.2))
        for threshold in (FSC_HALF, FSC_THRESHOLD):
            axes.axhline(threshold, color=INK, lw=0.8, ls=(0, (4, 3)))
            axes.text(nyquist * 0.997, threshold + 0.012, f"{threshold:g}", ha="right", va="bottom", fontsize=11)
        axes.axhline(0, color=FAINT, lw=0.8)
        _mark_crossings(axes, fsc, pixel_size, resolution_A)
        label_axes(axes, "spatial frequency (1/Å)", "Fourier shell correlation")
        top = axes.twiny()
        ticks = _resolution_ticks(0.02 * nyquist, nyquist, 0.055 * nyquist)
        top.set_xlim(0, nyquist)
        top.set_xticks([1 / tick for tick in ticks], [f"{tick:g}" for tick in ticks])
        top.set_xlabel("resolution (Å)")
        top.tick_params(length=3)
        top.spines["top"].set_visible(True)
        top.grid(visible=False)
        order = [name for name in ("corrected", "masked", "phase_randomised", "unmasked", "truth") if name in fsc]
        handles = dict(zip([n for n in CURVES if n in fsc], axes.lines, strict=False))
        figure.legend(
            [handles[n] for n in order],
            [CURVES[n].label for n in order],
            loc="upper left",
            bbox_to_anchor=(50 / width, 1.0),
            ncols=len(order),
            columnspacing=1.3,
            handlelength=2.0,
            handletextpad=0.5,
            borderaxespad=0.1,
            borderpad=0.1,
            fontsize=11,
        )

    return draw_svg(width, height, draw, "Fourier shell correlation curves")


def _mark_crossings(axes: Axes, fsc: Mapping[str, Array], pixel_size: float, resolution_A: float | None) -> None:
    """Mark where the curve that states the resolution meets 0.143, and where it or the truth curve meets 0.5."""
    stated = next((name for name in STATED_BY if name in fsc), None)
    marks: list[tuple[str, float, float]] = []
    if stated is not None:
        at = crossing_A(fsc[stated], pixel_size, FSC_THRESHOLD)
        marks.append((stated, FSC_THRESHOLD, resolution_A if resolution_A is not None else at))
        marks.append((stated, FSC_HALF, crossing_A(fsc[stated], pixel_size, FSC_HALF)))
    if "truth" in fsc:
        marks.append(("truth", FSC_HALF, crossing_A(fsc["truth"], pixel_size, FSC_HALF)))
    nyquist = axes.get_xlim()[1]
    for name, threshold, resolution in marks:
        if not np.isfinite(resolution) or resolution <= 0 or 1 / resolution > nyquist * 1.001:
            continue
        x, colour = 1 / resolution, CURVES[name].colour
        if threshold == FSC_THRESHOLD:
            axes.plot([x, x], [axes.get_ylim()[0], threshold], color=colour, lw=0.9)
        axes.plot([x], [threshold], "o", ms=5.5, color=colour, mec="white", mew=1.0, zorder=5)
        # The truth curve is labelled below left, all others above right, so that the two at 0.5 do not collide; near
        # the right edge, where the figure of the threshold stands, a label moves to the left of its point.
        left = name == "truth" or x > 0.82 * nyquist
        axes.annotate(
            f"{resolution:.2f} Å",
            (x, threshold),
            xytext=(-8 if left else 8, -6 if name == "truth" else 6),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top" if name == "truth" else "bottom",
            fontsize=12,
            fontweight="bold",
            color=colour,
        )


def iterations_figure(iterations: Sequence[Iteration], width: int = 490, height: int = 400) -> str:
    """Draw resolution and frequency limit, and below them the share of moving poses, by iteration."""
    rows = np.array([(r.iteration, r.resolution_A, r.limit_A, r.moving_share) for r in iterations], dtype=float)
    number, moving = rows[:, 0], rows[:, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        frequencies = np.where(rows[:, 1:3] > 0, 1 / rows[:, 1:3], np.nan)
    frequencies = np.where(np.isfinite(frequencies), frequencies, np.nan)
    has_moving = bool(np.isfinite(moving).any())

    def draw(figure: Figure) -> None:
        foot = 52 / height
        split = foot + 100 / height if has_moving else foot
        axes = figure.add_axes((52 / width, split, 1 - 68 / width, 1 - 30 / height - split))
        style = {"marker": "o", "ms": 4.5, "mec": "white", "mew": 0.8}
        axes.plot(number, frequencies[:, 1], color=GREY, ls=(0, (5, 2)), lw=1.6, label="limit of alignment", **style)
        axes.plot(number, frequencies[:, 0], color="#00507f", lw=2.2, label="resolution (FSC 0.143)", **style)
        if np.isfinite(frequencies).any():
            low, high = float(np.nanmin(frequencies)), float(np.nanmax(frequencies))
            pad = 0.08 * (high - low) or 0.1 * high
            axes.set_ylim(max(low - pad, 0.3 * low), high + pad)
            bottom, top = axes.get_ylim()
            ticks = _resolution_ticks(bottom, top, 0.07 * (top - bottom))
            axes.set_yticks([1 / tick for tick in ticks], [f"{tick:g}" for tick in ticks])
        label_axes(axes, "" if has_moving else "iteration", "resolution (Å)")
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.0, fontsize=11)
        panels = [axes]
        if has_moving:
            lower = figure.add_axes((52 / width, foot, 1 - 68 / width, 70 / height))
            lower.bar(number, moving, width=0.62, color=PALE_BLUE)
            lower.set_ylim(0, 1)
            lower.set_yticks([0, 0.5, 1])
            lower.yaxis.set_major_formatter(PercentFormatter(1.0))
            label_axes(lower, "iteration", "moving")
            axes.tick_params(labelbottom=False)
            panels.append(lower)
        for panel in panels:
            panel.set_xlim(number.min() - 0.6, number.max() + 0.6)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))

    return draw_svg(width, height, draw, "Resolution by iteration")


def histogram(values: Array, x: str, title: str, width: int = 320, height: int = 240) -> str:
    """Draw the distribution of one column, its median marked; values that are not finite are left out."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((52 / width, 50 / height, 1 - 64 / width, 1 - 90 / height))
        low, high = np.percentile(finite, [0.1, 99.9]) if finite.size else (0.0, 1.0)
        if high - low <= 1e-9 * max(abs(high), 1.0):  # one value for all: a bar of visible width
            low, high = low - 0.5, high + 0.5
        bins = int(np.clip(np.sqrt(finite.size), 8, 40))
        counts, edges = np.histogram(np.clip(finite, low, high), bins=bins, range=(low, high))
        axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=PALE_BLUE, edgecolor="white", lw=0.4)
        if finite.size:
            median = float(np.median(finite))
            axes.axvline(median, color=BLUE, lw=1.6)
            right = median > (low + high) / 2
            axes.annotate(
                f"median {median:.3g}",
                (median, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-5 if right else 5, 0),
                textcoords="offset points",
                ha="right" if right else "left",
                va="bottom",
                fontsize=11,
                color=BLUE,
            )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(visible=False, axis="x")
        label_axes(axes, x, "particles")
        figure.text(52 / width, 1 - 4 / height, title, fontsize=12.5, fontweight="bold", va="top")

    return draw_svg(width, height, draw, title)
