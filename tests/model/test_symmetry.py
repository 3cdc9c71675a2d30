import re
import shutil
import subprocess

import numpy as np
import pytest

from cloudem.errors import ParameterError
from cloudem.model.poses import random_rotations
from cloudem.model.symmetry import asymmetric_unit, kind_of, largest_subgroup, multiplication, operators

ORDERS = {
    **{f"C{n}": n for n in (1, 2, 3, 4, 5, 6, 7, 12, 17)},
    **{f"D{n}": 2 * n for n in (1, 2, 3, 4, 5, 6, 7, 13)},
    **{"T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60},
}


def same_set(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-6) -> bool:
    distance = np.abs(a[:, None] - b[None]).max(axis=(-1, -2))
    return len(a) == len(b) and bool(np.all((distance < tolerance).sum(axis=1) == 1))


@pytest.mark.parametrize("name", ORDERS)
def test_group_closes_and_has_its_order(name: str) -> None:
    group = operators(name)
    assert group.shape == (ORDERS[name], 3, 3)
    np.testing.assert_array_equal(group[0], np.eye(3))
    np.testing.assert_allclose(group @ group.swapaxes(1, 2), np.broadcast_to(np.eye(3), group.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(group), 1)
    for operator in group:
        assert same_set(operator @ group, group)
    assert same_set(group.swapaxes(1, 2), group)


def test_axis_permutations_are_exact() -> None:
    assert set(np.unique(operators("O"))) == {-1.0, 0.0, 1.0}
    assert np.sum([np.array_equal(op, np.rint(op)) for op in operators("I")]) == 12


def test_names() -> None:
    np.testing.assert_array_equal(operators(" o "), operators("O"))
    np.testing.assert_array_equal(operators("I"), operators("I2"))
    assert not same_set(operators("I1"), operators("I2"))


@pytest.mark.parametrize("name", ["", "C", "C0", "D", "X3", "I5", "C-2", "3", "O1", "TH"])
def test_unknown_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ParameterError, match="not a point group that cloudem knows; use C1") as caught:
        operators(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["C1", "C2", "C5", "D2", "D3", "D6", "D7", "T", "O", "I1", "I2", "I3", "I4"])
def test_asymmetric_unit_covers_every_direction_once(name: str) -> None:
    group = operators(name)
    directions = random_rotations(500, np.random.default_rng(0))[:, 2]
    images = np.concatenate([group, -group]) @ directions.T  # (2 g, 3, d)
    inside = np.array([asymmetric_unit(image.T, group) for image in images])
    # d and -d are inside together, and nothing else is
    np.testing.assert_array_equal(inside.sum(axis=0), 2)


@pytest.mark.parametrize("name", ["C1", "C4", "C7", "D2", "D3", "D5", "T", "O", "I1", "I2", "I3", "I4"])
def test_orientation_is_that_of_relion(name: str) -> None:
    program = shutil.which("relion_refine")
    if program is None:
        pytest.skip("relion_refine is not installed")
    done = subprocess.run(
        [program, "--sym", name, "--print_symmetry_ops"], capture_output=True, text=True, timeout=60
    )  # fmt: skip
    number = r"\s+(-?[\d.]+(?:e-?\d+)?)"
    rows = re.findall(rf"^{number * 3}\s*$", done.stdout, re.MULTILINE)
    theirs = np.array(rows, float).reshape(-1, 3, 3)
    assert len(theirs) == ORDERS[name]
    assert same_set(operators(name), theirs, 2e-4)


@pytest.mark.parametrize("name", ["C1", "C2", "C6", "D2", "D3", "D4", "D7", "T", "O", "I1", "I3"])
def test_kinds_and_products_are_those_of_the_group(name: str) -> None:
    group = operators(name)
    turn = random_rotations(1, np.random.default_rng(1))[0]
    assert kind_of(turn @ group @ turn.T) == re.sub(r"I\d", "I", name)
    table = multiplication(group)
    np.testing.assert_allclose(group[table], np.einsum("aij,bjk->abik", group, group), atol=1e-6)
    assert np.all(np.sort(table, axis=1) == np.arange(len(group)))
    np.testing.assert_array_equal(largest_subgroup(group, np.arange(len(group))), np.arange(len(group)))
    np.testing.assert_array_equal(largest_subgroup(group, np.array([], int)), [0])


@pytest.mark.parametrize(("name", "inside"), [("D7", "C7"), ("O", "D4"), ("O", "C4"), ("D4", "D2"), ("I", "D2")])
def test_the_largest_subgroup_of_a_set_is_found(name: str, inside: str) -> None:
    group, own = operators(name), operators(inside)
    among = np.flatnonzero([np.abs(own - each).max(axis=(1, 2)).min() < 1e-6 for each in group])
    found = largest_subgroup(group, among)
    assert same_set(group[found], own)
    spare = next(i for i in range(len(group)) if i not in among)
    if (
        kind_of(group[largest_subgroup(group, np.array([spare]))]) == "C1"
    ):  # alone it makes no group: it changes nothing
        np.testing.assert_array_equal(largest_subgroup(group, np.append(among, spare)), found)
