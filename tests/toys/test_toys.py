"""A job of one file goes through everything: help, dry run, plan, run, kill, resume, workflow, report, submit, status.

The toys are jobs of an installed package, as anybody's are: of cloudem's own files none names them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloudem.io.particle_store import open_particles
from cloudem.io.storage.groups import has_group, list_groups, read_attributes, read_group
from tests.jobs.conftest import make_scene

ROOT = Path(__file__).parents[2]
COUNT = 120

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which a package with the toys is installed."""
    package = tmp_path_factory.mktemp("packages")
    (package / "toys-1.0.dist-info").mkdir()
    (package / "toys-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (package / "toys-1.0.dist-info" / "entry_points.txt").write_text(
        "[cloudem.jobs]\nbrightness = tests.toys.brightness:Brightness\nhalving = tests.toys.halving:Halving\n"
    )
    cloud = {"CLOUDEM_LOCAL_CLOUD": str(package / "cloud"), "CLOUDEM_LOCAL_NAMESPACES": "0"}
    return {**os.environ, **cloud, "PYTHONPATH": f"{ROOT}{os.pathsep}{package}", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_scene(tmp_path_factory.mktemp("scene"), count=COUNT).particles)


@pytest.fixture
def cloudem(environment: dict[str, str], tmp_path: Path) -> Run:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cloudem", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
        )

    return call


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a command said that went well."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def killed_after(seen: Path, command: list[str], environment: dict[str, str], cwd: Path) -> None:
    """Kill a command when something is there."""
    with subprocess.Popen(
        [sys.executable, "-m", "cloudem", *command], cwd=cwd, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        limit = time.monotonic() + 60
        while process.poll() is None and not seen.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert seen.exists()


def test_help_and_dry_run_come_from_the_declaration(cloudem: Run, particles: str) -> None:
    assert "brightness" in said(cloudem("--help"))
    shown = said(cloudem("brightness", "--help"))
    assert "--group-size" in shown
    assert "images per task" in shown
    shown = said(cloudem("brightness", "--particles", particles, "--out", "b", "--dry-run"))
    assert f"measure: {COUNT} images, in parallel" in shown
    shown = said(cloudem("halving", "--out", "h", "--dry-run"))
    assert "halve: 8 numbers, in parallel" in shown
    wrong = cloudem("brightness", "--particles", "none.zarr", "--out", "b")
    assert wrong.returncode == 1
    assert len(wrong.stderr.splitlines()) == 1
    assert "none.zarr" in wrong.stderr


def test_it_is_killed_goes_on_and_is_reported(
    cloudem: Run, particles: str, environment: dict[str, str], tmp_path: Path
) -> None:
    command = ["brightness", "--particles", particles, "--group-size", "20", "--out", "b", "--executor", "serial"]
    killed_after(tmp_path / "b/parts/000001/zarr.json", [*command, "--pause-s", "0.3"], environment, tmp_path)
    assert not has_group(tmp_path / "b", "result")
    other = cloudem(*command)
    assert "with other parameters" in other.stderr
    shown = said(cloudem(*command, "--pause-s", "0.3"))
    assert "going on after" in shown
    arrays, _ = read_group(tmp_path / "b", "result")
    images = open_particles(particles).read_images(np.arange(COUNT))
    np.testing.assert_allclose(arrays["deviation"], images.std(axis=(1, 2)), rtol=1e-5)
    assert list_groups(tmp_path / "b", "parts") == []
    page = (tmp_path / "b" / "report.html").read_text()
    assert "<h2>Brightness</h2>" in page
    assert "standard deviation of the pixels of an image" in page
    assert "already finished" in said(cloudem(*command, "--pause-s", "0.3"))
    (tmp_path / "b" / "report.html").unlink()
    said(cloudem("report", "b"))
    assert (tmp_path / "b" / "report.html").is_file()


def test_iterations_are_killed_go_on_and_may_be_more(cloudem: Run, environment: dict[str, str], tmp_path: Path) -> None:
    command = ["halving", "--largest", "100", "--pause-s", "0.05", "--out", "h", "--executor", "serial"]
    killed_after(tmp_path / "h/iterations/002/zarr.json", command, environment, tmp_path)
    shown = said(cloudem(*command, "--max-iterations", "4"))
    assert "resuming at iteration" in shown
    assert "not converged after 4 iterations; raise --max-iterations" in shown
    assert "iteration 4, mean 3.156 Å" in shown
    assert "raise --max-iterations" in said(cloudem(*command, "--max-iterations", "4"))
    shown = said(cloudem(*command))
    assert "resuming at iteration 5" in shown
    assert "converged after 6 iterations" in shown
    said(cloudem("halving", "--largest", "100", "--pause-s", "0.05", "--out", "h2", "--workers", "2"))
    for out in ("h", "h2"):
        np.testing.assert_array_equal(read_group(tmp_path / out, "result")[0]["numbers"], np.linspace(1, 100, 8) / 64)
    assert "mean (Å)" in (tmp_path / "h" / "report.html").read_text()
    assert not has_group(tmp_path / "h", "checkpoint")


def test_plan_and_rented_machines(cloudem: Run, particles: str, tmp_path: Path) -> None:
    (tmp_path / "toys.toml").write_text(
        f'project = "{tmp_path}/project"\n'
        f'[[step]]\njob = "brightness"\nparticles = "{particles}"\ngroup_size = 20\n'
        '[[step]]\njob = "halving"\nout = "halves"\n'
    )
    graph, _, shown = said(cloudem("plan", "toys.toml", "--region", "local")).partition("plan cheapest")
    assert "● halving  run" in graph
    assert "brightness" in shown
    assert "local." in shown.partition("brightness")[2].partition("halving")[0]  # it has workers, not the head alone
    shown = said(cloudem("submit", "toys.toml", "--region", "local", "--max-usd", "1", "--max-hours", "0.5", "--yes"))
    assert "done" in shown
    for out in ("brightness", "halves"):
        assert (read_attributes(tmp_path / "project" / out, "") or {})["job"] in ("brightness", "halving")
        assert has_group(tmp_path / "project" / out, "result")
    (run,) = (tmp_path / "project" / "runs").iterdir()
    shown = said(cloudem("cluster", "status", str(run)))
    assert "done" in shown
    assert "no machine of it is running" in shown
    assert "brightness" in said(cloudem("cost", str(run)))
    assert (run / "report.html").is_file()
