"""``cloudem auto``: one command from particles to a refined map, as a workflow file that it writes and then runs."""

from __future__ import annotations

import shlex
import tomllib
from typing import TYPE_CHECKING, ClassVar

import click
from rich.padding import Padding
from rich.text import Text

from cloudem.cli.declare import Command
from cloudem.cli.help import console
from cloudem.errors import DecisionError, OutputExistsError, ParameterError, one_line
from cloudem.jobs.parameters import Place, is_positional, option_of, parameter
from cloudem.runs.automatic import AUTO_FILE, FOUND, TABLES, automatic_workflow, read_head

if TYPE_CHECKING:
    from cloudem.runs.decisions import Decision
    from cloudem.runs.workflow import Workflow


LONGEST_COMMAND = 4000
"""Characters of the command that a workflow file quotes."""


class Auto(Command):
    """What ``cloudem auto`` takes."""

    name: ClassVar[str] = "auto"
    summary: ClassVar[str] = "Go from particles to a refined map without a reference, by a workflow that you can edit."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem auto particles.star --diameter-A 180",
        "cloudem auto particles.zarr --diameter-A 140 --symmetry D2 --project d2",
        "cloudem auto particles.star --diameter-A 180 --dry-run        # show the workflow and its plan",
        "cloudem auto particles.star --diameter-A 180 --write-only     # then edit auto/auto.toml, and submit it",
    )

    particles: Place = parameter(
        meaning="table of RELION (.star) or cryoSPARC (.cs), particle store, or results of a job that hold particles",
        positional=True,
    )
    diameter_A: float = parameter(
        meaning="diameter of a circle that contains the particle, about 10 % more than its longest axis", gt=0
    )
    symmetry: str = parameter(
        "auto", meaning="point group: C<n>, D<n>, T, O, I, I1 to I4, as in RELION; auto: that of the starting map"
    )
    project: Place = parameter("auto", meaning="project for workflow and results: a folder, or s3://bucket/prefix")
    classes: int = parameter(0, meaning="number of 2D classes; 0: as in classify2d", ge=0, le=500)
    invert_contrast: bool = parameter(False, meaning="invert images of a table in which protein is dark")
    seed: int = parameter(0, meaning="random seed of all steps")
    write_only: bool = parameter(False, meaning="write the workflow file, show its steps, and run nothing")

    def command(self) -> str:
        """Return the command that this is, in one line."""
        words = ["cloudem", self.name]
        for name, field in type(self).model_fields.items():
            value, option = getattr(self, name), option_of(name)
            if is_positional(field):
                words.append(str(value))
            elif name != "write_only" and value != field.default:
                words += [option] if value is True else [option, _word(value)]
        return one_line(shlex.join(words), LONGEST_COMMAND)

    def text(self) -> str:
        """Return the workflow file that it writes."""
        from cloudem.io.storage.location import absolute
        from cloudem.model.symmetry import operators

        if self.symmetry != FOUND:
            operators(self.symmetry)
        if self.invert_contrast and not self.particles.lower().endswith(TABLES):
            raise ParameterError(
                f"--invert-contrast is for tables that are imported; {self.particles} is none: import the particles "
                "again with it"
            )
        return automatic_workflow(
            self.command(),
            project=absolute(self.project),
            particles=self.particles,
            diameter_A=self.diameter_A,
            symmetry=self.symmetry,
            classes=self.classes,
            seed=self.seed,
            invert_contrast=self.invert_contrast,
        )

    @property
    def file(self) -> str:
        """Where it lies: in the project, or, of a project in S3, in the working directory, where submit reads it."""
        from cloudem.io.storage.location import absolute, is_local, join, parent_and_name

        project = absolute(self.project)
        return join(project, AUTO_FILE) if is_local(project) else absolute(f"{parent_and_name(project)[1]}.toml")

    def current(self, *, replace: bool) -> tuple[str, str]:
        """Return the text of the workflow that is to run, and what is to be said of it.

        Parameters
        ----------
        replace
            Whether a file that was edited is written anew.

        Raises
        ------
        OutputExistsError
            There is one that was edited, or is for other particles, and the options are others now.
        """
        from cloudem.io.storage.location import read_bytes

        text, there = self.text(), read_bytes(self.file)
        if there is None:
            return text, f"writes {self.file}"
        before = there.decode(errors="replace")
        if before == text:
            return text, f"goes on with {self.file}"
        head = read_head(before)
        if head.command == self.command() and not replace:
            edited = ", which was edited; --replace writes it anew" if head.edited else ""
            return before, f"goes on with {self.file}{edited}"
        if not replace and (head.edited or self._particles_of(head.command) != self.particles):
            raise OutputExistsError(
                f"{self.file} was {'edited' if head.edited else 'written for other particles'}, and these options are "
                f"not those that it was written with; go on with `cloudem run {self.file}`, write it anew with "
                "--replace, or give another --project"
            )
        return text, f"writes {self.file} anew: options were others before"

    def prepare(self, *, replace: bool, keep: bool) -> Workflow:
        """Check the workflow, show its steps and write its file; return it.

        Parameters
        ----------
        replace
            As for `current`.
        keep
            Whether the file is written; else it is printed.

        Raises
        ------
        CloudemError
            A step would be refused, or a human has to decide before anything can follow.
        """
        from cloudem.cli.graph import print_graph
        from cloudem.io.storage.location import write_bytes
        from cloudem.runs.preflight import preflight

        text, said = self.current(replace=replace)
        workflow = parsed(text, self.file)
        if not keep:
            click.echo(f"{self.file}:\n\n{text}")
        for number, step in enumerate(workflow.steps):
            if not step.job.is_finished():
                break
            stop_to_decide(self.file, workflow, number)
        outlook = preflight(workflow)
        if keep:
            print_graph(outlook)
            write_bytes(self.file, text.encode())
            click.echo(said)
        if self.write_only:
            click.echo(f"run it here: cloudem run {self.file}\nrent machines: cloudem submit {self.file} --dry-run")
        return workflow

    @staticmethod
    def _particles_of(command: str) -> str:
        try:
            return next(iter(shlex.split(command)[2:]), "")
        except ValueError:  # somebody has written something else there
            return ""


def _word(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def parsed(text: str, file: str) -> Workflow:
    """Return the workflow of a text that is to stand in a file.

    Raises
    ------
    ParameterError
        It is none.
    """
    from cloudem.errors import parsing
    from cloudem.runs.workflow import workflow_of

    with parsing(f"{file} is not valid TOML", "correct it, or write it anew with --replace", ParameterError):
        table = tomllib.loads(text)
    return workflow_of(table, "auto")


def stop_to_decide(file: str, workflow: Workflow, number: int) -> None:
    """Stop after a step, from 0, of the workflow in a file, if a human has to decide how to go on.

    Raises
    ------
    DecisionError
        A human has to; what to look at and how to go on was printed.
    """
    from cloudem.runs.decisions import decision_after

    decision = decision_after(workflow, number)
    if decision is not None:
        print_decision(workflow, workflow.steps[number].name, decision, file)
        raise DecisionError(f"step {workflow.steps[number].name}: {decision.why}")


def print_decision(workflow: Workflow, step: str, decision: Decision, file: str) -> None:
    """Print why a workflow stops, what to look at, and how to go on."""
    screen = console()
    screen.print(Text.assemble(("stopped ", "bold yellow"), ("after ", ""), (step, "bold cyan"), f": {decision.why}"))
    screen.print(Text("\nLook at", "bold"))
    for place in decision.look:
        screen.print(Text(f"  {workflow.project}/{place}/report.html"), soft_wrap=True)
    screen.print(Text(f"  cloudem serve {workflow.project}", "dim"), soft_wrap=True)
    screen.print(Text("\nThen, if", "bold"))
    for case, how in decision.ways:
        screen.print(Padding(Text.assemble(f"{case}: ", (how, "cyan")), (0, 0, 0, 2)))
    screen.print(f"\nEdit the workflow, {file}, and run the same command again.\n", soft_wrap=True)


def print_end(workflow: Workflow) -> None:
    """Print what a workflow has made."""
    from cloudem.io.storage.groups import read_attributes

    last, results = (
        workflow.steps[-1].job.out,
        [read_attributes(step.job.out, "result") or {} for step in workflow.steps],
    )
    warned = [
        f"{step.name}: {text}"
        for step, result in zip(workflow.steps, results, strict=True)
        for text in result.get("warnings", ())
    ]
    resolution = results[-1].get("resolution_A")
    screen = console()
    reached = f"  {resolution:.2f} Å" if isinstance(resolution, float) else ""
    screen.print(Text.assemble(("\nDone", "bold green"), reached))
    screen.print(Text(f"  report  {last}/report.html"), soft_wrap=True)
    screen.print(Text(f"  pages   cloudem serve {workflow.project}"), soft_wrap=True)
    screen.print(Text(f"  files   cloudem export {last} --out files"), soft_wrap=True)
    for text in warned:
        screen.print(Padding(Text.assemble(("! ", "yellow"), text), (0, 0, 0, 2)))
