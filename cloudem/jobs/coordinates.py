"""Where particles lie: in their micrographs, and how far from the centre of their images."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cloudem.errors import InconsistentDataError, MissingColumnError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.model.particles import Particles

OURS = ("coordinate_x", "coordinate_y")
RELION = ("rln:rlnCoordinateX", "rln:rlnCoordinateY")
"""Where stores have them that were imported before cloudem knew these columns."""

CRYOSPARC = ("cs:location/center_x_frac", "cs:location/center_y_frac")
SHAPE, PIXEL = "cs:location/micrograph_shape", "cs:location/micrograph_psize_A"
SIZES = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")
"""Of an optics group: what a pixel of a coordinate is, the surest first."""

SHIFTS = (("shift_x", "shift_y"), ("class_shift_x", "class_shift_y"))
"""Columns of shifts, those of poses first."""

FAR = 0.1
"""Share of the diameter; images whose particles lie further from the centre are better extracted again."""


def require_coordinates(table: Particles) -> None:
    """Make sure that a table says where its particles lie.

    Raises
    ------
    MissingColumnError
        It does not.
    """
    given = (OURS, RELION, (*CRYOSPARC, SHAPE))
    if "micrograph" in table and any(all(name in table for name in names) for names in given):
        return
    raise MissingColumnError(
        "the particles' table does not say where they lie in their micrographs; duplicates and neighbours need "
        "rlnMicrographName, rlnCoordinateX and rlnCoordinateY (or cryoSPARC's location/…): import a table that has them"
    )


def places_in_micrographs(
    table: Particles, pixel_size: float | None, warn: Callable[[str], None]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return where particles lie, their shifts included, Å, (n, 2) as x, y; and a number for each one's micrograph.

    Parameters
    ----------
    table
        Of particles; `require_coordinates` was called.
    pixel_size
        Of micrographs, Å; None for what the table says.
    warn
        Is told if that is not certain.

    Raises
    ------
    InconsistentDataError
        Coordinates are no numbers, or nothing says what a pixel is.
    """
    import numpy as np

    from cloudem.jobs.dataset import micrograph_numbers

    pixels = coordinates_of(table)
    size = np.full(len(table), pixel_size) if pixel_size is not None else sizes_of_pixels(table, warn)
    names = next((names for names in SHIFTS if all(name in table for name in names)), None)
    shifts = np.stack([table[name] for name in names], axis=1) if names is not None else 0.0
    places: NDArray[np.float64] = pixels * size[:, None] + shifts
    return places, micrograph_numbers(table)


def coordinates_of(table: Particles) -> NDArray[np.float64]:
    """Return where particles were picked, px of their micrographs, (n, 2) as x, y; `require_coordinates` was called.

    Raises
    ------
    InconsistentDataError
        They are no numbers.
    """
    import numpy as np

    if all(name in table for name in OURS):
        found = np.stack([table[name] for name in OURS], axis=1)
        if not np.isfinite(found).all():
            raise InconsistentDataError("coordinates of particles are not finite; correct the table")
        return found
    if all(name in table for name in RELION):
        return np.stack([numbers_of_text(table, name) for name in RELION], axis=1)
    shape = np.array([json.loads(text) for text in table[SHAPE].tolist()], np.float64)
    fractions = np.stack([numbers_of_text(table, name) for name in CRYOSPARC], axis=1)
    return np.asarray(fractions * shape[:, ::-1])  # rows, columns


def sizes_of_pixels(table: Particles, warn: Callable[[str], None]) -> NDArray[np.float64]:
    """Return what a pixel of each particle's coordinates is, Å, as the table says."""
    import numpy as np

    if PIXEL in table:
        return numbers_of_text(table, PIXEL)
    for name in SIZES:
        if table.optics and all(name in group.extra for group in table.optics):
            found = np.array([float(group.extra[name]) for group in table.optics])
            if name != SIZES[0]:
                warn(
                    f"coordinates are taken to be in pixels of {', '.join(f'{size:g}' for size in np.unique(found))} Å "
                    f"({name}); if micrographs were binned, give --micrograph-pixel-size-A"
                )
            return np.asarray(found[table.get("optics_group", 0)])
    raise InconsistentDataError(
        "the table does not say what a pixel of its coordinates is; give --micrograph-pixel-size-A"
    )


def numbers_of_text(table: Particles, name: str) -> NDArray[np.float64]:
    """Return a column of text as numbers.

    Raises
    ------
    InconsistentDataError
        They are none.
    """
    import numpy as np

    try:
        found = np.array([float(text) for text in table[name].tolist()])
    except ValueError as error:
        raise InconsistentDataError(f"column {name} does not hold numbers: {error}; correct the table") from None
    if not np.isfinite(found).all():
        raise InconsistentDataError(f"column {name} holds what is not finite; correct the table")
    return found


class OffCentre(NamedTuple):
    """How far particles lie from the centre of their images, Å: half within ``median``, 95 % within ``most``."""

    median: float
    most: float

    def words(self, diameter: float) -> str:
        """Say it, and whether extracting again would help a particle of that diameter, Å; 0 where it is not known."""
        said = (
            f"particles lie {self.median:.1f} Å from the centre of their images (median; 95 % of them within "
            f"{self.most:.1f} Å)"
        )
        if not diameter or self.most <= FAR * diameter:
            return said
        return (
            f"{said}. That is more than a tenth of the diameter: extract them again around their centres "
            "(coordinates plus shifts), or search shifts further with --shift-range-A"
        )


def distances_from_centre(table: Particles) -> NDArray[np.float64] | None:
    """Return how far each particle lies from the centre of its image, Å, (n,); None where no shifts are known."""
    import numpy as np

    for names in SHIFTS:
        if len(table) and all(name in table for name in names):
            lengths = np.hypot(*(np.asarray(table[name], np.float64) for name in names))
            if np.any(lengths > 0):
                return np.asarray(lengths)
    return None


def off_centre(distances: NDArray[np.float64]) -> OffCentre:
    """Return how far particles lie from the centre, by the distance of each, Å, (n,)."""
    import numpy as np

    return OffCentre(float(np.median(distances)), float(np.quantile(distances, 0.95)))
