"""One self-contained HTML page about one result: no scripts, no address, nothing to load."""

from __future__ import annotations

import importlib

import numpy as np

from cloudem.conventions import FSC_THRESHOLD
from cloudem.report.blocks import Drawn, render_page
from cloudem.report.content import ReportContent
from cloudem.report.declaration import Section
from cloudem.report.sections.cost import whole_time
from cloudem.report.sections.curves import CURVES, STATED_BY, resolution_crossing
from cloudem.report.sections.particles import half_sizes
from cloudem.text import duration

SECTIONS = "cloudem.report.sections"


def render(content: ReportContent) -> str:
    """Render a report.

    Returns
    -------
    str
        A whole HTML page. It loads nothing, runs nothing, and every text of ``content`` is escaped. Equal content
        gives an equal page. Safe to call from several threads.
    """
    return render_page(
        "page.html",
        title=content.title,
        created=content.created,
        status="",
        status_kind="",
        why="",
        told="",
        tiles=headlines(content),
        warnings=content.warnings,
        sections=drawn_sections(content),
    )


def drawn_sections(content: ReportContent) -> list[Drawn]:
    """Return the sections of a report that have something to show."""
    drawn = (_drawn(section, content) for section in content.sections)
    return [section for section in drawn if section is not None]


def _drawn(section: Section, content: ReportContent) -> Drawn | None:
    """Return a section as it stands on the page; None where there is nothing to show."""
    module, _, function = section.draw.partition(":")
    whole = module if "." in module else f"{SECTIONS}.{module}"
    found: Drawn | None = getattr(importlib.import_module(whole), function)(content, **section.options)
    return found


def headlines(content: ReportContent) -> list[tuple[str, str]]:
    """Return headline figures and what each means, those that are known."""
    tiles = []
    if (stated := _stated_resolution(content)) is not None:
        tiles.append(stated)
    if {"best_A", "worst_A"} <= content.directional.keys():
        best, worst = (float(content.directional[name]) for name in ("best_A", "worst_A"))
        tiles.append((f"{worst:.2f} Å", f"in the worst directions, {best:.2f} Å in the best"))
    if content.particles is not None:
        halves = half_sizes(content)
        tiles.append((f"{content.particles:,}", f"particles{f', {halves[0]:,} + {halves[1]:,}' if halves else ''}"))
    if content.pixel_size is not None:
        box = f", box {content.box} px" if content.box else ""
        tiles.append((f"{content.pixel_size:.4g} Å", f"pixel size{box}"))
    if content.symmetry:
        tiles.append((content.symmetry, "symmetry"))
    if content.b_factor is not None and np.isfinite(content.b_factor):
        tiles.append((f"{content.b_factor:.0f} Å²".replace("-", "\N{MINUS SIGN}"), "B-factor of sharpening"))
    wall, cpu = whole_time(content)
    if wall is not None:
        shown = cpu is not None and not content.transfers  # of other machines' CPUs nothing is known
        tiles.append((duration(wall), "total time" + (f" ({duration(cpu)} CPU)" if shown else "")))
    return tiles


def _stated_resolution(content: ReportContent) -> tuple[str, str] | None:
    name = next((name for name in STATED_BY if name in content.fsc), None)
    how = f", {CURVES[name].label}" if name else ""
    caption = f"resolution at FSC {FSC_THRESHOLD:g}{how}"
    if content.resolution is not None and np.isfinite(content.resolution):
        return f"{content.resolution:.2f} Å", content.resolution_source or caption
    if name is None or content.pixel_size is None:
        return None
    curve = content.fsc[name]
    if not np.isfinite(curve[1:]).any():
        return None
    value = resolution_crossing(curve, content.pixel_size, FSC_THRESHOLD)
    if np.isfinite(value):
        return f"{value:.2f} Å", caption
    return f"{2 * content.pixel_size:.2f} Å", f"Nyquist limit; the FSC never falls to {FSC_THRESHOLD:g}"
