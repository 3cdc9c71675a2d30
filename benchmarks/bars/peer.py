"""RELION's auto-refinement on the same machine: a few iterations on two subsets, extrapolated to all particles."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np

from bars.measure import Bench
from bars.sets import RIBOSOME, relion_version
from cloudem.io.formats.star import read_star, write_star

BOX = 128
SUBSETS = (200, 500)
ITERATIONS = 18
"""Of RELION's auto-refinement of the 2,000 × 96 px set from 40 Å, as the README of the test data states."""

OPTIONS = (
    "--auto_refine --split_random_halves --firstiter_cc --ini_high 40 --dont_combine_weights_via_disc "
    "--preread_images --pool 30 --pad 2 --ctf --particle_diameter 320 --flatten_solvent --zero_mask --oversampling 1 "
    "--healpix_order 2 --auto_local_healpix_order 4 --offset_range 5 --offset_step 2 --sym C1 "
    "--low_resol_join_halves 40 --norm --scale --j 1 --random_seed 42"
)


def peer_time(bench: Bench, folder: Path, own_wall: float) -> None:
    """Add rows with RELION's measured seconds by iteration, and the extrapolated time beside cloudem's.

    Seconds of iteration i are taken as ``a_i + b_i N``, fitted through the two subsets; the estimate for all particles
    is the mean of that over the iterations from 2 on that both subsets finished, times ``ITERATIONS``. Subsets reach
    coarser resolution than all particles would, which makes RELION's iterations cheaper: the estimate is on the low
    side. It is never a measurement of the whole run.
    """
    bench.program("relion_refine_mpi")
    bench.program("mpirun")
    subsets = [bench.few(n, n // 10) for n in SUBSETS]
    times = [iterations(bench, folder, count) for count in subsets]
    for count, seconds in zip(subsets, times, strict=True):
        listed = " ".join(f"{s:.0f}" for s in seconds)
        bench.add({"measured": f"RELION {relion_version(bench)}", "particles": count, "s by iteration": listed})
    both = min(map(len, times))
    if both < 2:
        print("  too few iterations to extrapolate from: give more --relion-minutes")
        return
    first, second = (np.array(seconds[1:both]) for seconds in times)
    slope = (second - first) / (subsets[1] - subsets[0])
    total = RIBOSOME[BOX]
    each = float(np.mean(np.maximum(first + slope * (total - subsets[0]), first)))
    estimate = each * ITERATIONS
    bench.add({
        "EXTRAPOLATED, not measured": f"{total} particles, {ITERATIONS} iterations",
        "method": f"linear in particles from {subsets[0]} and {subsets[1]}, mean of iterations 2 to {both}",
        "RELION wall s": round(estimate), "cloudem wall s, measured": round(own_wall),
        "ratio": round(estimate / own_wall, 1),
    })  # fmt: skip


def iterations(bench: Bench, folder: Path, count: int) -> list[float]:
    """Run RELION on the first particles until time is up; return the seconds of each finished iteration."""
    subset = folder / f"relion-{count}"
    shutil.rmtree(subset, ignore_errors=True)
    subset.mkdir()
    blocks = read_star(folder / "particles_blind.star")
    some = {name: column[:count] for name, column in blocks["particles"].items()}
    some.pop("rlnRandomSubset", None)
    write_star(folder / f"relion-{count}.star", {**blocks, "particles": some})
    shutil.copy(bench.need(bench.data / "ribosome" / f"start_{BOX}.mrc"), subset / "start.mrc")
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "3", "relion_refine_mpi"]
    command += ["--o", f"{subset.name}/run", "--i", f"relion-{count}.star", "--ref", f"{subset.name}/start.mrc"]
    print("  $ " + " ".join(command) + " …", flush=True)
    with (subset / "log").open("w") as log:
        began = time.time()
        process = subprocess.Popen(
            [*command, *OPTIONS.split()], cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=60 * bench.relion_minutes)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # the group that this process leads, nothing else
            process.wait()
    ends = sorted(path.stat().st_mtime for path in subset.glob("run_it*_optimiser.star"))
    if not ends:
        said = (subset / "log").read_text(errors="replace").splitlines()[-3:]
        print(f"  RELION finished nothing in {time.time() - began:.0f} s: {' '.join(said)}")
    return list(np.diff(ends))
