"""A workflow as text: its steps, what each reads and makes, and what has to be done about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cloudem.cli.help import console
from cloudem.jobs.artefacts import made_by, said
from cloudem.jobs.changes import below, reads_from

if TYPE_CHECKING:
    from cloudem.jobs.changes import Change
    from cloudem.runs.preflight import Outlook
    from cloudem.runs.workflow import Step, Workflow

MARKS = {"run": ("●", "bold"), "changed": ("●", "yellow"), "unchanged": ("✓", "green")}
"""Of what has to be done about a step, and their style."""


def print_graph(outlook: Outlook) -> None:
    """Print the steps of a workflow, what they read, what they make and who reads that, and what is to be done."""
    workflow, screen = outlook.workflow, console()
    where = f", in {workflow.project}" if workflow.project else ""
    screen.print(Text.assemble(("workflow ", "bold"), (workflow.name, "bold cyan"), where), soft_wrap=True)
    rows = [_rows(workflow, number) for number in range(len(workflow.steps))]
    widest = max((len(row[1]) for part in rows for row in part), default=0)
    for step, part in zip(workflow.steps, rows, strict=True):
        screen.print(_heading(step, outlook.changes.get(step.name)))
        table = Table.grid(padding=(0, 2))
        table.add_column()
        table.add_column(overflow="fold", min_width=min(widest, screen.width // 2))
        table.add_column()
        for sign, place, kinds in part:
            table.add_row(sign, place, Text(kinds, "dim"))
        screen.print(table)
    screen.print()


def _heading(step: Step, change: Change | None) -> Text:
    mark, style = MARKS[change.status if change else "run"]
    named = "" if step.name == step.job.name else f" ({step.job.name})"
    what = "" if change is None else f"{change.status}: {change.why}" if change.why else change.status
    return Text.assemble((f"{mark} ", style), (step.name, "bold cyan"), named, "  ", (what, style))


def _rows(workflow: Workflow, number: int) -> list[tuple[str, str, str]]:
    """Return what a step reads and makes: a sign, the place, its kinds, and its maker or readers."""
    step, earlier, later = workflow.steps[number], workflow.steps[:number], workflow.steps[number + 1 :]
    rows = []
    for place in dict.fromkeys(reads_from(step.job).values()):
        origin = [other.name for other in earlier if below(place, other.job.out) and not other.job.reads_out]
        rows.append(("  ←", _place(place, workflow), f"from {origin[-1]}" if origin else ""))
    made = {} if step.job.reads_out else made_by(step.job) or {step.job.out: ()}
    for place, kinds in made.items():
        readers = [other.name for other in later if place in reads_from(other.job).values()]
        if place == step.job.out or readers:
            to = f"to {', '.join(readers)}" if readers else ""
            rows.append(("  →", _place(place, workflow), ": ".join(filter(None, (to, said(kinds) if kinds else "")))))
    return rows


def _place(place: str, workflow: Workflow) -> str:
    return place.removeprefix(f"{workflow.project}/") if workflow.project else place
