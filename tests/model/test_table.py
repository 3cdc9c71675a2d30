"""What every kind of table shares."""

import numpy as np
import pytest

from cloudem.model.table import TEXT, distinct


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
