"""Declaration of ``cloudem correct-motion``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import InconsistentDataError, ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob
from cloudem.jobs.mapping import Found
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import (
    COST,
    GALLERY,
    NETWORK,
    PARAMETERS,
    PROVENANCE,
    SESSION,
    Section,
    histogram_of,
    table_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIXEL_S, PIXEL_LOCAL_S, PIXEL_SHOWN_S, IMAGE_PIXEL_S, MOVIE_S = 1e-8, 3e-9, 1.2e-8, 9e-8, 0.4
"""CPU-seconds of a pixel of a frame; of the same for local motion, and for weights from information; of a pixel of the
images, which are written; and of a movie besides. Measured."""

HELD_BYTES = 1_400_000_000
"""Most bytes of a movie's frames that are kept (`cloudem.io.movies.held`)."""

TOTAL = Column("motion_total_A", "total motion", "Å", ".1f")
BITS = Column("bits", "information", "bit", ",.0f")
LEFT_OUT = table_of("Left out", Column("left_out_movie", "movie"), Column("left_out_reason", "reason"), rows=200)
REASONS = table_of(
    "Not corrected", Column("reason_micrographs", "micrographs", form=",d"), Column("reason", "what and why")
)


def _absolute(text: str) -> str:
    from cloudem.io.storage.location import absolute

    return absolute(text)


class CorrectMotion(GrowingJob):
    """Declaration of ``cloudem correct-motion``."""

    name: ClassVar[str] = "correct_motion"
    summary: ClassVar[str] = "Correct the motion in movies and add their frames up, weighted by dose."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem correct-motion movies --out motion",
        "cloudem correct-motion s3://bucket/movies --bin 2 --out s3://bucket/motion",
        "cloudem correct-motion movies --motion-files Motion --out motion",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("micrographs",)}
    grows: ClassVar[tuple[str, ...]] = ("movies",)
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("motion:tracks"),
        histogram_of("motion_total_A", TOTAL, "Motion", "length of the path over all frames"),
        Section("motion:information"),
        SESSION,
        GALLERY,
        LEFT_OUT,
        REASONS,
        COST,
        NETWORK,
        PARAMETERS,
        PROVENANCE,
    )

    movies: Place = parameter(meaning="movies, results of cloudem import-movies", positional=True, reads=("movies",))
    local: bool = parameter(True, meaning="also correct motion that differs over the micrograph, where it holds")
    weights: Literal["dose", "information", "none"] = parameter(
        "dose",
        meaning="weights of frames at each frequency: dose for the fixed curve of radiation damage where the dose is"
        " known, information for what each frame of the movie is found to show, none for a plain sum",
    )
    bin: float = parameter(
        1.0, meaning="factor by which micrographs are smaller than frames, by leaving out high frequencies", ge=1, le=16
    )
    eer_upsampling: Literal[1, 2, 4] = parameter(
        1, meaning="of EER, pixels of a frame along each side of one of the detector's"
    )
    motion_files: Annotated[str, AfterValidator(_absolute)] | None = parameter(
        None, meaning="folder or URL for RELION's motion files, one for each movie, as its polishing reads them"
    )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check that there are movies."""
        if inputs.awaited(self.movies):
            return
        table = self._table()
        if not len(table):
            raise ParameterError(f"{self.movies} holds no movies; run cloudem import-movies")
        unknown = int((~(table.get("dose_per_frame", 0.0) > 0)).sum())
        if unknown and self.weights == "dose":
            which = "it" if len(table) == 1 else f"{unknown:,} of {len(table):,} movies"
            warn(f"the dose of {which} is not known: frames count alike; import with --dose-per-frame-e-per-A2")

    def _table(self) -> Any:
        from cloudem.io.movies.store import read_movies

        return read_movies(self.movies)

    def size_of(self, name: str) -> Size | None:
        """Return how many movies there are, and the shape of all frames of one."""
        if name != "movies":
            return None
        import numpy as np

        from cloudem.io.storage.location import is_local

        table = self._table()
        if not len(table):
            return Size(remote=not is_local(self.movies))
        frames = table["frames"] // np.maximum(table.get("group", 1), 1)
        shape = int(np.median(frames)), int(np.median(table["height"])), int(np.median(table["width"]))
        return Size(len(table), shape, float(table["pixel_size"][0]), not is_local(self.movies))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the stage and its needs from the shapes of the movies."""
        size = sizes["movies"]
        frames, rows, columns = size.shape if len(size.shape) == 3 else (40, 4096, 4096)
        each = rows * columns
        images = each / self.bin**2
        shown = PIXEL_SHOWN_S if self.weights == "information" else 0.0
        cpu = frames * each * (PIXEL_S + shown + (PIXEL_LOCAL_S if self.local else 0.0))
        cpu += MOVIE_S + images * IMAGE_PIXEL_S
        memory = min(2 * frames * each, HELD_BYTES) + 4 * frames * each // 16 + 60 * each
        stage = Stage(
            "motion", size.count, "movies", cpu, parallel=True, task_items=1, task_bytes=memory,
            read_bytes=0.6 * frames * each, written_bytes=7 * images, spread=1.6,
        )  # fmt: skip
        side = int(rows / self.bin), int(columns / self.bin)
        return Work(
            (stage,),
            base_bytes=300 * MIB,
            stored_bytes=round(7 * images * size.count),
            makes={"": Size(size.count, side, size.pixel_size * self.bin, size.remote)},
            notes=(f"{size.count:,} movies of {frames} frames of {columns} x {rows} pixels",),
        )

    def growing(self, url: str) -> Growing:
        """Return the movies that there are now."""
        from cloudem.jobs.correct_motion.task import MotionOptions, correct_movies
        from cloudem.jobs.growing import row_keys

        table = self._table()
        options = MotionOptions(url, self.local, self.weights, self.bin, self.eer_upsampling, self.motion_files)
        entries = [table.take([row]) for row in range(len(table))]
        facts = {"frames": f"{int(table['frames'].sum()):,}"} if len(table) else {}
        return Growing(row_keys(table), entries, correct_movies, (options,), stage="motion", unit="movies", facts=facts)

    def settled(self, found: Found) -> NDArray[np.bool_]:
        """Return which movies could be read; the others are looked at again, since they may have been completed."""
        settled: NDArray[np.bool_] = found["problem"] == ""
        return settled

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the table of micrographs, and say what could not be corrected."""
        from cloudem.io.micrographs.tables import write_micrograph_table
        from cloudem.jobs.correct_motion.table import micrographs_of, motion_sayings

        movies = self._table()
        if len(found["problem"]) != len(movies):
            raise InconsistentDataError(f"{self.movies} was changed while it was worked on; run the same command again")
        table = micrographs_of(movies, found)
        write_micrograph_table(context.write, table)
        lines, arrays = motion_sayings(movies, found)
        for line in lines:
            context.progress.warning(line)
        good = int((found["problem"] == "").sum())
        context.progress.message(f"{good:,} of {len(table):,} movies corrected into {context.url}")
        counts = {"micrograph_count": len(table), "left_out_count": len(table) - good}
        size = float(found["pixel_size"][found["problem"] == ""][0]) if good else 0.0
        return arrays, {**counts, "pixel_size_A": size}
