"""Jobs over many items whose number grows, as micrographs do while a microscope collects: what is new is done.

Each item has a key. Run again with the same parameters, such a job does the items whose keys it has not seen, and
writes the result of all that its inputs hold now, in their order: the same as if all had been there from the start.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.errors import CloudemError, MissingInputError
from cloudem.jobs.base import Context, Job
from cloudem.jobs.mapping import PARTS, Found, refuse_others, tidy_parts
from cloudem.jobs.provenance import differences, job_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.jobs.progress import RunningStage
    from cloudem.model.table import ItemTable

DONE = "done"
"""Group of what was found of every item until now, also of those that the inputs no longer hold."""

PART_S = 5.0
"""Between two parts that are kept, at least, seconds: a part is some thirty objects, which take longer to write to S3
than many a micrograph takes to be worked on."""

KEY, COUNT, EACH = "key", "each_count", "each_"
"""Arrays of keys, of how many things an item has, and the start of the names of arrays with a row for each thing."""

DONE_AT = "done_at"
"""Array of when each item was done, unix seconds: which run did it, and is to be thanked and charged for it."""

DIGEST = "items_digest"
"""Attribute of the result that tells of which items it is; empty where some are to be looked at again."""


@dataclass(frozen=True)
class Growing:
    """What a job works on.

    Attributes
    ----------
    keys
        Of each item, no two alike: what is done again if it changes.
    entries
        What ``function`` needs to know of each item; small, for it travels.
    function
        ``function(entries, *arguments) -> Found``; pure, a function of a module. What it finds are arrays whose first
        axis counts the entries; and arrays named ``each_…``, whose first axis counts things of all entries in order,
        ``each_count`` of each.
    arguments
        The same for all; small.
    size
        Items of a task.
    stage, unit
        What the progress shows.
    facts
        Names and values to say at the start.
    """

    keys: Sequence[str]
    entries: Sequence[Any]
    function: Callable[..., Found]
    arguments: tuple[Any, ...] = ()
    size: int = 1
    stage: str = "micrographs"
    unit: str = "micrographs"
    facts: Mapping[str, str] = field(default_factory=dict)


def row_keys(table: ItemTable, salt: str = "") -> list[str]:
    """Return a key for each row of a table that tells it from every row that differs in anything.

    Parameters
    ----------
    table
        Of movies or micrographs, each with a name of its own in column ``micrograph``.
    salt
        What else the work on each row depends on.
    """
    columns = {name: table[name].tolist() for name in sorted(table.columns) if name != "optics_group"}
    groups = table["optics_group"].tolist() if "optics_group" in table else [0] * len(table)
    keys = []
    for row, group in enumerate(groups):
        # What is not known is left out: a column that came with a later row leaves the others' keys as they were.
        said = {name: values[row] for name, values in columns.items() if values[row] not in ("", None)}
        said = {name: value for name, value in said.items() if not (isinstance(value, float) and math.isnan(value))}
        scope = table.optics[group] if table.optics else None
        optics = [scope.voltage, scope.spherical_aberration, scope.amplitude_contrast] if scope is not None else []
        text = json.dumps([said, optics, salt], sort_keys=True)
        keys.append(f"{columns['micrograph'][row]} {hashlib.sha256(text.encode()).hexdigest()[:20]}")
    return keys


class GrowingJob(Job):
    """A job that does the same to each of many items, and goes on when there are more."""

    grows: ClassVar[tuple[str, ...]]
    """Parameters whose places may hold more, less or something else when it is run again: keys tell what is new."""

    @abstractmethod
    def growing(self, url: str) -> Growing:
        """Return the items that the inputs hold now; called before running, too, so nothing heavy is read.

        Parameters
        ----------
        url
            Where the results go; tasks that write images write them there.
        """

    @abstractmethod
    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the tables; return arrays and attributes of the result, from what was found of all items in order."""

    def prepare(self, context: Context) -> None:
        """Do what comes before the items and is kept for all that come later, such as training."""

    def settled(self, found: Found) -> NDArray[np.bool_] | None:
        """Return which items need not be looked at when the job is run again, ``(n,)``; None for all of them.

        By default all but those that could not be read, in an array ``unread``.
        """
        import numpy as np

        return np.logical_not(found["unread"]) if "unread" in found else None

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def is_mine(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record is of this job with these parameters, whatever its inputs hold now."""
        if record.get("job") != self.name:
            return False
        parameters, inputs = differences(record, self)
        return not parameters and set(inputs) <= set(self.grows)

    def is_finished(self) -> bool:
        """Return whether ``OUT`` holds the result of the very items that the inputs hold now."""
        return self.is_finished_with(None)

    def is_finished_with(self, keys: Sequence[str] | None) -> bool:
        """Return whether ``OUT`` holds the result of the items with these keys; None for those of the inputs now."""
        from cloudem.io.storage.groups import read_attributes

        try:
            record = self.kept_record()
            if record is None or not self.is_mine(record):
                return False
            kept = read_attributes(self.out, "result") or {}
            return bool(kept.get(DIGEST) == digest_of(self.growing(self.out).keys if keys is None else keys))
        except CloudemError:  # it will be said by whoever reads it
            return False

    def left(self, keys: Sequence[str] | None = None) -> int:
        """Return how many items are still to be done, of those with these keys; None for those of the inputs now."""
        from cloudem.io.storage.groups import has_group, read_rows, shapes_in

        done: set[str] = set()
        if has_group(self.out, DONE):
            count = shapes_in(self.out, DONE)[KEY][0]
            done = set(read_rows(self.out, DONE, [KEY], 0, count)[KEY].tolist())
        return sum(key not in done for key in (self.growing(self.out).keys if keys is None else keys))

    def check_out(self) -> None:
        """Check that there is nothing in ``OUT``, or this very job's results of the items that there were."""
        refuse_others(self.out, self.is_mine)

    def tidy(self, context: Context) -> None:
        """Delete the parts, and draw the report if that is missing."""
        tidy_parts(context)

    def run(self, context: Context) -> None:
        """Do what is new, and write the result of all with its report."""
        from cloudem.io.storage.groups import read_attributes
        from cloudem.jobs.report import run_attributes, write_report

        self.check_out()
        record, mine = read_attributes(context.url, ""), {"kind": "result", **job_record(self)}
        if record is None or record.get("inputs") != mine["inputs"]:
            context.write("", {}, mine)
        self.prepare(context)
        items = self.growing(context.url)
        if not items.keys:
            place = getattr(self, self.grows[0])
            raise MissingInputError(
                f"{place} leaves no {items.unit} to work on; wait for some, or look into its report for why"
            )
        context.progress.facts({items.unit: f"{len(items.keys):,}", **items.facts})
        found, settled = self._found(items, context)
        arrays, attributes = self.result(context, found)
        kept = run_attributes(context.progress, context.executor.traffic())
        digest = digest_of(items.keys) if settled else ""
        context.write("result", dict(arrays), {**kept, DIGEST: digest, **attributes})
        context.delete(PARTS)
        write_report(context.url)

    def _found(self, items: Growing, context: Context) -> tuple[Found, bool]:
        """Return what was found of all items in order, doing those that are new; and whether all are settled."""
        from cloudem.io.storage.groups import has_group, list_groups, read_group

        places = [DONE] if has_group(context.url, DONE) else []
        places += [f"{PARTS}/{name}" for name in list_groups(context.url, PARTS)]
        kept: list[Found] = [read_group(context.url, place)[0] for place in places]
        before = {key for part in kept for key in part[KEY].tolist()}
        new = [number for number, key in enumerate(items.keys) if key not in before]
        with context.progress.stage(items.stage, len(items.keys), items.unit) as stage:
            if done := len(items.keys) - len(new):
                context.progress.message(f"{done:,} of {len(items.keys):,} {items.unit} are done already")
                stage.advance(done)
            kept += self._new_parts(items, new, context, stage)
        everything = dict(join_items(kept))
        row_of = {key: row for row, key in enumerate(everything[KEY].tolist())}
        settled = self.settled(everything)
        if new or places != [DONE]:
            rows = [row for row in sorted(row_of.values()) if settled is None or settled[row]]
            context.write(DONE, dict(select_items(everything, rows)), {})
        chosen = [row_of[key] for key in items.keys]
        everything.pop(DONE_AT)
        return select_items(everything, chosen), settled is None or bool(settled[chosen].all())

    def _new_parts(self, items: Growing, new: Sequence[int], context: Context, stage: RunningStage) -> list[Found]:
        """Do the items of these numbers; return what was found, in the parts in which it was kept on the way."""
        import numpy as np

        from cloudem.model.table import TEXT

        kept: list[Found] = []
        waiting: list[Found] = []

        def keep() -> None:
            if waiting:
                part = join_items(waiting)
                waiting.clear()
                context.write(f"{PARTS}/{digest_of(part[KEY].tolist())[:24]}", part, {})
                kept.append(part)

        tasks = [new[first : first + items.size] for first in range(0, len(new), items.size)]
        task = partial(_do, function=items.function, arguments=items.arguments)
        results = context.executor.map(task, [[items.entries[number] for number in each] for each in tasks])
        kept_at = time.monotonic()
        try:
            for numbers, part in zip(tasks, results, strict=True):
                keys, now = [items.keys[number] for number in numbers], np.full(len(numbers), time.time())
                found = {KEY: np.array(keys, TEXT), DONE_AT: now, **part}
                check_items(found, len(numbers))
                waiting.append(found)
                stage.advance(len(numbers))
                if numbers[-1] != new[-1]:
                    if time.monotonic() - kept_at >= PART_S:
                        keep()
                        kept_at = time.monotonic()
                    context.stop_if_asked(f"{stage.done:,} of {stage.total:,} {items.unit}")
        finally:
            keep()
        return kept


def done_between(url: str, name: str, spans: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Return what was found as ``name`` of the items that were done within spans of time.

    Parameters
    ----------
    url
        Results of a growing job.
    name
        Of an array with one number for each item.
    spans
        Begin and end of each, unix seconds.

    Returns
    -------
    NDArray
        One number for each of these items; none where nothing is there, or nothing of that name.
    """
    import numpy as np

    from cloudem.io.storage.groups import has_group, read_rows, shapes_in

    if not has_group(url, DONE):
        return np.zeros(0)
    shapes = shapes_in(url, DONE)
    if not {name, DONE_AT} <= set(shapes):
        return np.zeros(0)
    rows = read_rows(url, DONE, [name, DONE_AT], 0, shapes[DONE_AT][0])
    within = np.zeros(len(rows[DONE_AT]), bool)
    for begin, end in spans:
        within |= (rows[DONE_AT] >= begin) & (rows[DONE_AT] <= end)
    return np.asarray(rows[name][within], np.float64)


def _do(entries: Sequence[Any], function: Callable[..., Found], arguments: tuple[Any, ...]) -> Found:
    """Do one task; what runs on workers."""
    return function(entries, *arguments)


def digest_of(keys: Sequence[str]) -> str:
    """Return what tells items with these keys, in this order, from any others."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def check_items(found: Found, count: int) -> None:
    """Make sure that what was found fits the number of items.

    Raises
    ------
    ValueError
        It does not: the job is wrong.
    """
    things = int(found[COUNT].sum()) if COUNT in found else 0
    for name, values in found.items():
        needed = things if name.startswith(EACH) and name != COUNT else count
        if len(values) != needed:
            raise ValueError(f"{name} has {len(values)} values where {needed} are needed")


def join_items(parts: Sequence[Found]) -> Found:
    """Return what was found of the items of all parts, in order."""
    import numpy as np

    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def select_items(found: Found, rows: Sequence[int]) -> Found:
    """Return what was found of some items, in the order in which their rows are given."""
    import numpy as np

    chosen = np.asarray(rows, np.int64)
    selected = {name: values[chosen] for name, values in found.items() if name == COUNT or not name.startswith(EACH)}
    if COUNT in found:
        counts = found[COUNT].astype(np.int64)
        starts = np.cumsum(counts) - counts
        within = np.arange(int(counts[chosen].sum())) - np.repeat(
            np.cumsum(counts[chosen]) - counts[chosen], counts[chosen]
        )
        things = np.repeat(starts[chosen], counts[chosen]) + within
        selected |= {name: values[things] for name, values in found.items() if name.startswith(EACH) and name != COUNT}
    return selected
