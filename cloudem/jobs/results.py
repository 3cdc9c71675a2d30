"""Writing the maps of a refinement or reconstruction, with resolution, sharpened map and report."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.resolution import postprocess, sharpen
from cloudem.io.groups import particles_to_arrays, write_group
from cloudem.jobs.base import Context
from cloudem.jobs.report import run_attributes, write_report
from cloudem.model.particles import Particles

HAND = "The hand of the map is that of the reference: projections alone cannot tell it. Check helices where they show."

Float32 = NDArray[np.float32]


def write_maps(
    context: Context,
    halves: Float32,
    whole: Float32,
    mask: Float32,
    pixel_size: float,
    symmetry: str,
    seed: int,
    wall: float,
    particles: Particles,
) -> None:
    """Write the groups ``particles`` and ``result`` and the report.

    Parameters
    ----------
    context
        Of the job.
    halves, whole
        Unfiltered maps of the two half-sets (2, n, n, n) and of all particles (n, n, n).
    mask
        For the FSC, (n, n, n) in 0..1.
    pixel_size, symmetry, seed
        Å; point group; of the random phases.
    wall
        Seconds that the job has taken.
    particles
        Refined particles.
    """
    progress = context.progress
    with progress.stage("postprocess", 1, unit="maps"):
        done = postprocess(halves[0], halves[1], mask, pixel_size, seed=seed)
        shown = sharpen(whole, done.fsc.corrected, pixel_size, done.resolution, done.b_factor)
    inside = mask > 0.5
    if inside.any() and whole[inside].mean() < 0:
        progress.warning(
            "the mean density inside the mask is negative: contrast is inverted, or the refinement has failed; look "
            "at the map before you use it"
        )
    write_group(context.url, "particles", *particles_to_arrays(particles))
    arrays = {"half1": halves[0], "half2": halves[1], "map": shown, "map_unfiltered": whole, "mask": mask}
    attributes = {
        "pixel_size_A": pixel_size,
        "symmetry": symmetry,
        "resolution_A": done.resolution,
        "b_factor_A2": -done.b_factor,
        "wall_s": wall,
        "cpu_s": sum(timing.cpu_s for timing in progress.timings()),
        "particle_count": len(particles),
        "notes": [HAND],
        **run_attributes(progress),
    }
    write_group(context.url, "result", {**arrays, **done.fsc.by_name()}, attributes)
    progress.message(f"resolution {done.resolution:.2f} Å (corrected FSC 0.143), B-factor {-done.b_factor:.0f} Å²")
    progress.message(f"report: {write_report(context.url)}")
