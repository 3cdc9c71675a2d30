"""Declaration of ``cloudem polish``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import CloudemError, ParameterError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, NETWORK, PARAMETERS, PROVENANCE, Section, histogram_of, table_of

if TYPE_CHECKING:
    from cloudem.jobs.polish.inputs import PolishedParticles

REFERENCE_S = 1.0e-6
"""CPU-seconds of a voxel of the half-maps, which are masked and compared."""

FRAME_PIXEL_S, WINDOW_PIXEL_S, SEARCH_S = 3.0e-9, 6.0e-9, 6.0e-5
"""CPU-seconds of a pixel of a frame that is read and cleaned, of a pixel of a window that is cut, transformed and
compared or added, and of a particle's frame in the search for its track. Measured."""

COMPARED_BYTES = 1_000_000_000
"""Most bytes that a movie's particles are compared by; of more particles, fewer shells are compared."""

HELD_BYTES = 1_400_000_000
"""Most bytes of a movie's frames that are kept for tracks (`cloudem.io.movies.held`); for sums none are."""


class Polish(Job):
    """Declaration of ``cloudem polish``."""

    name: ClassVar[str] = "polish"
    summary: ClassVar[str] = "Follow refined particles through the frames of their movies, and sum along their tracks."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem polish refine --motion motion --out polished",
        "cloudem polish refine --motion motion --box-px 512 --scale-to-px 384 --out polished",
        "cloudem refine3d --particles polished --reference refine --diameter-A 180 --out again",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles",)}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("polishing:particle_tracks"),
        Section("polishing:frame_weights"),
        histogram_of(
            "own_motion_A", Column("own_motion_A", "motion of its own", "Å", ".2f"), "Motion of particles",
            "root mean square over the frames, beside the motion that the micrograph was corrected for",
        ),
        Section("extraction:examples"),
        table_of("Left out", Column("left_out_micrograph", "micrograph"), Column("left_out_reason", "why"), rows=200),
        COST, NETWORK, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    particles: Place = parameter(
        meaning="particles with poses and half-sets: results of refine3d or reconstruct",
        positional=True,
        reads=("particles",),
    )
    motion: Place = parameter(
        meaning="results of correct-motion, of the movies that the micrographs were made of", reads=("micrographs",)
    )
    movies: Place | None = parameter(
        None, meaning="table of these movies, if it is not where correct-motion read it", reads=("movies",)
    )
    halves: Place | None = parameter(
        None, meaning="half-maps of these half-sets; if none, those in PARTICLES", reads=("halves",)
    )
    mask: Place | None = parameter(
        None, meaning="soft mask of the molecule; if none, the outline of each half-map by itself", reads=("mask",)
    )
    box_px: int | None = parameter(
        None, meaning="side of the box in pixels of the movies, even; if none, what the particles' images show", ge=16
    )
    scale_to_px: int | None = parameter(
        None,
        meaning="side of the images, even; if none, that of the particles' images, or the box if that is given",
        ge=16,
    )
    velocity_A_per_dose: float = parameter(
        0.5, meaning="how fast particles move beside the micrograph, standard deviation in x and in y", gt=0
    )
    together_A: float = parameter(5000.0, meaning="distance over which particles move alike", gt=0)
    acceleration_A_per_dose: float = parameter(
        2.0, meaning="by how much velocities change from frame to frame, standard deviation", gt=0
    )
    finest_A: float = parameter(
        0.0, meaning="finest detail that particles are followed by; 0: as far as the half-maps agree (FSC 0.143)", ge=0
    )
    background_diameter_A: float | None = parameter(
        None, meaning="circle outside of which is background, for the normalisation; if none, 0.9 of the box", gt=0
    )
    contrast: Literal["dark", "bright"] = parameter("dark", meaning="how particles look in the movies")
    dtype: Literal["float16", "float32"] = parameter("float16", meaning="data type of the stored images")
    seed: int = parameter(0, meaning="random seed for phase randomisation", ge=0)

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def check_out(self) -> None:
        """Check that there is nothing in ``OUT``, or the beginning of this very job."""
        from cloudem.io.storage.groups import has_group
        from cloudem.jobs.mapping import refuse_others
        from cloudem.jobs.provenance import is_of

        refuse_others(self.out, lambda record: not has_group(self.out, "result") and is_of(record, self))

    def discard(self, guard: Callable[[], None]) -> None:
        """Delete the images, and then what says that they were there."""
        from cloudem.io.storage.groups import delete_group
        from cloudem.jobs.extract import PIXELS

        guard()
        delete_group(self.out, PIXELS)
        super().discard(guard)

    def tidy(self, context: Context) -> None:
        """Delete the parts, and draw the report if that is missing."""
        from cloudem.jobs.mapping import tidy_parts

        tidy_parts(context)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check tables, half-maps and sizes."""
        for name, value in (("--box-px", self.box_px), ("--scale-to-px", self.scale_to_px)):
            if value is not None and value % 2:
                raise ParameterError(
                    f"{name} {value} is odd, and images need even sides; give {value - 1} or {value + 1}"
                )
        halves = self.halves or self.particles
        if not inputs.awaited(halves):
            from cloudem.jobs.postprocess import halves_grid

            halves_grid(halves)
        if self.mask is not None and not inputs.awaited(self.mask):
            from cloudem.jobs.maps import check_map

            check_map(self.mask, held="mask")
        if any(inputs.awaited(place) for place in (self.particles, self.motion)):
            return
        given = self.given
        for line in self._said:
            warn(line)
        if not len(given.order):
            raise ParameterError(f"no particle of {self.particles} lies in these movies")
        from cloudem.jobs.polish.run import geometry_of

        geometry_of(self, given)

    @cached_property
    def given(self) -> PolishedParticles:
        """What is to be polished, as the inputs say now."""
        from cloudem.jobs.polish.inputs import particles_to_polish

        return particles_to_polish(self.particles, self.motion, self.movies, self._said.append)

    @cached_property
    def _said(self) -> list[str]:
        """What is to be said of it."""
        return []

    def motion_parameters(self) -> Mapping[str, Any]:
        """Return what ``correct-motion`` was run with."""
        from cloudem.io.storage.groups import read_attributes

        return (read_attributes(self.motion, "") or {}).get("parameters") or {}

    def upsampling(self, parameters: Mapping[str, Any], kind: str) -> int:
        """Return how many pixels of a frame there are along one of the detector's, of movies of a format."""
        return int(parameters.get("eer_upsampling", 1)) if kind == "EER" else 1

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the two stages, each of which reads all movies."""
        particles, micrographs = sizes["particles"], sizes["motion"]
        finer = float(self.motion_parameters().get("bin", 1.0))
        frames, pixels = self._frames(), max(finer**2 * micrographs.pixels, 1)
        movies = max(micrographs.count, 1)
        each = particles.count / movies
        length = particles.box * particles.pixel_size
        pixel = (micrographs.pixel_size or particles.pixel_size or 1.0) / finer
        side = self.box_px or length / pixel
        size = self.scale_to_px or (self.box_px or particles.box)
        windows = each * frames * side**2
        compared = min(0.4 * windows * 8, COMPARED_BYTES)  # a half disc, complex numbers of eight bytes
        held = min(2 * frames * pixels, HELD_BYTES) + 60 * pixels
        reading = FRAME_PIXEL_S * frames * pixels
        image = size**2 * {"float16": 2, "float32": 4}[self.dtype]
        reference = Stage("reference", cpu_s=REFERENCE_S * particles.box**3)
        follow = Stage(
            "tracks", movies, "movies", reading + WINDOW_PIXEL_S * windows + SEARCH_S * each * frames,
            parallel=True, task_bytes=int(held + 1.3 * compared + 16 * each * side**2),
            read_bytes=0.6 * frames * pixels, written_bytes=24 * each * frames,
        )  # fmt: skip
        add = Stage(
            "sums", movies, "movies", reading + WINDOW_PIXEL_S * windows, parallel=True,
            task_bytes=int(68 * pixels + 40 * each * side**2), read_bytes=0.6 * frames * pixels,
            written_bytes=each * image,
        )  # fmt: skip
        made = Size(particles.count, (int(size),) * 2, side * pixel / size, particles.remote)
        notes = (f"{particles.count:,} particles in {movies:,} movies of {frames} frames, which are read twice",)
        stored = int(particles.count * (8 * frames + 300))
        base = 300 * MIB + 60 * particles.box**3 + int(2000 * particles.count)
        return Work((reference, follow, add), base, stored_bytes=stored, makes={"": made}, notes=notes)

    def _frames(self) -> int:
        """Return the usual number of frames of a movie."""
        import numpy as np

        from cloudem.io.micrographs.tables import read_micrograph_table

        try:
            table = read_micrograph_table(self.motion)
        except CloudemError:  # a step before is to make them
            return 40
        return int(np.median(table["frames"])) if len(table) and "frames" in table else 40

    def run(self, context: Context) -> None:
        """Follow the particles and sum them."""
        from cloudem.jobs.polish.run import polish

        polish(self, context)
