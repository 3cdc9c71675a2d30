"""Coordinates go out to files of every kind and come back the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import MissingInputError, ParameterError
from cloudem.io.micrographs.tables import read_micrograph_table, read_picks
from cloudem.io.storage.groups import read_group
from cloudem.jobs.export_coordinates import ExportCoordinates
from cloudem.jobs.import_coordinates import ImportCoordinates
from tests.jobs.conftest import run
from tests.jobs.test_pick import SHAPE, micrographs


@pytest.fixture
def given(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    images = {name: rng.normal(0, 1, SHAPE).astype(np.float32) for name in ("m1", "m2", "m10")}
    return micrographs(tmp_path / "in", images)


def imported(tmp_path: Path, given: str, coordinates: object, name: str, **options: object):
    run(ImportCoordinates(micrographs=given, coordinates=str(coordinates), out=str(tmp_path / name), **options))
    return read_picks(tmp_path / name)


@pytest.mark.parametrize(("form", "pattern"), [
    ("star", "coordinates.star"), ("star", "micrographs/*.star"), ("box", "micrographs/*.box"), ("topaz", "picks.txt"),
    ("cs", "picks.cs"), ("csv", "picks.csv"),
])  # fmt: skip
def test_coordinates_go_out_and_come_back(tmp_path: Path, given: str, form: str, pattern: str) -> None:
    text = "micrograph,x,y,score\nm10,5.5,100,1\nm1,10,20.25,0.5\nm2,900,3,1\nother,1,1,1\nm1,50,60,0.25\n"
    (tmp_path / "marks.csv").write_text(text)
    picks = imported(tmp_path, given, tmp_path / "marks.csv", "first", flip_y=True)
    assert picks["micrograph"].tolist() == ["m1", "m1", "m10"]  # one lies outside, one has no micrograph
    assert picks["coordinate_y"].tolist() == [SHAPE[0] - 1 - y for y in (20.25, 60, 100)]
    assert read_micrograph_table(tmp_path / "first")["pick_count"].tolist() == [2, 0, 1]
    arrays = read_group(tmp_path / "first", "result")[0]
    assert arrays["lost_name"].tolist() == ["other"]
    run(ExportCoordinates(picks=str(tmp_path / "first"), file_format=form, box_px=64, out=str(tmp_path / "files")))
    again = imported(tmp_path, given, tmp_path / "files" / pattern, "second")
    assert again["micrograph"].tolist() == picks["micrograph"].tolist()
    for axis in ("coordinate_x", "coordinate_y"):
        np.testing.assert_allclose(again[axis], picks[axis], atol=0.51 if form in ("box", "topaz") else 1e-3)


def test_what_does_not_fit_is_said(tmp_path: Path, given: str) -> None:
    (tmp_path / "marks.csv").write_text("x,y\n1,2\n")
    with pytest.raises(ParameterError, match="none of the names"):
        imported(tmp_path, given, tmp_path / "marks.csv", "out")
    with pytest.raises(MissingInputError, match="patterns in quotes"):
        imported(tmp_path, given, tmp_path / "*.box", "other")
    with pytest.raises(ParameterError, match="--box-px"):
        ExportCoordinates(picks=given, file_format="box", out=str(tmp_path / "x")).preflight()
