"""What a classification by maps does next: a pure function of what it has seen.

Classes of a number are started, and go through so many passes. Then the images that were held out are asked whether
they are better explained by them than by one map, or by fewer classes. If not, the answer is one state, or the fewer
classes. If so, and their number is to be found, there is one more; otherwise the images held out join the others.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from cloudem.algorithms.states import Gain

PASSES, MOST_PASSES = 5, 12
"""Passes after which classes have to explain more than chance does, and the most."""

SETTLED, AT_REST = 0.03, 0.02
"""Share of images that change their class below which no further pass is made, and below which nothing is left to do
for the images that were held out: they have the class that all others say."""

SETTLING = 3
"""Passes of all images at most, once those that were held out have joined."""

CERTAIN, LEAST_GAIN = 4.0, 1e-3
"""Standard errors by which evidence has to rise, and by how much at least: less is of no use, or rounding."""

Phase = Literal["consensus", "start", "classes", "join", "settle"]


@dataclass(frozen=True)
class StatesState:
    """Where a classification stands before an iteration.

    Attributes
    ----------
    iteration, converged, finished
        As for `cloudem.jobs.iterative.IterationState`.
    phase
        ``consensus`` makes the map of all; ``start`` the first classes; ``classes`` is a pass; in ``join`` the images
        that were held out join the others; ``settle`` is a pass of all.
    classes
        Their number.
    passes
        That were made with it.
    limit
        Shell up to which images are compared; 0 before it is known.
    kept
        Number of classes that was borne out so far: 1 to begin with.
    """

    iteration: int = 1
    converged: bool = False
    finished: bool = False
    phase: Phase = "consensus"
    classes: int = 2
    passes: int = 0
    limit: int = 0
    kept: int = 1

    def record(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        return asdict(self)


def first_states(classes: int) -> StatesState:
    """Return the state before the first iteration, for a number of classes, 0 to find it."""
    return StatesState(classes=classes or 2)


def searches(state: StatesState) -> bool:
    """Return whether poses are searched in this pass, where that is asked for: as images join, and twice after it."""
    return state.phase == "join" or (state.phase == "settle" and state.passes < SETTLING)


def borne_out(gain: Gain) -> bool:
    """Return whether evidence rose by more than chance explains."""
    return gain.mean > LEAST_GAIN and gain.deviations > CERTAIN


def next_states(
    state: StatesState,
    asked: int,
    most: int,
    *,
    limit: int,
    moved: float = 1.0,
    gain: Gain | None = None,
    most_iterations: int = 1000,
    search: bool = False,
) -> StatesState:
    """Return what comes next; `StatesState.kept` says which classes go on.

    Parameters
    ----------
    state
        Before the iteration that is done.
    asked
        Number of classes that was asked for, 0 to find it.
    most
        Classes at most, where it is to be found.
    limit
        Shell up to which images are compared.
    moved
        Share of images that changed their class in it.
    gain
        Of images held out, over the classes that were borne out before.
    most_iterations
        After so many, what was found by then is decided on.
    search
        Whether images are searched in the maps of the classes as they join.
    """
    after = replace(state, iteration=state.iteration + 1, limit=limit)
    if state.phase == "consensus":
        return replace(after, phase="start")
    if state.phase == "start":
        return replace(after, phase="classes", passes=0)
    over = replace(state, limit=limit, converged=True, finished=True)
    if state.phase == "join":
        return over if moved < AT_REST and not search else replace(after, phase="settle", passes=1)
    if state.phase == "settle":
        return over if moved < AT_REST or state.passes >= SETTLING else replace(after, passes=state.passes + 1)
    passes = state.passes + 1
    stops, known = state.iteration >= most_iterations, gain is not None and borne_out(gain)
    if passes < (MOST_PASSES if known else PASSES) and moved > SETTLED and not stops:
        return replace(after, passes=passes)
    if known:
        if not asked and state.classes < most and not stops:
            return replace(after, phase="start", classes=state.classes + 1, passes=0, kept=state.classes)
        if moved < AT_REST and not search:
            return replace(over, kept=state.classes)
        return replace(after, phase="join", kept=state.classes, passes=passes)
    if state.kept == 1:
        return replace(over, classes=1)
    return replace(after, phase="join", classes=state.kept, passes=passes)
