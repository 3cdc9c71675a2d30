"""What every part needs: measured commands, maps and poses against the truth, rows of results and their tables."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from cloudem.algorithms.mask import soft_sphere
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.formats.mrc import Volume
from cloudem.io.formats.mrc_writer import write_volume
from cloudem.io.storage.groups import read_group
from cloudem.io.storage.tables import table_from_arrays
from cloudem.kernels.shells import fourier_shell_correlation
from cloudem.model.particles import Particles
from cloudem.model.poses import angle_between, euler_to_matrix

HERE = Path(__file__).resolve().parent.parent
SAMPLE_SECONDS = 0.2


class MissingError(Exception):
    """Something that a part needs is not on this machine: the part is skipped, and says so."""


class FailedError(Exception):
    """A command that a part ran has failed: the rows before it are kept, and the next part runs."""


class Cost(NamedTuple):
    """Of a command with all its children: seconds, CPU-seconds, and bytes of resident memory of all processes."""

    wall: float
    cpu: float
    peak: int

    def columns(self) -> dict[str, Any]:
        return {"CPU-s": round(self.cpu, 2), "wall s": round(self.wall, 1), "peak MiB": round(self.peak / 2**20)}


@dataclass
class Bench:
    """Where things are, how much to do, and the rows of the part that runs."""

    data: Path
    work: Path
    quick: bool
    seeds: Sequence[int]
    relion: bool = False
    relion_map: Path | None = None
    relion_minutes: float = 10.0
    whole: bool = False
    molecules: Path | None = None
    only: Sequence[str] = ()
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, *columns: Mapping[str, Any]) -> None:
        """Add a row of columns."""
        row = {name: value for part in columns for name, value in part.items()}
        self.rows.append(row)
        print("  " + ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    def few(self, many: int, quick: int) -> int:
        return quick if self.quick else many

    def need(self, path: Path) -> Path:
        if not path.exists():
            raise MissingError(f"{path} is missing (set CLOUDEM_TEST_DATA to the folder of the test data)")
        return path

    def program(self, name: str) -> str:
        found = shutil.which(name)
        if found is None:
            raise MissingError(f"{name} is not installed (Debian: apt-get install relion)")
        return found

    def fresh(self, name: str) -> Path:
        """Return the path of an output that is not there yet."""
        path = self.work / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        return path

    def cloudem(self, *arguments: Any, cwd: Path | None = None) -> Cost:
        """Run the installed command line, measured."""
        beside = Path(sys.executable).with_name("cloudem")
        command = str(beside) if beside.exists() else self.program("cloudem")
        return self.measured([command, *map(str, arguments)], cwd)

    def measured(self, command: Sequence[str], cwd: Path | None = None) -> Cost:
        """Run a command to its end; its output goes to ``commands.log``."""
        print("  $ " + " ".join(command), flush=True)
        with (self.work / "commands.log").open("ab") as log:
            log.write(("\n$ " + " ".join(command) + "\n").encode())
            log.flush()
            start = log.tell()
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=cwd or self.work, stdout=log, stderr=subprocess.STDOUT)
            sampler = MemorySampler(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            peak = max(sampler.finish(), usage.ru_maxrss * 1024)
        if process.returncode:
            said = (self.work / "commands.log").read_bytes()[start:].decode(errors="replace").strip().splitlines()
            raise FailedError("\n".join([f"failed with {process.returncode}: {' '.join(command)}", *said[-8:]]))
        return Cost(wall, usage.ru_utime + usage.ru_stime, peak)

    def warm(self) -> None:
        """Compile the kernels, which are then cached on disk: measured runs do not count it."""
        folder = self.work / "warm"
        if not folder.exists():
            self.cloudem("simulate", "--demo", "--box-px", 32, "--pixel-size-A", 7, "--count", 100, "--out", "warm")
        particles = ["--particles", folder / "particles.zarr", "--diameter-A", 160]
        self.cloudem("refine3d", *particles, "--reference", folder / "start.mrc", "--max-iterations", 3,
                     "--out", self.fresh("warm-refine"))  # fmt: skip
        self.cloudem("reconstruct", *particles, "--out", self.fresh("warm-reconstruct"))


class MemorySampler:
    """Samples the resident memory of a process and its descendants in a thread; shared pages count in each."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self) -> int:
        self._stop.set()
        self._thread.join()
        return self._peak

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            total = 0
            try:
                for process in [self._root, *self._root.children(recursive=True)]:
                    total += process.memory_info().rss
            except psutil.Error:
                continue  # it ended meanwhile
            self._peak = max(self._peak, total)


def sphere_fsc(a: NDArray[Any], b: NDArray[Any], pixel_size: float, radius_A: float) -> NDArray[np.float64]:
    """FSC inside a sphere that is 1 up to the radius and falls to 0 over the next five voxels (as ``fsc.py`` does)."""
    sphere = soft_sphere(a.shape[0], radius_A / pixel_size, 5.0)
    return fourier_shell_correlation(a * sphere, b * sphere)


def against_truth(
    bench: Bench, found: NDArray[Any], truth: Volume, radius_A: float, name: str = "map"
) -> dict[str, Any]:
    """Return where the FSC with the truth falls below 0.5 and 0.143, here and by the shared tool."""
    box, pixel_size = truth.data.shape[0], truth.pixel_size
    curve = sphere_fsc(found, truth.data, pixel_size, radius_A)
    columns: dict[str, Any] = {
        f"{name} FSC 0.5 Å": round(resolution_at(curve, box, pixel_size, 0.5), 2),
        f"{name} FSC 0.143 Å": round(resolution_at(curve, box, pixel_size), 2),
    }
    tool = bench.data.parent / "tools" / "fsc.py"
    if not tool.exists():
        print(f"  not compared with {tool}, which is missing")
        return columns
    with_files = [bench.work / f"fsc-{which}.mrc" for which in ("found", "truth")]
    for path, volume in zip(with_files, (found, truth.data), strict=True):
        write_volume(path, volume, pixel_size)
    command = [sys.executable, str(tool), *map(str, with_files), str(radius_A)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {**columns, f"{name} 0.5 by fsc.py": float(said.split("FSC0.5")[1].split()[0])}


def pose_errors(found: Particles, truth: Particles) -> dict[str, Any]:
    """Return median errors of pose and shift; rotations are compared as they are, none is fitted between them."""
    matrices = [euler_to_matrix(p["rot"], p["tilt"], p["psi"]) for p in (found, truth)]
    angle = np.degrees(angle_between(matrices[0], matrices[1]))
    shift = np.hypot(found["shift_x"] - truth["shift_x"], found["shift_y"] - truth["shift_y"])
    return {
        "pose error °": round(float(np.median(angle)), 3),
        "within 5°": round(float(np.mean(angle < 5)), 4),
        "shift error Å": round(float(np.median(shift)), 3),
    }


def refined(out: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any], Particles]:
    """Return arrays and attributes of a result, and its particles."""
    return (*read_group(out, "result"), table_from_arrays(Particles, *read_group(out, "particles")))


def refinement_columns(bench: Bench, out: Path, truth: Volume, poses: Particles, radius_A: float) -> dict[str, Any]:
    """Return what a refinement is judged by."""
    arrays, attributes, particles = refined(out)
    half = sphere_fsc(arrays["half1"], truth.data, truth.pixel_size, radius_A)
    return {
        **against_truth(bench, arrays["map_unfiltered"], truth, radius_A),
        "half FSC 0.5 Å": round(resolution_at(half, len(truth.data), truth.pixel_size, 0.5), 2),
        "stated Å": round(attributes["resolution_A"], 2),
        **pose_errors(particles, poses),
        "iterations": len(attributes["iterations"]),
    }


def commit() -> str:
    """Return the commit of the package, marked if its files differ from it."""
    if shutil.which("git") is None:
        return "unknown commit"
    package = HERE.parent / "cloudem"
    asked = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--untracked-files=no", str(package)])
    name, changed = (
        subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip() for words in asked
    )
    return name + " with changes" * bool(changed)


def machine() -> dict[str, Any]:
    """Return the machine, the date and the versions."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    packages = ("cloudem", "numpy", "scipy", "numba", "dask")
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_GiB": round(psutil.virtual_memory().total / 2**30),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"commit": commit(), "python": platform.python_version()}
        | {name: version(name) for name in packages},
    }


def results_folder(bench: Bench) -> Path:
    """Quick runs are no results: theirs lie in the work folder."""
    return bench.work / "results" if bench.quick else HERE / "results"


def save(bench: Bench, part: str, where: Mapping[str, Any]) -> None:
    """Append the rows of a part to its file, one line for each."""
    folder = results_folder(bench)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{part}.jsonl").open("a") as file:
        for row in bench.rows:
            file.write(json.dumps({"part": part, "quick": bench.quick, **where, "row": row}, ensure_ascii=False) + "\n")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as tables, a new one wherever the columns change."""
    lines: list[str] = []
    before: list[str] = []
    for row in rows:
        names = list(row)
        if names != before:
            lines += [""] * bool(lines) + ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
            before = names
        lines.append("| " + " | ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    return "\n".join(lines)


def tables(bench: Bench, titles: Mapping[str, str]) -> str:
    """Return the newest run of every part as markdown."""
    out: list[str] = []
    for part, title in titles.items():
        path = results_folder(bench) / f"{part}.jsonl"
        if not path.exists():
            out.append(f"**{title}** (`{part}`): not run yet")
            continue
        records = [json.loads(line) for line in path.read_text().splitlines()]
        last = records[-1]
        rows = [record["row"] for record in records if record["date"] == last["date"]]
        where = f"{last['cpu']}, {last['cores']} cores, {last['date'][:10]}, {last['versions']['commit']}"
        out.append(f"**{title}** (`{part}`; {where})\n\n{markdown(rows)}")
    return "\n\n".join(out)
