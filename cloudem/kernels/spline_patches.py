"""Small images between their pixels, each at a place of its own: values and slopes of cubic B-splines."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@kernel
def patch_values(coefficients: Float32, places: Float64) -> Float64:
    """Return the value of each patch at its place, and its slopes along x and y.

    Parameters
    ----------
    coefficients
        Of cubic B-splines, ``(m, s, s)``, s at least 4.
    places
        Pixels of the patches, ``(m, 2)`` as x, y. Beyond 1 and s - 2 a patch goes on as it is there, without a slope.

    Returns
    -------
        ``(m, 3)``: value, slope along x, slope along y.
    """
    side = coefficients.shape[-1]
    kept = np.clip(places, 1.0, side - 2.0)
    inside = (kept == places).astype(np.float64)
    base = np.minimum(np.floor(kept).astype(np.int64), side - 3)
    f = kept - base
    weights = np.stack([(1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3], axis=-1) / 6
    slopes = np.stack([-((1 - f) ** 2), 3 * f**2 - 4 * f, -3 * f**2 + 2 * f + 1, f**2], axis=-1) / 2
    tap = np.arange(-1, 3)
    rows, columns = base[:, 1, None] + tap, base[:, 0, None] + tap
    some = coefficients[np.arange(len(base))[:, None, None], rows[:, :, None], columns[:, None, :]].astype(np.float64)
    value = np.einsum("myx,my,mx->m", some, weights[:, 1], weights[:, 0])
    along_x = np.einsum("myx,my,mx->m", some, weights[:, 1], slopes[:, 0]) * inside[:, 0]
    along_y = np.einsum("myx,my,mx->m", some, slopes[:, 1], weights[:, 0]) * inside[:, 1]
    return np.stack([value, along_x, along_y], axis=1)
