"""The count of tasks of a fold, against those that the executor really submits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import dask
import numpy as np
import pytest
from distributed import LocalCluster

from cloudem.execution.dask.configuration import CONFIGURATION
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.worker_pool import WorkerPool
from cloudem.execution.executor import Added, Fold
from cloudem.execution.reduction_tree import Subtree, task_counts

Sum = np.ndarray[Any, np.dtype[np.float64]]


def half_of(item: tuple[int, int]) -> tuple[int]:
    return (item[0],)


def add_one(item: tuple[int, int]) -> Added[int, Sum, int]:
    return Added({item[0]: np.ones(8)}, item[1])


def merge(earlier: Sum, later: Sum) -> Sum:
    return earlier + later


def join(bricks: Sequence[Sum]) -> Sum:
    return np.concatenate(bricks)


def cut(value: Sum, number: int, count: int) -> Sum:
    return np.array_split(value, count)[number]


FOLD: Fold[tuple[int, int], int, Sum, int] = Fold(half_of, add_one, merge, cut, join)


def counted_by(monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], dict[int, str]]:
    """Count submitted tasks by kind, and keep the worker of each item."""
    submitted: Counter[str] = Counter()
    places: dict[int, str] = {}
    submit: Callable[..., Any] = WorkerPool.submit
    submit_all: Callable[..., Any] = WorkerPool.submit_all

    def one(self: WorkerPool, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        submitted[function.__name__.strip("_")] += 1
        return submit(self, function, *args, **options)

    def many(self: WorkerPool, function: Callable[..., Any], rows: Any, where: list[str], **options: Any) -> Any:
        submitted[function.__name__.strip("_")] += len(rows)
        if function.__name__ == "add":
            places.update({item[1]: place for (_, items, _), place in zip(rows, where, strict=True) for item in items})
        return submit_all(self, function, rows, where, **options)

    monkeypatch.setattr(WorkerPool, "submit", one)
    monkeypatch.setattr(WorkerPool, "submit_all", many)
    return submitted, places


@pytest.mark.parametrize(("workers", "items"), [(1, 8), (4, 16), (4, 22), (5, 32), (20, 80)])
def test_tasks_are_counted_as_they_are_submitted(monkeypatch: pytest.MonkeyPatch, workers: int, items: int) -> None:
    each = [(1 + 2 * index // items, index) for index in range(items)]
    submitted, places = counted_by(monkeypatch)
    with (
        dask.config.set(CONFIGURATION),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, protocol="inproc", dashboard_address="127.0.0.1:0"
        ) as cluster,
        DaskExecutor(scheduler=cluster.scheduler_address) as executor,
    ):
        sums, _ = executor.accumulate(FOLD, each)
        assert [executor.fetch(value).sum() for value in sums.values()] == [8 * items / 2] * 2
    counted = task_counts(
        [half for half, _ in each], {Subtree(0, index): places[index] for index in range(items)}
    ).counts
    names = {"holdings": "itself", "join": "join_sum", "sum": "sum_of"}
    assert submitted == +Counter({names.get(kind, kind): n for kind, n in counted.items()})


def test_with_an_item_for_each_worker_nobody_gets_two(monkeypatch: pytest.MonkeyPatch) -> None:
    _, places = counted_by(monkeypatch)
    with (
        dask.config.set(CONFIGURATION),
        LocalCluster(
            n_workers=4, threads_per_worker=1, processes=False, protocol="inproc", dashboard_address="127.0.0.1:0"
        ) as cluster,
        DaskExecutor(scheduler=cluster.scheduler_address) as executor,
    ):
        executor.accumulate(FOLD, [(1, index) for index in range(4)])
    assert len(set(places.values())) == 4
