"""One engine for all jobs that go in iterations: checkpoint, resume, stop, rows, and what may change on resuming.

A job says how it begins, what one iteration does, and how it ends (`Iterations`); everything else is here. All that the
next iteration needs is in the group ``checkpoint``, and every iteration begins by reading it from there, so that a
resumed run cannot differ from one that was never interrupted. What an iteration showed is kept in a group of its own,
``iterations/<number>``, before the checkpoint moves on.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, Self, TypeVar

from cloudem.errors import FormatError, InconsistentDataError, OutputExistsError, StorageError
from cloudem.execution.task_names import labelled
from cloudem.jobs.base import Context, Job
from cloudem.jobs.parameters import option_of, parameter
from cloudem.model.columns import Value
from cloudem.traffic import Moved, difference, purpose

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHECKPOINT = "checkpoint"
"""Group that holds what the next iteration needs."""

ITERATIONS = "iterations"
"""Group whose groups hold what each iteration showed."""


class IterationState(Protocol):
    """Where a job stands before an iteration."""

    @property
    def iteration(self) -> int:
        """The one to come, from 1."""

    @property
    def converged(self) -> bool:
        """Whether the data decided that the last iteration be the last, and not the count of iterations."""

    @property
    def finished(self) -> bool:
        """Whether there is no further iteration."""

    def record(self) -> dict[str, Any]:
        """Return it as plain numbers, for the checkpoint."""


@dataclass(frozen=True)
class PlainState:
    """A state for jobs whose decisions are a few numbers, or none.

    Attributes
    ----------
    iteration, converged, finished
        As for `IterationState`.
    values
        What else decides, ready for JSON.
    """

    iteration: int = 1
    converged: bool = False
    finished: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return it as plain numbers."""
        return asdict(self)

    def following(self, *, converged: bool, most: int, values: Mapping[str, Any] | None = None) -> Self:
        """Return the state after this iteration: finished if it converged, or if it was the last that is allowed."""
        over = converged or self.iteration >= most
        after = replace(self, converged=converged, finished=over, values=self.values if values is None else values)
        return after if over else replace(after, iteration=self.iteration + 1)


S = TypeVar("S", bound=IterationState)


@dataclass(frozen=True)
class IterationResult(Generic[S]):
    """What an iteration leaves.

    Attributes
    ----------
    after
        The state before the next one; finished where there is none.
    row
        What it showed, by the names of the job's columns, ``iteration`` first; the engine adds time and bytes.
    arrays
        The checkpoint for the next iteration.
    attributes
        Of the checkpoint, beside the state.
    curves
        Arrays that are kept with the row.
    onward
        The state from which iterations go on if more are allowed than when this one ended the job; None if none can.
    result
        Whatever the end of the job needs of the last iteration.
    """

    after: S
    row: Mapping[str, Value]
    arrays: Mapping[str, NDArray[Any]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    onward: S | None = None
    result: Any = None


class Iterations(ABC, Generic[S]):
    """One run of an iterative job, in the job's own words; made by `IterativeJob.iterations`."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @abstractmethod
    def begin(self) -> S:
        """Commit the first checkpoint (`commit`, after `clear`) and return the state that it was committed with."""

    @abstractmethod
    def state(self, record: Mapping[str, Any]) -> S:
        """Return the state that was recorded, with what the parameters may have changed; TypeError if it is none."""

    @abstractmethod
    def iterate(self, state: S) -> IterationResult[S]:
        """Do one iteration from the checkpoint in the store; the engine commits what it returns."""

    @abstractmethod
    def finish(self, last: IterationResult[S], wall_s: float) -> None:
        """Write the result."""

    def resume(self, state: S) -> None:
        """Check, before a run goes on, that what it began with is still there."""

    def converged(self, iterations: int) -> str:
        """Return what to say when the job has converged after so many iterations."""
        return f"converged after {iterations} iterations"

    def commit(
        self, state: S | None, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any] | None = None
    ) -> None:
        """Commit a checkpoint; without a state no run goes on from it."""
        commit(self.context, state, arrays, attributes or {})

    def checkpoint(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays and attributes of the checkpoint."""
        from cloudem.io.storage.groups import read_group

        with purpose("poses"):
            return read_group(self.context.url, CHECKPOINT)


def source_of(particles: str) -> str:
    """Return what tells one particle store from another made later under the same name."""
    from cloudem.io.storage.groups import read_attributes

    return str((read_attributes(particles, "") or {}).get("date", ""))


class IterativeJob(Job):
    """A job that goes in iterations."""

    changeable: ClassVar[frozenset[str]] = frozenset({"out", "restart", "report", "max_iterations"})
    """Parameters that may be others when a run goes on: they change no iteration that is done."""
    beside_checkpoint: ClassVar[tuple[str, ...]] = ()
    """Groups that the checkpoint refers to. Of one that it has an attribute for, it needs those groups within that the
    attribute lists; others are deleted once it is committed."""

    max_iterations: int = parameter(25, meaning="stop after this many iterations, even if not converged", ge=1)
    restart: bool = parameter(
        False, meaning="discard the results of an earlier run and start again, instead of resuming"
    )

    def iterations(self, context: Context, *, resumes: bool) -> Iterations[Any]:
        """Return what this run does; ``resumes`` says whether it goes on from a checkpoint."""
        raise NotImplementedError(f"{type(self).__name__} declares no iterations()")

    def data_version(self) -> str:
        """Return what tells the particles that checkpoints refer to from others under the same name; "" without any."""
        particles = getattr(self, "particles", "")
        return source_of(particles) if particles else ""

    def check_out(self) -> None:
        """Check that a run can go on from what lies in ``OUT``, or begin there."""
        left_state(self, self.out)

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def is_finished(self) -> bool:
        """Return whether ``OUT`` holds what this very command makes, and not that of fewer iterations."""
        if not super().is_finished():
            return False
        from cloudem.io.storage.groups import read_attributes

        state = (read_attributes(self.out, CHECKPOINT) or {}).get("state") or {}
        done = iterations_of_result(self.out)
        return done >= self.max_iterations or _is_over(state, done)

    def tidy(self, context: Context) -> None:
        """Write the report, if that is missing, and delete the checkpoint, unless more iterations may follow it."""
        from cloudem.io.storage.groups import read_attributes
        from cloudem.jobs.report import complete_report

        checkpoint = read_attributes(context.url, CHECKPOINT) or {}
        done = iterations_of_result(context.url)
        if _is_over(checkpoint.get("state") or {}, done):
            for path in (CHECKPOINT, *self.beside_checkpoint):
                context.delete(path)
        else:
            drop_unnamed(self, context, checkpoint)
            context.progress.warning(f"not converged after {done} iterations; raise --max-iterations to continue")
        if getattr(self, "report", True):
            complete_report(context.url)

    def run(self, context: Context) -> None:
        """Iterate until the data say that it has converged, or as often as is allowed; go on where a run stopped."""
        started = time.monotonic()
        record = left_state(self, context.url)
        iterations = self.iterations(context, resumes=record is not None)
        state = iterations.begin() if record is None else _resumed(self, iterations, record)
        step: IterationResult[Any] | None = None
        counters: Moved = context.executor.traffic()
        while not state.finished:
            step = None  # what it found is in the store
            step, counters = _iterate(self, iterations, state, counters)
            state = step.after
            if not state.finished:
                context.stop_if_asked(f"iteration {state.iteration - 1}")
        if step is None:
            raise InconsistentDataError(
                f"{context.url} contains a finished {self.name} without a result; run it again with --restart"
            )
        done = int(step.row["iteration"])
        if state.converged:
            context.progress.message(iterations.converged(done))
        else:
            context.progress.warning(f"not converged after {done} iterations; raise --max-iterations to continue")
        _record_parameters(self, context)
        iterations.finish(step, time.monotonic() - started)
        if not state.converged and step.onward is not None:
            # only now that the result is whole: before, the last iteration would be done again
            step = replace(step, result=None)  # what is lost with a worker would be made from another checkpoint
            iterations.commit(step.onward, step.arrays, step.attributes)
            drop_unnamed(self, context, step.attributes)
            return
        for path in (CHECKPOINT, *self.beside_checkpoint):
            context.delete(path)


def commit(
    context: Context, state: IterationState | None, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]
) -> None:
    """Commit a checkpoint; without a state no run goes on from it."""
    record = state.record() if state is not None else None
    with purpose("poses"):
        context.write(CHECKPOINT, arrays, {**attributes, "state": record})


def drop_unnamed(job: IterativeJob, context: Context, attributes: Mapping[str, Any]) -> None:
    """Delete what lies beside a checkpoint with these attributes and is not among what it names."""
    from cloudem.io.storage.groups import list_groups

    for path in job.beside_checkpoint:
        if path in attributes:
            for name in set(list_groups(context.url, path)) - set(attributes[path]):
                context.delete(f"{path}/{name}")


def clear(context: Context, job: IterativeJob) -> None:
    """Delete what an earlier run left, its result first: without it nothing takes the rest for finished."""
    from cloudem.jobs.preview import PREVIEW_FOLDER

    for path in ("result", "particles", CHECKPOINT, *job.beside_checkpoint, ITERATIONS, PREVIEW_FOLDER):
        context.delete(path)


def _record_parameters(job: IterativeJob, context: Context) -> None:
    """Record with which parameters the job ends, if they are others than those that it was begun with."""
    from cloudem.io.storage.groups import read_attributes

    record, mine = read_attributes(context.url, "") or {}, job.model_dump(mode="json")
    if record.get("parameters") != mine:
        context.write("", {}, {**record, "parameters": mine})


def _resumed(job: IterativeJob, iterations: Iterations[S], record: Mapping[str, Any]) -> S:
    """Return the state that the last checkpoint left, and show what was done before."""
    context = iterations.context
    try:
        state = iterations.state(record)
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(
            f"{job.out}/{CHECKPOINT} was left by another version of cloudem; run it again with --restart"
        ) from error
    iterations.resume(state)
    context.progress.message(f"resuming at iteration {state.iteration}")
    for row in rows_before(context.url, state.iteration):
        context.progress.iteration(row)
    return state


def _iterate(
    job: IterativeJob, iterations: Iterations[S], state: S, counters: Moved
) -> tuple[IterationResult[S], Moved]:
    """Do one iteration and commit it; ``counters`` are those when the one before was recorded."""
    context, began = iterations.context, time.monotonic()
    with labelled(iteration=state.iteration):
        step = iterations.iterate(state)
    now = context.executor.traffic()
    moved = difference(now, counters)
    row = {**step.row, "seconds": time.monotonic() - began}
    if any(map(any, moved.values())):
        row["received_bytes"] = sum(part.received for part in moved.values())
    traffic = {name: part._asdict() for name, part in moved.items()}
    context.write(
        f"{ITERATIONS}/{state.iteration:03d}", step.curves, {"row": row, "state": state.record(), "traffic": traffic}
    )
    context.progress.iteration(row, moved)
    if not step.after.finished:
        iterations.commit(step.after, step.arrays, step.attributes)
        drop_unnamed(job, context, step.attributes)
    return step, now


def left_state(job: IterativeJob, url: str) -> dict[str, Any] | None:
    """Return the state that the last checkpoint left, or None to begin; never mix two runs.

    Raises
    ------
    OutputExistsError
        There is something else, another run, or a result that nothing can follow.
    InconsistentDataError
        The data are others now.
    """
    from cloudem.io.storage.groups import has_group, read_attributes

    record = read_attributes(url, "")
    if record is None:
        _refuse_foreign(job, url)
        return None
    if record.get("job") != job.name:
        what = f"the results of {record['job']}" if "job" in record else f"a store of kind {record.get('kind')!r}"
        raise OutputExistsError(f"{url} contains {what}; choose another --out")
    if job.restart:
        return None
    finished = has_group(url, "result")
    state: dict[str, Any] = (read_attributes(url, CHECKPOINT) or {}).get("state") or {}
    if not finished and not state:
        return None  # it ended before its first iteration: nothing is lost if this one has other parameters
    if changed := changed_options(job, record, url):
        raise OutputExistsError(
            f"{url} contains this job with another {', '.join(changed)}; choose another --out, or replace it with"
            " --restart"
        )
    if finished:
        done = iterations_of_result(url)
        text = f"{url} is already finished; choose another --out, or run it again with --restart"
        if _is_over(state, done):
            raise OutputExistsError(text)
        if job.max_iterations <= done:
            raise OutputExistsError(
                f"{text}; it had not converged after {done} iterations, and goes on with a larger --max-iterations"
            )
    if record.get("source", "") != job.data_version():
        raise InconsistentDataError(
            f"the data have been made again since {url} was started; choose another --out, or use --restart"
        )
    return state


def changed_options(job: IterativeJob, record: Mapping[str, Any], url: str) -> list[str]:
    """Return the options that differ from those of the run that a record is of, apart from those that may.

    Raises
    ------
    FormatError
        It does not say what they were.
    """
    theirs = record.get("parameters")
    if not isinstance(theirs, dict):
        raise FormatError(f"{url} does not say with which parameters it was made; choose another --out")
    mine = {name: value for name, value in job.model_dump(mode="json").items() if name not in job.changeable}
    # an earlier version's record lacks options that are new; it did what their defaults do
    defaults = {name: field.default for name, field in type(job).model_fields.items()}
    return [option_of(name) for name in mine if mine[name] != theirs.get(name, defaults[name])]


def iterations_of_result(url: str) -> int:
    """Return the number of the iteration that the result in the store is of; it stays until another one is whole."""
    from cloudem.io.storage.groups import read_attributes

    rows = (read_attributes(url, "result") or {}).get("iterations") or ()
    return int(rows[-1]["iteration"]) if rows else 0


def rows_before(url: str, iteration: int) -> list[dict[str, Any]]:
    """Return the rows of the iterations in the store.

    Raises
    ------
    StorageError
        One is lost.
    """
    from cloudem.io.storage.groups import read_attributes

    rows = []
    for number in range(1, iteration):
        found = read_attributes(url, f"{ITERATIONS}/{number:03d}")
        if found is None or "row" not in found:
            raise StorageError(
                f"{url}/{ITERATIONS}/{number:03d} is missing; copy it again, or run it again with --restart"
            )
        rows.append(found["row"])
    return rows


def _is_over(state: Mapping[str, Any], done: int) -> bool:
    """Return whether no iteration can follow the last one of a result, from the state in its checkpoint, if any."""
    return not state or (bool(state["converged"]) and state["iteration"] <= done)


def _refuse_foreign(job: IterativeJob, url: str) -> None:
    """Refuse a folder that holds something else than what an earlier run may have left."""
    from cloudem.io.storage.location import contents
    from cloudem.jobs.live import BESIDE_RESULTS

    known = ("arrays-", CHECKPOINT, *job.beside_checkpoint)
    other = [name for name in contents(url) if name not in BESIDE_RESULTS and not name.startswith(known)]
    if other:
        raise OutputExistsError(f"{url} contains other files ({other[0]}, …); choose another --out")
