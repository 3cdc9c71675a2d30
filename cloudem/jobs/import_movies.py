"""``cloudem import-movies``: movies of a microscope become a table for the jobs that read them; nothing is copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import MissingInputError, ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob
from cloudem.jobs.mapping import Found
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, Section, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.io.movies.sources import SourceMovies
    from cloudem.model.movies import Movies

HEADER_S, TASK_MOVIES = 0.004, 20
"""CPU-seconds of a header, and movies of a task."""

KINDS_FOUND = table_of(
    "Movies by kind",
    Column("kind_movies", "movies", form=",d"),
    Column("kind_format", "format"),
    Column("kind_encoding", "encoding"),
    Column("kind_frames", "frames", form="d"),
    Column("kind_width", "width", "px", "d"),
    Column("kind_height", "height", "px", "d"),
)
LEFT_OUT = table_of("Left out", Column("left_out_movie", "movie"), Column("left_out_reason", "reason"), rows=200)
DOUBTED = table_of("Doubts", Column("doubted_movie", "movie"), Column("doubted_why", "what is odd"), rows=200)


def _absolute(text: str) -> str:
    from cloudem.io.storage.location import absolute

    return absolute(text)


class ImportMovies(GrowingJob):
    """Declaration of ``cloudem import-movies``."""

    name: ClassVar[str] = "import_movies"
    summary: ClassVar[str] = "Import movies (MRC, TIFF, EER) by pattern, folder or table; nothing is copied."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem import-movies 'frames/*.tif' --pixel-size-A 0.83 --voltage-kV 300 --cs-mm 2.7 --gain gain.mrc"
        " --dose-per-frame-e-per-A2 1.2 --out movies",
        "cloudem import-movies Import/job001/movies.star --gain gain.mrc --out movies",
        "cloudem import-movies 's3://bucket/grid1/*.eer' --pixel-size-A 0.73 --voltage-kV 300 --cs-mm 2.7"
        " --dose-per-frame-e-per-A2 0.04 --eer-frame-dose-e-per-A2 1 --out s3://bucket/movies",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("movies",)}
    grows: ClassVar[tuple[str, ...]] = ("movies",)
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (KINDS_FOUND, LEFT_OUT, DOUBTED, COST, PARAMETERS, PROVENANCE)

    movies: Annotated[str, AfterValidator(_absolute)] = parameter(
        meaning="movies: a pattern in quotes ('frames/*.tif'), a folder, a RELION .star, a cryoSPARC .cs or a SerialEM"
        " .mdoc file; paths or URLs",
        positional=True,
        reads=("movies", "table"),
    )
    pixel_size_A: float | None = parameter(
        None, meaning="pixel size of the frames; if none, that of the table, the mdoc files or the movies", gt=0
    )
    voltage_kV: float | None = parameter(None, meaning="acceleration voltage; if none, that of the table or mdoc", gt=0)
    cs_mm: float | None = parameter(None, meaning="spherical aberration; if none, that of the table", ge=0)
    amplitude_contrast: float | None = parameter(
        None, meaning="fraction of amplitude contrast; if none, that of the table, or 0.1", ge=0, le=1
    )
    dose_per_frame_e_per_A2: float | None = parameter(
        None, meaning="electrons of one frame as recorded, of EER of one raw frame", gt=0
    )
    pre_exposure_e_per_A2: float | None = parameter(None, meaning="electrons before the first frame", ge=0)
    gain: Place | None = parameter(None, meaning="gain reference, an MRC or TIFF file, or a .gain file of a Falcon")
    gain_rotation: Literal[0, 1, 2, 3] = parameter(
        0, meaning="quarter turns of the gain reference, clockwise, as RELION's --gain_rot"
    )
    gain_flip: Literal[0, 1, 2] = parameter(
        0, meaning="flip of the gain reference after turning: 1 upside down, 2 left to right, as RELION's --gain_flip"
    )
    defects: Place | None = parameter(
        None, meaning="bad pixels: lines 'x y width height', a list of SerialEM, or an image with ones where they are"
    )
    eer_group: int | None = parameter(None, meaning="raw frames of EER that are added up to one frame", ge=1)
    eer_frame_dose_e_per_A2: float | None = parameter(
        None, meaning="the same as electrons of a frame; needs the dose of a raw frame", gt=0
    )
    project_folder: Place | None = parameter(
        None,
        meaning="folder or URL that names in a table start from; if none, the working directory, then the"
        " folder of the table and those above it",
    )

    least_age_s: float = parameter(
        0.0, meaning="leave out files that changed less than that ago: they may still be being written", ge=0
    )
    marker: str = parameter(
        "", meaning="leave out movies beside which there is no file of their name and this, as .done"
    )

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check the list, the gain reference and the first movie."""
        if self.eer_group is not None and self.eer_frame_dose_e_per_A2 is not None:
            raise ParameterError("--eer-group and --eer-frame-dose-e-per-A2 say the same; give one of them")
        if inputs.awaited(self.movies):
            return
        from cloudem.io.movies.checking import check_header

        urls, gains = self.source.movies["movie"].tolist(), self.gains(self.source.movies)
        shapes = self.gain_shapes(self.source.movies)
        some = sorted({0, len(urls) // 2, len(urls) - 1})
        headers = [check_header(urls[place], 0, shapes.get(gains[place])) for place in some]
        first = next((each for each in headers if not each.problem), headers[0])
        if first.problem and first.frames:
            raise ParameterError(
                f"{urls[0]} {first.problem}; turn it with --gain-rotation, or give the one of this detector"
            )
        if headers[0].problem:
            warn(f"the first movie, {urls[0]}, {headers[0].problem}")
        for line in self.source.notes:
            warn(line)
        if first.problem:  # so that nothing is known of the others; they are looked at all the same
            return
        table = self.completed(self.source, first.header_pixel_size).movies
        for place in sorted(set(table["defects"].tolist()) - {""}):
            from cloudem.io.movies.references import read_defects

            read_defects(place, (first.height, first.width))

    def size_of(self, name: str) -> Size | None:
        """Return how many movies there are; of their headers, that of the first."""
        if name != "movies":
            return None
        from cloudem.io.movies.checking import check_header
        from cloudem.io.storage.location import is_local

        first = check_header(self.source.movies["movie"].tolist()[0])
        shape = (max(first.frames // (self.eer_group or 1), 1), first.height, first.width) if first.height else ()
        size = self.pixel_size_A or self.source.pixel_size or first.header_pixel_size
        return Size(len(self.source.movies), shape, size, not is_local(self.movies))

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage: headers are read, pixels are not."""
        size = sizes["movies"]
        stage = Stage(
            "headers", size.count, "movies", HEADER_S, parallel=True, task_items=TASK_MOVIES, read_bytes=2.0**16
        )
        notes = (
            f"{size.count:,} movies; the first has frames of {' x '.join(map(str, size.shape[:0:-1])) or '?'} pixels",
        )
        base = 250 * MIB + 4000 * size.count
        return Work((stage,), base_bytes=base, stored_bytes=400 * size.count, makes={"": size}, notes=notes)

    def growing(self, url: str) -> Growing:
        """Return the movies that there are now; their headers are read by tasks."""
        from cloudem.io.movies.checking import check_headers

        source = self.source
        shapes = self.gain_shapes(source.movies)
        gains = [shapes.get(gain) for gain in self.gains(source.movies)]
        urls = source.movies["movie"].tolist()
        entries = list(zip(urls, source.frames.tolist(), gains, strict=True))
        keys = [f"{url} {stated}" for url, stated, _ in entries]
        arguments = (self.least_age_s, self.marker)
        return Growing(keys, entries, check_headers, arguments, TASK_MOVIES, "headers", "movies")

    def settled(self, found: Found) -> NDArray[np.bool_]:
        """Return which movies can be used; the others are looked at again, since they may have been completed."""
        settled: NDArray[np.bool_] = found["problem"] == ""
        return settled

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the table of the movies that can be used, and say why the others cannot."""
        import numpy as np

        from cloudem.io.movies.sources import below_shared_folder
        from cloudem.io.movies.store import MOVIE_TABLE
        from cloudem.io.storage.tables import table_to_arrays
        from cloudem.jobs.movie_table import (
            kinds_of,
            movie_table,
            movies_in_words,
            sayings,
            short_of_a_group,
            with_those_gone,
        )
        from cloudem.model.table import TEXT

        source = self.source
        names = source.movies["movie"]
        if (found["problem"] == "").any():
            found = short_of_a_group(self, self.completed(source, float(found["header_pixel_size"].max())), found)
        good = found["problem"] == ""
        if not good.any():
            raise MissingInputError(
                f"none of {movies_in_words(len(names))} can be used; the first, {names[0]}, {found['problem'][0]}"
            )
        sizes = found["header_pixel_size"][good]
        table, optics_notes = movie_table(self, self.completed(source, float(sizes[0])), found, good)
        table, gone = with_those_gone(context.url, table, names.tolist())
        if gone:
            context.progress.message(f"{movies_in_words(gone)} imported before and not there now: kept in the table")
        context.write(MOVIE_TABLE, *table_to_arrays(table))
        kinds = kinds_of(table)
        odd = good & (found["doubts"] != "")
        for line in (*sayings(names.tolist(), found, good, kinds), *optics_notes):
            context.progress.warning(line)
        for count, kind, encoding, frames, width, height in zip(*kinds.values(), strict=True):
            each = f"{frames} frame{'s' if frames > 1 else ''} of {width} x {height} px"
            context.progress.message(f"{movies_in_words(int(count))}: {kind}, {encoding}, {each}")
        context.progress.message(f"{good.sum():,} of {len(names):,} movies imported into {context.url}")
        below = np.array(below_shared_folder(names.tolist()), TEXT)
        arrays = dict(kinds)
        if not good.all():
            arrays |= {"left_out_movie": below[~good], "left_out_reason": found["problem"][~good]}
        if odd.any():
            arrays |= {"doubted_movie": below[odd], "doubted_why": found["doubts"][odd]}
        counts = {"movie_count": len(table), "left_out_count": int((~good).sum())}
        return arrays, {**counts, "pixel_size_A": float(table["pixel_size"][0])}

    def completed(self, source: SourceMovies, header_pixel_size: float) -> SourceMovies:
        """Return the movies with what options say; see `cloudem.jobs.movie_table.with_options`."""
        from cloudem.jobs.movie_table import with_options

        return with_options(self, source, header_pixel_size)

    @cached_property
    def source(self) -> SourceMovies:
        """The movies that are imported; listing a bucket takes seconds."""
        from cloudem.io.movies.sources import find_movies

        return find_movies(self.movies, self.project_folder)

    def few(self, count: int) -> Self:
        """Return this job for some of the movies only, evenly spaced in their list."""
        import numpy as np

        source, job = self.source, self.model_copy()
        rows = np.unique(np.linspace(0, len(source.movies) - 1, count).astype(int))
        job.__dict__["source"] = source._replace(movies=source.movies.take(rows), frames=source.frames[rows])
        return job

    def gains(self, movies: Movies) -> list[str]:
        """Return the gain reference of each movie, empty for none: that of the option, or else that of the table."""
        if self.gain is not None or "gain" not in movies:
            return [self.gain or ""] * len(movies)
        return [str(each) for each in movies["gain"].tolist()]

    def gain_shapes(self, movies: Movies) -> dict[str, tuple[int, int]]:
        """Return rows and columns of each gain reference, as it is turned."""
        from cloudem.io.movies.references import read_gain

        images = {place: read_gain(place).image for place in sorted(set(self.gains(movies)) - {""})}
        return {place: each.shape[:: -1 if self.gain_rotation % 2 else 1] for place, each in images.items()}
