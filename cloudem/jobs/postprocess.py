"""``cloudem postprocess``: resolution and sharpened map of two half-maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import InconsistentDataError, MissingInputError, OutputExistsError
from cloudem.jobs.base import Context, Job, Kind, Place, job_record, parameter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.algorithms.resolution import Postprocessed

VOXEL_S = 2.0e-6
"""A voxel of a map, its report included: CPU-seconds, one run."""


class Postprocess(Job):
    """Declaration of ``cloudem postprocess``."""

    name: ClassVar[str] = "postprocess"
    summary: ClassVar[str] = "Measure the resolution of two half-maps and sharpen their mean."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem postprocess --halves refine --mask mask.mrc --out post",
        "cloudem postprocess --halves run_half1_unfil.mrc --half2 run_half2_unfil.mrc --out post",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("volume", "mask", "curves")}

    halves: Place = parameter(
        meaning="results of refine3d or reconstruct, or the first half-map (MRC file)", reads=("halves", "volume")
    )
    half2: Place | None = parameter(
        None,
        meaning="second half-map (MRC file); if none, the first one's name with half1 replaced by half2",
        reads=("volume",),
    )
    mask: Place | None = parameter(
        None,
        meaning="soft mask (MRC file, same box); if none, estimated from the mean of the half-maps",
        reads=("mask",),
    )
    pixel_size_A: float | None = parameter(None, meaning="pixel size, overriding that in the files", gt=0)
    b_factor_A2: float | None = parameter(
        None, meaning="B-factor for sharpening, negative to sharpen; if none, fitted to the Guinier plot"
    )
    guinier_from_A: float = parameter(10.0, meaning="resolution at which the Guinier fit begins", gt=0)
    seed: int = parameter(0, meaning="random seed for phase randomisation", ge=0)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from the size of the half-maps."""
        size = sizes["halves"]
        stage = Stage("postprocess", cpu_s=VOXEL_S * size.pixels, read_bytes=8.0 * size.pixels)
        base = 250 * MIB + 70 * size.pixels
        stored = 8 * size.pixels
        return Work((stage,), base, stored_bytes=stored, result_bytes=4 * size.pixels, makes={"": size})

    def run(self, context: Context) -> None:
        """Write the group ``result`` and the report."""
        from cloudem.algorithms.resolution import postprocess
        from cloudem.io.storage.groups import read_attributes
        from cloudem.jobs.report import run_attributes, write_report

        other = (read_attributes(context.url, "") or {}).get("job", self.name)
        if other != self.name:
            raise OutputExistsError(f"{context.url} contains the results of {other}; choose another --out")
        half1, half2, pixel_size = read_halves(self.halves, self.half2, self.pixel_size_A)
        mask = self._read_mask(half1, half2, pixel_size, context)
        with context.progress.stage("postprocess"):
            done = postprocess(
                half1,
                half2,
                mask,
                pixel_size,
                seed=self.seed,
                b_factor_given=None if self.b_factor_A2 is None else -self.b_factor_A2,
                low_resolution=self.guinier_from_A,
            )
        self._say(done, context)
        context.write("", {}, {"kind": "result", **job_record(self)})
        attributes = {
            "box": len(mask),
            "pixel_size_A": pixel_size,
            "resolution_A": done.resolution,
            "b_factor_A2": -done.b_factor,
            "b_factor_fitted_A2": -done.fit.b_factor,
            "randomise_from_shell": done.fsc.randomise_from,
            **run_attributes(context.progress, context.executor.traffic()),
        }
        context.write("result", {"map": done.map, "mask": mask, **done.fsc.by_name()}, attributes)
        context.progress.message(f"report: {write_report(context.url)}")

    def _read_mask(
        self, half1: NDArray[np.float32], half2: NDArray[np.float32], pixel_size: float, context: Context
    ) -> NDArray[np.float32]:
        from cloudem.algorithms.mask import estimate_mask
        from cloudem.io.formats.mrc import read_volume

        if self.mask is None:
            with context.progress.stage("mask"):
                return estimate_mask(0.5 * (half1 + half2), pixel_size)
        mask = read_volume(self.mask, pixel_size).data
        if mask.shape != half1.shape:
            raise InconsistentDataError(
                f"the mask {self.mask} has a box of {mask.shape[0]} voxels, the half-maps {half1.shape[0]}; make one "
                f"that fits: cloudem mask {self.halves} --out mask.mrc"
            )
        if mask.min() < -1e-3 or mask.max() > 1 + 1e-3 or mask.max() <= 0:
            raise InconsistentDataError(
                f"the mask {self.mask} runs from {mask.min():.3g} to {mask.max():.3g}, a mask from 0 to 1; "
                "give a mask, not a map"
            )
        return mask

    def _say(self, done: Postprocessed, context: Context) -> None:
        shells = done.fit.shells
        fitted = f"{shells[1] - shells[0]} shells fitted" if shells[1] > shells[0] else "too few shells to fit"
        given = "" if self.b_factor_A2 is None else f"; sharpened with {self.b_factor_A2:g} Å² as requested"
        context.progress.message(f"resolution {done.resolution:.2f} Å (corrected FSC 0.143)")
        context.progress.message(f"B-factor {-done.fit.b_factor:.0f} Å² ({fitted}){given}")
        if done.fit.b_factor < 0 and self.b_factor_A2 is None:
            context.progress.warning(
                "the Guinier plot rises: the maps seem to be sharpened already, so they were not sharpened further"
            )


def read_halves(
    halves: str, half2: str | None = None, pixel_size: float | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Return two half-maps (n, n, n) and the pixel size in Å.

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
    MissingInputError, InconsistentDataError
        There are no half-maps; they differ in box or pixel size.
    """
    from cloudem.io.formats.mrc import read_volume
    from cloudem.io.storage.groups import has_group, read_group
    from cloudem.io.storage.location import contents, exists

    if not exists(halves):
        raise MissingInputError(f"{halves} does not exist; give the results of refine3d, or a half-map as MRC file")
    if contents(halves):
        arrays, attributes = read_group(halves, "result") if has_group(halves, "result") else ({}, {})
        if not {"half1", "half2"} <= arrays.keys():
            raise MissingInputError(
                f"{halves} contains no half-maps; give the finished results of refine3d or reconstruct"
            )
        return arrays["half1"], arrays["half2"], pixel_size or float(attributes["pixel_size_A"])
    folder, slash, name = halves.rpartition("/")
    if half2 is None and "half1" not in name:
        raise MissingInputError(f"{halves} does not have half1 in its name; name the other half-map with --half2")
    second = half2 or f"{folder}{slash}{name.replace('half1', 'half2')}"
    one, two = read_volume(halves, pixel_size), read_volume(second, pixel_size)
    if one.data.shape != two.data.shape or abs(one.pixel_size / two.pixel_size - 1) > 1e-3:
        raise InconsistentDataError(
            f"{halves} has a box of {one.data.shape[0]} at {one.pixel_size:g} Å, {second} {two.data.shape[0]} at "
            f"{two.pixel_size:g} Å; give the two half-maps of one reconstruction"
        )
    return one.data, two.data, one.pixel_size
