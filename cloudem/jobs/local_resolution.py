"""``cloudem local_resolution``: the resolution of a map around each voxel, from its half-maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.map_result import MapResult
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, MAP, PARAMETERS, PROVENANCE, RESOLUTION, Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOXEL_S = {"bands": 9.0e-7, "spheres": 1.5e-6}
"""A voxel of a map, the report included: CPU-seconds."""

LEAST_STEP = 6
"""Voxels: least distance of spheres, so that one is that wide and has a shell or two."""

LOCAL = Section("local:slices_and_histogram")


class LocalResolution(MapResult):
    """Declaration of ``cloudem local_resolution``."""

    name: ClassVar[str] = "local_resolution"
    summary: ClassVar[str] = "Measure the resolution of a map around each voxel, from its half-maps."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem local_resolution refine --out local",
        "cloudem local_resolution run_half1_unfil.mrc --mask mask.mrc --out local",
        "cloudem local_resolution refine --definition spheres --threshold 0.5 --out local",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("volume", "mask", "curves")}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (LOCAL, RESOLUTION, MAP, COST, PARAMETERS, PROVENANCE)

    halves: Place = parameter(
        meaning="results of refine3d or reconstruct, or the first half-map (MRC file), unfiltered and without mask",
        positional=True,
        reads=("halves",),
    )
    half2: Place | None = parameter(
        None,
        meaning="second half-map (MRC file); if none, the first one's name with half1 replaced by half2",
        reads=("volume",),
    )
    mask: Place | None = parameter(
        None,
        meaning="soft mask (MRC file, or results of a job) inside which voxels are counted; if none, that of the "
        "results, or one estimated from the mean of the half-maps",
        reads=("mask",),
    )
    pixel_size_A: float | None = parameter(None, meaning="pixel size, overriding that in the files", gt=0)
    threshold: float = parameter(
        0.143, meaning="agreement of the half-maps below which a voxel is not resolved", gt=0, lt=1
    )
    definition: Literal["bands", "spheres"] = parameter(
        "bands",
        meaning="local agreement in windows that shrink with the wavelength; or the FSC inside moving soft spheres, as "
        "RELION defines it",
    )
    sphere_step_A: float = parameter(
        25.0, meaning="distance of spheres; their radius is half of it, their soft edge as wide as it", gt=0
    )
    seed: int = parameter(0, meaning="random seed for phase randomisation", ge=0)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check half-maps and mask by their headers, and that spheres hold something and fit in."""
        from cloudem.errors import ParameterError
        from cloudem.jobs.postprocess import check_halves, halves_grid

        check_halves(inputs, self.halves, self.half2, self.mask, self.pixel_size_A)
        if self.definition == "spheres" and not inputs.awaited(self.halves):
            grid = halves_grid(self.halves, self.half2, self.pixel_size_A)
            least, most = LEAST_STEP * grid.pixel_size, grid.box * grid.pixel_size / 2
            if not least <= self.sphere_step_A <= most:
                raise ParameterError(
                    f"--sphere-step-A {self.sphere_step_A:g}: spheres of these maps need {least:.3g} to {most:.4g} Å, "
                    f"{LEAST_STEP} voxels to half of the box; 25 is RELION's"
                )

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the half-maps."""
        size = sizes["halves"]
        stage = Stage("local resolution", cpu_s=VOXEL_S[self.definition] * size.pixels, read_bytes=8.0 * size.pixels)
        base = 300 * MIB + 120 * size.pixels
        return Work((stage,), base, stored_bytes=16 * size.pixels, result_bytes=8 * size.pixels, makes={"": size})

    def made(self, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Measure it, and state how it is distributed inside the mask."""
        import numpy as np

        from cloudem.algorithms.local_resolution import local_resolution, spherical_resolution
        from cloudem.algorithms.resolution import masked_fsc, resolution_at
        from cloudem.errors import InconsistentDataError
        from cloudem.io.storage.groups import holds_arrays
        from cloudem.jobs.map_result import even_box
        from cloudem.jobs.postprocess import mask_of_halves, read_halves
        from cloudem.jobs.results import suspicious

        progress = context.progress
        one, two = (even_box(half) for half in read_halves(self.halves, self.half2, self.pixel_size_A))
        pixel_size, box = one.pixel_size, len(one.data)
        place = self.mask
        if place is None and holds_arrays(self.halves, "result", "mask"):
            place = self.halves
        mask = mask_of_halves(place, self.halves, self.pixel_size_A, one, two, context)
        if not (mask > 0.5).any():
            raise InconsistentDataError(f"{place} is nowhere above 0.5, so no voxel counts; give a mask from 0 to 1")
        with progress.stage("local resolution"):
            found = local_resolution(one.data, two.data, pixel_size, self.threshold)
            resolution = found.resolution
            if self.definition == "spheres":
                given = (one.data, two.data, mask, pixel_size, self.threshold, self.sphere_step_A, self.seed)
                resolution = spherical_resolution(*given)
            curves = masked_fsc(one.data, two.data, mask, self.seed)
        whole = resolution_at(curves.corrected, box, pixel_size)
        inside = resolution[mask > 0.5]
        reached = np.percentile(inside, (5, 50, 95))
        progress.message(
            f"local resolution {reached[1]:.2f} Å (median inside the mask; 5 % of it {reached[0]:.2f} Å and finer, 5 % "
            f"{reached[-1]:.2f} Å and coarser); FSC of the whole mask 0.143 at {whole:.2f} Å"
        )
        if line := suspicious(curves.corrected, box // 2 - 1, box, pixel_size):
            progress.warning(line)
        if empty_share(one.data) > MOST_EMPTY or empty_share(two.data) > MOST_EMPTY:
            progress.warning(
                "the half-maps are exactly zero in places, so they seem to have been masked: maps that share a mask "
                "agree at its edge, and what is found there is too fine; give them as they were before that"
            )
        if abs(reached[0] - 2 * pixel_size) < 0.01 * pixel_size:
            progress.warning(
                "part of the map is resolved to Nyquist: what it would reach with smaller pixels is not known"
            )
        attributes: dict[str, Any] = {
            "pixel_size_A": pixel_size,
            "origin_A": one.origin,
            "resolution_A": whole,
            "local_median_A": float(reached[1]),
            "local_threshold": self.threshold,
            "notes": [NOTE],
        }
        arrays: dict[str, NDArray[Any]] = {
            "map": found.filtered,
            "mask": mask,
            "local_resolution": resolution,
            **curves.by_name(),
        }
        return arrays, attributes


def empty_share(volume: NDArray[Any]) -> float:
    """Return the share of exact zeros in a sphere of 0.4 box sides: corners may be empty in any map."""
    from cloudem.algorithms.mask import soft_sphere

    return float((volume[soft_sphere(len(volume), 0.4 * len(volume), 0.0) > 0.5] == 0).mean())


MOST_EMPTY = 0.05
"""Share of exact zeros above which half-maps are said to be masked."""

NOTE = (
    "The map that is shown is the mean of the half-maps, each band filtered by their local agreement; it is not "
    "sharpened. Outside the mask, values say little. A window is about three waves wide, and so is the edge between a "
    "rigid and a disordered part."
)
