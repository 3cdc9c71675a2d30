"""What a person sees of a job, and what is measured of it."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cloudem.errors import InconsistentDataError, OutOfMemoryError
from cloudem.execution.executor import SerialExecutor
from cloudem.jobs.progress import Progress, SilentProgress
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.runner import check_memory, run_job
from cloudem.jobs.view import LiveProgress, PlainProgress
from cloudem.model.columns import described
from cloudem.text import clock, memory, size
from cloudem.traffic import Traffic, in_words
from tests.counting_job import Count


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("cloudem.tests.progress")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    assert not [h for h in logger.handlers if type(h).__module__ == "cloudem.jobs.view"]  # a closed view leaves none


def refine(progress: Progress) -> None:
    progress.facts({"particles": "2,000 of 96 px"})
    progress.columns = Refine3D.columns
    for number in (1, 2):
        with progress.stage("expectation", 2000) as stage:
            stage.advance(500)
            stage.advance(1500)
        progress.iteration({"iteration": number, "resolution_A": 20.0 / number, "moving": 0.25, "seconds": 3.0})
    progress.warning("the mask cuts the map")
    progress.message("done")


def test_live_view_prints_rows_under_one_heading(log: logging.Logger) -> None:
    screen = io.StringIO()
    with closing(
        LiveProgress(log, Console(file=screen, force_terminal=True, width=100, color_system=None))
    ) as progress:
        refine(progress)
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    text = "\n".join(lines)
    assert "  particles   2,000 of 96 px" in text
    assert text.count("iteration  resolution      moving        time") == 1
    assert "           1     20.00 Å       25.0%       3.0 s" in text
    assert "           2     10.00 Å       25.0%       3.0 s" in text
    assert "  ! the mask cuts the map" in text
    assert text.count("10.00 Å") == 1  # the line of the log is for the file


MOVED = {"images": Traffic(312_400_000, 0), "poses": Traffic(1_240_000, 26_000), "other": Traffic()}


def network_row(number: int) -> dict[str, float]:
    row = {"iteration": number, "resolution_A": 9.0, "limit_A": 8.0, "images_per_s": 9999.0, "moving": 1.0}
    return {**row, "seconds": 1234.5, "received_bytes": 313_640_000}


def test_what_was_moved_is_a_column_and_a_line_of_the_log(log: logging.Logger, caplog) -> None:
    screen = io.StringIO()
    log.propagate = True
    with (
        caplog.at_level(logging.DEBUG, log.name),
        closing(LiveProgress(log, Console(file=screen, force_terminal=True, width=79, color_system=None))) as progress,
    ):
        progress.columns = Refine3D.columns
        progress.iteration({"iteration": 1, "resolution_A": 9.0})  # of a run without a network that is resumed
        progress.iteration(network_row(2), MOVED)
        progress.iteration(network_row(3), MOVED)
    log.propagate = False
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert sum(line.endswith("       time    network") for line in lines) == 1
    assert sum(line.endswith("  1234.5 s     314 MB") for line in lines) == 2
    assert "iteration 2 received: images 312 MB, poses 1.2 MB; sent: poses 26 kB" in caplog.messages
    assert progress.moved()["images"] == (624_800_000, 0)


def test_live_view_shows_how_far_a_stage_is(log: logging.Logger) -> None:
    screen = io.StringIO()
    with (
        closing(LiveProgress(log, Console(file=screen, force_terminal=True, width=100, color_system=None))) as progress,
        progress.stage("expectation", 2000) as stage,
    ):
        stage.advance(500)
        time.sleep(0.6)
    assert "expectation" in screen.getvalue()
    assert "500 of 2,000 images" in screen.getvalue()
    assert "images/s" in screen.getvalue()
    assert " left" in screen.getvalue()


def test_plain_view_prints_lines(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(PlainProgress(log)) as progress:
        progress.EVERY_S = 0.0
        refine(progress)
    lines = [line[10:] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "particles: 2,000 of 96 px"
    assert lines[1].startswith("expectation: 500 of 2,000 images, ")
    assert "iteration 2, resolution 10.00 Å, moving 25.0%, time 3.0 s" in lines
    assert lines[-2:] == ["the mask cuts the map", "done"]


def test_names_from_files_do_not_reach_a_terminal_raw(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    with closing(LiveProgress(log, Console(file=screen, force_terminal=True, width=100, color_system=None))):
        log.warning("left out %s", "\x1b]0;owned\x07.mrc")
    with closing(PlainProgress(log)):
        log.warning("left out %s", "\x1b]0;owned\x07.mrc")
    for text in (screen.getvalue(), capsys.readouterr().out):
        assert "left out \\x1b]0;owned\\x07.mrc" in text
        assert "\x1b]0;" not in text


def test_sizes_are_short_and_nothing_is_no_words() -> None:
    counts = (0, 999, 1000, 9949, 9951, 999_499, 999_500, 4.1e6, 2.6e10, 1.23e15)
    sizes = ["0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "1.0 MB", "4.1 MB", "26 GB", "1230 TB"]
    assert [size(count) for count in counts] == sizes
    assert in_words({"images": Traffic(5, 0)}) == "received: images 5 B; sent: nothing"
    assert in_words({"images": Traffic()}) == in_words({}) == ""


def test_everything_shown_is_kept() -> None:
    progress = SilentProgress()
    refine(progress)
    assert [row["resolution_A"] for row in progress.iterations()] == [20.0, 10.0]
    assert progress.warnings() == ["the mask cuts the map"]
    assert [timing.name for timing in progress.timings()] == ["expectation"]


def test_a_stage_is_measured_in_time_cpu_and_memory() -> None:
    progress = SilentProgress()
    with progress.stage("idle"):
        time.sleep(0.2)
    with progress.stage("busy"):
        block = np.ones(20_000_000)
        end = time.process_time() + 0.2
        while time.process_time() < end:
            block[0] += 1
    idle, busy = progress.timings()
    assert 0.2 <= idle.wall_s < 2.0
    assert busy.cpu_s >= 0.15
    assert busy.peak_rss_bytes >= block.nbytes


def test_a_child_process_counts() -> None:
    progress = SilentProgress()
    code = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    with progress.stage("child"):
        subprocess.run([sys.executable, "-c", code], check=True)
    assert progress.timings()[0].cpu_s >= 0.35


def test_a_stage_that_fails_is_measured_and_over() -> None:
    progress = SilentProgress()
    with pytest.raises(ValueError, match="x"), progress.stage("bad", 3):
        raise ValueError("x")
    assert progress.timings()[0].name == "bad"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (61, "1:01"), (3599.6, "1:00:00"), (7384, "2:03:04")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_cells_have_titles_and_formats() -> None:
    def said(name: str, value: float) -> tuple[str, str]:
        column = described(Refine3D.columns, name, value)
        return column.heading, column.text(value)

    assert said("resolution_A", 7.981) == ("resolution", "7.98 Å")
    assert said("bad_images", 12345) == ("bad images", "12,345")
    assert said("moving", 0.3333) == ("moving", "33.3%")
    assert said("images_per_s", 1234.5) == ("images/s", "1,234")
    assert said("other", 1.23456) == ("other", "1.235")
    assert said("resolution_A", float("nan")) == ("resolution", "–")


def test_memory_that_the_machine_lacks_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("cloudem")
    check_memory(1 << 20, log)
    with pytest.raises(OutOfMemoryError, match=r"needs 1048576\.00 GiB of memory, but the machine has"):
        check_memory(1 << 50, log)
    assert (memory(1536), memory(3 << 20), memory(3 << 29)) == ("1.5 KiB", "3 MiB", "1.50 GiB")


def test_run_job_from_python(tmp_path: Path) -> None:
    progress = run_job(Count(numbers=("3", "4"), out=str(tmp_path / "x")), lambda _: SerialExecutor())
    assert (tmp_path / "x/total").read_text() == "7"
    assert progress.warnings() == ["that was all"]
    assert "counting: 2 numbers in" in (tmp_path / "x/log.txt").read_text()


def test_a_job_that_fails_before_it_writes_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InconsistentDataError):
        run_job(Count(numbers=("3",), out=str(tmp_path / "x"), fail="early"), lambda _: SerialExecutor())
    assert list(tmp_path.iterdir()) == []


def test_what_a_stage_has_done_is_summed_over_its_runs() -> None:
    progress = SilentProgress()
    for count in (3, 4):
        with progress.stage("align", 10) as stage:
            stage.advance(count)
    assert [(each.name, each.done) for each in progress.timings()] == [("align", 7)]


def test_what_a_job_does_is_told_by_step_with_what_runs_now() -> None:
    progress = SilentProgress()
    for _ in range(2):
        with progress.stage("align", 10) as stage:
            stage.advance(10)
    progress.iteration({"iteration": 7})
    with progress.stage("solve", 2, "maps") as outer, progress.stage("align", 30) as stage:
        stage.advance(3)
        doing = progress.doing()
        outer.advance(2)
    assert doing.iterations == 7
    align, solve = doing.steps
    assert (align.name, align.done, align.unit, align.running and align.running[1:]) == ("align", 23, "images", (3, 30))
    assert (solve.name, solve.done, solve.unit, solve.running and solve.running[1:]) == ("solve", 0, "maps", (0, 2))
    assert [step.running for step in progress.doing().steps] == [None, None]
    assert SilentProgress().doing() == (0, ())
