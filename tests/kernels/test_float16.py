"""Rows between half and single precision."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.kernels.float16 import narrow, widen
from tests.conftest import Twin


def test_every_half_becomes_the_single_of_its_value(twin: Twin) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)].reshape(2, -1)
    out = np.full((3, halves.shape[1]), 7, np.float32)
    twin(widen)(halves, np.array([1, 0]), np.array([0, 2]), out)
    np.testing.assert_array_equal(out[[2, 0]], halves.astype(np.float32))
    assert (out[1] == 7).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_singles_are_rounded_to_nearest_and_ties_to_even(twin: Twin, dtype: str) -> None:
    rng = np.random.default_rng(1)
    steps = np.arange(0x7BFF, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (steps[:-1] + steps[1:]) / 2  # exactly between two halves
    values = np.concatenate([ties, -ties, rng.standard_normal(1000, dtype=np.float32) * 1e-6]).astype(np.float32)
    source = np.stack([values, values[::-1]])
    out = np.empty((1, values.size), dtype)
    assert twin(narrow)(source, np.array([1]), out)
    np.testing.assert_array_equal(out[0], source[1].astype(dtype))


@pytest.mark.parametrize(("value", "fits"), [(65519.0, True), (65520.0, False), (np.nan, False), (-np.inf, False)])
def test_what_does_not_fit_is_said(twin: Twin, value: float, fits: bool) -> None:
    source = np.array([[1.0, value, 2.0]], np.float32)
    assert twin(narrow)(source, np.array([0]), np.empty((1, 3), np.float16)) is fits
