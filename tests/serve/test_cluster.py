"""What pages say of the machines that a job runs on, and of the money that they cost."""

from __future__ import annotations

import asyncio
import html
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.money import CapChanged, Entry, NodeEnded, NodeStarted, account
from cloudem.cloud.nodes import Pool
from cloudem.cloud.planning.estimate import Range
from cloudem.execution.workers import ClusterSeen, GpuSeen, WorkerSeen
from cloudem.jobs.live import LIVE_FILE, Live, LiveTiming, LiveTraffic
from cloudem.runs.cluster_plan import cluster_plan
from cloudem.runs.records import RunRecord, RunState, RunStore, Wishes
from cloudem.serve.pages import Pages
from tests.serve.browser import browser, needs_chromium
from tests.serve.conftest import TOKEN, Site, served

ROOT = Path(__file__).parents[2]

GPU = GpuSeen(name="NVIDIA A10G", memory_bytes=6 << 30, limit_bytes=24 << 30, busy_percent=83)

WORKER = WorkerSeen(
    name="node1 GPU 0", host="10.0.0.7", threads=1, running=1, memory_bytes=5 << 30, limit_bytes=32 << 30,
    cpu_percent=187.3, silent_s=0.4, gpu=GPU,
)  # fmt: skip


def says(project: Path, *workers: WorkerSeen, what: str = "Dask at tls://10.0.0.5:8786", **values: Any) -> Live:
    now = time.time()
    cluster = ClusterSeen(what=what, at=now, workers=workers)
    live = Live(**{"job": "refine3d", "began": now - 600, "updated": now, "cluster": cluster, **values})
    (project / "refine").mkdir(parents=True, exist_ok=True)
    (project / "refine" / LIVE_FILE).write_text(live.model_dump_json())
    return live


def text_of(page: str | None) -> str:
    """Return what a page says, without its tags."""
    assert page is not None
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def cluster_page(project: Path) -> str:
    return text_of(Pages(str(project)).cluster("refine"))


def test_two_workers_of_a_running_job_are_shown_while_it_runs_and_after(tmp_path: Path) -> None:
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched/before").touch()
    numbers = [str(number) for number in range(600)]
    where = ("--executor", "dask", "--processes", "--workers", "2", "--threads", "1")
    command = [sys.executable, "-m", "tests.counting_job", "count", *numbers, "--task-s", "0.05", *where]
    with served(tmp_path) as site:
        job = subprocess.Popen(
            [*command, "--out", str(tmp_path / "watched")],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            seen = until_said(site, "/job/watched/-/cluster", "worker 1")
            assert "worker 0" in seen
            assert "2 workers with 2 threads" in seen
            assert "Dask, 2 processes of 1 threads" in seen
            news = json.loads(site.get("/job/watched/-/cluster/news").body)
            assert "worker 1" in news["html"]
            page = site.get("/job/watched").text
            assert 'href="../job/watched/-/cluster">Dask, 2 processes of 1 threads</a>' in page
            assert job.wait(120) == 0
        finally:
            job.kill()
            job.wait()
        after = text_of(site.get("/job/watched/-/cluster").text)
        assert "as seen last, " in after
        assert "worker 1" in after
        assert "tasks running" not in after
        assert "counting" in after, "time by step"


def until_said(site: Site, path: str, words: str) -> str:
    deadline = time.monotonic() + 60
    while True:
        answer = site.get(path)
        if answer.status == 200 and words in (found := text_of(answer.text)):
            return found
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_gpus_have_columns_where_there_are_some(tmp_path: Path) -> None:
    says(tmp_path, WORKER, WorkerSeen(name="node2", silent_s=40, running=0))
    page = cluster_page(tmp_path)
    assert "node1 GPU 0 10.0.0.7 1 1 5.0 of 32.0 GiB 187 % NVIDIA A10G 6.0 of 24.0 GiB 83 % now" in page
    assert "40 s ago" in page
    assert "1 GPU, 83 % busy" in page
    says(tmp_path, WORKER.model_copy(update={"gpu": None}))
    assert "GPU memory" not in cluster_page(tmp_path)


def test_time_by_step_and_bytes_by_purpose_are_shown(tmp_path: Path) -> None:
    timings = (LiveTiming(name="align", wall_s=203.0, cpu_s=900.0, peak_rss_bytes=1 << 30),)
    moved = {"images": LiveTraffic(received=12_300_000_000, sent=0), "<b>": LiveTraffic(received=1, sent=1)}
    says(tmp_path, WORKER, timings=timings, moved=moved, stage="align", stage_s=80.0)
    page = cluster_page(tmp_path)
    assert "align 4 min 43 s 15 min 00 s 1.00 GiB" in page, "the running step counts"
    assert "received 12 GB 12 GB" in page


def test_a_job_on_one_process_says_where_that_is(tmp_path: Path) -> None:
    alone = WorkerSeen(name="this process", host="lab-7", running=1, memory_bytes=3 << 30, limit_bytes=24 << 30)
    says(tmp_path, alone, what="serial, in this process", host="lab-7", pid=4321)
    page = cluster_page(tmp_path)
    assert "serial, in this process the job itself: lab-7, process 4321" in page
    assert "this process lab-7 1 1 3.0 of 24.0 GiB" in page


def test_old_figures_have_their_age_and_older_jobs_none(tmp_path: Path) -> None:
    live = says(tmp_path, WORKER)
    assert live.cluster is not None
    old = live.cluster.model_copy(update={"at": live.updated - 300})
    says(tmp_path, cluster=old)
    assert "Workers 5 min ago" in cluster_page(tmp_path)
    says(tmp_path, cluster=None)
    assert "Nothing is known of what it runs on." in cluster_page(tmp_path)
    assert "Runs on" not in text_of(Pages(str(tmp_path)).job("refine"))


def test_dasks_own_pages_are_linked_where_they_are_served(tmp_path: Path) -> None:
    says(tmp_path, WORKER)
    pages = Pages(str(tmp_path))
    assert "Dask's own pages" not in text_of(pages.cluster("refine"))
    pages.dask = True
    assert "Dask's own pages" in text_of(pages.cluster("refine"))
    says(tmp_path, WORKER, what="serial, in this process")
    assert "Dask's own pages" not in text_of(pages.cluster("refine"))


def test_hostile_names_are_shown_not_run_and_figures_that_are_none_are_not_believed(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    gpu = GpuSeen(name=evil, memory_bytes=10**18, limit_bytes=1, busy_percent=1e9)
    says(tmp_path, WORKER.model_copy(update={"name": evil, "host": evil, "gpu": gpu}), what=evil, host=evil)
    pages = Pages(str(tmp_path))
    for page in (pages.cluster("refine"), pages.job("refine")):
        assert "<img" not in (page or "<img")
    path = tmp_path / "refine" / LIVE_FILE
    good = path.read_text()
    for bad in ('"threads":-1', '"threads":1e400', '"threads":NaN', '"threads":"many"', '"threads":1,"more":{}'):
        path.write_text(good.replace('"threads":1', bad))
        assert pages.cluster("refine") is None, "it says nothing that can be read"


@needs_chromium
def test_the_page_follows_the_cluster_and_fits_the_window(tmp_path: Path) -> None:
    says(tmp_path, *(WORKER.model_copy(update={"name": f"node{n} GPU 0"}) for n in range(6)))

    async def watch(site: Site) -> None:
        async with browser() as tab:
            await tab.call(
                "Emulation.setDeviceMetricsOverride", width=1280, height=900, deviceScaleFactor=1, mobile=False
            )
            await tab.open(f"http://localhost:{site.port}/job/refine?token={TOKEN}")
            await tab.value("document.querySelector('.machines a').click()")
            await tab.until("document.querySelectorAll('table.workers tbody tr').length === 6")
            fits = "(() => { const s = document.querySelector('table.workers').parentElement;"
            assert await tab.value(fits + " return s.scrollWidth <= s.clientWidth; })()")
            await tab.value("document.querySelector('table.workers th').click()")
            says(tmp_path, WORKER.model_copy(update={"name": "node9"}), WORKER.model_copy(update={"name": "node10"}))
            await tab.until("document.querySelectorAll('table.workers tbody tr').length === 2")
            assert await tab.value("document.querySelector('table.workers tbody td').innerText") == "node9", "sorted"
            assert tab.complaints == []
            assert tab.failures == []

    with served(tmp_path) as site:
        asyncio.run(watch(site))


HEAD = Pool("local.1", "local-a", "on-demand")


def submitted(project: Path, ledger: list[Entry], **state: Any) -> str:
    """Write a run of which the refinement is the second step; return its name."""
    now, name = time.time(), "apo-20260101-000000"
    plan = cluster_plan(Catalogue.shipped(), "local", ("local.1",), 2, ("spot",), 9.0, 0.5)
    steps = ({"job": "mask", "out": f"{project}/mask.mrc"}, {"job": "refine3d", "out": f"{project}/refine"})
    record = RunRecord(
        name=name, created=now - 3600, owner="me@here", provider="local", region="local", steps=steps,
        plan=replace(plan, usd=Range(2.1, 3.4, 5.2), alternatives=()).as_json(), version="0",
    )  # fmt: skip
    store = RunStore.of(str(project), name)
    store.create(record, Wishes(max_usd=10.0, deadline=now + 3600))
    store.append(*ledger)
    store.write_state(RunState(**state))
    return name


def tiles(page: str | None) -> list[tuple[str, str]]:
    found = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page or "", re.S)
    return [(html.unescape(value), html.unescape(caption)) for value, caption in found]


def test_money_is_told_in_the_figures_and_words_of_the_runs_own_page(tmp_path: Path) -> None:
    says(tmp_path, WORKER, state="finished")
    now = time.time()
    ledger: list[Entry] = [
        CapChanged(now - 3600, 10.0, 2.0),
        NodeStarted(now - 3600, "h", "head", HEAD, 3.6),
        NodeEnded(now - 600, "h", "the run is over"),
    ]
    spent = account(ledger, now).total
    name = submitted(tmp_path, ledger, at=now, status="stopped", spent_usd=spent)
    with served(tmp_path) as site:
        of_run, of_job = tiles(site.get(f"/run/{name}").text), tiles(site.get("/job/refine").text)
    assert len(of_run) == 4
    assert of_run[0][1] == "spent, of an approximate maximum of $10.00"
    assert of_run[1] == ("$3.40", "expected; planned $2.10 to $5.20")
    assert of_job[-2:] == of_run[:2]


def test_a_running_run_says_what_an_hour_costs_and_how_old_that_is(tmp_path: Path) -> None:
    says(tmp_path, WORKER)
    now = time.time()
    name = submitted(tmp_path, [], at=now - 100, status="running", spent_usd=1.5, usd_per_hour=2.41)
    pages = Pages(str(tmp_path))
    page = pages.job("refine")
    assert tiles(page)[-3:] == [
        ("$1.50", "spent, of an approximate maximum of $10.00"),
        ("$2.41", "an hour now"),
        ("$3.40", "expected; planned $2.10 to $5.20"),
    ]
    assert f'<a href="../run/{name}">{name}</a>' in (page or "")
    said = text_of(page)
    assert f"Step 2 of 2 of the run {name} : running ; these figures are 2 min old ; a rehearsal" in said
    assert "$2.41" in text_of(pages.project())
    RunStore.of(str(tmp_path), name).write_state(RunState(at=time.time(), status="running", usd_per_hour=2.41))
    assert "these figures are" not in text_of(pages.job("refine"))


@pytest.mark.parametrize("status", ["done", "failed"])
def test_a_run_that_is_over_costs_nothing_an_hour(tmp_path: Path, status: Any) -> None:
    says(tmp_path, WORKER, state="finished")
    submitted(tmp_path, [], at=time.time() - 100, status=status, spent_usd=1.5, usd_per_hour=2.41)
    page = Pages(str(tmp_path)).job("refine")
    assert "$1.50" in text_of(page)
    assert "an hour" not in text_of(page)
    assert "these figures are" not in text_of(page)
