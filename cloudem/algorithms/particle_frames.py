"""Particles in the frames of a movie: compared with projections of their reference, and summed along their tracks.

The part of a frame ``f`` around particle ``p`` is ``X_fp(k) = β_f(k) exp(-2πi k·s_fp) M_p(k) + noise``, where M is the
projection of the reference in the particle's pose, its CTF applied, displaced to where the particle is expected, and s
what is not known of its place. All that is needed of a frame is ``Y = X conj(M)``: the logarithm of the likelihood of
a displacement is ``2 Re Σ β_f / σ² Y exp(2πi k·s)`` but for what does not depend on it, the sum over one half of the
Fourier pixels and σ² the power of the noise (Zivanov, Nakane & Scheres 2019, 10.1107/S205225251801463X).

How much of the reference a frame shows is taken as ``β_f = a FSC(k) D_f(k) / √(Σ_f D_f²)``: the Fourier shell
correlation of the half-maps is what the map of one half can predict, D_f what radiation has left
(`cloudem.algorithms.dose`), and one number a for each micrograph is found by regression.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.kernels.aberrations import odd_phase
from cloudem.kernels.boxes import cut_boxes
from cloudem.kernels.ctf import ctf_values
from cloudem.kernels.fourier import HalfDisc, fill_half_disc, half_disc, real_images
from cloudem.kernels.particle_spectra import add_spectra, compare_spectra
from cloudem.kernels.shells import shell_sums
from cloudem.kernels.slices import extract

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex64 = NDArray[np.complex64]

REACH = 10.0
"""Å from where they are expected within which particles are looked for in each frame, in x and in y."""

BLOCK_PIXELS = 2**18
"""Pixels of windows that are worked on at a time: they stay in the caches."""

FINE = 3.0
"""Samples of a likelihood in the length of the finest wave that it holds."""


class Molecules(NamedTuple):
    """What is known of the particles of a micrograph.

    Attributes
    ----------
    half
        Half-set of each, 1 or 2, ``(n,)``.
    axes
        Along which slices are taken, ``(n, 3, 3)``: rotations, with the magnification of the optics.
    shifts
        Of the particles from the origins of their windows, Å, ``(n, 2)``.
    terms
        Of the CTF, ``(n, 12)``, `cloudem.kernels.ctf.ctf_terms`.
    scale
        Factor on the CTF, ``(n,)``.
    odd
        Odd phases of the optics, ``(n, 12)``, `cloudem.algorithms.aberrations.odd_terms`; None for none.
    """

    half: NDArray[np.int8]
    axes: Float64
    shifts: Float64
    terms: Float64
    scale: Float64
    odd: Float64 | None = None


class HalfMap(NamedTuple):
    """The map of a half-set, as slices are taken from it.

    Attributes
    ----------
    volume
        `cloudem.algorithms.reconstruct.reference_volume`.
    padding
        Of the volume.
    length
        Å, of the map's box.
    """

    volume: Complex64
    padding: float
    length: float


class WindowPlan(NamedTuple):
    """Windows of frames.

    Attributes
    ----------
    side
        Pixels of a frame, even.
    pixel_size
        Å.
    shells
        Last shell that is compared.
    outside
        1 in the background of a window and 0 elsewhere, ``(side, side)``.
    sign
        -1 where particles are dark in the frames.
    """

    side: int
    pixel_size: float
    shells: int
    outside: Float64
    sign: float

    @property
    def length(self) -> float:
        """Å, of a window."""
        return self.side * self.pixel_size

    @property
    def disc(self) -> HalfDisc:
        """Fourier pixels that are compared."""
        return _disc(self.side, self.shells)


@lru_cache(maxsize=8)
def _disc(side: int, shells: int) -> HalfDisc:
    return half_disc(side, shells)


def _blocks(count: int, plan: WindowPlan) -> Iterator[slice]:
    """Yield slices of particles whose windows fit the caches together."""
    step = max(1, BLOCK_PIXELS // plan.side**2)
    yield from (slice(first, first + step) for first in range(0, count, step))


class ComparedFrames(NamedTuple):
    """Frames and references of one micrograph.

    Attributes
    ----------
    products
        Y, ``(frames, n, p)``.
    squares
        |M|², ``(n, p)``.
    powers
        |X|², summed over particles and waves of a shell, by half-set, ``(2, frames, shells + 1)``.
    usable
        Particles whose windows hold something in every frame, ``(n,)``.
    """

    products: Complex64
    squares: Float32
    powers: Float64
    usable: NDArray[np.bool_]


def expected_views(molecules: Molecules, maps: tuple[HalfMap, HalfMap], plan: WindowPlan) -> Complex64:
    """Return M of each particle, its own half-set's map as frames show it through its optics, ``(n, p)``."""
    disc = plan.disc
    views = np.empty((len(molecules.half), len(disc.kx)), np.complex64)
    for half, known in zip((1, 2), maps, strict=True):
        mine = np.flatnonzero(molecules.half == half)
        # waves are counted in the window's box; the map's may be another
        turned = molecules.axes[mine] * (known.length / plan.length)
        views[mine] = extract(known.volume, turned, disc.kx, disc.ky, known.padding)
    views *= ctf_values(disc.kx, disc.ky, molecules.terms, 1 / plan.length)
    views *= np.float32(plan.sign) * molecules.scale.astype(np.float32)[:, None]
    if molecules.odd is not None:
        views *= np.exp(1j * odd_phase(disc.kx, disc.ky, molecules.odd, 1 / plan.length)).astype(np.complex64)
    return _moved(views, disc, molecules.shifts / plan.length, -1.0)


def _moved(values: Complex64, disc: HalfDisc, by: Float64, sign: float) -> Complex64:
    """Return coefficients times ``exp(sign 2πi k·s)``, s in boxes, ``(n, 2)``."""
    reach = int(disc.kx.max())
    x = np.exp(sign * 2j * np.pi * by[:, :1] * np.arange(reach + 1)).astype(np.complex64)
    y = np.exp(sign * 2j * np.pi * by[:, 1:] * np.arange(-reach, reach + 1)).astype(np.complex64)
    return np.asarray(values * np.take(x, disc.kx, axis=1) * np.take(y, disc.ky + reach, axis=1))


def windows_of(
    frame: Float32, at: Float64, plan: WindowPlan, last: int
) -> tuple[Complex64, Float64, NDArray[np.bool_]]:
    """Cut windows around places and transform them.

    Parameters
    ----------
    frame
        Gain applied, ``(rows, columns)``.
    at
        Pixels, ``(n, 2)`` as x, y.
    plan
        How.
    last
        Shell that is needed.

    Returns
    -------
    spectra
        ``(n, side, side // 2 + 1)``, origin at the first pixel; 0 where there is next to nothing of a window. Columns
        beyond the last shell hold nothing of use.
    shifts
        Where the places lie from there, in boxes, ``(n, 2)``.
    usable
        Which windows hold something, ``(n,)``.
    """
    centres = np.floor(at + 0.5).astype(np.int64)
    boxes = np.empty((len(at), plan.side, plan.side), np.float32)
    cut_boxes(frame, centres - plan.side // 2, plan.outside, boxes)
    usable = np.isfinite(boxes[:, 0, 0])
    boxes[~usable] = 0
    spectra = scipy.fft.rfft(boxes, axis=2)
    some = spectra[:, :, : last + 1]  # columns that nobody asks for need no second transform
    done = scipy.fft.fft(some, axis=1, overwrite_x=True)
    if not np.may_share_memory(done, spectra):
        some[:] = done
    return np.asarray(spectra), (at - centres) / plan.side + 0.5, usable


def no_frames(views: Complex64, frames: int, plan: WindowPlan) -> ComparedFrames:
    """Return what `compare_frame` adds to."""
    return ComparedFrames(
        np.empty((frames, *views.shape), np.complex64), np.abs(views) ** 2,
        np.zeros((2, frames, plan.shells + 1)), np.ones(len(views), np.bool_),
    )  # fmt: skip


def compare_frame(
    compared: ComparedFrames, number: int, frame: Float32, at: Float64, views: Complex64, half: NDArray[np.int8],
    plan: WindowPlan,
) -> None:  # fmt: skip
    """Compare one frame with the views of all particles; in place.

    Parameters
    ----------
    compared
        Of `no_frames`.
    number
        Of the frame among those that are used.
    frame, at, plan
        As `windows_of` takes them; the places where particles are expected.
    views, half
        Of `expected_views`, and the particles' half-sets.
    """
    disc, groups = plan.disc, half.astype(np.int64) - 1
    for some in _blocks(len(at), plan):
        spectra, shifts, usable = windows_of(frame, at[some], plan, plan.shells)
        compare_spectra(
            spectra, views[some], shifts, groups[some], *disc, compared.products[number, some],
            compared.powers[:, number],
        )  # fmt: skip
        compared.usable[some] &= usable


def visible_amplitudes(
    compared: ComparedFrames, fsc: Float64, damage: Float64, plan: WindowPlan
) -> tuple[Float64, Float64, float]:
    """Return β of each frame and the power of the noise, by shell; and what tells whether there is any signal.

    Parameters
    ----------
    compared
        All frames, at the places where particles are expected.
    fsc
        Of the half-maps at the window's shells, ``(shells + 1,)``.
    damage
        What radiation leaves, ``(frames, shells + 1)``.
    plan
        Windows.

    Returns
    -------
    amplitude
        β, ``(frames, shells + 1)``.
    noise
        σ², ``(shells + 1,)``.
    deviations
        The factor a in standard errors.
    """
    disc, size = plan.disc, plan.shells + 1
    waves = np.bincount(disc.shell, minlength=size)
    frames, count = compared.products.shape[:2]
    noise = compared.powers.sum(axis=(0, 1)) / np.maximum(waves * count * frames, 1)
    noise[0] = noise[1]
    model = np.clip(fsc, 0, 1) * damage / np.sqrt(np.maximum((damage**2).sum(axis=0), 1e-12))
    shared = expected_signal(compared, plan)
    square = shell_sums(compared.squares.sum(axis=0, dtype=np.float64)[None], disc.shell, size)[0]
    weight = 2 / np.maximum(noise, 1e-30)
    found = float((model * shared * weight).sum())
    certain = float((model**2 * square * weight).sum())
    if certain <= 0:
        return 0 * model, noise, 0.0
    return found / certain * model, noise, found / np.sqrt(certain)


def expected_signal(compared: ComparedFrames, plan: WindowPlan) -> Float64:
    """Return ``Re X conj(M)`` of all particles where they were expected, ``(frames, shells + 1)``."""
    return shell_sums(compared.products.real.sum(axis=1, dtype=np.float64), plan.disc.shell, plan.shells + 1)


def likelihood_patches(
    compared: ComparedFrames, amplitude: Float64, noise: Float64, plan: WindowPlan
) -> tuple[Float32, float]:
    """Return the log-likelihood of each particle in each frame over displacements, and the patches' spacing in Å.

    Returns
    -------
        ``(n, frames, s, s)`` [y, x], s odd, no displacement in the middle; within `REACH`.
    """
    disc, length = plan.disc, plan.length
    spacing = length / (FINE * plan.shells)
    half_side = max(2, int(np.ceil(REACH / spacing)))
    at = np.arange(-half_side, half_side + 1) * spacing / length
    along_x = np.exp(2j * np.pi * np.arange(plan.shells + 1)[:, None] * at).astype(np.complex64)
    along_y = np.exp(2j * np.pi * at[:, None] * np.arange(-plan.shells, plan.shells + 1)).astype(np.complex64)
    frames, count = compared.products.shape[:2]
    patches = np.empty((count, frames, len(at), len(at)), np.float32)
    rectangle = np.zeros((count, 2 * plan.shells + 1, plan.shells + 1), np.complex64)
    for frame in range(frames):
        weight = (2 * amplitude[frame] / noise)[disc.shell].astype(np.float32)
        rectangle[:, disc.ky + plan.shells, disc.kx] = compared.products[frame] * weight
        lines = (rectangle.reshape(-1, plan.shells + 1) @ along_x).reshape(count, -1, len(at))
        patches[:, frame] = np.matmul(along_y, lines).real
    return patches, spacing


class SharedSignal(NamedTuple):
    """Sums from which follows how much of the reference each frame shows.

    Attributes
    ----------
    shared
        ``Re X conj(M)`` along the tracks, by half-set, ``(2, frames, shells + 1)``.
    squares
        ``|M|²``, ``(2, shells + 1)``.
    powers
        ``|X|²``, ``(2, frames, shells + 1)``.
    """

    shared: Float64
    squares: Float64
    powers: Float64


def shared_signal(compared: ComparedFrames, moved: Float64, half: NDArray[np.int8], plan: WindowPlan) -> SharedSignal:
    """Return the sums of a micrograph.

    Parameters
    ----------
    compared
        All frames.
    moved
        Displacements beside where particles were expected, Å, ``(n, frames, 2)``.
    half
        Half-set of each particle, ``(n,)``.
    plan
        Windows.
    """
    disc, size = plan.disc, plan.shells + 1
    shared, squares = np.zeros((2, moved.shape[1], size)), np.zeros((2, size))
    for which in (0, 1):
        mine = np.flatnonzero(half == which + 1)
        squares[which] = shell_sums(compared.squares[mine].sum(axis=0, dtype=np.float64)[None], disc.shell, size)[0]
        for frame in range(moved.shape[1]):
            back = _moved(compared.products[frame, mine], disc, moved[mine, frame] / plan.length, 1.0)
            shared[which, frame] = shell_sums(back.real.sum(axis=0, dtype=np.float64)[None], disc.shell, size)[0]
    return SharedSignal(shared, squares, compared.powers)


class WeightedSums:
    """Images of particles, summed over the frames along their tracks.

    Parameters
    ----------
    weights
        Of each frame, ``(2, frames, m)`` by half-set, at shells 0, 1, … of the window.
    half
        Half-set of each particle, ``(n,)``.
    size
        Side of the images, pixels, even; they show what the windows do.
    plan
        Windows.
    """

    def __init__(self, weights: Float64, half: NDArray[np.int8], size: int, plan: WindowPlan) -> None:
        self._plan, self._size, self._half = plan, size, half
        self._disc = half_disc(plan.side, size // 2 - 1)
        self._weights = weights
        self._sums = np.zeros((len(half), len(self._disc.kx)), np.complex64)
        self.usable = np.ones(len(half), np.bool_)

    def add(self, number: int, frame: Float32, at: Float64) -> None:
        """Add a frame, in which particles lie at these places, pixels, ``(n, 2)``."""
        weights = np.ascontiguousarray(self._weights[:, number, self._disc.shell], np.float32)
        groups = self._half.astype(np.int64) - 1
        for some in _blocks(len(at), self._plan):
            spectra, shifts, usable = windows_of(frame, at[some], self._plan, self._size // 2 - 1)
            add_spectra(spectra, shifts, weights, groups[some], self._disc.kx, self._disc.ky, self._sums[some])
            self.usable[some] &= usable

    def images(self) -> Float32:
        """Return the images, ``(n, size, size)``: the noise of all frequencies as white as that of the frames."""
        norm = 1 / np.sqrt(np.maximum((self._weights**2).sum(axis=1), 1e-12))
        sums = self._sums * (self._plan.sign * norm).astype(np.float32)[self._half - 1][:, self._disc.shell]
        return np.asarray(real_images(fill_half_disc(sums, self._disc, self._size)), np.float32)


def next_window(side: float) -> int:
    """Return the even number of pixels nearest to a length in pixels."""
    return 2 * int(np.rint(side / 2))
