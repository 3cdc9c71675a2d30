"""``cloudem import``: particles of RELION or cryoSPARC become a particle store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import Size, Stage, Work
from cloudem.errors import FormatError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.provenance import job_record

if TYPE_CHECKING:
    from cloudem.io.formats.sources import SourceTable

PIXEL_S = 4.5e-8
"""A pixel of an image: CPU-seconds, measured."""

_BASE_BYTES = 300 * 2**20
"""Python with its libraries."""

_BATCH_BYTES = 2 * 4 * 2**20 + 5 * 64 * 2**20
"""A batch of images as it was read and in single precision, a shard that is put together, and those on their way."""

_ROW_BYTES = 2000
"""A row of the table while it is read and written."""


class ImportParticles(Job):
    """Declaration of ``cloudem import``."""

    name: ClassVar[str] = "import"
    summary: ClassVar[str] = "Import particles from RELION (.star) or cryoSPARC (.cs) into a particle store."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem import particles.star --out particles.zarr",
        "cloudem import s3://bucket/project/particles.star --out s3://bucket/particles.zarr",
        "cloudem import J42/particles.cs --passthrough J42/passthrough_particles.cs --out particles.zarr",
    )
    keeps_log: ClassVar[bool] = False
    new_out: ClassVar[bool] = True
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles",)}
    leaves: ClassVar[tuple[str, ...]] = ("zarr.json", "images", "columns")

    particles: Place = parameter(
        meaning="RELION STAR file (3.0 to 5) or cryoSPARC .cs file; a path or URL (s3://, gs://, https://, …)",
        positional=True,
        reads=("table",),
    )
    out: Place = parameter(meaning="new particle store: a folder that does not exist yet, or s3://bucket/prefix")
    diameter_A: float | None = parameter(
        None,
        meaning="particle diameter; pixels outside it are used for normalisation; if none, 0.9 of the box",
        gt=0,
    )
    pixel_size_A: float | None = parameter(None, meaning="pixel size, overriding that in the file", gt=0)
    target_pixel_size_A: float | None = parameter(
        None, meaning="pixel size that images are resampled to; if none, the coarsest of the optics groups", gt=0
    )
    target_box_px: int | None = parameter(
        None, meaning="box of the resampled images, an even number; if none, the largest within all of them", gt=0
    )
    without_aberrations: bool = parameter(
        False, meaning="take particles without those aberrations that cannot be applied, instead of refusing them"
    )
    dtype: Literal["float16", "float32"] = parameter("float16", meaning="data type of the stored images")
    keep_greyscale: bool = parameter(False, meaning="store grey values unchanged, as float32, without normalising")
    invert_contrast: bool = parameter(False, meaning="invert images in which protein is dark")
    allow_no_ctf: bool = parameter(False, meaning="accept particles without defocus")
    project_folder: Place | None = parameter(
        None,
        meaning="folder or URL that stack names start from; if none, the working directory, then the"
        " folder of the table and those above it",
    )
    passthrough: Place | None = parameter(None, meaning="second .cs file with the remaining fields of the particles")

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the table and the headers of all stacks, and say what later jobs will refuse."""
        from cloudem.io.formats.plausible import doubts
        from cloudem.io.formats.sources import check_stacks
        from cloudem.io.formats.unapplied import without_unapplied
        from cloudem.io.importing import background_of, refuse_one_size
        from cloudem.jobs.checks import warn_of_table

        if any(inputs.awaited(place) for place in (self.particles, self.passthrough) if place is not None):
            return
        source = self.source
        refuse_one_size(source, self.pixel_size_A)
        particles, _ = without_unapplied(source.particles, source.path, allowed=self.without_aberrations)
        found = [check_stacks(part, self.project_folder) for _, part in source.parts()]
        box, size = self._grid([(stacks[0].header.pixel_size, box) for stacks, box in found])
        background_of(box, self.diameter_A, size)
        doubts(particles, source.path, box=box, pixel_size=size, stated=False)  # importing says them
        if not self.allow_no_ctf:
            warn_of_table(particles, self.particles, box, size, warn)

    def _grid(self, headers: Sequence[tuple[float, int]]) -> tuple[int, float]:
        """Return box and pixel size of what is stored, from those in the headers of each part of the table."""
        from cloudem.io.formats.grids import PixelGrid, common_grid
        from cloudem.io.importing import pixel_size_of

        parts = [part for _, part in self.source.parts()]
        grids = [
            PixelGrid(box, pixel_size_of(part, size, self.pixel_size_A))
            for part, (size, box) in zip(parts, headers, strict=True)
        ]
        return common_grid(grids, self.target_box_px, self.target_pixel_size_A)

    def size_of(self, name: str) -> Size | None:
        """Return what the table and the header of the first stack of each part say."""
        if name != "particles":
            return None
        from cloudem.io.formats.stacks import find_stacks

        source = self.source
        firsts = [find_stacks(part.stacks[:1], source.path, self.project_folder)[0] for _, part in source.parts()]
        # without any, planning takes 1 Å, and the check refuses it
        headers = [(first.header.pixel_size or 1.0, first.header.shape[-1]) for first in firsts]
        box, pixel_size = self._grid(headers)
        return Size(len(source.particles), (box, box), pixel_size, bool(firsts[0].root))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the table and the header of its first stack."""
        from cloudem.io.formats.prefetch import PREFETCH_BYTES
        from cloudem.io.storage.location import is_remote

        size = sizes["particles"]
        each = 4 if self.keep_greyscale else {"float16": 2, "float32": 4}[self.dtype]
        ahead = PREFETCH_BYTES * max(1, len(set(self.source.group_sizes)))  # of each pixel and box size
        stage = Stage(
            "import",
            size.count,
            "images",
            cpu_s=PIXEL_S * size.pixels,
            read_bytes=4.0 * size.pixels,
            written_bytes=each * size.pixels,
        )
        return Work(
            (stage,),
            base_bytes=_BASE_BYTES + _BATCH_BYTES + (ahead if size.remote else 0) + _ROW_BYTES * size.count,
            stored_bytes=300 * size.count,
            makes={"": replace(size, remote=is_remote(self.out))},
            notes=(f"{size.count} particles of {size.box} x {size.box} pixels in {len(self.source.stacks)} stacks",),
        )

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the store says of itself, which is written last."""
        from cloudem.io.storage.groups import read_attributes

        return read_attributes(self.out, "")

    def run(self, context: Context) -> None:
        """Import the particles and say what was left out."""
        from cloudem.io.importing import import_particles

        source = self.source
        with context.progress.stage("import", total=len(source.particles)) as stage:
            summary = import_particles(
                source,
                context.url,
                pixel_size=self.pixel_size_A,
                target_pixel_size=self.target_pixel_size_A,
                target_box=self.target_box_px,
                without_aberrations=self.without_aberrations,
                diameter=self.diameter_A,
                dtype=self.dtype,
                keep_greyscale=self.keep_greyscale,
                invert_contrast=self.invert_contrast,
                project_folder=self.project_folder,
                attributes=job_record(self),
                on_progress=stage.advance,
                guard=context.check,
            )
        for line in summary.lines():
            context.progress.warning(line)
        halves = source.particles.get("half_set", 0)
        if len(set(halves.tolist())) == 1 and halves[0]:
            context.progress.warning(
                f"all particles are in half-set {halves[0]}: refine3d and reconstruct draw new ones with --new-halves"
            )
        context.progress.message(f"{summary.imported} particles imported into {context.url}")

    @cached_property
    def source(self) -> SourceTable:
        """The table that is imported; reading it takes seconds."""
        from cloudem.io.formats.cryosparc import read_particles_cs
        from cloudem.io.formats.relion import read_particles_star

        kind = PurePosixPath(self.particles).suffix.lower()
        if kind == ".cs":
            others = () if self.passthrough is None else (self.passthrough,)
            return read_particles_cs(self.particles, others, allow_no_ctf=self.allow_no_ctf)
        if kind != ".star":
            raise FormatError(f"{self.particles} is neither a .star nor a .cs file; give the table, not the images")
        return read_particles_star(self.particles, allow_no_ctf=self.allow_no_ctf)
