"""A map that is larger than another one is found to be, by how much, and not where it is another molecule or noise."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.algorithms.magnification import LARGEST_BOX, Magnification, coarse, magnification

BOX, PIXEL, RADIUS = 48, 4.0, 21.0


def scene(pixel_size: float, seed: int = 0, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Half-maps whose pixels are smaller than those of the reference say, and the reference."""
    molecule = demo_molecule(160.0, seed=0)
    density = density_of_atoms(molecule, BOX, pixel_size)
    rng = np.random.default_rng(seed)
    halves = density + noise * density.std() * rng.standard_normal((2, BOX, BOX, BOX)).astype(np.float32)
    return halves, coarse(density_of_atoms(molecule, BOX, PIXEL))


@pytest.mark.parametrize("factor", [0.93, 0.97, 1.0, 1.02, 1.06])
def test_the_factor_is_that_of_the_pixel_sizes(factor: float) -> None:
    halves, reference = scene(PIXEL / factor, noise=0.3)
    found = magnification(halves, reference, RADIUS)
    assert found.factor == pytest.approx(factor, abs=0.002 + 0.05 * abs(factor - 1))  # rather too near 1
    assert found.differs == (factor != 1.0)
    assert found.agreement >= found.as_given - 1e-3


def test_the_scale_of_densities_and_the_noise_of_halves_mean_nothing() -> None:
    halves, reference = scene(PIXEL / 1.05)
    found = magnification(halves, reference, RADIUS)
    assert magnification(7 * halves, 0.1 * reference, RADIUS).factor == pytest.approx(found.factor, abs=1e-4)
    assert found.error < 1e-6


def test_of_noise_and_of_another_molecule_nothing_is_said() -> None:
    halves, reference = scene(PIXEL / 1.05, noise=0.3)
    other = coarse(density_of_atoms(demo_molecule(160.0, seed=9), BOX, PIXEL))
    noise = np.random.default_rng(3).standard_normal(halves.shape)
    assert not magnification(halves, other, RADIUS).differs
    assert not magnification(noise, reference, RADIUS).differs


def test_a_large_map_is_compared_on_a_coarse_grid() -> None:
    large = density_of_atoms(demo_molecule(160.0, seed=0), 96, 2.0)
    small = coarse(large)
    assert small.shape == (LARGEST_BOX,) * 3
    # Fourier cropping keeps the mean of the density, and the particle's place
    assert float(small.mean()) == pytest.approx(float(large.mean()), rel=1e-3)
    found = magnification(np.stack([large, large]), small, 40.0)
    assert found.factor == pytest.approx(1.0, abs=1e-3)
    assert found.agreement == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("factor", "agreement", "said"), [(1.05, 0.8, True), (1.05, 0.45, False), (1.099, 0.8, False)])
def test_what_hardly_agrees_or_lies_beyond_what_is_tried_says_nothing(
    factor: float, agreement: float, said: bool
) -> None:
    assert Magnification(factor, 0.001, agreement, 0.2).differs == said
