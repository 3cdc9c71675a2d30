"""Images on fewer pixels: against the plain sum over frequencies, and what must hold of any low-pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudem.algorithms.coarse import coarse_images
from cloudem.errors import ParameterError


def plain(image: np.ndarray, side: int, curve: np.ndarray) -> np.ndarray:
    """The image's waves below the coarse Nyquist frequency, each times the curve, where the coarse pixels lie."""
    box = len(image)
    y, x = np.mgrid[:box, :box]
    at = (np.arange(side) - side // 2) * box / side + box // 2  # the centre stays the centre
    found = np.zeros((side, side))
    below = range(-((side - 1) // 2), (side - 1) // 2 + 1) if side < box else range(-(box // 2), (box + 1) // 2)
    for ky in below:
        for kx in below:
            wave = (image * np.exp(-2j * np.pi * (ky * y + kx * x) / box)).sum() / box**2
            wave *= np.interp(np.hypot(ky, kx), np.arange(len(curve)), curve, right=0.0)
            found += (wave * np.exp(2j * np.pi * (ky * at[:, None] + kx * at) / box)).real
    return found


@pytest.mark.parametrize(("box", "side"), [(8, 8), (12, 8), (12, 7), (16, 4)])
def test_as_the_plain_sum(box: int, side: int) -> None:
    images = np.random.default_rng(box + side).standard_normal((3, box, box))
    curve = np.linspace(1.0, 0.2, box // 2 + 1)
    found = coarse_images(images.astype(np.float32), side, curve)
    np.testing.assert_allclose(found, [plain(image, side, curve) for image in images], atol=2e-6)


@given(st.integers(2, 20), st.integers(1, 20), st.floats(-5, 5))
def test_what_is_flat_stays_as_it_is(half: int, side: int, value: float) -> None:
    box = 2 * half
    side = min(side, box)
    found = coarse_images(np.full((2, box, box), value, np.float32), side)
    np.testing.assert_allclose(found, np.full((2, side, side), value), atol=1e-5)


def test_a_batch_is_as_its_images() -> None:
    images = np.random.default_rng(1).standard_normal((4, 10, 10)).astype(np.float32)
    together = coarse_images(images, 6)
    np.testing.assert_array_equal(together, np.concatenate([coarse_images(images[i : i + 1], 6) for i in range(4)]))


def test_more_pixels_than_there_are_are_refused() -> None:
    with pytest.raises(ParameterError, match="1 to 8 pixels"):
        coarse_images(np.zeros((1, 8, 8), np.float32), 9)
