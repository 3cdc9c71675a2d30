"""The sampling compensation factor, against closed forms and its laws."""

import numpy as np
import pytest
import scipy.fft
from scipy.spatial.transform import Rotation

from cloudem.algorithms.sampling import MOST_VIEWS, sampling_compensation
from cloudem.model.symmetry import operators

C1 = operators("C1")


def even(count: int, seed: int = 0) -> np.ndarray:
    views = np.random.default_rng(seed).standard_normal((count, 3))
    return views / np.linalg.norm(views, axis=1, keepdims=True)


def ring(count: int) -> np.ndarray:
    """Views from all sides of the z axis."""
    angle = np.random.default_rng(1).uniform(0, 2 * np.pi, count)
    return np.stack([np.cos(angle), np.sin(angle), np.zeros(count)], 1)


@pytest.mark.parametrize("group", ["C1", "D7", "O", "I"])
def test_even_views_have_1(group):
    assert sampling_compensation(even(20_000), operators(group), 30) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(("count", "least"), [(100, 0.95), (1000, 0.97)])
def test_few_even_views_have_nearly_that(count, least):
    assert least < sampling_compensation(even(count), C1, 30) < 1


def test_views_from_all_sides_of_an_axis_have_8_over_pi_squared():
    """Sampling is (2 / pi) / sin(theta); the mean of its inverse is pi² / 8 (Baldwin & Lyumkis 2020, section 3)."""
    turned = ring(20_000) @ Rotation.from_euler("y", 1.0).as_matrix()
    for views in (ring(20_000), turned):
        assert sampling_compensation(views, C1, 40) == pytest.approx(8 / np.pi**2, abs=0.01)


def test_a_share_of_even_views_is_what_the_integral_says():
    """Side views and even ones: 1 / mean(1 / (a + (1 - a) (2 / pi) / sin theta)) over the sphere."""
    share, cosine = 0.3, (np.arange(20_000) + 0.5) / 20_000
    sampling = share + (1 - share) * 2 / np.pi / np.sqrt(1 - cosine**2)
    views = np.concatenate([even(6_000), ring(14_000)])
    assert sampling_compensation(views, C1, 40) == pytest.approx(1 / np.mean(1 / sampling), abs=0.01)


def test_views_along_one_axis_leave_nearly_nothing():
    top = np.tile([[0.0, 0.0, 1.0]], (5_000, 1))
    assert sampling_compensation(top, C1, 30) < 0.01
    some = np.concatenate([top, even(500)])
    assert 0.05 < sampling_compensation(some, C1, 30) < 0.3


def test_it_does_not_matter_which_of_equivalent_views_were_found():
    rng, group = np.random.default_rng(3), operators("D3")
    views = np.concatenate([even(1_000), ring(2_000)])
    other = np.einsum("pij,pj->pi", group[rng.integers(0, len(group), len(views))], views) * rng.choice(
        [-1, 1], (3000, 1)
    )
    assert sampling_compensation(other, group, 30) == pytest.approx(sampling_compensation(views, group, 30), abs=1e-3)


def test_views_that_are_not_known_are_left_out_and_more_than_enough_are_thinned():
    views = np.concatenate([ring(3_000), np.full((10, 3), np.nan)])
    assert sampling_compensation(views, C1, 30) == sampling_compensation(views[:3000], C1, 30)
    assert np.isnan(sampling_compensation(views[3000:], C1, 30))
    many = np.repeat(ring(MOST_VIEWS // 2), 4, axis=0)
    assert sampling_compensation(many, C1, 30) == sampling_compensation(many[::2], C1, 30)


def test_the_same_for_any_number_of_threads():
    found = []
    for threads in (1, 3):
        with scipy.fft.set_workers(threads):
            found.append(sampling_compensation(ring(10_000), C1, 25))
    assert found[0] == found[1]
