"""Maps that a user gives, fitted to the particles' box and pixel size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.io.formats.mrc import Volume, read_volume
from cloudem.jobs.progress import Progress


def fitted(volume: Volume, what: str, box: int, pixel_size: float, progress: Progress) -> NDArray[np.float32]:
    """Return a map on the particles' grid, (n, n, n) float32; say so if it had to be resampled.

    Linear interpolation about the box centre: good for a reference, which is low-passed afterwards, and for a mask.

    Raises
    ------
    ParameterError
        If the map holds NaN or infinity, or is constant.
    """
    data = np.asarray(volume.data, np.float32)
    if not np.isfinite(data).all():
        raise ParameterError(f"the {what} contains NaN or infinite voxels; give a map without any")
    if data.min() == data.max():
        raise ParameterError(f"the {what} is constant ({data.flat[0]:g}); give a map that contains density")
    size = data.shape[0]
    if size == box and abs(volume.pixel_size / pixel_size - 1) < 1e-3:
        return data
    progress.warning(
        f"the {what} is {size} px at {volume.pixel_size:.4g} Å and the particles are {box} px at {pixel_size:.4g} Å: "
        "resampled"
    )
    step = pixel_size / volume.pixel_size
    if step > 1:  # average over the coarser pixel first, so that nothing folds back
        data = ndimage.gaussian_filter(data, 0.4 * step)
    offset = size // 2 - step * (box // 2)
    moved = ndimage.affine_transform(data, np.full(3, step), offset=offset, output_shape=(box,) * 3, order=1)
    return np.asarray(moved, np.float32)


def read_mask(path: str, box: int, pixel_size: float, progress: Progress) -> NDArray[np.float32]:
    """Return a mask on the particles' grid, (n, n, n) float32 in 0..1; say so if it had to be resampled.

    Raises
    ------
    InconsistentDataError
        If values lie outside 0..1: it is a map.
    ParameterError
        As :func:`fitted`.
    """
    volume = read_volume(path)
    low, high = volume.data.min(), volume.data.max()
    if low < -1e-3 or high > 1 + 1e-3:
        raise InconsistentDataError(
            f"the mask {path} has values from {low:.3g} to {high:.3g}, a mask 0 to 1; make one with cloudem mask"
        )
    return fitted(volume, "mask", box, pixel_size, progress).clip(0, 1)


def soft_edge(box: int, radius: float) -> float:
    """Return a width in pixels for the edge of a sphere of ``radius``: 5, or what the box leaves."""
    return float(np.clip(box / 2 - radius - 1, 1.0, 5.0))
