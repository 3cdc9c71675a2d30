"""Whether a map and the map it was refined from are of one size: a pixel size that is wrong by a few per cent shows.

Images bring their own scale into a refinement, whatever the starting map had. So the result is larger or smaller than
the starting map by the ratio of the pixel sizes, and detail of the starting map finer than it was trusted to at the
start, which has not decided a pose, says by how much.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.algorithms.coarse import coarse_map, coarse_side, coarse_spectrum
from cloudem.algorithms.mask import circle_edge, soft_sphere
from cloudem.algorithms.resolution import multiply_shells, shell_amplitudes
from cloudem.kernels.shells import fourier_shell_correlation

Float32 = NDArray[np.float32]

LARGEST_BOX = 64
"""Voxels along an edge, to which maps are cropped in Fourier space: a third of a voxel at its rim is 1 %."""

FACTORS = np.linspace(0.9, 1.1, 21)
"""Tried at first."""

STEP = 0.005
"""Distance of the three factors to which a parabola is laid."""

LEAST_AGREEMENT = 0.5
"""Correlation from which on two maps show one molecule, so that one can be larger than the other. A starting map that
was filtered to 40 Å correlates by 0.2, and says nothing; one of 1,000 images that were mostly seen from one side
correlated by 0.44 with a factor of 1.1."""

WORTH_SAYING = 0.01
"""Difference in size below which nothing is said: among the others are those of two programs' ways to interpolate."""


class Magnification(NamedTuple):
    """How much larger a map is than another one.

    Attributes
    ----------
    factor, error
        Of all lengths, and half the difference of the half-maps'.
    agreement, as_given
        Correlation of the maps with that factor, and without.
    """

    factor: float
    error: float
    agreement: float
    as_given: float

    @property
    def differs(self) -> bool:
        """Whether the two are of different size, beyond doubt."""
        inside = FACTORS[0] + STEP < self.factor < FACTORS[-1] - STEP  # where all that was tried rises, nothing fits
        return inside and self.agreement > LEAST_AGREEMENT and abs(self.factor - 1) > WORTH_SAYING + 3 * self.error


def coarse(volume: NDArray[Any]) -> Float32:
    """Return a map of the low frequencies, on a grid of `LARGEST_BOX` voxels along each edge if it is larger."""
    side = coarse_side(len(volume), LARGEST_BOX)
    return np.asarray(volume, np.float32) if side == len(volume) else coarse_map(coarse_spectrum(volume, side))


def magnification(halves: NDArray[Any], reference: NDArray[Any], radius: float) -> Magnification:
    """Return how much larger the particle is in the half-maps than in a reference about the same centre.

    Correlations are those inside the particle's sphere, of maps whose shells all have the same power, times the FSC of
    the half-maps: without that, the lowest frequencies would decide alone, and they hardly know the size.

    Parameters
    ----------
    halves
        (2, n, n, n).
    reference
        In the same orientation, as :func:`coarse` makes it.
    radius
        Of the particle, voxels of the half-maps.
    """
    box = len(reference)
    scaled = radius * box / halves.shape[-1]
    sphere = soft_sphere(box, scaled, circle_edge(box, scaled))
    small = [coarse(half) for half in halves] + [reference]
    trust = np.clip(np.nan_to_num(fourier_shell_correlation(small[0] * sphere, small[1] * sphere)), 0, 1)
    trust[0] = 0
    one, two, other = (_levelled(part * sphere, trust) for part in small)
    spline = ndimage.spline_filter(other, order=3, output=np.float32)
    both = one + two
    curve = np.array([_agreement(both, spline, factor, sphere) for factor in FACTORS])
    near = float(FACTORS[curve.argmax()])
    found = [_peak(one, spline, near, sphere), _peak(two, spline, near, sphere), _peak(both, spline, near, sphere)]
    factor = found[2]
    return Magnification(
        factor, abs(found[0] - found[1]) / 2, _agreement(both, spline, factor, sphere), float(curve[len(FACTORS) // 2])
    )


def _levelled(volume: Float32, trust: NDArray[np.float64]) -> Float32:
    """Return a map whose shells have the same power, times a weight."""
    amplitude = shell_amplitudes(volume)
    return multiply_shells(volume, trust / np.maximum(amplitude, 1e-6 * amplitude.max() + 1e-30))


def _agreement(volume: Float32, spline: Float32, factor: float, sphere: Float32) -> float:
    """Return the correlation of a map and a magnified one inside the sphere."""
    middle = len(volume) // 2
    larger = ndimage.affine_transform(
        spline, np.full(3, 1 / factor), middle - middle / factor, order=3, prefilter=False, output=np.float32
    )
    norm = np.sqrt(np.sum(sphere * volume**2, dtype=np.float64) * np.sum(sphere * larger**2, dtype=np.float64))
    return float(np.sum(sphere * volume * larger) / max(norm, 1e-30))


def _peak(volume: Float32, spline: Float32, near: float, sphere: Float32) -> float:
    """Return the factor at the vertex of the parabola through three values about a maximum."""
    below, at, above = (_agreement(volume, spline, near + step, sphere) for step in (-STEP, 0.0, STEP))
    bend = below - 2 * at + above
    if bend >= 0:
        return near
    return near + float(np.clip((below - above) / (2 * bend), -2, 2)) * STEP
