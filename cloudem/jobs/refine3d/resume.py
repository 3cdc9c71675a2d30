"""What a refinement does about the results of an earlier run: refuse, go on, or begin anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudem.algorithms.refinement import State
from cloudem.errors import FormatError, InconsistentDataError, OutputExistsError, StorageError
from cloudem.io.storage.groups import has_group, read_attributes
from cloudem.io.storage.location import contents
from cloudem.jobs.base import Context, option_of
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.refine3d.solving import MASK
from cloudem.jobs.refine3d.tasks import CHECKPOINT, REFERENCES, read_checkpoint


def resumed(job: Refine3D, url: str) -> State | None:
    """Return the state that the last checkpoint left, or None to begin; never mix two runs."""
    record = read_attributes(url, "")
    if record is None:
        refuse_foreign(url)
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
    free = {"out", "restart", "report", "max_iterations", "skip_damaged"}
    mine = {k: v for k, v in job.model_dump(mode="json").items() if k not in free}
    theirs = record.get("parameters")
    if not isinstance(theirs, dict):
        raise FormatError(f"{url} does not say with which parameters it was made; choose another --out")
    # an earlier version's record lacks options that are new; it did what their defaults do
    defaults = {k: field.default for k, field in type(job).model_fields.items()}
    changed = [option_of(k) for k in mine if mine[k] != theirs.get(k, defaults[k])]
    if changed:
        raise OutputExistsError(
            f"{url} contains this job with another {', '.join(changed)}; choose another --out, or replace it with"
            " --restart"
        )
    if finished:
        done = iterations_of_result(url)
        text = f"{url} is already finished; choose another --out, or run it again with --restart"
        if is_over(state, done):
            raise OutputExistsError(text)
        if job.max_iterations <= done:
            raise OutputExistsError(
                f"{text}; it had not converged after {done} iterations, and goes on with a larger --max-iterations"
            )
    if record.get("source") != source_of(job.particles):
        raise InconsistentDataError(
            f"{job.particles} has been imported again since {url} was started; choose another --out, or use --restart"
        )
    try:
        left = State(**state)
    except TypeError as error:
        raise FormatError(f"{url}/{CHECKPOINT} was left by another version of cloudem; --restart") from error
    # what the data decided stays; how many iterations there are to be may have been changed
    return replace(left, final=left.converged or left.iteration >= job.max_iterations)


def iterations_of_result(url: str) -> int:
    """Return the number of the iteration that the result in the store is of; it stays until another one is whole."""
    rows = (read_attributes(url, "result") or {}).get("iterations") or ()
    return int(rows[-1]["iteration"]) if rows else 0


def is_over(state: Mapping[str, Any], done: int) -> bool:
    """Return whether no iteration can follow the last one of a result, from the state in its checkpoint, if any."""
    return not state or (bool(state["converged"]) and state["iteration"] <= done)


def drop_checkpoint(context: Context) -> None:
    """Delete the checkpoint of a result, unless more iterations may follow it."""
    state = (read_attributes(context.url, CHECKPOINT) or {}).get("state") or {}
    if is_over(state, iterations_of_result(context.url)):
        for path in (CHECKPOINT, REFERENCES, MASK):
            context.delete(path)


def refuse_foreign(url: str) -> None:
    """Refuse a folder that holds something else than what an earlier run may have left."""
    known = ("arrays-", CHECKPOINT, REFERENCES, MASK)
    other = [name for name in contents(url) if name != "log.txt" and not name.startswith(known)]
    if other:
        raise OutputExistsError(f"{url} contains other files ({other[0]}, …); choose another --out")


def source_of(particles: str) -> str:
    """Return what tells one particle store from another made later under the same name."""
    return str((read_attributes(particles, "") or {}).get("date", ""))


def leave_out(context: Context, particles: str, without: NDArray[np.int64]) -> None:
    """Take particles whose images were lost since the last iteration out of the half-sets."""
    checkpoint, attributes = read_checkpoint(context.url)
    gone = np.setdiff1d(np.flatnonzero(checkpoint.half_set == 0), without)
    if len(gone):
        context.progress.warning(
            f"{len(gone):,} of {len(checkpoint.half_set):,} particles are skipped, as their shards were lost before; "
            "use --restart to include them again"
        )
    if not checkpoint.half_set[without].any():
        return
    half_set = checkpoint.half_set.copy()
    half_set[without] = 0
    if not all(np.any(half_set == h) for h in (1, 2)):
        raise InconsistentDataError(f"{particles} has no images left in one half-set; import the particles again")
    context.write(CHECKPOINT, replace(checkpoint, half_set=half_set).arrays(), attributes)


def clear(context: Context) -> None:
    """Delete what an earlier run left, its result first: without it nothing takes the rest for finished."""
    for path in (
        "result",
        "particles",
        CHECKPOINT,
        REFERENCES,
        MASK,
        "iterations",
    ):
        context.delete(path)


def rows_before(url: str, iteration: int) -> list[dict[str, Any]]:
    """Return the rows of the iterations in the store.

    Raises
    ------
    StorageError
        One is lost.
    """
    rows = []
    for number in range(1, iteration):
        found = read_attributes(url, f"iterations/{number:03d}")
        if found is None or "row" not in found:
            raise StorageError(f"{url}/iterations/{number:03d} is missing; copy it again, or begin anew with --restart")
        rows.append(found["row"])
    return rows
