"""Interrupt commands at random moments: each ends with status 130 and one line, leaves nothing, and can be repeated.

    python benchmarks/interrupts.py --count 100 --seed 1

The moment lies between the start of a command and its usual end, which is measured first. Half of the interrupts go to
the process alone. The others go to its whole group while it writes to a terminal, as with Ctrl-C. Two kinds do not
count and are drawn again: those that came when the command had ended, and those in the interpreter's own first moments,
before cloudem has set its handlers, where Python answers in its own way. These are named.

After each interrupt no process and no temporary file may be left. Then the same command is given again: up to four
more times it is interrupted, too, and then it has to end with status 0, and what it made is compared byte for byte with
what it makes undisturbed, but for files that differ between two undisturbed runs, too. A run that was submitted and
lives on is followed to its end before that. Prints one line for each answer that was wrong, and a summary; the exit
status is the number of wrong ones. Ctrl-C ends it with the summary so far.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import itertools
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINE = "cloudem: interrupted; run the same command again to resume\n"
FOLLOW = "cloudem: interrupted; the run continues; follow it with cloudem submit --attach "

SIMULATE = "simulate --demo --box-px 32 --pixel-size-A 7.5 --count 60"
REFINE = (
    "refine3d --particles data/particles.zarr --reference data/start.mrc --diameter-A 180 --max-iterations 2 --out OUT"
)
COMMANDS = {
    "help": "--help",
    "simulate": f"{SIMULATE} --blind --out OUT",
    "import": "import files/particles.star --out OUT",
    "mask": "mask data/density.mrc --out OUT.mrc",
    "refine3d": REFINE,
    "refine3d-workers": f"{REFINE} --workers 2",
    "reconstruct": "reconstruct --particles refined/particles.zarr --out OUT",
    "reconstruct-workers": "reconstruct --particles refined/particles.zarr --out OUT --workers 2",
    "postprocess": "postprocess --halves halves --out OUT",
    "report": "report OUT",
    "export": "export halves --out OUT",
    "plan": "plan workflow.toml",
    "run": "run workflow.toml",
    "submit": "submit workflow.toml --region local --yes --max-usd 1 --max-hours 1",
}
SLOW = ("refine3d-workers", "reconstruct-workers", "run", "submit")
"""These have a turn in every third round."""

WORKFLOW = """\
project = "{folder}/out"
name = "small"
region = "local"
[[step]]
job = "reconstruct"
particles = "{folder}/refined/particles.zarr"
[[step]]
job = "postprocess"
halves = "reconstruct"
"""

TWINS = {"refine3d-workers": "refine3d", "reconstruct-workers": "reconstruct", "submit": "run"}
"""Commands that have to make the same as others."""

RUNS = "out/runs"
GONE_S = 1.0
"""Within what time after a command its processes have to be gone."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signal", choices=("INT", "TERM"), default="INT")
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored, here and in all children
    with tempfile.TemporaryDirectory(prefix="cloudem-interrupts-") as folder:
        number = signal.Signals[f"SIG{options.signal}"]
        return Interrupts(Path(folder), random.Random(options.seed), number).run(options.count, options.commands)


def said_to_follow(errors: str) -> bool:
    """Return whether one line says that the run goes on."""
    return errors.startswith(FOLLOW) and errors.count("\n") == 1


class WrongError(Exception):
    """What a command did and should not have done."""


@dataclass
class Tally:
    """What became of the interrupts."""

    hits: collections.Counter[str] = field(default_factory=collections.Counter)
    late: collections.Counter[str] = field(default_factory=collections.Counter)
    early: list[str] = field(default_factory=list)
    wrong: int = 0
    repeated: int = 0
    compared: int = 0
    slowest_s: float = 0.0


class Started:
    """A command that runs, as the leader of a session and of a group; on a terminal or not."""

    def __init__(self, command: str, folder: Path, environment: dict[str, str], *, terminal: bool = False) -> None:
        script = Path(sys.executable).with_name("cloudem")
        program = [str(script)] if script.exists() else [sys.executable, "-m", "cloudem"]
        self.shown = b""
        screen, inside = pty.openpty() if terminal else (-1, -1)
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            [*program, *shlex.split(command)], cwd=folder, env=environment, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=inside if terminal else subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        if terminal:
            os.close(inside)
            threading.Thread(target=self._watch, args=(screen,), daemon=True).start()

    def _watch(self, screen: int) -> None:
        with contextlib.suppress(OSError):  # all who could write to it have gone
            while more := os.read(screen, 65536):
                self.shown = (self.shown + more)[-65536:]
        os.close(screen)

    def end(self, limit_s: float) -> tuple[int, str]:
        """Wait for the end, and return the status and what was said of errors."""
        try:
            _, errors = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()
            raise WrongError(f"hangs, killed after {limit_s:.0f} s") from None
        return self.process.returncode, errors.decode(errors="replace")


class Interrupts:
    """The commands, in a folder of their own."""

    def __init__(self, folder: Path, rng: random.Random, number: signal.Signals) -> None:
        self.folder, self.rng, self.number = folder, rng, number
        self.mark = f"CLOUDEM_CACHE={folder / 'cache'}"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CLOUDEM_CACHE": str(folder / "cache"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "CLOUDEM_LOCAL_CLOUD": str(folder / "cloud"),
            "TMPDIR": str(folder / "temporary"),
            "TERM": "xterm",
        }
        self.usual_s: dict[str, float] = {}
        self.clean: dict[str, dict[str, str]] = {}
        self.exempt: dict[str, set[str]] = {}
        self.told: list[str] = []
        self.tally = Tally()

    def run(self, count: int, names: list[str]) -> int:
        """Interrupt so many times and return how often that was answered wrongly."""
        begun = time.monotonic()
        self.prepare()
        for name in names:
            self.measure(name)
        self.told = sorted(path.name for path in self.folder.iterdir())
        print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.usual_s.items()), flush=True)
        print("differ between undisturbed runs:", ", ".join(sorted(set().union(*self.exempt.values()))), flush=True)
        quick = [name for name in names if name not in SLOW]
        turns = itertools.cycle([*names, *quick, *quick])
        hits = 0
        try:
            while hits < count:
                hits += self.turn(next(turns), count - hits)
        except KeyboardInterrupt:  # with what there is so far
            hits = self.tally.hits.total()
            self.kill()
        tally = self.tally
        print(f"{hits} interrupts of running commands, {tally.wrong} wrong: {dict(tally.hits)}")
        print(f"the slowest ended after {tally.slowest_s:.1f} s; {tally.repeated} were repeated to the end, ", end="")
        print(f"and {tally.compared} results compared")
        print(f"drawn again: {sum(tally.late.values())} after the end {dict(tally.late)}, ", end="")
        print(f"and {len(tally.early)} before the handlers were set: {'; '.join(tally.early) or 'none'}")
        print(f"{time.monotonic() - begun:.0f} s in all")
        return tally.wrong

    # What the commands need, make and take undisturbed

    def prepare(self) -> None:
        """Make what the commands read."""
        (self.folder / "temporary").mkdir()
        (self.folder / "workflow.toml").write_text(WORKFLOW.format(folder=self.folder))
        self.ended(f"{SIMULATE} --blind --out data")
        self.ended(f"{SIMULATE} --out refined")
        self.ended("export data/particles.zarr --out files")
        self.ended("reconstruct --particles refined/particles.zarr --out halves")
        self.ended("postprocess --halves halves --out sharpened")

    def measure(self, name: str) -> None:
        """Run a command to see how long it takes and what it makes; those without twin twice, to see what differs."""
        made = [self.clean[TWINS[name]]] if TWINS.get(name) in self.clean else []
        while len(made) < 2:
            self.clear(name)
            self.usual_s[name] = self.ended(COMMANDS[name].replace("OUT", "out"))
            made.append(self.made())
        if set(made[0]) != set(made[1]):
            raise RuntimeError(f"{name} makes other files each time: {set(made[0]) ^ set(made[1])}")
        self.clean[name] = made[1]
        self.exempt[name] = {path for path in made[0] if made[0][path] != made[1][path]}
        self.exempt[name] |= self.exempt.get(TWINS.get(name, ""), set())
        self.clear(name)

    def clear(self, name: str) -> None:
        """Remove what a command makes, and lay out what it changes."""
        for place in (self.folder / "out", self.folder / "out.mrc"):
            shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)
        if name == "report":
            shutil.copytree(self.folder / "sharpened", self.folder / "out")

    def made(self) -> dict[str, str]:
        """Return a digest of each file that a command made, under names without what is random in them."""
        found: dict[str, str] = {}
        for path in sorted([self.folder / "out", self.folder / "out.mrc", *self.folder.glob("out/**/*")]):
            name = plain(path.relative_to(self.folder).as_posix())
            if not path.exists() or name.startswith(RUNS):
                continue
            while name in found:
                name += " again"
            content = b"" if path.is_dir() else plain(path.read_bytes().decode("latin1")).encode("latin1")
            found[name] = "folder" if path.is_dir() else hashlib.sha256(content).hexdigest()
        return found

    def ended(self, command: str) -> float:
        """Run a command to its end; return how long it took."""
        started = Started(command, self.folder, self.environment)
        status, errors = started.end(300)
        if status or errors:
            raise WrongError(f"cloudem {command}: status {status}: {errors[-500:]!r}")
        return time.monotonic() - started.begun

    # One turn of one command

    def turn(self, name: str, most: int) -> int:
        """Interrupt a command, perhaps more than once, and repeat it; return how many interrupts met it."""
        self.clear(name)
        met, times, what = 0, self.rng.choice((1, 2, 3, 4, 5)), ""
        try:
            while met < min(most, times) or not met:
                what = self.interrupt(name)
                if not what:
                    break  # it has ended, and well
                met += not what.startswith("early")
            self.outlive(name)
            self.repeat(name)
        except WrongError as error:
            print(f"WRONG {name}: {what} {error}", flush=True)
            self.tally.wrong += 1
            met = max(met, 1)
            self.kill()
            shutil.rmtree(self.folder / "cloud", ignore_errors=True)
            for path in self.new():
                path.unlink() if path.is_file() else shutil.rmtree(path)
        return met

    def interrupt(self, name: str) -> str:
        """Interrupt a command; return what happened, nothing if it had ended before."""
        moment, group = self.usual_s[name] * self.rng.random(), self.rng.random() < 0.5
        started = Started(COMMANDS[name].replace("OUT", "out"), self.folder, self.environment, terminal=group)
        pid = started.process.pid
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(max(0.0, moment - (time.monotonic() - started.begun)))
        ended = started.process.poll() is not None
        early = not ended and not handles(pid)
        sent = time.monotonic()
        if not ended:
            os.killpg(pid, self.number) if group else os.kill(pid, self.number)
        what = f"after {moment:.2f} s to the {'group' if group else 'process'}"
        try:
            status, errors = started.end(60)
        except WrongError as error:
            raise WrongError(f"{what}: {error}") from None
        took = time.monotonic() - sent
        if (status, errors) == (0, "") and (took < GONE_S or ended):  # or its interpreter is being taken down
            self.tally.late[name] += 1
            return ""
        right = status == 130 and (errors == LINE or (name == "submit" and said_to_follow(errors)))
        if early and not right:
            what = f"early: {name} {what}, status {status}"
            self.tally.early.append(what.removeprefix("early: "))
        else:
            self.tally.hits[name] += 1
            self.tally.slowest_s = max(self.tally.slowest_s, took)
            if not right:
                raise WrongError(f"{what}: status {status} {took:.1f} s later, {errors[-1500:]!r}")
        if started.shown.rfind(b"\x1b[?25l") > started.shown.rfind(b"\x1b[?25h"):
            raise WrongError(f"{what}: the cursor is hidden")
        self.nothing_left(name, what)
        return what

    def nothing_left(self, name: str, what: str) -> None:
        """Refuse processes, temporary files and leases after a command; a run that was submitted may go on."""
        lives = name == "submit" and any(self.folder.glob("cloud/clusters/*"))
        limit = time.monotonic() + GONE_S
        while not lives and (running := self.running()):
            if time.monotonic() > limit:
                raise WrongError(f"{what}: still running: {[command_of(pid) for pid in running]}")
            time.sleep(0.01)
        left = [] if lives else [path.relative_to(self.folder) for path in self.new()]
        if left:
            raise WrongError(f"{what}: left {[str(path) for path in left]}")

    def new(self) -> list[Path]:
        """Return what lies about that is no result."""
        inside = [path for path in self.folder.rglob("*") if path.name.endswith((".partial", ".lease", "lease.json"))]
        beside = [path for path in self.folder.iterdir() if path.name not in {*self.told, "out", "out.mrc"}]
        empty = [path for path in self.folder.glob("out/*.lease") if path.is_dir()]
        temporary = [*self.folder.glob("temporary/*"), *self.folder.glob("cloud/removed-*")]
        return sorted({*inside, *beside, *empty, *temporary})

    def outlive(self, name: str) -> None:
        """Follow a run that lives on to its end."""
        for cluster in self.folder.glob("cloud/clusters/*") if name == "submit" else ():
            try:
                self.ended(f"submit --attach {RUNS}/{cluster.name}")
            except WrongError as error:
                raise WrongError(f"then {error}") from None

    def repeat(self, name: str) -> None:
        """Run the command once more, to its end, and compare what it made."""
        try:
            self.ended(COMMANDS[name].replace("OUT", "out"))
        except WrongError as error:
            raise WrongError(f"then {error}") from None
        self.tally.repeated += 1
        self.nothing_left(name, "repeated")
        made, clean = self.made(), self.clean[name]
        wrong = sorted(set(made) ^ set(clean))
        if wrong:
            raise WrongError(f"repeated: too many or too few: {wrong[:9]}")
        wrong = [path for path in made if made[path] != clean[path] and path not in self.exempt[name]]
        if wrong:
            raise WrongError(f"repeated: other bytes in {wrong[:9]}")
        self.tally.compared += bool(made)

    def kill(self) -> None:
        """End what is left of these commands."""
        for pid in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def running(self) -> list[int]:
        """Return all processes of these commands."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append(int(path.name))
        return found


def plain(text: str) -> str:
    """Return text without the random parts of names, and how often a group was written."""
    return re.sub(r"(arrays-)\d+-[0-9a-f]{8}|(?<=\d-)[0-9a-f]{8}\b", r"\1", text)


def command_of(pid: int) -> str:
    """Return the command of a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[-120:]
    return "gone"


def handles(pid: int) -> bool:
    """Return whether cloudem has set its handlers: that of SIGTERM last, which Python itself does not handle."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


if __name__ == "__main__":
    sys.exit(main())
