"""A project with a finished refinement, and a server that shows it."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tornado.web

from cloudem.jobs import preview
from cloudem.jobs.refine3d.job import Refine3D
from cloudem.serve.access import LOOPBACK, Access
from cloudem.serve.pages import Pages
from cloudem.serve.server import application, listen_near
from tests.jobs.conftest import make_scene, run

TOKEN = "a-token-for-tests-only"


class Answer(NamedTuple):
    """What a server answered."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Site(NamedTuple):
    """A server that runs in a thread."""

    port: int
    pages: Pages

    def get(self, path: str, *, token: str = TOKEN, method: str = "GET", **headers: str) -> Answer:
        """Ask, as a program does; ``host`` and others replace headers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        given = {"Authorization": f"token {token}"} if token else {}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, headers=given)
            found = connection.getresponse()
            return Answer(found.status, dict(found.getheaders()), found.read())
        finally:
            connection.close()


@contextmanager
def listening(*apps: tornado.web.Application) -> Iterator[list[int]]:
    """Serve applications in a thread while the block runs; yield their ports."""
    started, found = threading.Event(), []
    loop = asyncio.new_event_loop()

    def serve() -> None:
        async def start() -> None:
            found.extend(listen_near(app, "127.0.0.1", 0) for app in apps)
            started.set()

        asyncio.set_event_loop(loop)
        loop.run_until_complete(start())
        loop.run_forever()
        loop.close()

    async def stop() -> None:
        for server, _ in found:
            server.stop()
            await server.close_all_connections()
        # websockets and events are connections no more to the server: whoever still serves one lets go of its socket
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.1)  # sockets are closed when the loop next turns
        loop.stop()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert started.wait(20)
    try:
        yield [port for _, port in found]
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop)
        thread.join(20)


@contextmanager
def served(project: Path | str, *, allow_writing: bool = False) -> Iterator[Site]:
    """Serve a project while the block runs."""
    pages = Pages(str(project))
    access = Access(TOKEN, frozenset(LOOPBACK))
    with listening(application(pages, access, secure=False, allow_writing=allow_writing)) as (port,):
        yield Site(port, pages)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the results of a refinement; nobody may change them."""
    folder = tmp_path_factory.mktemp("served")
    scene = make_scene(folder / "data", count=200)
    job: dict[str, Any] = scene.refinement(folder / "refine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preview, "SHARE", 10.0)  # all previews, however short the job is
        run(Refine3D(**{**job, "max_iterations": 3}))
    return folder


@pytest.fixture(scope="session")
def site(project: Path) -> Iterator[Site]:
    """It is served."""
    with served(project) as found:
        yield found
