"""``cloudem extract``: images of particles, cut out of micrographs at their coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import CloudemError, InconsistentDataError, ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob
from cloudem.jobs.mapping import Found
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, Section, histogram_of, table_of

if TYPE_CHECKING:
    from cloudem.jobs.extract_tables import Positions
    from cloudem.jobs.extract_tasks import ExtractionSettings
    from cloudem.model.micrographs import Micrographs

PIXELS = "pixels"
"""Name, below ``OUT``, of the store of images."""

READ_S, CUT_S, SHRINK_S = 7.0e-9, 6.0e-9, 6.0e-9
"""CPU-seconds of a pixel of a micrograph that is read, of a box that is cut, and of one that is made smaller."""

USUAL_PARTICLES = 300
"""Of a micrograph, where nothing is known yet."""

EXAMPLES, EXAMPLE_SIDE, EXAMPLE_A = 36, 96, 15.0
"""Images of the report, their pixels, and the low-pass filter that they are shown with, Å."""


class Extract(GrowingJob):
    """Declaration of ``cloudem extract``."""

    name: ClassVar[str] = "extract"
    summary: ClassVar[str] = "Extract particles from micrographs, at picks or around refined positions."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem extract picks --box-px 256 --out particles",
        "cloudem extract picks --box-px 384 --scale-to-px 128 --min-distance-A 100 --out particles",
        "cloudem extract ctf --coordinates refine --box-px 512 --out again",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles",)}
    grows: ClassVar[tuple[str, ...]] = ("micrographs", "coordinates")
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("extraction:examples"),
        table_of(
            "What became of positions",
            Column("fate_words", "what became of them"),
            Column("fate_positions", "positions", form=",d"),
            Column("fate_share", "share", "%", ".1f", 100),
        ),
        histogram_of("particles_each", Column("particles_each", "particles", form=".0f"), "Particles of a micrograph"),
        table_of("Micrographs without particles", Column("lost_micrograph", "micrograph"),
                 Column("lost_reason", "reason"), rows=200),
        COST, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    micrographs: Place = parameter(
        meaning="results that hold micrographs, and picks unless --coordinates names others",
        positional=True,
        reads=("micrographs",),
    )
    coordinates: Place | None = parameter(
        None,
        meaning="results with picks, or with particles to extract again around their refined positions",
        reads=("coordinates", "particles"),
    )
    box_px: int = parameter(meaning="side of the box in pixels of the micrograph, even", ge=4)
    scale_to_px: int | None = parameter(
        None, meaning="side of the images, even: fewer pixels that show the same; if none, the box", ge=4
    )
    background_diameter_A: float | None = parameter(
        None, meaning="circle outside of which is background, for the normalisation; if none, 0.9 of the box", gt=0
    )
    contrast: Literal["dark", "bright"] = parameter(
        "dark", meaning="how particles look in the micrographs; they are bright in the images in any case"
    )
    dtype: Literal["float16", "float32"] = parameter("float16", meaning="data type of the stored images")
    edges: Literal["leave-out", "pad"] = parameter(
        "leave-out", meaning="what becomes of boxes that reach beyond the micrograph; padded with the mean background"
    )
    min_distance_A: float | None = parameter(
        None, meaning="of particles nearer to each other than this, keep the one with the best score", gt=0
    )
    hot_sigma: float = parameter(
        10.0,
        meaning="single pixels that stand out by more than so many standard deviations are replaced; 0 for none",
        ge=0,
    )
    on_reading: bool = parameter(False, meaning="copy no pixels; images are cut out of the micrographs when read")
    new_ctf: bool = parameter(False, meaning="of particles that have a CTF, take that of the micrographs instead")
    micrograph_pixel_size_A: float | None = parameter(
        None,
        meaning="what a pixel of the coordinates is, if not that of the micrographs or what their table says",
        gt=0,
    )

    @property
    def picked(self) -> str:
        """Where the coordinates are."""
        return self.coordinates or self.micrographs

    @property
    def image_px(self) -> int:
        """Side of the images."""
        return self.scale_to_px or self.box_px

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check sizes, and that there are positions in these micrographs."""
        if self.box_px % 2 or self.image_px % 2:
            name, value = ("--box-px", self.box_px) if self.box_px % 2 else ("--scale-to-px", self.image_px)
            raise ParameterError(f"{name} {value} is odd, and images need even sides; give {value - 1} or {value + 1}")
        if self.image_px > self.box_px:
            raise ParameterError(
                f"--scale-to-px {self.image_px} is more than --box-px {self.box_px}; give less, or none"
            )
        if inputs.awaited(self.micrographs) or inputs.awaited(self.picked):
            return
        self.recipe(self.pixel_size)
        sides = [self.table[name] for name in ("height", "width") if name in self.table]
        if len(sides) == 2 and self.edges != "pad" and 0 < max(map(min, zip(*sides, strict=True))) < self.box_px:
            raise ParameterError(
                f"--box-px {self.box_px} is more than the {sides[1][0]} x {sides[0][0]} pixels of a micrograph; "
                "give less"
            )
        count = len(self.positions.micrograph)
        for line in self._said:
            warn(line)
        if not count:
            raise ParameterError(f"{self.picked} holds no positions of particles; pick them first")

    def size_of(self, name: str) -> Size | None:
        """Return how many micrographs there are, and of what size."""
        from cloudem.io.storage.location import is_local

        if name == "coordinates":
            return Size(len(self.positions.micrograph), (), self.pixel_size, not is_local(self.picked))
        table = self.table
        shape = tuple(int(table[name][0]) for name in ("height", "width")) if "height" in table else ()
        return Size(len(table), shape, self.pixel_size, not is_local(self.micrographs))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage: micrographs are independent of each other."""
        from cloudem.io.storage.location import is_remote

        of = sizes["micrographs"]
        known = sizes["coordinates"].count if "coordinates" in sizes else 0
        stated = known or self._known_positions()
        with_picks = stated or USUAL_PARTICLES * of.count
        each = with_picks / max(of.count, 1)
        image = self.image_px**2 * {"float16": 2, "float32": 4}[self.dtype]
        boxes = each * self.box_px**2
        stage = Stage(
            "extract", of.count, "micrographs", parallel=True,
            cpu_s=READ_S * of.pixels + (CUT_S + (SHRINK_S if self.image_px < self.box_px else 0)) * boxes + 0.01,
            task_bytes=int(8 * of.pixels + each * (4 * self.image_px**2 + image)) + 32 * MIB,
            read_bytes=2.0 * of.pixels, written_bytes=30 * each if self.on_reading else each * image,
        )  # fmt: skip
        pixel_size = of.pixel_size * self.box_px / self.image_px
        made = Size(int(with_picks), (self.image_px,) * 2, pixel_size, is_remote(self.out))
        stored = int(150 * with_picks)
        supposed = "" if stated else f"; {USUAL_PARTICLES} in each are assumed"
        notes = (f"{int(with_picks):,} positions in {of.count:,} micrographs{supposed}",)
        return Work((stage,), 300 * MIB + int(1000 * with_picks), stored_bytes=stored, makes={"": made}, notes=notes)

    def _known_positions(self) -> int:
        try:
            return len(self.positions.micrograph)
        except CloudemError:  # a step before is to make them
            return 0

    @cached_property
    def table(self) -> Micrographs:
        """The micrographs."""
        from cloudem.io.micrographs.tables import read_micrograph_table

        table = read_micrograph_table(self.micrographs)
        table.require("micrograph", "image", "pixel_size")
        if not len(table):
            raise InconsistentDataError(f"{self.micrographs} holds no micrographs; wait for some, or import them")
        return table

    @cached_property
    def pixel_size(self) -> float:
        """Of the micrographs, Å: that of the first one of use; others have to have the same."""
        import numpy as np

        sizes = self.table["pixel_size"]
        good = np.isfinite(sizes) & (sizes > 0)
        if not good.any():
            raise InconsistentDataError(f"{self.micrographs} does not say what a pixel is; import with --pixel-size-A")
        return float(sizes[np.argmax(good)])

    @cached_property
    def positions(self) -> Positions:
        """Where particles lie, as the inputs say now."""
        from cloudem.jobs.extract_tables import positions_of

        return positions_of(self.picked, self.table, self.micrograph_pixel_size_A, self._said.append)

    @cached_property
    def _said(self) -> list[str]:
        """What is to be said of the positions."""
        return []

    def recipe(self, pixel_size: float) -> Any:
        """Return how boxes become images (`cloudem.kernels.boxes.BoxRecipe`), for micrographs of a pixel size in Å.

        Raises
        ------
        ParameterError
            The circle leaves no background.
        """
        from cloudem.kernels.background import background
        from cloudem.kernels.boxes import BoxRecipe

        length = self.box_px * pixel_size
        share = 0.9 if self.background_diameter_A is None else self.background_diameter_A / length
        background(self.image_px, share * self.image_px)
        return BoxRecipe(self.box_px, self.image_px, share, -1.0 if self.contrast == "dark" else 1.0)

    def settings(self, url: str) -> ExtractionSettings:
        """Return how micrographs are treated, of results that go to a URL."""
        from cloudem.io.storage.location import absolute, join
        from cloudem.jobs.extract_tasks import ExtractionSettings

        return ExtractionSettings(
            absolute(join(url, PIXELS)), self.recipe(self.pixel_size), self.dtype, not self.on_reading,
            self.edges == "pad", self.min_distance_A or 0.0, self.hot_sigma, self.pixel_size,
        )  # fmt: skip

    def growing(self, url: str) -> Growing:
        """Return the micrographs that there are now, each with its positions."""
        from cloudem.jobs.extract_tables import entries_of
        from cloudem.jobs.extract_tasks import extract_particles

        entries = entries_of(self.positions, self.table)
        facts = {"positions": f"{len(self.positions.micrograph):,}"}
        return Growing(
            [each.identity for each in entries], entries, extract_particles, (self.settings(url),),
            stage="extract", facts=facts,
        )  # fmt: skip

    def prepare(self, context: Context) -> None:
        """Make the store that images are written into."""
        from cloudem.io.growing_store import begin_growing_store
        from cloudem.jobs.provenance import job_record

        settings = self.settings(context.url)
        begin_growing_store(
            settings.store, settings.recipe, pixel_size=self.pixel_size * self.box_px / self.image_px,
            dtype=self.dtype, copied=settings.copied, attributes={"date": job_record(self)["date"]},
            guard=context.check,
        )  # fmt: skip

    def discard(self, guard: Callable[[], None]) -> None:
        """Delete the images, and then what says that they were there."""
        from cloudem.io.storage.groups import delete_group

        guard()
        delete_group(self.out, PIXELS)
        super().discard(guard)

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the table of the particles that were cut."""
        import numpy as np

        from cloudem.io.growing_store import check_rows
        from cloudem.io.particle_store import RESULT_TABLE, ImageSource, open_particles
        from cloudem.io.storage.groups import read_attributes
        from cloudem.io.storage.relative import relative
        from cloudem.io.storage.tables import table_to_arrays
        from cloudem.jobs.extract_tables import fates_of, particle_table

        particles = particle_table(self.positions, self.table, found, new_ctf=self.new_ctf)
        fates = fates_of(found, self.table)
        for line in fates.lines:
            context.progress.message(line)
        if not len(particles):
            raise ParameterError(f"no particle could be extracted: {'; '.join(fates.lines) or 'none was picked'}")
        check_rows(particles["store_row"], particles["micrograph"].tolist())
        store = self.settings(context.url).store
        date = str((read_attributes(store, "") or {}).get("date", ""))
        source = ImageSource(store, date, relative(store, context.url))
        arrays, attributes = table_to_arrays(particles)
        context.write(RESULT_TABLE, arrays, {**attributes, "images": source._asdict()})
        if "defocus_u" not in particles:
            context.progress.warning("the micrographs have no CTF; estimate it, and extract from the results of that")
        context.progress.message(f"{len(particles):,} of {len(found['each_fate']):,} positions are particles now")
        opened = open_particles(context.url)
        images, length = example_images(opened), opened.box * opened.pixel_size
        shown = {"example_images": images, "example_pixel_size_A": np.array([length / images.shape[1]])}
        said = {
            "box": self.image_px, "pixel_size_A": opened.pixel_size, "particle_count": len(particles),
            "hot_pixels": int(np.sum(found["hot"])), "notes": list(fates.lines),
        }  # fmt: skip
        return {**fates.arrays, **shown}, said


def example_images(store: Any) -> Any:
    """Return images from all over a store for looking, low-passed, (k, m, m)."""
    import numpy as np

    from cloudem.algorithms.coarse import coarse_images, coarse_side
    from cloudem.algorithms.resolution import low_pass_curve

    numbers = np.unique(np.linspace(0, len(store) - 1, EXAMPLES).astype(np.int64))
    curve = low_pass_curve(store.box, store.pixel_size, EXAMPLE_A)
    return coarse_images(store.read_images(numbers), coarse_side(store.box, EXAMPLE_SIDE), curve)
