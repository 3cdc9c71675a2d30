"""Polishing: how particles moved over a micrograph, and what the frames of movies show of the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cloudem.report.blocks import Drawn, Figure, Figures, Words
from cloudem.report.content import ReportContent
from cloudem.report.style import BLUE, FAINT, GREEN, INK, VERMILION, draw_svg, label_axes

GRID = "#e6eaee"
HALF_COLOURS = (BLUE, VERMILION)

OVER = (
    "Particles of {}, the micrograph with the most of them: tracks {:g} times as long as they are, from where each"
    " particle is in the first frame (dots)."
)
BESIDE = "The same tracks less their mean over the particles, to scale: what particles do beside the micrograph."
BROUGHT = (
    "What the sum of all frames shows of the reference along the tracks, over what it shows where the motion of the"
    " micrographs puts particles (points), and the B-factor that fits it (line), to which a shell counts as much as it"
    " shows. In fine shells points may fall below the line: a half-map holds the noise of the images that it was made"
    " of, and that agrees best where they were cut."
)
BLURRED = (
    "The tracks undo a blur of about B = {:.0f} Å². The search has made this as great as it can; what it is worth, the"
    " FSC of a refinement of the polished particles says."
)
SHARES = (
    "Share of each frame in the sum of all weights, at some resolutions; mean of both half-sets. Beyond {:.3g} Å, to"
    " where particles are compared, weights follow from the B-factors."
)
SHOWN = (
    "How much of the reference each frame shows, in bands of resolution (points, mean of both half-sets), and the"
    " weights there (lines), each over its mean."
)
FACTORS = (
    "What frames show beside the curve of radiation damage, of both half-sets: B-factors (lines) and factors (dashes),"
    " each about its mean."
)
PLAIN = (
    "What frames show differs from the curve of radiation damage by no more than chance makes it differ, so that the"
    " curve alone gives the weights."
)
FITTED = (
    "A frame's weight is what it shows of the reference, over its noise. B-factors that are high in the first frames"
    " say that these are blurred by motion; such that rise with the frames, that damage is faster than the curve says."
)

BANDS = ((30.0, 12.0), (12.0, 7.0), (7.0, 3.0))
"""Å, within which what frames show is averaged."""

RESOLUTIONS = (40, 20, 12, 9, 7, 6, 5, 4.5, 4, 3.5, 3, 2.5, 2)
"""Å, named along the axis of a figure."""

LEAST_SHARE = 1e-3
"""Of the greatest signal of a shell, below which the signal of another is not compared."""

TRACK_LENGTH = 0.1
"""Share of the picture's width that a long track has, as it is drawn."""


def particle_tracks(content: ReportContent) -> Drawn | None:
    """Show the tracks of the particles of one micrograph over it, enlarged, and what they do beside it."""
    arrays = content.arrays
    if "track_x" not in arrays or "shown_micrograph" not in arrays:
        return None
    first, last = arrays["shown_rows"].tolist()
    tracks = np.stack([arrays["track_x"][first:last], arrays["track_y"][first:last]], axis=-1).astype(np.float64)
    tracks = tracks[:, np.isfinite(tracks).all(axis=(0, 2))]
    places = np.stack([arrays["place_x"][first:last], arrays["place_y"][first:last]], axis=-1)
    if tracks.shape[0] < 1 or tracks.shape[1] < 2:
        return None
    grey, pixel = arrays["shown_micrograph"], float(arrays["shown_pixel_size_A"][0])
    extent = float(arrays["shown_width"][0]) * pixel / 10
    height = extent * grey.shape[0] / grey.shape[1]
    spread = np.quantile(np.hypot(*np.ptp(tracks, axis=1).T), 0.9)
    factor = _round_down(TRACK_LENGTH * extent * 10 / max(float(spread), 1e-3))
    name = str(arrays["shown_name"][0])
    left = _over_micrograph(grey, extent, height, places * pixel / 10, tracks * factor / 10)
    figures = [
        Figure(520, left, OVER.format(name, factor)),
        Figure(340, _beside(tracks), BESIDE),
    ]
    return Drawn("Tracks", [Figures(figures), *_gain(arrays)])


def _gain(arrays: Mapping[str, NDArray[Any]]) -> list[Figures | Words]:
    """Return what following particles brings, where the frames show anything."""
    before, along = arrays.get("signal_before"), arrays.get("signal_along")
    if before is None or along is None:
        return []
    frequency = arrays["signal_frequency"]
    # the first shells hold what windows and backgrounds do, and a share of little is noise
    kept = (before > 0) & (along > 0) & (np.arange(len(before)) > 2) & (before > LEAST_SHARE * before[3:].max())
    if kept.sum() < 3:
        return []
    ratio, squared = along[kept] / before[kept], frequency[kept] ** 2
    slope, level = np.polyfit(squared, np.log(ratio), 1, w=before[kept])
    drawn = _brought(frequency[kept], ratio, np.exp(level + slope * squared))
    found: list[Figures | Words] = [Figures([Figure(430, drawn, BROUGHT)])]
    return [*found, Words(BLURRED.format(4 * slope))] if slope > 0 else found


def _brought(frequency: NDArray[Any], ratio: NDArray[Any], line: NDArray[Any]) -> str:
    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.13, 0.16, 0.84, 0.81))
        axes.axhline(1, color=INK, lw=0.8)
        axes.plot(frequency, ratio, "o", color=BLUE, ms=3.5)
        axes.plot(frequency, line, "-", color=BLUE, lw=1.4)
        axes.set_ylim(0, 1.08 * float(max(ratio.max(), 1.0)))
        shown = [tick for tick in RESOLUTIONS if frequency[0] <= 1 / tick <= frequency[-1] * 1.01]
        axes.set_xticks([1 / tick for tick in shown], [f"{tick:g}" for tick in shown])
        axes.grid(color=GRID, lw=0.8)
        label_axes(axes, "resolution (Å)", "signal along the tracks, over before")

    return draw_svg(430, 300, draw, "Signal along the tracks over the signal before")


def _round_down(value: float) -> float:
    """Return the next smaller of 1, 2, 5, 10, …, at least 1."""
    if value < 1:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(max(step for step in (1, 2, 5) if step * power <= value) * power)


def _over_micrograph(
    grey: NDArray[np.uint8], width: float, height: float, places: NDArray[Any], tracks: NDArray[Any]
) -> str:
    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.11, 0.11, 0.87, 0.87))
        axes.imshow(grey, cmap="gray", extent=(0, width, height, 0), interpolation="bilinear", alpha=0.6)
        axes.grid(visible=False)
        _draw(axes, places[:, None] + tracks - tracks[:, :1], VERMILION, 1.4)
        axes.plot(*places.T, "o", color=INK, ms=2.6)
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        label_axes(axes, "x (nm)", "y (nm)")

    return draw_svg(520, max(200, round(520 * height / width)), draw, "Tracks of particles over a micrograph")


def _beside(tracks: NDArray[Any]) -> str:
    own = tracks - tracks[:, :1]
    own = own - own.mean(axis=0)

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.17, 0.15, 0.8, 0.82))
        _draw(axes, own, BLUE, 1.0)
        axes.plot(*own[:, -1].T, "o", color=VERMILION, ms=2.5)
        axes.plot(0, 0, "+", color=INK, ms=10)
        axes.autoscale_view()
        axes.set_aspect("equal", "datalim")
        axes.invert_yaxis()
        axes.grid(color=GRID, lw=0.8)
        label_axes(axes, "x (Å)", "y (Å)")

    return draw_svg(340, 340, draw, "Motion of particles beside their micrograph")


def _draw(axes: Any, tracks: NDArray[Any], colour: str, width: float) -> None:
    axes.add_collection(LineCollection(list(tracks), colors=colour, linewidths=width, alpha=0.85))


def frame_weights(content: ReportContent) -> Drawn | None:
    """Show the weights of frames at some frequencies, what frames show, and the numbers that weights follow from."""
    arrays = content.arrays
    if "frame_weights" not in arrays:
        return None
    weights, frequency = arrays["frame_weights"].astype(np.float64), arrays["weight_frequency"]
    finest = 1 / float(arrays["shown_frequency"][-1])
    figures = [Figure(430, _weights(weights.mean(axis=0), frequency), SHARES.format(finest))]
    shown = _shown(arrays["shown"], arrays["shown_error"], arrays["shown_frequency"], weights, frequency)
    if shown:
        figures.append(Figure(430, shown, SHOWN))
    b_factors, factors = arrays["frame_b_factors_A2"], arrays["frame_factors"]
    if not np.any(b_factors) and not np.any(factors):
        return Drawn("Weights of frames", [Figures(figures), Words(PLAIN)])
    beside = Figures([Figure(430, _b_factors(b_factors, factors), FACTORS)])
    return Drawn("Weights of frames", [Figures(figures), beside, Words(FITTED)])


def _weights(weights: NDArray[Any], frequency: NDArray[Any]) -> str:
    frames = np.arange(1, len(weights) + 1)
    chosen = [number for number in (20.0, 8.0, 5.0, 3.5, 2.5) if 1 / number <= frequency[-1]]
    shades = np.linspace(0.25, 1.0, max(len(chosen), 1))

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.13, 0.16, 0.84, 0.81))
        for resolution, shade in zip(chosen, shades, strict=True):
            at = int(np.argmin(np.abs(frequency - 1 / resolution)))
            share = weights[:, at] / max(float(weights[:, at].sum()), 1e-12)
            axes.plot(frames, 100 * share, "-", color=BLUE, alpha=float(shade), lw=1.8, label=f"{resolution:g} Å")
        _by_frame(axes, "share (%)")

    return draw_svg(430, 300, draw, "Weights of frames")


def _by_frame(axes: Any, what: str) -> None:
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=GRID, lw=0.8)
    axes.legend(frameon=False, fontsize=9)
    label_axes(axes, "frame", what)


def _shown(
    shown: NDArray[Any], error: NDArray[Any], shown_at: NDArray[Any], weights: NDArray[Any], frequency: NDArray[Any]
) -> str:
    """Return a figure of what frames show in bands, and of their weights there; "" where nothing is certain."""
    precision = np.where(np.isfinite(error) & (error > 0), 1 / np.maximum(error, 1e-30) ** 2, 0.0)
    total = precision.sum(axis=0)
    bands = []
    for coarse, fine in BANDS:
        here = (shown_at >= 1 / coarse) & (shown_at < 1 / fine) & (total.min(axis=0) > 0)
        if here.any():
            there = [int(np.argmin(np.abs(frequency - one))) for one in shown_at[here]]
            usual = (shown * precision).sum(axis=(0, 1))[here] / precision.sum(axis=(0, 1))[here]
            weight = total[:, here] * usual**2
            ratio = ((shown * precision).sum(axis=0)[:, here] / total[:, here] / usual * weight).sum(
                axis=1
            ) / weight.sum(axis=1)
            line = weights.mean(axis=0)[:, there]
            line = (line / line.mean(axis=0)).mean(axis=1)
            bands.append((f"{coarse:g} to {max(fine, 1 / shown_at[here][-1]):.2g} Å", ratio / ratio.mean(), line))
    if not bands:
        return ""
    frames = np.arange(1, len(total) + 1)

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.13, 0.16, 0.84, 0.81))
        for (name, points, line), colour in zip(bands, (GREEN, BLUE, VERMILION), strict=False):
            axes.plot(frames, points, "o", color=colour, ms=3.5, label=name)
            axes.plot(frames, line, "-", color=colour, lw=1.4)
        _by_frame(axes, "over the mean")

    return draw_svg(430, 300, draw, "What frames show of the reference")


def _b_factors(b_factors: NDArray[Any], factors: NDArray[Any]) -> str:
    frames = np.arange(1, b_factors.shape[1] + 1)

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.14, 0.16, 0.67, 0.81))
        beside = axes.twinx()
        for half in (0, 1):
            axes.plot(frames, b_factors[half], "-", color=HALF_COLOURS[half], lw=1.8, label=f"half-set {half + 1}")
            beside.plot(frames, 100 * np.expm1(factors[half]), "--", color=HALF_COLOURS[half], lw=1.2)
        least = max(20.0, 1.1 * float(np.abs(b_factors).max()))
        axes.set_ylim(-least, least)
        most = max(10.0, 110 * float(np.abs(np.expm1(factors)).max()))
        beside.set_ylim(-most, most)
        beside.set_ylabel("factor, beside the mean (%)", color=FAINT)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GRID, lw=0.8)
        axes.legend(frameon=False, fontsize=9)
        label_axes(axes, "frame", "B-factor (Å²)")

    return draw_svg(430, 300, draw, "B-factors and factors of frames")
