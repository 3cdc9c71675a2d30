"""What the pages of a project show, gathered from what its jobs and runs have left there. Nothing is written."""

from __future__ import annotations

import io
import posixpath
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import IO, TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from cloudem.errors import CloudemError, printable
from cloudem.io.storage.groups import shapes_in
from cloudem.io.storage.location import absolute, is_remote, join, read_end, read_start
from cloudem.jobs.logs import LOG_FILE
from cloudem.jobs.preview import Preview, PreviewInfo, read_preview, read_preview_info
from cloudem.report.blocks import Drawn
from cloudem.report.declaration import GALLERY, PARAMETERS, SESSION
from cloudem.report.page import drawn_sections
from cloudem.runs.job_money import JobRuns
from cloudem.runs.project import JobState, Project, look_at_job, read_project
from cloudem.serve.cluster import cluster_of_job, machines_in_words, money_of_job
from cloudem.serve.details import given_inputs, given_parameters, left_arrays, left_files, record_of
from cloudem.serve.facts import (
    STATES,
    age_in_words,
    bar_of,
    drawn_graph,
    inputs_in_words,
    makers,
    tiles_of,
    version,
)
from cloudem.serve.graph import maker_of
from cloudem.serve.micrograph_pages import MicrographPages
from cloudem.serve.sections import content_so_far, kept_content
from cloudem.text import clock, dollars, moment, rough_time

if TYPE_CHECKING:
    from jinja2 import Environment

FRESH_S, FRESH_REMOTE_S = 1.0, 5.0
"""How old what was read of the project may be, in a folder and on S3, seconds."""

EVERY_S, EVERY_REMOTE_S = 1.0, 5.0
"""Pause between two looks at something that is watched."""

MOST_JOBS = 500
"""Rows of the first page: more nobody reads, and they would not come in time."""

DRAWING_SHARE = 0.05
"""Of the time, at most, that sections of a running job are drawn: it may run on this very machine."""

LOG_TAIL = 64 << 10
"""Bytes of a log that the page of its job shows, from its end."""

LARGEST_LOG = 8 << 20

BESIDE_VIEWER = "Slices and projections"
"""Heading of the report's pictures of the map, where the map itself is above."""

SIGMAS = 4.0
"""Contour level of a map, in standard deviations above its mean, until somebody chooses another one."""

DOWNLOADS = {
    "map": "map",
    "map_unfiltered": "unfiltered map",
    "half1": "half-map 1",
    "half2": "half-map 2",
    "mask": "mask",
    "local_resolution": "local resolution",
}
"""Arrays of a result that can be had as MRC files, and what they are called."""


UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
"""What is left out of the name of a file that is given away: it stands in a header, and in
commands of ChimeraX, which a semicolon ends."""


class Kept(NamedTuple):
    """Sections that were drawn: of which state of the job, and until when (monotonic) no others are while it runs."""

    version: str
    html: str
    until: float


class Pages:
    """All pages of one project.

    Parameters
    ----------
    url
        Of the project, a folder or ``s3://``.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.name = posixpath.basename(self.url) or self.url
        self.dask = False  # whether Dask's pages are to be had as well
        self._writes = False
        remote = is_remote(url)
        self.every_s = EVERY_REMOTE_S if remote else EVERY_S
        self._fresh_s = FRESH_REMOTE_S if remote else FRESH_S
        self._lock = threading.Lock()
        self._project: tuple[float, Project] | None = None
        self._kept: dict[str, Kept] = {}
        self._kept_runs: dict[str, tuple[str, str]] = {}
        self._runs = JobRuns(url)
        self.micrographs = MicrographPages(self.url, self._job, self._known)

    @property
    def writes(self) -> bool:
        """Whether whoever looks may write workflow files."""
        return self._writes

    @writes.setter
    def writes(self, allowed: bool) -> None:
        self._writes = self.micrographs.writes = allowed

    # pages

    def project(self) -> str:
        """Return the page of the project."""
        return self._part("project.html", "/", url=self.url, **self._rows())

    def project_news(self) -> Mapping[str, Any]:
        """Return the part of it that changes."""
        return {
            "html": self._part("jobs.html", "/", url=self.url, **self._rows()),
            "version": "",
            "map": 0,
            "over": False,
        }

    def job(self, path: str) -> str | None:
        """Return the page of a job; None if there is none of that name."""
        job = self._job(path)
        if job is None:
            return None
        info = self._info(job)
        return self._part(
            "job.html", self._at(job), **self._live(job), version=self._version(job),
            preview=info is not None, **_shown(info), downloads=self._downloads(job),
            micrographs=self.micrographs.version(job), shown_on=self.micrographs.source(job),
        )  # fmt: skip

    def job_news(self, path: str) -> Mapping[str, Any] | None:
        """Return the part of it that changes, and what tells whether sections and map are still the same."""
        job = self._job(path)
        if job is None:
            return None
        info = self._info(job)
        return {
            "html": self._part("job_live.html", self._at(job), **self._live(job)),
            "version": self._version(job),
            **_shown(info),
            "micrographs": self.micrographs.version(job),
            "over": job.state != "running",
        }

    def cluster(self, path: str) -> str | None:
        """Return the page of what a job runs on."""
        job = self._job(path)
        return None if job is None else self._part("cluster.html", f"{self._at(job)}/-/cluster", **self._cluster(job))

    def cluster_news(self, path: str) -> Mapping[str, Any] | None:
        """Return the part of it that changes."""
        job = self._job(path)
        if job is None:
            return None
        html = self._part("cluster_live.html", f"{self._at(job)}/-/cluster", **self._cluster(job))
        return {"html": html, "version": "", "map": 0, "over": job.state != "running"}

    def sections(self, path: str) -> str | None:
        """Return the sections of a job's report; drawn once for each state of the job."""
        job = self._job(path)
        if job is None:
            return None
        now, began = self._version(job), time.monotonic()
        kept = self._kept.get(path)
        if kept is None or kept.version != now:
            html = self._part("sections.html", self._at(job), sections=self._sections(job))
            ended = time.monotonic()
            kept = Kept(now, html, ended + (ended - began) / DRAWING_SHARE)
            if len(self._kept) > MOST_JOBS:
                self._kept.clear()
            self._kept[path] = kept
        return kept.html

    def details(self, path: str) -> str | None:
        """Return what a job was given, what it left, and the end of its log."""
        job = self._job(path)
        if job is None:
            return None
        url, jobs = self._of(job), self._known()
        record = record_of(url)
        parameters = given_parameters(record)
        return self._part(
            "details.html", self._at(job), parameters=parameters,
            changed=sum(one.changed for one in parameters), made_from=makers(job, jobs), arrays=left_arrays(url),
            inputs=given_inputs(record, job.inputs, self.url, lambda place: maker_of(place, jobs)),
            files=left_files(url), log=self._log(job, LOG_TAIL)[0],
        )  # fmt: skip

    def log(self, path: str) -> str | None:
        """Return a job's log as a page."""
        job = self._job(path)
        if job is None:
            return None
        log, cut = self._log(job, LARGEST_LOG)
        return self._part("log.html", f"{self._at(job)}/-/log", path=self._name(job), log=log, cut=cut)

    def choice(self, path: str, classes: str) -> Mapping[str, Any] | None:
        """Return what a choice of classes of a job becomes."""
        from cloudem.serve.choosing import choice_of, sorted_from

        job = self._job(path)
        return None if job is None else choice_of(self.url, sorted_from(job), classes)._asdict()

    def write_choice(self, path: str, classes: str) -> Mapping[str, Any] | None:
        """Write the workflow file of such a choice, and return the same."""
        from cloudem.serve.choosing import choice_of, sorted_from, write_choice

        job = self._job(path)
        if job is None or not self.writes:
            return None
        found = choice_of(self.url, sorted_from(job), classes)
        write_choice(self.url, found)
        return {**found._asdict(), "written": join(absolute(self.url), found.file)}

    def preview(self, name: str, of: str, size: str) -> Preview | None:
        """Return the preview of an array of a job that is called 64 or 128; None where there is none."""
        job = self._job(name)
        return None if job is None else read_preview(self._of(job), int(size), of)

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
        told = self._run(name)
        return None if told is None else self._part("run.html", f"/run/{quote(name)}", name=name, told=told)

    def run_news(self, name: str) -> Mapping[str, Any] | None:
        """Return the part of it that changes."""
        told = self._run(name)
        return None if told is None else {"html": told, "version": "", "map": 0, "over": False}

    def metrics(self) -> bytes:
        """Return figures for Prometheus."""
        from cloudem.runs.exposition import scrape

        return scrape(self.url)

    def refused(self, at: str) -> str:
        """Return the page of whoever has no token, at the path that was asked for."""
        text = "Open the address that cloudem serve printed; it has the token in it."
        return self._part("told.html", at, title="A token is needed", text=text)

    def problem(self, at: str, status: int, why: str) -> str:
        """Return the page that says what went wrong with the path that was asked for."""
        return self._part("told.html", at, title=str(status), text=printable(why))

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
            jobs = self._known()
        if name not in jobs:
            return None
        found = look_at_job(self.url, jobs[name].path, time.time())
        if found is None and read_start(self._of(jobs[name]), 0) is not None:
            return jobs[name]  # one file, such as a mask, says nothing of itself: the index has noted it
        return found

    def _run(self, name: str) -> str | None:
        """Return what the page of a run says; drawn anew when the run has said something, not with each look."""
        from cloudem.serve.files import run_shown

        project = self._read()
        run = next((run for run in project.runs if run.name == name), None)
        if run is None:
            return None
        now, kept = f"{run.words}-{run.at}-{run.cap_usd}", self._kept_runs.get(name)
        if kept is None or kept[0] != now:
            # relative to the page of the run, wherever a proxy shows it
            jobs = {absolute(self._of(job)): f"../job/{quote(self._name(job))}" for job in project.jobs}
            drawn = page_templates().get_template("page_main.html").render(**run_shown(self.url, name, jobs))
            kept = self._kept_runs[name] = (now, drawn)
        return kept[1]

    def _known(self) -> dict[str, JobState]:
        return {self._name(job): job for job in self._read().jobs}

    def _name(self, job: JobState) -> str:
        """Return what a job is called in addresses: its path, or the project's name if that is the job's results."""
        return job.path or self.name

    def _of(self, job: JobState) -> str:
        return join(self.url, job.path) if job.path else self.url

    def _at(self, job: JobState) -> str:
        """Return the path of a job's page."""
        return f"/job/{quote(self._name(job))}"

    def _rows(self) -> dict[str, Any]:
        project = self._read()
        known = {self._name(job): job for job in project.jobs}
        runs = [
            {"name": run.name, "words": run.words, "kind_of_state": STATES.get(run.status, ""),
             "spent": dollars(run.spent_usd), "cap": dollars(run.cap_usd) if run.cap_usd else "",
             "rate": dollars(run.usd_per_hour) if run.usd_per_hour else "",
             "age": f"{rough_time(run.age_s)} ago" if run.at else ""}
            for run in project.runs
        ]  # fmt: skip
        jobs = [{**self._facts(job), "inputs": inputs_in_words(job, known)} for job in project.jobs[:MOST_JOBS]]
        more = max(len(project.jobs) - MOST_JOBS, 0) + project.unknown
        return {"jobs": jobs, "runs": runs, "more": more, **drawn_graph(known)}

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
            "tiles": tiles_of(job),
            "bar": bar_of(job),
            "warnings": () if job.live is None else job.live.warnings,
            "age": age_in_words(job),
            "machines": machines_in_words(job.live),
            "money": money_of_job(self._runs.money_of(job, time.time())),
        }

    def _cluster(self, job: JobState) -> dict[str, Any]:
        return {"job": self._facts(job), **cluster_of_job(job, time.time())}

    def _sections(self, job: JobState) -> Sequence[Drawn]:
        url = self._of(job)
        content = kept_content(url) if job.state == "finished" else content_so_far(url, job.live, self._particles(job))
        if content is None:
            return []
        # parameters are among the details, micrographs in a section of their own, the map's heading above the viewer
        elsewhere = (PARAMETERS, SESSION, GALLERY)
        drawn = drawn_sections(replace(content, sections=[one for one in content.sections if one not in elsewhere]))
        viewer = self._info(job) is not None
        return [replace(one, title=BESIDE_VIEWER) if viewer and one.title == "Map" else one for one in drawn]

    def _version(self, job: JobState) -> str:
        """Return what changes when a job's sections are to be drawn anew: of a running job not more often than that."""
        kept = self._kept.get(self._name(job))
        if job.state == "running" and kept is not None and time.monotonic() < kept.until:
            return kept.version
        return version(job)

    def _particles(self, job: JobState) -> str:
        """Return where the particles of a job lie, if that is in the project: nothing else is read for a page."""
        place = job.inputs.get("particles", "")
        return join(self.url, place) if place and not {"", ".", ".."} & set(place.split("/")) else ""

    def _log(self, job: JobState, most: int) -> tuple[str, bool]:
        try:
            raw, length = read_end(join(self._of(job), LOG_FILE), most) or (b"", 0)
        except CloudemError:
            return "", False
        text, cut = raw.decode(errors="replace"), length > len(raw)
        lines = (text.partition("\n")[2] if cut else text).splitlines()
        return "\n".join(printable(line) for line in lines), cut

    def _info(self, job: JobState) -> PreviewInfo | None:
        try:
            return read_preview_info(self._of(job))
        except CloudemError:  # it is damaged
            return None

    def _has_maps(self, job: JobState) -> bool:
        return job.state == "finished" and job.resolution_A is not None

    def _downloads(self, job: JobState) -> list[tuple[str, str]]:
        if not self._has_maps(job):
            return []
        try:
            there = shapes_in(self._of(job), "result")
        except CloudemError:  # it is damaged
            return []
        files = [(f"{name}.mrc", f"{label} (.mrc)") for name, label in DOWNLOADS.items() if name in there]
        return [*files, ("map.cxc", "open in ChimeraX (.cxc)")]

    def _part(self, template: str, at: str, **values: Any) -> str:
        """Return a page, or a part of the page at a path."""
        root = way_home(at)
        values |= {
            "writes": self.writes,
            "root": root,
            "here": root + at.partition("/-/")[0][1:],
            "project": self.name,
            "dask": self.dask,
        }
        return page_templates().get_template(template).render(**values)


def way_home(path: str) -> str:
    """Return the way from the page at a path to the first one.

    All addresses in pages begin with it, and none with ``/``: so they hold wherever a proxy shows this server, and no
    header that says where has to be believed.
    """
    return "../" * (path.count("/") - 1) or "./"


def _shown(info: PreviewInfo | None) -> dict[str, Any]:
    """Return what tells whether the map is still the same, and of what else there are previews."""
    return {"map": 0 if info is None else info.crc32, "others": () if info is None else info.others}


@cache
def page_templates() -> Environment:
    """Return the templates, which escape whatever is no drawing of cloudem's; those of reports are among them."""
    from jinja2 import ChoiceLoader, PackageLoader

    from cloudem.report.blocks import templates as of_reports

    return of_reports().overlay(loader=ChoiceLoader([PackageLoader("cloudem.serve"), PackageLoader("cloudem.report")]))
