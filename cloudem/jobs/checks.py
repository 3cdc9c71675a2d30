"""What preflights look at: particle stores by their tables, maps and half-maps by their headers, results by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from cloudem.errors import CloudemError, OutputExistsError, ParameterError
from cloudem.io.formats.unapplied import unapplied
from cloudem.io.particle_store import ParticleStore, open_particles
from cloudem.io.storage.groups import has_group, read_attributes
from cloudem.jobs.base import Inputs
from cloudem.jobs.dataset import check_ctf, left_out, require_finite
from cloudem.jobs.halves import By, Drawing, half_sets
from cloudem.jobs.maps import check_map
from cloudem.model.particles import Particles

Warn = Callable[[str], None]

SMALLEST = 8
"""Least diameter of a particle in pixels: with less there is nothing to align."""


class UsesParticles(Protocol):
    """A job that aligns or inserts particles of two half-sets: the parameters that this takes."""

    @property
    def particles(self) -> str:
        """Particle store."""

    @property
    def skip_damaged(self) -> bool:
        """Whether to go on without those whose shards are lost."""

    @property
    def seed(self) -> int:
        """Of half-sets that are drawn."""

    @property
    def new_halves(self) -> bool:
        """Whether to draw all of them."""

    @property
    def halves_by(self) -> By:
        """What is drawn as one."""


def check_mask(mask: str | None, inputs: Inputs) -> None:
    """Check the header of a mask, if there is one and no step before is to make it."""
    if mask is not None and not inputs.awaited(mask):
        check_map(mask, held="mask")


def check_particles(job: UsesParticles, inputs: Inputs, warn: Warn, *, poses: bool) -> ParticleStore | None:
    """Check table and shards of a job's particles; return their store, or None if a step before is to make it.

    Says what is odd about them, and what is known of them and not applied.

    Raises
    ------
    CloudemError
        It is no store, its CTF or (where they are needed) poses cannot be used, shards are missing, a half-set is
        empty, or half-sets share images.
    """
    store = check_images(job.particles, inputs, warn)
    if store is None:
        return None
    table = store.particles
    if poses:
        optional = (name for name in ("shift_x", "shift_y", "intensity_scale") if name in table)
        require_finite(table, "rot", "tilt", "psi", *optional)
    drawing = Drawing(job.seed, job.new_halves, job.halves_by)
    half_sets(table, drawing, left_out(store, job.skip_damaged, warn), warn)
    return store


def check_images(
    particles: str, inputs: Inputs, warn: Warn, *, skip_damaged: bool | None = None
) -> ParticleStore | None:
    """Check what a table says of images and their CTF, and return the store; None if a step before is to make it.

    With ``skip_damaged`` its shards are looked at, too, see `left_out`.

    Raises
    ------
    CloudemError
        It is no store, its CTF cannot be used, or shards are missing.
    """
    if inputs.awaited(particles):
        return None
    store = open_particles(particles)
    table = store.particles
    for text in (*check_ctf(table, particles, store.box, store.pixel_size), *unapplied(table)):
        warn(text)
    if skip_damaged is not None:
        left_out(store, skip_damaged, warn)
    return store


def check_diameter(diameter: float, box: int, pixel_size: float) -> None:
    """Check that a particle of a diameter in Å fits in images of a box in pixels, and that there is something to align.

    Raises
    ------
    ParameterError
        It is too large, or too small.
    """
    length = box * pixel_size
    if diameter >= length:
        raise ParameterError(
            f"--diameter-A {diameter:g} does not fit in the images, {box} px of {pixel_size:.4g} Å = "
            f"{length:.4g} Å; give the particle's diameter, or extract a larger box"
        )
    if diameter < SMALLEST * pixel_size:
        raise ParameterError(
            f"--diameter-A {diameter:g} is less than {SMALLEST} px of {pixel_size:.4g} Å; give the "
            "particle's diameter in Å"
        )


def refuse_results_of_others(out: str, name: str) -> None:
    """Refuse a folder of results of another job."""
    other = (read_attributes(out, "") or {}).get("job", name)
    if other != name:
        raise OutputExistsError(f"{out} contains the results of {other}; choose another --out")


def refuse_any_results(out: str, name: str) -> None:
    """Refuse a folder of results of another job, and of this job where it has finished."""
    refuse_results_of_others(out, name)
    if has_group(out, "result"):
        raise OutputExistsError(f"{out} already contains results; choose another --out")


def warn_of_table(particles: Particles, path: str, box: int, pixel_size: float, warn: Warn) -> None:
    """Say of a table that is imported what refinements and reconstructions will refuse."""
    try:
        check_ctf(particles, path, box, pixel_size)
        half_sets(particles, Drawing(0), np.zeros(0, np.int64))
    except CloudemError as error:
        warn(f"refine3d and reconstruct will refuse these particles: {error}")
