"""A job over items whose number grows: what is new is done once, and the result is as if all had been there before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from cloudem.errors import OutputExistsError, StoppedError
from cloudem.io.micrographs.tables import read_micrograph_table, read_picks, write_micrograph_table, write_picks
from cloudem.io.storage.groups import has_group, read_group, write_group
from cloudem.jobs.base import Context
from cloudem.jobs.changes import change_of
from cloudem.jobs.growing import EACH, Found, Growing, GrowingJob, row_keys
from cloudem.jobs.parameters import Place, parameter
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.picks import Picks
from cloudem.model.table import TEXT
from tests.jobs.conftest import run

OPTICS = (OpticsGroup("o", 300.0, 2.7e7, 0.1),)
DONE_BY: list[str] = []
STOP_AT: list[str] = []


def measure(entries: Sequence[str], factor: float) -> Found:
    """Find as many picks as the name's number says."""
    if set(entries) & set(STOP_AT):
        raise StoppedError("stopped")
    DONE_BY.extend(entries)
    counts = np.array([int(name[1:]) for name in entries])
    places = np.concatenate([np.arange(count) * factor for count in counts])
    return {"double": counts * 2, "each_count": counts, "each_x": places}


class Count(GrowingJob):
    """Declaration of a toy."""

    name: ClassVar[str] = "count"
    summary: ClassVar[str] = "Count."
    grows: ClassVar[tuple[str, ...]] = ("micrographs",)

    micrographs: Place = parameter(meaning="micrographs", reads=("micrographs",))
    factor: float = parameter(1.0, meaning="a factor")

    def growing(self, url: str) -> Growing:
        table = read_micrograph_table(self.micrographs)
        return Growing(row_keys(table), table["micrograph"].tolist(), measure, (self.factor,), size=2)

    def settled(self, found: Found) -> Any:
        return found["double"] != 14  # of m7, which is never settled

    def result(self, context: Context, found: Found) -> tuple[Found, Mapping[str, Any]]:
        table = read_micrograph_table(self.micrographs)
        write_micrograph_table(context.write, table)
        names = np.repeat(np.array(table["micrograph"].tolist(), TEXT), found["each_count"])
        zeros = np.zeros(len(names))
        write_picks(
            context.write, Picks((), {"micrograph": names, "coordinate_x": found["each_x"], "coordinate_y": zeros})
        )
        return {"double": found["double"]}, {}


def micrographs(place: Path, *numbers: int, dose: float = 40.0) -> str:
    names = np.array([f"m{number}" for number in numbers], TEXT)
    table = Micrographs(OPTICS, {"micrograph": names, "dose": np.full(len(names), dose)})
    if not has_group(place, ""):
        write_group(place, "", {}, {"kind": "result"})
    write_micrograph_table(lambda path, arrays, said: write_group(place, path, arrays, said), table)
    write_group(place, "result", {"numbers": np.array(numbers)}, {})
    return str(place)


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    DONE_BY.clear()
    STOP_AT.clear()


def result_of(out: Path) -> tuple[Any, ...]:
    picks = read_picks(out)
    return read_group(out, "result")[0]["double"].tolist(), picks["micrograph"].tolist(), picks["coordinate_x"].tolist()


def test_only_what_is_new_is_done_and_the_order_is_that_of_the_input(tmp_path: Path) -> None:
    given, out = micrographs(tmp_path / "in", 3, 0, 2), tmp_path / "out"
    run(Count(micrographs=given, out=str(out)))
    assert DONE_BY == ["m3", "m0", "m2"]
    assert Count(micrographs=given, out=str(out)).is_finished()
    DONE_BY.clear()
    micrographs(tmp_path / "in", 1, 2, 4, 3)  # one is gone, two are new
    job = Count(micrographs=given, out=str(out))
    assert not job.is_finished()
    assert change_of(job)[::2] == ("changed", False)
    run(job)
    assert DONE_BY == ["m1", "m4"]
    doubled, names, places = result_of(out)
    assert doubled == [2, 4, 8, 6]
    assert names == ["m1"] + ["m2"] * 2 + ["m4"] * 4 + ["m3"] * 3
    assert places == [0, 0, 1, 0, 1, 2, 3, 0, 1, 2]
    run(Count(micrographs=given, out=str(tmp_path / "fresh")))
    assert result_of(tmp_path / "fresh") == result_of(out)
    DONE_BY.clear()
    micrographs(tmp_path / "in", 0, 3, 4)  # what was there before is known still
    run(job)
    assert DONE_BY == []
    assert result_of(out)[0] == [0, 6, 8]
    assert not has_group(out, "parts")


def test_what_changed_and_what_is_not_settled_is_done_again(tmp_path: Path) -> None:
    given, out = micrographs(tmp_path / "in", 1, 7), str(tmp_path / "out")
    run(Count(micrographs=given, out=out))
    assert not Count(micrographs=given, out=out).is_finished()
    run(Count(micrographs=given, out=out))
    assert DONE_BY == ["m1", "m7", "m7"]
    micrographs(tmp_path / "in", 1, dose=50.0)
    run(Count(micrographs=given, out=out))
    assert DONE_BY[3:] == ["m1"]
    with pytest.raises(OutputExistsError, match="other parameters"):
        run(Count(micrographs=given, factor=2.0, out=out))


def test_it_goes_on_after_a_stop(tmp_path: Path) -> None:
    given, out = micrographs(tmp_path / "in", 1, 2, 3, 4, 5), str(tmp_path / "out")
    STOP_AT.append("m3")
    with pytest.raises(StoppedError):
        run(Count(micrographs=given, out=out))
    STOP_AT.clear()
    micrographs(tmp_path / "in", 6, 1, 2, 3, 4, 5)
    run(Count(micrographs=given, out=out))
    assert sorted(DONE_BY) == [f"m{number}" for number in range(1, 7)]
    assert result_of(tmp_path / "out")[0] == [12, 2, 4, 6, 8, 10]


def test_keys_tell_rows_apart_and_ignore_what_is_not_known() -> None:
    names = np.array(["a", "b"], TEXT)
    plain = Micrographs(OPTICS, {"micrograph": names})
    more = plain.with_columns(dose=[np.nan, 2.0], optics_group=[0, 0])
    assert row_keys(plain)[0] == row_keys(more)[0]
    assert row_keys(plain)[1] != row_keys(more)[1]
    other = Micrographs((OpticsGroup("o", 200.0, 2.7e7, 0.1),), plain.columns)
    assert not set(row_keys(plain)) & set(row_keys(other))
    assert not set(row_keys(plain)) & set(row_keys(plain, "something else"))
    assert EACH == "each_"
