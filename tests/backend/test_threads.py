"""Threads inside a task."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
import scipy.fft

from cloudem.backend.threads import over_slabs


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("count", "slab"), [(0, 3), (1, 3), (7, 3), (9, 3), (4, 10)])
def test_slabs_cover_the_range_in_order_whatever_the_threads(workers: int, count: int, slab: int) -> None:
    with scipy.fft.set_workers(workers):
        parts = over_slabs(lambda first, last: list(range(first, last)), count, slab)
    assert list(itertools.chain(*parts)) == list(range(count))
    assert all(len(part) == slab for part in parts[:-1])


def test_as_many_threads_work_as_scipy_is_told_and_none_begins_more() -> None:
    together = threading.Barrier(3, timeout=30)

    def work(first: int, last: int) -> int:
        together.wait()
        return scipy.fft.get_workers()

    with scipy.fft.set_workers(3):
        assert over_slabs(work, 3, 1) == [1, 1, 1]
    assert set(over_slabs(lambda *_: threading.get_ident(), 3, 1)) == {threading.get_ident()}


def test_an_error_comes_through() -> None:
    def work(first: int, last: int) -> None:
        if first == 2:
            raise ArithmeticError("the third")

    with scipy.fft.set_workers(2), pytest.raises(ArithmeticError, match="third"):
        over_slabs(work, 4, 1)


@pytest.mark.parametrize("size", [24, 50, 54])
def test_transforms_are_the_same_to_the_bit_for_any_number_of_threads(size: int) -> None:
    volume = np.random.default_rng(size).standard_normal((size, size - 3, size)).astype(np.float32)
    spectra, volumes = [], []
    for workers in (1, 2, 3):
        with scipy.fft.set_workers(workers):
            spectra.append(scipy.fft.rfftn(volume))
            volumes.append(scipy.fft.irfftn(spectra[0], s=volume.shape))
    for found in (spectra, volumes):
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])
