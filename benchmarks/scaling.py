"""The time of a refinement iteration on 1 to 1,024 workers: measured costs of tasks and the model of the bytes.

    python benchmarks/scaling.py tasks [--boxes 64 96 128 192 256] [--work FOLDER]    cost of tasks by box, one thread
    python benchmarks/scaling.py aligning --boxes 512                       aligning alone, 64 images; 7 GiB at 512 px
    python benchmarks/scaling.py solving --boxes 128 256 384 512          from sums to references alone; 8 GiB at 512 px
    python benchmarks/scaling.py scheduler [--workers 32]                       cost of a Dask task to the scheduler
    python benchmarks/scaling.py draw                            tables, docs/scaling.png and docs/scaling-parts.png

Rows of the measured parts go to ``benchmarks/results/workers.jsonl``.
``draw`` takes the newest of a box, of aligning medians over all rows.
What is measured and what is extrapolated stands in ``docs/scaling.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bars.measure import HERE, Bench, machine, save
from bars.scheduling import accumulated, by_kind, office
from bars.tasks import aligning, solving_alone, tasks
from bars.workers import (
    PARTS,
    Costs,
    iteration,
    tasks_of,
    ways,
)

from cloudem.algorithms.transport import IterationSizes
from cloudem.execution.threads import one_thread_per_task

PARTICLES, BOX = 1_000_000, 512
K_REFERENCE, K_INSERT = 179, 255
GIGABIT = 1e9 / 8
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHOWN = (1, 16, 128, 1024)
GPU = 50.0
"""Times a CPU thread's speed that a GPU worker is ASSUMED to have: none was measured."""

SOLVE = ("join", "unpack", "solve", "mask", "fsc", "solve filtered", "transform", "pack_reference")
"""Tasks from the sums to the next reference, one after another."""

POSES = ("sort and compare poses", "write poses", "read poses")


def rows() -> list[dict[str, Any]]:
    """Return the rows of the measured parts, oldest first."""
    with (HERE / "results" / "workers.jsonl").open() as file:
        return [json.loads(line)["row"] for line in file]


def measure_scheduler(bench: Bench, workers: int) -> None:
    """CPU time of scheduler and client for each kind of task; an accumulation as a check of the sum."""
    repeats = bench.few(3, 1)
    items = 16 * workers
    with office(bench.work, workers) as there:
        idle = there.idle()
        bench.add({"scheduler": "idle", "workers": workers, "CPU-ms per s": round(1e3 * idle.scheduler, 1)})
        by_kind(there, items)  # the first opens connections
        runs = [by_kind(there, items) for _ in range(repeats)]
        for kind in runs[0]:
            number = runs[0][kind][0]
            each = [statistics.median(run[kind][1][n] / number for run in runs) for n in (0, 1)]
            row = {"scheduler": kind, "workers": workers, "tasks": number, "repeats": repeats}
            row |= {"CPU-ms per task": round(1e3 * each[0], 3), "client CPU-ms per task": round(1e3 * each[1], 3)}
            bench.add(row)
        for _ in range(repeats):
            counts, took = accumulated(there, items)
            bench.add({
                "scheduler": "accumulate", "workers": workers, "items": items, "tasks": sum(counts.values()),
                "of these merges": counts["merge"], "CPU-s": round(took.scheduler, 2),
                "client CPU-s": round(took.client, 2), "wall s": round(took.wall, 1),
            })  # fmt: skip


def by_box(found: Sequence[dict[str, Any]], task: str, column: str) -> dict[int, float]:
    """Return the figures of a task by box: the newest; of aligning, which is as it was, medians of all rows."""
    rows_of: dict[int, list[float]] = {}
    for row in found:
        if row.get("task") == task and column in row:
            rows_of.setdefault(row["box"], []).append(row[column])
    if task == "aligning":
        return {box: statistics.median(values) for box, values in rows_of.items()}
    return {box: values[-1] for box, values in rows_of.items()}


def at_box(figures: dict[int, float], box: int) -> float:
    """Return a cost at a box: measured, or that of the largest measured times n³ log n."""
    largest = max(figures)
    return figures.get(box) or figures[largest] * (box / largest) ** 3 * math.log(box) / math.log(largest)


def newest(found: Sequence[dict[str, Any]], name: str, column: str) -> float:
    """Return the newest figure of a task, or of the scheduler's."""
    named = [row for row in found if name in (row.get("task"), row.get("scheduler")) and column in row]
    return float(named[-1][column])


def costs() -> Costs:
    """Return the measured costs, at the box of the model."""
    found = rows()
    solve = sum(at_box(by_box(found, name, "CPU-s"), BOX) for name in SOLVE)
    forget = newest(found, "forget", "CPU-ms per task")
    kinds = {name: newest(found, name, "CPU-ms per task") + forget for name in ("add", "note", "merge", "collect")}
    return Costs(
        particle=by_box(found, "aligning", "CPU-ms per particle")[BOX] / 1e3,
        leaf=sum(at_box(by_box(found, name, "CPU-s"), BOX) for name in ("empty", "pack")),
        merge=at_box(by_box(found, "merge", "CPU-s"), BOX),
        solve=solve,
        ready=at_box(by_box(found, "unpack_reference", "CPU-s"), BOX) * (K_REFERENCE / K_INSERT) ** 3,
        pose=sum(newest(found, name, "CPU-µs per particle") for name in POSES) / 1e6,
        pose_bytes=newest(found, "table", "bytes per particle"),
        task={name: value / 1e3 for name, value in kinds.items()},
    )


def at(workers: int) -> IterationSizes:
    return IterationSizes(BOX, K_INSERT, K_REFERENCE, "C1", workers, slices=PARTICLES)


def merged_by_others(parts: dict[str, float], workers: int, gigabits: float, way: str) -> float:
    """Return the seconds of an iteration that merges in another way, in everything else like ours."""
    rest = sum(value for name, value in parts.items() if name not in ("merging", "scheduler"))
    return rest + ways(at(workers), gigabits * GIGABIT)[way]


def tables(given: Costs) -> None:
    """Print what the documentation shows."""
    print(f"a particle {1e3 * given.particle:.1f} ms, item {given.leaf:.2f} s, merge {given.merge:.2f} s,", end=" ")
    print(f"solve {given.solve:.1f} s, ready {given.ready:.2f} s, tasks", given.task)
    for speed in (1.0, GPU):
        for gigabits in (10, 100):
            print(f"\n{gigabits} Gbit/s, workers of {speed:g} CPU threads\n")
            print("| workers | whole | speed-up | " + " | ".join(PARTS) + " | " + " | ".join(ways(at(2), 1.0)) + " |")
            print("|" + "---|" * (len(PARTS) + 6))
            one = sum(iteration(at(1), PARTICLES, given, gigabits * GIGABIT, speed).values())
            for workers in WORKERS:
                parts = iteration(at(workers), PARTICLES, given, gigabits * GIGABIT, speed)
                whole = sum(parts.values())
                others = [merged_by_others(parts, workers, gigabits, way) for way in ways(at(workers), 1.0)]
                cells = [whole, one / whole, *(parts[name] for name in PARTS), *others]
                print(f"| {workers:,} | " + " | ".join(f"{cell:,.1f}" for cell in cells) + " |")
    for speed in (1.0, GPU):
        print(f"\nthe scheduler, 10 Gbit/s, workers of {speed:g} CPU threads\n")
        print("| workers | tasks | items | merges | bricks | CPU-s | share |")
        print("|" + "---|" * 7)
        for workers in WORKERS[2:]:
            counts = tasks_of(at(workers), PARTICLES, given, speed).counts
            parts = iteration(at(workers), PARTICLES, given, 10 * GIGABIT, speed)
            kinds = " | ".join(f"{counts[kind]:,}" for kind in ("add", "merge", "collect"))
            cells = f"| {workers:,} | {sum(counts.values()):,} | {kinds} | {parts['scheduler']:.1f} "
            print(cells + f"| {100 * parts['scheduler'] / sum(parts.values()):.2f} % |")


def draw(given: Costs, folder: Path) -> None:
    """Draw the time against the workers, and the parts of it."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    colours = {"serial chain": "#b2182b", "gather to the root": "#ef8a62", "ring all-reduce": "#7f7f7f"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 5), sharey=True, layout="constrained")
    for axis, gigabits in zip(axes, (10, 100), strict=True):
        every = {n: iteration(at(n), PARTICLES, given, gigabits * GIGABIT) for n in WORKERS}
        ours = np.array([sum(parts.values()) for parts in every.values()])
        axis.plot(WORKERS, ours[0] / np.array(WORKERS), "--", color="0.6", lw=1)
        axis.plot(WORKERS, ours, "o-", color="#2166ac", lw=2, ms=4, zorder=5)
        ends = {"cloudem, CPU threads": (ours[-1], "#2166ac"), "ideal": (ours[0] / WORKERS[-1], "0.5")}
        for way, colour in colours.items():
            line = [merged_by_others(every[n], n, gigabits, way) for n in WORKERS]
            axis.plot(WORKERS, line, color=colour, lw=1.3)
            ends[way] = (line[-1], colour)
        gpu = [sum(iteration(at(n), PARTICLES, given, gigabits * GIGABIT, GPU).values()) for n in WORKERS]
        axis.plot(WORKERS, gpu, ":", color="#1b7837", lw=1.8)
        ends[f"cloudem, {GPU:g}× faster\nworkers (assumed)"] = (gpu[-1], "#1b7837")
        label_ends(axis, ends)
        axis.set(xscale="log", yscale="log", xlabel="workers (one thread and one link each)", ylim=(6, 2e5))
        axis.set_xticks(WORKERS[::2], [f"{n:,}" for n in WORKERS[::2]])
        axis.minorticks_off()
        axis.set_xlim(0.9, 14000)
        axis.set_title(f"{gigabits} Gbit/s for each worker", fontsize=11)
        axis.grid(color="0.92")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds per iteration")
    axes[0].set_yticks([10, 60, 600, 3600, 36000], ["10 s", "1 min", "10 min", "1 h", "10 h"])
    axes[0].minorticks_off()
    figure.suptitle(
        "1,000,000 particles × 512 px, local refinement: a model from measured task costs, no run of this size",
        fontsize=11,
    )
    figure.savefig(folder / "scaling.png", dpi=110)
    plt.close(figure)
    draw_parts(given, folder)


def label_ends(axis: Any, ends: dict[str, tuple[float, str]]) -> None:
    """Write names at the right ends of lines, pushed apart where lines meet."""
    place = 0.0
    for name, (value, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        lines = name.count("\n") + 1
        place = max(math.log10(value), place + 0.07 * (lines - 1))
        axis.annotate(
            name, (1024, value), (1250, 10**place), color=colour, fontsize=8.5, va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip
        place += 0.15 + 0.07 * (lines - 1)


def draw_parts(given: Costs, folder: Path) -> None:
    """Draw the parts of an iteration, as shares of it."""
    from matplotlib import pyplot as plt

    colours = ("#2166ac", "#92c5de", "#1b7837", "#d95f02", "#e6ab02", "#a6761d", "#b2182b")
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, gigabits in zip(axes, (10, 100), strict=True):
        every = [iteration(at(n), PARTICLES, given, gigabits * GIGABIT) for n in SHOWN]
        whole = np.array([sum(parts.values()) for parts in every])
        left = np.zeros(len(SHOWN))
        for name, colour in zip(PARTS, colours, strict=True):
            width = np.array([parts[name] for parts in every]) / whole
            axis.barh(range(len(SHOWN)), width, left=left, color=colour, label=name, height=0.7)
            for row, (share, start) in enumerate(zip(width, left, strict=True)):
                if share > 0.045:
                    text = f"{share * whole[row]:,.0f} s"
                    axis.text(start + share / 2, row, text, ha="center", va="center", color="white", fontsize=8)
            left += width
        for row, total in enumerate(whole):
            axis.text(1.01, row, f"{total:,.0f} s", va="center", fontsize=9)
        axis.set_yticks(range(len(SHOWN)), [f"{n:,} workers" if n > 1 else "1 worker" for n in SHOWN])
        axis.set_xlim(0, 1.13)
        axis.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axis.set_title(f"{gigabits} Gbit/s", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PARTS), fontsize=8.5, frameon=False)
    figure.savefig(folder / "scaling-parts.png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["tasks", "aligning", "solving", "scheduler", "draw"])
    parser.add_argument("--boxes", type=int, nargs="+", default=[64, 96, 128, 192, 256])
    parser.add_argument("--workers", type=int, default=32)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "cloudem-scaling")
    parser.add_argument("--quick", action="store_true", help="to see that it works; rows stay in the work folder")
    options = parser.parse_args()
    if options.part == "draw":
        given = costs()
        tables(given)
        draw(given, HERE.parent / "docs")
        return
    os.nice(5)
    options.work.mkdir(parents=True, exist_ok=True)
    bench, where = Bench(options.work, options.work, options.quick, [0]), machine()
    if options.part == "tasks":
        tasks(bench, options.boxes)
    elif options.part == "aligning":
        with one_thread_per_task():
            for box in options.boxes:
                aligning(bench, box, bench.few(64, 8), 2)
    elif options.part == "solving":
        solving_alone(bench, options.boxes)
    else:
        measure_scheduler(bench, options.workers)
    save(bench, "workers", where)


if __name__ == "__main__":
    main()
