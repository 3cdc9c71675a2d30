"""Jobs that make a table of particles from another one in a single go: no images are copied."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.jobs.base import Context, Job
from cloudem.jobs.provenance import job_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudem.io.particle_store import ParticleStore
    from cloudem.model.particles import Particles


class MadeTable(NamedTuple):
    """What such a job makes.

    Attributes
    ----------
    particles
        The table, with a column ``store_row``.
    store
        Whose images they are.
    arrays, attributes
        What else the result holds.
    groups
        Further groups beside it: arrays and attributes by name.
    """

    particles: Particles
    store: ParticleStore
    arrays: dict[str, NDArray[Any]]
    attributes: dict[str, Any]
    groups: Mapping[str, tuple[dict[str, NDArray[Any]], dict[str, Any]]] = {}


class TableResult(Job):
    """A job that writes a table of particles with a report; short enough to begin anew when it was interrupted."""

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def check_out(self) -> None:
        """Check that there are no results in ``OUT``."""
        from cloudem.jobs.checks import refuse_any_results

        refuse_any_results(self.out, self.name)

    def tidy(self, context: Context) -> None:
        """Write the report, if that is missing."""
        from cloudem.jobs.report import complete_report

        complete_report(context.url)

    @abstractmethod
    def made(self, context: Context) -> MadeTable:
        """Return the table and what belongs to it."""

    def run(self, context: Context) -> None:
        """Write the table, the group ``result``, and the report."""
        from cloudem.jobs.report import run_attributes, write_report
        from cloudem.jobs.results import write_particles_of

        began = time.monotonic()
        made = self.made(context)
        context.write("", {}, {"kind": "result", **job_record(self)})
        for name, (arrays, said) in made.groups.items():
            context.write(name, arrays, said)
        write_particles_of(context, made.particles, made.store)
        attributes = {
            "box": made.store.box,
            "pixel_size_A": made.store.pixel_size,
            "particle_count": len(made.particles),
            "wall_s": time.monotonic() - began,
            "cpu_s": sum(timing.cpu_s for timing in context.progress.timings()),
            **run_attributes(context.progress, context.executor.traffic()),
        }
        context.write("result", made.arrays, {**attributes, **made.attributes})
        context.progress.message(f"report: {write_report(context.url)}")


def table_work(name: str, size: Size, rows: int) -> Work:
    """Return the work of a job that writes a table of so many rows, and that reads no images."""
    stage = Stage(name, rows, "rows", cpu_s=4e-6)
    makes = {"": replace(size, count=rows)}
    return Work((stage,), base_bytes=300 * MIB + 1000 * (size.count + rows), stored_bytes=120 * rows, makes=makes)
