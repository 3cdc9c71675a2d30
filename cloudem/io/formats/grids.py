"""Images of different pixel and box sizes on one grid, as they are read.

The common grid has the coarsest pixel and the largest even box that lies within all images, so that nothing is made up:
no frequency that an image does not hold, and no pixel beyond its edge. See :mod:`cloudem.kernels.resampling`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.io.formats.sources import SourceImages
from cloudem.kernels.resampling import SAME, resample, resampling_matrix

SOURCE_PIXEL_SIZE, SOURCE_BOX = "cloudemSourcePixelSize", "cloudemSourceBox"
"""What is kept of an optics group whose images were resampled, under these names: Å per pixel and pixels before."""


class PixelGrid(NamedTuple):
    """The pixels of square images: how many along a side, and Å per pixel."""

    box: int
    pixel_size: float

    def __str__(self) -> str:
        return f"{self.box} px of {self.pixel_size:.6g} Å"

    def box_within(self, pixel_size: float) -> int:
        """Return the side, in pixels of a size in Å, of the largest even box within that has the same origin."""
        ratio = 1.0 if abs(pixel_size / self.pixel_size - 1) < SAME else self.pixel_size / pixel_size
        return 2 * int(self.box // 2 * ratio + 1e-9)


def common_grid(grids: Sequence[PixelGrid], box: int | None = None, pixel_size: float | None = None) -> PixelGrid:
    """Return the grid that images of several are brought to.

    Parameters
    ----------
    grids
        Those that there are.
    box, pixel_size
        As somebody wants them; the largest even box and the coarsest pixel size where None.

    Raises
    ------
    InconsistentDataError
        A pixel size is not positive, or there is nothing that all images show.
    ParameterError
        What is wanted is finer or larger than some images, or an odd box.
    """
    if min(grid.pixel_size for grid in grids) <= 0:
        raise InconsistentDataError(f"a pixel size is {min(grid.pixel_size for grid in grids):g} Å; correct it")
    coarsest = max(grids, key=lambda grid: grid.pixel_size)
    size = coarsest.pixel_size if pixel_size is None else pixel_size
    if size < coarsest.pixel_size * (1 - SAME):
        raise ParameterError(
            f"--target-pixel-size-A {size:g} is finer than the images of {coarsest.pixel_size:g} Å per pixel, which "
            "hold no such detail; give a coarser one"
        )
    smallest = min(grids, key=lambda grid: grid.box_within(size))
    largest = smallest.box_within(size)
    if largest < 2:
        raise InconsistentDataError(f"images of {smallest} are smaller than a pixel of {size:g} Å; correct pixel sizes")
    if box is None:
        return PixelGrid(largest, size)
    if box % 2 or not 2 <= box <= largest:
        raise ParameterError(
            f"--target-box-px {box} is odd, or larger than the smallest images, {smallest}; give an even number up to "
            f"{largest}"
        )
    return PixelGrid(box, size)


class ResampledImages:
    """The images of a table of several grids on one, with the interface of `SourceImages`.

    Parameters
    ----------
    parts
        Rows of the table, and the images of these in order.
    grids
        Of each part.
    target
        Of what is returned.
    """

    def __init__(
        self, parts: Sequence[tuple[NDArray[np.int64], SourceImages]], grids: Sequence[PixelGrid], target: PixelGrid
    ) -> None:
        self._parts = parts
        self._matrices = [
            None if grid.box == target.box and abs(grid.pixel_size / target.pixel_size - 1) < SAME
            else resampling_matrix(*grid, *target).astype(np.float32)
            for grid in grids
        ]  # fmt: skip
        self.box = target.box

    def read(self, start: int, stop: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return images `start` to `stop` of the table, ``(b, box, box)`` float32, in the first rows of `out`."""
        images = out[: stop - start]
        for (rows, part), matrix in zip(self._parts, self._matrices, strict=True):
            first, last = np.searchsorted(rows, (start, stop)).tolist()
            if first < last:
                found = part.read(first, last)
                with np.errstate(all="ignore"):  # what is not finite is found, and left out, afterwards
                    images[rows[first:last] - start] = found if matrix is None else resample(found, matrix)
        return images
