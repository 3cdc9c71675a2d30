"""A toy job in one file: one number for each image. Nothing else in cloudem knows of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from cloudem.cloud.planning.work import Size, Stage, Work
from cloudem.jobs.base import Context
from cloudem.jobs.mapping import Found, Items, MapJob, split
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import STANDARD, Section, histogram_of

DEVIATION = Column("deviation", "deviation", form=".3f", meaning="standard deviation of the pixels of an image")


def measure(part: range, particles: str, pause_s: float) -> Found:
    from cloudem.io.particle_store import open_particles

    images = open_particles(particles).read_images(np.arange(part.start, part.stop))
    time.sleep(pause_s)
    return {"deviation": images.std(axis=(1, 2), dtype=np.float64)}


class Brightness(MapJob):
    """Declaration of ``cloudem brightness``."""

    name: ClassVar[str] = "brightness"
    summary: ClassVar[str] = "Measure how much the pixels of each image vary."
    examples: ClassVar[tuple[str, ...]] = ("cloudem brightness --particles particles.zarr --out brightness",)
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("curves",)}
    sections: ClassVar[tuple[Section, ...]] = (histogram_of("deviation", DEVIATION, "Brightness"), *STANDARD)

    particles: Place = parameter(meaning="particle store", reads=("particles",))
    group_size: int = parameter(50, meaning="images per task", ge=1)
    pause_s: float = parameter(0.0, meaning="pause of each task", ge=0)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        size = sizes["particles"]
        cpu_s = 1e-8 * size.pixels + self.pause_s / self.group_size
        images = Stage(
            "measure", size.count, "images", cpu_s, parallel=True, task_items=self.group_size,
            task_bytes=8 * self.group_size * size.pixels, read_bytes=2.0 * size.pixels,
        )  # fmt: skip
        return Work((images,), base_bytes=200 << 20, stored_bytes=8 * size.count)

    def items(self, context: Context) -> Items:
        from cloudem.io.particle_store import open_particles

        parts = split(len(open_particles(self.particles)), self.group_size)
        return Items(parts, [len(part) for part in parts], measure, (self.particles, self.pause_s), "measure", "images")

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        return found, {"median": float(np.median(found["deviation"]))}
