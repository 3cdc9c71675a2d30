"""``cloudem submit``, ``cost``, ``prices`` and the clusters that are rented for a while."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.errors import CloudemError, ParameterError
from cloudem.jobs.base import parameter

if TYPE_CHECKING:
    from cloudem.cloud.nodes import Resource
    from cloudem.cloud.planning.plan import Plan
    from cloudem.cloud.provider import Provider
    from cloudem.runs.records import RunState, RunStore, Wishes
    from cloudem.runs.workflow import Workflow

PRICES_SUMMARY = "Show or update the prices of machines."


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

    workflow: str | None = parameter(None, meaning="workflow file (see docs/cloud.md)", positional=True)
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
    detach: bool = parameter(False, meaning="exit once the run has started; it continues on its own")
    yes: bool = parameter(False, meaning="do not ask for confirmation before spending money")
    dry_run: bool = parameter(False, meaning="show the plan, then stop")

    def run(self) -> None:
        """Do what is asked for; exactly one of workflow, --attach and --resume."""
        if sum(value is not None for value in (self.workflow, self.attach, self.resume)) != 1:
            raise ParameterError("give a workflow file, or --attach URL, or --resume URL; see cloudem submit --help")
        if self.attach is not None:
            self._attach(_store(self.attach))
        elif self.resume is not None:
            self._resume(_store(self.resume))
        else:
            self._submit()

    def _attach(self, store: RunStore) -> None:
        """Follow a run; limits that are given are its limits from now on."""
        changed: dict[str, Any] = {"max_usd": self.max_usd} if self.max_usd else {}
        if self.max_hours:
            changed["deadline"] = time.time() + self.max_hours * 3600
            _check_head(store, changed["deadline"])
        state = store.state()
        if changed and state is not None and state.over:
            raise ParameterError(f"{store.url} is {state.status}; change its limits with `cloudem submit --resume`")
        if changed:
            wanted = store.change(**changed)
            click.echo(f"{store.url}: approximate maximum ${wanted.max_usd:g}, ends by {_when(wanted.deadline)}")
        if not self.detach:
            _follow(store)

    def _submit(self) -> None:
        from cloudem.cli.help import console
        from cloudem.cli.plan import make_plan, show_plan
        from cloudem.cloud.catalogue import Catalogue
        from cloudem.cloud.providers import provider_name, provider_of
        from cloudem.io.storage.location import is_remote
        from cloudem.runs.records import new_name
        from cloudem.runs.submit import check_inputs, new_run, start
        from cloudem.runs.workflow import read_workflow

        assert self.workflow is not None  # noqa: S101 - see run
        workflow = read_workflow(self.workflow)
        if not (self.dry_run and is_remote(workflow.project)):  # to plan, no store need be reached
            check_inputs(workflow)
        plan = make_plan(
            workflow,
            region=self.region,
            zones=self.zones or (None if self.dry_run else _zones_of_provider(workflow, self.region)),
            types=self.types,
            markets=self.markets,
            max_usd=self.max_usd,
            max_hours=self.max_hours,
            objective="fastest" if self.fastest else "cheapest",
        )
        screen = console()
        show_plan(plan, screen)
        name = new_name(self.run_name or workflow.name, time.time())
        provider_kind = provider_name(plan.region)
        store, record, wanted = new_run(workflow, plan, provider_kind, name, self.max_usd, self.max_hours, time.time())
        _say_cap(plan, wanted)
        if self.dry_run:
            return
        if not self.yes:
            _confirm(f"Rent these machines ({provider_kind}, {plan.region})?")
        store.create(record, wanted)
        provider = provider_of(provider_kind, plan.region)
        start(store, provider, Catalogue.load(), click.echo)
        self._then(store)

    def _resume(self, store: RunStore) -> None:
        from cloudem.cloud.catalogue import Catalogue
        from cloudem.cloud.providers import provider_of
        from cloudem.runs.submit import resume, start

        record = store.record()
        provider = provider_of(record.provider, record.region)
        usd = self.max_usd or store.wanted().max_usd
        click.echo(f"{store.url} resumes with an approximate maximum of ${usd:g} in total")
        if self.dry_run:
            return
        if not self.yes:
            _confirm(f"Rent machines for it again ({record.provider}, {record.region})?")
        resume(store, self.max_usd, self.max_hours, time.time())
        start(store, provider, Catalogue.load(), click.echo)
        self._then(store)

    def _then(self, store: RunStore) -> None:
        click.echo(f"run: {store.url}")
        _say_pages(store)
        if self.detach:
            click.echo(f"detached; follow it with: cloudem submit --attach {store.url}")
        else:
            _follow(store)


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
        store = _store(self.url)
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

        region = _region(self.region)
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
        workflow = Workflow(_absolute(self.project), self.run_name or "cluster", region, ())
        kind = provider_name(region)
        name = new_name(workflow.name, time.time())
        store, record, wanted = new_run(workflow, plan, kind, name, self.max_usd, self.max_hours, time.time())
        click.echo(
            f"head {' '.join(plan.head)}, {plan.steps[0].describe()}: ${plan.usd.expected / self.max_hours:.3f} an hour"
        )
        _say_cap(plan, wanted)
        if self.dry_run:
            return
        if not self.yes:
            _confirm(f"Rent these machines ({kind}, {region})?")
        store.create(record, wanted)
        start(store, provider_of(kind, region), catalogue, click.echo)
        head = store.head()
        scheduler = head.scheduler if head else "SCHEDULER (see `cloudem cluster status`)"
        folder = keep_certificates(provider_of(kind, region), name)
        click.echo(f"run: {store.url}\nto use it, run jobs with: --scheduler {scheduler} --certificates {folder}")
        _say_pages(store)
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
        from cloudem.cli.tables import clusters_table, state_view

        screen = console()
        if self.url is not None:
            store = _store(self.url)
            state = store.state()
            if state is None:
                raise ParameterError(f"{store.url} has not started; submit it again")
            screen.print(state_view(store.record().name, state, store.wanted()))
            return
        provider = _provider(self.region)
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

        store = _store(self.url)
        record = store.record()
        provider = provider_of(record.provider, record.region)
        store.change(stop=True)
        if not self.now:
            _wait_until_over(store, self.patience_s)
        left = end(record.name, provider)
        conclude(store, "ended by its owner", time.time())
        shutil.rmtree(certificates_folder(record.name), ignore_errors=True)
        _say_left(left)


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

        provider, screen = _provider(self.region), console()
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
            _confirm(f"Remove these {len(found.left)} resources?")
        _say_left(sweep(provider, {resource.cluster for resource in found.left}))


class UpdatePrices(Command):
    """Newer prices."""

    name: ClassVar[str] = "prices update"
    summary: ClassVar[str] = "Fetch current prices, instance types and spot history from AWS; needs credentials."
    examples: ClassVar[tuple[str, ...]] = ("cloudem prices update --region eu-central-1",)

    region: tuple[str, ...] = parameter((), meaning="regions to update; by default, those of the shipped prices")

    def run(self) -> None:
        """Refresh the user's copy."""
        from cloudem.cloud.aws.prices import refresh
        from cloudem.cloud.catalogue import Catalogue

        known = Catalogue.load()
        regions = self.region or tuple(name for name in known.regions() if name != "local")
        click.echo(f"wrote {refresh(regions, sorted(known.types), click.echo)}")


class ShowPrices(Command):
    """Prices as they are known."""

    name: ClassVar[str] = "prices show"
    summary: ClassVar[str] = "Show instance types, their prices, and the dates of the prices."
    examples: ClassVar[tuple[str, ...]] = ("cloudem prices show --region us-east-1 --type g6",)

    region: str | None = parameter(None, meaning="show only this region")
    type: str = parameter("", meaning="show only types that begin with this")

    def run(self) -> None:
        """Print a table."""
        from cloudem.cli.help import console
        from cloudem.cloud.aws.prices import show
        from cloudem.cloud.catalogue import Catalogue

        console().print(show(Catalogue.load(), self.region, self.type))


class NodeAgent(Command):
    """What runs on nodes."""

    name: ClassVar[str] = "node"
    summary: ClassVar[str] = "Run as a node of a cluster; started by the machine image, not by users."
    examples: ClassVar[tuple[str, ...]] = ("cloudem node",)

    def run(self) -> None:
        """Run until the machine is to end."""
        from cloudem.runs.agent import run_agent

        sys.exit(run_agent())


COMMANDS: dict[str, type[Command]] = {"submit": Submit, "cost": Cost}

CLUSTER: dict[str, type[Command]] = {"up": Up, "status": Status, "down": Down, "sweep": Sweep}

PRICES: dict[str, type[Command]] = {"show": ShowPrices, "update": UpdatePrices}


def _store(url: str) -> RunStore:
    from cloudem.runs.records import RunStore

    store = RunStore(_absolute(url))
    store.record()
    return store


def _absolute(url: str) -> str:
    from cloudem.io.storage.location import absolute

    return absolute(url)


def _region(given: str | None) -> str:
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


def _zones_of_provider(workflow: Workflow, region: str | None) -> str | None:
    """Return the zones that the account's network has, so that no other is planned; None for all."""
    from cloudem.cli.plan import region_to_rent
    from cloudem.cloud.providers import provider_name, provider_of

    where = region_to_rent(region, workflow)
    zones = provider_of(provider_name(where), where).zones()
    return ",".join(zones) if zones else None


def _provider(region: str | None) -> Provider:
    from cloudem.cloud.providers import provider_name, provider_of

    where = _region(region)
    return provider_of(provider_name(where), where)


def _confirm(question: str) -> None:
    if not sys.stdin.isatty():
        raise ParameterError(
            "cannot ask for confirmation without a terminal; give --yes, or --dry-run to see only the plan"
        )
    click.confirm(question, abort=True)


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def _say_cap(plan: Plan, wanted: Wishes) -> None:
    from cloudem.cloud.catalogue import Catalogue
    from cloudem.runs.submit import promise

    click.echo(promise(plan, wanted, Catalogue.load()))


def _say_left(left: Sequence[Resource]) -> None:
    from cloudem.cli.help import console
    from cloudem.cli.tables import resource_table

    if left:
        console().print(resource_table(left))
        raise CloudemError("these resources still exist; run `cloudem cluster sweep` in a few minutes")
    click.echo("everything was released; results, state and ledger are kept")


def _say_pages(store: RunStore) -> None:
    head = store.head()
    if head is not None and head.pages:
        local = store.record().provider == "local"
        click.echo(f"Dask dashboard: {head.pages}{'' if local else ', on the head node itself (see docs/nodes.md)'}")


def _wait_until_over(store: RunStore, patience_s: float) -> None:
    from cloudem.runs.submit import SILENT_S

    began, asked = time.time(), store.wanted().launch
    while time.time() - began < patience_s:
        state = store.state()
        if state is None or (state.over and state.launch == asked) or time.time() - state.at > SILENT_S:
            return
        time.sleep(0.5)


def _check_head(store: RunStore, deadline: float) -> None:
    """Refuse a deadline beyond that of the head, which was told its own when it was launched and ends by it."""
    from cloudem.cloud.nodes import HEAD
    from cloudem.cloud.providers import provider_of

    record = store.record()
    nodes = provider_of(record.provider, record.region).nodes(record.name)
    own = max((node.deadline for node in nodes if node.slot == HEAD and node.alive), default=deadline)
    if deadline > own + 1:
        raise ParameterError(
            f"--max-hours: the head shuts down by {_when(own)} in any case; for more, stop the run (cloudem cluster"
            f" down {store.url}) and resume it"
        )


def _follow(store: RunStore) -> None:
    """Show a run until it is over; Ctrl-C leaves it."""
    from cloudem.cloud.providers import provider_of
    from cloudem.runs.submit import end, follow

    try:
        record = store.record()
        provider = provider_of(record.provider, record.region)
        with _shown(store) as show:
            state = follow(store, show, provider)
    except KeyboardInterrupt:
        click.echo(
            f"\ndetached; the run continues. Follow it: cloudem submit --attach {store.url}\n"
            f"stop it: cloudem cluster down {store.url}"
        )
        return
    left = end(record.name, provider)
    _summary(store, state)
    _say_left(left)
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
    from cloudem.runs.records import PAGE

    entries = store.ledger()
    found = costs(Plan.from_json(store.record().plan), entries, max(entry.at for entry in entries))
    console().print(step_table(found))
    click.echo(f"{state.status}: {state.why or 'all steps are finished'}")
    if exists(page := join(store.url, PAGE)):
        click.echo(f"report: {page}")
    if state.status == "stopped":
        click.echo(f"resume it: cloudem submit --resume {store.url} --max-usd {2 * store.wanted().max_usd:.2f}")
