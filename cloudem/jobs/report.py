"""``cloudem report``: draw the page about a result again, from what is on disk.

Jobs call `write_report` when their results are written, so that a report never shows anything that is not kept. Beside
the record of the job (`cloudem.jobs.provenance.job_record`) in the attributes of the root group it reads the group
``result``:

==================  =====================================================================
arrays              ``map``, ``mask``, ``fsc_<name>`` for each curve; of directions, if known,
                    ``directions``, ``directional_fsc`` and ``directional_resolution_A``
``directional``     what they say, in figures (`cloudem.jobs.directions`)
``pixel_size_A``    pixel size
``symmetry``        point group
``resolution_A``    resolution that the job states
``resolution_source``
                    what that is the resolution of, where the FSC does not show it
``b_factor_A2``     B-factor of sharpening
``iterations``      rows as given to `Progress.iteration`, beside the ``row`` of each ``iterations/*``
``traffic``         what went over the network outside of iterations, beside the ``traffic`` of each ``iterations/*``
``stages``          timings (`StageTiming`) as mappings
``wall_s, cpu_s``   of the whole job
``particle_count``  where there is no group ``particles``
``warnings, notes`` lists of text
==================  =====================================================================

and the columns of the group ``particles``. All but ``result`` itself may be absent.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic_core import PydanticUndefined

from cloudem.errors import CloudemError, FormatError, ParameterError, StorageError
from cloudem.jobs.base import Context, Inputs, Job, find_job, known_jobs
from cloudem.jobs.parameters import Place, option_of, parameter, unit_of
from cloudem.traffic import Moved, Traffic, difference, total_traffic

if TYPE_CHECKING:
    from cloudem.jobs.progress import Progress
    from cloudem.report.content import ParameterRow, ReportContent, StageRow, TransferRow

REPORT_FILE = "report.html"

JUDGED = ("keep", "noise_evidence", "other_evidence")
"""Columns that say which particles show the molecule."""


class Report(Job):
    """Declaration of ``cloudem report``."""

    name: ClassVar[str] = "report"
    summary: ClassVar[str] = "Create the report of a finished job again from its stored results."
    examples: ClassVar[tuple[str, ...]] = ("cloudem report refine",)
    keeps_log: ClassVar[bool] = False
    reads_out: ClassVar[bool] = True

    out: Place = parameter(meaning="results of a job; report.html is written there", positional=True)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check that there is a result."""
        if not inputs.awaited(self.out):
            require_result(self.out)

    def run(self, context: Context) -> None:
        """Write ``report.html``."""
        context.progress.message(f"report: {write_report(context.url)}")


def write_report(url: str) -> str:
    """Draw the report of the results under ``url`` and put it there as ``report.html``; return where it is.

    Raises
    ------
    StorageError
        If there is no finished result, or no room for the page.
    """
    from cloudem.io.storage.location import object_store, put, storage_errors
    from cloudem.report.page import render

    page = render(content_of(url)).encode()
    with storage_errors(url):
        put(object_store(url), REPORT_FILE, page)
    return f"{url.rstrip('/')}/{REPORT_FILE}"


def finished_record(url: str) -> Mapping[str, Any] | None:
    """Return the record of the job whose finished result lies under ``url``; None if there is none."""
    from cloudem.io.storage.groups import has_group, read_attributes

    return read_attributes(url, "") if has_group(url, "result") else None


def complete_report(url: str) -> None:
    """Draw the report of a finished result, if that has not been done."""
    from cloudem.io.storage.location import contents

    if REPORT_FILE not in contents(url):
        write_report(url)


def run_attributes(progress: Progress, moved: Moved) -> dict[str, Any]:
    """Return what a job's view kept, as attributes of the group ``result``: stages, iterations and warnings.

    ``moved`` is what the job has moved over the network until now.
    """
    outside = difference(moved, progress.moved())
    return {
        "traffic": {name: part._asdict() for name, part in outside.items()},
        "stages": [asdict(timing) for timing in progress.timings()],
        "planned_s": {name: stage.seconds for name, stage in progress.declared.items() if stage.seconds},
        "iterations": progress.iterations(),
        "warnings": progress.warnings(),
    }


def require_result(url: str) -> None:
    """Make sure that there is something to report on.

    Raises
    ------
    StorageError
        There is no finished result.
    """
    from cloudem.io.storage.groups import has_group
    from cloudem.io.storage.location import exists, join

    if not has_group(url, "result"):
        if exists(join(url, "run.json")):
            raise StorageError(
                f"{url} is a run, not the results of a job; for its report: cloudem cost {url} --report report.html"
            )
        raise StorageError(f"{url} holds no finished result to report on; run the job to its end, or check the path")


def content_of(url: str, *, whole: bool = True, pictures: bool = True) -> ReportContent:
    """Gather what a report shows from the groups under ``url``.

    Parameters
    ----------
    url
        Of the results.
    whole
        Whether with maps and columns; without them, little is read: curves, half-sets, and what is said in words.
    pictures
        Whether with the table and pictures of micrographs, where the job's report shows them.

    Raises
    ------
    StorageError
        If there is no finished result, or part of it is lost or changed.
    FormatError
        If it says something of itself that cannot be shown.
    """
    try:
        return _content_of(url, whole, whole and pictures)
    except CloudemError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise FormatError(
            f"{url} says something of itself that cannot be shown ({why:.100}); run the job again"
        ) from error


def _content_of(url: str, whole: bool, pictures: bool) -> ReportContent:
    from cloudem.io.storage.groups import read_attributes, read_group, read_rows
    from cloudem.jobs.report_micrographs import micrographs_shown
    from cloudem.report.content import FSC_NAMES, ReportContent

    require_result(url)
    if whole:
        arrays, result = read_group(url, "result")
    else:
        result = read_attributes(url, "result") or {}
        arrays = read_rows(url, "result", _lines(url), 0, sys.maxsize)
    record = read_attributes(url, "")
    if record is None and "stages" in result:  # which jobs leave; others write results without a record
        raise StorageError(f"{url}/zarr.json is missing: the result has lost its record; copy it again")
    record = record or {}
    job, values = str(record.get("job", "")), dict(record.get("parameters", {}))
    declared = find_job(job) if job in known_jobs() else Job
    symmetry = str(result.get("symmetry") or "")
    kept = [
        read_attributes(url, f"iterations/{name}") or {}
        for name in _names_of_iterations(url, len(result.get("iterations", ())))
    ]
    return ReportContent(
        title=f"{job or 'result'}: {url.rstrip('/').rpartition('/')[2]}",
        map=arrays.get("map"),
        mask=arrays.get("mask"),
        pixel_size=result.get("pixel_size_A"),
        symmetry=symmetry,
        symmetry_operators=rotations_of(symmetry),
        fsc={name: arrays[f"fsc_{name}"] for name in FSC_NAMES if f"fsc_{name}" in arrays},
        resolution=result.get("resolution_A"),
        resolution_source=str(result.get("resolution_source") or ""),
        b_factor=result.get("b_factor_A2"),
        iterations=_iterations(kept, result),
        columns=declared.columns,
        sections=declared.sections,
        arrays=arrays,
        directional=dict(result.get("directional") or {}),
        transfers=_transfers(kept, result),
        particle_count=result.get("particle_count"),
        stages=_stages(result.get("stages", ()), result.get("planned_s") or {}),
        wall_s=result.get("wall_s"),
        cpu_s=result.get("cpu_s"),
        parameters=_parameters(job, values),
        versions={name: str(version) for name, version in record.get("versions", {}).items()},
        warnings=[str(text) for text in result.get("warnings", ())],
        notes=[str(text) for text in result.get("notes", ())],
        command=command_line(job, values) if job in known_jobs() else "",
        created=str(record.get("date", "")),
        **_columns(url, result, whole),
        **(micrographs_shown(url, job, values, arrays, declared.sections) if pictures else {}),
    )


def _lines(url: str) -> list[str]:
    """Names of the arrays of a result that have no more than one axis."""
    from cloudem.io.storage.groups import shapes_in

    return [name for name, shape in shapes_in(url, "result").items() if len(shape) < 2]


def command_line(job: str, values: Mapping[str, Any]) -> str:
    """Return the command that gives a job these parameters; those at their default are left out."""
    fields = find_job(job).model_fields
    positional, options = [], []
    for name, stored in values.items():
        value = tuple(stored) if isinstance(stored, list) else stored  # JSON has no tuples
        if value is None or name not in fields or value == fields[name].default is not PydanticUndefined:
            continue
        extra = fields[name].json_schema_extra
        option = option_of(name)
        if isinstance(extra, dict) and extra.get("positional"):
            positional += [str(one) for one in value] if isinstance(value, tuple) else [str(value)]
        elif isinstance(value, bool):
            options.append(option if value else f"--no-{option.removeprefix('--')}")
        else:
            options += [option, str(value)]
    return shlex.join(["cloudem", job, *positional, *options])


def rotations_of(symmetry: str) -> Any:
    """Return the rotations of a point group; None where it has only one or its name is not known."""
    from cloudem.model.symmetry import operators

    try:
        group = operators(symmetry)
    except ParameterError:  # the result of something else than cloudem: shown without equivalent views
        return None
    return group if len(group) > 1 else None


def _columns(url: str, result: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """Columns of the refined particles that a report draws."""
    from cloudem.io.exporting import refined_table
    from cloudem.io.storage.groups import has_group, read_rows, shapes_in

    if not whole and has_group(url, "particles"):
        names = {"half_set"} & shapes_in(url, "particles").keys()
        return read_rows(url, "particles", names, 0, sys.maxsize)
    arrays, _ = refined_table(url, result) or ({}, {})
    columns = {name: arrays[name] for name in ("half_set", *JUDGED) if name in arrays}
    for pair in (("rot", "tilt"), ("defocus_u", "defocus_v"), ("shift_x", "shift_y")):
        if all(name in arrays for name in pair):
            columns |= {name: arrays[name] for name in pair}
    return columns


def _iterations(kept: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    # A resumed job's view has seen only the last iterations; what was kept of each remembers the others.
    rows = {row["iteration"]: row for row in [attributes["row"] for attributes in kept if "row" in attributes]}
    rows |= {row["iteration"]: row for row in result.get("iterations", ())}
    return [rows[key] for key in sorted(rows)]


def _transfers(kept: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[TransferRow]:
    """What was moved in each iteration and outside of them; nothing if nothing was."""
    from cloudem.report.content import TransferRow

    found = {int(each["row"]["iteration"]): each["traffic"] for each in kept if "row" in each and "traffic" in each}
    named = [(str(number), found[number]) for number in sorted(found)]
    named.append(("otherwise" if named else "whole job", result.get("traffic", {})))
    transfers = [
        TransferRow(label, total_traffic([{name: Traffic(**way) for name, way in moved.items()}]))
        for label, moved in named
    ]
    return transfers if any(any(map(any, each.moved.values())) for each in transfers) else []


def _stages(rows: Sequence[Mapping[str, Any]], planned: Mapping[str, float]) -> list[StageRow]:
    from cloudem.report.content import StageRow

    return [
        StageRow(
            str(row["name"]),
            _number(row.get("wall_s")),
            _number(row.get("cpu_s")),
            int(row.get("peak_rss_bytes", 0)),
            _number(planned.get(row["name"])),
        )
        for row in rows
    ]


def _parameters(job: str, values: Mapping[str, Any]) -> dict[str, ParameterRow]:
    """Parameters with unit and meaning from the job's declaration."""
    from cloudem.report.content import ParameterRow

    fields = find_job(job).model_fields if job in known_jobs() else {}
    return {
        name: ParameterRow(value, unit_of(name), (fields[name].description or "") if name in fields else "")
        for name, value in values.items()
    }


def _names_of_iterations(url: str, count: int) -> list[str]:
    """Return the names of the groups of iterations, if the job left any: as many as it had at least, without a gap."""
    from cloudem.io.storage.groups import list_groups

    names = list_groups(url, "iterations")
    if not names:
        return []
    expected = [f"{number:03d}" for number in range(1, max([count, *map(int, filter(str.isdecimal, names))]) + 1)]
    missing = [name for name in expected if name not in names]
    if missing:
        raise StorageError(f"{url}/iterations/{missing[0]} is missing: the result has lost it; copy it again")
    return expected


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
