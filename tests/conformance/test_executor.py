"""What every executor promises; each of them runs through the same tests."""

from __future__ import annotations

import operator
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cloudem.errors import InconsistentDataError, MissingColumnError, WorkerLostError
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.executor import Added, Executor, Fold, SerialExecutor
from cloudem.execution.reduction_tree import MOST_TOGETHER
from cloudem.traffic import Traffic

Floats = NDArray[np.floating[Any]]

KINDS = ("serial", "threads", "processes", "scheduler")


@pytest.fixture(scope="module")
def executors() -> Iterator[Callable[[str], Executor]]:
    """Start each kind once; the embedded ones with more threads than cores, so that tasks overtake each other."""
    import dask
    from distributed import LocalCluster

    running: dict[str, Executor] = {}
    with (
        dask.config.set({"distributed.scheduler.work-stealing": False}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
        ) as cluster,
    ):
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


def keys_of(item: int) -> list[object]:
    return [("half", 1 + item % 2), "all", *(["late"] if item == 3 else [])]


def noisy_parts(item: int, size: int, dtype: str = "f4") -> Added[object, Floats, str]:
    """Sums whose last bits depend on the order of addition, some keys only in some items."""
    time.sleep(random.Random(item).random() * 0.01)
    values = (np.random.default_rng(item).standard_normal((2, size)) * 10.0 ** (item % 7)).astype(dtype)
    parts: dict[object, Floats] = {("half", 1 + item % 2): values[0], "all": values[1]}
    if item == 3:
        parts["late"] = values[0].copy()
    return Added(parts, f"item {item}")


def add(earlier: Floats, later: Floats) -> Floats:
    return earlier + later


def cut(value: Floats, number: int, count: int) -> Floats:
    return np.array_split(value, count)[number]


SUMS: Fold[int, object, Floats, str] = Fold(keys_of, noisy_parts, add, cut, np.concatenate)


def summed(executor: Executor, items: Sequence[int], *args: Any, **options: Any) -> tuple[dict[object, Any], list[str]]:
    """Accumulate, and fetch everything."""
    shared = [executor.share(value_of, arg) for arg in args]
    sums, notes = executor.accumulate(SUMS, items, shared=lambda item: shared, **options)
    return {key: executor.fetch(value) for key, value in sums.items()}, notes


def value_of(value: Any) -> Any:
    return value


def one_key(item: int) -> list[str]:
    return ["sum"]


def counting(add_item: Callable[..., Any], merge: Callable[[Any, Any], Any] = operator.add) -> Fold[Any, Any, Any, Any]:
    """A fold of one key whose sums are not worth cutting: brick 0 is all of it."""
    return Fold(one_key, add_item, merge, first_takes_all, sum)


def first_takes_all(value: Any, number: int, count: int) -> Any:
    return value if number == 0 else 0 * value


def fail_on_four(item: int) -> int:
    if item == 4:
        raise MissingColumnError("particles have no column 'defocus_u'; import them again with CTF columns")
    return item


def fail_on_four_parts(item: int) -> Added[str, int, None]:
    return Added({"sum": fail_on_four(item)}, None)


def merge_badly(earlier: int, later: int) -> int:
    raise InconsistentDataError("sums of box 64 and 96 cannot be merged")


def build_and_count(folder: str, value: int, *others: int) -> int:
    (Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return value + sum(others)


def touch(item: int, folder: str) -> int:
    (Path(folder) / str(item)).touch()
    return item


def touch_parts(item: int, folder: str) -> Added[str, int, None]:
    return Added({"sum": touch(item, folder)}, None)


def die_once(item: int, folder: str) -> Added[str, Floats, int]:
    """Kill the worker process the first time that item 5 comes by."""
    mark = Path(folder) / "died"
    if item == 5 and not mark.exists():
        mark.touch()
        os._exit(1)
    return Added({"sum": np.full(1000, np.float32(1.1) ** item)}, item)


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
    assert summed(executor, [], 3) == ({}, [])


def test_map_reads_shared_values_after_the_item(executor: Executor) -> None:
    ten, two = executor.share(int, 10), executor.share(int, 2)
    assert list(executor.map(dawdle, [1, 2], shared=lambda item: (ten, two))) == [13, 14]
    assert list(executor.map(dawdle, [1, 2], shared=lambda item: [ten][:item])) == [11, 12]


def test_a_shared_value_is_built_once_and_may_use_others(executor: Executor, tmp_path: Path) -> None:
    first = executor.share(build_and_count, str(tmp_path), 10)
    second = executor.share(build_and_count, str(tmp_path), 1, first)
    assert list(executor.map(dawdle, range(8), shared=lambda item: [second])) == [item + 11 for item in range(8)]
    assert executor.fetch(second) == 11
    assert len(list(tmp_path.iterdir())) == 2


def test_each_worker_makes_its_own_of_a_shared_value(executor: Executor, tmp_path: Path) -> None:
    built = executor.spread(build_and_count, str(tmp_path), 10, local=partial(operator.add, 5))
    assert list(executor.map(dawdle, range(8), shared=lambda item: [built])) == [item + 15 for item in range(8)]
    assert executor.fetch(built) == 15
    assert len(list(tmp_path.iterdir())) == 1


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(st.integers(0, 50), min_size=1, max_size=25))
def test_sums_are_those_of_the_serial_executor_to_the_bit(executor: Executor, items: list[int]) -> None:
    with SerialExecutor() as serial:
        expected, notes = summed(serial, items, 1000)
    found, told = summed(executor, items, 1000)
    assert told == notes == [f"item {item}" for item in items]
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert found[key].tobytes() == values.tobytes()


@pytest.mark.parametrize(("dtype", "tolerance"), [("f8", 1e-12), ("f4", 1e-5)])
def test_without_a_fixed_order_sums_differ_by_rounding_alone(executors: Any, dtype: str, tolerance: float) -> None:
    with SerialExecutor() as serial:
        expected, notes = summed(serial, range(23), 1000, dtype)
    address = executors("scheduler")._pool.client.scheduler.address
    with DaskExecutor(scheduler=address, fixed_order=False) as executor:
        found, told = summed(executor, range(23), 1000, dtype)
    assert told == notes
    for key, values in expected.items():
        assert np.abs(found[key] - values).max() <= tolerance * np.abs(values).max()


def test_sums_match_a_plain_tree_to_the_bit() -> None:
    def tree(items: range) -> Floats:
        if len(items) == 1:
            return noisy_parts(items[0], 100).sums["all"]
        middle = 1 << (len(items) - 1).bit_length() - 1
        return tree(items[:middle]) + tree(items[middle:])

    with SerialExecutor() as serial:
        found, _ = summed(serial, range(9), 100)
    assert found["all"].tobytes() == tree(range(9)).tobytes()


def test_accumulate_tells_which_items_are_done(executor: Executor) -> None:
    done: list[int] = []
    summed(executor, range(7), 10, on_done=done.append)
    assert sorted(done) == list(range(7))


def quiet(executor: Executor) -> dict[str, Traffic]:
    """Return the counters once they stand still.

    Workers of the kind "scheduler" live in this process, and may still hand on a result of the test before.
    """
    last: dict[str, Traffic] = {}
    while (now := executor.traffic()) != last:
        last = now
        time.sleep(0.2)
    return last


def test_bytes_are_counted_by_what_they_are_for(executor: Executor) -> None:
    before = quiet(executor)
    summed(executor, range(16), 100_000)
    moved = {purpose: value.minus(before[purpose]) for purpose, value in executor.traffic().items()}
    if executor.description.startswith(("serial", "Dask, 3 threads")):
        assert set(moved.values()) == {(0, 0)}
    else:  # at least half of three sums; far less than the 32 that the items make
        size = 400_000
        assert 1.5 * size <= moved["bricks"].received <= 16 * size
        assert moved["images"] == (0, 0)


def test_an_exception_of_a_task_comes_through_as_it_is(executor: Executor) -> None:
    results = executor.map(fail_on_four, range(8))
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(MissingColumnError, match=r"^particles have no column 'defocus_u'; import them again"):
        next(results)
    with pytest.raises(MissingColumnError):
        executor.accumulate(counting(fail_on_four_parts), range(8))
    with pytest.raises(InconsistentDataError, match="box 64 and 96"):
        executor.accumulate(counting(lambda item: Added({"sum": item}, None), merge_badly), range(3))
    assert list(executor.map(dawdle, [7])) == [7]  # it is still good for work


def test_map_is_lazy_and_bounded(executor: Executor, tmp_path: Path) -> None:
    folder = executor.share(str, str(tmp_path))
    results = executor.map(touch, range(100), shared=lambda item: [folder])
    assert [next(results), next(results)] == [0, 1]
    time.sleep(0.2)
    assert 2 <= len(list(tmp_path.iterdir())) <= 2 + 2 * executor.workers
    del results


def test_accumulate_is_bounded(executor: Executor, tmp_path: Path) -> None:
    ahead: list[int] = []

    def count(index: int) -> None:
        ahead.append(len(list(tmp_path.iterdir())) - len(ahead) - 1)

    folder = executor.share(str, str(tmp_path))
    sums, _ = executor.accumulate(counting(touch_parts), range(160), shared=lambda item: [folder], on_done=count)
    assert executor.fetch(sums["sum"]) == sum(range(160))
    together = MOST_TOGETHER if "processes" in executor.description or "Dask at" in executor.description else 1
    assert max(ahead) <= 2 * executor.workers * together


def test_numerical_libraries_use_one_thread_in_a_task(executor: Executor) -> None:
    assert set(executor.map(count_blas_threads, range(4))) == {1} or executor.description.startswith("Dask at")


def test_the_environment_is_as_before_after_closing() -> None:
    before = dict(os.environ)
    with DaskExecutor(threads=1) as executor:
        assert executor.workers == 1
    assert dict(os.environ) == before


def test_a_killed_worker_is_survived_with_the_same_sums(executors: Callable[[str], Executor], tmp_path: Path) -> None:
    executor = executors("processes")
    folder = executor.share(str, str(tmp_path))
    found, notes = executor.accumulate(counting(die_once, add), range(12), shared=lambda item: [folder])
    assert (tmp_path / "died").exists()
    assert notes == list(range(12))
    with SerialExecutor() as serial:
        same = serial.share(str, str(tmp_path))
        expected, _ = serial.accumulate(counting(die_once, add), range(12), shared=lambda item: [same])
        assert executor.fetch(found["sum"]).tobytes() == serial.fetch(expected["sum"]).tobytes()


def test_a_task_that_kills_every_worker_ends_in_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudem.execution.dask.configuration import CONFIGURATION

    monkeypatch.setitem(CONFIGURATION, "distributed.scheduler.allowed-failures", 0)
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
            summed(executor, range(50), 10, on_done=interrupt)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [t.name for t in set(threading.enumerate()) - before if not t.name.startswith("Dask-Offload")]
        if not left:
            break
        time.sleep(0.05)
    assert not left  # the offload thread belongs to Dask's module and is kept for the next cluster
