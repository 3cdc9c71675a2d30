"""Particles from a density: poses, CTF, noise. The image model is that of :mod:`cloudem.conventions`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.aberrations import aberrations_of, terms_with
from cloudem.errors import ParameterError
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fill_half_disc, fourier_images, fourier_volume, half_disc, real_images
from cloudem.kernels.slices import correct_gridding, crop_volume, extract
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix, matrix_to_euler, random_rotations

POSE_COLUMNS = ("rot", "tilt", "psi", "shift_x", "shift_y")

UNIT = (1.0, 0.0, 0.0, 1.0)
"""No magnification."""

SNR_SAMPLE = 200
"""Images from which the signal's variance is taken."""


@dataclass(frozen=True)
class Recording:
    """How particles are recorded: geometry, microscope and noise.

    Parameters
    ----------
    shift_sigma
        Standard deviation of the shifts in x and in y, Å.
    defocus_min, defocus_max
        Range of the micrographs' mean defocus, Å.
    astigmatism
        Standard deviation of defocus_u - defocus_v over the micrographs, Å.
    per_micrograph
        Particles that share a micrograph; each deviates from its defocus by 100 Å (standard deviation).
    voltage, spherical_aberration, amplitude_contrast
        kV, Å, fraction.
    snr
        Variance of the signal in a box, CTF applied, over that of the noise; None for no noise. The noise has unit
        variance and the signal is scaled, so that 0 gives images of noise alone.
    noise_ratio, noise_length
        Power of the noise: ``1 + noise_ratio / (1 + (s noise_length)²)`` of frequency s, in Å for the length.
    b_factor
        Of the signal's fall-off ``exp(-B s² / 4)``, Å²; particles' columns do not mention it.
    dose
        Exposure of dose-weighted images, e/Å²; attenuates the signal by :func:`dose_envelope`.
    beam_tilt, odd_zernike, even_zernike, magnification
        Aberrations, as :class:`cloudem.model.optics.OpticsGroup` has them; the matrix row by row.
    """

    shift_sigma: float = 4.0
    defocus_min: float = 1.0e4
    defocus_max: float = 2.5e4
    astigmatism: float = 200.0
    per_micrograph: int = 50
    voltage: float = 300.0
    spherical_aberration: float = 2.7e7
    amplitude_contrast: float = 0.1
    snr: float | None = 0.05
    noise_ratio: float = 0.0
    noise_length: float = 40.0
    b_factor: float = 0.0
    dose: float = 0.0
    beam_tilt: tuple[float, float] = (0.0, 0.0)
    odd_zernike: tuple[float, ...] = ()
    even_zernike: tuple[float, ...] = ()
    magnification: tuple[float, float, float, float] = UNIT

    def optics(self) -> OpticsGroup:
        """Return the optics group of the particles; aberrations that are zero are not mentioned."""
        group = OpticsGroup("simulated", self.voltage, self.spherical_aberration, self.amplitude_contrast)
        matrix = None if self.magnification == UNIT else np.reshape(self.magnification, (2, 2))
        return group.with_aberrations(
            beam_tilt=self.beam_tilt if any(self.beam_tilt) else None,
            odd_zernike=self.odd_zernike or None,
            even_zernike=self.even_zernike or None,
            magnification=matrix,
        )


def anisotropic(share: float, angle: float) -> tuple[float, float, float, float]:
    """Return the magnification matrix of images stretched along an angle (radians) by half a share, and less across."""
    half, c, s = share / 2, float(np.cos(2 * angle)), float(np.sin(2 * angle))
    return 1 + half * c, half * s, half * s, 1 - half * c


def random_particles(count: int, recording: Recording, seed: int) -> Particles:
    """Draw particles: uniform orientations, Gaussian shifts, a defocus per micrograph, random half-sets.

    Parameters
    ----------
    count
        Number of particles.
    recording
        Ranges to draw from.
    seed
        The same seed gives the same particles.
    """
    rng = np.random.default_rng([seed, 0])
    micrograph = np.arange(count) // recording.per_micrograph
    micrographs = int(micrograph[-1]) + 1
    mean = rng.uniform(recording.defocus_min, recording.defocus_max, micrographs)
    difference = np.abs(rng.normal(0, recording.astigmatism, micrographs))
    angle = rng.uniform(0, np.pi, micrographs)
    height = rng.normal(0, 100.0, count)
    rot, tilt, psi = matrix_to_euler(random_rotations(count, rng))
    shifts = rng.normal(0, recording.shift_sigma, (2, count))
    return Particles((recording.optics(),), {}).with_columns(
        optics_group=np.zeros(count, np.int32),
        micrograph=[f"simulated_{number + 1:05d}.mrc" for number in micrograph],
        defocus_u=mean[micrograph] + difference[micrograph] / 2 + height,
        defocus_v=mean[micrograph] - difference[micrograph] / 2 + height,
        defocus_angle=angle[micrograph],
        rot=rot,
        tilt=tilt,
        psi=psi,
        shift_x=shifts[0],
        shift_y=shifts[1],
        half_set=1 + rng.permutation(count) % 2,
    )


def dose_envelope(frequency: NDArray[np.floating], dose: float, voltage: float) -> NDArray[np.float64]:
    """Return how much of the signal is left in optimally dose-weighted images, relative to the noise.

    Amplitudes fall as ``exp(-N / 2 Ne)`` with the critical exposure ``Ne = 0.245 s^-1.665 + 2.81`` e/Å² at 300 kV, 0.8
    of that at 200 kV and below (Grant & Grigorieff 2015, 10.7554/eLife.06980). The sum weighted by that, its noise
    brought back to unit power, keeps ``sqrt(Ne / N (1 - exp(-N / Ne)))``.

    Parameters
    ----------
    frequency
        1/Å.
    dose
        N, e/Å²; 0 leaves everything.
    voltage
        kV.
    """
    if dose == 0:
        return np.ones(frequency.shape)
    critical = 0.245 * np.maximum(frequency, 1e-4) ** -1.665 + 2.81
    critical *= 1.0 if voltage > 250 else 0.8
    return np.asarray(np.sqrt(-np.expm1(-dose / critical) * critical / dose))


def noise_amplitude(box: int, pixel_size: float, ratio: float, length: float) -> NDArray[np.float32]:
    """Return the filter that turns white noise into noise with a falling spectrum and the same variance.

    The power is ``1 + ratio / (1 + (s length)²)``, divided by its mean over the box. Shape (n, n // 2 + 1).
    """
    fy, fx = np.fft.fftfreq(box, pixel_size), np.fft.rfftfreq(box, pixel_size)
    power = 1 + ratio / (1 + (fy[:, None] ** 2 + fx**2) * length**2)
    counted = np.full(fx.size, 2.0)
    counted[[0, -1]] = 1.0
    return np.sqrt(power / np.average(power, weights=np.broadcast_to(counted, power.shape))).astype(np.float32)


class Simulator:
    """Projects a density into images of particles.

    Parameters
    ----------
    volume
        (n, n, n) float32, protein positive; n even.
    pixel_size
        Å.
    particles
        Poses and CTF parameters.
    recording
        Noise and envelope; its ranges are not used.
    seed
        Of the noise; image i has the same noise whatever is simulated beside it.
    padding
        Oversampling of the volume's transform; at 2, an image's coefficients are exact within 2e-3 of the strongest.

    Attributes
    ----------
    scale
        Factor on the density that gives the wanted signal-to-noise ratio.
    """

    def __init__(
        self,
        volume: NDArray[np.float32],
        pixel_size: float,
        particles: Particles,
        recording: Recording,
        seed: int = 0,
        padding: int = 2,
    ) -> None:
        particles.require(*POSE_COLUMNS, "optics_group", "defocus_u", "defocus_v", "defocus_angle")
        self.box = volume.shape[0]
        if self.box % 2 or volume.shape != (self.box,) * 3:
            raise ParameterError(f"the density has the shape {volume.shape}; cloudem needs a cube with an even side")
        self.pixel_size = pixel_size
        self.particles = particles
        self.recording = recording
        self.seed = seed
        self.padding = padding
        self._disc = half_disc(self.box, self.box // 2 - 1)
        corrected = correct_gridding(np.asarray(volume, np.float32), self.padding * self.box)
        self._aberrations = aberrations_of(particles.optics)
        highest = int(self._aberrations.reach(self._disc).max())
        self._volume = crop_volume(fourier_volume(corrected, self.padding), self.box, highest)
        self._total = float(volume.sum(dtype=np.float64))
        self._noise = noise_amplitude(self.box, pixel_size, recording.noise_ratio, recording.noise_length)
        self.scale = self._scale()

    def images(self, batch: int = 200) -> Iterator[NDArray[np.float32]]:
        """Yield the images of all particles in order, (b, n, n) float32 with b at most `batch`."""
        for first in range(0, len(self.particles), batch):
            yield self.some_images(np.arange(first, min(first + batch, len(self.particles))))

    def some_images(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the images of the particles at `indices`: (b, n, n) float32."""
        transforms = self._signal(indices) * np.float32(self.scale)
        if self.recording.snr is not None:
            transforms += fourier_images(self._white(indices)) * self._noise
        return np.asarray(real_images(transforms), np.float32)

    def _signal(self, indices: NDArray[np.integer]) -> NDArray[np.complex64]:
        """Return the transforms of the noiseless images, (b, n, n // 2 + 1), density unscaled."""
        some, disc = self.particles.take(indices), self._disc
        rotations = euler_to_matrix(some["rot"], some["tilt"], some["psi"])
        axes = self._aberrations.axes(rotations, some["optics_group"])
        values = extract(self._volume, axes, disc.kx, disc.ky, self.padding)
        shifts = np.stack([some["shift_x"], some["shift_y"]], axis=1) / (self.pixel_size * self.box)
        values *= np.exp(-2j * np.pi * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky)).astype(np.complex64)
        values *= self._contrast(some, disc.kx, disc.ky)
        transforms = fill_half_disc(values, disc, self.box)
        self._aberrations.freed(transforms, some["optics_group"], self.box * self.pixel_size, put_in=True)
        origin = np.zeros(1, np.int32)
        transforms[:, 0, 0] = self._total * self._contrast(some, origin, origin)[:, 0]
        return transforms

    def _contrast(self, some: Particles, kx: NDArray[np.int32], ky: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return CTF times envelope, (b, p)."""
        group = some["optics_group"]
        optics = [some.optics[index] for index in group]
        frequency = np.hypot(kx, ky) / (self.box * self.pixel_size)
        terms = ctf_terms(
            voltage=np.array([one.voltage for one in optics]),
            spherical_aberration=np.array([one.spherical_aberration for one in optics]),
            amplitude_contrast=np.array([one.amplitude_contrast for one in optics]),
            defocus_u=some["defocus_u"],
            defocus_v=some["defocus_v"],
            defocus_angle=some["defocus_angle"],
            phase_shift=some.get("phase_shift", 0.0),
            b_factor=some.get("ctf_b_factor", 0.0) + self.recording.b_factor,
        )
        values = ctf_values(kx, ky, terms_with(terms, some.optics, group), 1 / (self.box * self.pixel_size))
        values *= some.get("ctf_scale", 1.0).astype(np.float32)[:, None]
        voltages = {one.voltage for one in optics}
        envelopes = {v: dose_envelope(frequency, self.recording.dose, v).astype(np.float32) for v in voltages}
        return values * np.stack([envelopes[one.voltage] for one in optics])

    def _white(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        shape = (self.box, self.box)
        seeds = [[self.seed, 1, int(index)] for index in indices]
        return np.stack([np.random.default_rng(one).standard_normal(shape, np.float32) for one in seeds])

    def _scale(self) -> float:
        snr = self.recording.snr
        if snr is None:
            return 1.0
        count = len(self.particles)
        chosen = np.unique(np.linspace(0, count - 1, min(count, SNR_SAMPLE)).astype(np.int64))
        power = np.mean([np.var(real_images(self._signal(part))) for part in np.array_split(chosen, len(chosen))])
        if power == 0:
            raise ParameterError("the density gives images without contrast; give one that is not constant")
        return float(np.sqrt(snr / power))


def simulation_bytes(box: int, padding: int = 2) -> int:
    """Return the peak memory of a `Simulator` in bytes: the padded volume, its transform, and what is kept of it."""
    return 12 * (padding * box) ** 3
