import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloudem.kernels.fourier import shell_index
from cloudem.kernels.shells import correlation, fourier_shell_correlation, shell_sums

seeds = st.integers(0, 2**32 - 1)


def volume(seed: int, box: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((box, box, box)).astype(np.float32)


@given(seed=seeds)
def test_a_volume_correlates_with_itself(seed: int) -> None:
    a = volume(seed)
    curve = fourier_shell_correlation(a, a)
    assert (curve.shape, curve.dtype) == ((9,), np.float64)
    np.testing.assert_allclose(curve, 1, atol=1e-6)
    np.testing.assert_allclose(fourier_shell_correlation(a, -2 * a), -1, atol=1e-6)


@given(seed=seeds)
def test_correlation_is_symmetric_bounded_and_free_of_scale(seed: int) -> None:
    a, b = volume(seed), volume(seed + 1)
    curve = fourier_shell_correlation(a, b)
    assert np.all(np.abs(curve) <= 1 + 1e-6)
    np.testing.assert_allclose(fourier_shell_correlation(b, a), curve, atol=1e-7)
    np.testing.assert_allclose(fourier_shell_correlation(3 * a, 0.1 * b), curve, atol=1e-6)


def test_correlation_agrees_with_a_full_sphere_written_out() -> None:
    a, b = volume(1, 12), volume(2, 12)
    fa, fb = (np.fft.fftn(v.astype(float)) for v in (a, b))
    k = np.fft.fftfreq(12, 1 / 12)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2))
    expected = []
    for s in range(7):
        these = shell == s
        power = np.sum(np.abs(fa[these]) ** 2) * np.sum(np.abs(fb[these]) ** 2)
        expected.append(np.sum(fa[these] * fb[these].conj()).real / np.sqrt(power))
    np.testing.assert_allclose(fourier_shell_correlation(a, b), expected, atol=1e-6)


def test_correlation_of_a_noisy_copy_is_its_signal_to_noise() -> None:
    a = volume(3, 48)
    noisy = a + 2 * volume(4, 48)
    np.testing.assert_allclose(fourier_shell_correlation(a, noisy)[10:], 1 / np.sqrt(5), atol=0.05)


def test_shells_without_power_correlate_to_zero() -> None:
    a = volume(5)
    np.testing.assert_array_equal(fourier_shell_correlation(a, np.zeros_like(a)), 0)
    np.testing.assert_array_equal(correlation(np.array([1.0]), np.array([-1.0]), np.array([1.0])), 0)


@given(seed=seeds, count=st.integers(1, 6))
def test_shell_sums_agree_with_a_loop(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, 3, 40)).astype(np.float32)
    shells = rng.integers(0, 6, 40).astype(np.int32)
    sums = shell_sums(values, shells, count)
    assert (sums.shape, sums.dtype) == ((2, 3, count), np.float64)
    for s in range(count):
        np.testing.assert_allclose(sums[..., s], values[..., shells == s].sum(axis=-1, dtype=float), atol=1e-9)


def test_splitting_a_batch_does_not_change_a_sum() -> None:
    shells = shell_index(8).ravel()
    values = np.random.default_rng(0).standard_normal((4, shells.size))
    whole = shell_sums(values.sum(axis=0)[None], shells, 5)[0]
    parts = shell_sums(values[:1], shells, 5).sum(axis=0) + shell_sums(values[1:], shells, 5).sum(axis=0)
    np.testing.assert_allclose(whole, parts, atol=1e-9)
