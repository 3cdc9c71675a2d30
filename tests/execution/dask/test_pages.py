"""The pages of Dask while tasks run: what is linked answers, names mean something, strangers' pages read nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from cloudem.execution.dask.executor import DaskExecutor
from cloudem.execution.dask.jobs_page import COLUMNS, FORGOTTEN_S, MOST_SHOWN, ToldJobs
from cloudem.execution.dask.pages import MENU, SINGLE, allowed_origins, layout_of_groups
from cloudem.execution.doing import JobDoing, StepDoing, StepRunning
from cloudem.execution.executor import Added, Fold
from cloudem.execution.task_names import labelled
from tests.serve.browser import hang_up

ROOT = Path(__file__).parents[3]


def first_and_last(item: int) -> tuple[str, ...]:
    return ("sum",)


def slowly(item: int) -> Added[str, int, int]:
    time.sleep(0.3)
    return Added({"sum": item}, item)


def plus(earlier: int, later: int) -> int:
    return earlier + later


def whole(value: int, number: int, count: int) -> int:
    return value if number == 0 else 0


FOLD: Fold[int, str, int, int] = Fold(first_and_last, slowly, plus, whole, sum)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


@dataclass
class Cluster:
    folder: Path
    address: str
    pages: int
    processes: list[subprocess.Popen[Any]]

    def start(self, name: str, *arguments: str, until: str) -> None:
        path = self.folder / f"{name}.log"
        with path.open("w") as log:
            argv = [sys.executable, "-m", "cloudem", "cluster", *arguments]
            environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
            one = subprocess.Popen(argv, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.processes.append(one)
        deadline = time.monotonic() + 60
        while until not in path.read_text():
            assert one.poll() is None, path.read_text()
            assert time.monotonic() < deadline, path.read_text()
            time.sleep(0.05)

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.pages}/{path}", timeout=30) as answer:
                return answer.status, answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler with pages, and two workers on machines that are called the same."""
    pytest.importorskip("bokeh", reason="Bokeh is not installed; try pip install 'cloudem[dashboard]'")
    port, pages = free_port(), free_port()
    made = Cluster(tmp_path_factory.mktemp("pages"), f"tcp://127.0.0.1:{port}", pages, [])
    try:
        serve = ("--insecure", "--port", str(port), "--dashboard", "--dashboard-port", str(pages))
        made.start("scheduler", "scheduler", *serve, "--dashboard-origin", "lab.example:99", until="Dask dashboard at")
        for number in (1, 2):
            made.start(f"worker{number}", "worker", made.address, "--threads", "1", "--node", "node", until=" is at ")
        yield made
    finally:
        for process in made.processes:
            process.terminate()
        for process in made.processes:
            process.wait(timeout=60)


def align(done: int) -> JobDoing:
    """What a job does in its third iteration."""
    step = StepDoing("align", 20.0 + done, 400 + done, "images", StepRunning(0.5 * done, done, 200))
    return JobDoing(2, (StepDoing("noise", 4.0, 100, "images"), StepDoing("solve", 1.0, 0), step))


def known(dask_scheduler: Any) -> dict[str, Any]:
    groups = dask_scheduler.task_groups
    spans = dask_scheduler.extensions["spans"].spans.values()
    return {
        "kinds": {name: task.duration_average for name, task in dask_scheduler.task_prefixes.items()},
        "groups": {name: group.prefix.name for name, group in groups.items()},
        "spans": {span.name[0] for span in spans},
        "memory": {worker.name: worker.memory_limit for worker in dask_scheduler.workers.values()},
    }


@pytest.fixture(scope="module")
def seen(cluster: Cluster) -> dict[str, Any]:
    """What was seen while two iterations of a job ran: pages, and what the scheduler knew."""
    found: dict[str, Any] = {"groups": {}, "pages": {}, "changes": {}, "while running": set(), "told": 0}
    with labelled(job="fit: out"), DaskExecutor(scheduler=cluster.address) as executor:
        client = executor._pool.client

        def look() -> None:
            left = [*MENU, *SINGLE]  # each once: a page that was opened costs the scheduler time for a while
            while left or not over.is_set():
                now = client.run_on_scheduler(known)
                found["groups"] |= now.pop("groups")
                found["told"] += 1
                with contextlib.suppress(TimeoutError):  # as the thread does that writes live.json
                    executor.seen_workers(align(found["told"]))
                found.update(now)
                if left:
                    page = left.pop(0)
                    found["pages"][page] = cluster.get(page)[0]
                    found["while running"] |= {page} if not over.is_set() else set()

        def listen(page: str) -> None:
            found["changes"][page] = asyncio.run(follow(cluster, page, over))

        over = threading.Event()
        watchers = [threading.Thread(target=look)]
        watchers += [
            threading.Thread(target=listen, args=(page,)) for page in ("groups", "individual-progress", "jobs")
        ]
        for watcher in watchers:
            watcher.start()
        try:
            for iteration in (1, 2):
                with labelled(step="align", iteration=iteration):
                    sums, notes = executor.accumulate(FOLD, range(20))
                with labelled(step="solve", iteration=iteration):
                    assert executor.fetch(executor.share(plus, sums["sum"], 1)) == 191
                assert notes == list(range(20))
        finally:
            over.set()
            for watcher in watchers:
                watcher.join()
    return found


async def follow(cluster: Cluster, page: str, over: threading.Event) -> int:
    """Have a page open, as a browser has, until all is over; return how often it changed."""
    (token,) = re.findall(r'"token":"([^"]+)"', cluster.get(page)[1])
    url, heard = f"ws://127.0.0.1:{cluster.pages}/{page}/ws", 0
    connection = await websocket_connect(url, subprotocols=["bokeh", token])
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            message = await asyncio.wait_for(connection.read_message(), 0.2)
            assert message is not None, f"{page} was closed"
            heard += "PATCH-DOC" in str(message)
    await hang_up(connection)
    return heard


def test_all_pages_answer_while_tasks_run(cluster: Cluster, seen: dict[str, Any]) -> None:
    assert seen["pages"] == dict.fromkeys((*MENU, *SINGLE), 200)
    assert seen["while running"] >= set(MENU)
    assert min(seen["changes"].values()) > 0, "they move on by themselves"
    assert seen["changes"].keys() == {"groups", "individual-progress", "jobs"}
    assert "Traceback" not in (cluster.folder / "scheduler.log").read_text()


def test_all_that_pages_link_is_served_by_them(cluster: Cluster, seen: dict[str, Any]) -> None:
    for page in ("status", "info/main/workers.html"):
        base = f"http://127.0.0.1:{cluster.pages}/{page}"
        links = re.findall(r'(?:href|src)="([^"#]+)"', cluster.get(page)[1])
        there = {urllib.parse.urljoin(base, link) for link in links if not link.startswith("javascript:")}
        ours = {link for link in there if link.startswith(f"http://127.0.0.1:{cluster.pages}/")}
        assert {link for link in there - ours if "dask.org" not in link} == set(), "of other hosts only Dask's manual"
        paths = {link.removeprefix(f"http://127.0.0.1:{cluster.pages}/") for link in ours}
        assert len(paths) > 5
        assert {path: cluster.get(path)[0] for path in paths} == dict.fromkeys(paths, 200)
    assert set(MENU) <= set(re.findall(r'href="([a-z-]+)"', cluster.get("status")[1]))


@pytest.mark.parametrize("page", ["profile", "graph", "hardware", "stealing", "proxy/1/127.0.0.1/status"])
def test_what_does_not_work_is_not_there(cluster: Cluster, page: str) -> None:
    assert cluster.get(page)[0] == 404


def test_kinds_of_tasks_are_steps_and_groups_are_their_iterations(seen: dict[str, Any]) -> None:
    assert seen["kinds"].keys() == {"align", "notes", "merge", "solve"}
    assert seen["kinds"]["align"] >= 0.2, "the time of a task, undiluted by what hands its notes on"
    assert seen["groups"]["align-it001"] == seen["groups"]["align-it002"] == "align"
    assert {name.partition("-")[2] for name in seen["groups"]} <= {"it001", "it002"}
    assert seen["spans"] == {"fit: out"}


def test_workers_are_called_by_their_machine_and_show_its_memory(seen: dict[str, Any]) -> None:
    assert seen["memory"].keys() == {"node", "node.2"}
    assert min(seen["memory"].values()) > 1e8


@pytest.mark.parametrize(
    ("origin", "admitted"),
    [("own", True), ("http://lab.example:99", True), ("http://lab.example", False), ("http://evil.example:80", False)],
)
def test_pages_of_strangers_read_nothing(cluster: Cluster, origin: str, admitted: bool) -> None:
    origin = f"http://localhost:{cluster.pages}" if origin == "own" else origin

    async def knock() -> None:
        request = HTTPRequest(f"ws://127.0.0.1:{cluster.pages}/status/ws", headers={"Origin": origin})
        await hang_up(await websocket_connect(request, subprotocols=["bokeh", "token"]))

    if admitted:
        asyncio.run(knock())
    else:
        with pytest.raises(HTTPClientError, match="403"):
            asyncio.run(knock())


def test_origins_are_the_pages_own_and_those_that_are_given() -> None:
    assert allowed_origins("10.0.0.1", 80, ["lab:1"]) == ["10.0.0.1:80", "127.0.0.1:80", "lab:1", "localhost:80"]


def test_groups_stand_right_of_what_they_read_from_even_in_a_circle() -> None:
    places, arrows = layout_of_groups({"a": ["gone", "c"], "b": ["a"], "c": ["a", "b", "c"], "d": []})
    assert {name: place["x"] for name, place in places.items()} == {"a": 0, "b": 1, "c": 2, "d": 0}
    assert len({tuple(place.values()) for place in places.values()}) == 4
    assert arrows["a"]["nstart"] == set()
    assert arrows["c"] == {"nstart": {"a", "b"}, "nend": ["c", "c"]}


def test_jobs_are_shown_by_step_with_images_per_second() -> None:
    told = ToldJobs()
    told.tell("refine3d: out", align(50), 1000.0)
    rows = told.rows(1003.0)
    assert list(rows) == list(COLUMNS)
    lines = [" | ".join(filter(None, line)) for line in zip(*rows.values(), strict=True)]
    assert lines == [
        "refine3d: out | 2 | noise | 100 images | 25.0 images | 4.0 s",
        "refine3d: out | 2 | solve | 1.0 s",
        "refine3d: out | 2 | align | runs | 50 of 200 images | 2.0 images | 1:10 | 1:15",
    ]


def test_jobs_that_say_nothing_are_forgotten_and_their_number_is_bounded() -> None:
    told = ToldJobs()
    for number in range(MOST_SHOWN + 10):
        told.tell(f"job {number}", JobDoing(0, (StepDoing("a\x1b[31m\n" * 500, 0.0, 0),)), 1000.0 + number)
    rows = told.rows(1000.0 + MOST_SHOWN)
    assert len(rows["job"]) == MOST_SHOWN
    assert all(text.isprintable() and len(text) <= 400 for text in rows["step"])
    assert "job 0" not in rows["job"]
    told.tell("job 1", JobDoing(1, (StepDoing("b", 1.0, 0),)), 2000.0)
    assert told.rows(2000.0)["job"] == ["job 1"]
    assert told.rows(2000.0 + FORGOTTEN_S)["job"] == []


COMMANDS = {
    "scheduler": (
        "from cloudem.cli.command_line import main\nmain(['cluster', 'scheduler', '--insecure', '--dashboard'])"
    ),
    "job": (
        "from cloudem.execution.dask.executor import DaskExecutor\n"
        "from cloudem.errors import ParameterError\n"
        "try: DaskExecutor(threads=1, dashboard=True)\n"
        "except ParameterError as error: raise SystemExit(str(error))"
    ),
}


@pytest.mark.parametrize("who", COMMANDS)
def test_without_bokeh_a_dashboard_is_refused_in_one_line(who: str, tmp_path: Path) -> None:
    (tmp_path / "bokeh").mkdir()
    (tmp_path / "bokeh/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'bokeh'\")\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": os.environ["PATH"]}
    argv = [sys.executable, "-c", COMMANDS[who]]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert (
        "--dashboard needs Bokeh (No module named 'bokeh'); install it with `pip install 'cloudem[dash" in done.stderr
    )
    assert done.stderr.count("\n") == 1
