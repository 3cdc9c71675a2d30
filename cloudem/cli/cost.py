"""``cloudem cost``: what runs cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.cli.runs import store_at
from cloudem.errors import CloudemError, ParameterError
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cloudem.cloud.nodes import Node
    from cloudem.runs.records import RunState, RunStore


class Cost(Command):
    """Estimate against actual."""

    name: ClassVar[str] = "cost"
    summary: ClassVar[str] = "Compare planned and actual cost of a run, step by step."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cost s3://bucket/project/runs/first-map-20261121-0613",
        "cloudem cost s3://bucket/project          # all runs of a project",
        "cloudem cost s3://bucket/project/runs/first-map-20261121-0613 --ledger",
        "cloudem cost s3://bucket/project/runs/first-map-20261121-0613 --report report.html",
    )

    url: str = parameter(meaning="URL of a run or a project", positional=True)
    ledger: bool = parameter(False, meaning="also show every entry of the ledger")
    report: str | None = parameter(None, meaning="write the report of the run to this file or s3:// URL")

    def run(self) -> None:
        """Print tables."""
        from cloudem.cli.cost_tables import ledger_table, node_table, run_table, step_table
        from cloudem.cli.help import console
        from cloudem.cloud.planning.plan import Plan
        from cloudem.runs.accounting import costs
        from cloudem.runs.reckoning import reckon
        from cloudem.runs.records import RunStore, runs_of

        screen, now = console(), time.time()
        names = runs_of(self.url)
        if names and self.report is not None:
            raise ParameterError(f"--report: {self.url} is a project; give the URL of one of its runs: {names[-1]}")
        if names:
            rows, wrong = [], []
            for store in (RunStore.of(self.url, name) for name in names):
                found = reckon(store, now)
                rows.append((store, costs(Plan.from_json(store.record().plan), found.entries, found.until)))
                wrong += [f"{store.url}: {found.gap}"] if found.gap else []
            screen.print(run_table(rows))
            if wrong:
                raise CloudemError("; ".join(wrong))
            return
        store = store_at(self.url)
        record, state = store.record(), store.state()
        found = reckon(store, now, _nodes_if_running(store, state))
        reckoned = costs(Plan.from_json(record.plan), found.entries, found.until)
        for table in (step_table(reckoned), node_table(reckoned)):
            screen.print(table)
        if found.lost:
            click.echo(found.lost)
        if self.ledger:
            screen.print(ledger_table(found.entries))
        if self.report is not None:
            from cloudem.cloud.catalogue import Catalogue
            from cloudem.runs.run_report import write_run_page

            click.echo(f"report: {write_run_page(store, Catalogue.load(), state, self.report)}")
        if found.gap:
            raise CloudemError(f"{store.url}: {found.gap}")


def _nodes_if_running(store: RunStore, state: RunState | None) -> Sequence[Node] | None:
    """Return the nodes of a run that is not over, as its provider lists them; None where it does not answer."""
    from cloudem.cloud.providers import provider_of
    from cloudem.runs.reckoning import nodes_of

    record = store.record()
    if state is None or state.over:
        return None
    return nodes_of(store, provider_of(record.provider, record.region))[0]
