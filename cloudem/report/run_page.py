"""One self-contained HTML page about one run on rented machines: what was planned, what it took and cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cloudem.report.blocks import (
    Block,
    Cell,
    Drawn,
    Figure,
    Figures,
    Part,
    Remarks,
    Row,
    Table,
    Words,
    facts,
    numbers,
    render_page,
)
from cloudem.report.money_tiles import Triple, expected_tile, information_tile, range_in_words, spent_tile
from cloudem.report.sections.planning import Point, plan_figure
from cloudem.report.sections.timeline import Band, NodeBar, Spending, legend, timeline
from cloudem.text import dollars, duration


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
    information
        Of the micrographs whose motion the run corrected: bits, micrographs, and dollars of these steps; None if none.
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
    information: tuple[float, int, float] | None = None
    where: str = ""
    versions: Sequence[str] = field(default_factory=tuple)


ENDS = ("done", "stopped", "failed")

REHEARSAL = "A rehearsal on one computer: prices are made up, and nothing was charged."

MINUTE = "Each machine is charged from its launch, for at least one minute"

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
    return render_page("page.html", **run_page_values(content))


def run_page_values(content: RunContent) -> dict[str, Any]:
    """Return what ``page_main.html`` shows of a run, which other pages may include."""
    passed = content.spent - content.max_usd
    return {
        "title": content.title,
        "created": content.created,
        "status": content.status,
        "status_kind": content.status if content.status in ENDS else "",
        "why": content.why,
        "told": REHEARSAL if content.rehearsal else "",
        "tiles": _tiles(content),
        "warnings": [f"The approximate maximum was passed by {dollars(passed)}."] if passed > 0 else [],
        "sections": [
            *_asked(content),
            _compared(content),
            *_happened(content),
            *_front(content),
            *_nodes(content),
            *_money(content),
            _made(content),
        ],
    }


def _tiles(content: RunContent) -> list[tuple[str, str]]:
    taken = sum(line.bar.how == "taken" for line in content.nodes)
    return [
        spent_tile(content.spent, content.max_usd),
        expected_tile(content.usd_plan),
        (duration(content.wall), f"with machines; planned {range_in_words(content.wall_plan, duration)}"),
        (str(len(content.nodes)), "machines" + (f", {taken} of them reclaimed or lost, and replaced" if taken else "")),
        *([information_tile(*content.information)] if content.information is not None else []),
    ]


def _asked(content: RunContent) -> list[Drawn]:
    pairs = [*content.asked, *([("stated beforehand", content.promise)] if content.promise else [])]
    return [Drawn("What was asked for", [facts(pairs, kind="facts")])] if pairs else []


def _compared(content: RunContent) -> Drawn:
    whole = StepRow(
        "total", "", content.wall_plan, content.wall, content.usd_plan, content.spent,
        content.status if content.status in ENDS else "",
    )  # fmt: skip
    lines = [*content.steps, *content.others, whole]
    scales = _scale([(line.wall_plan, line.wall) for line in lines]), _scale([(li.usd_plan, li.usd) for li in lines])
    rows = [_compare(line, scales, "") for line in content.steps]
    rows += [_compare(line, scales, "rest") for line in content.others]
    rows.append(_compare(whole, scales, "total"))
    head = [
        Cell("step"), Cell("machines"), Cell("planned time", span=2), Cell("actual", "n"),
        Cell("planned cost", span=2), Cell("actual", "n"), Cell(),
    ]  # fmt: skip
    legend = Part("bars.html", {"inside": _INSIDE, "outside": _OUTSIDE})
    return Drawn("Planned and actual", [Table(head, rows, "compare"), legend])


def _compare(line: StepRow, scales: tuple[float, float], kind: str) -> Row:
    cells = [Cell(line.name, "name", link=line.link), Cell(line.machines)]
    for planned, actual, scale, say in (
        (line.wall_plan, line.wall, scales[0], duration),
        (line.usd_plan, line.usd, scales[1], dollars),
    ):
        off = " off" if _off(planned, actual, line.how) else ""
        cells += [
            Cell(range_in_words(planned, say) if planned else "", "n"),
            Cell(svg=_bar(planned, actual, scale, line.how), kind="plan"),
            Cell(say(actual) if actual is not None else "–", f"n{off}"),
        ]
    return Row([*cells, Cell(", ".join(filter(None, (line.how, *_words(line)))))], kind)


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


def _happened(content: RunContent) -> list[Drawn]:
    if not content.nodes:
        return []
    bars = [line.bar for line in content.nodes]
    marks = [(event.at, event.letter) for event in content.events if event.letter]
    drawing = timeline(bars, content.bands, marks, content.spending)
    rows = [Row([Cell(event.letter, "event"), Cell(event.when, "when"), Cell(event.text)]) for event in content.events]
    blocks: list[Block] = [Part("legend.html", {"keys": legend(bars)}), Figures([Figure(1000, drawing)])]
    blocks.append(Words(f"{MINUTE}, which the curve shows as a step."))
    if rows:
        blocks.append(Table((), rows, "events"))
    return [Drawn("What happened when", blocks)]


def _front(content: RunContent) -> list[Drawn]:
    if not content.points:
        return []
    actual = (content.wall, content.spent) if content.wall > 0 and content.spent > 0 else None
    figure = plan_figure(content.points, content.front_title, *content.limits, actual=actual)
    others = (
        "In blue, what else could have been rented: choices of which none is both faster and cheaper than another."
        if len(content.points) > 1
        else "Of what was allowed, nothing else would have been faster or cheaper."
    )
    caption = f"The plan, with what time and cost might have turned out to be, and what the run came to. {others}"
    return [Drawn("Cost against time", [Figures([Figure(1000, figure, caption)])])]


def _nodes(content: RunContent) -> list[Drawn]:
    if not content.nodes:
        return []
    rows = [
        Row(
            [
                Cell(line.bar.slot, "name"), Cell(line.name), Cell(line.pool),
                *numbers([duration(line.bar.end - line.bar.start), dollars(line.usd)]),
                Cell(line.ended, "off" if line.bar.how == "taken" else ""),
            ]
        )
        for line in content.nodes
    ]  # fmt: skip
    many = len(content.nodes) > MOST_ROWS
    head = [Cell("slot"), Cell("machine"), Cell("pool"), *numbers(["time", "cost"]), Cell("end")]
    each = Table(head, rows, summary=f"each of the {len(content.nodes)} machines" if many else "")
    return [Drawn("Machines", [_pools(content.nodes), Words(f"{MINUTE}."), each])]


def _pools(nodes: Sequence[NodeRow]) -> Table:
    """Return the nodes by where they come from."""
    rows, total = [], 0.0
    for pool in sorted({line.pool for line in nodes}):
        mine = [line for line in nodes if line.pool == pool]
        usd, hours = sum(line.usd for line in mine), sum(line.bar.end - line.bar.start for line in mine) / 3600
        taken, total = sum(line.bar.how == "taken" for line in mine), total + usd
        rows.append(Row([Cell(pool), *numbers([str(len(mine)), str(taken or "–"), f"{hours:,.3g}", dollars(usd)])]))
    whole = Row([Cell("total"), *numbers([str(len(nodes)), "", "", dollars(total)])], "total")
    head = [Cell("pool"), *numbers(["machines", "reclaimed or lost", "machine hours", "cost"])]
    return Table(head, [*rows, whole])


def _money(content: RunContent) -> list[Drawn]:
    blocks: list[Block] = []
    if content.prices:
        head = [
            Cell("machine"), Cell("listed, $ per hour", "n"), Cell("of"), Cell("source"),
            Cell("metered, $ per hour", "n"),
        ]  # fmt: skip
        rows = [
            Row([Cell(p.pool, "name"), Cell(p.listed, "n"), Cell(p.as_of), Cell(p.source), Cell(p.metered, "n")])
            for p in content.prices
        ]
        blocks.append(Table(head, rows))
    if content.notes:
        blocks.append(Remarks(content.notes, "Notes of the plan:"))
    found = [Drawn("Prices", blocks)] if blocks else []
    if content.unmetered:
        found.append(Drawn("What was not metered", [facts(content.unmetered, kind="facts")]))
    return found


def _made(content: RunContent) -> Drawn:
    text = " · ".join(content.versions)
    said = f"From the ledger, the plan and the records of the run in {content.where}. {text}"
    return Drawn("How this was made", [Words(said, "quiet wide")])
