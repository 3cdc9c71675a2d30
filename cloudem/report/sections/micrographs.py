"""Micrographs of a session: numbers over the order in which they were taken, and pictures of a dozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Drawing
from numpy.typing import NDArray

from cloudem.errors import one_line
from cloudem.model.columns import Column
from cloudem.report.blocks import Drawn, Figure, Figures, Part, Words
from cloudem.report.content import ReportContent
from cloudem.report.grey_pictures import embedded, grey_jpeg
from cloudem.report.micrograph_columns import PLOTTED, micrograph_values, order_taken
from cloudem.report.sections.map_panels import round_length
from cloudem.report.style import BLUE, VERMILION, draw_svg, label_axes

WIDTH, HEIGHT, ACROSS = 322, 168, 3
"""Pixels of a plot, and plots in a row."""

MANY = 400
"""More points than that are a picture within the drawing, which does not grow with their number."""

PICTURE_PX, QUALITY = 300, 55
"""Greatest size of a picture in the gallery, and how finely JPEG keeps it."""

FEW = 20
"""Of fewer values, none counts as far away."""

LONGEST_NAME, LONGEST_REASON = 46, 90


def session_over_time(content: ReportContent) -> Drawn | None:
    """Show numbers of micrographs over the order in which they were taken; those put aside are marked."""
    columns = content.micrographs
    if not columns or len(columns["micrograph"]) < 2:
        return None
    order, aside = order_taken(columns), content.aside
    known = [(column, micrograph_values(columns, column.name)) for column in PLOTTED]
    shown = [(column, values) for column, values in known if values is not None]
    if not shown:
        return None
    away = np.array([name in aside for name in columns["micrograph"].tolist()])[order]
    figures = [Figure(WIDTH, _over_session(column, values[order], away)) for column, values in shown]
    rows = [Figures(_filled(figures[start : start + ACROSS])) for start in range(0, len(figures), ACROSS)]
    by = "by the microscope's clock" if "acquired" in columns and all(columns["acquired"].tolist()) else "as listed"
    words = f"{len(order):,} micrographs in the order in which they were taken, {by}."
    if away.any():
        those = "The one that is put aside is" if away.sum() == 1 else f"The {away.sum():,} that are put aside are"
        words += f" {those} red."
    return Drawn("Session", [*rows, Words(words)])


def _filled(figures: list[Figure]) -> list[Figure]:
    """Return a row of figures with empty places at its end, so that none is drawn wider than in a full row."""
    return [*figures, *[Figure(WIDTH, "") for _ in range(ACROSS - len(figures))]]


def limits_of_axis(known: NDArray[np.float64], *, counts: bool = False) -> tuple[float, float]:
    """Return the limits of an axis that a few values far away do not spoil: those are drawn at its ends.

    Parameters
    ----------
    known
        ``(n,)`` finite values, at least one.
    counts
        Whether they are counts, whose axis begins at 0.
    """
    low, first, last, high = (float(value) for value in np.percentile(known, [0, 25, 75, 100]))
    reach = 8 * max(last - first, 1e-3 * abs(last), 1e-12) if len(known) >= FEW else np.inf
    low, high = max(low, first - reach), min(high, last + reach)
    low = 0.0 if counts else low
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 0.5
    return (0.0 if 0 <= low < 2 * margin else low - margin), high + margin


def _over_session(column: Column, values: NDArray[np.float64], away: NDArray[np.bool_]) -> str:
    shown = values * column.factor
    low, high = limits_of_axis(shown[np.isfinite(shown)], counts=column.form.endswith("d"))
    margin = 0.02 * (high - low)  # so that points at the ends are seen as a whole
    clipped = np.clip(shown, low + margin, high - margin)
    number = np.arange(1, len(shown) + 1)
    many = len(shown) > MANY
    size = 4.6 if len(shown) < 100 else 2.4 if len(shown) < 1500 else 1.6

    def draw(figure: Drawing) -> None:
        axes = figure.add_axes((0.15, 0.22, 0.81, 0.62))
        for chosen, colour, mark in ((~away, BLUE, "o"), (away, VERMILION, "o")):
            axes.plot(number[chosen], clipped[chosen], mark, color=colour, ms=size, mew=0, alpha=0.75, rasterized=many)
        axes.set_xlim(0.5, len(shown) + 0.5)
        axes.set_ylim(low, high)
        axes.locator_params(nbins=5)
        label_axes(axes, "micrograph", "")
        axes.set_title(column.title, loc="left", fontsize=12, fontweight="bold", pad=6)

    return draw_svg(WIDTH, HEIGHT, draw, f"{column.heading} of micrographs over the session")


def micrograph_gallery(content: ReportContent) -> Drawn | None:
    """Show pictures of a dozen micrographs with what is known of them; why those put aside are."""
    columns = content.micrographs
    if not columns or not content.pictures:
        return None
    row_of = {name: row for row, name in enumerate(columns["micrograph"].tolist())}
    found = {column.name: (column, micrograph_values(columns, column.name)) for column in PLOTTED}
    cells = []
    for picture in content.pictures:
        row = row_of.get(picture.name)
        if row is None:
            continue
        told = [
            f"{column.heading} {column.text(float(values[row]))}"
            for column, values in found.values()
            if values is not None and column in PLOTTED[:6] and np.isfinite(values[row])
        ]
        why = content.aside.get(picture.name, "")
        cells.append(
            {
                "picture": embedded(grey_jpeg(picture.grey, PICTURE_PX, QUALITY)),
                "width": picture.grey.shape[1],
                "height": picture.grey.shape[0],
                "circles": picture.circles,
                "bar": _bar(picture.grey.shape[1], columns, row),
                "name": shortened_name(picture.name),
                "whole": picture.name,
                "told": told,
                "why": one_line(why, LONGEST_REASON) if why else "",
            }
        )
    return Drawn("Micrographs", [Part("micrographs.html", {"cells": cells}), Words(_words(content))])


def _words(content: ReportContent) -> str:
    count, shown = len(content.micrographs["micrograph"]), len(content.pictures)
    which = "All" if shown >= count else f"{shown} of {count:,} micrographs, evenly over the session"
    grey = "each on a grey scale of its own; the first row of the image is at the top."
    return f"{which if shown < count else f'All {count:,} micrographs'}, {grey}"


def _bar(width: int, columns: Mapping[str, NDArray[Any]], row: int) -> dict[str, Any] | None:
    """Return the scale bar of a picture: its length in pixels of the picture, and in words."""
    if "pixel_size" not in columns or "width" not in columns:
        return None
    across = float(columns["pixel_size"][row]) * float(columns["width"][row])
    if not across > 0:
        return None
    length = round_length(0.3 * across)
    return {"px": length / across * width, "text": f"{length / 10:g} nm" if length >= 10 else f"{length:g} Å"}


def shortened_name(name: str, most: int = LONGEST_NAME) -> str:
    """Return a name, without its middle if it is long: what tells micrographs apart is mostly at the end."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"
