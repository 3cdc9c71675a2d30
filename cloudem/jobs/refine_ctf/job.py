"""``cloudem refine_ctf``: one joint fit of defocus, poses and aberrations, each half-set against its own map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.iterative import Iterations, IterativeJob
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import ITERATION, SECONDS, Column
from cloudem.report.declaration import (
    COST,
    DIRECTIONS,
    ITERATIONS,
    MAP,
    NETWORK,
    PARAMETERS,
    PARTICLES,
    PROVENANCE,
    RESOLUTION,
    Section,
    histogram_of,
    table_of,
)

if TYPE_CHECKING:
    from cloudem.algorithms.joint_fit import Freedom

PASSES = 3
"""Passes of an iteration that are planned for."""

PASS_PIXEL_S, INSERT_PIXEL_S = 2.6e-7, 1.0e-7
"""CPU-seconds of a pixel of an image: in a pass of the fit, and to be inserted and compared with the map once."""

BASE_VOXEL_BYTES = 170
"""Of a voxel of a padded half-volume, beside tasks: two references ready to fit to, packed sums, maps. With two
threads, 1,500 particles of 96 px took 638 MiB of 764 planned, 3,000 of 128 px 1,188 of 1,307."""

ABERRATIONS = table_of(
    "Aberrations",
    Column("aberration_group", "group"),
    Column("aberration_name", "aberration"),
    Column("aberration_value", "change", form=".4g"),
    Column("aberration_error", "standard error", form=".2g"),
    Column("aberration_unit", "unit"),
    Column("aberration_phase_deg", "at the limit", "°", ".0f", meaning="phase at the finest frequency fitted"),
    Column(
        "aberration_deviations",
        "deviations",
        form=".1f",
        meaning="standard deviations of a kind, all of its components together, from no change",
    ),
    Column("aberration_verdict", "verdict"),
    rows=200,
)
DEFOCUS_CHANGE = histogram_of(
    "defocus_change", Column("defocus_change", "change of the defocus", "Å", ".0f"), "Change of the defocus"
)
DEFOCUS_ERROR = histogram_of(
    "defocus_error", Column("defocus_error", "standard error", "Å", ".0f"), "Standard errors of the defocus"
)


class RefineCtf(IterativeJob):
    """Declaration of ``cloudem refine_ctf``."""

    name: ClassVar[str] = "refine_ctf"
    summary: ClassVar[str] = "Fit defocus, poses and aberrations of the microscope together, and rebuild the map."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem refine_ctf refine --out ctf",
        "cloudem refine_ctf refine --mask mask.mrc --micrograph-astigmatism --out ctf",
        "cloudem refine3d --particles ctf --reference ctf --symmetry auto --diameter-A 140 --local --out refine2",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles", "halves", "volume", "mask", "curves")}
    columns: ClassVar[tuple[Column, ...]] = (
        ITERATION,
        Column("resolution_A", "resolution", "Å", ".2f", meaning="of the maps that this fit begins with"),
        Column("limit_A", "limit", "Å", ".2f", meaning="the finest resolution that is fitted"),
        Column("passes", "passes", form="d", meaning="through all images, until nothing was to be gained"),
        Column("gain", "gain", form=".1f", meaning="log-likelihood of an image that the fit gained"),
        Column("spread_A", "spread", "Å", ".0f", meaning="of the defocus about that of its micrograph"),
        SECONDS,
    )
    sections: ClassVar[tuple[Section, ...]] = (
        ABERRATIONS, Section("aberrations:phases"), DEFOCUS_CHANGE, DEFOCUS_ERROR, MAP, RESOLUTION, DIRECTIONS,
        PARTICLES, ITERATIONS, COST, NETWORK, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    particles: Place = parameter(
        meaning="results of refine3d, or other particles with poses and half-sets",
        reads=("particles",),
        positional=True,
    )
    symmetry: str = parameter(
        "auto", meaning="point group, oriented as in RELION; auto: that of the results that hold the particles"
    )
    diameter_A: float = parameter(
        0.0, meaning="particle diameter, for a mask that is estimated; 0: 90 % of the box", ge=0
    )
    mask: Place | None = parameter(
        None,
        meaning="solvent mask (MRC file, or results of a job); if none, that of the results that hold the particles, "
        "or else estimated",
        reads=("mask",),
    )
    max_iterations: int = parameter(
        6, meaning="fits at most, each after the maps were rebuilt with the one before", ge=1, le=20
    )
    max_resolution_A: float = parameter(0.0, meaning="finest resolution that is fitted; 0: where half-maps agree", ge=0)
    micrograph_astigmatism: bool = parameter(
        False, meaning="fit an astigmatism to each micrograph, instead of one to each optics group"
    )
    particle_scale: bool = parameter(False, meaning="fit an intensity to each particle")
    particle_b_factor: bool = parameter(False, meaning="fit a B-factor to each particle")
    pixel_size: bool = parameter(
        False, meaning="fit the magnification itself, too; only against a map whose pixel size is right"
    )
    significance: float = parameter(
        4.0,
        meaning="standard deviations from which on an aberration is applied; 0: all are; spherical aberration always "
        "is, since the defocus would make up for it",
        ge=0,
    )
    least_particles: int = parameter(
        100, meaning="optics groups with fewer particles keep the aberrations that they have", ge=1
    )
    group_size: int = parameter(500, meaning="minimum number of images per task", ge=50)
    skip_damaged: bool = parameter(
        False, meaning="skip particles whose shards are missing or damaged, instead of stopping"
    )
    seed: int = parameter(0, meaning="random seed for phase randomisation, and for half-sets if there are none")
    report: bool = parameter(True, meaning="write report.html")

    new_halves: ClassVar[bool] = False
    halves_by: ClassVar[str] = "particle"

    @property
    def freedom(self) -> Freedom:
        """What is fitted."""
        from cloudem.algorithms.joint_fit import Freedom

        return Freedom(self.particle_scale, self.particle_b_factor, self.micrograph_astigmatism, self.pixel_size)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check table, shards and headers."""
        from cloudem.jobs.refine_ctf.check import check_ctf_refinement

        check_ctf_refinement(self, inputs, warn)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from box and particles."""
        from cloudem.jobs.refine3d.cost import SOLVE, at_box
        from cloudem.jobs.refine3d.duration import voxels_of
        from cloudem.jobs.subtracted import subtracting_seconds

        size = sizes["particles"]
        box, count = size.box, size.count
        voxels, pixels = voxels_of(box, box // 2 - 1), int(0.4 * box * box)
        # images and their parts of a pass; or an accumulator, and that packed
        per_task = self.group_size * 16 * pixels + 128 * 24 * box * box + 24 * voxels

        def stage(name: str, seconds: float, passes: int) -> Stage:
            return Stage(
                name, count, "images", cpu_s=seconds * box**2 + subtracting_seconds(size), parallel=True, passes=passes,
                task_bytes=per_task, read_bytes=2.0 * box**2,
            )  # fmt: skip

        rebuilt = self.max_iterations + 1
        stages = (
            stage("insert", INSERT_PIXEL_S, rebuilt),
            Stage("solve", 2, "maps", cpu_s=at_box(SOLVE, box), passes=rebuilt),
            stage("compare", INSERT_PIXEL_S, 2),
            stage("fit", PASS_PIXEL_S, PASSES * self.max_iterations),
        )
        return Work(
            stages,
            base_bytes=300 * MIB + BASE_VOXEL_BYTES * voxels + 2000 * count,
            client_bytes=400 * MIB + 2000 * count + 40 * box**3,
            stored_bytes=40 * box**3 + 600 * count,
            makes={"": size},
            notes=(f"{count:,} particles of {box} px",),
        )

    def iterations(self, context: Context, *, resumes: bool) -> Iterations[Any]:
        """Open the particles."""
        from cloudem.jobs.refine_ctf.run import CtfRefinement

        return CtfRefinement(self, context)
