"""Time and memory of the stages."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cloudem.report.blocks import Block, Cell, Drawn, Row, Table, Words, numbers
from cloudem.report.content import ReportContent, StageRow
from cloudem.text import duration

COUNTED_HERE = (
    "CPU time and memory are those of the job and the processes that it started; workers of a scheduler that was there "
    "already come on top."
)

PLANNED = "Planned is what the plan expects on one thread of the reference machine, where the stage declares it."


def stages(content: ReportContent) -> Drawn | None:
    """Show what each stage took."""
    if not content.stages:
        return None
    longest = max((stage.wall_s for stage in content.stages if np.isfinite(stage.wall_s)), default=0.0) or 1.0
    peak = max(stage.peak_bytes for stage in content.stages)
    wall, cpu = whole_time(content)
    planned = any(np.isfinite(stage.planned_s) for stage in content.stages)
    rows = [_row(stage, longest, peak or 1, planned) for stage in content.stages]
    whole = [duration(wall), duration(cpu), *([""] if planned else []), _size(peak)]
    titles = ["wall", "CPU", *(["planned CPU"] if planned else []), "peak memory"]
    head = [Cell("stage"), Cell("wall time, with peak memory below"), *numbers(titles)]
    blocks: list[Block] = [Table(head, [*rows, Row([Cell("total"), Cell(), *numbers(whole)], "total")])]
    if planned:
        blocks.append(Words(PLANNED))
    if content.transfers:
        blocks.append(Words(COUNTED_HERE))
    return Drawn("Time and memory", blocks)


def whole_time(content: ReportContent) -> tuple[float | None, float | None]:
    """Return wall and CPU seconds of the whole job, where known."""
    wall = content.wall_s if content.wall_s is not None else _total(stage.wall_s for stage in content.stages)
    cpu = content.cpu_s if content.cpu_s is not None else _total(stage.cpu_s for stage in content.stages)
    return wall, cpu


def _row(stage: StageRow, longest: float, most: int, planned: bool) -> Row:
    bars = [100 * stage.wall_s / longest if np.isfinite(stage.wall_s) else 0.0]
    if stage.peak_bytes > 0:
        bars.append(100 * stage.peak_bytes / most)
    plan = [duration(stage.planned_s)] if planned else []
    cells = numbers([duration(stage.wall_s), duration(stage.cpu_s), *plan, _size(stage.peak_bytes)])
    return Row([Cell(stage.name, "name"), Cell(kind="bar", bars=bars), *cells])


def _total(values: Iterable[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(sum(known)) if known else None


def _size(count: int) -> str:
    if count <= 0:
        return "–"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
