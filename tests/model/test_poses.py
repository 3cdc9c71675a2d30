import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from cloudem.model.poses import (
    angle_between,
    angle_up_to,
    asymmetric_directions,
    euler_to_matrix,
    matrix_to_euler,
    random_rotations,
    rotate,
    sphere_directions,
    view_rotations,
)
from cloudem.model.symmetry import operators

angles = st.floats(-4, 4)
vectors = st.tuples(*[st.floats(-1, 1)] * 3).map(np.array)


def rz(a: float) -> np.ndarray:
    return np.array([[np.cos(a), np.sin(a), 0], [-np.sin(a), np.cos(a), 0], [0, 0, 1]])


def ry(a: float) -> np.ndarray:
    return np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])


@given(rot=angles, tilt=angles, psi=angles)
def test_matrix_is_the_product_that_the_conventions_state(rot: float, tilt: float, psi: float) -> None:
    matrix = euler_to_matrix(rot, tilt, psi)
    np.testing.assert_allclose(matrix, rz(psi) @ ry(tilt) @ rz(rot), atol=1e-14)
    np.testing.assert_allclose(matrix, Rotation.from_euler("ZYZ", [-psi, -tilt, -rot]).as_matrix(), atol=1e-14)


@given(rot=angles, tilt=st.one_of(angles, st.sampled_from([0.0, np.pi, 1e-12, np.pi - 1e-12, 1e-6])), psi=angles)
def test_euler_round_trip(rot: float, tilt: float, psi: float) -> None:
    matrix = euler_to_matrix(rot, tilt, psi)
    found = matrix_to_euler(matrix)
    assert 0 <= found[1] <= np.pi
    np.testing.assert_allclose(euler_to_matrix(*found), matrix, atol=2e-9)


def test_euler_angles_themselves_return() -> None:
    rng = np.random.default_rng(0)
    rot, psi = rng.uniform(-np.pi, np.pi, (2, 50))
    tilt = rng.uniform(0.01, np.pi - 0.01, 50)
    for found, given_ in zip(matrix_to_euler(euler_to_matrix(rot, tilt, psi)), (rot, tilt, psi), strict=True):
        np.testing.assert_allclose(found, given_, atol=1e-12)


def test_shapes_broadcast() -> None:
    assert euler_to_matrix(np.zeros((4, 1)), 0.1, np.zeros(3)).shape == (4, 3, 3, 3)
    assert [angle.shape for angle in matrix_to_euler(np.eye(3))] == [()] * 3


@given(omega=vectors)
def test_turning_by_a_vector_turns_the_sampled_frequencies(omega: np.ndarray) -> None:
    matrix = euler_to_matrix(0.3, 1.1, -0.7)
    turned = rotate(matrix, omega)
    kappa = np.array([2.0, -1.0, 0.0])
    np.testing.assert_allclose(turned.T @ kappa, matrix.T @ Rotation.from_rotvec(omega).apply(kappa), atol=1e-12)
    np.testing.assert_allclose(angle_between(turned, matrix), np.linalg.norm(omega), atol=1e-7)
    np.testing.assert_allclose(rotate(turned, -omega), matrix, atol=1e-12)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, 3.0, np.pi])
def test_angle_between_is_accurate_near_nothing_and_near_half_a_turn(angle: float) -> None:
    a = random_rotations(20, np.random.default_rng(1))
    b = rotate(a, angle * np.array([0.6, 0.0, 0.8])[None].repeat(20, axis=0))
    np.testing.assert_allclose(angle_between(a, b), angle, rtol=1e-6, atol=2e-15 if angle < 3 else 1e-6)


@pytest.mark.parametrize("name", ["C1", "C5", "D3", "O", "I"])
def test_angle_up_to_symmetry_is_the_smallest_of_all(name: str) -> None:
    rng = np.random.default_rng(5)
    a, b, group = random_rotations(30, rng), random_rotations(30, rng), operators(name)
    expected = np.min([angle_between(a @ operator, b) for operator in group], axis=0)
    np.testing.assert_allclose(angle_up_to(a, b, group), expected, atol=1e-6)
    np.testing.assert_allclose(angle_up_to(a @ group[-1], a, group), 0, atol=1e-6)


@pytest.mark.parametrize("step", [0.5, 0.2, 0.05])
def test_directions_and_their_opposites_cover_the_sphere_evenly(step: float) -> None:
    directions = sphere_directions(step)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    assert np.all(directions[:, 2] > 0)
    assert np.isclose(len(directions), 2 * np.pi / step**2, rtol=0.1, atol=1)
    points = random_rotations(2000, np.random.default_rng(2))[:, 2]
    nearest = np.arccos(np.minimum(np.abs(points @ directions.T).max(axis=1), 1))
    assert nearest.max() < step


@pytest.mark.parametrize("step", [0.1, 0.26, 1.0])
@pytest.mark.parametrize("name", ["C1", "C3", "C6", "C60", "D2", "D6", "D7", "D30", "T", "O", "I", "I1", "I3", "I4"])
def test_asymmetric_directions_cover_the_sphere(name: str, step: float) -> None:
    group = operators(name)
    directions = asymmetric_directions(step, group)
    every = np.einsum("gab,db->gda", group, directions).reshape(-1, 3)
    points = random_rotations(1000, np.random.default_rng(3))[:, 2]
    nearest = np.arccos(np.minimum(np.abs(points @ every.T).max(axis=1), 1))
    assert nearest.max() < 0.85 * step
    # a unit has borders that need directions, too, the more the smaller it is
    once = 2 * np.pi / step**2
    assert 0.95 * once <= len(every) < once + 8 / step * len(group) ** 0.5 + 4 * len(group)


def test_view_rotations_look_along_their_directions() -> None:
    directions = np.concatenate([sphere_directions(0.3), [[0, 0, 1.0], [0, 0, -1.0], [1.0, 0, 0]]])
    rotations = view_rotations(directions)
    np.testing.assert_allclose(rotations[:, 2], directions, atol=1e-12)
    np.testing.assert_allclose(matrix_to_euler(rotations[:-3])[2], 0, atol=1e-9)


def test_random_rotations_are_uniform_proper_and_reproducible() -> None:
    rotations = random_rotations(4000, np.random.default_rng(4))
    np.testing.assert_allclose(np.linalg.det(rotations), 1)
    # the mean over uniform rotations vanishes, its entries have the variance 1/3
    assert np.abs(rotations.mean(axis=0)).max() < 4 * np.sqrt(1 / 3 / 4000)
    np.testing.assert_array_equal(rotations, random_rotations(4000, np.random.default_rng(4)))
