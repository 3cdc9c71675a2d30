"""Micrographs denoised for looking and picking, from the sums of their even and odd frames; never for refinement.

The two sums hold the same specimen and independent noise. In each shell of frequencies their cross-power is that of
the specimen as the CTF has changed it, s(k) ⟨C²⟩, and the power of their difference is that of the noise, n(k). The
Wiener filter of their mean is then ``C s / (C² s + n)``: it takes back the CTF where the specimen is above the noise.
Cross-power that chance could make counts as none, so that noise becomes nothing and no structure is made of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.algorithms.picking import Float32, MicroscopeState
from cloudem.algorithms.picking_templates import transfer_of
from cloudem.errors import InconsistentDataError

SHELLS = 256
"""Between zero and the Nyquist frequency of the shorter side."""

SURE = 5.0
"""Cross-power must be above zero by so many standard deviations, in three shells together: by chance, never."""


FEW = 30.0
"""Of so few values, cross-power must be twice as sure: products of few numbers are often large."""


class ShellPowers(NamedTuple):
    """Powers in shells, of the mean of both sums.

    Attributes
    ----------
    specimen
        s(k), (shells,), without the CTF; 0 where it is not above chance.
    noise
        n(k), (shells,).
    """

    specimen: NDArray[np.float64]
    noise: NDArray[np.float64]


class Denoised(NamedTuple):
    """A denoised micrograph.

    Attributes
    ----------
    image
        Of mean 0, protein as it is in the micrograph.
    powers
        What the filter follows from.
    resolution
        Å: the finest shell that holds some of the specimen; infinity for none.
    hallucination
        Power of what the same treatment makes of noise of the same spectrum, as a share of that noise.
    """

    image: Float32
    powers: ShellPowers
    resolution: float
    hallucination: float


def denoise_pair(
    even: Float32, odd: Float32, pixel_size: float, state: MicroscopeState | None = None, seed: int = 0
) -> Denoised:
    """Return a micrograph denoised by its even and odd frames.

    Parameters
    ----------
    even, odd
        Sums of the even and of the odd frames, ``(rows, columns)``.
    pixel_size
        Å.
    state
        Of the microscope; None where it is not known: the CTF is then left as it is.
    seed
        Of the noise for the figure of hallucination.

    Raises
    ------
    InconsistentDataError
        The sums are of different shapes.
    """
    if even.shape != odd.shape:
        raise InconsistentDataError(
            f"the even and odd sums have shapes {even.shape} and {odd.shape}; they must be alike"
        )
    first, second = (scipy.fft.rfft2(image - image.mean(dtype=np.float64).astype(np.float32)) for image in (even, odd))
    shells, transfer = _shells(even.shape), _transfer(even.shape, pixel_size, state)
    powers = shell_powers(first, second, shells, transfer)
    image = _filtered(first, second, powers, shells, transfer, even.shape)
    known = np.flatnonzero(powers.specimen)
    resolution = 2 * pixel_size * SHELLS / float(known[-1] + 1) if known.size else float("inf")
    share = _made_of_noise(powers, shells, transfer, even.shape, seed)
    return Denoised(image, powers, resolution, share)


def shell_powers(
    first: NDArray[np.complexfloating],
    second: NDArray[np.complexfloating],
    shells: NDArray[np.int64],
    transfer: Float32 | None,
) -> ShellPowers:
    """Return the powers of specimen and noise in shells; see `ShellPowers`.

    Parameters
    ----------
    first, second
        Fourier transforms of both sums, the half that `scipy.fft.rfft2` gives.
    shells
        Shell of each of their values.
    transfer
        CTF of each of their values; None for none.
    """
    flat = shells.ravel()
    counts = np.maximum(np.bincount(flat, minlength=SHELLS + 1), 1)
    cross = np.bincount(flat, (first * np.conj(second)).real.ravel(), SHELLS + 1) / counts
    noise = np.bincount(flat, (np.abs(first - second) ** 2).ravel(), SHELLS + 1) / counts / 4
    squares = np.ones(SHELLS + 1)
    if transfer is not None:
        squares = np.bincount(flat, (transfer.astype(np.float64) ** 2).ravel(), SHELLS + 1) / counts
    # the cross-power of noise alone has a mean of zero and, over N values, a deviation of 2 n / sqrt(2 N)
    chance = 2 * _three(noise) / np.sqrt(2 * counts)
    three, spread = _three(cross), np.sqrt(_three(chance**2) / 3)
    sure = SURE * (1 + FEW / (3 * _three(counts.astype(np.float64))))
    specimen = np.where(three > sure * spread, np.maximum(three, 0), 0) / np.maximum(squares, 1e-3)
    specimen[0] = 0
    return ShellPowers(specimen[:SHELLS], noise[:SHELLS])


def _three(values: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.pad(values, 1, mode="edge")
    return np.asarray((padded[:-2] + padded[1:-1] + padded[2:]) / 3)


def _filtered(
    first: NDArray[np.complexfloating],
    second: NDArray[np.complexfloating],
    powers: ShellPowers,
    shells: NDArray[np.int64],
    transfer: Float32 | None,
    shape: tuple[int, ...],
) -> Float32:
    specimen, noise = (np.append(part, 0.0).astype(np.float32)[shells] for part in powers)
    change = np.float32(1) if transfer is None else transfer
    weight = change * specimen / np.maximum(change * change * specimen + noise, np.float32(1e-20))
    return np.asarray(scipy.fft.irfft2((first + second) / 2 * weight, s=shape), np.float32)


def _made_of_noise(
    powers: ShellPowers,
    shells: NDArray[np.int64],
    transfer: Float32 | None,
    shape: tuple[int, ...],
    seed: int,
) -> float:
    """Return the power of what becomes of two sums of noise alone, as a share of that of their mean."""
    rng = np.random.default_rng(seed)
    change = 1.0 if transfer is None else transfer.astype(np.float64) ** 2
    specimen, noise = (np.append(part, 0.0)[shells] for part in powers)
    deviation = np.sqrt(change * specimen + 2 * noise).astype(np.float32)  # of each sum as it is, specimen and all
    pair = [
        scipy.fft.rfft2(rng.standard_normal(shape, np.float32)) / np.float32(np.sqrt(shape[0] * shape[1])) * deviation
        for _ in range(2)
    ]
    again = shell_powers(pair[0], pair[1], shells, transfer)
    made = _filtered(pair[0], pair[1], again, shells, transfer, shape)
    whole = scipy.fft.irfft2((pair[0] + pair[1]) / 2, s=shape)
    return float((made.astype(np.float64) ** 2).sum() / max(float((whole.astype(np.float64) ** 2).sum()), 1e-300))


def _shells(shape: tuple[int, ...]) -> NDArray[np.int64]:
    ky, kx = scipy.fft.fftfreq(shape[0])[:, None], scipy.fft.rfftfreq(shape[1])
    return np.minimum((np.hypot(ky, kx) * 2 * SHELLS).astype(np.int64), SHELLS)


def _transfer(shape: tuple[int, ...], pixel_size: float, state: MicroscopeState | None) -> Float32 | None:
    return None if state is None else transfer_of(shape, pixel_size, state)
