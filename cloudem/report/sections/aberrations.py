"""Aberrations of optics groups: the phases that images show beyond what the table said, and what was fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from cloudem.report.blocks import Block, Drawn, Figure, Figures, Words
from cloudem.report.content import ReportContent
from cloudem.report.style import FAINT, draw_svg

MEANING = (
    "Phases beyond those that the table of particles said before, up to the frequency limit, kx to the right and ky "
    "upwards; left what all images together show, right what was fitted and applied. Odd phases (beam tilt, trefoil) "
    "change sign through the centre, even ones (astigmatism, spherical aberration, tetrafoil) do not. Where the data "
    "show a pattern that the fit lacks, an aberration of a higher order may be left; where they are noise alone, "
    "nothing can be said. Even phases near the centre are noise, because no aberration changes the CTF there."
)

MOST_GROUPS = 24
"""Optics groups whose phases are drawn."""

_WIDTH, _HEIGHT = 480, 250

LEAST_SCALE = 0.2
"""Radians: least end of the colour scale."""


def phases(content: ReportContent) -> Drawn | None:
    """Show the odd and the even phase of each optics group, data and fit."""
    pictures = content.arrays.get("phases")
    if pictures is None or not len(pictures):
        return None
    reach = float(content.arrays["phases_reach_per_A"][0])
    names = list(dict.fromkeys(str(name) for name in content.arrays.get("aberration_group", ())))
    blocks: list[Block] = [Words(MEANING)]
    for number, four in enumerate(pictures[:MOST_GROUPS]):
        name = names[number] if len(names) == len(pictures) else f"group {number + 1}"
        shown = []
        for kind, pair in (("Odd", four[:2]), ("Even", four[2:])):
            caption = f"{kind} phase of {name}." if len(pictures) > 1 else f"{kind} phase."
            shown.append(Figure(_WIDTH, phase_pair(pair, reach, f"{kind} phase, data and fit"), caption))
        blocks.append(Figures(shown))
    if len(pictures) > MOST_GROUPS:
        blocks.append(Words(f"The first {MOST_GROUPS} of {len(pictures):,} optics groups."))
    return Drawn("Phases of the microscope", blocks)


def phase_pair(pair: NDArray[np.floating[Any]], reach: float, label: str) -> str:
    """Draw what images show beside what was fitted, (2, m, m) radians, on one scale of colours.

    Parameters
    ----------
    pair
        Data and fit; NaN is left blank.
    reach
        Frequency at the rim, 1/Å.
    label
        What it shows, for readers who cannot see it. Trusted text.
    """
    data, fit = (np.asarray(part, np.float64) for part in pair)
    most = float(np.nanmax(np.abs(fit), initial=0.0))
    scale = float(np.clip(max(most, float(np.nanpercentile(np.abs(data), 75))), LEAST_SCALE, np.pi))
    wrapped = (fit + np.pi) % (2 * np.pi) - np.pi if most > np.pi else fit

    def draw(figure: Drawing) -> None:
        side = 186
        for place, (image, title) in enumerate(((data, "data"), (wrapped, "fit"))):
            axes = figure.add_axes(((30 + place * (side + 18)) / _WIDTH, 34 / _HEIGHT, side / _WIDTH, side / _HEIGHT))
            drawn = axes.imshow(
                image, origin="lower", extent=(-reach, reach, -reach, reach), cmap="RdBu_r", vmin=-scale, vmax=scale,
                interpolation="nearest",
            )  # fmt: skip
            axes.set_axis_off()
            axes.set_title(title, loc="center", fontsize=12, pad=6)
            axes.text(0, -1.1 * reach, f"rim {1 / reach:.2f} Å", ha="center", va="top", fontsize=10, color=FAINT)
        bar = figure.colorbar(drawn, cax=figure.add_axes((440 / _WIDTH, 44 / _HEIGHT, 9 / _WIDTH, 166 / _HEIGHT)))
        bar.set_ticks([-scale, 0, scale], labels=[f"{-scale:.1f}", "0", f"{scale:.1f}"])
        bar.outline.set_visible(False)
        figure.text(432 / _WIDTH, 224 / _HEIGHT, "radians", fontsize=11)

    return draw_svg(_WIDTH, _HEIGHT, draw, label)
