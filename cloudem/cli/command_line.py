"""One generic command line over all jobs, derived from their declarations.

Exit status: 0 if all went well; 1 with one line on standard error if not; 3 if a job was asked to stop (SIGUSR1) and
stopped where it can go on later; 4 if ``auto`` stopped because a human has to decide; 130 after Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn

import click

from cloudem.cli import auto, cluster, cost, node, plan, prices, project, rented_cluster, serve, submit, watch
from cloudem.cli.commands import DeclaredCommand, DeclaredGroup
from cloudem.cli.declare import normalise, options_of
from cloudem.errors import CloudemError, DecisionError, StoppedError, one_line
from cloudem.interrupts import guarded, interrupted
from cloudem.jobs.base import JOBS, Job, find_job, known_jobs
from cloudem.jobs.parameters import Declaration, parameter

if TYPE_CHECKING:
    import logging

    from cloudem.cloud.planning.work import Size, Work
    from cloudem.execution.executor import Executor
    from cloudem.jobs.progress import Progress
    from cloudem.runs.workflow import Step, Workflow

STOPPED, UNDECIDED = 3, 4


class RunOptions(Declaration):
    """What every command takes besides the parameters of its job."""

    name: ClassVar[str] = "cloudem"

    dry_run: bool = parameter(False, meaning="show what would run and how much memory and disk it needs, then stop")
    replace: bool = parameter(
        False, meaning="replace results that the same job made with other parameters or inputs, as in a project"
    )
    executor: Literal["dask", "serial"] = parameter("dask", meaning="dask uses all cores or GPUs; serial uses one core")
    threads: int | None = parameter(None, meaning="threads per worker; by default, one per core", ge=1)
    processes: bool = parameter(False, meaning="use supervised worker processes instead of threads")
    workers: int | None = parameter(None, meaning="number of worker processes", ge=1)
    scheduler: str | None = parameter(None, meaning="address of a running scheduler, such as tls://host:8786")
    certificates: str | None = parameter(
        None, meaning="folder with the cluster's certificates; by default, $CLOUDEM_CERTIFICATES"
    )
    insecure: bool = parameter(False, meaning="accept an unencrypted scheduler on another machine")
    reproducible: bool = parameter(
        True, meaning="same bits for any number of workers; without it, less network traffic"
    )
    dashboard: bool = parameter(False, meaning="serve the Dask dashboard at http://127.0.0.1:8787")
    debug: bool = parameter(False, meaning="show a traceback if something fails")

    def make_executor(self, gpus: bool) -> Executor:
        """Start what runs the work; with worker processes on GPUs only for jobs that use them."""
        if self.executor == "serial":
            from cloudem.execution.executor import SerialExecutor

            return SerialExecutor()
        from cloudem.execution.dask.executor import DaskExecutor

        return DaskExecutor(
            scheduler=self.scheduler,
            certificates=self.certificates,
            insecure=self.insecure,
            processes=self.in_processes,
            workers=self.workers,
            threads=self.threads,
            gpus=gpus,
            dashboard=self.dashboard,
            fixed_order=self.reproducible,
        )

    @property
    def in_processes(self) -> bool:
        """Whether there are worker processes: a number of them says so, too."""
        return self.processes or self.workers is not None

    @property
    def tasks(self) -> int:
        """Number of tasks that will run at the same time on this machine."""
        if self.executor == "serial":
            return 1
        if self.scheduler is not None:
            return 0
        from cloudem.execution.dask.embedded import layout

        workers, threads = layout(processes=self.in_processes, workers=self.workers, threads=self.threads)
        return workers * threads


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line, guarded against interrupts, and exit."""
    sys.exit(guarded(partial(run, sys.argv[1:] if arguments is None else list(arguments))))


def run(given: Sequence[str]) -> int:
    """Run the command line and return its exit status; an interrupt passes through."""
    try:
        with COMMANDS.make_context("cloudem", list(given)) as context:
            COMMANDS.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None
    except BrokenPipeError:  # whoever read our output has gone, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if interrupted():  # what a library made of it
            raise KeyboardInterrupt from None
        if "--debug" in given:
            raise
        print(f"cloudem: {describe_error(error)}", file=sys.stderr)
        if isinstance(error, DecisionError):
            return UNDECIDED
        return STOPPED if isinstance(error, StoppedError) else 1
    return 0


def describe_error(error: Exception) -> str:
    """Return what to tell the user about an error, in one line."""
    if isinstance(error, CloudemError):
        text = str(error)
    elif isinstance(error, click.ClickException):
        text = _usage(error)
    elif isinstance(error, MemoryError):
        text = "out of memory; try fewer --threads, or a machine with more memory"
    elif isinstance(error, OSError):
        text = f"{error.filename or 'reading or writing'}: {error.strerror or error}"
    else:
        text = f"unexpected {type(error).__name__}: {error}; run again with --debug to see where it came from"
    return one_line(text)


def _usage(error: click.ClickException) -> str:
    """Return what is wrong with a command line, and which help says how it should be."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context is not None else "cloudem"
    text = error.format_message().rstrip(".") or "no command was given"  # empty where the help was printed
    return f"{text}{' See' if text.endswith('?') else '; see'} {command} --help"


class JobCommand(click.Command):
    """The command of one job."""

    def __init__(self, declaration: type[Job]) -> None:
        self.declaration = declaration
        super().__init__(
            declaration.name,
            params=[*options_of(declaration), *options_of(RunOptions)],
            context_settings={"token_normalize_func": normalise},
            callback=self._call,
        )

    def _call(self, **given: Any) -> None:
        values, options = _split(given)
        from cloudem.runs.workflow import Step, Workflow

        job = self.declaration(**values)
        _run(Workflow("", job.name, "", (Step(job.name, job),)), options)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print every parameter with unit, default and meaning, and the examples."""
        from cloudem.cli.help import print_command_help

        print_command_help(self.declaration, RunOptions)


class AutoCommand(click.Command):
    """The command that writes a workflow and runs it."""

    def __init__(self) -> None:
        super().__init__(
            auto.Auto.name,
            params=[*options_of(auto.Auto), *options_of(RunOptions)],
            context_settings={"token_normalize_func": normalise},
            callback=self._call,
            help=auto.Auto.summary,
        )

    def _call(self, **given: Any) -> None:
        values, options = _split(given)
        wanted = auto.Auto(**values)
        workflow = wanted.prepare(replace=options.replace, keep=not options.dry_run)
        if options.dry_run or not wanted.write_only:
            _run(workflow, options, partial(auto.stop_to_decide, wanted.file))
        if not (options.dry_run or wanted.write_only):
            auto.print_end(workflow)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print every parameter with unit, default and meaning, and the examples."""
        from cloudem.cli.help import print_command_help

        print_command_help(auto.Auto, RunOptions)


class WatchCommand(click.Command):
    """The command that carries a workflow on as movies arrive."""

    def __init__(self) -> None:
        super().__init__(
            watch.WatchWorkflow.name,
            params=[*options_of(watch.WatchWorkflow), *options_of(RunOptions)],
            context_settings={"token_normalize_func": normalise},
            callback=self._call,
            help=watch.WatchWorkflow.summary,
        )

    def _call(self, **given: Any) -> None:
        from cloudem.jobs.runner import run_job

        values, options = _split(given)
        wanted = watch.WatchWorkflow(**values)
        workflow = wanted.read()
        if options.dry_run:
            wanted.show(workflow)
            return

        def run_step(step: Step) -> None:
            run_job(
                step.job, options.make_executor, _view, options.tasks,
                step=step.name, project=workflow.project, replaces=True,
            )  # fmt: skip

        wanted.watch(workflow, run_step)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print every parameter with unit, default and meaning, and the examples."""
        from cloudem.cli.help import print_command_help

        print_command_help(watch.WatchWorkflow, RunOptions)


class JobGroup(click.Group):
    """All jobs by name; a declaration is imported when its job is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of jobs, then the others."""
        return [*known_jobs(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of a job; it may be written with dashes, as options are."""
        cmd_name = cmd_name.replace("-", "_") if cmd_name.replace("-", "_") in known_jobs() else cmd_name
        found = None if cmd_name in JOBS else super().get_command(ctx, cmd_name)
        if found is None and (cmd_name in JOBS or cmd_name in known_jobs()):
            return JobCommand(find_job(cmd_name))
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant; where only a group has one of that name, say so."""
        name = args[0]
        if self.get_command(ctx, name) is None:
            groups = {group: each for group, each in self.commands.items() if isinstance(each, click.Group)}
            for group, each in groups.items():
                if name in each.commands:
                    ctx.fail(f"No such command '{name}'. Did you mean '{group} {name}'?")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the names and summaries of all commands."""
        from cloudem.cli.help import print_overview

        others = {name: command.help or "" for name, command in self.commands.items() if not command.hidden}
        print_overview({name: find_job(name).summary for name in known_jobs()}, others)


def _run(workflow: Workflow, options: RunOptions, after: Callable[[Workflow, int], None] | None = None) -> None:
    """Plan the steps, or run them one after the other; all are checked before the first begins.

    ``after`` is called with the number of each step that is finished, from 0, and raises where none may follow.
    """
    from cloudem.runs.preflight import preflight

    replaces = options.replace or bool(workflow.project)
    chained = len(workflow.steps) > 1 or bool(workflow.project)
    if options.dry_run:
        from cloudem.cli.graph import print_graph
        from cloudem.cli.help import print_plan

        outlook = preflight(workflow, replaces=replaces)
        if chained:
            print_graph(outlook)
        made: dict[str, Size] = {}
        for step in outlook.left.steps if chained else workflow.steps:
            print_plan(step.job, _work(step, chained, made), options.tasks, outlook.said.get(step.name, ()))
        return
    from cloudem.jobs.runner import run_job

    if chained:  # of one it is the first that running it does
        preflight(workflow, replaces=replaces)
    for number, step in enumerate(workflow.steps):
        name = step.name if chained else ""
        run_job(
            step.job,
            options.make_executor,
            _view,
            options.tasks,
            step=name,
            project=workflow.project,
            replaces=replaces,
        )
        if after is not None:
            after(workflow, number)


def _work(step: Step, chained: bool, made: dict[str, Size]) -> Work:
    """Return what a step will do, and note in ``made`` what it makes, for those after it; as far as that is known."""
    from cloudem.cloud.planning.work import Work
    from cloudem.jobs.artefacts import sizes_of
    from cloudem.runs.workload import Given, work_of

    if not chained:
        return step.job.work(sizes_of(step.job))
    try:
        return work_of(step, made, Given())
    except CloudemError:
        return Work((), notes=("memory and disk are known when the jobs before it are done",))


@contextmanager
def _view(log: logging.Logger) -> Iterator[Progress]:
    from cloudem.jobs.view import LiveProgress, PlainProgress

    view: LiveProgress | PlainProgress = LiveProgress(log) if sys.stdout.isatty() else PlainProgress(log)
    with closing(view):
        yield view


def _split(given: Mapping[str, Any]) -> tuple[dict[str, Any], RunOptions]:
    """Part what was given on the command line into values of the job and options of the run."""
    values = {name: value for name, value in given.items() if value is not None and value != ()}
    options = {name: values.pop(name) for name in RunOptions.model_fields if name in values}
    return values, RunOptions(**options)


COMMANDS = JobGroup("cloudem", no_args_is_help=True)
COMMANDS.add_command(AutoCommand())
COMMANDS.add_command(WatchCommand())
COMMANDS.add_command(DeclaredCommand("plan", plan.PlanCommand))
COMMANDS.add_command(DeclaredCommand("submit", submit.Submit))
COMMANDS.add_command(DeclaredCommand("status", project.ProjectStatus))
COMMANDS.add_command(DeclaredCommand("logs", project.JobLogs))
COMMANDS.add_command(DeclaredCommand("open", project.OpenJob))
COMMANDS.add_command(DeclaredCommand("cost", cost.Cost))
COMMANDS.add_command(DeclaredCommand("serve", serve.Serve))
COMMANDS.add_command(DeclaredGroup("cluster", cluster.SUMMARY, {**rented_cluster.COMMANDS, **cluster.COMMANDS}))
COMMANDS.add_command(DeclaredGroup("prices", prices.SUMMARY, prices.COMMANDS))
COMMANDS.add_command(DeclaredCommand("node", node.NodeAgent, hidden=True))


class _FileCommand(click.Command):
    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from cloudem.cli.help import print_file_help

        print_file_help(RunOptions)


@COMMANDS.command("run", cls=_FileCommand, params=[click.Argument(["file"]), *options_of(RunOptions)])
def _run_file(file: str, **given: Any) -> None:
    """Run the jobs in a TOML file."""
    from cloudem.runs.workflow import read_workflow

    _run(read_workflow(file), _split(given)[1])


@COMMANDS.command("version")
def _version() -> None:
    """Show the versions of cloudem and of the packages it uses."""
    from cloudem.jobs.provenance import versions

    for name, version in versions().items():
        click.echo(f"{name} {version}")
