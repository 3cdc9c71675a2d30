from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError, MissingColumnError, ParameterError
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import COLUMNS, TEXT, Particles

OPTICS = (OpticsGroup("a", 300.0, 2.7e7, 0.1), OpticsGroup("b", 200.0, 0.0, 0.07))


def table() -> Particles:
    return Particles(
        OPTICS,
        {
            "optics_group": np.array([0, 1, 0], dtype=np.int32),
            "defocus_u": np.array([1e4, 1.1e4, 1.2e4]),
            "micrograph": np.array(["m1", "m2", "m1"], dtype=TEXT),
        },
    )


def test_take_keeps_rows_together_and_order():
    taken = table().take([2, 0])
    assert taken["defocus_u"].tolist() == [1.2e4, 1e4]
    assert taken["micrograph"].tolist() == ["m1", "m1"]
    assert taken.optics == OPTICS
    assert len(table().take(np.array([False, True, False]))) == 1


def test_with_columns_gives_the_declared_type_and_leaves_the_original_alone():
    first = table()
    second = first.with_columns(half_set=[1, 2, 1], rot=np.zeros(3, dtype=np.float32))
    assert second["half_set"].dtype == np.int8
    assert second["rot"].dtype == np.float64
    assert "half_set" not in first
    assert "half_set" not in second.without_columns(["half_set", "not there"])


def test_get_fills_what_is_missing():
    assert table().get("phase_shift", 0.0).tolist() == [0.0] * 3
    assert table().get("defocus_u", 0.0)[0] == 1e4


def test_missing_column_is_named_with_relions_label_in_one_line():
    with pytest.raises(MissingColumnError) as caught:
        table().require("defocus_u", "rot", "tilt")
    message = str(caught.value)
    assert "rot (rlnAngleRot), tilt (rlnAngleTilt)" in message
    assert "\n" not in message
    with pytest.raises(MissingColumnError):
        table()["psi"]


def test_contradictions_are_refused():
    with pytest.raises(InconsistentDataError, match="different lengths"):
        Particles(OPTICS, {"rot": np.zeros(2), "tilt": np.zeros(3)})
    with pytest.raises(InconsistentDataError, match="2 groups"):
        Particles(OPTICS, {"optics_group": np.array([0, 2], dtype=np.int32)})
    with pytest.raises(InconsistentDataError):
        table().with_columns(rot=np.zeros(5))
    with pytest.raises(ParameterError, match="colour"):
        table().with_columns(colour=np.zeros(3))


def test_every_column_has_a_meaning_and_labels_are_unique():
    assert all(meaning.meaning for meaning in COLUMNS.values())
    labels = [meaning.relion for meaning in COLUMNS.values() if meaning.relion]
    assert len(labels) == len(set(labels))


def test_the_documentation_lists_every_column_as_it_is():
    page = (Path(__file__).resolve().parents[2] / "docs" / "particles.md").read_text()
    for name, meaning in COLUMNS.items():
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        assert meaning.meaning in row
        assert f"| {meaning.unit or '–'} |" in row
        assert all(f"`{other}`" in row for other in (meaning.relion, meaning.cryosparc) if other)
