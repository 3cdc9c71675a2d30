"""What a result says of directions: the FSC within cones, how even it is, and how evenly views sample Fourier space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.directional import HALF_ANGLE, Anisotropy, anisotropy, directional_fsc
from cloudem.algorithms.resolution import FscCurves
from cloudem.algorithms.sampling import sampling_compensation
from cloudem.algorithms.significance import independent_voxels, significant_shell
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix
from cloudem.model.symmetry import operators

Float32 = NDArray[np.float32]

ONE_SIDED = 0.7
"""Sampling below this is called uneven: views from all sides of one axis, which do little harm, have 0.81."""

CROWDED = 0.35
"""Sampling below this is said even if the resolution hardly depends on direction: 0.21 to 0.28 if 80 % of the views lie
within 15° of one axis."""


class Directions(NamedTuple):
    """What goes into the group ``result``."""

    arrays: Mapping[str, NDArray[Any]]
    """``directions`` (d, 3), ``directional_fsc`` (d, n // 2 + 1) and ``directional_resolution_A`` (d,)."""
    attributes: Mapping[str, float | list[float]]
    """The attribute ``directional``."""


def sampling_of(particles: Particles, symmetry: str, shell: float) -> dict[str, float | list[float]]:
    """Return the attribute ``sampling_compensation`` of refined poses at a shell; none where no pose is known."""
    views = euler_to_matrix(*(particles[name] for name in ("rot", "tilt", "psi")))[:, 2]
    found = sampling_compensation(views, operators(symmetry), shell)
    return {"sampling_compensation": found} if np.isfinite(found) else {}


def directions_of(
    halves: tuple[Float32, Float32],
    mask: Float32,
    curves: FscCurves,
    k_max: int,
    pixel_size: float,
    symmetry: str,
    warn: Callable[[str], None],
    particles: Particles | None = None,
) -> Directions:
    """Return the resolution by direction, and warn if it is much coarser in some.

    Parameters
    ----------
    halves, mask
        Unfiltered half-maps and the mask of their FSC, (n, n, n).
    curves
        Of `cloudem.algorithms.resolution.masked_fsc`.
    k_max, pixel_size, symmetry
        Last shell that the maps hold; Å; point group.
    warn
        Is told.
    particles
        With refined poses; None where they are not known.
    """
    group, length = operators(symmetry), len(mask) * pixel_size
    found = directional_fsc(*halves, mask, curves, k_max, group)
    voxels = independent_voxels(len(mask), curves.fraction, len(group))
    claimed = significant_shell(curves.corrected, voxels)
    said = anisotropy(found, curves.corrected, claimed)
    attributes: dict[str, float | list[float]] = {
        "best_A": length / said.best,
        "mean_A": length / said.mean,
        "worst_A": length / said.worst,
        "worst_direction": said.worst_direction.tolist(),
        "deviations": said.deviations,
        "sphericity": said.sphericity,
        "half_angle_deg": float(np.rad2deg(HALF_ANGLE)),
    }
    if particles is not None:
        attributes |= sampling_of(particles, symmetry, max(claimed, 1.0))
    sampling = attributes.get("sampling_compensation")
    if said.uneven:
        warn(_warning(said, length, sampling))
    elif isinstance(sampling, float) and sampling < CROWDED:
        warn(
            f"most particles show much the same side (sampling compensation factor {sampling:.2f}, 1 for even views): "
            f"few images hold the map in some directions. It has {length / said.worst:.1f} Å in the worst ones, "
            f"{length / said.mean:.1f} Å on the mean; look at it from several sides before you interpret it"
        )
    arrays: dict[str, NDArray[Any]] = {
        "directions": found.directions,
        "directional_fsc": found.curves.astype(np.float32),
        "directional_resolution_A": length / said.shells,
    }
    return Directions(arrays, attributes)


def _warning(said: Anisotropy, length: float, sampling: float | list[float] | None) -> str:
    """Return what is said of a resolution that depends on direction; ``length`` of the box in Å."""
    axis = ", ".join(f"{value:.2f}" for value in said.worst_direction)
    text = (
        f"the resolution depends on direction: {length / said.worst:.1f} Å in the worst ones, about ({axis}), "
        f"{length / said.mean:.1f} Å on the mean. "
    )
    if isinstance(sampling, float) and sampling > ONE_SIDED:
        return text + (
            f"The views are not the cause (sampling compensation factor {sampling:.2f}): look for images that do not "
            "belong to the particle and are aligned to one side of it, for a mask that cuts it, and for motion of parts"
        )
    views = "" if sampling is None else f" (sampling compensation factor {sampling:.2f}, 1 for even views)"
    return text + (
        f"Usually the particles lie on the grid in preferred views{views}; the map is smeared along that direction. "
        "Try data collected on a tilted stage, other grids or an additive, or fewer particles of the commonest views"
    )
