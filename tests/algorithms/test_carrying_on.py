"""A coarse map becomes a finer one with its images, and one of noise does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cloudem.algorithms.batch import Batch
from cloudem.algorithms.carrying_on import Carried, carried_on, carrying_settings
from cloudem.algorithms.resolution import low_pass
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.symmetry import operators
from tests.algorithms.test_expectation import BOX, PHANTOM, PIXEL, RADIUS, model_of, simulate

FIRST, LAST = 5, 12
SETTINGS = carrying_settings(BOX, PIXEL, RADIUS, 2.5, FIRST, LAST)
COARSE = low_pass(PHANTOM.density(BOX), PIXEL, BOX * PIXEL / 4)


def carried(batches: list[Batch]) -> Carried:
    return carried_on((batches[:2], batches[2:]), COARSE, SETTINGS, model_of().sigma2, operators("C1"))


def test_a_coarse_map_becomes_a_finer_one() -> None:
    found = carried([simulate(60, seed)[0] for seed in range(4)])
    truth = PHANTOM.density(BOX)
    before, after = (fourier_shell_correlation(volume, truth) for volume in (COARSE, found.volume))
    assert np.all(after[1:8] > 0.85)
    assert after[7:9].mean() > before[7:9].mean() + 0.3
    assert found.shell > FIRST
    assert FIRST <= found.limit <= LAST
    amplitude = np.vdot(found.volume, low_pass(truth, PIXEL, BOX * PIXEL / 8)) / np.vdot(truth, truth)
    assert 0.6 < amplitude < 1.2


def test_images_of_nothing_bring_it_no_further() -> None:
    batches = []
    for seed in range(4):
        batch = simulate(60, seed)[0]
        noise = np.random.default_rng(100 + seed).standard_normal(batch.images.shape).astype(np.float32)
        batches.append(replace(batch, images=noise * (1 + batch.optics_group[:, None, None]).astype(np.float32)))
    found = carried(batches)
    assert found.limit == FIRST
    assert found.shell < FIRST + 4
