"""What tasks are called while they run: the step of the job that they belong to, its iteration, and the job.

Whoever runs a job says here where it is (`labelled`); an executor that has names for its tasks takes them from here
(`current_label`), others need not ask. Names are for people alone: no result and no count depends on them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace

STEP_LENGTH = 15
"""Characters of a step's name that the pages of Dask have room for."""


@dataclass(frozen=True)
class TaskLabel:
    """Where a job is.

    Attributes
    ----------
    job
        Which one; empty where no job runs.
    step
        What of it runs, as in its progress; empty where that is not said.
    iteration
        In which iteration; None outside of iterations.
    """

    job: str = ""
    step: str = ""
    iteration: int | None = None

    def group(self, otherwise: str) -> str:
        """Return the name of the tasks that are submitted here: ``align-it007``, or ``noise`` outside of iterations.

        Dask takes all before the first hyphen for the kind of task, of which it remembers for ever how long each takes,
        so that nothing may stand there that changes from one iteration to the next. A step that is not said is called
        ``otherwise``.
        """
        step = _plain(self.step) or _plain(otherwise) or "task"
        return step if self.iteration is None else f"{step}-it{self.iteration:03d}"

    def within(self, step: str) -> TaskLabel:
        """Return the same with another step."""
        return replace(self, step=step)


def _plain(step: str) -> str:
    """Return a step as one word that begins with a letter."""
    return re.sub(r"[^A-Za-z0-9]+", "_", step).lstrip("_0123456789")[:STEP_LENGTH].rstrip("_")


_NOWHERE = TaskLabel()
_LABEL: ContextVar[TaskLabel] = ContextVar("label", default=_NOWHERE)


def current_label() -> TaskLabel:
    """Return where the block is that runs."""
    return _LABEL.get()


@contextlib.contextmanager
def labelled(*, job: str | None = None, step: str | None = None, iteration: int | None = None) -> Iterator[None]:
    """Let tasks that are submitted in this block, by this thread, be called so; what is not given stays as it is."""
    before = _LABEL.get()
    given = TaskLabel(
        before.job if job is None else job,
        before.step if step is None else step,
        before.iteration if iteration is None else iteration,
    )
    token = _LABEL.set(given)
    try:
        yield
    finally:
        _LABEL.reset(token)
