"""Sets whose truth is known: what is drawn is what the recipe says, and the truth is found on a map."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudem.algorithms import placing
from cloudem.algorithms.density import demo_molecule, density_of_atoms
from cloudem.io.formats.mrc import NOWHERE, Volume
from cloudem.io.particle_store import open_particles
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.atoms import Atoms
from cloudem.model.poses import angle_between, euler_to_matrix

hard_sets = pytest.importorskip("benchmarks.bars.hard_sets", reason="the benchmarks lie beside the package")

BOX, PIXEL_A = 32, 5.0


@pytest.fixture(scope="module")
def atoms() -> Atoms:
    return demo_molecule(110.0, seed=4)


@pytest.fixture(scope="module")
def truth(atoms):
    return density_of_atoms(atoms, BOX, PIXEL_A)


def images_in(store):
    found = open_particles(store)
    return found.read_images(np.arange(len(found)))


def test_views_lie_near_the_axis_as_often_as_wanted():
    axis = np.array([1.0, 2.0, -2.0]) / 3
    views = hard_sets.Views(share=0.8, within_deg=15.0, axis=tuple(axis))
    truth, _ = hard_sets.draw(hard_sets.Recipe(count=4000, views=views), seed=3)
    angle = np.degrees(np.arccos(euler_to_matrix(truth["rot"], truth["tilt"], truth["psi"])[:, 2] @ axis))
    near = angle[angle <= 15]
    cap = (1 - np.cos(np.radians(15))) / 2  # of the uniform ones
    assert len(near) / 4000 == pytest.approx(0.8 + 0.2 * cap, abs=0.02)
    # uniform inside the cap: half of it lies within the angle whose cap is half as large
    middle = np.degrees(np.arccos(1 - cap))
    assert np.mean(near < middle) == pytest.approx(0.5, abs=0.03)


def test_particles_are_those_of_simulate_where_no_view_is_preferred():
    from cloudem.algorithms.simulate import random_particles

    recipe = hard_sets.Recipe(count=60)
    truth, drawn = hard_sets.draw(recipe, seed=5)
    plain = random_particles(60, recipe.recording(), 5)
    for name in ("psi", "tilt", "shift_x", "defocus_u", "half_set"):
        np.testing.assert_allclose(truth[name], plain[name])
    assert np.all(drawn.contrast == 1)
    assert not drawn.foreign.any()


def test_perturbed_poses_are_off_by_what_is_asked_for():
    truth, _ = hard_sets.draw(hard_sets.Recipe(count=4000), seed=1)
    off = hard_sets.perturbed(truth, 2.0, 1.5, seed=1)
    before, after = (euler_to_matrix(one["rot"], one["tilt"], one["psi"]) for one in (truth, off))
    # the square of the angle is the sum of three squared deviates
    assert np.degrees(np.sqrt(np.mean(angle_between(before, after) ** 2))) == pytest.approx(2 * np.sqrt(3), rel=0.03)
    assert np.std(off["shift_y"] - truth["shift_y"]) == pytest.approx(1.5, rel=0.05)


def test_contrast_scales_the_signal_and_foreign_images_show_the_other(tmp_path, truth):
    other = Volume(density_of_atoms(demo_molecule(90.0, seed=9), BOX, PIXEL_A), PIXEL_A, NOWHERE)
    own = Volume(truth, PIXEL_A, NOWHERE)
    recipe = hard_sets.Recipe(count=80, snr=1.0)
    plain = images_in(hard_sets.make_set(tmp_path / "plain", own, recipe, 0) / "particles.zarr")
    silent = images_in(
        hard_sets.make_set(tmp_path / "silent", own, hard_sets.Recipe(count=80, snr=0.0), 0) / "particles.zarr"
    )
    mixed = hard_sets.Recipe(count=80, snr=1.0, contrast=(0.5, 2.0), foreign=0.4)
    folder = hard_sets.make_set(tmp_path / "mixed", own, mixed, 0, other)
    drawn, signal, changed = hard_sets.drawn_of(folder), plain - silent, images_in(folder / "particles.zarr") - silent
    factor = np.sum(changed * signal, axis=(1, 2)) / np.sum(signal**2, axis=(1, 2))
    mine = ~drawn.foreign
    np.testing.assert_allclose(factor[mine], drawn.contrast[mine], rtol=0.02)
    rest = changed - drawn.contrast[:, None, None] * signal
    left = np.linalg.norm(rest, axis=(1, 2)) / np.linalg.norm(signal, axis=(1, 2)) / drawn.contrast
    assert left[mine].max() < 0.05 < 0.3 < left[drawn.foreign].min()
    assert 15 < drawn.foreign.sum() < 50
    assert drawn.contrast.min() < 0.7 < 1.5 < drawn.contrast.max() <= 2
    # the images whose poses are known are the molecule's own
    np.testing.assert_array_equal(images_in(folder / "known.zarr"), images_in(folder / "particles.zarr")[mine])


def test_a_set_is_kept_for_its_own_recipe_alone(tmp_path, truth):
    volume, recipe = Volume(truth, PIXEL_A, NOWHERE), hard_sets.Recipe(count=20, snr=1.0)
    folder = hard_sets.make_set(tmp_path / "set", volume, recipe, 0)
    first = images_in(folder / "particles.zarr")
    (folder / "kept").touch()
    hard_sets.make_set(folder, volume, recipe, 0)
    assert (folder / "kept").exists()
    hard_sets.make_set(folder, volume, hard_sets.Recipe(count=20, snr=2.0), 0)
    assert not (folder / "kept").exists()
    assert np.abs(images_in(folder / "particles.zarr") - first).max() > 0.1


def test_foreign_images_need_another_density(tmp_path, truth):
    with pytest.raises(ValueError, match="no other density"):
        hard_sets.make_set(tmp_path / "x", Volume(truth, PIXEL_A, NOWHERE), hard_sets.Recipe(count=20, foreign=0.5), 0)


def test_the_truth_is_found_on_a_map_that_is_turned_shifted_and_mirrored(atoms, truth):
    rng = np.random.default_rng(2)
    turn = Rotation.random(rng=rng)
    positions = atoms.positions - atoms.centre_of_mass()
    there = turn.apply(-positions) + np.array([4.0, -6.0, 2.0])
    clean = density_of_atoms(atoms._replace(positions=there), BOX, PIXEL_A, centre=False)
    found = clean + rng.normal(0, clean.std(), clean.shape).astype(np.float32)
    placed = placing.place(found, truth, PIXEL_A, 60.0)
    assert placed.mirrored
    assert np.degrees((Rotation.from_matrix(placed.turn) * turn.inv()).magnitude()) < 0.7
    np.testing.assert_allclose(PIXEL_A * placed.shift, [4.0, -6.0, 2.0], atol=0.7)
    assert fourier_shell_correlation(placed.volume, clean)[1 : BOX // 2 - 1].min() > 0.97


@pytest.mark.parametrize("mirrored", [False, True])
def test_poses_of_a_map_become_those_of_the_truth(truth, mirrored):
    """The image that the truth gives along such a pose is the one that the map gives along its own."""
    from cloudem.algorithms.simulate import Recording, Simulator
    from cloudem.model.poses import matrix_to_euler

    turn = Rotation.from_rotvec([0.4, -0.9, 0.3]).as_matrix()
    still = np.zeros(3)
    placed = placing.PlacedMap(turn, still, mirrored, 1.0, placing.moved_map(truth, turn, still, mirrored=mirrored))
    particles, _ = hard_sets.draw(hard_sets.Recipe(count=6), seed=8)
    centred = particles.with_columns(shift_x=np.zeros(6), shift_y=np.zeros(6))
    matrices = euler_to_matrix(particles["rot"], particles["tilt"], particles["psi"])
    rot, tilt, psi = matrix_to_euler(placed.poses(matrices))
    same = centred.with_columns(rot=rot, tilt=tilt, psi=psi)
    of_map = Simulator(placed.volume, PIXEL_A, centred, Recording(snr=None), 0).some_images(np.arange(6))
    of_truth = Simulator(truth, PIXEL_A, same, Recording(snr=None), 0).some_images(np.arange(6))
    for a, b in zip(of_map, of_truth, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def test_a_map_that_is_longer_along_an_axis_is_measured(atoms, truth):
    positions = (atoms.positions - atoms.centre_of_mass()) * [1.0, 1.0, 1.1]
    longer = density_of_atoms(atoms._replace(positions=positions), BOX, PIXEL_A, centre=False)
    still = placing.PlacedMap(np.eye(3), np.zeros(3), False, 1.0, truth)
    along = [placing.stretched(longer, still, truth, PIXEL_A, 60.0, axis) for axis in ((0, 0, 1), (1, 0, 0))]
    assert along[0] == pytest.approx(1.1, abs=0.02)
    assert along[1] == pytest.approx(1.0, abs=0.05)
