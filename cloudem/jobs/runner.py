"""Running a job: nobody else at the same results, memory checked first, a log beside them, a view, an executor."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil

from cloudem import __version__, traffic
from cloudem.errors import CloudemError, OutOfMemoryError
from cloudem.execution.executor import Executor, SerialExecutor
from cloudem.execution.task_names import labelled
from cloudem.execution.workers import machine_memory
from cloudem.io.storage.lease import hold
from cloudem.io.storage.location import is_fsspec, is_remote
from cloudem.jobs.artefacts import sizes_of
from cloudem.jobs.base import Context, Job
from cloudem.jobs.changes import change_of, make_room, replacing
from cloudem.jobs.live import keep_live
from cloudem.jobs.logs import keep_log
from cloudem.jobs.progress import Progress, SilentProgress
from cloudem.jobs.project_index import note_job
from cloudem.text import clock, memory


def run_job(
    job: Job,
    make_executor: Callable[[bool], Executor],
    view: Callable[[logging.Logger], contextlib.AbstractContextManager[Progress]] | None = None,
    tasks: int = 1,
    *,
    step: str = "",
    project: str = "",
    replaces: bool = False,
) -> Progress:
    """Run a job from its check to its last line, and return what its view kept: timings, iterations, warnings.

    Parameters
    ----------
    job
        What to run.
    make_executor
        Starts the executor, on GPUs if its argument says that the job uses them; called when the job is known to fit,
        so that a wrong input costs no start.
    view
        Opens the view on a logger; by default nothing is shown.
    tasks
        Number of tasks that the executor will run at the same time on this machine.
    step
        What it is called in its workflow.
    project
        Folder or URL of its workflow, whose index (`cloudem.jobs.project_index`) says how it stands.
    replaces
        Whether results that the same job made with other parameters or inputs are replaced; else they are refused.

    Raises
    ------
    CloudemError
        Whatever the job raises on purpose; LeaseHeldError if another client writes the same results; OutOfMemoryError
        if it cannot fit into this machine.
    """
    log = logging.getLogger("cloudem")
    log.setLevel(logging.DEBUG)
    with contextlib.ExitStack() as stack:
        asked_to_stop = stack.enter_context(stop_on_signal())
        progress = stack.enter_context(view(log)) if view else SilentProgress(log)
        progress.columns = job.columns
        stack.enter_context(labelled(job=f"{step or job.name}: {job.out}"))
        place = place_of_lease(job)
        lease = stack.enter_context(hold(place, log=log)) if place else None
        if job.keeps_log:
            stack.enter_context(keep_log(log, job.out, lease.check if lease else None))
        started = time.monotonic()
        try:
            change = change_of(job) if replaces else None
            if job.is_finished() or (change is not None and change.status == "unchanged"):
                job.tidy(Context(SerialExecutor(), progress, log, job.out, lease))
                log.info(f"{step}: unchanged, skipped" if step else f"already finished: {job.out} holds this result")
                return progress
            if change is not None and change.replaces:
                job, inputs = replacing(job)
                job.preflight(inputs)
                log.info("%s: %s; its results in %s are replaced", step or job.name, change.why, job.out)
                make_room(job, lease.check if lease else _nobody_else)
            for text in job.preflight().warnings:
                progress.warning(text)
            work = job.work(sizes_of(job))
            progress.declared = {stage.name: stage for stage in work.stages}
            check_memory(work.memory(tasks if work.parallel else 1), log)
            guard, note = lease.check if lease else None, partial(note_job, job, workflow_project=project)
            stack.enter_context(
                keep_live(job.out, job.name, progress, step=step, guard=guard, note=note, writes=job.keeps_log)
            )
            with (
                make_executor(work.on_gpu) if work.parallel else SerialExecutor() as executor,
                progress.cluster.watch(executor),
            ):
                progress.facts({"job": f"{job.name} (cloudem {__version__})", "runs on": executor.description})
                for name, value in job.model_dump().items():
                    log.debug("parameter %s = %r", name, value)
                job.run(Context(executor, progress, log, job.out, lease, asked_to_stop))
                if words := traffic.in_words(executor.traffic()):
                    log.info("network %s", words)
            log.info("%s finished in %s: %s", job.name, clock(time.monotonic() - started), job.out)
        except KeyboardInterrupt:
            log.debug("interrupted after %s", clock(time.monotonic() - started))
            raise
        except CloudemError as error:
            log.debug("stopped: %s", error)
            raise
        except Exception:
            log.debug("stopped by an unexpected error", exc_info=True)
            raise
    return progress


def _nobody_else() -> None:
    """Guard of what one object is, which needs none."""


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Give what tells whether SIGUSR1 has come while the block runs: it asks a job to stop where it can go on later."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # handlers can be set there alone
        yield asked.is_set
        return
    before = signal.signal(signal.SIGUSR1, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGUSR1, before)


def place_of_lease(job: Job) -> str | None:
    """Return where the lease of a job's results lies; None for jobs that write one object, or where none can lie."""
    if is_fsspec(job.out):
        return None
    if job.keeps_log or (job.new_out and is_remote(job.out)):
        return job.out
    return f"{job.out}.lease" if job.new_out else None  # a new folder is not there until it is whole


def check_memory(needed: int, log: logging.Logger) -> None:
    """Refuse bytes that cannot fit into this machine's memory, and warn of what may not fit just now."""
    total = machine_memory()
    if needed > total:
        raise OutOfMemoryError(
            f"this needs {memory(needed)} of memory, but the machine has {memory(total)}; try a machine with"
            " more, fewer --threads, or a smaller box (coarser pixels)"
        )
    if needed > psutil.virtual_memory().available:
        log.warning(
            "this needs %s of memory, but only %s is free now",
            memory(needed),
            memory(psutil.virtual_memory().available),
        )
