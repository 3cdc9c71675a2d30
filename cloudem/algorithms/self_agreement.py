"""How far a map agrees with itself turned, as a share of what its noise allows.

Maps are cropped about the particle's centre, freed of their mean at each distance from it (every turn leaves that as it
is), and given the same power in all shells, weighted by the share of signal: detail counts then, and not the outline.
Of two half-maps, the turned one is compared with the other, and no turn can reach more than the halves themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from cloudem.algorithms.mask import soft_sphere, without_sphere
from cloudem.algorithms.placing import finer, map_on, moved_map
from cloudem.algorithms.significance import deviations, independent_voxels, mask_fraction
from cloudem.conventions import FSC_THRESHOLD
from cloudem.kernels.fourier import shell_index
from cloudem.kernels.shells import correlation, fourier_shell_correlation
from cloudem.kernels.slices import fast_even
from cloudem.kernels.turned_points import turned_correlations

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

EDGE_SHARE = 0.08
"""Width of the sphere's soft edge, of its radius."""

MARGIN = 1.25
"""Edge of the cropped box over the particle's diameter."""

VOXELS_PER_WAVE = 3.0
"""Of the cropped map: with `placing.finer`, six for linear interpolation between them."""

EMPTY = 1e-5
"""A shell with less of the power of the strongest one was filtered away."""

SIGNAL = 0.25
"""Share of signal in a single map up to which its shells count: that of two halves whose FSC is 0.143."""

LEAST_DEVIATIONS = 6.0
"""By how many deviations of noise the shells that count have to hold signal, all together."""


class Prepared(NamedTuple):
    """A map, or its halves, as they are compared.

    Attributes
    ----------
    first, second
        (m, m, m), the particle's centre at voxel m // 2; all shells of the same power, but for the weight. The same
        map twice where there are no halves.
    whole
        Their mean, weighted by its own signal.
    voxel, radius
        Å; and that of the particle's sphere, in these voxels.
    middle
        Where voxel m // 2 is, Å from voxel n // 2 of the map that was given, (3,) x, y, z.
    signal
        Correlation that mates of ``first`` and ``second`` could reach, by shell, (m // 2 + 1,); 0 beyond the last.
    first_shell, last_shell
        Those that count, both included; the last is 0 where none does.
    aspherical
        Share of the map's power that is no sphere about the centre.
    """

    first: Float32
    second: Float32
    whole: Float32
    voxel: float
    radius: float
    middle: Float64
    signal: Float64
    first_shell: int
    last_shell: int
    aspherical: float

    @property
    def length(self) -> float:
        """Of the box, Å."""
        return len(self.whole) * self.voxel

    @property
    def resolution(self) -> float:
        """Å of the last shell that counts; infinite where none does."""
        return self.length / self.last_shell if self.last_shell else float("inf")

    def possible(self) -> float:
        """Return the weighted correlation that mates could reach: that of ``first`` and ``second``."""
        shells = np.arange(len(self.signal)) ** 2
        return float((shells * self.signal**2).sum() / max(float((shells * self.signal).sum()), 1e-30))


def prepared(
    halves: tuple[Float32, Float32] | tuple[Float32],
    pixel_size: float,
    centre: Float64,
    radius: float,
    finest: float,
) -> Prepared:
    """Make maps ready to be compared with themselves turned.

    Parameters
    ----------
    halves
        Two half-maps, or one map, (n, n, n).
    pixel_size, radius, finest
        Å: of the voxels, of the sphere that holds the particle, and finest detail to look at, not beyond Nyquist.
    centre
        Of the particle from voxel n // 2, Å along x, y, z; the box is laid about the nearest voxel.
    """
    box = len(halves[0])
    size = fast_even(int(np.ceil(VOXELS_PER_WAVE * box * pixel_size / finest)))
    voxel = box * pixel_size / size
    place = np.rint(centre[::-1] / voxel).astype(int) + size // 2
    side = fast_even(int(np.ceil(MARGIN * 2 * radius / voxel)))
    parts = [_cropped(map_on(half, size), place, side) for half in halves]
    inside = _cropped(np.ones((size,) * 3, np.float32), place, side)
    edge = max(EDGE_SHARE * radius / voxel, 2.0)
    sphere = soft_sphere(side, radius / voxel - edge / 2, edge)
    masked = [(part - np.median(part)) * sphere for part in parts]  # most of the box is solvent
    bare = [without_sphere(part) * sphere for part in parts]
    aspherical = _power(sum(bare[1:], bare[0])) / max(_power(sum(masked[1:], masked[0])), 1e-30)
    spectra = [fft.rfftn(one) for one in bare]
    shell = shell_index(side)
    power = [_by_shell(np.square(np.abs(one)), shell) for one in spectra]
    last = min(int(side * voxel / finest), side // 2 - 1)
    if len(spectra) == 2:
        cross = _by_shell((spectra[0] * spectra[1].conj()).real, shell)
        fsc, least = correlation(cross, *power), FSC_THRESHOLD
    else:
        fsc, least = _signal_of_one(parts[0], power[0], sphere, inside, radius / voxel), SIGNAL
    first, stop = _range_of(fsc, least, last, independent_voxels(side, mask_fraction(sphere), 1), side * voxel, radius)
    signal = np.where((np.arange(len(fsc)) >= first) & (np.arange(len(fsc)) <= stop) & (stop > 0), fsc, 0.0).clip(0, 1)
    of_whole = 2 * signal / (1 + signal) if len(spectra) == 2 else signal
    flat = [_flattened(one, each, signal, shell, side) for one, each in zip(spectra, power, strict=True)]
    total = sum(spectra[1:], spectra[0])
    both = _flattened(total, _by_shell(np.square(np.abs(total)), shell), of_whole, shell, side)
    middle = (place - size // 2)[::-1] * voxel
    return Prepared(flat[0], flat[-1], both, voxel, radius / voxel, middle, signal, first, stop, aspherical)


def _mean(volume: Float32, weight: Float32) -> np.float32:
    return np.float32((volume * weight).sum() / weight.sum())


def _power(volume: NDArray[Any]) -> float:
    return float(np.square(volume - volume.mean(), dtype=np.float64).sum())


def _cropped(volume: Float32, centre: NDArray[Any], side: int) -> Float32:
    """Return a cube about a voxel (z, y, x); zero where the volume does not reach."""
    out = np.zeros((side,) * 3, np.float32)
    first = centre - side // 2
    low, high = np.maximum(first, 0), np.minimum(first + side, len(volume))
    if np.all(high > low):
        target = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))
        out[target] = volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return out


def _by_shell(values: NDArray[Any], shell: NDArray[np.int32]) -> Float64:
    """Return the sum of values of an ``rfftn`` by shell, each Friedel pair counted as twice."""
    side = len(values)
    twice = np.full(values.shape[-1], 2.0)
    twice[[0, -1]] = 1.0
    return np.asarray(np.bincount(shell.ravel(), (values * twice).ravel())[: side // 2 + 1], np.float64)


def _signal_of_one(part: Float32, power: Float64, sphere: Float32, inside: Float32, radius: float) -> Float64:
    """Return the share of signal in each shell of a single map, by the noise outside the particle's sphere."""
    side, shell = len(part), shell_index(len(part))
    solvent = (1 - soft_sphere(side, radius, 3.0)) * inside
    room = float(np.square(solvent, dtype=np.float64).sum())
    fraction = float(np.square(sphere, dtype=np.float64).sum())
    there = power > EMPTY * power[1:].max(initial=0.0)
    if room < 0.05 * part.size:
        return np.asarray(there, np.float64)
    outside = fft.rfftn((part - _mean(part, solvent)) * solvent)
    noise = ndimage.uniform_filter1d(_by_shell(np.square(np.abs(outside)), shell), 3) * fraction / room
    return np.asarray(np.where(there, 1 - noise / np.maximum(power, 1e-30), 0.0).clip(0, 1))


def _range_of(fsc: Float64, least: float, last: int, voxels: Float64, length: float, radius: float) -> tuple[int, int]:
    """Return the first and last shell that count; (0, 0) where none does."""
    smooth = ndimage.uniform_filter1d(fsc, 3, mode="nearest")
    lowest = max(int(np.ceil(length / radius / 2)), 1)  # one wave across the particle
    good = smooth >= least
    good[last + 1 :] = False
    start = next((shell for shell in range(lowest, last + 1) if good[shell]), 0)
    if not start:
        return 0, 0
    stop = next((shell for shell in range(start, last + 2) if shell > last or not good[shell]), last + 1) - 1
    if stop - start < 2 or deviations(fsc, voxels, start, stop) < LEAST_DEVIATIONS:
        return 0, 0
    return start, stop


def _flattened(spectrum: NDArray[Any], power: Float64, signal: Float64, shell: NDArray[np.int32], side: int) -> Float32:
    """Return the map whose shells have the power ``k² signal``, one for each coefficient."""
    count = np.bincount(shell.ravel())[: len(power)]
    factor = np.sqrt(signal * count / np.maximum(power, 1e-30)) * side**1.5
    factor = np.append(factor, np.zeros(int(shell.max()) + 1 - len(factor)))
    return fft.irfftn(spectrum * factor[shell].astype(np.float32), s=(side,) * 3).astype(np.float32)


class TurnedMap:
    """A map at points inside a sphere, compared with another one turned."""

    def __init__(self, own: Float32, other: Float32, frame: Prepared, count: int) -> None:
        box, radius = len(own), frame.radius
        self._fine, self._frame = finer(other), frame
        line = np.arange(box) - box // 2
        grid = np.stack(np.meshgrid(line, line, line, indexing="ij")[::-1], axis=-1).reshape(-1, 3)
        inside = np.flatnonzero(np.sum(grid**2, axis=1) <= radius**2)
        chosen = inside[np.linspace(0, len(inside) - 1, min(count, len(inside))).astype(np.int64)]
        self._points = grid[chosen].astype(np.float32)
        self._own = np.asarray(own.ravel()[chosen], np.float32)

    def agreement(self, rotations: Float64, centre: Float64) -> Float64:
        """Return the correlation with the other map turned about a centre by each of some rotations.

        Parameters
        ----------
        rotations
            (k, 3, 3).
        centre
            Å, as `Prepared.middle`, (3,).

        Returns
        -------
            (k,).
        """
        about = (centre - self._frame.middle) / self._frame.voxel
        return turned_correlations(self._fine, self._points, self._own, rotations, about)


def agreement_curve(frame: Prepared, rotations: Float64, centre: Float64) -> Float64:
    """Return the mean FSC of the first map with the second turned about a centre by each of some rotations.

    Parameters
    ----------
    frame
        Maps as they are compared.
    rotations
        (k, 3, 3).
    centre
        Å, as in `TurnedMap.agreement`.

    Returns
    -------
        (m // 2 + 1,); ``frame.signal`` is what it could reach.
    """
    about = (centre - frame.middle) / frame.voxel
    curves = []
    for rotation in rotations:
        turned = moved_map(frame.second, rotation, about - rotation @ about, mirrored=False)
        curves.append(fourier_shell_correlation(frame.first, turned))
    return np.asarray(np.mean(curves, axis=0))
