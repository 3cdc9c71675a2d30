"""Curves and histograms: Fourier shell correlation, history of a refinement, defocus, shifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from cloudem.conventions import FSC_HALF, FSC_THRESHOLD, LEAST_EVIDENCE
from cloudem.kernels.shells import crossing as crossing_shell
from cloudem.model.columns import Value
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
BAND = "#dcebf5"
"""Of the range over directions."""
STATED_BY = ("corrected", "masked", "unmasked")
"""Curves that may state the resolution, best first."""

_LEGEND_ORDER = ("corrected", "masked", "unmasked", "phase_randomised", "truth")
_LEGEND: dict[str, Any] = {
    "fontsize": 11,
    "columnspacing": 1.2,
    "handlelength": 2.2,
    "handletextpad": 0.5,
    "labelspacing": 0.35,
    "borderaxespad": 0.1,
    "borderpad": 0.1,
}
# The two figures of resolution stand side by side: same height, axes at the same level.
_HEIGHT = 410
_FOOT = 50 / _HEIGHT
_TOP = 1 - 92 / _HEIGHT

_NICE_RESOLUTIONS = (100, 50, 40, 30, 25, 20, 15, 12, 10, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2, 1.8, 1.6, 1.4, 1.2, 1.0)


def resolution_crossing(curve: Array, pixel_size: float, threshold: float) -> float:
    """Resolution in Å at which an FSC curve first falls below a threshold; NaN where it never does."""
    return float(2 * (len(curve) - 1) * pixel_size / np.maximum(crossing_shell(curve, threshold), 1.0))


def _resolution_ticks(lowest: float, highest: float, least_gap: float) -> list[float]:
    """Nice resolutions in Å whose spatial frequencies lie between two, no closer than ``least_gap`` in 1/Å."""
    ticks: list[float] = []
    for resolution in _NICE_RESOLUTIONS:
        frequency = 1 / resolution
        if lowest <= frequency <= highest and (not ticks or frequency - 1 / ticks[-1] >= least_gap):
            ticks.append(resolution)
    return ticks


def fsc_figure(
    fsc: Mapping[str, Array], pixel_size: float, resolution: float | None, width: int = 600, fan: Array | None = None
) -> str:
    """Draw FSC curves over spatial frequency with both thresholds and the resolution marked, unless that is NaN.

    Behind them lies the band between the lowest and the highest of the curves of all directions, ``fan`` (d, shells).
    """
    shells = len(next(iter(fsc.values())))
    frequency = np.arange(shells) / (2 * (shells - 1) * pixel_size)
    nyquist = float(frequency[-1])
    curves = {name: np.where(np.isfinite(fsc[name]), fsc[name], np.nan) for name in CURVES if name in fsc}

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((56 / width, _FOOT, 1 - 94 / width, _TOP - _FOOT))
        lines = {}
        for name, curve in curves.items():
            style = CURVES[name]
            lines[name] = axes.plot(frequency[1:], curve[1:], color=style.colour, ls=style.dash, lw=style.width)[0]
        band = None
        if fan is not None and fan.size:
            edges = (frequency[1:], fan.min(axis=0)[1:], fan.max(axis=0)[1:])
            band = axes.fill_between(*edges, color=BAND, lw=0, zorder=0.5)
        lowest = min((float(np.nanmin(c[1:])) for c in curves.values() if np.isfinite(c[1:]).any()), default=0.0)
        axes.set_xlim(0, nyquist)
        axes.set_ylim(max(-1.0, min(-0.05, lowest - 0.03)), 1.04)
        axes.set_yticks(np.arange(0, 1.01, 0.2))
        for threshold in (FSC_HALF, FSC_THRESHOLD):
            axes.axhline(threshold, color=INK, lw=0.8, ls=(0, (4, 3)))
            axes.text(1.008 * nyquist, threshold, f"{threshold:g}", va="center", fontsize=11)
        axes.axhline(0, color=FAINT, lw=0.8)
        _mark_crossings(axes, curves, pixel_size, resolution)
        label_axes(axes, "spatial frequency (1/Å)", "Fourier shell correlation")
        _resolution_axis(axes, nyquist)
        order = [name for name in _LEGEND_ORDER if name in lines]
        figure.legend(
            [*(lines[name] for name in order), *([band] if band is not None else [])],
            [*(CURVES[name].label for name in order), *(["range over directions"] if band is not None else [])],
            loc="lower left",
            bbox_to_anchor=(48 / width, _TOP + 46 / _HEIGHT),
            ncols=3,
            **_LEGEND,
        )

    return draw_svg(width, _HEIGHT, draw, "Fourier shell correlation curves")


def _resolution_axis(axes: Axes, nyquist: float) -> None:
    """Put a second axis in Å on top of one in 1/Å."""
    top = axes.twiny()
    ticks = _resolution_ticks(0.02 * nyquist, nyquist, 0.055 * nyquist)
    top.set_xlim(0, nyquist)
    top.set_xticks([1 / tick for tick in ticks], [f"{tick:g}" for tick in ticks])
    top.set_xlabel("resolution (Å)")
    top.tick_params(length=3)
    top.spines["top"].set_visible(True)
    top.grid(visible=False)


def _mark_crossings(axes: Axes, curves: Mapping[str, Array], pixel_size: float, resolution: float | None) -> None:
    """Mark where the curve that states the resolution meets both thresholds, and the curve against the truth 0.5."""
    stated = next((name for name in STATED_BY if name in curves), None)
    marks: list[tuple[str, float, float]] = []
    if stated is not None:
        at = resolution_crossing(curves[stated], pixel_size, FSC_THRESHOLD) if resolution is None else resolution
        marks.append((stated, FSC_THRESHOLD, at))
        if not np.isnan(at):
            marks.append((stated, FSC_HALF, resolution_crossing(curves[stated], pixel_size, FSC_HALF)))
    if "truth" in curves:
        marks.append(("truth", FSC_HALF, resolution_crossing(curves["truth"], pixel_size, FSC_HALF)))
    bottom, nyquist = axes.get_ylim()[0], axes.get_xlim()[1]
    handles, labels = [], []
    for name, threshold, resolution in marks:
        if not np.isfinite(resolution) or resolution <= 0 or 1 / resolution > nyquist * 1.001:
            continue
        x, colour = 1 / resolution, CURVES[name].colour
        axes.plot([x, x], [bottom, threshold], color=colour, lw=0.8, alpha=0.7)
        shape = "o" if threshold == FSC_THRESHOLD else "s" if name == stated else "D"
        handles += axes.plot([x], [threshold], shape, ms=7, color=colour, mec="white", mew=1.0, zorder=5)
        labels.append(f"{resolution:.2f} Å at {threshold:g}" + (" against the truth" if name == "truth" else ""))
    if handles:
        # Beyond the fall of the curves the upper right is free, before it the space between the two thresholds.
        early = 1 / min(r for _, _, r in marks if np.isfinite(r)) < 0.6 * nyquist
        place: dict[str, Any] = (
            {"loc": "upper right"} if early else {"loc": "lower left", "bbox_to_anchor": (0.0, 0.19)}
        )
        box = axes.legend(handles, labels, fontsize=13, handletextpad=0.3, borderaxespad=0.6, **place)
        box.get_texts()[0].set_fontweight("bold")


def iterations_figure(iterations: Sequence[Mapping[str, Value]], width: int = 376) -> str:
    """Draw resolution and frequency limit, and below them the share of moving poses, by iteration; "" if unknown."""
    names = ("iteration", "resolution_A", "limit_A", "moving")
    rows = np.array([[row.get(name, np.nan) for name in names] for row in iterations], dtype=float)
    if not any(name in row for row in iterations for name in names[1:]):
        return ""
    number, moving = rows[:, 0], rows[:, 3]
    frequencies = np.full((len(rows), 2), np.nan)
    np.divide(1.0, rows[:, 1:3], out=frequencies, where=rows[:, 1:3] > 0)
    has_moving = bool(np.isfinite(moving).any())

    def draw(figure: Figure) -> None:
        left, across = 62 / width, 1 - 70 / width
        bottom = _FOOT + 96 / _HEIGHT if has_moving else _FOOT
        axes = figure.add_axes((left, bottom, across, _TOP - bottom))
        _draw_resolution(axes, number, frequencies)
        label_axes(axes, "" if has_moving else "iteration", "resolution (Å)")
        figure.legend(
            handles=list(axes.lines), loc="lower left", bbox_to_anchor=(54 / width, _TOP + 6 / _HEIGHT), **_LEGEND
        )
        panels = [axes]
        if has_moving:
            lower = figure.add_axes((left, _FOOT, across, 68 / _HEIGHT))
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
        figure.align_ylabels(panels)

    return draw_svg(width, _HEIGHT, draw, "Resolution by iteration")


def held_out_figure(deviations: Array, pixel_size: float, width: int = 600, height: int = 200) -> str:
    """Draw by how many standard deviations images know each shell that had no part in their poses; NaN is left out."""
    shells = len(deviations)
    frequency = np.arange(shells) / (2 * (shells - 1) * pixel_size)
    shown = np.where(np.isfinite(deviations), deviations, 0.0)

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((56 / width, 50 / height, 1 - 94 / width, 1 - 100 / height))
        axes.bar(frequency, shown, width=0.8 * frequency[1], color=PALE_BLUE)
        axes.axhline(LEAST_EVIDENCE, color=INK, lw=0.8, ls=(0, (4, 3)))
        axes.axhline(0, color=FAINT, lw=0.8)
        axes.set_xlim(0, frequency[-1])
        axes.set_ylim(min(-2.0, float(shown.min()) - 0.5), max(6.0, 1.08 * float(shown.max())))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.text(1.008 * frequency[-1], LEAST_EVIDENCE, f"{LEAST_EVIDENCE:g}", va="center", fontsize=11)
        label_axes(axes, "spatial frequency (1/Å)", "deviations")
        _resolution_axis(axes, float(frequency[-1]))

    return draw_svg(width, height, draw, "Evidence of images by shell")


def _draw_resolution(axes: Axes, number: Array, frequencies: Array) -> None:
    """Draw resolution and limit over a scale that is even in 1/Å and labelled in Å."""
    marker: dict[str, Any] = {"marker": "o", "ms": 5, "mec": "white", "mew": 0.8}
    resolution = CURVES["corrected"].colour
    axes.plot(number, frequencies[:, 0], color=resolution, lw=2.2, label="resolution (FSC 0.143)", zorder=3, **marker)
    axes.plot(number, frequencies[:, 1], color=GREY, ls=(0, (5, 2)), lw=1.6, label="limit of alignment", **marker)
    if np.isfinite(frequencies).any():
        low, high = float(np.nanmin(frequencies)), float(np.nanmax(frequencies))
        pad = 0.08 * (high - low) or 0.1 * high
        axes.set_ylim(max(low - pad, 0.3 * low), high + pad)
        bottom, top = axes.get_ylim()
        ticks = _resolution_ticks(bottom, top, 0.07 * (top - bottom))
        if len(ticks) < 2:  # so narrow that hardly a round number lies inside
            ticks = sorted({round(1 / low, 2), round(1 / high, 2)})
        axes.set_yticks([1 / tick for tick in ticks], [f"{tick:g}" for tick in ticks])


def histogram(values: Array, x: str, title: str, width: int = 320, height: int = 240, unit: str = "particles") -> str:
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
        label_axes(axes, x, unit)
        axes.xaxis.set_label_coords(0.5, -24 / (height - 90))  # one level in all histograms, whatever the letters
        figure.text(52 / width, 1 - 4 / height, title, fontsize=12.5, fontweight="bold", va="top")

    return draw_svg(width, height, draw, title)


def line_figure(
    curves: Mapping[str, Array], length: float, y: str, label: str, marks: Sequence[int] = (), width: int = 600
) -> str:
    """Draw up to three curves over spatial frequency, the first one on top; NaN is left out.

    Parameters
    ----------
    curves
        By what they are called, each (shells,).
    length
        Of the box, Å: shell s is at ``s / length``.
    y, label
        What they show; for the axis, and for readers who cannot see it.
    marks
        Shells at which a thin line is drawn.
    width
        Pixels.
    """
    height = 300
    styles = ((BLUE, "-", 2.4), (GREY, (0, (5, 2)), 1.8), (VERMILION, (0, (1.2, 1.6)), 1.8))
    end = max(len(curve) for curve in curves.values()) - 1
    nyquist = end / length

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((56 / width, 50 / height, 1 - 94 / width, 1 - 122 / height))
        for number, ((name, curve), (colour, dash, thick)) in enumerate(zip(curves.items(), styles, strict=False)):
            where = np.arange(len(curve)) / length
            axes.plot(where[1:], curve[1:], color=colour, ls=dash, lw=thick, label=name, zorder=4 - number)
        for shell in marks:
            axes.axvline(shell / length, color=FAINT, lw=0.8)
        axes.axhline(0, color=FAINT, lw=0.8)
        lowest = min(float(np.nanmin(curve[1:])) for curve in curves.values())
        axes.set_xlim(0, nyquist)
        axes.set_ylim(max(-1.0, min(-0.05, lowest - 0.03)), 1.04)
        label_axes(axes, "spatial frequency (1/Å)", y)
        _resolution_axis(axes, nyquist)
        place = (48 / width, 1 - 26 / height)
        figure.legend(
            handles=list(axes.lines)[: len(curves)], loc="lower left", bbox_to_anchor=place, ncols=3, **_LEGEND
        )

    return draw_svg(width, height, draw, label)
