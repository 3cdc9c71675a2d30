"""A density whose Fourier transform is known in closed form: the truth that every numerical test is held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Blobs:
    """Gaussians ``a exp(-|r - c|² / 2 s²)``; lengths in voxels from the origin voxel, c as x, y, z."""

    amplitude: Float64
    centre: Float64
    sigma: Float64

    def transform(self, k: NDArray[Any], box: int) -> NDArray[np.complex128]:
        """Return ``F(k)`` of the continuous density at frequencies (…, 3) as x, y, z in cycles per box."""
        total = np.zeros(k.shape[:-1], np.complex128)
        squared = np.sum(np.square(k), axis=-1) / box**2
        for a, c, s in zip(self.amplitude, self.centre, self.sigma, strict=True):
            scale = a * (2 * np.pi * s * s) ** 1.5
            total += scale * np.exp(-2 * np.pi**2 * s * s * squared - 2j * np.pi / box * (k @ c))
        return total

    def density(self, box: int) -> NDArray[np.float32]:
        """Return the sampled density (n, n, n) as [z, y, x]."""
        axis = np.arange(box) - box // 2
        total = np.zeros((box, box, box))
        for a, c, s in zip(self.amplitude, self.centre, self.sigma, strict=True):
            x, y, z = (np.exp(-((axis - c[i]) ** 2) / (2 * s * s)) for i in range(3))
            total += a * z[:, None, None] * y[:, None] * x
        return total.astype(np.float32)

    def slices(self, rotations: Float64, kx: NDArray[Any], ky: NDArray[Any], box: int) -> NDArray[np.complex128]:
        """Return the exact slices (b, p): ``V(A^T (kx, ky, 0))``."""
        plane = np.stack([kx, ky, np.zeros_like(kx)], axis=-1).astype(np.float64)
        return self.transform(np.einsum("bji,pj->bpi", rotations, plane), box)


def blobs(count: int = 12, reach: float = 7.0, sigma: tuple[float, float] = (1.5, 2.5), seed: int = 3) -> Blobs:
    """Return Gaussians inside a sphere of radius ``reach``, without symmetry."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((count, 3))
    centre = directions / np.linalg.norm(directions, axis=1)[:, None] * reach * rng.uniform(0.2, 1, (count, 1))
    return Blobs(rng.uniform(0.5, 1.5, count), centre, rng.uniform(*sigma, count))
