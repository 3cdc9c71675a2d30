"""Sums within cones, against those of the full complex transform and of whole shells."""

import numpy as np
import pytest
from scipy import fft

from cloudem.kernels.cones import cone_products
from cloudem.kernels.correlation import shell_products
from cloudem.model.poses import sphere_directions

FUNCTIONS = [cone_products.reference, cone_products.twin("_numba")]
COSINE = float(np.cos(np.deg2rad(20)))


def transforms(box: int) -> tuple[np.ndarray, ...]:
    return tuple(fft.rfftn(v) for v in np.random.default_rng(box).standard_normal((2, box, box, box)).astype("f4"))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("box", [8, 18])
def test_products_are_those_of_the_full_sphere(function, box):
    """In float64; frequencies of Nyquist, which have no sign, are left out. The float32 input allows 1e-5."""
    a, b = np.random.default_rng(box).standard_normal((2, box, box, box))
    fa, fb = np.fft.fftn(a), np.fft.fftn(b)
    k = np.stack(np.meshgrid(*[np.fft.fftfreq(box, 1 / box)] * 3, indexing="ij")[::-1], -1)  # x, y, z
    length = np.linalg.norm(k, axis=-1)
    directions, last = sphere_directions(0.5), box // 2 - 1
    got = function(*(fft.rfftn(v.astype(np.float32)) for v in (a, b)), np.arange(box), directions, COSINE, last)
    assert got.shape == (3, len(directions), last + 1)
    assert got.dtype == np.float64
    for number, direction in enumerate(directions):
        inside = (np.abs(k @ direction) >= COSINE * length) & (np.rint(length) <= last)
        shells = np.rint(length[inside]).astype(int)
        for kind, product in enumerate(((fa * fb.conj()).real, abs(fa) ** 2, abs(fb) ** 2)):
            wanted = np.bincount(shells, product[inside], last + 1)
            np.testing.assert_allclose(got[kind, number], wanted, rtol=1e-5, atol=1e-5 * abs(fa).max() ** 2)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_cone_of_90_degrees_is_the_shell(function):
    a, b = transforms(12)
    got = function(a, b, np.arange(12), np.array([[0.6, 0.0, 0.8]]), 0.0, 6)
    np.testing.assert_allclose(got[:, 0], shell_products(a, b), rtol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rows_add_up_to_the_whole(function):
    a, b = transforms(10)
    directions, ky = sphere_directions(0.6), np.array([0, 1, 2, 3, 4, -5, -4, -3, -2, -1])
    whole = function(a, b, ky, directions, COSINE, 5)
    parts = [function(a[:, s], b[:, s], ky[s], directions, COSINE, 5) for s in (slice(3), slice(3, 4), slice(4, 10))]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-9, atol=1e-9)


def test_the_twin_is_there_and_agrees():
    assert cone_products.twin("_numba") is not cone_products.reference
    a, b = transforms(16)
    one, other = (function(a, b, np.arange(16), sphere_directions(0.25), COSINE, 8) for function in FUNCTIONS)
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6 * one.max())
