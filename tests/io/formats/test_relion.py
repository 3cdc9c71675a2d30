import re

import numpy as np
import pytest

from cloudem.errors import (
    FormatError,
    InconsistentDataError,
    MissingColumnError,
    ParameterError,
)
from cloudem.io.formats.relion import particles_to_blocks, read_particles_star
from cloudem.io.formats.star import read_star, write_star
from tests.io.conftest import COUNT, LABELS, OPTICS, loop, particle_rows


def assert_same_tables(first, second):
    """Every label and value of the first is in the second: as text, or as the same number."""
    for block, table in first.items():
        for label, values in table.items():
            for a, b in zip(values.tolist(), second[block][label].tolist(), strict=True):
                assert a == b or float(a) == pytest.approx(float(b), rel=1e-11), (label, a, b)


def test_units_signs_and_optics(project):
    source = read_particles_star(project / "particles.star")
    first = [float(v) if re.fullmatch(r"[-+.\de]+", v) else v for v in particle_rows()[0].split()]
    row = dict(zip(LABELS, first, strict=True))
    p = source.particles
    assert len(p) == COUNT
    assert p["defocus_u"][0] == row["rlnDefocusU"]
    assert p["rot"][0] == pytest.approx(np.deg2rad(row["rlnAngleRot"]))
    assert p["defocus_angle"][0] == pytest.approx(np.deg2rad(row["rlnDefocusAngle"]))
    assert p["shift_x"][0] == -row["rlnOriginXAngst"]
    assert p["half_set"][:3].tolist() == [1, 2, 1]
    assert p["optics_group"][:4].tolist() == [1, 0, 0, 1]
    assert [(g.name, g.voltage, g.spherical_aberration) for g in p.optics] == [
        ("gridA", 300, 2.7e7),
        ("gridB", 200, 1e5),
    ]
    assert p.optics[0].extra["rlnOddZernike"] == "[0.1,0.2,-3,0,0,0]"
    assert (source.pixel_size, source.box, source.stacks) == (1.34, 16, ("Extract/a.mrcs",))
    assert source.section.tolist() == list(range(COUNT))


def test_star_to_table_to_star_loses_nothing(project):
    path = project / "particles.star"
    source = read_particles_star(path)
    blocks = particles_to_blocks(source.particles, box=source.box, pixel_size=source.pixel_size)
    write_star(project / "again.star", blocks)
    before, after = read_star(path), read_star(project / "again.star")
    assert_same_tables(before, after)
    assert_same_tables(after, before)


def test_version_30_without_optics(project):
    """One block without a name, optics in every row, magnification, shifts in pixels."""
    labels = ["rlnImageName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDefocusU",
              "rlnDetectorPixelSize", "rlnMagnification", "rlnOriginX", "rlnOriginY", "rlnBeamTiltX"]  # fmt: skip
    rows = [f"{i + 1}@Extract/a.mrcs {200 if i == 3 else 300} 2.7 0.1 10000 5.0 37313.43 1.5 -2 0.3" for i in range(5)]
    path = project / "old.star"
    path.write_text("\ndata_\n\n" + loop(labels, rows))
    source = read_particles_star(path)
    assert source.pixel_size == pytest.approx(1.34, rel=1e-6)
    p = source.particles
    assert p["shift_x"] == pytest.approx(np.full(5, -1.5 * source.pixel_size))
    assert p["shift_y"] == pytest.approx(np.full(5, 2 * source.pixel_size))
    assert p["optics_group"].tolist() == [0, 0, 0, 1, 0]
    assert [group.voltage for group in p.optics] == [300, 200]
    assert p.optics[1].extra == {"rlnBeamTiltX": "0.3"}
    np.testing.assert_array_equal(p["defocus_v"], p["defocus_u"])
    blocks = particles_to_blocks(p, box=16, pixel_size=source.pixel_size)
    assert blocks["optics"]["rlnBeamTiltX"].tolist() == ["0.3", "0.3"]
    assert blocks["particles"]["rlnMagnification"][0] == "37313.43"
    assert blocks["particles"]["rlnOriginXAngst"].astype(float) == pytest.approx(np.full(5, 1.5 * source.pixel_size))


def test_shifts_in_angstrom_win_over_those_in_pixels(project, edit_star):
    path = edit_star("_rlnSomethingNew", "_rlnOriginX")
    path.write_text(re.sub(r"name_\d+", "99", path.read_text()))
    source = read_particles_star(path)
    assert abs(source.particles["shift_x"]).max() < 10
    assert "rln:rlnOriginX" not in source.particles


def test_one_optics_group_written_as_pairs(project):
    optics = "\ndata_optics\n\n_rlnOpticsGroup 1\n_rlnVoltage 300\n_rlnSphericalAberration 2.7\n"
    optics += "_rlnAmplitudeContrast 0.1\n_rlnImagePixelSize 2\n"
    (project / "p.star").write_text(optics + "\ndata_particles\n" + loop(["rlnImageName", "rlnDefocusU"], ["1@a 1e4"]))
    assert read_particles_star(project / "p.star").particles.optics[0].voltage == 300


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("_rlnDefocusU", "_rlnOther", MissingColumnError, "no defocus"),
        ("_rlnImageName", "_rlnOther", MissingColumnError, "no particle images"),
        ("_rlnVoltage", "_rlnOther", MissingColumnError, "rlnVoltage"),
        ("200.000000", "0.000000", FormatError, "voltage of 0 kV"),
        ("16 2 ", "16 3 ", InconsistentDataError, "subtomograms"),
        ("gridB 7", "gridB 9", InconsistentDataError, "optics group 7"),
        ("000004@", "x@", FormatError, "number@stack"),
        ("000004@", "0@", FormatError, "number@stack"),
        ("000004@", "99999999999999999999@", FormatError, "number@stack"),
        ("000004@", "9" * 5000 + "@", FormatError, "number@stack"),
        (" 1 ", " 5 ", FormatError, "RandomSubset"),
        (" 1 ", " 257 ", FormatError, "RandomSubset"),
        ("gridB 7", "gridB 1e300", FormatError, "whole numbers"),
        ("m0.mrc 7", "m0.mrc 7.5", FormatError, "whole numbers"),
    ],
)
def test_bad_tables_are_one_clear_line(edit_star, old, new, error, words):
    path = edit_star(old, new)
    with pytest.raises(error, match=words) as caught:
        read_particles_star(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "nan", "inf"])
def test_values_that_are_no_numbers_are_named(project, edit_star, value):
    defocus = particle_rows()[4].split()[3]
    with pytest.raises(FormatError, match=f"_rlnDefocusU of row 5 is '{value}'"):
        read_particles_star(edit_star(f" {defocus} ", f" {value} "))


def test_defocus_may_be_missing_when_asked_for(edit_star):
    source = read_particles_star(edit_star("_rlnDefocusU", "_rlnOther"), allow_no_ctf=True)
    assert "defocus_u" not in source.particles


def test_an_empty_selection(project):
    (project / "empty.star").write_text(OPTICS + "\ndata_particles\n" + loop(LABELS, []))
    with pytest.raises(ParameterError, match="selection is empty"):
        read_particles_star(project / "empty.star")


def test_real_tables_lose_nothing(shared_data, tmp_path):
    for name in ("apoferritin/relion_extract/particles.star", "ribosome/poses_96_2000.star"):
        source = read_particles_star(shared_data / name)
        blocks = particles_to_blocks(source.particles, box=source.box, pixel_size=source.pixel_size)
        write_star(tmp_path / "again.star", blocks)
        before, after = read_star(shared_data / name), read_star(tmp_path / "again.star")
        assert_same_tables(before, after)
        assert_same_tables(after, before)
