"""CTFs of simulated micrographs are found; noise has none; tilt, thickness and phase plates are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cloudem.algorithms.ctf_estimate import CtfSettings, estimate_ctf
from cloudem.algorithms.ctf_fit import CtfSearch
from cloudem.algorithms.ctf_picture import PICTURE
from cloudem.algorithms.ctf_thickness import layers_factor
from cloudem.algorithms.power_spectrum import average_spectrum, lay_tiles, polar_spectrum
from cloudem.algorithms.thon_background import Microscope
from cloudem.errors import ParameterError
from cloudem.testing.micrographs import SimulatedScene, simulate_micrograph

SCENE = SimulatedScene(
    shape=(1024, 1024), pixel_size=1.2, defocus_u=16500.0, defocus_v=15500.0, defocus_angle=0.6, ice=0.8
)


def estimated(scene: SimulatedScene, seed: int = 0, settings: CtfSettings | None = None):
    image = simulate_micrograph(scene, seed)
    microscope = Microscope(scene.voltage, scene.spherical_aberration, scene.amplitude_contrast)
    return estimate_ctf(image, scene.pixel_size, microscope, settings or CtfSettings())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"defocus_u": 7200.0, "defocus_v": 6800.0, "defocus_angle": -1.2},
        {"defocus_u": 26000.0, "defocus_v": 24000.0, "voltage": 200.0},
        {"shape": (900, 1300), "spherical_aberration": 1e5, "defocus_angle": 1.5},
    ],
)
def test_defocus_and_astigmatism_are_found(changes):
    scene = replace(SCENE, **changes)
    found = estimated(scene, 1)
    assert found.problem == ""
    assert found.fit.defocus_u == pytest.approx(scene.defocus_u, abs=150)
    assert found.fit.defocus_v == pytest.approx(scene.defocus_v, abs=150)
    turn = (found.fit.defocus_angle - scene.defocus_angle + np.pi / 2) % np.pi - np.pi / 2
    assert abs(turn) < np.deg2rad(8)
    assert 3 < found.quality.resolution < 9
    assert 0.4 < found.quality.score <= 1
    assert found.fit.errors[0] < 60
    assert np.isnan(found.fit.errors[3])


def test_an_image_and_its_transpose_have_mirrored_angles():
    image = simulate_micrograph(SCENE, 2)
    microscope = Microscope(300.0, 2.7e7, 0.1)
    one, other = (estimate_ctf(each, 1.2, microscope, CtfSettings()).fit for each in (image, image.T))
    assert one.defocus_u == pytest.approx(other.defocus_u, abs=5)
    turn = one.defocus_angle + other.defocus_angle - np.pi / 2
    assert abs((turn + np.pi / 2) % np.pi - np.pi / 2) < 0.02


def test_scaling_an_image_changes_nothing():
    image = simulate_micrograph(SCENE, 3)
    microscope = Microscope(300.0, 2.7e7, 0.1)
    one, other = (estimate_ctf(each, 1.2, microscope, CtfSettings()) for each in (image, -30 * image + 500))
    np.testing.assert_allclose(one.fit.parameters, other.fit.parameters, rtol=1e-3, atol=2)
    assert one.picture.shape == (PICTURE, PICTURE)


@pytest.mark.parametrize("seed", range(4))
def test_noise_has_no_ctf(seed):
    rng = np.random.default_rng(seed)
    image = rng.poisson(20, (1024, 1100)).astype(np.float32)
    found = estimate_ctf(image, 1.1, Microscope(300.0, 2.7e7, 0.1), CtfSettings())
    assert found.problem.startswith("shows no rings of a CTF")


def test_a_phase_plate_is_found_where_it_is_asked_for():
    scene = replace(SCENE, phase_shift=1.4, defocus_u=9000.0, defocus_v=8600.0, ice=1.2)
    settings = CtfSettings(CtfSearch(phase_shift=(0.0, np.pi)))
    found = estimated(scene, 4, settings).fit
    assert found.phase_shift == pytest.approx(1.4, abs=0.15)
    assert found.parameters[0] == pytest.approx(8800, abs=200)


def test_a_tilted_specimen_has_a_plane_of_defocus():
    scene = replace(SCENE, slope=(0.3, -0.4), ice=1.5, shape=(1200, 1200))
    found = estimated(scene, 5, CtfSettings(tilt=True, tile_defocus=True))
    slope = np.tan(found.tilt_angle) * np.array([-np.sin(found.tilt_axis), np.cos(found.tilt_axis)])
    np.testing.assert_allclose(slope, [0.3, -0.4], atol=0.1)
    assert found.fit.parameters[0] == pytest.approx(16000, abs=100)
    assert found.tiles is not None
    assert np.abs(found.tiles.residual).mean() < 200


def test_a_flat_specimen_has_no_tilt():
    found = estimated(SCENE, 6, CtfSettings(tilt=True))
    assert found.tilt_angle == 0


def test_a_thick_specimen_is_told_by_its_node():
    scene = replace(SCENE, thickness=1400.0, ice=2.0, fading=60.0, shape=(1300, 1300), proteins=5.0)
    found = estimated(scene, 7, CtfSettings(thickness=True))
    assert found.thickness == pytest.approx(1400, rel=0.15)
    assert np.isnan(estimated(SCENE, 7, CtfSettings(thickness=True)).thickness)
    assert found.fit.parameters[0] == pytest.approx(16000, abs=60)


def test_layers_cancel_at_the_node():
    lam, thickness = 0.0197, 1000.0
    node = 1 / (lam * thickness)
    factor = layers_factor(np.array([0.0, node, 1.5 * node]), thickness, lam)
    np.testing.assert_allclose(factor, [1, 0, -2 / (3 * np.pi)], atol=1e-12)


def test_a_ring_of_ice_is_counted():
    without, with_ice = (estimated(replace(SCENE, crystalline=each), 8).ice_ring_density for each in (0.0, 3.0))
    assert with_ice > without + 0.2


def test_tiles_cover_the_image_and_their_power_has_rings_and_sectors():
    tiles = lay_tiles((700, 1000), 1.5, 400.0)
    assert (tiles.corners + tiles.edge).max(axis=0).tolist() == [700, 1000]
    assert np.abs(tiles.centres.mean(axis=0)).max() < 1e-9
    noise = np.random.default_rng(0).normal(size=(700, 1000))
    polar = polar_spectrum(average_spectrum(noise, tiles, 1.5, 0.25))
    assert polar.values.shape == polar.weights.shape == polar.squares.shape
    known = polar.weights > 0
    assert np.average(polar.values[known], weights=polar.weights[known]) == pytest.approx(0, abs=0.02)
    s = polar.frequencies[50]
    assert polar.squares[50].mean() == pytest.approx(s * s, rel=0.01)


def test_an_image_that_is_too_small_is_refused():
    with pytest.raises(ParameterError, match="at least 64 x 64"):
        lay_tiles((60, 500), 1.0)


@pytest.mark.parametrize("what", ["flat", "one pixel", "half empty", "ramp", "tiny", "large pixels", "huge"])
def test_images_that_are_none_are_said_and_nothing_is_divided_by_zero(what):
    image = np.random.default_rng(0).normal(size=(300, 260)).astype(np.float32)
    if what in ("flat", "one pixel"):
        image[:] = 0
        image[7, 9] = what == "one pixel"
    image[:150] *= what != "half empty"
    if what == "ramp":
        image[:] = np.arange(260)
    image *= np.float32(1e30 if what == "huge" else 1)
    image = image[:64, :70] if what == "tiny" else image
    settings = CtfSettings(CtfSearch(phase_shift=(0.0, 1.0)), tilt=True, thickness=True, tile_defocus=True)
    microscope = Microscope(300.0, 0.0, 0.1)
    pixel_size = 15.0 if what == "large pixels" else 1.0
    if what in ("flat", "huge"):
        with pytest.raises(ParameterError, match="flat, or its values are too large"):
            estimate_ctf(image, pixel_size, microscope, settings)
    else:
        assert estimate_ctf(image, pixel_size, microscope, settings).problem


def test_a_damaged_pixel_costs_the_tiles_that_hold_it():
    """And no more: single precision has no room for the square of a flipped bit."""
    image, microscope = simulate_micrograph(SCENE, 5), Microscope(SCENE.voltage, SCENE.spherical_aberration, 0.1)
    settings = CtfSettings(tile_defocus=True)
    whole = estimate_ctf(image, SCENE.pixel_size, microscope, settings)
    image[5, 5] = 1e30
    damaged = estimate_ctf(image, SCENE.pixel_size, microscope, settings)
    assert whole.problem == damaged.problem == ""
    assert damaged.fit.parameters[0] == pytest.approx(whole.fit.parameters[0], rel=0.01)
    assert len(damaged.tiles.x) < len(whole.tiles.x)
