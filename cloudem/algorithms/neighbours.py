"""Particles that lie close together in their micrographs: the same one picked twice, and neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree


def duplicates_within(
    places: NDArray[Any], micrograph: NDArray[Any], quality: NDArray[Any], distance: float
) -> NDArray[np.bool_]:
    """Return which particles are duplicates of a better one that is none.

    The best particle stays, all others nearer to it are duplicates of it, and so on with the best of those that are
    left: of two that stay, none is nearer to the other than the distance.

    Parameters
    ----------
    places
        In their micrographs, Å, (n, 2).
    micrograph
        Number of the micrograph of each, (n,).
    quality
        The more, the better, (n,); of equal ones, and those that are no numbers, the first is the better.
    distance
        Å; particles that are nearer to each other than that are the same.
    """
    value = np.where(np.isnan(quality), -np.inf, np.asarray(quality, np.float64))
    rank = np.empty(len(value), np.int64)
    rank[np.argsort(-value, kind="stable")] = np.arange(len(value))
    found = np.zeros(len(value), bool)
    pairs = _pairs(places, micrograph, distance)
    better = np.where(rank[pairs[:, 0]] < rank[pairs[:, 1]], 0, 1)
    kept, other = pairs[np.arange(len(pairs)), better], pairs[np.arange(len(pairs)), 1 - better]
    for at in np.lexsort((rank[other], rank[kept])):
        if not found[kept[at]]:
            found[other[at]] = True
    return found


def neighbours_within(places: NDArray[Any], micrograph: NDArray[Any], distance: float) -> NDArray[np.bool_]:
    """Return which particles have another one nearer than a distance, Å; for the rest see `duplicates_within`."""
    found = np.zeros(len(places), bool)
    found[_pairs(places, micrograph, distance).ravel()] = True
    return found


def _pairs(places: NDArray[Any], micrograph: NDArray[Any], distance: float) -> NDArray[np.int64]:
    """Return all pairs of particles of one micrograph that are nearer to each other than a distance, (p, 2)."""
    order = np.argsort(micrograph, kind="stable")
    cuts = np.flatnonzero(np.diff(micrograph[order])) + 1
    found = [np.zeros((0, 2), np.int64)]
    for rows in np.split(order, cuts):
        near = KDTree(places[rows]).query_pairs(distance, output_type="ndarray") if len(rows) > 1 else found[0]
        apart = np.linalg.norm(places[rows[near[:, 0]]] - places[rows[near[:, 1]]], axis=1)
        found.append(rows[near[apart < distance]])
    return np.concatenate(found)
