"""``cloudem import-coordinates``: picks of another program, or of people, become those of a table of micrographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.mapping import refuse_others
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.jobs.provenance import job_record
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, Section, histogram_of, table_of

if TYPE_CHECKING:
    from cloudem.io.formats.coordinate_files import Coordinates

FILE_S = 0.002
"""A file: CPU-seconds."""

NOT_MATCHED = table_of("Names without a micrograph", Column("lost_name", "name in the coordinate files"), rows=200)


def _absolute(text: str) -> str:
    from cloudem.io.storage.location import absolute

    return absolute(text)


class ImportCoordinates(Job):
    """Declaration of ``cloudem import-coordinates``."""

    name: ClassVar[str] = "import_coordinates"
    summary: ClassVar[str] = "Import coordinates of particles (STAR, BOX, Topaz, .cs, CSV) for a table of micrographs."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem import-coordinates ctf --coordinates AutoPick/job006/autopick.star --out picks",
        "cloudem import-coordinates ctf --coordinates 'boxes/*.box' --out picks",
        "cloudem import-coordinates ctf --coordinates topaz.txt --scale 8 --out picks",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("micrographs", "coordinates")}
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("picking:gallery"),
        histogram_of("pick_count", Column("pick_count", "picks", form=",d"), "Picks per micrograph"),
        NOT_MATCHED,
        COST,
        PARAMETERS,
        PROVENANCE,
    )

    micrographs: Place = parameter(
        meaning="results of a job that hold micrographs", positional=True, reads=("micrographs",)
    )
    coordinates: Annotated[str, AfterValidator(_absolute)] = parameter(
        meaning="a file, or files by a pattern in quotes: .star, .box, .txt or .tsv of Topaz, .cs, .csv",
        reads=("table", "files"),
    )
    flip_y: bool = parameter(
        False, meaning="count rows from the other edge: y becomes height - 1 - y, for programs that show MRC files so"
    )
    scale: float = parameter(
        1.0, meaning="pixels of the micrograph for one of the coordinates, where they are of smaller images", gt=0
    )
    diameter_A: float = parameter(100.0, meaning="diameter of the circles in the report", gt=0)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the table and that there are files."""
        from cloudem.io.micrographs.tables import read_micrograph_table

        if not inputs.awaited(self.micrographs):
            read_micrograph_table(self.micrographs).require("micrograph", "height", "width")
        if not inputs.awaited(self.coordinates):
            self.files()

    def check_out(self) -> None:
        """Check that there is nothing in ``OUT`` but what this job left."""
        refuse_others(self.out, lambda record: bool(record.get("job") == self.name))

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def size_of(self, name: str) -> Size | None:
        """Return how many micrographs there are; of coordinates, the files."""
        from cloudem.io.micrographs.tables import read_micrograph_table

        return Size(len(self.files())) if name == "coordinates" else Size(len(read_micrograph_table(self.micrographs)))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage."""
        stage = Stage("files", max(sizes["coordinates"].count, 1), "files", FILE_S)
        return Work((stage,), base_bytes=250 * MIB, makes={"": sizes["micrographs"]})

    def files(self) -> list[str]:
        """Return the files that were given.

        Raises
        ------
        MissingInputError
            There is none.
        """
        from cloudem.errors import MissingInputError
        from cloudem.io.storage.listing import has_wildcard, matching_files
        from cloudem.io.storage.location import exists

        found = matching_files(self.coordinates) if has_wildcard(self.coordinates) else [self.coordinates]
        if not found or (not has_wildcard(self.coordinates) and not exists(self.coordinates)):
            raise MissingInputError(f"{self.coordinates} does not exist; check the path, and put patterns in quotes")
        return found

    def run(self, context: Context) -> None:
        """Read the files, and write the picks beside the micrographs."""
        from cloudem.io.formats.coordinate_files import join_coordinates, read_coordinates
        from cloudem.jobs.pick.results import write_imported
        from cloudem.jobs.report import run_attributes, write_report

        self.check_out()
        context.write("", {}, {"kind": "result", **job_record(self)})
        files = self.files()
        parts: list[Coordinates] = []
        with context.progress.stage("files", len(files), "files") as stage:
            for file in files:
                parts.append(read_coordinates(file))
                stage.advance(1)
        found = join_coordinates(parts)
        if not len(found.x):
            raise ParameterError(f"{self.coordinates} holds no coordinates")
        arrays, attributes = write_imported(self, context, found)
        context.write("result", arrays, {**run_attributes(context.progress, context.executor.traffic()), **attributes})
        write_report(context.url)
