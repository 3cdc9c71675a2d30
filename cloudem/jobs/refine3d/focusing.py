"""Where ``cloudem refine3d --local`` looks: pivot, priors and the box about it, from what its job states."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Anchors, Poses, Prior
from cloudem.algorithms.focus import Focus, centre_of_mass, keeps_pivot
from cloudem.errors import ParameterError
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.model.symmetry import operators

Float32 = NDArray[np.float32]


def pivot_stated(text: str) -> NDArray[np.float64]:
    """Return what ``--pivot-A`` says, (3,) Å as x, y, z from the middle of the box.

    Raises
    ------
    ParameterError
        Those are not three numbers.
    """
    try:
        found = np.array([float(part) for part in text.split(",")])
    except ValueError:
        found = np.zeros(0)
    if len(found) != 3 or not np.isfinite(found).all():
        raise ParameterError(f"--pivot-A {text!r:.60}: three numbers are needed, x,y,z in Å from the middle of the box")
    return found


def check_focus(job: Refine3D, box: int = 0, pixel_size: float = 0.0) -> None:
    """Check what a job states of its focus, and of particles if they are known.

    Raises
    ------
    ParameterError
        It is not for this refinement, or does not fit in the images.
    """
    stated = {"--pivot-A": job.pivot_A, "--prior-deg": job.prior_deg, "--prior-A": job.prior_A,
              "--window-px": job.window_px}  # fmt: skip
    given = [name for name, value in stated.items() if value]
    if given and not job.local:
        raise ParameterError(f"{given[0]} is for --local, which refines poses that are known; add --local")
    if job.window_px % 2:
        raise ParameterError(f"--window-px {job.window_px} is odd; an even number of pixels is needed")
    pivot = pivot_stated(job.pivot_A) if job.pivot_A else np.zeros(3)
    if not box:
        return
    if job.window_px > box:
        raise ParameterError(f"--window-px {job.window_px} is larger than the images, {box} px; leave it out")
    if 0 < job.window_px * pixel_size < job.diameter_A:
        raise ParameterError(
            f"--window-px {job.window_px} is {job.window_px * pixel_size:.4g} Å, into which --diameter-A "
            f"{job.diameter_A:g} does not fit; give a larger window"
        )
    if np.abs(pivot).max() > box * pixel_size / 2:
        raise ParameterError(
            f"--pivot-A {job.pivot_A} lies outside of the box, {box * pixel_size / 2:.4g} Å to each side of its middle"
        )


def focus_of(job: Refine3D, mask: Float32 | None, box: int, pixel_size: float, symmetry: str) -> Focus | None:
    """Return where a refinement looks, None for the whole particle about the middle of the box.

    Parameters
    ----------
    job
        What it states.
    mask
        On the particles' grid, (n, n, n); None where there is none.
    box, pixel_size
        Of the particles, pixels and Å.
    symmetry
        Point group.

    Raises
    ------
    ParameterError
        The pivot is not on all axes of the point group.
    """
    if not job.local or not (mask is not None or job.pivot_A or job.prior_deg or job.prior_A or job.window_px):
        return None
    at = np.zeros(3)
    if job.pivot_A:
        at = pivot_stated(job.pivot_A) / pixel_size
    elif mask is not None:
        at = centre_of_mass(mask)
    x, y, z = (int(v) for v in np.rint(at))
    if not keeps_pivot(operators(symmetry), (x, y, z)):
        raise ParameterError(
            f"the pivot lies off the axes of {symmetry}, so the mates of what is refined are elsewhere; expand the "
            "particles first (cloudem expand_symmetry) and refine them in C1, or give --pivot-A 0,0,0"
        )
    turn, shift = math.radians(job.prior_deg) ** 2, (job.prior_A / pixel_size) ** 2
    return Focus((x, y, z), job.window_px or box, turn, shift)


FIRST_TURN, LEAST_TURN, LEAST_SHIFT = math.radians(10) ** 2, math.radians(0.1) ** 2, 0.05**2
"""Variances of the priors, radians² and pixels²: of the turn in the first iteration, and the least that are found."""


def spread_of(best: Poses, anchors: Anchors, before: Prior) -> tuple[float, float]:
    """Return by how much poses differ from those that they are near, beyond what noise does: variances as in `Prior`.

    One step of Fisher scoring for the width of a Gaussian prior (empirical Bayes: Efron & Morris 1973,
    10.1080/01621459.1973.10481350). An image that alone would find its pose with the variance s² gives, with a prior of
    variance σ², the offset ``K`` times as large, with ``K = σ² / (σ² + s²)``, and its posterior variance is
    ``C = K s²``. So ``Σ (offset² - K C) / Σ K²`` is the variance of what is true.

    Parameters
    ----------
    best
        A pose of each image, scored with that prior.
    anchors
        By image, in the same order.
    before
        The prior.
    """
    count = len(best.images)
    here = replace(best, images=np.arange(count, dtype=np.int32))
    offset = np.square(replace(before, anchors=anchors).offsets(here))
    floor = 1e-6 * np.einsum("caa->ca", best.precision).max(axis=1) + 1e-12
    covariance = np.linalg.inv(best.precision + floor[:, None, None] * np.eye(5))
    left = np.einsum("caa->ca", covariance)
    found = []
    for axes, variance in ((slice(0, 3), before.turn_variance), (slice(3, 5), before.shift_variance)):
        posterior = np.clip(left[:, axes].mean(axis=1), 0, variance)
        shrunk = 1 - posterior / variance
        excess = float(np.sum(offset[:, axes].mean(axis=1) - shrunk * posterior))
        found.append(excess / max(float(np.sum(shrunk**2)), 1e-9))
    return float(np.clip(found[0], LEAST_TURN, FIRST_TURN)), max(found[1], LEAST_SHIFT)
