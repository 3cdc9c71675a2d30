"""Picking: images made small and even, templates, thresholds, and what is no particle."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cloudem.algorithms.picking import (
    MicroscopeState,
    ReducedImage,
    candidates_of,
    correlate,
    disc_templates,
    even_image,
    filled_edges,
    phase_randomised,
    reduce_image,
)
from cloudem.algorithms.picking_model import learn_model, pick_image
from cloudem.algorithms.picking_templates import (
    template_score,
    transfer_of,
    turned_templates,
    views_of_averages,
    views_of_map,
)
from cloudem.algorithms.picking_threshold import fit_score_mixture, threshold_by_chance

PIXEL, DIAMETER = 3.0, 120.0


def noise(seed: int, shape: tuple[int, int] = (480, 500)) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_a_reduced_image_keeps_what_is_coarse_and_where_it_is() -> None:
    y, x = np.mgrid[:600, :512]
    image = np.exp(-((x - 250.0) ** 2 + (y - 300.0) ** 2) / 2 / 20**2).astype(np.float32) + 5
    reduced = reduce_image(image, PIXEL, DIAMETER)
    assert reduced.image.shape[0] < 400
    assert reduced.pixel_size == pytest.approx(PIXEL * np.sqrt(np.prod(reduced.scale)))
    top = np.unravel_index(np.argmax(reduced.image), reduced.image.shape)
    assert top[0] * reduced.scale[0] == pytest.approx(300, abs=1)
    assert top[1] * reduced.scale[1] == pytest.approx(250, abs=1)
    assert reduced.image.max() == pytest.approx(6, abs=0.01)
    assert reduced.image.min() == pytest.approx(5, abs=0.01)


def test_edges_that_are_filled_are_seen() -> None:
    image = noise(0)
    assert filled_edges(image) == (0, 0, 0, 0)
    image[:12] = image[12]
    image[:, -20:] = 0
    image[:3] = noise(1)[:3]  # a rim of anything
    found = filled_edges(image)
    assert found[0] in (12, 13)
    assert found[1:3] == (0, 0)
    assert found[3] in (20, 21)
    assert not even_image(reduce_image(np.ones((480, 500), np.float32), PIXEL, DIAMETER), DIAMETER).usable.any()


def test_an_even_image_has_mean_zero_and_deviation_one_whatever_the_illumination() -> None:
    y, x = np.mgrid[:480, :500]
    image = (100 + 0.02 * x + noise(2) * (1 + y / 240)).astype(np.float32)
    even = even_image(reduce_image(image, PIXEL, DIAMETER), DIAMETER)
    for part in (even.image[:100, :100], even.image[-100:, -100:]):
        assert part.mean() == pytest.approx(0, abs=0.2)
        assert part.std() == pytest.approx(1, abs=0.2)


def test_correlation_is_that_of_the_template_laid_on_each_pixel() -> None:
    image = noise(3, (40, 50))
    templates = disc_templates(10.0, 1.0)
    assert np.abs(templates.sum((1, 2))).max() < 1e-4
    np.testing.assert_allclose((templates**2).sum((1, 2)), 1, rtol=1e-5)
    found = correlate(image, templates)
    reach = templates.shape[1] // 2
    padded = np.pad(image, reach)
    direct = max(float((padded[7 : 7 + 2 * reach + 1, 21 : 21 + 2 * reach + 1] * each).sum()) for each in templates)
    assert found[7, 21] == pytest.approx(direct, abs=1e-4)
    peaks = candidates_of(found, np.ones(found.shape, bool), 6.0)
    assert (np.diff(peaks.score) <= 0).all()


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_the_threshold_between_two_kinds_is_where_they_are_equally_probable(share: float) -> None:
    rng = np.random.default_rng(4)
    count = 20_000
    many = int(share * count)
    scores = np.concatenate([rng.normal(1, 0.7, count - many), rng.normal(5, 1.0, many)])
    mixture = fit_score_mixture(scores)
    assert mixture.separated
    np.testing.assert_allclose(mixture.means, [1, 5], atol=0.15)
    assert mixture.weights[1] == pytest.approx(share, abs=0.02)
    assert mixture.probability(np.array([mixture.equal()]))[0] == pytest.approx(0.5, abs=0.01)
    assert not fit_score_mixture(scores[: count - many]).separated
    assert (np.diff(mixture.probability(np.linspace(-5, 12, 200))) >= -1e-12).all()


def test_random_phases_bound_the_share_of_false_picks() -> None:
    rng = np.random.default_rng(5)
    chance = rng.normal(0, 1, 5000)
    real = np.concatenate([rng.normal(0, 1, 5000), rng.normal(4, 0.5, 200)])
    threshold = threshold_by_chance(real, chance)
    assert 2 < threshold < 3.5
    assert threshold_by_chance(rng.normal(0, 1, 5000), chance) == np.inf


def test_random_phases_keep_the_power() -> None:
    image = np.cumsum(noise(6), 1)
    image -= image.mean()
    reduced = ReducedImage(image.astype(np.float32), PIXEL, (1.0, 1.0), np.ones(image.shape, bool))
    random = phase_randomised(reduced, 1).image
    assert random.std() == pytest.approx(image.std(), rel=0.2)
    assert abs(np.corrcoef(random.ravel(), image.ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(random, phase_randomised(reduced, 1).image)


def test_templates_find_a_view_in_any_orientation_and_noise_has_deviation_one() -> None:
    z, y, x = np.mgrid[:32, :32, :32] - 16
    volume = np.exp(-(x**2 / 60 + y**2 / 12 + z**2 / 12)).astype(np.float32)  # a rod
    views = views_of_map(volume, 6.0, DIAMETER, 6.0)
    templates = turned_templates(views[:6])
    assert templates.shape[1] % 2
    state = MicroscopeState(300.0, 2.7e7, 0.1, 15_000.0, 15_000.0, 0.0, 0.0)
    image = noise(7, (200, 210))
    page = np.zeros_like(image)
    side = templates.shape[1]
    page[80 : 80 + side, 90 : 90 + side] = templates[2]
    changed = np.fft.irfft2(np.fft.rfft2(page) * transfer_of(page.shape, 6.0, state), s=page.shape)
    changed *= 15 / np.sqrt((changed**2).sum())
    score = template_score((image + changed).astype(np.float32), templates, 6.0, state)
    top = np.unravel_index(np.argmax(score), score.shape)
    assert np.hypot(top[0] - 80 - side // 2, top[1] - 90 - side // 2) <= 2
    single = template_score(image, templates[2:3], 6.0, state)
    assert single.std() == pytest.approx(1, abs=0.25)
    averages = views_of_averages(views[:, :, ::-1], 6.0, DIAMETER, 6.0)
    assert averages.shape == views.shape


def test_images_of_one_model_give_the_same_to_the_bit() -> None:
    images = [reduce_image(noise(seed), PIXEL, DIAMETER) for seed in range(2)]
    models = [learn_model(images, DIAMETER, seed=3) for _ in range(2)]
    assert models[0].threshold == models[1].threshold == np.inf
    assert not len(pick_image(images[0], models[0]).x)
