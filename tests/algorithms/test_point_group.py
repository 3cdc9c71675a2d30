"""The point group of a map is found wherever its axes are; what has none, or nothing to tell, is not given one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cloudem.algorithms.point_group import HOLDS, PointGroup, find_point_group, lay_on_axes
from cloudem.model.symmetry import operators

BOX, PIXEL, RADIUS = 40, 5.0, 85.0
TURN = Rotation.from_euler("zyx", [40, 25, -60], degrees=True).as_matrix()
OFF = np.array([3.0, -4.0, 2.0])

Float32 = NDArray[np.float32]


def lumps(symmetry: str, noise: float = 0.1, seed: int = 5, bent: float = 0.0) -> tuple[Float32, Float32]:
    """Return half-maps of balls around the axes of a group, turned and off centre; the second mate may be bent."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-30, 30, (14, 3)) + rng.uniform(15, 25, 3)
    mates = [centres @ each.T for each in operators(symmetry)]
    if bent:
        middle = mates[1].mean(axis=0)
        mates[1] = Rotation.from_rotvec(np.radians([0, bent, 0])).apply(mates[1] - middle) + middle
    places = (np.concatenate(mates) @ TURN.T + OFF) / PIXEL
    grid = np.stack(np.meshgrid(*[np.arange(BOX) - BOX // 2] * 3, indexing="ij")[::-1], axis=-1)
    density = sum(np.exp(-np.sum((grid - place) ** 2, axis=-1) / 2) for place in places)
    return tuple((density + noise * rng.standard_normal(density.shape)).astype(np.float32) for _ in range(2))


def found_in(halves: Any, radius: float = RADIUS) -> PointGroup:
    return find_point_group(halves, PIXEL, np.zeros(3), radius)


@pytest.mark.parametrize("symmetry", ["C3", "D2", "O"])
def test_the_group_is_found_and_its_axes(symmetry: str) -> None:
    found = found_in(lumps(symmetry))
    assert found.name == symmetry
    assert found.best is not None
    assert found.best.least > 0.9 > found.chance
    group = operators(symmetry)
    off = found.best.turn @ TURN
    moved = off @ group @ off.T  # the group where the map has it: the same operators
    errors = [np.degrees(Rotation.from_matrix(each @ group.transpose(0, 2, 1)).magnitude()).min() for each in moved]
    assert max(errors) < 1.5
    apart = found.best.centre - OFF
    if symmetry[0] == "C":  # nothing fixes the place along the only axis
        apart = apart - TURN[:, 2] * (apart @ TURN[:, 2])
    assert np.linalg.norm(apart) < 1.0


def test_a_map_without_halves_says_the_same() -> None:
    one, two = lumps("D2")
    found = found_in(((one + two) / np.float32(2),))
    assert found.name == "D2"


def test_an_asymmetric_map_has_no_group() -> None:
    found = found_in(lumps("C1"))
    assert found.name == "C1"
    assert found.best is None
    assert all(one.least < HOLDS for one in found.tried)


def test_noise_and_spheres_are_undetermined() -> None:
    rng = np.random.default_rng(1)
    noise = tuple(rng.standard_normal((2, BOX, BOX, BOX)).astype(np.float32))
    found = found_in(noise)
    assert (found.name, found.tried) == ("", ())
    assert "no shells" in found.why
    grid = np.arange(BOX) - BOX // 2
    distance = np.sqrt(grid[:, None, None] ** 2 + grid[:, None] ** 2 + grid**2)
    sphere = np.exp(-((distance - 12) ** 2) / 4)
    assert found_in((sphere.astype(np.float32),)).name == ""
    noisy = tuple((sphere + 0.05 * rng.standard_normal(sphere.shape)).astype(np.float32) for _ in range(2))
    assert found_in(noisy).name == ""


def test_a_body_of_revolution_is_undetermined() -> None:
    grid = np.arange(BOX) - BOX // 2
    ring = np.hypot(np.hypot(grid[:, None], grid) - 9, 0)
    density = np.exp(-(ring**2) / 6) * np.exp(-(grid[:, None, None] ** 2) / 8)
    found = found_in((ndimage.gaussian_filter(density, 0.5).astype(np.float32),))
    assert found.name == ""
    assert "no symmetry" in found.why or "revolution" in found.why


def test_mates_that_differ_are_no_symmetry_and_said_to_be_near_it() -> None:
    found = found_in(lumps("C2", bent=20.0))
    assert found.name == "C1"
    assert found.nearly is not None
    assert found.nearly.name == "C2"
    assert found.nearly.least < HOLDS


def test_axes_of_a_known_group_are_laid_on_the_standard_ones() -> None:
    halves = lumps("D2")
    laid = lay_on_axes(halves, PIXEL, np.zeros(3), RADIUS, "D2")
    assert laid.least > 0.9
    other = lay_on_axes(halves, PIXEL, np.zeros(3), RADIUS, "C3")
    assert other.least < HOLDS
