"""From a half-set's sums to its map, mask and next reference: the tasks that run where the sums are.

Half-sets meet in :func:`compare` alone, whose FSC sets the frequency limit and the filter of both; if that filter is to
be local, in :func:`compare_core` and :func:`cloudem.algorithms.local_filter.local_gains`, which do the same.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.bricks import Brick, merge_bricks, packed_sphere_of, unpack
from cloudem.algorithms.local_filter import LocalGains, core_mask, filtered_locally
from cloudem.algorithms.mask import circle_edge, estimate_mask, soft_circle, soft_sphere
from cloudem.algorithms.reconstruct import (
    Sums,
    levelled_shells,
    own_share,
    reference_volume,
    signal_to_noise,
    solve,
)
from cloudem.algorithms.resolution import FscCurves, masked_fsc
from cloudem.errors import ParameterError
from cloudem.io.storage.groups import read_group, write_group
from cloudem.jobs.maps import soft_edge
from cloudem.jobs.refine3d.tasks import REFERENCES
from cloudem.jobs.results import within
from cloudem.model.symmetry import operators
from cloudem.traffic import purpose

Float32 = NDArray[np.float32]

MASK = "mask"
"""Group that holds the user's mask during a run."""


@dataclass(frozen=True)
class Masking:
    """How the mask of a half-set's reference is found.

    Attributes
    ----------
    box, pixel_size, radius
        Pixels, Å, pixels.
    given
        The user's mask is in the store.
    estimate
        It is found in the half-map; otherwise it is the particle's sphere.
    """

    box: int
    pixel_size: float
    radius: float
    given: bool
    estimate: bool

    @property
    def sphere(self) -> Float32:
        """The particle's sphere with a soft edge, (n, n, n)."""
        return soft_sphere(self.box, self.radius, soft_edge(self.box, self.radius))


def whole_sums(brick: Brick, box: int, k_max: int, symmetry: str) -> Sums:
    """Return a half-set's accumulator with all Friedel and symmetry mates."""
    return unpack(brick, packed_sphere_of(box, k_max, operators(symmetry)))


def unfiltered(sums: Sums, box: int, k_max: int, slices: int) -> Float32:
    """Return a map without filter, (n, n, n), of so many slices."""
    return solve(sums, box, None, k_max, levelled_shells(slices))


def unfiltered_whole(first: Brick, second: Brick, box: int, k_max: int, symmetry: str, slices: int) -> Float32:
    """Return the map of all particles without filter, (n, n, n), of so many slices."""
    return unfiltered(whole_sums(merge_bricks(first, second), box, k_max, symmetry), box, k_max, slices)


def half_map_mask(half: Float32, url: str, masking: Masking) -> Float32:
    """Return the mask of a half-set's reference, found in that half-map alone unless the user gave one."""
    if masking.given:
        mask: Float32 = read_group(url, MASK)[0]["mask"]
        return mask
    if not masking.estimate:
        return masking.sphere
    try:
        return estimate_mask(half, masking.pixel_size, diameter=2 * masking.radius * masking.pixel_size)
    except ParameterError:  # nothing stands out of the noise yet
        return masking.sphere


def compare(
    first: Float32, second: Float32, first_mask: Float32, second_mask: Float32, seed: int, k_max: int
) -> FscCurves:
    """Return the FSC of two half-maps inside both masks."""
    return within(masked_fsc(first, second, np.maximum(first_mask, second_mask), seed=seed), k_max)


def compare_core(
    first: Float32,
    second: Float32,
    first_mask: Float32,
    second_mask: Float32,
    whole: FscCurves,
    pixel_size: float,
    seed: int,
    k_max: int,
) -> FscCurves:
    """Return the FSC of two half-maps where they agree best inside both masks; that of all of it, while it is coarse.

    What is scored is decided by it where references are filtered from place to place; it is no claim.
    """
    core = core_mask(first, second, np.maximum(first_mask, second_mask), whole.corrected, pixel_size)
    return whole if core is None else within(masked_fsc(first, second, core, seed=seed), k_max)


def map_to_match(half: Float32, mask: Float32, k_max: int) -> NDArray[np.complex64]:
    """Return the padded half-volume of a half-map, to compare the other half-set's images with."""
    return reference_volume(half * mask, k_max)


def write_reference(
    sums: Sums,
    mask: Float32,
    url: str,
    iteration: int,
    half: int,
    snr: NDArray[np.float64],
    k_max: int,
    slices: int,
    radius: float,
    local: LocalGains | None = None,
) -> str:
    """Write a half-set's filtered and masked map for the next iteration; return the name of its group.

    It is filtered shell by shell by ``snr``, or, where there are ``local`` gains, by these. With it goes what an image
    owes to itself in it, masked by a circle of ``radius`` pixels.

    The name is new each time: if a worker that was given up still writes, it is into a group that nothing refers to.
    """
    density = solve(sums, mask.shape[0], snr if local is None else local.snr, k_max, levelled_shells(slices))
    if local is not None:
        density = filtered_locally(density, local)
        snr = signal_to_noise(local.passed[half - 1])  # of a filter by shells that passes as much
    density *= mask
    circle = soft_circle(len(mask), radius, circle_edge(len(mask), radius))
    owned = own_share(sums, snr, mask, circle, k_max)
    name = f"{iteration:03d}-{half}-{uuid.uuid4().hex[:8]}"
    with purpose("reference"):
        write_group(url, f"{REFERENCES}/{name}", {"map": density, "own_share": owned}, {"half": half})
    return name
