"""``cloudem refine3d``: gold-standard refinement of poses and map from particles and a starting reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from cloudem.cloud.planning.work import Size, Work
from cloudem.jobs.base import Context, Job, Kind, Place, parameter
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column

if TYPE_CHECKING:
    from cloudem.jobs.refine3d.duration import Alignment


class Refine3D(Job):
    """Declaration of ``cloudem refine3d``."""

    name: ClassVar[str] = "refine3d"
    summary: ClassVar[str] = "Refine poses and map from particles and a starting reference, in two independent halves."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem refine3d --particles particles.zarr --reference start.mrc --symmetry C1 --diameter-A 320 --out refine",
        "cloudem refine3d --particles particles.zarr --reference start.mrc --symmetry O --diameter-A 140"
        " --initial-resolution-A 25 --out refine",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles", "halves", "volume", "mask", "curves")}
    columns: ClassVar[tuple[Column, ...]] = (
        ITERATION,
        Column("resolution_A", "resolution", "Å", ".2f"),
        Column("limit_A", "limit", "Å", ".2f", meaning="the finest resolution that the iteration scores"),
        Column(
            "moving",
            "moving",
            "%",
            ".1f",
            100,
            "images whose pose changed by more than a quarter of its standard error",
        ),
        Column("images_per_s", "images/s", form=",.0f"),
        SECONDS,
        RECEIVED,
    )

    particles: Place = parameter(
        meaning="particle store, or the results of a job that hold particles", reads=("particles",)
    )
    reference: Place = parameter(
        meaning="starting map, an MRC file; resampled to the particles' box and pixel size", reads=("volume",)
    )
    symmetry: str = parameter("C1", meaning="point group: C<n>, D<n>, T, O, I, I1 to I4, set as in RELION")
    diameter_A: float = parameter(meaning="diameter of a circle that holds the particle", gt=0)
    mask: Place | None = parameter(
        None, meaning="solvent mask, an MRC file in 0..1; estimated from each half-map if absent", reads=("mask",)
    )
    initial_resolution_A: float = parameter(
        0.0, meaning="resolution to which the reference is trusted; 0 for a seventh of the diameter, 15 to 40 Å", ge=0
    )
    max_resolution_A: float = parameter(0.0, meaning="finest resolution ever scored; 0 for no limit but Nyquist", ge=0)
    search_step_deg: float = parameter(
        7.5, meaning="finest distance between directions of the grid search", gt=0.5, le=30
    )
    shift_range_A: float = parameter(
        0.0, meaning="furthest shift from the box centre in the first search; 0 for 6 % of the diameter", ge=0
    )
    candidates: int = parameter(10, meaning="poses of each image refined after a search", ge=1, le=200)
    poses: int = parameter(4, meaning="most poses of each image inserted, weighted by their probability", ge=1, le=64)
    max_iterations: int = parameter(25, meaning="iterations after which it stops even if not converged", ge=1)
    local: bool = parameter(False, meaning="start from the poses of the particle table instead of searching")
    correct_scale: bool = parameter(True, meaning="fit the intensity scale of each micrograph")
    ignore_contrast: bool = parameter(False, meaning="go on though the images look like the negative of the reference")
    group_size: int = parameter(500, meaning="images of one task, at least; a lost worker costs what it held", ge=50)
    skip_damaged: bool = parameter(
        False, meaning="leave out the particles of missing or damaged shards instead of stopping"
    )
    seed: int = parameter(0, meaning="seed of half-sets and phase randomisation")
    report: bool = parameter(True, meaning="write report.html")
    restart: bool = parameter(
        False, meaning="begin anew although there are results of an earlier run; leave it out to resume"
    )

    @property
    def start_resolution(self) -> float:
        """Resolution in Å to which the reference is trusted."""
        return self.initial_resolution_A or min(max(self.diameter_A / 7, 15.0), 40.0)

    def alignment(self, particles: Size) -> Alignment:
        """Return what is done with particles of that size."""
        from cloudem.jobs.refine3d.duration import Alignment
        from cloudem.jobs.refine3d.run import settings_from

        settings = settings_from(self, particles.box, particles.pixel_size)
        where = (particles.count, particles.box, self.symmetry, self.group_size, particles.remote)
        return Alignment(*where, settings, self.local, pixel_size=particles.pixel_size)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from box and particles."""
        from cloudem.jobs.refine3d.duration import alignment_work

        return alignment_work(self.alignment(sizes["particles"]))

    def run(self, context: Context) -> None:
        """Refine until the data say that it has converged."""
        from cloudem.jobs.refine3d.run import refine

        refine(self, context)
