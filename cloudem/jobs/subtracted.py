"""Reading images of which part of a map is subtracted: all that is stored is that map, and a pose for each image.

``X - s · (projection of the part of the map of the image's half-set)``, with the CTF and the aberrations that the table
states by now, and in the pose in which the particle was when it was subtracted (`cloudem.jobs.subtract`), whatever
became of it since.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.aberrations import Aberrations
from cloudem.algorithms.align import start_poses
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.subtraction import ProjectedMap, images_of_map
from cloudem.cloud.planning.work import Size
from cloudem.errors import InconsistentDataError
from cloudem.io.particle_store import MODEL, ModelSource
from cloudem.io.storage.groups import read_group
from cloudem.model.particles import Particles
from cloudem.model.poses import euler_to_matrix
from cloudem.traffic import purpose

SUBTRACTED = (
    "subtract_half", "subtract_rot", "subtract_tilt", "subtract_psi", "subtract_x", "subtract_y", "subtract_scale",
)  # fmt: skip
"""Columns that say how it is done."""

READ_PIXEL_S = 47e-9
"""A pixel of an image whose projection is subtracted when it is read: CPU-seconds, measured from 48 to 256 px."""


def subtracting_seconds(size: Size) -> float:
    """Return the CPU-seconds in which the projection that is subtracted of an image is made; 0 where none is."""
    return READ_PIXEL_S * size.pixels if size.subtracted else 0.0


class Subtraction:
    """What is subtracted of images, opened for reading; safe in threads, small to pickle.

    Parameters
    ----------
    source
        Where it lies.
    box, pixel_size
        Of the images, pixels and Å.
    """

    def __init__(self, source: ModelSource, box: int, pixel_size: float) -> None:
        self.source, self._box, self._pixel_size = source, box, pixel_size

    def __getstate__(self) -> dict[str, Any]:
        """Pickle no maps, but all that it takes to read them."""
        return {name: value for name, value in vars(self).items() if name != "_halves"}

    @cached_property
    def _halves(self) -> list[ProjectedMap]:
        """Of either half-set, ready to be projected.

        Raises
        ------
        StorageError, InconsistentDataError
            It is lost or changed; it has another box than the images.
        """
        with purpose("reference"):
            arrays, _ = read_group(self.source.url, MODEL)
        if any(arrays[name].shape != (self._box,) * 3 for name in ("half1", "half2")):
            raise InconsistentDataError(
                f"{self.source.url} holds maps of {len(arrays['half1'])} voxels, the images have {self._box} px; run "
                "subtract again"
            )
        return [ProjectedMap.of(arrays[name]) for name in ("half1", "half2")]

    def images(
        self,
        table: Particles,
        terms: NDArray[np.float64],
        ctf_scale: NDArray[np.float64],
        optics_group: NDArray[np.int32],
        aberrations: Aberrations,
    ) -> NDArray[np.float32]:
        """Return what is to be subtracted of some images, (b, n, n).

        Parameters
        ----------
        table
            Their rows.
        terms, ctf_scale, optics_group, aberrations
            As in `cloudem.algorithms.batch.Batch`.
        """
        rotations, shifts = poses_in(table, *SUBTRACTED[1:6], self._pixel_size)
        out = np.zeros((len(table), self._box, self._box), np.float32)
        scale = table["subtract_scale"] * ctf_scale
        for half, projected in enumerate(self._halves, start=1):
            rows = np.flatnonzero(table["subtract_half"] == half)
            if len(rows):
                poses = start_poses(np.arange(len(rows)), rotations[rows], shifts[rows])
                ready = np.ones(len(rows), bool)
                of_rows = (terms[rows], scale[rows], optics_group[rows], ready, poses)
                batch = Batch(out[rows], *of_rows, aberrations=aberrations)
                out[rows] = images_of_map(batch, projected, self._pixel_size)
        return out


def poses_in(
    table: Particles, rot: str, tilt: str, psi: str, x: str, y: str, pixel_size: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rotations (b, 3, 3) and shifts (b, 2) in pixels, of columns by their names."""
    shifts = np.stack([table.get(x, 0.0), table.get(y, 0.0)], axis=1) / pixel_size
    return euler_to_matrix(table[rot], table[tilt], table[psi]), shifts
