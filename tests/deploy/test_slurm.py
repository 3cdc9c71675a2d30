"""The batch script, on a Slurm that is played by two small programs: processes and certificates are real."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.test_account import DEPLOY

SCRIPT = DEPLOY / "slurm" / "cloudem.sbatch"
NODES = 2

SRUN = """#!/bin/bash
# Run the command once for each node, until all have ended; as Slurm does, pass signals on.
nodes=1
while [[ $1 == --* ]]; do [[ $1 == --nodes=* ]] && nodes=${1#*=}; shift; done
pids=()
trap 'kill -TERM "${pids[@]}"' TERM
for _ in $(seq "$nodes"); do "$@" & pids+=($!); done
wait; wait
"""
SCONTROL = """#!/bin/bash
case $1 in
show) echo localhost; echo other ;;
requeue) echo "$2" >>"$SLURM_SUBMIT_DIR/requeued" ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "bin"
    programs.mkdir()
    cloudem = f'#!/bin/sh\nexec {sys.executable} -m cloudem "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "cloudem": cloudem}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CLOUDEM_ADDRESS": "127.0.0.1",
        "PYTHONPATH": str(DEPLOY.parent),
        "SLURM_JOB_ID": str(10_000 + os.getpid() % 10_000),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": str(NODES),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }


def _job(tmp_path: Path, environment: dict[str, str], count: int) -> Path:
    simulate = ["cloudem", "simulate", "--demo", "--out", "truth", "--count", str(count), "--box-px", "32"]
    argv = [*simulate, "--pixel-size-A", "6"]
    subprocess.run(argv, cwd=tmp_path, env=environment, check=True, timeout=100, capture_output=True)
    job = tmp_path / "job.toml"
    job.write_text('job = "reconstruct"\nparticles = "truth/particles.zarr"\nout = "rec"\nreport = false\n')
    return job


def _start(tmp_path: Path, environment: dict[str, str], job: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(SCRIPT), str(job)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _left(leader: int, patience_s: float = 10.0) -> list[int]:
    """Return what is left of a session after a moment in which Python's own helpers end."""
    end = time.monotonic() + patience_s
    while (found := _processes(leader)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def _processes(leader: int) -> list[int]:
    """Return what is left of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            found.append(int(stat.parent.name))
    return found


def test_a_job_runs_on_all_nodes_and_leaves_nothing(tmp_path: Path, environment: dict[str, str]) -> None:
    job = _job(tmp_path, environment, 200)
    with _start(tmp_path, environment, job) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert len(set(re.findall(r"worker (tls://\S+) with 1 threads is at", said))) == NODES, said
    assert (tmp_path / "rec").is_dir()
    assert not list(tmp_path.glob("cloudem-*"))  # the certificates
    assert _left(process.pid) == []
    assert not (tmp_path / "requeued").exists()


def test_before_its_time_is_over_it_stops_and_is_queued_again(tmp_path: Path, environment: dict[str, str]) -> None:
    listens = f'exec {sys.executable} -m http.server --bind "$4" "$6"'  # cluster scheduler --host $4 --port $6
    (tmp_path / "bin" / "cloudem").write_text(
        f'#!/bin/bash\ncase "$1 $2" in\n"cluster certificates") mkdir -p "$4" ;;\n"cluster scheduler") {listens} ;;\n'
        '"cluster worker") exec sleep 60 ;;\n'
        'run*) trap "exit 130" TERM; echo runs; while :; do sleep 0.1; done ;;\nesac\n'
    )
    with _start(tmp_path, environment, tmp_path / "job.toml") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("runs"):
                break
        begun = time.monotonic()
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - begun < 30
    assert (tmp_path / "requeued").read_text().strip() == environment["SLURM_JOB_ID"]
    assert not list(tmp_path.glob("cloudem-*"))
    assert _left(process.pid) == []
