"""Colours, type and sizes shared by the page and its figures, and the one way a figure becomes SVG."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2933"
FAINT = "#6b7785"
# Blue, vermilion and green of Okabe & Ito: distinct for colour-blind readers and, by lightness, in grey print.
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
GREY = "#8d99a6"
PALE_BLUE = "#9cc3dc"

_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: it takes the page's font and can be searched
    "svg.hashsalt": "cloudem",  # equal content gives equal bytes
    "text.parse_math": False,
    "font.size": 12,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ecf0",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 11.5,
    "lines.solid_capstyle": "round",
}
# Settings of matplotlib are global to the process; reports rendered at the same time must take turns.
_LOCK = threading.Lock()


@contextmanager
def styled() -> Iterator[None]:
    """Draw with these settings; one figure at a time."""
    with _LOCK, mpl.rc_context(_SETTINGS):
        yield


def draw_svg(width: int, height: int, draw: Callable[[Figure], None], label: str) -> str:
    """Draw one figure and return it as an ``<svg>`` element without any address in it.

    Parameters
    ----------
    width, height : int
        Size in CSS pixels at which lines and type have their nominal size.
    draw : callable
        Fills the empty figure.
    label : str
        What the figure shows, in words, for readers who cannot see it. Trusted text.
    """
    buffer = io.StringIO()
    with styled():
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor="none")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, dpi=144, metadata=nothing)
    text = buffer.getvalue()
    body = text[text.index(">", text.index("<svg")) + 1 :].replace("xlink:href", "href")
    head = f'<svg class="plot" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" style="width:{width}px">'
    return head + body.strip()


def label_axes(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Name the axes, with the title set left and plain as in print."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=10)
    axes.tick_params(length=3)


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f4f6f8; color: #1f2933; line-height: 1.5;
  font: 15px/1.5 "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif; }
main { width: 1100px; margin: 24px auto; padding: 44px 50px 36px; background: #fff;
  border: 1px solid #d8dee5; border-radius: 6px; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 600; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; font-weight: 600; margin: 44px 0 14px; padding-top: 14px; border-top: 1px solid #d8dee5; }
p { margin: 6px 0; max-width: 800px; }
.quiet { color: #6b7785; font-size: 13.5px; } .wide { max-width: none; }
.row + table { margin-top: 14px; } table + .row { margin-top: 18px; }
.tiles { display: flex; margin: 24px 0 4px; border: 1px solid #d8dee5; border-radius: 6px; }
.tile { flex: 1 1 0; padding: 14px 12px 12px 14px; border-left: 1px solid #d8dee5; min-width: 0; }
.tile:first-child { border-left: 0; flex-grow: 1.25; background: #eef5fa; border-radius: 6px 0 0 6px; }
.tile b { display: block; font-size: 24px; font-weight: 600; line-height: 1.25; white-space: nowrap; }
.tile:first-child b { color: #005a8d; font-size: 28px; line-height: 1.1; }
.tiles:has(.tile:nth-child(7)) .tile:not(:first-child) b { font-size: 19px; line-height: 1.6; }
.tile span { display: block; font-size: 12.5px; line-height: 1.35; color: #52606d; margin-top: 3px; }
.warnings { margin: 20px 0 0; padding: 12px 18px; background: #fff4e5; border-left: 5px solid #d55e00;
  border-radius: 3px; }
.warnings b { color: #a34700; }
.warnings ul, .notes { margin: 4px 0 2px; padding-left: 20px; }
.warnings li, .notes li { overflow-wrap: anywhere; }
.row { display: flex; gap: 24px; justify-content: space-between; align-items: flex-start; }
.row + .row { margin-top: 18px; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: 13px; color: #52606d; margin-top: 4px; line-height: 1.4; }
svg { display: block; height: auto; max-width: 100%; }
svg.plot text { font-family: "Helvetica Neue", Helvetica, Arial, "Liberation Sans", sans-serif !important; }
svg image { image-rendering: auto !important; }
.panels { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px 14px; }
.panels svg { width: 100%; border-radius: 3px; }
.classes { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 10px; }
.classes svg { width: 100%; border-radius: 3px; display: block; }
.classes figcaption { line-height: 1.25; margin-top: 3px; }
.classes figcaption span { display: block; font-size: 11.5px; }
.classes .faint { opacity: 0.55; }
.micrographs { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 16px 14px; }
.micrographs svg { width: 100%; border-radius: 3px; display: block; }
.micrographs circle { fill: none; stroke: #56b4e9; stroke-width: 1.2; }
.micrographs rect { fill: #fff; }
.micrographs svg text { fill: #fff; font-size: 13px; font-weight: 600; }
.micrographs figcaption { line-height: 1.3; margin-top: 4px; }
.micrographs b { display: block; overflow-wrap: anywhere; }
.micrographs figcaption span { white-space: nowrap; margin-right: 8px; }
.micrographs figcaption span.why { white-space: normal; color: #a34700; display: block; }
.micrographs .aside svg { outline: 2px solid #d55e00; outline-offset: -2px; }
table { border-collapse: collapse; font-size: 13.5px; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: #52606d; border-bottom: 1.5px solid #9aa5b1; padding: 4px 10px 4px 0; }
td { border-bottom: 1px solid #e4e8ec; padding: 4px 10px 4px 0; vertical-align: top; overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.name { white-space: nowrap; font-weight: 500; }
td.bar { width: 30%; vertical-align: middle; }
td.bar i { display: block; height: 11px; background: #0072b2; border-radius: 1px; min-width: 1px; }
td.bar i + i { background: #9cc3dc; margin-top: 2px; height: 5px; }
table.network td, table.network th { white-space: nowrap; padding-right: 2px; padding-left: 8px; }
table.network .swatch { width: 12px; margin-right: 4px; }
.row + p { margin-top: 14px; }
tr.total td { font-weight: 600; border-bottom: 0; border-top: 1.5px solid #9aa5b1; }
pre { background: #f4f6f8; padding: 10px 14px; border-radius: 4px; font-size: 13px; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 8px 0; }
.swatch { display: inline-block; width: 22px; height: 0; border-top: 3px solid; vertical-align: middle;
  margin-right: 8px; }
.status { display: inline-block; padding: 1px 11px; border-radius: 11px; color: #fff; font-size: 14px;
  font-weight: 600; vertical-align: 5px; margin-left: 12px; background: #6b7785; }
.status.done { background: #00795a; } .status.stopped { background: #b35900; } .status.failed { background: #b3261e; }
.legend { font-size: 13px; color: #52606d; margin: 0 0 2px; } .legend span { margin-right: 16px; }
.legend .key { display: inline-block; width: 18px; height: 10px; border-radius: 2px; margin-right: 6px; }
td.plan { width: 134px; padding-right: 4px; } td.plan svg { width: 130px; }
.told { margin: 14px 0 0; padding: 8px 18px; background: #eef5fa; border-radius: 4px; max-width: none; }
table:not(.compare) td.n + td, table:not(.compare) th.n + th { padding-left: 18px; }
td.off { color: #b34700; font-weight: 600; } tr.rest td { color: #52606d; }
table.compare td { vertical-align: middle; } table.compare td.plan + td { padding-right: 26px; }
table.compare th.n { padding-right: 26px; } table.compare td:last-child { min-width: 80px; }
summary { cursor: pointer; font-size: 13.5px; margin: 12px 0 6px; color: #005a8d; }
table.events { margin-top: 10px; } td.event { font-weight: 600; width: 26px; }
td.when { white-space: nowrap; width: 90px; }
.facts td:first-child { width: 190px; color: #52606d; } a { color: #005a8d; }
footer { margin-top: 40px; padding-top: 12px; border-top: 1px solid #d8dee5; }
@media screen and (max-width: 1100px) {
  main { width: auto; margin: 0; padding: 28px 20px; border: 0; }
  .tiles, .row { flex-wrap: wrap; } .tile { flex: 1 1 118px; }
  section { overflow-x: auto; } td { overflow-wrap: break-word; } td.bar { min-width: 120px; }
}
@media screen and (max-width: 620px) { .panels { grid-template-columns: 1fr 1fr; } }
@page { size: A4; margin: 12mm; }
@media print {
  body { background: #fff; } main { margin: 0; padding: 0; border: 0; width: 1000px; zoom: 0.7; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2 { break-after: avoid; } tr, .tiles, .warnings, .panels { break-inside: avoid; }
}
"""
