"""``cloudem estimate-ctf``: defocus, astigmatism and phase shift of micrographs, and how far each can be believed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob, row_keys
from cloudem.jobs.mapping import Found
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, SESSION, Section, table_of

if TYPE_CHECKING:
    from cloudem.algorithms.ctf_estimate import CtfSettings
    from cloudem.model.micrographs import Micrographs

PIXEL_S, FIT_S = 1.9e-8, 0.08
"""CPU-seconds of a pixel (reading and transforms) and of a micrograph (fit, picture, writing)."""

THICKNESS_S, TILE_S = 0.07, 0.02
"""What a thickness adds, and a tilt for each tile."""

CTF_OF_ALL = Section("ctf:overview")
CTF_PICTURES = Section("ctf:pictures")
LEFT_OUT = table_of(
    "Of no use", Column("problem_micrograph", "micrograph"), Column("problem_reason", "reason"), rows=200
)


class EstimateCtf(GrowingJob):
    """Declaration of ``cloudem estimate-ctf``."""

    name: ClassVar[str] = "estimate_ctf"
    summary: ClassVar[str] = (
        "Estimate the CTF of micrographs: defocus, astigmatism, phase shift, and up to where it holds."
    )
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem estimate-ctf micrographs --out ctf",
        "cloudem estimate-ctf motion --max-phase-shift-deg 180 --out ctf",
        "cloudem estimate-ctf s3://bucket/motion --max-defocus-A 30000 --out s3://bucket/ctf",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("micrographs",)}
    grows: ClassVar[tuple[str, ...]] = ("micrographs",)
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        CTF_OF_ALL,
        SESSION,
        CTF_PICTURES,
        LEFT_OUT,
        COST,
        PARAMETERS,
        PROVENANCE,
    )

    micrographs: Place = parameter(
        meaning="results with micrographs: of import-micrographs or correct-motion", positional=True,
        reads=("micrographs",),
    )  # fmt: skip
    min_defocus_A: float = parameter(3000.0, meaning="least defocus that is searched", gt=0)
    max_defocus_A: float = parameter(50000.0, meaning="largest defocus that is searched", gt=0)
    min_resolution_A: float = parameter(30.0, meaning="lowest frequency that is fitted, as a resolution", gt=0)
    max_resolution_A: float = parameter(
        3.0, meaning="highest frequency that is fitted, as a resolution; at most 0.9 of the Nyquist frequency", gt=0
    )
    min_phase_shift_deg: float = parameter(0.0, meaning="least phase shift of a phase plate", ge=0, le=180)
    max_phase_shift_deg: float = parameter(
        0.0, meaning="largest; where it exceeds the least, the phase shift is searched", ge=0, le=180
    )
    usual_astigmatism_A: float = parameter(
        2000.0, meaning="difference of the two defoci that is usual; more has to be shown by clear rings", gt=0
    )
    max_astigmatism_A: float = parameter(
        5000.0, meaning="largest difference of the two defoci with which a micrograph is of use", gt=0
    )
    worst_resolution_A: float = parameter(
        12.0, meaning="resolution to which the CTF has to agree with a micrograph that is of use", gt=0
    )
    thickness: bool = parameter(
        False, meaning="also fit the thickness of the ice, by the node of the rings of its layers"
    )
    tilt: bool = parameter(False, meaning="also fit the tilt of the specimen, by the defocus of tiles")
    tile_defocus: bool = parameter(False, meaning="also keep what the defocus of each tile differs by")
    tile_A: float = parameter(1000.0, meaning="edge of the tiles whose spectra are averaged", ge=200)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the ranges, the table of micrographs, and whether the first can be read."""
        for low, high in (
            ("min_defocus_A", "max_defocus_A"),
            ("max_resolution_A", "min_resolution_A"),
        ):
            if not getattr(self, low) < getattr(self, high):
                raise ParameterError(
                    f"--{low.replace('_', '-')} {getattr(self, low):g} has to be below"
                    f" --{high.replace('_', '-')} {getattr(self, high):g}"
                )
        if self.max_phase_shift_deg < self.min_phase_shift_deg:
            raise ParameterError("--max-phase-shift-deg is below --min-phase-shift-deg; exchange them")
        if inputs.awaited(self.micrographs):
            return
        from cloudem.io.micrographs.images import open_micrograph_image

        self.table.require("image", "pixel_size")
        if not len(self.table):
            raise ParameterError(f"{self.micrographs} lists no micrographs")
        open_micrograph_image(str(self.table["image"][0]))

    def size_of(self, name: str) -> Size | None:
        """Return how many micrographs there are, and the size of the first."""
        if name != "micrographs":
            return None
        from cloudem.io.storage.location import is_local

        table = self.table
        shape = (int(table.get("height", 0)[0]), int(table.get("width", 0)[0])) if len(table) else ()
        size = float(table.get("pixel_size", 0.0)[0]) if len(table) else 0.0
        return Size(len(table), shape if all(shape) else (), size, not is_local(self.micrographs))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage: each micrograph is a task."""
        size = sizes["micrographs"]
        pixels = size.pixels or 4096 * 4096
        tiles = pixels * (size.pixel_size or 1.0) ** 2 / 300**2  # of 600 Å, half in the next one
        more = THICKNESS_S * self.thickness + TILE_S * tiles * (self.tilt + 0.3 * self.tile_defocus)
        stage = Stage(
            "micrographs", size.count, "micrographs", FIT_S + PIXEL_S * pixels + more, parallel=True,
            task_bytes=14 * pixels + 100 * MIB, read_bytes=2.0 * pixels, written_bytes=70e3,
        )  # fmt: skip
        base = 300 * MIB + 3000 * size.count
        return Work((stage,), base_bytes=base, stored_bytes=75_000 * size.count, makes={"": size})

    def growing(self, url: str) -> Growing:
        """Return the micrographs that there are now."""
        from cloudem.jobs.ctf_tasks import MicrographEntry, estimate_micrographs

        table = self.table
        sizes = table.get("pixel_size", 0.0).tolist()
        problems = table["problem"].tolist() if "problem" in table else [""] * len(table)
        rows = zip(
            table["micrograph"].tolist(), table["image"].tolist(), sizes, table["optics_group"].tolist(), problems,
            strict=True,
        )  # fmt: skip
        entries = [
            MicrographEntry(name, image, size, table.optics[group], problem)
            for name, image, size, group, problem in rows
        ]
        return Growing(row_keys(table), entries, estimate_micrographs, (url, self.settings))

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the table of micrographs with their CTF; keep pictures of a few for the report."""
        from cloudem.io.micrographs.tables import write_micrograph_table
        from cloudem.jobs.ctf_tasks import ctf_columns, report_arrays

        table = self.table.with_columns(**ctf_columns(found, self.settings))
        write_micrograph_table(context.write, table)
        bad = int((found["problem"] != "").sum())
        good = len(table) - bad
        context.progress.message(f"{good:,} of {len(table):,} micrographs have a CTF that agrees with them")
        if bad:
            place = (found["problem"] != "").nonzero()[0][0]
            more = f" (and {bad - 1:,} more, see the report)" if bad > 1 else ""
            name, why = table["micrograph"][place], found["problem"][place]
            context.progress.warning(f"of no use: {name}: {why}{more}")
        return report_arrays(context.url, table, found), {"micrograph_count": len(table), "problem_count": bad}

    @cached_property
    def table(self) -> Micrographs:
        """The micrographs."""
        from cloudem.io.micrographs.tables import read_micrograph_table

        return read_micrograph_table(self.micrographs)

    @property
    def settings(self) -> CtfSettings:
        """How CTFs are estimated, in Å and radians."""
        from math import radians

        from cloudem.algorithms.ctf_estimate import CtfSettings
        from cloudem.algorithms.ctf_fit import CtfSearch

        shifts = (radians(self.min_phase_shift_deg), radians(self.max_phase_shift_deg))
        search = CtfSearch(
            (self.min_defocus_A, self.max_defocus_A), shifts, (1 / self.min_resolution_A, 1 / self.max_resolution_A),
            self.usual_astigmatism_A,
        )  # fmt: skip
        return CtfSettings(
            search, self.tile_A, self.worst_resolution_A, self.max_astigmatism_A,
            self.tilt, self.thickness, self.tile_defocus,
        )  # fmt: skip
