"""Derivatives of the image model against finite differences of the model as the other kernels evaluate it."""

import numpy as np
import pytest

from cloudem.algorithms.ctf_refinement import cubic_terms, matrix_of, quartic_terms
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.kernels.aberrations import ODD_DEGREES, aberrated, magnified, odd_phase
from cloudem.kernels.ctf import ctf_terms, wavelength
from cloudem.kernels.fourier import half_disc
from cloudem.kernels.model_fit import (
    COLUMNS,
    DEFOCUS,
    FALL_OFF,
    MAGNIFICATION,
    RESIDUAL,
    SCALE,
    model_products,
)
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.poses import random_rotations, rotate

BOX, PIXEL, COUNT, LAST = 24, 2.0, 3, 10
RNG = np.random.default_rng(3)
DISC = half_disc(BOX, LAST)
STEP, PADDING = 1 / (BOX * PIXEL), padded_box(BOX) / BOX
GRID = np.mgrid[:BOX, :BOX, :BOX] - BOX // 2
BLOBS = RNG.normal(0, 3, (6, 3))
DENSITY = sum(np.exp(-np.sum((GRID - at[:, None, None, None]) ** 2, axis=0) / 4) for at in BLOBS)
VOLUME = reference_volume(DENSITY.astype(np.float32), LAST + 1)
ROTATIONS, SHIFTS = random_rotations(COUNT, RNG), RNG.normal(0, 1.5, (COUNT, 2))
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7e7, "amplitude_contrast": 0.1}
DEFOCUS_U = RNG.uniform(5e3, 1e4, COUNT)
SCALES = RNG.uniform(0.8, 1.2, COUNT)
VALUES = np.array([0.008, -0.005, 0.004, 40, -25, 9, -6, 8, -5, 90, 40, -50, 30, 60])
"""Of the columns from the magnification on."""
STEPS = np.array([*[1e-3] * 3, *[2e-3] * 2, 2.0, 1e-3, 1.0, *[5e-4] * 3, *[0.2] * 4, *[0.05] * 2, *[0.5] * 5])
"""Of finite differences, small enough for the interpolation and large enough for float32 slices."""


def model(change: np.ndarray) -> np.ndarray:
    """Return the images (b, p) with a change of each of the 22 parameters, from the kernels that others use."""
    rotations = rotate(ROTATIONS, np.tile(change[:3], (COUNT, 1)))
    shifts = SHIFTS + change[3:5]
    values = VALUES + change[MAGNIFICATION.start :]
    matrices = np.broadcast_to(np.eye(2) + matrix_of(values[:3]), (COUNT, 2, 2))
    terms = ctf_terms(
        **OPTICS, defocus_u=DEFOCUS_U + change[DEFOCUS], defocus_v=DEFOCUS_U - 400 + change[DEFOCUS],
        defocus_angle=np.full(COUNT, 0.4), b_factor=60.0 + change[FALL_OFF],
    )  # fmt: skip
    terms = aberrated(terms, np.broadcast_to(quartic_terms(values[7:]), (COUNT, 9)), matrices)
    odd = magnified(np.broadcast_to(cubic_terms(values[3:7]), (COUNT, 12)), matrices, ODD_DEGREES)
    axes = rotations.copy()
    axes[:, :2] = np.swapaxes(matrices, 1, 2) @ rotations[:, :2]
    slices = extract.reference(VOLUME, axes, DISC.kx, DISC.ky, PADDING).astype(np.complex128)
    x, y = DISC.kx * STEP, DISC.ky * STEP
    powers = np.array([x**2, x * y, y**2])
    quartics = np.array([x ** (4 - j) * y**j for j in range(5)])
    contrast = np.sin(terms[:, :1] + terms[:, 1:4] @ powers + terms[:, 4:9] @ quartics)
    contrast = contrast * np.exp(-(terms[:, 9:] @ powers) / 4) * (SCALES * np.exp(change[SCALE]))[:, None]
    ramp = 2 * np.pi / BOX * (shifts[:, :1] * DISC.kx + shifts[:, 1:] * DISC.ky)
    return slices * contrast * np.exp(1j * (odd_phase(DISC.kx, DISC.ky, odd, STEP) - ramp))


def products(images: np.ndarray, precision: np.ndarray, *, reference: bool = False) -> np.ndarray:
    matrices = np.broadcast_to(np.eye(2) + matrix_of(VALUES[:3]), (COUNT, 2, 2))
    phase = ctf_terms(
        **OPTICS, defocus_u=DEFOCUS_U, defocus_v=DEFOCUS_U - 400, defocus_angle=np.full(COUNT, 0.4), b_factor=60.0
    )
    phase[:, :9] -= quartic_terms(VALUES[7:])
    odd = np.broadcast_to(cubic_terms(VALUES[3:7]), (COUNT, 12))
    function = model_products.reference if reference else model_products
    return function(
        VOLUME, ROTATIONS, SHIFTS, matrices, phase, odd, SCALES, np.full(COUNT, np.pi * wavelength(300.0)),
        images.astype(np.complex64), precision, DISC.kx, DISC.ky, PADDING, BOX, STEP,
    )  # fmt: skip


def test_products_are_those_of_finite_differences() -> None:
    data = model(np.zeros(RESIDUAL)) + RNG.normal(size=(COUNT, len(DISC.kx), 2)) @ [1, 1j] * 0.5
    precision = RNG.uniform(0.5, 2, data.shape).astype(np.float32)
    rows = np.empty((COUNT, COLUMNS, data.shape[1]), np.complex128)
    for column, step in enumerate(STEPS):
        change = np.zeros(RESIDUAL)
        change[column] = step
        rows[:, column] = (model(change) - model(-change)) / (2 * step)
    rows[:, RESIDUAL] = data - model(np.zeros(RESIDUAL))
    rows *= np.sqrt(precision)[:, None]
    wanted = (rows @ np.swapaxes(rows.conj(), 1, 2)).real
    size = np.sqrt(np.einsum("caa->ca", wanted))
    found = products(data, precision, reference=True)
    np.testing.assert_allclose(found / size[:, :, None] / size[:, None], wanted / size[:, :, None] / size[:, None],
                               atol=2.5e-2)  # fmt: skip


def test_the_twin_is_its_reference() -> None:
    data = RNG.normal(size=(COUNT, len(DISC.kx), 2)) @ [1, 1j]
    precision = RNG.uniform(0.5, 2, data.shape).astype(np.float32)
    wanted = products(data, precision, reference=True)
    size = np.sqrt(np.einsum("caa->ca", wanted))
    error = np.abs(products(data, precision) - wanted) / size[:, :, None] / size[:, None]
    assert error.max() < 1e-5


def test_odd_and_even_aberrations_are_independent() -> None:
    found = products(model(np.zeros(RESIDUAL)), np.ones((COUNT, len(DISC.kx)), np.float32), reference=True)
    size = np.sqrt(np.einsum("caa->ca", found[:, :RESIDUAL, :RESIDUAL]))
    across = found[:, 11:15, 15:22] / size[:, 11:15, None] / size[:, None, 15:22]
    assert np.abs(across).max() < 1e-12


@pytest.mark.parametrize("column", [0, 2, 3, 5, 8, 9, 11, 13, 15, 17, 21])
def test_the_gradient_leads_to_the_parameter_that_was_changed(column: int) -> None:
    change = np.zeros(RESIDUAL)
    change[column] = STEPS[column]
    found = products(model(change), np.ones((COUNT, len(DISC.kx)), np.float32))
    step = found[:, column, RESIDUAL] / found[:, column, column]
    np.testing.assert_allclose(step, STEPS[column], rtol=0.05)
