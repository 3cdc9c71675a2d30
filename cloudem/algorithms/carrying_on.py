"""From a coarse map to a finer one in a few passes: its images are searched for and aligned, in two halves.

A map from nothing (:mod:`cloudem.algorithms.abinitio`) ends where sharing images out between all views becomes dear.
From there on, each image has one pose: that of the best match on a grid, which then climbs on finer and finer shells.
The halves begin with the same coarse map and make one each. Their correlation sets the filter of both, and how far the
next pass goes: the rules are those of a refinement (:mod:`cloudem.algorithms.refinement`), and so is what is done to a
batch of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.align import Prior
from cloudem.algorithms.batch import Batch
from cloudem.algorithms.bricks import pack, packed_sphere_of, unpack
from cloudem.algorithms.expectation import IterationPlan, Model, expect
from cloudem.algorithms.mask import circle_edge, soft_sphere
from cloudem.algorithms.reconstruct import Sums, empty_sums, reference_volume, solve
from cloudem.algorithms.refinement import Settings, State, iteration_plan, next_limit, reference_snr
from cloudem.algorithms.search import MARGIN, search_grid
from cloudem.algorithms.significance import resolution_shell
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.kernels.slices import padded_box

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SEARCH_WAVES = 10.0
"""Waves across the particle up to which poses are searched for."""

SEARCHES = (1, 3)
"""Passes that search, from 1; in the others, poses climb from where they are."""

MOST_PASSES = 8

CANDIDATES = 10
"""Poses of each image that climb after a search."""


class Carried(NamedTuple):
    """What the passes end with.

    Attributes
    ----------
    volume
        Mean of the maps of both halves, filtered by their correlation, inside the particle's sphere, (n, n, n).
    shell
        Up to which they correlate by 0.143. Both began with the same coarse map.
    limit
        Last shell that images were compared on.
    """

    volume: Float32
    shell: float
    limit: int


class Halves:
    """The images of two halves in batches, the pose of each, and how often they are passed over."""

    def __init__(self, batches: tuple[Sequence[Batch], Sequence[Batch]], settings: Settings, sigma2: Float64,
                 group: Float64) -> None:  # fmt: skip
        self.batches = [list(half) for half in batches]
        self._settings, self._sigma2, self._group = settings, sigma2, group
        self.sphere: Float32 = soft_sphere(settings.box, settings.radius, circle_edge(settings.box, settings.radius))

    def passed(self, references: Sequence[Float32], plan: IterationPlan) -> list[Sums]:
        """Align the images of each half to its reference, keep their poses, and return the sums of their slices."""
        found = []
        for batches, reference in zip(self.batches, references, strict=True):
            model, sums = self._model(reference, plan), empty_sums(plan.box, plan.k_insert)
            for number, batch in enumerate(batches):
                expected = expect(batch, plan, model, sums)
                batches[number] = replace(batch, poses=expected.poses)
            ball = packed_sphere_of(plan.box, plan.k_insert, self._group)
            found.append(unpack(pack(sums, ball), ball))
        return found

    def _model(self, reference: Float32, plan: IterationPlan) -> Model:
        padding = padded_box(plan.box) / plan.box
        volume = reference_volume(reference, max(plan.k_score, plan.k_search + MARGIN))
        grid = None
        if plan.k_search:
            searched = (plan.k_search, plan.radius, plan.step, self._group)
            grid = search_grid(volume, padding, plan.box, *searched)
        prior = Prior((self._settings.shift_range / 2) ** 2)
        return Model(volume, grid, self._sigma2, prior, self._group)

    def maps(self, sums: Sequence[Sums], snr: Float64 | None, k_max: int) -> list[Float32]:
        """Return the maps of the sums, inside the sphere."""
        copies = [Sums(one.data.copy(), one.weight.copy()) for one in sums]
        return [solve(copy, self._settings.box, snr, k_max) * self.sphere for copy in copies]


def carried_on(
    batches: tuple[Sequence[Batch], Sequence[Batch]],
    volume: Float32,
    settings: Settings,
    sigma2: Float64,
    group: Float64,
) -> Carried:
    """Carry a coarse map on until it becomes no finer, or up to `Settings.last_limit`.

    Parameters
    ----------
    batches
        Images of the two halves, without poses.
    volume
        The coarse map on the grid of the images, (n, n, n).
    settings
        Of a refinement; :func:`carrying_settings`.
    sigma2
        Noise variance by optics group and shell, (g, n // 2 + 1).
    group
        Symmetry operators (g, 3, 3).
    """
    halves = Halves(batches, settings, sigma2, group)
    references: list[Any] = [volume * halves.sphere] * 2
    limit, best = settings.first_limit, 0.0
    for number in range(1, MOST_PASSES + 1):
        done = sum(each < number for each in SEARCHES)
        state = State(iteration=number, limit=limit, searches=done, search=number in SEARCHES)
        plan = iteration_plan(state, settings)
        sums = halves.passed(references, plan)
        fsc = fourier_shell_correlation(*halves.maps(sums, None, plan.k_insert))
        shell = resolution_shell(fsc)
        after = next_limit(shell, limit, settings)
        references = halves.maps(sums, reference_snr(fsc, max(after, limit)), plan.k_insert)
        if number > max(SEARCHES) and (after <= limit and shell < best + 1):
            break
        limit, best = after, max(best, shell)
    return Carried(np.asarray((references[0] + references[1]) / 2, np.float32), shell, plan.k_score)


def carrying_settings(
    box: int, pixel_size: float, radius: float, shift_range: float, first: int, last: int
) -> Settings:
    """Return the settings of the passes.

    Parameters
    ----------
    box, pixel_size, radius, shift_range
        Pixels, Å, pixels, pixels.
    first, last
        First and last shell that images are compared on.
    """
    return Settings(
        box=box,
        pixel_size=pixel_size,
        radius=radius,
        first_limit=first,
        search_step=2 / SEARCH_WAVES,
        shift_range=shift_range,
        candidates=CANDIDATES,
        poses=1,
        last_limit=last,
        most_iterations=MOST_PASSES,
    )
