"""How fast machines are, in threads of the reference: a shipped table, and a measurement of this machine.

The costs of a job are those of one thread of the machine on which they were measured (the *reference*). A row says by
what they are divided elsewhere. Of the shipped rows only the reference was measured; the others are scaled from clocks
and classes of processors and, for GPUs, from memory bandwidth, and have ranges as wide as that deserves. **No GPU was
measured.**
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from cloudem.cloud.nodes import InstanceType
from cloudem.errors import FormatError, parsing, shown

How: TypeAlias = Literal["measured", "scaled", "supposed"]

LOCAL = "local"
"""Family of the machine that this runs on."""

WEIGHTS: Mapping[str, float] = {"score": 0.45, "products": 0.35, "insert": 0.15, "transform": 0.05}
"""About the shares of the kernels in a refinement at 128 px."""

BOX, IMAGES, POSES = 128, 32, 128
SECONDS = 1.5
"""How long each kernel is timed."""

MEASURED_SPREAD = 1.15
"""CPU times of the same task differed by this much from run to run."""


@dataclass(frozen=True)
class SpeedRow:
    """How fast a family of machines, or a kind of GPU, is.

    Attributes
    ----------
    processor
        For people.
    core
        One thread with its core to itself, or one GPU, in threads of the reference.
    threads
        A core with all its hardware threads busy, in times of one thread: 1 without hyperthreading.
    spread
        The truth lies between ``core / spread`` and ``core * spread``.
    how
        ``measured`` only if this very kernel code ran there; ``scaled`` from other figures; ``supposed``.
    date, source
        When that was, and from what.
    cores
        Cores of the machine itself, for ``local``; 0 for others.
    """

    processor: str
    core: float
    threads: float
    spread: float
    how: How
    date: str
    source: str
    cores: int = 0

    def busy(self, type: InstanceType, tasks: int) -> float:
        """Return the speed of each of so many tasks at the same time on a machine, in threads of the reference."""
        tasks = min(max(tasks, 1), type.vcpus)
        if tasks <= type.cores:
            return self.core
        return self.core * (type.cores + (self.threads - 1) * (tasks - type.cores)) / tasks


@dataclass(frozen=True)
class Speeds:
    """The table: rows by family of machines (``c7a``) and by kind of GPU (``A10G``); "" is any other."""

    families: Mapping[str, SpeedRow]
    gpus: Mapping[str, SpeedRow]

    def of(self, type: InstanceType) -> SpeedRow:
        """Return the row of a machine's processor."""
        return self.families.get(type.name.partition(".")[0]) or self.families[""]

    def gpu(self, type: InstanceType) -> SpeedRow | None:
        """Return the row of a machine's GPUs; None where it has none."""
        return (self.gpus.get(type.gpu) or self.gpus[""]) if type.gpus else None


def speeds(path: Path | None = None) -> Speeds:
    """Return the shipped table, with this machine's own row (``path``, by default `speed_file`) if it was measured.

    Raises
    ------
    FormatError
        The file of this machine is not what `benchmark` writes.
    """
    table = _shipped()
    path = speed_file() if path is None else path
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        own = replace(table.families[LOCAL], cores=os.cpu_count() or 1)
    else:
        with parsing(f"{path} is damaged", "measure this machine again: cloudem plan --benchmark"):
            own = _checked(SpeedRow(**json.loads(raw)))
    return replace(table, families={**table.families, LOCAL: own})


def _checked(row: SpeedRow) -> SpeedRow:
    """Return a row of a file, or say what of it cannot be reckoned with."""
    for name, least, most in (("core", 1e-6, 1e6), ("threads", 0.1, 100), ("spread", 1, 1e6), ("cores", 0, 1e5)):
        value = getattr(row, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise ValueError(f"{name} is {shown(value)}, not a number from {least:g} to {most:g}")
    if not all(isinstance(text, str) for text in (row.processor, row.how, row.date, row.source)):
        raise ValueError("processor, how, date and source are not all text")
    return replace(row, cores=int(row.cores))


def speed_file() -> Path:
    """Return where this machine's row is kept: $CLOUDEM_CACHE/speed.json, or that of ~/.cache/cloudem."""
    folder = os.environ.get("CLOUDEM_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "cloudem") / "speed.json"


def keep(row: SpeedRow, path: Path | None = None) -> Path:
    """Keep this machine's row and return where."""
    path = speed_file() if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(row), indent=2), encoding="utf-8")
    return path


def benchmark() -> SpeedRow:
    """Measure one thread of this machine with the kernels of a refinement; takes about 10 s.

    Each kernel's CPU time is compared with the reference's; the speed is their mean, weighted (:data:`WEIGHTS`).
    """
    reference = _document()["kernels"]["seconds"]
    taken = time_kernels()
    slower = sum(weight * taken[name] / reference[name] for name, weight in WEIGHTS.items())
    return SpeedRow(
        processor=_processor(),
        core=1 / slower,
        threads=1.0,
        spread=MEASURED_SPREAD,
        how="measured",
        date=datetime.now(UTC).date().isoformat(),
        source="cloudem's kernels, one thread: " + ", ".join(f"{k} {1e3 * v:.3g} ms" for k, v in taken.items()),
        cores=_cores(),
    )


def time_kernels() -> dict[str, float]:
    """Return the median CPU-seconds of a call of each kernel, one thread."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        return {name: _median(run) for name, run in _kernels().items()}


def _median(run: Callable[[], Any]) -> float:
    run()  # compiles
    taken: list[float] = []
    began = time.monotonic()
    while len(taken) < 3 or time.monotonic() < began + SECONDS:
        start = time.thread_time()
        run()
        taken.append(time.thread_time() - start)
    return float(np.median(taken))


def _kernels() -> dict[str, Callable[[], Any]]:
    """Return a call of each kernel, as a refinement at 128 px makes them."""
    from cloudem.kernels.fourier import fourier_images, half_disc
    from cloudem.kernels.polar import Workspace, best_rotations, harmonics, polar_grid, rotation_scores
    from cloudem.kernels.slices import half_width, insert, padded_box, score_derivatives

    random = np.random.default_rng(0)
    k_max, padding = int(0.7 * BOX / 2), padded_box(BOX) / BOX
    disc, m = half_disc(BOX, k_max), half_width(k_max, padding)

    def complex_of(*shape: int) -> Any:
        return random.normal(size=(*shape, 2)).astype(np.float32).view(np.complex64)[..., 0]

    volume, pixels = complex_of(2 * m + 1, 2 * m + 1, m + 2), len(disc.kx)
    sums, weights = np.zeros_like(volume), np.zeros(volume.shape, np.float32)
    turned = np.linalg.qr(np.eye(3) + 0.1 * random.normal(size=(POSES, 3, 3)))[0]  # neighbours in direction
    rows, shifts = random.integers(0, IMAGES, POSES).astype(np.int32), random.normal(size=(POSES, 2))
    data: Any = (complex_of(IMAGES, pixels), np.ones((IMAGES, pixels), np.float32), disc.kx, disc.ky, padding, BOX)
    images = random.normal(size=(IMAGES, BOX, BOX)).astype(np.float32)
    grid = polar_grid(17, 0.4 * BOX, BOX)

    def polar(count: int) -> Any:
        samples = random.normal(size=(2, count, grid.k_max, grid.angles // 2)).astype(np.float32)
        return harmonics(samples[0], samples[1], grid)

    searched, slices, offset, workspace = polar(37), polar(96), np.zeros(37, np.float32), Workspace()
    return {
        "score": lambda: score_derivatives(volume, rows, turned, shifts, *data),
        "products": lambda: best_rotations(*rotation_scores(searched, slices, grid, offset, workspace), 37),
        "insert": lambda: insert(sums, weights, rows, turned, shifts, np.ones(POSES), *data),
        "transform": lambda: fourier_images(images),
    }


def _cores() -> int:
    import psutil

    return int(psutil.cpu_count(logical=False) or os.cpu_count() or 1)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "this machine"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "this machine")


@cache
def _document() -> dict[str, Any]:
    text = resources.files("cloudem.cloud").joinpath("data/speeds.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


@cache
def _shipped() -> Speeds:
    document = _document()
    gpus = {kind: SpeedRow(**{"processor": kind, "threads": 1.0, **row}) for kind, row in document["gpus"].items()}
    table = Speeds({name: SpeedRow(**row) for name, row in document["families"].items()}, gpus)
    for row in (*table.families.values(), *table.gpus.values()):
        if not (row.core > 0 and row.spread >= 1 and math.isfinite(row.core * row.spread)):
            raise FormatError(f"data/speeds.json: the row of {row.processor} is none")
    return table
