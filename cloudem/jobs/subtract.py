"""``cloudem subtract``: images without the part of a map that lies outside of a mask, when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import MissingInputError, ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.table_result import MadeTable, TableResult
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, Section, histogram_of

if TYPE_CHECKING:
    from cloudem.io.particle_store import ParticleStore

IMAGE_PIXEL_S, VOXEL_S = 110e-9, 2e-7
"""A pixel of an image, and a voxel of the maps: CPU-seconds, measured."""


class Subtract(TableResult):
    """Declaration of ``cloudem subtract``."""

    name: ClassVar[str] = "subtract"
    summary: ClassVar[str] = "Subtract what lies outside of a mask from images, whenever they are read."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem subtract refine --mask domain.mrc --out without",
        "cloudem subtract expanded --halves refine --mask unit.mrc --out without",
        "cloudem refine3d --particles without --reference refine --local --mask domain.mrc --diameter-A 90"
        " --prior-deg 10 --out domain",
        "cloudem export without --out files",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles",)}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("maps:slices_and_projections", {"title": "What is subtracted", "mask": "the mask of what stays"}),
        histogram_of(
            "subtract_scale", Column("subtract_scale", "factor", form=".3f"), "Factor on what is subtracted",
            "Of each image: what fits the images of its optics group best, times its own intensity.",
        ),
        COST, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    particles: Place = parameter(
        meaning="results of refine3d or reconstruct, or particles that were made of them",
        positional=True,
        reads=("particles",),
    )
    halves: Place | None = parameter(
        None, meaning="results whose half-maps are subtracted; if none, PARTICLES", reads=("halves",)
    )
    mask: Place = parameter(
        meaning="what stays in the images (MRC file, or results of a job; values 0 to 1)", reads=("mask",)
    )
    group_size: int = parameter(500, meaning="minimum number of images per task", ge=50)

    @property
    def maps(self) -> str:
        """Results whose half-maps are subtracted."""
        return self.halves or self.particles

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check poses, half-sets, half-maps and mask against each other."""
        from cloudem.io.storage.groups import holds_arrays
        from cloudem.io.storage.location import contents
        from cloudem.jobs.checks import check_images, check_mask
        from cloudem.jobs.dataset import require_finite
        from cloudem.jobs.postprocess import halves_grid
        from cloudem.jobs.subtract_tasks import check_same_halves

        own = self.halves is None and not inputs.awaited(self.particles) and contents(self.particles)
        if own and not holds_arrays(self.particles, "result", "half1"):
            raise MissingInputError(
                f"{self.particles} contains no half-maps; name the results that its particles come from with --halves"
            )
        grid = None if inputs.awaited(self.maps) else halves_grid(self.maps)
        check_mask(self.mask, inputs)
        store = check_images(self.particles, inputs, warn, skip_damaged=False)
        if store is None:
            return
        require_finite(store.particles, "rot", "tilt", "psi")
        require_whole(store)
        if grid is not None:
            from cloudem.jobs.maps import Grid

            images = Grid(store.box, store.pixel_size)
            if not grid.same_voxels(images):
                raise ParameterError(
                    f"the half-maps of {self.maps} are {grid}, the images {images}; give half-maps made of these images"
                )
            check_same_halves(store, self.maps)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs: all images are read once."""
        size = sizes["particles"]
        scale = Stage(
            "scale", size.count, "images", cpu_s=IMAGE_PIXEL_S * size.pixels, parallel=True, task_items=self.group_size,
            task_bytes=128 * 60 * size.pixels, read_bytes=2.0 * size.pixels,
        )  # fmt: skip
        voxels = size.box**3
        maps = Stage("maps", cpu_s=VOXEL_S * voxels, read_bytes=8.0 * voxels, written_bytes=16.0 * voxels)
        return Work(
            (maps, scale),
            base_bytes=400 * MIB + 120 * voxels + 1200 * size.count,
            stored_bytes=16 * voxels + 200 * size.count,
            makes={"": replace(size, subtracted=True)},
        )

    def made(self, context: Context) -> MadeTable:
        """Make the maps that are subtracted, and find the factor for each image."""
        from cloudem.jobs.subtract_tasks import Subtracting, subtracted_table

        return subtracted_table(Subtracting(self.particles, self.maps, self.mask, self.group_size), context)


def require_whole(store: ParticleStore) -> None:
    """Refuse particles of which something is subtracted already, and those without half-sets."""
    if store.model is not None:
        raise ParameterError(
            f"part of the images of {store.url} is subtracted already; give the particles from before, and a mask of "
            "all that is to stay"
        )
    halves = store.particles.get("half_set", 0)
    if ((halves != 1) & (halves != 2)).any():
        raise ParameterError(
            f"particles of {store.url} have no half-set, so that none of the half-maps is their own; give the results "
            "of refine3d or reconstruct"
        )
