"""CuPy twins of :mod:`cloudem.kernels.slices`: volumes and accumulators on the device, poses on either side."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels._cupy.launch import blocks, device, in_place, launch
from cloudem.kernels.slices import magnified_axes, turned_about_axes, turning_axes

Array = Any
"""A CuPy array, or a NumPy one that will be brought to the device."""

TERMS = 22


def extract(volume: Array, rotations: Array, kx: Array, ky: Array, padding: float) -> Array:
    """Twin of :func:`cloudem.kernels.slices.extract`; the slices stay on the device."""
    axes = device(rotations, np.float64) * padding
    out = cupy.empty((len(axes), len(kx)), np.complex64)
    volume = device(volume, np.complex64)
    launch("slices", "extract", blocks(*out.shape), volume, _half(volume), axes, *_plane(kx, ky), len(kx), out)
    return out


def insert(
    sums: Array,
    weights: Array,
    images: Array,
    rotations: Array,
    shifts: Array,
    pose_weights: Array,
    numerators: Array,
    denominators: Array,
    kx: Array,
    ky: Array,
    padding: float,
    box: int,
) -> None:
    """Twin of :func:`cloudem.kernels.slices.insert`.

    Voxels are added to in the order in which threads come by, so that sums differ in their last digits from run to run.
    """
    launch(
        "slices", "insert", blocks(len(images), len(kx)),
        in_place(sums, np.complex64), in_place(weights, np.float32), _half(sums),
        *_poses(images, rotations, shifts, padding, box), device(pose_weights, np.float32),
        device(numerators, np.complex64), device(denominators, np.float32), *_plane(kx, ky), len(kx),
    )  # fmt: skip


def score_derivatives(
    volume: Array,
    images: Array,
    rotations: Array,
    shifts: Array,
    numerators: Array,
    denominators: Array,
    kx: Array,
    ky: Array,
    padding: float,
    box: int,
    magnification: Array | None = None,
) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.slices.score_derivatives`; its few numbers come back to the host."""
    out = cupy.empty((len(images), TERMS), np.float64)
    volume = device(volume, np.complex64)
    axes = turning = rotations
    if magnification is not None:
        axes, turning = (f(cupy.asnumpy(rotations), magnification) for f in (magnified_axes, turning_axes))
    rows, axes, in_boxes = _poses(images, axes, shifts, padding, box)
    launch(
        "slices", "score_derivatives", (len(images), 1), volume, _half(volume),
        rows, axes, device(turning, np.float64) * padding, in_boxes,
        device(numerators, np.complex64), device(denominators, np.float32), *_plane(kx, ky), len(kx),
        2 * float(np.pi) / box, out,
    )  # fmt: skip
    sums = np.asarray(cupy.asnumpy(out))
    if magnification is not None:
        turned_about_axes(sums, magnification)
    return sums


def _half(volume: Array) -> int:
    """Return m of a padded half-volume."""
    return int(volume.shape[2]) - 2


def _plane(kx: Array, ky: Array) -> tuple[Array, Array]:
    return device(kx, np.float64), device(ky, np.float64)


def _poses(images: Array, rotations: Array, shifts: Array, padding: float, box: int) -> tuple[Array, Array, Array]:
    """Return rows of images, axes in voxels, and shifts in boxes, on the device."""
    in_boxes = device(device(shifts, np.float64) / box, np.float32)
    return device(images, np.int32), device(rotations, np.float64) * padding, in_boxes
