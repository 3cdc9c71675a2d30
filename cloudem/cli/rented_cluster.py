"""``cloudem cluster up``, ``status``, ``down`` and ``sweep``: clusters that are rented for a while."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.cli.runs import (
    absolute_url,
    confirm,
    provider_in,
    region_given,
    say_cap,
    say_left,
    say_pages,
    store_at,
    wait_until_over,
)
from cloudem.errors import ParameterError
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    pass


class Up(Command):
    """A cluster that waits for jobs."""

    name: ClassVar[str] = "cluster up"
    summary: ClassVar[str] = "Rent a scheduler and workers for your own jobs; they shut down at the deadline."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cluster up s3://bucket/project --workers 4 --instance-type c7a.4xlarge --max-usd 20 --max-hours 4",
        "cloudem cluster up ./project --region local --workers 2 --instance-type local.1 --max-usd 1 --max-hours 1",
    )

    project: str = parameter(meaning="folder or s3://bucket/prefix for state and ledger", positional=True)
    workers: int = parameter(meaning="number of worker nodes", ge=1, le=1000)
    instance_type: tuple[str, ...] = parameter(meaning="worker type; repeat the option for fallbacks, best first")
    max_usd: float = parameter(meaning="approximate maximum cost, in dollars", gt=0)
    max_hours: float = parameter(meaning="hours until it shuts down", gt=0)
    region: str | None = parameter(None, meaning="region to rent in, such as eu-central-1, or local for this computer")
    markets: str = parameter("spot,on-demand", meaning="how to rent: spot, on-demand, or both")
    run_name: str | None = parameter(None, meaning="name of the cluster")
    yes: bool = parameter(False, meaning="do not ask for confirmation before spending money")
    dry_run: bool = parameter(False, meaning="show what would be rented, then stop")

    def run(self) -> None:
        """Rent, and say how to use it."""
        from cloudem.cli.plan import markets_of
        from cloudem.cloud.catalogue import Catalogue
        from cloudem.cloud.providers import provider_name, provider_of
        from cloudem.runs.cluster_plan import cluster_plan
        from cloudem.runs.records import new_name
        from cloudem.runs.submit import keep_certificates, new_run, start
        from cloudem.runs.workflow import Workflow

        region = region_given(self.region)
        catalogue = Catalogue.load()
        plan = cluster_plan(
            catalogue,
            region,
            self.instance_type,
            self.workers,
            markets_of(self.markets),
            self.max_usd,
            self.max_hours,
        )
        workflow = Workflow(absolute_url(self.project), self.run_name or "cluster", region, ())
        kind = provider_name(region)
        name = new_name(workflow.name, time.time())
        store, record, wanted = new_run(workflow, plan, kind, name, self.max_usd, self.max_hours, time.time())
        click.echo(
            f"head {' '.join(plan.head)}, {plan.steps[0].describe()}: ${plan.usd.expected / self.max_hours:.3f} an hour"
        )
        say_cap(plan, wanted)
        if self.dry_run:
            return
        if not self.yes:
            confirm(f"Rent these machines ({kind}, {region})?")
        store.create(record, wanted)
        start(store, provider_of(kind, region), catalogue, click.echo)
        head = store.head()
        scheduler = head.scheduler if head else "SCHEDULER (see `cloudem cluster status`)"
        folder = keep_certificates(provider_of(kind, region), name)
        click.echo(f"run: {store.url}\nto use it, run jobs with: --scheduler {scheduler} --certificates {folder}")
        say_pages(store)
        click.echo(f"status: cloudem cluster status {store.url}\nshut down: cloudem cluster down {store.url}")


class Status(Command):
    """How runs and clusters stand."""

    name: ClassVar[str] = "cluster status"
    summary: ClassVar[str] = "Show the status of a run or cluster; without a URL, of all in a region."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cluster status --region us-east-1",
        "cloudem cluster status s3://bucket/project/runs/cluster-20261121-0613",
    )

    url: str | None = parameter(None, meaning="URL of a run", positional=True)
    region: str | None = parameter(None, meaning="region to look in, or local for this computer")

    def run(self) -> None:
        """Print it."""
        from cloudem.cli.help import console
        from cloudem.cli.tables import clusters_table, seen, state_view
        from cloudem.cloud.money import account
        from cloudem.cloud.providers import provider_of
        from cloudem.runs.reckoning import nodes_of, reckon

        screen = console()
        if self.url is not None:
            store = store_at(self.url)
            state, now = store.state(), time.time()
            if state is None:
                raise ParameterError(f"{store.url} has not started; submit it again")
            record = store.record()
            nodes, why = nodes_of(store, provider_of(record.provider, record.region))
            found = reckon(store, now, nodes)
            spent = account(found.entries, found.until).total
            screen.print(state_view(record.name, state, store.wanted(), seen(state, now, nodes, spent, found.lost)))
            for text in filter(None, (why, found.gap)):
                click.echo(text)
            return
        provider = provider_in(self.region)
        from cloudem.runs.leftovers import look

        screen.print(clusters_table(look(provider, time.time())))


class Down(Command):
    """The end of a run or cluster."""

    name: ClassVar[str] = "cluster down"
    summary: ClassVar[str] = "Stop a run or cluster and release everything it rented; results are kept."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cluster down s3://bucket/project/runs/first-map-20261121-0613",
        "cloudem cluster down s3://bucket/project/runs/first-map-20261121-0613 --now",
    )

    url: str = parameter(meaning="URL of the run", positional=True)
    now: bool = parameter(False, meaning="do not wait for the current iteration")
    patience_s: float = parameter(600.0, meaning="how long to wait for the current iteration", ge=0)

    def run(self) -> None:
        """Stop, wait, remove, and say what is left."""
        from cloudem.cloud.providers import provider_of
        from cloudem.runs.submit import certificates_folder, conclude, end

        store = store_at(self.url)
        record = store.record()
        provider = provider_of(record.provider, record.region)
        store.change(stop=True)
        if not self.now:
            wait_until_over(store, self.patience_s)
        left = end(record.name, provider)
        conclude(store, "ended by its owner", time.time())
        shutil.rmtree(certificates_folder(record.name), ignore_errors=True)
        say_left(left)


class Sweep(Command):
    """What clusters left behind."""

    name: ClassVar[str] = "cluster sweep"
    summary: ClassVar[str] = "List leftover resources of unused clusters, and remove them."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem cluster sweep --region local --dry-run",
        "cloudem cluster sweep --region eu-central-1 --yes",
    )

    region: str | None = parameter(None, meaning="region to look in, or local for this computer")
    dry_run: bool = parameter(False, meaning="list leftover resources without removing them")
    yes: bool = parameter(False, meaning="do not ask for confirmation before removing anything")

    def run(self) -> None:
        """List, ask, remove."""
        from cloudem.cli.help import console
        from cloudem.cli.tables import clusters_table, resource_table
        from cloudem.runs.leftovers import look, sweep

        provider, screen = provider_in(self.region), console()
        found = look(provider, time.time())
        if found.used:
            screen.print(clusters_table(found))
        if not found.left:
            click.echo("no leftover resources of unused clusters")
            return
        screen.print(resource_table(found.left))
        if self.dry_run:
            return
        if not self.yes:
            confirm(f"Remove these {len(found.left)} resources?")
        say_left(sweep(provider, {resource.cluster for resource in found.left}))


COMMANDS: dict[str, type[Command]] = {"up": Up, "status": Status, "down": Down, "sweep": Sweep}
