"""What went over the network, by iteration and by what it was for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cloudem.report.blocks import Cell, Row, Table, numbers
from cloudem.report.content import TransferRow
from cloudem.report.style import BLUE, GREEN, GREY, VERMILION, draw_svg, label_axes
from cloudem.text import size
from cloudem.traffic import PURPOSES, Moved, Traffic, total_traffic

COLOURS = {"images": BLUE, "reference": GREEN, "bricks": VERMILION, "poses": "#e69f00", "other": GREY}

_HEIGHT = 250


def network_table(transfers: Sequence[TransferRow]) -> Table:
    """Return received bytes by iteration and purpose, and what was sent in all; purposes without any are left out."""
    everything = total_traffic(transfer.moved for transfer in transfers)
    names = _used(everything)
    head = [Cell("iteration" if len(transfers) > 1 else "")]
    head += [Cell(name, "n", swatch=COLOURS[name]) for name in names]
    rows = [_row(each.label, each.moved, names) for each in transfers] if len(transfers) > 1 else []
    rows.append(_row("received", everything, names, "total"))
    sent = [*(_cell(everything[name].sent) for name in names), "", _cell(_sum(everything).sent)]
    rows.append(Row([Cell("sent", "name"), *numbers(sent)]))
    return Table([*head, *numbers(["received", "sent"])], rows, "network")


def _row(label: str, moved: Moved, names: Sequence[str], kind: str = "") -> Row:
    whole = _sum(moved)
    sizes = [*(moved[name].received for name in names), whole.received, whole.sent]
    return Row([Cell(label, "name"), *numbers(map(_cell, sizes))], kind)


def network_figure(transfers: Sequence[TransferRow], width: int = 320) -> str:
    """Draw the bytes received in each iteration, one bar each, stacked by purpose."""
    names = [name for name in PURPOSES if any(each.moved[name].received for each in transfers)]
    received = np.array([[each.moved[name].received for name in names] for each in transfers], dtype=float)
    numbers = [int(each.label) for each in transfers]

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((62 / width, 50 / _HEIGHT, 1 - 70 / width, 1 - 66 / _HEIGHT))
        below = np.zeros(len(transfers))
        for name, part in zip(names, received.T, strict=True):
            axes.bar(numbers, part, bottom=below, width=0.62, color=COLOURS[name], label=name)
            below = below + part
        axes.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda count, _: size(count) if count else "0"))
        axes.grid(visible=False, axis="x")
        label_axes(axes, "iteration", "")

    return draw_svg(width, _HEIGHT, draw, "Bytes received by iteration")


def _used(moved: Moved) -> list[str]:
    return [name for name in PURPOSES if any(moved[name])]


def _sum(moved: Moved) -> Traffic:
    return Traffic(*map(sum, zip(*moved.values(), strict=True)))


def _cell(count: int) -> str:
    return size(count) if count else "–"
