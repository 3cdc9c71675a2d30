"""A worker for each GPU: which GPUs there are, told by the environment or a driver, and real processes on each."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from cloudem.errors import ParameterError
from cloudem.execution import gpus
from cloudem.execution.gpus import VISIBLE, choose_gpus, gpus_here
from tests.execution.dask.test_cluster import ROOT, free_ports

NAMES = ["3", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "MIG-b2ae2e5b-7b4f-5b9a-8d5f-1b6c6c5f1b8a"]

DRIVER = """
#include <stdio.h>
int nvmlInit_v2(void) { puts("init"); return INIT; }
int nvmlDeviceGetCount_v2(unsigned int *count) { puts("count"); *count = 3; return COUNT; }
int nvmlShutdown(void) { puts("shutdown"); return 0; }
"""


@pytest.fixture(autouse=True)
def _cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy is there, whether it is or not."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", ["0"]),
        (" 2, 0 ", ["2", "0"]),
        ("1,-1,0", ["1"]),
        ("1,,0", ["1"]),
        (",".join(NAMES), NAMES),
        ("MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0", ["MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/0"]),
    ],
)
def test_the_environment_says_which_gpus_there_are_and_is_passed_on_as_it_is(monkeypatch, said, found) -> None:
    monkeypatch.setenv(VISIBLE, said)
    assert gpus_here() == found


@pytest.mark.parametrize(
    ("wanted", "found"), [("auto", NAMES), ("none", []), ("0", []), ("1", NAMES[:1]), ("02", NAMES[:2]), ("3", NAMES)]
)
def test_as_many_are_taken_as_are_wanted(monkeypatch, wanted, found) -> None:
    monkeypatch.setenv(VISIBLE, ",".join(NAMES))
    assert choose_gpus(wanted, pytest.fail) == found


def test_what_cannot_be_had_is_one_line(monkeypatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    with pytest.raises(ParameterError, match=r"^--gpus: got 3, but this machine has 2 \(CUDA_VISIBLE_DEVICES is '0,1'"):
        choose_gpus("3", pytest.fail)
    for wrong in ("four", "-1", "", "1.5", "²"):
        with pytest.raises(ParameterError, match="needs auto, none or how many"):
            choose_gpus(wrong, pytest.fail)
    monkeypatch.delenv(VISIBLE)
    monkeypatch.setattr(gpus, "NVML", "libno-such-driver.so.1")
    with pytest.raises(ParameterError, match=r"got 1, but this machine has 0 \(as the NVIDIA driver tells\)"):
        choose_gpus("1", pytest.fail)


def test_gpus_that_nothing_could_use_are_left_alone_and_said(monkeypatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    assert choose_gpus("auto", said.append) == []
    assert said == ["GPUs are not used (2 found): CuPy is not installed; try pip install 'cloudem[gpu]'"]
    with pytest.raises(ParameterError, match="but CuPy is not installed"):
        choose_gpus("1", pytest.fail)


@pytest.mark.parametrize(
    ("source", "found", "calls"),
    [
        (DRIVER.replace("INIT", "0").replace("COUNT", "0"), ["0", "1", "2"], "init count shutdown"),
        (DRIVER.replace("INIT", "9").replace("COUNT", "0"), [], "init"),
        (DRIVER.replace("INIT", "0").replace("COUNT", "999"), [], "init count shutdown"),
        ("int other(void) { return 0; }", [], ""),
        (None, [], ""),
    ],
    ids=["three", "not loaded", "lost", "other", "missing"],
)
def test_a_driver_is_asked_how_many_there_are(tmp_path: Path, source: str | None, found: list[str], calls: str) -> None:
    if source is not None:
        (tmp_path / "driver.c").write_text(source)
        library = tmp_path / gpus.NVML
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "driver.c"], check=True)
    code = "from cloudem.execution.gpus import gpus_here; print(gpus_here(), flush=True)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert sorted(done.stdout.splitlines()) == sorted([*calls.split(), str(found)])


# --- Real processes -------------------------------------------------------------------------------------------------


def with_cupy(folder: Path) -> str:
    """Return where Python finds cloudem, and a CuPy that cannot be used."""
    (folder / "cupy.py").write_text('raise ImportError("there is no GPU here")\n')
    return f"{ROOT}:{folder}"


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Start `cloudem cluster` with arguments and an environment; return its log."""
    running: list[subprocess.Popen[Any]] = []
    path = with_cupy(tmp_path)

    def start(*arguments: str, **environment: str) -> Path:
        log = tmp_path / f"{len(running)}.log"
        with log.open("w") as file:
            argv = [sys.executable, "-m", "cloudem", "cluster", *arguments]
            env = {"PYTHONPATH": path, "PATH": os.environ["PATH"], **environment}
            running.append(subprocess.Popen(argv, cwd=tmp_path, env=env, stdout=file, stderr=file))
        return log

    yield start
    for process in reversed(running):
        process.terminate()
    assert [process.wait(timeout=20) for process in running] == [0] * len(running)


def eventually(holds: Callable[[], object], log: Path) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def sight() -> tuple[int, str | None, str | None]:
    return os.getpid(), os.environ.get(VISIBLE), os.environ.get("NUMBA_NUM_THREADS")


def test_each_gpu_has_a_process_of_its_own_and_the_death_of_one_leaves_the_others(started) -> None:
    (port,) = free_ports(1)
    address = f"tcp://127.0.0.1:{port}"
    started("scheduler", "--insecure", "--port", str(port))
    log = started("worker", address, **{VISIBLE: ",".join(NAMES)})
    blind = started("worker", address, "--gpus", "none", "--threads", "3", **{VISIBLE: "0,1"})
    eventually(lambda: (log.read_text() + blind.read_text()).count(" is at ") == 4, log)
    for name in NAMES:
        assert f" with 1 threads on GPU {name} is at {address}\n" in log.read_text()
    with Client(address, set_as_default=False) as client:
        before = client.run(sight)
        assert sorted(visible for _, visible, _ in before.values()) == sorted([*NAMES, ""])
        assert {threads for *_, threads in before.values()} == {"1"}
        assert len({pid for pid, *_ in before.values()}) == 4
        assert client.nthreads() == {worker: 1 if visible else 3 for worker, (_, visible, _) in before.items()}
        dead, (pid, visible, _) = next(each for each in before.items() if each[1][1])
        psutil.Process(pid).kill()
        eventually(lambda: " has taken its place" in log.read_text(), log)
        after = client.run(sight)
    assert dead not in after
    (new,) = after.keys() - before.keys()
    assert after[new][1] == visible
    assert {k: v for k, v in after.items() if k != new} == {k: v for k, v in before.items() if k != dead}
    assert log.read_text().count(" has died (SIGKILL); starting it again") == 1


def test_workers_without_and_with_gpus_are_not_asked_for_at_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "cloudem", "cluster", "worker", "tcp://127.0.0.1:1", "--workers", "3"]
    env = {"PYTHONPATH": with_cupy(tmp_path), "PATH": os.environ["PATH"], VISIBLE: "0,1"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "cloudem: --workers: got 3, but each of the 2 GPUs gets one worker; leave it out, or give --gpus none\n"
    )
