"""How far a map agrees with its symmetry mates, by resolution."""

from __future__ import annotations

import numpy as np

from cloudem.report.blocks import Drawn, Figure, Figures, Words
from cloudem.report.content import ReportContent
from cloudem.report.sections.curves import line_figure

MEANS = (
    "The blue curve compares the map with its mates, turned about the axes of {group}; the dashed one is what they "
    "could reach at most with the noise that the map has. They lie on one another for a symmetric molecule. Shells "
    "between the thin lines count. The mean at each distance from the centre is taken out of the map first, because it "
    "agrees with every turn."
)


def agreement(content: ReportContent) -> Drawn | None:
    """Show the correlation with the mates of the best group, and what it could be, over resolution."""
    mates, possible = content.arrays.get("agreement_mates"), content.arrays.get("agreement_possible")
    if mates is None or possible is None:
        return None
    group = str(content.arrays["agreement_group"][0])
    first, last = (int(shell) for shell in content.arrays["agreement_shells"])
    length = float(content.arrays["agreement_length_A"][0])
    counted = np.isfinite(mates)
    shown = {f"with the mates of {group}": mates, "possible": np.where(counted, possible, np.nan)}
    figure = line_figure(shown, length, "correlation", f"Agreement with the mates of {group}", (first, last))
    return Drawn("Agreement with symmetry mates", [Figures([Figure(600, figure)]), Words(MEANS.format(group=group))])
