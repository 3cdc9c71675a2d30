"""The power of tiles, and the normal equations of Thon rings: both implementations, against the CTF and differences."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.kernels.ctf import ctf_terms, ctf_values, wavelength
from cloudem.kernels.thon_rings import add_power, thon_equations
from tests.conftest import Twin

OPTICS = np.array([float(wavelength(300.0)), 2.7e7, np.arcsin(0.1)])
PARAMETERS = np.array([12000.0, 300.0, -150.0, 0.2])


def rings(seed: int = 0, count: int = 40, sectors: int = 7):
    rng = np.random.default_rng(seed)
    theta = (np.arange(sectors) + 0.5) / sectors * np.pi
    angles = np.stack([np.cos(2 * theta), np.sin(2 * theta)], axis=1)
    squares = np.linspace(0.002, 0.06, count)[:, None] * rng.uniform(0.99, 1.01, (count, sectors))
    weights = rng.uniform(0, 2, (count, sectors)) * (rng.random((count, sectors)) > 0.1)
    return rng.normal(size=(count, sectors)), weights, rng.uniform(-0.2, 1, count), squares, angles


@pytest.mark.parametrize("radius", [1, 5, 7])
def test_power_is_that_of_the_rows_around_the_origin(twin: Twin, radius: int) -> None:
    rng = np.random.default_rng(radius)
    transform = (rng.normal(size=(16, 9)) + 1j * rng.normal(size=(16, 9))).astype(np.complex64)
    total = np.ones((2 * radius + 1, radius + 1))
    twin(add_power)(transform, radius, total)
    twin(add_power)(transform, radius, total)
    for ky in range(-radius, radius + 1):
        for kx in range(radius + 1):
            assert total[ky + radius, kx] == pytest.approx(1 + 2 * abs(transform[ky, kx]) ** 2, rel=1e-5)


def test_twins_agree() -> None:
    given = rings()
    first = thon_equations.reference(*given, OPTICS, PARAMETERS)
    second = thon_equations.twin("_numba")(*given, OPTICS, PARAMETERS)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_gradient_is_that_of_the_cost(twin: Twin) -> None:
    values, weights, amplitude, squares, angles = rings(1)
    function = twin(thon_equations)

    def cost(at: np.ndarray) -> float:
        return function(values, weights, amplitude, squares, angles, OPTICS, at)[2]

    _, gradient, _ = function(values, weights, amplitude, squares, angles, OPTICS, PARAMETERS)
    for number, step in enumerate((0.1, 0.1, 0.1, 1e-5)):
        shift = np.zeros(4)
        shift[number] = step
        slope = (cost(PARAMETERS + shift) - cost(PARAMETERS - shift)) / (2 * step)
        assert -slope / 2 == pytest.approx(gradient[number], rel=1e-4, abs=1e-6 * abs(gradient).max())


def test_the_phase_is_that_of_the_ctf(twin: Twin) -> None:
    """Values that are those of the CTF's square leave nothing to be explained."""
    _, weights, _, squares, angles = rings(2)
    u, v = (PARAMETERS[0] + sign * np.hypot(*PARAMETERS[1:3]) for sign in (1, -1))
    terms = ctf_terms(
        voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, defocus_u=np.array([u]),
        defocus_v=np.array([v]), defocus_angle=np.array([np.arctan2(*PARAMETERS[2:0:-1]) / 2]), phase_shift=0.2,
    )  # fmt: skip
    theta = np.arctan2(angles[:, 1], angles[:, 0]) / 2
    kx, ky = np.sqrt(squares) * np.cos(theta), np.sqrt(squares) * np.sin(theta)
    ctf = ctf_values(kx.ravel(), ky.ravel(), terms, 1.0).reshape(squares.shape).astype(np.float64)
    values = ctf**2 - 0.5
    cost = twin(thon_equations)(values, weights, np.full(40, 0.5), squares, angles, OPTICS, PARAMETERS)[2]
    assert cost < 1e-6
