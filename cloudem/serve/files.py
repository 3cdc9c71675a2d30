"""Files that a page gives away: maps as MRC, a script that opens them in ChimeraX; and what the page of a run says."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from cloudem.io.formats.mrc_writer import write_volume
from cloudem.jobs.maps import result_map


def map_as_mrc(url: str, array: str) -> IO[Any]:
    """Return a map of a result as an open MRC file that vanishes when it is closed.

    Raises
    ------
    MissingInputError
        The result has no such map.
    """
    found = result_map(url, array)
    with tempfile.TemporaryDirectory(prefix="cloudem-") as folder:
        path = Path(folder) / "map.mrc"
        write_volume(path, found.data, found.pixel_size, found.origin)
        return path.open("rb")  # stays readable after its name is gone


def chimerax_script(label: str, level: float, sigma: float) -> bytes:
    """Return commands that open the downloaded map and half-maps in ChimeraX, beside which the script has to lie.

    Parameters
    ----------
    label
        Of the job, in the names of the files.
    level, sigma
        Contour level of the surface and standard deviation of the map, in units of the density.
    """
    return (
        f"# ChimeraX: open this file in the folder to which {label}-map.mrc was downloaded\n"
        f"open {label}-map.mrc\n"
        f"volume #1 level {level:.6g} style surface color #66a0cc step 1\n"
        f"# sigma of the map is {sigma:.6g}\n"
        "lighting soft\nset bgColor white\nview\n"
    ).encode()


def run_shown(project: str, name: str, jobs: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page of a run says, as it stands.

    Parameters
    ----------
    project, name
        Of the run.
    jobs
        The page of each job by where its results are: steps are links to these, not to files beside the run's report.

    Raises
    ------
    CloudemError
        It has not begun, or its records are damaged.
    """
    from cloudem.cloud.catalogue import Catalogue
    from cloudem.io.storage.location import absolute, join
    from cloudem.report.run_page import run_page_values
    from cloudem.runs.records import PAGE, RunStore
    from cloudem.runs.run_report import run_page_content

    store = RunStore.of(project, name)
    content = run_page_content(store, Catalogue.load(), None, join(absolute(store.url), PAGE))
    outs = [absolute(str(step["out"])) if step.get("out") else "" for step in store.record().steps]
    links = [jobs.get(out, "") for out in [*outs, *[""] * len(content.steps)]]
    steps = [row._replace(link=link) for row, link in zip(content.steps, links, strict=False)]
    return run_page_values(replace(content, steps=steps))
