"""``cloudem reconstruct``: half-maps and map from particles whose poses are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import Size, Work
from cloudem.errors import OutputExistsError, ParameterError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, parameter

if TYPE_CHECKING:
    from cloudem.jobs.refine3d.duration import Alignment


class Reconstruct(Job):
    """Declaration of ``cloudem reconstruct``."""

    name: ClassVar[str] = "reconstruct"
    summary: ClassVar[str] = "Reconstruct half-maps and a map from particles with known poses."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem reconstruct --particles particles.zarr --symmetry C1 --out rec",
        "cloudem reconstruct --particles particles.zarr --symmetry D7 --mask mask.mrc --out rec",
        "cloudem reconstruct --particles refine --ewald-sphere --mask mask.mrc --out curved",
    )

    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles", "halves", "volume", "mask", "curves")}

    particles: Place = parameter(
        meaning="particle store with poses, or the results of a job that hold particles", reads=("particles",)
    )
    symmetry: str = parameter("C1", meaning="point group: C<n>, D<n>, T, O, I, I1 to I4, oriented as in RELION")
    diameter_A: float = parameter(0.0, meaning="particle diameter, for the FSC mask; 0: 90 % of the box", ge=0)
    mask: Place | None = parameter(
        None,
        meaning="solvent mask for the FSC (MRC file, or results of a job); if none, estimated from the map",
        reads=("mask",),
    )
    max_resolution_A: float = parameter(0.0, meaning="finest resolution to reconstruct; 0: Nyquist", ge=0)
    ewald_sphere: bool = parameter(
        False, meaning="correct for the curvature of the Ewald sphere: each sideband of an image is inserted on its own"
    )
    reverse_curvature: bool = parameter(
        False, meaning="curve the Ewald sphere the other way round, if that gives the better map"
    )
    group_size: int = parameter(1250, meaning="minimum number of images per task", ge=50)
    skip_damaged: bool = parameter(
        False, meaning="skip particles whose shards are missing or damaged, instead of stopping"
    )
    new_halves: bool = parameter(False, meaning="draw new half-sets instead of using those of the particle table")
    halves_by: Literal["particle", "micrograph"] = parameter(
        "particle", meaning="what is kept in one half-set: each particle (or helical tube), or each micrograph"
    )
    seed: int = parameter(0, meaning="random seed for half-sets and phase randomisation")
    report: bool = parameter(True, meaning="write report.html")

    def model_post_init(self, _: Any) -> None:
        """Check what no single field can say."""
        if self.reverse_curvature and not self.ewald_sphere:
            raise ParameterError("--reverse-curvature means something with --ewald-sphere alone; give both, or none")

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def check_out(self) -> None:
        """Check that there are no results in ``OUT``."""
        from cloudem.io.storage.groups import has_group, read_attributes

        found = read_attributes(self.out, "")
        if found is not None and (found.get("job") != self.name or has_group(self.out, "result")):
            raise OutputExistsError(f"{self.out} already contains results; choose another --out")

    def tidy(self, context: Context) -> None:
        """Write the report, if that is missing."""
        from cloudem.jobs.report import complete_report

        if self.report:
            complete_report(context.url)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check table, shards and headers, and what is in ``OUT``."""
        from cloudem.jobs.reconstruct.check import check_reconstruction

        check_reconstruction(self, inputs, warn)

    def alignment(self, particles: Size) -> Alignment:
        """Return what is done with particles of that size."""
        from cloudem.jobs.refine3d.duration import Alignment, Correction

        where = (particles.count, particles.box, self.symmetry, self.group_size, particles.remote)
        # each image is inserted twice
        cost = Correction(local=2.0) if self.ewald_sphere else Correction()
        return Alignment(
            *where, None, correction=cost, pixel_size=particles.pixel_size, subtracted=particles.subtracted
        )

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return stages and needs from box and particles."""
        from cloudem.jobs.refine3d.duration import alignment_work

        return alignment_work(self.alignment(sizes["particles"]))

    def run(self, context: Context) -> None:
        """Insert all images and solve."""
        from cloudem.jobs.reconstruct.run import reconstruct

        reconstruct(self, context)
