"""A project as Prometheus reads it: its jobs and runs as numbers in the text format, and nothing else.

`exposition` is a function of what it is given: it keeps nothing, reads nothing and registers nothing, so that whoever
serves it decides what is read, and how often. Labels are ``job`` (where the job's results lie in the project, or the
name of the run), ``step`` (a stage of the job) and ``purpose`` (of bytes) alone: labels that count up, such as
iterations, would fill any database of time series.

docs/monitoring.md says what each number is; `deploy/prometheus` and `deploy/grafana` read them.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cloudem.cloud.nodes import HEAD
from cloudem.errors import CloudemError
from cloudem.io.storage.groups import read_attributes
from cloudem.io.storage.location import folder_of, is_local, join
from cloudem.jobs.iterative import CHECKPOINT
from cloudem.jobs.live import Live, read_live
from cloudem.runs.project import JobState, Project, RunSummary, read_project
from cloudem.runs.records import OVER, RunStore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `exposition` returns."""

ALIGN = "align"
"""The stage that aligns images."""

MOST_JOBS = 200
"""Jobs, and runs, that are shown: those that said something last. Older ones change no more."""

RECENT_S = 900.0
"""A job that ended within so many seconds is shown with all its counts."""

Labels = tuple[str, ...]


class JobFigures(NamedTuple):
    """One job.

    Attributes
    ----------
    state
        As it says of itself.
    updated
        When it said so, unix seconds.
    resolution
        Å; None where none is known.
    images
        That it has aligned, in all iterations of this run of the job; None where that is not known, as of jobs that
        ended long ago.
    poses
        That its last checkpoint holds; None where it holds none.
    received, sent
        Bytes by purpose.
    seconds
        On the clock, by step.
    waiting
        Items of the running step that are not done yet, by step.
    """

    state: str
    updated: float
    resolution: float | None = None
    images: int | None = None
    poses: int | None = None
    received: Mapping[str, int] = {}
    sent: Mapping[str, int] = {}
    seconds: Mapping[str, float] = {}
    waiting: Mapping[str, int] = {}


class RunFigures(NamedTuple):
    """One run.

    Attributes
    ----------
    running, failed
        Whether it is not over; whether it has failed.
    updated
        When its controller gave its last sign of life, unix seconds.
    spent_usd, cap_usd, usd_per_hour
        So far, at most, and now.
    workers
        Nodes that it has, without its head; None where that is not known.
    lost
        Workers that ended though nobody here had ended them; None where that is not known.
    """

    running: bool
    failed: bool
    updated: float
    spent_usd: float
    cap_usd: float
    usd_per_hour: float
    workers: int | None = None
    lost: int | None = None


class Disk(NamedTuple):
    """Of the machine that has the project: bytes in all, and free."""

    size: int
    free: int


def job_figures(live: Live, poses: int | None = None) -> JobFigures:
    """Return the figures of a job from what it says of itself; the running stage counts with what it has done."""
    seconds = {each.name: each.wall_s for each in live.timings}
    images = sum(each.done for each in live.timings if each.name == ALIGN)
    waiting = {}
    if live.state == "running" and live.stage:
        seconds[live.stage] = seconds.get(live.stage, 0.0) + live.stage_s
        images += live.done if live.stage == ALIGN else 0
        waiting = {live.stage: max((live.total or live.done) - live.done, 0)}
    received = {purpose: moved.received for purpose, moved in live.moved.items()}
    sent = {purpose: moved.sent for purpose, moved in live.moved.items()}
    return JobFigures(live.state, live.updated, live.resolution_A, images, poses, received, sent, seconds, waiting)


def poses_kept(url: str) -> int | None:
    """Return how many poses the checkpoint of the job under a URL holds; None where there is none."""
    found = (read_attributes(url, CHECKPOINT) or {}).get("poses")
    return found if isinstance(found, int) else None


def run_figures(store: RunStore) -> RunFigures | None:
    """Return the figures of a run; None before it has begun."""
    state = store.state()
    if state is None:
        return None
    workers = sum(node.slot != HEAD for node in state.nodes)
    cap, rate = store.wanted().max_usd, state.usd_per_hour
    failed = state.status == "failed"
    return RunFigures(not state.over, failed, state.at, state.spent_usd, cap, rate, workers, state.lost)


def scrape(url: str) -> bytes:
    """Return the figures of a project, or of the results of one job, in Prometheus's text format; see `read_project`.

    Raises
    ------
    CloudemError
        There is no project, or its storage fails.
    """
    project = read_project(url)
    jobs = {job.path or job.kind: _of_state(project, job) for job in project.jobs}
    runs = {run.name: _of_summary(project.url, run) for run in project.runs}
    return exposition(jobs, {name: run for name, run in runs.items() if run is not None}, disk_of(project.url))


def _of_state(project: Project, job: JobState) -> JobFigures:
    """Return the figures of a job; what has just ended is asked once more, so that its last counts are seen."""
    live, place, poses = job.live, join(project.url, job.path), None
    with contextlib.suppress(CloudemError):
        if live is None and project.at - job.updated < RECENT_S:
            live = read_live(place)
        if live is not None and live.state == "running":
            poses = poses_kept(place)
    if live is None:
        return JobFigures(job.state, job.updated, job.resolution_A)
    return job_figures(live, poses)._replace(resolution=job.resolution_A)


def _of_summary(project: str, run: RunSummary) -> RunFigures | None:
    """Return the figures of a run; only of those that are not over, its records are read."""
    if run.status in OVER:
        return RunFigures(False, run.status == "failed", run.at, run.spent_usd, run.cap_usd, 0.0, 0)
    if run.status in ("unreadable", "not started"):
        return None
    return run_figures(RunStore.of(project, run.name))


def disk_of(project: str) -> Disk | None:
    """Return the space of the disk that has a project; None where that is no disk of this machine."""
    if not is_local(project):
        return None
    try:
        found = shutil.disk_usage(folder_of(project))
    except OSError:
        return None
    return Disk(found.total, found.free)


def exposition(
    jobs: Mapping[str, JobFigures], runs: Mapping[str, RunFigures] | None = None, disk: Disk | None = None
) -> bytes:
    """Return the figures of a project in Prometheus's text format.

    Parameters
    ----------
    jobs
        By where their results lie in the project.
    runs
        By name.
    disk
        Of the machine that has the project.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Project(jobs, runs or {}, disk))
    return generate_latest(registry)


class _Project(Collector):
    """Says once what it was made of."""

    def __init__(self, jobs: Mapping[str, JobFigures], runs: Mapping[str, RunFigures], disk: Disk | None) -> None:
        newest = sorted(jobs.items(), key=lambda item: (-item[1].updated, item[0]))[:MOST_JOBS]
        latest = sorted(runs.items(), key=lambda item: (-item[1].updated, item[0]))[:MOST_JOBS]
        self._jobs, self._runs, self._disk = dict(newest), dict(latest), disk

    def describe(self) -> Iterable[Metric]:
        """Say nothing beforehand: what there is depends on what was given."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        yield from self._of_jobs()
        yield from self._of_steps()
        yield from self._of_runs()
        if self._disk is not None:
            yield GaugeMetricFamily(
                "cloudem_project_disk_size_bytes", "Size of the disk that has the project.", self._disk.size
            )
            yield GaugeMetricFamily(
                "cloudem_project_disk_free_bytes", "Free space of the disk that has the project.", self._disk.free
            )

    def _of_jobs(self) -> Iterator[Metric]:
        jobs = self._jobs.items()
        yield _gauge(
            "cloudem_job_running", "Whether the job says that it runs.", {(n,): j.state == "running" for n, j in jobs}
        )
        yield _gauge("cloudem_job_failed", "Whether the job has failed.", {(n,): j.state == "failed" for n, j in jobs})
        yield _gauge(
            "cloudem_job_updated_timestamp_seconds",
            "When the job gave its last sign of life.",
            {(n,): j.updated for n, j in jobs},
        )
        yield _counter(
            "cloudem_job_images_aligned",
            "Images that were aligned, in all iterations.",
            {(n,): j.images for n, j in jobs},
        )
        yield _gauge("cloudem_job_poses", "Poses that the last checkpoint holds.", {(n,): j.poses for n, j in jobs})
        yield _gauge(
            "cloudem_job_resolution_angstroms",
            "Resolution after the last iteration.",
            {(n,): j.resolution for n, j in jobs},
        )

    def _of_steps(self) -> Iterator[Metric]:
        jobs = self._jobs.items()
        text = "Bytes {} over the network in finished iterations, by what they are for."
        for way in ("received", "sent"):
            moved: dict[Labels, int] = {
                (n, p): v for n, j in jobs for p, v in (j.received if way == "received" else j.sent).items()
            }
            yield _counter(f"cloudem_job_bytes_{way}", text.format(way), moved, ("job", "purpose"))
        yield _counter(
            "cloudem_job_step_seconds",
            "Seconds on the clock, by step.",
            {(n, step): s for n, j in jobs for step, s in j.seconds.items()},
            ("job", "step"),
        )
        yield _gauge(
            "cloudem_job_items_waiting",
            "Items of the running step that are not done yet; of align, images.",
            {(n, step): count for n, j in jobs for step, count in j.waiting.items()},
            ("job", "step"),
        )

    def _of_runs(self) -> Iterator[Metric]:
        runs = self._runs.items()
        yield _gauge("cloudem_run_running", "Whether the run is not over.", {(n,): r.running for n, r in runs})
        yield _gauge("cloudem_run_failed", "Whether the run has failed.", {(n,): r.failed for n, r in runs})
        yield _gauge(
            "cloudem_run_updated_timestamp_seconds",
            "When the controller gave its last sign of life.",
            {(n,): r.updated for n, r in runs},
        )
        yield _gauge("cloudem_run_spent_usd", "Spent so far, as metered.", {(n,): r.spent_usd for n, r in runs})
        yield _gauge("cloudem_run_cap_usd", "What may be spent.", {(n,): r.cap_usd for n, r in runs})
        yield _gauge("cloudem_run_usd_per_hour", "What its nodes cost now.", {(n,): r.usd_per_hour for n, r in runs})
        yield _gauge("cloudem_run_workers", "Worker nodes that are there.", {(n,): r.workers for n, r in runs})
        yield _counter(
            "cloudem_run_nodes_lost",
            "Workers that ended though nobody here had ended them.",
            {(n,): r.lost for n, r in runs},
        )


def _gauge(
    name: str, text: str, values: Mapping[Labels, float | int | bool | None], labels: Sequence[str] = ("job",)
) -> Metric:
    metric = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        if value is not None:
            metric.add_metric(key, float(value))
    return metric


def _counter(
    name: str, text: str, values: Mapping[Labels, float | int | None], labels: Sequence[str] = ("job",)
) -> Metric:
    metric = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        if value is not None:
            metric.add_metric(key, float(value))
    return metric
