"""Dask's pages while a refinement runs on four workers, seen through ``cloudem serve --dask`` and through a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from tornado.httpclient import HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient
from tornado.websocket import websocket_connect

from cloudem.execution.dask.pages import MENU, SINGLE
from tests.execution.dask.test_cluster import free_ports
from tests.jobs.conftest import DIAMETER, make_scene
from tests.serve.browser import browser, hang_up, needs_chromium
from tests.serve.conftest import TOKEN
from tests.serve.test_proxy import needs_bokeh

pytestmark = needs_bokeh
ALLOWED = {"Authorization": f"token {TOKEN}"}


@dataclass
class Lab:
    """A cluster with a refinement, and the server of its pages, each a process as its user starts it."""

    folder: Path
    port: int
    dask_port: int
    processes: dict[str, subprocess.Popen[Any]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str, until: str, times: int = 1) -> None:
        """Start a command, and wait until its log says something, so many times."""
        environment = {**os.environ, "CLOUDEM_SERVE_TOKEN": TOKEN}
        with (self.folder / name).open("w") as log:
            argv = [sys.executable, "-m", "cloudem", *arguments]
            one = subprocess.Popen(argv, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.processes[name] = one
        end = time.monotonic() + 90
        while self.said(name).count(until) < times:
            assert one.poll() is None, self.said(name)
            assert time.monotonic() < end, self.said(name)
            time.sleep(0.05)

    def said(self, name: str) -> str:
        """Return a log."""
        return (self.folder / name).read_text()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A refinement that runs on four workers until the tests are over."""
    folder = tmp_path_factory.mktemp("lab")
    port, dashboard, ours, dasks = free_ports(4)
    scene = make_scene(folder / "data", count=6000, snr=0.02)  # so many that it is not over before all is seen
    made, at = Lab(folder, ours, dasks), f"tcp://127.0.0.1:{port}"
    try:
        serve = ("--dashboard", "--dashboard-port", str(dashboard))
        made.start("scheduler", "cluster", "scheduler", "--insecure", "--port", str(port), *serve, until="dashboard at")
        made.start("workers", "cluster", "worker", at, "--workers", "4", "--threads", "1", until=" is at ", times=4)
        given = ("--particles", scene.particles, "--reference", scene.reference, "--diameter-A", str(DIAMETER))
        job = ("refine3d", *given, "--out", "project/refine", "--scheduler", at, "--symmetry", "C1")
        made.start("job", *job, until="iteration 1")
        pages = ("--port", str(ours), "--dask-port", str(dasks), "--dask", f"http://127.0.0.1:{dashboard}")
        made.start("serve", "serve", "project", *pages, "--no-browser", until="is shown at port")
        yield made
    finally:
        for process in reversed(made.processes.values()):
            process.send_signal(signal.SIGINT)
        for process in made.processes.values():
            process.wait(60)


@contextlib.asynccontextmanager
async def tunnel(to: int) -> AsyncIterator[int]:
    """Pass connections at another port on, as ssh does; yield that port."""
    passing: set[asyncio.Task[Any]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to)
        for pair in ((reader, far_writer), (far_reader, writer)):
            passing.add(asyncio.create_task(carry(*pair)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if passing:
            await asyncio.wait(passing, timeout=10)


async def crawled(origin: str) -> dict[str, tuple[int, str]]:
    """Return the status of all that Dask's menu and the pages under "Info" link, and what a websocket says first.

    Those that have none say nothing.
    """
    client = SimpleAsyncHTTPClient(force_instance=True, max_body_size=1 << 24)
    found: dict[str, tuple[int, str]] = {}
    left = [f"{origin}/"]
    try:
        while left:
            url = left.pop(0)
            request = HTTPRequest(url, headers=ALLOWED, request_timeout=60, follow_redirects=True)
            answer = await client.fetch(request, raise_error=False)
            path, page = urlsplit(url).path, (answer.body or b"").decode(errors="replace")
            token = re.search(r'"token":"([^"]+)"', page)
            found[path] = answer.code, "" if token is None else await first_word(origin, path, token[1])
            if path in ("/", "/status") or path.startswith("/info"):
                there = {urljoin(answer.effective_url, link) for link in re.findall(r'href="([^"#:]+)"', page)}
                new = {each.partition("?")[0] for each in there if urlsplit(each).netloc == urlsplit(origin).netloc}
                new = {each for each in new if "/info/task/" not in each}  # tasks, which may have gone meanwhile
                left += sorted(each for each in new - set(left) if urlsplit(each).path not in found)
    finally:
        client.close()
    return found


async def first_word(origin: str, path: str, token: str) -> str:
    """Open a page's websocket as a browser does, and return what kind of message comes first."""
    url = f"{origin.replace('http', 'ws', 1)}{path.rstrip('/') or '/status'}/ws"
    request = HTTPRequest(url, headers={**ALLOWED, "Origin": origin}, request_timeout=60)
    near = await websocket_connect(request, subprotocols=["bokeh", token])
    header = json.loads(str(await asyncio.wait_for(near.read_message(), 60)))
    await hang_up(near)
    return str(header["msgtype"])


def test_all_that_dasks_menu_links_answers_during_a_refinement(lab: Lab) -> None:
    async def look() -> None:
        async with tunnel(lab.dask_port) as far:
            for port in (lab.dask_port, far):
                found = await crawled(f"http://localhost:{port}")
                assert {path: status for path, (status, _) in found.items() if status >= 400} == {}
                live = {path.strip("/") for path, (_, word) in found.items() if word == "ACK"}
                assert {*MENU, *SINGLE} - {"info"} <= live
                assert {word for _, word in found.values()} == {"", "ACK"}
                assert sum(path.startswith("/info/worker/") for path in found) == 4

    asyncio.run(look())
    assert lab.processes["job"].poll() is None, "the refinement was over before all was seen: " + lab.said("job")
    assert "Traceback" not in lab.said("scheduler") + lab.said("serve")


@needs_chromium
def test_a_browser_behind_a_tunnel_is_told_the_way_to_dasks_pages(lab: Lab) -> None:
    async def look() -> None:
        async with tunnel(lab.port) as near, tunnel(lab.dask_port) as far, browser() as tab:
            await tab.open(f"http://localhost:{near}/?token={TOKEN}")
            await tab.value("document.querySelector('nav a[href$=\"dask/\"]').click()")
            await tab.until(f"document.body.innerText.includes('localhost:{lab.dask_port} …')")
            for page in ("status", "groups"):
                await tab.open(f"http://localhost:{far}/{page}")
                await tab.until("window.Bokeh && Bokeh.documents.length > 0", 90)  # which come by the websocket
            names = "Bokeh.documents[0].roots()[0].renderers[0].data_source.data.name"
            await tab.until(f"Array.from({names}).some((each) => each.startsWith('align-it'))", 90)
            assert not tab.complaints
            assert not tab.failures

    asyncio.run(look())
    assert lab.processes["job"].poll() is None, "the refinement was over before all was seen: " + lab.said("job")
