"""Dask's own pages, of its scheduler: those that answer while a job runs, and a menu that links no other.

Of what Dask 2026.8 has, these are left out: the profile and work stealing, which are switched off
(`cloudem.execution.dask.configuration`), the page of the latter failing as well; the hardware page, which has workers
measure their network and disks while they work; the graph of single tasks, of which there are hundreds of thousands;
shuffling, which no job does; and what would need a proxy in the scheduler, which passes requests on to other machines.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distributed import SchedulerPlugin
from tornado import template, web

from cloudem.errors import ParameterError
from cloudem.execution.dask.jobs_page import ToldJobs, jobs_page
from cloudem.execution.dask.looking import PAGES
from cloudem.execution.doing import JobDoing

MENU = ("status", "jobs", "workers", "tasks", "system", "groups", "info")
"""What the pages link, in order; where the scheduler's machine has a GPU, ``gpu`` too."""

SINGLE = (
    "individual-task-stream",
    "individual-progress",
    "individual-group-progress",
    "individual-cluster-memory",
    "individual-workers-memory",
    "individual-workers-cpu-timeseries",
    "individual-workers-memory-timeseries",
    "individual-workers-network-timeseries",
    "individual-memory-by-key",
    "individual-compute-time-per-key",
    "individual-fine-performance-metrics",
)
"""Single plots, in the menu under "More"."""


def check_bokeh() -> None:
    """Raise ParameterError, in one line, where what draws the pages is missing or too old."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import distributed.dashboard.scheduler  # noqa: F401
    except ImportError as error:
        raise ParameterError(
            f"--dashboard needs Bokeh ({str(error).splitlines()[0]}); install it with `pip install"
            " 'cloudem[dashboard]'`, or leave --dashboard out"
        ) from None


def allowed_origins(host: str, port: int, others: Sequence[str] = ()) -> list[str]:
    """Return whose pages in a browser may read those of a scheduler: its own, at this host or by a tunnel, and others.

    Parameters
    ----------
    host, port
        Where the pages are.
    others
        Further ones as ``host`` or ``host:port``: the end of a tunnel at another port, a proxy.
    """
    return sorted({f"{name}:{port}" for name in (host, "localhost", "127.0.0.1")} | set(others))


class DaskPages(SchedulerPlugin):  # type: ignore[misc]
    """Adds the pages to a scheduler that was started without them.

    Parameters
    ----------
    origins
        Beside its own, whose pages in a browser may read these; as for `allowed_origins`.
    """

    name = PAGES

    def __init__(self, origins: Sequence[str] = ()) -> None:
        self._origins = origins
        self._jobs = ToldJobs()

    def tell(self, job: str, doing: JobDoing, now: float) -> None:
        """Hear from a job what it does, to show it; ``now`` is in seconds."""
        self._jobs.tell(job, doing, now)

    async def start(self, scheduler: Any) -> None:
        """Begin to serve."""
        import dask
        from distributed.dashboard.core import BokehApplication

        server = scheduler.http_server
        origins = allowed_origins(getattr(server, "address", None) or "localhost", server.port, self._origins)
        # what Dask leaves of its templates: without style sheets of other hosts
        folder = _templates()
        scheduler.http_application.settings["template_loader"] = _OwnStyle(str(folder))
        with dask.config.set({"distributed.scheduler.dashboard.bokeh-application.allow_websocket_origin": origins}):
            pages = BokehApplication(_served(self._jobs), scheduler, prefix="", template_variables=_menu())
        scheduler.http_application.add_application(pages)
        pages.initialize(scheduler.loop)
        pages.add_handlers(r".*", [(r"/", web.RedirectHandler, {"url": "status"})])
        pages.start()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Forget where the worker serves metrics: Dask would link pages there, through a proxy that is not served."""
        scheduler.workers[worker].services.pop("dashboard", None)


def _served(jobs: ToldJobs) -> dict[str, Any]:
    """Return what draws each page, by its path."""
    from distributed.dashboard.scheduler import applications

    names = {*MENU, *SINGLE, "gpu", "individual-gpu-memory", "individual-gpu-utilization"} - {"groups", "jobs"}
    served = {path: draw for path, draw in applications.items() if path.strip("/") in names}
    return {**served, "/groups": _groups, "/jobs": lambda _, extra, doc: jobs_page(jobs, extra, doc)}


def _menu() -> dict[str, Any]:
    from distributed.diagnostics.nvml import device_get_count

    gpu = ("gpu",) if device_get_count() else ()
    titles = {name: name.removeprefix("individual-").replace("-", " ").capitalize() for name in SINGLE}
    plots = [{"url": name, "name": title} for name, title in sorted(titles.items(), key=lambda item: item[1])]
    return {"pages": [*MENU, *gpu], "plots": plots, "jupyter": False}


def _groups(scheduler: Any, extra: dict[str, Any], doc: Any) -> None:
    """Draw the graph of groups: of each step and iteration with those that it reads from.

    Dask's own page lays groups out in an order in which some come before those that they read from, or have gone; then
    it fails.
    """
    from distributed.dashboard.components import add_periodic_callback
    from distributed.dashboard.components.scheduler import BOKEH_THEME, TaskGroupGraph, env

    class Groups(TaskGroupGraph):  # type: ignore[misc]  # here, since it needs Bokeh
        def update_layout(self) -> tuple[dict[str, Any], dict[str, Any]]:
            return layout_of_groups(
                {name: [one.name for one in group.dependencies] for name, group in self.scheduler.task_groups.items()}
            )

        def update(self) -> None:
            super().update()
            names = list(self.scheduler.task_groups)
            if len(names) == len(self.nodes_source.data["name"]):
                self.nodes_source.data["name"] = names  # Dask shows the step alone

    graph = Groups(scheduler, sizing_mode="stretch_both")
    graph.root.text(
        "x", "y_start", "name", y_offset=4, text_align="center", text_baseline="top", text_font_size="12px",
        source=graph.nodes_source,
    )  # fmt: skip  # Dask shows names only to whoever points at a box
    doc.title = "Dask: groups of tasks"
    graph.update()
    add_periodic_callback(doc, graph, 1000)
    doc.add_root(graph.root)
    doc.template = env.get_template("simple.html")
    doc.template_variables.update(extra)
    doc.theme = BOKEH_THEME


def layout_of_groups(reads: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return where each group stands, right of all that it reads from, and its arrows, as Dask's page takes them.

    Parameters
    ----------
    reads
        For each group, the oldest first, those that it reads from. Those that are not there are left out, and so are
        younger ones: two groups may read from each other.
    """
    places: dict[str, dict[str, int]] = {}
    arrows: dict[str, Any] = {}
    taken: set[tuple[int, int]] = set()
    for name, all_read in reads.items():
        older = {one for one in all_read if one in places}
        x = max((places[one]["x"] + 1 for one in older), default=0)
        y = max((places[one]["y"] for one in older), default=0)
        while (x, y) in taken:
            y += 1
        taken.add((x, y))
        places[name] = {"x": x, "y": y}
        arrows[name] = {"nstart": older, "nend": [name] * len(older)}
    return places, arrows


def _templates() -> Path:
    from distributed.http import utils

    return Path(utils.dirname) / "templates"


class _OwnStyle(template.Loader):
    """Reads Dask's templates without what they would load from other hosts: pages must work without a network."""

    def _create_template(self, name: str) -> template.Template:
        text = (Path(self.root) / name).read_text()
        return template.Template(re.sub(r"<(link|script)[^>]*https?://[^>]*>", "", text), name=name, loader=self)
