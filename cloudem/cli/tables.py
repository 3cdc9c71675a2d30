"""How runs, clusters and what they left look on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cloudem.cloud.nodes import Node, Resource
from cloudem.runs.leftovers import Left
from cloudem.runs.records import NodeStatus, RunState, Wishes, node_status
from cloudem.text import clock, dollars, moment, time_of_day

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "draining": "yellow"}


def plain(text: str, **how: Any) -> Text:
    """Return what others wrote, as it stands: neither markup nor control characters of it reach the terminal."""
    return Text("".join(character if character.isprintable() else "\ufffd" for character in text), **how)


class Seen(NamedTuple):
    """How a run stands by now, where that is not what its controller said last.

    Attributes
    ----------
    now
        The time.
    nodes
        That are there by now, as their provider says; None where that was not asked.
    spent
        Dollars by now.
    lost
        What to say of a head that is gone; empty if it is not.
    """

    now: float
    nodes: Sequence[NodeStatus] | None
    spent: float
    lost: str


def seen(state: RunState, now: float, nodes: Sequence[Node] | None, spent: float, lost: str) -> Seen:
    """Return what was seen of a run; of one that is over and whose provider was not asked, no nodes."""
    lines = None if nodes is None else [node_status(node) for node in nodes if node.alive]
    return Seen(now, [] if lines is None and state.over else lines, spent, lost)


def state_view(name: str, state: RunState, wanted: Wishes, seen: Seen | None = None) -> RenderableType:
    """Return how a run stands: status, step, money, time, nodes, and the last lines of its job.

    Nodes and time are as its controller said last, or as they were ``seen`` since. Of a run that is over none are left
    but those that were seen.
    """
    over, lost = state.over, seen.lost if seen else ""
    head = Text.assemble((name, "bold"), "  ", (state.status, COLOURS.get(state.status, "")))
    if state.steps and state.status != "done":
        head.append(plain(f"  step {min(state.step + 1, state.steps)} of {state.steps} {state.job}"))
    if over:
        head.append(f"  ended {moment(state.at)}")
    if state.why:
        head.append(plain(f"  {state.why}", style="yellow"))
    spent = seen.spent if seen else state.spent_usd
    money = Text.assemble(
        "spent ", (dollars(spent), "bold"), f" of {dollars(wanted.max_usd)} ({spent / wanted.max_usd:.0%})"
    )
    if not over and not lost:
        rate = f", {dollars(state.usd_per_hour)} an hour; worst overshoot of the maximum"
        money.append(f"{rate} {dollars(state.overshoot_usd)}")
        left = wanted.deadline - state.at
        money.append(f"; {clock(left)} left" if left > 0 else "; out of time")
    nodes = state.nodes if not seen or seen.nodes is None else seen.nodes
    if over and not seen:
        nodes = ()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "pool", "state", "for"):
        table.add_column(column)
    now = seen.now if seen else state.at
    for node in nodes:
        table.add_row(plain(node.slot), plain(node.pool), plain(node.state), clock(max(now - node.since, 0)))
    rest = [plain(line, style="dim", overflow="ellipsis", no_wrap=True) for line in state.progress]
    said = [plain(lost, style="red")] if lost else []
    if over and seen and not nodes:
        said.append(Text("no machine of it is running"))
    return Group(head, money, *said, *([table] if nodes else []), *rest)


@contextmanager
def following(screen: Console, name: str, wanted: Callable[[], Wishes]) -> Iterator[Callable[[RunState], None]]:
    """Give what shows a run: in place on a terminal, line by line elsewhere."""
    if screen.is_terminal:
        with Live(console=screen, refresh_per_second=4) as live:
            yield lambda state: live.update(state_view(name, state, wanted()))
        return
    said: list[str] = []

    def show(state: RunState) -> None:
        step = f", step {state.step + 1} of {state.steps}: {state.job}" if state.job else ""
        for line, when in (
            (f"{state.status}{step}", f"{time_of_day(state.at)} "),
            *((line, "") for line in state.progress),
        ):
            if line not in said:  # lines of jobs have their time
                said.append(line)
                screen.print(plain(f"{when}{line}"), soft_wrap=True)

    yield show


def clusters_table(found: Left) -> Table:
    """Return the clusters that are in use, and how much is left of others."""
    table = Table(title="clusters in use", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("cluster", "head", "since", "ends by", "resources"):
        table.add_column(column, overflow="fold")
    for cluster, (head, resources) in found.used.items():
        kinds = sorted({resource.kind for resource in resources})
        counts = [f"{sum(resource.kind == kind for resource in resources)} {kind}" for kind in kinds]
        times = moment(head.launched), moment(head.deadline)
        table.add_row(plain(cluster), plain(head.id), *times, ", ".join(counts))
    if found.left:
        table.caption = f"{len(found.left)} leftover resources of unused clusters: cloudem cluster sweep --dry-run"
    elif not found.used:
        table.caption = "none"
    return table


def resource_table(resources: Sequence[Resource]) -> Table:
    """Return what is left, one line each."""
    table = Table(title="leftover resources", box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("kind", "id", "cluster", "note"):
        table.add_column(column, overflow="fold")
    for resource in sorted(resources, key=lambda r: (r.cluster, r.kind, r.id)):
        table.add_row(*map(plain, (resource.kind, resource.id, resource.cluster, resource.note)))
    return table
