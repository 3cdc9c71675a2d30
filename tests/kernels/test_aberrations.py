import numpy as np
import pytest

from cloudem.kernels.aberrations import (
    EVEN_DEGREES,
    EVEN_ORDERS,
    EVEN_TERMS,
    ODD_DEGREES,
    ODD_ORDERS,
    ODD_TERMS,
    aberrated,
    beam_tilt_terms,
    magnified,
    odd_phase,
    zernike_terms,
)
from cloudem.kernels.ctf import ctf_terms, ctf_values, wavelength
from cloudem.kernels.fourier import half_disc

BOX, PIXEL = 64, 1.2
DISC = half_disc(BOX, BOX // 2 - 1)
STEP = 1 / (BOX * PIXEL)
X, Y = DISC.kx * STEP, DISC.ky * STEP
RNG = np.random.default_rng(5)
MATRIX = np.array([[1.01, 0.004], [-0.003, 0.992]])

RADIAL = {
    (1, 1): lambda r: r, (3, 1): lambda r: 3 * r**3 - 2 * r, (3, 3): lambda r: r**3,
    (5, 1): lambda r: 10 * r**5 - 12 * r**3 + 3 * r, (5, 3): lambda r: 5 * r**5 - 4 * r**3, (5, 5): lambda r: r**5,
    (0, 0): lambda r: r**0, (2, 0): lambda r: 2 * r**2 - 1, (2, 2): lambda r: r**2,
    (4, 0): lambda r: 6 * r**4 - 6 * r**2 + 1, (4, 2): lambda r: 4 * r**4 - 3 * r**2, (4, 4): lambda r: r**4,
}  # fmt: skip
"""By (n, |m|), from Born & Wolf, table 9.2."""


def direct(orders: tuple[tuple[int, int], ...], values: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a sum of Zernike polynomials in polar coordinates."""
    r, phi = np.hypot(x, y), np.arctan2(y, x)
    turning = [np.cos(m * phi) if m >= 0 else np.sin(-m * phi) for m, _ in orders]
    return sum(v * RADIAL[n, abs(m)](r) * t for v, (m, n), t in zip(values, orders, turning, strict=True))


def even_values(terms: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return terms @ np.array([x ** (d - j) * y**j for d in EVEN_DEGREES for j in range(d + 1)])


def test_odd_phases_are_those_of_the_polynomials() -> None:
    values = RNG.normal(size=len(ODD_ORDERS))
    found = odd_phase(DISC.kx, DISC.ky, zernike_terms(values, odd=True)[None], STEP)
    np.testing.assert_allclose(found[0], direct(ODD_ORDERS, values, X, Y), atol=1e-12)


def test_even_phases_are_those_of_the_polynomials() -> None:
    values = RNG.normal(size=len(EVEN_ORDERS))
    found = even_values(zernike_terms(values, odd=False), X, Y)
    np.testing.assert_allclose(found, direct(EVEN_ORDERS, values, X, Y), atol=1e-12)


def test_a_short_list_is_one_with_zeros_and_a_long_one_is_refused() -> None:
    np.testing.assert_array_equal(zernike_terms([0.1], odd=True), zernike_terms([0.1, 0, 0], odd=True))
    with pytest.raises(ValueError, match="at most 9"):
        zernike_terms([0.1] * 10, odd=False)
    np.testing.assert_array_equal(zernike_terms([0.1] * 9 + [0], odd=False), zernike_terms([0.1] * 9, odd=False))


def test_no_beam_tilt_is_no_phase_whatever_the_voltage() -> None:
    np.testing.assert_array_equal(beam_tilt_terms((0.0, 0.0), 2.7e7, 0.0), np.zeros(12))


def test_beam_tilt() -> None:
    tilt = np.array([1.0, -0.6])
    found = odd_phase(DISC.kx, DISC.ky, beam_tilt_terms(tilt, 2.7e7, 300.0)[None], STEP)[0]
    expected = -2e-3 * np.pi * 2.7e7 * wavelength(300.0) ** 2 * (X**2 + Y**2) * (X * tilt[0] + Y * tilt[1])
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("degrees", "count"), [(ODD_DEGREES, ODD_TERMS), (EVEN_DEGREES, EVEN_TERMS)])
def test_magnified_polynomials_are_those_at_m_k(degrees: tuple[int, ...], count: int) -> None:
    terms, matrices = RNG.normal(size=(3, count)), np.eye(2) + RNG.normal(size=(3, 2, 2)) / 10
    changed = magnified(terms, matrices, degrees)
    for row in range(3):
        (x, y), monomials = matrices[row] @ np.array([X, Y]), [(d - j, j) for d in degrees for j in range(d + 1)]
        at_mk = sum(t * x**a * y**b for t, (a, b) in zip(terms[row], monomials, strict=True))
        at_k = sum(t * X**a * Y**b for t, (a, b) in zip(changed[row], monomials, strict=True))
        np.testing.assert_allclose(at_k, at_mk, atol=1e-12)


def test_aberrated_ctf_is_the_image_model_written_out() -> None:
    u, v, angle, b = (np.array([value]) for value in (1.6e4, 1.5e4, 0.7, 30.0))
    values = RNG.normal(size=len(EVEN_ORDERS)) * [0.1, 2, 2, 2, 5, 5, 5, 5, 5]
    plain = ctf_terms(
        voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1,
        defocus_u=u, defocus_v=v, defocus_angle=angle, b_factor=b,
    )  # fmt: skip
    terms = aberrated(plain, zernike_terms(values, odd=False)[None], MATRIX[None])
    x, y = MATRIX @ np.array([X, Y])
    lam, s, along = float(wavelength(300.0)), np.hypot(x, y), np.arctan2(y, x) - angle
    defocus = u * np.cos(along) ** 2 + v * np.sin(along) ** 2
    chi = np.pi * lam * defocus * s**2 - np.pi / 2 * 2.7e7 * lam**3 * s**4 + np.arcsin(0.1)
    expected = np.exp(-b / 4 * s**2) * np.sin(chi - direct(EVEN_ORDERS, values, x, y))
    np.testing.assert_allclose(ctf_values(DISC.kx, DISC.ky, terms, STEP)[0], expected, atol=1e-4)


def test_no_aberration_changes_nothing() -> None:
    terms = RNG.normal(size=(2, 12))
    np.testing.assert_array_equal(aberrated(terms, np.zeros((2, 9)), np.tile(np.eye(2), (2, 1, 1))), terms)
