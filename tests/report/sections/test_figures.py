"""What the figures show: crossings, views on the sphere, slices the right way round."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cloudem.model.columns import Column
from cloudem.report.sections.curves import iterations_figure, resolution_crossing
from cloudem.report.sections.map_panels import map_panels
from cloudem.report.sections.view_directions import _mollweide, sphere_raster, view_density, view_directions


def test_crossing_is_linear_between_shells():
    curve = np.array([1.0, 1.0, 0.9, 0.5, 0.1, 0.0, 0.0])  # box 12
    assert resolution_crossing(curve, 2.0, 0.5) == pytest.approx(12 * 2.0 / 3)
    assert resolution_crossing(curve, 2.0, 0.3) == pytest.approx(12 * 2.0 / 3.5)
    assert np.isnan(resolution_crossing(np.ones(7), 2.0, 0.143))
    assert resolution_crossing(np.zeros(7), 2.0, 0.143) == pytest.approx(12 * 2.0)


def test_crossing_is_the_first_one_and_nan_is_no_correlation():
    curve = np.array([1.0, 0.9, 0.05, 0.9, 0.8, np.nan, 0.9])
    assert resolution_crossing(curve, 1.0, 0.143) < 12 / 1.0
    assert resolution_crossing(curve, 1.0, 0.143) > 12 / 2.0
    assert resolution_crossing(np.array([1.0, 0.9, 0.9, np.nan, 0.9, 0.9, 0.9]), 1.0, 0.45) == pytest.approx(12 / 2.5)


def test_view_direction_is_third_row_of_the_rotation_matrix():
    poses = pytest.importorskip("cloudem.model.poses")
    rng = np.random.default_rng(1)
    rot, psi = rng.uniform(-np.pi, np.pi, (2, 20))
    tilt = rng.uniform(0, np.pi, 20)
    rows = poses.euler_to_matrix(rot, tilt, psi)[..., 2, :]
    np.testing.assert_allclose(view_directions(rot, tilt), rows, atol=1e-6)


def test_even_views_are_even_and_one_view_is_a_peak_in_its_place():
    rng = np.random.default_rng(2)
    rot, tilt = rng.uniform(-np.pi, np.pi, 50_000), np.arccos(rng.uniform(-1, 1, 50_000))
    even = view_density(rot, tilt)
    assert even.density.mean() == pytest.approx(1, abs=1e-4)
    assert even.density.std() < 0.1
    assert even.least_sampled > 0.95
    alone = view_density(np.full(500, 1.0), np.full(500, 0.7))
    peak = alone.directions[np.argmax(alone.density)]
    assert peak @ view_directions(np.array(1.0), np.array(0.7)) > np.cos(np.deg2rad(4))
    assert alone.least_sampled < 0.05  # a cone is missing


def test_symmetry_adds_the_equivalent_views():
    half_turn = np.array([np.eye(3), np.diag([-1.0, -1.0, 1.0])])
    views = view_density(np.full(400, 0.5), np.full(400, 1.2), half_turn)
    for rot in (0.5, 0.5 + np.pi):
        towards = view_directions(np.array(rot), np.array(1.2))
        near = views.directions @ towards > np.cos(np.deg2rad(5))
        assert views.density[near].mean() > 0.6 * views.density.max()


def test_mollweide_keeps_area_and_the_raster_shows_a_view_where_the_graticule_says():
    longitude = np.array([-np.pi, 0.0, np.pi, 0.0])
    latitude = np.array([0.0, 0.0, 0.0, np.pi / 2])
    x, y = _mollweide(longitude, latitude)
    np.testing.assert_allclose(x, [-2, 0, 2, 0], atol=1e-3)
    np.testing.assert_allclose(y, [0, 0, 0, 1], atol=1e-3)
    # Half of the sphere's area lies between latitudes of 30 degrees; so does half of the ellipse's.
    edge = _mollweide(np.array([0.0]), np.array([np.pi / 6]))[1][0]
    assert (2 * edge * np.sqrt(1 - edge**2) + 2 * np.arcsin(edge)) / np.pi == pytest.approx(0.5, abs=1e-6)
    rot, tilt = np.deg2rad(70.0), np.deg2rad(50.0)
    views = view_density(np.full(500, rot), np.full(500, tilt))
    image = sphere_raster(views.directions, views.density, 240, 120)
    row, column = np.unravel_index(np.argmax(image), image.shape)
    x, y = _mollweide(np.array([rot]), np.array([np.pi / 2 - tilt]))
    assert (column + 0.5) / 60 - 2 == pytest.approx(x[0], abs=0.1)
    assert (row + 0.5) / 60 - 1 == pytest.approx(y[0], abs=0.1)


def drawn_panels(*arguments: Any) -> str:
    return "".join(svg for svg, *_ in map_panels(*arguments).items)


def panel_images(html: str) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)
        for data in re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    ]


def test_panels_show_each_axis_to_the_right_and_up_as_captioned():
    volume = np.zeros((24, 24, 24), np.float32)
    volume[15:19, 12, 12] = 1  # towards +z
    volume[12, 18:22, 12] = 1  # towards +y
    volume[12, 12, 20:24] = 1  # towards +x
    images = panel_images(drawn_panels(volume, 2.0))
    assert len(images) == 6
    size = images[0].shape[0]

    def bright(image: np.ndarray, right: float, down: float) -> bool:
        return bool(image[int(down / 24 * size), int(right / 24 * size)] > 40)

    # (along, right, up): (z, x, y), (y, x, z), (x, y, z); the first image row is the top.
    for image in (images[0], images[3]):
        assert bright(image, 22, 11.5)
        assert bright(image, 12.5, 4)
        assert not bright(image, 2, 11.5)
        assert not bright(image, 12.5, 20)
    assert bright(images[1], 22, 11.5)
    assert bright(images[1], 12.5, 7)
    assert bright(images[2], 20, 11.5)
    assert bright(images[2], 12.5, 7)


@pytest.mark.parametrize(("pixel_size", "bar"), [(1.0, "5 Å"), (3.7333, "20 Å"), (0.66, "2 Å")])
def test_scale_bar_is_round_and_true(pixel_size, bar):
    html = drawn_panels(np.random.default_rng(0).normal(size=(24, 24, 24)), pixel_size)
    assert html.count(f">{bar}<") == 6
    width = re.search(r'<rect[^>]* width="([\d.]+)"', html)
    assert width is not None
    assert float(width[1]) * pixel_size == pytest.approx(float(bar.split()[0]), rel=1e-3)


def test_mask_is_outlined_on_slices_only():
    volume = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    mask = np.zeros_like(volume)
    mask[8:16, 8:16, 8:16] = 1
    assert drawn_panels(volume, 2.0, mask).count("<path") == 3
    assert drawn_panels(volume, 2.0, np.ones_like(volume)).count("<path") == 0


def test_iterations_that_hardly_differ_have_an_axis_all_the_same():
    rows = [{"iteration": number, "resolution_A": value} for number, value in enumerate((6.62, 6.19, 6.4), start=1)]
    drawn = iterations_figure(rows)
    assert ">6.62<" in drawn
    assert ">6.19<" in drawn


def test_what_rounds_to_nothing_has_no_sign():
    assert [Column("gain", "gain", form=".1f").cell(value) for value in (-0.04, -0.06)] == ["0.0", "-0.1"]
