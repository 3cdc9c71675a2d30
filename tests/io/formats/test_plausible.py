"""Values that no microscope has are refused, odd ones are said, and so is what is known and not applied."""

import re
from dataclasses import replace

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError
from cloudem.io.formats.plausible import doubts, truth
from cloudem.io.formats.unapplied import lost_in_star, unapplied
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
    assert unapplied(replace(particles, optics=(GROUP, other)), 1.3) == []


MATRIX = {"rlnMagMat00": "1.02", "rlnMagMat01": "0", "rlnMagMat10": "0", "rlnMagMat11": "0.99"}
NOTHING = {
    "rlnBeamTiltX": "0.0", "rlnBeamTiltY": "0", "rlnOddZernike": "[0,0,0]", "rlnEvenZernike": "[0,0.0]",
    "rlnMagMat00": "1", "rlnMagMat01": "0", "rlnMagMat10": "0", "rlnMagMat11": "1.000000",
}  # fmt: skip


def in_both_places(labels):
    columns = {f"rln:{label}": np.full(COUNT, text).astype(TEXT) for label, text in labels.items()}
    return [table({"extra": labels}), table(**columns)]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            {"rlnBeamTiltX": "0.3", "rlnBeamTiltY": "-0.4"},
            "beam tilt of up to 0.5 mrad is not applied: .* beyond 3.5 Å$",
        ),
        ({"rlnBeamTiltX": "0.001"}, "beam tilt of up to 0.001 mrad .* beyond 0.44 Å, finer than 2.6 Å"),
        ({"rlnOddZernike": "[0,0,1e-2]"}, "not applied: odd Zernike terms"),
        ({"rlnEvenZernike": "[0,-.3]", "rlnOddZernike": "[0]"}, "not applied: even Zernike terms"),
        (MATRIX, "2.0% of anisotropic magnification blurs what lies 100 Å .* by up to 2 Å"),
    ],
)
def test_what_is_not_applied_is_said_with_its_size(labels, words):
    for particles in in_both_places(labels):
        (line,) = unapplied(particles, 1.3)
        assert re.search(words, line), line


def test_terms_that_are_zero_are_not_worth_a_word():
    for particles in in_both_places(NOTHING):
        assert unapplied(particles, 1.3) == []


@pytest.mark.parametrize(
    ("field", "text", "words"),
    [
        ("ctf/tilt_A", '["0.0", "1200.5"]', "beam tilt (ctf/tilt_A)"),
        ("ctf/trefoil_A", '["1e3", "0.0"]', "trefoil"),
        ("ctf/tetra_A", '["0.0", "0.0", "-3.0", "0.0"]', "tetrafoil"),
        ("ctf/anisomag", '["0.01", "0.0", "0.0", "-0.01"]', "1.0% of anisotropic magnification"),
    ],
)
def test_aberrations_of_cryosparc_are_said_and_what_a_star_file_loses_too(field, text, words):
    particles = table(**{f"cs:{field}": np.full(COUNT, text).astype(TEXT)})
    (line,) = unapplied(particles, 1.3)
    assert words in line
    (lost,) = lost_in_star(particles)
    assert field in lost
    nothing = table(**{f"cs:{field}": np.full(COUNT, '["0.0", "0.0", "0.0", "0.0"]').astype(TEXT)})
    assert unapplied(nothing, 1.3) == lost_in_star(nothing) == []
