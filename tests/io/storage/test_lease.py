"""A lease has one holder, whatever clients, machines and networks do."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudem.errors import CloudemError, LeaseHeldError, LeaseLostError, OutputExistsError
from cloudem.io.storage import lease as leasing
from cloudem.io.storage.compare_and_swap import Slot, slot
from cloudem.io.storage.groups import read_group, write_group
from cloudem.io.storage.lease import Look, Refuse, Take, Wait, hold, observe, still_held
from cloudem.io.storage.location import LEASE_FILE, contents, exists, join

LOG = logging.getLogger("cloudem.tests.lease")
SHORT = 1.5


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store where nothing is yet."""
    if request.param == "folder":
        return str(tmp_path / "new" / "out")
    return f"s3://{request.getfixturevalue('s3').bucket()}/out"


def stored(url: str) -> dict[str, Any]:
    """Return what the lease says."""
    found = slot(url, LEASE_FILE).read()
    assert found is not None
    return json.loads(found[0])


@contextmanager
def holding(url: str, length: float) -> Iterator[subprocess.Popen[str]]:
    """Have another process hold the lease."""
    command = [sys.executable, "-m", "tests.io.storage.holding", url, str(length)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert answer(process) == "held"
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return answer(process)


# What to do about a lease


def test_decisions():
    assert observe([Look(0, 0, None)]) == Take()
    assert observe([Look(0, 1, "a", 60)]) == Wait(61)
    assert observe([Look(0, 1, "a", 60), Look(20, 21, "a", 60)]) == Wait(41)
    assert observe([Look(0, 1, "a", 60), Look(61, 62, "a", 60)]) == Take()
    assert observe([Look(0, 1, "a", 60), Look(2, 3, "b", 60)]) == Refuse()
    assert observe([Look(0, 1, None), Look(2, 3, "b", 60)]) == Refuse()
    assert observe([Look(0, 1, "a", 60), Look(2, 3, None)]) == Take()
    assert observe([Look(0, 1, "a", 60, dead=True)]) == Take()


@given(st.floats(0, 1e6), st.floats(0.1, 100), st.floats(0, 1e3), st.floats(1, 1e3))
def test_a_holder_gives_up_before_anybody_takes_over(renewed, length, on_its_way, later):
    """The watcher sees what was renewed at once at the earliest, and then waits for the whole length."""
    looks = [Look(renewed, renewed + on_its_way, "a", length)]
    now = looks[0].answered + later / 1e3 * length * 1.5
    looks.append(Look(now, now, "a", length))
    assert not (observe(looks) == Take() and still_held(renewed, now, length))


class World:
    """Clients that run one at a time, on clocks of their own, in an order that chance decides."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.value: bytes | None = None
        self.running: Client | None = None
        self.turn = threading.Semaphore(0)
        self.clients: list[Client] = []

    def run(self) -> None:
        while waiting := [client for client in self.clients if not client.over]:
            client = min(waiting, key=lambda one: one.wakes)
            self.now, self.running = client.wakes, client
            client.turn.release()
            self.turn.acquire()
        for client in self.clients:
            client.thread.join()
            if client.error is not None:
                raise client.error


class CrashedError(BaseException):
    """The client is no more."""


class Client:
    """A client with a clock, and a lease on requests that take their time or fail."""

    url = "simulated"

    def __init__(self, world: World, number: int, patient: bool, length: float) -> None:
        choose = world.random.uniform
        self.world, self.length, self.patient = world, length, patient
        self.offset, self.rate = choose(-1e6, 1e6), choose(0.97, 1.03)
        self.slowest = world.random.choice([0.01, 0.3, 2.0]) * length
        self.failing = 0.0 if patient else world.random.choice([0.0, 0.1, 0.5])
        self.suspended = 0.0 if patient else world.random.choice([0.0, 0.05])
        self.crashes = float("inf") if patient else choose(0, 40) * length
        self.wakes = choose(0, 3) * length
        self.believed: list[tuple[float, float]] = []
        self.takes = 0
        self.over = False
        self.error: Exception | None = None
        self.turn = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._main, name=f"client {number}")
        self.thread.start()

    def _main(self) -> None:
        self.turn.acquire()
        try:
            while self.world.now < 60 * self.length and not (self.patient and self.takes):
                with contextlib.suppress(LeaseHeldError, LeaseLostError, OSError):
                    self.hold()
                self.sleep(self.world.random.uniform(0, 2) * self.length)
        except CrashedError:
            pass
        except Exception as error:  # shown by the test, not by the thread
            self.error = error
        finally:
            self.over = True
            self.world.turn.release()

    def hold(self) -> None:
        lease = leasing._take(self, LOG, self.length)
        self.takes += 1
        until = self.world.now + self.world.random.uniform(0, 15) * self.length
        self.believe(lease)
        while self.world.now < until:
            self.sleep(self.length / 6)
            lease.check()
            self.believe(lease)
        self.believed = [(begins, min(ends, self.world.now)) for begins, ends in self.believed]
        lease.release()

    def believe(self, lease: Any) -> None:
        """Note for how long this client would write without asking again."""
        ends = lease._renewed + self.length * (1 - leasing._MARGIN)
        self.believed.append((self.world.now, (ends - self.offset) / self.rate))

    def clock(self) -> float:
        return self.offset + self.rate * self.world.now

    def sleep(self, seconds: float) -> None:
        if self.world.random.random() < self.suspended:
            seconds += self.world.random.uniform(0, 3) * self.length
        self.wakes = self.world.now + seconds / self.rate
        self.world.turn.release()
        self.turn.acquire()
        if self.world.now > self.crashes:
            raise CrashedError

    def travel(self) -> None:
        self.sleep(self.world.random.uniform(0, self.slowest))
        if self.world.random.random() < self.failing:
            raise OSError("the network is down")

    def read(self) -> tuple[bytes, str] | None:
        self.travel()
        value = self.world.value
        self.travel()
        return None if value is None else (value, hashlib.md5(value).hexdigest())

    def swap(self, tag: str | None, data: bytes) -> str | None:
        self.travel()
        value = self.world.value
        fits = (None if value is None else hashlib.md5(value).hexdigest()) == tag
        if fits:
            self.world.value = data
        self.travel()
        return hashlib.md5(data).hexdigest() if fits else None

    def delete(self, tag: str) -> None:
        self.travel()
        if self.world.value is not None and hashlib.md5(self.world.value).hexdigest() == tag:
            self.world.value = None
        self.travel()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 3), st.floats(1, 60))
def test_one_holder_at_a_time_in_any_schedule(seed, rivals, length):
    world = World(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leasing, "_now", lambda: world.running.clock())
        patch.setattr(leasing, "time", SimpleNamespace(sleep=lambda seconds: world.running.sleep(seconds)))
        world.clients = [Client(world, i, patient=i == 0, length=length) for i in range(1 + rivals)]
        world.run()
    spans = sorted((a, b, i) for i, one in enumerate(world.clients) for a, b in one.believed if b > a)
    for i, (_, ends, mine) in enumerate(spans):
        for begins, _, other in spans[i + 1 :]:
            assert mine == other or begins >= ends, f"{mine} and {other} both hold it at {begins}"
    assert world.clients[0].takes, "who keeps asking gets it in the end"


# What is really done about it, in folders and on S3


def test_of_twenty_exactly_one_gets_it_and_the_others_are_told_who(url):
    count, length = 20, 4.0
    together, over = threading.Barrier(count), threading.Event()
    refused: list[str] = []

    def one(_: int) -> str:
        together.wait()
        try:
            with hold(url, log=LOG, length=length) as lease:
                assert over.wait(60)
                lease.check()
                return "held"
        except LeaseHeldError as error:
            refused.append(str(error))
            if len(refused) == count - 1:
                over.set()
            return "refused"

    with ThreadPoolExecutor(count) as pool:
        ends = list(pool.map(one, range(count)))
    assert sorted(set(ends)) == ["held", "refused"]
    assert ends.count("held") == 1
    assert f"process {os.getpid()} of " in refused[0]
    assert os.uname().nodename in refused[0]
    assert f"since {time.strftime('%Y-%m-%dT', time.gmtime())}" in refused[0]
    assert not contents(url)


def test_one_that_was_killed_is_followed_at_once(url):
    with holding(url, length=300) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert stored(url)["pid"] == process.pid
        began = time.monotonic()
        with hold(url, log=LOG) as lease:
            lease.check()
        assert time.monotonic() - began < 10


def test_one_that_was_killed_elsewhere_is_followed_after_the_length(url, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    with holding(url, SHORT) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        monkeypatch.setattr(leasing, "_machine", lambda: "another")
        began = time.monotonic()
        with hold(url, log=LOG):
            assert time.monotonic() - began >= SHORT
    (line,) = [record.getMessage() for record in caplog.records if "taking over in" in record.getMessage()]
    assert f"process {process.pid} of " in line


def test_one_that_was_suspended_does_not_commit_any_more(url):
    with holding(url, SHORT) as process:
        assert tell(process, "commit") == "committed"
        process.send_signal(signal.SIGSTOP)
        with hold(url, log=LOG, length=30) as lease:
            process.send_signal(signal.SIGCONT)
            said = tell(process, "commit")
            assert said.startswith("LeaseLostError: stopped, and nothing more was written")
            assert f"was taken over by process {os.getpid()} of " in said
            process.wait(30)
            lease.check()  # and it did not delete what is no longer its own
        assert not contents(url)


def test_one_that_was_suspended_goes_on_if_nobody_came(url):
    with holding(url, SHORT) as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.5 * SHORT)
        process.send_signal(signal.SIGCONT)
        assert tell(process, "commit") == "committed"


def test_one_that_renews_keeps_it(url):
    with holding(url, SHORT) as process:
        for _ in range(2):
            with pytest.raises(
                LeaseHeldError, match=f"in use: process {process.pid} of .* wait for it to end, stop it"
            ):
                hold(url, log=LOG).__enter__()
            time.sleep(SHORT)
        assert tell(process, "commit") == "committed"
        assert stored(url)["renewals"] > 2  # twelve, where nobody else uses the machine
        process.stdin.close()
        process.wait(30)
        assert not exists(url)


def test_what_it_says_is_no_secret(url):
    with hold(url, log=LOG):
        said = stored(url)
    assert set(said) == {"holder", "host", "pid", "user", "since", "length_s", "machine", "started", "renewals"}
    assert not any(os.environ.get(name, "?") in json.dumps(said) for name in os.environ if "SECRET" in name)


class Failing:
    """A place that cannot be reached for a while, or whose answers get lost."""

    def __init__(self, real: Slot, fails: Callable[[], bool], late: bool) -> None:
        self.url, self.read, self.delete = real.url, real.read, real.delete
        self._real, self._fails, self._late = real, fails, late

    def swap(self, tag: str | None, data: bytes) -> str | None:
        if not self._fails():
            return self._real.swap(tag, data)
        if self._late:
            self._real.swap(tag, data)
        raise OSError("the network is down")


@pytest.mark.parametrize("late", [False, True], ids=["request lost", "answer lost"])
def test_a_short_failure_of_the_network_is_waited_for(late, url):
    with hold(url, log=LOG, length=6) as lease:
        until = time.monotonic() + 1
        lease._slot = Failing(lease._slot, lambda: time.monotonic() < until, late)
        lease.check()
        assert time.monotonic() >= until
    assert not exists(url)


def test_a_long_failure_of_the_network_is_a_loss(tmp_path):
    with hold(str(tmp_path), log=LOG, length=SHORT) as lease:
        lease._slot = Failing(lease._slot, lambda: True, late=False)
        with pytest.raises(LeaseLostError, match=r"could not be renewed for \d+ s \(.*: the network is down\)"):
            lease.check()
        with pytest.raises(LeaseLostError):
            lease.check()


def test_a_log_that_asks_for_the_lease_hangs_nobody(tmp_path):
    """The log beside results on S3 asks whether they are ours before it writes; a failed renewal is a line in it."""
    log, away = logging.getLogger("cloudem.tests.lease.asking"), threading.Event()
    log.setLevel(logging.DEBUG)

    class Asking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(CloudemError):
                lease.check()

    with hold(str(tmp_path), log=log, length=3) as lease:
        lease._slot = Failing(lease._slot, away.is_set, late=False)
        log.addHandler(Asking())
        try:
            away.set()
            time.sleep(1)  # two renewals fail
            away.clear()
            said = threading.Thread(target=log.info, args=("iteration 3",), daemon=True)
            said.start()
            said.join(5)
            assert not said.is_alive()
            lease.check()
        finally:
            log.handlers.clear()


def test_one_that_was_deleted_is_lost(url):
    with hold(url, log=LOG) as lease:
        found = lease._slot.read()
        lease._slot.delete(found[1])
        with pytest.raises(LeaseLostError, match="is gone: another client was there meanwhile, or it was deleted"):
            lease.check()


def lease_saying(**other: Any) -> bytes:
    return json.dumps(json.loads(leasing.Holder.me(0.5).encode()) | {"machine": leasing._machine()} | other).encode()


@pytest.mark.parametrize(
    "left",
    [
        b'{"holder": "x"',
        b"[]",
        b'{"holder": 1}',
        b"[" * 20_000,
        b"\xff\xfe",
        lease_saying(pid=2**63 - 1),
        lease_saying(pid=float("inf")),
        lease_saying(pid=-1),
        lease_saying(started=float("inf")),
        lease_saying(length_s=float("nan"), host=["x"]),
        lease_saying(renewals=float("inf")),
    ],
)
def test_one_that_cannot_be_read_is_waited_for(left, url, monkeypatch):
    monkeypatch.setattr(leasing, "LENGTH_S", 0.5)
    assert slot(url, LEASE_FILE).swap(None, left)
    began = time.monotonic()
    with hold(url, log=LOG):
        assert time.monotonic() - began >= 0.5


def test_what_another_wrote_is_shown_in_one_line():
    said = str(leasing.Holder.parse(lease_saying(host="a\n\x1b[2Jb", user="x" * 10_000)))
    assert said.isprintable()
    assert len(said) < 400


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "socket"])
def test_a_lease_is_a_file_of_ours(kind, tmp_path):
    out, precious = tmp_path / "out", tmp_path / "precious"
    out.mkdir()
    precious.write_text("kept")
    place = out / LEASE_FILE
    if kind == "link":
        place.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(place))
    with pytest.raises(CloudemError, match=rf"{LEASE_FILE} is a {kind}, where cloudem keeps a file of its own"):
        hold(str(out), log=LOG).__enter__()
    assert precious.read_text() == "kept"


def test_the_folder_of_a_lease_that_a_killed_client_left_is_removed(tmp_path):
    url = str(tmp_path / "p.zarr.lease")
    with holding(url, length=300) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with hold(url, log=LOG):
        pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "p.zarr.lease").symlink_to("elsewhere")
    with pytest.raises(CloudemError, match=r"p\.zarr\.lease is a link"):
        hold(url, log=LOG).__enter__()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_empty_file_of_a_killed_writer_is_none(tmp_path):
    (tmp_path / LEASE_FILE).touch()
    with hold(str(tmp_path), log=LOG) as lease:
        lease.check()


def test_a_folder_is_left_as_it_was_found(tmp_path):
    (tmp_path / "mine").mkdir()
    with hold(str(tmp_path / "mine"), log=LOG):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with hold(str(tmp_path / "a/b"), log=LOG):
        (tmp_path / "a/b/result").touch()
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "b", "result", "mine"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CloudemError, match=f"{tmp_path}/file"):
        hold(str(tmp_path / "file/out"), log=LOG).__enter__()


# What is written under it


def test_a_group_is_not_committed_once_the_lease_is_lost(url):
    write_group(url, "g", {"a": np.zeros(3)}, {"by": "before"})
    left = iter([True, False])

    def guard() -> None:
        if not next(left):
            raise LeaseLostError("lost")

    with pytest.raises(LeaseLostError, match="lost"):
        write_group(url, "g", {"a": np.ones(3)}, {"by": "the first"}, guard=guard)
    arrays, attributes = read_group(url, "g")
    assert attributes == {"by": "before"}
    np.testing.assert_array_equal(arrays["a"], np.zeros(3))
    assert contents(join(url, "g")) == ["arrays-1", "zarr.json"]


def test_a_commit_that_was_held_up_does_not_replace_a_later_one(s3):
    """The first passes its last check, and is then suspended until the second has committed the same group."""
    url = f"s3://{s3.bucket()}/out"
    write_group(url, "g", {"a": np.zeros(3)}, {"by": "before"})
    checks = iter(range(2))

    def guard() -> None:
        if next(checks) == 1:
            write_group(url, "g", {"a": np.full(3, 2.0)}, {"by": "the second"}, guard=lambda: None)

    with pytest.raises(LeaseLostError, match=r"/g was changed by another client meanwhile"):
        write_group(url, "g", {"a": np.ones(3)}, {"by": "the first"}, guard=guard)
    arrays, attributes = read_group(url, "g")
    assert attributes == {"by": "the second"}
    np.testing.assert_array_equal(arrays["a"], np.full(3, 2.0))
    assert len(contents(join(url, "g"))) == 2


@pytest.mark.parametrize(("said", "length"), [("NaN", 3600), ("1e99", 3600), ("-1", 0), ("12", 12)])
def test_a_length_is_within_bounds_whatever_is_said(said, length):
    raw = leasing.Holder.me(60.0).encode().replace(b'"length_s": 60.0', b'"length_s": %s' % said.encode())
    assert leasing.Holder.parse(raw).length_s == length


@pytest.mark.parametrize("below", ["", "refine"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with (
        pytest.raises(OutputExistsError, match=r"notes\.txt is a file, where a folder is needed"),
        hold(file / below, log=LOG),
    ):
        pass
    assert file.read_text() == "mine"
