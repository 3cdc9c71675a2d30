"""A store that cannot be reached stops a job, which goes on later; a micrograph that is lost or damaged is recorded."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloudem.algorithms.ctf_estimate import CtfSettings
from cloudem.algorithms.ctf_fit import CtfSearch
from cloudem.errors import (
    ChangedFileError,
    CloudemError,
    DamagedArrayError,
    FormatError,
    MissingInputError,
    OutOfMemoryError,
    StorageError,
)
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.movies.checking import check_header
from cloudem.jobs.correct_motion import task as motion_task
from cloudem.jobs.correct_motion.job import CorrectMotion
from cloudem.jobs.ctf_tasks import MicrographEntry, estimate_micrographs
from cloudem.jobs.denoise_tasks import denoise_micrographs, pair_of
from cloudem.jobs.estimate_ctf import EstimateCtf
from cloudem.jobs.extract_tasks import ExtractionSettings, MicrographPositions, extract_particles
from cloudem.jobs.import_micrographs import ImportMicrographs
from cloudem.jobs.import_movies import ImportMovies
from cloudem.jobs.pick.tasks import PickEntry, pick_micrographs, reduced_images
from cloudem.model.optics import OpticsGroup
from tests.io.movies_files import write_mrc
from tests.jobs.conftest import run

OF_THE_STORE = [StorageError("s3://b/m: cannot be reached"), OutOfMemoryError("too large")]
OF_ONE = [kind("of this one") for kind in (ChangedFileError, DamagedArrayError, FormatError, MissingInputError)]


def _ctf() -> dict[str, Any]:
    settings = CtfSettings(CtfSearch((3000, 50000), (0, 0), (1 / 30, 1 / 3), 2000), 1000, 12, 5000)
    entry = MicrographEntry("m", "m.mrc", 1.0, OpticsGroup("o", 300, 2.7, 0.1), "")
    return estimate_micrographs([entry], "out", settings)


def _extract() -> dict[str, Any]:
    settings: Any = ExtractionSettings(*[None] * len(ExtractionSettings._fields))  # what is read first is the image
    return extract_particles([MicrographPositions("m.mrc", "", "m", np.zeros((1, 2)), np.zeros(1))], settings)


ENTRY = PickEntry("m", "m.mrc", 1.0, "", None)
TASKS: dict[str, tuple[str, Callable[[], dict[str, Any]], str]] = {
    "ctf": ("cloudem.jobs.ctf_tasks", _ctf, "problem"),
    "pick": ("cloudem.jobs.pick.tasks", partial(pick_micrographs, [ENTRY], "out", "", None, 0.0, 0), "reason"),
    "extract": ("cloudem.jobs.extract_tasks", _extract, "problem"),
    "denoise": ("cloudem.jobs.denoise_tasks", partial(denoise_micrographs, [ENTRY], "out", "", 0), "reason"),
}


def fails(monkeypatch: pytest.MonkeyPatch, module: str, error: CloudemError) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module(module), "open_micrograph_image", refuse)
    monkeypatch.setattr(importlib.import_module("cloudem.jobs.pick.tasks"), "model_at", lambda *_: None)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("error", OF_THE_STORE, ids=repr)
def test_an_error_of_the_store_stops_a_task(task: str, error: CloudemError, monkeypatch: pytest.MonkeyPatch) -> None:
    module, function, _ = TASKS[task]
    fails(monkeypatch, module, error)
    with pytest.raises(type(error)):
        function()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("error", OF_ONE, ids=repr)
def test_what_is_wrong_with_one_micrograph_is_recorded_and_looked_at_again(
    task: str, error: CloudemError, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, function, column = TASKS[task]
    fails(monkeypatch, module, error)
    found = function()
    assert found[column].tolist() == ["of this one"]
    assert found["unread"].tolist() == [True]


def test_nothing_is_learned_without_a_micrograph_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, "cloudem.jobs.pick.tasks", OF_THE_STORE[0])
    fails(monkeypatch, "cloudem.jobs.denoise_tasks", OF_THE_STORE[0])
    with pytest.raises(StorageError):
        reduced_images((ENTRY, [100.0]))
    with pytest.raises(StorageError):
        pair_of(ENTRY)


def test_movies_that_cannot_be_reached_stop_import_and_correction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = write_mrc(tmp_path / "a.mrc", np.random.default_rng(1).poisson(9, (4, 64, 64)).astype("i2"), 1)
    out = str(tmp_path / "movies")
    run(ImportMovies(movies=str(place), voltage_kV=300, cs_mm=2.7, pixel_size_A=1, out=out))
    job = CorrectMotion(movies=out, out=str(tmp_path / "motion"))

    def refuse(*_: object, **__: object) -> None:
        raise StorageError("cannot be reached")

    with monkeypatch.context() as patched:
        patched.setattr(motion_task, "open_movie", refuse)
        with pytest.raises(StorageError):
            run(job)
    run(job)
    assert read_micrograph_table(str(tmp_path / "motion"))["problem"].tolist() == [""]
    monkeypatch.setattr("cloudem.io.movies.checking.open_movie", refuse)
    with pytest.raises(StorageError):
        check_header(str(place))


def test_a_micrograph_that_comes_back_is_read_by_the_same_command(tmp_path: Path) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    noise = np.random.default_rng(2).normal(size=(2, 1, 512, 512)).astype("f4")
    places = [write_mrc(folder / f"{name}.mrc", image, 2) for name, image in zip("ab", noise, strict=True)]
    mics = str(tmp_path / "mics")
    run(ImportMicrographs(micrographs=str(folder), voltage_kV=300, cs_mm=2.7, pixel_size_A=1.5, out=mics))
    places[1].rename(tmp_path / "aside.mrc")
    job = EstimateCtf(micrographs=mics, out=str(tmp_path / "ctf"))
    run(job)
    problems = read_micrograph_table(job.out)["problem"].tolist()
    assert "does not exist" in problems[1]
    assert not job.is_finished()
    (tmp_path / "aside.mrc").rename(places[1])
    run(job)
    problems = read_micrograph_table(job.out)["problem"].tolist()
    assert "does not exist" not in problems[1]
    assert job.is_finished()


def test_what_is_not_finished_is_said_to_be_so(tmp_path: Path) -> None:
    from cloudem.io.movies.store import read_movies
    from cloudem.io.storage.groups import write_group

    write_group(str(tmp_path / "motion"), "", {}, {"kind": "result", "job": "correct_motion"})
    for read in (read_micrograph_table, read_movies):
        with pytest.raises(MissingInputError, match="is not finished yet"):
            read(str(tmp_path / "motion"))
