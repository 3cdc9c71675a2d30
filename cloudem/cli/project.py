"""``cloudem status``, ``logs`` and ``open``: what a project holds, what a job says, and what it made."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import tempfile
import time
import webbrowser
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import click

from cloudem.cli.declare import Command
from cloudem.cli.runs import absolute_url
from cloudem.errors import CloudemError, MissingInputError, printable
from cloudem.interrupts import advise
from cloudem.jobs.parameters import parameter

if TYPE_CHECKING:
    from rich.table import Table

    from cloudem.runs.project import JobState, Project

JOBS_SHOWN, RUNS_SHOWN = 6, 2
"""Jobs and runs that `cloudem status` shows unless it is asked for all: with what else it says, ten lines."""

COLOURS_OF_JOBS = {"running": "cyan", "finished": "green", "failed": "red", "lost": "red", "unreadable": "red"}

FOLLOW_S, FOLLOW_REMOTE_S = 1.0, 5.0
"""Pause between two looks at a log, seconds, in a folder and on S3."""

NAMES_OF_CHIMERAX = ("chimerax", "ChimeraX", "chimerax-daily")


class ProjectStatus(Command):
    """Jobs, runs and money of a project."""

    name: ClassVar[str] = "status"
    summary: ClassVar[str] = "Show the jobs of a project and how they stand, its runs, and what they cost."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem status",
        "cloudem status s3://bucket/project --all",
        "cloudem status project/refine --json      # one job; for programs",
    )

    project: str = parameter(
        ".",
        meaning="folder or s3://bucket/prefix that holds the results of jobs; or the results of one",
        positional=True,
    )
    all: bool = parameter(False, meaning="show all jobs and runs, not only the latest")
    json_: bool = parameter(False, meaning="print all of it as JSON")

    def run(self) -> None:
        """Print it."""
        from cloudem.runs.project import read_project

        found = read_project(self.project)
        if self.json_:
            click.echo(json.dumps(as_json(found), indent=2))
            return
        from cloudem.cli.help import console

        screen = console()
        click.echo(printable(headline(found)))
        jobs, runs = jobs_table(found, everything=self.all), runs_table(found, everything=self.all)
        if jobs.row_count:
            screen.print(jobs)
        if more := len(found.jobs) - jobs.row_count:
            click.echo(f"  … and {more:,} more: --all")
        if runs.row_count:
            screen.print(runs)
        if found.runs:
            click.echo(money_line(found))


def as_json(found: Project) -> dict[str, Any]:
    """Return a project as JSON holds it."""
    jobs = []
    for job in found.jobs:
        live = None if job.live is None else job.live.model_dump(mode="json")
        jobs.append({**dataclasses.asdict(dataclasses.replace(job, live=None)), "live": live})
    runs = [dataclasses.asdict(run) for run in found.runs]
    return {"url": found.url, "at": found.at, "spent_usd": found.spent_usd, "jobs": jobs, "runs": runs}


def headline(found: Project) -> str:
    """Return how many jobs a project has, and how they stand."""
    if not found.jobs:
        return f"{found.url}: no jobs"
    counts = Counter(job.state for job in found.jobs)
    said = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    more = f"; {found.unknown:,} more folders were not looked into" if found.unknown else ""
    return f"{found.url}: {len(found.jobs):,} job{'s' if len(found.jobs) != 1 else ''} ({said}){more}"


def jobs_table(found: Project, *, everything: bool) -> Table:
    """Return the jobs, a line each: those that run first."""
    from rich.table import Table
    from rich.text import Text

    from cloudem.cli.tables import plain
    from cloudem.text import clock

    rows = []
    for job in found.jobs if everything else found.jobs[:JOBS_SHOWN]:
        resolution = "" if job.resolution_A is None else f"{job.resolution_A:.2f} Å"
        wall = "" if job.wall_s is None else clock(job.wall_s)
        words = plain(job_in_words(job), style=COLOURS_OF_JOBS.get(job.state, "yellow"))
        rows.append((plain(f"  {job.path or '.'}", style="bold"), plain(job.kind), words, Text(resolution), Text(wall)))
    table = Table.grid(padding=(0, 2))
    for number, widest in enumerate((32, 14, None, 9, 9)):
        # what gives way where a line is too long are the words
        least = None if widest is None else min(max((len(row[number]) for row in rows), default=0), widest)
        table.add_column(no_wrap=True, overflow="ellipsis", min_width=least, max_width=widest)
    for row in rows:
        table.add_row(*row)
    return table


def job_in_words(job: JobState) -> str:
    """Return how a job stands; of one that runs, how far it is."""
    from cloudem.jobs.live import stage_in_words

    where = stage_in_words(job.live) if job.live is not None and job.state == "running" else ""
    return f"{job.words}: {where}" if where else job.words


def runs_table(found: Project, *, everything: bool) -> Table:
    """Return the runs, a line each: the youngest first."""
    from rich.table import Table

    from cloudem.cli.tables import plain
    from cloudem.text import dollars, rough_time

    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True, overflow="ellipsis")
    for run in found.runs if everything else found.runs[:RUNS_SHOWN]:
        step = f", step {run.step + 1} of {run.steps} {run.job}" if run.steps and run.status == "running" else ""
        age = f"said {rough_time(run.age_s)} ago" if run.at else ""
        spent = f"{dollars(run.spent_usd)} of {dollars(run.cap_usd)}"
        table.add_row(plain(f"  run {run.name}", style="bold"), plain(run.words + step), spent, age)
    return table


def money_line(found: Project) -> str:
    """Return what the runs of a project have cost, and cost now."""
    from cloudem.text import dollars

    rate = sum(run.usd_per_hour for run in found.runs)
    now = f", {dollars(rate)} an hour now" if rate else ""
    count = len(found.runs)
    return f"  spent {dollars(found.spent_usd)} in {count} run{'s' if count != 1 else ''}{now}"


class JobLogs(Command):
    """The log of a job or of a run."""

    name: ClassVar[str] = "logs"
    summary: ClassVar[str] = "Print the log of a job or run, and follow it until it ends."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem logs refine",
        "cloudem logs s3://bucket/project/refine --follow --tail 20",
    )

    job: str = parameter(meaning="results of a job, or URL of a run", positional=True)
    follow: bool = parameter(False, meaning="go on with what comes, until the job ends or Ctrl-C")
    tail: int = parameter(0, meaning="begin with the last so many lines; 0: with all", ge=0)

    def run(self) -> None:
        """Print lines."""
        from cloudem.io.storage.location import is_remote
        from cloudem.jobs.live import is_silent, read_live, silence_of, state_in_words

        url = absolute_url(self.job)
        log = _Lines(url)
        if self.follow:
            advise("the job goes on")
        first = log.more()
        for line in first[-self.tail :] if self.tail else first:
            click.echo(line)
        while self.follow:
            live = read_live(url)
            over = live is not None and (live.state != "running" or is_silent(live, time.time(), silence_of(url)))
            for line in log.more(last=over):
                click.echo(line)
            if over and live is not None:
                click.echo(state_in_words(live, time.time(), silence_of(url)))
                return
            time.sleep(FOLLOW_REMOTE_S if is_remote(url) else FOLLOW_S)


class _Lines:
    """The lines of a log that have not been read yet."""

    def __init__(self, url: str) -> None:
        from cloudem.io.storage.location import exists, join
        from cloudem.jobs.logs import LOG_FILE

        self._place, self._at, self._rest = join(url, LOG_FILE), 0, b""
        if not exists(self._place):
            raise MissingInputError(f"{self._place} does not exist; give the results of a job or the URL of a run")

    def more(self, *, last: bool = False) -> list[str]:
        """Return the whole lines that have come, and of the last ones also what has no end."""
        from cloudem.io.storage.location import read_bytes, read_start

        sized = read_start(self._place, 0)
        size = 0 if sized is None else sized[1]
        if size < self._at:  # it was made anew
            self._at, self._rest = 0, b""
        if size > self._at:
            whole = read_bytes(self._place) or b""
            self._rest += whole[self._at :]
            self._at = len(whole)
        *lines, self._rest = self._rest.split(b"\n")
        if last and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        return [printable(line.decode(errors="replace")) for line in lines]


class OpenJob(Command):
    """What a job made, in a browser or in ChimeraX."""

    name: ClassVar[str] = "open"
    summary: ClassVar[str] = "Open the report of a job or run in the browser, or its map in ChimeraX."
    examples: ClassVar[tuple[str, ...]] = ("cloudem open refine", "cloudem open s3://bucket/project/refine --chimerax")

    job: str = parameter(meaning="results of a job, or URL of a run", positional=True)
    chimerax: bool = parameter(False, meaning="open the map in ChimeraX, which has to be installed")

    def run(self) -> None:
        """Open it, and say what was opened."""
        url = absolute_url(self.job)
        if self.chimerax:
            program = next(filter(None, map(shutil.which, NAMES_OF_CHIMERAX)), None)
            if program is None:
                raise CloudemError(
                    "ChimeraX was not found; install it (www.cgl.ucsf.edu/chimerax), or export the map with cloudem"
                    " export and open it elsewhere"
                )
            place = map_file(url)
            subprocess.Popen([program, str(place)], start_new_session=True)  # noqa: S603  the user's own program
            click.echo(f"ChimeraX opens {place}")
            return
        page = report_file(url).as_uri()
        if webbrowser.open(page):
            click.echo(f"the browser opens {page}")
        else:
            click.echo(f"no browser was found here; open {page}")


def report_file(url: str) -> Path:
    """Return the report of a job or run as a file of this machine; that of S3 is copied.

    Raises
    ------
    MissingInputError
        There is none.
    """
    from cloudem.io.storage.location import folder_of, is_remote, join, read_bytes
    from cloudem.jobs.report import REPORT_FILE

    raw = read_bytes(join(url, REPORT_FILE))
    if raw is None:
        raise MissingInputError(f"{url} has no {REPORT_FILE}; see cloudem status {url}, or draw it with cloudem report")
    if not is_remote(url):
        return folder_of(url) / REPORT_FILE
    place = Path(tempfile.mkdtemp(prefix="cloudem-")) / REPORT_FILE
    place.write_bytes(raw)
    return place


def map_file(url: str) -> Path:
    """Return the map of a job as an MRC file of this machine, in a new folder for temporary files.

    Raises
    ------
    MissingInputError
        There is none.
    """
    from cloudem.io.formats.mrc_writer import write_volume
    from cloudem.io.storage.location import folder_of, is_remote
    from cloudem.jobs.maps import result_map

    if not is_remote(url) and folder_of(url).is_file():
        return folder_of(url)
    found = result_map(url)
    place = Path(tempfile.mkdtemp(prefix="cloudem-")) / f"{url.rstrip('/').rpartition('/')[2] or 'map'}.mrc"
    write_volume(place, found.data, found.pixel_size, found.origin)
    return place
