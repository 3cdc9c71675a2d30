"""What tasks are called, and what Dask makes of it."""

from __future__ import annotations

import pytest
from dask.utils import key_split
from distributed.utils import key_split_group
from hypothesis import given
from hypothesis import strategies as st

from cloudem.execution.task_names import STEP_LENGTH, TaskLabel, current_label, labelled


@given(st.text(max_size=40), st.text(max_size=40), st.integers(1, 5000))
def test_dask_sees_the_step_as_the_kind_of_task_and_the_iteration_as_its_group(
    step: str, otherwise: str, iteration: int
) -> None:
    kind = TaskLabel(step=step).group(otherwise)
    assert 0 < len(kind) <= STEP_LENGTH
    group = TaskLabel(step=step, iteration=iteration).group(otherwise)
    for name in (kind, group):
        key = (name, "bricks_add", "0" * 32)
        assert key_split(key) == kind
        assert key_split_group(key) == name
    assert group != kind


@pytest.mark.parametrize(
    ("label", "name"),
    [
        (TaskLabel(step="align", iteration=7), "align-it007"),
        (TaskLabel(step="noise"), "noise"),
        (TaskLabel(step="2D classes (fast)", iteration=12), "D_classes_fast-it012"),
        (TaskLabel(), "add"),
        (TaskLabel(step="deadbeef"), "deadbeef"),
        (TaskLabel(step="motion-correction-of-movies"), "motion_correcti"),
    ],
)
def test_names_are_short_words(label: TaskLabel, name: str) -> None:
    assert label.group("add") == name


def test_labels_are_nested_and_end_with_their_block() -> None:
    with labelled(job="refine3d: out"), labelled(iteration=3), labelled(step="solve"):
        assert current_label() == TaskLabel("refine3d: out", "solve", 3)
        with labelled(step="fsc"):
            assert current_label() == TaskLabel("refine3d: out", "fsc", 3)
        with pytest.raises(ZeroDivisionError), labelled(step="fsc"):
            raise ZeroDivisionError
        assert current_label().step == "solve"
        assert current_label().within("merge") == TaskLabel("refine3d: out", "merge", 3)
    assert current_label() == TaskLabel()
