"""``cloudem plan``: what a workflow will take and cost on rented machines, before anything is rented."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

from cloudem.cli.declare import Command
from cloudem.errors import ParameterError
from cloudem.jobs.base import find_job, known_jobs
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cloudem.cloud.nodes import Market
    from cloudem.cloud.planning.estimate import Range
    from cloudem.cloud.planning.plan import Objective, Plan
    from cloudem.jobs.refine3d.duration import Correction
    from cloudem.runs.workflow import Workflow
    from cloudem.runs.workload import Given, MeasuredCost

NOTHING_LEFT = "nothing to do: all results are there, and unchanged"

PLANNED = ("refine3d", "reconstruct")
"""Jobs that can be planned without a file."""

LAST = "alternatives; none is both faster and cheaper"

SHOWN = 12
"""Rows of the table of alternatives, and of reasons."""


class PlanCommand(Command):
    """Estimate, choose, show."""

    name: ClassVar[str] = "plan"
    summary: ClassVar[str] = "Estimate time and cost; choose machines."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem plan workflow.toml --max-hours 6 --max-usd 200",
        "cloudem plan workflow.toml --fastest --max-usd 20 --figure plan.png --json-file plan.json",
        "cloudem plan live.toml --movies 5000 --frames 40 --frame-px 4096 --region eu-central-1",
        "cloudem plan refine3d --particles 200000 --box-px 384 --pixel-size-A 0.83 --region eu-central-1",
        "cloudem plan --benchmark                     # measure this machine, for region local and for pilots",
    )

    what: str | None = parameter(
        None, meaning="workflow file or job file; or refine3d or reconstruct, with --particles", positional=True
    )
    particles: int | None = parameter(None, meaning="number of particles, if they are not imported yet", gt=0)
    box_px: int | None = parameter(None, meaning="box size, if they are not imported yet", gt=0)
    pixel_size_A: float | None = parameter(None, meaning="pixel size, if they are not imported yet", gt=0)
    movies: int | None = parameter(None, meaning="number of movies or micrographs, if they are not there yet", gt=0)
    frames: int | None = parameter(None, meaning="frames of a movie, if there is none yet", gt=0)
    frame_px: str | None = parameter(
        None, meaning="size of a frame or micrograph, such as 4096 or 5760x4092, if there is none yet"
    )
    diameter_A: float | None = parameter(
        None, meaning="particle diameter, for refine3d without a file; if none, 0.6 of the box", gt=0
    )
    symmetry: str = parameter("C1", meaning="point group, for refine3d or reconstruct without a file")
    region: str | None = parameter(
        None,
        meaning="region to rent in, such as eu-central-1, or local; by default, that of the workflow or AWS_REGION",
    )
    zones: str | None = parameter(None, meaning="zones to use, separated by commas; if none, all with known prices")
    types: str | None = parameter(None, meaning="instance types to consider, separated by commas; if none, all")
    markets: str = parameter("spot,on-demand", meaning="how to rent: spot, on-demand, or both")
    max_usd: float | None = parameter(None, meaning="maximum expected cost, in dollars", gt=0)
    max_hours: float | None = parameter(None, meaning="maximum expected time, in hours", gt=0)
    cheapest: bool = parameter(False, meaning="choose the cheapest plan within the limits (default)")
    fastest: bool = parameter(False, meaning="choose the fastest plan within the limits")
    quotas: bool = parameter(False, meaning="plan within the account's service quotas")
    pilot: bool = parameter(
        False, meaning="refine the estimate by running 1 to 2 % of the particles, or five movies, on this machine"
    )
    benchmark: bool = parameter(False, meaning="measure and store the speed of this machine first (15 s)")
    json_file: str | None = parameter(None, meaning="write the plan to this JSON file")
    figure: str | None = parameter(None, meaning="plot cost against time into this file (.png, .svg or .pdf)")

    def run(self) -> None:
        """Plan and show it."""
        from cloudem.cli.help import console

        if self.cheapest and self.fastest:
            raise ParameterError("got both --cheapest and --fastest; give only one of them")
        screen = console()
        if self.benchmark:
            measure_this_machine(screen)
        if self.what is None:
            if self.benchmark:
                return
            raise ParameterError("give a workflow file, a job file or refine3d; see cloudem plan --help")
        from cloudem.runs.preflight import preflight

        workflow, given = self._workflow(), self._given()
        whole = workflow
        described = given.is_enough
        said: list[str] = []
        if self.what not in known_jobs():  # of a job without a file nothing is there
            from cloudem.cli.graph import print_graph

            outlook = preflight(workflow, described=described, planning=True)
            print_graph(outlook)
            workflow, said = outlook.left, outlook.lines
            if not workflow.steps:
                screen.print(NOTHING_LEFT)
                return
        plan = make_plan(
            workflow,
            region=self.region,
            zones=self.zones,
            types=self.types,
            markets=self.markets,
            max_usd=self.max_usd,
            max_hours=self.max_hours,
            objective="fastest" if self.fastest else "cheapest",
            given=given,
            quotas=self.quotas,
            corrections=pilots(whole, screen) if self.pilot else None,
            notes=said,
        )
        show_plan(plan, screen)
        if self.json_file:
            Path(self.json_file).write_text(json.dumps(plan.as_json(), indent=1), encoding="utf-8")
        if self.figure:
            draw(plan, self.figure)

    def _given(self) -> Given:
        from cloudem.runs.workload import Given

        shape = None if self.frame_px is None else _frame_shape(self.frame_px)
        return Given(self.particles, self.box_px, self.pixel_size_A, self.movies, self.frames, shape)

    def _workflow(self) -> Workflow:
        """Return the workflow of a file, or of one job of which only its particles are known."""
        from cloudem.runs.workflow import Step, Workflow, read_workflow

        assert self.what is not None  # noqa: S101 - see run
        if self.what not in known_jobs():
            return read_workflow(self.what)
        if self.what not in PLANNED:
            raise ParameterError(f"{self.what} cannot be planned on its own; give a workflow file, or refine3d")
        if self.particles is None or self.box_px is None:
            raise ParameterError(f"plan {self.what} without a file needs --particles and --box-px")
        diameter = self.diameter_A or 0.6 * self.box_px * (self.pixel_size_A or 1.0)
        # nothing of this is read: the particles are said to be in object storage, where nodes would read them
        values: dict[str, Any] = {"particles": "s3://project/particles.zarr", "out": "s3://project/out"}
        values |= {"symmetry": self.symmetry, "diameter_A": diameter}
        if self.what == "refine3d":
            values["reference"] = "s3://project/start.mrc"
        return Workflow("", self.what, "", (Step(self.what, find_job(self.what)(**values)),))


def _frame_shape(text: str) -> tuple[int, int]:
    """Return rows and columns of a frame from ``4096`` or ``5760x4092``, which is width x height."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise ParameterError(f"--frame-px: got {text!r}, needs a side or width x height, such as 4096 or 5760x4092")
    return int(sides[-1]), int(sides[0])


def make_plan(
    workflow: Workflow,
    *,
    region: str | None = None,
    zones: str | None = None,
    types: str | None = None,
    markets: str = "spot,on-demand",
    max_usd: float | None = None,
    max_hours: float | None = None,
    objective: Objective = "cheapest",
    given: Given | None = None,
    quotas: bool = False,
    corrections: Mapping[str, Correction | MeasuredCost] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a workflow, from the catalogue and the speeds as they are kept on this machine.

    ``notes`` are further lines to know, besides the plan's own.

    Raises
    ------
    ParameterError
        The region is not known, or what the particles are.
    BudgetError
        Nothing fits into the limits.
    """
    from cloudem.cloud.catalogue import Catalogue
    from cloudem.cloud.planning.calibration import speeds
    from cloudem.cloud.planning.plan import plan
    from cloudem.cloud.providers import provider_name, provider_of
    from cloudem.runs.workload import step_estimates

    where = region_to_rent(region, workflow)
    free = provider_of(provider_name(where), where).quotas() if quotas else None
    steps = step_estimates(workflow, speeds(), given, corrections)
    told = [f"{step.name}: {note}" for step in steps for note in step.notes]
    made = plan(
        steps,
        Catalogue.load(),
        region=where,
        now=time.time(),
        zones=_listed(zones),
        markets=markets_of(markets),
        types=_listed(types),
        max_usd=max_usd,
        max_hours=max_hours,
        objective=objective,
        quotas=free,
    )
    return replace(made, notes=(*made.notes, *told, *notes))


def region_to_rent(region: str | None, workflow: Workflow) -> str:
    """Return where to rent: as was given, as the workflow says, here for a folder, else as the environment says.

    Raises
    ------
    ParameterError
        None of them says anything.
    """
    from cloudem.io.storage.location import is_remote

    if region or workflow.region:
        return region or workflow.region
    if workflow.project and not is_remote(workflow.project):
        return "local"
    if found := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        return found
    raise ParameterError("no region is set; give one such as --region eu-central-1, or --region local to rehearse")


def _listed(text: str | None) -> list[str] | None:
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


def markets_of(text: str) -> list[Market]:
    """Return ways of buying from what was given, best first.

    Raises
    ------
    ParameterError
        One of them is none.
    """
    from cloudem.cloud.nodes import Market

    found = _listed(text) or []
    if wrong := [part for part in found if part not in get_args(Market)] or ([] if found else [text]):
        raise ParameterError(
            f"--markets: got {wrong[0]!r}, needs {' or '.join(get_args(Market))}, or both with a comma"
        )
    return cast("list[Market]", found)


def measure_this_machine(screen: Console) -> None:
    """Measure this machine and keep its row."""
    from cloudem.cloud.planning.calibration import benchmark, keep

    row = benchmark()
    path = keep(row)
    screen.print(f"this machine ({row.processor}, {row.cores} cores): {row.core:.2f} of the reference thread; {path}")


def pilots(workflow: Workflow, screen: Console) -> dict[str, Correction | MeasuredCost]:
    """Run a pilot of each refinement whose particles are there, and of steps from movies on; say what they found."""
    from cloudem.runs.growing_pilot import pilot_of_movies
    from cloudem.runs.pilot import own_row, pilot_of

    found: dict[str, Correction | MeasuredCost] = {}
    for name, cost in pilot_of_movies(workflow, own_row).items():
        found[name] = cost
        screen.print(f"pilot of {name}: {cost.describe()}")
    for step in workflow.steps:
        result = pilot_of(step.job)
        if result is not None:
            found[step.name] = result.correction
            screen.print(f"pilot of {step.name}: {result.describe()}")
    if not found:
        raise ParameterError(
            "--pilot needs movies that are there, or a refine3d step whose particles and reference exist already; "
            "leave it out"
        )
    return found


def draw(plan: Plan, path: str) -> None:
    """Draw cost against time into a file."""
    from cloudem.report.sections.planning import save_plan_figure
    from cloudem.runs.run_report import points_of

    title = f"{plan.objective} in {plan.region}, prices of {plan.prices_of}"
    save_plan_figure(path, points_of(plan), title, max_usd=plan.max_usd, max_hours=plan.max_hours)


def show_plan(plan: Plan, screen: Console) -> None:
    """Print what is rented for each step, what else could be, what was refused, and what to know."""
    from rich.text import Text

    from cloudem.text import rough_dollars, rough_time

    limits = [
        f"under ${plan.max_usd:g}" if plan.max_usd else "",
        f"under {plan.max_hours:g} h" if plan.max_hours else "",
    ]
    asked = " ".join([plan.objective, " and ".join(filter(None, limits))]).strip()
    screen.print(Text.assemble(("plan ", "bold"), (asked, "bold cyan"), f"  {plan.region}, zone {plan.zone}"))
    screen.print(_steps_table(plan))
    screen.print(
        Text.assemble(
            ("  total  ", "bold"), f"{rough_time(plan.wall.expected)} ({_times(plan.wall)}), ",
            f"{rough_dollars(plan.usd.expected)} ({_dollars(plan.usd)})",
            (f"; head {plan.head.instance_type} on-demand", "dim"),
        )
    )  # fmt: skip
    extra = ", ".join(f"{name} {rough_dollars(part.expected)}" for name, part in plan.extra.items() if part.expected)
    if extra:
        screen.print(Text(f"  other costs: {extra}", "dim"))
    if len(plan.alternatives) > 1:
        screen.print()
        screen.print(_alternatives_table(plan))
    if plan.max_usd or plan.max_hours:
        screen.print(
            Text("  * is chosen among plans that are likely, not only expected, to stay within the limits", "dim")
        )
    for line in (*_fallback_lines(plan), *_refused_lines(plan)):
        screen.print(Text(f"  {line}", "dim"))
    for note in plan.notes:
        screen.print(Text.assemble(("  ! ", "yellow"), note))


def _times(range: Range) -> str:
    from cloudem.text import rough_time

    return _from_to(rough_time(range.low), rough_time(range.high))


def _dollars(range: Range) -> str:
    from cloudem.text import rough_dollars

    return f"{rough_dollars(range.low)} to {rough_dollars(range.high).removeprefix('$')}"


def _from_to(low: str, high: str) -> str:
    """Say the unit once if both have the same."""
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(unit).rstrip()} to {high}" if low.endswith(f" {unit}") else f"{low} to {high}"


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False, header_style="bold")
    for heading in headings:
        wraps = heading in ("bottleneck", LAST)
        table.add_column(heading, no_wrap=not wraps, min_width=len(heading) if wraps else None)
    return table


def _steps_table(plan: Plan) -> Table:
    from cloudem.text import rough_dollars, rough_time

    table = _table("  step", "machines", "time", "", "cost", "", "bottleneck", "GiB")
    for step in plan.steps:
        memory = f"{step.memory_GiB:.0f}" + (f"\nGPU {step.gpu_GiB:.0f}" if step.gpu_GiB else "")
        table.add_row(
            f"  {step.name}", step.describe(), rough_time(step.wall.expected), _times(step.wall),
            rough_dollars(step.usd.expected), _dollars(step.usd), step.bottleneck, memory,
        )  # fmt: skip
    return table


def _alternatives_table(plan: Plan) -> Table:
    from cloudem.text import rough_dollars, rough_time

    table = _table("", "time", "", "cost", "", LAST)
    every = max(1, -(-len(plan.alternatives) // SHOWN))
    for number, other in enumerate(plan.alternatives):
        if other.chosen or number % every == 0 or number == len(plan.alternatives) - 1:
            table.add_row(
                "  *" if other.chosen else "", rough_time(other.wall.expected), _times(other.wall),
                rough_dollars(other.usd.expected), _dollars(other.usd), "; ".join(_shorter(other.steps)),
                style="bold" if other.chosen else "",
            )  # fmt: skip
    return table


def _shorter(steps: Sequence[str]) -> list[str]:
    """Leave out steps on the head, unless there are no others."""
    return [step for step in steps if step != "head"] or list(steps[:1])


def _fallback_lines(plan: Plan) -> list[str]:
    return [
        f"{step.name}, fallbacks: {', '.join(' '.join(pool) for pool in step.fallbacks[:4])}"
        + (f" and {len(step.fallbacks) - 4} more" if len(step.fallbacks) > 4 else "")
        for step in plan.steps
        if step.fallbacks
    ]


def _refused_lines(plan: Plan) -> list[str]:
    """Gather what was refused by its reason."""
    by_reason: dict[str, list[str]] = {}
    for what, why in plan.refused:
        by_reason.setdefault(why, []).append(what)
    lines = [
        f"refused: {', '.join(named[:3])}{f' and {len(named) - 3} more' if len(named) > 3 else ''}: {why}"
        for why, named in by_reason.items()
    ]
    more = len(lines) - SHOWN
    return [*lines[:SHOWN], *([f"and {more} more reasons (see --json-file)"] if more > 0 else [])]
