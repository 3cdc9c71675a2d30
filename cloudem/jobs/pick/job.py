"""``cloudem pick``: particles are found in micrographs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob
from cloudem.jobs.mapping import Found
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, SESSION, Section, histogram_of, table_of

if TYPE_CHECKING:
    from cloudem.model.micrographs import Micrographs

PIXEL_S, REDUCED_PIXEL_S = 1.4e-8, 1.5e-7
"""Reading and reducing a pixel, and picking in a pixel of the reduced image: CPU-seconds, measured."""

TEMPLATE_FACTOR = 20.0
"""Picking with templates takes so many times as long."""

TRAINING_S = 65.0
"""Training of a network: CPU-seconds, measured."""

LEARN_FACTOR = 6.0
"""Learning looks at an image as long as picking in so many."""

PICKS = Column("pick_count", "picks", form=",d", meaning="Picks in each micrograph.")
MASKED = Column("masked_fraction", "left out", "%", ".1f", 100, "area that is junk, or that no frame has seen")
NOTHING_PICKED = table_of(
    "Micrographs without picks", Column("empty_micrograph", "micrograph"), Column("empty_reason", "reason"), rows=200
)


def _absolute(text: str) -> str:
    from cloudem.io.storage.location import absolute

    return absolute(text)


class Pick(GrowingJob):
    """Declaration of ``cloudem pick``."""

    name: ClassVar[str] = "pick"
    summary: ClassVar[str] = "Find particles in micrographs, without marks or with a few; the threshold is automatic."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem pick ctf --diameter-A 130 --out picks",
        "cloudem pick ctf --diameter-A 120 --largest-diameter-A 250 --out picks",
        "cloudem pick ctf --diameter-A 130 --template reference.mrc --out picks",
        "cloudem pick ctf --diameter-A 130 --learned --train-on 'marks/*.csv' --out picks",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("micrographs", "coordinates")}
    grows: ClassVar[tuple[str, ...]] = ("micrographs",)
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("picking:gallery"),
        Section("picking:scores"),
        SESSION,
        histogram_of("pick_count", PICKS, "Picks per micrograph"),
        histogram_of("masked_fraction", MASKED, "Area left out"),
        NOTHING_PICKED,
        COST,
        PARAMETERS,
        PROVENANCE,
    )

    micrographs: Place = parameter(
        meaning="results of a job that hold micrographs", positional=True, reads=("micrographs",)
    )
    diameter_A: float = parameter(meaning="diameter of the particles, to a fifth or so", gt=0)
    largest_diameter_A: float | None = parameter(
        None, meaning="where the diameter is not known, its upper end; the diameter whose particles stand out best is"
        " used", gt=0
    )  # fmt: skip
    contrast: Literal["dark", "bright"] = parameter(
        "dark", meaning="whether protein is dark, as it is recorded, or bright"
    )
    threshold: float | None = parameter(
        None,
        meaning="least score of a pick: 0 is typical of noise, 1 of particles; if none, it follows from the images",
    )
    margin_A: float = parameter(0.0, meaning="least distance of a pick from the edges of the micrograph", ge=0)
    learn_from: int = parameter(24, meaning="most micrographs that the model of particles is learned from", ge=1)
    template: Place | None = parameter(
        None,
        meaning="pick with views of this map (an MRC file or results), or with the averages of cloudem classify2d",
        reads=("volume", "classes"),
    )
    learned: bool = parameter(
        False, meaning="train a small neural network on the surest picks, or on --train-on; needs cloudem[torch]"
    )
    train_on: Annotated[str, AfterValidator(_absolute)] | None = parameter(
        None, meaning="marks to train on, all particles of a few micrographs: results that hold picks, or coordinate"
        " files by name or pattern in quotes", reads=("coordinates", "table", "files")
    )  # fmt: skip
    model: Place | None = parameter(
        None, meaning="results of an earlier pick, whose model is used instead of learning one", reads=("coordinates",)
    )
    seed: int = parameter(0, meaning="random seed", ge=0)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the table of micrographs and the sizes."""
        from importlib.util import find_spec

        from cloudem.algorithms.picking import check_scale
        from cloudem.jobs.pick.stored_models import stored_model

        if self.largest_diameter_A is not None and self.largest_diameter_A < self.diameter_A:
            raise ParameterError("--largest-diameter-A is smaller than --diameter-A; exchange them")
        if self.learned and not find_spec("torch"):
            raise ParameterError("--learned needs PyTorch: pip install 'cloudem[torch]'")
        if self.train_on is not None and not self.learned:
            raise ParameterError("--train-on is of use with --learned alone; give both")
        if self.model is not None and (self.learned or self.template is not None):
            raise ParameterError("--model is a model that was made already; leave out --learned and --template")
        if self.model is not None and not inputs.awaited(self.model):
            stored_model(self.model)
        if inputs.awaited(self.micrographs):
            return
        table = self.table()
        if not len(table):
            return
        for diameter in (self.diameter_A, self.largest_diameter_A or self.diameter_A):
            check_scale((int(table["height"][0]), int(table["width"][0])), float(table["pixel_size"][0]), diameter)

    def table(self) -> Micrographs:
        """Return the micrographs that there are now."""
        from cloudem.io.micrographs.tables import read_micrograph_table

        table = read_micrograph_table(self.micrographs)
        table.require("micrograph", "image", "pixel_size", "height", "width")
        return table

    def diameters(self) -> list[float]:
        """Return the diameters that are tried, Å: steps of a fifth over a range."""
        import numpy as np

        last = self.largest_diameter_A or self.diameter_A
        count = max(1, round(float(np.log(last / self.diameter_A) / np.log(1.25))) + 1)
        return [float(value) for value in np.geomspace(self.diameter_A, last, count)]

    def size_of(self, name: str) -> Size | None:
        """Return how many micrographs there are, and the size of the first."""
        from cloudem.io.storage.location import is_local

        if name != "micrographs":
            return None
        table = self.table()
        shape = (int(table["height"][0]), int(table["width"][0])) if len(table) else ()
        pixel_size = float(table["pixel_size"][0]) if len(table) else 0.0
        return Size(len(table), shape, pixel_size, not is_local(self.micrographs))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return both stages: learning, and picking in each micrograph."""
        from cloudem.algorithms.picking import SAMPLES

        size = sizes["micrographs"]
        small = size.pixels * min(1.0, SAMPLES * max(size.pixel_size, 1e-3) / self.diameter_A) ** 2
        per_pixel = REDUCED_PIXEL_S * (TEMPLATE_FACTOR if self.template else 1)
        picking_s = PIXEL_S * size.pixels + per_pixel * small
        tried = len(self.diameters()) if self.model is None else 0
        learning_s = PIXEL_S * size.pixels + LEARN_FACTOR * per_pixel * small * tried
        task = round(16 * size.pixels + 60 * small)
        learned = min(self.learn_from, size.count) if self.model is None else 0
        learn = Stage("learn", learned, "micrographs", learning_s, read_bytes=2.0 * size.pixels)
        train = Stage("train", int(self.learned), "networks", TRAINING_S)
        pick = Stage(
            "micrographs", size.count, "micrographs", picking_s, parallel=True, task_bytes=task,
            read_bytes=2.0 * size.pixels, written_bytes=10_000,
        )  # fmt: skip
        base = 300 * MIB + round(40 * small * max(learned, 1))
        return Work(
            (learn, train, pick) if self.learned else (learn, pick), base_bytes=base, stored_bytes=MIB, makes={"": size}
        )

    def prepare(self, context: Context) -> None:
        """Learn the model, unless it is there; see `cloudem.jobs.pick.learning`."""
        from cloudem.jobs.pick.learning import prepare_model

        prepare_model(self, context)

    def growing(self, url: str) -> Growing:
        """Return the micrographs; those that are of no use have no picks."""
        from cloudem.jobs.growing import row_keys
        from cloudem.jobs.pick.stored_models import model_digest
        from cloudem.jobs.pick.tasks import pick_entries, pick_micrographs

        table, digest = self.table(), model_digest(url)
        options = (url, digest, self.threshold, self.margin_A, self.seed)
        return Growing(row_keys(table, digest), pick_entries(table), pick_micrographs, options)

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the micrographs and the picks, and say what was found."""
        from cloudem.jobs.pick.results import write_result

        return write_result(self, context, found)
