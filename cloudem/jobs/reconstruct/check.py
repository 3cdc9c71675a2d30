"""What a preflight of `cloudem.jobs.reconstruct.job.Reconstruct` looks at."""

from __future__ import annotations

from cloudem.errors import ParameterError
from cloudem.jobs.base import Inputs
from cloudem.jobs.checks import Warn, check_mask, check_particles
from cloudem.jobs.reconstruct.job import Reconstruct
from cloudem.model.symmetry import operators


def check_reconstruction(job: Reconstruct, inputs: Inputs, warn: Warn) -> None:
    """Check what `Reconstruct` declares."""
    operators(job.symmetry)
    store = check_particles(job, inputs, warn, poses=True)
    if store is not None and job.max_resolution_A and store.box * store.pixel_size / job.max_resolution_A < 2:
        raise ParameterError(
            f"--max-resolution-A {job.max_resolution_A:g} is coarser than half the box; choose a finer one"
        )
    check_mask(job.mask, inputs)
