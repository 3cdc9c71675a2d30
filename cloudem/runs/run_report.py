"""The page of a run: gathered from its records, its ledger and its plan, drawn by `cloudem.report.run_page`."""

from __future__ import annotations

import contextlib
import math
import os
import posixpath
import string
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cloudem.cloud.catalogue import LOCAL, Catalogue
from cloudem.cloud.money import (
    IDLE,
    START_UP,
    CapChanged,
    Entry,
    NodeEnded,
    NodeStarted,
    Note,
    PriceChanged,
    StepEnded,
    StepStarted,
    account,
)
from cloudem.cloud.nodes import HEAD, Pool
from cloudem.cloud.planning.estimate import Range, total
from cloudem.cloud.planning.plan import Plan
from cloudem.errors import CloudemError, FormatError, ParameterError
from cloudem.io.storage.location import absolute, exists, is_remote, join, write_bytes
from cloudem.jobs.growing import done_between
from cloudem.report.run_page import Event, NodeRow, PriceRow, RunContent, StepRow, render_run
from cloudem.report.sections.planning import Point
from cloudem.report.sections.timeline import Axis, Band, How, NodeBar, Spending
from cloudem.runs.accounting import Costs, StepCost, costs
from cloudem.runs.reckoning import SILENT_S, reckon
from cloudem.runs.records import PAGE, RunRecord, RunState, RunStore, Wishes
from cloudem.runs.submit import promise
from cloudem.text import dollars

SAMPLES = 300
"""Moments at which the curve of what was spent is drawn, besides those at which something happened."""

BETWEEN = "head before and after"
"""What `cloudem.cloud.planning.totals` calls the head's time before and after the steps."""

MOTION = "correct_motion"
"""The job whose results say how much information each micrograph holds."""

NEAR = 4.0
"""A limit is drawn with the plan's choices if it is no further than so many times from them."""

UNMETERED = (
    ("first minutes", "the provider does not charge boot time, or spot instances reclaimed in their first hour; "
     "they are counted here, so the meter overstates the cost"),
    ("storage of the project", "not counted: it exists before and after the run"),
    ("requests and egress", "estimated in the plan, not metered"),
    ("taxes, discounts, credits", "see the bill"),
)  # fmt: skip
"""What the meter leaves out, and on which side it errs (docs/money.md)."""


def write_run_page(
    store: RunStore, catalogue: Catalogue, state: RunState | None = None, page: str | None = None
) -> str:
    """Write the page of a run, anew where there is one.

    Parameters
    ----------
    store
        Of the run.
    catalogue
        Where prices are from.
    state
        How the run stands; as its record says by default.
    page
        File or URL to write; by default ``report.html`` in the run's folder.

    Returns
    -------
    str
        Where it is.

    Raises
    ------
    ParameterError
        The run has not begun.
    StorageError
        The page cannot be written.
    """
    where = absolute(page) if page else join(absolute(store.url), PAGE)
    write_bytes(where, render_run(run_page_content(store, catalogue, state, where)).encode())
    return where


def run_page_content(store: RunStore, catalogue: Catalogue, state: RunState | None, page: str) -> RunContent:
    """Return what the page says; ``page`` is where it will be, to which its links are relative."""
    reckoned = reckon(store, time.time(), state=state)
    record, wanted, ledger = store.record(), store.wanted(), sorted(set(reckoned.entries), key=lambda entry: entry.at)
    state, plan = state or store.state(), Plan.from_json(record.plan)
    if reckoned.gap and not any(isinstance(entry, NodeStarted) for entry in ledger):
        raise FormatError(f"{store.url}: {reckoned.gap}; without nodes there is no page to draw")
    if state is None or not any(isinstance(entry, NodeStarted) for entry in ledger):
        raise ParameterError(f"{store.url} has not started, so there is nothing to report; submit it again")
    until = max(entry.at for entry in ledger) if state.over else reckoned.until
    found, nodes = costs(plan, ledger, until), _nodes(ledger, store.notices(), until)
    axis = Axis([(bar.start, bar.end) for bar, *_ in nodes.values()])
    return RunContent(
        title=record.name,
        created=f"submitted {_moment(record.created)} UTC by {record.owner}; page of {_moment(time.time())} UTC",
        status=state.status,
        why=_why(state, time.time()),
        rehearsal=record.region == LOCAL,
        asked=_asked(record, plan, wanted),
        promise=promise(plan, wanted, catalogue).rpartition("; ends by")[0],
        max_usd=wanted.max_usd,
        spent=found.spent.total,
        wall=axis.active,
        usd_plan=plan.usd,
        wall_plan=plan.wall,
        steps=_steps(record, plan, found, page),
        others=_others(plan, found, axis.active),
        points=points_of(plan),
        limits=_near(plan),
        front_title=f"{plan.objective} in {plan.region}, prices of {plan.prices_of or 'unknown date'}",
        nodes=[
            NodeRow(node, " ".join(pool), bar, found.spent.by_node[node], ended)
            for node, (bar, pool, ended) in nodes.items()
        ],
        bands=[band._replace(name=_called(band.name, plan)) for band in _bands(ledger, until)],
        events=_events(ledger, nodes),
        spending=_spending(ledger, plan, until),
        prices=_prices(ledger, plan, catalogue),
        notes=[*plan.notes, *filter(None, (reckoned.gap, reckoned.lost))],
        unmetered=_unmetered(plan),
        information=_information(record, found, list(_bands(ledger, until))),
        where=store.url,
        versions=(f"cloudem {record.version}",),
    )


def points_of(plan: Plan) -> list[Point]:
    """Return the choices of a plan as they are drawn; steps on the head are named only where there are no others."""

    def name(steps: Sequence[str]) -> str:
        return "; ".join([step for step in steps if step != HEAD] or list(steps[:1]))

    return [Point(a.wall, a.usd, name(a.steps), a.chosen) for a in plan.alternatives]


def _why(state: RunState, now: float) -> str:
    if not state.over and now - state.at > SILENT_S:
        return f"its controller has been silent since {_hour(state.at)} UTC"
    return state.why if state.status != "done" else ""


def _asked(record: RunRecord, plan: Plan, wanted: Wishes) -> list[tuple[str, str]]:
    limits = [
        f"{dollars(plan.max_usd)}" if plan.max_usd is not None else "no maximum cost",
        f"{plan.max_hours:g} h" if plan.max_hours is not None else "no maximum time",
    ]
    jobs = ", then ".join(str(step["job"]) for step in record.steps) or "a cluster waiting for jobs"
    hours = (wanted.deadline - record.created) / 3600
    return [
        ("workflow", jobs),
        ("where", f"{record.provider}, region {plan.region}, zone {plan.zone}; head {' '.join(plan.head)}"),
        ("objective", f"{plan.objective} within {' and '.join(limits)}"),
        ("final limits", f"{dollars(wanted.max_usd)}, until {_moment(wanted.deadline)} UTC "
         f"({hours:.3g} h after submitting)"),
    ]  # fmt: skip


def _nodes(ledger: Sequence[Entry], notices: Mapping[str, float], until: float) -> dict[str, tuple[NodeBar, Pool, str]]:
    """Return all nodes by start, each with its pool and how it ended in words."""
    starts: dict[str, NodeStarted] = {}
    ends: dict[str, NodeEnded] = {}
    for entry in ledger:  # sorted: the earliest counts
        if isinstance(entry, NodeStarted):
            starts.setdefault(entry.node, entry)
        elif isinstance(entry, NodeEnded):
            ends.setdefault(entry.node, entry)
    bands, found = list(_bands(ledger, until)), {}
    for node, start in starts.items():
        end, how, words = ends.get(node), "alive", "running"
        if end is not None:
            how, words = "ended", "ended with the run" if end.why == "the run is over" else "shut down"
            if end.why not in ("ended", "the run is over"):
                words = f"ended: {end.why}"
            if node in notices:
                how, words = "taken", "reclaimed by the provider, with notice"
            elif end.why == "ended" and _replaced(start, end.at, starts.values(), bands):
                how, words = "taken", "lost without notice, replaced"
        bar = NodeBar(start.slot, start.pool.market, start.at, end.at if end else until, _how(how))
        found[node] = bar, start.pool, words
    return found


def _how(text: str) -> How:
    return "taken" if text == "taken" else "ended" if text == "ended" else "alive"


def _replaced(start: NodeStarted, end: float, starts: Any, bands: Sequence[Band]) -> bool:
    """Tell whether a node was lost: while its step ran, another took its slot before the step was over.

    Nobody writes down why a node went; nodes of a step that is over, or of a run that drains, get no successor.
    """
    return start.slot != HEAD and any(
        band.start <= end <= band.end and start.slot == other.slot and start.at < other.at < band.end
        for band in bands
        for other in starts
    )


def _bands(ledger: Sequence[Entry], until: float) -> Iterator[Band]:
    """Yield when steps ran; a step whose controller died goes on with its next start, or ends with the run."""
    running: StepStarted | None = None
    for entry in ledger:
        if isinstance(entry, StepStarted):
            if running is not None and running.step != entry.step:
                yield Band(running.step, running.at, entry.at)
            if running is None or running.step != entry.step:
                running = entry
        elif isinstance(entry, StepEnded) and running is not None and running.step == entry.step:
            yield Band(running.step, running.at, entry.at)
            running = None
    if running is not None:
        yield Band(running.step, running.at, until)


def _called(name: str, plan: Plan) -> str:
    """Return what the plan calls a step of the ledger, ``1-refine3d``."""
    number = name.partition("-")[0]
    return plan.steps[int(number)].name if number.isdecimal() and int(number) < len(plan.steps) else name


def _steps(record: RunRecord, plan: Plan, found: Costs, page: str) -> list[StepRow]:
    actual = {step.name: step for step in found.steps}
    lines = []
    for number, planned in enumerate(plan.steps):
        job = record.steps[number] if number < len(record.steps) else {}
        step: StepCost | None = actual.get(f"{number}-{job.get('job', '')}")
        how = (step.how or "running") if step else "not started" if job else ""
        machines = planned.describe() if not planned.on_head else "head"
        lines.append(
            StepRow(
                planned.name, machines, planned.wall, step.wall if step else None, planned.usd,
                step.usd if step else None, how, link(str(job.get("out", "")), page),
            )
        )  # fmt: skip
    return lines


def _information(record: RunRecord, found: Costs, bands: Sequence[Band]) -> tuple[float, int, float] | None:
    """Return bits of the micrographs that steps of a run made of movies, their number, and what the steps cost."""
    usd = {step.name: step.usd for step in found.steps if step.how}
    bits: list[float] = []
    spent = 0.0
    for number, step in enumerate(record.steps):
        name, out = f"{number}-{step['job']}", str(step.get("out", ""))
        if step["job"] != MOTION or not usd.get(name):
            continue
        spans = [(band.start, band.end) for band in bands if band.name == name]
        with contextlib.suppress(CloudemError):  # the page tells of the money, whatever became of the results
            each = done_between(out, "bits", spans).tolist()
            spent += usd[name] if each else 0.0
            bits += [value for value in each if math.isfinite(value)]
    return (sum(bits), len(bits), spent) if bits and spent else None


def _others(plan: Plan, found: Costs, active: float) -> list[StepRow]:
    """Return what belongs to no step: the head's start and end and waiting for machines, and what was charged."""
    steps = [step for step in found.steps if step.name not in (START_UP, IDLE)]
    usd = sum(step.usd for step in found.steps if step.name in (START_UP, IDLE))
    wall = max(active - sum(step.wall for step in steps), 0.0)
    return [StepRow("between the steps", "", _rest(plan), wall, plan.extra.get(BETWEEN), usd)]


def _rest(plan: Plan) -> Range | None:
    """Return what the plan has of time besides the steps; sums of ranges were added end by end."""
    steps = total(step.wall for step in plan.steps)
    rest = Range(*(max(a - b, 0.0) for a, b in zip(plan.wall, steps, strict=True)))
    return rest if rest.high > 0 else None


def _near(plan: Plan) -> tuple[float | None, float | None]:
    """Return the limits that are not so far away that a figure with them would show nothing else."""
    usd = [value for a in plan.alternatives for value in a.usd]
    hours = [value / 3600 for a in plan.alternatives for value in a.wall]
    shown = [
        limit if limit is not None and values and limit < NEAR * max(values) else None
        for limit, values in ((plan.max_usd, usd), (plan.max_hours, hours))
    ]
    return shown[0], shown[1]


def _events(ledger: Sequence[Entry], nodes: Mapping[str, tuple[NodeBar, Pool, str]]) -> list[Event]:
    """Return what people want to know of: notes, limits that changed, nodes that were lost."""
    found: list[tuple[float, str]] = []
    cap: CapChanged | None = None
    for entry in ledger:
        if isinstance(entry, Note):
            found.append((entry.at, entry.text))
        elif isinstance(entry, CapChanged):
            if cap is not None and (cap.max_usd, cap.max_hours) != (entry.max_usd, entry.max_hours):
                hours = f"{entry.max_hours:.3g} h after submitting"
                found.append((entry.at, f"limits: {dollars(entry.max_usd)}, until {hours}"))
            cap = entry
    found += [
        (bar.end, f"{bar.slot} ({node}): {words}") for node, (bar, _, words) in nodes.items() if bar.how == "taken"
    ]
    found.sort()
    return [Event(at, _letter(n), _hour(at), text) for n, (at, text) in enumerate(found)]


def _letter(number: int) -> str:
    """Return a to z, then a1 to z1, …."""
    turn, place = divmod(number, 26)
    return string.ascii_lowercase[place] + (str(turn) if turn else "")


def _spending(ledger: Sequence[Entry], plan: Plan, until: float) -> Spending:
    """Sample what had been spent, each time with what was known by then."""
    marks = {entry.at for entry in ledger if not isinstance(entry, Note)}
    first = min(entry.at for entry in ledger)
    even = {first + (until - first) * n / SAMPLES for n in range(SAMPLES + 1)}
    times = sorted(at for at in marks | even if at <= until)
    usd = [account([entry for entry in ledger if entry.at <= at], at).total for at in times]
    caps = [(entry.at, entry.max_usd) for entry in ledger if isinstance(entry, CapChanged)]
    changed = [caps[n] for n in range(len(caps)) if n == 0 or caps[n][1] != caps[n - 1][1]]
    return Spending(times, usd, plan.usd, changed)


def _prices(ledger: Sequence[Entry], plan: Plan, catalogue: Catalogue) -> list[PriceRow]:
    """Return of each pool that was planned or used where its price is from and what was metered."""
    metered: dict[Pool, list[float]] = {}
    pools = {entry.node: entry.pool for entry in ledger if isinstance(entry, NodeStarted)}
    for entry in ledger:
        if isinstance(entry, NodeStarted | PriceChanged) and entry.node in pools:
            metered.setdefault(pools[entry.node], []).append(entry.usd_per_hour)
    planned = {plan.head, *(step.pool for step in plan.steps)}
    lines = []
    for pool in sorted(planned | metered.keys()):
        price, paid = catalogue.price(pool), metered.get(pool, [])
        same = bool(paid) and max(paid) - min(paid) < 5e-5
        lines.append(
            PriceRow(
                " ".join(pool),
                f"{price.usd_per_hour:.4f}" if price else "unknown",
                str(price.as_of) if price else "",
                price.source if price else "",
                (f"{paid[0]:.4f}" if same else f"{min(paid):.4f} to {max(paid):.4f}") if paid else "not used",
            )
        )
    return lines


def _unmetered(plan: Plan) -> list[tuple[str, str]]:
    planned = [
        (name, f"planned at {dollars(usd.low)} to {dollars(usd.high)}, not metered")
        for name, usd in plan.extra.items()
        if name != BETWEEN and usd.high > 0
    ]
    return [*planned, *UNMETERED]


def link(out: str, page: str) -> str:
    """Return where the report of a step is, relative to the page; empty where there is none, or no way to it."""
    if not out or is_remote(out) != is_remote(page) or not exists(join(out, PAGE)):
        return ""
    target, start = join(absolute(out), PAGE), page.rpartition("/")[0]
    if not is_remote(page):
        return quote(os.path.relpath(target, start).replace(os.sep, "/"))
    if target.split("/")[2] != start.split("/")[2]:  # another bucket
        return ""
    return quote(posixpath.relpath(target.removeprefix("s3:/"), start.removeprefix("s3:/")))


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def _hour(at: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(at))
