"""``cloudem import-micrographs``: micrographs become a table for the jobs that read them; nothing is copied."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob
from cloudem.jobs.mapping import Found
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, GALLERY, PARAMETERS, PROVENANCE, Section, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.io.micrographs.sources import GivenMicrographs
    from cloudem.model.micrographs import Micrographs

HEADER_S, TASK_MICROGRAPHS = 0.003, 20
"""CPU-seconds of a header, and micrographs of a task."""

KINDS_FOUND = table_of(
    "Micrographs by kind",
    Column("kind_micrographs", "micrographs", form=",d"),
    Column("kind_format", "format"),
    Column("kind_encoding", "encoding"),
    Column("kind_width", "width", "px", "d"),
    Column("kind_height", "height", "px", "d"),
)
LEFT_OUT = table_of(
    "Left out", Column("left_out_micrograph", "micrograph"), Column("left_out_reason", "reason"), rows=200
)


def _absolute(text: str) -> str:
    from cloudem.io.storage.location import absolute

    return absolute(text)


class ImportMicrographs(GrowingJob):
    """Declaration of ``cloudem import-micrographs``."""

    name: ClassVar[str] = "import_micrographs"
    summary: ClassVar[str] = "Import micrographs (MRC, TIFF) by pattern, folder or table; nothing is copied."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem import-micrographs 'sums/*.mrc' --pixel-size-A 0.83 --voltage-kV 300 --cs-mm 2.7 --out micrographs",
        "cloudem import-micrographs MotionCorr/job002/corrected_micrographs.star --out micrographs",
        "cloudem import-micrographs s3://bucket/grid1 --pixel-size-A 1.1 --voltage-kV 200 --cs-mm 2.7"
        " --out s3://bucket/micrographs",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("micrographs",)}
    grows: ClassVar[tuple[str, ...]] = ("micrographs",)
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (GALLERY, KINDS_FOUND, LEFT_OUT, COST, PARAMETERS, PROVENANCE)

    micrographs: Annotated[str, AfterValidator(_absolute)] = parameter(
        meaning="micrographs: a pattern in quotes ('sums/*.mrc'), a folder, a RELION .star or a cryoSPARC .cs file;"
        " paths or URLs",
        positional=True,
        reads=("micrographs", "table"),
    )
    pixel_size_A: float | None = parameter(
        None, meaning="pixel size of the images; if none, that of the table or of the files", gt=0
    )
    voltage_kV: float | None = parameter(None, meaning="acceleration voltage; if none, that of the table", gt=0)
    cs_mm: float | None = parameter(None, meaning="spherical aberration; if none, that of the table", ge=0)
    amplitude_contrast: float | None = parameter(
        None, meaning="fraction of amplitude contrast; if none, that of the table, or 0.1", ge=0, le=1
    )
    project_folder: Place | None = parameter(
        None,
        meaning="folder or URL that names in a table start from; if none, the working directory, then the"
        " folder of the table and those above it",
    )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the list, the first micrograph, and what is known of the microscope."""
        if inputs.awaited(self.micrographs):
            return
        from cloudem.io.micrographs.sources import check_micrographs

        urls = self.source.micrographs["image"].tolist()
        some = sorted({0, len(urls) // 2, len(urls) - 1})
        found = check_micrographs([urls[place] for place in some])
        for line in self.source.notes:
            warn(line)
        if found["problem"][0]:
            warn(f"the first micrograph, {urls[0]}, {found['problem'][0]}")
        if not all(found["problem"].tolist()):
            self.completed(self.source, float(found["header_pixel_size"].max()))

    def size_of(self, name: str) -> Size | None:
        """Return how many micrographs there are; of their headers, that of the first."""
        if name != "micrographs":
            return None
        from cloudem.io.micrographs.sources import check_micrographs
        from cloudem.io.storage.location import is_local

        first = check_micrographs(self.source.micrographs["image"].tolist()[:1])
        height, width, stated = (first[each][0].item() for each in ("height", "width", "header_pixel_size"))
        size = self.pixel_size_A or self.source.pixel_size or stated
        shape = (height, width) if height else ()
        return Size(len(self.source.micrographs), shape, size, not is_local(self.micrographs))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage: headers are read, pixels are not."""
        size = sizes["micrographs"]
        stage = Stage(
            "headers", size.count, "micrographs", HEADER_S,
            parallel=True, task_items=TASK_MICROGRAPHS, read_bytes=2.0**16,
        )  # fmt: skip
        shape = " x ".join(map(str, size.shape[::-1])) or "?"
        notes = (f"{size.count:,} micrographs; the first has {shape} pixels",)
        base = 250 * MIB + 2000 * size.count
        return Work((stage,), base_bytes=base, stored_bytes=300 * size.count, makes={"": size}, notes=notes)

    def growing(self, url: str) -> Growing:
        """Return the micrographs that there are now; their headers are read by tasks."""
        from cloudem.io.micrographs.sources import check_micrographs

        urls = self.source.micrographs["image"].tolist()
        return Growing(urls, urls, check_micrographs, size=TASK_MICROGRAPHS, stage="headers")

    def settled(self, found: Found) -> NDArray[np.bool_]:
        """Return which micrographs can be used; the others are looked at again, since they may have been completed."""
        settled: NDArray[np.bool_] = found["problem"] == ""
        return settled

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the table of the micrographs that can be used, and say why the others cannot."""
        import numpy as np

        from cloudem.io.micrographs.tables import write_micrograph_table
        from cloudem.io.movies.sources import below_shared_folder
        from cloudem.model.table import TEXT

        source = self.source
        names = source.micrographs["image"].tolist()
        good = found["problem"] == ""
        if not good.any():
            raise ParameterError(
                f"none of {len(names):,} micrographs can be used; the first, {names[0]}, {found['problem'][0]}"
            )
        sizes = found["header_pixel_size"]
        table = self.completed(source, float(sizes[good][0]))
        headers = {name: found[name] for name in ("height", "width")}
        table = table.with_columns(**headers, image_version=found["file_version"]).take(good)
        write_micrograph_table(context.write, table)
        kinds = _kinds(found, good)
        for line in _sayings(names, found, good, float(table["pixel_size"][0])):
            context.progress.warning(line)
        for count, kind, encoding, width, height in zip(*kinds.values(), strict=True):
            context.progress.message(f"{count:,} of {width} x {height} px: {kind}, {encoding}")
        context.progress.message(f"{len(table):,} of {len(names):,} micrographs imported into {context.url}")
        arrays = dict(kinds)
        if not good.all():
            below = np.array(below_shared_folder(names), TEXT)
            arrays |= {"left_out_micrograph": below[~good], "left_out_reason": found["problem"][~good]}
        counts = {"micrograph_count": len(table), "left_out_count": int((~good).sum())}
        return arrays, {**counts, "pixel_size_A": float(table["pixel_size"][0])}

    def completed(self, source: GivenMicrographs, header_pixel_size: float) -> Micrographs:
        """Return the micrographs with what options say; an option goes before the table, the table before the header.

        Raises
        ------
        ParameterError
            Nothing says the pixel size, the voltage or the aberration; or a value that no microscope has.
        """
        from dataclasses import replace

        import numpy as np

        from cloudem.jobs.movie_table import stated_optics, stated_pixel_size

        size = self.pixel_size_A or source.pixel_size or header_pixel_size
        size = stated_pixel_size(self.micrographs, "micrographs", size)
        optics = stated_optics(self.micrographs, self, source.micrographs.optics)
        table = replace(source.micrographs, optics=optics)
        return table.with_columns(pixel_size=np.full(len(table), size))

    @cached_property
    def source(self) -> GivenMicrographs:
        """The micrographs that are imported; listing a bucket takes seconds."""
        from cloudem.io.micrographs.sources import find_micrographs

        return find_micrographs(self.micrographs, self.project_folder)

    def few(self, count: int) -> Self:
        """Return this job for some of the micrographs only, evenly spaced in their list."""
        import numpy as np

        source, job = self.source, self.model_copy()
        rows = np.unique(np.linspace(0, len(source.micrographs) - 1, count).astype(int))
        job.__dict__["source"] = source._replace(micrographs=source.micrographs.take(rows))
        return job


def _kinds(found: Found, good: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    """Return the kinds of micrographs, the most frequent first, as arrays ``kind_…`` of the same length."""
    import numpy as np

    from cloudem.model.table import TEXT

    names = ("format", "encoding", "width", "height")
    counts = Counter(zip(*(found[name][good].tolist() for name in names), strict=True)).most_common()
    columns = list(zip(*(kind for kind, _ in counts), strict=True))
    arrays: dict[str, NDArray[Any]] = {"kind_micrographs": np.array([count for _, count in counts])}
    for name, values in zip(names, columns, strict=True):
        arrays[f"kind_{name}"] = np.array(values, TEXT if isinstance(values[0], str) else np.int64)
    return arrays


def _sayings(names: list[str], found: Found, good: NDArray[np.bool_], pixel_size: float) -> list[str]:
    """Return lines about micrographs that are left out, and about headers that state another pixel size."""
    import numpy as np

    problems = found["problem"].tolist()
    first = {why: name for name, why in zip(reversed(names), reversed(problems), strict=True) if why}
    counts = Counter(why for why in problems if why).most_common()
    lines = [
        f"left out: {first[why]}" + (f" and {count - 1:,} more" if count > 1 else "") + f": {why}"
        for why, count in counts[:5]
    ]
    if len(counts) > 5:
        lines.append(f"{sum(count for _, count in counts[5:]):,} left out for other reasons")
    stated = found["header_pixel_size"][good]
    other = (stated > 0) & (np.abs(stated / pixel_size - 1) > 0.01)
    if other.any():
        size = float(stated[other][0])
        lines.append(f"headers of {int(other.sum()):,} state {size:g} Å, and {pixel_size:g} Å are taken")
    return lines
