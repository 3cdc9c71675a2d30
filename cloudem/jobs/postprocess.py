"""``cloudem postprocess``: resolution and sharpened map of two half-maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import InconsistentDataError, MissingInputError, ParameterError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.provenance import job_record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.algorithms.resolution import Postprocessed
    from cloudem.io.formats.mrc import Volume
    from cloudem.jobs.maps import Grid


OPTION = "--pixel-size-A"

VOXEL_S = 2.0e-6
"""A voxel of a map, its report included: CPU-seconds, one run."""

LOCAL_VOXEL_S, LOCAL_VOXEL_BYTES = 7.0e-7, 80
"""The same of filtering and sharpening from place to place, and bytes beside the others."""


class Postprocess(Job):
    """Declaration of ``cloudem postprocess``."""

    name: ClassVar[str] = "postprocess"
    summary: ClassVar[str] = "Measure the resolution of two half-maps and sharpen their mean."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem postprocess --halves refine --mask mask.mrc --out post",
        "cloudem postprocess --halves refine --local --out post",
        "cloudem postprocess --halves run_half1_unfil.mrc --half2 run_half2_unfil.mrc --out post",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("volume", "mask", "curves")}

    halves: Place = parameter(
        meaning="results of refine3d or reconstruct, or the first half-map (MRC file)", reads=("halves",)
    )
    half2: Place | None = parameter(
        None,
        meaning="second half-map (MRC file); if none, the first one's name with half1 replaced by half2",
        reads=("volume",),
    )
    mask: Place | None = parameter(
        None,
        meaning="soft mask (MRC file, or results of a job); if none, estimated from the mean of the half-maps",
        reads=("mask",),
    )
    pixel_size_A: float | None = parameter(None, meaning="pixel size, overriding that in the files", gt=0)
    b_factor_A2: float | None = parameter(
        None, meaning="B-factor for sharpening, negative to sharpen; if none, fitted to the Guinier plot"
    )
    local: bool = parameter(
        False,
        meaning="filter and sharpen from place to place, by the local agreement of the half-maps and a local B-factor",
    )
    guinier_from_A: float = parameter(10.0, meaning="resolution at which the Guinier fit begins", gt=0)
    symmetry: str | None = parameter(
        None,
        meaning="point group of the half-maps, for the chance in directional resolution; if none, the results' or C1",
    )
    seed: int = parameter(0, meaning="random seed for phase randomisation", ge=0)

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

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check half-maps and mask by their headers."""
        from cloudem.model.symmetry import operators

        operators(self.symmetry or "C1")
        check_halves(inputs, self.halves, self.half2, self.mask, self.pixel_size_A)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the half-maps."""
        size = sizes["halves"]
        seconds = (VOXEL_S + LOCAL_VOXEL_S * self.local) * size.pixels
        stage = Stage("postprocess", cpu_s=seconds, read_bytes=8.0 * size.pixels)
        base = 250 * MIB + (70 + LOCAL_VOXEL_BYTES * self.local) * size.pixels
        stored = 8 * size.pixels
        return Work((stage,), base, stored_bytes=stored, result_bytes=4 * size.pixels, makes={"": size})

    def run(self, context: Context) -> None:
        """Write the group ``result`` and the report."""
        from cloudem.algorithms.resolution import postprocess
        from cloudem.jobs.directions import directions_of
        from cloudem.jobs.report import run_attributes, write_report
        from cloudem.jobs.results import suspicious

        one, two = read_halves(self.halves, self.half2, self.pixel_size_A)
        pixel_size = one.pixel_size
        mask = mask_of_halves(self.mask, self.halves, self.pixel_size_A, one, two, context)
        with context.progress.stage("postprocess"):
            done = postprocess(
                one.data,
                two.data,
                mask,
                pixel_size,
                seed=self.seed,
                b_factor_given=None if self.b_factor_A2 is None else -self.b_factor_A2,
                low_resolution=self.guinier_from_A,
            )
            shown = done.map
            extra: dict[str, Any] = {}
            if self.local:
                shown, extra = self._locally(one.data, two.data, mask, pixel_size, done, context)
            where = (len(mask) // 2 - 1, pixel_size, self._group())
            directional = directions_of((one.data, two.data), mask, done.fsc, *where, context.progress.warning)
            context.progress.previews.make_result(shown, {"mask": mask}, pixel_size, context.log)
        self._say(done, context)
        if line := suspicious(done.fsc.corrected, len(mask) // 2 - 1, len(mask), pixel_size):
            context.progress.warning(line)
        context.write("", {}, {"kind": "result", **job_record(self)})
        attributes = {
            "box": len(mask),
            "pixel_size_A": pixel_size,
            "origin_A": one.origin,
            "resolution_A": done.resolution,
            "b_factor_A2": -done.b_factor,
            "b_factor_fitted_A2": -done.fit.b_factor,
            "randomise_from_shell": done.fsc.randomise_from,
            "directional": directional.attributes,
            **extra,
            **run_attributes(context.progress, context.executor.traffic()),
        }
        maps = {"map": shown, "mask": mask}
        context.write("result", {**maps, **done.fsc.by_name(), **directional.arrays}, attributes)
        context.progress.message(f"report: {write_report(context.url)}")

    def _locally(
        self,
        first: NDArray[np.float32],
        second: NDArray[np.float32],
        mask: NDArray[np.float32],
        pixel_size: float,
        done: Postprocessed,
        context: Context,
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Return the map that is filtered and sharpened from place to place, and what is said of its B-factors."""
        import numpy as np

        from cloudem.algorithms.local_filter import at_voxels
        from cloudem.algorithms.local_sharpening import sharpened_locally

        if len(mask) % 2:
            raise ParameterError(
                f"a local filter needs an even box, not {len(mask)} voxels; pad the maps by one, or leave out --local"
            )
        found = sharpened_locally(
            first, second, pixel_size, done.b_factor, self.guinier_from_A, fitted=self.b_factor_A2 is None
        )
        inside = at_voxels(mask, len(found.b_factor)) > 0.5
        low, middle, high = (0.0 - float(v) for v in np.percentile(found.b_factor[inside], (95, 50, 5)))
        notes = [LOCAL_NOTE]
        if self.b_factor_A2 is None:
            said = f"local B-factors {low:.0f} to {high:.0f} Å² (90 % of the mask), median {middle:.0f} Å²"
            context.progress.message(said)
            notes = [f"{LOCAL_NOTE} It was sharpened with {said}."]
        return found.map, {"local_b_factors_A2": [low, middle, high], "notes": notes}

    def _group(self) -> str:
        """Return the point group of the half-maps: what was given, or what the results say."""
        from cloudem.io.storage.groups import read_attributes
        from cloudem.io.storage.location import contents

        if self.symmetry is not None or not contents(self.halves):
            return self.symmetry or "C1"
        return str((read_attributes(self.halves, "result") or {}).get("symmetry") or "C1")

    def _say(self, done: Postprocessed, context: Context) -> None:
        shells = done.fit.shells
        fitted = f"{shells[1] - shells[0]} shells fitted" if shells[1] > shells[0] else "too few shells to fit"
        given = ""
        if self.b_factor_A2 is not None:
            given = f"; sharpened with {self.b_factor_A2:g} Å² as requested"
        elif done.b_factor < done.fit.b_factor:
            most = f"{0.0 - done.b_factor:.0f} Å², the most that {done.resolution:.1f} Å supports"
            given = f"; sharpened with only {most}"
        context.progress.message(f"resolution {done.resolution:.2f} Å (corrected FSC 0.143)")
        context.progress.message(f"B-factor {0.0 - done.fit.b_factor:.0f} Å² ({fitted}){given}")
        if done.fit.b_factor < 0 and self.b_factor_A2 is None:
            context.progress.warning(
                "the Guinier plot rises: the maps seem to be sharpened already, so they were not sharpened further"
            )


LOCAL_NOTE = (
    "The map was filtered and sharpened from place to place (--local): its grey values cannot be compared between "
    "places of different resolution, and an FSC of it says nothing. Resolution and curves are those of the half-maps as"
    " they are."
)


def check_halves(inputs: Inputs, halves: str, half2: str | None, mask: str | None, pixel_size: float | None) -> None:
    """Check two half-maps and their mask, those that are there already, by their headers; raises as `halves_grid`."""
    from cloudem.jobs.maps import check_map

    if not inputs.awaited(halves):
        halves_grid(halves, half2, pixel_size)
    if mask is not None and not inputs.awaited(mask):
        check_map(mask, pixel_size, held="mask")


def read_halves(halves: str, half2: str | None = None, pixel_size: float | None = None) -> tuple[Volume, Volume]:
    """Return two half-maps on one grid.

    Parameters
    ----------
    halves
        Results of a job, or the MRC file of the first half-map.
    half2
        The other MRC file; None to take its name from the first.
    pixel_size
        Å, instead of what the files say.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        There are no half-maps, or one twice; they differ in box, pixel size or origin; as `cloudem.jobs.maps.read_map`.
    """
    import numpy as np

    from cloudem.io.formats.mrc import Volume
    from cloudem.io.storage.groups import read_group
    from cloudem.io.storage.location import contents
    from cloudem.jobs.maps import read_map

    grid = halves_grid(halves, half2, pixel_size)
    if contents(halves):
        arrays, _ = read_group(halves, "result")
        one, two = (Volume(arrays[name], grid.pixel_size, grid.origin) for name in ("half1", "half2"))
    else:
        one, two = (read_map(place, pixel_size, OPTION) for place in (halves, other_half(halves, half2)))
    if np.array_equal(one.data, two.data):
        raise InconsistentDataError(f"both half-maps of {halves} are one map; give the two that were made apart")
    return one, two


def halves_grid(halves: str, half2: str | None = None, pixel_size: float | None = None) -> Grid:
    """Return the grid of two half-maps, of files from their headers alone.

    Parameters
    ----------
    halves, half2, pixel_size
        As `read_halves`.

    Raises
    ------
    MissingInputError, FormatError, InconsistentDataError
        As `read_halves`.
    """
    from cloudem.io.storage.location import contents, exists
    from cloudem.jobs.maps import SAME_PLACE, check_map, result_grid

    if not exists(halves):
        raise MissingInputError(f"{halves} does not exist; give the results of refine3d, or a half-map as MRC file")
    if contents(halves):
        return result_grid(halves, pixel_size)
    second = other_half(halves, half2)
    one, two = check_map(halves, pixel_size, OPTION), check_map(second, pixel_size, OPTION)
    if not one.same_voxels(two):
        raise InconsistentDataError(
            f"{halves} has a box of {one.box} at {one.pixel_size:g} Å, {second} {two.box} at {two.pixel_size:g} Å; give"
            " the two half-maps of one reconstruction"
        )
    if one.apart(two) > SAME_PLACE:
        raise InconsistentDataError(
            f"{halves} has its origin at {one.origin[0]:g}, {one.origin[1]:g}, {one.origin[2]:g} Å, {second} at"
            f" {two.origin[0]:g}, {two.origin[1]:g}, {two.origin[2]:g} Å; give the two half-maps of one reconstruction"
        )
    return one


def mask_of_halves(
    mask: str | None, halves: str, stated: float | None, one: Volume, two: Volume, context: Context
) -> NDArray[np.float32]:
    """Return the mask for two half-maps, on their grid; one estimated from their mean where none is given.

    Parameters
    ----------
    mask
        MRC file, or results of a job.
    halves, stated
        Where the half-maps came from, and the pixel size that was given for them, Å.
    one, two
        The half-maps.
    context
        Of the job.

    Raises
    ------
    CloudemError
        As `cloudem.jobs.maps.read_mask` and `cloudem.algorithms.mask.estimate_mask`.
    """
    from cloudem.algorithms.mask import estimate_mask
    from cloudem.jobs.maps import read_mask

    box, pixel_size = len(one.data), one.pixel_size
    if mask is None:
        with context.progress.stage("mask"):
            return estimate_mask(0.5 * (one.data + two.data), pixel_size)
    own = pixel_size if stated is not None and _on_grid_of(halves, mask, box) else None
    return read_mask(mask, box, pixel_size, context.progress, origin=one.origin, whose="half-maps", stated=own).data


def _on_grid_of(halves: str, mask: str, box: int) -> bool:
    """Return whether a mask has the half-maps' box and pixel size, as far as the files say."""
    from cloudem.io.formats.mrc import EQUAL, read_header
    from cloudem.io.storage.location import contents
    from cloudem.jobs.maps import result_grid

    if contents(mask):  # the results of a job
        return False
    header = read_header(mask)
    known = result_grid(halves).pixel_size if contents(halves) else read_header(halves).pixel_size
    same = not header.pixel_size or abs(header.pixel_size - known) < EQUAL * known
    return set(header.shape) == {box} and same


def other_half(halves: str, half2: str | None) -> str:
    """Return the file of the second half-map.

    Raises
    ------
    MissingInputError
        The name of the first does not tell it.
    """
    if half2 is not None:
        return half2
    folder, slash, name = halves.rpartition("/")
    if "half1" not in name:
        raise MissingInputError(f"{halves} does not have half1 in its name; name the other half-map with --half2")
    return f"{folder}{slash}{name.replace('half1', 'half2')}"
