"""Fourier transforms with the origin at the box centre, and the half disc on which images are compared.

Signs, axes and normalisation are those of :mod:`cloudem.conventions`. Boxes are even.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.backend.arrays import array_namespace, fft_namespace

Float = NDArray[np.floating[Any]]
Complex = NDArray[np.complexfloating[Any, Any]]
Int32 = NDArray[np.int32]


class HalfDisc(NamedTuple):
    """Fourier pixels of one half of a disc, row by row: kx, ky and shell, each of shape (p,), in cycles per box.

    ``kx >= 0``; of the line ``kx == 0`` only ``ky > 0``; the origin is left out. The other half follows from Friedel's
    law, so that sums over the half disc count every independent coefficient once. Rows are kept together because
    neighbours then touch the same voxels of a volume.
    """

    kx: Int32
    ky: Int32
    shell: Int32

    def take(self, pixels: NDArray[Any]) -> HalfDisc:
        """Return some of the pixels, by number or by a mask."""
        return HalfDisc(self.kx[pixels], self.ky[pixels], self.shell[pixels])

    def beside(self, array: NDArray[Any]) -> HalfDisc:
        """Return it where an array lives."""
        return HalfDisc(*map(array_namespace(array).asarray, self))


def half_disc(box: int, k_max: int) -> HalfDisc:
    """Return the half disc of all pixels whose shell ``round(|k|)`` is at most ``k_max``.

    ``k_max`` is at most ``box // 2 - 1``: pixels at Nyquist have no sign.
    """
    if not 0 < k_max < box // 2:
        raise ValueError(f"frequency limit {k_max} for a box of {box}: needs 1 to {box // 2 - 1}")
    square = half_square(k_max)
    return square.take(square.shell <= k_max)


def half_square(highest: int) -> HalfDisc:
    """Return all pixels of one half with ``|kx|`` and ``|ky|`` up to a frequency, in the order of :func:`half_disc`."""
    ky, kx = np.mgrid[-highest : highest + 1, 0 : highest + 1].astype(np.int32)
    shell = np.rint(np.hypot(kx, ky)).astype(np.int32)
    keep = (kx > 0) | (ky > 0)
    return HalfDisc(kx[keep], ky[keep], shell[keep])


def _centre(transform: Complex, axes: int) -> Complex:
    """Move the origin between corner and centre: multiply by (-1)^(kx + ky + …), in place."""
    for axis in range(-axes, 0):
        index: list[Any] = [slice(None)] * transform.ndim
        index[axis] = slice(1, None, 2)
        transform[tuple(index)] *= -1
    return transform


def fourier_images(images: Float) -> Complex:
    """Transform real images.

    Parameters
    ----------
    images
        Shape (b, n, n), n even.

    Returns
    -------
    Shape (b, n, n // 2 + 1), complex of the same precision, ky in FFT order; unnormalised, origin at the box centre.
    """
    transform: Complex = fft_namespace(images).rfft2(images)
    # (-1)^k is the shift by n/2, whatever n/2 is: exp(-2 pi i k (n/2) / n)
    return _centre(transform, 2)


def real_images(transforms: Complex) -> Float:
    """Invert :func:`fourier_images`: (b, n, n // 2 + 1) to (b, n, n)."""
    n = transforms.shape[-2]
    images: Float = fft_namespace(transforms).irfft2(_centre(transforms.copy(), 2), s=(n, n))
    return images


def low_passed(transforms: Complex, k_max: int, size: int) -> Complex:
    """Cut the shells up to one out of transforms, for images of fewer pixels that show the same.

    Parameters
    ----------
    transforms
        :func:`fourier_images`, (b, n, n // 2 + 1).
    k_max
        Last shell kept, less than ``size // 2``.
    size
        Even box of the smaller images, at most n.

    Returns
    -------
    Shape (b, size, size // 2 + 1); zero beyond ``k_max``.
    """
    xp = array_namespace(transforms)
    out: Complex = xp.zeros((len(transforms), size, size // 2 + 1), transforms.dtype)
    out[:, : k_max + 1, : k_max + 1] = transforms[:, : k_max + 1, : k_max + 1]
    out[:, -k_max:, : k_max + 1] = transforms[:, -k_max:, : k_max + 1]
    ky = np.fft.fftfreq(size, 1 / size)[:, None]
    out *= xp.asarray(np.rint(np.hypot(ky, np.arange(size // 2 + 1))) <= k_max)
    return out


def sample_half_disc(transforms: Complex, disc: HalfDisc) -> Complex:
    """Return the coefficients of :func:`fourier_images` on a half disc: (b, n, n // 2 + 1) to (b, p)."""
    n, half = transforms.shape[-2:]
    flat = transforms.reshape(len(transforms), -1)
    sampled: Complex = np.take(flat, (disc.ky % n) * half + disc.kx, axis=1)
    return sampled


def fill_half_disc(values: Complex, disc: HalfDisc, box: int) -> Complex:
    """Put half-disc coefficients back: (b, p) to (b, n, n // 2 + 1), zero elsewhere; adjoint of the sampling."""
    half = box // 2 + 1
    transforms = np.zeros((len(values), box * half), values.dtype)
    transforms[:, (disc.ky % box) * half + disc.kx] = values
    on_axis = disc.kx == 0
    transforms[:, (-disc.ky[on_axis] % box) * half] = values[:, on_axis].conj()
    return transforms.reshape(len(values), box, half)


def fourier_volume(volume: Float, padding: int = 1) -> Complex:
    """Transform a real volume, zero-padded about its centre.

    Parameters
    ----------
    volume
        Shape (n, n, n), n even.
    padding
        Factor by which the box is enlarged.

    Returns
    -------
    Shape (m, m, m // 2 + 1) with m = padding · n; kz, ky in FFT order; unnormalised, origin at the box centre.
    """
    n = volume.shape[0]
    m = n * padding
    if padding > 1:
        padded = np.zeros((m, m, m), volume.dtype)
        low = m // 2 - n // 2
        padded[low : low + n, low : low + n, low : low + n] = volume
        volume = padded
    transform: Complex = scipy.fft.rfftn(volume)
    return _centre(transform, 3)


def real_volume(transform: Complex, box: int | None = None) -> Float:
    """Invert :func:`fourier_volume` and crop to ``box`` about the centre; overwrites its input."""
    m = transform.shape[0]
    volume: Float = scipy.fft.irfftn(_centre(transform, 3), s=(m, m, m), overwrite_x=True)
    if box is None or box == m:
        return volume
    low = m // 2 - box // 2
    return np.ascontiguousarray(volume[low : low + box, low : low + box, low : low + box])


def shell_index(box: int) -> Int32:
    """Return ``round(|k|)`` for the layout of :func:`fourier_volume` without padding: (n, n, n // 2 + 1)."""
    full = np.fft.fftfreq(box, 1 / box)
    half = np.arange(box // 2 + 1)
    squared = full[:, None, None] ** 2 + full[None, :, None] ** 2 + half[None, None, :] ** 2
    return np.rint(np.sqrt(squared)).astype(np.int32)
