"""What a refinement that still runs knows of its particles, from its checkpoint: for whoever looks on."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.io.storage.groups import arrays_in, read_rows
from cloudem.jobs.iterative import CHECKPOINT
from cloudem.model.poses import matrix_to_euler

NEEDED = ("half_set", "keep", "pose_rotations", "pose_shifts", "pose_starts")

LARGEST_POSES = 64 << 20
"""Bytes of these arrays, of some 400,000 images: more is not read for looking."""


def poses_so_far(url: str, pixel_size: float) -> dict[str, NDArray[Any]]:
    """Return columns of the particles as the last iteration left them: best pose, half-set, and weight.

    Parameters
    ----------
    url
        Of the results.
    pixel_size
        Å.

    Returns
    -------
        Columns as those of a result, of the images that have a pose; empty where none has one, where there is no
        checkpoint, and where it is larger than `LARGEST_POSES`.

    Raises
    ------
    StorageError, FormatError
        It is damaged, or was replaced meanwhile.
    """
    lying = arrays_in(url, CHECKPOINT)
    if not lying.keys() >= set(NEEDED) or sum(lying[name].stored_bytes for name in NEEDED) > LARGEST_POSES:
        return {}
    half_set, keep, rotations, shifts, starts = read_rows(url, CHECKPOINT, NEEDED, 0, sys.maxsize).values()
    count = len(rotations)
    if rotations.shape != (count, 3, 3) or shifts.shape != (count, 2) or len(starts) != len(half_set) + 1:
        return {}
    posed = np.flatnonzero(np.diff(starts) > 0)
    best = starts[posed]  # the most probable pose of an image is its first
    if not len(best) or len(keep) != len(half_set) or best.min() < 0 or best.max() >= count:
        return {}
    rot, tilt, _ = matrix_to_euler(rotations[best])
    x, y = pixel_size * shifts[best].T
    judged = {"keep": keep[posed]} if (keep[posed] < 1).any() else {}  # until it is known, all are kept
    return {"rot": rot, "tilt": tilt, "shift_x": x, "shift_y": y, "half_set": half_set[posed], **judged}
