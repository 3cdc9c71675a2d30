"""What a preflight of `cloudem.jobs.refine3d.job.Refine3D` looks at."""

from __future__ import annotations

from cloudem.jobs.base import Inputs
from cloudem.jobs.checks import Warn, check_mask, check_particles
from cloudem.jobs.halves import repeated
from cloudem.jobs.maps import AUTO, check_map, check_start_map, stated_symmetry
from cloudem.jobs.refine3d.focusing import check_focus
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.model.symmetry import operators


def check_refinement(job: Refine3D, inputs: Inputs, warn: Warn) -> None:
    """Check what `Refine3D` declares."""
    if not inputs.awaited(job.reference):
        stated_symmetry(job.symmetry, job.reference)
    elif job.symmetry.strip().lower() != AUTO:
        operators(job.symmetry)
    if job.local and job.new_halves:
        warn(
            "--new-halves with --local: the poses were refined in other half-sets, so both new ones have seen the same "
            "map, and the FSC may be too high; search again without --local for a resolution that can be believed"
        )
    check_focus(job)
    store = check_particles(job, inputs, warn, poses=job.local)
    if store is not None:
        check_focus(job, store.box, store.pixel_size)
        job.settings(job.window_px or store.box, store.pixel_size)
        if not job.local and repeated(store.particles):
            warn(
                "images are there several times, as symmetry mates are: a search leads all of them to the same pose; "
                "use --local, or give the particles from before they were expanded"
            )
        if not inputs.awaited(job.reference):
            check_start_map(job.reference, job.reference_pixel_size_A, job.diameter_A, store.box, store.pixel_size)
    elif not inputs.awaited(job.reference):
        check_map(job.reference, job.reference_pixel_size_A, "--reference-pixel-size-A")
    check_mask(job.mask, inputs)
