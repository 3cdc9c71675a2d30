"""Micrographs are imported by pattern, folder and table; what is wrong with one is said, and nothing is copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import CloudemError, MissingInputError, ParameterError
from cloudem.io.formats.relion import micrographs_to_blocks
from cloudem.io.formats.star import write_star
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.storage.groups import read_group
from cloudem.jobs.import_micrographs import ImportMicrographs
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import TEXT
from tests.io.movies_files import write_mrc
from tests.jobs.conftest import run

SCOPE = {"voltage_kV": 300.0, "cs_mm": 2.7}


def image(path: Path, count: int = 1, shape: tuple[int, int] = (20, 30)) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    return write_mrc(path, np.random.default_rng(0).normal(size=(count, *shape)).astype("f4"), 2)


def imported(tmp_path: Path, micrographs: object, **options: object) -> Micrographs:
    run(ImportMicrographs(micrographs=str(micrographs), out=str(tmp_path / "out"), **{**SCOPE, **options}))
    return read_micrograph_table(tmp_path / "out")


def test_a_folder_with_a_movie_and_a_truncated_file(tmp_path):
    for number in range(5):
        image(tmp_path / f"sums/m{number}.mrc")
    (tmp_path / "sums/notes.txt").write_text("no image")
    image(tmp_path / "sums/m1.mrc", count=3)
    (tmp_path / "sums/m2.mrc").write_bytes((tmp_path / "sums/m2.mrc").read_bytes()[:-100])
    (tmp_path / "sums/m3.mrc").write_bytes(b"")
    table = imported(tmp_path, tmp_path / "sums", amplitude_contrast=0.07)
    assert table["micrograph"].tolist() == ["m0", "m4"]
    assert table["image"].tolist() == [str(tmp_path / f"sums/m{number}.mrc") for number in (0, 4)]
    assert set(table["pixel_size"].tolist()) == {1.5}
    assert table.optics[0] == OpticsGroup("opticsGroup1", 300.0, 2.7e7, 0.07)
    arrays, attributes = read_group(tmp_path / "out", "result")
    reasons = dict(zip(arrays["left_out_micrograph"].tolist(), arrays["left_out_reason"].tolist(), strict=True))
    assert reasons["m1.mrc"].startswith("holds 3 images")
    assert "truncated" in reasons["m2.mrc"]
    assert "0 bytes" in reasons["m3.mrc"]
    assert (attributes["micrograph_count"], attributes["left_out_count"]) == (2, 3)
    assert "holds 3 images" in (tmp_path / "out/report.html").read_text()
    assert table["height"].tolist() == [20, 20]
    assert table["width"].tolist() == [30, 30]


def test_what_came_later_is_taken_up(tmp_path):
    image(tmp_path / "sums/m0.mrc")
    late = image(tmp_path / "sums/m1.mrc")
    whole = late.read_bytes()
    late.write_bytes(whole[:-100])
    first = imported(tmp_path, tmp_path / "sums")
    late.write_bytes(whole)
    image(tmp_path / "sums/m2.mrc")
    assert first["micrograph"].tolist() == ["m0"]
    assert imported(tmp_path, tmp_path / "sums")["micrograph"].tolist() == ["m0", "m1", "m2"]


def test_a_table_of_relion_keeps_its_names_and_its_ctf(tmp_path):
    for number in range(3):
        image(tmp_path / f"sums/m{number}.mrc")
    names = [f"sums/m{number}.mrc" for number in range(3)]
    optics = (OpticsGroup("a", 200.0, 1.2e7, 0.1), OpticsGroup("b", 300.0, 2.7e7, 0.07))
    columns = {
        "optics_group": np.array([0, 1, 0], np.int32),
        "micrograph": np.array(names, TEXT),
        "defocus_u": np.array([1e4, 1.1e4, 1.2e4]),
        "defocus_v": np.array([0.9e4, 1.0e4, 1.1e4]),
        "defocus_angle": np.array([0.1, 0.2, 0.3]),
    }
    given = Micrographs(optics, columns)
    write_star(tmp_path / "corrected.star", micrographs_to_blocks(given, pixel_size=0.9))
    table = imported(tmp_path, tmp_path / "corrected.star", voltage_kV=None, cs_mm=None)
    assert table["micrograph"].tolist() == names
    assert table["image"].tolist() == [str(tmp_path / name) for name in names]
    assert [group.voltage for group in table.optics] == [200.0, 300.0]
    np.testing.assert_allclose(table["defocus_angle"], [0.1, 0.2, 0.3])
    assert set(table["pixel_size"].tolist()) == {0.9}


def test_an_exposure_file_of_cryosparc(tmp_path):
    image(tmp_path / "J1/m0.mrc")
    fields = [
        ("uid", "u8"), ("micrograph_blob/path", "S20"), ("micrograph_blob/psize_A", "f4"),
        ("mscope_params/accel_kv", "f4"), ("mscope_params/cs_mm", "f4"), ("ctf/amp_contrast", "f4"),
        ("ctf/df1_A", "f4"), ("ctf/df2_A", "f4"), ("ctf/df_angle_rad", "f4"), ("ctf_stats/ctf_fit_to_A", "f4"),
    ]  # fmt: skip
    rows = np.array([(1, b">J1/m0.mrc", 1.25, 300, 2.7, 0.07, 12000, 11000, 0.4, 3.5)], fields)
    np.save(tmp_path / "exposures.npy", rows)
    (tmp_path / "exposures.npy").rename(tmp_path / "exposures.cs")
    table = imported(tmp_path, tmp_path / "exposures.cs", voltage_kV=None, cs_mm=None)
    assert table["image"].tolist() == [str(tmp_path / "J1/m0.mrc")]
    assert table.optics[0] == OpticsGroup("group0", 300.0, 2.7e7, 0.07)
    assert (table["pixel_size"][0], table["defocus_u"][0], table["ctf_fit_resolution"][0]) == (1.25, 12000, 3.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cs_mm": None}, "nothing says the spherical aberration"),
        ({"voltage_kV": None}, "nothing says the voltage"),
        ({"pixel_size_A": 200.0}, "plausible for micrographs"),
    ],
)
def test_what_is_not_known_of_the_microscope_is_asked_for(tmp_path, options, said):
    image(tmp_path / "sums/m0.mrc")
    with pytest.raises(ParameterError, match=said):
        imported(tmp_path, tmp_path / "sums", **options)


def test_nothing_there_or_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(MissingInputError, match="matches no file"):
        imported(tmp_path, tmp_path / "*.mrc")
    with pytest.raises(CloudemError, match="neither an image"):
        imported(tmp_path, tmp_path / "notes.txt")
    image(tmp_path / "sums/m0.mrc", count=4)
    with pytest.raises(ParameterError, match="none of 1 micrographs can be used"):
        imported(tmp_path, tmp_path / "sums")
