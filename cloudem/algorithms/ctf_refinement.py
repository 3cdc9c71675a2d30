"""The parameters of optics groups in a joint fit: the model they make, steps, significance, and what tables say of them.

Parameters are those columns of :mod:`cloudem.kernels.model_fit` that an optics group has; see there for polynomials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.aberrations import even_terms
from cloudem.algorithms.joint_fit import Fitted, Microscope, Pictures, phases_of
from cloudem.backend.arrays import array_namespace
from cloudem.kernels.aberrations import EVEN_ORDERS, beam_tilt_terms, magnified, odd_phase, zernike_terms
from cloudem.kernels.ctf import ctf_terms, wavelength
from cloudem.kernels.model_fit import COLUMNS, EVEN, MAGNIFICATION, ODD, TRACE
from cloudem.kernels.slices import extract
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles

Float64 = NDArray[np.float64]
IntArray = NDArray[np.int64]

FIRST, LAST = MAGNIFICATION.start, EVEN.stop
"""Columns of optics groups are those from FIRST up to LAST, 14 with the trace."""

NAMES = (
    "magnification, M00 - M11", "magnification, M01 + M10", "pixel size", "beam tilt, x", "beam tilt, y", "trefoil, cos 3φ",
    "trefoil, sin 3φ", "astigmatism, cos 2φ", "astigmatism, sin 2φ", "spherical aberration, k⁴",
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

SIGNIFICANT = 4.0
"""Standard deviations, of a single parameter or of a family as a whole, from which on an aberration is believed."""

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


def microscope_of(particles: Particles, rows: IntArray, change: Float64) -> Microscope:
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
    groups = particles.optics
    number = particles.get("optics_group", 0).astype(np.int64)[rows]
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
    return Microscope(matrices[number], phase, odd[number], np.pi * wavelength(by_group["voltage"]))


def odd_terms_before(group: OpticsGroup) -> Float64:
    """Return the odd phase of an optics group as a polynomial of ``M k``, (12,)."""
    tilt = beam_tilt_terms(group.beam_tilt, group.spherical_aberration, group.voltage)
    return np.asarray(zernike_terms(group.odd_zernike, odd=True) + tilt)


class GroupSums(NamedTuple):
    """Sums over the images of an optics group: matrix (c, c), gradient (c,), minus log-likelihood, weight of images."""

    matrix: Float64
    gradient: Float64
    cost: float
    weight: float


def group_step(sums: GroupSums, free: NDArray[np.bool_], limit: float) -> tuple[Float64, float]:
    """Return the step of an optics group's free parameters (c,) towards the maximum, and the gain that it promises.

    Parameters
    ----------
    sums
        Over its images; c columns, as ``free`` has.
    free
        Which of them are fitted.
    limit
        Frequency limit, 1/Å, at which no phase may change by more than :data:`LONGEST_PHASE`.
    """
    step = np.zeros(len(free))
    step[free] = np.linalg.solve(*_scaled(sums, free)) * _root(sums, free)
    return step, float(sums.gradient @ step) / 2


def shortened(step: Float64, limit: float) -> Float64:
    """Return a step of a group's 14 parameters, short enough to be trusted; ``limit`` in 1/Å."""
    size = np.abs(step) * limit**DEGREES / np.where(DEGREES > 0, LONGEST_PHASE, LONGEST_MAGNIFICATION)
    return step / max(1.0, float(size.max()))


def covariance(matrix: Float64, free: NDArray[np.bool_]) -> Float64:
    """Return the covariance (c, c) of a group's free parameters; zero of the others."""
    root = 1 / np.sqrt(np.maximum(np.diag(matrix)[free], 1e-30))
    scaled = matrix[np.ix_(free, free)] * root[:, None] * root + 1e-12 * np.eye(len(root))
    out = np.zeros_like(matrix)
    out[np.ix_(free, free)] = np.linalg.inv(scaled) * root[:, None] * root
    return out


def _root(sums: GroupSums, free: NDArray[np.bool_]) -> Float64:
    return np.asarray(1 / np.sqrt(np.maximum(np.diag(sums.matrix)[free], 1e-30)))


def _scaled(sums: GroupSums, free: NDArray[np.bool_]) -> tuple[Float64, Float64]:
    root = _root(sums, free)
    matrix = sums.matrix[np.ix_(free, free)] * root[:, None] * root + 1e-9 * np.eye(len(root))
    return matrix, sums.gradient[free] * root


@dataclass(frozen=True)
class FamilyVerdict:
    """Whether aberrations of a kind are believed: their deviation from 0 in standard deviations of one parameter."""

    name: str
    places: tuple[int, ...]
    deviation: float

    @property
    def believed(self) -> bool:
        """Whether it is significant."""
        return self.deviation >= SIGNIFICANT


def verdicts(values: Float64, covariances: Float64, free: NDArray[np.bool_]) -> list[FamilyVerdict]:
    """Judge the families of a group's free parameters.

    Parameters
    ----------
    values, free
        Change of each of the 14 parameters, and which are fitted.
    covariances
        (14, 14).

    Returns
    -------
    The deviation is that of a normal variable which is as improbable as the family's chi².
    """
    from scipy import stats

    out = []
    for name, places in FAMILIES:
        here = [place for place in places if free[place]]
        if not here:
            continue
        part = covariances[np.ix_(here, here)]
        chi2 = float(values[here] @ np.linalg.solve(part, values[here]))
        deviation = float(-stats.norm.ppf(stats.chi2.sf(chi2, len(here)) / 2)) if chi2 < 500 else chi2**0.5
        out.append(FamilyVerdict(name, tuple(here), deviation))
    return out


def refined_optics(group: OpticsGroup, change: Float64) -> OpticsGroup:
    """Return an optics group with what was fitted, in RELION's terms.

    Z(±1, 3) hold -2 rho, Z(0, 4) holds -6 rho² and Z(±2, 4) hold -3 rho²: lower orders take these back. What is k² kx
    and k² ky becomes beam tilt, as RELION has it, or Zernike terms where there is no spherical aberration.

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
    if group.spherical_aberration > 0:
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
        odd_zernike=odd if odd.any() or group.odd_zernike else None,
        even_zernike=even if even.any() or group.even_zernike else None,
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


class PhaseSums(NamedTuple):
    """What images say of a group's residual phase, pixel by pixel of the half disc, and what they leave unexplained.

    Attributes
    ----------
    odd
        ``sum C X S* / σ²`` with X freed of its shift and known odd phase, (g, p) complex128: its phase is the odd one.
    even
        Sums for the even phase, (g, 5, p): of ``|S|² / σ²`` times sin², sin cos, cos² of the CTF's phase, and of
        ``Re(X S*) / σ²`` times sin and cos.
    residual, count
        ``sum |X - m|²`` by shell (g, n // 2 + 1), and images (g,), for :func:`cloudem.algorithms.noise.noise_variance`.
    """

    odd: NDArray[np.complex128]
    even: Float64
    residual: Float64
    count: Float64

    def plus(self, other: PhaseSums) -> PhaseSums:
        """Return the sums of both."""
        return PhaseSums(*(a + b for a, b in zip(self, other, strict=True)))


def phase_sums(
    volume: NDArray[np.complex64],
    pictures: Pictures,
    optics: Microscope,
    known: Microscope,
    fitted: Fitted,
    group: IntArray,
    groups: int,
) -> PhaseSums:
    """Return what images of one half-set say, pixel by pixel.

    Parameters
    ----------
    volume
        Padded half-volume of its map.
    pictures, fitted, group
        Images, their parameters and optics groups.
    optics
        The whole model.
    known
        The same without the aberrations that were fitted: the phases shown are those beyond it.
    groups
        Number of optics groups.
    """
    disc, box = pictures.disc, pictures.box
    step = 1 / (box * pictures.pixel_size)
    rotations = fitted.rotations.copy()
    rotations[:, :2] = np.swapaxes(optics.magnification, 1, 2) @ rotations[:, :2]
    slices = extract(volume, rotations, disc.kx, disc.ky, pictures.padding)
    scale = (pictures.scale * np.exp(fitted.log_scale))[:, None]
    ramp = 2 * np.pi / box * (fitted.shifts[:, :1] * disc.kx + fitted.shifts[:, 1:] * disc.ky)
    centred = pictures.transforms * np.exp(1j * ramp).astype(np.complex64)
    odd, old_odd = (odd_phase(disc.kx, disc.ky, _at_k(each, True), step) for each in (optics, known))
    chi, old_chi = (_phases(each, fitted, disc, step) for each in (optics, known))
    value = slices * scale.astype(np.float32)
    whole = centred * np.exp(-1j * odd)
    residual = whole - value * np.sin(chi)
    xp = array_namespace(residual)
    weight = pictures.precision
    seen = centred * np.exp(-1j * old_odd) * value.conj() * weight
    match, power = (whole * value.conj()).real * weight, np.abs(value) ** 2 * weight
    sine, cosine = np.sin(old_chi), np.cos(old_chi)
    parts = (power * sine**2, power * sine * cosine, power * cosine**2, match * sine, match * cosine)
    shells = np.zeros((groups, box // 2 + 1))
    out_odd, out_even = np.zeros((groups, len(disc.kx)), np.complex128), np.zeros((groups, 5, len(disc.kx)))
    left = xp.abs(residual) ** 2
    for number in np.unique(group):
        rows = group == number
        out_odd[number] = (np.sin(chi) * seen)[rows].sum(axis=0)
        out_even[number] = [part[rows].sum(axis=0) for part in parts]
        shells[number] = np.bincount(disc.shell, left[rows].sum(axis=0), minlength=box // 2 + 1)
    return PhaseSums(out_odd, out_even, shells, np.bincount(group, minlength=groups).astype(float))


def _at_k(optics: Microscope, odd: bool) -> Float64:
    """Return the polynomials of optics as those of k."""
    if odd:
        return np.asarray(magnified(optics.odd, optics.magnification, (1, 3, 5)))
    return np.asarray(magnified(optics.phase[:, :9], optics.magnification, (0, 2, 4)))


def _phases(optics: Microscope, fitted: Fitted, disc: object, step: float) -> Float64:
    at_k = _at_k(optics._replace(phase=phases_of(optics, fitted)), False)
    x, y = disc.kx * step, disc.ky * step  # type: ignore[attr-defined]
    powers = [x ** (d - j) * y**j for d in (0, 2, 4) for j in range(d + 1)]
    return np.asarray(at_k @ np.array(powers))
