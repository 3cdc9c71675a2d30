"""The CTF of a micrograph, from its image to what is written down of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.ctf_fit import CtfFit, CtfSearch, fit_ctf
from cloudem.algorithms.ctf_picture import curves_on_grid, spectrum_picture
from cloudem.algorithms.ctf_quality import CtfQuality, ctf_quality, equiphase_average, ice_ring_density
from cloudem.algorithms.ctf_thickness import fit_thickness
from cloudem.algorithms.ctf_tiles import (
    DefocusPlane,
    TileDefocus,
    fit_plane,
    local_spectra,
    tile_defocus,
)
from cloudem.algorithms.power_spectrum import TILE_A, average_spectrum, lay_tiles, polar_spectrum
from cloudem.algorithms.thon_background import Microscope

LEAST_RINGS = 9.0
"""Student's t that a micrograph's rings need; see `docs/ctf.md` for what noise has."""

LEAST_SCORE = 0.1
"""Score below which a fit agrees nowhere, whatever it does here and there."""

LEAST_TILT = 16.0
"""Slopes over their errors, squared and added up, from which on a specimen is tilted: noise alone, one in 3,000."""

SEEN_A = 2.9
"""Å up to which power is looked at, beyond what is fitted: the ring of ice needs its surroundings."""

NYQUIST_PART = 0.9
"""Of the Nyquist frequency, up to which is fitted at most: beyond, sums of pixels and their noise are not alike."""


@dataclass(frozen=True)
class CtfSettings:
    """How CTFs are estimated.

    Attributes
    ----------
    search
        What is searched; the band is cut at a part of the Nyquist frequency.
    tile
        Edge of a tile, Å.
    worst_resolution
        Å; a micrograph whose fit agrees to less is of no use, unless its pixels show no more.
    largest_astigmatism
        Å; a larger one is none of a microscope that was aligned.
    tilt, thickness, tile_defocus
        Whether the plane of a tilted specimen, the thickness, and the defocus of each tile are fitted, too.
    """

    search: CtfSearch = field(default_factory=CtfSearch)
    tile: float = TILE_A
    worst_resolution: float = 12.0
    largest_astigmatism: float = 5000.0
    tilt: bool = False
    thickness: bool = False
    tile_defocus: bool = False


class CtfEstimate(NamedTuple):
    """What was found of a micrograph.

    Attributes
    ----------
    fit, quality
        The CTF and how well it agrees.
    ice_ring_density
        See `cloudem.algorithms.ctf_quality.ice_ring_density`.
    problem
        Why the micrograph is of no use; empty where it is.
    picture, curves
        See `cloudem.algorithms.ctf_picture`.
    thickness
        Å; NaN where it was not asked for, or shows no node.
    tilt_axis, tilt_angle
        Radians, see `tilt_of`; NaN where not asked for.
    tiles
        The defocus of tiles; None where it was not asked for.
    """

    fit: CtfFit
    quality: CtfQuality
    ice_ring_density: float
    problem: str
    picture: NDArray[np.uint8]
    curves: dict[str, NDArray[np.float32]]
    thickness: float = math.nan
    tilt_axis: float = math.nan
    tilt_angle: float = math.nan
    tiles: TileDefocus | None = None


def estimate_ctf(image: NDArray[Any], pixel_size: float, microscope: Microscope, settings: CtfSettings) -> CtfEstimate:
    """Estimate the CTF of a micrograph.

    Parameters
    ----------
    image
        (rows, columns).
    pixel_size
        Å.
    microscope, settings
        What is known, and how.

    Raises
    ------
    ParameterError
        The image is too small.
    """
    search = _within_nyquist(settings.search, pixel_size)
    tiles = lay_tiles((image.shape[0], image.shape[1]), pixel_size, settings.tile)
    spectrum = average_spectrum(image, tiles, pixel_size, max(search.band[1], 1 / SEEN_A))
    polar = polar_spectrum(spectrum)
    fit = fit_ctf(polar, microscope, search)
    thickness = math.nan
    if settings.thickness and fit.evidence >= LEAST_RINGS:
        thickness, _, fit = fit_thickness(polar, fit, microscope, search)
    tilt, residuals = (math.nan, math.nan), None
    if (settings.tilt or settings.tile_defocus) and fit.evidence >= LEAST_RINGS:
        local = local_spectra(image, pixel_size, search.band[1])
        plane = DefocusPlane(fit.parameters, np.zeros(2), np.ones(2))
        if settings.tilt:
            found = fit_plane(local, fit, microscope, search)
            steep = float(((found.slopes / found.errors) ** 2).sum()) > LEAST_TILT
            plane = found if steep else plane
            fit, tilt = replace(fit, parameters=plane.parameters), tilt_of(plane)
        residuals = tile_defocus(local, plane, microscope, search) if settings.tile_defocus else None
    average = equiphase_average(spectrum, fit, microscope)
    quality = ctf_quality(average)
    return CtfEstimate(
        fit, quality, ice_ring_density(spectrum), problem_of(fit, quality, search, settings),
        spectrum_picture(polar, fit, microscope), curves_on_grid(average, search.band[1]),
        thickness, *tilt, residuals,
    )  # fmt: skip


def tilt_of(plane: DefocusPlane) -> tuple[float, float]:
    """Return axis and angle of a tilt, radians: the defocus grows along ``(-sin axis, cos axis)`` by ``tan angle``.

    Parameters
    ----------
    plane
        Of defocus.
    """
    along_x, along_y = plane.slopes.tolist()
    angle = math.atan(math.hypot(along_x, along_y))
    return (math.atan2(-along_x, along_y) if angle else 0.0), angle


def _within_nyquist(search: CtfSearch, pixel_size: float) -> CtfSearch:
    high = min(search.band[1], NYQUIST_PART / (2 * pixel_size))
    return CtfSearch(search.defocus, search.phase_shift, (min(search.band[0], high / 2), high), search.astigmatism)


def problem_of(fit: CtfFit, quality: CtfQuality, search: CtfSearch, settings: CtfSettings) -> str:
    """Return why a micrograph is of no use, by its CTF; empty where it is.

    Parameters
    ----------
    fit, quality
        What was found.
    search, settings
        What was searched, and what is asked for.
    """
    if fit.evidence < LEAST_RINGS:
        return f"shows no rings of a CTF (evidence {fit.evidence:.1f}, {LEAST_RINGS:g} is needed)"
    worst = max(settings.worst_resolution, 1.15 / search.band[1])
    if not quality.resolution <= worst or quality.score < LEAST_SCORE:
        seen = (
            "nowhere"
            if np.isnan(quality.resolution) or quality.score < LEAST_SCORE
            else f"only to {quality.resolution:.1f} Å"
        )
        return f"its CTF agrees {seen}, and {worst:.3g} Å are asked for"
    astigmatism = fit.defocus_u - fit.defocus_v
    if astigmatism > settings.largest_astigmatism:
        most = settings.largest_astigmatism
        return f"an astigmatism of {astigmatism:,.0f} Å was fitted, and at most {most:g} Å are asked for"
    if not search.defocus[0] * 0.98 < fit.parameters[0] < search.defocus[1] * 1.02:
        return f"a defocus of {fit.parameters[0]:,.0f} Å was fitted, outside of what was searched"
    return ""
