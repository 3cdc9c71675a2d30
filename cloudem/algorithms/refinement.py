"""What a gold-standard refinement does next: pure decisions from what the last iteration showed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.expectation import IterationPlan
from cloudem.algorithms.reconstruct import signal_to_noise
from cloudem.algorithms.significance import MOST_CHANCE, deviations, resolution_shell
from cloudem.conventions import LEAST_EVIDENCE

Float64 = NDArray[np.float64]

AHEAD = 2
"""Shells beyond the resolution that are scored: the next iteration can only find what is looked at."""

LEAKAGE = 4
"""The limit rises only when the resolution lies this many shells beyond it: the edge of a mask carries the correlation
of the last shell scored, which may be that of aligned noise, across two or three more. Real signal reaches further."""

EVIDENCE_SAMPLE = 1000
"""Images of each half-set that are asked."""

GROWTH = 3
"""The limit rises by no more than this factor from one iteration to the next."""

SEARCH_AGAIN = 0.03
"""The grid search is repeated while it still brings more than this share of the images to another maximum."""

MOST_SEARCHES = 5

STILL = 0.25
"""A pose moves if it changes by more than this fraction of its own standard error."""

CONVERGED_MOVING = 0.2
"""With the resolution at a standstill, converged when fewer poses than this share move."""

MOST_STALLED = 3
"""Iterations without better resolution after which it is converged whatever moves."""

FAINTEST_STRONGEST = (0.3, 3.0)
"""Bounds of an image's intensity scale."""

WIDEST = 0.5
"""Greatest standard deviation of images' amplitudes about those of their micrographs."""


@dataclass(frozen=True)
class Settings:
    """What the user fixed, in pixels and radians.

    Attributes
    ----------
    box, pixel_size
        Pixels, Å.
    radius
        Of the particle, pixels.
    first_limit
        Shell to which the reference is trusted at the start.
    search_step
        Finest distance between directions of the search, radians.
    shift_range
        Furthest shift from the box centre in the first search, pixels.
    candidates, poses
        Poses refined after a search, and most poses inserted, for each image.
    last_limit
        Highest shell ever scored.
    most_iterations
        Iterations after which it stops unconverged.
    """

    box: int
    pixel_size: float
    radius: float
    first_limit: int
    search_step: float
    shift_range: float
    candidates: int
    poses: int
    last_limit: int
    most_iterations: int


@dataclass(frozen=True)
class State:
    """Where the refinement stands before an iteration.

    Attributes
    ----------
    iteration
        The one to come, from 1.
    limit
        Highest shell that it scores.
    searches
        Grid searches done.
    search
        Whether it searches.
    best
        Best resolution so far that could be believed, shell (fractional).
    stalled
        Iterations since that improved.
    final
        It takes all shells, and is the last.
    converged
        The data decided that it be the last, not the count of iterations.
    finished
        There is no further iteration.
    """

    iteration: int
    limit: int
    searches: int = 0
    search: bool = True
    best: float = 0.0
    stalled: int = 0
    final: bool = False
    converged: bool = False
    finished: bool = False

    def record(self) -> dict[str, Any]:
        """Return the state as plain numbers, for a checkpoint."""
        return asdict(self)


@dataclass(frozen=True)
class IterationOutcome:
    """What an iteration showed.

    Attributes
    ----------
    fsc
        Corrected FSC, (n // 2 + 1,).
    voxels
        Independent voxels of each shell (`cloudem.algorithms.significance`).
    evidence
        By how many standard deviations images match the other half-set's map better from their own side than from
        another's, on the `LEAKAGE` shells beyond the limit (`cloudem.algorithms.evidence`); 0 where nobody asked.
    moving
        Share of the images whose pose moved by more than :data:`STILL` standard errors.
    jumped
        Share of the images that are now at another maximum.
    """

    fsc: Float64
    voxels: Float64
    evidence: float
    moving: float
    jumped: float


def first_state(settings: Settings) -> State:
    """Return the state before iteration 1."""
    return State(iteration=1, limit=settings.first_limit, final=settings.most_iterations == 1)


def beyond_start(state: State, settings: Settings) -> bool:
    """Tell whether the refinement has shown signal that the starting reference did not hold."""
    return state.best > settings.first_limit + LEAKAGE


def asks_for_evidence(fsc: Float64, voxels: Float64, limit: int) -> bool:
    """Tell whether the FSC would raise the limit: by shells beyond what masks carry, and by more than chance."""
    return deviations(fsc, voxels, limit + LEAKAGE, int(resolution_shell(fsc))) > MOST_CHANCE


def believed_shell(observed: IterationOutcome, limit: int) -> float:
    """Return the shell (fractional) of the resolution, as far as the limit of that iteration lets it be believed.

    Up to three shells beyond the limit the masks may carry what noise shares that was aligned to the same start; if
    there are many images, further. So what lies beyond has to be more correlated than chance makes so few voxels, and
    images have to know it, too.
    """
    shell = resolution_shell(observed.fsc)
    if asks_for_evidence(observed.fsc, observed.voxels, limit) and observed.evidence > LEAST_EVIDENCE:
        return shell
    return min(shell, limit + LEAKAGE - 1.0)


def iteration_plan(state: State, settings: Settings) -> IterationPlan:
    """Return what the coming iteration does."""
    last = settings.box // 2 - 1
    step = float(np.clip(settings.box / state.limit / settings.radius, settings.search_step, 2 * settings.search_step))
    k_search = 0
    if state.search:
        # half a step moves the rim by half the finest wavelength that such a grid can use
        k_search = max(4, min(state.limit, int(settings.box / (settings.radius * settings.search_step))))
    shift_step = 0.3 * settings.box / max(k_search, 1)
    # the first with more detail than the start has, of a refinement that never searches
    fans_out = state.iteration == 2 and not state.search and not state.searches
    return IterationPlan(
        box=settings.box,
        pixel_size=settings.pixel_size,
        radius=settings.radius,
        k_score=state.limit,
        k_insert=last if state.final else min(last, int(1.4 * state.limit) + 5),
        k_search=k_search,
        step=step,
        shift_radius=settings.shift_range if state.iteration == 1 else 1.01 * shift_step,
        shift_step=shift_step,
        candidates=settings.candidates,
        poses=settings.poses,
        first=state.iteration == 1,
        fan=step if fans_out else 0.0,
    )


def next_state(state: State, settings: Settings, observed: IterationOutcome) -> State:
    """Return the state before the next iteration; ``finished`` when there is none."""
    if state.final:
        return replace(state, finished=True)
    shell = believed_shell(observed, state.limit)
    better = shell > state.best + 0.25
    best, stalled = (shell, 0) if better else (max(state.best, shell), state.stalled + 1)
    searches = state.searches + state.search
    search = state.search and searches < MOST_SEARCHES and (searches < 2 or observed.jumped > SEARCH_AGAIN)
    limit = next_limit(shell, state.limit, settings)
    still = stalled >= 1 and observed.moving < CONVERGED_MOVING
    converged = not state.search and not search and (still or stalled >= MOST_STALLED)
    took_all = iteration_plan(state, settings).k_insert == settings.box // 2 - 1
    iteration = state.iteration + 1
    final = (converged and not took_all) or iteration >= settings.most_iterations
    return State(
        iteration=iteration,
        limit=max(limit, state.limit) if final else limit,
        searches=searches,
        search=search,
        best=best,
        stalled=stalled,
        final=final,
        converged=converged,
        finished=converged and took_all,
    )


def onward_state(state: State, settings: Settings, observed: IterationOutcome) -> State:
    """Return the state before the next iteration of a refinement that ended by their count, should it go on.

    ``state`` is that before its last one.
    """
    unlimited = replace(settings, most_iterations=state.iteration + 2)
    return replace(next_state(replace(state, final=False), unlimited, observed), finished=False)


def next_limit(shell: float, limit: int, settings: Settings) -> int:
    """Return the highest shell to score, from the resolution (shell) and the limit of the last iteration."""
    wanted = round(shell) + AHEAD
    if limit < wanted < limit + LEAKAGE + AHEAD and limit < settings.last_limit - LEAKAGE:
        wanted = limit
    return int(np.clip(wanted, settings.first_limit, min(GROWTH * limit, settings.last_limit)))


def reference_snr(fsc: Float64, limit: int) -> Float64:
    """Return the signal-to-noise ratio by shell with which a half-map becomes a reference.

    FSC / (1 - FSC), up to the resolution; the few shells beyond it are let in weakly, so that the correlation can grow
    there. Nothing beyond ``limit``, the highest shell that the next iteration scores: the mask, by which the reference
    is multiplied, would spread it over what is scored, and aligned noise would creep outwards with each iteration.
    """
    ratio = signal_to_noise(np.nan_to_num(fsc))
    shell = np.arange(len(fsc))
    end = resolution_shell(fsc)
    ratio = np.where(shell > end, np.minimum(ratio, 0.1), ratio)
    return np.where(shell > min(end + AHEAD + 1, limit), 0.0, ratio)


def is_moving(angle: Float64, shift: Float64, precision: Float64) -> NDArray[np.bool_]:
    """Return which poses moved by more than :data:`STILL` of its standard error.

    Parameters
    ----------
    angle, shift
        Changes since the last iteration, radians and pixels, (b,).
    precision
        Gauss-Newton matrices, (b, 5, 5).
    """
    floor = 1e-6 * np.einsum("baa->ba", precision).max(axis=1) + 1e-12
    covariance = np.linalg.inv(precision + floor[:, None, None] * np.eye(5))
    diagonal = np.maximum(np.einsum("baa->ba", covariance), 0)
    turned = angle > STILL * np.sqrt(diagonal[:, :3].sum(axis=1))
    moved = shift > STILL * np.sqrt(diagonal[:, 3:].sum(axis=1))
    return np.asarray(turned | moved)


def intensity_scales(numerator: Float64, norm: Float64, group: NDArray[np.integer[Any]]) -> Float64:
    """Return the factor on the CTF for each image, from all images of its group.

    The least-squares factor ``sum N / sum D`` of a group over that of all images, drawn towards 1 as if it were known
    to be 1 ± 0.1 beforehand.

    Parameters
    ----------
    numerator, norm
        ``Re⟨X C / σ², S⟩`` and ``⟨C² / σ², |S|²⟩`` with the present factor, (b,).
    group
        Number of the group (micrograph) of each image, from 0.

    Returns
    -------
    Shape (b,): by what the present factors are to be multiplied.
    """
    prior = 1 / 0.1**2
    mean = max(numerator.sum() / max(norm.sum(), 1e-30), 1e-6)
    n, d = np.bincount(group, numerator), np.bincount(group, norm)
    return np.asarray(np.clip((n / mean + prior) / (d + prior), *FAINTEST_STRONGEST)[group])


def contrasts(numerator: Float64, norm: Float64, level: Float64, counts: Float64) -> Float64:
    """Return the amplitude of each image, drawn towards that of its micrograph as far as images do not differ there.

    ``numerator / norm`` is the amplitude that fits an image best, with the variance ``1 / norm``. How much true
    amplitudes differ from their levels is what their variance exceeds that by, over all images; the mean of the
    posterior with a Gaussian prior of that width follows (empirical Bayes: Efron & Morris 1973,
    10.1080/01621459.1973.10481350).

    Parameters
    ----------
    numerator, norm
        ``Re⟨X C / σ², S⟩`` and ``⟨C² / σ², |S|²⟩`` for a factor of 1, (b,).
    level
        Amplitude of the image's micrograph, (b,).
    counts
        How much each image says of the width, 0 to 1, (b,).

    Returns
    -------
    Shape (b,), between 0.3 and 3.
    """
    excess = float(np.sum(counts * ((numerator - norm * level) ** 2 - norm)))
    variance = np.clip(excess / max(float(np.sum(counts * norm**2)), 1e-30), 1e-6, WIDEST**2)
    return np.asarray(np.clip((numerator + level / variance) / (norm + 1 / variance), *FAINTEST_STRONGEST))
