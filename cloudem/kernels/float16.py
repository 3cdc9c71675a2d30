"""Images between half precision, as stored, and single precision, as used: the inner loops of reading and writing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.kernel import kernel


@kernel
def narrow(source: NDArray[np.float32], rows: NDArray[np.int64], out: NDArray[Any]) -> bool:
    """Do ``out[:] = source[rows]`` in the precision of `out`, rounding to nearest, ties to even.

    Parameters
    ----------
    source
        Shape ``(m, p)``, C-contiguous.
    rows
        Row numbers in `source`, shape ``(k,)``; not checked here.
    out
        Shape ``(k, p)``, float16 or float32, C-contiguous.

    Returns
    -------
    fits
        Whether every value is finite in that precision. Where it is not, `out` is of no use.
    """
    with np.errstate(over="ignore"):
        out[:] = source[rows]
    return bool(np.isfinite(out).all())


@kernel
def widen(source: NDArray[Any], rows: NDArray[np.int64], places: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Do ``out[places] = source[rows]`` in single precision; exact for every finite half.

    Parameters
    ----------
    source
        Shape ``(m, p)``, float16 or float32. Infinities and NaN in half precision are not kept: the store holds none.
    rows, places
        Row numbers in `source` and in `out`, shape ``(k,)``; not checked here.
    out
        Shape ``(l, p)``, C-contiguous.
    """
    out[places] = source[rows]
