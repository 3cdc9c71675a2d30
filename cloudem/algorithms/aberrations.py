"""What optics groups say of aberrations, in the form in which images, slices and CTFs get them.

Even aberrations and the magnification of the CTF are in the CTF's coefficients (:func:`terms_with`). Odd ones are a
phase of which transforms of images are freed (:meth:`Aberrations.freed`). The magnification of what images show is in
the axes along which slices are taken (:meth:`Aberrations.axes`); poses stay rotations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.backend.arrays import array_namespace
from cloudem.kernels.aberrations import (
    ODD_DEGREES,
    aberrated,
    beam_tilt_terms,
    magnified,
    odd_phase,
    zernike_terms,
)
from cloudem.kernels.fourier import HalfDisc, half_disc, half_square
from cloudem.kernels.slices import magnified_axes
from cloudem.model.optics import OpticsGroup

Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]


@dataclass(frozen=True)
class Aberrations:
    """What of the aberrations of optics groups is not in the CTF's coefficients.

    Attributes
    ----------
    odd
        Odd phases at k, (g, 12) (:func:`odd_terms`); None where no group has any.
    magnification
        Matrices M, (g, 2, 2); None where all are unit.
    """

    odd: Float64 | None = None
    magnification: Float64 | None = None

    def freed(
        self, transforms: Complex64, group: NDArray[np.integer[Any]], length: float, *, put_in: bool = False
    ) -> Complex64:
        """Free transforms of images of their odd phases, in place, and return them.

        Parameters
        ----------
        transforms
            :func:`cloudem.kernels.fourier.fourier_images`, (b, n, n // 2 + 1).
        group
            Optics group of each, (b,).
        length
            Of the box, Å.
        put_in
            Put the phases in instead.
        """
        if self.odd is None:
            return transforms
        xp = array_namespace(transforms)
        present = np.unique(group)
        for number in present:
            if self.odd[number].any():
                terms = -self.odd[number] if put_in else self.odd[number]
                factor = xp.asarray(_freeing(tuple(terms), transforms.shape[1], length))
                if len(present) == 1:
                    transforms *= factor
                else:
                    transforms[xp.asarray(np.flatnonzero(group == number))] *= factor
        return transforms

    def of(self, group: NDArray[np.integer[Any]]) -> Float64 | None:
        """Return the magnification of images of some groups, (b, 2, 2); None where all matrices are unit."""
        return None if self.magnification is None else self.magnification[group]

    def axes(self, rotations: Float64, group: NDArray[np.integer[Any]]) -> Float64:
        """Return the axes along which slices are taken for poses (b, 3, 3) of images of some groups."""
        magnification = self.of(group)
        return rotations if magnification is None else magnified_axes(rotations, magnification)

    def reach(self, disc: HalfDisc) -> NDArray[np.int32]:
        """Return the highest shell of the map that each pixel of a half disc shows in any group, (p,)."""
        if self.magnification is None:
            return disc.shell
        furthest: Any = 0
        for m in self.magnification:
            x, y = m[0, 0] * disc.kx + m[0, 1] * disc.ky, m[1, 0] * disc.kx + m[1, 1] * disc.ky
            furthest = np.maximum(furthest, x * x + y * y)
        shells: NDArray[np.int32] = np.rint(np.sqrt(furthest)).astype(np.int32)
        return shells

    def pixels(self, box: int, k_max: int) -> HalfDisc:
        """Return the pixels of images of a box that show nothing beyond a shell of the map in any group."""
        if self.magnification is None:
            return half_disc(box, k_max)
        square = half_square(box // 2 - 1)  # the last shells may lie in its corners
        return square.take(self.reach(square) <= k_max)


NO_ABERRATIONS = Aberrations()


def aberrations_of(optics: Sequence[OpticsGroup]) -> Aberrations:
    """Return the aberrations of optics groups; raises as their properties do."""
    odd = np.array([odd_terms(group) for group in optics]).reshape(-1, sum(d + 1 for d in ODD_DEGREES))
    matrices = np.array([group.magnification for group in optics]).reshape(-1, 2, 2)
    return Aberrations(odd if odd.any() else None, None if np.array_equal(matrices, _unit(matrices)) else matrices)


def terms_with(terms: Float64, optics: Sequence[OpticsGroup], group: NDArray[np.integer[Any]]) -> Float64:
    """Return the CTF's coefficients (b, 12) with the even aberrations and the magnification of each image's group."""
    even = np.array([even_terms(one) for one in optics])
    matrices = np.array([one.magnification for one in optics])
    some = (even.any(axis=1) | (matrices != _unit(matrices)).any(axis=(1, 2)))[group]
    if not some.any():
        return terms
    out = terms.copy()
    out[some] = aberrated(terms[some], even[group[some]], matrices[group[some]])
    return out


def _unit(matrices: Float64) -> Float64:
    return np.broadcast_to(np.eye(2), matrices.shape)


@lru_cache(maxsize=32)
def _freeing(terms: tuple[float, ...], box: int, length: float) -> Complex64:
    """Return the factor that frees transforms (n, n // 2 + 1) of an odd phase; 1 at Nyquist, which has no sign."""
    kx, ky = np.arange(box // 2), np.fft.fftfreq(box, 1 / box)
    x, y = (part.ravel() for part in np.meshgrid(kx, ky))
    factor = np.ones((box, box // 2 + 1), np.complex64)
    factor[:, :-1] = np.exp(-1j * odd_phase(x, y, np.array([terms]), 1 / length)).reshape(box, -1)
    factor[box // 2] = 1
    return factor


def even_terms(optics: OpticsGroup) -> Float64:
    """Return the even phase of a group at ``M k``, (9,): see :func:`cloudem.kernels.aberrations.aberrated`."""
    return zernike_terms(optics.even_zernike, odd=False)


def odd_terms(optics: OpticsGroup) -> Float64:
    """Return the odd phase of a group at k, magnification included, (12,).

    For :func:`cloudem.kernels.aberrations.odd_phase`.
    """
    return np.asarray(magnified(odd_terms_before(optics)[None], optics.magnification[None], ODD_DEGREES)[0])


def odd_terms_before(optics: OpticsGroup) -> Float64:
    """Return the odd phase of a group as a polynomial of ``M k``, (12,)."""
    tilt = beam_tilt_terms(optics.beam_tilt, optics.spherical_aberration, optics.voltage)
    return zernike_terms(optics.odd_zernike, odd=True) + tilt
