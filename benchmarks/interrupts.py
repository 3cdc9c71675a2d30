"""Interrupt commands at random moments: each ends with status 130 and one line, or had ended well; and can be repeated.

    python benchmarks/interrupts.py --count 100 --seed 1

SIGINT or SIGTERM comes at a moment between the start of a command and a little after its usual end, not before Python
has come to the first line of cloudem (some 20 ms, in which the interpreter answers). Then the same command is given
again, which has to end with status 0. Prints one line for each interrupt that was answered in another way, and a
summary; the exit status is the number of those.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = "cloudem: interrupted; run the same command again to resume\n"

SIMULATE = "simulate --demo --blind --box-px 32 --pixel-size-A 7.5 --count 120"
COMMANDS = {
    "help": "--help",
    "simulate": f"{SIMULATE} --out OUT",
    "import": "import files/particles.star --out OUT",
    "export": "export data/particles.zarr --out OUT",
    "mask": "mask data/density.mrc --out OUT.mrc",
    "refine3d": "refine3d --particles data/particles.zarr --reference data/start.mrc --diameter-A 180"
    " --max-iterations 2 --out OUT",
    "reconstruct": "reconstruct --particles refined/particles.zarr --out OUT",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored, here and in all children
    with tempfile.TemporaryDirectory(prefix="cloudem-interrupts-") as folder:
        return Interrupts(Path(folder), random.Random(options.seed)).run(options.count, options.commands)


class Interrupts:
    """The commands, in a folder of their own."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng = folder, rng
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "CLOUDEM_CACHE": str(folder / "cache")}
        self.first_line: list[float] = []

    def run(self, count: int, names: list[str]) -> int:
        """Interrupt so many times and return how often that was answered wrongly."""
        self.prepare()
        usual = {name: self.usual(name) for name in names}
        print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in usual.items()), flush=True)
        ends: collections.Counter[str] = collections.Counter()
        for number in range(count):
            name = names[number % len(names)]
            wrong = self.interrupt(name, usual[name] * self.rng.uniform(0, 1.05), ends)
            if wrong:
                print(f"WRONG {number} {wrong}", flush=True)
                ends["wrong"] += 1
        print(f"{count} interrupts: {dict(ends)}; first line after {1000 * max(self.first_line):.0f} ms at most")
        return ends["wrong"]

    def prepare(self) -> None:
        """Make what the commands read."""
        self.ended(f"{SIMULATE} --out data")
        self.ended(f"{SIMULATE.replace(' --blind', '')} --out refined")
        self.ended("export data/particles.zarr --out files")

    def usual(self, name: str) -> float:
        """Return the seconds that a command takes; the first run of it fills caches."""
        for out in ("warm", "usual"):
            begun = time.monotonic()
            self.ended(COMMANDS[name].replace("OUT", f"{out}-{name}"))
        return time.monotonic() - begun

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command as if from a terminal, where SIGINT is not ignored."""
        return subprocess.Popen(
            [sys.executable, "-m", "cloudem", *shlex.split(command)], cwd=self.folder, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, restore_signals=True,
        )  # fmt: skip

    def ended(self, command: str) -> None:
        """Run a command to its end."""
        with self.start(command) as process:
            _, errors = process.communicate(timeout=300)
        if process.returncode or errors:
            raise RuntimeError(f"cloudem {command}: status {process.returncode}: {errors[-500:]}")

    def interrupt(self, name: str, moment: float, ends: collections.Counter[str]) -> str:
        """Interrupt a command, and repeat it; return what was wrong, empty if nothing was."""
        command = COMMANDS[name].replace("OUT", "out")
        number = self.rng.choice([signal.SIGINT, signal.SIGTERM])
        begun = time.monotonic()
        with self.start(command) as process:
            while not handles(process.pid, signal.SIGTERM) and process.poll() is None:
                time.sleep(0.001)
            self.first_line.append(time.monotonic() - begun)
            time.sleep(max(0.0, moment - (time.monotonic() - begun)))
            sent = time.monotonic()
            process.send_signal(number)
            try:
                _, errors = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                return f"{name}: {number.name} after {moment:.2f} s: hangs"
        took, status = time.monotonic() - sent, process.returncode
        what = f"{name}: {number.name} after {moment:.2f} s: status {status} {took:.1f} s later, {errors!r}"
        ends[str(status)] += 1
        if (status, errors) not in ((130, LINE), (0, "")):
            return what
        try:
            self.ended(command)
        except RuntimeError as error:
            return f"{what}; given again, {error}"
        left = [path.name for path in self.folder.iterdir() if path.name.endswith((".partial", ".lease"))]
        left += [path.name for path in self.folder.glob("out/*") if path.name in ("checkpoint", "lease.json")]
        for place in (self.folder / "out", self.folder / "out.mrc"):
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        return f"{what}; left {left}" if left else ""


def handles(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


if __name__ == "__main__":
    sys.exit(main())
