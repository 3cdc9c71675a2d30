"""CuPy twin of :mod:`cloudem.kernels.ctf`."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from cloudem.kernels._cupy.launch import blocks, device, launch


def ctf_values(kx: Any, ky: Any, terms: Any, frequency_step: float) -> Any:
    """Twin of :func:`cloudem.kernels.ctf.ctf_values`; the values stay on the device."""
    out = cupy.empty((len(terms), len(kx)), np.float32)
    x, y = (device(k, np.float64) * frequency_step for k in (kx, ky))
    launch("ctf", "ctf_values", blocks(*out.shape), x, y, device(terms, np.float64), len(kx), out)
    return out
