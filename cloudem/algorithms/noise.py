"""The noise of images, by optics group and shell: from their power, and from what a reference leaves of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.arrays import array_namespace
from cloudem.kernels.fourier import fourier_images, half_disc, sample_half_disc
from cloudem.kernels.shells import shell_sums

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


def noise_variance(residual: Float64, count: Float64, box: int) -> Float64:
    """Return σ² by group and shell from residual power; shells without pixels repeat the last, shell 0 the first."""
    disc = half_disc(box, box // 2 - 1)
    pixels = np.bincount(disc.shell, minlength=box // 2 + 1)
    variance = residual / np.maximum(2 * pixels * np.maximum(count, 1)[:, None], 1)
    variance[:, 0], variance[:, -1] = variance[:, 1], variance[:, -2]
    if np.any(count == 0):
        variance[count == 0] = residual.sum(axis=0) / np.maximum(2 * pixels * count.sum(), 1)
        variance[:, 0], variance[:, -1] = variance[:, 1], variance[:, -2]
    return np.asarray(np.maximum(variance, 1e-12 * variance.max()))


def power_spectrum(images: Float32, optics_group: NDArray[np.int32], groups: int) -> tuple[Float64, Float64]:
    """Return ``sum |X|²`` by group and shell, and images by group: the residual of knowing nothing."""
    box, xp = images.shape[-1], array_namespace(images)
    disc = half_disc(box, box // 2 - 1).beside(images)
    values = sample_half_disc(fourier_images(images), disc)
    power = values.real**2 + values.imag**2
    by_pixel = xp.stack([power[optics_group == g].sum(axis=0, dtype=np.float64) for g in range(groups)])
    return shell_sums(by_pixel, disc.shell, box // 2 + 1), np.bincount(optics_group, minlength=groups).astype(float)
