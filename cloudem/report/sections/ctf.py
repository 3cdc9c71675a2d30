"""The CTF of micrographs: how its numbers are distributed, and spectra with their fits."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from cloudem.report.blocks import Block, Drawn, Figure, Figures, Words
from cloudem.report.content import ReportContent
from cloudem.report.sections.curves import histogram
from cloudem.report.sections.map_panels import picture
from cloudem.report.style import BLUE, FAINT, GREEN, GREY, INK, VERMILION, draw_svg, label_axes

Array = NDArray[np.floating[Any]]

MEANING = (
    "Left half: the averaged spectrum less its background; right half: the fitted CTF, its square, on the same grey"
    " scale, whose contrast is evened out over all rings. Curves: the average along lines of equal phase, the fit, and"
    " the correlation of both nearby; the line marks where that falls below 0.5."
)

_WIDTH, _HEIGHT = 620, 250


def overview(content: ReportContent) -> Drawn | None:
    """Show histograms of defocus, astigmatism, resolution of the fit, score, and what else is known."""
    arrays = content.arrays
    if "ctf_defocus_u" not in arrays:
        return None
    u, v = arrays["ctf_defocus_u"], arrays["ctf_defocus_v"]
    shown = [
        ((u + v) / 2e4, "defocus (µm)", "Mean defocus"),
        ((u - v) / 10, "difference (nm)", "Astigmatism"),
        (arrays["ctf_fit_resolution"], "resolution (Å)", "The fit agrees to"),
        (arrays["ctf_fit_score"], "correlation", "Score"),
        (arrays["ctf_ice_ring_density"], "excess of power", "Ring of ice at 3.7 Å"),
    ]
    if np.nanmax(np.abs(arrays["ctf_phase_shift"]), initial=0.0) > 0:
        shown.append((np.rad2deg(arrays["ctf_phase_shift"]), "phase shift (°)", "Phase plate"))
    if (thickness := arrays.get("ctf_ice_thickness")) is not None:
        shown.append((thickness / 10, "thickness (nm)", "Thickness of the ice"))
    if (tilt := arrays.get("ctf_tilt_angle")) is not None:
        shown.append((np.rad2deg(tilt), "tilt (°)", "Tilt of the specimen"))
    if (residual := arrays.get("tile_residual")) is not None:
        shown.append((residual / 10, "difference (nm)", "Defocus of tiles"))
    known = [each for each in shown if np.isfinite(each[0]).any()]
    good = int(np.isfinite(u).sum())
    blocks: list[Block] = [Words(f"{good:,} of {len(u):,} micrographs have a CTF that agrees with them.", "told")]
    for start in range(0, len(known), 3):
        row = known[start : start + 3]
        figures = [
            Figure(300, histogram(values, x, title, 300, 230, "micrographs" if len(values) == len(u) else "tiles"))
            for values, x, title in row
        ]
        blocks.append(Figures([*figures, *(Figure(300, "") for _ in range(3 - len(row)))]))
    return Drawn("Contrast transfer", blocks)


def pictures(content: ReportContent) -> Drawn | None:
    """Show spectra with their fits, from the best to the worst."""
    images = content.arrays.get("shown_picture")
    if images is None or not len(images):
        return None
    blocks: list[Block] = [Words(MEANING)]
    for number, image in enumerate(images):
        label = f"Spectrum {number + 1}, data and fit"
        left = Figure(250, picture(image.astype(np.float32), 0, 255, None, label, len(image)), _told(content, number))
        curves = {name: content.arrays[f"shown_{name}"][number] for name in ("data", "model", "quality")}
        highest = float(content.arrays["shown_highest"][number])
        limit = float(content.arrays["shown_ctf_fit_resolution"][number])
        right = Figure(_WIDTH, curves_figure(curves, highest, limit, f"Curves of spectrum {number + 1}"))
        blocks.append(Figures([left, right]))
    return Drawn("Spectra", blocks)


def _told(content: ReportContent, number: int) -> str:
    """Return what is said below a spectrum."""
    values = {
        name: float(content.arrays[f"shown_{name}"][number])
        for name in ("defocus_u", "defocus_v", "defocus_angle", "ctf_fit_resolution", "ctf_fit_score")
    }
    name, problem = (str(content.arrays[f"shown_{each}"][number]) for each in ("name", "problem"))
    if problem:
        return f"{name}: {problem}."
    defocus = " and ".join(f"{values[each] / 1e4:.3f}" for each in ("defocus_u", "defocus_v"))
    return (
        f"{name}: {defocus} µm at {np.rad2deg(values['defocus_angle']):.0f}°; agrees to"
        f" {values['ctf_fit_resolution']:.1f} Å, score {values['ctf_fit_score']:.2f}."
    )


def curves_figure(curves: dict[str, Array], highest: float, limit: float, label: str) -> str:
    """Draw the average along lines of equal phase, the fit and their local correlation over spatial frequency.

    Parameters
    ----------
    curves
        ``data``, ``model`` and ``quality``, at even frequencies from 0; NaN is left out.
    highest
        1/Å of the last.
    limit
        Å up to which the fit agrees; NaN for nowhere.
    label
        What it shows, for readers who cannot see it. Trusted text.
    """
    frequency = np.linspace(0, highest, len(curves["data"]))

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((52 / _WIDTH, 48 / _HEIGHT, 1 - 66 / _WIDTH, 1 - 84 / _HEIGHT))
        axes.axhline(0, color=FAINT, lw=0.8)
        axes.plot(frequency, np.clip(curves["data"], -1.6, 1.6), color=GREY, lw=1.4, label="data")
        axes.plot(frequency, curves["model"], color=BLUE, lw=1.6, label="fit")
        axes.plot(frequency, curves["quality"], color=GREEN, lw=1.8, label="correlation nearby")
        if np.isfinite(limit):
            axes.axvline(1 / limit, color=VERMILION, lw=1.2, ls=(0, (4, 3)))
            right = 1 / limit > 0.85 * highest
            axes.text(
                1 / limit, 1.62, f"{limit:.1f} Å ", ha="right" if right else "left", va="top", color=INK, fontsize=11
            )
        axes.set_xlim(0, highest)
        axes.set_ylim(-1.4, 1.65)
        axes.set_yticks([-1, -0.5, 0, 0.5, 1])
        label_axes(axes, "spatial frequency (1/Å)", "")
        place = (44 / _WIDTH, 1 - 32 / _HEIGHT)
        figure.legend(handles=list(axes.lines)[1:4], loc="lower left", bbox_to_anchor=place, ncols=3, fontsize=11)

    return draw_svg(_WIDTH, _HEIGHT, draw, label)
