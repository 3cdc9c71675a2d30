"""``cloudem export-coordinates``: picks become files of RELION, EMAN, Topaz, cryoSPARC, or CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.provenance import job_record


class ExportCoordinates(Job):
    """Declaration of ``cloudem export-coordinates``."""

    name: ClassVar[str] = "export_coordinates"
    summary: ClassVar[str] = "Export picks to coordinate files: STAR, BOX, Topaz, .cs or CSV."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem export-coordinates picks --out coordinates",
        "cloudem export-coordinates picks --file-format box --box-px 128 --out boxes",
    )
    keeps_log: ClassVar[bool] = False
    new_out: ClassVar[bool] = True
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("files",)}
    leaves: ClassVar[tuple[str, ...]] = (
        "export.json", "coordinates.star", "picks.txt", "picks.cs", "picks.csv", "micrographs",
    )  # fmt: skip

    picks: Place = parameter(meaning="results of a job that hold picks", positional=True, reads=("coordinates",))
    file_format: Literal["star", "box", "topaz", "cs", "csv"] = parameter(
        "star", meaning="star: a file for each micrograph and coordinates.star that lists them, for RELION; box: EMAN"
    )  # fmt: skip
    box_px: int | None = parameter(None, meaning="side of the boxes, which BOX files need", gt=0)
    flip_y: bool = parameter(False, meaning="count rows from the other edge: y becomes height - 1 - y")

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check that there are picks."""
        from cloudem.io.micrographs.tables import read_micrograph_table, read_picks

        if self.file_format == "box" and self.box_px is None:
            raise ParameterError("BOX files hold corners and sizes; give --box-px")
        if not inputs.awaited(self.picks):
            read_picks(self.picks)
            read_micrograph_table(self.picks)

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what lies beside the files, which are there as a whole or not at all."""
        from cloudem.io.exporting import read_record

        return read_record(self.out)

    def run(self, context: Context) -> None:
        """Write the files."""
        from cloudem.io.coordinate_export import export_coordinates

        with context.progress.stage("export"):
            count, files = export_coordinates(
                self.picks, context.url, self.file_format, self.box_px or 0, flip_y=self.flip_y,
                record=job_record(self), guard=context.check,
            )  # fmt: skip
        context.progress.message(f"wrote {count:,} picks in {files:,} files into {context.url}")
