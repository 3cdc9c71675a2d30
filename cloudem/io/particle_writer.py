"""Writing particle stores."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cloudem.errors import ParameterError
from cloudem.io.image_store import StoreKind
from cloudem.io.image_writer import DTYPES, ImageWriter, image_writer
from cloudem.model.particles import Particles

__all__ = ["DTYPES", "PARTICLES", "ParticleWriter", "particle_writer", "write_particles"]

PARTICLES = StoreKind(Particles, "standard deviations of the background", square=True)

ParticleWriter: TypeAlias = ImageWriter[Particles]


@contextmanager
def particle_writer(
    url: str | os.PathLike[str],
    *,
    expected: int,
    box: int,
    pixel_size: float,
    dtype: str = "float16",
    guard: Callable[[], None] | None = None,
) -> Iterator[ParticleWriter]:
    """Open a new particle store for writing; it is one only when finished.

    In a folder it appears under its name then. On S3 its ``zarr.json`` is written then; what a killed writer left there
    is removed first.

    Parameters
    ----------
    url
        Where it will be; nothing may be there yet.
    expected
        Number of images that will come; fewer may.
    box
        Side of the images in pixels.
    pixel_size
        Å per pixel.
    dtype
        ``"float16"`` or ``"float32"``.
    guard
        Called before anything is written; raises if somebody else may be writing there.

    Raises
    ------
    OutputExistsError
        Something is there.
    ParameterError
        An odd box, a pixel size that is not positive, another dtype, no particles.
    StorageError
        Disk full, no permission, no such bucket, no connection.
    """
    if box < 2 or box % 2:
        raise ParameterError(f"images have a box of {box} pixels; cloudem needs an even box: crop or pad by one pixel")
    with image_writer(
        url, PARTICLES, expected=expected, shape=(box, box), pixel_size=pixel_size, dtype=dtype, guard=guard
    ) as writer:
        yield writer


def write_particles(
    url: str | os.PathLike[str],
    particles: Particles,
    images: Iterable[NDArray[np.float32]],
    *,
    box: int,
    pixel_size: float,
    dtype: str = "float16",
    attributes: Mapping[str, Any] | None = None,
    guard: Callable[[], None] | None = None,
) -> None:
    """Write a particle store.

    Parameters
    ----------
    url
        Where; nothing may be there yet.
    particles
        The table, one row per image.
    images
        Batches ``(b, box, box)`` in the order of the rows.
    box
        Side of the images in pixels, even.
    pixel_size
        Å per pixel.
    dtype
        ``"float16"`` (rounds at 2⁻¹¹ of each value) or ``"float32"``.
    attributes
        What else the store should say of itself; anything that JSON holds.
    guard
        As for `particle_writer`.

    Raises
    ------
    OutputExistsError, ParameterError, InconsistentDataError, StorageError
        As `particle_writer`, `ImageWriter.append` and `ImageWriter.finish` say. Nothing is left behind.
    """
    count = len(particles)
    with particle_writer(url, expected=count, box=box, pixel_size=pixel_size, dtype=dtype, guard=guard) as writer:
        for batch in images:
            writer.append(batch)
        writer.finish(particles, attributes)
