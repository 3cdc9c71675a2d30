"""``cloudem cost``: what runs cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.cli.runs import store_at
from cloudem.errors import ParameterError
from cloudem.jobs.base import parameter

if TYPE_CHECKING:
    pass


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
        from cloudem.runs.records import RunStore, runs_of

        screen, now = console(), time.time()
        names = runs_of(self.url)
        if names and self.report is not None:
            raise ParameterError(f"--report: {self.url} is a project; give the URL of one of its runs: {names[-1]}")
        if names:
            stores = [RunStore.of(self.url, name) for name in names]
            screen.print(
                run_table(
                    [(store, costs(Plan.from_json(store.record().plan), store.ledger(), now)) for store in stores]
                )
            )
            return
        store = store_at(self.url)
        record, entries = store.record(), store.ledger()
        state = store.state()
        moment = now if state is None or not state.over else max((entry.at for entry in entries), default=now)
        found = costs(Plan.from_json(record.plan), entries, moment)
        for table in (step_table(found), node_table(found)):
            screen.print(table)
        if self.ledger:
            screen.print(ledger_table(entries))
        if self.report is not None:
            from cloudem.cloud.catalogue import Catalogue
            from cloudem.runs.run_report import write_run_page

            click.echo(f"report: {write_run_page(store, Catalogue.load(), state, self.report)}")
