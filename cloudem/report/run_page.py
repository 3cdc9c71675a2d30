"""One self-contained HTML page about one run on rented machines: what was planned, what it took and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import NamedTuple, TypeAlias

from cloudem.report.sections.planning import Point, plan_figure
from cloudem.report.sections.timeline import Band, NodeBar, Spending, legend, timeline
from cloudem.report.style import CSS
from cloudem.text import dollars, duration

Triple: TypeAlias = tuple[float, float, float]
"""Low, expected, high."""


class StepRow(NamedTuple):
    """A step, or what belongs to none.

    Attributes
    ----------
    name, machines
        What it is called and what was planned for it.
    wall_plan, wall
        Seconds: planned, and as it was; None where it was not planned, or has not begun.
    usd_plan, usd
        Dollars, likewise.
    how
        How it ended: ``done``, ``stopped``, ``failed``; empty where nothing is to be said.
    link
        Where its own report is, relative to the page; empty where there is none.
    """

    name: str
    machines: str
    wall_plan: Triple | None
    wall: float | None
    usd_plan: Triple | None
    usd: float | None
    how: str = ""
    link: str = ""


class NodeRow(NamedTuple):
    """A node: dollars, and how it ended in words."""

    name: str
    pool: str
    bar: NodeBar
    usd: float
    ended: str


class Event(NamedTuple):
    """Something that happened, with the letter of its line in the figure (empty: no line), and when in words."""

    at: float
    letter: str
    when: str
    text: str


class PriceRow(NamedTuple):
    """A pool: price of the catalogue with date and source, and what was metered, dollars per hour."""

    pool: str
    listed: str
    as_of: str
    source: str
    metered: str


@dataclass(frozen=True)
class RunContent:
    """What a page says of a run; plain data.

    Attributes
    ----------
    title, created
        Name, and a line on when and by whom.
    status, why
        How it stands or ended.
    rehearsal
        Whether nothing was charged.
    asked
        What was asked for: names and texts.
    promise
        What was said of the maximum before anything was rented.
    max_usd, spent, wall
        Dollars, dollars, seconds with any machine.
    usd_plan, wall_plan
        In all.
    steps, others
        Planned and actual of the steps, and of what belongs to none.
    points, max_hours, front_title
        The Pareto set of the plan, and the limits that were drawn with it.
    nodes, bands, events, spending
        What happened when.
    prices, notes, unmetered
        Where prices are from, notes of the plan, what is not in the meter (what, why).
    where
        URL of the run.
    versions
        Of cloudem.
    """

    title: str
    created: str
    status: str
    why: str
    rehearsal: bool
    asked: Sequence[tuple[str, str]]
    promise: str
    max_usd: float
    spent: float
    wall: float
    usd_plan: Triple
    wall_plan: Triple
    spending: Spending
    steps: Sequence[StepRow] = ()
    others: Sequence[StepRow] = ()
    points: Sequence[Point] = ()
    limits: tuple[float | None, float | None] = (None, None)
    front_title: str = ""
    nodes: Sequence[NodeRow] = ()
    bands: Sequence[Band] = ()
    events: Sequence[Event] = ()
    prices: Sequence[PriceRow] = ()
    notes: Sequence[str] = ()
    unmetered: Sequence[tuple[str, str]] = ()
    where: str = ""
    versions: Sequence[str] = field(default_factory=tuple)


RUN_CSS = """
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
table.compare th.n { padding-right: 26px; } table.compare td:last-child { min-width: 62px; }
summary { cursor: pointer; font-size: 13.5px; margin: 12px 0 6px; color: #005a8d; }
td.event { font-weight: 600; width: 26px; } td.when { white-space: nowrap; width: 90px; }
.facts td:first-child { width: 190px; color: #52606d; } a { color: #005a8d; }
"""

MINUTE = "Each machine is charged for a minute at least, from its launch on"

MOST_ROWS = 16
"""Of a table of machines that is shown at once."""

MOST = math.log(20.0)
"""A figure that differs by more from what was expected is drawn at the end of its bar."""

_BAR = 130, 18
"""Pixels of a range bar."""

_OUTSIDE, _INSIDE, _RANGE = "#d55e00", "#0072b2", "#b9d3e3"


def render_run(content: RunContent) -> str:
    """Render the page of a run.

    Returns
    -------
    str
        A whole HTML page. It loads nothing, runs nothing, and every text of ``content`` is escaped.
    """
    sections = (
        _head(content),
        _asked(content),
        _compared(content),
        _happened(content),
        _front(content),
        _nodes(content),
        _money(content),
        _made(content),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=1200">'
        f"<title>{escape(content.title)}</title><style>{CSS}{RUN_CSS}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _head(content: RunContent) -> str:
    taken = sum(line.bar.how == "taken" for line in content.nodes)
    tiles = [
        (dollars(content.spent), f"spent, of an approximate maximum of {dollars(content.max_usd)}"),
        (dollars(content.usd_plan[1]), f"was expected; planned {_range(content.usd_plan, dollars)}"),
        (duration(content.wall), f"with machines; planned {_range(content.wall_plan, duration)}"),
        (str(len(content.nodes)), "machines" + (f", {taken} of them taken or lost and replaced" if taken else "")),
    ]
    shown = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    status = escape(content.status)
    kind = status if status in ("done", "stopped", "failed") else ""
    why = f"<p><b>{status}:</b> {escape(content.why)}</p>" if content.why else ""
    passed = content.spent - content.max_usd
    said = "A rehearsal on one computer: prices are made up, and nothing was charged."
    told = f'<p class="told">{said}</p>' if content.rehearsal else ""
    if passed > 0:
        told += f'<div class="warnings"><b>The approximate maximum was passed by {dollars(passed)}.</b></div>'
    return (
        f'<header><h1>{escape(content.title)}<span class="status {kind}">{status}</span></h1>'
        f'<p class="quiet">{escape(content.created)}</p>{why}</header><div class="tiles">{shown}</div>' + told
    )


def _asked(content: RunContent) -> str:
    facts = [*content.asked, *([("what was promised", content.promise)] if content.promise else [])]
    rows = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in facts)
    return f'<section><h2>What was asked for</h2><table class="facts">{rows}</table></section>' if rows else ""


def _compared(content: RunContent) -> str:
    whole = StepRow(
        "in all", "", content.wall_plan, content.wall, content.usd_plan, content.spent,
        content.status if content.status in ("done", "stopped", "failed") else "",
    )  # fmt: skip
    lines = [*content.steps, *content.others, whole]
    scales = _scale([(line.wall_plan, line.wall) for line in lines]), _scale([(li.usd_plan, li.usd) for li in lines])
    rows = "".join(_compare(line, scales, "") for line in content.steps)
    rows += "".join(_compare(line, scales, "rest") for line in content.others)
    rows += _compare(whole, scales, "total")
    return (
        '<section><h2>Planned and actual</h2><table class="compare"><tr><th>step</th><th>machines</th>'
        '<th colspan="2">planned time</th><th class="n">actual</th><th colspan="2">planned cost</th>'
        f'<th class="n">actual</th><th></th></tr>{rows}</table>{_bar_legend()}</section>'
    )


def _bar_legend() -> str:
    return (
        '<p class="quiet">Bars: what time and cost may turn out to be, with the expected value as a stroke and the '
        f'actual one as a <b style="color:{_INSIDE}">●</b>, <b style="color:{_OUTSIDE}">●</b> where it is outside, '
        "○ where the step did not come to its end; relative to the expected value, one logarithmic scale in a column. "
        "<i>Slower</i>, <i>dearer</i> and the like: outside of the whole range. The plan counts the wait for machines "
        "with the step that needs them, the meter with what is between the steps.</p>"
    )


def _compare(line: StepRow, scales: tuple[float, float], kind: str) -> str:
    cells = []
    for planned, actual, scale, say in (
        (line.wall_plan, line.wall, scales[0], duration),
        (line.usd_plan, line.usd, scales[1], dollars),
    ):
        off = _off(planned, actual, line.how)
        cells.append(
            f'<td class="n">{_range(planned, say) if planned else ""}</td>'
            f'<td class="plan">{_bar(planned, actual, scale, line.how)}</td>'
            f'<td class="n{" off" if off else ""}">{say(actual) if actual is not None else "–"}</td>'
        )
    name = escape(line.name)
    if line.link:
        name = f'<a href="{escape(line.link, quote=True)}">{name}</a>'
    notes = ", ".join(filter(None, (line.how, *(_words(line)))))
    return (
        f'<tr class="{kind}"><td class="name">{name}</td><td>{escape(line.machines)}</td>{"".join(cells)}'
        f"<td>{escape(notes)}</td></tr>"
    )


def _words(line: StepRow) -> list[str]:
    """Say what is outside of its range; colours alone say nothing to some."""
    found = []
    for planned, actual, below, above in (
        (line.wall_plan, line.wall, "faster", "slower"),
        (line.usd_plan, line.usd, "cheaper", "dearer"),
    ):
        off = _off(planned, actual, line.how)
        if off:
            found.append(above if off > 0 else below)
    return found


def _off(planned: Triple | None, actual: float | None, how: str) -> int:
    """Return 1 above the range, -1 below, 0 within; what was not finished is not too little."""
    if planned is None or actual is None:
        return 0
    if actual > planned[2] * (1 + 1e-9):
        return 1
    return -1 if how == "done" and actual < planned[0] * (1 - 1e-9) else 0


def _scale(figures: Sequence[tuple[Triple | None, float | None]]) -> float:
    """Return by which factor (its logarithm) a column's figures differ most from what was expected."""
    ratios = [
        abs(math.log(value / planned[1]))
        for planned, actual in figures
        if planned is not None and planned[1] > 0
        for value in (*planned, actual)
        if value and value > 0
    ]
    return min(max([*ratios, 0.1]), MOST)


def _bar(planned: Triple | None, actual: float | None, scale: float, how: str) -> str:
    """Return a range with the actual figure in it, relative to what was expected, which is in the middle."""
    if planned is None or planned[1] <= 0:
        return ""
    (width, height), expected = _BAR, planned[1]

    def at(value: float) -> float:
        ratio = math.log(value / expected) / scale if value > 0 else -1.0
        return width / 2 + min(max(ratio, -1.0), 1.0) * (width / 2 - 7)

    left, middle, right = (at(value) for value in planned)
    parts = [
        f'<line x1="0" x2="{width}" y1="9" y2="9" stroke="#eef1f4" stroke-width="1"/>'
        f'<rect x="{left - 1:.1f}" y="5" width="{right - left + 2:.1f}" height="8" rx="2" fill="{_RANGE}"/>'
        f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="3" y2="15" stroke="#1f2933" stroke-width="1.6"/>'
    ]
    if actual:
        colour = _OUTSIDE if _off(planned, actual, how) else _INSIDE
        fill, edge = (colour, "#fff") if how in ("", "done") else ("#fff", colour)
        parts.append(f'<circle cx="{at(actual):.1f}" cy="9" r="4.6" fill="{fill}" stroke="{edge}" stroke-width="1.6"/>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="range">{"".join(parts)}</svg>'


def _happened(content: RunContent) -> str:
    if not content.nodes:
        return ""
    bars = [line.bar for line in content.nodes]
    marks = [(event.at, event.letter) for event in content.events if event.letter]
    rows = "".join(
        f'<tr><td class="event">{escape(event.letter)}</td><td class="when">{escape(event.when)}</td>'
        f"<td>{escape(event.text)}</td></tr>"
        for event in content.events
    )
    return (
        f'<section><h2>What happened when</h2><p class="legend">{legend(bars)}</p>'
        f"{timeline(bars, content.bands, marks, content.spending)}"
        f'<p class="quiet">{MINUTE}, which the curve shows as a step.</p>'
        f'<table style="margin-top:10px">{rows}</table></section>'
    )


def _front(content: RunContent) -> str:
    if not content.points:
        return ""
    actual = (content.wall, content.spent) if content.wall > 0 and content.spent > 0 else None
    figure = plan_figure(content.points, content.front_title, *content.limits, actual=actual)
    others = (
        "In blue, what else could have been rented: choices of which none is both faster and cheaper than another."
        if len(content.points) > 1
        else "Of what was allowed, nothing else would have been faster or cheaper."
    )
    return (
        f"<section><h2>Cost against time</h2><figure>{figure}<figcaption>The plan, with what time and cost might have "
        f"turned out to be, and what the run came to. {others}</figcaption></figure></section>"
    )


def _nodes(content: RunContent) -> str:
    if not content.nodes:
        return ""
    rows = "".join(
        f'<tr><td class="name">{escape(line.bar.slot)}</td><td>{escape(line.name)}</td><td>{escape(line.pool)}</td>'
        f'<td class="n">{duration(line.bar.end - line.bar.start)}</td><td class="n">{dollars(line.usd)}</td>'
        f'<td class="{"off" if line.bar.how == "taken" else ""}">{escape(line.ended)}</td></tr>'
        for line in content.nodes
    )
    each = (
        '<table><tr><th>slot</th><th>machine</th><th>where from</th><th class="n">time</th><th class="n">cost</th>'
        f"<th>end</th></tr>{rows}</table>"
    )
    if len(content.nodes) > MOST_ROWS:
        each = f"<details><summary>each of the {len(content.nodes)} machines</summary>{each}</details>"
    note = f'<p class="quiet">{MINUTE}.</p>'
    return f"<section><h2>Machines</h2>{_pools(content.nodes)}{note}{each}</section>"


def _pools(nodes: Sequence[NodeRow]) -> str:
    """Return the nodes by where they come from."""
    rows, total = [], 0.0
    for pool in sorted({line.pool for line in nodes}):
        mine = [line for line in nodes if line.pool == pool]
        usd, hours = sum(line.usd for line in mine), sum(line.bar.end - line.bar.start for line in mine) / 3600
        taken, total = sum(line.bar.how == "taken" for line in mine), total + usd
        rows.append(
            f'<tr><td>{escape(pool)}</td><td class="n">{len(mine)}</td><td class="n">{taken or "–"}</td>'
            f'<td class="n">{hours:,.3g}</td><td class="n">{dollars(usd)}</td></tr>'
        )
    return (
        '<table><tr><th>where from</th><th class="n">machines</th><th class="n">taken or lost</th>'
        f'<th class="n">machine hours</th><th class="n">cost</th></tr>{"".join(rows)}<tr class="total"><td>in all</td>'
        f'<td class="n">{len(nodes)}</td><td></td><td></td><td class="n">{dollars(total)}</td></tr></table>'
    )


def _money(content: RunContent) -> str:
    prices = "".join(
        f'<tr><td class="name">{escape(p.pool)}</td><td class="n">{escape(p.listed)}</td><td>{escape(p.as_of)}</td>'
        f'<td>{escape(p.source)}</td><td class="n">{escape(p.metered)}</td></tr>'
        for p in content.prices
    )
    table = (
        '<table><tr><th>machine</th><th class="n">listed, $ per hour</th><th>of</th><th>source</th>'
        f'<th class="n">metered, $ per hour</th></tr>{prices}</table>'
        if prices
        else ""
    )
    missing = "".join(f"<tr><td>{escape(what)}</td><td>{escape(why)}</td></tr>" for what, why in content.unmetered)
    unmetered = f'<h2>What was not metered</h2><table class="facts">{missing}</table>' if missing else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in content.notes)
    said = f'<p style="margin-top:14px">Notes of the plan:</p><ul class="notes">{notes}</ul>' if notes else ""
    return f"<section><h2>Prices</h2>{table}{said}{unmetered}</section>" if table or said or unmetered else ""


def _made(content: RunContent) -> str:
    text = " · ".join(escape(version) for version in content.versions)
    return (
        '<section><h2>How this was made</h2><p class="quiet" style="max-width:none">From the ledger, the plan and the '
        f"records of the run in {escape(content.where)}. {text}</p></section>"
    )


def _range(planned: Triple, say: Callable[[float], str]) -> str:
    return f"{say(planned[0])} to {say(planned[2])}"
