"""The particles as a job's tasks see them: images by index, with all that the CTF needs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.aberrations import NO_ABERRATIONS, Aberrations, aberrations_of, terms_with
from cloudem.errors import DamagedShardError, InconsistentDataError
from cloudem.io.formats.plausible import doubts
from cloudem.io.particle_store import ParticleStore, open_particles
from cloudem.kernels.ctf import ctf_terms
from cloudem.model.particles import Particles
from cloudem.model.table import distinct

NAMED = 3
"""Damaged shards that a message names."""

BATCH = 128
"""Images that a task works on at a time."""

AHEAD, AHEAD_BYTES = 2, 32 * 2**20
"""Blocks that are read from object storage before they are needed, and the bytes of one: a batch if that is more."""

MOST_GROUPS = 512
"""Groups of a half-set at most: each costs a volume to clear, fold and merge, and the scheduler a few milliseconds."""


@dataclass(frozen=True)
class Dataset:
    """A particle store with its CTF terms.

    Attributes
    ----------
    store
        Images.
    particles
        Table.
    terms
        (N, 12), :func:`cloudem.kernels.ctf.ctf_terms`, with even aberrations and magnification.
    ctf_scale
        Factor on the CTF from the table, (N,).
    optics_group
        (N,).
    aberrations
        Odd ones, and the magnification, of all optics groups.
    """

    store: ParticleStore
    particles: Particles
    terms: NDArray[np.float64]
    ctf_scale: NDArray[np.float64]
    optics_group: NDArray[np.int32]
    aberrations: Aberrations = NO_ABERRATIONS

    def images(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return images, (b, n, n) float32."""
        return self.store.read_images(indices)


def check_ctf(particles: Particles, url: str, box: int, pixel_size: float) -> list[str]:
    """Make sure that a table of particles, named ``url`` in messages, says what a CTF is made of; return what is odd.

    Raises
    ------
    MissingColumnError
        Without defocus columns.
    InconsistentDataError
        A column of the CTF holds NaN or infinity, a value is one that no microscope has, or images hold their CTF
        already; see `cloudem.io.formats.plausible`.
    """
    require_finite(particles, "defocus_u", "defocus_v", "defocus_angle")
    require_finite(particles, *(name for name in ("phase_shift", "ctf_b_factor", "ctf_scale") if name in particles))
    return doubts(particles, url, box=box, pixel_size=pixel_size)


def open_dataset(url: str) -> Dataset:
    """Open a particle store for tasks; for what it raises, see `check_ctf`."""
    store = open_particles(url)
    particles = store.particles
    check_ctf(particles, url, store.box, store.pixel_size)
    group = particles.get("optics_group", 0).astype(np.int32)
    by_group = {
        name: np.array([getattr(optics, name) for optics in particles.optics])[group]
        for name in ("voltage", "spherical_aberration", "amplitude_contrast")
    }
    terms = ctf_terms(
        **by_group,
        defocus_u=particles["defocus_u"],
        defocus_v=particles["defocus_v"],
        defocus_angle=particles["defocus_angle"],
        phase_shift=particles.get("phase_shift", 0.0),
        b_factor=particles.get("ctf_b_factor", 0.0),
    )
    terms = terms_with(terms, particles.optics, group)
    scale = particles.get("ctf_scale", 1.0).astype(np.float64)
    return Dataset(store, particles, terms, scale, group, aberrations_of(particles.optics))


def open_for_tasks(url: str) -> Dataset:
    """Open a particle store with the numbers that tasks read, without the text of its table."""
    dataset = open_dataset(url)
    numbers = {name: values for name, values in dataset.particles.columns.items() if values.dtype.kind in "fiub"}
    return replace(dataset, particles=replace(dataset.particles, columns=numbers))


def require_finite(particles: Particles, *names: str) -> None:
    """Check that columns are there and hold numbers.

    Raises
    ------
    MissingColumnError
        A column is not there.
    InconsistentDataError
        A column holds NaN or infinity.
    """
    particles.require(*names)
    for name in names:
        wrong = np.flatnonzero(~np.isfinite(particles[name]))
        if len(wrong):
            raise InconsistentDataError(
                f"column {name} is not a number for {len(wrong)} of {len(particles)} particles, the first of them "
                f"number {wrong[0] + 1}; correct or remove these rows and import again"
            )


def left_out(store: ParticleStore, skip: bool, warn: Callable[[str], None] | None = None) -> NDArray[np.int64]:
    """Return the particles whose images are lost, after a look at each shard.

    Parameters
    ----------
    store
        Images.
    skip
        Whether the job was asked to go on without them.
    warn
        Is told of them.

    Raises
    ------
    DamagedShardError
        There are such particles, and the job was not asked, or there are no others.
    """
    lost = store.damaged()
    if not lost:
        return np.zeros(0, np.int64)
    numbers = np.concatenate([part.rows for part in lost])
    named = [f"{part.shard} {part.reason} (particles {part.rows[0] + 1:,} to {part.rows[-1] + 1:,})" for part in lost]
    shards = "; ".join([*named[:NAMED], *([f"and {len(named) - NAMED} more"] if len(named) > NAMED else [])])
    count = f"{len(numbers):,} of {len(store):,} particles"
    if len(numbers) == len(store):
        raise DamagedShardError(f"{store.url}: no shard can be read: {shards}; import the particles again")
    if not skip:
        raise DamagedShardError(
            f"{store.url}: {shards}; import the particles again, or use --skip-damaged to leave out {count}"
        )
    if warn is not None:
        warn(f"{count} are skipped, because their shards are lost: {shards}")
    return numbers


def kept_rows(particles: Particles, half_set: NDArray[np.int8]) -> Particles:
    """Return the table of the particles that have a half-set, with their place in the store if others have none."""
    kept = np.flatnonzero(half_set)
    if len(kept) == len(particles):
        return particles
    rows = particles["store_row"][kept] if "store_row" in particles else kept
    return particles.take(kept).with_columns(store_row=rows)


def groups_of(indices: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut indices into consecutive groups of nearly equal length, each of ``size`` or more; four if they are few.

    Groups depend on the number of particles alone, never on that of the workers, so that sums come out the same to
    the bit on any machine. There are a power of two of them, up to `MOST_GROUPS`: then most numbers of workers get
    whole branches of the tree along which sums are merged.
    """
    few = min(4, -(-len(indices) // BATCH))
    count = min(max(len(indices) // size, few, 1), MOST_GROUPS)
    return np.array_split(indices, 1 << (count.bit_length() - 1))


def image_batches(
    dataset: Dataset, indices: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yield the indices and the images of each batch.

    From object storage, the images of several batches are fetched at once, and the next ones while these are used; a
    folder gives nothing to wait for.
    """
    remote = dataset.store.remote
    step = BATCH * (max(1, AHEAD_BYTES // (4 * BATCH * dataset.store.box**2)) if remote else 1)
    blocks = [indices[first : first + step] for first in range(0, len(indices), step)]
    with closing(_read_ahead(dataset, blocks) if remote else (dataset.images(block) for block in blocks)) as read:
        for block, images in zip(blocks, read, strict=True):
            for first in range(0, len(block), BATCH):
                yield block[first : first + BATCH], images[first : first + BATCH]


def _read_ahead(dataset: Dataset, blocks: list[NDArray[np.int64]]) -> Generator[NDArray[np.float32], None, None]:
    """Yield the images of each block, read by threads up to `AHEAD` blocks before."""
    coming: deque[Future[NDArray[np.float32]]] = deque()
    threads = ThreadPoolExecutor(AHEAD, thread_name_prefix="cloudem-ahead")
    try:
        for block in blocks:
            coming.append(threads.submit(dataset.images, block))
            if len(coming) > AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def micrograph_numbers(particles: Particles) -> NDArray[np.int64]:
    """Return a number for the micrograph of each particle, or its optics group where micrographs are not named."""
    if "micrograph" in particles:
        return distinct(particles["micrograph"]).number
    return particles.get("optics_group", 0).astype(np.int64)
