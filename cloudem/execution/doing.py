"""What a job does, as it tells those who show what runs its tasks: for people alone."""

from __future__ import annotations

from typing import NamedTuple


class StepRunning(NamedTuple):
    """A step since it began to run this time: seconds, items done, and of how many (None: not known)."""

    seconds: float
    done: int
    total: int | None


class StepDoing(NamedTuple):
    """A step of a job, in all iterations since the job was started.

    Attributes
    ----------
    name
        Of the step.
    seconds, done
        That it has taken, and items that were done.
    unit
        What items are; empty where that is not said.
    running
        What of it is done now; None where it does not run.
    """

    name: str
    seconds: float
    done: int
    unit: str = ""
    running: StepRunning | None = None


class JobDoing(NamedTuple):
    """A job: how many iterations are done, and its steps in the order in which they first ran."""

    iterations: int
    steps: tuple[StepDoing, ...]
