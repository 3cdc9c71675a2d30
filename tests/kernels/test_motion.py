"""Loops of motion correction, each twin against arithmetic that is written out."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.kernels.motion import (
    add_warped,
    add_weighted,
    coherence,
    corrected,
    correlation_steps,
    frame_moments,
    half_waves,
    ring_products,
    roughness,
    shrunk,
)
from tests.conftest import Twin

RNG = np.random.default_rng(5)
IMAGE = RNG.standard_normal((60, 84)).astype(np.float32)
WAVES = np.array([[y, x] for y in range(-6, 7) for x in range(1, 8)], np.int32)
STEPS = np.array([0.03, 0.05])


def spectra(frames: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = RNG.standard_normal((2, len(WAVES), frames)).astype(np.float32)
    return values[0], values[1], RNG.normal(size=(frames, 2)) * 2


def agreement(real, imaginary, weight, pattern, displacement) -> float:
    """The sum over pairs of frames, pair by pair."""
    ky, kx = (WAVES * STEPS).T
    turns = [np.exp(1j * (kx * x + ky * y)) for x, y in displacement]
    total = 0.0
    for f in range(len(displacement)):
        for g in range(f):
            moved = (real + 1j * imaginary)[:, f] * turns[f] * ((real + 1j * imaginary)[:, g] * turns[g]).conj()
            total += float((weight * (moved - pattern * turns[f] * turns[g].conj()).real).sum())
    return total


def test_frames_with_gain_and_outliers(twin: Twin) -> None:
    raw = RNG.poisson(1, (30, 41)).astype(np.int8)
    for factor in (RNG.random((30, 41)).astype(np.float32) + 0.5, np.full((1, 1), 0.5, np.float32)):
        out, total = np.zeros((30, 41), np.float32), np.ones((30, 41), np.float32)
        scaled = raw * factor
        assert twin(corrected)(raw, factor, 1.4, 9.0, out) == (scaled > np.float32(1.4)).sum()
        np.testing.assert_allclose(out, np.where(scaled > np.float32(1.4), 9, scaled), rtol=1e-6)
        moments = twin(frame_moments)(raw, factor, total)
        np.testing.assert_allclose(moments, [scaled.sum(), (scaled**2).sum()], rtol=1e-5)
        np.testing.assert_allclose(total, 1 + scaled, rtol=1e-6)


def test_roughness_of_noise_is_four_variances_and_of_planes_none(twin: Twin) -> None:
    assert twin(roughness)(IMAGE) == pytest.approx(4, rel=0.05)
    y, x = np.mgrid[:20, :30].astype(np.float32)
    assert twin(roughness)(3 * x + 2 * y) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("factor", "count"), [(1, 1), (2, 12), (3, 19), (4, 24)])
def test_shrinking_keeps_planes_and_places(twin: Twin, factor: int, count: int) -> None:
    taps = np.hanning(count + 2)[1:-1].astype(np.float32)
    taps /= taps.sum()
    y, x = np.mgrid[:60, :84].astype(np.float32)
    small = twin(shrunk)(2 * x + 3 * y + 1, taps, factor)
    assert small.shape == (60 // factor, 84 // factor)
    centre = (factor - 1) / 2
    rows, columns = np.mgrid[: small.shape[0], : small.shape[1]] * factor + centre
    inside = np.s_[3:-3, 3:-3]
    np.testing.assert_allclose(small[inside], (2 * columns + 3 * rows + 1)[inside], rtol=1e-5)
    np.testing.assert_allclose(twin(shrunk)(IMAGE, taps, factor), shrunk.reference(IMAGE, taps, factor), atol=1e-5)


def test_agreement_and_its_derivatives(twin: Twin) -> None:
    real, imaginary, displacement = spectra()
    weight, pattern = RNG.random((2, len(WAVES))).astype(np.float32)
    gradient, curvature, total = twin(correlation_steps)(real, imaginary, WAVES, STEPS, weight, pattern, displacement)
    assert total == pytest.approx(agreement(real, imaginary, weight, pattern, displacement), rel=1e-4)

    def at(frame: int, x: float, y: float) -> float:
        moved = displacement.copy()
        moved[frame] += x, y
        return agreement(real, imaginary, weight, pattern, moved)

    step = 1e-2
    for frame in (0, 3):
        slopes = [(at(frame, *d) - at(frame, *-d)) / (2 * step) for d in np.eye(2) * step]
        np.testing.assert_allclose(gradient[frame], slopes, rtol=2e-3, atol=2e-3)
        bends = [-(at(frame, *d) - 2 * at(frame, 0, 0) + at(frame, *-d)) / step**2 for d in np.eye(2) * step]
        np.testing.assert_allclose(curvature[frame, [0, 2]], bends, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-3)  # moving all frames alike changes nothing


def test_what_frames_have_in_common(twin: Twin) -> None:
    real, imaginary, displacement = spectra()
    found = twin(coherence)(real, imaginary, WAVES, STEPS, displacement)
    ky, kx = (WAVES * STEPS).T
    turns = np.exp(1j * (kx[:, None] * displacement[:, 0] + ky[:, None] * displacement[:, 1]))
    moved = (real + 1j * imaginary) * turns
    np.testing.assert_allclose(found[:, 0], abs(moved.sum(axis=1)) ** 2, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[:, 1], (abs(moved) ** 2).sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(found[:, 2], abs(turns.sum(axis=1)) ** 2, rtol=1e-4, atol=1e-4)


def test_a_smooth_image_is_moved_where_the_field_says(twin: Twin) -> None:
    """The spline reproduces polynomials of the third order but for its constant smoothing: here of the first."""
    rows, columns = 70, 130
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    field = np.array([[1.3, 2.0, -3.0, 0.5, 1.0, -2.0], [-2.6, 1.0, 0.5, -2.0, 3.0, 1.0]])
    u, v = x / columns - 0.5, y / rows - 0.5
    dx, dy = np.tensordot(field, np.stack([np.ones_like(u), u, u * u, v, v * v, u * v]), axes=1)
    frames = np.stack([2 * x + 3 * y, x - y]).astype(np.float32)
    totals = np.zeros((2, rows, columns), np.float32)
    amounts = np.array([[1.0, 0.5], [0.0, 2.0]], np.float32)
    twin(add_warped)(frames, np.stack([field, 0 * field]), np.zeros(2, np.float32), amounts, totals)
    moved = 2 * (x + dx) + 3 * (y + dy)
    inside = np.s_[6:-6, 6:-6]
    np.testing.assert_allclose(totals[0][inside], moved[inside], atol=2e-3)
    np.testing.assert_allclose(totals[1][inside], (0.5 * moved + 2 * (x - y))[inside], atol=3e-3)


def test_warping_noise_is_the_reference_and_beyond_the_edge_is_what_is_given() -> None:
    frames = np.stack([IMAGE, IMAGE[::-1], 2 * IMAGE])
    fields = RNG.normal(size=(3, 2, 6)) * 3
    outside, amounts = np.array([7, 8, 9], np.float32), RNG.random((3, 4)).astype(np.float32)
    found, expected = (np.zeros((4, *IMAGE.shape), np.float32) for _ in range(2))
    add_warped(frames, fields, outside, amounts, found)
    add_warped.reference(frames, fields, outside, amounts, expected)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    far = np.zeros((1, 2, 6))
    far[0, 0, 0] = 1000
    found[:] = 0
    add_warped(frames[:1], far, outside[:1], amounts[:1] * 0 + 1, found)
    assert (found == 7).all()


def test_weighted_sums_and_products_of_rings(twin: Twin) -> None:
    shape = (40, 31)
    first, second = (
        (RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)).astype(np.complex64) for _ in range(2)
    )
    weights, total = RNG.random(70).astype(np.float32), second.copy()
    twin(add_weighted)(first, weights, total)
    ky, kx = np.minimum(np.arange(40), 40 - np.arange(40)), np.arange(31) * 40 / 60
    place = np.rint(2 * np.hypot(ky[:, None], kx)).astype(int)
    assert abs(place - half_waves(shape, 70)).max() <= 1
    np.testing.assert_allclose(total, second + weights[half_waves(shape, 70)] * first, rtol=1e-5)
    sums = twin(ring_products)(first, second, 10)
    ring = (np.hypot(ky[:, None], kx) / 2).astype(int)
    used = (ky[:, None] >= 2) & (np.arange(31) >= 2) & (np.arange(31) < 30)
    for number in (2, 7):
        here = used & (ring == number)
        expected = [
            (first * second.conj()).real[here].sum(),
            (abs(first) ** 2)[here].sum(),
            (abs(second) ** 2)[here].sum(),
        ]
        np.testing.assert_allclose(sums[:, number], [*expected, here.sum()], rtol=1e-5)
