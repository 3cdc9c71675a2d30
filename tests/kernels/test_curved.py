"""Curved sections, held against the closed form of a phantom's transform, plain float64 and the laws of operators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from cloudem.algorithms.reconstruct import reference_volume
from cloudem.kernels.ctf import ctf_terms, ctf_values, wavelength
from cloudem.kernels.curved import curvatures, extract_curved, heights, insert_curved, sidebands, sides_alike
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.slices import extract, half_width, insert, magnified_axes, padded_box
from cloudem.model.poses import random_rotations
from tests.conftest import Twin
from tests.phantom import blobs

BOX = 32
PADDING = padded_box(BOX) / BOX
PHANTOM = blobs(reach=9)
VOLUME = reference_volume(PHANTOM.density(BOX), BOX // 2 - 1)
DISC = half_disc(BOX, 12)
DISC = DISC.take(np.abs(DISC.ky) <= 9)  # as of images that are magnified otherwise along y
STRETCH = np.array([[[1.03, 0.01], [-0.02, 0.98]], [[1, 0], [0, 1]], [[0.97, 0.02], [0.02, 1.01]]])
BENT = np.array([[0.02, 0.004, 0.017], [-0.02, 0, -0.02], [0, 0, 0]])
"""Up to 3 cycles per box at the rim, far more than any microscope."""


def test_the_sphere_has_the_curvature_of_the_wavelength_at_the_magnified_frequency() -> None:
    length = 64.0
    bent = curvatures(np.array([100.0, 300.0, 100.0]), length, STRETCH)
    kappa = np.einsum("bij,jp->bip", STRETCH, np.array([DISC.kx, DISC.ky]) / length)  # 1/Å
    exact = wavelength(np.array([100.0, 300.0, 100.0]))[:, None] / 2 * (kappa**2).sum(axis=1)
    np.testing.assert_allclose(heights(DISC.kx, DISC.ky, bent) / length, exact, rtol=1e-12)
    np.testing.assert_allclose(curvatures(100.0, length), curvatures(np.array([100.0]), length, np.eye(2)[None]))


def test_curved_sections_are_those_of_the_closed_form(twin: Twin) -> None:
    rotations = random_rotations(3, np.random.default_rng(1))
    got = twin(extract_curved)(VOLUME, rotations, DISC.kx, DISC.ky, BENT, PADDING)
    reference = extract_curved.reference(VOLUME.astype(np.complex128), rotations, DISC.kx, DISC.ky, BENT, PADDING)
    assert got.dtype == np.complex64
    assert np.abs(got - reference).max() < 2e-6 * np.abs(VOLUME).max()
    high = heights(DISC.kx, DISC.ky, BENT)
    points = np.stack([np.broadcast_to(DISC.kx, high.shape), np.broadcast_to(DISC.ky, high.shape), high], axis=-1)
    exact = PHANTOM.transform(points @ rotations, BOX)  # Aᵀ (k, z) for each
    assert np.abs(got - exact).max() < 2.5e-3 * np.abs(exact).max()
    plane = PHANTOM.slices(rotations, DISC.kx, DISC.ky, BOX)
    assert np.abs(got - plane)[:2].max() > 0.03 * np.abs(exact).max()  # the curvature is not nothing
    np.testing.assert_array_equal(got[2], twin(extract)(VOLUME, rotations[2:], DISC.kx, DISC.ky, PADDING)[0])


def draw(seed: int, images: int = 3, poses: int = 5) -> tuple[np.ndarray, ...]:
    """Return images, axes of magnified poses, shifts, weights, numerators and denominators."""
    rng = np.random.default_rng(seed)
    shape = (images, len(DISC.kx))
    which = rng.integers(0, images, poses).astype(np.int32)
    axes = magnified_axes(random_rotations(poses, rng), STRETCH[which])
    numerators = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    denominators = rng.uniform(0.1, 1, shape).astype(np.float32)
    return which, axes, rng.normal(0, 2, (poses, 2)), rng.uniform(0.2, 1, poses), numerators, denominators


def inserted(function, drawn: tuple[np.ndarray, ...], *bent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    m = half_width(14, PADDING)
    sums = np.zeros((2 * m + 1, 2 * m + 1, m + 2), np.complex64)
    weights = np.zeros(sums.shape, np.float32)
    function(sums, weights, *drawn, DISC.kx, DISC.ky, *bent, PADDING, BOX)
    return sums, weights


def test_insertions_agree(twin: Twin) -> None:
    drawn = draw(5)
    sums, weights = inserted(twin(insert_curved), drawn, BENT)
    exact, exact_weights = inserted(insert_curved.reference, drawn, BENT)
    assert np.abs(sums - exact).max() < 3e-6 * np.abs(exact).max()
    assert np.abs(weights - exact_weights).max() < 3e-6 * exact_weights.max()
    flat, flat_weights = inserted(twin(insert), drawn)
    got, got_weights = inserted(twin(insert_curved), drawn, 0 * BENT)
    np.testing.assert_allclose(got, flat, atol=1e-6 * np.abs(flat).max())
    np.testing.assert_allclose(got_weights, flat_weights, atol=1e-6 * flat_weights.max())


@given(seed=st.integers(0, 2**32 - 1))
def test_insertion_is_the_adjoint_of_extraction(seed: int) -> None:
    drawn = draw(seed)
    which, axes, shifts, pose_weights, numerators, _ = drawn
    sections = extract_curved(VOLUME, axes, DISC.kx, DISC.ky, BENT[which], PADDING)
    phase = np.exp(-2j * np.pi / BOX * (shifts[:, :1] * DISC.kx + shifts[:, 1:] * DISC.ky))
    left = np.sum(pose_weights[:, None] * numerators[which] * (sections * phase).conj()).real
    sums, _ = inserted(insert_curved, drawn, BENT)
    m, k = VOLUME.shape[2] - 2, sums.shape[2] - 2
    inner = VOLUME[m - k : m + k + 1, m - k : m + k + 1, : k + 2]
    right = np.sum(sums * inner.conj()).real
    assert abs(left - right) < 1e-4 * np.linalg.norm(numerators) * np.linalg.norm(sections)


def test_a_sideband_holds_the_ctf() -> None:
    terms = ctf_terms(
        voltage=100.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, b_factor=50.0, phase_shift=0.3,
        defocus_u=np.array([9e3, 2.5e4]), defocus_v=np.array([8.5e3, 2.4e4]), defocus_angle=np.array([0.3, 1.0]),
    )  # fmt: skip
    bands = sidebands(DISC.kx, DISC.ky, terms, 1 / 48)
    assert bands.dtype == np.complex64
    values = ctf_values(DISC.kx, DISC.ky, terms, 1 / 48)
    assert np.abs(bands.imag - values).max() < 1e-5
    flat = terms.copy()
    flat[:, :9] = 0
    flat[:, 0] = np.pi / 2  # the envelope alone
    np.testing.assert_allclose(np.abs(bands), ctf_values(DISC.kx, DISC.ky, flat, 1 / 48), rtol=1e-5)


@pytest.mark.parametrize("height", [0.0, 0.4, 1.7])
def test_both_sides_are_as_alike_as_a_ball_is_with_itself(height: float) -> None:
    """A ball's share of area at each height, as a wave of twice the distance sees it."""
    wave = 2 * np.pi * 2 * height / 100.0
    share, _ = integrate.quad(lambda h: 0.75 / 40 * (1 - (h / 40) ** 2) * np.cos(wave * h), -40, 40)
    assert sides_alike(np.array(height), diameter=80.0, length=100.0) == pytest.approx(share, abs=1e-4)
