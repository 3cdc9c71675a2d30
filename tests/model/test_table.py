"""What every kind of table shares."""

from dataclasses import replace

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import TEXT, distinct, joined_tables


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 20, 2_000])
def test_distinct_values_of_long_text_are_those_of_numpy(count: int, repeats: int) -> None:
    rng = np.random.default_rng(count)
    texts = [
        f"{i:06d}@a/folder/whose/name/is/longer/than/fifteen/characters/{i}-µ.mrcs" for i in range(count)
    ] * repeats
    texts = [texts[i] for i in rng.permutation(len(texts))]
    values, number, counts = distinct(np.array(texts, TEXT))  # sorting 400 of them ends NumPy 2.4's process
    expected = np.unique(np.array(texts, "U"), return_inverse=True, return_counts=True)
    assert values.tolist() == expected[0].tolist()
    np.testing.assert_array_equal(number, expected[1])
    np.testing.assert_array_equal(counts, expected[2])


def test_distinct_numbers() -> None:
    values, number, counts = distinct(np.array([3.5, 1.0, 3.5]))
    assert values.tolist() == [1.0, 3.5]
    assert number.tolist() == [1, 0, 1]
    assert counts.tolist() == [1, 2]


def test_tables_are_joined_and_what_one_does_not_know_stays_unknown() -> None:
    groups = [OpticsGroup(name, 300.0, 2.7e7, 0.1) for name in "abc"]
    one = Micrographs(
        (groups[0], groups[1]), {"micrograph": np.array(["x"], TEXT), "optics_group": np.array([1], np.int32)}
    )
    other = one.with_columns(dose=[3.0], micrograph=np.array(["y"], TEXT))
    other = replace(other, optics=(groups[1], groups[2]))
    both = joined_tables(one, other)
    assert both["micrograph"].tolist() == ["x", "y"]
    assert [both.optics[at].name for at in both["optics_group"]] == ["b", "c"]
    assert np.isnan(both["dose"][0])
    assert both["dose"][1] == 3.0
    changed = replace(other, optics=(OpticsGroup("b", 200.0, 2.7e7, 0.1), groups[2]))
    with pytest.raises(InconsistentDataError, match="two meanings"):
        joined_tables(one, changed)
