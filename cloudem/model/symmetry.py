"""Point groups, set in RELION's orientations.

C<n>, D<n>: the n-fold axis along z, for D a two-fold along x. T: three-fold along z. O: four-fold along z, three-fold
along (1, 1, 1). I and I2: two-folds along x, y, z with a five-fold in the xz plane; I1: the same turned by 90° about z;
I3 and I4: a five-fold along z.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cloudem.errors import ParameterError

Float64 = NDArray[np.float64]
Axis = tuple[int, tuple[float, float, float]]

_GOLDEN = (1 + 5**0.5) / 2
_FIVE_XZ = (1.0, 0.0, _GOLDEN)  # five-fold axis of an icosahedron whose two-folds lie along x, y, z
_POLYHEDRAL: dict[str, tuple[Axis, ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, 2**0.5, 1))),
    "O": ((3, (1, 1, 1)), (4, (0, 0, 1))),
    "I": ((2, (0, 0, 1)), (5, _FIVE_XZ), (3, (0, 1, _GOLDEN**2))),
    "I1": ((2, (1, 0, 0)), (5, (_GOLDEN, 0, -1)), (3, (_GOLDEN**2, 1, 0))),
    "I3": ((2, (-1, 0, _GOLDEN)), (5, (0, 0, 1))),
    "I4": ((2, (1, 0, _GOLDEN)), (5, (0, 0, 1))),
}
_POLYHEDRAL["I2"] = _POLYHEDRAL["I"]


def operators(name: str) -> Float64:
    """Return the rotation matrices of a point group.

    Parameters
    ----------
    name
        C1, C2, …, D2, D3, …, T, O, I, I1, I2, I3, I4; case does not matter.

    Returns
    -------
    Shape (g, 3, 3), the identity first.

    Raises
    ------
    ParameterError
        If the name is none of these.
    """
    wanted = name.strip().upper()
    match = re.fullmatch(r"([CD])([1-9]\d?)", wanted)
    if match:
        order = int(match[2])
        axes: tuple[Axis, ...] = ((order, (0, 0, 1)),)
        if match[1] == "D":
            axes = (*axes, (2, (1, 0, 0)))
    elif wanted in _POLYHEDRAL:
        axes = _POLYHEDRAL[wanted]
    else:
        raise ParameterError(
            f"symmetry {name!r} is not a point group that cloudem knows; use C1, C2, …, D2, D3, …, T, O, I, I1 to I4"
        )
    return _close([_turn(order, axis) for order, axis in axes])


def _turn(order: int, axis: tuple[float, float, float]) -> Float64:
    unit = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    return np.asarray(Rotation.from_rotvec(2 * np.pi / order * unit).as_matrix(), np.float64)


def _close(generators: list[Float64]) -> Float64:
    """Multiply generators until no new rotation appears."""
    group = [np.eye(3)]
    frontier = [np.eye(3)]
    while frontier:
        fresh: list[Float64] = []
        for known in frontier:
            for generator in generators:
                product = generator @ known
                if all(np.abs(product - other).max() > 1e-6 for other in group):
                    group.append(product)
                    fresh.append(product)
        frontier = fresh
        if len(group) > 240:
            raise ArithmeticError("the generators of a point group do not close")
    matrices = np.array(group)
    exact = np.rint(matrices)  # entries that are 0 or ±1 but for rounding become exactly so
    return np.where(np.abs(matrices - exact) < 1e-12, exact, matrices)


def asymmetric_unit(directions: NDArray[Any], group: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which directions represent all others under the group and under inversion.

    The asymmetric unit is the Voronoi cell of one generic point among its images. Inversion is included because a
    slice seen from -d is the mirror of the slice seen from d, and is scored along with it.

    Parameters
    ----------
    directions
        Unit vectors (d, 3).
    group
        Operators (g, 3, 3).

    Returns
    -------
    Boolean (d,).
    """
    generic = np.array([0.2387, 0.4129, 0.8789])
    images = group @ (generic / np.linalg.norm(generic))
    projection = np.abs(directions @ images.T)
    return np.asarray(projection[:, 0] >= projection.max(axis=1) - 1e-12)
