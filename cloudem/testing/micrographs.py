"""Micrographs with a CTF that is known: ice, proteins, shot noise and a detector; for tests and benchmarks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudem.kernels.ctf import ctf_terms, ctf_values

ICE_PEAK, ICE_WIDTH = 1 / 3.7, 0.03
"""1/Å of the broad ring of amorphous ice."""


@dataclass(frozen=True)
class SimulatedScene:
    """What is simulated.

    Attributes
    ----------
    shape, pixel_size
        Rows and columns; Å.
    voltage, spherical_aberration, amplitude_contrast
        kV, Å, fraction.
    defocus_u, defocus_v, defocus_angle, phase_shift
        Å, Å, radians, radians.
    dose
        Electrons per Å².
    ice
        Power of ice over that of shot noise at low frequency, where the CTF is 1.
    fading
        B of ``exp(-B s² / 2)``, by which power fades, Å².
    proteins
        How many there are in a square of 1,000 Å.
    diameter
        Of a protein, Å.
    thickness
        Of the ice, Å: its layers have their own defocus. 0 for one layer.
    slope
        By how much the defocus grows along x and y, Å per Å.
    crystalline
        Power of a sharp ring of ice at 3.7 Å over that of shot noise.
    """

    shape: tuple[int, int] = (2048, 2048)
    pixel_size: float = 1.0
    voltage: float = 300.0
    spherical_aberration: float = 2.7e7
    amplitude_contrast: float = 0.1
    defocus_u: float = 15000.0
    defocus_v: float = 15000.0
    defocus_angle: float = 0.0
    phase_shift: float = 0.0
    dose: float = 40.0
    ice: float = 0.4
    fading: float = 100.0
    proteins: float = 20.0
    diameter: float = 110.0
    thickness: float = 0.0
    slope: tuple[float, float] = (0.0, 0.0)
    crystalline: float = 0.0


def frequencies_of(shape: tuple[int, int], pixel_size: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return kx and ky of a real image's transform, 1/Å, each (rows, columns // 2 + 1)."""
    ky, kx = np.meshgrid(
        scipy.fft.fftfreq(shape[0], pixel_size), scipy.fft.rfftfreq(shape[1], pixel_size), indexing="ij"
    )
    return kx, ky


def simulate_micrograph(scene: SimulatedScene, seed: int) -> NDArray[np.float32]:
    """Simulate a micrograph.

    Parameters
    ----------
    scene
        What it shows.
    seed
        Of all that is random.

    Returns
    -------
    image
        (rows, columns) float32, electrons per pixel after a detector that loses contrast towards Nyquist.
    """
    rng = np.random.default_rng(seed)
    kx, ky = frequencies_of(scene.shape, scene.pixel_size)
    squares = kx**2 + ky**2
    electrons = scene.dose * scene.pixel_size**2
    envelope = np.exp(-scene.fading * squares / 4)
    envelope *= math.sqrt(scene.ice / electrons)  # so that its power is `ice` times that of shot noise
    ring = np.exp(-(((np.sqrt(squares) - ICE_PEAK) / ICE_WIDTH) ** 2))
    envelope *= 1 + 0.7 * ring
    layers = max(1, math.ceil(scene.thickness / 100))
    waves = [scipy.fft.rfft2(rng.standard_normal(scene.shape)) * (envelope / math.sqrt(layers)) for _ in range(layers)]
    if scene.proteins:
        waves[layers // 2] += scipy.fft.rfft2(_proteins(scene, rng)) * np.exp(-scene.fading * squares / 4)
    if scene.crystalline:
        sharp = np.exp(-(((np.sqrt(squares) - ICE_PEAK) / 0.004) ** 2))
        waves[0] += scipy.fft.rfft2(rng.standard_normal(scene.shape)) * sharp * math.sqrt(scene.crystalline / electrons)
    contrast = _imaged(scene, waves, kx, ky)
    uneven = 1 + 0.1 * np.linspace(-1, 1, scene.shape[1]) + 0.05 * np.linspace(-1, 1, scene.shape[0])[:, None] ** 2
    counts = rng.poisson(np.maximum(electrons * uneven * (1 - contrast), 0.0)).astype(np.float32)
    nyquist = np.sqrt(squares) * 2 * scene.pixel_size
    detected = scipy.fft.irfft2(scipy.fft.rfft2(counts) * np.exp(-0.7 * nyquist**1.5), scene.shape)
    return np.asarray(detected, np.float32)


def _imaged(scene: SimulatedScene, waves: list[Any], kx: NDArray[Any], ky: NDArray[Any]) -> NDArray[Any]:
    """Return the contrast of layers at their defocus; along a slope, between images at several defoci."""
    rows, columns = scene.shape
    x = (np.arange(columns) - columns / 2) * scene.pixel_size
    y = ((np.arange(rows) - rows / 2) * scene.pixel_size)[:, None]
    shift = scene.slope[0] * x + scene.slope[1] * y
    reach = float(np.abs(shift).max())
    steps = np.linspace(-reach, reach, 2 * max(1, math.ceil(reach / 100)) + 1) if reach else np.zeros(1)
    depths = (np.arange(len(waves)) + 0.5) / len(waves) * scene.thickness - scene.thickness / 2
    total = np.zeros(scene.shape)
    for step in steps:
        wave = sum(each * _ctf(scene, kx, ky, float(depth + step)) for each, depth in zip(waves, depths, strict=True))
        image = scipy.fft.irfft2(wave, scene.shape)
        total += image * (np.clip(1 - np.abs(shift - step) / (steps[1] - steps[0]), 0, 1) if reach else 1.0)
    return total


def _ctf(scene: SimulatedScene, kx: NDArray[Any], ky: NDArray[Any], deeper: float) -> NDArray[Any]:
    terms = ctf_terms(
        voltage=scene.voltage, spherical_aberration=scene.spherical_aberration,
        amplitude_contrast=scene.amplitude_contrast, defocus_u=np.array([scene.defocus_u + deeper]),
        defocus_v=np.array([scene.defocus_v + deeper]), defocus_angle=np.array([scene.defocus_angle]),
        phase_shift=scene.phase_shift,
    )  # fmt: skip
    return ctf_values(kx.ravel(), ky.ravel(), terms, 1.0).reshape(kx.shape)


def _proteins(scene: SimulatedScene, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return proteins at random places: balls of atoms seen from somewhere, of a contrast of some per cent."""
    pixel, (rows, columns) = scene.pixel_size, scene.shape
    total = np.zeros(scene.shape)
    size = int(scene.diameter / pixel) + 4
    views = []
    for _ in range(8):
        atoms = rng.normal(size=(6000, 3))
        atoms *= (scene.diameter / 2) * rng.random((6000, 1)) ** (1 / 3) / np.linalg.norm(atoms, axis=1, keepdims=True)
        view, *_ = np.histogram2d(atoms[:, 0] / pixel, atoms[:, 1] / pixel, size, [[-size / 2, size / 2]] * 2)
        views.append(view * 0.06 / (6000 / (math.pi * (scene.diameter / 2 / pixel) ** 2)))
    for _ in range(rng.poisson(scene.proteins * rows * columns * pixel**2 / 1e6)):
        y, x = int(rng.integers(0, rows - size)), int(rng.integers(0, columns - size))
        total[y : y + size, x : x + size] += views[int(rng.integers(8))]
    return total
