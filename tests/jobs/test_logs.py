"""The log beside the results: behind earlier ones, never in the way."""

import logging
import os
import threading
import time

import pytest

from cloudem.errors import StorageError
from cloudem.io.storage.location import UNFINISHED, contents, join, object_store, put, read_bytes
from cloudem.jobs import logs
from cloudem.jobs.logs import keep_log


@pytest.fixture
def log():
    log = logging.getLogger("cloudem.tests.logs")
    log.setLevel(logging.DEBUG)
    return log


def text_of(url):
    return (read_bytes(join(url, "log.txt")) or b"").decode()


def test_a_log_goes_on_behind_the_last_one(url, log):
    put(object_store(url, create=True), "zarr.json", b"{}")
    for line in ("first", "second"):
        with keep_log(log, url):
            log.info(line)
            log.debug("größe")
    assert [line.split()[-1] for line in text_of(url).splitlines()] == ["first", "größe", "second", "größe"]


def test_a_job_that_makes_nothing_leaves_no_log(url, log):
    with keep_log(log, url):
        log.info("nothing was there")
    assert contents(url) == []


def test_what_comes_before_the_results_is_in_the_log(url, log):
    with keep_log(log, url):
        log.info("before")
        put(object_store(url, create=True), "zarr.json", b"{}")
        log.info("after")
    assert [line.split()[-1] for line in text_of(url).splitlines()] == ["before", "after"]


def test_nothing_is_added_to_what_is_unfinished(bucket, log):
    url = f"s3://{bucket}/unfinished-log"
    put(object_store(url), UNFINISHED, b"{}")
    with keep_log(log, url):
        log.info("early")
    assert contents(url) == [UNFINISHED]


def test_a_log_that_cannot_be_written_stops_nothing_and_is_written_later(bucket, log, monkeypatch):
    url, real, calls = f"s3://{bucket}/failing-log", logs.write_bytes, []

    def failing(*given):
        calls.append(given)
        if len(calls) < 3:
            raise StorageError("the server is away")
        real(*given)

    monkeypatch.setattr(logs, "write_bytes", failing)
    monkeypatch.setattr(logs._LogObject, "EVERY_S", 0.0)
    put(object_store(url), "zarr.json", b"{}")
    with keep_log(log, url):
        for line in ("one", "two", "three"):
            log.info(line)
        for _ in range(200):
            if text_of(url):
                break
            time.sleep(0.05)
    assert [line.split()[-1] for line in text_of(url).splitlines()] == ["one", "two", "three"]


def test_many_lines_are_few_writes(bucket, log, monkeypatch):
    url, real, calls = f"s3://{bucket}/busy-log", logs.write_bytes, []
    monkeypatch.setattr(logs, "write_bytes", lambda *given: calls.append(given) or real(*given))
    put(object_store(url), "zarr.json", b"{}")
    with keep_log(log, url):
        for number in range(500):
            log.info("line %d", number)
    assert len(calls) <= 3
    assert len(text_of(url).splitlines()) == 500


def test_storage_that_does_not_answer_holds_up_nobody_who_logs(bucket, log, monkeypatch):
    url, answers = f"s3://{bucket}/silent-log", threading.Event()
    monkeypatch.setattr(logs._LogObject, "EVERY_S", 0.01)
    put(object_store(url), "zarr.json", b"{}")

    def guard():
        log.debug("asked, and waits, as a lease does that was not renewed")
        assert answers.wait(20)

    with keep_log(log, url, guard):
        log.info("first")
        time.sleep(0.1)
        begun = time.monotonic()
        threads = [threading.Thread(target=log.info, args=(f"thread {number}",)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 1
        answers.set()
    assert {"first", *(f"thread {number}" for number in range(5))} <= {
        line.split(maxsplit=3)[-1] for line in text_of(url).splitlines()
    }


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_is_no_file_of_somebody_else(kind, tmp_path, log):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result").touch()
    place = tmp_path / "out" / "log.txt"
    place.symlink_to(tmp_path / "precious") if kind == "link" else os.mkfifo(place)
    with keep_log(log, str(tmp_path / "out")):
        log.info("a line")
    assert (tmp_path / "precious").read_text() == "kept"
