"""``status``, ``logs`` and ``open`` as a user sees them."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import webbrowser
from pathlib import Path

import click
import numpy as np
import pytest
from rich.console import Console

from cloudem.cli.project import JobLogs, OpenJob, ProjectStatus, job_in_words
from cloudem.cli.tables import state_view
from cloudem.errors import CloudemError, MissingInputError
from cloudem.io.formats.mrc import read_volume
from cloudem.io.storage.groups import write_group
from cloudem.io.storage.location import join, write_bytes
from cloudem.jobs.live import LIVE_FILE, Live
from cloudem.runs.project import read_project
from cloudem.runs.records import NodeStatus, RunRecord, RunState, RunStore, Wishes

HOSTILE = "[red]a\x1b[31m\x07b"


def says(url: str, **values: object) -> None:
    now = time.time()
    live = Live(**{"job": "count", "began": now - 65, "updated": now, **values})  # type: ignore[arg-type]
    write_bytes(join(url, LIVE_FILE), live.model_dump_json().encode())


@pytest.fixture
def project(tmp_path: Path) -> str:
    url = str(tmp_path / "project")
    says(f"{url}/going", stage="align", done=340, total=1600, unit="images", stage_seconds_left=65.0,
         iterations=({"iteration": 3, "resolution_A": 8.4},))  # fmt: skip
    says(f"{url}/broken", state="failed", why=HOSTILE, step=HOSTILE)
    for number in range(8):
        says(f"{url}/job-{number}", state="finished", updated=time.time() - 100 * (number + 1), began=0)
    store = RunStore.of(url, "first-20260101-000000")
    store.create(
        RunRecord(name="first-20260101-000000", created=1e9, owner="me", provider="local", region="local", steps=(),
                  plan={}, version="0"),
        Wishes(max_usd=5.0, deadline=2e9),
    )  # fmt: skip
    store.write_state(
        RunState(at=time.time(), status="running", spent_usd=1.25, usd_per_hour=0.5, job=HOSTILE, steps=2)
    )
    return url


def test_the_status_is_ten_lines_and_says_what_runs_first(project: str, capsys: pytest.CaptureFixture[str]) -> None:
    ProjectStatus(project=project).run()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].endswith("10 jobs (8 finished, 1 running, 1 failed)")
    assert "running: 3 iterations done, align 340 of 1,600 images, 1:05 left" in lines[1]
    assert "8.40 Å" in lines[1]
    assert "… and 4 more: --all" in lines[-3]
    assert "run first-20260101-000000" in lines[-2]
    assert "$1.25 of $5.00" in lines[-2]
    assert lines[-1].strip() == "spent $1.25 in 1 run, $0.50 an hour now"
    ProjectStatus(project=project, all=True).run()
    assert capsys.readouterr().out.count("finished") == 9


def test_nothing_that_others_wrote_reaches_the_terminal_as_it_is(
    project: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ProjectStatus(project=project, all=True).run()
    write_bytes(join(project, "going", "log.txt"), f"{HOSTILE}\n".encode())
    JobLogs(job=f"{project}/going").run()
    said = capsys.readouterr().out
    assert "[red]a" in said
    assert "\x1b" not in said
    assert "\x07" not in said


def test_status_as_json(project: str, capsys: pytest.CaptureFixture[str]) -> None:
    ProjectStatus(project=project, json_=True).run()
    found = json.loads(capsys.readouterr().out)
    assert found["spent_usd"] == 1.25
    assert found["jobs"][0]["live"]["done"] == 340
    assert {job["path"]: job["state"] for job in found["jobs"]}["broken"] == "failed"
    assert found["runs"][0]["status"] == "running"


def test_an_empty_project_has_no_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ProjectStatus(project=str(tmp_path)).run()
    assert capsys.readouterr().out.strip() == f"{tmp_path}: no jobs"


def test_words_of_a_job_that_is_not_running_are_its_state(project: str) -> None:
    assert {job_in_words(job) for job in read_project(project).jobs if job.state == "finished"} == {"finished"}


def test_the_log_is_printed_from_its_end_and_followed_to_the_end_of_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "job")
    says(url)
    log = tmp_path / "job/log.txt"
    log.write_text("one\ntwo\nthr")
    JobLogs(job=url, tail=1).run()
    assert capsys.readouterr().out == "two\n"
    monkeypatch.setattr("cloudem.cli.project.FOLLOW_S", 0.05)

    def goes_on() -> None:
        time.sleep(0.2)
        with log.open("a") as file:
            file.write("ee\nfour")
        time.sleep(0.2)
        says(url, state="failed", why="no room")

    writer = threading.Thread(target=goes_on)
    writer.start()
    JobLogs(job=url, follow=True).run()
    writer.join()
    assert capsys.readouterr().out.splitlines() == ["one", "two", "three", "four", "failed: no room"]
    with pytest.raises(MissingInputError, match=r"log\.txt does not exist; give the results of a job"):
        JobLogs(job=str(tmp_path)).run()


def test_a_log_that_was_begun_anew_is_read_from_its_start(tmp_path: Path) -> None:
    from cloudem.cli.project import _Lines

    place = tmp_path / "log.txt"
    place.write_text("a long first line\n")
    log = _Lines(str(tmp_path))
    assert log.more() == ["a long first line"]
    place.write_text("anew\nrest")
    assert log.more() == ["anew"]
    assert log.more(last=True) == ["rest"]


def test_the_report_opens_in_the_browser(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda page: opened.append(page) or len(opened) == 1)
    with pytest.raises(MissingInputError, match=r"has no report\.html"):
        OpenJob(job=url).run()
    write_bytes(join(url, "report.html"), b"<p>report</p>")
    OpenJob(job=url).run()
    assert Path(opened[0].removeprefix("file://")).read_bytes() == b"<p>report</p>"
    assert capsys.readouterr().out == f"the browser opens {opened[0]}\n"
    OpenJob(job=url).run()
    assert capsys.readouterr().out == f"no browser was found here; open {opened[1]}\n"


def test_the_map_opens_in_chimerax(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(CloudemError, match="ChimeraX was not found"):
        OpenJob(job=url, chimerax=True).run()
    started: list[list[str]] = []
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    with pytest.raises(MissingInputError, match="holds no map yet"):
        OpenJob(job=url, chimerax=True).run()
    density = np.random.default_rng(1).standard_normal((8, 8, 8)).astype(np.float32)
    write_group(url, "", {}, {"kind": "result", "job": "refine3d"})
    write_group(url, "result", {"map": density}, {"pixel_size_A": 2.0, "origin_A": [1.0, 2.0, 3.0]})
    OpenJob(job=url, chimerax=True).run()
    ((program, place),) = started
    assert program == "/bin/chimerax"
    shown = read_volume(place)
    np.testing.assert_array_equal(shown.data, density)
    assert (shown.pixel_size, shown.origin) == (2.0, (1.0, 2.0, 3.0))
    assert place in capsys.readouterr().out


@pytest.mark.parametrize("status", ["done", "stopped", "failed"])
def test_a_run_that_is_over_neither_runs_nor_has_time_left(status: str) -> None:
    node = NodeStatus(slot="head", id="i", pool="p", state="running", since=100.0)
    state = RunState(at=168.0, status=status, nodes=(node,), usd_per_hour=3.0)  # type: ignore[arg-type]
    screen = Console(width=120, record=True, force_terminal=False)
    with screen.capture() as said:
        screen.print(state_view("run", state, Wishes(max_usd=1.0, deadline=265.0)))
    assert status in said.get()
    for word in ("running", "1:08", "1:37", "left", "an hour"):
        assert word not in said.get()


def test_help_names_the_options() -> None:
    from cloudem.cli import command_line

    for name in ("status", "logs", "open"):
        command = command_line.COMMANDS.get_command(click.Context(command_line.COMMANDS), name)
        assert command is not None
        with pytest.raises(click.exceptions.Exit):
            command.make_context(name, ["--help"])
