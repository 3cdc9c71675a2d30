"""What a preflight of `cloudem.jobs.refine_ctf.job.RefineCtf` looks at."""

from __future__ import annotations

import numpy as np

from cloudem.errors import ParameterError
from cloudem.jobs.base import Inputs
from cloudem.jobs.checks import Warn, check_mask, check_particles
from cloudem.jobs.maps import AUTO, stated_symmetry
from cloudem.jobs.refine_ctf.job import RefineCtf
from cloudem.model.symmetry import operators

COARSEST = 20.0
"""Å: no aberration shows at a lower resolution than this."""


def check_ctf_refinement(job: RefineCtf, inputs: Inputs, warn: Warn) -> None:
    """Check what `RefineCtf` declares."""
    if job.symmetry.strip().lower() != AUTO:
        operators(job.symmetry)
    if job.max_resolution_A > COARSEST:
        raise ParameterError(
            f"--max-resolution-A {job.max_resolution_A:g} is coarser than {COARSEST:g} Å, where no aberration shows; "
            "choose a finer one"
        )
    check_mask(job.mask, inputs)
    store = check_particles(job, inputs, warn, poses=True)  # type: ignore[arg-type]  # both are class variables
    if store is None:
        return
    stated_symmetry(job.symmetry, job.particles)
    table = store.particles
    count = np.bincount(table.get("optics_group", 0), minlength=len(table.optics))
    for group, particles in zip(table.optics, count, strict=True):
        if particles < job.least_particles:
            warn(few(group.name, int(particles), job.least_particles))
    if "micrograph" not in table:
        warn(
            "the particles do not name their micrographs: the defocus of each is held near the mean of its optics "
            "group, as if that were one micrograph; import micrograph names to do better"
        )


def few(name: str, particles: int, least: int) -> str:
    """Return what is said of an optics group that is left alone."""
    return (
        f"optics group {name} has {particles:,} particles, fewer than {least:,} (--least-particles): its aberrations "
        "stay as they are"
    )
