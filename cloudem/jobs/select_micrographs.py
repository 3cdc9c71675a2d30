"""``cloudem select-micrographs``: those that are good enough go on; the others are put aside, each with a reason."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cloudem.cloud.planning.work import MIB, Size, Stage, Work
from cloudem.errors import MissingColumnError, ParameterError
from cloudem.jobs.base import Context, Inputs
from cloudem.jobs.growing import Growing, GrowingJob, row_keys
from cloudem.jobs.mapping import Found
from cloudem.jobs.page_choices import PageChoice
from cloudem.jobs.parameters import Kind, Place, parameter
from cloudem.model.columns import Column
from cloudem.report.declaration import COST, GALLERY, PARAMETERS, PROVENANCE, SESSION, Section, table_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cloudem.model.micrographs import Micrographs

LIMITS: dict[str, tuple[str, bool, str]] = {
    "max_motion_A": ("motion_total", False, "moves {value:.0f} Å, more than {limit:g} Å"),
    "max_ctf_resolution_A": ("ctf_fit_resolution", False, "its CTF fits to {value:.1f} Å only, {limit:g} Å are needed"),
    "min_ctf_score": ("ctf_fit_score", True, "its CTF fits with a score of {value:.3f}, {limit:g} is needed"),
    "min_defocus_A": ("defocus", True, "has a defocus of {value:.0f} Å, less than {limit:g} Å"),
    "max_defocus_A": ("defocus", False, "has a defocus of {value:.0f} Å, more than {limit:g} Å"),
    "max_astigmatism_A": ("astigmatism", False, "has an astigmatism of {value:.0f} Å, more than {limit:g} Å"),
    "max_ice": ("ice_ring_density", False, "has an ice ring of {value:.2f}, more than {limit:g}"),
    "min_bits": ("bits", True, "holds {value:.0f} bits, fewer than {limit:g}"),
}
"""Option -> what it is about, whether that has to be at least so much (else at most), and what is said if it is not."""

ASIDE = table_of("Put aside", Column("aside_micrograph", "micrograph"), Column("aside_reason", "reason"), rows=200)
REASONS = table_of("Reasons", Column("reason_count", "micrographs", form=",d"), Column("reason_words", "reason"))


class SelectMicrographs(GrowingJob):
    """Declaration of ``cloudem select-micrographs``."""

    name: ClassVar[str] = "select_micrographs"
    summary: ClassVar[str] = "Select micrographs by motion, CTF, defocus, ice or information."
    examples: ClassVar[tuple[str, ...]] = (
        "cloudem select-micrographs ctf --max-ctf-resolution-A 6 --max-motion-A 60 --out good",
        "cloudem select-micrographs ctf --min-defocus-A 5000 --max-defocus-A 25000 --remove bad.txt --out good",
    )
    makes: ClassVar[Mapping[str, tuple[Kind, ...]]] = {"": ("micrographs",)}
    grows: ClassVar[tuple[str, ...]] = ("micrographs", "keep", "remove")
    page_choice: ClassVar[PageChoice | None] = PageChoice(
        "micrographs", (*LIMITS, "keep", "remove"), ("keep", "remove")
    )
    columns: ClassVar[tuple[Column, ...]] = ()
    sections: ClassVar[tuple[Section, ...]] = (SESSION, REASONS, GALLERY, ASIDE, COST, PARAMETERS, PROVENANCE)

    micrographs: Place = parameter(
        meaning="results of a job that hold micrographs", positional=True, reads=("micrographs",)
    )
    max_motion_A: float | None = parameter(None, meaning="path that the specimen moved, at most", gt=0)
    max_ctf_resolution_A: float | None = parameter(None, meaning="resolution to which the CTF fits, at most", gt=0)
    min_ctf_score: float | None = parameter(None, meaning="score of the CTF fit, at least")
    min_defocus_A: float | None = parameter(None, meaning="mean defocus, at least")
    max_defocus_A: float | None = parameter(None, meaning="mean defocus, at most")
    max_astigmatism_A: float | None = parameter(None, meaning="difference of the two defoci, at most", ge=0)
    max_ice: float | None = parameter(None, meaning="ice-ring density, at most")
    min_bits: float | None = parameter(None, meaning="information of a micrograph, at least", ge=0)
    keep: Place | None = parameter(
        None, meaning="text file with names of micrographs, a line each, that go on whatever the limits say"
    )
    remove: Place | None = parameter(None, meaning="the same of micrographs that are put aside whatever the limits say")

    def check(self, inputs: Inputs, warn: Callable[[str], None]) -> None:
        """Check that the columns are there that the limits are about."""
        for low, high in (("min_defocus_A", "max_defocus_A"),):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least >= most:
                raise ParameterError(f"--min-defocus-A is {least:g} and --max-defocus-A {most:g}: nothing lies between")
        if inputs.awaited(self.micrographs):
            return
        table = self._table()
        for option, limit in self._limits().items():
            if _values(table, LIMITS[option][0]) is None:
                raise MissingColumnError(
                    f"--{option.replace('_', '-')} {limit:g}: the micrographs of {self.micrographs} have no "
                    f"{LIMITS[option][0]}; run the job that makes it first, or leave the option out"
                )
        known = set(table["micrograph"].tolist())
        for place in (self.keep, self.remove):
            missing = sorted(self._names(place) - known)
            if missing:
                more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
                warn(f"{place} names {missing[0]}{more}, not among the micrographs")

    def work(self, sizes: Mapping[str, Size]) -> Work:
        """Return the one stage: only the table is read."""
        size = sizes["micrographs"]
        stage = Stage("micrographs", size.count, "micrographs", 1e-5)
        return Work((stage,), base_bytes=250 * MIB, stored_bytes=500 * size.count, makes={"": size})

    def growing(self, url: str) -> Growing:
        """Return the micrographs, each with its row and whether lists name it."""
        table = self._table()
        listed = lists_of(table, self._names(self.keep), self._names(self.remove))
        keys = [f"{key} {said}" for key, said in zip(row_keys(table), listed, strict=True)]
        limits = self._limits()
        entries = micrograph_entries(table, limits, listed)
        return Growing(keys, entries, judge_micrographs, (limits,), size=5000)

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        """Write the table of those that go on."""
        from collections import Counter

        import numpy as np

        from cloudem.io.micrographs.tables import write_micrograph_table
        from cloudem.model.table import TEXT

        table, reasons = self._table(), found["reason"]
        good = reasons == ""
        write_micrograph_table(context.write, table.take(good))
        counts = Counter(found["kind"][~good].tolist()).most_common()
        for kind, count in counts:
            context.progress.message(f"{count:,} put aside: {kind}")
        context.progress.message(f"{good.sum():,} of {len(table):,} micrographs go on")
        arrays: dict[str, NDArray[Any]] = {}
        if not good.all():
            arrays = {
                "aside_micrograph": table["micrograph"][~good],
                "aside_reason": reasons[~good],
                "reason_count": np.array([count for _, count in counts]),
                "reason_words": np.array([kind for kind, _ in counts], TEXT),
            }
        return arrays, {"micrograph_count": int(good.sum()), "aside_count": int((~good).sum())}

    def _table(self) -> Micrographs:
        from cloudem.io.micrographs.tables import read_micrograph_table

        return read_micrograph_table(self.micrographs)

    def _limits(self) -> dict[str, float]:
        return {option: float(value) for option in LIMITS if (value := getattr(self, option)) is not None}

    @staticmethod
    def _names(place: str | None) -> set[str]:
        from cloudem.io.storage.location import read_bytes

        raw = read_bytes(place) if place else None
        return {line.strip() for line in (raw or b"").decode(errors="replace").splitlines() if line.strip()}


def _values(table: Micrographs, name: str) -> NDArray[np.float64] | None:
    """Return what a limit is about, of each micrograph; None where the table does not have it."""
    if name in ("defocus", "astigmatism"):
        if "defocus_u" not in table or "defocus_v" not in table:
            return None
        u, v = table["defocus_u"], table["defocus_v"]
        found: NDArray[np.float64] = 0.5 * (u + v) if name == "defocus" else abs(u - v)
        return found
    return table[name].astype(float) if name in table else None


def lists_of(table: Micrographs, kept: Collection[str], removed: Collection[str]) -> list[str]:
    """Return what lists say of each micrograph: ``keep``, ``remove``, or nothing."""
    names = table["micrograph"].tolist()
    return ["keep" if name in kept else "remove" if name in removed else "" for name in names]


def micrograph_entries(
    table: Micrographs, limits: Collection[str], listed: Sequence[str]
) -> list[tuple[dict[str, float], str, str]]:
    """Return what `judge_micrographs` needs to know of each micrograph.

    Parameters
    ----------
    table
        Of micrographs.
    limits
        Options of `LIMITS` that are given.
    listed
        What lists say of each (`lists_of`).
    """
    values = {LIMITS[option][0]: _values(table, LIMITS[option][0]) for option in limits}
    known = {name: found.tolist() for name, found in values.items() if found is not None}
    rows = [{name: found[row] for name, found in known.items()} for row in range(len(table))]
    problems = table["problem"].tolist() if "problem" in table else [""] * len(table)
    return list(zip(rows, problems, listed, strict=True))


def judge_micrographs(entries: list[tuple[dict[str, float], str, str]], limits: Mapping[str, float]) -> Found:
    """Return why each micrograph is put aside, empty if it goes on: ``reason``, and without figures ``kind``."""
    import numpy as np

    from cloudem.model.table import TEXT

    found = [_judged(*each, limits) for each in entries]
    return {
        "reason": np.array([reason for reason, _ in found], TEXT),
        "kind": np.array([kind for _, kind in found], TEXT),
    }


def _judged(values: Mapping[str, float], problem: str, listed: str, limits: Mapping[str, float]) -> tuple[str, str]:
    if listed:
        return ("", "") if listed == "keep" else ("is in the list --remove", "is in the list --remove")
    if problem:
        return problem, "an earlier step found a problem"
    for option, limit in limits.items():
        name, least, words = LIMITS[option]
        value = values.get(name, float("nan"))
        if not (value >= limit if least else value <= limit):  # also what is not known
            what = f"--{option.replace('_', '-')} {limit:g}"
            return (
                (words.format(value=value, limit=limit), what) if value == value else (f"its {name} is not known", what)
            )
    return "", ""
