"""Optics groups that rows make: aberrations in the particle table, and pixel sizes of version 3.0."""

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError
from cloudem.io.formats.relion import particles_to_blocks, read_particles_star
from tests.io.conftest import COUNT, LABELS, OPTICS, loop, particle_rows


def with_columns(project, columns):
    """Write a table whose rows state more columns; each is a function of the row number."""
    rows = [" ".join([row, *(value(i) for value in columns.values())]) for i, row in enumerate(particle_rows())]
    path = project / "more.star"
    path.write_text(OPTICS + "\ndata_particles\n\n" + loop([*LABELS, *columns], rows))
    return path


def test_aberrations_of_optics_groups_come_back_digit_by_digit(project):
    text = OPTICS.replace("_rlnOddZernike #10", "_rlnOddZernike #10\n_rlnEvenZernike #11\n_rlnMagMat01 #12")
    text = text.replace("[0.1,0.2,-3,0,0,0] ", "[1e-05,-2.500,3,0,-0,0.30000000000000004] [0] -1.250e-3")
    text = text.replace("[0,0,0,0,0,0] ", "[] [0,0.1,0,1] 0.000000")
    path = project / "exact.star"
    path.write_text(text + "\ndata_particles\n\n" + loop(LABELS, particle_rows()))
    optics = particles_to_blocks(read_particles_star(path).particles, box=16, pixel_size=1.34)["optics"]
    assert optics["rlnOddZernike"].tolist() == ["[1e-05,-2.500,3,0,-0,0.30000000000000004]", "[]"]
    assert optics["rlnEvenZernike"].tolist() == ["[0]", "[0,0.1,0,1]"]
    assert optics["rlnMagMat01"].tolist() == ["-1.250e-3", "0.000000"]
    assert optics["rlnBeamTiltX"].tolist() == ["0.125000", "-0.250000"]


def test_aberrations_in_the_particle_table_become_optics_groups(project):
    columns = {"rlnBeamTiltY": lambda i: f"{0.5 if i % 2 else -0.25}", "rlnMagMat00": lambda i: "1.01"}
    source = read_particles_star(with_columns(project, columns))
    table = source.particles
    assert len(table.optics) == 4
    assert not any("BeamTilt" in name or "MagMat" in name for name in table.columns)
    for row in range(COUNT):
        group = table.optics[table["optics_group"][row]]
        assert group.beam_tilt == (0.125 if row % 3 else -0.25, 0.5 if row % 2 else -0.25)
        assert group.magnification[0, 0] == 1.01
        assert group.voltage == (300 if row % 3 else 200)
    optics = particles_to_blocks(table, box=16, pixel_size=1.34)["optics"]
    assert optics["rlnOpticsGroup"].tolist() == ["1", "2", "3", "4"]
    assert len(set(optics["rlnOpticsGroupName"].tolist())) == 4


def test_rows_that_say_what_their_groups_do_make_no_others(project):
    same = {"rlnBeamTiltX": lambda i: "0.125" if i % 3 else "-2.5e-1", "rlnEvenZernike": lambda i: "[0,0.5]"}
    table = read_particles_star(with_columns(project, same)).particles
    assert [group.name for group in table.optics] == ["gridA", "gridB"]
    assert [group.extra["rlnOpticsGroup"] for group in table.optics] == ["3", "7"]
    assert [group.even_zernike for group in table.optics] == [(0, 0.5)] * 2
    with pytest.raises(InconsistentDataError, match="states _rlnBeamTiltX for each row and otherwise for its optics"):
        read_particles_star(with_columns(project, {"rlnBeamTiltX": lambda i: "0.3"}))


def test_rows_of_version_30_with_two_pixel_sizes_are_two_groups(project):
    labels = ["rlnImageName", "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnDefocusU",
              "rlnDetectorPixelSize", "rlnMagnification", "rlnOriginX", "rlnBeamTiltX"]  # fmt: skip
    rows = [f"{i + 1}@Extract/a.mrcs 300 2.7 0.1 10000 5.0 {25000 if i % 2 else 50000} 3 0.3" for i in range(6)]
    path = project / "old.star"
    path.write_text("\ndata_\n\n" + loop(labels, rows))
    source = read_particles_star(path)
    assert source.pixel_size == 0
    assert source.group_sizes == ((1.0, 0), (2.0, 0))
    np.testing.assert_array_equal(source.particles["shift_x"], np.where(np.arange(6) % 2, -6.0, -3.0))
    assert [len(part.particles) for _, part in source.parts()] == [3, 3]


def test_as_many_groups_as_particles_are_refused(project, monkeypatch):
    monkeypatch.setattr("cloudem.io.formats.relion_optics.MOST_GROUPS", 30)
    with pytest.raises(InconsistentDataError, match=r"its rows state 40 different sets .* at most 30 optics groups"):
        read_particles_star(with_columns(project, {"rlnBeamTiltY": lambda i: f"{i}"}))
