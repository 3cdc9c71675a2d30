"""Values that no microscope has are refused, odd ones are said, and so is what is known and not applied."""

import re
from dataclasses import replace

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError
from cloudem.io.formats.plausible import doubts, truth
from cloudem.io.formats.unapplied import lost_in_star, unapplied, without_unapplied
from cloudem.model.optics import OpticsGroup
from cloudem.model.particles import TEXT, Particles

COUNT = 30


def table(optics=None, **columns):
    """Return particles as a microscope has them, but for what is given; single values are those of all."""
    rng = np.random.default_rng(0)
    defocus = rng.uniform(5e3, 3e4, COUNT)
    angles = {name: rng.uniform(-np.pi, np.pi, COUNT) for name in ("rot", "psi")}
    given = {name: np.full(COUNT, v) if np.ndim(v) == 0 else v for name, v in columns.items()}
    plain = {"defocus_u": defocus, "defocus_v": defocus - 200, "shift_x": rng.normal(0, 3, COUNT), **angles, **given}
    known = {name: values for name, values in plain.items() if ":" not in name}
    made = Particles((replace(GROUP, **(optics or {})),), {}).with_columns(shift_y=np.zeros(COUNT), **known)
    return replace(made, columns={**made.columns, **{n: v.astype(TEXT) for n, v in given.items() if ":" in n}})


GROUP = OpticsGroup("g", 300.0, 2.7e7, 0.1)
ONE = np.arange(COUNT) == 4


def look(particles, pixel_size=1.3):
    return doubts(particles, "p.star", box=64, pixel_size=pixel_size)


def test_what_microscopes_have_is_taken_without_a_word():
    for optics in (
        {},
        {"voltage": 120.0, "spherical_aberration": 1e5, "amplitude_contrast": 0.07},
        {"voltage": 1000.0},
    ):
        particles = table(optics, phase_shift=np.pi / 2, ctf_scale=0.9, ctf_b_factor=80.0)
        assert [line for line in look(particles) if "voltage" not in line] == []
    assert look(table(defocus_u=np.where(ONE, 12.0, 9e3))) == []  # one in focus
    assert look(table(), pixel_size=0.55) == []
    assert look(Particles((GROUP,), {}).with_columns(rot=np.zeros(0))) == []


@pytest.mark.parametrize(
    ("particles", "words"),
    [
        (table({"voltage": 300_000.0}), "voltage of 300000 kV, kilovolts are needed"),
        (table({"voltage": 0.3}), "voltage of 0.3 kV, kilovolts are needed"),
        (table({"spherical_aberration": 2.7e14}), "spherical aberration of 2.7e.07 mm, millimetres are needed"),
        (table({"amplitude_contrast": 7.0}), "an amplitude contrast of 7, a fraction from 0 to 1"),
        (table({"amplitude_contrast": -0.1}), "an amplitude contrast of -0.1"),
        (table(defocus_u=1.2, defocus_v=1.18), r"defocus of 1.2 Å for particle 1 \(30 such particles\), ångströms"),
        (table(defocus_u=np.where(ONE, 1e8, 1e4)), r"defocus of 1e.08 Å for particle 5 \(1 such particles\)"),
        (table(phase_shift=90.0), "phase shift of 5156.62 ° for particle 1"),
        (table(ctf_scale=np.where(ONE, -1e6, 1.0)), "scale of the CTF of -1e.06 for particle 5"),
        (table(shift_x=500.0), "30 of 30 particles of p.star are shifted out of their images, by 500 Å"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(particles, words):
    with pytest.raises(InconsistentDataError, match=words) as caught:
        look(particles)
    assert "\n" not in str(caught.value)
    assert "p.star" in str(caught.value)


@pytest.mark.parametrize("size", [1.06e-10, 1e-3, 1e5, float("nan")])
def test_a_pixel_size_that_cannot_be_is_refused(size):
    with pytest.raises(InconsistentDataError, match=r"pixel size of .* ångströms are needed"):
        look(table(), pixel_size=size)


@pytest.mark.parametrize(
    ("particles", "size", "words"),
    [
        (table(shift_x=0.0), 0.106, "pixel size of 0.106 Å, which is unusual"),
        (table({"spherical_aberration": 0.0}), 1.3, "spherical aberration of 0 mm, which is unusual"),
        (table({"amplitude_contrast": 1.0}), 1.3, "amplitude contrast of 1, which is unusual"),
        (table(defocus_u=np.where(ONE, -9e3, 9e3)), 1.3, "defocus of 1 of 30 particles is unusual .-9000 Å"),
        (
            table(defocus_u=np.where(np.arange(COUNT) < 6, 1.2, 9e3)),
            1.3,
            "defocus of 6 of 30 particles is unusual (1.2 Å",
        ),
        (table(defocus_u=0.0 + 900, defocus_v=800.0), 1.3, "defocus of the particles is about 900 Å, which is unusual"),
        (table(phase_shift=np.pi / 2 / 57.3), 1.3, "phase shift of the particles is about 1.57 °"),
        (table(shift_x=np.where(ONE, 80.0, 0.0)), 1.3, "1 of 30 particles of p.star are shifted out of their images"),
        (table(rot=np.linspace(-0.05, 0.05, COUNT), psi=0.04), 1.3, "are they in radians"),
    ],
)
def test_what_is_odd_is_said_once(particles, size, words):
    (line,) = look(particles, size)
    assert words.replace(".-", "(-") in line


def test_without_a_ctf_nothing_need_be_known_of_the_microscope():
    particles = table({"voltage": 0.0, "amplitude_contrast": 0.0}).without_columns(["defocus_u", "defocus_v"])
    assert look(particles) == []


@pytest.mark.parametrize("text", ["1", "True", "true", "TRUE", "yes", "1.0", " 1 ", "2"])
@pytest.mark.parametrize(
    "label", ["rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped", "cs:ctf/phase_flipped"]
)
def test_images_that_hold_their_ctf_are_refused_wherever_it_stands_and_however_it_is_spelled(label, text):
    column = label if ":" in label else f"rln:{label}"
    where = [table(**{column: np.where(ONE, text, "0").astype(TEXT)})]
    where += [] if ":" in label else [table({"extra": {label: text}})]
    for particles in where:
        with pytest.raises(InconsistentDataError, match=f"says {label.removeprefix('cs:')}: the images hold their CTF"):
            look(particles)


@pytest.mark.parametrize("text", ["0", "False", "false", "no", "0.0", ""])
def test_images_that_do_not_are_taken(text):
    label = "rlnCtfDataArePhaseFlipped"
    column = np.full(COUNT, text).astype(TEXT)
    assert look(table({"extra": {label: text}}, **{f"rln:{label}": column})) == []
    assert not truth(text, "x")
    with pytest.raises(InconsistentDataError, match="'perhaps', which is neither 1 nor 0"):
        truth("perhaps", "x")


def test_only_optics_groups_that_are_used_count():
    particles = table()
    other = replace(GROUP, voltage=3e5, extra={"rlnCtfDataArePhaseFlipped": "1", "rlnBeamTiltX": "1"})
    assert look(replace(particles, optics=(GROUP, other))) == []
    long = replace(GROUP, extra={"rlnEvenZernike": "[0,0,0,0,0,0,0,0,0,1]"})
    without_unapplied(replace(particles, optics=(GROUP, long)), "p.star", allowed=False)


MATRIX = {"rlnMagMat00": "1.02", "rlnMagMat01": "0", "rlnMagMat10": "0", "rlnMagMat11": "0.99"}
NOTHING = {
    "rlnBeamTiltX": "0.0", "rlnBeamTiltY": "0", "rlnOddZernike": "[0,0]", "rlnEvenZernike": "[0.0]",
    "rlnMagMat00": "1", "rlnMagMat01": "0", "rlnMagMat10": "0", "rlnMagMat11": "1.000000",
}  # fmt: skip
ODD_LIST, EVEN_LIST = "[0,0,1e-2,0,-3.5,0]", "[0,-.3,0,1]"


@pytest.mark.parametrize(
    "labels",
    [
        {"rlnBeamTiltX": "0.3", "rlnBeamTiltY": "-0.4"},
        {"rlnOddZernike": ODD_LIST, "rlnEvenZernike": EVEN_LIST},
        {"rlnOddZernike": "[]", "rlnEvenZernike": "[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]"},  # zeros of sixth order
        MATRIX,
        NOTHING,
    ],
)
def test_aberrations_of_optics_groups_are_applied_and_need_no_word(labels):
    particles = table({"extra": labels})
    assert look(particles) == unapplied(particles) == lost_in_star(particles) == []
    kept, said = without_unapplied(particles, "p.star", allowed=False)
    assert (kept.optics, said) == (particles.optics, [])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"rlnBeamTiltX": "nan"}, "rlnBeamTiltX of optics group g is 'nan'; it must hold finite numbers"),
        ({"rlnBeamTiltX": "[1,2]"}, "one number is needed"),
        ({"rlnBeamTiltY": "300"}, "a beam tilt of 300 mrad, milliradians"),
        ({"rlnOddZernike": "[0,inf]"}, "finite numbers"),
        ({"rlnOddZernike": "aberration"}, "finite numbers"),
        ({"rlnOddZernike": "[[0,1]]"}, "finite numbers"),
        ({"rlnOddZernike": "[0,1"}, r"rlnOddZernike is '\[0,1', a list that is cut off"),
        ({"rlnEvenZernike": "[0,0,0,0,0,0,0,0,0,0,0,0,1e-3,0,0,0]"}, "16 entries, of which the first 9 can be applied"),
        (
            {"rlnMagMat00": "0", "rlnMagMat11": "0"},
            "rlnMagMat00 to 11 of optics group g are 0 0 0 0, which is not near",
        ),
        ({"rlnMagMat00": "0.01", "rlnMagMat11": "-0.01"}, "cryoSPARC writes the difference"),
        ({"rlnMagMat00": "-1"}, "not near the unit matrix"),
        ({"rlnMagMat00": "0", "rlnMagMat11": "0", "rlnMagMat01": "1", "rlnMagMat10": "1"}, "not near"),  # a mirror
        ({"rlnMagMat01": "0.5"}, "not near the unit matrix"),
    ],
)
def test_aberrations_that_cannot_be_are_refused(labels, words):
    with pytest.raises(InconsistentDataError, match=words) as caught:
        look(table({"extra": labels}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"rlnOddZernike": "[0,0,1]"}, "3 entries, and whole orders 2 or 6: is the list cut off"),
        ({"rlnEvenZernike": "[0,0,0,0,0]"}, "5 entries, and whole orders 4 or 9"),
        ({"rlnBeamTiltX": "7"}, "beam tilt of 7 mrad, which is unusual"),
        ({"rlnMagMat00": "1.08"}, "stretches by 8.0%, which is unusual"),
    ],
)
def test_aberrations_that_are_odd_are_said(labels, words):
    (line,) = look(table({"extra": labels}))
    assert words in line


def test_what_stands_in_the_particle_table_of_a_store_is_not_applied():
    columns = {f"rln:{label}": np.full(COUNT, text).astype(TEXT) for label, text in NOTHING.items()}
    assert unapplied(table(**columns)) == []
    columns["rln:rlnMagMat00"] = np.full(COUNT, "1.02").astype(TEXT)
    (line,) = unapplied(table(**columns))
    assert "not applied: rlnMagMat00, which stand in the particle table; import the particles again" in line


def test_orders_that_cannot_be_applied_are_left_out_only_where_that_was_asked_for():
    long = "[0,0,0.25,0,0,0,0,0,0,0,0,0,1e-3,0,0,0,0,0,0,0]"
    particles = table({"extra": {"rlnOddZernike": long, "other": "1"}})
    with pytest.raises(InconsistentDataError, match=r"beyond its first 12 of 20 entries.* --without-aberrations"):
        without_unapplied(particles, "p.star", allowed=False)
    kept, (line,) = without_unapplied(particles, "p.star", allowed=True)
    assert kept.optics[0].extra == {"rlnOddZernike": "[0,0,0.25,0,0,0,0,0,0,0,0,0]", "other": "1"}
    assert "are left out" in line
    assert look(kept) == []


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("ctf/tilt_A", '["0.0", "1200.5"]', "beam tilt (ctf/tilt_A)"),
        ("ctf/shift_A", '["0.0", "-0.5"]', "shift of the beam"),
        ("ctf/trefoil_A", '["1e3", "0.0"]', "trefoil"),
        ("ctf/tetra_A", '["0.0", "0.0", "-3.0", "0.0"]', "tetrafoil"),
        ("ctf/anisomag", '["0.01", "0.0", "0.0", "-0.01"]', "anisotropic magnification"),
    ],
)
def test_aberrations_of_cryosparc_are_refused_or_said_and_a_star_file_loses_them(field, text, words):
    particles = table(**{f"cs:{field}": np.full(COUNT, text).astype(TEXT)})
    with pytest.raises(InconsistentDataError, match=rf"{re.escape(words)}.* not documented.* --without-aberrations"):
        without_unapplied(particles, "p.cs", allowed=False)
    kept, said = without_unapplied(particles, "p.cs", allowed=True)
    assert (kept.columns.keys(), said) == (particles.columns.keys(), [])
    (line,) = unapplied(kept)
    assert words in line
    (lost,) = lost_in_star(particles)
    assert field in lost
    nothing = table(**{f"cs:{field}": np.full(COUNT, '["0.0", "0.0", "0.0", "0.0"]').astype(TEXT)})
    assert unapplied(nothing) == lost_in_star(nothing) == []
    without_unapplied(nothing, "p.cs", allowed=False)
