"""A threshold lies between two groups if there are two, and what is wrong with a class is named."""

from __future__ import annotations

import numpy as np
import pytest

from cloudem.algorithms.selection import (
    APART,
    EDGE,
    OFF,
    distance_of,
    overlap,
    reasons_against,
    threshold_between,
    why_not,
)

RNG = np.random.default_rng(0)
BOX, RADIUS = 64, 20.0


def test_two_groups_are_found_where_there_are_two() -> None:
    values = np.r_[RNG.normal(1, 1, 12), RNG.normal(12, 1.5, 30)]
    threshold = threshold_between(values, RNG.uniform(10, 100, 42))
    assert threshold is not None
    assert values[:12].max() <= threshold <= values[12:].min()
    assert distance_of(values, values > threshold) > 2 * APART


@pytest.mark.parametrize("classes", [5, 10, 40])
@pytest.mark.parametrize("seed", range(5))
def test_one_group_is_not_taken_for_two(seed: int, classes: int) -> None:
    """Images of classes that differ by as much as images of one class do."""
    rng = np.random.default_rng(seed)
    number = rng.integers(0, classes, 2000)
    values = rng.normal(12, 1.5, classes)[number] + rng.normal(0, 1.5, 2000)
    medians = np.array([np.median(values[number == each]) for each in range(classes)])
    threshold = threshold_between(medians, np.bincount(number))
    assert threshold is not None
    assert distance_of(values, (medians >= threshold)[number]) < APART


def test_what_says_nothing_has_no_threshold() -> None:
    assert threshold_between(np.ones(30), np.ones(30)) is None
    assert threshold_between(np.array([1.0, 2, 3]), np.ones(3)) is None
    assert threshold_between(np.array([np.nan, 1, 2, 3, 4, 5]), np.array([1, 0, 0, 0, 1, 1])) is None
    assert distance_of(np.ones(3), np.ones(3, bool)) == 0


def test_expected_losses_are_those_of_normal_groups() -> None:
    upper = np.arange(20_000) < 12_000
    values = np.where(upper, RNG.normal(10, 2, 20_000), RNG.normal(2, 2, 20_000))
    lost, hidden = overlap(values, upper, 7.0)
    assert lost == pytest.approx(np.mean(values[upper] < 7), abs=0.005)
    assert hidden == pytest.approx(np.mean(~upper[values >= 7]), abs=0.005)
    assert overlap(values[upper], upper[upper], 7.0)[1] == 0


def blob(x0: float, y0: float) -> np.ndarray:
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    return np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 30.0)


def picture(kind: str) -> np.ndarray:
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    inside = np.hypot(y, x) <= RADIUS
    shown = {
        "off centre": blob(10, 0),
        "two particles": blob(12, 12) + blob(-12, -11),
        "ice or a neighbour": blob(-17, 4),
        "an edge of the film": np.clip((x + 2 * y) / 6, -1, 1),
        "": blob(0, 0),
    }
    return shown[kind] * inside


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("kind", ["off centre", "two particles", "ice or a neighbour", "an edge of the film", ""])
def test_what_is_wrong_with_a_class_is_named(kind: str, turns: int) -> None:
    image = np.roll(np.rot90(picture(kind), turns), ((turns + 1) // 2 % 2, turns // 2), (0, 1))
    assert why_not(image, RADIUS, 50.0) == kind
    assert why_not(image, RADIUS, 1.0) == "noise"
    assert why_not(image, RADIUS, float("nan")) == "noise"


def between(image: np.ndarray) -> np.ndarray:
    """Put a particle in the middle of its neighbours, whose rims lie in the circle."""
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    turns = np.radians([0, 70, 140, 210, 280])  # one place is empty: they move the centre of mass
    around = [np.hypot(x - 1.7 * RADIUS * np.cos(a), y - 1.7 * RADIUS * np.sin(a)) < 0.85 * RADIUS for a in turns]
    return image + np.sum(around, axis=0)


def disc(x0: float, y0: float = 0.0) -> np.ndarray:
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    return 1.0 * (np.hypot(x - x0, y - y0) < 0.85 * RADIUS)


def test_neighbours_do_not_speak_against_a_particle_among_them() -> None:
    """But nothing else than a particle in the middle is kept for having some."""
    ring = disc(0) * (1 - blob(0, 0))
    for one in (disc(0), ring):
        assert why_not(between(one), RADIUS, 50.0) != ""
        assert why_not(between(one), RADIUS, 50.0, crowded=True) == ""
        assert why_not(between(one), RADIUS, 1.0, crowded=True) == "noise"
    halfway = disc(0.85 * RADIUS) + disc(-0.85 * RADIUS)
    for none in (halfway, between(0 * halfway), *(picture(kind) for kind in ("two particles", "an edge of the film"))):
        assert why_not(none, RADIUS, 50.0, crowded=True) == why_not(none, RADIUS, 50.0) != ""


def test_only_classes_that_are_crowded_are_judged_so() -> None:
    images, members = [between(disc(0)), between(disc(0)), disc(0), disc(0)], np.array([10, 10, 30, 30])
    found, aside = reasons_against(images, RADIUS, np.full(4, 50.0), members, [True, False, False, False])
    assert [bool(why) for why in found] == [False, True, False, False]
    assert aside == []


def test_what_speaks_against_most_of_them_speaks_against_none() -> None:
    """Particles that fill their circle; noise does not count among them."""
    kinds = ["two particles", "an edge of the film", "off centre", "", ""]
    images, evidence = [picture(kind) for kind in kinds] + [picture("")], np.r_[np.full(5, 50.0), 1.0]
    found, aside = reasons_against(images, RADIUS, evidence, np.array([10, 10, 10, 20, 20, 900]))
    assert (found, aside) == ([*kinds, "noise"], [])
    found, aside = reasons_against(images, RADIUS, evidence, np.array([40, 40, 10, 20, 20, 900]))
    assert aside == [EDGE]
    assert found == ["", "off centre", "off centre", "", "", "noise"]  # as if nothing lay at the edge
    found, aside = reasons_against(images, RADIUS, evidence, np.array([10, 10, 90, 20, 20, 0]))
    assert (found, aside) == (["two particles", "an edge of the film", "", "", "", "noise"], [OFF])
    assert reasons_against([], RADIUS, np.zeros(0), np.zeros(0)) == ([], [])
