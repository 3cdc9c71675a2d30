"""``cloudem refine3d``: gold-standard refinement of poses and map from particles and a starting reference."""

from __future__ import annotations

from typing import ClassVar

from cloudem.jobs.base import Context, Job, Place, Projection, parameter
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column


class Refine3D(Job):
    """Declaration of ``cloudem refine3d``."""

    name: ClassVar[str] = "refine3d"
    summary: ClassVar[str] = "Refine poses and a map from particles and a starting map, with two independent half-sets."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem refine3d --particles particles.zarr --reference start.mrc --symmetry C1 --diameter-A 320 --out refine",
        "cloudem refine3d --particles particles.zarr --reference start.mrc --symmetry O --diameter-A 140"
        " --initial-resolution-A 25 --out refine",
    )
    on_gpu: ClassVar[bool] = True
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
        Column("images_per_s", "images/s", form=",.0f"),
        SECONDS,
        RECEIVED,
    )

    particles: Place = parameter(meaning="particle store, made by cloudem import")
    reference: Place = parameter(
        meaning="starting map (MRC file); resampled to the box and pixel size of the particles"
    )
    symmetry: str = parameter("C1", meaning="point group: C<n>, D<n>, T, O, I, I1 to I4, oriented as in RELION")
    diameter_A: float = parameter(meaning="diameter of a circle that contains the particle", gt=0)
    mask: Place | None = parameter(
        None, meaning="solvent mask (MRC file, values 0 to 1); if none, estimated from each half-map"
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
        4, meaning="maximum number of poses per image to insert, weighted by probability", ge=1, le=64
    )
    max_iterations: int = parameter(25, meaning="stop after this many iterations, even if not converged", ge=1)
    local: bool = parameter(False, meaning="refine the existing poses instead of searching for new ones")
    correct_scale: bool = parameter(True, meaning="fit the intensity scale of each micrograph")
    ignore_contrast: bool = parameter(
        False, meaning="continue even if the images look like the negative of the starting map"
    )
    group_size: int = parameter(
        500, meaning="minimum number of images per task; smaller tasks lose less work if a worker fails", ge=50
    )
    skip_damaged: bool = parameter(
        False, meaning="skip particles whose shards are missing or damaged, instead of stopping"
    )
    seed: int = parameter(0, meaning="random seed for half-sets and phase randomisation")
    report: bool = parameter(True, meaning="write report.html")
    restart: bool = parameter(
        False, meaning="discard the results of an earlier run and start again, instead of resuming"
    )

    @property
    def start_resolution(self) -> float:
        """Resolution in Å to which the reference is trusted."""
        return self.initial_resolution_A or min(max(self.diameter_A / 7, 15.0), 40.0)

    def project(self) -> Projection:
        """Return memory and disk from box and particles."""
        return project_alignment(self.particles, self.group_size)

    def run(self, context: Context) -> None:
        """Refine until the data say that it has converged."""
        from cloudem.jobs.refine3d.run import refine

        refine(self, context)


def project_alignment(particles: str, group_size: int) -> Projection:
    """Return what aligning or inserting a store's particles needs, from its shapes."""
    from cloudem.io.particle_store import open_particles

    store = open_particles(particles)
    return alignment_needs(len(store), store.box, group_size, remote=store.remote)


def alignment_needs(count: int, box: int, group_size: int, *, remote: bool) -> Projection:
    """Return what aligning or inserting particles needs.

    Measured with two threads, up to Nyquist: 500 particles of 64 px 445 MiB of 508 projected, 250 of 128 px
    1,046 MiB of 1,158.

    Parameters
    ----------
    count, box
        Of the particles.
    group_size
        Images of one task, at least.
    remote
        Whether they are read from object storage.
    """
    import numpy as np

    from cloudem.jobs.dataset import AHEAD, AHEAD_BYTES, BATCH, groups_of
    from cloudem.kernels.slices import half_width, padded_box

    m = half_width(box // 2 - 1, padded_box(box) / box)
    voxels = (2 * m + 1) ** 2 * (m + 2)
    kept = 6 * voxels  # of an accumulator once it is packed; 12 bytes for each voxel before
    pixels = int(0.4 * box * box)
    groups = 2 * len(groups_of(np.arange(-(-count // 2)), group_size))
    # a task: images with their transforms, five complex arrays of half discs, its accumulator, and that packed; a
    # packed one that waits to be merged
    per_task = BATCH * (24 * box * box + 44 * pixels) + 12 * voxels + 2 * kept
    if remote:  # a block in use, and those that are read meanwhile
        per_task += (AHEAD + 1) * max(AHEAD_BYTES, 4 * BATCH * box * box)
    # a worker that aligns: references, one of them being made, and packed sums, one for each level of their tree
    aligning = (2 * 8 + 30) * voxels + groups.bit_length() * kept
    # one that solves, as far as that is more: of both halves packed and whole sums, what solving takes, and maps
    solving = 2 * (kept + (12 + 8) * voxels + 2 * 4 * box**3)
    # the client: several poses for each particle
    peak = 400_000_000 + max(aligning, solving) + 4000 * count
    note = f"{count:,} particles of {box} px, about {groups} tasks per pass"
    disk = 40 * box**3 + 600 * count
    return Projection(peak_bytes=peak, disk_bytes=disk, notes=(note,), task_bytes=per_task)
