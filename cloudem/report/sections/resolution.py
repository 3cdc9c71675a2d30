"""The resolution: FSC curves, where they fall, and how both came about."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cloudem.conventions import FSC_HALF, FSC_THRESHOLD
from cloudem.report.blocks import Block, Cell, Drawn, Figure, Figures, Row, Table, Words, numbers
from cloudem.report.content import ReportContent
from cloudem.report.sections.curves import CURVES, fsc_figure, held_out_figure, iterations_figure, resolution_crossing

HELD_OUT_MEANS = (
    "Evidence that owes nothing to the alignment: images are compared with the map of the other half-set on shells "
    "that had no part in their poses, seen their own way and the way of another image. Noise stays below the line, "
    "whatever it was aligned to. Each shell shows the last iteration in which it was not yet scored; by the end, real "
    "signal has more evidence than is shown. A gap is of shells that the map reached only when they were scored."
)


def curves(content: ReportContent) -> Drawn | None:
    """Show the curves, the history of the refinement beside them, and where each curve falls below the thresholds."""
    history = iterations_figure(content.iterations) if len(content.iterations) > 1 else ""
    blocks: list[Block] = []
    if content.fsc and content.pixel_size is not None:
        stated = np.nan if content.resolution_source else content.resolution
        drawn = fsc_figure(content.fsc, content.pixel_size, stated, fan=content.arrays.get("directional_fsc"))
        table = crossings(content, content.pixel_size)
        blocks.append(Figures([Figure(600, drawn), Figure(376, history or replace(table, width=0))]))
        if history:
            blocks.append(table)
    elif history:
        blocks.append(Figures([Figure(376, history)]))
    known = content.arrays.get("held_out_deviations")
    if known is not None and content.pixel_size is not None and np.isfinite(known).any():
        blocks += [Figures([Figure(600, held_out_figure(known, content.pixel_size))]), Words(HELD_OUT_MEANS)]
    return Drawn("Resolution", blocks) if blocks else None


def crossings(content: ReportContent, pixel_size: float) -> Table:
    """Return where each curve falls below the thresholds."""
    rows = []
    for name in reversed(CURVES):
        if name not in content.fsc or name == "phase_randomised":  # a control: where it falls is no resolution
            continue
        curve, cells = content.fsc[name], []
        for threshold in (FSC_HALF, FSC_THRESHOLD):
            at = resolution_crossing(curve, pixel_size, threshold)
            known = bool(np.isfinite(curve[1:]).any())
            cells.append((f"{at:.2f} Å" if np.isfinite(at) else "not reached") if known else "unknown")
        rows.append(Row([Cell(CURVES[name].label, swatch=CURVES[name].colour), *numbers(cells)]))
    head = [Cell("FSC falls below"), *numbers(f"{threshold:g} at" for threshold in (FSC_HALF, FSC_THRESHOLD))]
    return Table(head, rows, width=560)
