"""What a page says of what a job was given and what it left, from records that may say anything."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cloudem.io.storage.groups import read_attributes, read_group, write_group
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.serve.details import given_inputs, given_parameters, left_arrays, record_of
from cloudem.serve.pages import LOG_TAIL, Pages
from tests.serve.conftest import Site


def row(page: str, option: str, part: str = "of-parameters") -> str:
    page = page[page.index(f'id="{part}"') :]
    found = re.search(rf"<tr[^>]*><td class=\"name\">{re.escape(option)}</td>.*?</tr>", page)
    assert found is not None, option
    return html.unescape(found[0])


def test_parameters_have_units_and_meaning_and_those_that_were_changed_are_marked(site: Site) -> None:
    page = site.get("/job/refine/-/details").text
    changed = row(page, "--max-iterations")
    assert 'class="changed"' in changed
    assert "<td>3</td>" in changed
    assert '<td class="quiet">25</td>' in changed
    kept = row(page, "--shift-range-A")
    assert "changed" not in kept
    assert "0 Å" in kept
    assert str(Refine3D.model_fields["shift_range_A"].description) in kept
    needed = row(page, "--diameter-A")
    assert "changed" not in needed
    assert "Å" in needed


def test_inputs_lead_to_the_jobs_that_made_them(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "refine", tmp_path / "refine")
    record = read_attributes(str(tmp_path / "refine"), "") or {}
    parameters = {**record["parameters"], "out": str(tmp_path / "again"), "reference": str(tmp_path / "refine"),
                  "particles": "/elsewhere/particles.zarr"}  # fmt: skip
    write_group(str(tmp_path / "again"), "", {}, {**record, "parameters": parameters})
    page = Pages(str(tmp_path)).details("again") or ""
    assert '<a href="../job/refine">refine</a>' in row(page, "--reference", "of-data")
    assert "<td>/elsewhere/particles.zarr</td>" in row(page, "--particles", "of-data")
    assert "made from refine" in page


def test_several_inputs_of_one_parameter_are_listed_by_themselves() -> None:
    known = {"a": "a", "b": "b"}
    record = {"parameters": {"many": ["/project/a/x.zarr", "/elsewhere/b", 3, ""]}}
    found = given_inputs(record, {"many": "unused"}, "/project", lambda place: known.get(place.partition("/")[0]))
    assert [(one.place, one.job) for one in found] == [("/elsewhere/b", None), ("a/x.zarr", "a")]


def test_outputs_have_the_shapes_and_sizes_of_what_is_there(site: Site, project: Path) -> None:
    arrays, _ = read_group(str(project / "refine"), "result")
    found = {(one.group, one.name): one for one in left_arrays(str(project / "refine"))}
    assert found["result", "map"].shape == "×".join(map(str, arrays["map"].shape))
    assert found["result", "map"].size.split()[0] == f"{arrays['map'].nbytes / 1e3:.0f}"
    assert ("iterations/003", "fsc_corrected") in found
    assert ("iterations/002", "fsc_corrected") not in found
    assert all(("result", name) in found for name in arrays)
    page = site.get("/job/refine/-/details").text
    assert "report.html" in page
    assert "<td>map_unfiltered</td>" in page


def test_text_is_listed_as_long_as_it_is(tmp_path: Path) -> None:
    write_group(str(tmp_path), "result", {"names": np.array(["one", "two", "three"])}, {})
    assert [(one.name, one.shape) for one in left_arrays(str(tmp_path))] == [("names", "3")]


@pytest.mark.parametrize("record", [
    {}, {"job": "refine3d"}, {"job": "refine3d", "parameters": [1]}, {"job": ["x"], "parameters": {"a": {"b": 1}}},
    {"job": "../x", "parameters": None}, {"job": "refine3d", "parameters": {"symmetry": None, "poses": "\x1b[31m"}},
])  # fmt: skip
def test_records_may_say_anything(record: dict[str, object]) -> None:
    for one in given_parameters(record):
        assert "\x1b" not in one.text
    assert given_inputs(record, {}, "/project", lambda _: None) == [] or record.get("job") == "refine3d"


def test_a_switch_is_no_number() -> None:
    given = given_parameters({"job": "refine3d", "parameters": {"restart": 0, "report": True, "halves_by": "x" * 9999}})
    said = {one.option: one for one in given}
    assert said["--restart"].changed
    assert not said["--report"].changed
    assert len(said["--halves-by"].text) < 400


def test_of_a_damaged_result_there_is_the_log_alone(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "refine", tmp_path / "refine")
    for path in (tmp_path / "refine").rglob("zarr.json"):
        path.write_text(path.read_text().replace("attributes", "attribute"))
    assert record_of(str(tmp_path / "refine")) == {}
    page = Pages(str(tmp_path)).details("refine") or ""
    assert "of-log" in page
    assert "of-parameters" not in page


def test_of_a_long_log_the_end_is_shown(project: Path, tmp_path: Path) -> None:
    shutil.copytree(project / "refine", tmp_path / "refine")
    with (tmp_path / "refine" / "log.txt").open("a") as log:
        log.writelines(f"line {number}\n" for number in range(20_000))
    pages = Pages(str(tmp_path))
    shown = html.unescape(pages.details("refine") or "")
    assert "line 19999" in shown
    assert "line 100\n" not in shown
    assert len(shown) < LOG_TAIL + 40_000
    whole = pages.log("refine") or ""
    assert "line 100\n" in whole
    assert "The last lines of a longer log" not in whole


def test_what_is_one_file_has_a_page_too(tmp_path: Path) -> None:
    (tmp_path / "mask.mrc").write_bytes(b"a mask")
    entry = {"kind": "mask", "state": "finished", "began": 1e9, "updated": 1e9 + 1, "inputs": {"map": "refine"}}
    (tmp_path / "index.json").write_text(json.dumps({"format": 1, "jobs": {"mask.mrc": entry}}))
    pages = Pages(str(tmp_path))
    assert "mask" in (pages.job("mask.mrc") or "")
    assert "<td>refine</td>" in (pages.details("mask.mrc") or "")
    (tmp_path / "mask.mrc").unlink()
    assert pages.job("mask.mrc") is None
