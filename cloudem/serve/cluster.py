"""What the pages say of the machines that a job runs on, and of the money that they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cloudem.execution.workers import ClusterSeen, GpuSeen, WorkerSeen
from cloudem.jobs.live import Live
from cloudem.report.money_tiles import expected_tile, rate_tile, spent_tile
from cloudem.runs.job_money import JobMoney
from cloudem.runs.project import JobState
from cloudem.text import memory, memory_share, moment, rough_time
from cloudem.traffic import PURPOSES, Traffic

if TYPE_CHECKING:
    from cloudem.report.blocks import Drawn

LATE_S = 15.0
"""What is older is shown with its age, seconds."""

MOVED = (
    "What all processes received from object storage and from each other, by what it was for, and what they sent, in "
    "the iterations that are done."
)


def machines_in_words(live: Live | None) -> str:
    """Return what a job runs on, in one line: ``Dask, 2 processes of 1 threads``; "" where nothing is known."""
    return "" if live is None or live.cluster is None else live.cluster.what


def cluster_of_job(job: JobState, now: float) -> dict[str, Any]:
    """Return what the page of a job's cluster shows.

    Parameters
    ----------
    job
        As it stands.
    now
        Unix seconds.
    """
    live = job.live
    seen = None if live is None else live.cluster
    workers = () if seen is None else seen.workers
    return {
        "what": "" if seen is None else seen.what,
        "host": "" if live is None else f"{live.host}, process {live.pid}",
        "when": _when(seen, running=job.state == "running", now=now),
        "tiles": _tiles(workers, running=job.state == "running"),
        "workers": [_row(worker) for worker in workers],
        "gpus": any(worker.gpu for worker in workers),
        "dask_shows_more": seen is not None and seen.what.startswith("Dask"),
        "more": 0 if seen is None else seen.more,
        "sections": [] if live is None else _sections(live),
    }


def money_of_job(money: JobMoney | None) -> dict[str, Any] | None:
    """Return what the page of a job says of the run that it belongs to; None where it belongs to none."""
    if money is None:
        return None
    run = money.run
    tiles = [spent_tile(run.spent_usd, run.cap_usd)]
    if run.usd_per_hour:
        tiles.append(rate_tile(run.usd_per_hour))
    if money.planned_usd is not None:
        tiles.append(expected_tile(money.planned_usd))
    late = run.usd_per_hour and run.age_s > LATE_S
    return {
        "run": run.name,
        "step": money.step,
        "steps": money.steps,
        "words": run.words,
        "age": rough_time(run.age_s) if late else "",
        "rehearsal": money.rehearsal,
        "tiles": tiles,
    }


def _when(seen: ClusterSeen | None, *, running: bool, now: float) -> str:
    """Return when workers were seen, where that is not just now."""
    if seen is None or not seen.workers:
        return ""
    if not running:
        return f"as seen last, {moment(seen.at, seconds=True)}"
    age = now - seen.at
    return f"{rough_time(age)} ago" if age > LATE_S else ""


def _tiles(workers: Sequence[WorkerSeen], *, running: bool) -> list[tuple[str, str]]:
    """Return headline figures; what workers do is none any more where the job has ended."""
    if not workers:
        return []
    threads, tasks = (sum(getattr(worker, name) for worker in workers) for name in ("threads", "running"))
    used = sum(worker.memory_bytes for worker in workers)
    limit = sum(worker.limit_bytes or 0 for worker in workers)
    tiles = [
        (f"{len(workers):,}", f"{_plural(len(workers), 'worker')} with {threads:,} {_plural(threads, 'thread')}"),
        (memory(used), f"memory, of {memory(limit)}" if limit else "memory"),
    ]
    gpus = [worker.gpu for worker in workers if worker.gpu is not None]
    busy = [gpu.busy_percent for gpu in gpus if gpu.busy_percent is not None]
    if running:
        tiles.append((f"{tasks:,}", f"{_plural(tasks, 'task')} running"))
        tiles.append((f"{sum(worker.cpu_percent for worker in workers) / 100:.1f}", "cores busy"))
    if gpus:
        share = f", {sum(busy) / len(busy):.0f} % busy" if busy and running else ""
        tiles.append((f"{len(gpus):,}", f"{_plural(len(gpus), 'GPU')}{share}"))
    return tiles


def _row(worker: WorkerSeen) -> dict[str, Any]:
    return {
        "name": worker.name,
        "host": worker.host,
        "threads": worker.threads,
        "running": worker.running,
        "memory": memory_share(worker.memory_bytes, worker.limit_bytes),
        "memory_bytes": worker.memory_bytes,
        "memory_percent": _percent(worker.memory_bytes, worker.limit_bytes),
        "cpu": f"{worker.cpu_percent:.0f} %",
        "cpu_percent": worker.cpu_percent,
        "silent": f"{rough_time(worker.silent_s)} ago" if worker.silent_s >= 1 else "now",
        "silent_s": worker.silent_s,
        "kind": "bad" if worker.silent_s > LATE_S else "busy" if worker.running else "",
        "gpu": _gpu(worker.gpu) if worker.gpu is not None else None,
    }


def _gpu(gpu: GpuSeen) -> dict[str, Any]:
    return {
        "name": gpu.name or "GPU",
        "memory": memory_share(gpu.memory_bytes, gpu.limit_bytes),
        "memory_bytes": gpu.memory_bytes or 0,
        "memory_percent": _percent(gpu.memory_bytes, gpu.limit_bytes),
        "busy": "" if gpu.busy_percent is None else f"{gpu.busy_percent:.0f} %",
        "busy_percent": gpu.busy_percent or 0,
    }


def _percent(used: int | None, limit: int | None) -> float | None:
    return min(100 * used / limit, 100.0) if used is not None and limit else None


def _plural(count: int, what: str) -> str:
    return what if count == 1 else f"{what}s"


def _sections(live: Live) -> list[Drawn]:
    """Return time by step and bytes by purpose, as in the report; of what ran since the job was started last."""
    from cloudem.report.blocks import Drawn, Words
    from cloudem.report.content import ReportContent, StageRow, TransferRow
    from cloudem.report.sections.cost import stages
    from cloudem.report.sections.network import network_table

    nan = float("nan")
    rows = {each.name: StageRow(each.name, each.wall_s, each.cpu_s, each.peak_rss_bytes, nan) for each in live.timings}
    if live.stage:  # which counts with the time that it has taken
        before = rows.get(live.stage, StageRow(live.stage, 0.0, nan, 0, nan))
        rows[live.stage] = before._replace(wall_s=before.wall_s + live.stage_s)
    moved = {name: Traffic(*_bytes(live, name)) for name in PURPOSES}
    network = [TransferRow("", moved)] if any(map(any, moved.values())) else []
    time = stages(ReportContent(title=live.job, stages=list(rows.values()), transfers=network))
    found = [] if time is None else [time]
    if network:
        found.append(Drawn("Network", [network_table(network), Words(MOVED)]))
    return found


def _bytes(live: Live, purpose: str) -> tuple[int, int]:
    found = live.moved.get(purpose)
    return (0, 0) if found is None else (found.received, found.sent)
