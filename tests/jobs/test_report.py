"""``cloudem report``: the page shows what the groups on disk say, and copes with what they do not."""

from __future__ import annotations

import logging
from typing import Any, ClassVar

import numpy as np
import pytest

from cloudem.errors import StorageError
from cloudem.execution.executor import SerialExecutor
from cloudem.io.storage.groups import write_group
from cloudem.jobs.base import JOBS, Context, Job
from cloudem.jobs.parameters import parameter
from cloudem.jobs.progress import SilentProgress
from cloudem.jobs.provenance import job_record
from cloudem.jobs.report import Report, command_line, content_of, run_attributes, write_report
from cloudem.report.page import render
from cloudem.traffic import Traffic


class Toy(Job):
    name: ClassVar[str] = "toy"
    summary: ClassVar[str] = "A job for this test."

    stacks: tuple[str, ...] = parameter(meaning="stacks to read", positional=True)
    diameter_A: float = parameter(meaning="diameter of the particle")
    half_precision: bool = parameter(True, meaning="keep images in half precision")
    seeds: tuple[int, ...] = parameter((1, 2), meaning="seeds")
    mask: str | None = parameter(None, meaning="solvent mask")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(JOBS, "toy", f"{__name__}:Toy")


def write_result(url: str, **attributes: Any) -> None:
    job = Toy(stacks=("a.mrcs", "b c.mrcs"), diameter_A=120.0, half_precision=False, out=url)
    write_group(url, "", {}, job_record(job))
    volume = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    curve = 1 / (1 + np.exp(np.arange(9.0) - 5))
    write_group(
        url,
        "result",
        {"map": volume, "half1": volume, "half2": volume, "fsc_unmasked": curve, "fsc_strange": curve},
        {"pixel_size_A": 2.0, "symmetry": "C3", **attributes},
    )


def test_report_shows_what_the_job_kept(tmp_path):
    url = str(tmp_path / "refine")
    rows = [
        {"iteration": i, "resolution_A": 30 / i, "limit_A": 40 / i, "moving": 0.5, "images_per_s": 9.0, "seconds": 2.0}
        for i in (1, 2)
    ]
    stages = [{"name": "expectation", "wall_s": 5.0, "cpu_s": 9.0, "peak_rss_bytes": 2**30}]
    write_result(
        url, resolution_A=7.25, b_factor_A2=-90.0, stages=stages, iterations=rows, warnings=["3 left out"], wall_s=6.0
    )
    angles = np.linspace(0, 3, 40)
    write_group(url, "particles", {"rot": angles, "tilt": angles, "half_set": np.arange(40) % 2 + 1}, {})
    content = content_of(url)
    assert (content.resolution, content.b_factor, content.box, content.particles) == (7.25, -90.0, 16, 40)
    assert content.symmetry_operators is not None
    assert content.symmetry_operators.shape == (3, 3, 3)
    assert set(content.fsc) == {"unmasked"}
    assert [row["resolution_A"] for row in content.iterations] == [30.0, 15.0]
    assert content.stages[0][:4] == ("expectation", 5.0, 9.0, 2**30)
    assert content.parameters["diameter_A"] == (120.0, "Å", "diameter of the particle")
    context = Context(executor=SerialExecutor(), progress=SilentProgress(), log=logging.getLogger("test"), url=url)
    Report(out=url).run(context)
    page = (tmp_path / "refine" / "report.html").read_text()
    for words in ("7.25 Å", "toy: refine", "3 left out", "1.00 GiB", "6.0 s", "diameter of the particle"):
        assert words in page


def test_iterations_come_from_checkpoints_and_from_the_run_that_ended(tmp_path):
    url = str(tmp_path)
    progress = SilentProgress(logging.getLogger("test"))
    with progress.stage("expectation", 3) as stage:
        stage.advance(3)
    progress.iteration({"iteration": 3, "resolution_A": 9.0, "limit_A": 8.0})
    progress.iteration({"iteration": 4, "resolution_A": 8.5, "limit_A": 8.0})
    progress.warning("dark")
    write_result(url, **run_attributes(progress, {}))
    for i in (1, 2, 3):
        row = {"iteration": i, "resolution_A": None, "limit_A": 30.0}
        write_group(url, f"iterations/{i:03d}", {}, {"row": row})
    content = content_of(url)
    rows = content.iterations
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert [row["resolution_A"] for row in rows[2:]] == [9.0, 8.5]
    assert [stage.name for stage in content.stages] == ["expectation"]
    assert list(content.warnings) == ["dark"]
    assert rows[0]["resolution_A"] is None
    assert rows[0]["limit_A"] == 30.0
    assert "<td>1</td>" in render(content)


def moved(images: int, poses: int) -> dict[str, dict[str, int]]:
    return {"images": {"received": images, "sent": 0}, "poses": {"received": poses, "sent": poses}}


def test_what_was_moved_comes_from_every_iteration_and_from_the_rest(tmp_path):
    url = str(tmp_path)
    for i in (1, 2):
        write_group(url, f"iterations/{i:03d}", {}, {"row": {"iteration": i}, "traffic": moved(1000 * i, 10)})
    progress = SilentProgress(logging.getLogger("test"))
    progress.iteration({"iteration": 2}, {"images": Traffic(2000, 0), "poses": Traffic(10, 10)})
    write_result(url, **run_attributes(progress, {"images": Traffic(2500, 0), "poses": Traffic(10, 40)}))
    found = [(label, each["images"], each["poses"], each["bricks"]) for label, each in content_of(url).transfers]
    assert found == [
        ("1", (1000, 0), (10, 10), (0, 0)),
        ("2", (2000, 0), (10, 10), (0, 0)),
        ("otherwise", (500, 0), (0, 30), (0, 0)),
    ]


def test_a_job_without_iterations_has_one_row_and_a_local_one_none(tmp_path):
    url = str(tmp_path)
    write_result(url, traffic=moved(5, 0))
    assert [label for label, _ in content_of(url).transfers] == ["whole job"]
    write_result(url, traffic=moved(0, 0))
    assert content_of(url).transfers == []
    write_result(url)
    assert content_of(url).transfers == []


def test_result_alone_is_enough(tmp_path):
    write_group(tmp_path, "result", {"map": np.zeros((8, 8, 8), np.float32)}, {})
    content = content_of(str(tmp_path))
    assert content.pixel_size is None
    assert content.symmetry_operators is None
    assert content.command == ""
    write_report(str(tmp_path))
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_no_result_is_said_in_one_line(tmp_path):
    with pytest.raises(StorageError, match="no finished result") as caught:
        write_report(str(tmp_path / "absent"))
    assert "\n" not in str(caught.value)


def test_of_a_run_it_is_said_what_makes_its_report(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(StorageError, match=r"is a run, .*: cloudem cost .* --report report\.html$"):
        write_report(str(tmp_path))


def test_command_line_gives_the_parameters_again():
    toy = Toy(stacks=("a.mrcs", "b c.mrcs"), diameter_A=120.0, half_precision=False, out="/o")
    assert command_line("toy", toy.model_dump(mode="json")) == (
        "cloudem toy a.mrcs 'b c.mrcs' --out /o --diameter-A 120.0 --no-half-precision"
    )
