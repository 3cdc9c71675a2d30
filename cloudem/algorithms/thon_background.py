"""Thon rings told apart from what they lie on: the model of a power spectrum, and its linear part.

The logarithm of the power is ``b(s, angle) - a(s) cos 2 phase``: a smooth background and rings whose contrast fades
smoothly. Given the phase, both are found by least squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from scipy.optimize import nnls

from cloudem.algorithms.power_spectrum import PolarSpectrum
from cloudem.kernels.ctf import wavelength

Float64 = NDArray[np.float64]

ICE_RING = (1 / 3.95, 1 / 3.45)
"""1/Å: crystalline and amorphous ice have power here that is no CTF's."""

PIECE = 0.035
"""1/Å of a background's spline; shorter ones would follow rings."""

UNDONE = 0.02
"""Share of its power by which a ring has to differ from what backgrounds can be."""


@dataclass(frozen=True)
class Microscope:
    """What the CTF needs besides the defocus.

    Attributes
    ----------
    voltage, spherical_aberration, amplitude_contrast
        kV, Å, fraction.
    """

    voltage: float
    spherical_aberration: float
    amplitude_contrast: float

    @property
    def constants(self) -> Float64:
        """Wavelength in Å, spherical aberration in Å, asin of the amplitude contrast."""
        lam = float(wavelength(self.voltage))
        return np.array([lam, self.spherical_aberration, math.asin(self.amplitude_contrast)])


def phase_of(squares: NDArray[Any], defocus: NDArray[Any] | float, shift: float, constants: Float64) -> Float64:
    """Return the phase of the CTF, radians.

    Parameters
    ----------
    squares
        s² in 1/Å².
    defocus
        Å, positive for underfocus.
    shift
        Phase shift, radians.
    constants
        `Microscope.constants`.
    """
    lam, cs, offset = constants
    return np.asarray(np.pi * lam * defocus * squares - np.pi / 2 * cs * lam**3 * squares**2 + shift + offset)


def thon_rings(spectrum: PolarSpectrum, parameters: Float64, constants: Float64) -> Float64:
    """Return ``-cos 2 phase``, (r, k).

    Parameters
    ----------
    spectrum
        Whose rings and sectors.
    parameters
        (4,) see `cloudem.kernels.thon_rings.thon_equations`.
    constants
        `Microscope.constants`.
    """
    defocus = parameters[0] + spectrum.angles @ parameters[1:3]
    return -np.cos(2 * phase_of(spectrum.squares, defocus, float(parameters[3]), constants))


def splines(frequencies: Float64, band: tuple[float, float], pieces: int, degree: int = 3) -> Float64:
    """Return B-splines on a band as columns, (r, pieces + degree); 0 outside of it.

    Parameters
    ----------
    frequencies
        (r,) where they are evaluated.
    band
        Lowest and highest frequency.
    pieces
        Intervals of equal length.
    degree
        Of the polynomials.
    """
    inner = np.linspace(*band, pieces + 1)
    knots = np.concatenate([[band[0]] * degree, inner, [band[1]] * degree])
    inside = (frequencies >= band[0]) & (frequencies <= band[1])
    basis = np.zeros((len(frequencies), pieces + degree))
    basis[inside] = BSpline.design_matrix(frequencies[inside], knots, degree).toarray()
    return basis


def background_pieces(band: tuple[float, float]) -> int:
    """Return the pieces of a background's spline on a band in 1/Å: longer than rings are wide."""
    return max(1, round((band[1] - band[0]) / PIECE))


def in_band(spectrum: PolarSpectrum, band: tuple[float, float]) -> Float64:
    """Return the weights of a spectrum within a band and outside of the ice ring, (r, k)."""
    s = spectrum.frequencies
    kept = (s >= band[0]) & (s <= band[1]) & ~((s > ICE_RING[0]) & (s < ICE_RING[1]))
    return spectrum.weights * kept[:, None]


class Separation(NamedTuple):
    """Least squares for background and rings on a band: what does not depend on the phase.

    Attributes
    ----------
    spectrum, weights, band
        What is fitted, (r, k) weights of it, and where, 1/Å.
    smooth, hats, turns
        (r, i) splines of the background, (r, m) those of the rings' amplitude, (k, 3) 1, cos 2θ and sin 2θ.
    inverse, load
        Of the normal equations of the background.
    """

    spectrum: PolarSpectrum
    weights: Float64
    band: tuple[float, float]
    smooth: Float64
    hats: Float64
    turns: Float64
    inverse: Float64
    load: Float64


def separation_of(spectrum: PolarSpectrum, band: tuple[float, float]) -> Separation:
    """Prepare least squares on a band: the background is a spline, whose coefficients may go with cos 2θ and sin 2θ.

    Parameters
    ----------
    spectrum
        By rings and sectors.
    band
        Lowest and highest frequency, 1/Å.
    """
    weights = in_band(spectrum, band)
    pieces = background_pieces(band)
    smooth = splines(spectrum.frequencies, band, pieces)
    hats = splines(spectrum.frequencies, band, pieces + 1, 1)
    turns = np.concatenate([np.ones((len(spectrum.angles), 1)), spectrum.angles], axis=1)
    by_angle = np.einsum("rk,ka,kb->rab", weights, turns, turns)
    size = smooth.shape[1] * 3
    normal = np.einsum("ri,rj,rab->iajb", smooth, smooth, by_angle).reshape(size, size)
    normal += np.eye(size) * 1e-9 * np.trace(normal)
    load = np.einsum("ri,rk,ka->ia", smooth, weights * spectrum.values, turns).ravel()
    return Separation(spectrum, weights, band, smooth, hats, turns, np.linalg.inv(normal), load)


def separate(parts: Separation, rings: Float64) -> tuple[Float64, Float64]:
    """Tell background and rings apart.

    Parameters
    ----------
    parts
        From `separation_of`.
    rings
        (r, k) ``-cos 2 phase``, perhaps times what is known of their contrast.

    Returns
    -------
    background, amplitude
        (r, k), and (r,) the factor of the rings, not negative.
    """
    weighted = parts.weights * rings
    cross = np.einsum("ri,rm,ra->iam", parts.smooth, parts.hats, weighted @ parts.turns)
    cross = cross.reshape(-1, parts.hats.shape[1])
    own = np.einsum("rm,rn,r->mn", parts.hats, parts.hats, (weighted * rings).sum(axis=1))
    load = parts.hats.T @ (weighted * parts.spectrum.values).sum(axis=1)
    solved = parts.inverse @ cross
    schur = own - cross.T @ solved
    # rings that the background could all but undo are kept low
    schur += np.diag(np.diag(own)) * UNDONE + np.eye(len(schur)) * max(np.trace(own), 1e-30) * 1e-9
    root = np.linalg.cholesky(schur)
    heights, _ = nnls(root.T, np.linalg.solve(root, load - solved.T @ parts.load))
    smooth = (parts.inverse @ (parts.load - cross @ heights)).reshape(-1, 3)
    return parts.smooth @ smooth @ parts.turns.T, parts.hats @ heights
