"""``cloudem classify3d``: states of a molecule, each with its map, from particles whose poses are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.iterative import Iterations, IterativeJob
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column
from cloudem.report.declaration import COST, NETWORK, PARAMETERS, PROVENANCE, Section
from cloudem.report.declaration import ITERATIONS as ITERATION_TABLE

if TYPE_CHECKING:
    from cloudem.algorithms.states import StateSettings
    from cloudem.jobs.classify3d.state import StatesState

LEAST_IMAGES = 400
"""Particles below which there is nothing to hold out."""

MOST_CLASSES = 8
"""Classes at most, where their number is to be found."""

FINEST_A, WAVES_ACROSS = 4.0, 36
"""Finest resolution that is compared by default, and how many of it lie across the particle."""

START_ACROSS = 15
"""Finest resolution on which the first classes are found, as a part of the diameter."""

IMAGE_PIXEL_S = 6e-9
"""Reading and transforming a pixel of an image: CPU-seconds, measured."""

SCORE_S, INSERT_S = 0.13e-6, 0.12e-6
"""Scoring and inserting one Fourier pixel of an image in one class: CPU-seconds, measured."""

SOLVE_S = 0.15e-6
"""By voxel and class, from sums to the next map of one part: CPU-seconds, measured."""

SEARCH_S, SEARCHES = 11e-3, 2.0
"""Searching an image in one class: CPU-seconds, measured; and how often that is usually done."""


class Classify3D(IterativeJob):
    """Declaration of ``cloudem classify3d``."""

    name: ClassVar[str] = "classify3d"
    summary: ClassVar[str] = "Sort particles with poses into states of the molecule, or find that there is one."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem classify3d --particles refine --classes 3 --diameter-A 180 --out classes3d",
        "cloudem classify3d --particles refine --diameter-A 180 --mask domain.mrc --resolution-A 6 --out classes3d",
        "cloudem select --particles classes3d --classes 2 --out second",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles", "classes")}
    beside_checkpoint: ClassVar[tuple[str, ...]] = ("best",)
    columns: ClassVar[tuple[Column, ...]] = (
        ITERATION,
        Column("classes", "classes", form="d"),
        Column("limit_A", "limit", "Å", ".1f", meaning="the finest resolution that images are compared on"),
        Column("images", "images", form=",d", meaning="images that the iteration compared"),
        Column("gain", "gain", form=".3f", meaning="evidence against one state, of images held out, a logarithm"),
        Column("gain_error", "±", form=".3f", meaning="standard error of the gain"),
        Column("moved", "moved", "%", ".1f", 100, "images that changed their class since the last pass"),
        SECONDS,
        RECEIVED,
    )  # fmt: skip
    sections: ClassVar[tuple[Section, ...]] = (
        Section("states:summary"), Section("states:maps"), Section("states:class_curves"), COST, ITERATION_TABLE,
        NETWORK, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    particles: Place = parameter(
        meaning="particle store with poses, usually the results of refine3d", reads=("particles",)
    )
    diameter_A: float = parameter(meaning="diameter of a circle that contains the particle", gt=0)
    classes: int = parameter(
        0,
        meaning=f"number of classes; 0: two, three and more, up to {MOST_CLASSES}, as long as the evidence rises",
        ge=0,
        le=50,
    )
    symmetry: str = parameter("C1", meaning="point group of all states: C<n>, D<n>, T, O, I, I1 to I4, as in RELION")
    mask: Place | None = parameter(
        None,
        meaning="where states may differ (MRC file, or results of a job; values 0 to 1); if none, anywhere",
        reads=("mask",),
    )
    resolution_A: float = parameter(
        0.0,
        meaning="finest resolution that images are compared on; 0: that of their consensus, no finer than "
        f"{FINEST_A:g} Å and a {WAVES_ACROSS}th of the diameter",
        ge=0,
    )
    search: bool = parameter(
        False, meaning="search the poses of all images anew in the map of each class, which takes several times longer"
    )
    max_iterations: int = parameter(60, meaning="decide after this many iterations on what was found by then", ge=4)
    group_size: int = parameter(500, meaning="minimum number of images per task", ge=50)
    skip_damaged: bool = parameter(
        False, meaning="skip particles whose shards are missing or damaged, instead of stopping"
    )
    new_halves: bool = parameter(False, meaning="draw new half-sets instead of using those of the particle table")
    halves_by: Literal["particle", "micrograph"] = parameter(
        "particle", meaning="what is kept in one half-set: each particle (or helical tube), or each micrograph"
    )
    seed: int = parameter(0, meaning="random seed of the images held out and of the first classes")
    report: bool = parameter(True, meaning="write report.html")

    def settings(self, particles: int, box: int, pixel_size: float) -> StateSettings:
        """Turn Å into pixels and shells, and check them against the images, there or to come."""
        from cloudem.algorithms.states import StateSettings, grid_box
        from cloudem.jobs.checks import check_diameter

        length, diameter = box * pixel_size, self.diameter_A
        check_diameter(diameter, box, pixel_size)
        if particles and particles < max(LEAST_IMAGES, 100 * self.classes):
            raise ParameterError(
                f"{particles:,} particles are too few: {max(LEAST_IMAGES, 100 * self.classes):,} are needed for "
                f"{self.classes or 'any'} classes, since some are held out and the others are cut into parts"
            )
        if self.classes == 1:
            raise ParameterError(
                "--classes 1 compares nothing; give 2 or more, or 0 to find the number (whether there is one state is "
                "answered in any case)"
            )
        finest = self.resolution_A or max(FINEST_A, diameter / WAVES_ACROSS)
        last = min(int(length / finest), box // 2 - 2)
        if last < 4:
            raise ParameterError(
                f"--resolution-A {self.resolution_A:g} is too coarse for a box of {length:.4g} Å; give "
                f"{length / 4:.0f} Å or finer"
            )
        grid = grid_box(box, last)
        return StateSettings(
            whole_box=box,
            box=grid,
            length=length,
            radius=diameter / 2 / length * grid,
            last_limit=last,
            start_limit=min(max(int(START_ACROSS * length / diameter), 4), last),
            classes=self.classes,
            most_iterations=self.max_iterations,
        )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check table, poses, shards, point group and mask."""
        from cloudem.jobs.checks import check_mask, check_particles
        from cloudem.model.symmetry import operators

        operators(self.symmetry)
        store = check_particles(self, inputs, warn, poses=True)
        if store is not None:
            self.settings(len(store), store.box, store.pixel_size)
        check_mask(self.mask, inputs)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from box, particles and classes."""
        from cloudem.algorithms.states import PARTS
        from cloudem.jobs.classify3d.state import PASSES
        from cloudem.jobs.subtracted import subtracting_seconds

        size = sizes["particles"]
        s, classes = self.settings(size.count, size.box, size.pixel_size), self.classes or 3
        pixels = math.pi / 2 * s.last_limit**2
        read_s = IMAGE_PIXEL_S * size.box**2 + subtracting_seconds(size)
        image_s = read_s + pixels * (SCORE_S * classes + INSERT_S * (1 + classes / 2))
        if self.search:
            image_s += SEARCH_S * classes * SEARCHES / (PASSES + 2)
        voxels, padded = s.box**3, (1.5 * s.box) ** 3 / 2
        task = round(128 * (24 * size.box**2 + 60 * pixels) + classes * 20 * padded)
        passes = 3.0 + (PASSES + 2) * (1 if self.classes else 2)
        sorting = Stage(
            "classify", size.count, "images", image_s, parallel=True, task_items=self.group_size, task_bytes=task,
            read_bytes=2.0 * size.box**2, passes=passes, spread=2.5,
        )  # fmt: skip
        solving = Stage("solve", round(passes) + 1, "times", SOLVE_S * voxels * classes * (PARTS + 3))
        whole = read_s + INSERT_S * size.box**2 / 2
        padded_whole = (3 * size.box // 2) ** 3 // 2
        final = replace(sorting, name="average", cpu_s=whole, passes=1.2, task_bytes=task + 18 * padded_whole)
        start = min(size.count, 10_000) * 8_000 * 4
        maps = 4 * size.box**3 * (4 * classes + 4)
        return Work(
            (sorting, solving, final),
            base_bytes=400 * MIB + start + round((20 * classes + 8) * (PARTS + 3) * padded) + maps,
            stored_bytes=maps + (PARTS + 2) * classes * 4 * voxels + 200 * size.count,
            result_bytes=maps,
            makes={"": size},
            notes=(f"{size.count:,} particles of {size.box} px, compared on a grid of {s.box} voxels",),
        )

    def iterations(self, context: Context, *, resumes: bool) -> Iterations[StatesState]:
        """Open the particles."""
        from cloudem.jobs.classify3d.run import StateClassification

        return StateClassification(self, context, resumes=resumes)
