"""Writing the maps of a refinement or reconstruction, with resolution, sharpened map and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.evidence import known_up_to
from cloudem.algorithms.refinement import LEAKAGE
from cloudem.algorithms.resolution import FscCurves, b_factor, masked_fsc, sharpen, sharpening
from cloudem.algorithms.significance import independent_voxels, significant_shell
from cloudem.conventions import LEAST_EVIDENCE
from cloudem.io.formats.mrc import Vector
from cloudem.io.particle_store import RESULT_TABLE, ImageSource, ParticleStore
from cloudem.io.storage.tables import table_to_arrays
from cloudem.jobs.base import Context
from cloudem.jobs.directions import Directions, directions_of, sampling_of
from cloudem.jobs.preview import Other
from cloudem.jobs.report import run_attributes, write_report
from cloudem.model.particles import Particles
from cloudem.model.symmetry import operators

HAND = "The map has the hand of the starting map: projections alone cannot determine it. Check helices where visible."

START = "resolution of the starting map; none is shown beyond it"

HELD_OUT = "held_out_deviations"
"""Array of iterations and results: by how many standard deviations images match the other half-set's map better from
their own side than from another's, by shell; NaN where nobody asked."""

STAYS_HIGH, LAST_SHELLS = 0.8, 3
"""A corrected FSC that is nowhere lower in the last shells before Nyquist is not believed without a word."""

Float32 = NDArray[np.float32]


def write_maps(
    context: Context,
    halves: Float32,
    whole: Float32,
    mask: Float32,
    k_max: int,
    pixel_size: float,
    symmetry: str,
    seed: int,
    wall: float,
    particles: Particles,
    store: ParticleStore,
    report: bool,
    origin: Vector,
    start_resolution: float = 0.0,
    source: str = START,
    held_out: NDArray[np.float64] | None = None,
    notes: Sequence[str] = (),
    more: Mapping[str, NDArray[Any]] | None = None,
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
    k_max
        Last shell that the maps hold.
    pixel_size, symmetry, seed
        Å; point group; of the random phases.
    wall
        Seconds that the job has taken.
    particles
        Refined particles.
    store
        That they are of: the result refers to its images.
    report
        Whether to draw it.
    origin
        Of the maps, Å along x, y, z.
    start_resolution
        Of a refinement that has shown nothing beyond its start, the resolution of that, Å: no better one is claimed; 0
        otherwise.
    source
        What is said of it then.
    held_out
        What is kept as `HELD_OUT`, (n // 2 + 1,).
    notes
        Further remarks of the report.
    more
        Further arrays of the result, for sections of the job's own.
    """
    progress = context.progress
    with progress.stage("postprocess"):
        curves = within(masked_fsc(halves[0], halves[1], mask, seed), k_max)
        resolution = max(claimed_resolution(curves, pixel_size, symmetry), start_resolution)
        mean = (halves[0] + halves[1]) / np.float32(2)
        fit = b_factor(mean * mask, curves.corrected, pixel_size, resolution)
        fall_off = sharpening(fit, resolution)
        shown = sharpen(whole, curves.corrected, pixel_size, resolution, fall_off)
        if start_resolution:  # nothing of their own is shown: the noise of directions would say nothing
            directional = Directions({}, sampling_of(particles, symmetry, len(whole) * pixel_size / resolution))
        else:
            where = (k_max, pixel_size, symmetry)
            directional = directions_of((halves[0], halves[1]), mask, curves, *where, progress.warning, particles)
        beside: dict[Other, Float32] = {"half1": halves[0], "half2": halves[1], "mask": mask}
        progress.previews.make_result(shown, beside, pixel_size, context.log)
    if line := suspicious(curves.corrected, k_max, len(whole), pixel_size):
        progress.warning(line)
    evidence = {} if held_out is None else {HELD_OUT: held_out}
    if not start_resolution and (line := unknown_to_images(held_out, resolution, len(whole) * pixel_size)):
        progress.warning(line)
    inside = mask > 0.5
    if inside.any() and whole[inside].mean() < 0:
        progress.warning(
            "the mean density inside the mask is negative: the contrast is inverted or the refinement failed; inspect "
            "the map before using it"
        )
    write_particles_of(context, particles, store)
    arrays = {"half1": halves[0], "half2": halves[1], "map": shown, "map_unfiltered": whole, "mask": mask}
    attributes = {
        "box": len(whole),
        "pixel_size_A": pixel_size,
        "origin_A": origin,
        "symmetry": symmetry,
        "resolution_A": resolution,
        "resolution_source": source if start_resolution else "",
        "b_factor_A2": 0.0 - fall_off,
        "wall_s": wall,
        "cpu_s": sum(timing.cpu_s for timing in progress.timings()),
        "particle_count": len(particles),
        "directional": directional.attributes,
        "notes": [*notes, HAND],
        **run_attributes(progress, context.executor.traffic()),
    }
    others = {**curves.by_name(), **evidence, **directional.arrays, **(more or {})}
    context.write("result", {**arrays, **others}, attributes)
    shown_by = source if start_resolution else "corrected FSC 0.143"
    progress.message(f"resolution {resolution:.2f} Å ({shown_by}), B-factor {0.0 - fall_off:.0f} Å²")
    if report:
        progress.message(f"report: {write_report(context.url)}")


def claimed_resolution(curves: FscCurves, pixel_size: float, symmetry: str) -> float:
    """Return the resolution in Å up to which shells correlate by 0.143, and by more than chance does it."""
    box = 2 * (len(curves.corrected) - 1)
    voxels = independent_voxels(box, curves.fraction, len(operators(symmetry)))
    return box * pixel_size / max(significant_shell(curves.corrected, voxels), 1.0)


def unknown_to_images(by_shell: NDArray[np.float64] | None, resolution: float, length: float) -> str:
    """Return a warning where the stated resolution goes further than images know; "" where it does not.

    Parameters
    ----------
    by_shell
        What is kept as `HELD_OUT`, (n // 2 + 1,); None where nothing is.
    resolution
        Stated, Å.
    length
        Of the box, Å.
    """
    known = -1 if by_shell is None else known_up_to(by_shell, LEAST_EVIDENCE)
    if by_shell is None or known < 1:
        return ""
    asked = np.isfinite(by_shell[known + 1 : int(length / resolution) + 1])
    if np.count_nonzero(asked) < LEAKAGE:  # shells that nobody asked about say nothing
        return ""
    return (
        f"the half-maps agree to {resolution:.2f} Å, but images match the other half-set's map only to "
        f"{length / known:.2f} Å on shells that had no part in their poses: what lies further may be noise that both "
        "half-sets share. Usual causes: one image or filament in both half-sets, a mask that is too tight or has a "
        "sharp edge, neighbours inside the mask. Check the mask, and try --halves-by micrograph"
    )


def suspicious(corrected: NDArray[np.float64], k_max: int, box: int, pixel_size: float) -> str:
    """Return a warning where a corrected FSC, (box // 2 + 1,), stays high up to Nyquist; "" where it does not."""
    last = corrected[k_max - LAST_SHELLS + 1 : k_max + 1]
    if k_max < box // 2 - 1 or k_max <= LAST_SHELLS or last.min() < STAYS_HIGH:
        return ""
    return (
        f"the corrected FSC stays high up to Nyquist ({last.mean():.2f} at {2 * pixel_size:.3g} Å). That is suspicious "
        "unless the images were binned far below what they resolve; usual causes: one image or filament in both "
        "half-sets, half-maps that share a mask or a filter, images that were scaled up"
    )


def write_particles_of(context: Context, particles: Particles, store: ParticleStore) -> None:
    """Write the particles of a result, so that the result is a particle store for the next job.

    Parameters
    ----------
    context
        Of the job.
    particles
        Table; with a column ``store_row`` if it holds others than all images of the store in order.
    store
        Whose images they are.
    """
    arrays, attributes = table_to_arrays(particles)
    source = ImageSource.of(store, context.url)._asdict()
    less = {} if store.model is None else {"subtracted": store.model.seen_from(context.url)._asdict()}
    context.write(RESULT_TABLE, arrays, {**attributes, "images": source, **less})


def within(curves: FscCurves, k_max: int) -> FscCurves:
    """Return curves that are 0 beyond the last shell inserted, where the maps hold nothing but the mask's leakage."""
    keep_shell = np.arange(len(curves.unmasked)) <= k_max
    kept = {
        name: getattr(curves, name) * keep_shell for name in ("unmasked", "masked", "phase_randomised", "corrected")
    }
    return curves._replace(**kept)
