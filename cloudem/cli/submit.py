"""``cloudem submit``: a workflow on machines that are rented for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.cli.runs import advise_to_follow, check_head, confirm, follow_run, say_cap, say_pages, store_at, when
from cloudem.errors import ParameterError
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    from cloudem.runs.records import RunStore
    from cloudem.runs.workflow import Workflow


class Submit(Command):
    """Plan, confirm, rent, run, report, give back."""

    name: ClassVar[str] = "submit"
    summary: ClassVar[str] = "Run a workflow on rented machines within a budget; attach to a run, or resume it."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem submit workflow.toml --max-usd 200 --max-hours 6",
        "cloudem submit workflow.toml --dry-run              # only show the plan",
        "cloudem submit --attach s3://bucket/project/runs/first-map-20261121-0613",
        "cloudem submit --attach s3://bucket/project/runs/first-map-20261121-0613 --max-usd 250",
        "cloudem submit --resume s3://bucket/project/runs/first-map-20261121-0613 --max-usd 300",
    )

    workflow: str | None = parameter(None, meaning="workflow file (see docs/planning.md)", positional=True)
    attach: str | None = parameter(None, meaning="follow the run at this URL, wherever it was submitted")
    resume: str | None = parameter(None, meaning="resume the stopped run at this URL")
    max_usd: float | None = parameter(
        None, meaning="approximate maximum cost, in dollars; by default, 1.5 times the plan's upper estimate", gt=0
    )
    max_hours: float | None = parameter(
        None, meaning="maximum duration, in hours; by default, 1.5 times the plan's upper estimate", gt=0
    )
    fastest: bool = parameter(False, meaning="choose the fastest plan within the limits, not the cheapest")
    region: str | None = parameter(None, meaning="region to rent in, such as eu-central-1, or local for this computer")
    zones: str | None = parameter(None, meaning="zones to use, separated by commas; if none, all with known prices")
    types: str | None = parameter(None, meaning="worker types to consider, separated by commas; if none, all")
    markets: str = parameter("spot,on-demand", meaning="how to rent: spot, on-demand, or both")
    run_name: str | None = parameter(None, meaning="name of the run; by default, that of the workflow")
    dashboard: bool = parameter(False, meaning="serve the Dask dashboard on the head node (see docs/nodes.md)")
    detach: bool = parameter(False, meaning="exit once the run has started; it continues on its own")
    yes: bool = parameter(False, meaning="do not ask for confirmation before spending money")
    dry_run: bool = parameter(False, meaning="show the plan, then stop")

    def run(self) -> None:
        """Do what is asked for; exactly one of workflow, --attach and --resume."""
        if sum(value is not None for value in (self.workflow, self.attach, self.resume)) != 1:
            raise ParameterError("give a workflow file, or --attach URL, or --resume URL; see cloudem submit --help")
        if self.attach is not None:
            self._attach(store_at(self.attach))
        elif self.resume is not None:
            self._resume(store_at(self.resume))
        else:
            from cloudem.runs.workflow import read_workflow

            assert self.workflow is not None  # noqa: S101 - see above
            self.submit(read_workflow(self.workflow))

    def _attach(self, store: RunStore) -> None:
        """Follow a run; limits that are given are its limits from now on."""
        changed: dict[str, Any] = {"max_usd": self.max_usd} if self.max_usd else {}
        if self.max_hours:
            changed["deadline"] = time.time() + self.max_hours * 3600
            check_head(store, changed["deadline"])
        state = store.state()
        if changed and state is not None and state.over:
            raise ParameterError(f"{store.url} is {state.status}; change its limits with `cloudem submit --resume`")
        if changed:
            wanted = store.change(**changed)
            click.echo(f"{store.url}: approximate maximum ${wanted.max_usd:g}, ends by {when(wanted.deadline)}")
        say_pages(store)
        if not self.detach:
            follow_run(store)

    def submit(self, workflow: Workflow) -> RunStore | None:
        """Plan a workflow, and rent machines for what is left of it; return the run, None if there is none."""
        from cloudem.cli.graph import print_graph
        from cloudem.cli.help import console
        from cloudem.cli.plan import NOTHING_LEFT, make_plan, show_plan
        from cloudem.cloud.catalogue import Catalogue
        from cloudem.cloud.providers import provider_name, provider_of
        from cloudem.runs.preflight import preflight
        from cloudem.runs.records import new_name
        from cloudem.runs.submit import new_run, start
        from cloudem.runs.webhook import taken_webhook

        webhook = taken_webhook()
        outlook = preflight(workflow, planning=self.dry_run)
        print_graph(outlook)
        workflow = outlook.left
        if not workflow.steps:
            click.echo(NOTHING_LEFT)
            return None
        plan = make_plan(
            workflow,
            region=self.region,
            zones=self.zones or (None if self.dry_run else _zones_of_provider(workflow, self.region)),
            types=self.types,
            markets=self.markets,
            max_usd=self.max_usd,
            max_hours=self.max_hours,
            objective="fastest" if self.fastest else "cheapest",
            notes=outlook.lines,
        )
        screen = console()
        show_plan(plan, screen)
        name = new_name(self.run_name or workflow.name, time.time())
        provider_kind = provider_name(plan.region)
        limits = self.max_usd, self.max_hours
        store, record, wanted = new_run(
            workflow, plan, provider_kind, name, *limits, time.time(), dashboard=self.dashboard
        )
        say_cap(plan, wanted)
        _say_webhook(webhook)
        if self.dry_run:
            return None
        if not self.yes:
            confirm(f"Rent these machines ({provider_kind}, {plan.region})?")
        store.create(record, wanted)
        advise_to_follow(store)
        provider = provider_of(provider_kind, plan.region)
        start(store, provider, Catalogue.load(), click.echo, webhook=webhook)
        self._then(store)
        return store

    def _resume(self, store: RunStore) -> None:
        from cloudem.cloud.catalogue import Catalogue
        from cloudem.cloud.providers import provider_of
        from cloudem.runs.preflight import preflight_of_rest
        from cloudem.runs.submit import resume, start
        from cloudem.runs.webhook import taken_webhook

        webhook = taken_webhook()
        record = store.record()
        for text in preflight_of_rest(store).lines:
            click.echo(text)
        provider = provider_of(record.provider, record.region)
        usd = self.max_usd or store.wanted().max_usd
        click.echo(f"{store.url} resumes with an approximate maximum of ${usd:g} in total")
        _say_webhook(webhook)
        if self.dry_run:
            return
        if not self.yes:
            confirm(f"Rent machines for it again ({record.provider}, {record.region})?")
        resume(store, self.max_usd, self.max_hours, time.time())
        start(store, provider, Catalogue.load(), click.echo, webhook=webhook)
        self._then(store)

    def _then(self, store: RunStore) -> None:
        click.echo(f"run: {store.url}")
        say_pages(store)
        if self.detach:
            click.echo(f"detached; follow it with: cloudem submit --attach {store.url}")
        else:
            follow_run(store)


def _say_webhook(webhook: bytes | None) -> None:
    if webhook is not None:
        click.echo("notifications: to the webhook of CLOUDEM_WEBHOOK")


def _zones_of_provider(workflow: Workflow, region: str | None) -> str | None:
    """Return the zones that the account's network has, so that no other is planned; None for all."""
    from cloudem.cli.plan import region_to_rent
    from cloudem.cloud.providers import provider_name, provider_of

    where = region_to_rent(region, workflow)
    zones = provider_of(provider_name(where), where).zones()
    return ",".join(zones) if zones else None
