"""What preflights look at: particle stores by their tables, maps and half-maps by their headers, results by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cloudem.errors import CloudemError, OutputExistsError
from cloudem.io.particle_store import ParticleStore, open_particles
from cloudem.io.storage.groups import read_attributes
from cloudem.jobs.base import Inputs
from cloudem.jobs.dataset import TREATED, check_ctf, half_sets, left_out, require_finite
from cloudem.jobs.maps import check_map
from cloudem.model.particles import COLUMNS, Particles

Warn = Callable[[str], None]

NUMBERS = tuple(name for name, column in COLUMNS.items() if column.dtype != "text")

READ = (*NUMBERS, *(f"rln:{name}" for name in TREATED))
"""Columns of a particle table that tell whether a job can use it."""


def check_mask(mask: str | None, inputs: Inputs) -> None:
    """Check the header of a mask, if there is one and no step before is to make it."""
    if mask is not None and not inputs.awaited(mask):
        check_map(mask)


def check_particles(
    url: str, inputs: Inputs, warn: Warn, *, poses: bool, skip_damaged: bool, seed: int
) -> ParticleStore | None:
    """Check table and shards of a particle store; return it, or None if a step before is to make it.

    Raises
    ------
    CloudemError
        It is no store, its CTF or (where they are needed) poses cannot be used, shards are missing, or a half-set is
        empty.
    """
    if inputs.awaited(url):
        return None
    store = open_particles(url)
    table = store.columns(READ)
    check_ctf(table, url)
    if poses:
        optional = (name for name in ("shift_x", "shift_y", "intensity_scale") if name in table)
        require_finite(table, "rot", "tilt", "psi", *optional)
    half_sets(table, seed, left_out(store, skip_damaged, warn))
    return store


def refuse_results_of_others(out: str, name: str) -> None:
    """Refuse a folder of results of another job."""
    other = (read_attributes(out, "") or {}).get("job", name)
    if other != name:
        raise OutputExistsError(f"{out} contains the results of {other}; choose another --out")


def warn_of_table(particles: Particles, path: str, warn: Warn) -> None:
    """Say of a table that is imported what refinements and reconstructions will refuse."""
    try:
        check_ctf(particles, path)
        half_sets(particles, 0, np.zeros(0, np.int64))
    except CloudemError as error:
        warn(f"refine3d and reconstruct will refuse these particles: {error}")
