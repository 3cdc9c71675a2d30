"""How runs, clusters and what they left look on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cloudem.cloud.nodes import Resource
from cloudem.runs.leftovers import Left
from cloudem.runs.records import RunState, Wishes
from cloudem.text import clock, dollars

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "draining": "yellow"}


def plain(text: str, **how: Any) -> Text:
    """Return what others wrote, as it stands: neither markup nor control characters of it reach the terminal."""
    return Text("".join(character if character.isprintable() else "\ufffd" for character in text), **how)


def state_view(name: str, state: RunState, wanted: Wishes) -> RenderableType:
    """Return how a run stands: status, step, money, time, nodes, and the last lines of its job."""
    head = Text.assemble((name, "bold"), "  ", (state.status, COLOURS.get(state.status, "")))
    if state.steps:
        head.append(plain(f"  step {min(state.step + 1, state.steps)} of {state.steps} {state.job}"))
    if state.why:
        head.append(plain(f"  {state.why}", style="yellow"))
    share = state.spent_usd / wanted.max_usd
    money = Text.assemble(
        "spent ", (dollars(state.spent_usd), "bold"), f" of {dollars(wanted.max_usd)} ({share:.0%}), "
        f"{dollars(state.usd_per_hour)} an hour; worst overshoot of the maximum {dollars(state.overshoot_usd)}",
    )  # fmt: skip
    left = wanted.deadline - state.at
    money.append(f"; {clock(left)} left" if left > 0 else "; out of time")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("node", "pool", "state", "for"):
        table.add_column(column)
    for node in state.nodes:
        since = clock(max(state.at - node.since, 0))
        table.add_row(plain(node.slot), plain(node.pool), plain(node.state), since)
    lines = [plain(line, style="dim", overflow="ellipsis", no_wrap=True) for line in state.progress]
    return Group(head, money, *([table] if state.nodes else []), *lines)


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
        moment = time.strftime("%H:%M:%S", time.localtime(state.at))
        for line, when in ((f"{state.status}{step}", f"{moment} "), *((line, "") for line in state.progress)):
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
        times = _moment(head.launched), _moment(head.deadline)
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


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
