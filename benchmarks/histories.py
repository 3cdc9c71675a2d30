"""Random histories of a cluster in a cloud that fails and lies: who owns what, what it costs, what is left.

    python benchmarks/histories.py --count 10000
    python benchmarks/histories.py --count 10000 --seed 1

Histories are those of ``tests/cloud/histories.py``, drawn by hypothesis: launches, failures, interruptions, throttling,
sold-out types, late, lost and lying answers, dead controllers. The first that breaks a rule is made as small as
possible and printed. A row of what was played goes to benchmarks/results/histories.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import hypothesis

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.cloud.histories import CLUSTER, START, History, Play, histories

RESULTS = Path(__file__).parent / "results" / "histories.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    worst = [float("-inf"), float("-inf")]

    @hypothesis.seed(options.seed)
    @hypothesis.settings(
        max_examples=options.count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(histories())
    def play(history: History) -> None:
        done = Play(history).play()
        over = done.provider.spent(CLUSTER) - done.cap.max_usd
        worst[:] = max(worst[0], over / done.cap.max_usd), max(worst[1], over / done.overshoot)
        counts.update(done.counts)
        counts.update(histories=1, seconds=int(done.clock() - START), nodes=len(done.provider.truth(CLUSTER)))

    began, began_cpu = time.perf_counter(), time.process_time()
    play()
    row = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}, hypothesis {hypothesis.__version__}",
        "seed": options.seed,
        "histories": counts.pop("histories"),
        "nodes": counts.pop("nodes"),
        "simulated_hours": counts.pop("seconds") // 3600,
        "worst_beyond_cap_share": round(worst[0], 4),
        "worst_share_of_stated_overshoot": round(worst[1], 4),
        "cpu_s": round(time.process_time() - began_cpu, 1),
        "wall_s": round(time.perf_counter() - began, 1),
        "events": dict(sorted(counts.items())),
    }
    print(json.dumps(row, indent=2))
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
