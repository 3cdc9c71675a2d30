"""Sections of jobs that have not ended: what they show, what they read for it, and how often they are drawn."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.errors import StorageError
from cloudem.io.storage.groups import delete_group, read_attributes, read_group, write_group
from cloudem.jobs.iterative import CHECKPOINT
from cloudem.jobs.live import LIVE_FILE, read_live
from cloudem.jobs.refine3d import so_far
from cloudem.jobs.refine3d.so_far import poses_so_far
from cloudem.serve import pages as pages_module
from cloudem.serve import sections
from cloudem.serve.pages import Pages


def running(project: Path, folder: Path, particles: str = "") -> Path:
    """Make results as they are in the middle of a refinement."""
    out = folder / "refine"
    shutil.copytree(project / "refine", out)
    for group in ("result", "particles"):
        delete_group(str(out), group)
    live = read_live(str(out))
    assert live is not None
    going_on = {"state": "running", "updated": time.time() + 1e5, "stage": "align"}
    (out / LIVE_FILE).write_text(live.model_copy(update=going_on).model_dump_json())
    record = read_attributes(str(out), "") or {}
    values = {**record["parameters"], "out": str(out), **({"particles": particles} if particles else {})}
    write_group(str(out), "", {}, {**record, "parameters": values})
    return out


def with_checkpoint(out: Path, change: Mapping[str, Any]) -> str:
    arrays, attributes = read_group(str(out), CHECKPOINT)
    write_group(str(out), CHECKPOINT, {**arrays, **change}, attributes)
    return str(out)


def test_poses_so_far_are_those_that_the_result_would_have(project: Path) -> None:
    url = str(project / "refine")
    found = poses_so_far(url, 1.0)
    kept, _ = read_group(url, "particles")
    attributes = read_attributes(url, "result") or {}
    assert len(found["rot"]) == len(kept["rot"])
    np.testing.assert_array_equal(found["half_set"], kept["half_set"])
    close = np.cos(found["tilt"] - kept["tilt"]) > np.cos(0.2)
    assert close.mean() > 0.9
    shift = np.hypot(found["shift_x"] - kept["shift_x"] / attributes["pixel_size_A"],
                     found["shift_y"] - kept["shift_y"] / attributes["pixel_size_A"])  # fmt: skip
    assert np.median(shift) < 0.5


def test_a_running_job_shows_views_shifts_and_the_defocus_of_particles_of_its_project(
    project: Path, tmp_path: Path
) -> None:
    given = read_attributes(str(project / "refine"), "") or {}
    shutil.copytree(given["parameters"]["particles"], tmp_path / "particles.zarr")
    running(project, tmp_path, str(tmp_path / "particles.zarr"))
    page = Pages(str(tmp_path)).sections("refine") or ""
    for words in ("Fourier shell correlation", "views relative to even", "Shifts", "Defocus", "half-sets 1 and 2"):
        assert words in page
    assert "<h2>Map" not in page


@pytest.mark.parametrize("place", ["{other}/particles.zarr", "{project}/../{name}/particles.zarr"])
def test_particles_beside_the_project_are_not_read(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    other = tmp_path / "other"
    given = read_attributes(str(project / "refine"), "") or {}
    shutil.copytree(given["parameters"]["particles"], other / "particles.zarr")
    here = tmp_path / "project"
    here.mkdir()
    running(project, here, place.format(other=other, project=here, name="other"))
    read: list[str] = []
    monkeypatch.setattr(sections, "defocus_of", lambda url, version: read.append(url) or {})
    page = Pages(str(here)).sections("refine") or ""
    assert "Shifts" in page
    assert "Defocus" not in page
    assert read == []


@pytest.mark.parametrize("change", [
    {"pose_starts": np.array([0, 5], np.int64)}, {"pose_rotations": np.zeros((3, 2, 2))},
    {"pose_shifts": np.zeros((1, 2))}, {"pose_starts": np.arange(201, dtype=np.int64) * 1000 - 7},
    {"keep": np.ones(3)},
])  # fmt: skip
def test_a_checkpoint_that_contradicts_itself_is_not_drawn(
    project: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    out = running(project, tmp_path)
    assert poses_so_far(str(out), 1.0)
    assert poses_so_far(with_checkpoint(out, change), 1.0) == {}
    assert "Resolution" in (Pages(str(tmp_path)).sections("refine") or "")


def test_a_checkpoint_of_words_leaves_the_rest(project: Path, tmp_path: Path) -> None:
    out = running(project, tmp_path)
    with_checkpoint(out, {"pose_starts": np.array(["a"] * 201)})
    assert "Resolution" in (Pages(str(tmp_path)).sections("refine") or "")


def test_poses_that_are_no_numbers_leave_the_rest(project: Path, tmp_path: Path) -> None:
    out = running(project, tmp_path)
    arrays, _ = read_group(str(out), CHECKPOINT)
    nothing = {name: np.full_like(arrays[name], np.nan) for name in ("pose_rotations", "pose_shifts", "keep")}
    with_checkpoint(out, nothing)
    page = Pages(str(tmp_path)).sections("refine") or ""
    assert "Resolution" in page
    assert "views relative to even" not in page


def test_large_checkpoints_are_not_read(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = running(project, tmp_path)
    monkeypatch.setattr(so_far, "LARGEST_POSES", 1000)
    monkeypatch.setattr(so_far, "read_rows", lambda *_: pytest.fail("they were read"))
    assert poses_so_far(str(out), 1.0) == {}


def test_without_a_checkpoint_there_is_the_rest(project: Path, tmp_path: Path) -> None:
    out = running(project, tmp_path)
    delete_group(str(out), CHECKPOINT)
    with pytest.raises(StorageError):
        poses_so_far(str(out), 1.0)
    page = Pages(str(tmp_path)).sections("refine") or ""
    assert "Resolution" in page
    assert "Shifts" not in page


def test_what_runs_is_drawn_no_more_often_than_its_share_and_its_end_at_once(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = running(project, tmp_path)
    pages, drawn = Pages(str(tmp_path)), []
    now = [1000.0]
    monkeypatch.setattr(pages_module.time, "monotonic", lambda: now[0])

    def draw(job: object) -> list[Any]:
        drawn.append(now[0])
        now[0] += 2.0
        return []

    monkeypatch.setattr(pages, "_sections", draw)
    first = (pages.job_news("refine") or {})["version"]
    pages.sections("refine")
    live = read_live(str(out))
    assert live is not None
    more = live.model_copy(update={"iterations": (*live.iterations, {"iteration": 4, "resolution_A": 9.0})})
    (out / LIVE_FILE).write_text(more.model_dump_json())
    now[0] += 2.0 / pages_module.DRAWING_SHARE - 0.1
    assert (pages.job_news("refine") or {})["version"] == first
    pages.sections("refine")
    assert len(drawn) == 1
    now[0] += 0.2
    assert (pages.job_news("refine") or {})["version"] != first
    pages.sections("refine")
    assert len(drawn) == 2
    (out / LIVE_FILE).write_text(more.model_copy(update={"state": "stopped"}).model_dump_json())
    assert "stopped" in (pages.job_news("refine") or {})["version"]
    pages.sections("refine")
    assert len(drawn) == 3
