"""States of a molecule: the answer, the map of each and what sets it apart, and how far its halves agree."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.conventions import FSC_THRESHOLD
from cloudem.report.blocks import Cell, Drawn, Figure, Figures, Panels, Row, Table, Words, facts, numbers
from cloudem.report.content import ReportContent
from cloudem.report.sections.map_panels import VIEWS, grey_limits, picture
from cloudem.report.style import BLUE, FAINT, GREEN, GREY, INK, VERMILION, draw_svg, label_axes

Volumes: TypeAlias = NDArray[np.floating[Any]]

MOST_DRAWN = 12
"""Classes whose maps are drawn."""

COLOURS = (BLUE, VERMILION, GREEN, "#cc79a7", "#8c6d31", GREY)
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.6)))

EVIDENCE = (
    "Evidence is the logarithm of how much more probable an image is with the classes than with one map of all images. "
    "It is the mean over images that had trained neither when the number of states was decided on."
)
SLICES = (
    "Slices through the place where the classes differ most, one grey scale for all classes; density of the molecule "
    "is bright."
)
CENTRAL = "Central slices of the map of all particles; density of the molecule is bright."
DIFFERENCES = (
    "What sets each class apart from the mean of all: more density is bright, less is dark, none is the grey between. "
    "Shells and places where the two halves do not agree are weakened."
)


def summary(content: ReportContent) -> Drawn | None:
    """Show share and resolution of each class, and the evidence for them."""
    share, members = content.arrays.get("class_share"), content.arrays.get("class_members")
    if share is None or members is None or "class_maps" not in content.arrays:
        return None
    resolution = content.arrays.get("class_resolution_A", np.full(len(share), np.nan))
    head = [Cell("Class"), *numbers(("particles", "share (%)", "resolution (Å)"))]
    rows = [
        Row([Cell(str(place + 1), swatch=_colour(place)), *numbers((f"{count:,}", f"{100 * part:.1f}", f"{at:.2f}"))])
        for place, (count, part, at) in enumerate(zip(members, share, resolution, strict=True))
    ]
    blocks = [Figure(560, Table(head, rows))]
    gain = content.arrays.get("states_gain")
    if gain is not None and len(gain) == 3 and gain[2] > 0:
        certain = gain[0] / gain[1] if gain[1] > 0 else 0.0
        told = [
            ("evidence against one state, mean of an image", f"{gain[0]:.3f}"),
            ("standard error", f"{gain[1]:.3f}"),
            ("in standard errors", f"{certain:.1f}"),
            ("images held out for it", f"{int(gain[2]):,}"),
        ]
        blocks.append(Figure(400, facts(told)))
    title = "One state" if len(share) == 1 else f"{len(share)} states"
    return Drawn(title, [Figures(blocks), Words(EVIDENCE)])


def maps(content: ReportContent) -> Drawn | None:
    """Show slices of each class's map, and of its difference from the mean of all."""
    volumes, differences = content.arrays.get("class_maps"), content.arrays.get("class_differences")
    if volumes is None or volumes.ndim != 4:
        return None
    shown = volumes[:MOST_DRAWN]
    box = shown.shape[-1]
    place: tuple[int, ...] = (box // 2,) * 3
    if differences is not None and differences.ndim == 4:
        grid = differences.shape[-1]
        place = tuple(int(at * box / grid) for at in most_different(differences))
    blocks: list[Any] = [Panels(_panels(shown, place, content.pixel_size, "", even=False))]
    blocks.append(Words(CENTRAL if differences is None else SLICES))
    if differences is not None and differences.ndim == 4 and content.pixel_size:
        pixel = content.pixel_size * box / grid
        there = tuple(int(at * grid / box) for at in place)
        panels = _panels(differences[:MOST_DRAWN], there, pixel, "difference", even=True)
        blocks += [Panels(panels), Words(DIFFERENCES)]
    return Drawn("Maps of the classes" if len(volumes) > 1 else "Map", blocks)


def most_different(differences: Volumes) -> tuple[int, int, int]:
    """Return the voxel (z, y, x) about which differences (c, m, m, m) are largest."""
    power = ndimage.gaussian_filter(np.sum(np.square(differences, dtype=np.float64), axis=0), 2.0)
    z, y, x = np.unravel_index(int(np.argmax(power)), power.shape)
    return int(z), int(y), int(x)


def _panels(
    volumes: Volumes, place: tuple[int, ...], pixel_size: float | None, what: str, *, even: bool
) -> list[tuple[str, str, str]]:
    """Return slices across all three axes through a voxel, three for each class."""
    cuts = [[volume.take(place[axis], axis=axis) for axis, *_ in VIEWS] for volume in volumes]
    low, high = grey_limits(np.concatenate([np.stack(each) for each in cuts]), 99.9)
    if even:
        high = max(abs(low), abs(high), 1e-30)
        low = -high
    panels = []
    for number, each in enumerate(cuts, 1):
        for image, (axis, across, right, up) in zip(each, VIEWS, strict=True):
            label = f"Class {number}{f', {what}' if what else ''}: slice across {across}"
            offset = "" if pixel_size is None else f", at {(place[axis] - len(volumes[0]) // 2) * pixel_size:.0f} Å"
            panels.append((picture(image, low, high, pixel_size, label), label, f"({right} right, {up} up{offset})"))
    return panels


def class_curves(content: ReportContent) -> Drawn | None:
    """Show the FSC of the halves of each class."""
    fsc = content.arrays.get("class_fsc")
    if fsc is None or fsc.ndim != 2 or not content.pixel_size:
        return None
    drawn = fsc_of_classes(fsc, content.pixel_size)
    words = (
        "Fourier shell correlation of the two halves of each class, corrected for the mask. The class of an image "
        "depends on the images of both halves, so that these curves rank classes; a refinement of a selection measures "
        "its resolution."
    )
    return Drawn("Halves of the classes", [Figures([Figure(600, drawn)]), Words(words)])


def fsc_of_classes(fsc: Volumes, pixel_size: float, width: int = 600, height: int = 320) -> str:
    """Draw a curve for each class, (c, shells)."""
    shells = fsc.shape[1]
    frequency = np.arange(shells) / (2 * (shells - 1) * pixel_size)

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((56 / width, 50 / height, 1 - 94 / width, 1 - 80 / height))
        for number, curve in enumerate(fsc):
            dash: Any = DASHES[number // len(COLOURS) % len(DASHES)]
            axes.plot(
                frequency[1:], curve[1:], color=_colour(number), ls=dash, lw=2, label=f"class {number + 1}"
            )  # fmt: skip
        axes.axhline(FSC_THRESHOLD, color=INK, lw=0.8, ls=(0, (4, 3)))
        axes.text(1.008 * frequency[-1], FSC_THRESHOLD, f"{FSC_THRESHOLD:g}", va="center", fontsize=11)
        axes.axhline(0, color=FAINT, lw=0.8)
        axes.set_xlim(0, frequency[-1])
        axes.set_ylim(min(-0.05, float(np.nanmin(fsc[:, 1:])) - 0.03), 1.04)
        label_axes(axes, "spatial frequency (1/Å)", "Fourier shell correlation")
        figure.legend(loc="lower left", bbox_to_anchor=(48 / width, 1 - 28 / height), ncols=6, fontsize=11)

    return draw_svg(width, height, draw, "Fourier shell correlation of each class")


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
