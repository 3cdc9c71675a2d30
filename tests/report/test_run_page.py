"""The page of a run: what it says, what is outside of its range, pauses, names that mean harm, and many machines."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from cloudem.report.run_page import Event, NodeRow, PriceRow, RunContent, StepRow, render_run
from cloudem.report.sections.planning import Point
from cloudem.report.sections.timeline import BREAK, Axis, Band, NodeBar, Spending
from cloudem.text import dollars
from tests.report.test_page import HOSTILE, Page

DAY = 86400.0


def node(slot: str, start: float, end: float, how: str = "ended", market: str = "spot") -> NodeRow:
    bar = NodeBar(slot, market, start, end, how)  # type: ignore[arg-type]
    return NodeRow(f"i-{slot}-{start:g}", f"c7a.large zone-a {market}", bar, 0.5, how)


NODES = (
    node("head", 0.0, 600.0, market="on-demand"),
    node("worker-c7a.large-0000", 60.0, 200.0, "taken"),
    node("worker-c7a.large-0000", 210.0, 590.0),
    node("worker-c7a.large-0001", 60.0, 590.0),
    node("head", DAY, DAY + 300.0, "alive", market="on-demand"),
)

CONTENT = RunContent(
    title="first-map-1",
    created="submitted by me",
    status="stopped",
    why="its owner wants it to stop",
    rehearsal=False,
    asked=[("objective", "cheapest within $5.00")],
    promise="approximate maximum $5.00; worst overshoot $0.20",
    max_usd=5.0,
    spent=2.5,
    wall=900.0,
    usd_plan=(1.0, 2.0, 3.0),
    wall_plan=(300.0, 600.0, 1200.0),
    spending=Spending([0.0, 300.0, 600.0, DAY, DAY + 300.0], [0.1, 1.0, 2.0, 2.1, 2.5], (1.0, 2.0, 3.0), [(0.0, 5.0)]),
    steps=[
        StepRow(
            "refine3d", "2 × c7a.large spot", (100.0, 200.0, 300.0), 350.0, (1.0, 1.5, 2.0), 0.5, "done", "../r.html"
        ),
        StepRow("mask", "on the head", (100.0, 200.0, 300.0), 10.0, (1.0, 1.5, 2.0), 0.1, "stopped"),
        StepRow("export", "on the head", (10.0, 20.0, 30.0), None, (0.1, 0.2, 0.3), None, "not begun"),
    ],
    others=[StepRow("between the steps", "", None, 60.0, None, 0.2)],
    points=[Point((300, 600, 1200), (1.0, 2.0, 3.0), "2 × c7a.large spot", chosen=True)],
    nodes=NODES,
    bands=[Band("refine3d", 70.0, 420.0), Band("mask", 421.0, 431.0)],
    events=[Event(200.0, "a", "00:03:20", "worker 0 was lost"), Event(205.0, "b", "00:03:25", "another is asked for")],
    prices=[PriceRow("c7a.large zone-a spot", "0.0500", "2026-11-01", "price list", "0.0500 to 0.0700")],
    notes=["prices are stale"],
    unmetered=[("taxes", "the bill knows")],
    where="s3://bucket/runs/first-map-1",
    versions=["cloudem 1"],
)


def test_it_says_what_was_planned_and_what_it_was_and_loads_nothing() -> None:
    text = render_run(CONTENT)
    page = Page(text)
    for heading in (
        "What was asked for", "Planned and actual", "What happened when", "Cost against time",
        "Machines", "Prices", "What was not metered", "How this was made",
    ):  # fmt: skip
        assert heading in page.words, heading
    for words in (
        "stopped", "its owner wants it to stop", "worst overshoot $0.20", "$2.50",
        "spent, of an approximate maximum of $5.00", "15 min 00 s", "5 min 00 s to 20 min 00 s", "not begun", "lost",
        "prices are stale", "price list", "0.0500 to 0.0700", "the bill knows", "this run", "stopped for 23 h 50 min",
        "expected $2.00", "maximum $5.00",
    ):  # fmt: skip
        assert words in page.text, words
    assert "script" not in page.tags
    assert "http" not in text
    links = [value for name, value in page.attributes if name in {"src", "href", "xlink:href"}]
    assert "../r.html" in links
    assert all(value.startswith("#") or value == "../r.html" for value in links)


def compared(text: str) -> list[str]:
    """Return the rows of the table of what was planned and what it was."""
    table = text[text.index('<table class="compare">') :]
    return re.findall(r"<tr(?: class=\"[a-z]+\")?><td.*?</tr>", table[: table.index("</table>")])


def test_what_is_outside_of_its_range_is_named_and_what_was_not_finished_is_not_too_little() -> None:
    refine, mask, export, between, whole = compared(render_run(CONTENT))
    assert "done, slower, cheaper" in refine
    assert refine.count('fill="#d55e00"') == 2
    assert not re.search("slower|faster|cheaper|dearer", mask)
    assert mask.count("<circle") == mask.count('fill="#fff" stroke="#0072b2"') == 2
    assert "<circle" not in export
    assert "<svg" not in between
    assert 'fill="#d55e00"' not in whole


def test_bars_are_relative_to_what_was_expected_on_one_scale() -> None:
    def places(row: str) -> tuple[float, float, float]:
        found = re.search(r'<rect x="([\d.]+)" y="5" width="([\d.]+)".*?<circle cx="([\d.]+)"', row)
        assert found is not None
        left, width, actual = map(float, found.groups())
        return left + 1, left + width - 1, actual

    steps = [
        StepRow("a", "", (1.0, 4.0, 16.0), 8.0, None, None, "done"),
        StepRow("b", "", (500.0, 1000.0, 2000.0), 500.0, None, None, "done"),
        StepRow("c", "", (500.0, 1000.0, 2000.0), 1e9, None, None, "done"),
    ]
    text = render_run(replace(CONTENT, steps=steps[:2], others=[], wall=100.0, wall_plan=(99.0, 100.0, 101.0)))
    first, second = (places(row) for row in compared(text)[:2])
    assert first == pytest.approx((7, 123, 65 + 58 / 2), abs=0.2)
    assert second == pytest.approx((65 - 58 / 2, 65 + 58 / 2, 65 - 58 / 2), abs=0.2)
    text = render_run(replace(CONTENT, steps=steps[2:], others=[]))
    assert places(compared(text)[0])[2] == pytest.approx(123, abs=0.2)


def test_a_pause_is_narrow_however_long_it_was_and_time_goes_on_after_it() -> None:
    axis = Axis([(0.0, 100.0), (50.0, 200.0), (DAY, DAY + 100.0), (DAY + 105.0, DAY + 150.0)])
    assert axis.active == 345.0
    assert len(axis.sittings) == 2  # five seconds are drawn as they were
    assert axis.at(-5.0) == 0.0
    assert axis.at(150.0) == 150.0
    assert axis.at(5000.0) == 200.0
    assert axis.at(DAY) == pytest.approx(200.0 + BREAK * 345.0)
    assert axis.at(DAY + 150.0) == pytest.approx(axis.length)


def test_a_maximum_that_was_passed_is_said_and_one_far_away_is_only_named() -> None:
    assert "was passed by" not in render_run(CONTENT)
    assert "The approximate maximum was passed by $0.50." in render_run(replace(CONTENT, max_usd=2.0))
    assert "above this figure" not in render_run(CONTENT)
    far = CONTENT.spending._replace(caps=[(0.0, 500.0)])
    assert "maximum $500.00, above this figure" in Page(render_run(replace(CONTENT, spending=far))).text


def test_hostile_text_stays_text() -> None:
    steps = [StepRow(HOSTILE, HOSTILE, (1.0, 2.0, 3.0), 1.0, (1.0, 2.0, 3.0), 1.0, HOSTILE, HOSTILE)]
    bar = NodeBar(HOSTILE, HOSTILE, 0.0, 10.0, "ended")
    page = Page(
        render_run(
            replace(
                CONTENT, title=HOSTILE, created=HOSTILE, status=HOSTILE, why=HOSTILE, asked=[(HOSTILE, HOSTILE)],
                promise=HOSTILE, steps=steps, nodes=[NodeRow(HOSTILE, HOSTILE, bar, 1.0, HOSTILE)],
                bands=[Band(HOSTILE, 0.0, 10.0)], events=[Event(1.0, "a", HOSTILE, HOSTILE)], notes=[HOSTILE],
                prices=[PriceRow(*[HOSTILE] * 5)], unmetered=[(HOSTILE, HOSTILE)], where=HOSTILE, versions=[HOSTILE],
                points=[Point((1, 2, 3), (1, 2, 3), HOSTILE, chosen=True)], front_title=HOSTILE,
            )
        )
    )  # fmt: skip
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 20


def test_hundreds_of_machines_are_a_figure_of_sensible_height_and_a_folded_table() -> None:
    many = [NODES[0], *(node(f"worker-c7a.large-{n:04d}", 10.0 + n, 500.0 + n) for n in range(300))]
    text = render_run(replace(CONTENT, nodes=many))
    height = int(re.search(r'aria-label="Machines over time[^>]*viewBox="0 0 1000 (\d+)"', text)[1])  # type: ignore[index]
    assert 800 < height < 1300
    assert "each of the 301 machines" in Page(text).words
    assert "<details>" not in render_run(CONTENT)


def test_a_run_of_which_nothing_is_known_yet_is_a_page() -> None:
    empty = replace(CONTENT, steps=[], others=[], points=[], nodes=[], bands=[], events=[], prices=[], asked=[])
    page = Page(render_run(replace(empty, notes=[], unmetered=[], promise="", why="")))
    assert "What happened when" not in page.words
    assert "Planned and actual" in page.words


def test_amounts() -> None:
    amounts = [dollars(usd) for usd in (0.0, 1e-6, 0.00123, 0.0456, 0.5, 12.25, 12345.6)]
    assert amounts == ["$0.00", "<$0.0001", "$0.0012", "$0.0456", "$0.50", "$12.25", "$12,345.60"]
