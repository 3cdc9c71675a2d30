"""Rotations as matrices, RELION Euler angles and rotation vectors. Definitions: :mod:`cloudem.conventions`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from cloudem.model.symmetry import asymmetric_unit

Float64 = NDArray[np.float64]


def euler_to_matrix(rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike) -> Float64:
    """Return the matrices (..., 3, 3) that take map to image coordinates; angles in radians."""
    a, b, g = np.broadcast_arrays(*(np.asarray(angle, np.float64) for angle in (rot, tilt, psi)))
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def matrix_to_euler(matrix: NDArray[Any]) -> tuple[Float64, Float64, Float64]:
    """Return rot, tilt, psi in radians, tilt in [0, pi]; at the poles all in-plane rotation goes to psi."""
    m = np.asarray(matrix, np.float64)
    tilt = np.arctan2(np.hypot(m[..., 2, 0], m[..., 2, 1]), m[..., 2, 2])
    pole = np.hypot(m[..., 2, 0], m[..., 2, 1]) < 1e-9
    rot = np.where(pole, 0.0, np.arctan2(m[..., 2, 1], m[..., 2, 0]))
    psi = np.arctan2(m[..., 1, 2], -m[..., 0, 2])
    # at tilt 0 the matrix is Rz(psi); at tilt pi it is Rz(psi) diag(-1, 1, -1)
    at_pole = np.where(m[..., 2, 2] > 0, np.arctan2(m[..., 0, 1], m[..., 0, 0]), np.arctan2(m[..., 0, 1], m[..., 1, 1]))
    return rot, tilt, np.where(pole, at_pole, psi)


def mirrored_poses(matrix: NDArray[Any]) -> Float64:
    """Return the poses (..., 3, 3) under which a density's inversion through the origin shows the same images.

    A projection of the inverted density along a pose is that of the density, turned by half a turn in the plane:
    ``∫ V(-Aᵀ(u, z)) dz = P(-u)``.
    """
    return np.asarray(np.diag([-1.0, -1.0, 1.0]) @ matrix, np.float64)


def rotate(matrix: NDArray[Any], omega: NDArray[Any]) -> Float64:
    """Turn poses by rotation vectors given in the image frame.

    Parameters
    ----------
    matrix
        Shape (..., 3, 3).
    omega
        Shape (..., 3), radians. The Fourier pixel κ then samples the map at ``A^T exp([omega]×) κ``.

    Returns
    -------
    ``exp([omega]×)^T A``, shape (..., 3, 3).
    """
    flat = np.reshape(omega, (-1, 3))
    turn = Rotation.from_rotvec(flat).as_matrix().reshape(*np.shape(omega)[:-1], 3, 3)
    return np.asarray(np.swapaxes(turn, -1, -2) @ matrix, np.float64)


def angle_between(a: NDArray[Any], b: NDArray[Any]) -> Float64:
    """Return the angle in radians of the rotation between poses (..., 3, 3)."""
    # the Frobenius norm |a - b|^2 = 8 sin^2(angle / 2) keeps its accuracy for small angles, the trace does not
    distance = np.sqrt(np.sum((np.asarray(a, np.float64) - b) ** 2, axis=(-1, -2)))
    return np.asarray(2 * np.arcsin(np.minimum(distance / np.sqrt(8.0), 1.0)), np.float64)


def angle_up_to(a: NDArray[Any], b: NDArray[Any], group: NDArray[Any]) -> Float64:
    """Return the smallest angle in radians between poses a and b (c, 3, 3), up to operators (g, 3, 3) of the map."""
    if len(group) == 1:
        return angle_between(a, b)
    # the trace of (A g)^T B is the inner product of g with A^T B
    traces = (np.swapaxes(a, -1, -2) @ b).reshape(-1, 9) @ np.reshape(group, (-1, 9)).T
    return np.asarray(np.arccos(np.clip((traces.max(axis=1) - 1) / 2, -1, 1)))


def sphere_directions(step: float) -> Float64:
    """Return nearly uniform directions on one hemisphere; with their opposites they cover the sphere.

    A Fibonacci lattice (González 2010, 10.1007/s11004-009-9257-x).

    Parameters
    ----------
    step
        Wanted distance between neighbours, radians.

    Returns
    -------
    Unit vectors (d, 3), z > 0.
    """
    return cap_directions(max(4, int(np.ceil(4 * np.pi / step**2 / 2))), 0.0)


def cap_directions(count: int, lowest: float) -> Float64:
    """Return so many nearly uniform directions of the cap about z whose z is above ``lowest``, (count, 3).

    A Fibonacci lattice, as :func:`sphere_directions`.
    """
    z = 1 - (1 - lowest) * (np.arange(count) + 0.5) / count
    azimuth = np.arange(count) * np.pi * (3 - np.sqrt(5.0))
    r = np.sqrt(1 - z * z)
    return np.stack([r * np.cos(azimuth), r * np.sin(azimuth), z], axis=1)


def random_rotations(count: int, rng: np.random.Generator) -> Float64:
    """Return uniformly distributed rotations, shape (count, 3, 3)."""
    return np.asarray(Rotation.random(count, rng=rng).as_matrix(), np.float64)


def asymmetric_directions(step: float, group: NDArray[Any]) -> Float64:
    """Return directions that, with their opposites and their images under a point group, cover the sphere.

    Those of the lattice inside the asymmetric unit; and, since the lattice does not go on beyond the unit's border, and
    may even leave out the small unit of a high symmetry, further ones where it leaves gaps: no direction is farther
    than 0.85 steps from all of them; for the whole lattice that is 0.8.

    Parameters
    ----------
    step
        Wanted distance between neighbours, radians.
    group
        Symmetry operators (g, 3, 3).
    """
    directions, fine = (
        lattice[asymmetric_unit(lattice, group)]
        for lattice in (sphere_directions(step), sphere_directions(min(step / 6, 0.02)))
    )
    if len(group) == 1:
        return directions
    # chords: two directions an angle a apart are 2 sin(a / 2) apart
    widest = 2 * np.sin(0.75 * step / 2)
    every = np.concatenate([directions @ operator.T for operator in group])
    tree = cKDTree(np.concatenate([every, -every]))
    distance: Float64 = np.asarray(tree.query(fine)[0]) if len(every) else np.full(len(fine), 2.0)
    found = [directions]
    while np.any(gap := distance > widest):
        fine, distance = fine[gap], distance[gap]
        found.append(fine[[np.argmax(distance)]])
        cosine = np.abs(fine @ (group @ found[-1][0]).T).max(axis=1)
        distance = np.minimum(distance, np.sqrt(np.maximum(2 - 2 * cosine, 0)))
    return np.concatenate(found)


def view_rotations(directions: NDArray[Any]) -> Float64:
    """Return for each view direction (d, 3) the pose (d, 3, 3) whose third row it is, with psi = 0."""
    x, y, z = np.moveaxis(np.asarray(directions, np.float64), -1, 0)
    return euler_to_matrix(np.arctan2(y, x), np.arctan2(np.hypot(x, y), z), 0.0)
