"""CuPy twin of :mod:`cloudem.kernels.shells`."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels import shells as reference


def shell_sums(values: Any, shells: Any, count: int) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.shells.shell_sums`: a few rows, summed on the host."""
    return reference.shell_sums.reference(cupy.asnumpy(values), cupy.asnumpy(shells), count)
