"""Workers that leave: what they computed is not computed again, and the sums are the same to the bit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask
import numpy as np
import pytest
from distributed import LocalCluster, SchedulerPlugin

from cloudem.errors import WorkerLostError
from cloudem.execution.dask.configuration import CONFIGURATION, WITHOUT_PAGES
from cloudem.execution.dask.draining import main, retire, workers_of
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.executor import Added, Fold, SerialExecutor

Sum = np.ndarray[Any, np.dtype[np.float32]]

STARTED: Counter[int] = Counter()
"""How often each item was begun; all workers are threads of this process."""

LOCK = threading.Lock()

ITEM_S = 0.08


def keys_of(item: int) -> list[str]:
    return ["all"]


def add_slowly(item: int) -> Added[str, Sum, int]:
    with LOCK:
        STARTED[item] += 1
    time.sleep(ITEM_S)
    values = np.random.default_rng(item).standard_normal(1000) * 10.0 ** (item % 7)
    return Added({"all": values.astype("f4")}, item)


def merge(earlier: Sum, later: Sum) -> Sum:
    return earlier + later


def cut(value: Sum, number: int, count: int) -> Sum:
    return np.array_split(value, count)[number]


def join(bricks: Sequence[Sum]) -> Sum:
    return np.concatenate(bricks)


FOLD: Fold[int, str, Sum, int] = Fold(keys_of, add_slowly, merge, cut, join)


class Finished(SchedulerPlugin):  # type: ignore[misc]
    """Counts how often each task was finished."""

    def __init__(self) -> None:
        self.times: Counter[str] = Counter()

    def transition(self, key: str, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        self.times[key] += (start, finish) == ("processing", "memory")


@pytest.fixture
def cluster() -> Iterator[Callable[[int], LocalCluster]]:
    """Starts workers of one thread each, set up as cloudem sets up its clusters."""
    running: list[LocalCluster] = []
    with dask.config.set(CONFIGURATION | WITHOUT_PAGES):

        def start(workers: int) -> LocalCluster:
            running.append(
                LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    processes=False,
                    protocol="tcp",
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                )
            )
            return running[-1]

        yield start
        for one in running:
            one.close()


def addresses(cluster: LocalCluster) -> list[str]:
    return sorted(worker.address for worker in cluster.workers.values())


def meanwhile(seconds: float, action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Do something after some seconds; return the thread, and the list that gets what it returns."""
    found: list[Any] = []

    def act() -> None:
        time.sleep(seconds)
        found.append(action())

    thread = threading.Thread(target=act)
    thread.start()
    return thread, found


@pytest.mark.parametrize("at_s", [0.3, 0.7])
def test_nothing_is_computed_twice(
    cluster: Callable[[int], LocalCluster], monkeypatch: pytest.MonkeyPatch, at_s: float
) -> None:
    """Three workers add 32 items; one of them is told to leave while it computes and holds partial sums."""
    monkeypatch.setattr(f"{__name__}.ITEM_S", 0.0)
    with SerialExecutor() as serial:
        sums, _ = serial.accumulate(FOLD, range(32))
        expected = serial.fetch(sums["all"])
    monkeypatch.setattr(f"{__name__}.ITEM_S", 0.08)
    STARTED.clear()
    running = cluster(3)
    finished = Finished()
    running.scheduler.add_plugin(finished)
    leaving = addresses(running)[1]
    with DaskExecutor(scheduler=running.scheduler_address) as executor:
        thread, left = meanwhile(at_s, lambda: retire(running.scheduler_address, None, [leaving], 20.0))
        sums, notes = executor.accumulate(FOLD, range(32))
        found = executor.fetch(sums["all"])
        thread.join()
    assert left == [[]]
    assert leaving not in running.scheduler.workers
    np.testing.assert_array_equal(found, expected)
    assert notes == list(range(32))
    assert {item: times for item, times in STARTED.items() if times > 1} == {}
    assert {key: times for key, times in finished.times.items() if times > 1} == {}


def test_a_worker_that_leaves_gets_no_more_items(cluster: Callable[[int], LocalCluster]) -> None:
    running = cluster(2)
    leaving, staying = addresses(running)
    with DaskExecutor(scheduler=running.scheduler_address) as executor:
        running.scheduler.handle_worker_status_change("closing_gracefully", leaving, "test")
        assert executor.workers == 1
        where = [executor.fetch(executor.share(whose)) for _ in range(3)]
        assert executor._pool.any_worker() == staying
        assert where == [staying] * 3


def whose() -> str:
    from distributed import get_worker

    return str(get_worker().address)


def test_the_only_worker_stays_until_another_comes(cluster: Callable[[int], LocalCluster]) -> None:
    running = cluster(1)
    (alone,) = addresses(running)
    STARTED.clear()
    with DaskExecutor(scheduler=running.scheduler_address) as executor:
        held = executor.share(add_slowly, 1)
        executor.fetch(held)
        assert retire(running.scheduler_address, None, [alone], 0.5) == [alone]
        assert executor.fetch(executor.share(whose)) == alone  # and it still works
        thread, left = meanwhile(0.0, lambda: retire(running.scheduler_address, None, [alone], 20.0))
        running.scale(2)
        thread.join()
        assert left == [[]]
        assert executor.fetch(held).note == 1
        assert executor.fetch(executor.share(whose)) != alone
    assert STARTED == {1: 1}


def test_time_that_is_too_short_is_said(cluster: Callable[[int], LocalCluster]) -> None:
    running = cluster(2)
    leaving = addresses(running)[0]
    with DaskExecutor(scheduler=running.scheduler_address) as executor:
        busy = executor._pool.submit(time.sleep, 2.0, worker=leaving)
        time.sleep(0.2)
        began = time.monotonic()
        assert retire(running.scheduler_address, None, [leaving], 0.6) == [leaving]
        assert time.monotonic() - began < 1.5
        del busy


def test_workers_that_are_gone_have_left(cluster: Callable[[int], LocalCluster]) -> None:
    running = cluster(1)
    assert retire(running.scheduler_address, None, ["tcp://127.0.0.1:1"], 5.0) == []
    assert retire(running.scheduler_address, None, [], 5.0) == []


def test_workers_are_known_by_their_folders(
    cluster: Callable[[int], LocalCluster], capsys: pytest.CaptureFixture[str]
) -> None:
    running = cluster(2)
    leaving, staying = (running.workers[number] for number in (0, 1))
    leaving.local_directory = "/node/local-1/dask-scratch-space/worker-abc"
    running.scheduler.workers[leaving.address].local_directory = leaving.local_directory
    assert workers_of(running.scheduler_address, None)[leaving.address] == "local-1"
    assert len(workers_of(running.scheduler_address, None)) == 2
    assert main(running.scheduler_address, "", "/node/local-1", "10") == 0
    assert list(workers_of(running.scheduler_address, None)) == [staying.address]
    assert main(running.scheduler_address, "", "/node/local-1", "10") == 0
    assert capsys.readouterr().out == ""


def test_a_scheduler_that_does_not_answer_is_named() -> None:
    with pytest.raises(WorkerLostError, match=r"the scheduler at tcp://127\.0\.0\.1:1 does not answer"):
        retire("tcp://127.0.0.1:1", None, ["tcp://127.0.0.1:2"], 1.0)
