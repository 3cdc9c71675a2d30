"""What people look at to judge a CTF: the spectrum, one half data and one half model, and curves on a common grid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from cloudem.algorithms.ctf_fit import CtfFit
from cloudem.algorithms.ctf_quality import Equiphase
from cloudem.algorithms.power_spectrum import PolarSpectrum
from cloudem.algorithms.thon_background import Microscope, phase_of

PICTURE, POINTS = 256, 256
"""Pixels along a picture, and points of a curve."""

_FAINT = 0.7
"""Of the noise of a bin: rings that are weaker than that are faint in the picture, too."""


def spectrum_picture(spectrum: PolarSpectrum, fit: CtfFit, microscope: Microscope) -> NDArray[np.uint8]:
    """Return the spectrum less its background: data on the left, the fitted CTF on the right, on one grey scale.

    Parameters
    ----------
    spectrum
        That was fitted; its sectors average along the rings, which shows those that single pixels do not.
    fit, microscope
        The CTF.

    Returns
    -------
    picture
        (PICTURE, PICTURE), bright where there is more power; the first row is the lowest ky, the edge the end of the
        band. Grey outside of what was fitted.
    """
    radius = fit.band[1] / spectrum.step
    grid = (np.arange(PICTURE) + 0.5 - PICTURE / 2) * (2 * radius / PICTURE)
    kx, ky = grid[None, :], grid[:, None]
    ring, theta = np.sqrt(kx**2 + ky**2), np.arctan2(ky, kx)
    sectors = fit.background.shape[1]
    weights = np.maximum(spectrum.weights.mean(axis=1, keepdims=True), 1e-9)
    scale = 1 / (np.abs(fit.amplitude)[:, None] + _FAINT / np.sqrt(weights))
    polar = np.where(spectrum.weights > 0, spectrum.values - fit.background, 0.0) * scale
    # a spectrum is the same at -k: sectors of half a turn go on where they began
    polar = np.concatenate([polar[:, -1:], polar, polar[:, :1]], axis=1)
    sector = ((theta + np.pi / 2) / np.pi * sectors) % sectors + 0.5
    data = map_coordinates(polar, [ring, sector], order=1, mode="nearest")
    mean, along, across = fit.parameters[:3]
    defocus = mean + along * np.cos(2 * theta) + across * np.sin(2 * theta)
    phase = phase_of((ring * spectrum.step) ** 2, defocus, fit.phase_shift, microscope.constants)
    place = np.arange(len(fit.amplitude))
    model = -np.interp(ring, place, fit.amplitude * scale[:, 0]) * np.cos(2 * phase)
    inside = (ring * spectrum.step >= fit.band[0]) & (ring <= radius)
    shown = np.where(inside, np.where(kx < 0, data, model), 0.0)
    return np.asarray(np.clip(128 + 100 * shown, 0, 255), np.uint8)


def curves_on_grid(average: Equiphase, highest: float) -> dict[str, NDArray[np.float32]]:
    """Return curves at ``POINTS`` frequencies from 0 to ``highest`` in 1/Å; NaN where nothing is known.

    Parameters
    ----------
    average
        Along lines of equal phase.
    highest
        1/Å.

    Returns
    -------
    curves
        ``data`` and ``model`` over the amplitude of the rings and a little noise, so that all rings can be seen;
        ``quality``, the local correlation of both.
    """
    grid = np.linspace(0, highest, POINTS)
    known = average.weights > 0
    weights = np.maximum(average.weights, 1e-30)
    scale = 1 / (average.amplitude + 1.5 / np.sqrt(weights))
    curves = {
        "data": average.values * scale,
        "model": average.rings * average.amplitude * scale,
        "quality": average.quality,
    }
    s = average.frequencies[known]
    if len(s) < 2:
        return {name: np.full(POINTS, np.nan, np.float32) for name in curves}
    return {
        name: np.interp(grid, s, values[known], left=np.nan, right=np.nan).astype(np.float32)
        for name, values in curves.items()
    }
