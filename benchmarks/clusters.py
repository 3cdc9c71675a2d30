"""Refinements on object storage against a folder, on two workers against one, in fixed order against any.

    python benchmarks/clusters.py storage --work /tmp/clusters [--repeats 3]   S3 (Ceph, on this machine) and a folder
    python benchmarks/clusters.py workers --work /tmp/clusters                 one and two processes of one thread
    python benchmarks/clusters.py order --work /tmp/clusters                   three workers, --reproducible and not

Runs of the kinds that are compared take turns. Rows go to benchmarks/results/clusters.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloudem.io.storage.groups import list_groups, read_attributes
from tests.s3 import serve

RESULTS = Path(__file__).parent / "results" / "clusters.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("storage", "workers", "order"))
    parser.add_argument("--work", type=Path, required=True, help="folder of particles and results")
    parser.add_argument("--count", type=int, default=3000, help="particles of 96 px")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.part == "storage":
        storage(options.work, options.count, options.repeats)
        return
    data = simulated(str(options.work / f"demo-{options.count}"), options.count)
    kinds = {
        "workers": {f"{n} workers": ["--workers", str(n), "--threads", "1"] for n in (1, 2)},
        "order": {
            "fixed order": ["--workers", "3", "--threads", "1", "--group-size", "100"],
            "any order": ["--workers", "3", "--threads", "1", "--group-size", "100", "--no-reproducible"],
        },
    }[options.part]
    for repeat in range(options.repeats):
        for name, given in kinds.items():
            say(options.part, name, repeat, refine(data, str(options.work / "out"), given))


def storage(work: Path, count: int, repeats: int) -> None:
    """Compare a folder and S3, whose first run fills the cache."""
    os.environ["CLOUDEM_CACHE"] = str(work / "cache")
    with serve() as server:
        os.environ.update(server.environment)
        bucket = server.bucket()
        folder, remote = (simulated(f"{where}/demo-{count}", count) for where in (work, f"s3://{bucket}"))
        say("storage", "S3, cold cache", 0, refine(remote, f"s3://{bucket}/cold", []))
        for repeat in range(repeats):
            say("storage", "folder", repeat, refine(folder, str(work / "out"), []))
            say("storage", "S3, warm cache", repeat, refine(remote, f"s3://{bucket}/out-{repeat}", []))


def simulated(url: str, count: int) -> str:
    """Simulate particles unless they are there, and return where."""
    if read_attributes(f"{url}/particles.zarr", "") is None:
        run("simulate", "--demo", "--blind", "--count", str(count), "--out", url)
    return url


def refine(data: str, out: str, given: list[str]) -> dict[str, Any]:
    """Refine, and return what it cost."""
    if "://" not in out:
        subprocess.run(["rm", "-rf", out], check=True)
    particles, reference = f"{data}/particles.zarr", f"{data}/start.mrc"
    wall, cpu = time.monotonic(), children()
    run(
        "refine3d", "--particles", particles, "--reference", reference, "--diameter-A", "180", "--no-report",
        "--out", out, *given,
    )  # fmt: skip
    rows = [read_attributes(out, f"iterations/{name}") for name in list_groups(out, "iterations")]
    count = (read_attributes(particles, "") or {})["particles"]
    return {
        "wall_s": time.monotonic() - wall,
        "cpu_s": children() - cpu,
        "iterations_s": sum(row["row"]["seconds"] for row in rows),
        "align_s": [count / row["row"]["images_per_s"] for row in rows],
        "bricks_bytes": sum(row["traffic"]["bricks"]["received"] for row in rows),
        "images_bytes": sum(row["traffic"]["images"]["received"] for row in rows),
    }


def children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "cloudem", *words], check=True, stdout=subprocess.DEVNULL)


def say(part: str, name: str, repeat: int, found: dict[str, Any]) -> None:
    """Print a row and keep it."""
    row = {
        "part": part,
        "kind": name,
        "repeat": repeat,
        **found,
        "later_align_s": statistics.fsum(found["align_s"][1:]),
    }
    row |= {"cores": os.cpu_count(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items() if k != "align_s"}, flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
