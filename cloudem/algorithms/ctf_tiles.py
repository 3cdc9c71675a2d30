"""The defocus of parts of a micrograph: the plane of a tilted specimen, and what remains of each tile.

A tile has too few rings for a fit of its own, so that all tiles share their CTF but for the defocus (as in Elferich et
al. 2024, 10.7554/eLife.97227). The plane is found on a grid of slopes at low frequency, then followed to high ones.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.ctf_fit import CtfFit, CtfSearch, bands_of
from cloudem.algorithms.power_spectrum import (
    PolarSpectrum,
    PowerSpectrum,
    Tiles,
    lay_tiles,
    polar_spectrum,
    radius_of,
    tile_power,
)
from cloudem.algorithms.thon_background import Microscope, Separation, separate, separation_of, thon_rings
from cloudem.kernels.thon_rings import thon_equations

Float64 = NDArray[np.float64]

LOCAL_TILE_A, LOCAL_SECTORS = 600.0, 18
"""Edge of a tile that has a defocus of its own, and its sectors."""

STEEPEST, SLOPES = 1.2, 17
"""Slopes along x and y that are tried, from minus to plus so many Å per Å (50°), and how many."""

USUAL_RESIDUAL_A = 200.0
"""How far the defocus of a tile usually is from the plane."""


class LocalSpectra(NamedTuple):
    """Spectra of the tiles of a micrograph.

    Attributes
    ----------
    spectra
        Of each tile.
    average
        Of all tiles together.
    places
        (t, 2) x and y of their centres in Å from the centre of the micrograph.
    """

    spectra: list[PolarSpectrum]
    average: PolarSpectrum
    places: Float64


class DefocusPlane(NamedTuple):
    """The defocus over a micrograph.

    Attributes
    ----------
    parameters
        (4,) as of `CtfFit`, at the centre.
    slopes
        (2,) by how much the defocus grows along x and y, Å per Å.
    errors
        (2,) standard deviations of these.
    """

    parameters: Float64
    slopes: Float64
    errors: Float64


class TileDefocus(NamedTuple):
    """What each tile's defocus differs by from the plane.

    Attributes
    ----------
    x, y
        (t,) centres, Å from the centre of the micrograph.
    residual, error
        (t,) Å; the error is as large as usual residuals where a tile shows nothing.
    """

    x: Float64
    y: Float64
    residual: Float64
    error: Float64


def local_spectra(image: NDArray[Any], pixel_size: float, highest: float) -> LocalSpectra:
    """Return the spectra of small tiles.

    Parameters
    ----------
    image
        (rows, columns).
    pixel_size
        Å.
    highest
        1/Å up to which they are needed.
    """
    tiles: Tiles = lay_tiles((image.shape[0], image.shape[1]), pixel_size, LOCAL_TILE_A)
    radius, step = radius_of(tiles, pixel_size, highest), 1 / (tiles.edge * pixel_size)
    powers = [tile_power(image, corner, tiles.edge, radius) for corner in tiles.corners]
    levels = [float(power[:, radius // 4 :].mean()) for power in powers]
    kept = [at for at, level in enumerate(levels) if 0 < level < np.inf]  # a tile may be flat, masked, or damaged
    powers = [powers[at] / levels[at] for at in kept]
    spectra = [polar_spectrum(PowerSpectrum(power, step, 1.0), LOCAL_SECTORS) for power in powers]
    average = PowerSpectrum(np.mean(powers, axis=0), step, len(powers) / 2)
    return LocalSpectra(spectra, polar_spectrum(average, LOCAL_SECTORS), tiles.centres[kept] * pixel_size)


def fit_plane(local: LocalSpectra, fit: CtfFit, microscope: Microscope, search: CtfSearch) -> DefocusPlane:
    """Fit a plane of defocus, with one astigmatism, to all tiles.

    Parameters
    ----------
    local
        From `local_spectra`.
    fit
        Of the whole micrograph.
    microscope, search
        What is known, and the band.
    """
    parameters, slopes = fit.parameters.copy(), np.zeros(2)
    constants = microscope.constants
    bands = bands_of(search, constants[0], fit.parameters[0])
    for number, band in enumerate(bands):
        amplitude = _amplitude(local, band, parameters, constants)
        parts = [separation_of(spectrum, band) for spectrum in local.spectra]
        if not number:
            slopes = _best_slopes(local, parts, amplitude, parameters, constants)
        for _ in range(2):
            parameters, slopes, normal, cost, known = _improved(
                local, parts, amplitude, parameters, slopes, constants, search.fits_phase
            )
    errors = np.sqrt(np.maximum(np.diag(np.linalg.pinv(normal)), 1e-30) * cost / max(known, 1))
    return DefocusPlane(parameters, slopes, errors[-2:])


def _amplitude(local: LocalSpectra, band: tuple[float, float], parameters: Float64, constants: Float64) -> Float64:
    """Return the amplitude of rings in all tiles together; a tilt fades them at most."""
    _, amplitude = separate(separation_of(local.average, band), thon_rings(local.average, parameters, constants))
    return amplitude


def _background(parts: Separation, parameters: Float64, constants: Float64) -> Float64:
    background, _ = separate(parts, thon_rings(parts.spectrum, parameters, constants))
    return background


def _shifted(parameters: Float64, defocus: float) -> Float64:
    return np.array([parameters[0] + defocus, *parameters[1:]])


def _best_slopes(
    local: LocalSpectra, parts: list[Separation], amplitude: Float64, parameters: Float64, constants: Float64
) -> Float64:
    """Return the slopes of a grid that explain the tiles best."""
    values = [part.spectrum.values - _background(part, parameters, constants) for part in parts]
    grid = np.linspace(-STEEPEST, STEEPEST, SLOPES)
    reach = np.abs(local.places).sum(axis=1).max() * STEEPEST
    offsets = np.linspace(-reach, reach, 4 * SLOPES + 1)
    costs = np.empty((len(parts), len(offsets)))
    for number, (part, value) in enumerate(zip(parts, values, strict=True)):
        for place, offset in enumerate(offsets):
            at = _shifted(parameters, float(offset))
            costs[number, place] = _equations(part, value, amplitude, at, constants)[2]
    total = np.empty((SLOPES, SLOPES))
    for i, along_x in enumerate(grid):
        for j, along_y in enumerate(grid):
            wanted = local.places @ np.array([along_x, along_y])
            total[i, j] = sum(np.interp(want, offsets, cost) for want, cost in zip(wanted, costs, strict=True))
    best = np.unravel_index(total.argmin(), total.shape)
    return np.array([grid[best[0]], grid[best[1]]])


def _equations(
    part: Separation, values: Float64, amplitude: Float64, parameters: Float64, constants: Float64
) -> tuple[Float64, Float64, float]:
    spectrum = part.spectrum
    return thon_equations(values, part.weights, amplitude, spectrum.squares, spectrum.angles, constants, parameters)


def _improved(
    local: LocalSpectra,
    parts: list[Separation],
    amplitude: Float64,
    parameters: Float64,
    slopes: Float64,
    constants: Float64,
    fits_phase: bool,
) -> tuple[Float64, Float64, Float64, float, int]:
    """Return better parameters and slopes (Levenberg and Marquardt), normal equations, cost and count of bins."""
    start = local.places @ slopes
    values = [
        part.spectrum.values - _background(part, _shifted(parameters, float(shift)), constants)
        for part, shift in zip(parts, start, strict=True)
    ]
    free = 4 if fits_phase else 3
    kept = [*range(free), 4, 5]

    def equations(at: Float64) -> tuple[Float64, Float64, float]:
        normal, gradient, cost = np.zeros((6, 6)), np.zeros(6), 0.0
        for part, value, (x, y) in zip(parts, values, local.places, strict=True):
            one = _equations(part, value, amplitude, _shifted(at[:4], float(at[4] * x + at[5] * y)), constants)
            turn = np.zeros((6, 4))
            turn[:4] = np.eye(4)
            turn[4:, 0] = x, y
            normal += turn @ one[0] @ turn.T
            gradient += turn @ one[1]
            cost += one[2]
        return normal[np.ix_(kept, kept)], gradient[kept], cost

    at, damping = np.concatenate([parameters, slopes]), 1e-3
    normal, gradient, cost = equations(at)
    for _ in range(8):
        step = np.zeros(6)
        step[kept] = np.linalg.solve(normal + np.diag(np.diag(normal) * damping + 1e-30), gradient)
        tried = equations(at + step)
        if tried[2] > cost:
            damping *= 10
            continue
        gain = cost - tried[2]
        at, (normal, gradient, cost), damping = at + step, tried, damping / 5
        if gain < 1e-6 * cost:
            break
    known = sum(int((part.weights > 0).sum()) for part in parts)
    return at[:4], at[4:], normal, cost, known


def tile_defocus(
    local: LocalSpectra, plane: DefocusPlane, microscope: Microscope, search: CtfSearch, rounds: int = 3
) -> TileDefocus:
    """Fit the defocus of each tile, close to a plane.

    Parameters
    ----------
    local
        From `local_spectra`.
    plane
        From `fit_plane`, or one without slopes.
    microscope, search
        What is known, and the band.
    rounds
        Of background and defocus in turn.
    """
    constants = microscope.constants
    amplitude = _amplitude(local, search.band, plane.parameters, constants)
    prior = 1 / USUAL_RESIDUAL_A**2
    residuals, errors = [], []
    for spectrum, shift in zip(local.spectra, local.places @ plane.slopes, strict=True):
        part = separation_of(spectrum, search.band)
        residual, certain, variance = 0.0, 0.0, 1.0
        for _ in range(rounds):
            at = _shifted(plane.parameters, float(shift) + residual)
            value = spectrum.values - _background(part, at, constants)
            for _ in range(3):
                at = _shifted(plane.parameters, float(shift) + residual)
                normal, gradient, cost = _equations(part, value, amplitude, at, constants)
                variance = cost / max(int((part.weights > 0).sum()), 1)
                certain = normal[0, 0] / variance + prior
                residual += (gradient[0] / variance - prior * residual) / certain
        residuals.append(residual)
        errors.append(1 / math.sqrt(certain))
    return TileDefocus(local.places[:, 0], local.places[:, 1], np.array(residuals), np.array(errors))
