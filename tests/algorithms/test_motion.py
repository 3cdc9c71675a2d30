"""Motion of simulated specimens is found: as a whole, locally, beside a pattern of the detector, and not in noise."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.dose import critical_dose, dose_weights
from cloudem.algorithms.frame_information import frame_factors, frame_signals
from cloudem.algorithms.gain import correction_of
from cloudem.algorithms.motion_local import field_at
from cloudem.algorithms.motion_sums import images_of, rank_factors, sum_frames, weight_places
from cloudem.algorithms.motion_track import path_lengths, smoothed_track
from cloudem.algorithms.movie_correction import CorrectedMovie, MovieSettings, correct_movie, survey_of
from cloudem.testing.movies import SimulatedMovie, simulated_movie, simulated_track

SIZE, FRAMES = 512, 16
TRACK = simulated_track(FRAMES, 6.0, 1)
DOSES = np.arange(1.0, FRAMES + 1)


def made_of(movie: SimulatedMovie, correction=None, **settings) -> CorrectedMovie:
    shape = movie.frames.shape[1:]
    frames = np.arange(len(movie.frames))
    given = {"doses": DOSES, **settings}
    return correct_movie(
        lambda number: movie.frames[number],
        frames,
        correction or correction_of(shape),
        MovieSettings(1.0, 300.0, **given),
    )


def error(track: np.ndarray, truth: np.ndarray) -> float:
    wrong = track - truth
    return float(np.sqrt(((wrong - wrong.mean(axis=0)) ** 2).mean()))


@pytest.fixture(scope="module")
def plain() -> SimulatedMovie:
    return simulated_movie(SIZE, FRAMES, 1, track=TRACK)


def test_motion_of_the_whole_and_what_it_is_worth(plain: SimulatedMovie) -> None:
    made = made_of(plain)
    assert error(made.track, TRACK) < 0.06
    assert made.problem == ""
    assert (made.track[0] == 0).all()
    assert set(made.images) == {"sum", "unweighted", "even", "odd"}
    still = made_of(simulated_movie(SIZE, FRAMES, 1))
    assert made.information.bits == pytest.approx(still.information.bits, rel=0.05)
    assert abs(still.track).max() < 0.1


def test_local_motion_is_found_where_there_is_some_and_not_where_there_is_none(plain: SimulatedMovie) -> None:
    assert made_of(plain).local.problem
    rng = np.random.default_rng(3)
    coefficients = np.zeros((2, 6, 3))
    coefficients[:, 1:, 0], coefficients[:, 1:, 1] = rng.normal(size=(2, 5)) * 0.4, rng.normal(size=(2, 5)) * 0.005
    movie = simulated_movie(SIZE, FRAMES, 2, track=TRACK, coefficients=coefficients)
    made = made_of(movie)
    assert made.local.problem == ""
    assert made.local.gain > 20
    u, v = np.meshgrid(np.linspace(-0.4, 0.4, 5), np.linspace(-0.4, 0.4, 5))
    terms = np.stack([np.ones_like(u), u, u * u, v, v * v, u * v])

    def places(track: np.ndarray, field: np.ndarray) -> np.ndarray:
        moved = np.stack([np.tensordot(field_at(field, frame), terms, axes=1) for frame in range(FRAMES)])
        moved += track[:, :, None, None]
        return moved - moved.mean(axis=0)

    truth = places(TRACK, coefficients)
    found, whole = (
        places(made.track, made.local.coefficients),
        places(made_of(movie, local=False).track, 0 * coefficients),
    )
    assert np.sqrt(((found - truth) ** 2).mean()) < 0.5 * np.sqrt(((whole - truth) ** 2).mean())
    assert np.sqrt(((found - truth) ** 2).mean()) < 0.15


@pytest.mark.parametrize(("pattern", "length"), [(0.03, 0.0), (0.1, 0.7)])
def test_a_pattern_of_the_detector_is_not_taken_for_stillness(pattern: float, length: float) -> None:
    track = simulated_track(FRAMES, length, 4)
    made = made_of(simulated_movie(SIZE, FRAMES, 4, track=track, pattern=pattern))
    assert made.pattern == pytest.approx(pattern**2, abs=4e-4 + 0.1 * pattern**2)
    assert error(made.track, track) < 0.06


def test_noise_has_no_bits_and_bits_do_not_count_the_pattern() -> None:
    for pattern in (0.0, 0.05):
        made = made_of(simulated_movie(SIZE, FRAMES, 5, contrast=0.0, pattern=pattern))
        assert made.information.bits == 0
        assert np.isfinite(made.images["sum"]).all()


def test_sums_have_white_noise_and_keep_electrons() -> None:
    """Weighted sums of noise have the variance of one frame; an unweighted one holds all electrons, binned or not."""
    movie = simulated_movie(256, FRAMES, 6, contrast=0.0)
    made = made_of(movie, local=False)
    assert made.images["sum"].std() == pytest.approx(1, rel=0.03)
    assert made.images["even"].std() == pytest.approx(1, rel=0.03)
    total = movie.frames.sum() / 256**2
    assert made.images["unweighted"].mean() == pytest.approx(total, rel=0.01)
    binned = made_of(movie, local=False, binning=2.0).images["unweighted"]
    assert binned.shape == (128, 128)
    assert binned.mean() == pytest.approx(4 * total, rel=0.01)


def test_a_shift_of_whole_and_of_half_pixels_is_undone() -> None:
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:96, :128]
    waves = sum(np.cos(2 * np.pi * (a * x / 128 + b * y / 96) + c) for a, b, c in rng.integers(1, 20, (8, 3)))
    base = waves.astype(np.float32)
    fields = np.zeros((2, 2, 6))
    fields[1, :, 0] = 3.5, -2.25

    def frame(number: int, out: np.ndarray) -> float:
        spectrum = np.fft.fft2(base)
        turn = np.exp(-2j * np.pi * (np.fft.fftfreq(128) * fields[number, 0, 0]))
        turn = turn * np.exp(-2j * np.pi * np.fft.fftfreq(96) * fields[number, 1, 0])[:, None]
        out[:] = np.fft.ifft2(spectrum * turn).real
        return 0.0

    images = images_of(sum_frames(frame, fields, (96, 128)))
    assert set(images) == {"sum", "even", "odd"}
    inside = np.s_[10:-10, 10:-10]
    np.testing.assert_allclose(images["odd"][inside], base[inside], atol=0.05 * base.std())
    np.testing.assert_allclose(images["sum"], images["even"] + images["odd"], atol=1e-4)


def test_bad_pixels_blank_frames_and_cosmic_rays() -> None:
    movie = simulated_movie(256, FRAMES, 8, track=TRACK / 2)
    frames = movie.frames.copy()
    frames[:, 40, 50], frames[:, 41, 50], frames[5, 100, 100] = 30, 0, 200
    frames[9] = 0
    made = made_of(movie._replace(frames=frames), local=False)
    assert made.used.tolist() == [number for number in range(FRAMES) if number != 9]
    assert made.hot_pixels in (1, 2)
    assert made.outliers >= 1
    mean, spread = made.images["unweighted"].mean(), made.images["unweighted"].std()
    assert abs(made.images["unweighted"] - mean).max() < 7 * spread
    assert error(made.track, movie.track[made.used]) < 0.15


@pytest.mark.parametrize("shape", [(97, 131), (64, 200)])
def test_odd_sizes_and_few_frames(shape: tuple[int, int]) -> None:
    frames = np.random.default_rng(9).poisson(2, (3, *shape)).astype(np.uint8)
    for count in (1, 2, 3):
        made = correct_movie(
            lambda number: frames[number], np.arange(count), correction_of(shape), MovieSettings(1.0, 300.0)
        )
        assert made.images["sum"].shape == (shape[0] // 2 * 2, shape[1] // 2 * 2)
        assert np.isfinite(made.images["sum"]).all()
        assert made.information.bits == 0
    survey = survey_of(lambda number: frames[number], np.arange(3), correction_of(shape))
    np.testing.assert_allclose(survey.total, frames.sum(axis=0), rtol=1e-6)


def test_critical_doses_and_weights() -> None:
    assert critical_dose(np.array([0.1]), 300.0)[0] == pytest.approx(0.24499 * 0.1**-1.6649 + 2.8141)
    assert critical_dose(np.array([0.2]), 200.0) == pytest.approx(0.8 * critical_dose(np.array([0.2]), 300.0))
    weights = dose_weights(np.array([0.0, 0.1]), np.array([0.0, 10.0]), 300.0)
    np.testing.assert_allclose(weights[:, 0], 1)
    assert weights[1, 1] == pytest.approx(np.exp(-10 / 2 / critical_dose(np.array([0.1]), 300.0)[0]))
    places = weight_places((4096, 4096), 0.8)
    wanted = dose_weights(places, np.arange(1.0, 51), 300.0).astype(np.float32)
    amounts, curves = rank_factors(wanted)
    assert len(curves) <= 6
    np.testing.assert_allclose(amounts @ curves, wanted, atol=1.1e-3)


def test_tracks_are_smoothed_as_far_as_their_scatter_asks_for() -> None:
    truth = simulated_track(30, 8.0, 3)
    rng = np.random.default_rng(3)
    for noise in (0.01, 0.5):
        places = truth + noise * rng.normal(size=truth.shape)
        smoothed = smoothed_track(places, np.full(places.shape, noise**-2))
        assert error(smoothed, truth) < (1.1 if noise < 0.1 else 0.7) * error(places, truth)
    assert path_lengths(np.array([[0, 0], [3, 4], [3, 5.0]]), 2.0, 1) == (12.0, 10.0, 2.0)


def test_amplitudes_of_frames_are_found_from_their_products() -> None:
    """Rank one but for the diagonal: amplitudes within 5 % where they can be, noise of each frame, nothing in noise."""
    rng = np.random.default_rng(11)
    bands, count = 32, np.full(32, 4000)
    frequency = (np.arange(bands) + 0.5) / bands * 0.25
    decay = np.exp(-0.5 * DOSES[:, None] / critical_dose(frequency, 300.0))
    truth = decay * np.exp(-np.where(DOSES[:, None] == 1, 80.0, 0.0) * frequency**2 / 4)
    signal = 0.6 * np.exp(-15 * frequency)
    products = np.empty((bands, FRAMES, FRAMES))
    for band in range(bands):
        specimen = rng.standard_normal(2 * count[band]) * np.sqrt(signal[band] / 2)
        frames = truth[:, band, None] * specimen + rng.standard_normal((FRAMES, 2 * count[band])) * np.sqrt(0.5)
        products[band] = frames @ frames.T / count[band]
    found = frame_signals(products, count, 0.25)
    assert found.certain[:12].all()
    wrong = found.amplitude / (np.sqrt(signal) * truth) - 1
    assert np.sqrt((wrong[:, :5] ** 2).mean()) < 0.05
    np.testing.assert_allclose(found.noise[:, :5], 1, atol=0.1)
    factors, b_factors = frame_factors(found, decay)
    model = decay * np.exp(factors[:, None] - b_factors[:, None] * frequency**2 / 4)
    scale = (model * truth).sum(axis=0) / (truth**2).sum(axis=0)
    assert np.sqrt(((model / scale / truth - 1)[:, found.certain] ** 2).mean()) < 0.05
    assert b_factors[0] - b_factors[1:].mean() == pytest.approx(80, abs=25)
    noise = rng.standard_normal((FRAMES, 8000)) * np.sqrt(0.5)
    nothing = np.broadcast_to(noise @ noise.T / 4000, products.shape)
    assert not frame_signals(nothing, count, 0.25).certain.any()


def test_weights_from_information_beat_the_fixed_curve_where_it_is_wrong() -> None:
    blur = np.zeros(FRAMES)
    blur[:3] = 150, 60, 20
    movie = simulated_movie(SIZE, FRAMES, 12, track=TRACK, damage=0.4, blur=blur)
    fixed, found = (made_of(movie, local=False, weighting=kind) for kind in ("dose", "information"))
    band = slice(20, 50)
    assert found.information.bits > fixed.information.bits
    assert found.information.correlation[band].mean() > fixed.information.correlation[band].mean()
    unknown = made_of(movie, local=False, weighting="information", doses=None)
    assert unknown.information.bits > 0.97 * found.information.bits
