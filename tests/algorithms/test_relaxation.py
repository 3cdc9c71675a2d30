"""Operators of a symmetric molecule gain nothing from images of it; those that are not its own do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cloudem.algorithms.relaxation import (
    FIRST_SHELL,
    Preferences,
    Verdict,
    Witnesses,
    join_witnesses,
    map_of_mates,
    matches,
    mate_weights,
    preferences,
    relaxed_map,
    verdict_from,
    witnesses,
)
from cloudem.kernels.ctf import ctf_terms, ctf_values
from cloudem.kernels.fourier import fill_half_disc, fourier_images, half_disc, real_images, sample_half_disc
from cloudem.kernels.slices import extract, padded_box
from cloudem.model.poses import random_rotations
from cloudem.model.symmetry import operators
from tests.algorithms.test_expectation import BOX, PIXEL, make_batch
from tests.phantom import Blobs, blobs

K_MAX, NOISE = 9, 1.5
FLAT = np.full(BOX // 2 + 1, 1.0)


def molecule(symmetry: str) -> Blobs:
    """Return blobs and their mates, as many in all whatever the group."""
    group = operators(symmetry)
    one = blobs(count=12 if len(group) == 1 else max(12 // len(group), 3), reach=9, sigma=(1.0, 1.5))
    centre = np.concatenate([one.centre @ operator.T for operator in group])
    return Blobs(np.tile(one.amplitude, len(group)), centre, np.tile(one.sigma, len(group)))


@cache
def images_of(symmetry: str, imposed: str, seed: int, count: int = 150) -> Witnesses:
    """Return images at their poses, each turned by an operator of the group that is imposed."""
    rng = np.random.default_rng(seed)
    disc = half_disc(BOX, BOX // 2 - 1)
    rotations, shifts = random_rotations(count, rng), rng.normal(0, 0.7, (count, 2))
    u = rng.uniform(1e4, 2e4, count)
    terms = ctf_terms(
        voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, defocus_u=u, defocus_v=u, defocus_angle=0 * u
    )
    scale = rng.uniform(0.6, 1.4, count)  # better and worse ones must not sort themselves
    signal = molecule(symmetry).slices(rotations, disc.kx, disc.ky, BOX)
    signal *= scale[:, None] * ctf_values(disc.kx, disc.ky, terms, 1 / (BOX * PIXEL))
    signal *= np.exp(-2j * np.pi / BOX * (shifts[:, :1] * disc.kx + shifts[:, 1:] * disc.ky))
    images = real_images(fill_half_disc(signal.astype(np.complex64), disc, BOX))
    images += (NOISE * rng.standard_normal(images.shape)).astype(np.float32)
    batch = make_batch(images, terms, np.ones(count), np.zeros(count, np.int32))
    group = operators(imposed)
    turned = rotations @ group[rng.integers(len(group), size=count)]
    inverse = np.full((count, BOX // 2 + 1), 2 / (BOX * NOISE) ** 2, np.float32)
    return witnesses(batch, turned, shifts, inverse, K_MAX, PIXEL)


def asked(symmetry: str, imposed: str) -> Verdict:
    group = operators(imposed)
    halves = [images_of(symmetry, imposed, seed) for seed in (1, 2)]
    maps = [relaxed_map(half, group, FLAT, 0) for half in halves]
    return verdict_from([preferences(halves[h], maps[1 - h], group) for h in (0, 1)])


@pytest.mark.parametrize("symmetry", ["C2", "D2", "C7", "O"])
def test_a_group_of_the_molecule_is_borne_out(symmetry: str) -> None:
    verdict = asked(symmetry, symmetry)
    assert not verdict.broken
    assert verdict.share.max() < 0.04
    if symmetry != "O":  # three images for each of its mates leave gaps in a map, which shells share a little
        assert np.abs(verdict.luck).max() < 4.5
    assert verdict.share[0] == verdict.luck[0] == 0


@pytest.mark.parametrize(("symmetry", "imposed"), [("C1", "C2"), ("C2", "D2"), ("C4", "D4"), ("C1", "T")])
def test_a_group_that_is_not_the_molecules_is_contradicted(symmetry: str, imposed: str) -> None:
    verdict = asked(symmetry, imposed)
    group, own = operators(imposed), operators(symmetry)
    inside = np.array([np.abs(own - operator).max(axis=(1, 2)).min() < 1e-6 for operator in group])
    assert verdict.broken
    np.testing.assert_array_equal(verdict.kept(), np.flatnonzero(inside))
    assert verdict.luck[~inside].min() > 6
    assert verdict.share[~inside].min() > 0.15
    assert verdict.confirmed[~inside].min() > 0.4


def test_products_are_those_of_slices_without_their_common_part() -> None:
    group = operators("D2")
    images = images_of("C1", "D2", 4, 6)
    volume = map_of_mates(images, np.eye(4)[np.arange(6) % 4], group, FLAT)
    ((rows, match),) = list(matches(images, volume, group))
    assert rows == slice(0, 512)
    padding, shell = padded_box(images.box) / images.box, images.disc.shell
    for i, rotation in enumerate(images.axes):
        slices = extract(volume, rotation @ group, images.disc.kx, images.disc.ky, padding).astype(np.complex128)
        mean, precision = slices.mean(axis=0), images.denominators[i].astype(float)
        for k in range(1, K_MAX + 1):
            on = shell == k
            size = np.sum(precision[on] * np.abs(mean[on]) ** 2)
            onto = np.sum((precision * slices * mean.conj())[:, on].real, axis=1) / size
            rest = slices[:, on] - onto[:, None] * mean[on]
            product = np.sum(images.numerators[i, on] * rest.conj(), axis=1).real
            norm = np.sum(precision[on] * np.abs(rest) ** 2, axis=1)
            top = np.abs(match.product[i]).max()
            np.testing.assert_allclose(match.product[i, :, k - 1], product, atol=1e-5 * top)
            np.testing.assert_allclose(match.norm[i, :, k - 1], norm, atol=1e-5 * match.norm[i].max())
            common = np.sum(images.numerators[i, on] * mean[on].conj()).real
            np.testing.assert_allclose(match.common[i, k - 1], common, atol=1e-5 * np.abs(match.common).max())


def test_images_are_weighed_as_they_are_where_the_pose_says() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((2, BOX, BOX)).astype(np.float32)
    terms = ctf_terms(
        voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1, defocus_u=np.full(2, 1e4),
        defocus_v=np.full(2, 1.1e4), defocus_angle=np.zeros(2),
    )  # fmt: skip
    scale, shifts = np.array([1.0, 0.5]), np.array([[2.0, 0.0], [0.0, -1.0]])
    batch = make_batch(pictures, terms, scale, np.zeros(2, np.int32))
    inverse = rng.uniform(1, 2, (2, BOX // 2 + 1)).astype(np.float32)
    found = witnesses(batch, random_rotations(2, rng), shifts, inverse, K_MAX, PIXEL)
    disc = found.disc
    centred = np.stack([np.roll(pictures[0], -2, axis=1), np.roll(pictures[1], 1, axis=0)])
    ctf = scale[:, None] * ctf_values(disc.kx, disc.ky, terms, 1 / (BOX * PIXEL)).astype(float)
    expected = sample_half_disc(fourier_images(centred), disc) * ctf * inverse[:, disc.shell]
    np.testing.assert_allclose(found.numerators, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(found.denominators, ctf**2 * inverse[:, disc.shell], rtol=1e-4, atol=1e-6)
    assert np.all(np.diff(disc.shell) >= 0)
    assert set(disc.shell) == set(range(1, K_MAX + 1))


def test_images_choose_the_mate_that_they_are() -> None:
    group = operators("C4")
    rng = np.random.default_rng(3)
    images = images_of("C1", "C1", 6, 400)
    mate = rng.integers(4, size=400)
    volume = map_of_mates(images.take(slice(0, 300)), np.eye(4)[np.zeros(300, int)], group, FLAT)
    # an image at R g is its own mate at the inverse of g
    turned = replace(images, axes=images.axes @ group[mate]).take(slice(300, 400))
    chosen = mate_weights(turned, volume, group).argmax(axis=1)
    right = np.abs(group[mate[300:]] @ group[chosen] - np.eye(3)).max(axis=(1, 2)) < 1e-6
    assert np.mean(right) > 0.9


def test_images_of_noise_say_nothing() -> None:
    group, rng = operators("D2"), np.random.default_rng(2)
    halves = []
    for seed in (1, 2):
        images = images_of("C1", "D2", seed)
        shape = images.numerators.shape
        noise = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
        noise *= np.sqrt(images.denominators)
        halves.append(replace(images, numerators=noise.astype(np.complex64)))
    maps = [relaxed_map(half, group, 0.2 * FLAT, 0) for half in halves]
    verdict = verdict_from([preferences(halves[h], maps[1 - h], group) for h in (0, 1)])
    assert np.abs(verdict.luck).max() < 4
    assert not verdict.broken


def test_rows_that_are_joined_say_what_they_said_apart() -> None:
    group = operators("C2")
    images = images_of("C1", "C2", 1)
    volume = relaxed_map(images, group, FLAT, 0)
    parts = [images.take(slice(0, 70)), images.take(slice(70, None))]
    whole = preferences(images, volume, group)
    np.testing.assert_array_equal(preferences(join_witnesses(*parts), volume, group).gain, whole.gain)
    apart = [preferences(part, volume, group) for part in parts]
    np.testing.assert_allclose(np.concatenate([part.gain for part in apart]), whole.gain, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(verdict_from(apart).share, verdict_from([whole]).share, rtol=1e-5)
    np.testing.assert_array_equal(relaxed_map(images, group, FLAT, 0), volume)


def test_a_verdict_needs_a_share_and_certainty() -> None:
    gain = np.zeros((100, 3))
    gain[:, 1] = 0.03
    gain[:5, 2] = 10.0
    verdict = verdict_from([Preferences(gain, np.ones(100), np.full(100, 0.5))])
    np.testing.assert_allclose(verdict.share, [0, 0.03, 0.5])
    np.testing.assert_allclose(verdict.confirmed, [0, 0.06, 1])
    np.testing.assert_allclose(verdict.luck, [0, 10, 5**0.5])
    assert not verdict.broken  # the one is small, the other is five images
    gain[:, 2] = 0.5
    verdict = verdict_from([Preferences(gain, np.ones(100), np.full(100, 0.5))])
    assert verdict.broken
    assert verdict.kept().tolist() == [0, 1]
    assert not verdict_from(
        [Preferences(gain, np.ones(100), np.full(100, 5.0))]
    ).broken  # most of the asymmetry is noise
    assert FIRST_SHELL > 1
