"""Bricks from worker to worker: the same sums when those that hold parts, or a sum, die on the way."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from distributed import LocalCluster
from numpy.typing import NDArray

from cloudem.execution.dask.configuration import CONFIGURATION
from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.peer_transfer import HeldPart, Holdings, collect
from cloudem.execution.executor import Added, Fold, Pieces, SerialExecutor, itself
from cloudem.execution.reduction_tree import Subtree

Floats = NDArray[np.float32]

COUNT = 16


def one_key(item: int) -> list[str]:
    return ["sum"]


def add(item: int, folder: str) -> Added[str, Floats, int]:
    """Leave a file for each time; last bits depend on the order of addition."""
    (Path(folder) / f"{item}-{os.getpid()}-{time.monotonic_ns()}").touch()
    return Added({"sum": np.random.default_rng(item).standard_normal(999).astype("f4") * 10.0 ** (item % 5)}, item)


def merge(earlier: Floats, later: Floats) -> Floats:
    return earlier + later


def cut(value: Floats, number: int, count: int) -> Floats:
    return np.array_split(value, count)[number]


def die_cutting(value: Floats, number: int, count: int, folder: str) -> Floats:
    """Kill the process that holds a part, the first time that another asks for it."""
    mark = Path(folder) / "died"
    if number == 1 and not mark.exists():
        mark.touch()
        os._exit(1)
    return cut(value, number, count)


def fold_of(cutting: Any = cut) -> Fold[int, str, Floats, int]:
    return Fold(one_key, add, merge, cutting, np.concatenate)


def serial_sum(folder: Path) -> bytes:
    folder.mkdir()
    with SerialExecutor() as serial:
        shared = serial.share(str, str(folder))
        sums, _ = serial.accumulate(fold_of(), range(COUNT), shared=lambda item: [shared])
        return serial.fetch(sums["sum"]).tobytes()


@pytest.fixture
def executor() -> Iterator[DaskExecutor]:
    """Two worker processes of one thread."""
    with DaskExecutor(processes=True, workers=2, threads=1) as executor:
        yield executor


def test_a_part_that_is_lost_while_others_ask_for_it_is_made_again(executor: DaskExecutor, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    fold = fold_of(partial(die_cutting, folder=str(marks)))
    folder = executor.share(str, str(tmp_path))
    sums, notes = executor.accumulate(fold, range(COUNT), shared=lambda item: [folder])
    assert executor.fetch(sums["sum"]).tobytes() == serial_sum(tmp_path / "serial")
    assert notes == list(range(COUNT))
    assert (marks / "died").exists()


def test_losing_a_sum_costs_what_its_worker_held(executor: DaskExecutor, tmp_path: Path) -> None:
    added = tmp_path / "added"
    added.mkdir()
    folder = executor.share(str, str(added))
    sums, _ = executor.accumulate(fold_of(), range(COUNT), shared=lambda item: [folder])
    (dies,) = executor._pool.client.who_has([sums["sum"].handle])[sums["sum"].handle.key]
    dying = executor._pool.client.run(os.getpid, workers=[dies])[dies]
    held = [file for file in added.iterdir() if file.name.split("-")[1] == str(dying)]
    assert len(list(added.iterdir())) == COUNT
    executor._pool.client.run(os._exit, 1, workers=[dies], on_error="ignore")
    assert executor.fetch(sums["sum"]).tobytes() == serial_sum(tmp_path / "serial")
    assert len(list(added.iterdir())) == COUNT + len(held)
    assert 0 < len(held) < COUNT


async def asking_there() -> int:
    return sum("_asked" in repr(task) for task in asyncio.all_tasks())


def test_nobody_asks_for_ever_for_what_nobody_wants(executor: DaskExecutor) -> None:
    (worker, *_) = executor._pool.threads()
    holdings = executor._pool.submit(itself, Holdings([HeldPart(Subtree(0, 0), "bricks_gone", worker)]), worker=worker)
    brick = executor._pool.submit(collect, fold_of(), "sum", 0, 1, holdings, worker=worker)
    deadline = time.monotonic() + 20
    while executor._pool.client.run(asking_there, workers=[worker])[worker] != 1:
        assert time.monotonic() < deadline
    executor._pool.drop([brick])
    del brick
    while executor._pool.client.run(asking_there, workers=[worker])[worker]:
        assert time.monotonic() < deadline


def build(folder: str) -> Floats:
    (Path(folder) / f"built-{time.monotonic_ns()}").touch()
    return np.random.default_rng(0).standard_normal(10_000).astype("f4")


def whole(item: int, value: Floats) -> bytes:
    time.sleep(0.2)  # so that each worker gets one
    return value.tobytes()


def test_pieces_make_the_value_and_cross_the_network_once_for_each_worker(tmp_path: Path) -> None:
    with (
        dask.config.set(CONFIGURATION),
        LocalCluster(
            n_workers=5, threads_per_worker=1, processes=False, protocol="inproc", dashboard_address="127.0.0.1:0"
        ) as cluster,
        DaskExecutor(scheduler=cluster.scheduler_address) as executor,
    ):
        pieces = Pieces(cut, np.concatenate)
        value = executor.spread(build, str(tmp_path), local=itself, pieces=pieces, purpose="reference")
        *early, late = executor._pool.threads()
        value.handle.prepare(early)
        for worker in early:
            executor._pool.wait(value.handle.at(worker))
        received = executor.traffic()["reference"].received
        assert received == pytest.approx(3 * 40_000, rel=0.02)
        executor._pool.wait(value.handle.at(late))
        assert executor.traffic()["reference"].received - received == pytest.approx(40_000, rel=0.02)
        found = set(executor.map(whole, range(5), shared=lambda item: [value]))
    assert found == {build(str(tmp_path)).tobytes()}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_piece_that_is_lost_is_made_again(tmp_path: Path) -> None:
    with DaskExecutor(processes=True, workers=3, threads=1) as executor:
        pieces = Pieces(cut, np.concatenate)
        value = executor.spread(build, str(tmp_path), local=itself, pieces=pieces, purpose="reference")
        first, second, third = executor._pool.threads()
        value.handle.prepare([first, second, third])
        for worker in (first, second, third):
            executor._pool.wait(value.handle.at(worker))
        executor._pool.client.run(os._exit, 1, workers=[second], on_error="ignore")
        found = list(executor.map(whole, range(6), shared=lambda item: [value]))
    assert set(found) == {build(str(tmp_path)).tobytes()}
