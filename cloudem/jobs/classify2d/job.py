"""``cloudem classify2d``: class averages from particles of which nothing is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.iterative import Iterations, IterativeJob
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column
from cloudem.report.declaration import COST, ITERATIONS, NETWORK, PARAMETERS, PROVENANCE, Section

if TYPE_CHECKING:
    from cloudem.algorithms.classes import ClassSettings, ClassState

POSE_S = 0.9e-9
"""Scoring one pose of an image (class, side, rotation, shift) on one ring, and back: CPU-seconds, measured."""

IMAGE_PIXEL_S = 6e-9
"""Reading and transforming a pixel of an image: CPU-seconds, measured."""

PER_CLASS = 500
"""Images of a pass for each class, before the last one, which takes all."""

CLASSES = (
    Column("class_members", "images", form=",d"),
    Column("class_share", "share", "%", ".1f", 100),
    Column("class_resolution_A", "resolution", "Å", ".1f", meaning="where halves of the class correlate by 0.5"),
    Column("class_evidence", "evidence", form=".1f", meaning="median evidence of its images against noise"),
)  # fmt: skip
"""Of the table of classes."""


class Classify2D(IterativeJob):
    """Declaration of ``cloudem classify2d``."""

    name: ClassVar[str] = "classify2d"
    summary: ClassVar[str] = "Sort particles into classes of like images, and average them, without any reference."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem classify2d --particles particles.zarr --diameter-A 180 --out classes",
        "cloudem classify2d --particles particles.zarr --diameter-A 180 --classes 100 --max-resolution-A 10"
        " --out classes",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles", "classes")}
    columns: ClassVar[tuple[Column, ...]] = (
        ITERATION,
        Column("limit_A", "limit", "Å", ".1f", meaning="the finest resolution that images are compared on"),
        Column("images", "images", form=",d", meaning="images that the iteration looked at"),
        Column("evidence", "evidence", form=".2f", meaning="mean evidence of images against noise, a logarithm"),
        Column("classes_in_use", "in use", form=".1f", meaning="classes, counted by their shares of the images"),
        Column("moved", "moved", "%", ".1f", 100, "images that changed their class since the last pass"),
        SECONDS,
        RECEIVED,
    )  # fmt: skip
    sections: ClassVar[tuple[Section, ...]] = (
        Section("classes:sheet"), COST, ITERATIONS, NETWORK, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    particles: Place = parameter(
        meaning="particle store, or the results of a job that hold particles", reads=("particles",)
    )
    diameter_A: float = parameter(meaning="diameter of a circle that contains the particle", gt=0)
    classes: int = parameter(
        0, meaning="number of classes; 0: a hundredth of the number of particles, between 10 and 100", ge=0, le=500
    )
    max_resolution_A: float = parameter(
        0.0,
        meaning="finest resolution that images are compared on; 0: a fifteenth of the diameter, 8 Å or coarser",
        ge=0,
    )
    shift_range_A: float = parameter(0.0, meaning="largest shift from the box centre; 0: 8 % of the diameter", ge=0)
    mirrors: bool = parameter(True, meaning="put mirror images into one class: they are views from opposite sides")
    group_size: int = parameter(500, meaning="minimum number of images per task", ge=50)
    skip_damaged: bool = parameter(
        False, meaning="skip particles whose shards are missing or damaged, instead of stopping"
    )
    seed: int = parameter(0, meaning="random seed of the first classes and of the order of images")
    report: bool = parameter(True, meaning="write report.html")

    def number_of_classes(self, particles: int) -> int:
        """Return how many classes so many particles are sorted into."""
        return self.classes or min(max(particles // 100, 10), 100)

    def settings(self, particles: int, box: int, pixel_size: float) -> ClassSettings:
        """Turn Å into pixels and rings, and check them against the images, there or to come."""
        from cloudem.algorithms.classes import SEEDS, ClassSettings
        from cloudem.jobs.checks import check_diameter

        length, diameter = box * pixel_size, self.diameter_A
        check_diameter(self.diameter_A, box, pixel_size)
        classes = self.number_of_classes(particles)
        if particles and particles < 2 * classes:
            raise ParameterError(
                f"{particles:,} particles are too few for {classes} classes; use --classes {max(particles // 20, 1)}"
            )
        finest = self.max_resolution_A or max(diameter / 15, 8.0)
        last = min(max(int(length / finest), 6), box // 2 - 4)
        return ClassSettings(
            box=box,
            pixel_size=pixel_size,
            radius=diameter / 2 / pixel_size,
            classes=classes,
            first_limit=min(max(round(5 * length / diameter), 4), last),
            last_limit=last,
            shift_range=(self.shift_range_A or 0.08 * diameter) / pixel_size,
            batch=min(max(SEEDS * classes, 200), max(particles, 1)),
            subset=min(PER_CLASS * classes, max(particles, 1)),
            mirrored=self.mirrors,
            most_iterations=self.max_iterations,
        )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check table and shards."""
        from cloudem.jobs.checks import check_images

        store = check_images(self.particles, inputs, warn, skip_damaged=self.skip_damaged)
        if store is not None:
            self.settings(len(store), store.box, store.pixel_size)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from box, particles and classes."""
        from cloudem.algorithms.classes import BATCHES, MOST_PASSES
        from cloudem.algorithms.marginal import ROUGH_STEP, SHIFT_STEP
        from cloudem.jobs.subtracted import subtracting_seconds

        size = sizes["particles"]
        s = self.settings(size.count, size.box, size.pixel_size)
        shifts = max(1.0, 2 * math.pi / math.sqrt(3) * (s.shift_range / (SHIFT_STEP * s.box / s.last_limit)) ** 2)
        angles = 4 * math.pi * s.last_limit * s.radius / s.box
        read_s = IMAGE_PIXEL_S * s.box**2 + subtracting_seconds(size)
        image_s = read_s + POSE_S * s.classes * shifts * angles * 2 * s.last_limit
        image_bytes = 2.0 * s.box**2
        sums = 8 * 2 * s.classes * s.last_limit * angles / 2 * 10
        task = round(4 * 128 * s.box**2 * 6 + 16 * 64 * angles * s.classes * 8 + 3 * sums / 10)
        # images with all shifts: these lie further apart in batches and the first pass, and later ones try seven
        rough, near = (SHIFT_STEP / ROUGH_STEP) ** 2, min(7 / shifts, 1.0)
        again = MOST_PASSES / 2 * s.subset + min(size.count, s.subset)
        seen = rough * (BATCHES * s.batch + s.subset) + near * again + max(size.count - s.subset, 0)
        sorting = Stage(
            "classify", round(seen), "images", image_s, parallel=True, task_items=self.group_size, task_bytes=task,
            read_bytes=image_bytes, spread=2.5,
        )  # fmt: skip
        noise = replace(sorting, name="noise", items=min(size.count, 1000), cpu_s=read_s)
        return Work(
            (noise, sorting),
            base_bytes=400 * MIB + round(4 * sums),
            stored_bytes=round(2 * sums) + 4 * s.classes * s.box**2 + 120 * size.count,
            result_bytes=4 * s.classes * s.box**2,
            makes={"": size},
            notes=(f"{size.count:,} particles of {s.box} px in {s.classes} classes",),
        )

    def iterations(self, context: Context, *, resumes: bool) -> Iterations[ClassState]:
        """Open the particles."""
        from cloudem.jobs.classify2d.run import Classification

        return Classification(self, context, resumes=resumes)
