"""One self-contained HTML page about one result: no scripts, no address, nothing to load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np

from cloudem.conventions import FSC_HALF, FSC_THRESHOLD
from cloudem.report.content import ParameterRow, ReportContent, StageRow
from cloudem.report.sections.curves import (
    CURVES,
    STATED_BY,
    fsc_figure,
    histogram,
    iterations_figure,
    resolution_crossing,
)
from cloudem.report.sections.map_panels import map_panels
from cloudem.report.sections.network import network_figure, network_table
from cloudem.report.sections.view_directions import view_density, views_figure
from cloudem.report.style import CSS
from cloudem.text import duration


def render(content: ReportContent) -> str:
    """Render a report.

    Returns
    -------
    str
        A whole HTML page. It loads nothing, runs nothing, and every text of ``content`` is escaped. Equal content
        gives an equal page. Safe to call from several threads.
    """
    sections = (
        _head(content),
        _warnings(content),
        _map(content),
        _resolution(content),
        _particles(content),
        _cost(content),
        _iterations(content),
        _network(content),
        _parameters(content),
        _provenance(content),
    )
    title = escape(content.title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=1200">'
        f"<title>{title}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main></body></html>\n"
    )


def _head(content: ReportContent) -> str:
    tiles = "".join(
        f'<div class="tile"><b>{value}</b><span>{caption}</span></div>' for value, caption in _tiles(content)
    )
    created = f'<p class="quiet">{escape(content.created)}</p>' if content.created else ""
    return f"<header><h1>{escape(content.title)}</h1>{created}</header>" + (
        f'<div class="tiles">{tiles}</div>' if tiles else ""
    )


def _tiles(content: ReportContent) -> list[tuple[str, str]]:
    """Headline figures and what each means, those that are known."""
    tiles = []
    if (stated := _stated_resolution(content)) is not None:
        tiles.append(stated)
    if content.particles is not None:
        halves = _half_sizes(content)
        tiles.append((f"{content.particles:,}", f"particles{f', {halves[0]:,} + {halves[1]:,}' if halves else ''}"))
    if content.pixel_size is not None:
        box = f", box {content.box} px" if content.box else ""
        tiles.append((f"{content.pixel_size:.4g} Å", f"pixel size{box}"))
    if content.symmetry:
        tiles.append((escape(content.symmetry), "symmetry"))
    if content.b_factor is not None and np.isfinite(content.b_factor):
        tiles.append((f"{content.b_factor:.0f} Å²".replace("-", "\N{MINUS SIGN}"), "B-factor of sharpening"))
    wall, cpu = _whole_time(content)
    if wall is not None:
        shown = cpu is not None and not content.transfers  # of other machines' CPUs nothing is known
        tiles.append((duration(wall), "total time" + (f" ({duration(cpu)} CPU)" if shown else "")))
    return tiles


def _stated_resolution(content: ReportContent) -> tuple[str, str] | None:
    name = next((name for name in STATED_BY if name in content.fsc), None)
    how = f", {CURVES[name].label}" if name else ""
    caption = f"resolution at FSC {FSC_THRESHOLD:g}{how}"
    if content.resolution is not None and np.isfinite(content.resolution):
        return f"{content.resolution:.2f} Å", caption
    if name is None or content.pixel_size is None:
        return None
    curve = content.fsc[name]
    if not np.isfinite(curve[1:]).any():
        return None
    value = resolution_crossing(curve, content.pixel_size, FSC_THRESHOLD)
    if np.isfinite(value):
        return f"{value:.2f} Å", caption
    return f"{2 * content.pixel_size:.2f} Å", f"Nyquist limit; the FSC never falls to {FSC_THRESHOLD:g}"


def _half_sizes(content: ReportContent) -> tuple[int, int] | None:
    if content.half_set is None:
        return None
    one, two = (int(np.count_nonzero(content.half_set == half)) for half in (1, 2))
    return (one, two) if one + two else None


def _warnings(content: ReportContent) -> str:
    if not content.warnings:
        return ""
    word = "Warning" if len(content.warnings) == 1 else f"{len(content.warnings)} warnings"
    items = "".join(f"<li>{escape(text)}</li>" for text in content.warnings)
    return f'<div class="warnings" role="alert"><b>{word}</b><ul>{items}</ul></div>'


def _map(content: ReportContent) -> str:
    if content.map is None:
        return ""
    outline = " The orange line is the mask at one half." if content.mask is not None else ""
    return (
        f"<section><h2>Map</h2>{map_panels(content.map, content.pixel_size, content.mask)}"
        f'<p class="quiet">One grey scale per row; density of the molecule is bright.{outline}</p></section>'
    )


def _resolution(content: ReportContent) -> str:
    history = iterations_figure(content.iterations) if len(content.iterations) > 1 else ""
    if content.fsc and content.pixel_size is not None:
        curves, table = fsc_figure(content.fsc, content.pixel_size, content.resolution), _fsc_table(content)
        body = _row([(600, curves), (376, history or table)])
        if history:
            body += f'<div style="width:560px;margin-top:14px">{table}</div>'
    else:
        body = history
    return f"<section><h2>Resolution</h2>{body}</section>" if body else ""


def _fsc_table(content: ReportContent) -> str:
    if not content.fsc or content.pixel_size is None:
        return ""
    rows = []
    for name in reversed(CURVES):
        if name not in content.fsc or name == "phase_randomised":  # a control: where it falls is no resolution
            continue
        style, curve = CURVES[name], content.fsc[name]
        cells = []
        for threshold in (FSC_HALF, FSC_THRESHOLD):
            at = resolution_crossing(curve, content.pixel_size, threshold)
            if not np.isfinite(curve[1:]).any():
                cells.append("unknown")
            else:
                cells.append(f"{at:.2f} Å" if np.isfinite(at) else "not reached")
        rows.append(
            f'<tr><td><span class="swatch" style="border-color:{style.colour}"></span>{style.label}</td>'
            f'<td class="n">{cells[0]}</td><td class="n">{cells[1]}</td></tr>'
        )
    return (
        f'<table><tr><th>FSC falls below</th><th class="n">{FSC_HALF:g} at</th>'
        f'<th class="n">{FSC_THRESHOLD:g} at</th></tr>{"".join(rows)}</table>'
    )


def _particles(content: ReportContent) -> str:
    parts = []
    facts = _particle_facts(content)
    if content.rot is not None and content.tilt is not None and len(content.rot):
        views = view_density(content.rot, content.tilt, content.symmetry_operators)
        if np.isfinite(views.least_sampled):
            facts.append(("sampling of Fourier space, worst direction", f"{100 * views.least_sampled:.0f} % of mean"))
            equivalent = ", equivalent ones included" if content.symmetry_operators is not None else ""
            figure = views_figure(views)
            caption = (
                f"View directions in map coordinates{equivalent}; equal-area map, smoothed over "
                f"{np.rad2deg(views.smoothing):.0f}°."
            )
            parts.append(_row([(620, figure, caption), (350, _facts_table(facts))]))
            facts = []
    if facts:
        parts.append(f'<div style="width:420px">{_facts_table(facts)}</div>')
    histograms = [(320, figure) for figure in _histograms(content)]
    if histograms:
        parts.append(_row(histograms))
    return f"<section><h2>Particles</h2>{''.join(parts)}</section>" if parts else ""


def _particle_facts(content: ReportContent) -> list[tuple[str, str]]:
    facts = []
    if content.particles is not None:
        facts.append(("particles", f"{content.particles:,}"))
    if halves := _half_sizes(content):
        facts.append(("half-sets 1 and 2", f"{halves[0]:,} and {halves[1]:,}"))
    if content.defocus_u is not None and content.defocus_v is not None:
        mean = _finite((np.asarray(content.defocus_u) + np.asarray(content.defocus_v)) / 2e4)
        if mean.size:
            facts.append(("defocus", f"{mean.min():.2f} to {mean.max():.2f} µm"))
    if content.shift_x is not None and content.shift_y is not None:
        shift = _finite(np.hypot(content.shift_x, content.shift_y))
        if shift.size:
            facts.append(("shift, root mean square", f"{np.sqrt(np.mean(shift**2)):.2f} Å"))
    return facts


def _histograms(content: ReportContent) -> Iterable[str]:
    if content.defocus_u is not None and content.defocus_v is not None:
        u, v = np.asarray(content.defocus_u, dtype=float), np.asarray(content.defocus_v, dtype=float)
        if _finite(u + v).size:
            yield histogram((u + v) / 2e4, "mean defocus (µm)", "Defocus")
            yield histogram(np.abs(u - v) / 1e4, "difference of the two defoci (µm)", "Astigmatism")
    if content.shift_x is not None and content.shift_y is not None:
        length = np.hypot(content.shift_x, content.shift_y)
        if _finite(length).size:
            yield histogram(length, "distance from the box centre (Å)", "Shifts")


def _cost(content: ReportContent) -> str:
    if not content.stages:
        return ""
    longest = max((stage.wall_s for stage in content.stages if np.isfinite(stage.wall_s)), default=0.0) or 1.0
    most = max(stage.peak_bytes for stage in content.stages) or 1
    rows = "".join(_stage_row(stage, longest, most) for stage in content.stages)
    wall, cpu = _whole_time(content)
    peak = max(stage.peak_bytes for stage in content.stages)
    total = (
        f'<tr class="total"><td>total</td><td></td><td class="n">{duration(wall)}</td><td class="n">{duration(cpu)}'
        f'</td><td class="n">{_size(peak)}</td></tr>'
    )
    return (
        "<section><h2>Time and memory</h2><table><tr><th>stage</th><th>wall time, with peak memory below</th>"
        f'<th class="n">wall</th><th class="n">CPU</th><th class="n">peak memory</th></tr>'
        f"{rows}{total}</table>{_counted_here(content)}</section>"
    )


def _counted_here(content: ReportContent) -> str:
    if not content.transfers:
        return ""
    return (
        '<p class="quiet">CPU time and memory are those of the job and the processes that it started; workers of a'
        " scheduler that was there already come on top.</p>"
    )


def _stage_row(stage: StageRow, longest: float, most: int) -> str:
    time = 100 * stage.wall_s / longest if np.isfinite(stage.wall_s) else 0.0
    bars = f'<i style="width:{time:.1f}%"></i>'
    if stage.peak_bytes > 0:
        bars += f'<i style="width:{100 * stage.peak_bytes / most:.1f}%"></i>'
    return (
        f'<tr><td class="name">{escape(stage.name)}</td><td class="bar">{bars}</td>'
        f'<td class="n">{duration(stage.wall_s)}</td><td class="n">{duration(stage.cpu_s)}</td>'
        f'<td class="n">{_size(stage.peak_bytes)}</td></tr>'
    )


def _iterations(content: ReportContent) -> str:
    if not content.iterations:
        return ""
    rows = "".join(
        f'<tr><td>{row.iteration}</td><td class="n">{_number(row.resolution, ".2f")}</td>'
        f'<td class="n">{_number(row.limit, ".2f")}</td><td class="n">{_number(100 * row.moving_share, ".1f")}</td>'
        f'<td class="n">{_number(row.images_per_s, ",.0f")}</td><td class="n">{_number(row.seconds, ",.1f")}</td></tr>'
        for row in content.iterations
    )
    return (
        '<section><h2>Iterations</h2><table><tr><th>iteration</th><th class="n">resolution (Å)</th>'
        '<th class="n">limit of alignment (Å)</th><th class="n">moving poses (%)</th>'
        f'<th class="n">images per second</th><th class="n">time (s)</th></tr>{rows}</table></section>'
    )


def _network(content: ReportContent) -> str:
    if not content.transfers:
        return ""
    iterations = [each for each in content.transfers if each.label.isdecimal()]
    table = network_table(content.transfers)
    note = (
        "What all processes received from object storage and from each other, by what it was for, and what they sent;"
        " without the writing of these results and of this report."
    )
    if len(iterations) < 2:
        return f'<section><h2>Network</h2>{table}<p class="quiet">{note}</p></section>'
    body = _row([(320, network_figure(iterations), "Bytes received in each iteration."), (650, table)])
    return f'<section><h2>Network</h2>{body}<p class="quiet">{note}</p></section>'


def _parameters(content: ReportContent) -> str:
    if not content.parameters:
        return ""
    rows = "".join(
        f'<tr><td class="name">{escape(name)}</td><td>{_value(parameter)}</td><td>{escape(parameter.meaning)}</td></tr>'
        for name, parameter in content.parameters.items()
    )
    return (
        '<section><h2>Parameters</h2><table><tr><th style="width:24%">parameter</th><th style="width:30%">value</th>'
        f"<th>meaning</th></tr>{rows}</table></section>"
    )


def _provenance(content: ReportContent) -> str:
    parts = []
    if content.command:
        parts.append(f"<pre>{escape(content.command)}</pre>")
    if content.notes:
        parts.append(f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in content.notes)}</ul>')
    if content.versions:
        items = " · ".join(f"{escape(name)} {escape(version)}" for name, version in content.versions.items())
        parts.append(f'<p class="quiet" style="max-width:none">{items}</p>')
    return f"<section><h2>How this was made</h2>{''.join(parts)}</section>" if parts else ""


def _row(figures: Sequence[tuple[int, str] | tuple[int, str, str]]) -> str:
    """Figures side by side, their widths in proportion; each is (width, markup) or (width, markup, caption)."""
    cells = []
    for width, markup, *caption in figures:
        text = f"<figcaption>{caption[0]}</figcaption>" if caption else ""
        cells.append(f'<figure style="flex:0 1 {width}px;min-width:0">{markup}{text}</figure>')
    return f'<div class="row">{"".join(cells)}</div>'


def _facts_table(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><td>{name}</td><td class="n">{value}</td></tr>' for name, value in facts)
    return f"<table>{rows}</table>"


def _value(parameter: ParameterRow) -> str:
    if parameter.value is None:
        return '<span class="quiet">not set</span>'
    if isinstance(parameter.value, bool):
        return "yes" if parameter.value else "no"
    text = f"{parameter.value:g}" if isinstance(parameter.value, float) else str(parameter.value)
    return escape(f"{text} {parameter.unit}".rstrip())


def _finite(values: Any) -> Any:
    array = np.asarray(values, dtype=float)
    return array[np.isfinite(array)]


def _whole_time(content: ReportContent) -> tuple[float | None, float | None]:
    """Wall and CPU seconds of the whole job, where known."""
    wall = content.wall_s if content.wall_s is not None else _total(stage.wall_s for stage in content.stages)
    cpu = content.cpu_s if content.cpu_s is not None else _total(stage.cpu_s for stage in content.stages)
    return wall, cpu


def _total(values: Iterable[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(sum(known)) if known else None


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "–"


def _size(count: int) -> str:
    if count <= 0:
        return "–"
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
