"""Jobs that make one result from maps in a single go, and how the maps of files and results are read for them."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.jobs.base import Context, Job
from cloudem.jobs.provenance import job_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.io.formats.mrc import Volume

KEPT = ("symmetry", "resolution_A", "resolution_source", "b_factor_A2", "filter_A")
"""What a result says of its map that stays true when it is moved or mirrored."""


class MapResult(Job):
    """A job that reads maps and writes a result with a report; short enough to begin anew when it was interrupted."""

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def tidy(self, context: Context) -> None:
        """Write the report, if that is missing."""
        from cloudem.jobs.report import complete_report

        complete_report(context.url)

    def check_out(self) -> None:
        """Check that there are no results of another job in ``OUT``; its own are written over."""
        from cloudem.jobs.checks import refuse_results_of_others

        refuse_results_of_others(self.out, self.name)

    @abstractmethod
    def made(self, context: Context) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays and attributes of the result; ``map`` among the arrays, and its ``pixel_size_A``."""

    def run(self, context: Context) -> None:
        """Write the group ``result`` and the report."""
        from cloudem.jobs.report import run_attributes, write_report

        began = time.monotonic()
        arrays, attributes = self.made(context)
        pixel_size = float(attributes["pixel_size_A"])
        beside = {name: arrays[name] for name in ("half1", "half2", "mask") if name in arrays}
        context.progress.previews.make_result(arrays["map"], beside, pixel_size, context.log)
        context.write("", {}, {"kind": "result", **job_record(self)})
        own = {
            "box": len(arrays["map"]),
            "wall_s": time.monotonic() - began,
            "cpu_s": sum(timing.cpu_s for timing in context.progress.timings()),
            **run_attributes(context.progress, context.executor.traffic()),
        }
        context.write("result", arrays, {**own, **attributes})
        context.progress.message(f"report: {write_report(context.url)}")


class MapInput(NamedTuple):
    """What there is of a map.

    Attributes
    ----------
    whole
        The map: before sharpening, where a result holds that; of half-maps alone, their mean. Its box is even.
    halves
        Half-maps on the same grid, where there are any.
    mask
        The mask of a result, where it holds one.
    attributes
        What a result says of itself; empty of a file.
    """

    whole: Volume
    halves: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    mask: NDArray[np.float32] | None
    attributes: Mapping[str, Any]

    def kept(self) -> dict[str, Any]:
        """Return what the result says that stays true when its map is moved."""
        return {name: self.attributes[name] for name in KEPT if name in self.attributes}


def read_map_input(path: str, half2: str | None = None) -> MapInput:
    """Read a map with what belongs to it: an MRC file, two half-maps, or the results of a job.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        As `cloudem.jobs.maps.read_map` and `cloudem.jobs.postprocess.read_halves`.
    """
    import numpy as np

    from cloudem.io.formats.mrc import Volume
    from cloudem.io.storage.groups import has_group, read_attributes, shapes_in
    from cloudem.jobs.maps import read_map, result_map
    from cloudem.jobs.postprocess import read_halves

    names = shapes_in(path, "result") if has_group(path, "result") else {}
    attributes = (read_attributes(path, "result") or {}) if names else {}
    halves, mask = None, None
    if half2 is not None or {"half1", "half2"} <= names.keys():
        one, two = read_halves(path, half2)
        halves = even_box(one).data, even_box(two).data
    if halves is not None and not names.keys() & {"map", "map_unfiltered"}:
        whole = Volume((one.data + two.data) / np.float32(2), one.pixel_size, one.origin)
    else:
        whole = read_map(path)
    if "mask" in names:
        mask = even_box(result_map(path, "mask")).data
    return MapInput(even_box(whole), halves, mask, attributes)


def even_box(volume: Volume) -> Volume:
    """Return a map with a plane of zeros before it along each axis where its side is odd: its centre stays."""
    import numpy as np

    from cloudem.io.formats.mrc import Volume

    data = np.asarray(volume.data, np.float32)
    if len(data) % 2 == 0:
        return Volume(data, volume.pixel_size, volume.origin)
    x, y, z = (float(v) - volume.pixel_size for v in volume.origin)
    return Volume(np.pad(data, ((1, 0),) * 3), volume.pixel_size, (x, y, z))


def check_map_input(path: str, half2: str | None = None) -> None:
    """Check the headers of what `read_map_input` reads."""
    from contextlib import suppress

    from cloudem.errors import MissingInputError
    from cloudem.io.storage.groups import has_group
    from cloudem.jobs.maps import check_map
    from cloudem.jobs.postprocess import halves_grid

    if half2 is not None:
        halves_grid(path, half2)
        return
    if has_group(path, "result"):
        with suppress(MissingInputError):
            halves_grid(path)
            return
    check_map(path)


def stage_of(name: str, size: Size, voxel_s: float, flat_s: float) -> Work:
    """Return the work of a job on one map: CPU-seconds for each voxel, and those that do not depend on it."""
    voxels = size.pixels
    stage = Stage(name, cpu_s=flat_s + voxel_s * voxels, read_bytes=8.0 * voxels)
    return Work((stage,), base_bytes=400 * MIB + 150 * voxels, stored_bytes=16 * voxels, makes={"": size})
