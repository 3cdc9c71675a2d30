"""Coordinates in files of other programs: what is written is read again, and what others write is understood."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import FormatError, MissingColumnError, ParameterError
from cloudem.io.formats.coordinate_files import (
    Coordinates,
    assign_micrographs,
    box_of,
    csv_of,
    read_coordinates,
    star_of,
    stem_of,
    topaz_of,
)
from cloudem.io.formats.cryosparc import locations_to_cs
from cloudem.io.formats.star import write_star
from cloudem.model.table import TEXT

DATA = Path(os.environ.get("CLOUDEM_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
X, Y, SCORE = np.array([10.25, 300.5]), np.array([20.0, 7.75]), np.array([0.5, 1.25])


def table(*names: str) -> Coordinates:
    return Coordinates(np.array(names, TEXT), X, Y, SCORE)


@pytest.mark.parametrize("kind", ["star", "topaz", "csv", "cs", "box"])
def test_what_is_written_is_read_again(tmp_path: Path, kind: str) -> None:
    found, exact = table("m1", "m2"), kind not in ("topaz", "box")
    if kind == "star":
        path = tmp_path / "m1_autopick.star"
        write_star(path, star_of(X, Y, SCORE))
    elif kind == "box":
        path = tmp_path / "m1_autopick.box"
        path.write_bytes(box_of(X, Y, 65))
    elif kind == "cs":
        path = tmp_path / "picks.cs"
        shape = np.array([[400, 500]] * 2)
        path.write_bytes(locations_to_cs(["1_m1.mrc", "2_m2.mrc"], X, Y, SCORE, shape, np.ones(2)))
    else:
        path = tmp_path / ("picks.txt" if kind == "topaz" else "picks.csv")
        path.write_bytes(topaz_of(found) if kind == "topaz" else csv_of(found))
    read = read_coordinates(path)
    np.testing.assert_allclose(read.x, X, atol=1e-3 if exact else 0.5)
    np.testing.assert_allclose(read.y, Y, atol=1e-3 if exact else 0.5)
    if kind != "box":
        np.testing.assert_allclose(read.score, SCORE, atol=1e-6)
    names = {"star": ["m1_autopick"] * 2, "box": ["m1_autopick"] * 2, "cs": ["1_m1", "2_m2"]}
    assert read.micrograph.tolist() == names.get(kind, ["m1", "m2"])


def test_the_list_of_relion_names_files_beside_it_or_in_the_project_above(tmp_path: Path) -> None:
    folder = tmp_path / "AutoPick/job006"
    (folder / "mics").mkdir(parents=True)
    write_star(folder / "mics/a_autopick.star", star_of(X, Y, SCORE))
    text = {"rlnMicrographName": np.array(["MotionCorr/job002/mics/a.mrc"], TEXT)}
    for name in ("AutoPick/job006/mics/a_autopick.star", "mics/a_autopick.star"):
        block = {**text, "rlnMicrographCoordinates": np.array([name], TEXT)}
        write_star(folder / "autopick.star", {"coordinate_files": block})
        found = read_coordinates(folder / "autopick.star")
        assert found.micrograph.tolist() == ["a", "a"]
        np.testing.assert_allclose(found.x, X)
    (folder / "mics/a_autopick.star").unlink()
    with pytest.raises(FormatError, match="neither beside it nor"):
        read_coordinates(folder / "autopick.star")


@pytest.mark.skipif(not DATA.exists(), reason="there are no shared data")
def test_files_of_others_are_understood() -> None:
    star = read_coordinates(DATA / "formats/relion313_autopick_LoG.star")
    assert (star.x[0], star.y[0], star.score[0]) == (795.217431, 842.391346, 0.413159)
    people = sorted((DATA / "apoferritin/coordinates").glob("*.csv"))[0]
    assert read_coordinates(people).x[0] == pytest.approx(132.30613)
    assert read_coordinates(people).micrograph[0] == "May08_03.05.02.bin_avg.png-points"
    original = sorted((DATA / "micrographs/empiar10017").glob("*_original.csv"))[0]
    assert (read_coordinates(original).x[0], read_coordinates(original).y[0]) == (3752, 693)


def test_names_find_their_micrographs() -> None:
    known = ["Mics/a_1.mrc", "a_10", "May08_03.05.02.bin_avg"]
    found = ["a_1", "a_10_autopick", "May08_03.05.02.bin_avg.png-points", "a_100", "b"]
    meant, lost = assign_micrographs(found, known)
    assert meant == {"a_1": known[0], "a_10_autopick": "a_10", found[2]: known[2]}
    assert lost == ["a_100", "b"]
    assert stem_of("003@Extract\\x/b.mrcs") == "b"


@pytest.mark.parametrize(
    ("name", "content", "error", "word"),
    [
        ("a.box", b"1 2 3\n", FormatError, "at least 4"),
        ("a.csv", b"x,y\n1,nan\n", FormatError, "no number of pixels"),
        ("a.csv", b"x,y,score\n1,2\n", FormatError, "has 2 values"),
        ("a.txt", b"\xff\xfe", FormatError, "not text"),
        ("a.star", b"data_\nloop_\n_rlnImageName #1\nx\n", MissingColumnError, "no coordinates"),
        ("a.pdf", b"", ParameterError, "should end in"),
    ],
)
def test_what_is_no_coordinate_file_is_said(tmp_path: Path, name: str, content: bytes, error: type, word: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=word):
        read_coordinates(tmp_path / name)
