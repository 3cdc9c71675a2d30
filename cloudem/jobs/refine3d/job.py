"""``cloudem refine3d``: gold-standard refinement of poses and map from particles and a starting reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import Size, Work
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.iterative import Iterations, IterativeJob
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudem.algorithms.refinement import Settings, State
    from cloudem.jobs.refine3d.duration import Alignment


CIRCLE_LEAKAGE = 1
"""Scoring begins this many shells below the starting resolution: images are masked by a circle, which spreads what is
aligned, noise too, over the next two."""


class Refine3D(IterativeJob):
    """Declaration of ``cloudem refine3d``."""

    name: ClassVar[str] = "refine3d"
    summary: ClassVar[str] = "Refine poses and a map from particles and a starting map, with two independent half-sets."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem refine3d --particles particles.zarr --reference start.mrc --symmetry C1 --diameter-A 320 --out refine",
        "cloudem refine3d --particles particles.zarr --reference start.mrc --symmetry O --diameter-A 140"
        " --initial-resolution-A 25 --out refine",
        "cloudem refine3d --particles refine --reference refine --local --mask domain.mrc --diameter-A 90"
        " --prior-deg 10 --out domain",
        "cloudem refine3d --particles good --reference symmetry --symmetry auto --diameter-A 180 --out refine",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles", "halves", "volume", "mask", "curves")}
    changeable: ClassVar[frozenset[str]] = IterativeJob.changeable | {"skip_damaged"}
    beside_checkpoint: ClassVar[tuple[str, ...]] = ("references", "mask", "start")
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
        Column("prior_deg", "prior turn", "°", ".2f", meaning="standard deviation of turns about each axis"),
        Column("prior_A", "prior shift", "Å", ".2f", meaning="standard deviation of shifts along each axis"),
        Column("images_per_s", "images/s", form=",.0f"),
        SECONDS,
        RECEIVED,
    )

    particles: Place = parameter(
        meaning="particle store, or the results of a job that hold particles", reads=("particles",)
    )
    reference: Place = parameter(
        meaning="starting map (MRC file, or results of a job); resampled to the particles' box and pixel size",
        reads=("volume",),
    )
    reference_pixel_size_A: float | None = parameter(
        None, meaning="pixel size of the starting map, overriding that in its header", gt=0
    )
    symmetry: str = parameter(
        "C1",
        meaning="point group: C<n>, D<n>, T, O, I, I1 to I4, oriented as in RELION; auto: that of the results that are "
        "the reference",
    )
    diameter_A: float = parameter(meaning="diameter of a circle that contains the particle", gt=0)
    mask: Place | None = parameter(
        None,
        meaning="solvent mask (MRC file, or results of a job; values 0 to 1); if none, estimated from each half-map",
        reads=("mask",),
    )
    initial_resolution_A: float = parameter(
        0.0, meaning="low-pass filter of the starting map; 0: a seventh of the diameter, between 15 and 40 Å", ge=0
    )
    max_resolution_A: float = parameter(0.0, meaning="finest resolution used for scoring; 0: Nyquist", ge=0)
    search_step_deg: float = parameter(7.5, meaning="finest angular step of the grid search", gt=0.5, le=30)
    shift_range_A: float = parameter(
        0.0, meaning="largest shift from the box centre in the first search; 0: 6 % of the diameter", ge=0
    )
    candidates: int = parameter(10, meaning="number of poses per image to refine after a search", ge=1, le=200)
    poses: int = parameter(
        8, meaning="maximum number of poses per image to insert, weighted by probability", ge=1, le=64
    )
    local: bool = parameter(
        False,
        meaning="refine the existing poses instead of searching for new ones; with a mask, about its centre of mass, "
        "and on what lies in it",
    )
    pivot_A: str | None = parameter(
        None,
        meaning="with --local, where poses turn about: x,y,z from the middle of the box; if none, the centre of mass "
        "of the mask",
    )
    prior_deg: float = parameter(
        0.0,
        meaning="with --local and a mask or pivot, standard deviation about each axis by which poses have turned from "
        "the existing ones; 0: found as it goes",
        ge=0,
        le=180,
    )
    prior_A: float = parameter(
        0.0,
        meaning="with --local and a mask or pivot, standard deviation along each axis by which they have shifted; 0: "
        "found as it goes",
        ge=0,
    )
    window_px: int = parameter(
        0, meaning="with --local, box about the pivot into which images are cut when they are read; 0: their own", ge=0
    )
    non_uniform: bool = parameter(
        False, meaning="filter the references from place to place, by the local agreement of the half-maps beyond 10 Å"
    )
    correct_scale: bool = parameter(True, meaning="fit the intensity of each micrograph and image")
    ignore_contrast: bool = parameter(
        False, meaning="continue even if the images look like the negative of the starting map"
    )
    group_size: int = parameter(
        500, meaning="minimum number of images per task; smaller tasks lose less work if a worker fails", ge=50
    )
    skip_damaged: bool = parameter(
        False, meaning="skip particles whose shards are missing or damaged, instead of stopping"
    )
    new_halves: bool = parameter(False, meaning="draw new half-sets instead of using those of the particle table")
    halves_by: Literal["particle", "micrograph"] = parameter(
        "particle", meaning="what is kept in one half-set: each particle (or helical tube), or each micrograph"
    )
    seed: int = parameter(0, meaning="random seed for half-sets and phase randomisation")
    report: bool = parameter(True, meaning="write report.html")

    @classmethod
    def particles_so_far(cls, url: str, pixel_size: float) -> Mapping[str, NDArray[Any]]:
        """Return best poses, half-sets and weights, from the checkpoint."""
        from cloudem.jobs.refine3d.so_far import poses_so_far

        return poses_so_far(url, pixel_size)

    @property
    def start_resolution(self) -> float:
        """Resolution in Å to which the reference is trusted."""
        return self.initial_resolution_A or min(max(self.diameter_A / 7, 15.0), 40.0)

    def settings(self, box: int, pixel_size: float) -> Settings:
        """Turn Å and degrees into pixels, shells and radians, and check them against the images, there or to come."""
        from cloudem.algorithms.refinement import Settings
        from cloudem.jobs.checks import check_diameter

        length = box * pixel_size
        check_diameter(self.diameter_A, box, pixel_size)
        last = box // 2 - 1
        if self.max_resolution_A:
            last = min(last, max(4, int(length / self.max_resolution_A)))
        return Settings(
            box=box,
            pixel_size=pixel_size,
            radius=self.diameter_A / 2 / pixel_size,
            first_limit=min(max(int(length / self.start_resolution - CIRCLE_LEAKAGE), 4), last),
            search_step=math.radians(self.search_step_deg),
            shift_range=(self.shift_range_A or 0.06 * self.diameter_A) / pixel_size,
            candidates=self.candidates,
            poses=self.poses,
            last_limit=last,
            most_iterations=self.max_iterations,
        )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check table, shards and headers, and what is in ``OUT``."""
        from cloudem.jobs.refine3d.check import check_refinement

        check_refinement(self, inputs, warn)

    def alignment(self, particles: Size) -> Alignment:
        """Return what is done with particles of that size."""
        from cloudem.jobs.refine3d.duration import Alignment

        box = self.window_px or particles.box
        settings = self.settings(box, particles.pixel_size)
        where = (particles.count, box, self._planned_symmetry(), self.group_size, particles.remote)
        return Alignment(
            *where,
            settings,
            self.local,
            pixel_size=particles.pixel_size,
            non_uniform=self.non_uniform,
            subtracted=particles.subtracted,
            image_box=particles.box,
        )

    def _planned_symmetry(self) -> str:
        """Return the point group that is planned for: C1, which costs most, where a step before is to find it."""
        from cloudem.io.storage.groups import has_group
        from cloudem.jobs.maps import AUTO, stated_symmetry

        if self.symmetry.strip().lower() == AUTO and not has_group(self.reference, "result"):
            return "C1"
        return stated_symmetry(self.symmetry, self.reference)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from box and particles."""
        from cloudem.jobs.refine3d.duration import alignment_work

        return alignment_work(self.alignment(sizes["particles"]))

    def iterations(self, context: Context, *, resumes: bool) -> Iterations[State]:
        """Open the particles."""
        from cloudem.jobs.refine3d.run import Refinement

        return Refinement(self, context, resumes=resumes)
