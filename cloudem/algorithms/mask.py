"""Soft masks: spheres, discs, and the molecule's own outline found in a map."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.algorithms.resolution import low_pass_curve
from cloudem.algorithms.spectra import is_finite, low_frequencies, resampled
from cloudem.backend.threads import over_slabs
from cloudem.errors import ParameterError
from cloudem.kernels.pruned import frequencies
from cloudem.kernels.real_space import scale_planes, soft_outline
from cloudem.kernels.slices import fast_even

SLAB = 8
"""Planes that a thread takes at a time."""

HISTOGRAM_BINS = 512
"""Bins of the density histogram that Otsu's threshold is taken from."""

SOLVENT_SIGMAS = 3.0
"""How far above the solvent's mode density begins, in standard deviations of the solvent."""

LOWEST_FRACTION = 0.25
"""Lowest threshold, as a fraction of the way from the solvent's mode to Otsu's threshold."""

VOXELS_PER_RESOLUTION = 5.0
"""Of the grid on which an outline is found: masks then overlap by 0.985 (Dice) with those found on a grid five times as
fine, by 0.98 with four voxels (ribosome and demo molecule, 1.2 Å pixels)."""

OUTLINE_A = 15.0
"""Low-pass filter with which a particle's sphere is looked for."""

COARSER = 1.5
"""Step of the low-pass filter's resolution when a map is too noisy."""

COMPONENT_FRACTION = 0.05
"""Connected pieces smaller than this fraction of the largest are noise."""


def raised_cosine(distance: NDArray[np.floating], edge: float) -> NDArray[np.float32]:
    """Return 1 where distance <= 0, 0 where distance >= edge, and half a cosine between; units of both alike."""
    falling = (distance > 0) & (distance < edge)
    mask = (distance <= 0).astype(np.float32)
    mask[falling] = 0.5 + 0.5 * np.cos(np.pi / max(edge, 1e-6) * distance[falling])
    return mask


def soft_sphere(box: int, radius_px: float, edge_px: float) -> NDArray[np.float32]:
    """Return a sphere about the origin voxel that falls from 1 at `radius_px` to 0 at ``radius_px + edge_px``.

    Shape (box, box, box) float32.
    """
    sphere, line = np.ones((box, box, box), np.float32), np.ones(box, np.float32)
    over_slabs(lambda first, last: scale_planes(sphere[first:last], line, first, 0, radius_px, edge_px), box, SLAB)
    return sphere


def soft_circle(box: int, radius_px: float, edge_px: float) -> NDArray[np.float32]:
    """Return a disc about the origin pixel that falls from 1 at `radius_px` to 0 at ``radius_px + edge_px``.

    Shape (box, box) float32.
    """
    axis2 = (np.arange(box, dtype=np.float32) - box // 2) ** 2
    return raised_cosine(np.sqrt(axis2[:, None] + axis2) - np.float32(radius_px), edge_px)


def circle_edge(box: int, radius: float) -> float:
    """Return the width of the soft edge of the circle by which images are masked for scoring, pixels."""
    return max(min(6.0, box / 2 - radius), 1.0)


def otsu_threshold(values: NDArray[np.floating]) -> float:
    """Return the threshold that separates two classes with the least variance inside them (Otsu 1979).

    Source: 10.1109/TSMC.1979.4310076.
    """
    count, edges = np.histogram(values, HISTOGRAM_BINS)
    centre = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(count), count.sum()
    sum_below = np.cumsum(count * centre)
    above = total - below
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = sum_below / below - (sum_below[-1] - sum_below) / above
    between = np.where((below > 0) & (above > 0), below * above * difference**2, 0.0)
    return float(edges[1 + int(np.argmax(between))])


def density_threshold(density: NDArray[np.floating]) -> tuple[float, bool]:
    """Return a threshold between solvent and molecule that rather takes in solvent than cuts density.

    Otsu's threshold lies half-way between the two, which would cut the weak outer parts. It is therefore lowered as far
    as the solvent allows: to `SOLVENT_SIGMAS` standard deviations above its mode, though not below `LOWEST_FRACTION` of
    the way up, where a clean map's ripples begin. The standard deviation is that of the values below the mode, which
    hold no density.

    Parameters
    ----------
    density
        Voxels of a low-passed map inside the particle's sphere, any shape.

    Returns
    -------
        The threshold, and whether the solvent's noise stays below it. Where it does not, the threshold is Otsu's.

    Raises
    ------
    ParameterError
        All values are equal.
    """
    values = density.ravel()
    if np.ptp(values) == 0:
        raise ParameterError("the map is constant inside the particle's sphere, so it has no outline; give another map")
    otsu = otsu_threshold(values)
    solvent = values[values < otsu]
    count, edges = np.histogram(solvent, HISTOGRAM_BINS // 4)
    peak = int(np.argmax(ndimage.gaussian_filter1d(count.astype(np.float64), 2.0)))
    mode = (edges[peak] + edges[peak + 1]) / 2
    low = solvent[solvent <= mode]
    sigma = float(np.sqrt(np.mean((low - mode) ** 2))) if low.size else 0.0
    noise = mode + SOLVENT_SIGMAS * sigma
    return float(np.clip(noise, mode + LOWEST_FRACTION * (otsu - mode), otsu)), bool(noise < otsu)


def estimate_mask(
    volume: NDArray[np.float32],
    pixel_size: float,
    *,
    diameter: float | None = None,
    low_pass_resolution: float = 15.0,
    threshold: float | None = None,
    extend: float = 6.0,
    edge: float = 10.0,
) -> NDArray[np.float32]:
    """Find a molecule's outline in a noisy map and return it as a soft mask.

    Low-pass filter, threshold (:func:`density_threshold`), keep the largest connected pieces, fill the cavities, extend
    outward, and add a raised-cosine edge. Deterministic; prefers too much solvent to cut density. The outline is found
    on the coarser grid that the filtered map needs (:func:`coarse_box`), and distances to it are interpolated.

    Parameters
    ----------
    volume
        (n, n, n) float32, protein positive; for instance the mean of two half-maps.
    pixel_size
        Å.
    diameter
        Of the sphere that holds the particle, Å; the mask's core stays inside. The whole box's sphere if None.
    low_pass_resolution
        Å; never finer than Nyquist. A map too noisy to tell solvent from molecule is filtered further, in steps of
        `COARSER`, to a quarter of the box at most.
    threshold
        Density at which the low-passed map counts as molecule; from the data if None.
    extend, edge
        Å: by how much the outline grows, and the width over which the mask then falls to 0.

    Returns
    -------
        (n, n, n) float32 in 0..1.

    Raises
    ------
    ParameterError
        No voxel is above the threshold, the map is constant or holds NaN.
    """
    box = volume.shape[0]
    if not is_finite(volume):
        raise ParameterError("the map holds NaN or infinite voxels, so no mask can be found in it; give another map")
    resolution = max(low_pass_resolution, 2 * pixel_size)
    size = coarse_box(box, pixel_size, resolution)
    step = box / size  # of the coarse grid, in pixels
    inside = soft_sphere(size, _core_radius(box, pixel_size, diameter) / step, 0.0) > 0.5
    spectrum = low_frequencies(volume, int(np.ceil(box * pixel_size / resolution)) + 1)
    smooth = _low_passed(spectrum, box, size, pixel_size, resolution)
    level, clear = density_threshold(smooth[inside]) if threshold is None else (threshold, True)
    while not clear and resolution * COARSER < box * pixel_size / 4:
        resolution *= COARSER
        smooth = _low_passed(spectrum, box, size, pixel_size, resolution)
        level, clear = density_threshold(smooth[inside])
    solid = inside & (smooth > level)
    if not solid.any():
        highest = float(smooth[inside].max())
        raise ParameterError(
            f"no voxel of the map low-passed to {resolution:g} Å is above {level:g} (its highest is "
            f"{highest:.4g}); give a lower threshold, or leave it out to have it found"
        )
    solid = _without_cavities(_large_components(solid))
    # distances are those to the nearest voxel centre inside, and a voxel is half its width wider than its centre
    wider = (1 - 1 / step) / 2
    return _softened(solid, box, extend / (pixel_size * step) + wider, edge / (pixel_size * step))


def particle_sphere(volume: NDArray[np.float32], pixel_size: float) -> tuple[NDArray[np.float64], float]:
    """Return where the particle of a map is, and the radius of the sphere about it that holds it.

    Parameters
    ----------
    volume
        (n, n, n), protein positive.
    pixel_size
        Å.

    Returns
    -------
        Centre of its density inside the mask of `estimate_mask`, from voxel n // 2, Å along x, y, z; and a radius in Å,
        at most half the box.

    Raises
    ------
    ParameterError
        The map is constant, or is not finite.
    """
    box = len(volume)
    size = coarse_box(box, pixel_size, OUTLINE_A)
    coarse = np.asarray(volume, np.float32)
    if size < box:
        coarse = resampled(low_frequencies(coarse, size // 2 - 1), box, size)
    voxel = box * pixel_size / size
    mask = estimate_mask(coarse, voxel, low_pass_resolution=OUTLINE_A, extend=0.0, edge=0.0)
    places = np.argwhere(mask > 0.5)
    weight = np.maximum(coarse[tuple(places.T)], 0)
    middle = np.average(places, axis=0, weights=weight if weight.any() else None)
    reach = np.percentile(np.linalg.norm(places - middle, axis=1), 99.5) + 0.5
    centre = (middle - size // 2)[::-1] * voxel
    return centre, float(min(reach * voxel, box * pixel_size / 2))


def coarse_box(box: int, pixel_size: float, resolution: float) -> int:
    """Return the edge of the grid on which an outline is found: voxels are a fifth of the resolution at most."""
    size = fast_even(int(np.ceil(VOXELS_PER_RESOLUTION * box * pixel_size / resolution)))
    return min(size, box)


def _low_passed(
    spectrum: NDArray[np.complex64], box: int, size: int, pixel_size: float, resolution: float
) -> NDArray[np.float32]:
    """Return the map of low frequencies, filtered to a resolution, on a coarser grid."""
    curve = low_pass_curve(box, pixel_size, resolution)
    squared = frequencies(len(spectrum)) ** 2
    radius = np.sqrt(squared[:, None, None] + squared[:, None] + np.arange(spectrum.shape[2]) ** 2)
    filtered = spectrum * np.interp(radius, np.arange(len(curve)), curve, right=0.0).astype(np.float32)
    return resampled(filtered, box, size)


def _softened(solid: NDArray[np.bool_], box: int, extend: float, edge: float) -> NDArray[np.float32]:
    """Return the soft mask of a box, of a solid extended by some coarse voxels and falling to 0 over some more."""
    reach = int(np.ceil(extend + edge)) + 2
    found = ndimage.find_objects(solid.astype(np.int8))[0]
    around = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in found)
    distance = np.full(solid.shape, reach, np.float32)
    distance[around] = ndimage.distance_transform_edt(~solid[around])
    mask, line = np.empty((box, box, box), np.float32), np.ones(box, np.float32)

    def in_plane(first: int, last: int) -> None:
        soft_outline(distance, first, len(solid) / box, extend, edge, mask[first:last])
        # the mask must reach 0 inside the box: density does not go round its walls
        scale_planes(mask[first:last], line, first, 0, box / 2 - 3.0, 2.0)

    over_slabs(in_plane, box, SLAB)
    return mask


def _core_radius(box: int, pixel_size: float, diameter: float | None) -> float:
    if diameter is None:
        return box / 2 - 3.0
    return min(diameter / (2 * pixel_size), box / 2 - 3.0)


def _large_components(solid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    labels, number = ndimage.label(solid)
    if number < 2:
        return solid
    size = np.bincount(labels.ravel())
    size[0] = 0
    keep = size >= COMPONENT_FRACTION * size.max()
    return np.asarray(keep[labels])


def _without_cavities(solid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what the outside, the part that the box's corner belongs to, cannot reach."""
    labels, _ = ndimage.label(~solid)
    return np.asarray(labels != labels[0, 0, 0])


def without_sphere(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map without its mean at each distance from the centre, which is linear between half voxels.

    A step at each voxel would leave a pattern of the grid, which has the symmetry O.
    """
    line = np.arange(len(volume)) - len(volume) // 2
    distance = np.sqrt(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2).ravel()
    place = np.rint(2 * distance).astype(np.int64)
    count = np.bincount(place)
    known = count > 0
    at, mean = (np.bincount(place, values)[known] / count[known] for values in (distance, volume.ravel()))
    return np.asarray(volume - np.interp(distance, at, mean).reshape(volume.shape), np.float32)
