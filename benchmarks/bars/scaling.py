"""Cost against the number of particles and against the box."""

from __future__ import annotations

from bars.measure import Bench, refined, sphere_fsc
from bars.refinements import refine
from bars.sets import simulated
from cloudem.algorithms.resolution import resolution_at
from cloudem.io.formats.mrc import read_volume

LENGTH_A = 240
"""Of the box, whatever its pixels: the built-in molecule is 160 Å wide."""

COUNTS = (1250, 2500, 5000, 10000)
BOXES = (64, 96, 128, 192)


def scaling(bench: Bench) -> None:
    """Cost linear in particles: 1,250 to 10,000 at 64 px; and against the box, 64 to 192 px at 1,250 particles."""
    bench.warm()
    counts = (100, 200) if bench.quick else COUNTS
    boxes = (32, 48) if bench.quick else BOXES
    runs = [(boxes[0], count) for count in counts] + [(box, counts[0]) for box in boxes[1:]]
    for box, count in runs:
        pixel_size = LENGTH_A / box
        options = ("--demo", "--box-px", box, "--pixel-size-A", pixel_size, "--count", count)
        folder = simulated(bench, f"demo{box}-{count}", *options)
        out, cost = refine(bench, "scaling", folder / "particles.zarr", folder / "start.mrc", 180)
        arrays, attributes, _ = refined(out)
        steps = len(attributes["iterations"])
        stages = {stage["name"]: stage["cpu_s"] for stage in attributes["stages"]}
        truth = read_volume(folder / "density.mrc")
        curve = sphere_fsc(arrays["map_unfiltered"], truth.data, truth.pixel_size, 90)
        bench.add({
            "box": box, "particles": count, **cost.columns(), "iterations": steps,
            "CPU-ms per particle": round(1e3 * cost.cpu / count, 2),
            "of that aligning": round(1e3 * stages["align"] / count, 2),
            "aligning, per iteration": round(1e3 * stages["align"] / count / steps, 3),
            "solving CPU-s per iteration": round(stages["solve"] / steps, 2),
            "FSC 0.5 with truth Å": round(resolution_at(curve, box, truth.pixel_size, 0.5), 2),
        })  # fmt: skip
