import numpy as np
import pytest
from scipy import fft

from cloudem.kernels.correlation import shell_products
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
