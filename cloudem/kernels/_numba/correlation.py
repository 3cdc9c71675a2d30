"""numba twin of :mod:`cloudem.kernels.correlation`."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from cloudem.kernels.correlation import PHASES, seed_start

jit = numba.njit(cache=True, nogil=True, error_model="numpy")
COSINES, SINES = np.ascontiguousarray(PHASES.real), np.ascontiguousarray(PHASES.imag)


def shell_products(a: NDArray[Any], b: NDArray[Any], ky: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
    """Twin of :func:`cloudem.kernels.correlation.shell_products`."""
    sums = np.zeros((a.shape[0] // 2 + 1, 3))
    rows = np.arange(a.shape[1]) if ky is None else ky
    _shell_products(np.ascontiguousarray(a), np.ascontiguousarray(b), rows, sums)
    return np.ascontiguousarray(sums.T)


def turn_phases(spectrum: NDArray[np.complex64], ky: NDArray[np.int64], first_shell: int, seed: int) -> None:
    """Twin of :func:`cloudem.kernels.correlation.turn_phases`."""
    _turn_phases(spectrum, ky, first_shell, np.uint64(seed_start(seed)), COSINES, SINES)


@jit
def _shell_products(a: Any, b: Any, rows: Any, sums: Any) -> None:
    box, count = a.shape[0], sums.shape[0]
    for iz in range(box):
        kz = iz if iz <= box // 2 else iz - box
        for row in range(rows.shape[0]):
            ky = rows[row] % box
            ky = ky if ky <= box // 2 else ky - box
            rest = kz * kz + ky * ky
            # neighbours share a shell: their sums stay in registers
            shell, cross, power, other = 0, 0.0, 0.0, 0.0
            for kx in range(a.shape[2]):
                here = int(np.rint(np.sqrt(rest + kx * kx)))
                if here != shell:
                    sums[shell, 0] += cross
                    sums[shell, 1] += power
                    sums[shell, 2] += other
                    shell, cross, power, other = here, 0.0, 0.0, 0.0
                    if shell >= count:
                        break
                mates = 1.0 if kx in (0, count - 1) else 2.0
                u, v = a[iz, row, kx], b[iz, row, kx]
                ur, ui, vr, vi = np.float64(u.real), np.float64(u.imag), np.float64(v.real), np.float64(v.imag)
                cross += mates * (ur * vr + ui * vi)
                power += mates * (ur * ur + ui * ui)
                other += mates * (vr * vr + vi * vi)
            if shell < count:
                sums[shell, 0] += cross
                sums[shell, 1] += power
                sums[shell, 2] += other


@jit
def _number(place: int, start: Any) -> int:
    """Return the phase's number of a coefficient: the uppermost ten bits of the mixed ones."""
    x = np.uint64(place) + start + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return int(x >> np.uint64(54))


@jit
def _turn_phases(spectrum: Any, rows: Any, first_shell: int, start: Any, cosines: Any, sines: Any) -> None:
    box, count = spectrum.shape[0], spectrum.shape[2]
    for iz in range(box):
        kz = iz if iz <= box // 2 else iz - box
        for row in range(rows.shape[0]):
            iy = rows[row] % box
            ky = iy if iy <= box // 2 else iy - box
            rest = kz * kz + ky * ky
            own, mate = (iz * box + iy) * count, ((-iz % box) * box + -iy % box) * count
            line = spectrum[iz, row]
            for kx in range(count):
                if np.rint(np.sqrt(rest + kx * kx)) < first_shell:
                    continue
                sign = np.float32(1)
                place = own + kx
                if kx in (0, count - 1):  # Friedel mates are in the same plane, and get the conjugate
                    if own == mate:
                        continue
                    if mate < own:
                        place, sign = mate + kx, np.float32(-1)
                number = _number(place, start)
                c, s = cosines[number], sign * sines[number]
                u = line[kx]
                line[kx] = complex(u.real * c - u.imag * s, u.real * s + u.imag * c)
