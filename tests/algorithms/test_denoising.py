"""Denoising by even and odd frames: the specimen comes out, noise becomes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.algorithms.denoising import denoise_pair
from cloudem.algorithms.picking import MicroscopeState
from cloudem.algorithms.picking_templates import transfer_of
from cloudem.errors import InconsistentDataError

SHAPE, PIXEL = (400, 420), 3.0
STATE = MicroscopeState(300.0, 2.7e7, 0.1, 15_000.0, 15_500.0, 0.3, 0.0)


def specimen(seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    image = np.zeros(SHAPE)
    for py, px in rng.uniform(30, 370, (40, 2)):
        radius = np.hypot(y - py, x - px)
        image += (radius < 20) & (radius > 12)
    return image.astype(np.float32)


def pair(image: NDArray[np.float32], deviation: float, seed: int) -> list[NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return [(image + deviation * rng.standard_normal(SHAPE)).astype(np.float32) for _ in range(2)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_specimen_comes_out_of_noise_and_of_the_ctf(seed: int) -> None:
    image = specimen(seed)
    seen = np.fft.irfft2(np.fft.rfft2(image) * transfer_of(SHAPE, PIXEL, STATE), s=SHAPE).astype(np.float32)
    sums = pair(seen, float(4 * seen.std()), seed)
    made = denoise_pair(*sums, PIXEL, STATE)
    before = np.corrcoef((sums[0] + sums[1]).ravel(), image.ravel())[0, 1]
    after = np.corrcoef(made.image.ravel(), image.ravel())[0, 1]
    assert after > 0.7 > 0.4 > before
    assert made.hallucination < 0.01
    assert 2 * PIXEL < made.resolution < 60
    assert abs(denoise_pair(*sums, PIXEL).image).max() > 0


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_becomes_nothing(seed: int) -> None:
    white = pair(np.zeros(SHAPE, np.float32), 1.0, seed)
    made = denoise_pair(*white, PIXEL, STATE, seed)
    power = (made.image.astype(np.float64) ** 2).sum() / ((white[0] + white[1]).astype(np.float64) ** 2).sum() * 4
    assert power < 0.01
    assert made.hallucination < 0.01
    with pytest.raises(InconsistentDataError, match="must be alike"):
        denoise_pair(white[0], white[1][:-1], PIXEL)
