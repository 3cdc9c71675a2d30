"""Refinements of noise alone: in each point group, from each start, nothing may be claimed beyond the start."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

from bars.measure import Bench
from cloudem.execution.executor import SerialExecutor
from cloudem.io.storage.groups import read_attributes
from cloudem.jobs.progress import Progress
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.jobs.runner import run_job

GROUPS = ("C1", "C4", "D2", "D7", "T", "O", "I")
COUNTS = (700, 1500, 5000)
STARTS = {"27 Å": ("", 27.0), "40 Å": ("", 40.0), "60 Å": ("", 60.0), "another molecule": ("other", 20.0)}
"""Name -> whose density, and to which resolution it is filtered: that of the demo, or of one made with another seed."""


def nothing(bench: Bench) -> None:
    """Noise, 64 px of 3 Å: nothing is claimed beyond the start in 99 of 100 runs, and that is said in all."""
    counts = (200,) if bench.quick else COUNTS[: None if bench.whole else 2]
    groups = ("C1", "O") if bench.quick else GROUPS
    for count, group in itertools.product(counts, groups):
        claims, said, spent, runs = [], 0, 0.0, 0
        for seed, (whose, start) in itertools.product(bench.seeds, STARTS.values()):
            particles, density = noise_of(bench, count, seed), density_of(bench, whose)
            began = time.process_time()
            out, warnings = refined_noise(bench, particles, density, group, start)
            spent, runs = spent + time.process_time() - began, runs + 1
            resolution = float((read_attributes(out, "result") or {})["resolution_A"])
            claims += [round(resolution, 1)] if resolution < start - 1e-6 else []
            said += any("nothing is shown beyond" in text for text in warnings)
        row = {"images": count, "group": group, "runs": runs, "claims beyond the start": len(claims), "said": said}
        bench.add(row, {"claimed Å": claims or "", "CPU-s each": round(spent / runs, 1)})


def noise_of(bench: Bench, count: int, seed: int) -> Path:
    """Return a particle store of noise, with CTFs and without poses."""
    return (
        demo(bench, f"nothing-{count}-{seed}", "--snr", 0, "--count", count, "--seed", seed, "--blind")
        / "particles.zarr"
    )


def density_of(bench: Bench, whose: str) -> Path:
    """Return a density to start from."""
    return demo(bench, f"nothing-{whose or 'demo'}", "--count", 0, "--seed", 77 if whose else 0) / "density.mrc"


def demo(bench: Bench, name: str, *options: Any) -> Path:
    folder = bench.work / name
    if not folder.exists():
        bench.cloudem("simulate", "--demo", "--box-px", 64, "--pixel-size-A", 3, *options, "--out", folder)
    return folder


def refined_noise(bench: Bench, particles: Path, density: Path, group: str, start: float) -> tuple[Path, list[str]]:
    """Refine in this process; return where the result is and what was warned of."""
    out = bench.fresh("nothing-out")
    given = {"particles": str(particles), "reference": str(density), "symmetry": group, "diameter_A": 170.0}
    job = Refine3D(**given, initial_resolution_A=start, out=str(out), report=False)
    progress: Progress = run_job(job, lambda _: SerialExecutor())
    return out, progress.warnings()
