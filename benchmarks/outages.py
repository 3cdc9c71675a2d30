"""Take the S3 server away for a while in the middle of jobs: each ends with the same bits, or with one clear line.

    python benchmarks/outages.py --count 10 --seed 1

Ceph's gateway is killed at a random moment of an import, a refinement or an export in turn, and started again after
``--away-s`` seconds. A job that ends with another status than 0 must say why in one line, and the same command given
again must end with status 0. Prints a line for each; the exit status is the number of those that went wrong. Needs
Debian's ``radosgw``, ``ceph-mon``, ``ceph-osd`` and ``ceph-common``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cloudem.io.particle_store import open_particles  # noqa: E402
from cloudem.io.storage.groups import read_group  # noqa: E402
from cloudem.io.storage.location import contents, join, read_bytes  # noqa: E402
from tests.s3 import missing, serve  # noqa: E402

JOBS = {
    "import": "import files/particles.star --out OUT",
    "refine3d": "refine3d --particles PARTICLES --reference data/start.mrc --diameter-A 180 --max-iterations 3"
    " --out OUT",
    "export": "export PARTICLES --out OUT",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--particles", type=int, default=400, help="of 32 px")
    parser.add_argument("--away-s", type=float, default=25.0)
    parser.add_argument("--limit-s", type=float, default=400.0, help="after which a job is taken to hang")
    options = parser.parse_args()
    if reason := missing():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory(prefix="cloudem-outages-") as folder, serve() as server:
        os.environ.update(server.environment)
        os.environ["CLOUDEM_CACHE"] = str(Path(folder) / "cache")
        return Outages(Path(folder), server.bucket(), options).run()


class Outages:
    """The jobs, their server, and what they end with when nothing happens to it."""

    def __init__(self, folder: Path, bucket: str, options: argparse.Namespace) -> None:
        self.folder, self.url, self.options = folder, f"s3://{bucket}", options
        self.rng = random.Random(options.seed)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.restarted: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run the jobs with and without an outage; return how many went wrong."""
        count = str(self.options.particles)
        self.ended(f"simulate --demo --blind --box-px 32 --pixel-size-A 7.5 --count {count} --out data")
        self.ended("export data/particles.zarr --out files")
        self.ended(f"import files/particles.star --out {self.url}/particles.zarr")
        alone, usual = {}, {}
        for name in JOBS:
            begun = time.monotonic()
            self.ended(self.command(name, "alone"))
            usual[name], alone[name] = time.monotonic() - begun, self.bits(name, "alone")
        print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in usual.items()), flush=True)
        wrong = 0
        try:
            for number in range(self.options.count):
                name = list(JOBS)[number % len(JOBS)]
                moment = usual[name] * self.rng.uniform(0.3, 0.95)  # before that it does not speak to the server
                found = self.outage(name, str(number), moment, alone[name])
                wrong += found.startswith("WRONG")
                print(f"{number} {name}, away after {moment:.1f} s: {found}", flush=True)
        finally:
            if self.restarted is not None:
                self.restarted.kill()
                self.restarted.wait()
        print(f"{self.options.count} outages, {wrong} wrong")
        return wrong

    def command(self, name: str, out: str) -> str:
        """Return the command line of a job."""
        return JOBS[name].replace("PARTICLES", f"{self.url}/particles.zarr").replace("OUT", f"{self.url}/{name}-{out}")

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a job."""
        return subprocess.Popen(
            [sys.executable, "-m", "cloudem", *shlex.split(command)], cwd=self.folder, env=self.environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ended(self, command: str) -> None:
        """Run a job to its end."""
        with self.start(command) as process:
            _, errors = process.communicate(timeout=self.options.limit_s)
        if process.returncode:
            raise RuntimeError(f"cloudem {command}: {errors[-500:]}")

    def outage(self, name: str, out: str, moment: float, alone: str) -> str:
        """Run a job with an outage and say how it ended."""
        begun = time.monotonic()
        with self.start(self.command(name, out)) as process:
            time.sleep(moment)
            self.away()
            try:
                _, errors = process.communicate(timeout=self.options.limit_s)
            except subprocess.TimeoutExpired:
                process.kill()
                return "WRONG: hangs"
        seconds = time.monotonic() - begun
        if process.returncode:
            if process.returncode != 1 or errors.count("\n") != 1 or not errors.startswith("cloudem: "):
                return f"WRONG: status {process.returncode} after {seconds:.0f} s: {errors!r}"
            try:
                self.ended(self.command(name, out))
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                return f"WRONG: {errors.strip()}; given again: {error}"
        if self.bits(name, out) != alone:
            return "WRONG: other bits"
        how = f"said {errors.strip()!r}, and went well again" if process.returncode else "went on"
        return f"{how}, {seconds:.0f} s, the same bits"

    def away(self) -> None:
        """Kill the gateway, and start it again after a while."""
        for process in psutil.Process().children(recursive=True):
            if process.status() != psutil.STATUS_ZOMBIE and process.name() == "radosgw":
                arguments = process.cmdline()
                process.kill()
                time.sleep(self.options.away_s)
                self.restarted = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", *arguments],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                return
        raise RuntimeError("there is no gateway")

    def bits(self, name: str, out: str) -> str:
        """Return a digest of what a job wrote, without dates and timings."""
        url, digest = f"{self.url}/{name}-{out}", hashlib.sha256()
        if name == "export":
            for key in sorted(set(contents(url)) - {"export.json"}):
                digest.update(read_bytes(join(url, key)) or b"")
            return digest.hexdigest()
        arrays = {}
        if name == "refine3d":
            arrays |= read_group(url, "result")[0] | read_group(url, "particles")[0]
        else:
            store = open_particles(url)
            arrays |= dict(store.particles.columns) | {"images": store.read_images(range(len(store)))}
        for key in sorted(arrays):
            digest.update(key.encode())
            digest.update(
                repr(arrays[key].tolist()).encode() if arrays[key].dtype.kind in "OUT" else arrays[key].tobytes()
            )
        return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
