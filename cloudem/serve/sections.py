"""The sections of a job's page: those of its report, also while it runs, as far as there is something to show."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from cloudem.errors import CloudemError
from cloudem.io.particle_store import RESULT_TABLE
from cloudem.io.storage.groups import arrays_in, list_groups, read_attributes, read_group, read_rows
from cloudem.io.storage.location import contents, version_of
from cloudem.jobs.base import Job, find_job, known_jobs
from cloudem.jobs.iterative import ITERATIONS
from cloudem.jobs.live import Live
from cloudem.jobs.preview import read_preview_info
from cloudem.jobs.report import content_of, rotations_of
from cloudem.serve.details import record_of

if TYPE_CHECKING:
    from cloudem.report.content import ReportContent

DEFOCUS = ("defocus_u", "defocus_v")

LARGEST_COLUMNS = 64 << 20
"""Bytes of columns that are read for looking: of four million particles."""


def kept_content(url: str) -> ReportContent | None:
    """Return what the report of a finished result shows; None where it cannot be read."""
    try:
        return content_of(url, pictures=False)
    except CloudemError:
        return None


def content_so_far(url: str, live: Live | None, particles: str = "") -> ReportContent | None:
    """Return what a report would show of a job that has not ended: rows, curves, poses and time by stage.

    Parameters
    ----------
    url
        Of its results.
    live
        What it says of itself.
    particles
        Where the particles lie that it reads, for their defocus; empty where that is not to be read.
    """
    from cloudem.report.content import FSC_NAMES, ReportContent, StageRow

    if live is None:
        return None
    nan = float("nan")
    declared = find_job(live.job) if live.job in known_jobs() else Job
    curves, pixel_size = last_curves(url)
    stages = [StageRow(each.name, each.wall_s, each.cpu_s, each.peak_rss_bytes, nan) for each in live.timings]
    rows = [{name: nan if value is None else value for name, value in row.items()} for row in live.iterations]
    symmetry = _symmetry(url)
    columns = _columns(declared, url, pixel_size, particles)
    return ReportContent(
        title=live.job,
        symmetry=symmetry,
        symmetry_operators=rotations_of(symmetry),
        **columns,
        pixel_size=pixel_size,
        fsc={name: curves[f"fsc_{name}"] for name in FSC_NAMES if f"fsc_{name}" in curves} if pixel_size else {},
        iterations=rows,
        columns=declared.columns,
        sections=declared.sections,
        stages=stages,
        resolution=live.resolution_A,
    )


def _columns(declared: type[Job], url: str, pixel_size: float | None, particles: str) -> dict[str, Any]:
    """Return columns of the particles; what is damaged, or just being replaced, is left out until the next look."""
    if pixel_size is None:
        return {}
    found: dict[str, Any] = {}
    with suppress(CloudemError, TypeError, ValueError):
        found = dict(declared.particles_so_far(url, pixel_size))
    if found and particles:
        with suppress(CloudemError):
            found |= defocus_of(particles, version_of(particles))
    return found


@lru_cache(8)
def defocus_of(url: str, version: str) -> dict[str, Any]:
    """Return the defoci of a particle store or a result, Å; empty where there are none, or too many.

    Parameters
    ----------
    url
        Of the store.
    version
        Of what lies there (`version_of`): for each it is read once.

    Raises
    ------
    StorageError, FormatError
        They are damaged.
    """
    table = RESULT_TABLE if RESULT_TABLE in contents(url) else "columns"
    lying = arrays_in(url, table)
    if not lying.keys() >= set(DEFOCUS) or sum(lying[name].stored_bytes for name in DEFOCUS) > LARGEST_COLUMNS:
        return {}
    return read_rows(url, table, DEFOCUS, 0, sys.maxsize)


def _symmetry(url: str) -> str:
    parameters = record_of(url).get("parameters")
    return str(parameters.get("symmetry") or "") if isinstance(parameters, Mapping) else ""


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
        info = read_preview_info(url)
    except CloudemError:
        return {}, None
    if info is None or "fsc_unmasked" not in arrays:
        return {}, None
    edge = info.pixel_size_A * info.shape[0]
    return dict(arrays), edge / (2 * (len(arrays["fsc_unmasked"]) - 1))
