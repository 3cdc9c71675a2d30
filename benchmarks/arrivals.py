"""Movies arrive in a bucket while whoever works on them is killed at random: each is done exactly once, none is lost.

    python benchmarks/arrivals.py --movies 1000 --minutes 10 --seed 1

Starts an S3 server (see tests/s3.py), uploads small movies at random moments, and keeps ``cloudem watch`` running with
two worker processes, as a supervisor would: it is started again whenever it ended. At random moments the watch, one of
its workers, or the server's gateway is killed by SIGKILL; the gateway is started again after a few seconds. When
nothing has arrived for a while, the watch ends by itself. Then the tables have to hold each movie once, and all images
have to be those of an undisturbed run on the same movies in a folder, to the bit. Prints what was killed and what was
wrong; the exit status is 1 if anything was.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SHAPE = (4, 128, 128)
WORKFLOW = """\
project = "{project}"
name = "live"

[[step]]
job = "import_movies"
movies = "{movies}"
pixel_size_A = 1.5
voltage_kV = 300
cs_mm = 2.7
dose_per_frame_e_per_A2 = 1.2

[[step]]
job = "correct_motion"
movies = "import-movies"
local = false
"""


def main() -> int:
    """Run it and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movies", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0, help="over which the movies arrive")
    parser.add_argument("--every", type=float, default=15.0, help="seconds between two kills, on average")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    from tests.s3 import missing, serve

    if reason := missing():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="cloudem-arrivals-") as folder, serve() as server:
        os.environ.update(server.environment, CLOUDEM_CACHE=f"{folder}/cache")
        return Arrivals(Path(folder), server.bucket(), options).run()


def movie_bytes(seed: int, number: int) -> bytes:
    """Return a small movie, drifting, as an MRC file."""
    rng = np.random.default_rng((seed, number))
    base = rng.standard_normal(SHAPE[1:])
    moved = np.stack([np.roll(base, (frame, -frame), (0, 1)) for frame in range(SHAPE[0])])
    frames = rng.poisson(np.clip(4 + 1.5 * moved, 0.1, None)).astype(np.int8)
    header = bytearray(1024)
    header[:16] = np.array([*SHAPE[::-1], 0], "<i4").tobytes()
    header[28:40] = np.array(SHAPE[::-1], "<i4").tobytes()
    header[40:52] = np.array([1.5 * SHAPE[2], 1.5 * SHAPE[1], SHAPE[0]], "<f4").tobytes()
    header[64:76] = np.array([1, 2, 3], "<i4").tobytes()
    header[208:216] = b"MAP \x44\x44\x00\x00"
    return bytes(header) + frames.tobytes()


class Arrivals:
    """One run."""

    def __init__(self, folder: Path, bucket: str, options: argparse.Namespace) -> None:
        self.folder, self.options, self.random = folder, options, random.Random(options.seed)
        self.movies, self.project = f"s3://{bucket}/frames", f"s3://{bucket}/project"
        self.killed: collections.Counter[str] = collections.Counter()
        self.ends: list[str] = []
        self.arrived = threading.Event()

    def run(self) -> int:
        """Let movies arrive, kill, wait for the end, and check."""
        (self.folder / "live.toml").write_text(WORKFLOW.format(project=self.project, movies=self.movies))
        uploads = threading.Thread(target=self._upload, daemon=True)
        began = time.monotonic()
        uploads.start()
        self._keep_watching()
        uploads.join()
        took = time.monotonic() - began
        wrong = self._check()
        print(f"{self.options.movies} movies in {took:.0f} s; killed: {dict(self.killed)}")
        print(f"the watch ended by itself with: {collections.Counter(self.ends)}")
        for line in wrong[:20]:
            print(f"WRONG: {line}")
        print(f"{len(wrong)} wrong")
        return 1 if wrong else 0

    def _upload(self) -> None:
        import obstore

        from cloudem.io.storage.location import object_store

        rng = random.Random(self.options.seed + 1)
        moments = sorted(rng.uniform(0, 60 * self.options.minutes) for _ in range(self.options.movies))
        began = time.monotonic()
        for number, moment in enumerate(moments):
            time.sleep(max(0.0, began + moment - time.monotonic()))
            data = movie_bytes(self.options.seed, number)
            while True:
                try:
                    obstore.put(object_store(self.movies), f"m{number:05d}.mrc", data)
                    break
                except Exception:  # the gateway was killed: the microscope's copy tries again
                    time.sleep(1)
        self.arrived.set()

    def _keep_watching(self) -> None:
        """Keep the watch running, and kill at random, until it ends by itself with everything done."""
        next_kill = time.monotonic() + self.random.expovariate(1 / self.options.every)
        while True:
            watch = self._start()
            while watch.poll() is None:
                time.sleep(0.2)
                if time.monotonic() > next_kill and not self.arrived.is_set():
                    self._kill(watch)
                    next_kill = time.monotonic() + self.random.expovariate(1 / self.options.every)
            if watch.returncode == 0 and self.arrived.is_set():
                return
            if watch.returncode != -signal.SIGKILL:
                self.ends.append(f"{watch.returncode}: {(self.folder / 'errors.txt').read_text()[-300:]}")
            time.sleep(1)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "cloudem", "watch", "--workflow", str(self.folder / "live.toml")]
        command += ["--poll-s", "2", "--end-after-min", "1", "--workers", "2"]
        with (self.folder / "out.txt").open("ab") as out, (self.folder / "errors.txt").open("wb") as errors:
            return subprocess.Popen(command, stdout=out, stderr=errors, cwd=ROOT, start_new_session=True)

    def _kill(self, watch: subprocess.Popen[bytes]) -> None:
        what = self.random.choice(["watch", "worker", "worker", "gateway"])
        with contextlib.suppress(psutil.Error):
            if what == "watch":
                watch.kill()
            elif what == "worker":
                children = psutil.Process(watch.pid).children(recursive=True)
                workers = [each for each in children if not each.children()]
                if not workers:
                    return
                self.random.choice(workers).kill()
            else:
                self._kill_gateway()
        self.killed[what] += 1

    def _kill_gateway(self) -> None:
        for process in psutil.process_iter(["name", "cmdline"]):
            command: Any = process.info["cmdline"]
            if process.info["name"] == "radosgw" and command:
                process.kill()
                time.sleep(self.random.uniform(1, 6))
                subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], start_new_session=True,
                                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
                return

    def _check(self) -> list[str]:
        """Return what is wrong with the tables and images."""
        from cloudem.io.micrographs.tables import read_micrograph_table
        from cloudem.io.movies.store import read_movies
        from cloudem.io.storage.groups import read_group

        local = self.folder / "undisturbed"
        (local / "frames").mkdir(parents=True)
        for number in range(self.options.movies):
            (local / f"frames/m{number:05d}.mrc").write_bytes(movie_bytes(self.options.seed, number))
        (local / "run.toml").write_text(WORKFLOW.format(project=local / "project", movies=local / "frames"))
        subprocess.run([sys.executable, "-m", "cloudem", "run", str(local / "run.toml")], cwd=ROOT, check=True,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        wanted = [f"m{number:05d}" for number in range(self.options.movies)]
        wrong = []
        for what, table in (
            ("movies", read_movies(f"{self.project}/import-movies")),
            ("micrographs", read_micrograph_table(f"{self.project}/correct-motion")),
        ):
            if table["micrograph"].tolist() != wanted:
                counts = collections.Counter(table["micrograph"].tolist())
                lost, more = set(wanted) - counts.keys(), [name for name, count in counts.items() if count > 1]
                wrong.append(f"{what}: {len(table)} rows, {len(lost)} lost, {len(more)} more than once")
        mine = read_micrograph_table(f"{self.project}/correct-motion")
        theirs = read_micrograph_table(local / "project/correct-motion")
        for name in ("motion_total", "dose", "problem"):
            if name not in mine or len(mine) != len(theirs):
                continue
            for movie, value, needed in zip(wanted, mine[name].tolist(), theirs[name].tolist(), strict=True):
                if repr(value) != repr(needed):
                    wrong.append(f"{name} of {movie} is {value}, and {needed} in the undisturbed run")
        places = dict(zip(theirs["micrograph"].tolist(), theirs["image"].tolist(), strict=True))
        for name, place in zip(mine["micrograph"].tolist(), mine["image"].tolist(), strict=True):
            if not place and not places[name]:
                continue
            here, there = read_group(place, "")[0], read_group(places[name], "")[0]
            other = [kind for kind in there if kind not in here or not np.array_equal(here[kind], there[kind])]
            if other:
                wrong.append(f"the images of {name} differ: {', '.join(other)}")
        return wrong


if __name__ == "__main__":
    sys.exit(main())
