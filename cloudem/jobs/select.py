"""``cloudem select``: some of the particles, by class, by any column, or by what the data say."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import InconsistentDataError, MissingColumnError, ParameterError
from cloudem.jobs.base import Context, Inputs, Job
from cloudem.jobs.good_classes import DETAIL, IN_CLASS, automatic, class_arrays, of_classes
from cloudem.jobs.page_choices import PageChoice
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, PARAMETERS, PROVENANCE, Section, histogram_of, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.model.particles import Particles

CONDITION = re.compile(r"\s*([A-Za-z_][\w:]*)\s*(<=|>=|==|!=|<|>)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")
RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")


BETTER = ("keep", DETAIL, "noise_evidence")
"""Columns that say which of two duplicates is the better one: the first that is there."""


class Condition(NamedTuple):
    """What a column has to be: its name, how it is compared, and with what."""

    column: str
    sign: str
    value: float

    def holds(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return for which values it holds; for none that is no number."""
        import operator

        signs = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
        found: NDArray[np.bool_] = getattr(operator, signs[self.sign])(values, self.value) & (values == values)
        return found


def conditions_of(text: str) -> list[Condition]:
    """Return the conditions of a text such as ``defocus_u < 30000 and keep >= 0.5``.

    Raises
    ------
    ParameterError
        It says something else.
    """
    found = []
    for part in re.split(r"\band\b|,", text):
        match = CONDITION.fullmatch(part)
        if match is None:
            raise ParameterError(
                f"--where has {part.strip()!r}; write a column, one of < <= > >= == != and a number, several of them "
                "joined by 'and': --where 'defocus_u < 30000 and keep >= 0.5'"
            )
        found.append(Condition(match[1], match[2], float(match[3])))
    return found


def class_numbers(text: str) -> set[int]:
    """Return the numbers of a list such as ``1,3,5-9``.

    Raises
    ------
    ParameterError
        It is none.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        last = int(match[2] or match[1]) if match else 0
        if match is None or not 1 <= int(match[1]) <= last <= 100_000:
            raise ParameterError(f"{part.strip()!r} is no number of a class, and no range of them; write 1,3,5-9")
        found.update(range(int(match[1]), last + 1))
    return found


def class_list(numbers: Collection[int]) -> str:
    """Return the list of numbers that `class_numbers` reads: ``1,3,5-9``."""
    parts: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


class Select(Job):
    """Declaration of ``cloudem select``."""

    name: ClassVar[str] = "select"
    summary: ClassVar[str] = "Select particles by class, by any column, or by what the data say; nothing is deleted."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem select --particles classes --auto --out good",
        "cloudem select --particles classes --classes 1,3,5-9 --out good",
        "cloudem select --particles refine --where 'keep >= 0.5 and defocus_u < 30000' --out good",
        "cloudem select --particles refine --duplicates-within-A 60 --neighbours-within-A 150 --out single",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("particles",)}
    page_choice: ClassVar[PageChoice | None] = PageChoice("particles", ("auto", "classes", "not_classes"))
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (
        Section("classes:sheet"),
        table_of(
            "Kept and left out",
            Column("reason_words", "what becomes of them"),
            Column("reason_images", "images", form=",d"),
            Column("reason_share", "share", "%", ".1f", 100),
        ),
        histogram_of("detail", Column("detail", "detail", form=".1f"), "Detail", "match beyond four waves across"),
        histogram_of(
            "off_centre_A", Column("off_centre_A", "distance", "Å", ".1f"), "Distance from the centre of the image",
            "of the particles that are kept, by their shifts",
        ),
        COST, PARAMETERS, PROVENANCE,
    )  # fmt: skip

    particles: Place = parameter(
        meaning="results of a job that hold particles, or a particle store", reads=("particles",)
    )
    classes: str | None = parameter(None, meaning="numbers of the classes to keep: 1,3,5-9")
    not_classes: str | None = parameter(None, meaning="numbers of classes to leave out")
    where: str | None = parameter(
        None, meaning="conditions on columns, in the units of the particle table: 'keep >= 0.5 and defocus_u < 30000'"
    )
    auto: bool = parameter(False, meaning="leave out classes and images that match poorly, if the data show two groups")
    duplicates_within_A: float | None = parameter(
        None, meaning="of particles nearer to each other than this, shifts included, keep the best one", gt=0
    )
    neighbours_within_A: float | None = parameter(
        None, meaning="leave out particles that have another one, which is kept otherwise, nearer than this", gt=0
    )
    micrograph_pixel_size_A: float | None = parameter(
        None, meaning="what a pixel of the particles' coordinates is; if none, what their table says", gt=0
    )
    report: bool = parameter(True, meaning="write report.html")

    @property
    def says_something(self) -> bool:
        """Whether anything says what to select."""
        given = (self.classes, self.not_classes, self.where, self.duplicates_within_A, self.neighbours_within_A)
        return self.auto or any(value is not None for value in given)

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check what is asked for, and that the table has the columns for it."""
        if not self.says_something:
            raise ParameterError(
                "nothing says what to select; use --auto, --classes, --not-classes, --where, --duplicates-within-A or "
                "--neighbours-within-A"
            )
        for given in (self.classes, self.not_classes):
            if given is not None:
                class_numbers(given)
        conditions = conditions_of(self.where) if self.where is not None else []
        if inputs.awaited(self.particles):
            return
        from cloudem.io.particle_store import open_particles

        table = open_particles(self.particles).particles
        table.require(*(condition.column for condition in conditions))
        for condition in conditions:
            if table[condition.column].dtype.kind not in "iufb":
                raise ParameterError(f"--where: column {condition.column} holds text; conditions compare numbers")
        if self.classes or self.not_classes:
            table.require("class_number")
        if self.auto:
            table.require("class_number", DETAIL)
        if self.duplicates_within_A is not None or self.neighbours_within_A is not None:
            from cloudem.jobs.coordinates import require_coordinates

            require_coordinates(table)

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage, and that the result is a table."""
        size = sizes["particles"]
        stage = Stage("select", size.count, "images", cpu_s=2e-6)
        return Work((stage,), base_bytes=300 * MIB + 1000 * size.count, stored_bytes=120 * size.count, makes={"": size})

    def kept_record(self) -> Mapping[str, Any] | None:
        """Return what the results say of themselves, once there is a result."""
        from cloudem.jobs.report import finished_record

        return finished_record(self.out)

    def check_out(self) -> None:
        """Check that there are no results in ``OUT``."""
        from cloudem.jobs.checks import refuse_any_results

        refuse_any_results(self.out, self.name)

    def tidy(self, context: Context) -> None:
        """Write the report, if that is missing."""
        from cloudem.jobs.report import complete_report

        if self.report:
            complete_report(context.url)

    def run(self, context: Context) -> None:
        """Select, and write the table of what is kept and that of what is not, with the reason for each."""
        import time

        import numpy as np

        from cloudem.io.particle_store import open_particles
        from cloudem.jobs.coordinates import distances_from_centre
        from cloudem.jobs.provenance import job_record
        from cloudem.jobs.report import run_attributes, write_report
        from cloudem.jobs.results import write_particles_of

        began = time.monotonic()
        store = open_particles(self.particles)
        table = store.particles
        with context.progress.stage("select", len(table)) as stage:
            chosen = choose(self, table, context.progress.message, context.progress.warning)
            stage.advance(len(table))
        kept = chosen.reason == 0
        if not kept.any():
            raise ParameterError(none_is_left(chosen, auto=self.auto))
        context.write("", {}, {"kind": "result", **job_record(self)})
        rows = table["store_row"] if "store_row" in table else np.arange(len(table))
        write_particles_of(context, table.take(kept).with_columns(store_row=rows[kept]), store)
        context.write("left_out", {"store_row": rows[~kept], "reason": chosen.reason[~kept]}, {"reasons": chosen.words})
        diameter = diameter_of(self.particles)
        say_what_is_kept(chosen, distances_from_centre(table.take(kept)), diameter, context.progress.message)
        attributes = {
            "box": store.box,
            "pixel_size_A": store.pixel_size,
            "diameter_A": diameter,
            "wall_s": time.monotonic() - began,
            "cpu_s": sum(timing.cpu_s for timing in context.progress.timings()),
            "particle_count": int(np.count_nonzero(kept)),
            "left_out": {words: int(np.count_nonzero(chosen.reason == n)) for n, words in enumerate(chosen.words, 1)},
            "notes": chosen.notes,
            **run_attributes(context.progress, context.executor.traffic()),
        }
        context.write("result", chosen.arrays, attributes)
        if self.report:
            context.progress.message(f"report: {write_report(context.url)}")


class Chosen(NamedTuple):
    """What becomes of each particle.

    Attributes
    ----------
    reason
        0 for those that are kept, otherwise the number of a reason, from 1, (n,).
    words
        The reasons.
    arrays
        For the report.
    notes
        Remarks on how it came about.
    """

    reason: NDArray[np.int16]
    words: list[str]
    arrays: dict[str, NDArray[Any]]
    notes: list[str]


def none_is_left(chosen: Chosen, *, auto: bool) -> str:
    """Say that no particle is left, why, and what to try."""
    import numpy as np

    some = [words for number, words in enumerate(chosen.words, 1) if np.any(chosen.reason == number)]
    why = ", ".join(IN_CLASS.sub("", words) for words in some)
    hint = "; check --diameter-A, and whether protein is bright, where they were classified" if auto else ""
    return f"none of {len(chosen.reason):,} particles is left ({why}); loosen the conditions{hint}"


def say_what_is_kept(
    chosen: Chosen, distances: NDArray[np.float64] | None, diameter: float, tell: Callable[[str], None]
) -> None:
    """Say how many are kept, why others are not, and how far those that are lie from the centre of their images.

    Parameters
    ----------
    chosen
        Gets the last as a note, and the distances as an array for the report.
    distances
        Of the particles that are kept, Å; None where they are not known.
    diameter
        Of the particle, Å; 0 where it is not known.
    tell
        Is told.
    """
    import numpy as np

    from cloudem.jobs.coordinates import off_centre

    for number, words in enumerate(chosen.words, 1):
        tell(f"{np.count_nonzero(chosen.reason == number):,} left out: {words}")
    tell(f"{np.count_nonzero(chosen.reason == 0):,} of {len(chosen.reason):,} particles are kept")
    if distances is not None:
        said = off_centre(distances).words(diameter)
        tell(said)
        chosen.notes.append(f"{said[0].upper()}{said[1:]}.")
        chosen.arrays["off_centre_A"] = distances.astype(np.float32)


def choose(job: Select, table: Particles, tell: Callable[[str], None], warn: Callable[[str], None]) -> Chosen:
    """Decide on each particle of a table; say how, and what is not certain."""
    import numpy as np

    reason, words = np.zeros(len(table), np.int16), list[str]()
    arrays: dict[str, NDArray[Any]] = {}
    notes: list[str] = []

    def leave_out(which: NDArray[np.bool_], why: str) -> None:
        if why not in words:
            words.append(why)
        reason[which & (reason == 0)] = words.index(why) + 1

    number = table.get("class_number", 0)
    if job.classes is not None:
        leave_out(~np.isin(number, sorted(class_numbers(job.classes))), "in another class than those asked for")
    if job.not_classes is not None:
        leave_out(np.isin(number, sorted(class_numbers(job.not_classes))), "in a class that was to be left out")
    for condition in conditions_of(job.where) if job.where is not None else []:
        column, sign, value = condition
        leave_out(~condition.holds(table[column]), f"not {column} {sign} {value:g}")
    averages = class_arrays(job.particles)
    if job.auto:
        near = neighbours_of(table, diameter_of(job.particles), job.micrograph_pixel_size_A, tell)
        automatic(table, averages, leave_out, arrays, tell, notes, near)
    if job.duplicates_within_A is not None or job.neighbours_within_A is not None:
        crowded(job, table, reason, leave_out, warn)
    if averages:
        arrays |= of_classes(averages, number, reason, words)
    counts = np.bincount(reason, minlength=len(words) + 1)
    arrays |= {
        "reason_words": np.array(["kept", *(f"left out: {each}" for each in words)]),
        "reason_images": counts,
        "reason_share": counts / max(len(table), 1),
    }
    return Chosen(reason, words, arrays, notes)


def crowded(
    job: Select,
    table: Particles,
    reason: NDArray[np.int16],
    leave_out: Callable[[NDArray[np.bool_], str], None],
    warn: Callable[[str], None],
) -> None:
    """Leave out duplicates and particles with neighbours, among those that nothing else has left out."""
    import numpy as np

    from cloudem.algorithms.neighbours import duplicates_within, neighbours_within
    from cloudem.jobs.coordinates import places_in_micrographs

    places, micrograph = places_in_micrographs(table, job.micrograph_pixel_size_A, warn)
    for distance, why in (
        (job.duplicates_within_A, "a duplicate of a better one"),
        (job.neighbours_within_A, "has a neighbour"),
    ):
        if distance is None:
            continue
        rows = np.flatnonzero(reason == 0)
        if why == "has a neighbour":
            near = neighbours_within(places[rows], micrograph[rows], distance)
        else:
            better = next((table[name] for name in BETTER if name in table), np.zeros(len(table)))
            near = duplicates_within(places[rows], micrograph[rows], better[rows], distance)
        which = np.zeros(len(table), bool)
        which[rows[near]] = True
        leave_out(which, f"{why} within {distance:g} Å")


def neighbours_of(
    table: Particles, diameter: float, pixel_size: float | None, tell: Callable[[str], None]
) -> NDArray[np.bool_] | None:
    """Return which particles have another one nearer than a diameter, Å, (n,); None where places are not known."""
    from cloudem.algorithms.neighbours import neighbours_within
    from cloudem.jobs.coordinates import places_in_micrographs, require_coordinates

    try:
        require_coordinates(table)
        places, micrograph = places_in_micrographs(table, pixel_size, tell)
    except MissingColumnError:
        return None
    except InconsistentDataError as error:
        tell(f"neighbours are not known: {error}")
        return None
    return neighbours_within(places, micrograph, diameter)


def diameter_of(url: str) -> float:
    """Return the diameter that the job of a result was given, Å; 0 if it says none."""
    from cloudem.io.storage.groups import has_group, read_attributes

    said = (read_attributes(url, "result") or {}) if has_group(url, "result") else {}
    given = (read_attributes(url, "") or {}).get("parameters")
    values = [said.get("diameter_A"), given.get("diameter_A") if isinstance(given, Mapping) else None]
    return next((float(value) for value in values if isinstance(value, int | float) and value > 0), 0.0)
