"""Damage files of every kind that cloudem reads, a thousand times each, and read them: a clear answer must come.

    python benchmarks/mutations.py                               5,000 mutations of each kind
    python benchmarks/mutations.py star cs --count 200 --seed 7
    python benchmarks/mutations.py toml --only 1234              one of them, with its traceback

Each mutation is read in a process of its own, under a limit of memory and one of time; the parent measures both. A
mutation counts as a failure if

- an exception ends the reading that cloudem did not raise on purpose, or a warning is printed, or the process dies;
- the answer is longer than three lines of 133 characters, or has a character that a terminal would act upon;
- it takes more than 10 s, or 500 MB of memory more than the process had before it began.

Operators act on bytes (flip, delete, duplicate, insert, truncate, swap) and on what stands in the text (numbers become
huge, negative, NaN, words; words are renamed, repeated, replaced by controls or by bytes that are not UTF-8; brackets
are nested thousands deep; lines are dropped, repeated, exchanged). Headers of binary files are mutated as text, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.bars.mutated_files import KINDS, Kind, Read
from benchmarks.bars.mutating import mutate
from cloudem.cli.command_line import describe_error
from cloudem.errors import CloudemError

SECONDS, BYTES, CHARACTERS = 10.0, 500 * 10**6, 400
"""The bars: time, memory, length of an answer."""

WORST = 3
"""Failures of a kind that are shown."""


@dataclass
class Outcome:
    """What came of one mutation."""

    seconds: float
    bytes: int
    answer: str
    fault: str = ""
    where: str = ""


def damaged(kind: Kind, seed: int, number: int, folder: Path) -> Path:
    """Write the files of a mutation and return the damaged one; the same for the same numbers."""
    rng = random.Random(f"{seed} {number}")
    names = list(kind.files)
    chosen = rng.choice(names)
    for name in names if kind.together else [chosen]:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(mutate(kind.files[name], rng) if name == chosen else kind.files[name])
    return folder / chosen


def attempt(read: Read, path: Path) -> Outcome:
    """Read a file in a process of its own and return what came of it."""
    receiver, sender = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_reader(read, path, sender)
    os.close(sender)
    said = bytearray()
    try:
        while select.select([receiver], [], [], max(0.0, started + SECONDS - time.monotonic()))[0]:
            part = os.read(receiver, 65536)
            if not part:
                break
            said += part
        else:
            os.kill(child, signal.SIGKILL)
    finally:
        os.close(receiver)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - started
    if seconds >= SECONDS:
        return Outcome(seconds, 0, "", f"took more than {SECONDS:g} s")
    if status or not said:
        return Outcome(seconds, 0, "", f"the process died with {os.waitstatus_to_exitcode(status)}")
    answer, fault, where, before = json.loads(said)
    taken = usage.ru_maxrss * 1024 - before
    if not fault and taken > BYTES:
        fault = f"took {taken / 1e6:,.0f} MB"
    return Outcome(seconds, taken, answer, fault, where)


def _be_reader(read: Read, path: Path, sender: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * BYTES, -1))  # address space that is never filled is no memory
    fault, where, answer = "", "", ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(path)
    except Exception as error:
        answer = describe_error(error)
        named = isinstance(error, OSError) and error.filename is not None  # "NAME: File name too long"
        if not (isinstance(error, CloudemError) or named):
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "cloudem" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
            fault = f"unexpected {type(error).__name__}"
    if not fault and len(answer) > CHARACTERS:
        fault = f"an answer of {len(answer)} characters"
    elif not fault and not answer.isprintable():
        fault = "control characters in an answer"
    text = json.dumps([answer, fault, where, pages * resource.getpagesize()])
    with contextlib.suppress(OSError), os.fdopen(sender, "w") as file:
        file.write(text)
    os._exit(0)


def run(name: str, count: int, seed: int) -> dict[str, Any]:
    """Try so many mutations of a kind and return the figures."""
    kind = KINDS[name]()
    worst, faults = [], Counter[str]()
    slowest, largest, refused = 0.0, 0, 0
    with tempfile.TemporaryDirectory(prefix="cloudem-mutations-") as folder, _inside(Path(folder)):
        for file in kind.files:  # what is not damaged is read without a word, and libraries get warm
            for other, content in kind.files.items():
                (Path(folder) / other).parent.mkdir(exist_ok=True)
                (Path(folder) / other).write_bytes(content)
            with contextlib.suppress(
                *(CloudemError,) if name == "toml" else ()
            ):  # which names files that are not there
                kind.read(Path(folder) / file)
        for number in range(count):
            outcome = attempt(kind.read, damaged(kind, seed, number, Path(folder)))
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.bytes)
            refused += bool(outcome.answer)
            if outcome.fault:
                key = f"{outcome.fault} {outcome.where}".strip()
                faults[key] += 1
                if faults[key] <= WORST:
                    worst.append(f"    {name} --seed {seed} --only {number}: {key}: {outcome.answer[:200]}")
    print("\n".join(sorted(worst, key=lambda line: line.split(": ", 1)[1])), end="\n" if worst else "")
    return {"kind": name, "count": count, "seed": seed, "refused": refused, "failures": faults.total(),
            "slowest_s": round(slowest, 2), "largest_MB": round(largest / 1e6)}  # fmt: skip


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="*", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--count", type=int, default=5000, help="mutations of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="read this one of the first kind here, and show its traceback")
    options = parser.parse_args()
    chosen = options.kind or list(KINDS)
    if options.only is not None:
        kind = KINDS[chosen[0]]()
        with tempfile.TemporaryDirectory() as folder, _inside(Path(folder)):
            path = damaged(kind, options.seed, options.only, Path(folder))
            print(repr(path.read_bytes()[:3000]))
            kind.read(path)
        return
    failures = 0
    for name in chosen:
        figures = run(name, options.count, options.seed)
        failures += figures["failures"]
        print(json.dumps(figures), flush=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
