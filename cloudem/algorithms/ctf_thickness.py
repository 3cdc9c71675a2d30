"""The thickness of a specimen, by the frequencies at which the rings of its layers cancel.

The rings of layers between ``-t/2`` and ``t/2`` of the mean defocus add up to
``(1 - sinc(pi lambda s² t) cos 2 phase) / 2`` (McMullan et al. 2015, 10.1016/j.ultramic.2015.05.017; Elferich et al.
2024, 10.7554/eLife.97227): they vanish at ``s² = 1 / (lambda t)`` and come back with the opposite sign. All else that
fades rings never brings them back: here their amplitude is a sum of ``exp(-B s²)`` whose factors are not negative.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.ctf_fit import CtfFit, CtfSearch, descend
from cloudem.algorithms.power_spectrum import PolarSpectrum
from cloudem.algorithms.thon_background import Microscope, separate, separation_of, thon_rings

Float64 = NDArray[np.float64]

THICKEST_A, STEP_A = 4000.0, 40.0
"""Å up to which a thickness is searched, and steps of the search."""

FADINGS_A2 = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0)
"""B of the fading of rings."""

LEAST_EVIDENCE_OF_NODE = 5.0
"""Standard deviations by which a thickness has to be better than none."""

NODE_WITHIN = 0.93
"""Of the band, where the node has to be: what is behind it shows that it is one."""


class ThicknessFit(NamedTuple):
    """What rings say of the thickness.

    Attributes
    ----------
    thickness
        Å; NaN where the rings show no node.
    evidence
        Root of how much better it is than no thickness, in units of what remains of a bin.
    fit
        The CTF, fitted with that thickness; as it was without one.
    """

    thickness: float
    evidence: float
    fit: CtfFit


def layers_factor(squares: Float64, thickness: float, wavelength_A: float) -> Float64:
    """Return ``sinc(pi lambda s² t)``, the factor of rings of a specimen of some thickness.

    Parameters
    ----------
    squares
        s² in 1/Å².
    thickness, wavelength_A
        Å.
    """
    return np.asarray(np.sinc(wavelength_A * squares * thickness))


def fit_thickness(spectrum: PolarSpectrum, fit: CtfFit, microscope: Microscope, search: CtfSearch) -> ThicknessFit:
    """Find the thickness, and fit the CTF with it.

    Parameters
    ----------
    spectrum
        That was fitted.
    fit
        Without thickness.
    microscope, search
        What is known, and the band.
    """
    parts, constants = separation_of(spectrum, search.band), microscope.constants
    inside = (parts.hats.sum(axis=1) > 0)[:, None]
    parts = parts._replace(hats=inside * np.exp(-np.array(FADINGS_A2) * spectrum.frequencies[:, None] ** 2))
    rings = thon_rings(spectrum, fit.parameters, constants)
    squares = spectrum.frequencies**2

    def cost_of(thickness: float) -> float:
        factor = layers_factor(squares, thickness, float(constants[0]))
        background, amplitude = separate(parts, rings * factor[:, None])
        model = background + (amplitude * factor)[:, None] * rings
        return float((parts.weights * (spectrum.values - model) ** 2).sum())

    tried = np.arange(0.0, THICKEST_A + STEP_A, STEP_A)
    costs = np.array([cost_of(float(thickness)) for thickness in tried])
    best = int(costs.argmin())
    freedom = max(int((parts.weights > 0).sum()) - parts.load.size, 1)
    evidence = math.sqrt(max(costs[0] - costs[best], 0.0) / max(costs[best] / freedom, 1e-300))
    node = 1 / math.sqrt(constants[0] * max(tried[best], STEP_A))
    if evidence < LEAST_EVIDENCE_OF_NODE or best == len(tried) - 1 or node > NODE_WITHIN * search.band[1]:
        return ThicknessFit(math.nan, evidence, fit)
    before, here, after = costs[best - 1 : best + 2]
    bend = before - 2 * here + after
    thickness = float(tried[best] + (STEP_A * (before - after) / (2 * bend) if bend > 0 else 0.0))
    factor = layers_factor(squares, thickness, float(constants[0]))
    parameters = fit.parameters
    for _ in range(2):
        background, amplitude = separate(parts, thon_rings(spectrum, parameters, constants) * factor[:, None])
        parameters, _, _ = descend(parts, background, amplitude * factor, parameters, microscope, search)
    background, amplitude = separate(parts, thon_rings(spectrum, parameters, constants) * factor[:, None])
    better = replace(fit, parameters=parameters, background=background, amplitude=amplitude * factor)
    return ThicknessFit(thickness, evidence, better)
