"""STAR files of micrographs, as motion correction and CTF estimation of RELION write them."""

from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import CloudemError, FormatError, InconsistentDataError, MissingColumnError, ParameterError
from cloudem.io.formats.relion import micrographs_to_blocks, read_micrographs_star
from cloudem.io.formats.star import read_star, write_star
from cloudem.io.storage.groups import read_group, write_group
from cloudem.io.storage.tables import table_from_arrays, table_to_arrays
from cloudem.model.micrographs import Micrographs

OPTICS = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnMicrographOriginalPixelSize #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnMicrographPixelSize #7
gridA 4 0.53 300 2.7 0.1 1.06
gridB 2 0.53 300 0.01 0.07 1.06
"""
LABELS = (
    "rlnMicrographName", "rlnOpticsGroup", "rlnCtfImage", "rlnDefocusU", "rlnDefocusV", "rlnCtfAstigmatism",
    "rlnDefocusAngle", "rlnCtfFigureOfMerit", "rlnCtfMaxResolution", "rlnCtfIceRingDensity", "rlnAccumMotionTotal",
)  # fmt: skip
ROWS = """MotionCorr/m1.mrc 2 CtfFind/m1.ctf:mrc 10863.857422 10575.80566 288.0517 77.967194 0.131144 4.809192 0.25 16.4
MotionCorr/m2.mrc 4 CtfFind/m2.ctf:mrc 9836.475586 9586.71875 249.7568 -71.36282 0.119 4.78 1.5 19.6
"""
TABLE = "\ndata_micrographs\n\nloop_\n" + "".join(f"_{label}\n" for label in LABELS) + ROWS


@pytest.fixture
def star(tmp_path: Path) -> Path:
    path = tmp_path / "micrographs_ctf.star"
    path.write_text(OPTICS + TABLE)
    return path


def test_columns_come_in_our_units(star):
    _, table, pixel_size = read_micrographs_star(star)
    assert pixel_size == 1.06
    assert table["optics_group"].tolist() == [1, 0]
    assert [(group.name, group.voltage, group.amplitude_contrast) for group in table.optics] == [
        ("gridA", 300, 0.1),
        ("gridB", 300, 0.07),
    ]
    np.testing.assert_allclose([group.spherical_aberration for group in table.optics], [2.7e7, 1e5])
    np.testing.assert_allclose(table["defocus_angle"], np.radians([77.967194, -71.36282]))
    assert table["ctf_fit_resolution"].tolist() == [4.809192, 4.78]
    assert table["motion_total"].tolist() == [16.4, 19.6]
    assert table["rln:rlnCtfImage"].tolist() == ["CtfFind/m1.ctf:mrc", "CtfFind/m2.ctf:mrc"]


def test_what_was_read_comes_back_by_way_of_a_group(star, tmp_path):
    _, table, pixel_size = read_micrographs_star(star)
    write_group(tmp_path / "group", "columns", *table_to_arrays(table))
    stored = table_from_arrays(Micrographs, *read_group(tmp_path / "group", "columns"))
    write_star(tmp_path / "out.star", micrographs_to_blocks(stored, pixel_size=pixel_size))
    before, after = read_star(star), read_star(tmp_path / "out.star")
    assert list(after) == ["optics", "micrographs"]
    for name, block in before.items():
        assert set(after[name]) == set(block)
        for label, values in block.items():
            assert after[name][label].tolist() == values.tolist(), label


def test_the_optics_of_version_3_0_stand_in_every_row(tmp_path):
    labels = ("rlnMicrographName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnMagnification")
    text = "data_\n\nloop_\n" + "".join(f"_{each}\n" for each in (*labels, "rlnDetectorPixelSize"))
    (tmp_path / "old.star").write_text(text + "m1.mrc 300 2.7 0.1 50000 7\nm2.mrc 200 2.7 0.1 50000 7\n")
    _, table, pixel_size = read_micrographs_star(tmp_path / "old.star")
    assert pixel_size == pytest.approx(1.4)
    assert [table.optics[group].voltage for group in table["optics_group"]] == [300, 200]


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("rlnMicrographName", "rlnMovie", MissingColumnError, "lists no micrographs .*give a micrograph STAR file"),
        ("m2.mrc", "m1.mrc", InconsistentDataError, "lists the micrograph 'MotionCorr/m1.mrc' 2 times"),
        (
            "rlnCtfImage",
            "rlnImageName",
            FormatError,
            r"lists particles \(_rlnImageName\), where micrographs are needed",
        ),
        (ROWS, "", ParameterError, "lists no micrographs: the selection is empty"),
        ("4.809192", "nothing", FormatError, "_rlnCtfMaxResolution of row 1 is 'nothing', a number is needed"),
        (" 4 CtfFind", " 5 CtfFind", InconsistentDataError, "in optics group 5, which its optics table lacks"),
        ("0.07 1.06", "0.07 1.07", InconsistentDataError, "mixes pixel sizes: 1.06 Å, 1.07 Å"),
        ("_rlnVoltage", "_rlnVolts", MissingColumnError, "has no _rlnVoltage"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(star, old, new, kind, words):
    text = star.read_text()
    assert old in text
    star.write_text(text.replace(old, new))
    with pytest.raises(CloudemError, match=words) as caught:
        read_micrographs_star(star)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
