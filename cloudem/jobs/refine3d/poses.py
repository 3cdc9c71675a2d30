"""What an iteration finds out about poses: put in order, compared with those before, and kept in the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import best_of, join_poses
from cloudem.algorithms.expectation import IterationPlan
from cloudem.algorithms.refinement import contrasts, intensity_scales, is_moving
from cloudem.errors import InconsistentDataError
from cloudem.jobs.dataset import require_finite
from cloudem.jobs.refine3d.tasks import Checkpoint, Found, Placed
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_up_to, euler_to_matrix


def no_poses() -> dict[str, Any]:
    """Return the empty pose arrays of a checkpoint."""
    return {
        "pose_images": np.zeros(0, np.int32),
        "pose_rotations": np.zeros((0, 3, 3)),
        "pose_shifts": np.zeros((0, 2)),
        "pose_weights": np.zeros(0),
    }


def table_poses(table: Particles, pixel_size: float) -> dict[str, Any]:
    """Return the poses of a particle table as the pose arrays of a checkpoint; its pixel size in Å."""
    require_finite(table, "rot", "tilt", "psi", *(name for name in ("shift_x", "shift_y") if name in table))
    shifts = np.stack([table.get("shift_x", 0.0), table.get("shift_y", 0.0)], axis=1) / pixel_size
    return {
        "pose_images": np.arange(len(table), dtype=np.int32),
        "pose_rotations": euler_to_matrix(table["rot"], table["tilt"], table["psi"]),
        "pose_shifts": shifts,
        "pose_weights": np.ones(len(table)),
    }


def sorted_found(parts: Sequence[Found]) -> Found:
    """Return the poses of all parts, ordered by image and the most probable of each first."""
    poses = join_poses(*(part.poses for part in parts))
    weights = np.concatenate([part.weights for part in parts])
    matches = np.concatenate([part.matches for part in parts])
    judged = np.concatenate([part.poses.images[best_of(part.poses.images)] for part in parts])
    order = np.lexsort((-weights, poses.images))
    if not np.isfinite(poses.score).all():
        worst = poses.images[~np.isfinite(poses.score)][0]
        raise InconsistentDataError(
            f"the likelihood of particle {worst + 1} is not a number: its image or CTF has extreme values; remove it "
            "and import again"
        )
    by_image = np.argsort(judged, kind="stable")
    inserted = Placed(
        *(np.concatenate(rows)[by_image] for rows in zip(*(part.inserted for part in parts), strict=True))
    )
    return Found(poses.take(order), weights[order], matches[by_image], inserted)


def best_views(found: Found) -> NDArray[np.float64]:
    """Return the view of the most probable pose of each image, a unit vector in the frame of the map, (b, 3)."""
    return np.asarray(found.poses.rotations[best_of(found.poses.images), 2])


def shift_variance(found: Found) -> float:
    """Return the variance of the shifts along one axis, pixels², at least one pixel's."""
    total = np.sum(found.weights[:, None] * found.poses.shifts**2)
    return max(float(total / (2 * found.weights.sum())), 1.0)


def intensities(
    before: NDArray[np.float64], micrograph: NDArray[np.int64], found: Sequence[Found], keep: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return each image's intensity scale, found in its half-set alone: that of its micrograph, and its own contrast.

    Parameters
    ----------
    before
        Scales with which the images were aligned, (N,).
    micrograph
        Number of each image's, (N,).
    found
        Of each half-set.
    keep
        How much each image counts, (N,).
    """
    scale = before.copy()
    for part in found:
        best = part.poses.take(best_of(part.poses.images))
        old, counts = before[best.images], keep[best.images]
        numerator, norm = best.numerator / old, best.norm / old**2
        numerator /= max(float((counts * numerator).sum()) / max(float((counts * norm).sum()), 1e-30), 1e-6)
        level = intensity_scales(counts * numerator, counts * norm, micrograph[best.images])
        scale[best.images] = contrasts(numerator, norm, level, counts)
    return scale


def pose_arrays(found: Sequence[Found]) -> dict[str, Any]:
    """Return the pose arrays of a checkpoint, ordered by image."""
    names = ("images", "rotations", "shifts")
    joined = {f"pose_{name}": np.concatenate([getattr(f.poses, name) for f in found]) for name in names}
    joined["pose_weights"] = np.concatenate([f.weights for f in found])
    order = np.argsort(joined["pose_images"], kind="stable")
    return {name: values[order] for name, values in joined.items()}


class Changes(NamedTuple):
    """Which images' most probable pose moved, and which jumped to another maximum, (N,) each."""

    moving: NDArray[np.bool_]
    jumped: NDArray[np.bool_]


def changes(plan: IterationPlan, before: Checkpoint, found: Sequence[Found], group: NDArray[np.float64]) -> Changes:
    """Compare the most probable poses, up to symmetry, with those before."""
    moving, jumped = (np.ones(len(before.half_set), bool) for _ in range(2))
    if not len(before.pose_images):
        return Changes(moving, jumped)
    old = before.poses()
    old = old.take(best_of(old.images))
    for part in found:
        new = part.poses.take(best_of(part.poses.images))
        was = old.take(np.searchsorted(old.images, new.images))
        angle = angle_up_to(new.rotations, was.rotations, group)
        shift = np.linalg.norm(new.shifts - was.shifts, axis=1)
        moving[new.images] = is_moving(angle, shift, new.precision)
        jumped[new.images] = angle > plan.step / 2
    return Changes(moving, jumped)
