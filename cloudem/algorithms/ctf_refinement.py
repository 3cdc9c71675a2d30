"""Parameters of optics groups in a joint fit: the model they make, steps, significance, and what tables say of them.

Parameters are those columns of :mod:`cloudem.kernels.model_fit` that an optics group has; see there for polynomials.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, stats

from cloudem.algorithms.aberrations import even_terms, odd_terms_before
from cloudem.algorithms.joint_fit import Fitted, ImageOptics
from cloudem.kernels.aberrations import EVEN_ORDERS
from cloudem.kernels.ctf import ctf_terms, wavelength
from cloudem.kernels.model_fit import EVEN, MAGNIFICATION
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles

Float64 = NDArray[np.float64]
IntArray = NDArray[np.int64]

FIRST, LAST = MAGNIFICATION.start, EVEN.stop
"""Columns of optics groups are those from FIRST up to LAST, 14 with the trace."""

NAMES = (
    "magnification, M00 - M11", "magnification, M01 + M10", "pixel size", "beam tilt, x", "beam tilt, y",
    "trefoil, cos 3φ", "trefoil, sin 3φ", "astigmatism, cos 2φ", "astigmatism, sin 2φ", "spherical aberration, k⁴",
    "fourth order, k⁴ cos 2φ", "fourth order, k⁴ sin 2φ", "tetrafoil, cos 4φ", "tetrafoil, sin 4φ",
)  # fmt: skip
"""Of the columns of optics groups, in order."""

FAMILIES = (
    ("magnification", (0, 1)),
    ("pixel size", (2,)),
    ("beam tilt", (3, 4)),
    ("trefoil", (5, 6)),
    ("astigmatism", (7, 8)),
    ("spherical aberration", (9,)),
    ("fourth-order astigmatism", (10, 11)),
    ("tetrafoil", (12, 13)),
)
"""What is kept or left out together, with its places among the parameters of a group."""

SPHERICAL = NAMES.index("spherical aberration, k⁴")
"""Its place among the parameters of a group. It is always applied: were it left out, the mean defocus would make up for
it, and be wrong."""

CS_SPREAD = 1e7
"""Å: by how much a table's spherical aberration is expected to be wrong, a standard deviation. Microscopes have 0, 1.2,
2.0 or 2.7 mm; a table may say another's. It holds k⁴ where images end so early that they know nothing of it."""

LONGEST_PHASE, LONGEST_MAGNIFICATION = 1.5, 0.02
"""No single step changes a phase at the frequency limit by more radians, or an entry of M by more."""

DEGREES = np.array([0, 0, 0, 3, 3, 3, 3, 2, 2, 4, 4, 4, 4, 4])
"""Degree of the polynomial of each phase."""


def cubic_terms(values: Float64) -> Float64:
    """Return the odd phase (12,) of the four odd parameters, as :func:`cloudem.kernels.aberrations.odd_phase` reads."""
    a, b, c, d = values
    out = np.zeros(12)
    out[2:6] = a + c, b + 3 * d, a - 3 * c, b - d
    return out


def quartic_terms(values: Float64) -> Float64:
    """Return the even phase (9,) of the seven even parameters, degrees 0, 2, 4."""
    a, b, c, d, e, f, g = values
    return np.array([0, a, 2 * b, -a, c + d + f, 2 * e + 4 * g, 2 * c - 6 * f, 2 * e - 4 * g, c - d + f])


def matrix_of(values: Float64) -> Float64:
    """Return what is added to M, (2, 2), of its three parameters."""
    a, b, t = values
    return np.array([[t + a, b], [b, t - a]])


def microscope_of(particles: Particles, rows: IntArray, change: Float64) -> ImageOptics:
    """Return the model's optics of some particles.

    Parameters
    ----------
    particles
        Table, with what its optics groups say of aberrations.
    rows
        Of the table.
    change
        Parameters of each optics group, (g, 14), beyond what the table says.
    """
    number = particles.get("optics_group", 0).astype(np.int64)[rows]
    present, number = np.unique(number, return_inverse=True)  # what a group without images says is nobody's concern
    groups, change = [particles.optics[group] for group in present], change[present]
    by_group = {
        name: np.array([getattr(group, name) for group in groups])[number]
        for name in ("voltage", "spherical_aberration", "amplitude_contrast")
    }
    phase = ctf_terms(
        **by_group,
        defocus_u=particles["defocus_u"][rows],
        defocus_v=particles["defocus_v"][rows],
        defocus_angle=particles["defocus_angle"][rows],
        phase_shift=particles.get("phase_shift", 0.0)[rows],
        b_factor=particles.get("ctf_b_factor", 0.0)[rows],
    )
    even = np.array([even_terms(g) + quartic_terms(c[7:]) for g, c in zip(groups, change, strict=True)])
    odd = np.array([odd_terms_before(g) + cubic_terms(c[3:7]) for g, c in zip(groups, change, strict=True)])
    matrices = np.array([g.magnification + matrix_of(c[:3]) for g, c in zip(groups, change, strict=True)])
    phase[:, :9] -= even[number]
    return ImageOptics(matrices[number], phase, odd[number], np.pi * wavelength(by_group["voltage"]))


def prior_precision(group: OpticsGroup) -> Float64:
    """Return what is known of a group's 14 parameters before the fit, 1 / variance: 0 but for k⁴."""
    out = np.zeros(LAST - FIRST)
    out[SPHERICAL] = (np.pi / 2 * wavelength(group.voltage) ** 3 * CS_SPREAD) ** -2.0
    return out


def group_step(matrix: Float64, gradient: Float64, free: NDArray[np.bool_]) -> tuple[Float64, float]:
    """Return the step of an optics group's free parameters towards the maximum, and the gain that it promises.

    Parameters
    ----------
    matrix, gradient
        Of the profile likelihood, (c, c) and (c,).
    free
        Which of the parameters are fitted, (c,); the step is 0 for the others.
    """
    step = np.zeros(len(free))
    step[free] = np.linalg.solve(matrix[np.ix_(free, free)] + _ridge(matrix, free), gradient[free])
    return step, float(gradient @ step) / 2


def shortened_step(step: Float64, limit: float) -> Float64:
    """Return a step of a group's 14 parameters, short enough to be trusted; ``limit`` in 1/Å."""
    size = np.abs(step) * limit**DEGREES / np.where(DEGREES > 0, LONGEST_PHASE, LONGEST_MAGNIFICATION)
    return step / max(1.0, float(size.max()))


def covariance(matrix: Float64, free: NDArray[np.bool_]) -> Float64:
    """Return the covariance (c, c) of a group's free parameters; zero of the others."""
    out = np.zeros_like(matrix)
    if free.any():
        out[np.ix_(free, free)] = np.linalg.inv(matrix[np.ix_(free, free)] + _ridge(matrix, free))
    return out


def without(values: Float64, precision: Float64, dropped: NDArray[np.bool_], free: NDArray[np.bool_]) -> Float64:
    """Return parameters of a group (14,) with some at 0, and the others where they are most probable then.

    Parameters
    ----------
    values, precision
        The most probable parameters, and the matrix of the profile likelihood (14, 14).
    dropped, free
        Which become 0, and which others are fitted.
    """
    out = np.where(dropped, 0.0, values)
    if free.any() and dropped.any():
        left = precision[np.ix_(free, free)] + _ridge(precision, free)
        out[free] += np.linalg.solve(left, precision[np.ix_(free, dropped)] @ values[dropped])
    return out


def _ridge(matrix: Float64, free: NDArray[np.bool_]) -> Float64:
    """Return what keeps directions of which images know nothing from making a matrix singular."""
    return np.asarray(np.diag(1e-9 * np.diag(matrix)[free] + 1e-30))


MOST_AHEAD = 4.0
"""By how much a move is lengthened at most, in any direction."""


def looked_ahead(moved: Float64, precision: Float64, felt: Float64, free: NDArray[np.bool_]) -> Float64:
    """Return how far a group's parameters have to move, (14,), of how far they moved against a map of the same images.

    Each image has its part in the map, with the aberrations that it had when the map was made: in a shell of FSC f, a
    share of 1 - f of what it is compared with agrees with it where it was. Against that map it moves by
    ``H⁻¹ sum f H_k`` of what is left, shell by shell; the inverse is what this returns.

    Parameters
    ----------
    moved
        Of each of the 14 parameters.
    precision, felt
        Matrix of the profile likelihood, (14, 14), and the same with the shells weighted by their FSC.
    free
        Which parameters are fitted.
    """
    out = moved.copy()
    if free.any():
        here = np.ix_(free, free)
        root = 1 / np.sqrt(np.maximum(np.diag(precision)[free], 1e-30))
        scaled = [part[here] * root[:, None] * root + 1e-9 * np.eye(len(root)) for part in (precision, felt)]
        ratio, vectors = linalg.eigh(*scaled)  # scaled[0] v = ratio scaled[1] v
        ratio = np.clip(ratio, 1.0, MOST_AHEAD)
        along = vectors.T @ scaled[1] @ (moved[free] / root)
        out[free] = vectors @ (ratio * along) * root
    return out


@dataclass(frozen=True)
class Judged:
    """What was fitted to an optics group, all parameters together, and what is believed of it.

    Attributes
    ----------
    values, errors
        Change of each of the 14 parameters, and its standard error; NaN where it was not fitted.
    deviations
        By how many standard deviations a parameter's family differs from 0, (14,).
    fitted, significant, believed
        Which were fitted, which are significant, and which are applied: these and k⁴, (14,).
    covariance
        (14, 14).
    """

    values: Float64
    errors: Float64
    deviations: Float64
    fitted: NDArray[np.bool_]
    significant: NDArray[np.bool_]
    believed: NDArray[np.bool_]
    covariance: Float64


def judge_aberrations(values: Float64, precision: Float64, free: NDArray[np.bool_], significance: float) -> Judged:
    """Judge the parameters of a group, those of a family together; k⁴ is believed, whatever its significance.

    Parameters
    ----------
    values, free
        Change of each of the 14 parameters, and which are fitted.
    precision
        What is known of them, (14, 14): the matrix of the profile likelihood, its shells weighted for a map that is
        made of the same images.
    significance
        Standard deviations from which on a family is believed.

    Notes
    -----
    The deviation of a family is that of a normal variable which is as improbable as the family's chi².
    """
    known = covariance(precision, free)
    deviations = np.full(len(free), np.nan)
    for _, places in FAMILIES:
        here = [place for place in places if free[place]]
        if here:
            chi2 = float(values[here] @ np.linalg.solve(known[np.ix_(here, here)], values[here]))
            tail = float(stats.chi2.sf(chi2, len(here)))
            deviations[here] = -stats.norm.ppf(tail / 2) if tail > 1e-100 else chi2**0.5
    significant = free & (np.nan_to_num(deviations) >= significance)
    believed = significant.copy()
    believed[SPHERICAL] = free[SPHERICAL]
    errors = np.where(free, np.sqrt(np.diag(known)), np.nan)
    return Judged(np.where(free, values, np.nan), errors, deviations, free.copy(), significant, believed, known)


LEAST_CS = 1e6
"""Å: spherical aberration from which on coma is written as beam tilt."""


def refined_optics(group: OpticsGroup, change: Float64) -> OpticsGroup:
    """Return an optics group with what was fitted, in RELION's terms.

    Z(±1, 3) hold -2 rho, Z(0, 4) holds -6 rho² and Z(±2, 4) hold -3 rho²: lower orders take these back. What is k² kx
    and k² ky becomes beam tilt, as RELION has it, or Zernike terms where the spherical aberration is so small (below
    0.1 mm, a corrected microscope) that a beam tilt would have to be absurd.

    Parameters
    ----------
    group
        As it was.
    change
        Its 14 parameters.
    """
    if not np.any(change):
        return group
    odd, even = np.zeros(max(6, len(group.odd_zernike))), np.zeros(len(EVEN_ORDERS))
    odd[: len(group.odd_zernike)] = group.odd_zernike
    even[: len(group.even_zernike)] = group.even_zernike[: len(even)]
    tilt = np.array(group.beam_tilt)
    per_mrad = -2e-3 * np.pi * group.spherical_aberration * float(wavelength(group.voltage)) ** 2
    if group.spherical_aberration >= LEAST_CS:
        tilt = tilt + change[3:5] / per_mrad
    else:  # k² kx = (Z(1, 3) + 2 Z(1, 1)) / 3
        odd[[4, 3]] += change[3:5] / 3
        odd[[1, 0]] += 2 * change[3:5] / 3
    odd[[5, 2]] += change[5:7]
    cosine, sine, square, cosine2, sine2, cosine4, sine4 = change[7:]
    even[[3, 1]] += cosine + 3 * cosine2 / 4, sine + 3 * sine2 / 4
    even[[0, 2, 6]] += np.array([2, 3, 1]) * square / 6
    even[[7, 5]] += cosine2 / 4, sine2 / 4
    even[[8, 4]] += cosine4, sine4
    return group.with_aberrations(
        beam_tilt=tuple(tilt),
        odd_zernike=odd.tolist() if odd.any() or group.odd_zernike else None,
        even_zernike=even.tolist() if even.any() or group.even_zernike else None,
        magnification=group.magnification + matrix_of(change[:3]) if change[:3].any() else None,
    )


def refined_defocus(
    defocus_u: Float64, defocus_v: Float64, angle: Float64, fitted: Fitted, per_defocus: Float64
) -> tuple[Float64, Float64, Float64]:
    """Return defocus_u, defocus_v (Å) and the angle (radians) with what was fitted to images and micrographs."""
    mean, half = (defocus_u + defocus_v) / 2 + fitted.defocus, (defocus_u - defocus_v) / 2
    if not fitted.astigmatism.any():
        return mean + half, mean - half, angle
    cosine = half * np.cos(2 * angle) - fitted.astigmatism[:, 0] / per_defocus
    sine = half * np.sin(2 * angle) - fitted.astigmatism[:, 1] / per_defocus
    half = np.hypot(cosine, sine)
    return mean + half, mean - half, np.arctan2(sine, cosine) / 2 % np.pi
