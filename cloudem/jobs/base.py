"""What a job is: one declaration from which command line, checks, plan and provenance follow.

A job states its parameters once, as fields::

    class Mask(Job):
        name: ClassVar[str] = "mask"
        summary: ClassVar[str] = "Make a soft solvent mask from a map."
        examples: ClassVar[tuple[str, ...]] = ("cloudem mask map.mrc --out mask",)

        map: Place = parameter(meaning="map to make the mask from, an MRC file", positional=True)
        edge_A: float = parameter(10.0, meaning="width of the soft edge", gt=0)

The unit is part of the name (``edge_A``, ``angle_deg``, ``cs_mm``), so that it is the same in Python, on the command
line (``--edge-A``), in a job file and in the record of the result. What may be said of a parameter is in
`cloudem.jobs.parameters`. A module that declares a job imports what is heavy (numba, zarr, …) inside ``run`` and
``work``, because ``cloudem --help`` imports all of them.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import Size, Stage, Work
from cloudem.errors import CloudemError, MissingInputError, ParameterError, StoppedError, shown
from cloudem.jobs.page_choices import PageChoice
from cloudem.jobs.parameters import Declaration, Kind, Place, did_you_mean, label_of, parameter, places
from cloudem.jobs.provenance import is_of
from cloudem.model.columns import ITERATION, RECEIVED, SECONDS, Column
from cloudem.report.declaration import STANDARD, Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cloudem.execution.executor import Executor
    from cloudem.io.storage.lease import Lease
    from cloudem.jobs.progress import Progress

JOBS: dict[str, str] = {
    "import": "cloudem.jobs.import_particles:ImportParticles",
    "import_movies": "cloudem.jobs.import_movies:ImportMovies",
    "import_micrographs": "cloudem.jobs.import_micrographs:ImportMicrographs",
    "correct_motion": "cloudem.jobs.correct_motion.job:CorrectMotion",
    "estimate_ctf": "cloudem.jobs.estimate_ctf:EstimateCtf",
    "select_micrographs": "cloudem.jobs.select_micrographs:SelectMicrographs",
    "pick": "cloudem.jobs.pick.job:Pick",
    "import_coordinates": "cloudem.jobs.import_coordinates:ImportCoordinates",
    "export_coordinates": "cloudem.jobs.export_coordinates:ExportCoordinates",
    "denoise": "cloudem.jobs.denoise:Denoise",
    "extract": "cloudem.jobs.extract:Extract",
    "export": "cloudem.jobs.export:Export",
    "classify2d": "cloudem.jobs.classify2d.job:Classify2D",
    "select": "cloudem.jobs.select:Select",
    "abinitio": "cloudem.jobs.abinitio:AbInitio",
    "find_symmetry": "cloudem.jobs.find_symmetry:FindSymmetry",
    "expand_symmetry": "cloudem.jobs.expand_symmetry:ExpandSymmetry",
    "subtract": "cloudem.jobs.subtract:Subtract",
    "refine3d": "cloudem.jobs.refine3d.job:Refine3D",
    "classify3d": "cloudem.jobs.classify3d.job:Classify3D",
    "reconstruct": "cloudem.jobs.reconstruct.job:Reconstruct",
    "refine_ctf": "cloudem.jobs.refine_ctf.job:RefineCtf",
    "polish": "cloudem.jobs.polish.job:Polish",
    "postprocess": "cloudem.jobs.postprocess:Postprocess",
    "local_resolution": "cloudem.jobs.local_resolution:LocalResolution",
    "mask": "cloudem.jobs.mask:Mask",
    "compare_maps": "cloudem.jobs.compare_maps:CompareMaps",
    "align_map": "cloudem.jobs.align_map:AlignMap",
    "flip_hand": "cloudem.jobs.flip_hand:FlipHand",
    "simulate": "cloudem.jobs.simulate:Simulate",
    "report": "cloudem.jobs.report:Report",
}
"""Name of each job and where its declaration is; imported when asked for."""

JOBS_OF_OTHERS = "cloudem.jobs"
"""Entry points of this group are jobs, too: of packages that are installed, their name and where the declaration is."""


@dataclass(frozen=True)
class Inputs:
    """What a job may read that is not there yet.

    Attributes
    ----------
    made
        Outputs of the steps before it in a workflow.
    described
        What is not there is accepted, because the user said what it will hold.
    replaced
        What the same job left in ``OUT`` will be deleted first.
    """

    made: tuple[str, ...] = ()
    described: bool = False
    replaced: bool = False

    def awaited(self, place: str) -> bool:
        """Return whether a place need not be there yet, so that nothing can be known of it."""
        if any(place == out or place.startswith(f"{out}/") for out in self.made):
            return True
        from cloudem.io.storage.location import exists

        return self.described and not exists(place)


@dataclass(frozen=True)
class Preflight:
    """What a job's preflight found to say; what keeps the job from running it raised.

    Attributes
    ----------
    warnings
        Lines for the user.
    """

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a running job is given.

    Attributes
    ----------
    executor
        Runs ``map`` and ``accumulate``.
    progress
        Stages, iterations and their timings; shown live on a terminal.
    log
        Information and warnings go to the screen and to ``OUT/log.txt``, debug lines to the file alone.
    url
        Where the results go.
    lease
        Keeps other clients from writing there; None for those who look after that themselves.
    asked_to_stop
        Whether to stop at the next point from which the job can go on later.
    """

    executor: Executor
    progress: Progress
    log: logging.Logger
    url: str
    lease: Lease | None = None
    asked_to_stop: Callable[[], bool] = bool

    def stop_if_asked(self, done: str) -> None:
        """Stop here if that was asked for (by SIGUSR1): to be called where the job can go on later.

        Raises
        ------
        StoppedError
            It was.
        """
        if self.asked_to_stop():
            raise StoppedError(f"stopped after {done}, as requested; run the same command again to resume")

    def check(self) -> None:
        """Make sure that nobody else writes results there: to be called before every commit.

        Raises
        ------
        LeaseLostError
            Somebody else does, or may.
        """
        if self.lease is not None:
            self.lease.check()

    def write(self, path: str, arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any]) -> None:
        """Write a group of the results (`cloudem.io.storage.groups.write_group`), unless somebody else writes there."""
        from cloudem.io.storage import groups

        groups.write_group(self.url, path, arrays, attributes, guard=self.check)

    def delete(self, path: str) -> None:
        """Delete a group of the results, unless somebody else writes there."""
        from cloudem.io.storage import groups

        self.check()
        groups.delete_group(self.url, path)


class Job(Declaration):
    """A job's declaration: parameters as fields, ``work`` and ``run``."""

    summary: ClassVar[str]
    examples: ClassVar[tuple[str, ...]] = ()
    keeps_log: ClassVar[bool] = True
    """Whether ``OUT`` is a folder that gets a ``log.txt``."""
    new_out: ClassVar[bool] = False
    """Whether ``OUT`` is made as a whole and must not be there before."""
    out_anywhere: ClassVar[bool] = False
    """Whether ``OUT`` is files that may lie wherever fsspec reaches; stores and results may not."""
    reads_out: ClassVar[bool] = False
    """Whether it adds to the results of another job, in their ``OUT``."""
    page_choice: ClassVar[PageChoice | None] = None
    """What people choose for it on the page of the results that it reads."""
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {}
    """Kinds of what it makes: by the name below ``OUT``, "" for ``OUT`` itself."""
    leaves: ClassVar[tuple[str, ...]] = ()
    """Where ``OUT`` is made as a whole, the names of all that it writes there: nothing else is deleted with it."""
    columns: ClassVar[tuple[Column, ...]] = (ITERATION, SECONDS, RECEIVED)
    """Of the rows that it shows while it runs, and keeps."""
    sections: ClassVar[tuple[Section, ...]] = STANDARD
    """Of its report; those that find nothing to show leave themselves out."""

    out: Place = parameter(meaning="folder for the results, or s3://bucket/prefix")

    def preflight(self, inputs: Inputs | None = None) -> Preflight:
        """Check everything that can be known without computing: of inputs, tables and headers; of results, their place.

        Called before anything is planned, rented, or run, and again by `cloudem.jobs.runner.run_job`, so that `run`
        relies on it. Reads no images and no voxels. What a job knows of its own it states in `check`.

        Parameters
        ----------
        inputs
            What earlier steps will have made; by default everything has to be there.

        Raises
        ------
        CloudemError
            What would keep the job from running.
        """
        from cloudem.io.storage.location import exists
        from cloudem.io.storage.outputs import require_out

        require_out(self.out, anywhere=self.out_anywhere)
        inputs = inputs or Inputs()
        warnings: list[str] = []
        if self.out not in inputs.made and not inputs.replaced and self.is_finished():
            return Preflight((f"already finished: {self.out} holds this result",))
        if not inputs.replaced:
            self.check_out()
        self.check(inputs, warnings.append)
        for name in sorted(places(type(self)) - {"out"}):
            place = getattr(self, name)
            if place is not None and not inputs.awaited(place) and not exists(place):
                raise MissingInputError(f"{label_of(type(self), name)}: {place} does not exist; check the path")
        return Preflight(tuple(warnings))

    def check_out(self) -> None:
        """Check that the job may write into ``OUT``, whatever lies there: nothing, its own beginnings, or others'.

        Raises
        ------
        OutputExistsError, InconsistentDataError
            It may not, or cannot go on from there.
        """
        from cloudem.io.storage.outputs import check_new

        if self.new_out:
            check_new(self.out)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check what the job knows of its own; see `preflight`. That its inputs exist is checked in any case."""

    def size_of(self, name: str) -> Size | None:
        """Return the size of the input that a parameter names, where its job knows better than its header; else None.

        `cloudem.jobs.artefacts.sizes_of` reads the headers.
        """
        return None

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the stages of the job and what it needs, from the sizes of its inputs by parameter.

        Jobs that stay small need not state it. An input that was not given has no size.
        """
        return Work((Stage(self.name),))

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return the record of the complete result that lies in ``OUT``, None if there is none.

        Records are made by `cloudem.jobs.provenance.job_record`.
        """
        return None

    def is_finished(self) -> bool:
        """Return whether ``OUT`` holds what this very command makes: same parameters, same inputs."""
        try:
            record = self.kept_record()
        except CloudemError:  # it will be said by whoever reads it
            return False
        return record is not None and not getattr(self, "restart", False) and is_of(record, self)

    def begun_record(self) -> Mapping[str, Any] | None:
        """Return the record of what lies in ``OUT``, finished or not, None if nothing there says what it is."""
        from cloudem.io.storage.groups import read_attributes

        return self.kept_record() or read_attributes(self.out, "")

    def discard(self, guard: Callable[[], None]) -> None:
        """Delete the results that this job left in ``OUT``, its record last; the guard is called before each."""
        from cloudem.io.storage.groups import delete_result
        from cloudem.jobs.preview import PREVIEW_FILES

        delete_result(self.out, ("report.html", *PREVIEW_FILES), guard)

    @classmethod
    def particles_so_far(cls, url: str, pixel_size: float) -> Mapping[str, NDArray[Any]]:
        """Return columns of its particles that the report draws, of a job that still runs; read for each iteration.

        Parameters
        ----------
        url
            Of its results.
        pixel_size
            Å.

        Raises
        ------
        CloudemError
            What lies there is damaged, or was replaced meanwhile.
        """
        return {}

    def tidy(self, context: Context) -> None:
        """Finish what a run did not that was interrupted after it had written its result."""

    def run(self, context: Context) -> None:
        """Do the work and write the results to ``context.url``."""
        raise NotImplementedError(f"{type(self).__name__} declares no run()")


def known_jobs() -> dict[str, str]:
    """Return the name of every job and where its declaration is: those of cloudem, and those of installed packages.

    A package cannot replace a job of cloudem.
    """
    others = {point.name: point.value for point in metadata.entry_points(group=JOBS_OF_OTHERS)}
    return {**others, **JOBS} if others else JOBS


def find_job(name: str) -> type[Job]:
    """Return the declaration of the job called ``name``.

    Raises
    ------
    ParameterError
        If there is no such job.
    """
    known = JOBS if name in JOBS else known_jobs()
    if name not in known:
        raise ParameterError(
            f"there is no job {shown(name)}{did_you_mean(name, known)}; available jobs are {', '.join(known)}"
        )
    module, _, attribute = known[name].partition(":")
    declaration = getattr(importlib.import_module(module), attribute)
    if not (isinstance(declaration, type) and issubclass(declaration, Job)):
        raise TypeError(f"{known[name]} is not a Job")
    return declaration
