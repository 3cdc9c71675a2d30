"""Reconstruction along the Ewald sphere, from images that were evaluated in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.aberrations import Aberrations
from cloudem.algorithms.align import start_poses
from cloudem.algorithms.batch import Batch, insert_known
from cloudem.algorithms.ewald import Curvature, insert_sphere
from cloudem.algorithms.reconstruct import Sums, empty_sums, solve
from cloudem.kernels.aberrations import aberrated
from cloudem.kernels.ctf import ctf_terms
from cloudem.kernels.fourier import fill_half_disc, half_disc, real_images
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.kernels.slices import complete_friedel
from cloudem.model.poses import random_rotations
from tests.phantom import blobs

BOX, PIXEL, COUNT, K_MAX = 32, 2.0, 400, 14
LENGTH = BOX * PIXEL
VOLTAGE = 0.15
"""kV. The depth of field is that of 300 kV for particles 50 times as large."""
WAVELENGTH = 12.2643247 / np.sqrt(150 * (1 + 0.978466e-6 * 150))
PHANTOM = blobs(count=20, reach=10, sigma=(0.9, 1.3))
STRETCH = np.array([[1.02, 0.01], [0.01, 0.985]])


def curved_images(
    magnification: np.ndarray, voltage: float = VOLTAGE, wavelength: float = WAVELENGTH
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images in which a sample lies at ``+λ κ² / 2`` for the sideband of ``exp(iχ)``: plain float64."""
    rng = np.random.default_rng(7)
    rotations, shifts = random_rotations(COUNT, rng), rng.normal(0, 1.5, (COUNT, 2))
    defocus = rng.uniform(500.0, 2000.0, COUNT)
    disc = half_disc(BOX, BOX // 2 - 1)
    kappa = magnification @ np.array([disc.kx, disc.ky]) / LENGTH  # 1/Å
    square = (kappa**2).sum(axis=0)
    phase = (
        np.pi * wavelength * defocus[:, None] * square - np.pi / 2 * 1e5 * wavelength**3 * square**2 + np.arcsin(0.1)
    )
    sides = []
    for sign in (1, -1):
        point = np.concatenate([kappa, sign * wavelength / 2 * square[None]]) * LENGTH
        sides.append(np.array([PHANTOM.transform((A.T @ point).T, BOX) for A in rotations]))
    values = (np.exp(1j * phase) * sides[0] - np.exp(-1j * phase) * sides[1]) / 2j
    values *= np.exp(-2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    images = real_images(fill_half_disc(values.astype(np.complex64), disc, BOX)).astype(np.float32)
    return images, rotations, shifts, defocus


def batch_of(made: tuple[np.ndarray, ...], magnification: np.ndarray, voltage: float = VOLTAGE) -> Batch:
    images, rotations, shifts, defocus = made
    terms = ctf_terms(
        voltage=voltage, spherical_aberration=1e5, amplitude_contrast=0.1, defocus_u=defocus, defocus_v=defocus,
        defocus_angle=np.zeros(COUNT),
    )  # fmt: skip
    matrices = np.repeat(magnification[None], COUNT, axis=0)
    terms = aberrated(terms, np.zeros((COUNT, 9)), matrices)
    poses = start_poses(np.arange(COUNT), rotations, shifts)
    stretched = None if np.array_equal(magnification, np.eye(2)) else magnification[None]
    group = np.zeros(COUNT, np.int32)
    settled = np.ones(COUNT, bool)
    return Batch(images, terms, np.ones(COUNT), group, settled, poses, aberrations=Aberrations(None, stretched))


def solved(sums: Sums) -> np.ndarray:
    complete_friedel(sums.data)
    complete_friedel(sums.weight)
    return solve(sums, BOX, None, K_MAX, levelled=BOX // 2)


@pytest.mark.parametrize("magnification", [np.eye(2), STRETCH], ids=["unit", "stretched"])
def test_the_right_hand_gives_the_density_and_the_wrong_one_is_worse_than_none(magnification: np.ndarray) -> None:
    batch = batch_of(curved_images(magnification), magnification)
    truth = PHANTOM.density(BOX)
    curves = {}
    for name, reverse in (("flat", None), ("right", False), ("wrong", True)):
        sums = empty_sums(BOX, K_MAX)
        if reverse is None:
            insert_known(batch, PIXEL, K_MAX, sums)
        else:
            insert_sphere(batch, np.full(COUNT, VOLTAGE), Curvature(reverse, 50.0), PIXEL, K_MAX, sums)
        curves[name] = fourier_shell_correlation(solved(sums), truth)[1:K_MAX]
    assert curves["right"].min() > 0.98
    assert (curves["right"] > curves["flat"])[8:].all()
    assert (curves["flat"] > curves["wrong"])[8:].all()
    assert curves["flat"][-1] < 0.85
    assert curves["wrong"][-1] < 0.1


def test_a_flat_sphere_changes_nothing() -> None:
    """At 10¹⁵ V the CTF is all that is left of the wavelength: it comes with the batch."""
    batch = batch_of(curved_images(np.eye(2)), np.eye(2))
    flat, curved = empty_sums(BOX, K_MAX), empty_sums(BOX, K_MAX)
    insert_known(batch, PIXEL, K_MAX, flat)
    insert_sphere(batch, np.full(COUNT, 1e12), Curvature(False, 50.0), PIXEL, K_MAX, curved)
    np.testing.assert_allclose(curved.data, flat.data, atol=2e-4 * np.abs(flat.data).max())
    np.testing.assert_allclose(curved.weight, flat.weight, atol=2e-4 * flat.weight.max())
