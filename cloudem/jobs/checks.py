"""What preflights look at: particle stores by their tables, maps and half-maps by their headers, results by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cloudem.errors import CloudemError, OutputExistsError, ParameterError
from cloudem.io.particle_store import ParticleStore, open_particles
from cloudem.io.storage.groups import has_group, read_attributes
from cloudem.jobs.base import Inputs
from cloudem.jobs.dataset import TREATED, check_ctf, half_sets, left_out, require_finite
from cloudem.jobs.maps import check_map, check_start_map
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.model.particles import COLUMNS, Particles
from cloudem.model.symmetry import operators

Warn = Callable[[str], None]

NUMBERS = tuple(name for name, column in COLUMNS.items() if column.dtype != "text")

READ = (*NUMBERS, *(f"rln:{name}" for name in TREATED))
"""Columns of a particle table that tell whether a job can use it."""


def check_refinement(job: Refine3D, inputs: Inputs, warn: Warn) -> None:
    """Check what `Refine3D` declares."""
    from cloudem.jobs.refine3d.resume import resumed
    from cloudem.jobs.refine3d.run import settings_from

    operators(job.symmetry)
    resumed(job, job.out)
    store = check_particles(job.particles, inputs, warn, poses=job.local, skip_damaged=job.skip_damaged, seed=job.seed)
    if store is not None:
        settings_from(job, store.box, store.pixel_size)
        if not inputs.awaited(job.reference):
            check_start_map(job.reference, job.reference_pixel_size_A, job.diameter_A, store.box, store.pixel_size)
    elif not inputs.awaited(job.reference):
        check_map(job.reference, job.reference_pixel_size_A, "--reference-pixel-size-A")
    check_mask(job.mask, inputs)


def check_reconstruction(job: Reconstruct, inputs: Inputs, warn: Warn) -> None:
    """Check what `Reconstruct` declares."""
    operators(job.symmetry)
    found = read_attributes(job.out, "")
    if found is not None and (found.get("job") != job.name or has_group(job.out, "result")):
        raise OutputExistsError(f"{job.out} already contains results; choose another --out")
    store = check_particles(job.particles, inputs, warn, poses=True, skip_damaged=job.skip_damaged, seed=job.seed)
    if store is not None and job.max_resolution_A and store.box * store.pixel_size / job.max_resolution_A < 2:
        raise ParameterError(
            f"--max-resolution-A {job.max_resolution_A:g} is coarser than half the box; choose a finer one"
        )
    check_mask(job.mask, inputs)


def check_mask(mask: str | None, inputs: Inputs) -> None:
    """Check the header of a mask, if there is one and no step before is to make it."""
    if mask is not None and not inputs.awaited(mask):
        check_map(mask)


def check_particles(
    url: str, inputs: Inputs, warn: Warn, *, poses: bool, skip_damaged: bool, seed: int
) -> ParticleStore | None:
    """Check table and shards of a particle store; return it, or None if a step before is to make it.

    Raises
    ------
    CloudemError
        It is no store, its CTF or (where they are needed) poses cannot be used, shards are missing, or a half-set is
        empty.
    """
    if inputs.awaited(url):
        return None
    store = open_particles(url)
    table = store.columns(READ)
    check_ctf(table, url)
    if poses:
        optional = (name for name in ("shift_x", "shift_y", "intensity_scale") if name in table)
        require_finite(table, "rot", "tilt", "psi", *optional)
    half_sets(table, seed, left_out(store, skip_damaged, warn))
    return store


def refuse_results_of_others(out: str, name: str) -> None:
    """Refuse a folder of results of another job."""
    other = (read_attributes(out, "") or {}).get("job", name)
    if other != name:
        raise OutputExistsError(f"{out} contains the results of {other}; choose another --out")


def warn_of_table(particles: Particles, path: str, warn: Warn) -> None:
    """Say of a table that is imported what refinements and reconstructions will refuse."""
    try:
        check_ctf(particles, path)
        half_sets(particles, 0, np.zeros(0, np.int64))
    except CloudemError as error:
        warn(f"refine3d and reconstruct will refuse these particles: {error}")
