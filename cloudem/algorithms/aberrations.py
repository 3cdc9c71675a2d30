"""What an optics group says of aberrations, as the polynomials that kernels read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError
from cloudem.kernels.aberrations import EVEN_ORDERS, ODD_DEGREES, ODD_ORDERS, beam_tilt_terms, magnified, zernike_terms
from cloudem.model.optics import EVEN, ODD, OpticsGroup

Float64 = NDArray[np.float64]


def even_terms(optics: OpticsGroup) -> Float64:
    """Return the even phase of a group at ``M k``, (9,): see :func:`cloudem.kernels.aberrations.aberrated`.

    Raises
    ------
    InconsistentDataError
        A coefficient of a higher order than is applied is not zero.
    """
    return zernike_terms(_known(optics, EVEN, optics.even_zernike, len(EVEN_ORDERS)), odd=False)


def odd_terms(optics: OpticsGroup) -> Float64:
    """Return the odd phase of a group at k, magnification included, (12,).

    For :func:`cloudem.kernels.aberrations.odd_phase`; raises as :func:`even_terms`.
    """
    terms = zernike_terms(_known(optics, ODD, optics.odd_zernike, len(ODD_ORDERS)), odd=True)
    terms += beam_tilt_terms(optics.beam_tilt, optics.spherical_aberration, optics.voltage)
    return np.asarray(magnified(terms[None], optics.magnification[None], ODD_DEGREES)[0])


def _known(optics: OpticsGroup, label: str, values: tuple[float, ...], count: int) -> tuple[float, ...]:
    if any(values[count:]):
        raise InconsistentDataError(
            f"{label} of optics group {optics.name} has {len(values)} entries; the first {count} can be applied, and "
            "the others are not zero: estimate aberrations of lower order"
        )
    return values[:count]
