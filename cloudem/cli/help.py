"""What the command line prints about its jobs: overview, parameters, plan. All of it is derived from declarations."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import cloudem
from cloudem.cloud.planning.work import Work
from cloudem.jobs.base import Job
from cloudem.jobs.parameters import Declaration, is_positional, label_of, option_of, unit_of
from cloudem.text import clock, memory

if TYPE_CHECKING:
    from cloudem.cli.declare import Command
    from cloudem.cloud.planning.estimate import Range

TYPES = {str: "TEXT", int: "INTEGER", float: "NUMBER"}
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}

RUN_FILE = """\
job = "refine3d"                 [[job]]                  # or several jobs, run in order
particles = "particles.zarr"     name = "import"
reference = "start.mrc"          particles = "particles.star"
diameter_A = 320                 out = "particles.zarr"
out = "refine\""""


def console() -> Console:
    """Return a console as wide as the terminal, within reason."""
    wide = Console(highlight=False)
    return Console(highlight=False, width=min(max(wide.width, 80), 120) if sys.stdout.isatty() else 100)


def print_overview(jobs: Mapping[str, str], others: Mapping[str, str]) -> None:
    """Print the names and summaries of all commands."""
    screen = console()
    screen.print(
        Text.assemble(("cloudem", "bold"), f" {cloudem.__version__}: ", str(cloudem.__doc__).partition(": ")[2].strip())
    )
    screen.print("\nUsage: cloudem COMMAND …; see cloudem COMMAND --help for its parameters\n")
    for title, commands in (("Jobs", jobs), ("Other commands", others)):
        screen.print(Text(title, "bold"))
        _print_commands(screen, commands)


def print_command_help(command: type[Job | Command], options: type[Declaration] | None = None) -> None:
    """Print what a command does and takes, and the options of how it runs where it has any."""
    screen = console()
    positional = " ".join(name.upper() for name, field in command.model_fields.items() if is_positional(field))
    screen.print(Text.assemble(("cloudem ", "bold"), (command.name, "bold cyan"), f"  {command.summary}"))
    screen.print(f"\nUsage: cloudem {command.name} {positional}{' ' if positional else ''}[OPTIONS]\n")
    _print_parameters(screen, "Parameters", command)
    if options is not None:
        _print_parameters(screen, "How it runs", options)
    _print_examples(screen, command.examples)


def print_group_help(group: str, summary: str, commands: Mapping[str, str]) -> None:
    """Print the names and summaries of a group's commands."""
    screen = console()
    screen.print(Text.assemble(("cloudem ", "bold"), (group, "bold cyan"), f"  {summary}"))
    screen.print(f"\nUsage: cloudem {group} COMMAND …; see cloudem {group} COMMAND --help for its parameters\n")
    _print_commands(screen, commands)


def print_file_help(options: type[Declaration]) -> None:
    """Print what ``cloudem run`` takes."""
    screen = console()
    screen.print(Text.assemble(("cloudem ", "bold"), ("run", "bold cyan"), "  Run the jobs in a TOML file."))
    screen.print("\nUsage: cloudem run FILE [OPTIONS]\n")
    screen.print(Text("FILE names a job and its parameters, called as in the job's --help:\n"))
    screen.print(Padding(Text(RUN_FILE), (0, 0, 1, 4)))
    screen.print(Text("A workflow file (docs/planning.md) works, too; of that, only missing or changed steps run.\n"))
    _print_parameters(screen, "How it runs", options)


def print_plan(job: Job, work: Work, tasks: int, warnings: Sequence[str] = ()) -> None:
    """Print what a job would do, what it would need with so many tasks at the same time, and what to know."""
    screen = console()
    screen.print(Text.assemble(("plan ", "bold"), (job.name, "bold cyan"), f"  {job.summary}"))
    table = Table.grid(padding=(0, 2))
    for name, value in job.model_dump().items():
        given = name in job.model_fields_set
        unit = unit_of(name) if value is not None else ""
        table.add_row(f"  {name}", Text(f"{_default(value)} {unit}".strip(), "" if given else "dim"))
    screen.print(table)
    needs = {"memory": work.memory(tasks if work.parallel else 1), "disk": work.disk_bytes}
    stated = [f"{name} {memory(size)}" for name, size in needs.items() if size]
    if tasks and (seconds := _expected(work, tasks)) is not None:
        low, _, high = seconds
        stated.append(f"time {clock(low)} to {clock(high)}")
    screen.print(Text.assemble(("  needs  ", "bold"), ", ".join(stated) or "little memory and disk"))
    for stage in work.stages:
        if stage.items > 1:
            how = "in parallel" if stage.parallel else "one after another"
            screen.print(f"  {stage.name}: {stage.items:,} {stage.unit}, {how}")
    for note in work.notes:
        screen.print(f"  {note}")
    for warning in warnings:
        screen.print(Text.assemble(("  ! ", "yellow"), warning))


def _expected(work: Work, tasks: int) -> Range | None:
    """Return how long work takes on this machine with so many tasks at the same time; None where it does not fit."""
    import psutil

    from cloudem.cloud.nodes import InstanceType
    from cloudem.cloud.planning.calibration import LOCAL, speeds
    from cloudem.cloud.planning.estimate import Duration, Fleet
    from cloudem.cloud.planning.stages import on_fleet

    here = InstanceType(f"{LOCAL}.{tasks}", tasks, tasks, psutil.virtual_memory().total / 2**30)
    found = on_fleet(Fleet(here, 1), work, speeds())
    return found.seconds if isinstance(found, Duration) else None


def _print_commands(screen: Console, commands: Mapping[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    for name, summary in commands.items():
        table.add_row(Text(f"  {name:<11}", "cyan"), summary)
    screen.print(table)
    screen.print()


def _print_parameters(screen: Console, title: str, declaration: type[Declaration]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    table.add_column(title, no_wrap=True)
    for heading in ("Unit", "Default", "Meaning"):
        table.add_column(heading)
    for name, field in sorted(declaration.model_fields.items(), key=_importance):
        off = f"|--no-{option_of(name)[2:]}" if field.default is True else ""
        label = Text.assemble((label_of(declaration, name) + off, "cyan"), f" {_takes(field.annotation)}".rstrip())
        default = Text("required", "bold") if field.is_required() else Text(_default(field.default))
        meaning = Text.assemble(field.description or "", (_bounds(field), "dim"))
        table.add_row(label, unit_of(name), default, meaning)
    screen.print(table)
    screen.print()


def _print_examples(screen: Console, examples: tuple[str, ...]) -> None:
    if examples:
        screen.print(Text("Examples", "bold"))
        for example in examples:
            screen.print(Text(f"  {example}"), soft_wrap=True)


def _importance(item: tuple[str, FieldInfo]) -> tuple[bool, bool, bool]:
    """Sort what must be given first, the output as the last of these."""
    name, field = item
    return not is_positional(field), not field.is_required(), name == "out"


def _takes(annotation: Any) -> str:
    """Return what an option takes, as people read it."""
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return "|".join(filter(None, map(_takes, get_args(annotation))))
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        return f"{_takes(parts[0])} …" if parts[-1] is Ellipsis else " ".join(map(_takes, parts))
    return TYPES.get(annotation, "")


def _default(value: Any) -> str:
    if value is None or value == () or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(field: FieldInfo) -> str:
    limits = {key: getattr(bound, key) for bound in field.metadata for key in BOUNDS if hasattr(bound, key)}
    return f" ({', '.join(f'{BOUNDS[key]} {limit:g}' for key, limit in limits.items())})" if limits else ""
