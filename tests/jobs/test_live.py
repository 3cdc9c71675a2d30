"""What a job says of itself while it runs: how it ended, that it was lost, and never in its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cloudem.errors import InconsistentDataError, LeaseLostError, StoppedError, StorageError
from cloudem.execution.executor import SerialExecutor
from cloudem.execution.workers import WorkerSeen
from cloudem.io.storage.location import UNFINISHED, contents, join, object_store, put
from cloudem.jobs import live
from cloudem.jobs.live import (
    LIVE_FILE,
    LOST_S,
    MOST_ROWS,
    Live,
    how_it_failed,
    keep_live,
    parse_live,
    read_live,
    stage_in_words,
    state_in_words,
)
from cloudem.jobs.progress import SilentProgress
from cloudem.jobs.runner import run_job
from tests.counting_job import Count

ROOT = Path(__file__).parents[2]

HOSTILE = "a\x1b[31m\x07\nb"


def said(**values: object) -> Live:
    return Live(**{"job": "count", "began": 100.0, "updated": 200.0, **values})  # type: ignore[arg-type]


def begun(url: str) -> str:
    put(object_store(url, create=True), "zarr.json", b"{}")
    return url


def known(url: str) -> Live:
    found = read_live(url)
    assert found is not None
    return found


def wait_for(condition, patience_s: float = 20.0) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_running_job_says_how_far_it_is_and_a_finished_one_that_it_is(url):
    progress = SilentProgress()
    with keep_live(begun(url), "count", progress, step="first", every_s=0.05):
        progress.iteration({"iteration": np.int64(3), "resolution_A": np.float32(8.5), "limit_A": float("nan")})
        progress.warning(HOSTILE)
        with progress.stage("counting", 10, "numbers") as stage:
            stage.advance(4)
            wait_for(lambda: (read_live(url) or said()).done == 4)
            seen = known(url)
    assert (seen.state, seen.job, seen.step, seen.pid) == ("running", "count", "first", os.getpid())
    assert (seen.stage, seen.total, seen.unit) == ("counting", 10, "numbers")
    assert seen.stage_seconds_left is not None
    assert seen.iterations == ({"iteration": 3, "resolution_A": 8.5, "limit_A": None},)
    assert seen.resolution_A == 8.5
    assert "\x1b" not in "".join(seen.warnings)
    assert stage_in_words(seen).startswith("3 iterations done, counting 4 of 10 numbers, ")
    last = known(url)
    assert (last.state, last.why, last.stage) == ("finished", "", "")
    assert [timing.name for timing in last.timings] == ["counting"]
    assert last.began <= seen.updated <= last.updated <= time.time()


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (InconsistentDataError("4 images, 3 rows"), "failed", "failed: 4 images, 3 rows"),
        (KeyError("foo"), "failed", "failed: unexpected KeyError: 'foo'; see log.txt"),
        (OSError(28, "No space left on device", "out/map"), "failed", "failed: out/map: No space left on device"),
        (MemoryError(), "failed", "failed: out of memory; try fewer --threads, or a machine with more memory"),
        (KeyboardInterrupt(), "stopped", "stopped: interrupted; run the same command again to resume"),
        (
            StoppedError("stopped after iteration 2, as requested; run the same command again to resume"),
            "stopped",
            "stopped: after iteration 2, as requested; run the same command again to resume",
        ),
        (ValueError(HOSTILE), "failed", "failed: unexpected ValueError: a\\x1b[31m\\x07 b; see log.txt"),
    ],
)
def test_how_a_job_ended_is_said_in_words(error, state, words, tmp_path):
    url = begun(str(tmp_path / "out"))
    with pytest.raises(type(error)), keep_live(url, "count", SilentProgress()):
        raise error
    assert known(url).state == state
    assert state_in_words(known(url), time.time() + 1e6) == words


def test_a_job_that_is_silent_for_too_long_is_lost_and_one_that_has_ended_never_is():
    assert state_in_words(said(), 200.0 + LOST_S - 1) == "running"
    assert state_in_words(said(), 320.0) == "lost: no sign of life for 2 min; run the same command to resume"
    assert state_in_words(said(state="finished"), 1e9) == "finished"
    assert state_in_words(said(), 100.0) == "running"  # by another clock, which is late


def test_what_others_wrote_does_not_reach_the_terminal_as_it_is():
    assert state_in_words(said(state="failed", why=HOSTILE), 0.0) == "failed: a\\x1b[31m\\x07 b"
    assert "\x1b" not in stage_in_words(said(stage=HOSTILE, unit=HOSTILE, done=1))


def test_a_record_that_is_damaged_or_of_another_version_is_none():
    whole = said().model_dump(mode="json")
    assert parse_live(json.dumps(whole).encode()) == said()
    for change in ({"format": 2}, {"more": 1}, {"began": -1}, {"updated": float("inf")}, {"state": "odd"}):
        assert parse_live(json.dumps({**whole, **change}).encode()) is None
    assert parse_live(b"{") is None


def test_only_the_last_rows_are_kept(tmp_path):
    url, progress = begun(str(tmp_path / "out")), SilentProgress()
    with keep_live(url, "count", progress):
        for number in range(MOST_ROWS + 50):
            progress.iteration({"iteration": number})
    rows = known(url).iterations
    assert (len(rows), rows[0]["iteration"]) == (MOST_ROWS, 50)


def test_a_job_that_makes_nothing_leaves_nothing_and_what_is_unfinished_stays_alone(url):
    with keep_live(url, "count", SilentProgress()):
        pass
    assert contents(url) == []
    put(object_store(url, create=True), UNFINISHED, b"{}")
    with keep_live(url, "count", SilentProgress()):
        pass
    assert contents(url) == [UNFINISHED]


class Telling(SerialExecutor):
    """Says of its workers what it is told to, or raises that."""

    def __init__(self, *says: object) -> None:
        super().__init__()
        self.says, self.asked = says, 0

    def seen_workers(self, doing: object = None) -> tuple[WorkerSeen, ...]:
        self.asked += 1
        says = self.says[min(self.asked, len(self.says)) - 1]
        if isinstance(says, Exception):
            raise says
        return (WorkerSeen(name=str(says), threads=2),)


def names_in(url: str) -> list[str]:
    found = known(url).cluster
    return [worker.name for worker in found.workers] if found else []


def test_a_job_says_on_which_workers_it_runs_and_in_the_end_on_which_it_ran(url):
    progress = SilentProgress()
    executor = Telling("node1")
    with keep_live(begun(url), "count", progress, every_s=0.02):
        wait_for(lambda: read_live(url) is not None)
        assert known(url).cluster is None
        with executor, progress.cluster.watch(executor):
            wait_for(lambda: names_in(url) == ["node1"])
            assert known(url).cluster.what == "serial, in this process"
            executor.asked, executor.says = 0, (OSError("nobody answers"), TimeoutError(), "node2")
            wait_for(lambda: names_in(url) == ["node2"])
        asked = executor.asked
    assert names_in(url) == ["node2"]
    assert executor.asked <= asked + 1


def test_an_executor_that_cannot_tell_is_asked_once_and_the_job_goes_on(url):
    progress, executor = SilentProgress(), Telling(TypeError("no such function"))
    with keep_live(begun(url), "count", progress, every_s=0.02), progress.cluster.watch(executor):
        progress.iteration({"iteration": 1})
        wait_for(lambda: bool((read_live(url) or said()).iterations))
        time.sleep(0.1)
    assert executor.asked == 1
    assert (known(url).state, names_in(url)) == ("finished", [])
    executor.close()


def test_workers_that_do_not_answer_delay_no_job(tmp_path, monkeypatch):
    hangs, asked = threading.Event(), threading.Event()

    class Hanging(SerialExecutor):
        def seen_workers(self, doing=None):
            asked.set()
            hangs.wait(60)
            return ()

    monkeypatch.setattr(live, "LAST_S", 0.2)
    monkeypatch.setattr(live, "EVERY_S", 0.02)
    (tmp_path / "x").mkdir()
    (tmp_path / "x/before").touch()
    began = time.monotonic()
    try:
        run_job(Count(numbers=("3", "4"), task_s=0.3, out=str(tmp_path / "x")), lambda _: Hanging())
        assert asked.is_set()
        assert time.monotonic() - began < 10
    finally:
        hangs.set()
    assert (tmp_path / "x/total").read_text() == "7"


def test_who_has_lost_the_lease_writes_nothing(tmp_path):
    def lost() -> None:
        raise LeaseLostError("somebody else")

    url = begun(str(tmp_path / "out"))
    with keep_live(url, "count", SilentProgress(), guard=lost):
        pass
    assert contents(url) == ["zarr.json"]


def test_a_store_that_fails_is_tried_again(tmp_path, monkeypatch):
    url, real, calls = begun(str(tmp_path / "out")), live.write_bytes, []

    def failing(place, data):
        calls.append(place)
        if len(calls) < 3:
            raise StorageError("no connection")
        real(place, data)

    monkeypatch.setattr(live, "write_bytes", failing)
    with keep_live(url, "count", SilentProgress(), every_s=0.02):
        wait_for(lambda: read_live(url) is not None)
    assert known(url).state == "finished"


def test_a_store_that_hangs_does_not_delay_the_job(tmp_path, monkeypatch):
    hangs = threading.Event()
    monkeypatch.setattr(live, "write_bytes", lambda *_: hangs.wait(60))
    monkeypatch.setattr(live, "LAST_S", 0.2)
    began = time.monotonic()
    try:
        (tmp_path / "x").mkdir()
        (tmp_path / "x/before").touch()
        job = Count(numbers=("3", "4"), out=str(tmp_path / "x"))
        assert run_job(job, lambda _: SerialExecutor()).warnings() == ["that was all"]
        assert time.monotonic() - began < 10
    finally:
        hangs.set()
    assert (tmp_path / "x/total").read_text() == "7"


def test_a_job_notes_when_it_begins_to_write_and_when_it_has_ended(tmp_path):
    url, noted = str(tmp_path / "out"), []

    def note(now: Live) -> None:
        noted.append(now.state)
        if len(noted) == 1:
            raise StorageError("no connection")

    with keep_live(url, "count", SilentProgress(), note=note, every_s=0.02):
        assert noted == []
        begun(url)
        wait_for(lambda: len(noted) == 2)
        time.sleep(0.1)
    assert noted == ["running", "running", "finished"]
    noted.clear()
    with keep_live(url, "mask", SilentProgress(), note=noted.append, writes=False):
        pass
    assert [each.state for each in noted] == ["finished"]


@pytest.mark.parametrize(("number", "state"), [(signal.SIGKILL, "running"), (signal.SIGINT, "stopped")])
def test_a_job_that_was_killed_is_lost_and_one_that_was_interrupted_is_stopped(number, state, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/before").touch()
    command = [sys.executable, "-m", "tests.counting_job", "count", "3", "4", "--task-s", "60", "--out", "out"]
    job = subprocess.Popen(
        [*command, "--executor", "serial"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: (tmp_path / "out" / LIVE_FILE).exists(), 40)
        job.send_signal(number)
        job.wait(20)
    finally:
        job.kill()
    found = known(join(str(tmp_path), "out"))
    assert found.state == state
    words = state_in_words(found, found.updated + 125)
    expected = {"running": "lost: no sign of life for 2 min; run the same command to resume"}
    assert words == expected.get(state, "stopped: interrupted; run the same command again to resume")


def test_errors_that_nobody_declared_are_short():
    state, why = how_it_failed(RuntimeError("x" * 5000))
    assert state == "failed"
    assert len(why) <= 400
