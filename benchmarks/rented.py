"""Runs on machines that are processes of this computer: how soon they work, what a kill or a cap does, what is left.

    python benchmarks/rented.py start --work /tmp/rented       from `cloudem submit` to the first image scored
    python benchmarks/rented.py kill --work /tmp/rented        nodes taken without notice: same bits, time, money
    python benchmarks/rented.py notice --work /tmp/rented      … with 120 s of notice
    python benchmarks/rented.py cap --work /tmp/rented         a cap that is hit, and the run resumed

Each is a workflow of one refinement on two nodes of one thread and a head (region ``local``; in network namespaces as
root), with TLS, agent, controller and ledger, as `cloudem submit` runs it. Rows go to benchmarks/results/rented.jsonl.
Prices are those of a rehearsal: nothing is charged.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from cloudem.cloud.local.provider import LocalProvider
from cloudem.cloud.money import StepStarted
from cloudem.cloud.nodes import HEAD
from cloudem.io.storage.groups import list_groups, read_group
from cloudem.runs.leftovers import look
from cloudem.runs.records import RunState, RunStore
from cloudem.runs.submit import end

RESULTS = Path(__file__).parent / "results" / "rented.jsonl"
SCORED = "contrast: "
"""Of the job's log: the first images have been compared with the reference."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("start", "kill", "notice", "cap"))
    parser.add_argument("--work", type=Path, required=True, help="folder of particles and results, kept between runs")
    parser.add_argument("--count", type=int, default=5000, help="particles of 64 px")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    data = options.work / f"demo-{options.count}"
    if not data.exists():
        cloudem("simulate", "--demo", "--blind", "--count", str(options.count), "--out", str(data))
    rented = Rented(options.work, data)
    getattr(rented, options.part)(options.repeats)


def cloudem(*arguments: str, status: int = 0) -> str:
    """Run a command and return what it says."""
    done = subprocess.run([sys.executable, "-m", "cloudem", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != status:
        raise SystemExit(f"cloudem {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


class Rented:
    """The runs, one after another."""

    def __init__(self, work: Path, data: Path) -> None:
        self.work, self.data, self.provider = work, data, LocalProvider()
        self.began, self.overshoot = 0.0, 0.0

    def submit(self, name: str) -> RunStore:
        """Submit a refinement of a new project, and return its run as soon as its controller lives."""
        project = self.work / name
        shutil.rmtree(project, ignore_errors=True)
        project.mkdir()
        workflow = project / "workflow.toml"
        workflow.write_text(
            f'project = "{project}"\nname = "{name}"\n[[step]]\njob = "refine3d"\n'
            f'particles = "{self.data}/particles.zarr"\nreference = "{self.data}/start.mrc"\n'
            'diameter_A = 160\nout = "refine"\nreport = false\n'
        )
        self.began = time.time()
        fixed = ("--region", "local", "--max-usd", "1", "--max-hours", "1", "--detach", "--yes")
        said = cloudem("submit", str(workflow), *fixed, "--types", "local.1", "--markets", "spot")
        return RunStore(re.search(r"^run: (\S+)$", said, re.MULTILINE)[1])  # type: ignore[index]

    def follow(self, store: RunStore) -> RunState:
        """Wait until a run is over, and give back what it had."""
        self.overshoot = 0.0
        while (state := store.state()) is None or not state.over or state.launch != store.wanted().launch:
            self.overshoot = max(self.overshoot, state.overshoot_usd if state else 0.0)
            time.sleep(0.1)
        end(store.record().name, self.provider)
        left = look(self.provider, time.time()).left
        if left:
            raise SystemExit(f"left behind: {left}")
        return state

    def scored(self, store: RunStore) -> float:
        """Return seconds from submitting until the first images were scored."""
        log = Path(store.url).parents[1] / "refine/log.txt"
        while not (log.exists() and SCORED in log.read_text()):
            time.sleep(0.05)
        return time.time() - self.began

    def start(self, repeats: int) -> None:
        """How soon images are scored, and what the time goes into."""
        for number in range(repeats):
            store = self.submit(f"start-{number}")
            submitted = time.time() - self.began
            scored = self.scored(store)
            step = next(entry.at for entry in store.ledger() if isinstance(entry, StepStarted)) - self.began
            store.change(stop=True)
            self.follow(store)
            self.say("start", {"submitted_s": submitted, "step_begins_s": step, "scored_s": scored})

    def kill(self, repeats: int) -> None:
        """Take a node without notice after the second iteration."""
        self.taken(repeats, "kill", lambda node: self.provider.kill(node))

    def notice(self, repeats: int) -> None:
        """Take a node 120 s after telling it so, after the second iteration."""
        self.taken(repeats, "notice", lambda node: self.provider.interrupt(node, 120.0))

    def taken(self, repeats: int, what: str, take: Any) -> None:
        alone = self.submit("alone")
        state = self.follow(alone)
        wall = time.time() - self.began
        self.say("alone", {"wall_s": wall, "usd": state.spent_usd, "status": state.status})
        for number in range(repeats):
            store = self.submit(f"{what}-{number}")
            refine = Path(store.url).parents[1] / "refine"
            while len(list_groups(str(refine), "iterations")) < 2:
                time.sleep(0.1)
            node = next(n for n in self.provider.nodes(store.record().name) if n.slot != HEAD and n.alive)
            take(node.id)
            state = self.follow(store)
            found = {"wall_s": time.time() - self.began, "usd": state.spent_usd, "status": state.status}
            found["same_bits"] = same_bits(self.work / "alone/refine", refine)
            self.say(what, found | {"lost_s": found["wall_s"] - wall})

    def cap(self, repeats: int) -> None:
        """Hit a cap in the middle, and go on with a higher one."""
        alone = self.submit("alone")
        usd = self.follow(alone).spent_usd
        for number in range(repeats):
            cap = usd * (0.6 + 0.1 * number)
            store = self.submit(f"cap-{number}")
            cloudem("submit", "--attach", store.url, "--max-usd", str(cap), "--detach")
            stopped = self.follow(store)
            stated = self.overshoot
            project = Path(store.url).parents[1]
            kept = len(list_groups(str(project / "refine"), "iterations"))
            cloudem("submit", "--resume", store.url, "--max-usd", "1", "--max-hours", "1", "--detach", "--yes")
            done = self.follow(store)
            self.say(
                "cap",
                {
                    "cap_usd": cap, "spent_usd": stopped.spent_usd, "status": stopped.status,
                    "overshoot_stated_usd": stated, "iterations_kept": kept,
                    "then": done.status, "usd_in_all": done.spent_usd,
                    "same_bits": same_bits(self.work / "alone/refine", project / "refine"),
                },
            )  # fmt: skip

    def say(self, part: str, found: dict[str, Any]) -> None:
        """Print a row and keep it."""
        row = {
            "part": part,
            **{name: round(value, 5) if isinstance(value, float) else value for name, value in found.items()},
            "particles": self.data.name, "nodes": "head local.1, 2 x local.1", "namespaces": os.geteuid() == 0,
            "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
            "load": os.getloadavg()[0], "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(row) + "\n")


def same_bits(one: Path, other: Path) -> bool:
    """Whether two refinements gave the same maps and poses."""
    for path in ("result", "particles"):
        first, second = (read_group(str(out), path)[0] for out in (one, other))
        if first.keys() != second.keys():
            return False
        if not all(
            np.array_equal(values, second[name], equal_nan=values.dtype.kind == "f") for name, values in first.items()
        ):
            return False
    return True


if __name__ == "__main__":
    main()
