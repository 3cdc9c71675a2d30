import numpy as np
import pytest
from scipy import fft

from cloudem.kernels.correlation import shell_products, turn_phases
from cloudem.kernels.fourier import shell_index


@pytest.mark.parametrize("function", [shell_products.reference, shell_products.twin("_numba")])
@pytest.mark.parametrize("box", [8, 18])
def test_products_are_those_of_the_full_sphere(function, box):
    """Against sums over the full complex transform in float64; the float32 input allows 1e-6."""
    a, b = np.random.default_rng(box).standard_normal((2, box, box, box))
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    k = np.fft.fftfreq(box, 1 / box)
    shells = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int).ravel()
    wanted = [
        np.bincount(shells, product.ravel())[: box // 2 + 1]
        for product in ((fa * fb.conj()).real, abs(fa) ** 2, abs(fb) ** 2)
    ]
    got = function(fft.rfftn(a.astype(np.float32)), fft.rfftn(b.astype(np.float32)))
    assert got.shape == (3, box // 2 + 1)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * wanted[1][-1])


def test_the_twin_is_there_and_shells_are_those_of_the_others():
    assert shell_products.twin("_numba") is not shell_products.reference
    one = np.ones((12, 12, 7), np.complex64)
    mates = np.full(7, 2.0)
    mates[[0, -1]] = 1.0
    counts = np.bincount(shell_index(12).ravel(), np.broadcast_to(mates, one.shape).ravel())[:7]
    np.testing.assert_array_equal(shell_products(one, one)[1], counts)


@pytest.mark.parametrize("function", [shell_products.reference, shell_products.twin("_numba")])
def test_rows_add_up_to_the_whole(function):
    a, b = (fft.rfftn(v) for v in np.random.default_rng(0).standard_normal((2, 10, 10, 10)).astype(np.float32))
    ky = np.array([0, 1, 2, 3, 4, -5, -4, -3, -2, -1])
    parts = [function(a[:, rows], b[:, rows], ky[rows]) for rows in (slice(3), slice(3, 4), slice(4, 10))]
    np.testing.assert_allclose(sum(parts), function(a, b), rtol=1e-9)
    narrow = function(a[:, 5:6, :3], b[:, 5:6, :3], ky[5:6])  # beyond kx = 2 no shell up to 5 is
    np.testing.assert_allclose(narrow, function(a[:, 5:6], b[:, 5:6], ky[5:6]), rtol=1e-9)
    assert narrow.shape == (3, 6)


@pytest.mark.parametrize("function", [turn_phases.reference, turn_phases.twin("_numba")])
@pytest.mark.parametrize("box", [8, 12])
def test_turned_phases_leave_amplitudes_low_shells_and_a_real_volume(function, box):
    spectrum = fft.rfftn(np.random.default_rng(box).standard_normal((box,) * 3).astype(np.float32))
    turned, ky = spectrum.copy(), np.rint(np.fft.fftfreq(box, 1 / box)).astype(np.int64)
    function(turned, ky, 3, 5)
    np.testing.assert_allclose(abs(turned), abs(spectrum), rtol=1e-5)
    low = shell_index(box) < 3
    np.testing.assert_array_equal(turned[low], spectrum[low])
    # transforms of real volumes only come back from their inverse
    np.testing.assert_allclose(fft.rfftn(fft.irfftn(turned, s=(box,) * 3)), turned, atol=1e-4)
    phase = np.angle(turned / spectrum)[~low & (np.arange(box // 2 + 1) > 0) & (np.arange(box // 2 + 1) < box // 2)]
    assert abs(np.mean(np.exp(1j * phase))) < 4 / np.sqrt(len(phase))
    assert np.histogram(phase, 4, (-np.pi, np.pi))[0].min() > 0.15 * len(phase)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_phases_depend_on_place_and_seed_alone(seed):
    box, ky = 10, np.array([0, 1, 2, 3, 4, -5, -4, -3, -2, -1])
    spectrum = fft.rfftn(np.random.default_rng(3).standard_normal((box,) * 3).astype(np.float32))
    at_once, parts, plain, other = (spectrum.copy() for _ in range(4))
    turn_phases(at_once, ky, 2, seed)
    for rows in (slice(4), slice(4, 10)):
        part = parts[:, rows].copy()
        turn_phases(part, ky[rows], 2, seed)
        parts[:, rows] = part
    turn_phases.reference(plain, ky, 2, seed)
    turn_phases(other, ky, 2, seed + 1)
    np.testing.assert_array_equal(at_once, parts)
    np.testing.assert_allclose(at_once, plain, atol=1e-5)
    assert abs(np.angle(at_once / other)).mean() > 1
