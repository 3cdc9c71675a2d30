"""Particles in frames: found where they are by their own half-set's map, and summed along their tracks."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.frame_information import FrameSignals
from cloudem.algorithms.particle_frames import (
    ComparedFrames,
    HalfMap,
    Molecules,
    SharedSignal,
    WeightedSums,
    WindowPlan,
    compare_frame,
    expected_views,
    likelihood_patches,
    no_frames,
    shared_signal,
    visible_amplitudes,
)
from cloudem.algorithms.polishing_weights import added_signals, polishing_weights, shown_signals
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.kernels.background import background
from cloudem.kernels.ctf import ctf_terms
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.slices import padded_box
from cloudem.testing.particle_movies import ParticleMovie, ParticleScene, simulated_particle_movie

BOX, PIXEL, SHELLS, FRAMES = 32, 4.0, 12, 6
SCENE = ParticleScene(
    size=256, frames=FRAMES, pixel_size=PIXEL, dose=2.0, count=14, apart=170.0, contrast=4.0, drift=3.0, local=0.5,
    velocity=0.6, together=400.0,
)  # fmt: skip
PLAN = WindowPlan(BOX, PIXEL, SHELLS, background(BOX, 0.9 * BOX).astype(np.float64), -1.0)


@pytest.fixture(scope="module")
def density() -> np.ndarray:
    return density_of_atoms(demo_molecule(100.0, seed=3), BOX, PIXEL)


@pytest.fixture(scope="module")
def movie(density: np.ndarray) -> ParticleMovie:
    return simulated_particle_movie(density, SCENE, 3)


def half_map(density: np.ndarray) -> HalfMap:
    return HalfMap(reference_volume(density, SHELLS), padded_box(BOX) / BOX, BOX * PIXEL)


def molecules(movie: ParticleMovie) -> Molecules:
    count = len(movie.places)
    terms = ctf_terms(
        voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, defocus_u=movie.defocus,
        defocus_v=movie.defocus, defocus_angle=np.zeros(count),
    )  # fmt: skip
    half = (1 + np.arange(count) % 2).astype(np.int8)
    return Molecules(half, movie.rotations, np.zeros((count, 2)), terms, np.ones(count))


def compared(movie: ParticleMovie, views: np.ndarray, half: np.ndarray, expected: np.ndarray) -> ComparedFrames:
    found = no_frames(views, FRAMES, PLAN)
    for number in range(FRAMES):
        at = movie.places + expected[:, number] / PIXEL
        compare_frame(found, number, movie.frames[number].astype(np.float32), at, views, half, PLAN)
    return found


def test_particles_are_found_where_they_are(movie: ParticleMovie, density: np.ndarray) -> None:
    given, maps = molecules(movie), (half_map(density), half_map(density))
    views = expected_views(given, maps, PLAN)
    away = np.array([2.6, -3.4])
    found = compared(movie, views, given.half, movie.moved - away)
    damage = np.ones((FRAMES, SHELLS + 1))
    amplitude, noise, deviations = visible_amplitudes(found, np.ones(SHELLS + 1), damage, PLAN)
    assert deviations > 20
    patches, spacing = likelihood_patches(found, amplitude, noise, PLAN)
    middle = patches.shape[-1] // 2
    total = patches.sum(axis=(0, 1))
    y, x = np.unravel_index(total.argmax(), total.shape)
    np.testing.assert_allclose((np.array([x, y]) - middle) * spacing, away, atol=0.8 * spacing)
    dark = visible_amplitudes(compared(movie, -views, given.half, movie.moved), np.ones(SHELLS + 1), damage, PLAN)
    assert dark[2] < -20


def test_each_half_set_sees_its_own_map_alone(movie: ParticleMovie, density: np.ndarray) -> None:
    given = molecules(movie)
    both, one = (expected_views(given, (half_map(density), half_map(other)), PLAN) for other in (density, 0 * density))
    first = given.half == 1
    np.testing.assert_array_equal(one[first], both[first])
    np.testing.assert_array_equal(one[~first], 0)
    found = compared(movie, one, given.half, movie.moved)
    signal = shared_signal(found, np.zeros_like(movie.moved), given.half, PLAN)
    assert np.all(signal.shared[1] == 0)
    assert signal.shared[0].sum() > 0


def test_odd_phases_of_the_optics_are_put_into_views(movie: ParticleMovie, density: np.ndarray) -> None:
    given, maps = molecules(movie), (half_map(density),) * 2
    odd = np.zeros((len(movie.places), 12))
    odd[:, 2:4] = 900.0, -400.0
    plain, tilted = expected_views(given, maps, PLAN), expected_views(given._replace(odd=odd), maps, PLAN)
    x, y = PLAN.disc.kx / PLAN.length, PLAN.disc.ky / PLAN.length
    np.testing.assert_allclose(tilted, plain * np.exp(1j * (900 * x**3 - 400 * x**2 * y)), atol=1e-5 * abs(plain).max())


def test_sums_along_tracks_are_sharper_than_along_none(movie: ParticleMovie, density: np.ndarray) -> None:
    given = molecules(movie)
    views = expected_views(given, (half_map(density),) * 2, PLAN)
    disc = half_disc(BOX, BOX // 2 - 1)
    agreement = []
    for tracks in (movie.moved, np.repeat(movie.moved.mean(axis=1, keepdims=True), FRAMES, axis=1)):
        sums = WeightedSums(np.ones((2, FRAMES, BOX)), given.half, BOX, PLAN)
        for number in range(FRAMES):
            frame = movie.frames[number].astype(np.float32)
            sums.add(number, frame, movie.places + tracks[:, number] / PIXEL)
        assert sums.usable.all()
        transforms = np.fft.rfft2(np.fft.ifftshift(sums.images(), axes=(1, 2)))
        values = transforms[:, disc.ky % BOX, disc.kx][:, disc.shell <= SHELLS]
        # views hold the sign of frames, images that of particles
        agreement.append(
            -(values * views.conj()).real.sum() / np.sqrt((abs(values) ** 2).sum() * (abs(views) ** 2).sum())
        )
    assert agreement[0] > 1.15 * agreement[1] > 0


def test_weights_follow_what_frames_show() -> None:
    """Frames that show twice as much, or are blurred, get the weights that are known."""
    frames, size, rng = 12, 41, np.random.default_rng(0)
    frequency = np.arange(size) / 150.0
    waves, count = 3.0 * np.arange(size) + 1, 2000
    blur, factor = np.zeros(frames), np.ones(frames)
    blur[:3] = 300, 150, 60
    factor[6:] = 0.7
    shown = factor[:, None] * np.exp(-0.25 * blur[:, None] * frequency**2)
    squares = 0.01 * waves * count
    shared = shown * squares + np.sqrt(squares / 2) * rng.normal(size=(frames, size))
    part = SharedSignal(np.stack([shared] * 2), np.stack([squares] * 2), np.ones((2, frames, size)) * waves * count)
    total = added_signals([part], [np.arange(frames)], frames)
    signals = shown_signals(total, np.full((2, frames), float(count)), 0, waves, 150.0)
    assert isinstance(signals, FrameSignals)
    weights = polishing_weights(signals, frequency, None, 300.0).weights
    wanted = shown / shown.mean(axis=0)
    assert abs(weights / weights.mean(axis=0) - wanted).max() < 0.12
    nothing = shown_signals(total._replace(shared=0 * total.shared), np.full((2, frames), 1.0), 0, waves, 150.0)
    np.testing.assert_allclose(polishing_weights(nothing, frequency, None, 300.0).weights, 1.0)
