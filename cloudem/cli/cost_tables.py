"""Tables of what runs cost."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from cloudem.cli.tables import plain
from cloudem.cloud.money import Entry
from cloudem.cloud.planning.estimate import Range
from cloudem.runs.accounting import Costs
from cloudem.runs.records import RunStore
from cloudem.text import clock, dollars, moment


def step_table(costs: Costs) -> Table:
    """Return planned against actual, step by step."""
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    cap = f"of {dollars(costs.max_usd)}" if costs.max_usd is not None else ""
    table.add_column("step", footer="total")
    table.add_column("planned", footer=_dollars(costs.planned), justify="right")
    table.add_column("spent", footer=f"{dollars(costs.spent.total)} {cap}", justify="right")
    table.add_column("planned time", justify="right")
    table.add_column("time", justify="right")
    table.add_column("")
    for step in costs.steps:
        inside = step.planned_usd is None or not step.how or step.planned_usd.holds(step.usd)
        note = step.how if inside else f"{step.how}, outside the plan"
        times = (_times(step.planned_wall), clock(step.wall)) if step.wall else ("", "")
        table.add_row(plain(step.name), _dollars(step.planned_usd), dollars(step.usd), *times, plain(note))
    for what, usd in sorted(costs.spent.by_charge.items()):
        table.add_row(plain(f"  of which {what}"), "", dollars(usd), "", "", "")
    return table


def node_table(costs: Costs) -> Table:
    """Return the nodes and what each cost."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "slot", "pool"):
        table.add_column(column, overflow="fold")
    for column in ("time", "spent"):
        table.add_column(column, justify="right")
    table.add_column("")
    for node in costs.nodes:
        row = (plain(node.node), plain(node.slot), plain(node.pool), clock(node.seconds), dollars(node.usd))
        table.add_row(*row, "alive" if node.alive else "")
    return table


def run_table(runs: Sequence[tuple[RunStore, Costs]]) -> Table:
    """Return all runs of a project."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("run", "status"):
        table.add_column(column)
    for column in ("planned", "spent", "cap"):
        table.add_column(column, justify="right")
    for store, costs in runs:
        state = store.state()
        cap = dollars(costs.max_usd) if costs.max_usd is not None else ""
        row = (_dollars(costs.planned), dollars(costs.spent.total), cap)
        table.add_row(store.url.rpartition("/")[2], state.status if state else "not started", *row)
    return table


def ledger_table(entries: Sequence[Entry]) -> Table:
    """Return every entry."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("when", "what", "of what"):
        table.add_column(column, overflow="fold")
    for entry in sorted(entries, key=lambda entry: entry.at):
        fields = entry.as_json()
        rest = ", ".join(f"{name} {_shown(value)}" for name, value in fields.items() if name not in ("kind", "at"))
        table.add_row(moment(entry.at, seconds=True), str(fields["kind"]), plain(rest))
    return table


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return " ".join(_shown(part) for part in value)
    return str(value)


def _dollars(value: Range | None) -> str:
    return "" if value is None else f"{dollars(value.low)} to {dollars(value.high)}"


def _times(value: Range | None) -> str:
    return "" if value is None else f"{clock(value.low)} to {clock(value.high)}"
