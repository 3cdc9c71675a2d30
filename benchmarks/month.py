"""A simulated month: 200 workflows planned, run, metered and stopped by cloudem in a cloud that follows recordings.

    python benchmarks/month.py                  # about 10 minutes on one core
    python benchmarks/month.py --count 20
    python benchmarks/month.py --one-world      # all workflows find the same machines equally fast
    python benchmarks/month.py draw             # docs/month.png from the newest runs

Planner, controller, reconciler, meter and their limits are cloudem's own; the cloud (`MemoryProvider`) and the jobs are
simulated: see docs/month.md. Nothing here is measured. A row goes to benchmarks/results/month.jsonl, the runs one by
one to month-runs.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from bars import month_presets as presets
from bars.month_market import RecordedMonth
from bars.month_runs import BEGIN, Play, spec_of

from cloudem.cloud.catalogue import Catalogue

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "month.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("run", "draw"), default="run")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one-world", action="store_true", help="machines are as fast for all workflows")
    parser.add_argument("--keep", action="store_true", help="write the rows")
    options = parser.parse_args()
    if options.what == "draw":
        from bars.month_figure import draw

        draw([json.loads(line) for line in (RESULTS / "month-runs.jsonl").read_text().splitlines()], FIGURE)
        return
    logging.disable(logging.CRITICAL)
    began, began_cpu = time.perf_counter(), time.process_time()
    runs = []
    for run in month(options.count, options.seed, one_world=options.one_world):
        runs.append(run)
        print(describe(run), flush=True)
    row = {
        "kind": "simulation, not measured",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "seed": options.seed,
        "one_world": options.one_world,
        **summary(runs),
        "cpu_s": round(time.process_time() - began_cpu, 1),
        "wall_s": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(row, indent=2))
    if options.keep:
        with (RESULTS / "month.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not options.one_world:
            lines = [json.dumps(run) + "\n" for run in runs]
            (RESULTS / "month-runs.jsonl").write_text("".join(lines))


def month(count: int, seed: int, *, one_world: bool = False) -> Any:
    """Play workflows, and yield of each what was planned and what came of it."""
    catalogue = Catalogue.shipped()
    market = RecordedMonth(catalogue, BEGIN, str(seed))
    for number in range(count):
        play = Play(spec_of(number, seed), catalogue, market, f"world {seed}" if one_world else "")
        play.play()
        yield told(play)


def told(play: Play) -> dict[str, Any]:
    """Return what was planned for a run, what came of it, and what presets would have taken."""
    spec, plan, first = play.spec, play.plan, play.launches[0]
    wall = sum(float(launch["wall_s"]) for launch in play.launches)
    usd = play.spent() + play.besides()
    stated = play.stated_overshoot()
    every = list(presets.expected(play))
    preset = presets.chosen(play, every, play.hours)
    paid = None if preset is None else presets.actual(play, preset)
    fleets = 1 if spec.kind != "reconstruct, refine" else 2
    known = [presets.actual(play, each) for each in every] if fleets == 1 else []
    best = presets.chosen(play, known, max(play.hours, wall / 3600))
    return {
        "number": spec.number, "particles": spec.particles.count, "box": spec.particles.box, "symmetry": spec.symmetry,
        "kind": spec.kind, "region": spec.region, "day": round((spec.at - BEGIN) / 86400, 2),
        "machines": [step.describe() for step in plan.steps if step.count],
        "wall": [round(s) for s in plan.wall], "usd": [round(d, 4) for d in plan.usd],
        "actual_wall": round(wall), "actual_usd": round(usd, 4),
        "wall_holds": plan.wall.holds(wall), "usd_holds": plan.usd.holds(usd),
        "status": play.launches[-1]["status"], "why": first["why"], "tight": spec.tight,
        "launches": len(play.launches), "first_step": first["step"], "first_status": first["status"],
        "deadline_s": round(3600 * play.hours), "in_time": first["status"] == "done" and wall <= 3600 * play.hours,
        "caps": [round(float(launch["cap_usd"]), 4) for launch in play.launches],
        "spent": [round(float(launch["usd"]), 4) for launch in play.launches],
        "stated_overshoot": round(stated, 4),
        "overshoot_share": round(max(float(a["usd"]) - float(a["cap_usd"]) for a in play.launches) / stated, 4),
        "meter_error": round(float(play.launches[-1]["metered_usd"]) / float(play.launches[-1]["usd"]) - 1, 5),
        "unmetered_usd": round(float(play.launches[-1]["usd"]) - float(play.launches[-1]["metered_usd"]), 5),
        "left": int(sum(float(launch["left"]) for launch in play.launches)),
        "nodes": len(play.provider.truth(play.name, 1e12)), "taken": play.taken,
        "preset": None if preset is None else preset.describe(),
        "preset_usd": None if paid is None else round(paid.usd, 4),
        "preset_in_time": None if paid is None else paid.wall <= 3600 * play.hours,
        "hindsight": None if best is None else best.describe(),
        "hindsight_usd": None if best is None else round(best.usd, 4),
    }  # fmt: skip


def describe(run: dict[str, Any]) -> str:
    """Return a run in one line."""
    marks = "".join("." if run[key] else "!" for key in ("wall_holds", "usd_holds", "in_time"))
    return (
        f"{run['number']:4d} {marks} {run['particles']:8,d} x {run['box']} {run['symmetry']}"
        f" {', '.join(run['machines'])}: {run['actual_wall']} s of {run['wall']}, ${run['actual_usd']:.3f} of"
        f" {run['usd']}, {run['first_status']} {run['why']}; preset {run['preset']} ${run['preset_usd'] or 0:.3f}"
    )


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the bars ask of all runs."""
    both = [run["wall_holds"] and run["usd_holds"] for run in runs]
    straight = [run for run in runs if run["launches"] == 1]
    paid = [run for run in runs if run["preset_usd"] is not None]
    equal = [run for run in paid if run["in_time"] and run["preset_in_time"]]
    known = [run for run in runs if run["hindsight_usd"] is not None]
    return {
        "runs": len(runs),
        "done": sum(run["status"] == "done" for run in runs),
        "usd_in_range": _share(runs, "usd_holds"),
        "wall_in_range": _share(runs, "wall_holds"),
        "both_in_range": round(sum(both) / len(runs), 3),
        "both_in_range_of_runs_never_stopped": round(
            sum(run["wall_holds"] and run["usd_holds"] for run in straight) / max(len(straight), 1), 3
        ),
        "never_stopped": len(straight),
        "above": {
            "usd": sum(run["actual_usd"] > run["usd"][2] for run in runs),
            "wall": sum(run["actual_wall"] > run["wall"][2] for run in runs),
        },
        "median_width": {key: round(median(run[key][2] / run[key][0] for run in runs), 2) for key in ("usd", "wall")},
        "median_actual_over_expected": {
            key: round(median(run[f"actual_{key}"] / run[key][1] for run in runs), 3) for key in ("usd", "wall")
        },
        "stopped_first": dict(Counter(_why(run) for run in runs if run["launches"] > 1)),
        "tight_caps": sum(run["tight"] for run in runs),
        "cap_passed_by_more_than_stated": sum(run["overshoot_share"] > 1 for run in runs),
        "worst_share_of_stated_overshoot": max(run["overshoot_share"] for run in runs),
        "stopped_by_cap_at_share_of_it": round(
            median([r["spent"][0] / r["caps"][0] for r in runs if r["launches"] > 1 and _why(r) == "cap"] or [0.0]), 3
        ),
        "meter_error": {
            "median": median(run["meter_error"] for run in runs),
            "worst_usd": max((run["unmetered_usd"] for run in runs), key=abs),
            "worst": max((run["meter_error"] for run in runs), key=abs),
        },
        "nodes": sum(run["nodes"] for run in runs),
        "nodes_taken": sum(run["taken"] for run in runs),
        "nodes_left": sum(run["left"] for run in runs),
        "in_time": _share(runs, "in_time"),
        "in_time_where_no_cap_was_tight": _share([run for run in runs if not run["tight"]], "in_time"),
        "preset_in_time": round(sum(bool(run["preset_in_time"]) for run in runs) / len(runs), 3),
        "no_preset_meets_the_deadline": len(runs) - len(paid),
        "preset_over_cloudem": _ratios(paid, "preset_usd"),
        "preset_over_cloudem_both_in_time": _ratios(equal, "preset_usd"),
        "best_preset_in_hindsight_over_cloudem": _ratios(known, "hindsight_usd"),
    }


def _share(runs: list[dict[str, Any]], key: str) -> float:
    return round(sum(run[key] for run in runs) / len(runs), 3)


def _why(run: dict[str, Any]) -> str:
    why = str(run["why"])
    return "cap" if why.startswith("$") else "deadline" if "time" in why else why[:60]


def _ratios(runs: list[dict[str, Any]], key: str) -> dict[str, float]:
    if not runs:
        return {}
    total = sum(run[key] for run in runs) / sum(run["actual_usd"] for run in runs)
    return {
        "runs": len(runs),
        "total": round(total, 2),
        "median": round(median(run[key] / run["actual_usd"] for run in runs), 2),
    }


if __name__ == "__main__":
    main()
