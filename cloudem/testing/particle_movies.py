"""Movies with particles in them whose places, poses and motion are known, as a counting detector sees them.

A particle moves with the specimen (a track of the whole and a smooth field, see `cloudem.testing.movies`) and besides
by a part of its own: velocities drawn with the covariance of Bayesian polishing (Zivanov et al. 2019,
10.1107/S205225251801463X), so that neighbours move nearly alike. For tests and benchmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from cloudem.algorithms.dose import critical_dose
from cloudem.algorithms.motion_local import field_at
from cloudem.kernels.ctf import ctf_terms, ctf_values, wavelength
from cloudem.kernels.fourier import fill_half_disc, fourier_volume, half_disc, real_images
from cloudem.kernels.slices import correct_gridding, crop_volume, extract
from cloudem.model.poses import random_rotations
from cloudem.testing.movies import simulated_track

Float64 = NDArray[np.float64]

MARGIN = 64
"""Pixels of specimen beyond the rim of a frame, from where it may move in."""


@dataclass(frozen=True)
class ParticleScene:
    """What a movie shows, and how it moves.

    Attributes
    ----------
    size, frames
        Pixels along a side; frames.
    pixel_size, dose
        Å; e/Å² of a frame.
    count, apart
        Particles, and Å between their centres at least.
    contrast
        Factor on the weak-phase contrast of the density in units of scattering length, f in Å per Å³.
    ice
        Power of ice over that of one frame's shot noise at low frequency, where the CTF is 1; 0 for none, which saves
        most of the time.
    drift, local
        Pixels that the whole moves, and root mean square over the frame of the smooth field in the last frame.
    velocity, together, acceleration
        Of the particles' own motion: standard deviation of velocities, Å per e/Å²; length over which they are alike,
        Å; standard deviation of changes of velocity, Å per e/Å².
    damage
        By how much more than the curve of `cloudem.algorithms.dose` a dose does.
    fading
        B-factor of the images, Å², of an amplitude ``exp(-B k² / 4)``.
    voltage, spherical_aberration, amplitude_contrast
        kV, Å, share.
    """

    size: int = 1024
    frames: int = 24
    pixel_size: float = 1.6
    dose: float = 1.5
    count: int = 45
    apart: float = 150.0
    contrast: float = 1.0
    ice: float = 0.1
    drift: float = 8.0
    local: float = 1.5
    velocity: float = 0.5
    together: float = 5000.0
    acceleration: float = 2.0
    damage: float = 1.0
    fading: float = 30.0
    voltage: float = 300.0
    spherical_aberration: float = 2.7e7
    amplitude_contrast: float = 0.1


class ParticleMovie(NamedTuple):
    """A movie and what is true of it.

    Attributes
    ----------
    frames
        Counts, uint8, ``(frames, size, size)``.
    places
        Of the particles in the first frame, pixels, whole numbers, ``(n, 2)`` as x, y.
    rotations
        ``(n, 3, 3)``.
    defocus
        Å, ``(n,)``; there is no astigmatism.
    moved
        Displacements of particles since the first frame, Å, ``(n, frames, 2)``.
    """

    frames: NDArray[np.uint8]
    places: NDArray[np.int64]
    rotations: Float64
    defocus: Float64
    moved: Float64


def own_motion(places: Float64, frames: int, scene: ParticleScene, rng: np.random.Generator) -> Float64:
    """Draw the particles' own displacements, Å, ``(n, frames, 2)``; places in Å, ``(n, 2)``."""
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    velocity, change = scene.velocity * scene.dose, scene.acceleration * scene.dose
    values, vectors = np.linalg.eigh(velocity**2 * np.exp(-distance / scene.together))
    values = np.maximum(values, 0)
    differences = np.diff(np.eye(frames - 1), axis=0)
    steps = np.empty((len(places), frames - 1, 2))
    for number, value in enumerate(values):
        precision = np.eye(frames - 1) + value / change**2 * differences.T @ differences
        root = np.linalg.cholesky(np.linalg.inv(precision))
        steps[number] = np.sqrt(value) * (root @ rng.normal(size=(frames - 1, 2)))
    moved = np.zeros((len(places), frames, 2))
    moved[:, 1:] = np.cumsum(np.einsum("pb,bfa->pfa", vectors, steps), axis=1)
    return moved


def smooth_field(frames: int, rms: float, rng: np.random.Generator) -> Float64:
    """Draw coefficients ``(2, 6, 3)`` of a field that has a root mean square of so many pixels in the last frame."""
    coefficients = np.zeros((2, 6, 3))
    coefficients[:, 1:] = rng.normal(size=(2, 5, 1)) * np.array([1, 2, 1, 2, 2])[:, None]
    last = float(frames - 1)
    coefficients *= np.array([1.6 / last, -0.6 / last**2, 0.0])
    at = np.linspace(-0.5, 0.5, 13)
    v, u = (each.ravel() for each in np.meshgrid(at, at, indexing="ij"))
    there = field_at(coefficients, frames - 1) @ np.stack([np.ones_like(u), u, u * u, v, v * v, u * v])
    return coefficients * (rms / max(float(np.sqrt((there**2).mean())), 1e-9))


def spread_places(scene: ParticleScene, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw places of particles, pixels, far enough from each other and from the rim."""
    rim = int(0.6 * scene.apart / scene.pixel_size)
    found: list[NDArray[np.int64]] = []
    for _ in range(100_000):
        place = rng.integers(rim, scene.size - rim, 2)
        if all(np.hypot(*(place - other)) * scene.pixel_size >= scene.apart for other in found):
            found.append(place)
            if len(found) == scene.count:
                return np.array(found)
    raise ValueError(f"{scene.count} particles {scene.apart:g} Å apart do not fit in {scene.size} pixels")


def simulated_particle_movie(volume: NDArray[np.float32], scene: ParticleScene, seed: int) -> ParticleMovie:
    """Simulate a movie of a molecule.

    Parameters
    ----------
    volume
        Density, f in Å per Å³, on voxels of the frames' size, ``(n, n, n)``, n even.
    scene
        What is simulated.
    seed
        Of all that is random.
    """
    rng = np.random.default_rng([seed, 77])
    places = spread_places(scene, rng)
    rotations = random_rotations(scene.count, rng)
    defocus = rng.uniform(8000, 16000) + rng.normal(0, 100, scene.count)
    track = simulated_track(scene.frames, scene.drift, seed)
    coefficients = smooth_field(scene.frames, scene.local, rng)
    u, v = (places / scene.size - 0.5).T
    terms = np.stack([np.ones_like(u), u, u * u, v, v * v, u * v])
    fields = np.stack([field_at(coefficients, frame) for frame in range(scene.frames)])
    moved = (track[:, None] + np.einsum("fat,tp->fpa", fields, terms)).transpose(1, 0, 2) * scene.pixel_size
    moved += own_motion(np.asarray(places * scene.pixel_size, np.float64), scene.frames, scene, rng)
    spectra = _particle_spectra(volume, scene, rotations, defocus)
    ice = _ice(scene, float(defocus.mean()), rng) if scene.ice else None
    movie = np.empty((scene.frames, scene.size, scene.size), np.uint8)
    electrons = scene.dose * scene.pixel_size**2
    for frame in range(scene.frames):
        if ice is None:
            contrast = np.zeros((scene.size, scene.size))
        else:
            contrast = _ice_frame(ice, scene, frame, track[frame], fields[frame])
        _add_particles(contrast, spectra, scene, frame, places + moved[:, frame] / scene.pixel_size)
        movie[frame] = np.minimum(rng.poisson(electrons * np.clip(1 - contrast, 0.01, None)), 255)
    return ParticleMovie(movie, places, rotations, defocus, moved)


def _frequencies(side: int, pixel_size: float) -> tuple[Float64, Float64]:
    return scipy.fft.fftfreq(side, pixel_size)[:, None], scipy.fft.rfftfreq(side, pixel_size)[None, :]


def _contrast_transfer(scene: ParticleScene, side: int, defocus: Float64) -> NDArray[np.float32]:
    """Return CTF and fading, ``(n, side, side // 2 + 1)``."""
    ky, kx = np.broadcast_arrays(*_frequencies(side, scene.pixel_size))
    terms = ctf_terms(
        voltage=scene.voltage, spherical_aberration=scene.spherical_aberration,
        amplitude_contrast=scene.amplitude_contrast, defocus_u=defocus, defocus_v=defocus,
        defocus_angle=np.zeros(len(defocus)), b_factor=scene.fading,
    )  # fmt: skip
    return ctf_values(kx.ravel(), ky.ravel(), terms, 1.0).reshape(len(defocus), *kx.shape)


def _damage(scene: ParticleScene, side: int, frame: int) -> NDArray[np.float32]:
    ky, kx = _frequencies(side, scene.pixel_size)
    dose = scene.dose * (frame + 0.5)
    return np.exp(-0.5 * scene.damage * dose / critical_dose(np.hypot(ky, kx), scene.voltage)).astype(np.float32)


def _particle_spectra(
    volume: NDArray[np.float32], scene: ParticleScene, rotations: Float64, defocus: Float64
) -> NDArray[np.complex64]:
    """Return spectra of the particles' contrast in boxes of twice the side, their centres at pixel 0."""
    box, padding = len(volume), 2
    disc = half_disc(box, box // 2 - 1)
    inside = crop_volume(fourier_volume(correct_gridding(volume, padding * box), padding), box, box // 2 - 1)
    values = fill_half_disc(extract(inside, rotations, disc.kx, disc.ky, float(padding)), disc, box)
    values[:, 0, 0] = float(volume.sum(dtype=np.float64))
    small = real_images(values)
    wide = np.zeros((len(small), 2 * box, 2 * box), np.float32)
    wide[:, box // 2 : box // 2 + box, box // 2 : box // 2 + box] = small
    # weak phase: twice the wavelength, with its relativistic factor, times the projected scattering length
    factor = 2 * float(wavelength(scene.voltage)) * (1 + scene.voltage / 511) * scene.pixel_size * scene.contrast
    spectra = scipy.fft.rfft2(scipy.fft.ifftshift(wide, axes=(1, 2))) * np.float32(factor)
    spectra *= _contrast_transfer(scene, 2 * box, defocus)
    return np.asarray(spectra, np.complex64)


def _add_particles(
    contrast: Float64, spectra: NDArray[np.complex64], scene: ParticleScene, frame: int, at: Float64
) -> None:
    """Add the particles at some places, pixels ``(n, 2)``, to the contrast of a frame, in place."""
    side = spectra.shape[1]
    ky, kx = _frequencies(side, 1.0)
    whole = np.rint(at).astype(np.int64)
    rest = at - whole
    damage = _damage(scene, side, frame)
    for spectrum, (x, y), (dx, dy) in zip(spectra, whole, rest, strict=True):
        turn = (np.exp(-2j * np.pi * kx * dx) * np.exp(-2j * np.pi * ky * dy)).astype(np.complex64)
        image = scipy.fft.fftshift(scipy.fft.irfft2(spectrum * damage * turn, s=(side, side)))
        rows, columns = (slice(max(0, c - side // 2), min(scene.size, c + side // 2)) for c in (y, x))
        top, left = y - side // 2, x - side // 2
        contrast[rows, columns] += image[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _ice(scene: ParticleScene, defocus: float, rng: np.random.Generator) -> NDArray[np.complex64]:
    side = scipy.fft.next_fast_len(scene.size + 2 * MARGIN, real=True)
    power = scene.ice / (scene.dose * scene.pixel_size**2)
    white = scipy.fft.rfft2(rng.standard_normal((side, side))) * np.sqrt(power)
    return np.asarray(white * _contrast_transfer(scene, side, np.array([defocus]))[0], np.complex64)


def _ice_frame(ice: NDArray[np.complex64], scene: ParticleScene, frame: int, track: Float64, field: Float64) -> Float64:
    side = ice.shape[0]
    ky, kx = _frequencies(side, 1.0)
    turn = np.exp(-2j * np.pi * kx * track[0]) * np.exp(-2j * np.pi * ky * track[1])
    seen = scipy.fft.irfft2(ice * _damage(scene, side, frame) * turn, s=(side, side))
    rows, columns = np.mgrid[: scene.size, : scene.size]
    u, v = columns / scene.size - 0.5, rows / scene.size - 0.5
    terms = np.stack(np.broadcast_arrays(1.0, u, u * u, v, v * v, u * v))
    dx, dy = np.tensordot(field, terms, axes=1)
    return np.asarray(map_coordinates(seen, [rows + MARGIN - dy, columns + MARGIN - dx], order=3), np.float64)
