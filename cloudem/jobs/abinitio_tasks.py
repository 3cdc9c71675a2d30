"""The tasks of ``cloudem abinitio``: a start, and what carries its map on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.abinitio import MARGIN, Blind, from_nothing, rings_of_waves
from cloudem.algorithms.batch import MASK_SHELLS, Batch
from cloudem.algorithms.carrying_on import Carried, carried_on, carrying_settings
from cloudem.algorithms.coarse import coarse_images
from cloudem.algorithms.noise import noise_variance
from cloudem.algorithms.placing import map_on
from cloudem.jobs.classify2d.tasks import NOISE_IMAGES, batch_for_classes, noise_of_group
from cloudem.jobs.dataset import Dataset, left_out, open_for_tasks
from cloudem.jobs.mapping import Found
from cloudem.kernels.slices import fast_even
from cloudem.model.symmetry import operators

HELD_OUT = 400
"""Images that are asked for their evidence only."""

CARRIED_FROM, CARRIED_TO = 9.0, 24.0
"""Waves across the particle on which the passes that carry a map on begin, and on which they end at the latest."""

CARRIED_IMAGES, MOST_OF_THEM = 3000, 4.0
"""Images that a map is carried on with, and the factor by which there are more of them if they are faint."""

CLEAR = 40.0
"""Mean evidence of images that are not faint, as a logarithm."""

BATCH = 250


@dataclass(frozen=True)
class StartSettings:
    """What all starts have in common: the particles, and what the user said of them."""

    particles: str
    diameter: float
    shift_range: float
    symmetry: str
    skip_damaged: bool


class Starting:
    """The images of a job, on no more pixels than its maps need, and the noise in them."""

    def __init__(self, settings: StartSettings) -> None:
        self.dataset: Dataset = open_for_tasks(settings.particles)
        store = self.dataset.store
        kept = np.setdiff1d(np.arange(len(store)), left_out(store, settings.skip_damaged))
        order = np.random.default_rng(0).permutation(kept)  # the same for all starts: they are compared on the rest
        held = min(HELD_OUT, len(order) // 4)
        self.held_out, self.order = np.sort(order[:held]), order[held:]
        self.side = cropped_side(store.box, settings.diameter / store.pixel_size)
        pixel_size = store.pixel_size * store.box / self.side
        self.known = Blind(
            box=self.side,
            pixel_size=pixel_size,
            radius=settings.diameter / 2 / pixel_size,
            shift_range=(settings.shift_range or 0.06 * settings.diameter) / pixel_size,
            group=operators(settings.symmetry),
            sigma2=self._noise(),
        )

    def _noise(self) -> NDArray[np.float64]:
        power = noise_of_group(np.sort(self.order[:NOISE_IMAGES]), self.dataset, self.side)
        return noise_variance(power[:, :-1], power[:, -1], self.side)

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Return images with their CTFs, ``indices`` ascending."""
        images = coarse_images(self.dataset.images(indices), self.side)
        return batch_for_classes(self.dataset, indices, images)


def cropped_side(box: int, diameter: float) -> int:
    """Return the pixels along an edge that images of a box, and particles of a diameter in pixels, are cut down to."""
    return min(box, fast_even(2 * rings_of_waves(CARRIED_TO, box, diameter / 2) + MASK_SHELLS))


def start_of(seed: int, settings: StartSettings) -> Found:
    """Make a map from nothing with one seed: the task of a start."""
    starting = Starting(settings)
    found = from_nothing(starting.known, starting.batch, starting.order, starting.held_out, seed)
    return {
        "volume": found.volume[None],
        "evidence": np.array([found.evidence]),
        "views": np.array([found.views]),
        "course": found.course[None],
        "finest": np.array([starting.known.finest]),
    }


def carry_start(start: tuple[NDArray[np.float32], float], settings: StartSettings) -> Carried:
    """Carry the map of a start on: a task.

    Parameters
    ----------
    start
        Its map on the coarse grid, and the evidence of its images; with faint ones, more of them are used.
    settings
        Of the start.
    """
    volume, evidence = start
    starting = Starting(settings)
    known = starting.known
    count = round(CARRIED_IMAGES * float(np.clip(CLEAR / max(evidence, 1e-3), 1.0, MOST_OF_THEM)))
    some = np.sort(starting.order[:count])
    halves = [
        [starting.batch(own[first : first + BATCH]) for first in range(0, len(own), BATCH)]
        for own in (some[0::2], some[1::2])
    ]
    last = min(known.rings(CARRIED_TO), known.box // 2 - MARGIN - 1)
    first = min(known.rings(max(CARRIED_FROM, known.finest_waves)), last)
    settled = carrying_settings(known.box, known.pixel_size, known.radius, known.shift_range, first, last)
    found = carried_on((halves[0], halves[1]), map_on(volume, known.box), settled, known.sigma2, known.group)
    # the images' values were cut down with their pixels, and those of the map with them
    return found._replace(volume=found.volume * np.float32(known.box / starting.dataset.store.box))
