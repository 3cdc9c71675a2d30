"""Micrographs that are not good enough are put aside, each with its reason, and come back when limits change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.errors import MissingColumnError, ParameterError
from cloudem.io.micrographs.tables import read_micrograph_table, write_micrograph_table
from cloudem.io.storage.groups import read_group, write_group
from cloudem.jobs.select_micrographs import SelectMicrographs
from cloudem.model.micrographs import Micrographs
from cloudem.model.optics import OpticsGroup
from cloudem.model.table import TEXT
from tests.jobs.conftest import run

NAMES = ("good", "moved", "flat", "lost", "unknown", "broken")


@pytest.fixture
def table(tmp_path: Path) -> str:
    columns = {
        "micrograph": np.array(NAMES, TEXT),
        "motion_total": np.array([10.0, 90.0, 10.0, 10.0, 10.0, 10.0]),
        "ctf_fit_resolution": np.array([4.0, 4.0, 4.0, 11.0, np.nan, 4.0]),
        "defocus_u": np.array([12000.0, 12000, 900, 12000, 12000, 12000]),
        "defocus_v": np.array([11800.0, 11800, 700, 11800, 11800, 11800]),
        "problem": np.array([""] * 5 + ["is truncated"], TEXT),
    }
    place = tmp_path / "ctf"
    write_group(place, "", {}, {"kind": "result"})
    found = Micrographs((OpticsGroup("o", 300.0, 2.7e7, 0.1),), columns)
    write_micrograph_table(lambda path, arrays, said: write_group(place, path, arrays, said), found)
    return str(place)


def selected(table: str, out: Path, **limits: Any) -> tuple[list[str], dict[str, str]]:
    run(SelectMicrographs(micrographs=table, out=str(out), **limits))
    arrays, _ = read_group(out, "result")
    aside = dict(zip(arrays["aside_micrograph"].tolist(), arrays["aside_reason"].tolist(), strict=True))
    return read_micrograph_table(out)["micrograph"].tolist(), aside


LIMITS: dict[str, Any] = {"max_motion_A": 50.0, "max_ctf_resolution_A": 6.0, "min_defocus_A": 2000.0}


def test_each_that_is_put_aside_has_its_reason(table: str, tmp_path: Path) -> None:
    names, aside = selected(table, tmp_path / "a", **LIMITS)
    assert names == ["good"]
    assert aside == {
        "moved": "moves 90 Å, more than 50 Å",
        "flat": "has a defocus of 800 Å, less than 2000 Å",
        "lost": "its CTF fits to 11.0 Å only, 6 Å are needed",
        "unknown": "its ctf_fit_resolution is not known",
        "broken": "is truncated",
    }
    assert "moves 90 Å" in (tmp_path / "a/report.html").read_text()
    assert selected(table, tmp_path / "b", max_motion_A=100.0)[0] == list(NAMES[:5])


def test_lists_go_before_limits(table: str, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("moved\nbroken\n")
    (tmp_path / "remove.txt").write_text("good\n\n")
    lists = {"keep": str(tmp_path / "keep.txt"), "remove": str(tmp_path / "remove.txt")}
    names, aside = selected(table, tmp_path / "a", **LIMITS, **lists)
    assert names == ["moved", "broken"]
    assert aside["good"] == "is in the list --remove"
    (tmp_path / "remove.txt").write_text("nobody\n")
    job = SelectMicrographs(micrographs=table, out=str(tmp_path / "a"), **LIMITS, **lists)
    assert not job.is_finished()
    assert run(job).warnings() == [f"{tmp_path}/remove.txt names nobody, not among the micrographs"]
    assert read_micrograph_table(tmp_path / "a")["micrograph"].tolist() == ["good", "moved", "broken"]


def test_limits_about_what_nobody_measured_are_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(MissingColumnError, match=r"--max-ice 2: the micrographs .* have no ice_ring_density"):
        selected(table, tmp_path / "a", max_ice=2.0)
    with pytest.raises(ParameterError, match="nothing lies between"):
        selected(table, tmp_path / "a", min_defocus_A=2000.0, max_defocus_A=1000.0)
