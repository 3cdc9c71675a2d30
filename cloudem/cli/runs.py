"""What commands about runs have in common: where a run is, whom to ask, what to say."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from cloudem import text
from cloudem.errors import CloudemError, ParameterError
from cloudem.interrupts import advise

if TYPE_CHECKING:
    from cloudem.cloud.nodes import Resource
    from cloudem.cloud.planning.plan import Plan
    from cloudem.cloud.provider import Provider
    from cloudem.runs.records import RunState, RunStore, Wishes


def store_at(url: str) -> RunStore:
    """Return the store of the run at a URL; an error says if there is none."""
    from cloudem.runs.records import RunStore

    store = RunStore(absolute_url(url))
    store.record()
    return store


def absolute_url(url: str) -> str:
    """Return a URL as it is from any folder."""
    from cloudem.io.storage.location import absolute

    return absolute(url)


def region_given(given: str | None) -> str:
    """Return the region that was asked for, or that of the environment.

    Raises
    ------
    ParameterError
        Neither says any.
    """
    region = given or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise ParameterError(
            "no region is set; give --region, such as eu-central-1, or local for this computer, or set AWS_REGION"
        )
    return region


def provider_in(region: str | None) -> Provider:
    """Return the provider of the region that was asked for, or that of the environment."""
    from cloudem.cloud.providers import provider_name, provider_of

    where = region_given(region)
    return provider_of(provider_name(where), where)


def confirm(question: str) -> None:
    """Ask before anything costs money or is removed; the command ends where the answer is no."""
    if not sys.stdin.isatty():
        raise ParameterError(
            "cannot ask for confirmation without a terminal; give --yes, or --dry-run to see only the plan"
        )
    click.confirm(question, abort=True)


def when(moment: float) -> str:
    """Return a moment (seconds since 1970) as date and local time of day."""
    return text.moment(moment, seconds=True)


def say_cap(plan: Plan, wanted: Wishes) -> None:
    """Say what is promised of money and time."""
    from cloudem.cloud.catalogue import Catalogue
    from cloudem.runs.submit import promise

    click.echo(promise(plan, wanted, Catalogue.load()))


def say_left(left: Sequence[Resource]) -> None:
    """Say what could not be removed, as an error, or that nothing is left."""
    from cloudem.cli.help import console
    from cloudem.cli.tables import resource_table

    if left:
        console().print(resource_table(left))
        raise CloudemError("these resources still exist; run `cloudem cluster sweep` in a few minutes")
    click.echo("everything was released; results, state and ledger are kept")


def say_pages(store: RunStore) -> None:
    """Say where the scheduler's pages are, if it has any."""
    head = store.head()
    if head is not None and head.pages:
        local = store.record().provider == "local"
        click.echo(f"Dask dashboard: {head.pages}{'' if local else ', on the head node itself (see docs/nodes.md)'}")


def wait_until_over(store: RunStore, patience_s: float) -> None:
    """Wait until a run is over, or its controller is silent, or patience ends (seconds)."""
    from cloudem.runs.reckoning import SILENT_S

    began, asked = time.time(), store.wanted().launch
    while time.time() - began < patience_s:
        state = store.state()
        if state is None or (state.over and state.launch == asked) or time.time() - state.at > SILENT_S:
            return
        time.sleep(0.5)


def check_head(store: RunStore, deadline: float) -> None:
    """Refuse a deadline beyond that of the head, which was told its own when it was launched and ends by it."""
    from cloudem.cloud.nodes import HEAD
    from cloudem.cloud.providers import provider_of

    record = store.record()
    nodes = provider_of(record.provider, record.region).nodes(record.name)
    own = max((node.deadline for node in nodes if node.slot == HEAD and node.alive), default=deadline)
    if deadline > own + 1:
        raise ParameterError(
            f"--max-hours: the head shuts down by {when(own)} in any case; for more, stop the run (cloudem cluster"
            f" down {store.url}) and resume it"
        )


def advise_to_follow(store: RunStore) -> None:
    """Have an interrupt say that the run goes on: the same command would begin another one."""
    advise(
        f"the run continues; follow it with cloudem submit --attach {store.url}, or stop it with cloudem cluster down"
        f" {store.url}"
    )


def follow_run(store: RunStore) -> None:
    """Show a run until it is over; Ctrl-C leaves it running."""
    from cloudem.cloud.providers import provider_of
    from cloudem.runs.submit import end, follow

    advise_to_follow(store)
    record = store.record()
    provider = provider_of(record.provider, record.region)
    with _shown(store) as show:
        state = follow(store, show, provider)
    left = end(record.name, provider)
    _summary(store, state)
    say_left(left)
    if state.status == "failed":
        raise CloudemError(f"{state.why}; see {store.url}/log.txt")


@contextmanager
def _shown(store: RunStore) -> Iterator[Callable[[RunState], None]]:
    from cloudem.cli.help import console
    from cloudem.cli.tables import following

    with following(console(), store.record().name, store.wanted) as show:
        yield show


def _summary(store: RunStore, state: RunState) -> None:
    from cloudem.cli.cost_tables import step_table
    from cloudem.cli.help import console
    from cloudem.cloud.planning.plan import Plan
    from cloudem.io.storage.location import exists, join
    from cloudem.runs.accounting import costs
    from cloudem.runs.reckoning import reckon
    from cloudem.runs.records import PAGE

    reckoned = reckon(store, state.at)
    console().print(step_table(costs(Plan.from_json(store.record().plan), reckoned.entries, reckoned.until)))
    if reckoned.gap:
        click.echo(reckoned.gap)
    click.echo(f"{state.status}: {state.why or 'all steps are finished'}")
    if exists(page := join(store.url, PAGE)):
        click.echo(f"report: {page}")
    if state.status == "stopped":
        click.echo(f"resume it: cloudem submit --resume {store.url} --max-usd {2 * store.wanted().max_usd:.2f}")
