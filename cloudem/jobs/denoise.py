"""``cloudem denoise``: micrographs that can be looked at and picked, never refined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob
from cloudem.jobs.mapping import Found
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, Section, histogram_of, table_of

if TYPE_CHECKING:
    from cloudem.model.micrographs import Micrographs

PIXEL_S = 1.3e-7
"""A pixel: CPU-seconds, measured."""

TRAINING_S = 40.0
"""Training of a network: CPU-seconds, measured."""

RESOLUTION = Column("denoised_resolution_A", "resolution", "Å", ".1f", meaning="finest shell that both sums share")
MADE_UP = Column(
    "hallucination", "made of noise", "%", ".3f", 100,
    "power of what the same treatment makes of noise of the same spectrum, as a share of that noise",
)  # fmt: skip
NOT_DENOISED = table_of(
    "Not denoised", Column("left_out_micrograph", "micrograph"), Column("left_out_reason", "reason"), rows=200
)


class Denoise(GrowingJob):
    """Declaration of ``cloudem denoise``."""

    name: ClassVar[str] = "denoise"
    summary: ClassVar[str] = "Denoise micrographs by their even and odd frames, for looking and picking alone."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem denoise ctf --out denoised",
        "cloudem pick denoised --diameter-A 130 --out picks",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("micrographs",)}
    grows: ClassVar[tuple[str, ...]] = ("micrographs",)
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("picking:gallery", {"title": "Denoised micrographs"}),
        histogram_of("denoised_resolution_A", RESOLUTION, "Resolution of what is kept"),
        histogram_of("hallucination", MADE_UP, "What is made of noise"),
        NOT_DENOISED,
        COST,
        PARAMETERS,
        PROVENANCE,
    )

    micrographs: Place = parameter(
        meaning="results of a job that hold micrographs with even and odd sums", positional=True, reads=("micrographs",)
    )
    method: Literal["wiener", "noise2noise"] = parameter(
        "wiener", meaning="a Wiener filter by shells, or a network that learns one sum from the other; it needs"
        " cloudem[torch]"
    )  # fmt: skip
    learn_from: int = parameter(12, meaning="most micrographs that a network is trained on", ge=1)
    seed: int = parameter(0, meaning="random seed of the training, and of the noise that is tried", ge=0)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the table of micrographs, and that there is PyTorch where it is needed."""
        if self.method == "noise2noise" and not find_spec("torch"):
            raise ParameterError("--method noise2noise needs PyTorch: pip install 'cloudem[torch]'")
        if not inputs.awaited(self.micrographs):
            self.table()

    def table(self) -> Micrographs:
        """Return the micrographs that there are now."""
        from cloudem.io.micrographs.tables import read_micrograph_table

        table = read_micrograph_table(self.micrographs)
        table.require("micrograph", "image", "pixel_size", "height", "width")
        return table

    def size_of(self, name: str) -> Size | None:
        """Return how many micrographs there are, and the size of the first."""
        from cloudem.io.storage.location import is_local

        table = self.table()
        shape = (int(table["height"][0]), int(table["width"][0])) if len(table) else ()
        pixel_size = float(table["pixel_size"][0]) if len(table) else 0.0
        return Size(len(table), shape, pixel_size, not is_local(self.micrographs))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage."""
        size = sizes["micrographs"]
        stage = Stage(
            "micrographs", size.count, "micrographs", PIXEL_S * size.pixels, parallel=True,
            task_bytes=round(70 * size.pixels), read_bytes=4.0 * size.pixels, written_bytes=2.0 * size.pixels,
        )  # fmt: skip
        train = Stage("train", int(self.method == "noise2noise"), "networks", TRAINING_S)
        stages = (train, stage) if self.method == "noise2noise" else (stage,)
        return Work(stages, base_bytes=300 * MIB, stored_bytes=MIB, makes={"": size})

    def prepare(self, context: Context) -> None:
        """Train the network, unless it is there or none is asked for."""
        from cloudem.io.storage.groups import has_group
        from cloudem.jobs.denoise_tasks import MODEL, trained

        if self.method == "noise2noise" and not has_group(context.url, MODEL):
            trained(self.table(), self.learn_from, self.seed, context)

    def growing(self, url: str) -> Growing:
        """Return the micrographs; those that cannot be denoised stay as they are."""
        from cloudem.io.storage.groups import read_attributes
        from cloudem.jobs.denoise_tasks import MODEL, denoise_micrographs
        from cloudem.jobs.growing import row_keys
        from cloudem.jobs.pick.tasks import pick_entries

        table = self.table()
        digest = ""
        if self.method == "noise2noise":
            digest = str((read_attributes(url, MODEL) or {}).get("digest", "none"))
        return Growing(row_keys(table, digest), pick_entries(table), denoise_micrographs, (url, digest, self.seed))

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the table, in which denoised images stand in front of the recorded ones."""
        import numpy as np

        from cloudem.io.micrographs.tables import write_micrograph_table
        from cloudem.jobs.pick.results import gallery_arrays
        from cloudem.model.table import TEXT

        table = self.table()
        if not len(table):
            write_micrograph_table(context.write, table)
            return {}, {"micrograph_count": 0}
        done = found["reason"] == ""
        recorded = np.array(table["image"].tolist(), TEXT)
        table = table.with_columns(image=np.where(done, found["place"], recorded), recorded_image=recorded)
        write_micrograph_table(context.write, table)
        context.progress.message(f"{int(done.sum()):,} of {len(table):,} micrographs denoised, for looking and picking")
        if not done.all():
            place = int(np.flatnonzero(~done)[0])
            context.progress.warning(
                f"{int((~done).sum()):,} micrographs stay as they are; the first, {table['micrograph'][place]}: "
                f"{found['reason'][place]}"
            )
        none = np.zeros(0, np.float32)
        counts = np.zeros(int(done.sum()), np.int64)
        arrays = {
            "denoised_resolution_A": found["resolution"][done],
            "hallucination": found["hallucination"][done],
            **gallery_arrays(table.take(done), counts, {"each_x": none, "each_y": none}, bright=False),
        }
        if not done.all():
            arrays["left_out_micrograph"] = np.array(table["micrograph"].tolist(), TEXT)[~done]
            arrays["left_out_reason"] = found["reason"][~done]
        return arrays, {"micrograph_count": len(table), "denoised_count": int(done.sum())}
