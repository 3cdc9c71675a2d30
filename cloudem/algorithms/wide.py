"""Searching the poses of images anew in the map of each state: poses that all states together led astray.

Where a state has so little in common with the others that the consensus holds few of its images in their poses, no
comparison about these poses can tell its images. The search is that of a refinement, on the grid of the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Poses, Prior, evidence
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.expectation import IterationPlan, Model, align, inverse_noise, spectra
from cloudem.algorithms.reconstruct import reference_volume
from cloudem.algorithms.refinement import Settings, State, iteration_plan
from cloudem.algorithms.search import MARGIN, search_grid
from cloudem.algorithms.states import StateScores, StateSettings
from cloudem.kernels.fourier import fourier_images, low_passed, real_images

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

STEP_DEG, CANDIDATES = 7.5, 6
"""Finest step of the search, as in a refinement, and how many poses of an image are refined after it."""


def wide_plan(settings: StateSettings, limit: int) -> IterationPlan:
    """Return the plan of a search with shifts about those that are known."""
    here = Settings(
        box=settings.box,
        pixel_size=settings.pixel_size,
        radius=settings.radius,
        first_limit=limit,
        search_step=float(np.radians(STEP_DEG)),
        shift_range=0.0,
        candidates=CANDIDATES,
        poses=1,
        last_limit=limit,
        most_iterations=2,
    )
    return iteration_plan(State(iteration=2, limit=limit), here)


def wide_model(
    density: Float32, sigma2: Float64, prior: Prior, group: Float64, settings: StateSettings, limit: int
) -> Model:
    """Return what images are searched in: the map of a state (m, m, m), with its slices on a grid of directions."""
    plan = wide_plan(settings, limit)
    volume = reference_volume(density, max(limit, plan.k_search + MARGIN))
    grid = search_grid(volume, settings.padding, plan.box, plan.k_search, plan.radius, plan.step, group)
    return Model(volume, grid, sigma2[:, : settings.box // 2 + 1], prior, group)


def on_grid(batch: Batch, poses: Poses, settings: StateSettings) -> Batch:
    """Return images on the grid of the states, with their poses, none of which is settled."""
    images = batch.images
    if settings.box < settings.whole_box:
        last = settings.box // 2 - 1
        images = real_images(low_passed(fourier_images(images), last, settings.box))
    return replace(batch, images=images, poses=poses, settled=np.zeros(len(images), bool))


def search_states(
    batch: Batch, poses: Poses, models: Sequence[Model], settings: StateSettings, limit: int
) -> StateScores:
    """Search images in the map of each state; the pose that they have competes. As `score_states` otherwise."""
    plan, here = wide_plan(settings, limit), on_grid(batch, poses, settings)
    spectrum, found = spectra(here, plan), []
    inverse = inverse_noise(here, models[0])
    for model in models:
        best, _ = align(here, spectrum, inverse, plan, model)
        found.append(best)
    return StateScores(
        np.stack([evidence(each) for each in found], axis=1),
        np.stack([each.rotations for each in found], axis=1),
        np.stack([each.shifts for each in found], axis=1),
    )
