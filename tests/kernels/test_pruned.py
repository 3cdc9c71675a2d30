"""Transforms of which only a part is kept, against whole ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.kernels.fourier import fourier_volume, real_volume
from cloudem.kernels.pruned import (
    columns_within,
    frequencies,
    mixed_to_planes,
    mixed_to_spectrum,
    planes_to_mixed,
    rows_within,
    slab_of,
    spectrum_to_mixed,
)

seeds = st.integers(0, 2**32 - 1)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def forward(volume: np.ndarray, size: int, rows: int, columns: int) -> np.ndarray:
    low = -(len(volume) // 2)
    return mixed_to_spectrum(planes_to_mixed(volume, low, low, size, rows, columns), low, size)


@given(box=st.sampled_from([8, 12, 18]), more=st.sampled_from([0, 2, 6]), reach=st.integers(1, 20), seed=seeds)
def test_forward_is_a_part_of_the_whole_transform(box: int, more: int, reach: int, seed: int) -> None:
    volume, size = noise(box, box, box, seed=seed), box + more
    padded = np.zeros((size, size, size), np.float32)
    low = size // 2 - box // 2
    padded[low : low + box, low : low + box, low : low + box] = volume
    rows, columns = rows_within(reach, size)
    kept = frequencies(rows) % size
    expected = fourier_volume(padded.astype(np.float64))[:, kept, :columns]
    found = forward(volume, size, rows, columns)
    assert found.dtype == np.complex64
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


@given(box=st.sampled_from([8, 12, 18]), more=st.sampled_from([0, 2, 6]), reach=st.integers(1, 20), seed=seeds)
def test_backward_is_a_part_of_the_whole_inverse(box: int, more: int, reach: int, seed: int) -> None:
    size = box + more
    rows, columns = rows_within(reach, size)
    spectrum = fourier_volume(noise(size, size, size, seed=seed))
    pruned = np.zeros_like(spectrum)
    kept = frequencies(rows) % size
    pruned[:, kept, :columns] = spectrum[:, kept, :columns]
    expected = real_volume(pruned.astype(np.complex128), box)
    mixed = spectrum_to_mixed(spectrum[:, kept, :columns].copy(), -(box // 2), box)
    found = mixed_to_planes(mixed, -(box // 2), -(box // 2), size, box, box)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("origin", [0, 6])
@given(planes=st.tuples(st.integers(0, 11), st.integers(0, 12)), rows=st.tuples(st.integers(0, 11), st.integers(0, 12)))
def test_what_is_zero_can_be_left_out(origin: int, planes: tuple[int, int], rows: tuple[int, int]) -> None:
    """Planes, rows and columns; the origin may be any voxel."""
    box, size = 12, 18
    (bottom, count), (top, height) = planes, rows
    part = np.s_[bottom : min(bottom + count, box), top : min(top + height, box), 2:]
    volume = np.zeros((box, box, box), np.float32)
    volume[part] = noise(*volume[part].shape)
    low = -origin
    whole = mixed_to_spectrum(planes_to_mixed(volume, low, low, size, 11, 6), low, size)
    mixed = planes_to_mixed(volume[part], 2 - origin, top - origin, size, 11, 6)
    np.testing.assert_allclose(mixed_to_spectrum(mixed, bottom - origin, size), whole, atol=1e-4)
    every = mixed_to_planes(spectrum_to_mixed(whole.copy(), low, box), low, low, size, box, box)
    back = spectrum_to_mixed(whole.copy(), bottom - origin, len(mixed))
    found = mixed_to_planes(back, 2 - origin, top - origin, size, volume[part].shape[1], box - 2)
    np.testing.assert_allclose(found, every[part], atol=1e-5)


@given(seed=seeds)
def test_a_whole_transform_is_that_of_scipy(seed: int) -> None:
    """The origin at the first voxel, nothing padded: there and back."""
    volume = noise(10, 10, 10, seed=seed)
    mixed = planes_to_mixed(volume, 0, 0, 10, 10, 6)
    spectrum = mixed_to_spectrum(mixed, 0, 10)
    np.testing.assert_allclose(spectrum, np.fft.rfftn(volume.astype(np.float64)), atol=1e-4)
    back = mixed_to_planes(spectrum_to_mixed(spectrum, 0, 10), 0, 0, 10, 10, 10)
    np.testing.assert_allclose(back, volume, atol=1e-5)


def test_all_frequencies_come_in_the_order_of_a_transform() -> None:
    np.testing.assert_array_equal(frequencies(6), [0, 1, 2, -3, -2, -1])
    np.testing.assert_array_equal(frequencies(5), [0, 1, 2, -2, -1])
    assert rows_within(4, 24) == (9, 5)
    assert rows_within(30, 24) == (23, 12)


@pytest.mark.parametrize("radius2", [0.0, 9.5, 25.0, 26.0])
def test_columns_hold_the_sphere(radius2: float) -> None:
    for ky in (np.array([0]), np.array([-5, -4]), np.array([3, 4])):
        held = [kx for kx in range(10) if any(kx * kx + k * k <= radius2 for k in ky)]
        assert columns_within(ky, radius2, 10) == len(held)
    assert columns_within(np.array([0]), 1e9, 7) == 7


def test_slabs_get_smaller_with_the_box() -> None:
    assert slab_of(24, 13) > slab_of(96, 49) > slab_of(384, 193) == slab_of(4000, 2001) == 1
