"""What the pages of a project show, gathered from what its jobs and runs have left there. Nothing is written."""

from __future__ import annotations

import io
import posixpath
import re
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from cloudem.errors import CloudemError, printable
from cloudem.io.storage.location import is_remote, join, read_bytes
from cloudem.jobs.base import Job, find_job, known_jobs
from cloudem.jobs.live import done_in_words
from cloudem.jobs.logs import LOG_FILE
from cloudem.jobs.preview import Preview, PreviewInfo, read_preview
from cloudem.model.columns import described
from cloudem.report.blocks import Drawn
from cloudem.report.page import drawn_sections
from cloudem.runs.job_money import JobRuns
from cloudem.runs.project import JobState, Project, look_at_job, read_project
from cloudem.serve.cluster import cluster_of_job, machines_in_words, money_of_job
from cloudem.serve.sections import content_so_far, kept_content
from cloudem.text import clock, dollars, moment, rough_time

if TYPE_CHECKING:
    from jinja2 import Environment

FRESH_S, FRESH_REMOTE_S = 1.0, 5.0
"""How old what was read of the project may be, in a folder and on S3, seconds."""

EVERY_S, EVERY_REMOTE_S = 1.0, 5.0
"""Pause between two looks at something that is watched."""

STEP_S = 10.0
"""Steps in which the time of a running job is shown, seconds."""

MOST_JOBS = 500
"""Rows of the first page: more nobody reads, and they would not come in time."""

LOG_TAIL = 64 << 10
"""Bytes of a log that the page of its job shows, from its end."""

LARGEST_LOG = 8 << 20

SIGMAS = 4.0
"""Contour level of a map, in standard deviations above its mean, until somebody chooses another one."""

STATES = {
    **dict.fromkeys(("running", "starting", "draining", "stopping"), "busy"),
    **dict.fromkeys(("finished", "done"), "good"),
    **dict.fromkeys(("failed", "lost", "unreadable", "silent"), "bad"),
}
"""How a state looks."""

DOWNLOADS = {
    "map": "map",
    "map_unfiltered": "unfiltered map",
    "half1": "half-map 1",
    "half2": "half-map 2",
    "mask": "mask",
}
"""Arrays of a result that can be had as MRC files, and what they are called."""


UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
"""What is left out of the name of a file that is given away: it stands in a header, and in
commands of ChimeraX, which a semicolon ends."""


class Bar(NamedTuple):
    """The stage that runs: its name, per cent done (None: not known), and that in words."""

    name: str
    percent: float | None
    told: str


class Pages:
    """All pages of one project.

    Parameters
    ----------
    url
        Of the project, a folder or ``s3://``.
    root
        Path under which a proxy shows the server, ending with ``/``.
    """

    def __init__(self, url: str, root: str = "/") -> None:
        self.url, self.root = url.rstrip("/"), root
        self.name = posixpath.basename(self.url) or self.url
        self.dask = False  # whether Dask's pages are to be had as well
        remote = is_remote(url)
        self.every_s = EVERY_REMOTE_S if remote else EVERY_S
        self._fresh_s = FRESH_REMOTE_S if remote else FRESH_S
        self._lock = threading.Lock()
        self._project: tuple[float, Project] | None = None
        self._kept: dict[str, tuple[str, str]] = {}
        self._runs = JobRuns(url)

    # pages

    def project(self) -> str:
        """Return the page of the project."""
        return self._part("project.html", url=self.url, **self._rows())

    def project_news(self) -> Mapping[str, Any]:
        """Return the part of it that changes."""
        return {"html": self._part("jobs.html", url=self.url, **self._rows()), "version": "", "map": 0, "over": False}

    def job(self, path: str) -> str | None:
        """Return the page of a job; None if there is none of that name."""
        job = self._job(path)
        if job is None:
            return None
        log, _ = self._log(job, LOG_TAIL)
        info = self._info(job)
        return self._part(
            "job.html", **self._live(job), version=version(job), log=log,
            preview=info is not None, map=0 if info is None else info.crc32, downloads=self._downloads(job),
        )  # fmt: skip

    def job_news(self, path: str) -> Mapping[str, Any] | None:
        """Return the part of it that changes, and what tells whether sections and map are still the same."""
        job = self._job(path)
        if job is None:
            return None
        info = self._info(job)
        return {
            "html": self._part("job_live.html", **self._live(job)),
            "version": version(job),
            "map": 0 if info is None else info.crc32,
            "over": job.state != "running",
        }

    def cluster(self, path: str) -> str | None:
        """Return the page of what a job runs on."""
        job = self._job(path)
        return None if job is None else self._part("cluster.html", **self._cluster(job))

    def cluster_news(self, path: str) -> Mapping[str, Any] | None:
        """Return the part of it that changes."""
        job = self._job(path)
        if job is None:
            return None
        html = self._part("cluster_live.html", **self._cluster(job))
        return {"html": html, "version": "", "map": 0, "over": job.state != "running"}

    def sections(self, path: str) -> str | None:
        """Return the sections of a job's report; drawn once for each state of the job."""
        job = self._job(path)
        if job is None:
            return None
        now = version(job)
        kept = self._kept.get(path)
        if kept is None or kept[0] != now:
            kept = (now, self._part("sections.html", sections=self._sections(job)))
            if len(self._kept) > MOST_JOBS:
                self._kept.clear()
            self._kept[path] = kept
        return kept[1]

    def log(self, path: str) -> str | None:
        """Return a job's log as a page."""
        job = self._job(path)
        if job is None:
            return None
        log, cut = self._log(job, LARGEST_LOG)
        return self._part("log.html", path=self._name(job), here=self._here(job), log=log, cut=cut)

    def preview(self, name: str, size: str) -> Preview | None:
        """Return the preview of a job's map that is called 64 or 128; None where there is none."""
        job = self._job(name)
        return None if job is None else read_preview(self._of(job), int(size))

    def download(self, path: str, name: str) -> tuple[str, IO[Any]] | None:
        """Return the name of a file made of a result, and the file; whoever takes it closes it."""
        from cloudem.serve.files import chimerax_script, map_as_mrc

        job = self._job(path)
        if job is None or not self._has_maps(job):
            return None
        stem, _, kind = name.rpartition(".")
        label = UNSAFE.sub("-", self._name(job))
        if kind == "cxc":
            info = self._info(job)
            if info is None:
                return None
            return f"{label}.cxc", io.BytesIO(chimerax_script(label, info.mean + SIGMAS * info.sigma, info.sigma))
        return (f"{label}-{name}", map_as_mrc(self._of(job), stem)) if stem in DOWNLOADS else None

    def run(self, name: str) -> str | None:
        """Return the page of a run."""
        from cloudem.serve.files import run_page

        return run_page(self.url, name) if any(run.name == name for run in self._read().runs) else None

    def metrics(self) -> bytes:
        """Return figures for Prometheus."""
        from cloudem.runs.exposition import scrape

        return scrape(self.url)

    def refused(self) -> str:
        """Return the page of whoever has no token."""
        text = "Open the address that cloudem serve printed; it has the token in it."
        return self._part("told.html", title="A token is needed", text=text)

    def problem(self, status: int, why: str) -> str:
        """Return the page that says what went wrong."""
        return self._part("told.html", title=str(status), text=printable(why))

    # what they are made of

    def _read(self) -> Project:
        with self._lock:  # one reader at a time; the others wait for what it finds
            now = time.monotonic()
            if self._project is None or now - self._project[0] > self._fresh_s:
                self._project = (now, read_project(self.url))
            return self._project[1]

    def _job(self, name: str) -> JobState | None:
        """Return how a job stands by now; what is no job of the project cannot be asked for."""
        last = self._project  # jobs do not vanish often; the project is read again where one is not known
        jobs = {self._name(job): job for job in last[1].jobs} if last is not None else {}
        if name not in jobs:
            jobs = {self._name(job): job for job in self._read().jobs}
        return look_at_job(self.url, jobs[name].path, time.time()) if name in jobs else None

    def _name(self, job: JobState) -> str:
        """Return what a job is called in addresses: its path, or the project's name if that is the job's results."""
        return job.path or self.name

    def _of(self, job: JobState) -> str:
        return join(self.url, job.path) if job.path else self.url

    def _here(self, job: JobState) -> str:
        return f"{self.root}job/{quote(self._name(job))}"

    def _rows(self) -> dict[str, Any]:
        project = self._read()
        known = {self._name(job) for job in project.jobs}
        runs = [
            {"name": run.name, "words": run.words, "kind_of_state": STATES.get(run.status, ""),
             "spent": dollars(run.spent_usd), "cap": dollars(run.cap_usd) if run.cap_usd else "",
             "rate": dollars(run.usd_per_hour) if run.usd_per_hour else "",
             "age": f"{rough_time(run.age_s)} ago" if run.at else ""}
            for run in project.runs
        ]  # fmt: skip
        jobs = [{**self._facts(job), "inputs": _inputs(job, known)} for job in project.jobs[:MOST_JOBS]]
        more = max(len(project.jobs) - MOST_JOBS, 0) + project.unknown
        return {"jobs": jobs, "runs": runs, "more": more}

    def _facts(self, job: JobState) -> dict[str, Any]:
        """Return what tables and headings say of a job."""
        return {
            "name": self._name(job),
            "kind": job.kind,
            "state": job.state,
            "kind_of_state": STATES.get(job.state, ""),
            "words": job.words,
            "resolution": job.resolution_A,
            "resolution_text": f"{job.resolution_A:.2f} Å" if job.resolution_A is not None else "",
            "seconds": job.wall_s,
            "took": clock(job.wall_s) if job.wall_s is not None and job.state != "running" else "",
            "began": job.began,
            "begun": moment(job.began) if job.began else "",
        }

    def _live(self, job: JobState) -> dict[str, Any]:
        return {
            "job": self._facts(job),
            "here": self._here(job),
            "tiles": _tiles(job),
            "bar": _bar(job),
            "warnings": () if job.live is None else job.live.warnings,
            "age": _age(job),
            "machines": machines_in_words(job.live),
            "money": money_of_job(self._runs.money_of(job, time.time())),
        }

    def _cluster(self, job: JobState) -> dict[str, Any]:
        return {"job": self._facts(job), "here": self._here(job), **cluster_of_job(job, time.time())}

    def _sections(self, job: JobState) -> Sequence[Drawn]:
        url = self._of(job)
        content = kept_content(url) if job.state == "finished" else content_so_far(url, job.live)
        return [] if content is None else drawn_sections(content)

    def _log(self, job: JobState, most: int) -> tuple[str, bool]:
        try:
            raw = read_bytes(join(self._of(job), LOG_FILE)) or b""
        except CloudemError:
            return "", False
        text = raw[-most:].decode(errors="replace")
        cut = len(raw) > most
        lines = (text.partition("\n")[2] if cut else text).splitlines()
        return "\n".join(printable(line) for line in lines), cut

    def _info(self, job: JobState) -> PreviewInfo | None:
        try:
            found = read_preview(self._of(job))
        except CloudemError:  # it is just being replaced
            return None
        return None if found is None else found.info

    def _has_maps(self, job: JobState) -> bool:
        return job.state == "finished" and job.resolution_A is not None

    def _downloads(self, job: JobState) -> list[tuple[str, str]]:
        if not self._has_maps(job):
            return []
        files = [(f"{name}.mrc", f"{label} (.mrc)") for name, label in DOWNLOADS.items()]
        return [*files, ("map.cxc", "open in ChimeraX (.cxc)")]

    def _part(self, template: str, **values: Any) -> str:
        values |= {"root": self.root, "project": self.name, "dask": self.dask}
        return page_templates().get_template(template).render(**values)


def version(job: JobState) -> str:
    """Return what changes when a job's sections and map do."""
    iteration = len(job.live.iterations) if job.live is not None else 0
    last = job.live.iterations[-1].get("iteration", iteration) if iteration and job.live is not None else iteration
    return f"{job.state}-{last}-{'' if job.state == 'running' else job.updated}"


def _inputs(job: JobState, known: set[str]) -> list[dict[str, Any]]:
    return [{"path": path, "known": path in known} for path in dict.fromkeys(job.inputs.values())]


def _tiles(job: JobState) -> list[tuple[str, str]]:
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


def _bar(job: JobState) -> Bar | None:
    live = job.live
    if job.state != "running" or live is None or not live.stage:
        return None
    return Bar(live.stage, 100 * live.done / live.total if live.total else None, done_in_words(live))


def _age(job: JobState) -> str:
    """Return how old a running job's figures are, where that matters."""
    if job.state != "running" or job.live is None:
        return ""
    age = time.time() - job.live.updated
    return rough_time(age) if age > 15 else ""


@cache
def page_templates() -> Environment:
    """Return the templates, which escape whatever is no drawing of cloudem's; those of reports are among them."""
    from jinja2 import ChoiceLoader, PackageLoader

    from cloudem.report.blocks import templates as of_reports

    return of_reports().overlay(loader=ChoiceLoader([PackageLoader("cloudem.serve"), PackageLoader("cloudem.report")]))
