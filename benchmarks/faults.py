"""Kill workers, scheduler and client of a refinement at random moments; the result must be that of one left alone.

    python benchmarks/faults.py --work /tmp/faults                        ten workers, a scheduler, a client
    python benchmarks/faults.py --work /tmp/faults --kills 2 --seed 3

A scheduler and four workers of one thread run on hosts of their own (network namespaces; needs root and iproute2),
with TLS. A killed worker is gone with its supervisor, as a machine taken back by its owner; nothing replaces it. After
the scheduler died, everything is started again and the same command is given again; after the client died, only that.
Rows go to benchmarks/results/faults.jsonl: the time lost against the run left alone, and whether maps and poses are the
same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloudem.io.storage.groups import read_attributes, read_group
from tests.network.cluster import Cluster
from tests.network.namespaces import Hosts

WORKERS = ("w1", "w2", "w3", "w4")
RESULTS = Path(__file__).parent / "results" / "faults.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of particles and results, kept between runs")
    parser.add_argument("--count", type=int, default=3000, help="particles of 64 px")
    parser.add_argument("--kills", type=int, default=10, help="workers to kill, each in a run of its own")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = options.work / f"demo-{options.count}"
    if not data.exists():
        simulate = ("simulate", "--demo", "--blind", "--count", str(options.count), "--out", str(data))
        subprocess.run([sys.executable, "-m", "cloudem", *simulate], check=True, stdout=subprocess.DEVNULL)
    Faults(options.work, data, random.Random(options.seed)).run(options.kills)


class Faults:
    """The runs, one after another."""

    def __init__(self, work: Path, data: Path, rng: random.Random) -> None:
        self.work, self.data, self.rng = work, data, rng

    def run(self, kills: int) -> None:
        """Run undisturbed, and then with every kind of fault."""
        self.attempt("warm", None)
        self.alone = self.attempt("alone", None)
        self.say("none", self.alone, {})
        for number in range(kills):
            self.fault(f"worker {number + 1}", "worker")
        self.fault("scheduler", "scheduler")
        self.fault("client", "client")

    def fault(self, name: str, kind: str) -> None:
        """Run with one fault, and compare."""
        moment = self.rng.uniform(0.05, 0.9) * self.alone["wall_s"]
        found = self.attempt(name, (kind, moment))
        same = same_bits(self.out("alone"), self.out(name))
        self.say(name, found, {"at_s": moment, "lost_s": found["wall_s"] - self.alone["wall_s"], "same_bits": same})

    def attempt(self, name: str, fault: tuple[str, float] | None) -> dict[str, Any]:
        """Start a cluster, refine on it until the result is there, and return what happened."""
        subprocess.run(["rm", "-rf", str(self.out(name))], check=True)
        with (
            Hosts("head", *WORKERS) as hosts,
            tempfile.TemporaryDirectory() as folder,
            Cluster(hosts, Path(folder), workers=WORKERS) as cluster,
        ):
            started, runs, facts = time.monotonic(), 1, {}
            client = self.client(cluster, name)
            if fault is not None:
                facts = self.strike(cluster, client, *fault, started)
            if client.wait() != 0:
                runs += 1
                if fault is not None and fault[0] == "scheduler":
                    facts["restart_s"] = restart(cluster)
                client = self.client(cluster, name)
                if client.wait() != 0:
                    raise SystemExit(f"{name}: {(self.work / f'{name}.log').read_text()[-2000:]}")
            wall = time.monotonic() - started
        rows = read_attributes(str(self.out(name)), "result")["iterations"]
        return {
            "wall_s": wall,
            "clients": runs,
            "iterations": len(rows),
            "iteration_s": [r["seconds"] for r in rows],
        } | facts

    def client(self, cluster: Cluster, name: str) -> subprocess.Popen[bytes]:
        """Start the refinement on the head."""
        command = (
            sys.executable, "-m", "cloudem", "refine3d", "--particles", self.data / "particles.zarr", "--reference",
            self.data / "start.mrc", "--diameter-A", "180", "--max-iterations", "8", "--group-size", "100",
            "--no-report", "--scheduler", cluster.address, "--certificates", cluster.certificates,
            "--out", self.out(name),
        )  # fmt: skip
        log = (self.work / f"{name}.log").open("ab")
        return cluster.hosts.run("head", [str(word) for word in command], stdout=log, stderr=log)

    def strike(self, cluster: Cluster, client: Any, kind: str, moment: float, started: float) -> dict[str, Any]:
        """Kill at the moment."""
        time.sleep(max(moment - (time.monotonic() - started), 0))
        node = self.rng.choice(WORKERS) if kind == "worker" else "head"
        victim = client if kind == "client" else cluster.processes[node]
        family = [psutil.Process(victim.pid), *psutil.Process(victim.pid).children(recursive=True)]
        for process in family:
            process.kill()
        return {"killed": node if kind == "worker" else kind, "ran": client.poll() is None or kind == "client"}

    def out(self, name: str) -> Path:
        """Return the folder of a run's results."""
        return self.work / f"out-{name.replace(' ', '-')}"

    def say(self, name: str, found: dict[str, Any], more: dict[str, Any]) -> None:
        """Print a row and keep it."""
        row = {
            "fault": name,
            **more,
            **found,
            "workers": len(WORKERS),
            "machine": f"{platform.processor()} {os.cpu_count()} cores",
        }
        row["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        short = {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items() if k != "iteration_s"}
        print(json.dumps(short), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def restart(cluster: Cluster) -> float:
    """End what is left of a cluster, start it again, and return how many seconds that took."""
    began = time.monotonic()
    cluster.close()
    cluster.start_scheduler()
    for node in WORKERS:
        cluster.start_worker(node)
    for node in WORKERS:
        cluster.wait(node, lambda text: text.count(" is at ") > 1)
    return time.monotonic() - began


def same_bits(one: Path, other: Path) -> bool:
    """Say whether maps, curves and particles are the same to the bit."""
    for group in ("result", "particles"):
        first, second = (read_group(str(url), group)[0] for url in (one, other))
        if first.keys() != second.keys():
            return False
        if not all(np.array_equal(first[name], second[name]) for name in first):
            return False
    return True


if __name__ == "__main__":
    main()
