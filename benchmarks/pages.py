"""What the pages cost: first page, level of a surface, many viewers, projects of many jobs.

    python benchmarks/pages.py page      bytes and time of a job's page with its map, and of a new level (Chromium)
    python benchmarks/pages.py viewers   CPU time of the server with 50 pages that listen, and how late they hear
    python benchmarks/pages.py jobs      first page of a project of 10,000 jobs, from a folder
    python benchmarks/pages.py share     CPU time of a refinement with ten pages open, against none, in turns
    python benchmarks/pages.py micrographs   page of a session of 5,000 micrographs (Chromium): bytes, time, drawing
    python benchmarks/pages.py workers   what it takes a job to ask for its workers, and what it writes of them

Each prints a line for each figure, with its bar.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tornado.httpclient import AsyncHTTPClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cloudem.execution.dask.configuration import CONFIGURATION
from cloudem.execution.dask.looking import answer_of_scheduler, ask_workers
from cloudem.execution.workers import cluster_of
from cloudem.jobs.live import Live
from cloudem.jobs.project_index import INDEX_FILE, IndexEntry, ProjectIndex
from tests.serve.browser import browser
from tests.serve.sessions import make_session

TOKEN = "a-token-for-benchmarks"
HEADERS = {"Authorization": f"token {TOKEN}"}
LEVELS, VIEWERS, JOBS, ASKED = 15, 50, 10_000, 50
MICROGRAPHS, DRAGS = 5000, 15


@contextmanager
def serving(project: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Serve a project in a process of its own; give its port and the process."""
    environment = {**os.environ, "CLOUDEM_SERVE_TOKEN": TOKEN}
    command = [sys.executable, "-m", "cloudem", "serve", str(project), "--port", "0", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = next(line for line in process.stdout or () if "token=" in line)
        yield int(line.split(":")[2].split("/")[0]), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(20)


def made(folder: Path, box: int, count: int) -> None:
    """Simulate a set."""
    run(
        "simulate",
        "--demo",
        "--box-px",
        box,
        "--pixel-size-A",
        192 / box,
        "--count",
        count,
        "--snr",
        0.05,
        "--seed",
        3,
        "--blind",
        "--out",
        folder / "data",
    )


def run(*words: object) -> float:
    """Run cloudem; return the CPU-seconds."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "cloudem", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def refined(folder: Path, out: str, iterations: int) -> float:
    """Refine a simulated set; return the CPU-seconds."""
    data = folder / "data"
    return run(
        "refine3d",
        "--particles",
        data / "particles.zarr",
        "--reference",
        data / "start.mrc",
        "--diameter-A",
        170,
        "--symmetry",
        "C1",
        "--max-iterations",
        iterations,
        "--out",
        folder / out,
    )


def page(work: Path) -> None:
    """The page of a finished job of 128 px."""
    made(work, 128, 600)
    refined(work, "refine", 2)

    async def look(port: int) -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{port}/?token={TOKEN}")
            times, sizes = [], []
            for _ in range(5):
                began = time.perf_counter()
                await tab.call("Page.navigate", url=f"http://localhost:{port}/job/refine")
                await tab.until("document.getElementById('map')?.dataset.ready")
                times.append(time.perf_counter() - began)
                total = "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
                sizes.append(await tab.value(f"{total}.reduce((sum, each) => sum + each.transferSize, 0)"))
                await asyncio.sleep(1)
            print(f"page with map: {statistics.median(times):.2f} s (bar 1), {max(sizes) / 1e3:.0f} kB (bar 250)")
            await tab.until("document.querySelectorAll('#sections section').length > 3")
            whole = await tab.value(f"{total}.reduce((sum, each) => sum + each.transferSize, 0)")
            print(f"with all sections: {whole / 1e3:.0f} kB")
            await tab.value(
                "(() => { const f = document.getElementById('fineness'); f.value = '128';"
                " f.dispatchEvent(new Event('change')); })()"
            )
            await tab.until("document.getElementById('fineness').value === '128'")
            await asyncio.sleep(2)
            taken = []
            for number in range(LEVELS):
                await tab.value(
                    f"(() => {{ const l = document.getElementById('level'); l.value = {15 + 2 * number};"
                    " l.dispatchEvent(new Event('input')); })()"
                )
                await asyncio.sleep(0.4)
                taken.append(float(await tab.value("document.getElementById('surface').dataset.ms")))
            triangles = await tab.value("document.getElementById('surface').dataset.triangles")
            print(
                f"a new level at 128: median {statistics.median(taken):.0f} ms, most {max(taken):.0f} (bar 60); "
                f"{triangles} triangles at the last"
            )

    with serving(work) as (port, _):
        asyncio.run(look(port))


def viewers(work: Path) -> None:
    """Fifty pages that listen to a job which changes every two seconds."""
    folder = work / "job"
    folder.mkdir()
    live = Live(job="refine3d", began=time.time(), updated=time.time(), stage="align", total=1000, unit="images")

    def say(done: int) -> None:
        text = live.model_copy(update={"updated": time.time(), "done": done}).model_dump_json()
        (folder / "new").write_text(text)
        (folder / "new").rename(folder / "live.json")

    say(0)
    lags: dict[tuple[int, int], float] = {}  # by viewer and change: what is said again was heard before
    said = (0, 0.0)

    def heard(viewer: int, part: bytes) -> None:
        number, at = said
        if number and f"{number} of 1,000".encode() in part:
            lags.setdefault((viewer, number), time.time() - at)

    async def listen(port: int, process: psutil.Process) -> None:
        nonlocal said
        client = AsyncHTTPClient(max_clients=VIEWERS)
        address = f"http://localhost:{port}/job/job/-/events"
        pages = [
            asyncio.ensure_future(
                client.fetch(address, headers=HEADERS, streaming_callback=partial(heard, viewer), request_timeout=60)
            )
            for viewer in range(VIEWERS)
        ]
        await asyncio.sleep(4)
        before, began = sum(process.cpu_times()[:2]), time.time()
        for number in range(1, 13):
            said = number, time.time()
            say(number)
            await asyncio.sleep(2)
        used = (sum(process.cpu_times()[:2]) - before) / (time.time() - began)
        for each in pages:
            each.cancel()
        late = list(lags.values())
        print(
            f"{VIEWERS} viewers: {100 * used:.2f} % of a core (bar 1); heard {len(late)} of {12 * VIEWERS} changes, "
            f"after {statistics.median(late):.2f} s, {max(late):.2f} s at worst (bar 3; the job's pause comes before)"
        )

    with serving(work) as (port, process):
        asyncio.run(listen(port, process))


def jobs(work: Path) -> None:
    """The first page of a project of ten thousand jobs."""
    entries = {}
    for number in range(JOBS):
        name = f"refine-{number:05d}"
        (work / name).mkdir()
        entries[name] = IndexEntry(
            kind="refine3d",
            state="finished",
            began=1e9 + number,
            updated=1e9 + number + 60,
            resolution_A=3 + number % 100 / 20,
        )
    (work / INDEX_FILE).write_text(ProjectIndex(jobs=entries).model_dump_json())

    async def ask(port: int) -> None:
        client = AsyncHTTPClient()
        times = []
        for _ in range(5):
            began = time.perf_counter()
            answer = await client.fetch(f"http://localhost:{port}/", headers=HEADERS, decompress_response=False)
            times.append(time.perf_counter() - began)
            await asyncio.sleep(1.5)
        size = (
            len(answer.body)
            if "gzip" in answer.headers.get("Content-Encoding", "")
            else len(gzip.compress(answer.body))
        )
        print(
            f"{JOBS:,} jobs: first page {times[0]:.2f} s, then {statistics.median(times[1:]):.2f} s (bar 2), "
            f"{size / 1e3:.0f} kB compressed, {len(answer.body) / 1e3:.0f} kB as sent (bar 400)"
        )

    with serving(work) as (port, _):
        asyncio.run(ask(port))


def share(work: Path) -> None:
    """A refinement with ten pages open and with none, in turns."""
    made(work, 64, 1500)
    refined(work, "warm", 2)
    ratios = []
    for turn in range(3):
        spent = {}
        for watched in (False, True) if turn % 2 else (True, False):
            with serving(work) as (port, _):
                listen = ["curl", "-sN", "-H", f"Authorization: token {TOKEN}", "-o", os.devnull]
                address = f"http://localhost:{port}/events"
                pages = [subprocess.Popen([*listen, address]) for _ in range(10 if watched else 0)]
                spent[watched] = refined(work, f"refine-{turn}-{watched}", 5)
                for each in pages:
                    each.terminate()
                    each.wait()
        ratios.append(spent[True] / spent[False])
    print(
        f"CPU time of a job with ten pages open over none: {json.dumps([round(r, 3) for r in ratios])}, "
        f"median {statistics.median(ratios):.3f} (bar 1.01)"
    )


def micrographs(work: Path) -> None:
    """The page of 5,000 micrographs, with what is drawn anew while a limit is dragged."""
    image = np.random.default_rng(0).normal(100, 20, (3, 1023, 1440)).astype(np.float32)
    make_session(work, MICROGRAPHS, list(image), spectra=5)

    async def look(port: int) -> None:
        total = "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
        async with browser() as tab:
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=1200, height=900, deviceScaleFactor=1, mobile=False
            )
            await tab.open(f"http://localhost:{port}/?token={TOKEN}")
            times, sizes = [], []
            for _ in range(5):
                began = time.perf_counter()
                await tab.call("Page.navigate", url=f"http://localhost:{port}/job/picks")
                await tab.until("document.getElementById('micrographs')?.dataset.ready")
                times.append(time.perf_counter() - began)
                await asyncio.sleep(2)
                sizes.append(await tab.value(f"{total}.reduce((sum, each) => sum + each.transferSize, 0)"))
            first = await tab.value(f"{total}.find((each) => each.name.endsWith('/micrographs')).transferSize")
            again, size = statistics.median(times[1:]), max(sizes) / 1e3
            print(f"{MICROGRAPHS:,} micrographs: {times[0]:.2f} s the first time, then {again:.2f} s (bar 1)")
            print(f"{size:.0f} kB (bar 250), of which {first / 1e3:.0f} kB are their numbers")
            taken = await tab.value(DRAG.replace("DRAGS", str(DRAGS)))
            print(f"a limit that is dragged: median {statistics.median(taken):.0f} ms, most {max(taken):.0f}")
            for part in ("picture", "details"):
                began = time.perf_counter()
                where = "small" if part == "picture" else "details"
                address = (
                    f"document.body.dataset.news.replace('news', 'micrograph') + '/{where}/' + encodeURIComponent(name)"
                )
                name = "document.querySelectorAll('.micrograph-list figure')[7].dataset.name"
                await tab.value(f"(async () => {{ const name = {name}; await (await fetch({address})).blob(); }})()")
                print(f"{part} of a micrograph: {1e3 * (time.perf_counter() - began):.0f} ms")

    with serving(work) as (port, _):
        asyncio.run(look(port))


DRAG = """(async () => {
  const handle = document.querySelector('.session-plots figure:nth-child(3) .handle'), taken = [];
  for (let number = 0; number < DRAGS; number += 1) {
    const began = performance.now();
    handle.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowDown', bubbles: true }));
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    taken.push(performance.now() - began);
  }
  return taken;
})()"""
"""Moves a limit step by step, and says how long each took until it was drawn."""


def workers(work: Path) -> None:
    """One question for the workers, of 2 processes and of 100 that live in the scheduler's."""
    import dask
    from distributed import Client, LocalCluster

    few = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "processes": True}
    for options in (few, {**few, "n_workers": 100, "processes": False, "protocol": "tcp"}):
        pages = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
        with dask.config.set(CONFIGURATION), LocalCluster(**options, **pages) as cluster, Client(cluster) as client:
            client.wait_for_workers(options["n_workers"], timeout=120)
            client.gather(client.map(str, range(1000)))
            seen, took = ask_workers(client), []
            for _ in range(ASKED):
                began = time.perf_counter()
                ask_workers(client)
                took.append(time.perf_counter() - began)
                time.sleep(0.1)
            seconds = client.run_on_scheduler(answering)
        written = len(cluster_of("", seen).model_dump_json())
        print(
            f"{len(seen)} workers: an answer after {1e3 * statistics.median(took):.1f} ms (median of {ASKED}), of which"
            f" {1e3 * seconds:.2f} ms are CPU time of the scheduler; {written / 1e3:.1f} kB of live.json"
        )


def answering(dask_scheduler: Any) -> float:
    """Return the CPU-seconds in which a scheduler makes its answer."""
    before = time.process_time()
    for _ in range(ASKED):
        answer_of_scheduler("", "", None, dask_scheduler)
    return (time.process_time() - before) / ASKED


PARTS = {"page": page, "viewers": viewers, "jobs": jobs, "share": share, "micrographs": micrographs, "workers": workers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    for part in parser.parse_args().parts:
        with tempfile.TemporaryDirectory() as folder:
            PARTS[part](Path(folder))


if __name__ == "__main__":
    main()
