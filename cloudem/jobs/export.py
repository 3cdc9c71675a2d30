"""``cloudem export``: a particle store or the result of a job becomes files for RELION and everyone else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.provenance import job_record

VOXEL_S, PIXEL_S = 2.0e-7, 4.5e-8
"""A voxel of a map, and a pixel of an image: CPU-seconds, one run."""


class Export(Job):
    """Declaration of ``cloudem export``."""

    name: ClassVar[str] = "export"
    summary: ClassVar[str] = "Export results or a particle store to MRC and STAR files that RELION can read."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem export refine --out files",
        "cloudem export particles.zarr --out files",
        "cloudem export ctf --out files",
        "cloudem export s3://bucket/refine --out s3://bucket/files",
        "cloudem export refine --out gs://bucket/files",
    )
    keeps_log: ClassVar[bool] = False
    new_out: ClassVar[bool] = True
    out_anywhere: ClassVar[bool] = True
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {
        "": ("files",),
        "particles.star": ("table",),
        "map.mrc": ("volume",),
        "mask.mrc": ("mask",),
        "local_resolution.mrc": ("volume",),
        "half1.mrc": ("halves", "volume"),
        "half2.mrc": ("volume",),
    }
    leaves: ClassVar[tuple[str, ...]] = (
        *makes, "export.json", "fsc.star", "local_resolution.cxc", "class_averages.mrcs", "particles.mrcs",
        "micrographs_ctf.star", "micrographs.star", "micrographs",
    )  # fmt: skip

    source: Place = parameter(
        meaning="results of a job, or a particle store",
        positional=True,
        reads=("particles", "volume", "halves", "micrographs"),
    )
    out: Place = parameter(meaning="new folder for the files, or its URL (s3://, gs://, sftp://, …)")
    stack: bool = parameter(False, meaning="also export the images of a result, with their original grey values")
    particles: Place | None = parameter(
        None, meaning="particle store that the result was made from, if it has moved", reads=("particles",)
    )

    def size_of(self, name: str) -> Size | None:
        """Return the box of what is exported, and the number of its particles."""
        from cloudem.io.storage.groups import read_attributes

        if name == "source" and (found := read_attributes(self.source, "result")) is not None:
            box = int(found.get("box", 0))
            return Size(int(found.get("particle_count") or 0), (box, box), float(found.get("pixel_size_A") or 0.0))
        return None

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs: of a result's images only if they are asked for."""
        size = sizes.get("source", Size())
        voxels = size.box**3
        images = size.count if self.stack or size.subtracted or self._computes() else 0
        stages = (
            Stage("maps", cpu_s=VOXEL_S * voxels, written_bytes=16.0 * voxels),
            Stage("images", images, "images", cpu_s=PIXEL_S * size.pixels, written_bytes=4.0 * size.pixels),
        )
        return Work(stages, base_bytes=380 * MIB + 40 * voxels + 2000 * size.count, result_bytes=16 * voxels)

    def _computes(self) -> bool:
        from cloudem.io.exporting import is_subtracted

        return is_subtracted(self.source)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check that there is something to export."""
        from cloudem.io.exporting import check_source

        if not inputs.awaited(self.source):
            check_source(self.source, stack=self.stack, particles=self.particles)
            if self._computes() and not self.stack:
                warn("images are written, too, since part of them is subtracted: they are nowhere else")

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what lies beside the files, which are there as a whole or not at all."""
        from cloudem.io.exporting import read_record

        return read_record(self.out)

    def run(self, context: Context) -> None:
        """Write the files."""
        from cloudem.io.exporting import export
        from cloudem.jobs.dataset import open_dataset

        with context.progress.stage("export") as stage:
            names = export(
                self.source,
                context.url,
                stack=self.stack,
                particles=self.particles,
                on_progress=stage.advance,
                guard=context.check,
                record=job_record(self),
                say=context.progress.warning,
                computed=lambda url: open_dataset(url).images,
            )
        context.progress.message(f"wrote {', '.join(names)} into {context.url}")
