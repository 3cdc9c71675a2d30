"""What tables and headings say of a job: figures, stage, inputs, and its place in the graph."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from cloudem.jobs.base import Job, find_job, known_jobs
from cloudem.jobs.live import done_in_words
from cloudem.model.columns import described
from cloudem.runs.project import JobState
from cloudem.serve.graph import HIGH, WIDE, laid_out, maker_of, shortened
from cloudem.text import clock, rough_time

STEP_S = 10.0
"""Steps in which the time of a running job is shown, seconds."""

MOST_LETTERS = 22
"""Of the second line of a job in the graph; the state is left out where it does not fit, since its colour says it."""

STATES = {
    **dict.fromkeys(("running", "starting", "draining", "stopping"), "busy"),
    **dict.fromkeys(("finished", "done"), "good"),
    **dict.fromkeys(("failed", "lost", "unreadable", "silent"), "bad"),
}
"""How a state looks."""


class Bar(NamedTuple):
    """The stage that runs: its name, per cent done (None: not known), and that in words."""

    name: str
    percent: float | None
    told: str


def version(job: JobState) -> str:
    """Return what changes when a job's sections and map do."""
    iteration = len(job.live.iterations) if job.live is not None else 0
    last = job.live.iterations[-1].get("iteration", iteration) if iteration and job.live is not None else iteration
    return f"{job.state}-{last}-{'' if job.state == 'running' else job.updated}"


def inputs_in_words(job: JobState, known: Mapping[str, JobState]) -> list[dict[str, Any]]:
    """Return what a job was made from, and the jobs of the project that made that."""
    return [{"path": path, "job": maker_of(path, known)} for path in dict.fromkeys(job.inputs.values())]


def makers(job: JobState, known: Mapping[str, JobState]) -> tuple[str, ...]:
    """Return the jobs of the project that a job was made from."""
    found = (maker_of(place, known) for place in job.inputs.values())
    return tuple(dict.fromkeys(name for name in found if name is not None))


def drawn_graph(jobs: Mapping[str, JobState]) -> dict[str, Any]:
    """Return the graph of jobs, the newest first, for its template; that there is none if no job follows another."""
    graph = laid_out(tuple((name, makers(job, jobs)) for name, job in jobs.items()))
    facts = {}
    for node in () if graph is None else graph.nodes:
        job, made_from = jobs[node.name], ", ".join(makers(jobs[node.name], jobs))
        reached = f"{job.resolution_A:.2f} Å" if job.state == "finished" and job.resolution_A is not None else job.state
        told = ", ".join(filter(None, (job.kind, reached)))
        facts[node.name] = {
            "kind_of_state": STATES.get(job.state, ""),
            "short": shortened(node.name, 17),
            "more": shortened(told if len(told) <= MOST_LETTERS else job.kind, MOST_LETTERS),
            "label": f"{node.name}: {job.kind}, {job.words}" + (f"; made from {made_from}" if made_from else ""),
        }
    return {"graph": graph, "facts": facts, "wide": WIDE, "high": HIGH}


def tiles_of(job: JobState) -> list[tuple[str, str]]:
    """Return headline figures: of a running job, those of the last row, in the words of the terminal."""
    tiles: list[tuple[str, str]] = []
    live = job.live
    if live is not None and live.iterations:
        declared = find_job(live.job) if live.job in known_jobs() else Job
        # what most people look for comes first
        row = sorted(live.iterations[-1].items(), key=lambda item: item[0] != "resolution_A")
        for name, value in row:
            if value is not None:
                column = described(declared.columns, name)
                tiles.append((column.text(value), column.heading))
    elif job.resolution_A is not None:
        tiles.append((f"{job.resolution_A:.2f} Å", "resolution"))
    if job.wall_s is not None:
        running = job.state == "running"
        # of what runs in steps: otherwise every page would be sent anew with each second
        seconds = STEP_S * round(job.wall_s / STEP_S) if running else job.wall_s
        tiles.append((clock(seconds), "so far" if running else "took"))
    return tiles


def bar_of(job: JobState) -> Bar | None:
    """Return the stage that a job is in; None where it does not run, or says nothing."""
    live = job.live
    if job.state != "running" or live is None or not live.stage:
        return None
    return Bar(live.stage, 100 * live.done / live.total if live.total else None, done_in_words(live))


def age_in_words(job: JobState) -> str:
    """Return how old a running job's figures are, where that matters."""
    if job.state != "running" or job.live is None:
        return ""
    age = time.time() - job.live.updated
    return rough_time(age) if age > 15 else ""
