"""Jobs that do the same to many items, each by itself: what is done is kept, so that a stopped run goes on from there.

A job says what its items are, what is done to one (a pure function of a module), and what becomes of all that was found
(`MapJob`). Items are done in parts: each is a task, and what it found is a group of its own, ``parts/<number>``, until
the result is written.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

from cloudem.errors import OutputExistsError
from cloudem.jobs.base import Context, Job
from cloudem.jobs.provenance import is_of, job_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudem.execution.executor import Shared

PARTS = "parts"
"""Group whose groups hold what each part found, while the job is not finished."""

Found: TypeAlias = "Mapping[str, NDArray[Any]]"
"""What a part found: arrays by name, whose first axis counts its items."""


@dataclass(frozen=True)
class Items:
    """What a job works on.

    Attributes
    ----------
    parts
        One entry for each task: whatever ``function`` needs to find its items; small, for it travels.
    counts
        Items of each part.
    function
        ``function(part, *arguments) -> Found``; pure, a function of a module.
    arguments
        The same for all parts; small.
    stage, unit
        What the progress shows.
    facts
        Names and values to say at the start.
    """

    parts: Sequence[Any]
    counts: Sequence[int]
    function: Callable[..., Found]
    arguments: tuple[Any, ...] = ()
    stage: str = "items"
    unit: str = "items"
    facts: Mapping[str, str] = field(default_factory=dict)


def split(count: int, size: int) -> list[range]:
    """Return consecutive ranges of nearly equal length, each of about ``size``: the parts of so many items.

    They depend on the number of items alone, never on that of the workers.
    """
    parts = max(1, -(-count // max(size, 1)))
    edges = [count * number // parts for number in range(parts + 1)]
    return [range(first, stop) for first, stop in pairwise(edges) if stop > first]


class MapJob(Job):
    """A job that does the same to many items."""

    @abstractmethod
    def items(self, context: Context) -> Items:
        """Return what is to be done."""

    @abstractmethod
    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Return the arrays and attributes of the result, from what was found of all items in order."""

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def check_out(self) -> None:
        """Check that there is nothing in ``OUT``, or the beginning of this very job."""
        from cloudem.io.storage.groups import has_group

        refuse_others(self.out, lambda record: not has_group(self.out, "result") and is_of(record, self))

    def tidy(self, context: Context) -> None:
        """Delete the parts, and draw the report if that is missing."""
        tidy_parts(context)

    def run(self, context: Context) -> None:
        """Do what is left, and write the result with its report."""
        from cloudem.io.storage.groups import read_attributes
        from cloudem.jobs.report import run_attributes

        self.check_out()
        record = read_attributes(context.url, "")
        items = self.items(context)
        context.progress.facts({items.unit: f"{sum(items.counts):,}", **items.facts})
        if record is None:
            context.write("", {}, {"kind": "result", **job_record(self)})
        found = _found(items, context)
        arrays, attributes = self.result(context, found)
        kept = run_attributes(context.progress, context.executor.traffic())
        context.write("result", dict(arrays), {**kept, **attributes})
        self.tidy(context)


def _found(items: Items, context: Context) -> Found:
    """Return what was found of all items, doing those parts that are not there yet."""
    import numpy as np

    parts = found_parts(items, context, check=_check)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def found_parts(
    items: Items,
    context: Context,
    *,
    name: str = "",
    shared: Sequence[Shared[Any]] = (),
    check: Callable[[Found, int], None] = lambda found, count: None,
) -> list[Found]:
    """Return what was found of each part, doing those that are not there yet.

    Parameters
    ----------
    items
        What is to be done.
    context
        Of the job.
    name
        Begins the names of the groups below `PARTS`, where a job does several things to its items.
    shared
        Values that all tasks read, given after the part.
    check
        Raises if what a task found is not what it should be.
    """
    from cloudem.io.storage.groups import list_groups, read_group

    there = set(list_groups(context.url, PARTS))
    names = [f"{name}{number:06d}" for number in range(len(items.parts))]
    left = [number for number, name in enumerate(names) if name not in there]
    with context.progress.stage(items.stage, sum(items.counts), items.unit) as stage:
        done = sum(items.counts) - sum(items.counts[number] for number in left)
        if done:
            context.progress.message(f"going on after {done:,} {items.unit}")
            stage.advance(done)
        task = _Task(items.function, items.arguments)
        results = context.executor.map(task, [items.parts[number] for number in left], shared=lambda _: shared)
        for number, found in zip(left, results, strict=True):
            check(found, items.counts[number])
            context.write(f"{PARTS}/{names[number]}", dict(found), {})
            stage.advance(items.counts[number])
            if number != left[-1]:
                context.stop_if_asked(f"{stage.done:,} of {stage.total:,} {items.unit}")
    return [read_group(context.url, f"{PARTS}/{each}")[0] for each in names]


@dataclass(frozen=True)
class _Task:
    """What runs on workers."""

    function: Callable[..., Found]
    arguments: tuple[Any, ...]

    def __call__(self, part: Any, *shared: Any) -> Found:
        return self.function(part, *self.arguments, *shared)


def _check(found: Found, count: int) -> None:
    wrong = [name for name, values in found.items() if len(values) != count]
    if wrong:
        raise ValueError(f"{wrong[0]} has {len(found[wrong[0]])} values for {count} items")


def tidy_parts(context: Context) -> None:
    """Delete the parts of a job that has its result, and draw the report if that is missing."""
    from cloudem.jobs.report import complete_report

    context.delete(PARTS)
    complete_report(context.url)


def refuse_others(url: str, is_own: Callable[[Mapping[str, Any]], bool]) -> None:
    """Refuse a folder that holds what no job has left, or results of which a job says that they are not its own.

    Parameters
    ----------
    url
        Of the folder.
    is_own
        Tells by the record of results whether the job goes on with them.

    Raises
    ------
    OutputExistsError
        It does.
    """
    from cloudem.io.storage.groups import read_attributes
    from cloudem.io.storage.location import contents
    from cloudem.jobs.live import BESIDE_RESULTS

    record = read_attributes(url, "")
    if record is not None:
        if is_own(record):
            return
        raise OutputExistsError(
            f"{url} contains the results of {record.get('job', 'something else')} with other parameters or "
            "inputs; choose another --out"
        )
    other = [name for name in contents(url) if name not in BESIDE_RESULTS and not name.startswith("arrays-")]
    if other:
        raise OutputExistsError(f"{url} contains other files ({other[0]}, …); choose another --out")
