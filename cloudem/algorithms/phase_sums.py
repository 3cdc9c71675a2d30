"""Images beside the model of a joint fit, pixel by pixel: residual phases and their pictures, noise, and gain."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.algorithms.ctf_refinement import cubic_terms, quartic_terms
from cloudem.algorithms.joint_fit import Fitted, ImageOptics, Pictures, phases_of
from cloudem.backend.arrays import array_namespace
from cloudem.kernels.aberrations import magnified, odd_phase
from cloudem.kernels.fourier import HalfDisc, fill_half_disc
from cloudem.kernels.slices import extract

Float64 = NDArray[np.float64]
IntArray = NDArray[np.int64]


class PhaseSums(NamedTuple):
    """What images say of a group's residual phase, pixel by pixel of the half disc, and what they leave unexplained.

    Attributes
    ----------
    odd
        ``sum C X S* / σ²`` with X freed of its shift and known odd phase, (g, p) complex128: its phase is the odd one.
    even
        Sums for the even phase, (g, 5, p): of ``|S|² / σ²`` times sin², sin cos, cos² of the CTF's phase, and of
        ``Re(X S*) / σ²`` times sin and cos.
    residual, images
        ``sum |X - m|²`` by shell (g, n // 2 + 1), and images (g,), for :func:`cloudem.algorithms.noise.noise_variance`.
    match
        ``sum Re(X m*) / σ²`` and ``sum |m|² / σ²`` by shell, (g, 2, n // 2 + 1), for :func:`model_gain`.
    """

    odd: NDArray[np.complex128]
    even: Float64
    residual: Float64
    images: Float64
    match: Float64

    def plus(self, other: PhaseSums) -> PhaseSums:
        """Return the sums of both."""
        return PhaseSums(
            self.odd + other.odd, self.even + other.even, self.residual + other.residual, self.images + other.images,
            self.match + other.match,
        )  # fmt: skip


LEAST_GAIN, MOST_GAIN = 0.3, 3.0
"""What the factor is kept between; where it would be beyond, the shell shows nothing."""


def model_gain(match: Float64) -> Float64:
    """Return the factor by shell (n // 2 + 1,) with which the map of a half-set explains its own images best.

    Parameters
    ----------
    match
        Of :class:`PhaseSums`, (g, 2, n // 2 + 1).

    Notes
    -----
    With any other factor a likelihood draws the CTF of each image to larger or to smaller values, whatever the image
    shows. What an image has put into the map by its own noise is in ``Re(X m*)``; what all have put there, in
    ``|m|²``; a filter and a mask take away different shares of the two.
    """
    data, model = match.sum(axis=0)
    gain = np.divide(data, model, out=np.ones_like(data), where=model > 0)
    return np.asarray(np.clip(gain, LEAST_GAIN, MOST_GAIN))


def phase_sums(
    volume: NDArray[np.complex64],
    pictures: Pictures,
    optics: ImageOptics,
    known: ImageOptics,
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
    model = value * np.sin(chi)
    residual = whole - model
    xp = array_namespace(residual)
    weight = pictures.precision
    seen = centred * np.exp(-1j * old_odd) * value.conj() * weight
    match, power = (whole * value.conj()).real * weight, np.abs(value) ** 2 * weight
    sine, cosine = np.sin(old_chi), np.cos(old_chi)
    parts = (power * sine**2, power * sine * cosine, power * cosine**2, match * sine, match * cosine)
    shells, matches = np.zeros((groups, box // 2 + 1)), np.zeros((groups, 2, box // 2 + 1))
    out_odd, out_even = np.zeros((groups, len(disc.kx)), np.complex128), np.zeros((groups, 5, len(disc.kx)))
    left = xp.abs(residual) ** 2
    matched = (whole * model.conj()).real * weight, np.abs(model) ** 2 * weight
    for number in np.unique(group):
        rows = group == number
        out_odd[number] = (np.sin(chi) * seen)[rows].sum(axis=0)
        out_even[number] = [part[rows].sum(axis=0) for part in parts]
        shells[number], *matches[number] = (
            np.bincount(disc.shell, part[rows].sum(axis=0), minlength=box // 2 + 1) for part in (left, *matched)
        )
    return PhaseSums(out_odd, out_even, shells, np.bincount(group, minlength=groups).astype(float), matches)


def _at_k(optics: ImageOptics, odd: bool) -> Float64:
    """Return the polynomials of optics as those of k."""
    if odd:
        return np.asarray(magnified(optics.odd, optics.magnification, (1, 3, 5)))
    return np.asarray(magnified(optics.phase[:, :9], optics.magnification, (0, 2, 4)))


def _phases(optics: ImageOptics, fitted: Fitted, disc: HalfDisc, step: float) -> Float64:
    at_k = _at_k(optics._replace(phase=phases_of(optics, fitted)), False)
    x, y = disc.kx * step, disc.ky * step
    powers = [x ** (d - j) * y**j for d in (0, 2, 4) for j in range(d + 1)]
    return np.asarray(at_k @ np.array(powers))


PICTURE_BLUR = 1.2
"""Width in Fourier pixels of the Gaussian by which sums are smoothed before their phase is taken."""


def phase_pictures(
    sums: PhaseSums, change: Float64, disc: HalfDisc, box: int, pixel_size: float
) -> NDArray[np.float32]:
    """Return pictures of the phases beyond what the table says: what images show, and what was fitted.

    Parameters
    ----------
    sums
        Over images.
    change
        Parameters of each optics group, (g, 14).
    disc
        Of the sums.
    box, pixel_size
        Pixels, Å.

    Returns
    -------
    Shape (g, 4, m, m), radians, kx to the right and ky upwards, the origin in the middle: odd data and fit, even data
    and fit. NaN beyond the disc.
    """
    last = int(disc.shell.max())
    span = np.arange(-last, last + 1)
    step = 1 / (box * pixel_size)
    x, y = span * step, span[:, None] * step
    outside = np.hypot(span, span[:, None]) > last + 0.5

    def whole(values: NDArray[np.complexfloating]) -> NDArray[np.complex128]:
        half = fill_half_disc(values[None].astype(np.complex128), disc, box)[0]
        right = half[span % box][:, : last + 1]
        picture = np.concatenate([right[::-1, :0:-1].conj(), right], axis=1)
        return np.asarray(
            ndimage.gaussian_filter(picture.real, PICTURE_BLUR)
            + 1j * ndimage.gaussian_filter(picture.imag, PICTURE_BLUR)
        )

    out = []
    for odd, even, values in zip(sums.odd, sums.even, change, strict=True):
        ss, sc, cc, rs, rc = (whole(part).real for part in even)
        # sin(chi - phi) = sin chi cos phi - cos chi sin phi: least squares for cos phi and sin phi
        cosine, sine = cc * rs - sc * rc, sc * rs - ss * rc
        shown = [
            np.angle(whole(odd)),
            _evaluated(cubic_terms(values[3:7]), (1, 3, 5), x, y),
            np.arctan2(sine, cosine),
            _evaluated(quartic_terms(values[7:]), (0, 2, 4), x, y),
        ]
        out.append([np.where(outside, np.nan, part) for part in shown])
    return np.array(out, np.float32)


def _evaluated(terms: Float64, degrees: tuple[int, ...], x: NDArray[Any], y: NDArray[Any]) -> Float64:
    powers = [(d - j, j) for d in degrees for j in range(d + 1)]
    return np.asarray(sum(c * x**i * y**j for c, (i, j) in zip(terms, powers, strict=True)) + 0 * (x + y))
