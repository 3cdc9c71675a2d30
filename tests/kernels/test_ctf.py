import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.kernels.ctf import ctf, ctf_terms, ctf_values, wavelength
from cloudem.kernels.fourier import half_disc
from tests.conftest import Twin

BOX, PIXEL = 48, 1.1
DISC = half_disc(BOX, BOX // 2 - 1)
OPTICS = {"voltage": 300.0, "spherical_aberration": 2.7e7, "amplitude_contrast": 0.1}


def one(u: float, v: float, angle: float = 0.0, **more: float) -> dict[str, np.ndarray]:
    given = {"defocus_u": np.array([u]), "defocus_v": np.array([v]), "defocus_angle": np.array([angle])}
    return {**OPTICS, **given, **more}


def written_out(u: float, v: float, angle: float, phase_shift: float, b_factor: float) -> np.ndarray:
    """Return the CTF from the electron's mass, charge and the aberration function, pixel by pixel."""
    h, e, m, c = 6.62607015e-34, 1.602176634e-19, 9.1093837015e-31, 299792458.0
    energy = e * 300e3
    lam = 1e10 * h * c / np.sqrt(energy * (energy + 2 * m * c * c))
    values = []
    for kx, ky in zip(DISC.kx, DISC.ky, strict=True):
        s = np.hypot(kx, ky) / (BOX * PIXEL)
        along = np.arctan2(ky, kx) - angle
        defocus = u * np.cos(along) ** 2 + v * np.sin(along) ** 2
        chi = 2 * np.pi * (defocus * lam * s**2 / 2 - 2.7e7 * lam**3 * s**4 / 4)
        wave = np.sqrt(1 - 0.1**2) * np.sin(chi + phase_shift) + 0.1 * np.cos(chi + phase_shift)
        values.append(wave * np.exp(-b_factor / 4 * s**2))
    return np.array(values)


def test_wavelength_of_the_usual_microscopes() -> None:
    # International Tables for Crystallography C, table 4.3.1.1
    for voltage, table in ((100, 0.0370144), (200, 0.0250793), (300, 0.0196875)):
        assert abs(wavelength(voltage) / table - 1) < 2e-5


@pytest.mark.parametrize(
    ("u", "v", "angle", "phase_shift", "b_factor"),
    [(1.5e4, 1.5e4, 0, 0, 0), (2.5e4, 2.2e4, 0.6, 0, 80), (0.7e4, 0.9e4, 2.5, np.pi / 2, 0), (-3e3, -4e3, -1, 0.3, 10)],
)
def test_agrees_with_the_aberration_function(
    u: float, v: float, angle: float, phase_shift: float, b_factor: float
) -> None:
    values = ctf(DISC.kx, DISC.ky, PIXEL, BOX, **one(u, v, angle, phase_shift=phase_shift, b_factor=b_factor))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[0], written_out(u, v, angle, phase_shift, b_factor), atol=1e-3)


def test_signs() -> None:
    origin = np.zeros(1, np.int32)
    flat = one(1e4, 1e4)
    assert np.isclose(ctf(origin, origin, PIXEL, BOX, **flat)[0, 0], 0.1)  # protein is bright
    low = half_disc(BOX, 2)
    assert np.all(ctf(low.kx, low.ky, PIXEL, BOX, **flat) > 0.1)  # underfocus keeps that sign and adds to it
    over = ctf(low.kx, low.ky, PIXEL, BOX, **one(-2e4, -2e4))
    assert np.all(over < 0.1)


def test_first_zero_lies_where_the_defocus_puts_it() -> None:
    along_x, along_y = (np.linspace(0.1, 20, 2000), np.zeros(2000)), (np.zeros(2000), np.linspace(0.1, 20, 2000))
    zeros = []
    for kx, ky in (along_x, along_y):
        values = ctf(kx, ky, PIXEL, BOX, **one(3e4, 1.5e4, 0.0))[0]
        s = np.hypot(kx, ky)[np.argmax(values < 0)] / (BOX * PIXEL)
        zeros.append(s)
    phase = (np.pi - np.arcsin(0.1)) / np.pi
    # the Cs term is 1 to 2 % here
    np.testing.assert_allclose(zeros, np.sqrt(phase / (wavelength(300) * np.array([3e4, 1.5e4]))), rtol=0.02)


@given(u=st.floats(5e3, 3e4), difference=st.floats(-3e3, 3e3), angle=st.floats(-3, 3))
def test_exchanging_the_axes_is_a_quarter_turn(u: float, difference: float, angle: float) -> None:
    first = ctf(DISC.kx, DISC.ky, PIXEL, BOX, **one(u, u + difference, angle))
    second = ctf(DISC.kx, DISC.ky, PIXEL, BOX, **one(u + difference, u, angle + np.pi / 2))
    np.testing.assert_allclose(first, second, atol=1e-4)


def test_twins_agree(twin: Twin) -> None:
    rng = np.random.default_rng(0)
    u = rng.uniform(5e3, 4e4, 20)
    terms = ctf_terms(
        **OPTICS, defocus_u=u, defocus_v=u + rng.normal(0, 500, 20), defocus_angle=rng.uniform(0, 6, 20),
        phase_shift=rng.uniform(0, 2, 20), b_factor=np.where(np.arange(20) % 2, 50.0, 0.0),
    )  # fmt: skip
    values = twin(ctf_values)(DISC.kx, DISC.ky, terms, 1 / (BOX * PIXEL))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, ctf_values.reference(DISC.kx, DISC.ky, terms, 1 / (BOX * PIXEL)), atol=4e-6)


def test_scale_and_optics_by_image() -> None:
    u = np.array([1e4, 2e4])
    both = ctf(
        DISC.kx, DISC.ky, PIXEL, BOX, voltage=np.array([300.0, 200.0]), spherical_aberration=np.array([2.7e7, 1e5]),
        amplitude_contrast=np.array([0.1, 0.07]), defocus_u=u, defocus_v=u, defocus_angle=0 * u,
        scale=np.array([1, 0.5]),
    )  # fmt: skip
    second = ctf(
        DISC.kx, DISC.ky, PIXEL, BOX, voltage=200.0, spherical_aberration=1e5, amplitude_contrast=0.07,
        defocus_u=u[1:], defocus_v=u[1:], defocus_angle=u[1:] * 0,
    )  # fmt: skip
    np.testing.assert_allclose(both[1], 0.5 * second[0], atol=1e-6)
    assert both.dtype == np.float32
