"""The sections of a job's page: those of its report, also while it runs, as far as there is something to show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudem.errors import CloudemError
from cloudem.io.storage.groups import list_groups, read_attributes, read_group
from cloudem.jobs.base import Job, find_job, known_jobs
from cloudem.jobs.iterative import ITERATIONS
from cloudem.jobs.live import Live
from cloudem.jobs.preview import read_preview
from cloudem.jobs.report import content_of

if TYPE_CHECKING:
    from cloudem.report.content import ReportContent


def kept_content(url: str) -> ReportContent | None:
    """Return what the report of a finished result shows; None where it cannot be read."""
    try:
        return content_of(url)
    except CloudemError:
        return None


def content_so_far(url: str, live: Live | None) -> ReportContent | None:
    """Return what a report would show of a job that has not ended: rows, curves of the last iteration, time by stage.

    Parameters
    ----------
    url
        Of its results.
    live
        What it says of itself.
    """
    from cloudem.report.content import FSC_NAMES, ReportContent, StageRow

    if live is None:
        return None
    nan = float("nan")
    declared = find_job(live.job) if live.job in known_jobs() else Job
    curves, pixel_size = last_curves(url)
    stages = [StageRow(each.name, each.wall_s, each.cpu_s, each.peak_rss_bytes, nan) for each in live.timings]
    rows = [{name: nan if value is None else value for name, value in row.items()} for row in live.iterations]
    return ReportContent(
        title=live.job,
        pixel_size=pixel_size,
        fsc={name: curves[f"fsc_{name}"] for name in FSC_NAMES if f"fsc_{name}" in curves} if pixel_size else {},
        iterations=rows,
        columns=declared.columns,
        sections=declared.sections,
        stages=stages,
        resolution=live.resolution_A,
    )


def last_curves(url: str) -> tuple[dict[str, Any], float | None]:
    """Return the arrays that the last iteration left, and the pixel size in Å; nothing where there was none."""
    try:
        names = sorted(name for name in list_groups(url, ITERATIONS) if name.isdecimal())
        if not names or read_attributes(url, f"{ITERATIONS}/{names[-1]}") is None:
            return {}, None
        arrays, _ = read_group(url, f"{ITERATIONS}/{names[-1]}")
    except CloudemError:  # it is just being written, or replaced: the next look finds it
        return {}, None
    try:
        preview = read_preview(url)
    except CloudemError:
        return {}, None
    if preview is None or "fsc_unmasked" not in arrays:
        return {}, None
    edge = preview.info.pixel_size_A * preview.info.shape[0]
    return dict(arrays), edge / (2 * (len(arrays["fsc_unmasked"]) - 1))
