"""What every executor promises; each of them runs through the same tests."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError, MissingColumnError, WorkerLostError
from cloudem.execution.dask import DaskExecutor
from cloudem.execution.executor import Executor, Fold, SerialExecutor

Float32 = NDArray[np.float32]

KINDS = ("serial", "threads", "processes", "scheduler")


@pytest.fixture(scope="module")
def executors() -> Iterator[Callable[[str], Executor]]:
    """Start each kind once; the embedded ones with more threads than cores, so that tasks overtake each other."""
    from distributed import LocalCluster

    running: dict[str, Executor] = {}
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        protocol="tcp",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        make: dict[str, Callable[[], Executor]] = {
            "serial": SerialExecutor,
            "threads": lambda: DaskExecutor(threads=3),
            "processes": lambda: DaskExecutor(processes=True, workers=2, threads=1),
            "scheduler": lambda: DaskExecutor(scheduler=cluster.scheduler_address),
        }

        def get(kind: str) -> Executor:
            if kind not in running:
                running[kind] = make[kind]()
            return running[kind]

        yield get
        for executor in reversed(running.values()):
            executor.close()


@pytest.fixture(params=KINDS)
def executor(request: pytest.FixtureRequest, executors: Callable[[str], Executor]) -> Executor:
    return executors(request.param)


# Tasks; worker processes import them from here.


def dawdle(item: int, *shared: int) -> int:
    """Take the longer, the earlier the item: later ones finish first."""
    time.sleep(0.02 / (1 + item))
    return item + sum(shared)


def noisy_parts(item: int, size: int) -> dict[object, Float32]:
    """Sums whose last bits depend on the order of addition, some keys only in some items."""
    time.sleep(random.Random(item).random() * 0.01)
    values = np.random.default_rng(item).standard_normal((2, size)).astype(np.float32) * 10.0 ** (item % 7)
    parts: dict[object, Float32] = {("half", 1 + item % 2): values[0], "all": values[1]}
    if item == 3:
        parts["late"] = values[0].copy()
    return parts


def add_in_place(earlier: Float32, later: Float32) -> Float32:
    earlier += later
    return earlier


def halve(key: object, value: Float32) -> tuple[str, Float32]:
    return str(key), value / np.float32(2)


SUMS = Fold(add=noisy_parts, merge=add_in_place, finalise=halve)


def fail_on_four(item: int) -> int:
    if item == 4:
        raise MissingColumnError("particles have no column 'defocus_u'; import them again with CTF columns")
    return item


def fail_on_four_parts(item: int) -> dict[str, int]:
    return {"sum": fail_on_four(item)}


def merge_badly(earlier: int, later: int) -> int:
    raise InconsistentDataError("sums of box 64 and 96 cannot be merged")


def plus(earlier: int, later: int) -> int:
    return earlier + later


def keep(key: object, value: int) -> int:
    return value


def build_and_count(folder: str, value: int, *others: int) -> int:
    (Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return value + sum(others)


def bump(counter: list[int], index: int) -> None:
    counter.append(index)


def touch(item: int, folder: str) -> int:
    (Path(folder) / str(item)).touch()
    return item


def touch_parts(item: int, folder: str) -> dict[str, int]:
    return {"sum": touch(item, folder)}


def die_once(item: int, folder: str) -> dict[str, Float32]:
    """Kill the worker process the first time that item 5 comes by."""
    mark = Path(folder) / "died"
    if item == 5 and not mark.exists():
        mark.touch()
        os._exit(1)
    return {"sum": np.full(1000, np.float32(1.1) ** item)}


def die_always(item: int) -> int:
    os._exit(1)


def count_blas_threads(item: int) -> int:
    import threadpoolctl

    _ = np.ones((4, 4)) @ np.ones((4, 4))
    return max((int(library["num_threads"]) for library in threadpoolctl.threadpool_info()), default=1)


def test_map_keeps_the_order_of_the_items(executor: Executor) -> None:
    done: list[int] = []
    assert list(executor.map(dawdle, range(12), on_done=done.append)) == list(range(12))
    assert done == list(range(12))


def test_map_of_nothing(executor: Executor) -> None:
    assert list(executor.map(dawdle, [])) == []
    assert executor.accumulate(SUMS, [], executor.share(int, 3)) == {}


def test_map_reads_shared_values_after_the_item(executor: Executor) -> None:
    ten, two = executor.share(int, 10), executor.share(int, 2)
    assert list(executor.map(dawdle, [1, 2], ten, two)) == [13, 14]


def test_a_shared_value_is_built_once_and_may_use_others(executor: Executor, tmp_path: Path) -> None:
    first = executor.share(build_and_count, str(tmp_path), 10)
    second = executor.share(build_and_count, str(tmp_path), 1, first)
    assert list(executor.map(dawdle, range(8), second)) == [item + 11 for item in range(8)]
    assert len(list(tmp_path.iterdir())) == 2


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(st.integers(0, 50), min_size=1, max_size=25))
def test_sums_are_those_of_the_serial_executor_to_the_bit(executor: Executor, items: list[int]) -> None:
    with SerialExecutor() as serial:
        expected = serial.accumulate(SUMS, items, serial.share(int, 1000))
    found = executor.accumulate(SUMS, items, executor.share(int, 1000))
    assert list(found) == list(expected)
    for key, (name, values) in expected.items():
        assert found[key][0] == name
        assert found[key][1].tobytes() == values.tobytes()


def test_sums_match_a_plain_loop_to_the_bit() -> None:
    total = np.zeros(100, np.float32)
    for item in range(9):
        total = total + noisy_parts(item, 100)["all"] if item else noisy_parts(item, 100)["all"]
    with SerialExecutor() as serial:
        found = serial.accumulate(SUMS, range(9), serial.share(int, 100))
    assert found["all"][1].tobytes() == (total / np.float32(2)).tobytes()


def test_accumulate_tells_which_items_are_done(executor: Executor) -> None:
    done: list[int] = []
    executor.accumulate(SUMS, range(7), executor.share(int, 10), on_done=partial(bump, done))
    assert done == list(range(7))


def test_an_exception_of_a_task_comes_through_as_it_is(executor: Executor) -> None:
    results = executor.map(fail_on_four, range(8))
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(MissingColumnError, match=r"^particles have no column 'defocus_u'; import them again"):
        next(results)
    with pytest.raises(MissingColumnError):
        executor.accumulate(Fold(fail_on_four_parts, plus, keep), range(8))
    with pytest.raises(InconsistentDataError, match="box 64 and 96"):
        executor.accumulate(Fold(lambda item: {"sum": item}, merge_badly, keep), range(3))
    assert list(executor.map(dawdle, [7])) == [7]  # it is still good for work


def test_map_is_lazy_and_bounded(executor: Executor, tmp_path: Path) -> None:
    folder = executor.share(str, str(tmp_path))
    results = executor.map(touch, range(100), folder)
    assert [next(results), next(results)] == [0, 1]
    time.sleep(0.2)
    assert 2 <= len(list(tmp_path.iterdir())) <= 2 + 2 * executor.workers
    del results


def test_accumulate_is_bounded(executor: Executor, tmp_path: Path) -> None:
    ahead: list[int] = []

    def count(index: int) -> None:
        ahead.append(len(list(tmp_path.iterdir())) - index - 1)

    total = executor.accumulate(
        Fold(touch_parts, plus, keep), range(60), executor.share(str, str(tmp_path)), on_done=count
    )
    assert total == {"sum": sum(range(60))}
    assert max(ahead) <= 2 * executor.workers


def test_numerical_libraries_use_one_thread_in_a_task(executor: Executor) -> None:
    assert set(executor.map(count_blas_threads, range(4))) == {1} or executor.description.startswith("Dask at")


def test_the_environment_is_as_before_after_closing() -> None:
    before = dict(os.environ)
    with DaskExecutor(threads=1) as executor:
        assert executor.workers == 1
    assert dict(os.environ) == before


def test_a_killed_worker_is_survived_with_the_same_sums(executors: Callable[[str], Executor], tmp_path: Path) -> None:
    fold = Fold(die_once, add_in_place, keep)
    executor = executors("processes")
    found = executor.accumulate(fold, range(12), executor.share(str, str(tmp_path)))
    assert (tmp_path / "died").exists()
    with SerialExecutor() as serial:
        expected = serial.accumulate(fold, range(12), serial.share(str, str(tmp_path)))
    assert found["sum"].tobytes() == expected["sum"].tobytes()


def test_a_task_that_kills_every_worker_ends_in_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudem.execution import dask

    monkeypatch.setitem(dask.CONFIGURATION, "distributed.scheduler.allowed-failures", 0)
    with (
        DaskExecutor(processes=True, workers=1, threads=1) as executor,
        pytest.raises(WorkerLostError, match="try fewer threads"),
    ):
        list(executor.map(die_always, [1]))


def test_an_interrupt_leaves_no_threads_behind() -> None:
    before = set(threading.enumerate())

    def interrupt(index: int) -> None:
        if index == 2:
            raise KeyboardInterrupt

    for _ in range(2):  # and a second run starts as if there had been none
        with pytest.raises(KeyboardInterrupt), DaskExecutor(threads=2) as executor:
            executor.accumulate(SUMS, range(50), executor.share(int, 10), on_done=interrupt)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [t.name for t in set(threading.enumerate()) - before if not t.name.startswith("Dask-Offload")]
        if not left:
            break
        time.sleep(0.05)
    assert not left  # the offload thread belongs to Dask's module and is kept for the next cluster
